//! What a secret discovery service gives, one secret after the other, as one identity.
//!
//! A secret that cannot be used is refused at once, and the one before it stays (P49). Whether the
//! certificate stands under the anchors is seen when both have come, for they come in any order.

use std::collections::BTreeMap;

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use tokio::time::timeout;
use zeugma_core::identity::{SpiffeId, TrustDomain};
use zeugma_core::line::with_causes;
use zeugma_xds::secrets::{self, Asked, Heard, Secret, TrustBundle, follow};

use super::answer::{AnswerError, CRLS_MAX};
use super::asked::AskedSecrets;
use super::dial::{CONNECT_TIMEOUT, dial};
use super::stream::{Ended, Event};
use crate::tls::{
    ANCHORS_MAX, BUNDLES_MAX, CHAIN_CERTIFICATES_MAX, Given, PemError, SVID_BYTES_MAX,
    check_anchors, check_svid,
};

/// Asks, and tells all that comes beside what came in the calls before.
pub(super) async fn call(made: &mut Assembly, mut tell: impl FnMut(Event)) -> Ended {
    let asked = &made.asked;
    let io = match timeout(CONNECT_TIMEOUT, dial(&asked.address)).await {
        Ok(Ok(io)) => io,
        Ok(Err(error)) => return Ended::Connect(with_causes(&error)),
        Err(_elapsed) => return Ended::ConnectTimeout,
    };
    let names = Asked {
        node: asked.node.clone(),
        cluster: asked.cluster.clone(),
        names: asked.names().map(str::to_owned).collect(),
    };
    let ended = follow(io, &names, |heard| made.hear(heard, &mut tell)).await;
    match ended {
        secrets::Ended::Handshake(_) => Ended::Connect(ended.to_string()),
        secrets::Ended::Silent(_) => Ended::Silent(ended.to_string()),
        secrets::Ended::Denied(_) => Ended::Denied(ended.to_string()),
        secrets::Ended::Refused(_) | secrets::Ended::Closed(_) => Ended::Refused(ended.to_string()),
    }
}

/// A certificate, and who it is of.
#[derive(Clone, PartialEq, Eq)]
struct Svid {
    id: SpiffeId,
    chain: Vec<CertificateDer<'static>>,
    key: Key,
}

