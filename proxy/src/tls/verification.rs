//! Who decides inside a handshake whether the other end is who it should be.

use std::fmt;
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::verify_tls13_signature;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, PeerMisbehaved, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use zeugma_core::identity::{IdPattern, SpiffeId};
use zeugma_core::svid::Rule;

use super::cache::Claim;
use super::config::provider;
use super::credentials::Credentials;
use super::possession::LeafKey;
use super::verify::{Refusal, TlsPeer, Usage};

/// The schemes a peer may sign the handshake with: those of R4's keys (RFC 8446 §4.2.3).
const SCHEMES: [SignatureScheme; 6] = [
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ED25519,
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA512,
];

/// Where the verifier of one connection leaves its verdict.
#[derive(Debug, Clone, Default)]
pub struct PeerSlot(Arc<Slots>);

#[derive(Debug, Default)]
struct Slots {
    /// Whose chain is valid; a peer only once it has proved to hold the key.
    claimed: OnceLock<Claim>,
    verdict: OnceLock<Result<Arc<TlsPeer>, Refusal>>,
}

impl PeerSlot {
    /// The peer; `None` until its chain is verified and it has proved to hold the key.
    #[must_use]
    pub fn peer(&self) -> Option<&Arc<TlsPeer>> {
        self.0.verdict.get()?.as_ref().ok()
    }

    /// Why the peer was refused, if it was the certificate's fault that the handshake failed with
    /// `error`; `None` for every other failure.
    #[must_use]
    pub fn refusal(&self, error: &std::io::Error) -> Option<Refusal> {
        if let Some(Err(refusal)) = self.0.verdict.get() {
            return Some(refusal.clone());
        }
        let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
        let missing = matches!(error, rustls::Error::NoCertificatesPresented);
        missing.then(|| Refusal::new(Rule::NoCertificate, "no certificate presented"))
    }

    fn claim(&self, verdict: Result<Claim, Refusal>) -> Result<(), rustls::Error> {
        match verdict {
            Ok(claim) => self.0.claimed.set(claim).map_err(|_second| again()),
            Err(refusal) => {
                let error = refusal.certificate_error();
                self.decide(Err(refusal))?;
                Err(error.into())
            }
        }
    }

    fn decide(&self, verdict: Result<Arc<TlsPeer>, Refusal>) -> Result<(), rustls::Error> {
        self.0.verdict.set(verdict).map_err(|_second| again())
    }

    /// The chain that is valid, once the handshake is signed with its key.
    fn prove(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<(&Claim, HandshakeSignatureValid), rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        let claimed = self.0.claimed.get();
        let proof = match claimed.and_then(|claim| claim.known.key.as_ref()) {
            Some(key) if signed.scheme == LeafKey::SCHEME => {
                key.verify(message, signed.signature())
            }
            _ if SCHEMES.contains(&signed.scheme) => {
                verify_tls13_signature(message, certificate, signed, algorithms)
            }
            _ => Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into()),
        };
        match (proof, claimed) {
            (Ok(valid), Some(claim)) => {
                self.decide(Ok(Arc::clone(&claim.known.peer)))?;
                Ok((claim, valid))
            }
            (proof, _) => {
                let detail = "the handshake is not signed with the certificate's key";
                let refusal = Refusal::new(Rule::NoPossession, detail);
                let error = proof
                    .err()
                    .unwrap_or_else(|| refusal.certificate_error().into());
                self.decide(Err(refusal))?;
                Err(error)
            }
        }
    }
}

/// A handshake presents one chain and is signed once: whoever comes a second time is another, whom
/// what was found before must not let in.
fn again() -> rustls::Error {
    rustls::Error::General("a verification is of one handshake".to_owned())
}

fn no_tls12() -> rustls::Error {
    rustls::Error::General("TLS 1.2 is not enabled".to_owned())
}

tokio::task_local! {
    /// What decides in the handshake of a caller that a task is at.
    static OF_TASK: Verification;
}

/// Says inside the handshake whether a caller whose chain is valid is let in.
pub(crate) type Admit = Box<dyn Fn(&SpiffeId) -> bool + Send + Sync>;

/// What decides in one handshake whether the other end is who it should be.
pub(super) struct Verification {
    credentials: Arc<Credentials>,
    check: Check,
    slot: PeerSlot,
}

/// What is asked besides a valid chain.
pub(super) enum Check {
    /// Of who calls us.
    Caller(Option<Admit>),
    /// Of whom we called.
    Upstream(Vec<IdPattern>),
}

impl Verification {
    pub(super) fn new(credentials: &Arc<Credentials>, check: Check) -> Self {
        Self {
            credentials: Arc::clone(credentials),
            check,
            slot: PeerSlot::default(),
        }
    }

    /// Where the verdict is found.
    pub(super) fn slot(&self) -> PeerSlot {
        self.slot.clone()
    }

    /// Decides in this handshake, whose verifier is [`Verifier::OfTask`].
    ///
    /// # Cancel safety
    /// As the handshake.
    pub(super) fn carry<F: Future>(self, handshake: F) -> impl Future<Output = F::Output> {
        OF_TASK.scope(self, handshake)
    }

    fn claim(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        usage: Usage,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        match (&self.check, usage) {
            (Check::Caller(_), Usage::Client) | (Check::Upstream(_), Usage::Server) => {}
            (Check::Caller(_), Usage::Server) | (Check::Upstream(_), Usage::Client) => {
                let why = "a verification is of one side of a handshake";
                return Err(rustls::Error::General(why.to_owned()));
            }
        }
        let verdict = self
            .credentials
            .claim(end_entity, intermediates, usage, now)
            .and_then(|claim| self.check(&claim.known.peer).map(|()| claim));
        self.slot.claim(verdict)
    }

