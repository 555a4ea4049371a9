//! What the rule of a request makes of it: where it goes, how long it waits, how often it is tried,
//! and what its headers become. A request without one costs nothing of this.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue};
use zeugma_core::engine::{Headers, Request, Target, cluster_of, target};
use zeugma_core::retry::{Tried, again};
use zeugma_core::rules::{self, Field, HeaderChanges, HttpRule, Part, Rules, choose};
use zeugma_core::snapshot::{Cluster, ClusterIx, Endpoint, Listener, Retries, Role, ServiceIx};
use zeugma_core::verdict::Reason;

use super::exchange::Exchange;
use super::headers;
use crate::admission;
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
        let has = |name: &str, value: &str| headers::is_once(all, name, value);
        let request = Request {
            authority: headers::authority(&self.head).unwrap_or_default(),
            method: self.method().as_str(),
            path,
            headers: Headers(&has),
        };
        let worker = &self.context.worker;
        let asked = (&request, self.sender());
        let found = target(
            snapshot,
            &published.shares,
            listener,
            service,
            asked,
            worker.draw(),
        );
        let metrics = &worker.shared.metrics;
        let Target { cluster, matched } = match found {
            Ok(target) => target,
            Err(Reason::NoRule) => {
                metrics.ruled(&at.name, None, None);
                let detail = format!("none of the {} rules of {}", rules.list.len(), at.name);
                return Err((Reason::NoRule, Some(detail)));
            }
            Err(reason) => return Err((reason, None)),
        };
        if let Some(matched) = matched {
            let ruled = Ruled {
                rules: Arc::clone(rules),
                nth: matched.rule,
                part: matched.part,
                tried: rules::Tried::default(),
            };
            let rule = ruled.rule().map(|rule| &rule.label);
            metrics.ruled(&at.name, rule, ruled.part().map(|part| &part.label));
            self.note(|_, request| request.ruled = Some(ruled));
        }
        Ok(cluster)
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
        let counted = admission::request(&self.context.worker.shared, &next).ok()?;
        self.holds(counted);
        self.context.note_idle(next.cluster().policy.timeouts.idle);
        self.note(|_, request| request.ruled = Some(ruled));
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
    pub(super) fn would_try_again(&self, cluster: &Cluster, tried: &Tried<'_>) -> bool {
        let retries = self.retries(cluster);
        let worker = &self.context.worker;
        // Who takes it from the budget is the try itself.
        let again = worker.with_budget(cluster, std::time::Instant::now(), |budget, now| {
            again(&retries, &mut budget.clone(), tried, now)
        });
        again.is_ok()
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

/// A header as it is sent. The configuration was held to what can be.
pub(super) fn header(field: &Field) -> Option<(HeaderName, HeaderValue)> {
    let name = HeaderName::try_from(&*field.name).ok()?;
    Some((name, HeaderValue::try_from(&*field.value).ok()?))
}
