//! Which streams there are, and how far each is.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tonic::Status;
use zeugma_core::time::Time;

use super::{Caller, Shared, Visitor, lock};
use crate::catalog::Version;
use crate::plane::View;
use crate::session::Kind;
use crate::session::server::{Protocol, Response, Standing};

/// What is kept of why a client refused something.
pub(super) const DETAIL_CHARS_MAX: usize = 1000;
/// Streams that are looked at while no other may come or go.
const PAGE: usize = 256;

/// Every stream, and what all of them did.
#[derive(Debug, Default)]
pub(super) struct Standings {
    streams: Mutex<Streams>,
    responses: [AtomicU64; 4],
    accepted: AtomicU64,
    rejected: AtomicU64,
    resources: AtomicU64,
    refused: AtomicU64,
}

#[derive(Debug, Default)]
struct Streams {
    next: u64,
    all: BTreeMap<u64, One>,
    by_caller: BTreeMap<String, OfCaller>,
}

/// What one caller takes.
#[derive(Debug)]
struct OfCaller {
    streams: usize,
    /// Its views, and how many streams are of each.
    views: BTreeMap<View, usize>,
    /// See [`ServerLimits`](super::ServerLimits::requests_bytes).
    memory: Arc<Semaphore>,
    /// See [`Place::answers`].
    answers: Arc<Semaphore>,
}

#[derive(Debug)]
struct One {
    /// Unknown until the first request is read.
    node: Option<String>,
    view: Option<View>,
    caller: Caller,
    source: SocketAddr,
    protocol: Protocol,
    since: Time,
    types: Vec<Standing>,
}

/// A node that has said who it is and was let in.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) node: String,
    pub(super) view: View,
    pub(super) types: Vec<Standing>,
}

/// A stream among all others, until dropped.
#[derive(Debug)]
pub(super) struct Place {
    shared: Arc<Shared>,
    nth: u64,
    node: String,
    caller: Caller,
    charged: String,
    memory: Arc<Semaphore>,
    answers: Arc<Semaphore>,
}

impl Place {
    /// Before anything of it is read.
    ///
    /// # Errors
    /// Where there are as many as there may be, of one caller or at all.
    pub(super) fn take(
        shared: &Arc<Shared>,
        visitor: &Visitor,
        protocol: Protocol,
    ) -> Result<Self, Status> {
        let limits = &shared.limits;
        let charged = match &visitor.caller {
            Caller::Verified(id) => id.to_string(),
            Caller::Local => visitor.source.ip().to_string(),
        };
        let mut streams = lock(&shared.standings.streams);
        let of_caller = streams.by_caller.get(&charged).map_or(0, |of| of.streams);
        let full = if streams.all.len() >= limits.streams {
            Some(format!("over {} streams", limits.streams))
        } else if of_caller >= limits.caller_streams {
            Some(format!(
                "over {} streams of {charged}",
                limits.caller_streams
            ))
        } else {
            None
        };
        if let Some(full) = full {
            drop(streams);
            return Err(refused(shared, &visitor.caller, "", full));
        }
        let nth = streams.next;
        streams.next += 1;
        let of = streams.by_caller.entry(charged.clone());
        let of = of.or_insert_with(|| OfCaller {
            streams: 0,
            views: BTreeMap::new(),
            memory: Arc::new(Semaphore::new(limits.caller_requests_kib())),
            answers: Arc::new(Semaphore::new(1)),
        });
        of.streams += 1;
        let (memory, answers) = (Arc::clone(&of.memory), Arc::clone(&of.answers));
        let one = One {
            node: None,
            view: None,
            caller: visitor.caller.clone(),
            source: visitor.source,
            protocol,
            since: shared.now(),
            types: Vec::new(),
        };
        streams.all.insert(nth, one);
        drop(streams);
        Ok(Self {
            shared: Arc::clone(shared),
            nth,
            node: String::new(),
            caller: visitor.caller.clone(),
            charged,
            memory,
            answers,
        })
    }

    /// It said who it is.
    pub(super) fn is_node(&mut self, id: &str) {
        id.clone_into(&mut self.node);
        self.change(|one| one.node = Some(id.to_owned()));
    }

    /// What its caller's long requests may take.
    pub(super) const fn memory(&self) -> &Arc<Semaphore> {
        &self.memory
    }

    /// Of answers about all nodes, its caller has one at once.
    pub(super) const fn answers(&self) -> &Arc<Semaphore> {
        &self.answers
    }

    pub(super) fn node(&self) -> &str {
        &self.node
    }

    /// Whom it counts to.
    pub(super) fn charged(&self) -> &str {
        &self.charged
    }

    pub(super) const fn caller(&self) -> &Caller {
        &self.caller
    }

    fn change(&self, change: impl FnOnce(&mut One)) {
        let mut streams = lock(&self.shared.standings.streams);
        if let Some(one) = streams.all.get_mut(&self.nth) {
            change(one);
        }
    }

