//! What a Workload API answers, as messages (SPIFFE_Workload_API.md §5.2) and as what counts of them.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use rustls_pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, PrivatePkcs8KeyDer,
};
use zeugma_core::identity::{IdentityError, SpiffeId, TrustDomain};

use crate::tls::{ANCHORS_MAX, BUNDLES_MAX, CHAIN_CERTIFICATES_MAX, Given, SVID_BYTES_MAX};

/// The most CRLs of one answer.
pub(super) const CRLS_MAX: usize = 256;

/// `X509SVIDRequest`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct Request {}

/// `X509SVIDResponse`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
#[prost(skip_debug)]
pub(super) struct Response {
    /// At least one; the first is the default.
    #[prost(message, repeated, tag = "1")]
    pub(super) svids: Vec<Svid>,
    /// DER each.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub(super) crl: Vec<Bytes>,
    /// DER, concatenated, by the SPIFFE ID of a trust domain.
    #[prost(btree_map = "string, bytes", tag = "3")]
    pub(super) federated_bundles: BTreeMap<String, Vec<u8>>,
}

/// `X509SVID`, without its hint, which is not looked at.
#[derive(Clone, PartialEq, Eq, prost::Message)]
#[prost(skip_debug)]
pub(super) struct Svid {
    #[prost(string, tag = "1")]
    pub(super) spiffe_id: String,
    /// DER, the leaf first.
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) x509_svid: Bytes,
    /// PKCS#8, DER.
    #[prost(bytes = "bytes", tag = "3")]
    pub(super) x509_svid_key: Bytes,
    /// DER, concatenated.
    #[prost(bytes = "bytes", tag = "4")]
    pub(super) bundle: Bytes,
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut told = f.debug_struct("Response");
        told.field("svids", &self.svids).finish_non_exhaustive()
    }
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut told = f.debug_struct("Svid");
        told.field("spiffe_id", &self.spiffe_id)
            .finish_non_exhaustive()
    }
}

