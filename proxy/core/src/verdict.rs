//! Every way a connection or request can end: the one list that logs, metrics and docs are made
//! from.

use std::fmt;

/// Whose doing an end was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// Nobody's: it ended as it should.
    None,
    /// The caller's.
    Downstream,
    /// The called endpoint's or the way to it.
    Upstream,
    /// Our operator's configuration, or a limit it set.
    Operator,
    /// The gateway's own.
    Gateway,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident, $code:expr, $label:literal, $flag:literal, $fault:ident, $text:literal;)*) => {
        /// Why a connection or request ended.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Reason {
            $(#[doc = $text] $name,)*
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The label in logs and metrics: lower case with `-`.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)* }
            }

            /// Its code in [`crate::codes`]; none where nothing went wrong.
            #[must_use]
            pub const fn code(self) -> Option<&'static str> {
                match self { $(Self::$name => $code,)* }
            }

            /// The response flag in Envoy's and Istio's vocabulary; `-` where it has none.
            #[must_use]
            pub const fn flag(self) -> &'static str {
                match self { $(Self::$name => $flag,)* }
            }

            /// Whose doing it was.
            #[must_use]
            pub const fn fault(self) -> Fault {
                match self { $(Self::$name => Fault::$fault,)* }
            }

            /// What it means, one sentence.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

reasons! {
    Completed, None, "completed", "-", None, "both sides ended it";
    IdleTimeout, Some("ZG0401"), "idle-timeout", "SI", None, "no byte moved for the idle time";
    Drained, Some("ZG0905"), "drained", "-", None, "the gateway is shutting down";
    DownstreamClosed, Some("ZG0402"), "downstream-closed", "DC", Downstream, "the caller went away early";
    ProxyHeader, Some("ZG0316"), "proxy-header", "-", Downstream, "the connection does not begin with a PROXY header";
    HelloTimeout, Some("ZG0301"), "hello-timeout", "-", Downstream, "no whole ClientHello or request head in time";
    HelloTooLarge, Some("ZG0302"), "hello-too-large", "-", Downstream, "the ClientHello is over the byte limit";
    HelloMalformed, Some("ZG0303"), "hello-malformed", "-", Downstream, "the first bytes are no ClientHello";
    NotTls, Some("ZG0304"), "not-tls", "-", Downstream, "the caller does not speak TLS on a TLS listener";
    SniMissing, Some("ZG0305"), "sni-missing", "NR", Downstream, "the ClientHello names no server";
    SniMalformed, Some("ZG0306"), "sni-malformed", "NR", Downstream, "the server name is not a host name";
    SniUnknown, Some("ZG0403"), "sni-unknown", "NR", Downstream, "no service of this listener has that name";
    NotExported, Some("ZG0404"), "not-exported", "NR", Downstream, "the service is exported to nobody or not to this caller's cluster";
    PortNeeded, Some("ZG0405"), "port-needed", "NR", Downstream, "the host has several ports and the caller named none";
    HandshakeFailed, Some("ZG0307"), "handshake-failed", "-", Downstream, "the TLS handshake failed";
    HandshakeTimeout, Some("ZG0308"), "handshake-timeout", "-", Downstream, "the TLS handshake did not end in time";
    CertificateMissing, Some("ZG0309"), "certificate-missing", "-", Downstream, "the caller sent no certificate";
    CertificateRefused, Some("ZG0310"), "certificate-refused", "-", Downstream, "the caller's certificate breaks a rule";
    AuthorityMissing, Some("ZG0406"), "authority-missing", "-", Downstream, "the request names no host";
    AuthorityUnknown, Some("ZG0407"), "authority-unknown", "NR", Downstream, "no service has the request's host";
    NoRule, Some("ZG0418"), "no-rule", "NR", Downstream, "no rule of the route matches the request";
    Misdirected, Some("ZG0408"), "misdirected", "-", Downstream, "the request's host is not the SNI's service";
    FrameFlood, Some("ZG0410"), "frame-flood", "RL", Downstream, "the caller sends more HTTP/2 frames that only cost than it may: resets, continuations, empty data";
    RequestMalformed, Some("ZG0409"), "request-malformed", "DPE", Downstream, "the request is not valid HTTP";
    SourceRefused, Some("ZG0703"), "source-refused", "RBAC", Operator, "the listener does not accept that source address";
    Denied, Some("ZG0701"), "denied", "RBAC", Operator, "a deny rule matched";
    NotAllowed, Some("ZG0702"), "not-allowed", "RBAC", Operator, "no allow rule matched";
    IdentityDenied, Some("ZG0704"), "identity-denied", "RBAC", Operator, "the caller's SPIFFE ID is on the deny list";
    NoLongerAllowed, Some("ZG0705"), "no-longer-allowed", "RBAC", Operator, "a newer policy does not let the open connection or request go on";
    NoLongerServed, Some("ZG0411"), "no-longer-served", "NR", Operator, "its listener or service is gone, or is not exported to the caller any more";
    CertificateRevoked, Some("ZG0311"), "certificate-revoked", "-", Downstream, "a certificate of the caller's path is on a CRL";
    CertificateExpired, Some("ZG0312"), "certificate-expired", "-", Downstream, "the caller's certificate expired while the connection was open";
    RevocationUnknown, Some("ZG0313"), "revocation-unknown", "-", Operator, "the CRL of the caller's trust domain is out of date for too long";
    AnchorRemoved, Some("ZG0314"), "anchor-removed", "-", Operator, "the caller's certificate was verified by an anchor that the bundle no longer has";
    UpstreamRefused, Some("ZG0315"), "upstream-refused", "UC", Operator, "the endpoint's certificate or identity is not accepted any more";
    NoIdentity, Some("ZG0319"), "no-identity", "-", Operator, "the gateway has no SVID yet: its Workload API has given none";
    NoLocalEndpoint, Some("ZG0412"), "no-local-endpoint", "UH", Upstream, "no healthy endpoint in this cluster";
    NoHealthyEndpoint, Some("ZG0413"), "no-healthy-endpoint", "UH", Upstream, "no healthy endpoint anywhere";
    ConnectFailed, Some("ZG0414"), "connect-failed", "UF", Upstream, "no endpoint could be connected";
    UpstreamReset, Some("ZG0415"), "upstream-reset", "UC", Upstream, "the endpoint broke the connection";
    UpstreamTimeout, Some("ZG0416"), "upstream-timeout", "UT", Upstream, "the endpoint did not answer in time";
    UpstreamProtocol, Some("ZG0417"), "upstream-protocol", "UPE", Upstream, "the endpoint's answer is not valid HTTP";
    NotAGateway, Some("ZG0434"), "not-a-gateway", "RBAC", Operator, "health reports are told to the gateways of peers alone";
    ReportLimit, Some("ZG0435"), "report-limit", "UO", Operator, "so many health reports are under way as may be, of this peer or of all";
    ConnectionLimit, Some("ZG0911"), "connection-limit", "UO", Operator, "the gateway's connection limit is reached";
    HandshakeLimit, Some("ZG0912"), "handshake-limit", "UO", Operator, "the gateway's limit of handshakes under way is reached";
    HandshakeRate, Some("ZG0913"), "handshake-rate", "RL", Operator, "the source begins more connections than the listener lets it";
    RouteConnectionLimit, Some("ZG0914"), "route-connection-limit", "UO", Operator, "the route's connection limit is reached";
    RequestLimit, Some("ZG0915"), "request-limit", "UO", Operator, "the route's limit of requests under way is reached";
    PendingLimit, Some("ZG0916"), "pending-limit", "UO", Operator, "the route's limit of requests that wait for a connection is reached";
    OverCapacity, Some("ZG0442"), "over-capacity", "UO", Operator, "no backend that is healthy has capacity left";
    MemoryPressure, Some("ZG0917"), "memory-pressure", "OM", Operator, "the gateway is over its memory watermark";
    Internal, Some("ZG0906"), "internal", "-", Gateway, "the gateway failed";
}

