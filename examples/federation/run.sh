#!/usr/bin/env bash
# Two trust domains with roots of their own learn to believe each other; see README.md.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

place east/gateway.yaml west/gateway.yaml
books=books.shop.svc.clusterset.local

say "three organisations, each with a CA and a root of its own; nobody knows anybody"
for name in east west acme; do
  zeugma ca --dir "$name/ca" init
  zeugma ca --dir "$name/ca" trust-domain add "$name.example"
  zeugma ca --dir "$name/ca" issue "spiffe://$name.example/zeugma/gateway" --out "$name/gw"
  mkdir -p "$name/bundles" "$name/foreign"
  zeugma ca --dir "$name/ca" bundle "$name.example" --out "$name/bundles/$name.example.json"
done
claim "there are three roots" [ "$(cat east/ca/root.pem west/ca/root.pem acme/ca/root.pem | grep -c BEGIN)" = 3 ]
different() { ! cmp -s east/ca/root.pem west/ca/root.pem; }
claim "and they differ" different

say "the service books in west, and both gateways"
service shelf 16081
gateway west_gw west "$(port 16021)"
gateway east_gw east "$(port 15021)"

refused_certificates() { # refused_certificates METRICS-PORT SIDE: how many, by rule XL4
  curl -fsS "http://127.0.0.1:$(port "$1")/metrics" |
    awk -v side="side=\"$2\"" '/^zeugma_certificates_refused_total/ && index($0, side) && /rule="XL4"/ { n += $2 } END { print n + 0 }'
}
refuses() { # refuses METRICS-PORT SIDE: a call fails, and that gateway has refused a certificate
  local before after
  before=$(refused_certificates "$@")
  ! code_is 200 books || return 1
  after=$(refused_certificates "$@")
  echo "$before, then $after"
  ((after > before))
}

say "nothing is exchanged yet: east does not believe west's certificate (XL4: no bundle of its trust domain)"
eventually "books cannot be reached: east refuses who answers" refuses 15020 upstream
unwell() { ! zeugma check --config east --peer west; }
claim "\`zeugma check\` says so" unwell
cat last.out

say "west's bundle is brought to east, over a way that both trust, with a document that says so; the gateway sees it"
zeugma ca --dir west/ca bundle west.example --out east/foreign/west.example.json
cp "$here/east/trust.yaml" east/
eventually "east believes west now, but west refuses east" refuses 16020 downstream
eventually "west's access log says so" \
  grep -E '"verdict":"certificate-refused".*"policy.rule":"XL4"' west_gw.log

say "and east's bundle to west: they are federated"
zeugma ca --dir east/ca bundle east.example --out west/foreign/east.example.json
cp "$here/west/trust.yaml" west/
eventually "books answers" answers books '^shelf'
claim "and knows who called, across two roots" \
  answers books "By=spiffe://west.example/zeugma/gateway;URI=spiffe://east.example/zeugma/gateway"
zeugma check --config east --wait 30s

say "acme is federated with nobody"
# refused_as FOLDER: a direct call to west with that certificate ends in the handshake.
refused_as() {
  rm -f direct.txt
  ! curl -sS -k --max-time 20 --cert "$1/gw.pem" --key "$1/gw.key" -o direct.txt \
    --connect-to "$books:443:127.0.0.1:$(port 16443)" "https://$books/" || return 1
  [ ! -s direct.txt ]
}
claim "west refuses its gateway" refused_as acme
eventually "for it has no bundle of acme's" grep -E '"policy.rule":"XL4","error":"XL4: no bundle for trust domain acme.example' west_gw.log

say "acme's CA can write any name into a certificate, east's too"
zeugma ca --dir acme/ca trust-domain add east.example
mkdir forged
zeugma ca --dir acme/ca issue spiffe://east.example/zeugma/gateway --out forged/gw
claim "west refuses that as well" refused_as forged
eventually "for it does not lead to an anchor of east.example" \
  grep -E '"verdict":"certificate-refused".*"policy.rule":"unknown-issuer"' west_gw.log
unproven() { ! zeugma ca verify --bundles west/foreign forged/gw.pem; }
claim "which \`zeugma ca verify\` would have told" unproven
cat last.out

say "the end of the federation: east takes the document away"
rm east/trust.yaml
eventually "books cannot be reached again, on open connections neither" refuses 15020 upstream
cat answer.txt

say "done: everything above held"
