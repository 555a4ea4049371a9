#!/usr/bin/env python3
"""A stand-in for systemd where it does not run: `stand_in.py SERVICE SOCKET`. Of these two units it does
ListenStream=, ExecStart=, Type=notify, Restart=on-failure and RestartSec=, and nothing else: no user, no
restrictions, no watchdog. SIGHUP is `systemctl reload`, SIGTERM `systemctl stop`."""

import os
import select
import signal
import socket
import sys
import time


def unit(path):
    """The settings of a unit, each a list."""
    settings = {}
    for line in open(path):
        key, equals, value = line.strip().partition("=")
        if equals and not key.startswith("#"):
            settings.setdefault(key, []).append(value)
    return settings


def tell(what):
    print(what, flush=True)


service, sockets = unit(sys.argv[1]), unit(sys.argv[2])
listeners = []
for address in sockets["ListenStream"]:
    host, port = address.rsplit(":", 1)
    listeners.append(socket.create_server((host, int(port)), backlog=4096))
    tell(f"listens on {address}")

# sd_notify(3): the service says how it is, in datagrams.
words = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
words.bind("notify.sock")
main, stopping = None, False


def start():
    """sd_listen_fds(3): the sockets are descriptors 3 and up, and two variables say so."""
    global main
    main = os.fork()
    if main == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        high = [os.dup2(one.fileno(), 100 + at) for at, one in enumerate(listeners)]
        for at, one in enumerate(high):
            os.dup2(one, 3 + at, inheritable=True)
        os.closerange(3 + len(high), 1000)
        os.environ.update(LISTEN_FDS=str(len(high)), LISTEN_PID=str(os.getpid()))
        os.environ.update(NOTIFY_SOCKET=os.path.abspath("notify.sock"))
        command = service["ExecStart"][0].split()
        os.execv(command[0], command)
    tell(f"started {main}")


def hear(wait):
    """What the service says, all of it."""
    while select.select([words], [], [], wait)[0]:
        for word in words.recv(4096).decode().splitlines():
            tell(f"said {word}")
        wait = 0


def stop(*_):
    global stopping
    stopping = True
    if main:
        os.kill(main, signal.SIGTERM)


signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGHUP, lambda *_: main and os.kill(main, signal.SIGHUP))

# The socket unit alone is started: whoever comes first starts the service, and waits meanwhile.
while not stopping and not select.select(listeners, [], [], 0.1)[0]:
    pass
if not stopping:
    tell("somebody is at a socket")
    start()
while main:
    hear(0.1)
    ended, status = os.waitpid(main, os.WNOHANG)
    if ended:
        hear(0)
        main = None
        code = os.waitstatus_to_exitcode(status)
        tell(f"ended {ended} with {code}")
        if code != 0 and not stopping and service["Restart"] == ["on-failure"]:
            time.sleep(float(service["RestartSec"][0]))
            start()