/// A key that is cloned where it is used.
struct Key(PrivateKeyDer<'static>);

impl Clone for Key {
    fn clone(&self) -> Self {
        Self(self.0.clone_key())
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for Key {}

/// Whom one secret has us trust.
#[derive(Clone, PartialEq, Eq)]
struct Trust {
    bundles: BTreeMap<TrustDomain, Vec<CertificateDer<'static>>>,
    crls: Vec<CertificateRevocationListDer<'static>>,
}

/// The last of each secret that can be used: it outlives a call, so that one that is refused after the next
/// one began holds up none of the others.
pub(super) struct Assembly {
    asked: AskedSecrets,
    svid: Option<Svid>,
    trusts: BTreeMap<String, Trust>,
    /// The last of those that are good by themselves and do not fit to the others.
    aside: BTreeMap<String, Trust>,
    /// Why the last of a secret is not used.
    refused: BTreeMap<String, String>,
    /// Whether there was a whole.
    has_given: bool,
}

impl Assembly {
    const fn new(asked: AskedSecrets) -> Self {
        Self {
            asked,
            svid: None,
            trusts: BTreeMap::new(),
            aside: BTreeMap::new(),
            refused: BTreeMap::new(),
            has_given: false,
        }
    }

    /// What came of these secrets so far.
    pub(super) fn of<'a>(made: &'a mut Option<Self>, asked: &AskedSecrets) -> &'a mut Self {
        let same = made.take().filter(|made| made.asked == *asked);
        made.insert(same.unwrap_or_else(|| Self::new(asked.clone())))
    }

    /// Takes what came; what is wrong with it, which its service is told.
    fn hear(&mut self, heard: Heard<'_>, tell: &mut impl FnMut(Event)) -> Result<(), String> {
        let (name, taken) = match heard {
            Heard::Silence(missing) => {
                let names = missing.join("`, `");
                tell(Event::Silence(format!("it has not given `{names}`")));
                return Ok(());
            }
            Heard::Unreadable(name, why) => (name, Err(why.to_owned())),
            Heard::Given(name, secret) => (name, self.take(name, secret)),
        };
        match &taken {
            Ok(()) => drop(self.refused.remove(name)),
            Err(why) => drop(self.refused.insert(name.to_owned(), why.clone())),
        }
        // One that is refused may be the last that was waited for.
        let is_new = taken.is_ok() || !self.has_given;
        let given = is_new.then(|| self.given().ok().flatten()).flatten();
        self.has_given |= given.is_some();
        // One that is good says nothing of another that is not.
        let refused = self.refused.first_key_value();
        let refused = refused.map(|(name, why)| AnswerError::Secret {
            name: name.clone(),
            why: why.clone(),
        });
        if given.is_some() || refused.is_some() {
            tell(Event::Secrets(given, refused));
        }
        taken
    }

    /// Takes a secret; where it cannot be used the one before it stays.
    fn take(&mut self, name: &str, secret: Secret) -> Result<(), String> {
        match (secret, name == self.asked.svid) {
            (Secret::Svid { chain, key }, true) => {
                self.svid = Some(svid(&chain, &key, &self.asked.own)?);
                Ok(())
            }
            (Secret::Trust { bundles, crls }, false) => {
                self.aside.remove(name);
                let trust = trust(bundles, &crls, &self.asked.own)?;
                self.aside.insert(name.to_owned(), trust);
                let fits = self.adopt(&[name.to_owned()]);
                self.adopt_more();
                if self.aside.contains_key(name) {
                    fits
                } else {
                    Ok(())
                }
            }
            (Secret::Trust { .. }, true) => Err("it is no `tls_certificate`".to_owned()),
            (Secret::Svid { .. }, false) => Err("it is no `validation_context`".to_owned()),
        }
    }

    /// Takes all that fits by now: one may have waited for what another one gave up. Its service knows
    /// that it was refused, and does not say it again.
    fn adopt_more(&mut self) {
        loop {
            let names: Vec<String> = self.aside.keys().cloned().collect();
            // Two may have changed places.
            let mut tries = names.chunks(1).chain([&*names]);
            if names.is_empty() || !tries.any(|names| self.adopt(names).is_ok()) {
                return;
            }
        }
    }

    /// Takes those that are aside, all of these or none.
    fn adopt(&mut self, names: &[String]) -> Result<(), String> {
        let before = self.trusts.clone();
        for name in names {
            if let Some(trust) = self.aside.get(name) {
                self.trusts.insert(name.clone(), trust.clone());
            }
        }
        if let Err(why) = self.given() {
            self.trusts = before;
            return Err(why);
        }
        for name in names {
            self.aside.remove(name);
            self.refused.remove(name);
        }
        Ok(())
    }

    /// The whole, where every secret has come; without those that are refused and never were good, if they
    /// are not what the gateway itself cannot do without.
    ///
    /// # Errors
    /// Why those that say whom to trust do not fit together.
    fn given(&self) -> Result<Option<Given>, String> {
        let mut bundles = BTreeMap::new();
        let mut crls = Vec::new();
        for trust in self.trusts.values() {
            for (domain, anchors) in &trust.bundles {
                // B8: bundles are never merged.
                if bundles.insert(domain.clone(), anchors.clone()).is_some() {
                    return Err(format!("there is a second bundle of {domain}"));
                }
            }
            crls.extend(trust.crls.iter().cloned());
        }
        at_most(bundles.len(), "trust domains", BUNDLES_MAX)?;
        at_most(crls.len(), "CRLs", CRLS_MAX)?;
        let mut wanted = self.asked.bundles.iter();
        if wanted.any(|name| !self.trusts.contains_key(name) && !self.refused.contains_key(name)) {
            return Ok(None);
        }
        let own = &self.asked.own;
        let Some(bundle) = bundles.remove(own) else {
            if self.trusts.len() < self.asked.bundles.len() {
                return Ok(None);
            }
            return Err(format!("no secret has the anchors of {own}"));
        };
        Ok(self.svid.clone().map(|svid| Given {
            from: self.asked.address.to_string(),
            id: svid.id,
            chain: svid.chain,
            key: svid.key.0,
            bundle,
            federated: bundles,
            crls,
        }))
    }
}

fn svid(chain: &[u8], key: &[u8], own: &TrustDomain) -> Result<Svid, String> {
    let bytes_max = usize::try_from(SVID_BYTES_MAX).unwrap_or(usize::MAX);
    at_most(chain.len(), "bytes of certificates", bytes_max)?;
    at_most(key.len(), "bytes of the key", bytes_max)?;
    let chain = certificates(chain, "certificate_chain", CHAIN_CERTIFICATES_MAX)?;
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(PemError::from)
        .map_err(|error| format!("`private_key` is no unencrypted key in PEM: {error}"))?;
    let id = check_svid(&chain, &key, own).map_err(|unfit| with_causes(&unfit))?;
    Ok(Svid {
        id,
        chain,
        key: Key(key),
    })
}

fn trust(given: Vec<TrustBundle>, crls: &[u8], own: &TrustDomain) -> Result<Trust, String> {
    let mut bundles = BTreeMap::new();
    for TrustBundle { domain, anchors } in given {
        let domain = match domain {
            None => own.clone(),
            Some(name) => TrustDomain::parse(&name)
                .map_err(|error| format!("`{name}` is no trust domain: {error}"))?,
        };
        let anchors = certificates(&anchors, "trust_bundle", ANCHORS_MAX)
            .map_err(|why| format!("of {domain}: {why}"))?;
        // Of another trust domain the credentials keep what they had, and tell.
        if domain == *own {
            check_anchors(&domain, &anchors).map_err(|error| with_causes(&error))?;
        }
        if bundles.contains_key(&domain) {
            return Err(format!("it has two bundles of {domain}"));
        }
        bundles.insert(domain, anchors);
    }
    let mut lists = Vec::new();
    for list in CertificateRevocationListDer::pem_slice_iter(crls) {
        at_most(lists.len() + 1, "CRLs", CRLS_MAX)?;
        let list = list.map_err(PemError::from);
        lists.push(list.map_err(|error| format!("`crl` is no PEM: {error}"))?);
    }
    if lists.is_empty() && !crls.is_empty() {
        return Err("`crl` has no CRL in PEM".to_owned());
    }
    Ok(Trust {
        bundles,
        crls: lists,
    })
}

fn certificates(
    bytes: &[u8],
    what: &str,
    max: usize,
) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut found = Vec::new();
    for one in CertificateDer::pem_slice_iter(bytes) {
        at_most(found.len() + 1, "certificates", max)?;
        let one = one.map_err(PemError::from);
        found.push(one.map_err(|error| format!("`{what}` is no PEM: {error}"))?);
    }
    match found.is_empty() {
        true => Err(format!("`{what}` has no certificate in PEM")),
        false => Ok(found),
    }
}

