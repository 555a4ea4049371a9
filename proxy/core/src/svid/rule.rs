//! The list of rules a certificate can break: what logs, metrics and manuals name.

use std::fmt;

macro_rules! rules {
    ($($name:ident, $id:literal, $text:literal;)*) => {
        /// A rule that a certificate, or the path it arrived with, can break.
        ///
        /// XL are the rules of a leaf and XC those of a CA certificate (X509-SVID.md), R those of
        /// RFC 5280; the rest are outcomes of path building that have no number.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Rule {
            $(#[doc = $text] $name,)*
        }

        impl Rule {
            /// Every rule.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The stable id in messages and metrics.
            #[must_use]
            pub const fn id(self) -> &'static str {
                match self { $(Self::$name => $id,)* }
            }

            /// What the rule asks for, one sentence.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

rules! {
    XL1, "XL1", "an SVID has exactly one URI SAN";
    XL2, "XL2", "the URI SAN is a SPIFFE ID in canonical form";
    XL3, "XL3", "the SPIFFE ID of a leaf has a path";
    XL4, "XL4", "the trust domain of the leaf has a bundle";
    XL5, "XL5", "a leaf with an empty subject has a critical SAN extension";
    XL6, "XL6", "a leaf is no CA certificate";
    XL7, "XL7", "a leaf has a keyUsage extension";
    XL8, "XL8", "the keyUsage of a leaf includes digitalSignature";
    XL9, "XL9", "the keyUsage of a leaf includes neither keyCertSign nor cRLSign";
    XL10, "XL10", "an extended key usage, where present, includes both serverAuth and clientAuth";
    XL11, "XL11", "an extended key usage does not include anyExtendedKeyUsage";
    XL13, "XL13", "the keyUsage of a leaf is critical";
    XC1, "XC1", "an issuer has critical basicConstraints with cA true";
    XC2, "XC2", "an issuer has critical keyUsage with keyCertSign";
    XC3, "XC3", "an issuer names its trust domain in one URI SAN without a path";
    XC4, "XC4", "every issuer on the path is of the leaf's trust domain";
    XC5, "XC5", "no name constraint stands in the way of the path";
    XC6, "XC6", "a CA certificate does not set digitalSignature";
    XC7, "XC7", "the subject of a CA certificate is not empty";
    XC9, "XC9", "pathLen is 0 for an issuer and at most 2 for a root";
    XC10, "XC10", "a certificate does not outlive its issuer";
    R1, "R1", "a certificate is version 3";
    R2, "R2", "a serial is a positive integer of at most 20 octets";
    R3, "R3", "notBefore is before notAfter, both encoded as RFC 5280 asks";
    R4, "R4", "keys are P-256, P-384, Ed25519 or RSA of at least 2048 bits, and no signature uses SHA-1";
    R5, "R5", "a certificate names the key of its issuer";
    R6, "R6", "a CA certificate names its own key";
    R10, "R10", "a critical extension is understood";
    R12, "R12", "the issuer field holds the very bytes of the issuer's subject";
    Malformed, "malformed", "a certificate is valid DER";
    DuplicateExtension, "duplicate-extension", "no extension occurs twice (RFC 5280 §4.2)";
    NoCertificate, "no-certificate", "the peer presents a certificate";
    TooLarge, "too-large", "the presented chain is within the byte limit";
    ChainTooLong, "chain-too-long", "the presented chain is within the limit of certificates";
    Expired, "expired", "no certificate of the path has expired";
    NotYetValid, "not-yet-valid", "every certificate of the path is valid already";
    UnknownIssuer, "unknown-issuer", "the path ends at an anchor of the trust domain's bundle";
    BadSignature, "bad-signature", "every signature of the path is right";
    PathLength, "path-length", "no pathLen constraint of the path is exceeded";
    PathTooComplex, "path-too-complex", "a path is found within the search budget";
    NoPossession, "no-possession", "the peer proves in the handshake that it holds the certificate's key";
    Revoked, "revoked", "no certificate of the path is on a CRL of its trust domain";
    RevocationUnknown, "revocation-unknown", "no CRL of the trust domain is more than 24 h past its nextUpdate";
    DeniedId, "denied-id", "the peer's SPIFFE ID is not on the deny list";
    UnexpectedId, "unexpected-id", "the peer is who the configuration expects";
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique() {
        let mut ids: Vec<_> = Rule::ALL.iter().map(|rule| rule.id()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), Rule::ALL.len());
    }
}
