//! Which of a route's rules a request is for, and which part of the rule's split it goes to.
//!
//! The words are Gateway API's, and so is the order of precedence: an exact path, the longest
//! prefix by path element, a method, the most headers, the most query parameters, and then the
//! order in which rules and their matches are written. Everything is literal.
//!
//! Paths are read as [`authorize::path`](crate::authorize::path) reads them for authorization. Where
//! a path has two readings that different rules match, or none that is certain, no rule is its: a
//! path that a server takes for another one's gets around no rule.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use crate::authorize::path::{RequestPath, undone};
use crate::balance::fraction;
use crate::engine::Request;
use crate::shares::Shares;
use crate::snapshot::{ClusterIx, Failure, Position, Retries, Role, ServiceIx, Timeouts};

/// How a service's requests are told apart, and what is done with them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rules {
    /// What each rule wants, in the order of precedence: the first that matches decides.
    pub matches: Vec<Match>,
    /// The rules, in the order written.
    pub list: Vec<HttpRule>,
}

/// What a request must have: all that is written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Match {
    /// The rule it is of, in [`Rules::list`].
    pub rule: usize,
    /// The path.
    pub path: PathMatch,
    /// The method.
    pub method: Option<Arc<str>>,
    /// Headers, each there once and with this value.
    pub headers: Vec<Field>,
    /// Query parameters, the first of each name with this value.
    pub query: Vec<Field>,
}

/// What the path of a request must be. Texts are [canonical](crate::authorize::path::canonical).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum PathMatch {
    /// Anything.
    #[default]
    Any,
    /// This path alone.
    Exact(Arc<str>),
    /// This path, which does not end with `/`, or one below it: `/v1` is `/v1` and `/v1/x`, and not
    /// `/v1x`.
    Prefix(Arc<str>),
    /// Any path that begins with this text, wherever in an element it ends: `/v1` is `/v1x` too.
    Begins(Arc<str>),
}

/// A header, its name in lower case, or a query parameter.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Field {
    /// The name.
    pub name: Arc<str>,
    /// The value.
    pub value: Arc<str>,
}

/// What is done with the requests that a rule matches.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpRule {
    /// What it is called in logs and metrics: its name, or its place from 0.
    pub label: Arc<str>,
    /// Where they go; `None`: where the route's traffic goes. Nothing of it may exist here.
    pub split: Option<Vec<Part>>,
    /// Deadlines.
    pub timeouts: RuleTimeouts,
    /// Extra tries.
    pub retries: RuleRetries,
    /// What becomes of their headers.
    pub request: HeaderChanges,
    /// What becomes of the headers of their answers.
    pub response: HeaderChanges,
    /// Where it was written.
    pub position: Option<Position>,
}

/// A part of a split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its backends, or `namespace/name` of its route.
    pub label: Arc<str>,
    /// Its share, as the others' weights have it.
    pub weight: u32,
    /// Where workloads' requests go.
    pub outbound: ClusterIx,
    /// Where other clusters' requests go; `None`: it has no backend of this cluster.
    pub own: Option<ClusterIx>,
    /// Of another route: its host, which a peer's gateway knows it by.
    pub host: Option<Arc<str>>,
    /// Of another route: its service, whose `deny` and `export` hold for what is led to it too.
    pub service: Option<ServiceIx>,
}

/// The deadlines that a rule has of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RuleTimeouts {
    /// As [`Timeouts::response_headers`].
    pub response_headers: Option<Duration>,
    /// As [`Timeouts::per_try`].
    pub per_try: Option<Option<Duration>>,
}

/// What a rule says of extra tries.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RuleRetries {
    /// As [`Retries::attempts`].
    pub attempts: Option<u32>,
    /// As [`Retries::on`].
    pub on: Option<Vec<Failure>>,
    /// As [`Retries::any_method`].
    pub any_method: Option<bool>,
}

