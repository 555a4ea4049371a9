#!/usr/bin/env bash
# Two gateways, and a Prometheus that scrapes them; see README.md.
prometheus=$(type -P "${PROMETHEUS:-prometheus}") || {
  echo "no ${PROMETHEUS:-prometheus} on the PATH; on Debian it is in the package prometheus, or name yours in PROMETHEUS" >&2
  exit 1
}
prometheus=$(realpath "$prometheus")
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

extra_ports=(15090)
place east.yaml west.yaml prometheus.yml
cp "$here/../../deploy/prometheus/alerts.yaml" .

say "one CA, a trust domain and a gateway's certificate for each cluster"
certify east west

say "orders in both clusters, the gateways, and Prometheus"
service east 15081
service west 16081
gateway west_gw west.yaml "$(port 16021)"
gateway east_gw east.yaml "$(port 15021)"
start prometheus "$prometheus" --config.file=prometheus.yml --storage.tsdb.path=tsdb \
  --web.listen-address="127.0.0.1:$(port 15090)" --log.level=warn

# query PROMQL: what Prometheus answers, one line `VALUE LABELS` for each series.
query() {
  curl -fsS "http://127.0.0.1:$(port 15090)/api/v1/query" --data-urlencode "query=$1" | python3 -c '
import json, sys
for series in json.load(sys.stdin)["data"]["result"]:
    labels = (f"{k}={v}" for k, v in sorted(series["metric"].items()) if k not in ("job", "instance"))
    print(series["value"][1], *labels)'
}
finds() { query "$1" | sort | tee /dev/stderr | grep -qxE "$2"; } # finds PROMQL LINE
shown() { # shown WHAT PROMQL LINE: it finds it, and the whole answer is shown
  printf '> %s\n' "$2"
  eventually "$1" finds "$2" "$3"
  sed 's/^/    /' last.out
}

say "is everything scraped?"
shown "both gateways are" 'sum(up{job="zeugma"})' 2
rules() { curl -fsS "http://127.0.0.1:$(port 15090)/api/v1/rules" | grep -oE '"name":"Zeugma[A-Za-z]*"' | sort; }
loaded() { [ "$(rules | wc -l)" = "$(grep -c -- '- alert:' alerts.yaml)" ] && rules; }
eventually "the alert rules of deploy/prometheus are loaded" loaded
echo "    $(wc -l <last.out) of them"

say "50 requests of a workload, and what each kind of telemetry says of them"
call() { curl -sS -f -H 'Host: orders.shop.svc.clusterset.local' "http://127.0.0.1:$(port 15001)/?[1-$1]" | sort | uniq -c; }
call 50
shown "the count, by service and status" \
  'sum by (destination_service, response_code) (zeugma_requests_total{cluster="east", listener="apps"})' \
  '50 destination_service=shop/orders response_code=200'
shown "where they went, and why there" \
  'sum by (destination_backend, why) (zeugma_attempts_total{cluster="east", destination_service="shop/orders"})' \
  '50 destination_backend=east why=local'
shown "both endpoints that east's gateway knows are healthy" \
  'sum by (destination_backend) (zeugma_endpoint_healthy{cluster="east"})' '1 destination_backend=west'
shown "a certificate's life, in hours" 'ceil((zeugma_svid_expiry_timestamp_seconds{cluster="east"} - time()) / 3600)' '24 cluster=east'

say "the access log: one line of JSON for each; these are some of its fields"
fields() {
  grep '"kind":"request"' east_gw.log | grep '"listener":"apps"' | tail -n 1 | python3 -c '
import json, sys
line = json.load(sys.stdin)
for key in ("time", "dst.service", "dst.backend", "reason", "http.status", "verdict", "policy.rule", "trace.id", "duration"):
    print(f"    {key:14} {line[key]}")'
}
written() { [ "$(grep '"kind":"request"' east_gw.log | grep -c '"listener":"apps"')" = 50 ]; }
eventually "all 50 are there" written
fields

say "what the gateway says of itself"
zeugma status --config east.yaml
zeugma check --config east.yaml --wait 30s
zeugma top --once --config east.yaml

say "somebody listens to its events while east's service is killed"
start events curl -sS -N --unix-socket east.sock http://admin/api/v1/events
stop east
# Requests fail over at once, the checks find out within a second or so.
call 10
eventually "the event stream tells what moved traffic" grep -E '^data: .*shares-moved|^event: shares-moved' events.log
cut -c1-200 events.log | head -n 6
eventually "and so does \`zeugma get failovers\`" sh -c "'$zeugma' get failovers --config east.yaml | grep shares-moved"
zeugma get failovers --config east.yaml | tail -n 4
shown "Prometheus has seen who answers" \
  'sum by (destination_backend) (zeugma_attempts_total{cluster="east", destination_service="shop/orders", why=~"failover|retry"})' \
  '10 destination_backend=west'
shown "and that one endpoint is down" \
  'sum by (destination_backend) (zeugma_endpoint_healthy{cluster="east"})' '0 destination_backend=east'
shown "an alert waits for its two minutes" \
  'ALERTS{alertname="ZeugmaBackendDown"}' '1 .*alertstate=pending.*destination_backend=east.*'

say "done: everything above held"
