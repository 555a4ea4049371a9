#!/usr/bin/env bash
# The units under systemd itself: as process 1 of namespaces and a cgroup of its own, on this
# machine's files, of which nothing is changed.
#
#   systemd.sh ZEUGMA UNITS WORK
#
# ZEUGMA is the command, UNITS deploy/systemd, WORK an empty folder. Prints what it claims; status 77
# where this machine lets nobody have a cgroup or the mounts.
set -euo pipefail
user=zeugma

leave() { # Its processes end a moment after they are killed.
  local until=$((SECONDS + 10))
  while [ -d "$cgroup" ] && ((SECONDS < until)); do
    find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null || sleep 0.1
  done
}

outside() {
  local cgroups status=0
  cgroups=$(findmnt --noheadings --first-only --types cgroup2 --output TARGET) || exit 77
  cgroup=$cgroups/zeugma-test-$$
  mkdir "$cgroup" || exit 77
  trap leave EXIT
  # The subshell is in the cgroup, this shell stays where it is.
  (
    echo "$BASHPID" >"$cgroup/cgroup.procs" || exit 77
    exec unshare --mount --net --pid --ipc --uts --cgroup --fork --kill-child --mount-proc \
      bash "${BASH_SOURCE[0]}" inside "$@" >"$3/inside.log" 2>&1
  ) &
  local systemd=$! until=$((SECONDS + 120))
  until grep -qx 'END .*' "$3/checks.log" 2>/dev/null; do
    if ! kill -0 $systemd 2>/dev/null; then
      wait $systemd || status=$?
      [ $status = 77 ] || status=1
      break
    fi
    if ((SECONDS >= until)); then status=1 && break; fi
    sleep 0.1
  done
  kill -KILL $systemd 2>/dev/null || true # and by that its child, process 1 of the others
  wait $systemd 2>/dev/null || true
  if [ $status = 0 ] && grep -qx 'END 0' "$3/checks.log"; then
    grep '^ok: ' "$3/checks.log"
    return
  fi
  [ $status = 77 ] && exit 77
  tail -n 40 "$3"/*.log >&2
  exit 1
}

inside() {
  local zeugma=$1 units=$2 work=$3 name
  {
    mount --make-rprivate /
    mount --bind /proc/sys /proc/sys
    mount -o remount,bind,ro /proc/sys
    umount --recursive --lazy /sys/fs/cgroup
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    for name in /run /opt /var/lib; do mount -t tmpfs -o mode=755 tmpfs $name; done
    mount -t tmpfs tmpfs "$work/layers"
    mkdir "$work"/layers/{up,work}
    mount -t overlay -o "lowerdir=/etc,upperdir=$work/layers/up,workdir=$work/layers/work" overlay /etc
    ip link set lo up
  } || exit 77
  cp "$zeugma" /opt/zeugma
  systemd-sysusers "$units/zeugma.sysusers"

  # As deploy/README.md has it.
  /opt/zeugma init /opt/east --trust-domain east.example --cluster east
  install -d -m 0750 -o root -g $user /etc/zeugma
  cp -r /opt/east/gw.pem /opt/east/bundles "$units/gateway.yaml" /etc/zeugma/
  install -m 0640 -o root -g $user /opt/east/gw.key /etc/zeugma/gw.key
  echo '  drain: { delay: 0s, timeout: 5s }' >>/etc/zeugma/gateway.yaml

  # Of the system's own units only the names that others are ordered by.
  mkdir -p /opt/units /opt/none
  for name in basic sysinit shutdown sockets network-online nss-lookup time-sync multi-user umount; do
    printf '[Unit]\nDescription=%s\nDefaultDependencies=no\n' $name >/opt/units/$name.target
  done
  for name in "$units"/zeugma-gateway*; do
    sed 's#/usr/bin/zeugma#/opt/zeugma#' "$name" >"/opt/units/${name##*/}"
    mkdir "/opt/units/${name##*/}.d"
  done
  for name in /opt/units/zeugma-gateway*.service.d; do
    printf '[Service]\nWatchdogSec=4\nTimeoutAbortSec=1\nStandardOutput=append:%s\nStandardError=append:%s\n' \
      "$work/access.log" "$work/gateway.log" >"$name/test.conf"
  done
  printf '[Service]\nType=oneshot\nExecStart=/bin/bash %s checks\nStandardOutput=append:%s\nStandardError=append:%s\n' \
    "$(realpath "${BASH_SOURCE[0]}")" "$work/checks.log" "$work/checks.log" >/opt/units/checks.service
  mkdir -p /run/systemd/system
  mount --bind /opt/units /lib/systemd/system
  mount --bind /opt/none /etc/systemd/system
  mount --bind /opt/none /lib/systemd/system-generators
  exec env -i container=other PATH="$PATH" /lib/systemd/systemd --system --unit=checks.service \
    --log-target=null --show-status=no
}

