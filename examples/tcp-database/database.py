#!/usr/bin/env python3
"""A database of one number: `database.py NAME PORT OTHER-PORT`. Lines in, lines out: INCR adds one and
GET reads, both answer `NAME NUMBER`. What it acknowledges it has given to the other instance first,
where that is there; when it starts it asks the other for the number."""

import socket
import socketserver
import sys
import threading

name, port, other = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
lock = threading.Lock()
number = 0


def ask_other(line):
    """What the other instance answers, or None where it is not there."""
    try:
        with socket.create_connection(("127.0.0.1", other), timeout=5) as stream:
            stream.sendall(line.encode() + b"\n")
            return stream.makefile().readline().split()[1]
    except (OSError, IndexError):
        return None


class Session(socketserver.StreamRequestHandler):
    def handle(self):
        global number
        for line in self.rfile:
            word, *rest = line.decode().split() or [""]
            if word == "INCR":
                with lock:
                    number += 1
                    answer = number
                    ask_other(f"SET {answer}")
            elif word == "SET":  # the other holds its own lock, so not ours as well
                number = max(number, int(rest[0]))
                answer = number
            else:
                answer = number
            self.wfile.write(f"{name} {answer}\n".encode())


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


number = int(ask_other("GET") or 0)
Server(("127.0.0.1", port), Session).serve_forever()