    fn prove(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let (claim, valid) = self.slot.prove(message, certificate, signed)?;
        self.credentials.keep(claim, &valid);
        Ok(valid)
    }

    fn check(&self, peer: &TlsPeer) -> Result<(), Refusal> {
        let detail = match &self.check {
            Check::Caller(Some(admit)) if !admit(&peer.id) => {
                format!("{} is not allowed here", peer.id)
            }
            Check::Caller(_) => return Ok(()),
            Check::Upstream(expected) => {
                if expected.iter().any(|pattern| pattern.matches(&peer.id)) {
                    return Ok(());
                }
                let expected: Vec<_> = expected.iter().map(ToString::to_string).collect();
                let expected = expected.join(" or ");
                format!("the peer is {}; expected {expected}", peer.id)
            }
        };
        Err(Refusal::new(Rule::UnexpectedId, detail))
    }
}

/// Whom rustls asks.
pub(super) enum Verifier {
    /// The verification of the one handshake that its configuration is for.
    Own(Verification),
    /// That in which the handshake is carried: rustls has one verifier for a server's
    /// configuration, and one would be made for each connection.
    OfTask,
}

impl Verifier {
    fn ask<T>(
        &self,
        question: impl FnOnce(&Verification) -> Result<T, rustls::Error>,
    ) -> Result<T, rustls::Error> {
        match self {
            Self::Own(verification) => question(verification),
            // Outside of one nobody is verified, and nobody let in.
            Self::OfTask => OF_TASK.try_with(question).unwrap_or_else(|_none| {
                let why = "nobody decides in this handshake";
                Err(rustls::Error::General(why.to_owned()))
            }),
        }
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").finish_non_exhaustive()
    }
}

impl ClientCertVerifier for Verifier {
    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Hints would tell every stranger whom we trust, and one SVID is all a caller has.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.ask(|one| one.claim(end_entity, intermediates, Usage::Client, now))
            .map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.ask(|one| one.prove(message, certificate, signed))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SCHEMES.to_vec()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        // T6: an SVID is matched by its URI SAN, never by the DNS name it was reached under.
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.ask(|one| one.claim(end_entity, intermediates, Usage::Server, now))
            .map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.ask(|one| one.prove(message, certificate, signed))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SCHEMES.to_vec()
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{
        ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair,
    };
    use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384};

    use super::super::cache::Known;
    use super::*;
    use crate::fixture::{self_signed, signed};

    /// Why a peer that presents this key, and signs so, has not proved to hold it.
    fn unproved(pair: &KeyPair, scheme: u16, signature: &[u8]) -> Option<rustls::Error> {
        let leaf = self_signed(pair);
        let slot = PeerSlot::default();
        let peer = Arc::new(TlsPeer {
            id: SpiffeId::parse("spiffe://east.example/ns/shop/sa/cart").unwrap(),
            serials: Vec::new(),
            issuers: Vec::new(),
            anchor: [0; 32],
            not_after: i64::MAX,
        });
        let key = LeafKey::of(&leaf).map(Arc::new);
        let known = Known { peer, key };
        slot.claim(Ok(Claim { known, new: None })).unwrap();
        let signed = signed(SignatureScheme::from(scheme), signature);
        let error = slot.prove(b"message", &leaf, &signed).err();
        assert_eq!(slot.peer().is_some(), error.is_none());
        let refusal = slot.refusal(&std::io::Error::other("any"));
        let rule = refusal.map(|refusal| refusal.violation.rule);
        let expected = error.is_some().then_some(Rule::NoPossession);
        assert_eq!(rule, expected);
        error
    }

    /// RFC 8446 §4.2.3: in TLS 1.3 the scheme names the curve and the hash.
    #[test]
    fn a_handshake_is_signed_by_the_scheme_of_the_key() {
        let unadvertised: rustls::Error =
            PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into();
        for (kind, signing, good, others) in [
            (
                &PKCS_ECDSA_P256_SHA256,
                &ECDSA_P256_SHA256_ASN1_SIGNING,
                0x0403,
                [0x0503, 0x0807, 0x0804, 0x0805, 0x0806],
            ),
            (
                &PKCS_ECDSA_P384_SHA384,
                &ECDSA_P384_SHA384_ASN1_SIGNING,
                0x0503,
                [0x0403, 0x0807, 0x0804, 0x0805, 0x0806],
            ),
        ] {
            let pair = KeyPair::generate_for(kind).unwrap();
            let signing = EcdsaKeyPair::from_pkcs8(signing, &pair.serialize_der()).unwrap();
            let signature = signing.sign(&SystemRandom::new(), b"message").unwrap();
            let with = |scheme| unproved(&pair, scheme, signature.as_ref());
            assert_eq!(with(good), None);
            for other in others {
                let error = with(other).unwrap();
                assert_ne!(error, unadvertised, "{other:#06x}");
            }
            // RSA of before TLS 1.3, SHA-1, P-521, and nothing at all.
            for other in [0x0401, 0x0501, 0x0203, 0x0603, 0x0000] {
                assert_eq!(with(other).unwrap(), unadvertised, "{other:#06x}");
            }
        }
    }

    #[test]
    fn what_is_signed_before_a_chain_is_shown_proves_nothing() {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let der = pair.serialize_der();
        let signing = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &der).unwrap();
        let signature = signing.sign(&SystemRandom::new(), b"message").unwrap();
        let signed = signed(LeafKey::SCHEME, signature.as_ref());
        let slot = PeerSlot::default();
        let proved = slot.prove(b"message", &self_signed(&pair), &signed);
        let refused = rustls::CertificateError::BadSignature;
        assert_eq!(proved.map(drop), Err(refused.into()));
        assert!(slot.peer().is_none());
    }
}
