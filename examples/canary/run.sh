#!/usr/bin/env bash
# A canary in the other cluster gets a tenth of the requests, then half of them, and dies; see README.md.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

place east.yaml west.yaml

say "one CA, a trust domain and a gateway's certificate for each cluster"
certify east west

say "orders in east, its next version in west; and the gateways"
service stable 15081
service canary 16081
gateway west_gw west.yaml "$(port 16021)"
gateway east_gw east.yaml "$(port 15021)"
zeugma check --config east.yaml --peer west --wait 30s

# call N [CURL-ARGUMENTS]: so many requests of a workload, one after the other (curl's `[1-N]`), each of
# which must be answered; who answered how many is left in by.txt.
call() {
  local count=$1
  shift
  curl -sS -f -H 'Host: orders.shop.svc.clusterset.local' "$@" "http://127.0.0.1:$(port 15001)/?[1-$count]" |
    cut -d, -f1 | sort | uniq -c | tee by.txt
  [ "$(awk '{ n += $1 } END { print n + 0 }' by.txt)" = "$count" ]
}
# by NAME: how many of them it answered.
by() { awk -v name="$1" '$2 == name { n = $1 } END { print n + 0 }' by.txt; }
between() { echo "$1 is between $2 and $3"; (($2 <= $1 && $1 <= $3)); }

eventually "orders answers" answers orders 'stable|canary'

say "a tenth: 400 requests"
claim "all are answered" call 400
cat by.txt
# One in ten by chance: beyond these bounds it is once in a million runs.
claim "the canary has its share" between "$(by canary)" 11 69
claim "what the rule sets is in the answer" grep -qi '^x-served-by: east' <(ask orders -D - -o answer.txt)

say "testers"
claim "20 requests with the header are answered" call 20 -H 'x-canary: 1'
claim "by the canary alone" between "$(by canary)" 20 20

say "what no rule matches"
claim "is refused" code_is 404 orders -X DELETE
eventually "and the log says why" grep -q '"verdict":"no-rule","code":"ZG0418"' east_gw.log

say "half: the file is changed under the running gateway"
sed -i 's/weight: 90/weight: 50/; s/weight: 10/weight: 50/' east.yaml
grep -n 'weight:' east.yaml
half() { call 100 && between "$(by canary)" 30 70; }
eventually "the canary has half of 100 requests" half

say "the canary is dead"
stop canary
claim "100 requests are answered" call 100
claim "by the stable version alone" between "$(by stable)" 100 100

say "who took what"
curl -fsS "http://127.0.0.1:$(port 15020)/metrics" | grep '^zeugma_rule_requests_total'

say "done: everything above held"