    /// It is of this view from now on.
    ///
    /// # Errors
    /// Where its caller has as many others as it may have.
    pub(super) fn looks_at(&self, view: &View) -> Result<(), Status> {
        let max = self.shared.limits.caller_views;
        let mut streams = lock(&self.shared.standings.streams);
        let Streams { all, by_caller, .. } = &mut *streams;
        let (Some(one), Some(of)) = (all.get_mut(&self.nth), by_caller.get_mut(&self.charged))
        else {
            return Ok(());
        };
        if one.view.as_ref() == Some(view) {
            return Ok(());
        }
        of.leave(one.view.take());
        if of.views.len() >= max && !of.views.contains_key(view) {
            drop(streams);
            let full = format!("over {max} gateways and places of {}", self.charged);
            return Err(refused(&self.shared, &self.caller, &self.node, full));
        }
        *of.views.entry(view.clone()).or_default() += 1;
        one.view = Some(view.clone());
        Ok(())
    }

    pub(super) fn stands(&self, types: Vec<Standing>) {
        self.change(|one| one.types = types);
    }

    pub(super) fn sent(&self, response: &Response) {
        let standings = &self.shared.standings;
        let kind = Kind::of_url(&response.type_url);
        if let Some(count) = kind.and_then(|kind| standings.responses.get(kind as usize)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let resources = response.resources.len() as u64;
        standings.resources.fetch_add(resources, Ordering::Relaxed);
    }

    pub(super) fn accepted(&self, type_url: &str, version: Version) {
        self.shared
            .standings
            .accepted
            .fetch_add(1, Ordering::Relaxed);
        tracing::debug!(node = %self.node, r#type = short(type_url), %version, "taken");
    }

    pub(super) fn rejected(&self, type_url: &str, version: Version, detail: &str) {
        self.shared
            .standings
            .rejected
            .fetch_add(1, Ordering::Relaxed);
        let detail: String = detail.chars().take(DETAIL_CHARS_MAX).collect();
        tracing::warn!(
            code = "ZG0503",
            node = %self.node, caller = %self.caller, r#type = short(type_url), %version,
            "a node did not take what it was told: {detail}"
        );
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut streams = lock(&self.shared.standings.streams);
        let view = streams.all.remove(&self.nth).and_then(|one| one.view);
        if let Some(of) = streams.by_caller.get_mut(&self.charged) {
            of.leave(view);
            of.streams -= 1;
            if of.streams == 0 {
                streams.by_caller.remove(&self.charged);
            }
        }
    }
}

impl OfCaller {
    /// One stream less is of this view.
    fn leave(&mut self, view: Option<View>) {
        let Some(view) = view else {
            return;
        };
        if let Some(count) = self.views.get_mut(&view) {
            *count -= 1;
            if *count == 0 {
                self.views.remove(&view);
            }
        }
    }
}

/// Why a stream is ended that is over a limit.
pub(super) fn refused(shared: &Shared, caller: &Caller, node: &str, why: String) -> Status {
    shared.standings.refused.fetch_add(1, Ordering::Relaxed);
    shared.ends(&why, node, caller);
    Status::resource_exhausted(why)
}

impl Shared {
    /// Tells that a stream is ended, and why.
    pub(super) fn ends(&self, why: &dyn std::fmt::Display, node: &str, caller: &Caller) {
        if let Some(left_out) = self.lines.ended.may_say() {
            tracing::warn!(code = "ZG0504", node, %caller, left_out, "a stream of xDS is ended: {why}");
        }
    }
}

/// Whether anything of this type is served: a client that asks for another is told nothing that it could
/// take or be late with.
pub(super) fn is_served(of: &Standing) -> bool {
    Kind::of_url(&of.type_url).is_some()
}

/// The last word of a type URL.
fn short(type_url: &str) -> &str {
    type_url.rsplit('.').next().unwrap_or(type_url)
}

impl Standings {
    pub(super) fn len(&self) -> usize {
        lock(&self.streams).all.len()
    }

    /// Of the streams from this one on, the nodes of the first few, and from which to go on.
    pub(super) fn page(&self, from: u64) -> Option<(Vec<Known>, u64)> {
        let streams = lock(&self.streams);
        let mut known = Vec::new();
        let mut next = None;
        for (nth, one) in streams.all.range(from..).take(PAGE) {
            next = Some(nth + 1);
            if let Some((node, view)) = one.node.as_ref().zip(one.view.as_ref()) {
                known.push(Known {
                    node: node.clone(),
                    view: view.clone(),
                    types: one.types.clone(),
                });
            }
        }
        drop(streams);
        next.map(|next| (known, next))
    }

    pub(super) fn to_json(&self, now: Time, load: Value) -> Value {
        let streams = lock(&self.streams);
        let known = streams.all.values().filter(|one| one.node.is_some());
        let nodes: Vec<Value> = known.map(|one| one.to_json(now)).collect();
        json!({ "nodes": nodes, "load": load })
    }

    /// Classic text: no prometheus type leaves the gateway's metrics.
    pub(super) fn to_metrics(
        &self,
        now: Time,
        (known, encoded, views): (usize, u64, usize),
        loads: [u64; 6],
    ) -> String {
        let (mut behind, mut waiting, mut rejecting, mut lag) = (0_u64, 0_u64, 0_u64, 0.0_f64);
        let all = {
            let streams = lock(&self.streams);
            let types = streams.all.values().flat_map(|one| &one.types);
            for of in types.filter(|of| is_served(of)) {
                behind += u64::from(of.is_behind);
                waiting += u64::from(of.unacknowledged.is_some());
                rejecting += u64::from(of.rejected.is_some());
                let since = of
                    .unacknowledged
                    .map_or(0.0, |at| now.since(at).as_secs_f64());
                lag = lag.max(since);
            }
            streams.all.len()
        };
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed).to_string();
        let values = [
            all.to_string(),
            views.to_string(),
            behind.to_string(),
            waiting.to_string(),
            lag.to_string(),
            rejecting.to_string(),
            known.to_string(),
            encoded.to_string(),
            count(&self.resources),
            count(&self.accepted),
            count(&self.rejected),
            count(&self.refused),
        ];
        let values = values.into_iter().chain(loads.map(|load| load.to_string()));
        let mut text = String::new();
        // Writing into a String does not fail.
        for ((name, kind, help), value) in METRICS.iter().zip(values) {
            writeln!(
                text,
                "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}"
            )
            .ok();
        }
        let name = "zeugma_xds_responses_total";
        writeln!(text, "# HELP {name} Responses.\n# TYPE {name} counter").ok();
        for (kind, of) in Kind::ALL.iter().zip(&self.responses) {
            let url = kind.type_url();
            writeln!(text, "{name}{{type=\"{}\"}} {}", short(&url), count(of)).ok();
        }
        text
    }
}

/// Those without labels, in the order of their values.
const METRICS: [(&str, &str, &str); 18] = [
    ("zeugma_xds_streams", "gauge", "Open streams."),
    (
        "zeugma_xds_views",
        "gauge",
        "Gateways and places that something is made for.",
    ),
    (
        "zeugma_xds_behind",
        "gauge",
        "Types of streams that were not told the newest yet.",
    ),
    (
        "zeugma_xds_unacknowledged",
        "gauge",
        "Types of streams that have not acknowledged what they were told.",
    ),
    (
        "zeugma_xds_unacknowledged_seconds_max",
        "gauge",
        "How long the slowest has not.",
    ),
    (
        "zeugma_xds_rejecting",
        "gauge",
        "Types of streams that refused what they were told last.",
    ),
    (
        "zeugma_xds_resources",
        "gauge",
        "Resources in memory, each of them once.",
    ),
    (
        "zeugma_xds_resources_encoded_total",
        "counter",
        "Resources that were new when they were made.",
    ),
    (
        "zeugma_xds_resources_sent_total",
        "counter",
        "Resources in responses.",
    ),
    (
        "zeugma_xds_accepted_total",
        "counter",
        "Responses that were acknowledged.",
    ),
    (
        "zeugma_xds_rejected_total",
        "counter",
        "Responses that were refused.",
    ),
    (
        "zeugma_xds_streams_refused_total",
        "counter",
        "Streams over a limit.",
    ),
    (
        "zeugma_xds_load_reports_total",
        "counter",
        "Load reports of clients.",
    ),
    (
        "zeugma_xds_load_issued_total",
        "counter",
        "Requests that clients reported to have sent.",
    ),
    (
        "zeugma_xds_load_succeeded_total",
        "counter",
        "Of them those that succeeded.",
    ),
    (
        "zeugma_xds_load_failed_total",
        "counter",
        "Of them those that failed.",
    ),
    (
        "zeugma_xds_load_dropped_total",
        "counter",
        "Requests that clients reported to have dropped.",
    ),
    (
        "zeugma_xds_load_left_out_total",
        "counter",
        "Reported sums that there was no room for.",
    ),
];

impl One {
    fn to_json(&self, now: Time) -> Value {
        let seconds = |at: Time| now.since(at).as_secs_f64();
        let types: Vec<Value> = (self.types.iter())
            .map(|of| {
                let rejected = of.rejected.as_ref().map(|(version, detail)| {
                    let detail: String = detail.chars().take(DETAIL_CHARS_MAX).collect();
                    json!({ "version": version.to_string(), "detail": detail })
                });
                json!({
                    "type": short(&of.type_url),
                    "served": is_served(of),
                    "subscribed": if of.is_wildcard { json!("*") } else { json!(of.names) },
                    "sent": of.sent.map(|version| version.to_string()),
                    "accepted": of.accepted.map(|version| version.to_string()),
                    "rejected": rejected,
                    "behind": of.is_behind,
                    "unacknowledgedSeconds": of.unacknowledged.map(seconds),
                })
            })
            .collect();
        json!({
            "node": self.node,
            "gateway": self.view.as_ref().map(|view| &view.gateway),
            "locality": self.view.as_ref().map(|view| &view.locality),
            "caller": self.caller.to_string(),
            "source": self.source.to_string(),
            "protocol": match self.protocol {
                Protocol::Sotw => "sotw",
                Protocol::Delta => "delta",
            },
            "seconds": seconds(self.since),
            "types": types,
        })
    }
}