of() { systemctl show --value --property "$1" "$2"; }

eventually() { # WHAT COMMAND...
  local what=$1 until=$((SECONDS + 30))
  shift
  until "$@" >/dev/null 2>&1; do
    if ((SECONDS >= until)); then echo "FAILED: $what"; exit 1; fi
    sleep 0.1
  done
}

is() { [ "$(of "$1" "$2")" = "$3" ] || { echo "FAILED: $1 of $2 is $(of "$1" "$2"), not $3"; exit 1; }; }
ready() { curl -fsS --max-time 5 -o /dev/null http://127.0.0.1:15021/ready; }

checks() {
  trap 'echo "END $?"' EXIT
  local first second status
  systemctl start zeugma-gateway
  ready
  first=$(of MainPID zeugma-gateway)
  status=$(cat "/proc/$first/status")
  for line in "Uid:\t$(id -u $user)" 'CapEff:\t0+$' 'CapBnd:\t0+$' 'NoNewPrivs:\t1$' 'Seccomp:\t2$'; do
    grep -qP "^$line" <<<"$status" || { echo "FAILED: $line in $status"; exit 1; }
  done
  [ "$(stat -c %U /run/zeugma/admin.sock /var/lib/zeugma/east-gw | sort -u)" = $user ]
  setpriv --reuid $user --regid $user --clear-groups /opt/zeugma status >/dev/null
  echo "ok: it starts when it is ready, in all its restrictions"

  sed -i 's/delay: 0s/delay: 1s/' /etc/zeugma/gateway.yaml
  systemctl reload zeugma-gateway
  is MainPID zeugma-gateway "$first"
  echo "ok: it is reloaded without a new process"

  # Longer than WatchdogSec.
  sleep 6
  is NRestarts zeugma-gateway 0
  kill -STOP "$first"
  restarted() { [ "$(of NRestarts zeugma-gateway)" = 1 ] && [ "$(of ActiveState zeugma-gateway)" = active ] && ready; }
  eventually "the watchdog to restart it" restarted
  echo "ok: the watchdog lets it be while it runs, and restarts one that stands still"

  systemctl stop zeugma-gateway
  is Result zeugma-gateway success
  echo "ok: it is stopped"

  systemctl start zeugma-gateway@a
  : >/run/asking
  (
    asked=0
    while [ -e /run/asking ]; do ready || exit 1; asked=$((asked + 1)); done
    echo "$asked questions"
  ) &
  second=$!
  systemctl start zeugma-gateway@b
  ended() { [ "$(of ActiveState "$1")" = inactive ]; }
  eventually "@a to end" ended zeugma-gateway@a
  is Result zeugma-gateway@a success
  systemctl start zeugma-gateway@a
  eventually "@b to end" ended zeugma-gateway@b
  rm /run/asking
  wait $second
  [ -S /run/zeugma/admin.sock ]
  echo "ok: instances take over from each other, and nobody is turned away"
  systemctl stop zeugma-gateway@a

  systemctl start zeugma-gateway.socket
  # Nobody is there yet; it waits.
  exec 3<>/dev/tcp/127.0.0.1/15001
  eventually "the socket to start it" ready
  printf 'GET / HTTP/1.1\r\nhost: nowhere\r\nconnection: close\r\n\r\n' >&3
  grep -q '^HTTP/1.1 404' <&3
  echo "ok: a connection to its socket starts it and is answered"
}

case $1 in
inside) shift && inside "$@" ;;
checks) checks ;;
*)
  mkdir "$3/layers"
  outside "$(realpath "$1")" "$(realpath "$2")" "$(realpath "$3")"
  ;;
esac
