//! What is counted. One row here is one metric; no type of the metrics library leaves this file.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use zeugma_xds::{RefusedDocument, Serves};

use zeugma_core::snapshot::Address;
use zeugma_core::verdict::{Fault, Reason};

use crate::account::Closed;
use crate::runtime::Published;

/// The media type of [`Metrics::encode`].
pub(crate) const OPEN_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The media type of [`classic`].
pub(crate) const CLASSIC_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// OpenMetrics text as Prometheus' older text format, where a counter's family has the name of its
/// samples, and there are no units and no end mark.
pub(crate) fn classic(open: &str) -> String {
    let mut text = String::with_capacity(open.len());
    let mut held: Vec<(&str, &str)> = Vec::new();
    for line in open.lines() {
        let Some(comment) = line.strip_prefix("# ") else {
            text.push_str(line);
            text.push('\n');
            continue;
        };
        let mut words = comment.splitn(3, ' ');
        match (words.next(), words.next(), words.next()) {
            (Some("HELP"), Some(name), Some(help)) => held.push((name, help)),
            (Some("TYPE"), Some(name), Some(kind)) => {
                let (suffix, kind) = match kind {
                    "counter" => ("_total", kind),
                    "info" => ("_info", "gauge"),
                    "unknown" => ("", "untyped"),
                    _ => ("", kind),
                };
                let help = (held.pop())
                    .filter(|(of, _)| *of == name)
                    .map(|(_, help)| help);
                if let Some(help) = help {
                    // To write to a string never fails.
                    writeln!(text, "# HELP {name}{suffix} {help}").ok();
                }
                writeln!(text, "# TYPE {name}{suffix} {kind}").ok();
                held.clear();
            }
            // UNIT and EOF.
            _ => {}
        }
    }
    text
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    listener: Arc<str>,
    destination_service: Arc<str>,
    reason: &'static str,
    response_flags: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    listener: Arc<str>,
    destination_service: Arc<str>,
    response_code: u16,
    reason: &'static str,
    response_flags: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByListener {
    listener: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByWorker {
    worker: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByTrustDomain {
    trust_domain: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByGateway {
    peer: String,
    gateway: String,
}

impl ByGateway {
    fn new(peer: &str, gateway: &Address) -> Self {
        Self {
            peer: peer.to_owned(),
            gateway: gateway.to_string(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Taken {
    destination_service: Arc<str>,
    destination_backend: Arc<str>,
    level: usize,
    why: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RuledBy {
    destination_service: Arc<str>,
    rule: Arc<str>,
    part: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Retried {
    destination_service: String,
    cause: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Hedged {
    destination_service: String,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refused {
    side: String,
    rule: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Mirrored {
    destination_service: String,
    mirror: String,
    result: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByResult {
    what: String,
    result: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfDomain {
    trust_domain: String,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfResult {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByKind {
    kind: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Audited {
    destination_service: Arc<str>,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByServes {
    serves: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByCause {
    cause: &'static str,
}

/// Counts the pipes of relays.
#[derive(Debug, Clone, Default)]
pub(crate) struct PipeMeter {
    open: Gauge,
    fallbacks: Family<ByCause, Counter>,
}

impl PipeMeter {
    /// A worker that had `before` pipes has `now`.
    pub(crate) fn open(&self, before: usize, now: usize) {
        let change = |n| i64::try_from(n).unwrap_or(i64::MAX);
        self.open.inc_by(change(now) - change(before));
    }

    /// Bytes that were worth a pipe are copied instead.
    pub(crate) fn fell_back(&self, cause: &'static str) {
        self.fallbacks.get_or_create(&ByCause { cause }).inc();
    }
}

/// Every metric of a gateway.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    /// What stands for the service of a connection that named none.
    unknown: Arc<str>,
    /// What stands where there is no rule, or no split.
    nothing: Arc<str>,
    connections: Family<Ended, Counter>,
    requests: Family<Answered, Counter>,
    open: Family<ByListener, Gauge>,
    worker_open: Family<ByWorker, Gauge>,
    connections_max: Gauge,
    accept_errors: Family<ByListener, Counter>,
    memory_used: Gauge,
    memory_watermark: Gauge,
    memory_short: Gauge,
    sent: Family<ByListener, Counter>,
    received: Family<ByListener, Counter>,
    attempts: Family<Taken, Counter>,
    ruled: Family<RuledBy, Counter>,
    retries: Family<Retried, Counter>,
    hedges: Family<Hedged, Counter>,
    refused: Family<Refused, Counter>,
    audited: Family<Audited, Counter>,
    mirrored: Family<Mirrored, Counter>,
    mirror_compared: Family<Mirrored, Counter>,
    reloads: Family<ByResult, Counter>,
    stale: Family<ByKind, Gauge>,
    generation: Gauge,
    documents_refused: Family<ByServes, Gauge>,
    svid_expiry: Gauge,
    crl_due: Family<ByTrustDomain, Gauge>,
    crl_stale: Family<ByTrustDomain, Gauge>,
    pooled_ended: Family<ByReason, Counter>,
    dropped: Family<ByKind, Counter>,
    panics: Counter,
    names: Gauge,
    names_failing: Gauge,
    names_asked: Family<OfResult, Counter>,
    bundles_fetched: Family<OfDomain, Counter>,
    bundle_fetched_at: Family<ByTrustDomain, Gauge>,
    peer_reporting: Family<ByGateway, Gauge>,
    peer_reported_at: Family<ByGateway, Gauge>,
    control_plane_connected: Gauge,
    control_plane_updated_at: Gauge,
    control_plane_refused: Gauge,
    control_plane_answers: Family<OfResult, Counter>,
    workers_stalled: Gauge,
    pub(crate) pipes: PipeMeter,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut this = Self {
            registry: Registry::with_prefix("zeugma"),
            unknown: "unknown".into(),
            nothing: "".into(),
            connections: Family::default(),
            requests: Family::default(),
            open: Family::default(),
            worker_open: Family::default(),
            connections_max: Gauge::default(),
            accept_errors: Family::default(),
            memory_used: Gauge::default(),
            memory_watermark: Gauge::default(),
            memory_short: Gauge::default(),
            sent: Family::default(),
            received: Family::default(),
            attempts: Family::default(),
            ruled: Family::default(),
            retries: Family::default(),
            hedges: Family::default(),
            refused: Family::default(),
            audited: Family::default(),
            mirrored: Family::default(),
            mirror_compared: Family::default(),
            reloads: Family::default(),
            stale: Family::default(),
            generation: Gauge::default(),
            documents_refused: Family::default(),
            svid_expiry: Gauge::default(),
            crl_due: Family::default(),
            crl_stale: Family::default(),
            pooled_ended: Family::default(),
            dropped: Family::default(),
            panics: Counter::default(),
            names: Gauge::default(),
            names_failing: Gauge::default(),
            names_asked: Family::default(),
            bundles_fetched: Family::default(),
            bundle_fetched_at: Family::default(),
            peer_reporting: Family::default(),
            peer_reported_at: Family::default(),
            control_plane_connected: Gauge::default(),
            control_plane_updated_at: Gauge::default(),
            control_plane_refused: Gauge::default(),
            control_plane_answers: Family::default(),
            workers_stalled: Gauge::default(),
            pipes: PipeMeter::default(),
        };
        this.register_traffic();
        this.register_state();
        this.register_sources();
        this.register_limits();
        this.register_control_plane();
        this
    }

    fn register_traffic(&mut self) {
        let r = &mut self.registry;
        r.register(
            "connections",
            "Connections ended, by reason",
            self.connections.clone(),
        );
        r.register(
            "requests",
            "HTTP requests answered, by status and reason",
            self.requests.clone(),
        );
        r.register(
            "connections_open",
            "Connections open now",
            self.open.clone(),
        );
        r.register("bytes_sent", "Bytes sent to callers", self.sent.clone());
        r.register(
            "bytes_received",
            "Bytes received from callers",
            self.received.clone(),
        );
        r.register(
            "attempts",
            "Attempts at endpoints, by why the endpoint was chosen",
            self.attempts.clone(),
        );
        r.register(
            "rule_requests",
            "Requests of routes with rules, by rule and the part of its split drawn for them; without a rule those refused",
            self.ruled.clone(),
        );
        r.register(
            "retries",
            "Extra tries, by what failed before",
            self.retries.clone(),
        );
        r.register(
            "hedges",
            "Requests that waited for as long as `retries.hedge.after`: sent to one more endpoint, won by it, or not sent for want of `budget` or of another endpoint (`nowhere`)",
            self.hedges.clone(),
        );
        r.register(
            "certificates_refused",
            "Certificates refused, by the rule they break",
            self.refused.clone(),
        );
        r.register(
            "policy_audited",
            "Connections and requests that a policy of `audit` let in and would deny, by reason",
            self.audited.clone(),
        );
        r.register(
            "mirrored",
            "Mirrored requests and connections, by what became of them",
            self.mirrored.clone(),
        );
        r.register(
            "mirror_compared",
            "Answers of mirrored requests beside those that callers got: the same, another status, \
            another body, or why they were not compared",
            self.mirror_compared.clone(),
        );
    }

    /// What is asked of others, again and again.
    fn register_sources(&mut self) {
        let r = &mut self.registry;
        r.register(
            "names",
            "Names of endpoints and of peers' gateways that are kept resolved",
            self.names.clone(),
        );
        r.register(
            "names_failing",
            "Names that do not resolve at present",
            self.names_failing.clone(),
        );
        r.register(
            "bundle_fetches",
            "Looks at bundle endpoints, by what came of them",
            self.bundles_fetched.clone(),
        );
        r.register(
            "bundle_fetched_timestamp_seconds",
            "When the bundle of a trust domain was fetched last, Unix time",
            self.bundle_fetched_at.clone(),
        );
        r.register(
            "peer_reporting",
            "1 while a peer's gateway reports how what it exports stands, 0 while it is asked and does not",
            self.peer_reporting.clone(),
        );
        r.register(
            "peer_report_timestamp_seconds",
            "When a peer's gateway reported last, Unix time",
            self.peer_reported_at.clone(),
        );
        r.register(
            "name_questions",
            "Questions for names, by what was answered",
            self.names_asked.clone(),
        );
    }

    fn register_state(&mut self) {
        let r = &mut self.registry;
        r.register("reloads", "Loads of files, by result", self.reloads.clone());
        r.register(
            "last_good_in_use",
            "1 while files on disk are refused and their last good content serves",
            self.stale.clone(),
        );
        r.register(
            "config_generation",
            "The generation of the configuration served",
            self.generation.clone(),
        );
        r.register(
            "config_documents_refused",
            "Documents that are refused, by what serves in their place",
            self.documents_refused.clone(),
        );
        r.register(
            "svid_expiry_timestamp_seconds",
            "When the gateway's own SVID expires, Unix time",
            self.svid_expiry.clone(),
        );
        r.register(
            "crl_next_update_timestamp_seconds",
            "When the next CRL of a trust domain is due, Unix time",
            self.crl_due.clone(),
        );
        r.register(
            "crl_stale",
            "1 while the CRL of a trust domain is past its nextUpdate; it is refused 24 h later",
            self.crl_stale.clone(),
        );
        r.register(
            "pooled_connections_ended",
            "Connections to endpoints that a change took out of the pools, by reason",
            self.pooled_ended.clone(),
        );
        r.register(
            "dropped",
            "What was dropped because a queue was full",
            self.dropped.clone(),
        );
        r.register(
            "panics",
            "Connections ended by a panic",
            self.panics.clone(),
        );
        r.register(
            "workers_stalled",
            "Workers whose event loop has not turned for 5 s",
            self.workers_stalled.clone(),
        );
        r.register(
            "relay_pipes",
            "Pipes open for splicing",
            self.pipes.open.clone(),
        );
        r.register(
            "relay_pipe_fallbacks",
            "Times that bytes were copied for want of a pipe, by what was short",
            self.pipes.fallbacks.clone(),
        );
    }

    fn register_control_plane(&mut self) {
        let r = &mut self.registry;
        r.register(
            "control_plane_connected",
            "1 while a server of the control plane answers",
            self.control_plane_connected.clone(),
        );
        r.register(
            "control_plane_updated_timestamp_seconds",
            "When what the control plane said was applied last, Unix time",
            self.control_plane_updated_at.clone(),
        );
        r.register(
            "control_plane_resources_refused",
            "Resources of the control plane of which the newest is refused, 100 at most",
            self.control_plane_refused.clone(),
        );
        r.register(
            "control_plane_answers",
            "Responses of the control plane that were accepted, and resources that were refused, by result",
            self.control_plane_answers.clone(),
        );
    }

    fn register_limits(&mut self) {
        let r = &mut self.registry;
        r.register(
            "worker_connections",
            "Connections open now, by worker",
            self.worker_open.clone(),
        );
        r.register(
            "connections_limit",
            "Connections let in at once: limits.connections, or what the limit of open files holds",
            self.connections_max.clone(),
        );
        r.register(
            "accept_errors",
            "Times a listener could not accept and paused",
            self.accept_errors.clone(),
        );
        r.register(
            "memory_used_bytes",
            "Memory in use, as it is held to the watermark",
            self.memory_used.clone(),
        );
        r.register(
            "memory_watermark_bytes",
            "Memory above which new work is shed; 0 for none",
            self.memory_watermark.clone(),
        );
        r.register(
            "memory_short",
            "1 while new work is shed because memory is short",
            self.memory_short.clone(),
        );
    }

    /// How many connections and requests were refused by the operator's rules and limits, by reason,
    /// most first.
    pub(crate) fn refusals(&self) -> Vec<(String, u64)> {
        let mut by: BTreeMap<&str, u64> = BTreeMap::new();
        let text = self.ends();
        let of_operator: Vec<&str> = (Reason::ALL.iter())
            .filter(|reason| reason.fault() == Fault::Operator)
            .map(|reason| reason.label())
            .collect();
        for (line, count) in counted(&text) {
            if let Some(reason) = label(line, "reason").filter(|one| of_operator.contains(one)) {
                *by.entry(reason).or_default() += count;
            }
        }
        let mut all: Vec<(String, u64)> = by
            .into_iter()
            .map(|(reason, count)| (reason.to_owned(), count))
            .collect();
        all.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        all
    }

    /// How many connections and requests of each service ended for a reason.
    pub(crate) fn ended_by_service(&self, of: Reason) -> BTreeMap<String, u64> {
        let mut by = BTreeMap::new();
        for (line, count) in counted(&self.ends()) {
            if label(line, "reason") == Some(of.label())
                && let Some(service) = label(line, "destination_service")
            {
                *by.entry(service.to_owned()).or_default() += count;
            }
        }
        by
    }

    /// What counts ends alone, as text: a family does not tell what it has otherwise.
    fn ends(&self) -> String {
        let mut ends = Registry::default();
        ends.register("connections", "", self.connections.clone());
        ends.register("requests", "", self.requests.clone());
        let mut text = String::new();
        // To write to a string never fails.
        text::encode(&mut text, &ends).ok();
        text
    }

    /// Counts the end of a connection or request.
    pub(crate) fn closed(&self, closed: &Closed) {
        let listener = Arc::clone(&closed.origin.listener);
        let service = Arc::clone(closed.service.as_ref().unwrap_or(&self.unknown));
        let (reason, flags) = (closed.reason.label(), closed.reason.flag());
        if moved_its_own_bytes(closed) {
            let by = ByListener {
                listener: Arc::clone(&listener),
            };
            self.sent.get_or_create(&by).inc_by(closed.bytes_sent);
            let received = self.received.get_or_create(&by);
            received.inc_by(closed.bytes_received);
        }
        match &closed.request {
            Some(request) => {
                self.requests
                    .get_or_create(&Answered {
                        listener,
                        destination_service: service,
                        response_code: request.status,
                        reason,
                        response_flags: flags,
                    })
                    .inc();
            }
            None => {
                self.connections
                    .get_or_create(&Ended {
                        listener,
                        destination_service: service,
                        reason,
                        response_flags: flags,
                    })
                    .inc();
            }
        }
    }

    /// Counts a request; `latest` is of the one before it on its connection.
    pub(crate) fn closed_request(&self, closed: &Closed, latest: &Latest) {
        let Some(request) = closed.request.as_ref().filter(|one| one.status != 101) else {
            self.closed(closed);
            return;
        };
        let service = closed.service.as_ref().unwrap_or(&self.unknown);
        let reason = closed.reason.label();
        let is_same = |before: &Answered| {
            before.response_code == request.status
                && before.reason == reason
                && is_one(&before.destination_service, service)
                && is_one(&before.listener, &closed.origin.listener)
        };
        count(&latest.answered, &self.requests, is_same, || Answered {
            listener: Arc::clone(&closed.origin.listener),
            destination_service: Arc::clone(service),
            response_code: request.status,
            reason,
            response_flags: closed.reason.flag(),
        });
    }

    pub(crate) fn opened(&self, listener: &Arc<str>) {
        self.open
            .get_or_create(&ByListener {
                listener: Arc::clone(listener),
            })
            .inc();
    }

    pub(crate) fn ended(&self, listener: &Arc<str>) {
        self.open
            .get_or_create(&ByListener {
                listener: Arc::clone(listener),
            })
            .dec();
    }

    pub(crate) fn entered_worker(&self, worker: usize) {
        self.worker_open.get_or_create(&ByWorker { worker }).inc();
    }

    pub(crate) fn left_worker(&self, worker: usize) {
        self.worker_open.get_or_create(&ByWorker { worker }).dec();
    }

    pub(crate) fn connections_max(&self, count: usize) {
        self.connections_max
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(crate) fn accept_failed(&self, listener: &Arc<str>) {
        self.accept_errors
            .get_or_create(&ByListener {
                listener: Arc::clone(listener),
            })
            .inc();
    }

    pub(crate) fn memory_watermark(&self, bytes: u64) {
        self.memory_watermark
            .set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    pub(crate) fn memory(&self, used_bytes: u64, is_short: bool) {
        self.memory_used
            .set(i64::try_from(used_bytes).unwrap_or(i64::MAX));
        self.memory_short.set(i64::from(is_short));
    }

    pub(crate) fn attempt(
        &self,
        service: &Arc<str>,
        backend: &Arc<str>,
        level: usize,
        why: &'static str,
        latest: &Latest,
    ) {
        let is_same = |before: &Taken| {
            before.level == level
                && before.why == why
                && is_one(&before.destination_service, service)
                && is_one(&before.destination_backend, backend)
        };
        count(&latest.taken, &self.attempts, is_same, || Taken {
            destination_service: Arc::clone(service),
            destination_backend: Arc::clone(backend),
            level,
            why,
        });
    }

    /// Counts a request of a service with rules, by what chose where it goes.
    pub(crate) fn ruled(
        &self,
        service: &Arc<str>,
        rule: Option<&Arc<str>>,
        part: Option<&Arc<str>>,
    ) {
        self.ruled
            .get_or_create(&RuledBy {
                destination_service: Arc::clone(service),
                rule: Arc::clone(rule.unwrap_or(&self.nothing)),
                part: Arc::clone(part.unwrap_or(&self.nothing)),
            })
            .inc();
    }

    pub(crate) fn retried(&self, service: &str, cause: &str) {
        self.retries
            .get_or_create(&Retried {
                destination_service: service.to_owned(),
                cause: cause.to_owned(),
            })
            .inc();
    }

    pub(crate) fn hedged(&self, service: &str, result: &'static str) {
        self.hedges
            .get_or_create(&Hedged {
                destination_service: service.to_owned(),
                result,
            })
            .inc();
    }

    /// `side` is `downstream` for a caller's certificate and `upstream` for an endpoint's.
    pub(crate) fn certificate_refused(&self, side: &str, rule: &str) {
        self.refused
            .get_or_create(&Refused {
                side: side.to_owned(),
                rule: rule.to_owned(),
            })
            .inc();
    }

    pub(crate) fn mirrored(&self, service: &str, mirror: &str, result: &str) {
        self.mirrored
            .get_or_create(&Mirrored {
                destination_service: service.to_owned(),
                mirror: mirror.to_owned(),
                result: result.to_owned(),
            })
            .inc();
    }

    pub(crate) fn mirror_compared(&self, service: &str, mirror: &str, result: &str) {
        self.mirror_compared
            .get_or_create(&Mirrored {
                destination_service: service.to_owned(),
                mirror: mirror.to_owned(),
                result: result.to_owned(),
            })
            .inc();
    }

    /// Counts a load of `what` (`config` or `credentials`).
    pub(crate) fn reloaded(&self, what: &str, good: bool) {
        let result = if good { "applied" } else { "refused" };
        self.reloads
            .get_or_create(&ByResult {
                what: what.to_owned(),
                result: result.to_owned(),
            })
            .inc();
        self.stale
            .get_or_create(&ByKind {
                kind: what.to_owned(),
            })
            .set(i64::from(!good));
    }

    /// Counts what a service's policy would deny if it were enforced.
    pub(crate) fn audited(&self, service: &Arc<str>, reason: Reason) {
        let audited = Audited {
            destination_service: Arc::clone(service),
            reason: reason.label(),
        };
        self.audited.get_or_create(&audited).inc();
    }

    /// Of the documents, those that are refused.
    pub(crate) fn documents_refused(&self, refused: &[RefusedDocument]) {
        for serves in [Serves::LastGood, Serves::Rest, Serves::Nothing] {
            let count = refused.iter().filter(|one| one.serves == serves).count();
            let serves = serves.as_str();
            self.documents_refused
                .get_or_create(&ByServes { serves })
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    pub(crate) fn generation(&self, generation: u64) {
        self.generation
            .set(i64::try_from(generation).unwrap_or(i64::MAX));
    }

    /// So many names are kept resolved, and so many do not resolve.
    pub(crate) fn names(&self, all: usize, failing: usize) {
        let count = |n| i64::try_from(n).unwrap_or(i64::MAX);
        self.names.set(count(all));
        self.names_failing.set(count(failing));
    }

    pub(crate) fn bundle_fetched(&self, trust_domain: &str, result: &'static str) {
        let labels = OfDomain {
            trust_domain: trust_domain.to_owned(),
            result,
        };
        self.bundles_fetched.get_or_create(&labels).inc();
    }

    /// At this moment, since 1970.
    pub(crate) fn bundle_fetched_at(&self, trust_domain: &str, at: Duration) {
        let labels = ByTrustDomain {
            trust_domain: trust_domain.to_owned(),
        };
        let seconds = i64::try_from(at.as_secs()).unwrap_or(i64::MAX);
        self.bundle_fetched_at.get_or_create(&labels).set(seconds);
    }

    /// A peer's gateway has reported just now, or does not report.
    pub(crate) fn peer_reports(&self, peer: &str, gateway: &Address, now: Option<SystemTime>) {
        let labels = ByGateway::new(peer, gateway);
        let up = self.peer_reporting.get_or_create(&labels);
        up.set(i64::from(now.is_some()));
        drop(up);
        if let Some(since) = now.and_then(|now| now.duration_since(UNIX_EPOCH).ok()) {
            let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
            self.peer_reported_at.get_or_create(&labels).set(seconds);
        }
    }

    /// A peer's gateway is not asked any more.
    pub(crate) fn peer_forgotten(&self, peer: &str, gateway: &Address) {
        let labels = ByGateway::new(peer, gateway);
        self.peer_reporting.remove(&labels);
        self.peer_reported_at.remove(&labels);
    }

    pub(crate) fn name_asked(&self, result: &'static str) {
        self.names_asked.get_or_create(&OfResult { result }).inc();
    }

    pub(crate) fn control_plane_connected(&self, is_connected: bool) {
        self.control_plane_connected.set(i64::from(is_connected));
    }

    pub(crate) fn control_plane_updated(&self, unix_seconds: i64) {
        self.control_plane_updated_at.set(unix_seconds);
    }

    pub(crate) fn control_plane_refused(&self, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.control_plane_refused.set(count);
    }

    /// Counts what a control plane said, `accepted` or `refused`.
    pub(crate) fn control_plane_answered(&self, result: &'static str) {
        let by = OfResult { result };
        self.control_plane_answers.get_or_create(&by).inc();
    }

    pub(crate) fn svid_expiry(&self, unix_seconds: i64) {
        self.svid_expiry.set(unix_seconds);
    }

    /// Forgets the CRLs of other credentials.
    pub(crate) fn forget_crls(&self) {
        self.crl_due.clear();
        self.crl_stale.clear();
    }

    pub(crate) fn crl(&self, trust_domain: &str, due: i64, is_stale: bool) {
        let by = ByTrustDomain {
            trust_domain: trust_domain.to_owned(),
        };
        self.crl_due.get_or_create(&by).set(due);
        self.crl_stale.get_or_create(&by).set(i64::from(is_stale));
    }

    pub(crate) fn pooled_ended(&self, reason: &str) {
        let reason = reason.to_owned();
        self.pooled_ended.get_or_create(&ByReason { reason }).inc();
    }

    /// Counts what a full queue made us drop.
    pub(crate) fn dropped(&self, kind: &str, n: u64) {
        self.dropped
            .get_or_create(&ByKind {
                kind: kind.to_owned(),
            })
            .inc_by(n);
    }

    /// Sets how many access-log lines were dropped.
    pub(crate) fn log_dropped(&self, total: u64) {
        let counter = self.dropped.get_or_create(&ByKind {
            kind: "access-log-lines".to_owned(),
        });
        counter.inc_by(total.saturating_sub(counter.get()));
    }

    pub(crate) fn workers_stalled(&self, count: usize) {
        self.workers_stalled
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(crate) fn panicked(&self) {
        self.panics.inc();
    }

    /// All metrics as OpenMetrics text, with the endpoints and levels of what is published.
    pub(crate) fn encode(&self, published: Option<Arc<Published>>) -> String {
        let mut out = String::new();
        let mut targets = Registry::with_prefix("zeugma");
        if let Some(published) = published {
            targets.register_collector(Box::new(Targets(Arc::clone(&published))));
            targets.register_collector(Box::new(Capacities(published)));
        }
        let encoded = text::encode_registry(&mut out, &self.registry)
            .and_then(|()| text::encode(&mut out, &targets));
        if let Err(error) = encoded {
            // Writing to a String does not fail; should the encoder, the scrape says so.
            out.clear();
            writeln!(out, "# metrics could not be encoded: {error}").ok();
        }
        out
    }
}

/// The endpoints and levels that are published. They are made when they are asked for: with ten
/// thousand routes they are a hundred thousand series, which would take more memory than the
/// configuration itself and be set anew at each change of one.
#[derive(Debug)]
struct Targets(Arc<Published>);

impl Collector for Targets {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Self(published) = self;
        let all = || {
            let clusters = &published.snapshot.clusters;
            clusters.iter().zip(&published.shares.clusters)
        };
        let mut gauge = encoder.encode_descriptor(
            "endpoint_healthy",
            "1 while an endpoint is used, 0 while not",
            None,
            MetricType::Gauge,
        )?;
        // An endpoint is in several clusters of its route.
        let mut seen = HashSet::new();
        for (cluster, shares) in all() {
            for (endpoint, status) in cluster.endpoints.iter().zip(&shares.endpoints) {
                if !seen.insert((&cluster.route, &endpoint.backend, &endpoint.address)) {
                    continue;
                }
                let address = endpoint.address.to_string();
                let labels = [
                    ("destination_service", &*cluster.route),
                    ("destination_backend", &*endpoint.backend),
                    ("endpoint", address.as_str()),
                ];
                let healthy = i64::from(status.is_healthy());
                gauge.encode_family(&labels)?.encode_gauge(&healthy)?;
            }
        }
        let mut gauge = encoder.encode_descriptor(
            "level_share",
            "The share of traffic a level is given, 0 to 1",
            None,
            MetricType::Gauge,
        )?;
        for (cluster, shares) in all() {
            for (at, (level, share)) in cluster.levels.iter().zip(&shares.levels).enumerate() {
                let later = cluster.levels.iter().skip(at + 1);
                if later
                    .map(|later| &later.name)
                    .any(|name| *name == level.name)
                {
                    continue;
                }
                let labels = [("cluster", &*cluster.name), ("level", &*level.name)];
                gauge.encode_family(&labels)?.encode_gauge(share)?;
            }
        }
        Ok(())
    }
}

/// What is offered to the clusters of which a backend takes only so much.
#[derive(Debug)]
struct Capacities(Arc<Published>);

impl Collector for Capacities {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Self(published) = self;
        let all: Vec<_> = (published.snapshot.clusters.iter())
            .zip(&published.shares.clusters)
            .filter_map(|(cluster, shares)| Some((cluster, shares.metered.as_ref()?)))
            .collect();
        if all.is_empty() {
            return Ok(());
        }
        let mut offered = encoder.encode_descriptor(
            "cluster_offered",
            "Requests, or connections of a tcp service, that were offered to a cluster of which a backend has a capacity",
            None,
            MetricType::Counter,
        )?;
        for (cluster, metered) in &all {
            let labels = [("cluster", &*cluster.name)];
            let total = metered.offered().total();
            offered
                .encode_family(&labels)?
                .encode_counter::<NoLabelSet, u64, u64>(&total, None)?;
        }
        // A backend is in several clusters of its route.
        let mut backends = BTreeMap::new();
        for (cluster, metered) in &all {
            for held in &metered.held {
                backends.insert((&*cluster.route, &*held.backend), held);
            }
        }
        let labels = |(route, backend)| {
            [
                ("destination_service", route),
                ("destination_backend", backend),
            ]
        };
        let mut capacity = encoder.encode_descriptor(
            "backend_capacity",
            "Requests, or connections of a tcp service, that a backend takes in a second",
            None,
            MetricType::Gauge,
        )?;
        for (of, held) in &backends {
            let labels = labels(*of);
            capacity.encode_family(&labels)?.encode_gauge(&held.most)?;
        }
        let mut full = encoder.encode_descriptor(
            "backend_full",
            "Requests, or connections of a tcp service, that found no capacity left at a backend",
            None,
            MetricType::Counter,
        )?;
        for (of, held) in &backends {
            let labels = labels(*of);
            full.encode_family(&labels)?
                .encode_counter::<NoLabelSet, u64, u64>(&held.met_full(), None)?;
        }
        Ok(())
    }
}

/// The counters that the request before used, of one connection: they are not looked for again.
///
/// They stay those of their families, which never drop a series of theirs.
#[derive(Debug, Default)]
pub(crate) struct Latest {
    answered: RefCell<Option<(Answered, Counter)>>,
    taken: RefCell<Option<(Taken, Counter)>>,
}

/// The lines of text with counters, and what they count.
fn counted(text: &str) -> impl Iterator<Item = (&str, u64)> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| {
        let (line, count) = line.rsplit_once(' ')?;
        Some((line, count.parse().ok()?))
    })
}

/// A label of such a line.
fn label<'l>(line: &'l str, name: &str) -> Option<&'l str> {
    let (_, rest) = line.split_once(&format!("{name}=\""))?;
    rest.split_once('"').map(|(value, _)| value)
}

/// Counts one more of what `latest` is of, if it `is_same`, else of `new` labels.
fn count<L>(
    latest: &RefCell<Option<(L, Counter)>>,
    family: &Family<L, Counter>,
    is_same: impl Fn(&L) -> bool,
    new: impl FnOnce() -> L,
) where
    L: Clone + std::hash::Hash + Eq,
{
    let mut latest = latest.borrow_mut();
    if let Some((_, counter)) = latest.as_ref().filter(|(labels, _)| is_same(labels)) {
        counter.inc();
        return;
    }
    let labels = new();
    let counter = family.get_or_create(&labels).clone();
    counter.inc();
    *latest = Some((labels, counter));
}

/// Whether two names are the same; mostly they are one piece of memory.
fn is_one(one: &Arc<str>, other: &Arc<str>) -> bool {
    Arc::ptr_eq(one, other) || one == other
}

/// Whether the bytes of a record are in no other one.
///
/// Those of a request are also among its connection's. Only an upgrade leaves its connection: that
/// one's record ends with the 101, and what moves after it is the request's alone (RFC 9110 §7.8).
fn moved_its_own_bytes(closed: &Closed) -> bool {
    let request = closed.request.as_ref();
    request.is_none_or(|request| request.status == 101)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::*;
    use std::rc::Rc;

    use http::Method;

    use crate::account::{Caller, Origin, RequestFacts, Stretch};
    use crate::http::headers::Ids;

    fn record(status: Option<u16>, bytes_sent: u64) -> Closed {
        Closed {
            origin: Rc::new(Origin {
                listener: "apps".into(),
                source: "127.0.0.1:1".parse().unwrap(),
                caller: Caller::default(),
                tls: None,
                line: Stretch::new(),
            }),
            attested: None,
            generation: 1,
            service: None,
            destination: None,
            request: status.map(|status| RequestFacts {
                ids: Ids::of("1", "4bf92f3577b34da6a3ce929d0e0e4736"),
                method: Method::GET,
                routed: None,
                asked: Rc::default(),
                version: "HTTP/1.1",
                status,
                attempts: 1,
                ruled: None,
            }),
            reason: Reason::Completed,
            detail: None,
            rule: None,
            bytes_sent,
            bytes_received: 2 * bytes_sent,
            duration: Duration::ZERO,
        }
    }

    #[test]
    fn bytes_are_counted_once_those_of_an_upgrade_by_its_request() {
        let metrics = Metrics::new();
        metrics.closed(&record(Some(200), 1));
        metrics.closed(&record(None, 10));
        metrics.closed(&record(Some(101), 100));
        let text = metrics.encode(None);
        let sent = r#"zeugma_bytes_sent_total{listener="apps"} 110"#;
        let received = r#"zeugma_bytes_received_total{listener="apps"} 220"#;
        assert!(text.contains(sent) && text.contains(received), "{text}");
    }

    #[test]
    fn requests_are_counted_alike_whatever_the_one_before_was() {
        let metrics = Metrics::new();
        let latest = Latest::default();
        for status in [200, 200, 503, 200, 101, 200] {
            metrics.closed_request(&record(Some(status), 1), &latest);
        }
        let other = Closed {
            service: Some("shop/a".into()),
            reason: Reason::UpstreamTimeout,
            ..record(Some(200), 1)
        };
        metrics.closed_request(&other, &latest);
        let text = metrics.encode(None);
        let count = |labels: &str| {
            let line = text
                .lines()
                .find(|line| line.starts_with("zeugma_requests_total") && line.contains(labels));
            line.unwrap_or_default()
                .rsplit(' ')
                .next()
                .map(str::to_owned)
        };
        let counts = [
            r#""unknown",response_code="200""#,
            r#"response_code="503""#,
            r#"response_code="101""#,
            r#""shop/a""#,
        ];
        assert_eq!(
            counts.map(|labels| count(labels).unwrap()),
            ["4", "1", "1", "1"],
            "{text}"
        );
        assert!(
            text.contains(r#"zeugma_bytes_sent_total{listener="apps"} 1"#),
            "{text}"
        );

        for (why, level) in [("local", 0), ("local", 0), ("spill", 1), ("local", 0)] {
            metrics.attempt(&"shop/a".into(), &"blue".into(), level, why, &latest);
        }
        let text = metrics.encode(None);
        assert!(text.contains(r#"level="0",why="local"} 3"#), "{text}");
        assert!(text.contains(r#"level="1",why="spill"} 1"#), "{text}");
    }

    #[test]
    fn label_values_from_the_network_are_escaped() {
        let metrics = Metrics::new();
        metrics.certificate_refused("downstream", "a\"b\nc\\");
        let text = metrics.encode(None);
        assert!(text.contains(r#"rule="a\"b\nc\\""#), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }

    /// A series of every metric.
    fn everything() -> Vec<(String, BTreeSet<String>)> {
        let documents = "---\napiVersion: zeugma.dev/v1alpha1\nkind: MeshRoute\nmetadata: \
            { name: a, namespace: shop }\nspec: { protocol: http, backends: [{ endpoints: ['127.0.0.1:1'], capacity: 5/s }], \
            allow: [{ listeners: [apps] }] }\n";
        let listeners = "{ apps: { address: '127.0.0.1:0', role: workloads } }";
        let alone = crate::fixture::Alone::new(listeners, documents, 1);
        let metrics = Metrics::new();
        let (apps, service) = (Arc::from("apps"), Arc::from("shop/a"));
        metrics.closed(&record(Some(200), 1));
        metrics.closed(&record(None, 1));
        metrics.opened(&apps);
        metrics.entered_worker(0);
        metrics.accept_failed(&apps);
        metrics.attempt(&service, &apps, 0, "local", &Latest::default());
        metrics.ruled(&service, Some(&apps), None);
        metrics.retried("shop/a", "reset");
        metrics.hedged("shop/a", "sent");
        metrics.certificate_refused("upstream", "L1");
        metrics.mirrored("shop/a", "shop/b", "sent");
        metrics.mirror_compared("shop/a", "shop/b", "same");
        metrics.reloaded("config", true);
        metrics.crl("east.example", 1, false);
        metrics.pooled_ended("removed");
        metrics.dropped("observations", 1);
        metrics.audited(&service, Reason::NotAllowed);
        metrics.name_asked("failed");
        metrics.bundle_fetched("acme.example", "new");
        metrics.bundle_fetched_at("acme.example", Duration::from_secs(1));
        metrics.documents_refused(&[]);
        metrics.control_plane_answered("accepted");
        let gateway = Address::Socket(([192, 0, 2, 1], 15443).into());
        metrics.peer_reports("west", &gateway, Some(SystemTime::now()));
        metrics.pipes.fell_back("pipes");
        let text = metrics.encode(Some(alone.shared.published.load_full()));
        let series = text.lines().filter(|line| !line.starts_with('#'));
        let all: Vec<_> = series
            .map(|line| {
                let (name, rest) = line.split_once(['{', ' ']).unwrap();
                let labels = rest.rsplit_once('}').map_or("", |(labels, _)| labels);
                let keys = labels.split("\",").filter_map(|one| one.split_once('='));
                (
                    name.to_owned(),
                    keys.map(|(key, _)| key.to_owned()).collect(),
                )
            })
            .collect();
        // A metric that has no series is not told of at all, and this test would not know it.
        let described = text.matches("# TYPE ").count();
        let registered = include_str!("metrics.rs")
            .matches(concat!("r.regis", "ter("))
            .count();
        assert_eq!(
            described,
            registered + 5,
            "and those of `Targets` and `Capacities`: {text}"
        );
        all
    }

    /// Every `zeugma_...` in a text, and the names in the `{...}` that follows it.
    fn metrics_in(text: &str) -> Vec<(&str, Vec<&str>)> {
        let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let starts = text.match_indices("zeugma_");
        let named = starts.map(|(at, _)| {
            let rest = &text[at..];
            let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            let (name, rest) = rest.split_at(end);
            let matchers = rest.strip_prefix('{').and_then(|rest| rest.split_once('}'));
            let matchers = matchers.map_or("", |(inside, _)| inside).split(", ");
            let keys = matchers.filter_map(|one| one.split_once(['=', '!']));
            (name, keys.map(|(key, _)| key.trim()).collect())
        });
        named.collect()
    }

    #[test]
    fn alerts_and_dashboard_ask_for_metrics_and_labels_that_there_are() {
        let ours = everything();
        // What Prometheus adds.
        let added = ["job", "instance"];
        let mut asked = 0;
        for (file, text) in [
            (
                "alerts.yaml",
                include_str!("../../deploy/prometheus/alerts.yaml"),
            ),
            (
                "alerts_test.yaml",
                include_str!("../../deploy/prometheus/alerts_test.yaml"),
            ),
            (
                "zeugma.json",
                include_str!("../../deploy/grafana/zeugma.json"),
            ),
        ] {
            for (name, keys) in metrics_in(text) {
                let found = ours.iter().find(|(known, _)| known == name);
                let (_, labels) = found.unwrap_or_else(|| panic!("{file}: no metric {name}"));
                for key in keys {
                    let is_known = added.contains(&key) || labels.contains(key);
                    assert!(is_known, "{file}: {name} has no label {key}: {labels:?}");
                }
                asked += 1;
            }
            for grouping in text.split("by (").skip(1) {
                let (names, _) = grouping.split_once(')').unwrap();
                for name in names.split(", ") {
                    let mut labels = ours.iter().flat_map(|(_, labels)| labels);
                    let is_known = added.contains(&name) || labels.any(|label| label == name);
                    assert!(is_known, "{file}: nothing has the label {name}");
                }
            }
            for reasons in text.split("reason=~").skip(1) {
                let reasons = reasons.trim_start_matches(['\\', '"']);
                let (reasons, _) = reasons.split_once(['\\', '"']).unwrap();
                for reason in reasons.split('|') {
                    let (start, is_prefix) = reason
                        .strip_suffix(".*")
                        .map_or((reason, false), |start| (start, true));
                    let is_known = Reason::ALL.iter().any(|known| {
                        known.label() == reason || (is_prefix && known.label().starts_with(start))
                    });
                    assert!(is_known, "{file}: no reason {reason}");
                }
            }
        }
        assert!(asked > 150, "{asked}");
    }
}