/// Why an answer is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum AnswerError {
    /// It holds no SVID.
    #[error("there is no SVID in it")]
    NoSvid,
    /// WA5: something that must be there.
    #[error("`{0}` is missing")]
    Missing(&'static str),
    /// Not a SPIFFE ID.
    #[error("`spiffe_id` is not one: {0}")]
    Id(IdentityError),
    /// WA9: not the SPIFFE ID of a trust domain.
    #[error("`federated_bundles` has a key that is not the SPIFFE ID of a trust domain")]
    Domain,
    /// B8: a second bundle of the SVID's own trust domain.
    #[error("`federated_bundles` has a bundle of {0}, which is the SVID's own trust domain")]
    OwnDomain(TrustDomain),
    /// WA7, WA10: not DER, one after the other.
    #[error("`{0}` is not certificates in DER, one after the other")]
    Der(&'static str),
    /// Too many of something.
    #[error("`{what}` has over {max}")]
    TooMany { what: &'static str, max: usize },
    /// A secret of a secret discovery service.
    #[error("secret `{name}`: {why}")]
    Secret { name: String, why: String },
}

/// Takes what counts of an answer of `from`: its first SVID, which is the default one (§5.3).
///
/// # Errors
/// Something that must be there is not, or is not what it must be.
pub(super) fn read(answer: Response, from: String) -> Result<Given, AnswerError> {
    let svid = answer.svids.into_iter().next().ok_or(AnswerError::NoSvid)?;
    let present = |bytes: &Bytes, name| match bytes.is_empty() {
        true => Err(AnswerError::Missing(name)),
        false => Ok(()),
    };
    if svid.spiffe_id.is_empty() {
        return Err(AnswerError::Missing("spiffe_id"));
    }
    present(&svid.x509_svid, "x509_svid")?;
    present(&svid.x509_svid_key, "x509_svid_key")?;
    present(&svid.bundle, "bundle")?;
    let key_bytes_max = usize::try_from(SVID_BYTES_MAX).unwrap_or(usize::MAX);
    at_most(svid.x509_svid_key.len(), "x509_svid_key", key_bytes_max)?;
    at_most(answer.crl.len(), "crl", CRLS_MAX)?;
    at_most(
        answer.federated_bundles.len(),
        "federated_bundles",
        BUNDLES_MAX,
    )?;
    let id = SpiffeId::parse(&svid.spiffe_id).map_err(AnswerError::Id)?;
    let mut federated = BTreeMap::new();
    for (name, der) in &answer.federated_bundles {
        let domain = domain_of(name).ok_or(AnswerError::Domain)?;
        if id.is_of(&domain) {
            return Err(AnswerError::OwnDomain(domain));
        }
        // An empty one trusts nobody (B1): it is no redaction, and lets in nobody either.
        let anchors = certificates(der, "federated_bundles", ANCHORS_MAX)?;
        if federated.insert(domain, anchors).is_some() {
            return Err(AnswerError::Domain);
        }
    }
    let list = |der: Bytes| CertificateRevocationListDer::from(Vec::from(der));
    Ok(Given {
        from,
        id,
        chain: certificates(&svid.x509_svid, "x509_svid", CHAIN_CERTIFICATES_MAX)?,
        key: PrivateKeyDer::from(PrivatePkcs8KeyDer::from(Vec::from(svid.x509_svid_key))),
        bundle: certificates(&svid.bundle, "bundle", ANCHORS_MAX)?,
        federated,
        crls: answer.crl.into_iter().map(list).collect(),
    })
}

/// The trust domain of `spiffe://domain`, or of its bare name, which some agents write.
fn domain_of(name: &str) -> Option<TrustDomain> {
    TrustDomain::parse(name.strip_prefix("spiffe://").unwrap_or(name)).ok()
}

const fn at_most(count: usize, what: &'static str, max: usize) -> Result<(), AnswerError> {
    if count > max {
        return Err(AnswerError::TooMany { what, max });
    }
    Ok(())
}

/// Takes certificates apart that stand one after the other.
fn certificates(
    bytes: &[u8],
    what: &'static str,
    max: usize,
) -> Result<Vec<CertificateDer<'static>>, AnswerError> {
    let mut rest = bytes;
    let mut found = Vec::new();
    while !rest.is_empty() {
        at_most(found.len() + 1, what, max)?;
        let (one, more) = sequence(rest).ok_or(AnswerError::Der(what))?;
        found.push(CertificateDer::from(one.to_vec()));
        rest = more;
    }
    Ok(found)
}

/// The SEQUENCE that bytes begin with, and what is behind it (X.690 §8.1.3, §10.1).
fn sequence(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    const SEQUENCE: u8 = 0x30;
    let (&tag, &first) = (bytes.first()?, bytes.get(1)?);
    let octets = match first {
        0..=0x7f => 0,
        // What is longer than three octets can tell is longer than an answer.
        0x81..=0x83 => usize::from(first & 0x7f),
        _ => return None,
    };
    let length = match octets {
        0 => usize::from(first),
        _ => (bytes.get(2..2 + octets)?.iter())
            .fold(0, |length, octet| (length << 8) | usize::from(*octet)),
    };
    (tag == SEQUENCE).then_some(())?;
    bytes.split_at_checked(2 + octets + length)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A SEQUENCE of so many octets.
    fn of(octets: usize) -> Vec<u8> {
        let length = u32::try_from(octets).unwrap().to_be_bytes();
        let mut der = vec![0x30];
        match octets {
            ..0x80 => der.push(length[3]),
            0x80..0x100 => der.extend([0x81, length[3]]),
            0x100..0x1_0000 => der.extend([0x82, length[2], length[3]]),
            _ => der.extend([0x83, length[1], length[2], length[3]]),
        }
        der.resize(der.len() + octets, 7);
        der
    }

    fn answer() -> Response {
        Response {
            svids: vec![Svid {
                spiffe_id: "spiffe://east.example/gateway".to_owned(),
                x509_svid: [of(5), of(200)].concat().into(),
                x509_svid_key: of(9).into(),
                bundle: of(70_000).into(),
            }],
            crl: Vec::new(),
            federated_bundles: BTreeMap::from([(
                "spiffe://west.example".to_owned(),
                [of(3), of(300)].concat(),
            )]),
        }
    }

    fn refused(change: impl FnOnce(&mut Response)) -> String {
        let mut answer = answer();
        change(&mut answer);
        read(answer, "unix:///a".to_owned())
            .unwrap_err()
            .to_string()
    }

    /// SPIFFE_Workload_API.md §5.2.2: DER, the leaf first, one after the other (WA7, WA10).
    #[test]
    fn certificates_stand_one_after_the_other() {
        let given = read(answer(), "unix:///a".to_owned()).unwrap();
        let lengths =
            |all: &[CertificateDer<'_>]| all.iter().map(|der| der.len()).collect::<Vec<_>>();
        assert_eq!(lengths(&given.chain), [7, 203]);
        assert_eq!(lengths(&given.bundle), [70_005]);
        let west = TrustDomain::parse("west.example").unwrap();
        assert_eq!(lengths(&given.federated[&west]), [5, 304]);
        assert_eq!(given.id.as_str(), "spiffe://east.example/gateway");
        for broken in [
            &[0x30][..],
            &[0x31, 0],
            &[0x30, 0x80],
            &[0x30, 0x84, 0, 0, 0, 0],
            &[0x30, 2, 0],
        ] {
            let said = refused(|answer| answer.svids[0].bundle = broken.to_vec().into());
            assert_eq!(
                said,
                "`bundle` is not certificates in DER, one after the other"
            );
        }
        let said = refused(|answer| answer.svids[0].x509_svid = [of(5), vec![1]].concat().into());
        assert!(said.starts_with("`x509_svid` is not"), "{said}");
    }

    /// WA5.
    #[test]
    fn what_must_be_there_is_missed() {
        for (name, said) in [
            (
                "spiffe_id",
                refused(|answer| answer.svids[0].spiffe_id.clear()),
            ),
            (
                "x509_svid",
                refused(|answer| answer.svids[0].x509_svid.clear()),
            ),
            (
                "x509_svid_key",
                refused(|answer| answer.svids[0].x509_svid_key.clear()),
            ),
            ("bundle", refused(|answer| answer.svids[0].bundle.clear())),
        ] {
            assert_eq!(said, format!("`{name}` is missing"));
        }
        assert_eq!(
            refused(|answer| answer.svids.clear()),
            "there is no SVID in it"
        );
    }

    #[test]
    fn names_are_spiffe_ids() {
        let said = refused(|answer| answer.svids[0].spiffe_id = "gateway".to_owned());
        assert!(said.starts_with("`spiffe_id` is not one"), "{said}");
        for key in [
            "spiffe://west.example/path",
            "",
            "spiffe://",
            "https://a.example",
        ] {
            let said = refused(|answer| {
                answer.federated_bundles.insert(key.to_owned(), of(3));
            });
            assert!(
                said.contains("not the SPIFFE ID of a trust domain"),
                "{key}: {said}"
            );
        }
        let said = refused(|answer| {
            let own = "spiffe://east.example".to_owned();
            answer.federated_bundles.insert(own, of(3));
        });
        assert!(said.contains("own trust domain"), "{said}");
    }

    #[test]
    fn there_is_at_most_so_much_of_everything() {
        let said = refused(|answer| {
            answer.svids[0].x509_svid = of(1).repeat(CHAIN_CERTIFICATES_MAX + 1).into();
        });
        assert_eq!(
            said,
            format!("`x509_svid` has over {CHAIN_CERTIFICATES_MAX}")
        );
        let said = refused(|answer| answer.svids[0].bundle = of(1).repeat(ANCHORS_MAX + 1).into());
        assert_eq!(said, format!("`bundle` has over {ANCHORS_MAX}"));
        let said = refused(|answer| answer.crl = vec![Bytes::new(); CRLS_MAX + 1]);
        assert_eq!(said, format!("`crl` has over {CRLS_MAX}"));
        let said = refused(|answer| {
            let many = (0..=BUNDLES_MAX).map(|nth| (format!("spiffe://d{nth}"), of(1)));
            answer.federated_bundles = many.collect();
        });
        assert_eq!(said, format!("`federated_bundles` has over {BUNDLES_MAX}"));
        let said = refused(|answer| answer.svids[0].x509_svid_key = of(70_000).into());
        assert!(said.starts_with("`x509_svid_key` has over"), "{said}");
        let mut most = answer();
        most.svids[0].bundle = of(1).repeat(ANCHORS_MAX).into();
        assert!(read(most, String::new()).is_ok());
    }

    #[test]
    fn a_key_is_in_no_message_for_people() {
        let mut answer = answer();
        answer.svids[0].x509_svid_key = vec![0xa7; 40].into();
        let told = format!(
            "{answer:?} {:?}",
            read(answer.clone(), String::new()).unwrap()
        );
        assert!(!told.contains("167") && !told.contains("a7, "), "{told}");
    }
}
