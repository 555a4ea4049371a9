//! What the rule of a request makes of it: where it goes, how long it waits, how often it is tried,
//! and what its headers become. A request without one costs nothing of this.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue};
use zeugma_core::authorize::{Verdict, objection};
use zeugma_core::engine::{Astray, Headers, Led, Request, Target, cluster_of, target};
use zeugma_core::retry::{Tried, could_again};
use zeugma_core::rules::{self, Field, HeaderChanges, HttpRule, Part, Rules, choose};
use zeugma_core::snapshot::{
    Cluster, ClusterIx, Endpoint, Listener, Retries, Role, Rule, ServiceIx, Snapshot,
};
use zeugma_core::verdict::Reason;

use super::exchange::Exchange;
use super::headers;
use crate::admission;
use crate::policy::explain_audit;
use crate::runtime::Published;
use crate::upstream::Pinned;

/// The rule of a request.
#[derive(Debug, Clone)]
pub(crate) struct Ruled {
    rules: Arc<Rules>,
    /// Where it stands among them.
    nth: usize,
    /// The part of its split that it goes to.
    part: Option<usize>,
    tried: rules::Tried,
}

impl Ruled {
    fn rule(&self) -> Option<&HttpRule> {
        self.rules.list.get(self.nth)
    }

    fn split(&self) -> &[Part] {
        let split = self.rule().and_then(|rule| rule.split.as_deref());
        split.unwrap_or_default()
    }

    /// What it is called.
    pub(crate) fn label(&self) -> Option<&str> {
        self.rule().map(|rule| &*rule.label)
    }

    /// Takes out of a request's trailers what its rule sets or removes: some take them for headers.
    pub(crate) fn clean_request(&self, trailers: &mut HeaderMap) {
        self.rule()
            .into_iter()
            .for_each(|rule| drop_changed(&rule.request, trailers));
    }

    /// As [`clean_request`](Self::clean_request), of an interim response or the trailers of an answer.
    pub(crate) fn clean_response(&self, headers: &mut HeaderMap) {
        self.rule()
            .into_iter()
            .for_each(|rule| drop_changed(&rule.response, headers));
    }

    /// The part of its split that the request goes to.
    pub(crate) fn part(&self) -> Option<&Part> {
        self.split().get(self.part?)
    }
}

impl Exchange {
    /// Finds where a request that was let in goes.
    pub(super) fn choose(
        &mut self,
        published: &Published,
        listener: &Listener,
        service: ServiceIx,
    ) -> Result<ClusterIx, (Reason, Option<String>)> {
        let snapshot = &published.snapshot;
        let at = snapshot.service(service);
        let Some(rules) = &at.rules else {
            return cluster_of(snapshot, listener, service).map_err(|reason| (reason, None));
        };
        let path = self
            .head
            .uri
            .path_and_query()
            .map_or("/", PathAndQuery::as_str);
        let all = &self.head.headers;
        let each = |name: &str, tell: &mut dyn FnMut(&[u8])| headers::each(all, name, tell);
        let request = Request {
            authority: headers::authority(&self.head).unwrap_or_default(),
            method: self.method().as_str(),
            path,
            headers: Headers(&each),
        };
        let worker = &self.context.worker;
        let led = Led {
            request: &request,
            sender: self.sender(),
            objection: &|of| self.objection(snapshot, listener, of),
        };
        let shares = &published.shares;
        let found = target(snapshot, shares, listener, service, led, worker.draw());
        let metrics = &worker.shared.metrics;
        let Target { cluster, matched } = match found {
            Ok(target) => target,
            Err(Astray {
                reason,
                by: Some(by),
                rule,
            }) => {
                let by = snapshot.service(by);
                self.note_rule(published, rule.and_then(|nth| by.policy.deny.get(nth)));
                return Err((reason, Some(format!("the split leads to {}", by.name))));
            }
            Err(Astray {
                reason: Reason::NoRule,
                ..
            }) => {
                metrics.ruled(&at.name, None, None);
                let detail = format!("none of the {} rules of {}", rules.list.len(), at.name);
                return Err((Reason::NoRule, Some(detail)));
            }
            Err(Astray { reason, .. }) => return Err((reason, None)),
        };
        if let Some(matched) = matched {
            let ruled = Ruled {
                rules: Arc::clone(rules),
                nth: matched.rule,
                part: matched.part,
                tried: matched.closed,
            };
            let rule = ruled.rule().map(|rule| &rule.label);
            metrics.ruled(&at.name, rule, ruled.part().map(|part| &part.label));
            let audited = ruled.part().and_then(|part| part.service);
            if let Some(passing) = &self.passing {
                passing.is_led_by(ruled.clone());
            }
            self.note(|_, request| request.ruled = Some(ruled));
            self.note_led(published, audited);
            if let Some(of) = audited {
                self.audit(published, listener, of);
            }
        }
        Ok(cluster)
    }

