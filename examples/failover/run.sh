#!/usr/bin/env bash
# A service in two localities and another cluster fails over and comes back; see README.md.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

place east.yaml west.yaml

say "one CA, a trust domain and a gateway's certificate for each cluster"
certify east west

say "what the failover settings mean"
zeugma config check --config east.yaml

say "services: two in eu-1, one in eu-2, one in west; and the gateways"
service eu_1a 15081
service eu_1b 15082
service eu_2 15083
service us_1 16081
gateway west_gw west.yaml "$(port 16021)"
gateway east_gw east.yaml "$(port 15021)"

# shares: what east's gateway gives each level, in per cent.
shares() {
  curl -fsS "http://127.0.0.1:$(port 15000)/clusters" | python3 -c '
import json, sys
levels = json.load(sys.stdin)["clusters"]["outbound|shop/orders:80"]["levels"]
print(" ".join("{:.0f}".format(100 * level["share"]) for level in levels))'
}
shares_are() { [ "$(shares | tee /dev/stderr)" = "$1" ]; }
healthy() { # healthy N: so many endpoints are
  [ "$("$zeugma" get routes --config east.yaml | tee /dev/stderr | grep -cw healthy)" = "$1" ]
}

# in_a_row WHAT PATTERN: 30 answers in a row, from now on, that PATTERN matches.
in_a_row() {
  local from
  from=$(wc -l <answers.txt)
  thirty() { [ "$(tail -n "+$((from + 1))" answers.txt | tail -n 30 | grep -cE "$1")" = 30 ]; }
  eventually "$1" thirty "$2"
}

eventually "all endpoints are found healthy" healthy 4
say "a client sends GET requests through east's gateway, all the time"
touch answers.txt
start client python3 "$here/client.py" "$(port 15001)" answers.txt
in_a_row "eu-1 answers: it is where the gateway stands" '^eu-1'

say "one of eu-1's two services is killed: below 70 % healthy, part of the traffic moves on"
stop eu_1a
eventually "71 % stays, 29 % goes to eu-2" shares_are "71 29 0"
eventually "eu-2 answers a part" sh -c "tail -n 30 answers.txt | grep -q '^eu-2'"
zeugma status --config east.yaml

say "eu-1's other service is killed: the locality is gone"
stop eu_1b
in_a_row "eu-2 answers all" '^eu-2'

say "eu-2's service is killed: east has none left"
stop eu_2
in_a_row "west answers all, through both gateways" '^us-1'
eventually "and gets all the traffic" shares_are "0 0 100"

say "eu-1 comes back; it must be well for 2 s, then traffic returns over 2 s"
service eu_1a 15081
service eu_1b 15082
in_a_row "eu-1 answers all again" '^eu-1'
eventually "and gets all the traffic" shares_are "100 0 0"

say "what moved traffic, as the gateway remembers it; but for the steps of the ramp"
zeugma get failovers --config east.yaml | grep -E 'shares-moved +outbound' | grep -v 'by the clock'

total=$(wc -l <answers.txt)
say "$total requests were sent: $(sort answers.txt | uniq -c | awk '{printf "%s%s %s", sep, $2, $1; sep=", "}')"
none_lost() { ! grep lost answers.txt; }
claim "no GET was lost" none_lost

say "done: everything above held"