impl Reason {
    /// Why a gateway sheds a request before any endpoint sees it, which says nothing about the health
    /// of what is behind it: whoever is told may try elsewhere.
    pub const SHED: [Self; 4] = [
        Self::RequestLimit,
        Self::PendingLimit,
        Self::OverCapacity,
        Self::MemoryPressure,
    ];

    /// Whether it is one of [`Self::SHED`].
    #[must_use]
    pub const fn is_shed(self) -> bool {
        matches!(
            self,
            Self::RequestLimit | Self::PendingLimit | Self::OverCapacity | Self::MemoryPressure
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codes;

    #[test]
    fn labels_are_unique_and_of_one_form() {
        let mut labels: Vec<_> = Reason::ALL.iter().map(|reason| reason.label()).collect();
        assert!(
            labels
                .iter()
                .all(|l| l.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'))
        );
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), Reason::ALL.len());
    }

    #[test]
    fn every_reason_but_completed_has_a_code_of_its_own_that_says_where_it_is_met() {
        let mut codes: Vec<_> = Reason::ALL
            .iter()
            .filter_map(|reason| reason.code())
            .collect();
        assert_eq!(codes.len(), Reason::ALL.len() - 1);
        assert_eq!(Reason::Completed.code(), None);
        codes.sort_unstable();
        assert!(codes.is_sorted_by(|a, b| a < b), "{codes:?}");
        for code in codes {
            let entry = codes::find(code).expect(code);
            assert!(entry.seen.contains(&codes::Seen::AccessLog), "{code}");
        }
    }

    #[test]
    fn what_sheds_is_one_list() {
        let shed: Vec<_> = Reason::ALL
            .iter()
            .copied()
            .filter(|r| r.is_shed())
            .collect();
        assert_eq!(shed, Reason::SHED);
    }
}
