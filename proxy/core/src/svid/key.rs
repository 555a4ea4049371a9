//! R4: the keys and signature algorithms we accept.

use x509_parser::certificate::X509Certificate;
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION,
    OID_PKCS1_RSASSAPSS, OID_PKCS1_SHA256WITHRSA, OID_PKCS1_SHA384WITHRSA, OID_PKCS1_SHA512WITHRSA,
    OID_SIG_ECDSA_WITH_SHA256, OID_SIG_ECDSA_WITH_SHA384, OID_SIG_ED25519,
};
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::{Rule, Violation};

/// The shortest RSA modulus accepted, in bits.
const RSA_BITS_MIN: usize = 2048;
/// The longest RSA modulus the TLS library verifies with, in bits.
const RSA_BITS_MAX: usize = 8192;

pub(super) fn check_public_key(info: &SubjectPublicKeyInfo<'_>) -> Result<(), Violation> {
    let algorithm = &info.algorithm.algorithm;
    if *algorithm == OID_SIG_ED25519 {
        return Ok(());
    }
    if *algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = info
            .algorithm
            .parameters
            .as_ref()
            .and_then(|p| p.as_oid().ok());
        return match curve {
            Some(curve) if curve == OID_EC_P256 || curve == OID_NIST_EC_P384 => Ok(()),
            Some(curve) => Err(weak(format!("the key is on curve {curve}"))),
            None => Err(weak("the key names no curve".to_owned())),
        };
    }
    if *algorithm != OID_PKCS1_RSAENCRYPTION {
        return Err(weak(format!("the key is of algorithm {algorithm}")));
    }
    let bits = match info.parsed() {
        Ok(PublicKey::RSA(key)) => bits(key.modulus),
        Ok(_) | Err(_) => return Err(Violation::new(Rule::Malformed, "the RSA key is malformed")),
    };
    if (RSA_BITS_MIN..=RSA_BITS_MAX).contains(&bits) {
        return Ok(());
    }
    let detail =
        format!("the RSA key has {bits} bits; {RSA_BITS_MIN} to {RSA_BITS_MAX} are allowed");
    Err(weak(detail))
}

/// Checks the algorithm this certificate is signed with, and that it is named alike inside and out.
pub(super) fn check_signature(certificate: &X509Certificate<'_>) -> Result<(), Violation> {
    let algorithm = &certificate.signature_algorithm;
    if *algorithm != certificate.tbs_certificate.signature {
        let detail = "the signature algorithm differs inside and outside the signed part";
        return Err(Violation::new(Rule::Malformed, detail));
    }
    let accepted = [
        OID_SIG_ECDSA_WITH_SHA256,
        OID_SIG_ECDSA_WITH_SHA384,
        OID_SIG_ED25519,
        OID_PKCS1_SHA256WITHRSA,
        OID_PKCS1_SHA384WITHRSA,
        OID_PKCS1_SHA512WITHRSA,
        // Its hash is a parameter; the path builder knows only SHA-256, SHA-384 and SHA-512.
        OID_PKCS1_RSASSAPSS,
    ];
    if accepted.contains(&algorithm.algorithm) {
        return Ok(());
    }
    Err(weak(format!(
        "signed with algorithm {}",
        algorithm.algorithm
    )))
}

fn weak(found: String) -> Violation {
    let allowed = "allowed are P-256, P-384, Ed25519 and RSA from 2048 bits, with SHA-256 or more";
    Violation::new(Rule::R4, format!("{found}; {allowed}"))
}

/// The length of a big-endian integer without its leading zeros.
fn bits(integer: &[u8]) -> usize {
    let zeros = integer.iter().take_while(|byte| **byte == 0).count();
    match integer.get(zeros) {
        Some(first) => {
            let spare = usize::try_from(first.leading_zeros()).unwrap_or(0);
            (integer.len() - zeros) * 8 - spare
        }
        None => 0,
    }
}
