#!/usr/bin/env bash
# Two clusters by hand; see README.md.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

extra_ports=(15000 15001 15020 15021 15443 16000 16001 16020 16021 16443)
place east/books.yaml west/books.yaml
books=books.shop.svc.clusterset.local

say "a folder for each cluster: configuration, CA, certificates; --peer makes them know each other"
zeugma init east --trust-domain east.example --cluster east --base-port "$(port 15000)"
zeugma init west --trust-domain west.example --cluster west --base-port "$(port 16000)" --peer east

say "what the configuration means, before anything runs"
zeugma config check --config east
zeugma config check --config west

say "the service books, in west alone; then both gateways"
service shelf 16090
gateway east_gw east "$(port 15021)"
gateway west_gw west "$(port 16021)"

say "a workload in east asks its own gateway for books, by name"
echo "\$ curl -H 'Host: $books' http://127.0.0.1:$(port 15001)/"
eventually "west's shelf answers" answers books '^shelf, called by '
ask books
claim "it knows who called, by mTLS between the gateways" \
  answers books "By=spiffe://west.example/zeugma/gateway;URI=spiffe://east.example/zeugma/gateway"

say "east's gateway looks after itself and its peer, step by step"
zeugma check --config east --wait 30s

say "a typo in east's books.yaml: the gateway says what is wrong, and serves what was good"
sed -i 's/protocol: http/protocol: htp/' east/books.yaml
finding() { "$zeugma" get findings --config east | grep -F "$1"; }
eventually "it has found the line" finding 'did you mean `http`?'
cat last.out
claim "books answers as before" answers books '^shelf'
sed -i 's/protocol: htp/protocol: http/' east/books.yaml
eventually "mended, nothing is wrong" finding none
zeugma status --config east --service shop/books

say "what is on the wire at west's mesh listener; the gateway sends it to everybody who asks"
zeugma ca inspect "127.0.0.1:$(port 16443)" --sni "$books" >wire.txt
head -n 6 wire.txt
claim "it speaks TLS 1.3" grep -F "speaks TLS 1.3" wire.txt
claim "it is west's gateway" grep -F "SPIFFE ID   spiffe://west.example/zeugma/gateway" wire.txt

say "the same chain, held to the rules as east's gateway holds it"
wire() {
  # It fails in the end: we have no certificate to show. What the gateway showed is printed by then.
  openssl s_client -connect "127.0.0.1:$(port 16443)" -servername "$books" -showcerts </dev/null 2>/dev/null || true
}
verified() { wire | zeugma ca verify --bundles "$1" -; }
claim "with the bundles that east has, it is good" verified east/bundles
cat last.out
mkdir only-east
cp east/bundles/east.example.json only-east/
refused() { ! verified only-east >refused.txt 2>&1 && grep -F XL4 refused.txt; }
claim "with east's own bundle alone, it is not" refused
cat last.out

say "a caller without a certificate gets nothing from the mesh listener"
certless() { ! curl -sS -k --connect-to "$books:443:127.0.0.1:$(port 16443)" "https://$books/"; }
claim "the handshake is refused" certless

say "west takes books back; its gateway sees the changed file, nothing is restarted"
sed -i '/^ *export:/d' west/books.yaml
gone() { ! code_is 200 books; }
eventually "books is out of reach for east" gone
cat answer.txt
# The connection that was open before is ended, and a new one refused by an alert.
eventually "west's access log says why" grep -E '"verdict":"no-longer-served"' west_gw.log
# Whoever asks next may be the first that needs one: the last answer can have come on the old one.
no_other() { ! code_is 200 books && grep -E '"verdict":"sni-unknown"' west_gw.log; }
eventually "and why no other opens" no_other

say "west's gateway is drained: no new work, what is open ends, then the process"
zeugma drain --now --config west
gone() { ! kill -0 "$pid_west_gw"; }
eventually "it has ended" gone
claim "in order, with status 0" wait "$pid_west_gw"

say "done: everything above held"
