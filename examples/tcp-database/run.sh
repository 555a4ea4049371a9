#!/usr/bin/env bash
# A TCP service with a first and a second instance: connections fail over and come back; see README.md.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
trap '' PIPE # a write to a connection that was reset shall fail, and not end this script

place east.yaml west.yaml

say "one CA, a trust domain and a gateway's certificate for each cluster"
certify east west
zeugma config check --config east.yaml

say "the database: db-0, and db-1 which gets all that db-0 acknowledges; and the gateways"
db_0() { start db_0 python3 "$here/database.py" db-0 "$(port 15081)" "$(port 15082)"; }
db_0
start db_1 python3 "$here/database.py" db-1 "$(port 15082)" "$(port 15081)"
listens() { (exec 9<>"/dev/tcp/127.0.0.1/$(port "$1")") 2>/dev/null; }
eventually "db-0 listens" listens 15081
eventually "db-1 listens" listens 15082
gateway west_gw west.yaml "$(port 16021)"
gateway east_gw east.yaml "$(port 15021)"

# A session is a connection that stays open: `open_session FD PORT`, then `tell FD LINE` as often as wanted.
open_session() { eval "exec $1<>/dev/tcp/127.0.0.1/$(port "$2")"; }
close_session() { eval "exec $1>&-"; }
tell() {
  local answer
  echo "$2" >&"$1" && read -r -t 20 answer <&"$1" && echo "$answer"
}
says() { [ "$(tell "$1" "$2" | tee /dev/stderr)" = "$3" ]; } # says FD LINE ANSWER
# new_says PORT LINE PATTERN: the same over a connection of its own.
new_says() {
  open_session 9 "$1" 2>/dev/null || return 1
  tell 9 "$2" >new.out || true
  close_session 9
  cat new.out
  grep -qxE "$3" new.out
}

eventually "the database answers in east, by db-0" new_says 15432 GET 'db-0 0'
eventually "and in west, through both gateways" new_says 16432 GET 'db-0 0'

say "two sessions, one of a workload in east and one in west, count together"
open_session 5 15432
open_session 6 16432
claim "east adds one" says 5 INCR 'db-0 1'
claim "west adds one" says 6 INCR 'db-0 2'
claim "east adds one" says 5 INCR 'db-0 3'
zeugma get connections --config east.yaml

say "db-0 is killed; nothing can move an open session, so both end, at once"
stop db_0
ended() { # the end has come, and not just no answer in time, which is a status over 128
  local status=0
  read -r -t 20 <&"$1" || status=$?
  [ "$status" = 1 ]
}
claim "east's session has ended" ended 5
claim "west's session has ended" ended 6
close_session 5
close_session 6

say "who connects again gets db-1, and all that was acknowledged is there"
open_session 5 15432
claim "east goes on counting" says 5 INCR 'db-1 4'
open_session 6 16432
claim "west goes on counting" says 6 INCR 'db-1 5'
eventually "the checks have found db-0 dead" sh -c "'$zeugma' status --config east.yaml | grep -F 'eu/eu-1 0/1'"
zeugma status --config east.yaml

say "db-0 is back and has caught up; new sessions return to it after failback.after, open ones stay"
db_0 5>&- 6>&- # it shall not inherit the sessions
eventually "a new session gets db-0" new_says 15432 GET 'db-0 5'
claim "east's session is still at db-1" says 5 GET 'db-1 5'
claim "west's session is still at db-1" says 6 GET 'db-1 5'
eventually "a new session of west's gets db-0" new_says 16432 GET 'db-0 5'
close_session 5
close_session 6

say "how east's gateway saw west's session: who called, which instance, and why that one"
eventually "it is in the access log" \
  grep -E '"src.identity":"spiffe://west.example/zeugma/gateway".*"dst.backend":"db-1"' east_gw.log
tail -n 1 last.out

say "done: everything above held"
