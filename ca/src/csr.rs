//! Certificate signing requests: a public key and the proof that its private half is there (C1).
//!
//! Nothing else of a request reaches a certificate. What asks for less or the same is ignored
//! (subject, key identifiers, attributes); what asks for more is refused, so that whoever wrote it
//! learns it here and not from a certificate that lacks it.

use rcgen::SubjectPublicKeyInfo;
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer as _;

use crate::keys::{self, KeyError};
use crate::policy::LeafRequest;

/// The largest request, in bytes of DER.
pub const CSR_BYTES_MAX: usize = 64 * 1024;

/// Why a request is not signed.
#[derive(Debug, thiserror::Error)]
pub enum CsrError {
    /// It is no PKCS#10 request.
    #[error("this is not a certificate signing request (PKCS#10, PEM or DER)")]
    Parse,
    /// It is too large.
    #[error("the request is {0} bytes; at most {CSR_BYTES_MAX} are read")]
    TooLarge(usize),
    /// It is signed with an algorithm that proves nothing today.
    #[error(
        "the request is signed with {0}; sign it with SHA-256 or better (RFC 5280 profile rule R4)"
    )]
    WeakSignature(String),
    /// Its signature does not verify: no proof of possession.
    #[error(
        "the request's own signature does not verify; it does not prove possession of the key (C1)"
    )]
    Possession,
    /// It asks to be a CA.
    #[error("the request asks for a CA certificate; only leaves are signed (C1)")]
    AsksForCa,
    /// It asks for a key usage no leaf has.
    #[error("the request asks for key usage {0}; a leaf gets digitalSignature alone (C1)")]
    AsksForKeyUsage(String),
    /// It asks for an extended key usage no leaf has.
    #[error(
        "the request asks for an extended key usage besides serverAuth and clientAuth, which are what a leaf gets (C1)"
    )]
    AsksForExtendedKeyUsage,
    /// It asks for a name that the command line does not give it.
    #[error(
        "the request asks for the name `{asked}`; it would get `{given}`; ask for no names or for those (C1)"
    )]
    AsksForName {
        /// What it asks for.
        asked: String,
        /// What the authority was told to give.
        given: String,
    },
    /// The key.
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl CsrError {
    /// Its code in [`zeugma_core::codes`].
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Parse | Self::TooLarge(_) => "ZG0219",
            Self::WeakSignature(_) | Self::Possession => "ZG0220",
            Self::AsksForCa
            | Self::AsksForKeyUsage(_)
            | Self::AsksForExtendedKeyUsage
            | Self::AsksForName { .. } => "ZG0221",
            Self::Key(error) => error.code(),
        }
    }
}

/// The public key of a request that proves possession and asks for nothing but what it gets.
pub(crate) fn public_key(
    csr: &[u8],
    request: &LeafRequest,
) -> Result<SubjectPublicKeyInfo, CsrError> {
    if csr.len() > CSR_BYTES_MAX {
        return Err(CsrError::TooLarge(csr.len()));
    }
    let pem = CertificateSigningRequestDer::from_pem_slice(csr);
    let der = pem.as_ref().map_or(csr, |der| der.as_ref());
    let Ok(([], parsed)) = X509CertificationRequest::from_der(der) else {
        return Err(CsrError::Parse);
    };
    check_signature(&parsed)?;
    check_wishes(&parsed, request)?;
    Ok(keys::public_key(
        parsed.certification_request_info.subject_pki.raw,
    )?)
}

fn check_signature(parsed: &X509CertificationRequest<'_>) -> Result<(), CsrError> {
    // R4: SHA-256 and better with ECDSA and RSA (PKCS#1 v1.5, RFC 8017), and Ed25519.
    const STRONG: [&str; 6] = [
        "1.2.840.10045.4.3.2",
        "1.2.840.10045.4.3.3",
        "1.2.840.113549.1.1.11",
        "1.2.840.113549.1.1.12",
        "1.2.840.113549.1.1.13",
        "1.3.101.112",
    ];
    let algorithm = parsed.signature_algorithm.algorithm.to_id_string();
    if !STRONG.contains(&algorithm.as_str()) {
        return Err(CsrError::WeakSignature(algorithm));
    }
    parsed.verify_signature().map_err(|_| CsrError::Possession)
}

fn check_wishes(
    parsed: &X509CertificationRequest<'_>,
    request: &LeafRequest,
) -> Result<(), CsrError> {
    for wish in parsed.requested_extensions().into_iter().flatten() {
        if let ParsedExtension::BasicConstraints(constraints) = wish
            && constraints.ca
        {
            return Err(CsrError::AsksForCa);
        }
        if let ParsedExtension::KeyUsage(usage) = wish
            && (usage.key_cert_sign() || usage.crl_sign())
        {
            return Err(CsrError::AsksForKeyUsage(usage.to_string()));
        }
        if let ParsedExtension::ExtendedKeyUsage(usage) = wish
            && (usage.any
                || usage.code_signing
                || usage.email_protection
                || usage.time_stamping
                || usage.ocsp_signing
                || !usage.other.is_empty())
        {
            return Err(CsrError::AsksForExtendedKeyUsage);
        }
        if let ParsedExtension::SubjectAlternativeName(names) = wish {
            for name in &names.general_names {
                check_name(name, request)?;
            }
        }
    }
    Ok(())
}

