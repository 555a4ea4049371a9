//! What is noted of a request for its log line, and for rechecks.

use std::rc::Rc;
use std::sync::Arc;

use zeugma_core::plan::Attempt;
use zeugma_core::verdict::Reason;

use super::Exchange;
use crate::account::{Closed, Destination, RequestFacts};
use crate::connection::describe;
use crate::http::pool::Lease;
use crate::tls::TlsPeer;
use crate::upstream::Pinned;

impl Exchange {
    /// Notes which endpoint is tried.
    pub(super) fn arrive(&mut self, to: &Pinned, attempt: &Attempt, nth: u32, at: Option<&Lease>) {
        let peer = at.and_then(|lease| lease.facts.peer.as_ref());
        self.goes_to(to, attempt, peer, at.map(Lease::credentials));
        let destination = if let Some(lease) = at {
            lease.facts.destination(to, attempt, nth)
        } else {
            let endpoint = to.cluster().endpoint(attempt.endpoint);
            let address = endpoint.address.to_string().into();
            describe(&to.published, to.cluster, attempt, address, None, nth)
        };
        self.arrived(destination, nth);
    }

    /// Notes the endpoint's certificate, verified with `credentials`, for rechecks.
    pub(in crate::http) fn goes_to(
        &self,
        to: &Pinned,
        attempt: &Attempt,
        peer: Option<&Arc<TlsPeer>>,
        credentials: Option<u64>,
    ) {
        let endpoint = to.cluster().endpoint(attempt.endpoint);
        let entry = self.record.entry();
        entry.goes_to(&endpoint.backend, &endpoint.address, peer);
        if peer.is_some() {
            // It was verified some awaits ago.
            let shared = &self.context.worker.shared;
            match credentials {
                Some(_) => entry.settle(shared, to.published.generation, credentials),
                None => entry.settle_now(shared),
            }
        }
    }

    /// Notes the endpoint that was reached.
    pub(in crate::http) fn arrived(&mut self, destination: Rc<Destination>, attempts: u32) {
        self.note(|closed, request| {
            *closed.destination = Some(destination);
            request.attempts = attempts;
        });
    }

    /// Notes the rule that an endpoint's certificate breaks.
    pub(in crate::http) fn note_refused(&mut self, rule: Option<String>) {
        if rule.is_some() {
            self.note(|closed, _| *closed.rule = rule.map(Arc::from));
        }
    }

    /// Adds to what is told of this request.
    pub(in crate::http) fn note(
        &mut self,
        tell: impl FnOnce(&mut NotedClosed<'_>, &mut RequestFacts),
    ) {
        let Some(closed) = self.record.facts() else {
            return;
        };
        let Closed {
            destination,
            rule,
            detail,
            reason,
            request: Some(request),
            ..
        } = closed
        else {
            return;
        };
        tell(
            &mut NotedClosed {
                destination,
                rule,
                detail,
                reason,
            },
            request,
        );
    }
}

/// What of a record an exchange adds to.
pub(in crate::http) struct NotedClosed<'a> {
    pub(in crate::http) destination: &'a mut Option<Rc<Destination>>,
    pub(in crate::http) rule: &'a mut Option<Arc<str>>,
    pub(in crate::http) detail: &'a mut Option<String>,
    pub(in crate::http) reason: &'a mut Reason,
}
