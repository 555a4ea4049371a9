//! Who asks, by whose word, and whether it may.

use std::sync::Arc;

use zeugma_core::authorize::{Asking, Evidence, evidence, gateway_of};
use zeugma_core::engine::Headers;
use zeugma_core::identity::SpiffeId;
use zeugma_core::snapshot::{Listener, Peer, Service, ServiceIx, Snapshot};
use zeugma_core::verdict::Reason;

use super::Exchange;
use crate::http::Context;
use crate::http::headers::{self, Claim};
use crate::http::keepalive::{Pings, When};
use crate::policy;
use crate::runtime::Published;

impl Exchange {
    /// What the caller says of itself or of whom it calls for; nobody else's word counts.
    pub(in crate::http) fn claim(&self) -> Claim {
        match &self.context.identity {
            Some(_) => headers::attested(&self.head.headers),
            None => Claim::Absent,
        }
    }

    /// What policies are asked about it.
    pub(in crate::http) fn asking<'a>(
        &'a self,
        snapshot: &Snapshot,
        listener: &'a Listener,
        claim: &'a Claim,
        headers: Headers<'a>,
    ) -> Asking<'a> {
        let source = self.context.origin.source.ip();
        let evidence = match &self.context.identity {
            None => Evidence::Network,
            Some(verified) => evidence(snapshot, source, verified, claim.id()),
        };
        Asking {
            listener,
            source,
            evidence,
            sni: self.context.sni(),
            method: Some(self.method().as_str()),
            path: Some(self.head.uri.path()),
            headers: Some(headers),
        }
    }

    /// Keeps the headers for rechecks, where a rule of the service asks for some.
    pub(in crate::http) fn keep_headers(&self, of: Option<&Service>) {
        if of.is_some_and(|of| of.policy.asks_headers()) {
            self.record.entry().has_headers(&self.head.headers);
        }
    }

    pub(super) fn authorize(
        &mut self,
        published: &Published,
        service: ServiceIx,
    ) -> Result<(), Reason> {
        let snapshot = &published.snapshot;
        let listener = published
            .listener(&self.context.origin.listener)
            .ok_or(Reason::Drained)?;
        let claim = self.claim();
        let all = &self.head.headers;
        let each = |name: &str, tell: &mut dyn FnMut(&[u8])| headers::each(all, name, tell);
        let asking = self.asking(snapshot, listener, &claim, Headers(&each));
        let metrics = &self.context.worker.shared.metrics;
        let judged = policy::judge(snapshot, service, &asking, metrics);
        let handed_on = match asking.evidence {
            Evidence::Asserted { id, .. } => Some(id),
            Evidence::Verified(_) | Evidence::Network => None,
        };
        self.record.entry().is_for(handed_on);
        self.keep_headers(Some(snapshot.service(service)));
        let attested = handed_on.map(|id| id.as_str().into());
        let on_list = (self.context.identity.iter().chain(handed_on)).find_map(|id| {
            let credentials = self.context.worker.shared.credentials.load();
            credentials.denied().position(id).map(Arc::from)
        });
        let position = judged.rule.and_then(|rule| rule.position.as_ref());
        let position = position.map(|at| self.context.latest_rule.text(published.generation, at));
        let is_on_list = on_list.is_some();
        if let Some(closed) = self.record.facts() {
            closed.attested = attested;
            closed.detail = judged.detail;
            closed.rule = on_list.or(position);
        }
        if is_on_list {
            return Err(Reason::IdentityDenied);
        }
        judged.verdict
    }
}

/// Who calls, whoever hands it on, and whether a peer's gateway sent it.
pub(super) fn caller_of(
    published: &Published,
    context: &Context,
    verified: &SpiffeId,
    claim: &Claim,
) -> (Option<SpiffeId>, bool) {
    let from = context.origin.source.ip();
    match evidence(&published.snapshot, from, verified, claim.id()) {
        Evidence::Asserted { id, .. } => (Some(id.clone()), true),
        Evidence::Verified(_) | Evidence::Network => {
            let is_gateway = peer_of_gateway(published, context, verified).is_some();
            (Some(verified.clone()), is_gateway)
        }
    }
}

/// When the caller of a connection is asked whether it is there, if it is a peer's gateway.
pub(in crate::http) fn asking_peer(published: &Published, context: &Context) -> Option<Pings> {
    let peer = peer_of_gateway(published, context, context.identity.as_ref()?)?;
    Some(Pings {
        interval: peer.keepalive_ping,
        timeout: peer.keepalive_timeout,
        when: When::Always,
    })
}

/// The peer whose gateway a verified caller is.
pub(super) fn peer_of_gateway<'a>(
    published: &'a Published,
    context: &Context,
    verified: &SpiffeId,
) -> Option<&'a Peer> {
    let snapshot = &published.snapshot;
    Some(snapshot.peer(gateway_of(snapshot, context.origin.source.ip(), verified)?))
}
