#!/usr/bin/env bash
# A gateway on a host of its own, under systemd's units or a stand-in for it; see README.md.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
units=$(realpath "$here/../../deploy/systemd")
analyze=$(type -P systemd-analyze) || {
  echo "no systemd-analyze on the PATH; on Debian it is in the package systemd" >&2
  exit 1
}

extra_ports=(15001 15020 15021 15443)
place books.yaml

say "the units of deploy/systemd, with this folder in place of /usr/bin, /etc, /run and /var/lib"
here_for_there() {
  sed -e "s#/usr/bin/zeugma#$zeugma#; s#/etc/zeugma#$work/etc#; s#/run/zeugma#$work/run#; s#/var/lib/zeugma#$work/state#" "$@"
}
mkdir units etc run state
chmod 0700 state
for unit in zeugma-gateway.service zeugma-gateway.socket; do
  moved "$units/$unit" | here_for_there >"units/$unit"
done
grep -h -E '^(ListenStream|ExecStart|ExecReload|Type|Restart|RestartSec|WatchdogSec)=' units/*

say "what systemd says of them"
verified() {
  echo "\$ systemd-analyze verify units/zeugma-gateway.service units/zeugma-gateway.socket" >&3
  "$analyze" verify --man=no units/zeugma-gateway.service units/zeugma-gateway.socket >verify.txt 2>&1
  cat verify.txt
  [ ! -s verify.txt ]
}
claim "nothing: they are in order" verified

say "/etc/zeugma, as deploy/README.md says: what \`zeugma init\` made, the gateway.yaml beside the units, and a route"
zeugma init east --trust-domain east.example --cluster east
cp -r east/gw.pem east/gw.key east/bundles books.yaml etc/
moved "$units/gateway.yaml" | here_for_there >etc/gateway.yaml
echo '  drain: { delay: 0s, timeout: 5s }' >>etc/gateway.yaml # default 10s and 45s; short here
zeugma config check --config etc

if [ "$(ps -p 1 -o comm= 2>/dev/null)" = systemd ]; then
  say "systemd runs here, but this is an example: a stand-in gives the gateway what systemd would, and changes nothing of yours"
else
  say "systemd does not run here: a stand-in gives the gateway what systemd would"
fi
service books 15081
start systemd python3 "$here/stand_in.py" units/zeugma-gateway.service units/zeugma-gateway.socket
said() { grep -F "$1" systemd.log; }
main() { grep -oE '^started [0-9]+' systemd.log | tail -n 1 | cut -d' ' -f2; }
eventually "the sockets are open, and there is no gateway" said "listens on 127.0.0.1:$(port 15001)"
none() { ! said started; }
claim "no process was started" none

say "a request starts it, and is answered: it waited in the socket's queue"
claim "books answers" answers books '^books'
eventually "the gateway said when it was ready" said 'said READY=1'
first=$(main)

say "the configuration is reloaded (systemctl reload: SIGHUP), without a new process"
sed -i 's/name: local,/name: this-host,/' etc/books.yaml
kill -HUP "$pid_systemd"
eventually "the gateway said that it reloads" said 'said RELOADING=1'
eventually "the new name is in use" sh -c "'$zeugma' get routes --config etc | grep -w this-host"
claim "it is the same process" [ "$(main)" = "$first" ]

say "the gateway is killed; the sockets stay open, so that whoever comes meanwhile waits and is answered"
kill -9 "$first"
claim "books answers" answers books '^books'
claim "by another process" [ "$(main)" != "$first" ]

say "systemctl stop"
kill -TERM "$pid_systemd"
eventually "it ended as it should" said "ended $(main) with 0"
claim "and said so" said 'said STOPPING=1'
cat systemd.log

say "done: everything above held"