    /// The services whose policies it is held to: the one it asks for, and those that its rule may lead it
    /// to.
    pub(super) fn held_to(&self, service: ServiceIx) -> impl Iterator<Item = ServiceIx> {
        let split = self.ruled().map(Ruled::split).unwrap_or_default();
        let parts = split.iter().filter_map(|part| part.service);
        std::iter::once(service).chain(parts)
    }

    /// What another service has against it, which the split of its rule leads to.
    fn objection(
        &self,
        snapshot: &Snapshot,
        listener: &Listener,
        of: ServiceIx,
    ) -> Option<Verdict> {
        let claim = self.claim();
        let all = &self.head.headers;
        let each = |name: &str, tell: &mut dyn FnMut(&[u8])| headers::each(all, name, tell);
        let asking = self.asking(snapshot, listener, &claim, Headers(&each));
        objection(snapshot, of, &asking)
    }

    /// Tells what a service that it was led to has against it, where that is audited only.
    fn audit(&mut self, published: &Published, listener: &Listener, of: ServiceIx) {
        let snapshot = &published.snapshot;
        let Some(Verdict::Audit { reason, rule, .. }) = self.objection(snapshot, listener, of)
        else {
            return;
        };
        let service = snapshot.service(of);
        let metrics = &self.context.worker.shared.metrics;
        metrics.audited(&service.name, reason);
        self.note_rule(published, rule.and_then(|nth| service.policy.deny.get(nth)));
        let audited = explain_audit(service, reason, None);
        let detail = format!("the split leads to {}: {audited}", service.name);
        self.note(|closed, _| *closed.detail = Some(detail));
    }

    /// Notes the other service that it is led to, for rechecks.
    fn note_led(&self, published: &Published, led: Option<ServiceIx>) {
        let led = led.map(|of| published.snapshot.service(of));
        (self.record.entry()).is_led_to(led.map(|of| (&of.name, of.port)));
        self.keep_headers(led);
    }

    fn note_rule(&mut self, published: &Published, rule: Option<&Rule>) {
        let position = rule.and_then(|rule| rule.position.as_ref());
        let position = position.map(|at| self.context.latest_rule.text(published.generation, at));
        if position.is_some() {
            self.note(|closed, _| *closed.rule = position);
        }
    }

    /// Whether the split of its rule has a part that it has not been to.
    pub(super) fn has_other_part(&self, to: &Pinned, role: Role) -> bool {
        self.other_part(to, role).is_some()
    }

    fn other_part(&self, to: &Pinned, role: Role) -> Option<usize> {
        let ruled = self.ruled()?;
        let tried = ruled.tried.and(ruled.part?);
        let draw = self.context.worker.draw();
        choose(ruled.split(), role, &to.published.shares, draw, tried)
    }

