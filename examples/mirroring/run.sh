#!/usr/bin/env bash
# A share of the requests is copied to a canary, which is well, slow and dead; see README.md.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

place east.yaml west.yaml

say "one CA, a trust domain and a gateway's certificate for each cluster"
certify east west

say "orders in east, its canary in west; and the gateways"
start primary python3 "$here/counting.py" primary "$(port 15081)"
start canary python3 "$here/counting.py" canary "$(port 16081)"
gateway west_gw west.yaml "$(port 16021)"
gateway east_gw east.yaml "$(port 15021)"
zeugma check --config east.yaml --peer west --wait 30s

# count PORT WHAT...: what a service has counted.
count() {
  curl -fsS "http://127.0.0.1:$(port "$1")/counts" |
    python3 -c 'import json, sys; counts = json.load(sys.stdin); print(*(counts[what] for what in sys.argv[1:]))' "${@:2}"
}
# copies RESULT: what became of so many copies, as east's gateway counts them.
copies() {
  curl -fsS "http://127.0.0.1:$(port 15020)/metrics" |
    awk -v result="result=\"$1\"" '/^zeugma_mirrored_total/ && index($0, result) { n += $2 } END { print n + 0 }'
}
# call N: so many requests of a workload, one after the other (curl's `[1-N]`); each must be answered by the primary.
call() {
  curl -sS -f -H 'Host: orders.shop.svc.clusterset.local' -w '\n' "http://127.0.0.1:$(port 15001)/?[1-$1]" |
    sort | uniq -c | tee /dev/stderr | grep -qx " *$1 primary"
}
is() { echo "$1, not $2"; [ "$1" = "$2" ]; }
some_but_not_all() { echo "$1 of $2"; (($1 > 0 && $1 < $2)); }

eventually "orders answers" answers orders primary
before=$(count 15081 got)

say "all is well: 100 requests, of which about half are copied"
claim "the primary answers all 100" call 100
claim "and has got each exactly once" is "$(count 15081 got)" $((before + 100))
all_arrived() { [ "$(count 16081 answered)" = "$(copies sent | tee /dev/stderr)" ]; }
eventually "the canary has answered every copy that was sent" all_arrived
read -r got copies < <(count 16081 got copies)
claim "it got nothing else: a copy can be told from a request" is "$got" "$copies"

say "the canary hangs: it takes requests and answers none"
curl -fsS -X POST "http://127.0.0.1:$(port 16081)/hold" && echo
well=$(count 16081 answered)
claim "a part of the requests so far was copied" some_but_not_all "$well" $((before + 100))
cat last.out
claim "the primary answers all 50" call 50
claim "and has got each exactly once" is "$(count 15081 got)" $((before + 150))
claim "while the canary has not answered one" is "$(count 16081 answered)" "$well"
hanging() { [ "$(count 16081 got)" -gt "$well" ]; }
eventually "though it has copies in its hands" hanging
timed_out() { [ "$(copies timeout | tee /dev/stderr)" -gt 0 ]; }
eventually "they are given up after the mirror's own timeout, and counted" timed_out

say "the canary is dead"
stop canary
claim "the primary answers all 50" call 50
claim "and has got each exactly once" is "$(count 15081 got)" $((before + 200))

say "the other cluster is gone altogether, its gateway too"
stop west_gw
claim "the primary answers all 50" call 50
claim "and has got each exactly once" is "$(count 15081 got)" $((before + 250))
claim "the primary never got a copy" is "$(count 15081 copies)" 0

say "what became of all copies"
curl -fsS "http://127.0.0.1:$(port 15020)/metrics" | grep '^zeugma_mirrored_total'

say "done: everything above held"
