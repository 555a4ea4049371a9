#!/usr/bin/env bash
# Nobody may call anything unless it is written; see README.md.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

place mesh/gateway.yaml mesh/orders.yaml
orders=orders.shop.svc.clusterset.local

say "a CA; a certificate for the gateway, and one for each workload"
mkdir east bundles workloads
zeugma ca init
zeugma ca trust-domain add east.example
# Callers such as curl compare a name: the service's own, beside the SPIFFE ID.
zeugma ca issue spiffe://east.example/zeugma/gateway --dns "$orders" --out east/gw
zeugma ca bundle east.example --out bundles/east.example.json
zeugma ca bundle east.example --format pem --out workloads/anchors.pem
for workload in shop/sa/cart shop/sa/web ops/sa/oncall; do
  zeugma ca issue "spiffe://east.example/ns/$workload" --out "workloads/${workload##*/}"
done

say "the service orders, and a gateway whose route for it allows nobody"
cp mesh/orders.yaml orders.yaml
sed '/^  # At least one/,$d' orders.yaml >mesh/orders.yaml # up to the comment above `allow`
service orders 15081
gateway east_gw mesh "$(port 15021)"

# call METHOD PATH WORKLOAD: the status of its call, or `refused` where there is no answer at all.
call() {
  curl -sS --path-as-is --max-time 20 -X "$1" -o answer.txt -w '%{http_code}' \
    --cacert workloads/anchors.pem --cert "workloads/$3.pem" --key "workloads/$3.key" \
    --connect-to "$orders:443:127.0.0.1:$(port 15001)" "https://$orders$2" || echo refused
}
gets() { # gets STATUS METHOD PATH WORKLOAD
  local status
  status=$(call "${@:2}")
  echo "$status"
  [ "$status" = "$1" ]
}
logged() { # logged PATTERN: an access-log line of the last call, by the id in its answer
  local id
  id=$(grep -oE 'request [0-9a-f]{32}' answer.txt | cut -d' ' -f2)
  grep -F "\"request.id\":\"$id\"" east_gw.log | grep -E "$1"
}
line_of() { grep -n "$1" mesh/orders.yaml | cut -d: -f1; }

eventually "cart is refused: nothing is allowed by default" gets 403 GET /v1/items cart
cat answer.txt
eventually "the access log says who it was, and that no rule matched" \
  logged '"src.identity":"spiffe://east.example/ns/shop/sa/cart".*"verdict":"not-allowed"'

say "rules are tried before they hold: \`allow\`, \`deny\` and \`policy: audit\`; the gateway sees the changed file"
sed 's/policy: enforce/policy: audit/' orders.yaml >mesh/orders.yaml
zeugma config check --config mesh
eventually "cart is let in, whom the rules allow" gets 200 GET /v1/items cart
claim "so is web, whom they do not" gets 200 GET /v1/items web
claim "and oncall at /v1/export, whom they deny" gets 200 GET /v1/export/all oncall
eventually "the access log says what would become of web" \
  grep -E '"src.identity":"spiffe://east.example/ns/shop/sa/web".*policy: audit.*not-allowed' east_gw.log
cat last.out
audited() { curl -fsS "http://127.0.0.1:$(port 15020)/metrics" | grep '^zeugma_policy_audited_total' | tee /dev/stderr | grep -c ' 1$' | grep -qx 2; }
eventually "and the metrics count both, and nobody else" audited
cat last.out

say "what the log told is mended, or meant: now the rules hold"
cp orders.yaml mesh/orders.yaml
eventually "web is refused" gets 403 GET /v1/items web
eventually "cart may GET below /v1" gets 200 GET /v1/items cart
cat answer.txt
claim "but not POST" gets 403 POST /v1/items cart
claim "and nothing else" gets 403 GET /admin cart
claim "not by a detour, either" gets 403 GET /v1/../admin cart
claim "web is of the same namespace and may still do nothing" gets 403 GET /v1/items web
claim "oncall may do all" gets 200 DELETE /v1/items oncall
claim "even /admin" gets 200 GET /admin oncall
claim "but \`deny\` wins: not /v1/export" gets 403 GET /v1/export/all oncall
eventually "the access log has the line of YAML that denied it" \
  logged "\"src.identity\":\"spiffe://east.example/ns/ops/sa/oncall\".*\"verdict\":\"denied\".*orders.yaml:$(line_of 'v1/export')\""
cat last.out

say "a caller without a certificate"
bare() { ! curl -sS --max-time 20 --cacert workloads/anchors.pem --connect-to "$orders:443:127.0.0.1:$(port 15001)" "https://$orders/v1/items"; }
claim "may not even shake hands" bare
eventually "the access log says so" grep -E '"verdict":"certificate-missing"' east_gw.log
claim "and in plaintext it is nobody: refused" code_is 403 orders

say "what was refused, counted"
curl -fsS "http://127.0.0.1:$(port 15020)/metrics" | grep -E '^zeugma_requests_total.*response_code="403"'

say "done: everything above held"
