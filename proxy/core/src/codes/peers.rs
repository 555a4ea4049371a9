//! 03: who calls and who is called, and the TLS between them.

use super::Seen::{AccessLog, Command};
use super::{Entry, entry};

pub(super) const ENTRIES: &[Entry] = &[
    entry(
        "ZG0301",
        "no whole ClientHello or request head in time",
        &[AccessLog],
        "The caller connected and did not say what it wants within `limits.handshakeTimeout` or `limits.headerTimeout`.",
        "A health check that only connects looks like this; let it ask `/ready` instead. Many from one source may be an attack.",
    ),
    entry(
        "ZG0302",
        "the ClientHello is over the byte limit",
        &[AccessLog],
        "The first TLS message is larger than any client's that is known.",
        "Look at the caller by `src.addr`; nothing can be raised.",
    ),
    entry(
        "ZG0303",
        "the first bytes are no ClientHello",
        &[AccessLog],
        "They look like TLS, but not like what a TLS client sends first.",
        "Look at what calls from `src.addr`: a scanner, or a client of another protocol.",
    ),
    entry(
        "ZG0304",
        "the caller does not speak TLS on a TLS listener",
        &[AccessLog],
        "Plain text came in where only TLS is served.",
        "Let the caller use the listener of role `workloads`, or speak TLS.",
    ),
    entry(
        "ZG0305",
        "the ClientHello names no server",
        &[AccessLog],
        "Without a server name (SNI) there is nothing to route by.",
        "Have the client call a host name and not an address; `openssl s_client` wants -servername.",
    ),
    entry(
        "ZG0306",
        "the server name is not a host name",
        &[AccessLog],
        "The SNI holds characters that no host name has.",
        "Look at what calls from `src.addr`.",
    ),
    entry(
        "ZG0307",
        "the TLS handshake failed",
        &[AccessLog],
        "The two sides did not agree, or the caller did not accept our certificate. `tls.alert` and `error` say which.",
        "If the caller sent `unknown_ca`, its bundle lacks our trust domain. TLS 1.3 is the only version spoken.",
    ),
    entry(
        "ZG0308",
        "the TLS handshake did not end in time",
        &[AccessLog],
        "It was begun and not finished within `limits.handshakeTimeout`.",
        "Look at the network between, and at the load of both sides.",
    ),
    entry(
        "ZG0309",
        "the caller sent no certificate",
        &[AccessLog],
        "Whoever comes from another cluster must present an SVID.",
        "Call through the other cluster's gateway, or give the caller an SVID.",
    ),
    entry(
        "ZG0310",
        "a certificate breaks a rule",
        &[AccessLog, Command],
        "The certificate is not an SVID as the SPIFFE specification wants it, is expired, or no anchor of its trust domain vouches for it. `policy.rule` names the rule.",
        "Verify it with `zeugma ca verify`, which says the same; issue a new one, or add the bundle of its trust domain.",
    ),
    entry(
        "ZG0311",
        "a certificate of the caller's path is on a CRL",
        &[AccessLog],
        "It was revoked. Connections that were open with it are ended as well.",
        "If that is a surprise, ask the CA that signed the CRL; otherwise issue a new one to a caller that should go on.",
    ),
    entry(
        "ZG0312",
        "the caller's certificate expired while the connection was open",
        &[AccessLog],
        "A connection lives no longer than the certificate that it was let in by.",
        "Let callers renew in time and connect again; long connections want longer certificates.",
    ),
    entry(
        "ZG0313",
        "the CRL of the caller's trust domain is out of date for too long",
        &[AccessLog],
        "It is a day past its nextUpdate, so nobody knows what was revoked, and nobody of that trust domain is let in.",
        "Get a new CRL from that trust domain's CA.",
    ),
    entry(
        "ZG0314",
        "the anchor that vouched for the caller is gone from its bundle",
        &[AccessLog],
        "The bundle was changed while the connection was open, and what it was verified by is not trusted any more.",
        "Nothing if the anchor was retired; otherwise put it back into the bundle.",
    ),
    entry(
        "ZG0315",
        "the endpoint's certificate or identity is not accepted any more",
        &[AccessLog],
        "The connection to the endpoint was made under a trust or a configuration that has changed since.",
        "Nothing if that was meant: the next connection goes where it may.",
    ),
    entry(
        "ZG0316",
        "the connection does not begin with a PROXY header",
        &[AccessLog],
        "The listener stands behind load balancers (`proxyProtocol`), and each connection must begin with a whole header of version 1 or 2.",
        "Switch the PROXY protocol on at the load balancer, or remove `proxyProtocol` here where none sends it.",
    ),
];