fn at_most(count: usize, what: &str, max: usize) -> Result<(), String> {
    if count > max {
        return Err(format!("there are over {max} {what}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::net::UnixListener;
    use tokio::time::Instant;
    use zeugma_xds::WorkloadAddress;

    use super::*;

    fn asked(address: WorkloadAddress) -> AskedSecrets {
        AskedSecrets {
            address,
            svid: "default".to_owned(),
            bundles: vec!["ROOTCA".to_owned(), "more".to_owned()],
            own: TrustDomain::parse("east.example").unwrap(),
            node: "east-gw".to_owned(),
            cluster: "east".to_owned(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_connected_and_says_nothing_is_told_of_by_name_and_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        let began = Instant::now();
        let mut told = Vec::new();
        let mut made = Assembly::new(asked(WorkloadAddress::Unix(path)));
        let ended = call(&mut made, |event| {
            let Event::Silence(what) = event else {
                panic!("{event:?}");
            };
            told.push((what, began.elapsed()));
        })
        .await;
        let said = "it has not given `default`, `ROOTCA`, `more`".to_owned();
        assert_eq!(told, [(said, Duration::from_secs(10))]);
        assert!(matches!(&ended, Ended::Silent(_)), "{ended}");
        assert_eq!(
            ended.to_string(),
            "no `default`, `ROOTCA`, `more` within 90s"
        );
        assert_eq!(began.elapsed(), Duration::from_secs(90));
    }

    #[tokio::test]
    async fn where_there_is_nobody_the_system_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let address = WorkloadAddress::Unix(folder.path().join("agent.sock"));
        let mut made = Assembly::new(asked(address));
        let ended = call(&mut made, |event| panic!("{event:?}")).await;
        assert!(ended.to_string().contains("No such file"), "{ended}");
    }

    /// B8: whoever said which of two holds would decide whom we trust.
    #[test]
    fn two_secrets_with_one_trust_domain_are_not_merged() {
        let asked = asked(WorkloadAddress::Unix("/a".into()));
        let mut made = Assembly::new(asked);
        let pem = anchor("west.example");
        let of = |domain: &str| Secret::Trust {
            bundles: vec![TrustBundle {
                domain: Some(domain.to_owned()),
                anchors: pem.clone().into_bytes(),
            }],
            crls: Vec::new(),
        };
        assert_eq!(made.take("ROOTCA", of("west.example")), Ok(()));
        let said = made.take("more", of("west.example")).unwrap_err();
        assert_eq!(said, "there is a second bundle of west.example");
        // The one before it stays.
        assert_eq!(made.trusts.len(), 1);
        let said = made.take("more", of("north.example")).unwrap_err();
        assert_eq!(said, "no secret has the anchors of east.example");
    }

    /// What broke: it was never tried again, for a service says nothing twice.
    #[test]
    fn a_secret_that_did_not_fit_to_another_is_taken_once_it_does() {
        let mut made = Assembly::new(AskedSecrets {
            own: TrustDomain::parse("west.example").unwrap(),
            ..asked(WorkloadAddress::Unix("/a".into()))
        });
        let anchors = anchor("west.example").into_bytes();
        let of = |domains: &[&str]| Secret::Trust {
            bundles: (domains.iter())
                .map(|domain| TrustBundle {
                    domain: Some((*domain).to_owned()),
                    anchors: anchors.clone(),
                })
                .collect(),
            crls: Vec::new(),
        };
        let domains = |made: &Assembly, name: &str| -> Vec<String> {
            let bundles = made.trusts[name].bundles.keys();
            bundles.map(ToString::to_string).collect()
        };
        let give = |made: &mut Assembly, name: &str, domains: &[&str]| {
            made.hear(Heard::Given(name, of(domains)), &mut |_| ())
        };
        let (first, second) = (["west.example"], ["north.example"]);
        assert_eq!(
            give(&mut made, "ROOTCA", &["west.example", "north.example"]),
            Ok(())
        );
        give(&mut made, "more", &second).unwrap_err();
        assert_eq!(give(&mut made, "ROOTCA", &first), Ok(()));
        assert_eq!(domains(&made, "more"), second);
        assert_eq!(made.refused, BTreeMap::new());
        // They change places: neither fits before both have.
        give(&mut made, "ROOTCA", &second).unwrap_err();
        assert_eq!(domains(&made, "ROOTCA"), first);
        assert_eq!(give(&mut made, "more", &first), Ok(()));
        assert_eq!(domains(&made, "ROOTCA"), second);
        assert_eq!(domains(&made, "more"), first);
        assert_eq!(made.refused, BTreeMap::new());
        // One that is replaced meanwhile is not.
        give(&mut made, "ROOTCA", &first).unwrap_err();
        assert!(give(&mut made, "ROOTCA", &[]).is_ok());
        assert_eq!(domains(&made, "ROOTCA"), Vec::<String>::new());
    }

    /// A self-signed one that may sign, PEM.
    fn anchor(domain: &str) -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![
            rcgen::KeyUsagePurpose::KeyCertSign,
            rcgen::KeyUsagePurpose::CrlSign,
        ];
        let uri = format!("spiffe://{domain}").try_into().unwrap();
        params.subject_alt_names = vec![rcgen::SanType::URI(uri)];
        params.self_signed(&key).unwrap().pem()
    }

    /// What is said of a secret is logged, and sent to its service.
    #[test]
    fn nothing_of_a_private_key_is_told_where_it_is_no_pem() {
        let own = TrustDomain::parse("east.example").unwrap();
        let pem = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let body: Vec<&str> = pem
            .lines()
            .filter(|line| !line.starts_with("---"))
            .collect();
        let body = body.concat();
        let chain = b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
        for (bad, words) in [
            (pem.replace('\n', ""), "line breaks"),
            (pem.replace('\n', " "), "line breaks"),
            (pem.replace('\n', "\\n"), "line breaks"),
            (
                format!("-----BEGIN PRIVATE KEY {body}-----\n"),
                "no line that ends it",
            ),
            (pem.replace("M", "*"), "not base64"),
        ] {
            // The key is where a certificate belongs, too.
            let (key, certificate) = (
                svid(chain, bad.as_bytes(), &own),
                svid(bad.as_bytes(), pem.as_bytes(), &own),
            );
            for said in [key, certificate] {
                let said = said.err().unwrap();
                assert!(said.contains(words), "{said}");
                // As text, and as a list of its bytes.
                let bytes = format!("{:?}", &body.as_bytes()[..8]);
                let bytes = bytes.trim_matches(['[', ']']);
                assert!(!said.contains(&body[..8]), "{said}");
                assert!(!said.contains(bytes), "{said}");
            }
        }
    }

    #[test]
    fn there_is_at_most_so_much_of_everything() {
        let own = TrustDomain::parse("east.example").unwrap();
        let one = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
        let chain = one.repeat(CHAIN_CERTIFICATES_MAX + 1);
        let said = svid(chain.as_bytes(), b"", &own).err().unwrap();
        assert_eq!(
            said,
            format!("there are over {CHAIN_CERTIFICATES_MAX} certificates")
        );
        let bytes_max = usize::try_from(SVID_BYTES_MAX).unwrap();
        let said = svid(b"", &vec![b'x'; bytes_max + 1], &own).err().unwrap();
        assert_eq!(said, format!("there are over {bytes_max} bytes of the key"));
        let bundle = |anchors: String| {
            vec![TrustBundle {
                domain: Some("west.example".to_owned()),
                anchors: anchors.into_bytes(),
            }]
        };
        let said = trust(bundle(one.repeat(ANCHORS_MAX + 1)), b"", &own);
        let said = said.err().unwrap();
        assert!(
            said.ends_with(&format!("over {ANCHORS_MAX} certificates")),
            "{said}"
        );
        let list = "-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n";
        let crls = list.repeat(CRLS_MAX + 1);
        let said = trust(bundle(one.to_owned()), crls.as_bytes(), &own);
        assert_eq!(
            said.err().unwrap(),
            format!("there are over {CRLS_MAX} CRLs")
        );
        let said = trust(bundle(one.to_owned()), b"nothing", &own);
        assert_eq!(said.err().unwrap(), "`crl` has no CRL in PEM");
        let asked = asked(WorkloadAddress::Unix("/a".into()));
        let mut made = Assembly::new(asked);
        let many = (0..=BUNDLES_MAX).map(|nth| TrustBundle {
            domain: Some(format!("d{nth}.example")),
            anchors: one.as_bytes().to_vec(),
        });
        let crls = Vec::new();
        let bundles = many.collect();
        let said = made.take("ROOTCA", Secret::Trust { bundles, crls });
        assert_eq!(
            said.unwrap_err(),
            format!("there are over {BUNDLES_MAX} trust domains")
        );
    }
}