fn check_name(name: &GeneralName<'_>, request: &LeafRequest) -> Result<(), CsrError> {
    let granted = match name {
        GeneralName::URI(uri) => *uri == request.id.as_str(),
        GeneralName::DNSName(dns) => request.dns_names.iter().any(|given| given == dns),
        GeneralName::OtherName(..)
        | GeneralName::RFC822Name(_)
        | GeneralName::X400Address(_)
        | GeneralName::DirectoryName(_)
        | GeneralName::EDIPartyName(_)
        | GeneralName::IPAddress(_)
        | GeneralName::RegisteredID(_)
        | GeneralName::Invalid(..) => false,
    };
    if granted {
        return Ok(());
    }
    let mut given = vec![request.id.as_str()];
    given.extend(request.dns_names.iter().map(String::as_str));
    Err(CsrError::AsksForName {
        asked: name.to_string(),
        given: given.join(", "),
    })
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa,
        KeyPair, KeyUsagePurpose, PublicKeyData as _, SanType,
    };
    use zeugma_core::identity::SpiffeId;

    use super::*;

    fn request() -> LeafRequest {
        LeafRequest::new(SpiffeId::parse("spiffe://east.example/a").unwrap())
    }

    fn csr(change: impl FnOnce(&mut CertificateParams)) -> (KeyPair, Vec<u8>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        change(&mut params);
        let der = params.serialize_request(&key).unwrap().der().to_vec();
        (key, der)
    }

    fn refusal(change: impl FnOnce(&mut CertificateParams)) -> CsrError {
        public_key(&csr(change).1, &request()).unwrap_err()
    }

    #[test]
    fn c1_the_public_key_is_taken_and_the_subject_ignored() {
        let (key, der) = csr(|params| {
            params
                .distinguished_name
                .push(rcgen::DnType::CommonName, "admin");
        });
        let public = public_key(&der, &request()).unwrap();
        assert_eq!(public.der_bytes(), key.der_bytes());
        // The same name, the same usage, a key identifier: nothing beyond what it gets.
        let (_, der) = csr(|params| {
            params.subject_alt_names =
                vec![SanType::URI("spiffe://east.example/a".try_into().unwrap())];
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            params.custom_extensions = vec![CustomExtension::from_oid_content(
                &[2, 5, 29, 14],
                vec![4, 2, 1, 2],
            )];
        });
        assert!(public_key(&der, &request()).is_ok());
    }

    #[test]
    fn c1_a_request_to_be_a_ca_is_refused() {
        let error = refusal(|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
        assert!(matches!(error, CsrError::AsksForCa), "{error}");
        for usage in [KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign] {
            let error = refusal(|p| p.key_usages = vec![usage]);
            assert!(matches!(error, CsrError::AsksForKeyUsage(_)), "{error}");
        }
    }

    #[test]
    fn c1_another_name_is_refused() {
        let uri = |text: &str| SanType::URI(text.try_into().unwrap());
        for name in [
            uri("spiffe://east.example/b"),
            uri("spiffe://west.example/a"),
            uri("https://east.example/a"),
            SanType::DnsName("east.example".try_into().unwrap()),
            SanType::IpAddress([127, 0, 0, 1].into()),
            SanType::Rfc822Name("a@east.example".try_into().unwrap()),
        ] {
            let error = refusal(|p| p.subject_alt_names = vec![name]);
            assert!(matches!(error, CsrError::AsksForName { .. }), "{error}");
        }
    }

    #[test]
    fn c1_another_extended_key_usage_is_refused() {
        for usage in [
            ExtendedKeyUsagePurpose::Any,
            ExtendedKeyUsagePurpose::CodeSigning,
        ] {
            let error = refusal(|p| p.extended_key_usages = vec![usage]);
            assert!(
                matches!(error, CsrError::AsksForExtendedKeyUsage),
                "{error}"
            );
        }
    }

    #[test]
    fn c1_without_proof_of_possession_nothing_is_signed() {
        // The last byte is the end of the signature's s: another number, still well-formed.
        let (_, mut der) = csr(|_| {});
        *der.last_mut().unwrap() ^= 1;
        let error = public_key(&der, &request()).unwrap_err();
        assert!(matches!(error, CsrError::Possession), "{error}");
        let error = public_key(b"garbage", &request()).unwrap_err();
        assert!(matches!(error, CsrError::Parse), "{error}");
    }

    #[test]
    fn a_request_over_the_limit_is_refused() {
        let error = public_key(&vec![0; CSR_BYTES_MAX + 1], &request()).unwrap_err();
        assert!(matches!(error, CsrError::TooLarge(65537)), "{error}");
        let error = public_key(&vec![0; CSR_BYTES_MAX], &request()).unwrap_err();
        assert!(matches!(error, CsrError::Parse), "{error}");
    }
}