/// What becomes of headers. No name is in two of the lists.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeaderChanges {
    /// Take the place of what is there.
    pub set: Vec<Field>,
    /// Come beside what is there.
    pub add: Vec<Field>,
    /// Are taken out; names in lower case.
    pub remove: Vec<Arc<str>>,
}

/// The parts of a split that a request has been to, or may not go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tried(u16);

impl Tried {
    /// The same, and this part.
    #[must_use]
    pub const fn and(self, part: usize) -> Self {
        Self(self.0 | Self::bit(part))
    }

    /// Whether this part is one of them.
    #[must_use]
    pub const fn has(self, part: usize) -> bool {
        self.0 & Self::bit(part) != 0
    }

    const fn bit(part: usize) -> u16 {
        1 << (part % PARTS_MAX)
    }
}

/// The most parts of a split.
pub const PARTS_MAX: usize = 16;

impl Rules {
    /// The rule of a request; `None` if it is none's.
    #[must_use]
    pub fn find(&self, request: &Request<'_>) -> Option<usize> {
        let (path, query) = request.path.split_once('?').unwrap_or((request.path, ""));
        let looks_at_paths = (self.matches.iter()).any(|one| one.path != PathMatch::Any);
        if !looks_at_paths {
            return self.first(path, query, request);
        }
        let RequestPath::Clear { sent, folded } = RequestPath::new(path) else {
            return None;
        };
        let found = self.first(&sent, query, request);
        if sent != folded && self.first_folded(&folded, query, request) != found {
            return None;
        }
        found
    }

    fn first(&self, path: &str, query: &str, request: &Request<'_>) -> Option<usize> {
        let found =
            (self.matches.iter()).find(|one| one.path.is(path) && one.is_met(query, request));
        found.map(|one| one.rule)
    }

    /// As [`first`](Self::first), of a path of which more escapes are undone.
    fn first_folded(&self, path: &str, query: &str, request: &Request<'_>) -> Option<usize> {
        let found = (self.matches.iter())
            .find(|one| one.path.is_folded(path) && one.is_met(query, request));
        found.map(|one| one.rule)
    }
}

impl Match {
    /// By what matches are ordered, the greatest first; what is equal keeps the order written.
    #[must_use]
    pub fn precedence(&self) -> (bool, usize, bool, usize, usize) {
        let (is_exact, length) = match &self.path {
            PathMatch::Any => (false, 0),
            PathMatch::Exact(path) => (true, path.len()),
            PathMatch::Prefix(text) | PathMatch::Begins(text) => (false, text.len()),
        };
        let counts = (self.headers.len(), self.query.len());
        (is_exact, length, self.method.is_some(), counts.0, counts.1)
    }

    /// Whether all but its path is met.
    fn is_met(&self, query: &str, request: &Request<'_>) -> bool {
        let has = |field: &Field| request.headers.has(&field.name, &field.value);
        // RFC 9110 §9.1: the method is case-sensitive.
        self.method
            .as_deref()
            .is_none_or(|method| method == request.method)
            && self.headers.iter().all(has)
            && self.query.iter().all(|field| asks(query, field))
    }
}

impl PathMatch {
    fn is(&self, path: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => path == &**exact,
            Self::Prefix(prefix) => is_below(path, prefix),
            Self::Begins(text) => path.starts_with(&**text),
        }
    }

    fn is_folded(&self, path: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => path == undone(exact),
            Self::Prefix(prefix) => is_below(path, &undone(prefix)),
            Self::Begins(text) => path.starts_with(&*undone(text)),
        }
    }
}

