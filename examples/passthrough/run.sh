#!/usr/bin/env bash
# A workload behind a peer ends TLS itself; the gateways only route; see README.md.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

place east.yaml west.yaml
vault=vault.shop.svc.clusterset.local

say "one CA; a certificate for each gateway, one for the vault in west and one for a caller in east"
certify east west
mkdir workloads
for cluster in east west; do
  zeugma ca bundle "$cluster.example" --format pem --out "workloads/$cluster-anchors.pem"
done
# A DNS name beside the SPIFFE ID, for callers such as curl that compare names.
zeugma ca issue spiffe://west.example/ns/shop/sa/vault --dns "$vault" --out workloads/vault
zeugma ca issue spiffe://east.example/ns/shop/sa/cart --out workloads/cart

say "what the configuration means"
zeugma config check --config east.yaml
zeugma config check --config west.yaml

say "the vault, with its own key, and both gateways"
start vault python3 "$here/vault.py" "$(port 16090)" workloads/vault.pem workloads/vault.key workloads/east-anchors.pem
gateway west_gw west.yaml "$(port 16021)"
gateway east_gw east.yaml "$(port 15021)"

say "cart in east calls the vault through both gateways, with mTLS from end to end"
call() {
  curl -sS --max-time 20 --connect-to "$vault:443:127.0.0.1:$(port 15001)" \
    --cacert workloads/west-anchors.pem --cert workloads/cart.pem --key workloads/cart.key "https://$vault/"
}
answered() { call | grep -F "$1"; }
eventually "the vault answers, and it was the vault that verified cart" \
  answered "the vault is open for spiffe://east.example/ns/shop/sa/cart"

say "what arrives at the caller, looked at with openssl"
look() { # look PORT NAME: what a TLS server shows to a caller with cart's certificate
  openssl s_client -connect "127.0.0.1:$1" -servername "$2" -CAfile workloads/west-anchors.pem \
    -cert workloads/cart.pem -key workloads/cart.key -verify_return_error </dev/null 2>&1
}
fingerprint() { openssl x509 -noout -fingerprint -sha256; }
sent=$(fingerprint <workloads/vault.pem)
arrived=$(look "$(port 15001)" "$vault" | fingerprint)
echo "the vault's   $sent"
echo "what arrived  $arrived"
claim "it is the vault's certificate, from end to end" [ "$sent" = "$arrived" ]
keyless() { [ "$(grep -l 'PRIVATE KEY' east/* west/* bundles/* | sort | tr '\n' ' ')" = "east/gw.key west/gw.key " ]; }
claim "the gateways were given no key but their own" keyless

say "a name that west exports to nobody, and one that does not exist"
# RFC 6066, section 3: the fatal alert 112, unrecognized_name.
unrecognized() { ! look "$1" "$2" >look.txt && grep -E 'alert number 112' look.txt; }
claim "vault-admin is there, but not exported: unrecognized_name" \
  unrecognized "$(port 16443)" vault-admin.shop.svc.clusterset.local
claim "nowhere is not there: unrecognized_name" \
  unrecognized "$(port 16443)" nowhere.shop.svc.clusterset.local
claim "and the same at east's own listener" \
  unrecognized "$(port 15001)" nowhere.shop.svc.clusterset.local

say "how the gateways saw it: bytes, by SNI; nobody's identity"
eventually "west's access log has the SNI and no identity" \
  grep -E '"sni":"vault.shop.svc.clusterset.local".*"dst.service":"shop/vault"' west_gw.log
blind() { ! grep -F 'sa/cart' west_gw.log east_gw.log; }
claim "neither gateway knows of cart" blind
eventually "west's access log says that it was asked for vault-admin" \
  grep -E '"sni":"vault-admin\..*"verdict":"sni-unknown"' west_gw.log

say "done: everything above held"
