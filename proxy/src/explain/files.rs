//! What the files of a gateway say of whom it trusts, for explanations without it.

use serde_json::{Value, json};
use zeugma_core::explain::Vouched;
use zeugma_core::identity::{SpiffeId, TrustDomain};
use zeugma_core::line::with_causes;
use zeugma_core::verdict::Reason;
use zeugma_xds::GatewaySettings;

use super::refuses;
use crate::control::svid_source;
use crate::federation::Federation;
use crate::tls::{Credentials, CrlNumbers, SvidSource};

/// The deny list, bundles and CRLs of files; the gateway's own key is not read.
pub(super) struct Trust {
    /// `None` where they cannot be used.
    credentials: Option<Credentials>,
    /// Trust domains whose bundle is not on disk, or not to be read from there.
    elsewhere: Vec<TrustDomain>,
    /// What is not applied, for people.
    left_out: Vec<String>,
}

impl Trust {
    pub(super) fn read(settings: &GatewaySettings) -> Self {
        let source = Federation::kept(settings).beside(svid_source(settings));
        let mut left_out = Vec::new();
        let credentials = Credentials::trusting(&source, &CrlNumbers::default());
        let credentials = credentials
            .map_err(|error| left_out.push(with_causes(&error)))
            .ok();
        let wrong = credentials.iter().flat_map(Credentials::wrong);
        left_out.extend(wrong.map(|error| with_causes(error)));
        let has = |domain: &TrustDomain| {
            let bundles = credentials.as_ref().map(Credentials::bundles);
            bundles.is_some_and(|bundles| bundles.get(domain).is_some())
        };
        let mut elsewhere: Vec<TrustDomain> = (source.domains().iter())
            .filter(|one| !has(&one.domain))
            .map(|one| one.domain.clone())
            .collect();
        let own = &settings.trust_domain;
        if matches!(source, SvidSource::Given(_)) && !has(own) {
            elsewhere.push(own.clone());
        }
        if credentials.is_some() {
            let missing = elsewhere.iter();
            left_out.extend(missing.map(|domain| format!("the bundle of {domain} is not on disk")));
        }
        Self {
            credentials,
            elsewhere,
            left_out,
        }
    }

    /// Why an identity is refused whatever the policy says, as far as files say it.
    pub(super) fn refuses(&self, id: &SpiffeId, vouched: Vouched) -> Option<Reason> {
        let credentials = self.credentials.as_ref()?;
        let reason = refuses(credentials, id, vouched)?;
        let is_unknown = reason == Reason::CertificateRefused
            && self.elsewhere.iter().any(|domain| id.is_of(domain));
        (!is_unknown).then_some(reason)
    }

    /// Where the deny list names an identity.
    pub(super) fn denied(&self, id: &SpiffeId) -> Option<String> {
        self.credentials.as_ref()?.denied().position(id)
    }

    pub(super) fn to_json(&self) -> Value {
        json!({ "applied": self.credentials.is_some(), "left_out": self.left_out })
    }
}