fn is_below(path: &str, prefix: &str) -> bool {
    (path.strip_prefix(prefix)).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether the first parameter of this name in a query has this value.
fn asks(query: &str, field: &Field) -> bool {
    let mut pairs = query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let named = pairs.find(|(name, _)| is_unescaped(name, &field.name));
    named.is_some_and(|(_, value)| is_unescaped(value, &field.value))
}

/// Whether a text is `plain` once its escapes are undone (RFC 3986 §2.1). A `+` is itself: that it
/// stands for a space is a matter of forms, and not of URIs.
fn is_unescaped(escaped: &str, plain: &str) -> bool {
    let mut rest = escaped.as_bytes();
    let mut plain = plain.bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        let mut byte = *first;
        if byte == b'%'
            && let Some((digits, after)) = rest.split_first_chunk::<2>()
            && let [Some(high), Some(low)] = digits.map(|digit| char::from(digit).to_digit(16))
            && let Ok(hidden) = u8::try_from(high << 4 | low)
        {
            byte = hidden;
            rest = after;
        }
        if plain.next() != Some(byte) {
            return false;
        }
    }
    plain.next().is_none()
}

impl HttpRule {
    /// The deadlines of its requests, at a cluster that has these.
    #[must_use]
    pub fn timeouts(&self, of_cluster: &Timeouts) -> (Duration, Option<Duration>) {
        let RuleTimeouts {
            response_headers,
            per_try,
        } = self.timeouts;
        (
            response_headers.unwrap_or(of_cluster.response_headers),
            per_try.unwrap_or(of_cluster.per_try),
        )
    }

    /// The extra tries of its requests, at a cluster that has these.
    #[must_use]
    pub fn retries<'r>(&self, of_cluster: &'r Retries) -> Cow<'r, Retries> {
        let RuleRetries {
            attempts,
            on,
            any_method,
        } = &self.retries;
        if attempts.is_none() && on.is_none() && any_method.is_none() {
            return Cow::Borrowed(of_cluster);
        }
        let mut own = of_cluster.clone();
        if let Some(attempts) = attempts {
            own.attempts = *attempts;
        }
        if let Some(on) = on {
            own.on.clone_from(on);
        }
        if let Some(any_method) = any_method {
            own.any_method = *any_method;
        }
        Cow::Owned(own)
    }
}

impl HeaderChanges {
    /// Whether nothing changes.
    #[must_use]
    pub const fn is_nothing(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }

    /// Whether a header that is there goes on; its name in lower case.
    #[must_use]
    pub fn keeps(&self, name: &str) -> bool {
        !(self.remove.iter().any(|removed| **removed == *name)
            || self.set.iter().any(|set| *set.name == *name))
    }
}

impl Part {
    /// Where what arrives on a listener of this role goes.
    #[must_use]
    pub const fn cluster(&self, role: Role) -> Option<ClusterIx> {
        match role {
            Role::Workloads => Some(self.outbound),
            Role::Mesh => self.own,
        }
    }
}

/// Tells the draw of the part from those of level and endpoint.
const SPLIT_PART: u64 = 0x7370_6c69;

/// The part of a split that a request goes to: drawn by weight among those that it has not been to
/// and where something is healthy; if nothing is healthy anywhere, among those that use what is not.
#[must_use]
pub fn choose(
    split: &[Part],
    role: Role,
    shares: &Shares,
    draw: u64,
    tried: Tried,
) -> Option<usize> {
    [Health::Good, Health::TooFew]
        .into_iter()
        .find_map(|health| {
            let weights = split.iter().enumerate().filter_map(|(nth, part)| {
                let of = shares.clusters.get(part.cluster(role)?.0)?;
                let now = match (of.refuses(), of.too_few) {
                    (true, _) => return None,
                    (false, true) => Health::TooFew,
                    (false, false) => Health::Good,
                };
                let is_one = now == health && part.weight > 0 && !tried.has(nth);
                is_one.then(|| (nth, f64::from(part.weight)))
            });
            let total: f64 = weights.clone().map(|(_, weight)| weight).sum();
            let mut point = fraction(draw, SPLIT_PART.wrapping_add(tried.0.into())) * total;
            let mut last = None;
            for (nth, weight) in weights {
                last = Some(nth);
                if point < weight {
                    break;
                }
                point -= weight;
            }
            // Rounding may leave the point just behind the last.
            last
        })
}

/// What a cluster has to offer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Health {
    Good,
    TooFew,
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
