#!/usr/bin/env bash
# What is near, an order of one's own, and what is never used; see README.md.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

place east.yaml west.yaml

say "one CA, a trust domain and a gateway's certificate for each cluster"
certify east west

say "the levels that each route gets, seen from eu/eu-1/rack-a"
zeugma config check --config east.yaml

say "four services, in racks, zones and regions; and the gateways"
service rack_a 15081
service rack_b 15082
service eu_2 15083
service us_1 16081
gateway west_gw west.yaml "$(port 16021)"
gateway east_gw east.yaml "$(port 15021)"

# all_by ROUTE NAME: ten answers, all of that service.
all_by() {
  local _
  for _ in {1..10}; do ask "$1"; done | cut -d, -f1 | sort | uniq -c | tee /dev/stderr | grep -qx " *10 $2"
}
served() { # served ORDERS LEDGER RECORDS: who answers each
  eventually "orders is answered by $1" all_by orders "$1"
  eventually "ledger is answered by $2" all_by ledger "$2"
  eventually "records is answered by $3" all_by records "$3"
}
healthy() { # healthy N: so many endpoints are, over all routes
  "$zeugma" get routes --config east.yaml | tee /dev/stderr | grep -cw healthy | grep -qx "$1"
}
eventually "every endpoint of every route is found healthy" healthy 10

say "all is well: the gateway's own rack answers"
served rack-a rack-a rack-a
zeugma status --config east.yaml

say "rack-a is lost: orders and records stay in the zone; ledger has an order of its own"
stop rack_a
served rack-b us-1 rack-b

say "rack-b is lost: the zone is gone, the region is next"
stop rack_b
served eu-2 us-1 eu-2
zeugma status --config east.yaml

say "eu-2 is lost: orders goes over the ocean; records is refused rather than that"
stop eu_2
eventually "orders is answered by us-1" all_by orders us-1
# Until the checks have found eu-2 dead it is tried, so the reason is another at first.
refused() { code_is 503 records && grep -E '"dst.service":"shop/records".*"verdict":"no-healthy-endpoint"' east_gw.log; }
eventually "records is refused, and the access log says why" refused
cat answer.txt

say "rack-a is back, and well for a second: everything comes home"
service rack_a 15081
served rack-a rack-a rack-a

say "what moved traffic of orders, and when"
zeugma get failovers --config east.yaml | grep -F 'outbound|shop/orders'

say "done: everything above held"
