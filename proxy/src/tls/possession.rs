//! The key that a peer signs its handshakes with, made ready once for all of them.
//!
//! To find it in the certificate and to see that it is a point of its curve is work of each
//! handshake otherwise.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ParsedPublicKey};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::{CertificateError, SignatureScheme};
use rustls_pki_types::CertificateDer;
use webpki::EndEntityCert;

/// What stands before the point of an uncompressed P-256 key (RFC 5480 §2: id-ecPublicKey,
/// secp256r1).
const P256: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// RFC 5480 §2.2: what an uncompressed point begins with. There are also compressed ones, which the
/// library reads as such, and hybrid ones, which it takes and nobody may.
const UNCOMPRESSED: u8 = 0x04;
/// That, and two coordinates.
const POINT_BYTES: usize = 65;

/// A key of the kind that most have, P-256; those of others are made ready for each handshake.
#[derive(Debug)]
pub(super) struct LeafKey(ParsedPublicKey);

impl LeafKey {
    /// What signatures with it are called.
    pub(super) const SCHEME: SignatureScheme = SignatureScheme::ECDSA_NISTP256_SHA256;

    /// The key of a certificate, if it is of that kind.
    pub(super) fn of(leaf: &CertificateDer<'_>) -> Option<Self> {
        let leaf = EndEntityCert::try_from(leaf).ok()?;
        let info = leaf.subject_public_key_info();
        let point = info.strip_prefix(P256)?;
        if point.len() != POINT_BYTES || point.first() != Some(&UNCOMPRESSED) {
            return None;
        }
        let key = ParsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point);
        key.ok().map(Self)
    }

    /// Says whether `message` is signed with it.
    ///
    /// # Errors
    /// It is not.
    pub(super) fn verify(
        &self,
        message: &[u8],
        signature: &[u8],
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        match self.0.verify_sig(message, signature) {
            Ok(()) => Ok(HandshakeSignatureValid::assertion()),
            Err(_) => Err(CertificateError::BadSignature.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{
        ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair,
    };
    use rcgen::{
        CertificateParams, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
        PKCS_ED25519, PKCS_RSA_SHA256, PublicKeyData, RsaKeySize, SignatureAlgorithm,
    };
    use rustls::crypto::verify_tls13_signature;

    use super::*;
    use crate::fixture::{self_signed, signed};
    use crate::tls::config::provider;

    #[test]
    fn what_is_signed_with_a_key_of_the_common_kind_is_told_from_what_is_not() {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let key = LeafKey::of(&self_signed(&pair)).unwrap();
        let der = pair.serialize_der();
        let signing = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &der).unwrap();
        let signed = signing.sign(&SystemRandom::new(), b"message").unwrap();
        assert!(key.verify(b"message", signed.as_ref()).is_ok());
        let refused = rustls::Error::from(CertificateError::BadSignature);
        assert_eq!(
            key.verify(b"massage", signed.as_ref()).unwrap_err(),
            refused
        );
        assert_eq!(key.verify(b"message", b"").unwrap_err(), refused);
        let other = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let other = LeafKey::of(&self_signed(&other)).unwrap();
        assert_eq!(
            other.verify(b"message", signed.as_ref()).unwrap_err(),
            refused
        );
    }

    /// The order of P-256 (SEC 2 §2.4.2).
    const ORDER: [u8; 32] = [
        0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc,
        0xe6, 0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
    ];

    /// X.690 §8.3: a length, and the bytes as they are.
    fn integer(bytes: &[u8]) -> Vec<u8> {
        let length = u8::try_from(bytes.len()).unwrap();
        [&[0x02, length], bytes].concat()
    }

    /// An unsigned number in as few bytes as X.690 §8.3.2 has it.
    fn minimal(bytes: &[u8]) -> Vec<u8> {
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        let bytes = &bytes[zeros.min(bytes.len() - 1)..];
        let sign = if bytes[0] & 0x80 == 0 { &[][..] } else { &[0] };
        integer(&[sign, bytes].concat())
    }

    /// RFC 3279 §2.2.3: Ecdsa-Sig-Value.
    fn sequence(parts: &[&[u8]]) -> Vec<u8> {
        let inner = parts.concat();
        [&[0x30, u8::try_from(inner.len()).unwrap()], &inner[..]].concat()
    }

    #[test]
    fn signatures_are_taken_and_refused_as_without_the_key_ready() {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let der = pair.serialize_der();
        let signing = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der).unwrap();
        let fixed = signing.sign(&SystemRandom::new(), b"message").unwrap();
        let (r, s) = fixed.as_ref().split_at(32);
        let (plus_r, plus_s) = (minimal(r), minimal(s));
        let beyond = {
            let mut beyond = ORDER;
            beyond[31] += 1;
            minimal(&beyond)
        };
        let (zero, order) = (integer(&[0]), minimal(&ORDER));
        let whole = sequence(&[&plus_r, &plus_s]);
        // In long form where the short one would do (X.690 §10.1).
        let long = [&[0x30, 0x81], &whole[1..]].concat();
        let negative = |number: &[u8]| {
            let mut number = number.to_vec();
            number[0] |= 0x80;
            integer(&number)
        };
        let padded = |number: &[u8]| integer(&[&[0, 0], number].concat());
        let leaf = self_signed(&pair);
        let key = LeafKey::of(&leaf).unwrap();
        let algorithms = &provider().signature_verification_algorithms;
        for (what, is_good, signature) in [
            ("as it is made", true, whole.clone()),
            ("r is 0", false, sequence(&[&zero, &plus_s])),
            ("s is 0", false, sequence(&[&plus_r, &zero])),
            ("both are 0", false, sequence(&[&zero, &zero])),
            ("r is n", false, sequence(&[&order, &plus_s])),
            ("s is n", false, sequence(&[&plus_r, &order])),
            ("r is n + 1", false, sequence(&[&beyond, &plus_s])),
            ("s is n + 1", false, sequence(&[&plus_r, &beyond])),
            ("r is negative", false, sequence(&[&negative(r), &plus_s])),
            ("s is negative", false, sequence(&[&plus_r, &negative(s)])),
            ("r is padded", false, sequence(&[&padded(r), &plus_s])),
            ("s is padded", false, sequence(&[&plus_r, &padded(s)])),
            ("r has no bytes", false, sequence(&[&integer(&[]), &plus_s])),
            ("a length in long form", false, long),
            ("a byte behind it", false, [&whole[..], &[0]].concat()),
            ("a byte in it", false, sequence(&[&plus_r, &plus_s, &[0]])),
            (
                "a third number",
                false,
                sequence(&[&plus_r, &plus_s, &zero]),
            ),
            ("r alone", false, sequence(&[&plus_r])),
            ("cut off", false, whole[..whole.len() - 1].to_vec()),
            ("in the fixed form", false, fixed.as_ref().to_vec()),
            ("the other way round", false, sequence(&[&plus_s, &plus_r])),
            ("none", false, Vec::new()),
        ] {
            let signed = signed(LeafKey::SCHEME, &signature);
            let theirs = verify_tls13_signature(b"message", &leaf, &signed, algorithms);
            let ours = key.verify(b"message", &signature);
            assert_eq!(ours.is_ok(), is_good, "{what}");
            assert_eq!(ours.map(drop), theirs.map(drop), "{what}");
        }
    }

    /// A key as a certificate shows it, in whatever form of its point.
    struct Shown {
        point: Vec<u8>,
    }

    impl PublicKeyData for Shown {
        fn der_bytes(&self) -> &[u8] {
            &self.point
        }

        fn algorithm(&self) -> &'static SignatureAlgorithm {
            &PKCS_ECDSA_P256_SHA256
        }
    }

    /// RFC 5480 §2.2: the uncompressed and the compressed form, and no other; those of X9.62 that
    /// begin with 0x06 or 0x07 carry both.
    #[test]
    fn a_key_in_another_form_than_the_common_one_is_none_of_it() {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let issuer = Issuer::new(CertificateParams::default(), &pair);
        let uncompressed = pair.der_bytes().to_vec();
        let is_odd = uncompressed.last().unwrap() & 1;
        let with = |first: u8, bytes: usize| {
            let mut point = uncompressed[..bytes].to_vec();
            point[0] = first;
            let params = CertificateParams::new(["a.test".to_owned()]).unwrap();
            let shown = params.signed_by(&Shown { point }, &issuer).unwrap();
            LeafKey::of(shown.der()).is_some()
        };
        assert!(with(0x04, 65));
        for (first, bytes) in [
            (0x06 | is_odd, 65),
            (0x07 ^ is_odd, 65),
            (0x02 | is_odd, 33),
            (0x05, 65),
            (0x04, 64),
            (0x04, 33),
        ] {
            assert!(!with(first, bytes), "{first:#x} of {bytes}");
        }
    }

    #[test]
    fn keys_of_other_kinds_are_none_of_it() {
        for kind in [&PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
            let pair = KeyPair::generate_for(kind).unwrap();
            assert!(LeafKey::of(&self_signed(&pair)).is_none());
        }
        let rsa = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
        assert!(LeafKey::of(&self_signed(&rsa)).is_none());
        assert!(LeafKey::of(&CertificateDer::from(b"none".to_vec())).is_none());
    }
}
