//! The key that a peer signs its handshakes with, made ready once for all of them.
//!
//! To find it in the certificate and to see that it is a point of its curve takes half a microsecond.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ParsedPublicKey};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::{CertificateError, SignatureScheme};
use rustls_pki_types::CertificateDer;
use webpki::EndEntityCert;

/// What stands before the point of an uncompressed P-256 key (RFC 5480 §2: id-ecPublicKey, secp256r1).
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
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
    use rcgen::{
        CertificateParams, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
        PKCS_ED25519, PublicKeyData, SignatureAlgorithm,
    };

    use super::*;

    fn certified(key: &KeyPair) -> CertificateDer<'static> {
        let params = CertificateParams::new(["a.test".to_owned()]).unwrap();
        params.self_signed(key).unwrap().der().clone()
    }

    #[test]
    fn what_is_signed_with_a_key_of_the_common_kind_is_told_from_what_is_not() {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let key = LeafKey::of(&certified(&pair)).unwrap();
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
        let other = LeafKey::of(&certified(&other)).unwrap();
        assert_eq!(
            other.verify(b"message", signed.as_ref()).unwrap_err(),
            refused
        );
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
            assert!(LeafKey::of(&certified(&pair)).is_none());
        }
        assert!(LeafKey::of(&CertificateDer::from(b"none".to_vec())).is_none());
    }
}