    /// Takes the request on to a part of its rule's split that it has not been to.
    pub(super) fn next_part(&mut self, to: &Pinned, role: Role) -> Option<Pinned> {
        let part = self.other_part(to, role)?;
        let mut ruled = self.ruled()?.clone();
        ruled.tried = ruled.tried.and(ruled.part?);
        ruled.part = Some(part);
        let next = Pinned {
            published: Arc::clone(&to.published),
            cluster: ruled.part()?.cluster(role)?,
        };
        // Of another route it is one of its requests, and not one of the part's before any more.
        if !admission::is_one_route(to, &next) {
            let shared = &self.context.worker.shared;
            let counted = admission::request(shared, &next).ok()?;
            // Not when it began: it may have waited for the parts before.
            next.budget().request(shared.now());
            self.holds(counted);
        }
        self.context.note_idle(next.cluster().policy.timeouts.idle);
        let audited = ruled.part().and_then(|part| part.service);
        self.note(|_, request| request.ruled = Some(ruled));
        self.note_led(&to.published, audited);
        // It may have been pinned some awaits ago.
        let shared = &self.context.worker.shared;
        (self.record.entry()).settle(shared, to.published.generation, None);
        let listener = to.published.listener(&self.context.origin.listener);
        if let Some((listener, of)) = listener.zip(audited) {
            self.audit(&to.published, listener, of);
        }
        Some(next)
    }

    fn rule(&self) -> Option<&HttpRule> {
        self.ruled().and_then(Ruled::rule)
    }

    /// How long the head of a response may take, and one try.
    pub(super) fn timeouts(&self, cluster: &Cluster) -> (Duration, Option<Duration>) {
        let timeouts = &cluster.policy.timeouts;
        match self.rule() {
            Some(rule) => rule.timeouts(timeouts),
            None => (timeouts.response_headers, timeouts.per_try),
        }
    }

    /// Its extra tries.
    pub(super) fn retries<'c>(&self, cluster: &'c Cluster) -> Cow<'c, Retries> {
        let retries = &cluster.policy.retries;
        (self.rule()).map_or(Cow::Borrowed(retries), |rule| rule.retries(retries))
    }

    /// Whether a try that failed could be followed by one in another part of its split.
    pub(super) fn would_try_again(&self, to: &Pinned, tried: &Tried<'_>) -> bool {
        let retries = self.retries(to.cluster());
        let now = self.context.worker.shared.now();
        // Who takes it from the budget is the try itself.
        could_again(&retries, to.budget(), tried, now).is_ok()
    }

    /// The host that a peer knows another route by, where the request was led to one.
    pub(super) fn other_host(&self, endpoint: &Endpoint) -> Option<&str> {
        endpoint.peer?;
        self.ruled()?.part()?.host.as_deref()
    }

    /// What becomes of the request's headers, if anything does.
    pub(super) fn request_changes(&self) -> Option<&HeaderChanges> {
        self.rule()
            .map(|rule| &rule.request)
            .filter(|changes| !changes.is_nothing())
    }

    /// Does to the headers of an answer what the rule says.
    pub(super) fn change_response(&self, headers: &mut HeaderMap) {
        let Some(changes) = self.rule().map(|rule| &rule.response) else {
            return;
        };
        for name in &changes.remove {
            headers.remove(&**name);
        }
        for field in &changes.set {
            if let Some((name, value)) = header(field) {
                headers.insert(name, value);
            }
        }
        for field in &changes.add {
            if let Some((name, value)) = header(field) {
                headers.append(name, value);
            }
        }
    }
}

fn drop_changed(changes: &HeaderChanges, from: &mut HeaderMap) {
    let set = changes.set.iter().map(|field| &field.name);
    for name in changes.remove.iter().chain(set) {
        from.remove(&**name);
    }
}

/// A header as it is sent. The configuration was held to what can be.
pub(super) fn header(field: &Field) -> Option<(HeaderName, HeaderValue)> {
    let name = HeaderName::try_from(&*field.name).ok()?;
    Some((name, HeaderValue::try_from(&*field.value).ok()?))
}
