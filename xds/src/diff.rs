//! What differs in meaning between two configurations of one gateway, however they are written.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use zeugma_core::rules::{HeaderChanges, HttpRule, RuleRetries, RuleTimeouts, Rules};
use zeugma_core::snapshot::{
    ActiveKind, Cluster, ClusterPolicy, Endpoint, EndpointTls, Export, Failback, Failover, Failure,
    HttpVersion, Listener, Mirror, PassiveCheck, Peer, PeerIx, PolicyMode, Retries, Role, Rule,
    Service, Snapshot, Timeouts, WhenStale,
};

use crate::CheckedGateway;
use crate::client::OnEmpty;
use crate::meaning::{match_text, meaning};
use crate::settings::{
    AccessLogFormat, AdminAddress, BundleProfile, ControlPlane, ForeignDomain, GatewaySettings,
    Limits, StateDir, SvidFiles, SvidSource,
};

/// What one thing of a gateway says, by the name of its field.
type Fields = BTreeMap<&'static str, BTreeSet<String>>;

/// One thing that is not as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// `gateway`, `listener`, `peer` or `service`.
    pub kind: &'static str,
    /// Its name; a service's is `namespace/name:port`.
    pub name: String,
    /// What became of it.
    pub change: Change,
    /// What differs, by field.
    pub fields: Vec<FieldDifference>,
}

/// What became of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// It is new.
    Added,
    /// It is there no more.
    Removed,
    /// It says something else.
    Changed,
}

/// What one field said and says; a list by its entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldDifference {
    /// The field.
    pub field: &'static str,
    /// What it says no more.
    pub removed: Vec<String>,
    /// What it says now.
    pub added: Vec<String>,
    /// Whether what is open may be ended by it: what only this let in is let in no more.
    pub ends: bool,
}

impl Change {
    /// The word in JSON.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Removed => "removed",
            Self::Changed => "changed",
        }
    }

    /// The sign in front of it, for people.
    #[must_use]
    pub const fn sign(self) -> char {
        match self {
            Self::Added => '+',
            Self::Removed => '-',
            Self::Changed => '~',
        }
    }
}

/// What differs from `old` to `new`: the process, listeners, peers and services, in this order. The
/// paths are those of the configurations: what is named from there is the same in both.
#[must_use]
pub fn diff(old: (&CheckedGateway, &Path), new: (&CheckedGateway, &Path)) -> Vec<Difference> {
    let (mut before, mut after) = (things(old.0, old.1), things(new.0, new.1));
    let mut found = Vec::new();
    let all: BTreeSet<(u8, String)> = before.keys().chain(after.keys()).cloned().collect();
    for thing in all {
        let (was, is) = (before.remove(&thing), after.remove(&thing));
        let change = match (&was, &is) {
            (None, _) => Change::Added,
            (_, None) => Change::Removed,
            (Some(_), Some(_)) => Change::Changed,
        };
        let fields = fields(&was.unwrap_or_default(), &is.unwrap_or_default(), change);
        let (kind, name) = thing;
        if !fields.is_empty() {
            found.push(Difference {
                kind: KINDS.get(usize::from(kind)).copied().unwrap_or_default(),
                name,
                change,
                fields,
            });
        }
    }
    found
}

const KINDS: [&str; 4] = ["gateway", "listener", "peer", "service"];

fn fields(was: &Fields, is: &Fields, change: Change) -> Vec<FieldDifference> {
    let all: BTreeSet<&'static str> = was.keys().chain(is.keys()).copied().collect();
    let none = BTreeSet::new();
    let mut found = Vec::new();
    for field in all {
        let (was, is) = (
            was.get(field).unwrap_or(&none),
            is.get(field).unwrap_or(&none),
        );
        let removed: Vec<String> = was.difference(is).cloned().collect();
        let added: Vec<String> = is.difference(was).cloned().collect();
        if removed.is_empty() && added.is_empty() {
            continue;
        }
        let ends = change != Change::Added
            && match field {
                MAY_CALL | EXPORTED | ANSWERS | ATTESTS | "spiffeIDs" => !removed.is_empty(),
                MAY_NOT_CALL => !added.is_empty(),
                // The first network that is named shuts out all others.
                "sources" | "proxyProtocol.trusted" => !removed.is_empty() || was.is_empty(),
                "policy" => is.contains("enforce"),
                "trusted domains" => !removed.is_empty(),
                // What is carried in another way goes on in none.
                "role" | "route" | "protocol" | "inbound" => true,
                _ => false,
            };
        found.push(FieldDifference {
            field,
            removed,
            added,
            ends,
        });
    }
    found
}

const MAY_CALL: &str = "may call";
const MAY_NOT_CALL: &str = "may not call";
const EXPORTED: &str = "exported to";
const ANSWERS: &str = "hosts";
const ATTESTS: &str = "attests";

fn things(gateway: &CheckedGateway, config: &Path) -> BTreeMap<(u8, String), Fields> {
    let folder = if config.is_dir() {
        config
    } else {
        config.parent().unwrap_or(config)
    };
    let snapshot = &gateway.snapshot;
    let mut things = BTreeMap::new();
    let settings = &gateway.settings;
    things.insert((0, settings.name.clone()), of_settings(settings, folder));
    for listener in &snapshot.listeners {
        let fields = of_listener(snapshot, listener);
        things.insert((1, listener.name.to_string()), fields);
    }
    for peer in &snapshot.peers {
        things.insert((2, peer.name.to_string()), of_peer(peer));
    }
    let meaning = meaning(snapshot);
    for (service, meaning) in snapshot.services.iter().zip(&meaning) {
        let mut fields = of_service(snapshot, service);
        let said = meaning.to_string();
        let levels = said.lines().skip(1).map(|line| line.trim().to_owned());
        fields.insert("with endpoints down", levels.collect());
        things.insert((3, meaning.service.clone()), fields);
    }
    things
}

fn one(text: impl fmt::Display) -> BTreeSet<String> {
    BTreeSet::from([text.to_string()])
}

fn maybe(text: Option<impl fmt::Display>) -> BTreeSet<String> {
    text.iter().map(ToString::to_string).collect()
}

fn all<T: fmt::Display>(list: &[T]) -> BTreeSet<String> {
    list.iter().map(ToString::to_string).collect()
}

/// A duration as it is written.
fn duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    for (unit, text) in [(3_600_000, "h"), (60_000, "m"), (1000, "s")] {
        if millis.is_multiple_of(unit) && millis > 0 {
            return format!("{}{text}", millis / unit);
        }
    }
    if millis == 0 {
        "0s".to_owned()
    } else {
        format!("{millis}ms")
    }
}

fn percent(share: f64) -> String {
    crate::model::scalar::Percent(share).to_string()
}

fn of_settings(settings: &GatewaySettings, folder: &Path) -> Fields {
    let GatewaySettings {
        name: _,
        cluster,
        trust_domain,
        locality,
        svid,
        domains,
        admin,
        admin_token,
        probes,
        metrics,
        state_dir,
        control_plane,
        workers,
        limits,
        drain,
        access_log,
    } = settings;
    let Limits {
        connections,
        handshakes,
        handshake_timeout,
        header_timeout,
        streams,
        header_bytes,
        memory_bytes,
    } = limits;
    let path = |path: &Path| {
        path.strip_prefix(folder)
            .unwrap_or(path)
            .display()
            .to_string()
    };
    let given = |written: Option<&PathBuf>| maybe(written.map(|written| path(written)));
    let domains = domains.iter().map(|foreign| of_domain(foreign, path));
    let access_log = match access_log {
        AccessLogFormat::Json => "json",
        AccessLogFormat::Text => "text",
    };
    let admin = match admin {
        AdminAddress::Unix(socket) => Some(format!("unix:{}", path(socket))),
        AdminAddress::Tcp(address) => Some(address.to_string()),
        AdminAddress::Default => None,
    };
    let state_dir = match state_dir {
        StateDir::Given(folder) => Some(path(folder)),
        StateDir::Default => None,
    };
    let mut fields = Fields::from([
        ("cluster", one(cluster)),
        ("trustDomain", one(trust_domain)),
        ("locality", one(locality)),
        ("trusted domains", domains.collect()),
        ("admin", maybe(admin)),
        ("adminToken", given(admin_token.as_ref())),
        ("probes", one(probes)),
        ("metrics", one(metrics)),
        ("stateDir", maybe(state_dir)),
        ("workers", maybe(workers.as_ref())),
        ("limits.connections", one(connections)),
        ("limits.handshakes", one(handshakes)),
        ("limits.handshakeTimeout", one(duration(*handshake_timeout))),
        ("limits.headerTimeout", one(duration(*header_timeout))),
        ("limits.streams", one(streams)),
        ("limits.headerBytes", one(format!("{header_bytes}B"))),
        (
            "limits.memory",
            maybe(memory_bytes.map(|bytes| format!("{bytes}B"))),
        ),
        ("accessLog.format", one(access_log)),
        ("drain.delay", one(duration(drain.delay))),
        ("drain.timeout", one(duration(drain.timeout))),
    ]);
    fields.extend(of_svid(svid, path));
    fields.extend(control_plane.iter().flat_map(of_control_plane));
    fields
}

fn of_control_plane(of: &ControlPlane) -> Fields {
    let on_empty = match of.on_empty {
        OnEmpty::Keep => "keep",
        OnEmpty::Apply => "apply",
    };
    Fields::from([
        (
            "controlPlane.addresses",
            of.addresses.iter().map(ToString::to_string).collect(),
        ),
        (
            "controlPlane.spiffeIDs",
            of.spiffe_ids.iter().map(ToString::to_string).collect(),
        ),
        ("controlPlane.onEmpty", one(on_empty)),
    ])
}

fn of_svid(svid: &SvidSource, path: impl Fn(&Path) -> String) -> Fields {
    let of = |written: fn(&SvidFiles) -> Option<&PathBuf>| {
        let written = svid.files().and_then(written);
        maybe(written.map(|written| path(written)))
    };
    let sds = svid.sds();
    let bundles = sds.map_or(&[][..], |sds| &sds.bundles);
    Fields::from([
        ("svid.files.certificate", of(|one| Some(&one.certificate))),
        ("svid.files.key", of(|one| Some(&one.key))),
        ("svid.files.bundles", of(|one| Some(&one.bundles))),
        ("svid.files.crls", of(|one| one.crls.as_ref())),
        ("svid.files.denied", of(|one| one.denied.as_ref())),
        ("svid.workloadApi", maybe(svid.workload_api())),
        ("svid.sds.address", maybe(sds.map(|sds| &sds.address))),
        ("svid.sds.svid", maybe(sds.map(|sds| &sds.svid))),
        ("svid.sds.bundles", all(bundles)),
        (
            "svid.denied",
            maybe(svid.denied().map(|denied| path(denied))),
        ),
    ])
}

fn of_domain(foreign: &ForeignDomain, path: impl Fn(&Path) -> String) -> String {
    let bundle = foreign.bundle.as_ref().map(|bundle| path(bundle));
    let endpoint = foreign.endpoint.as_ref().map(|endpoint| {
        let by = match &endpoint.profile {
            BundleProfile::Web => "https_web".to_owned(),
            BundleProfile::Spiffe(id) => id.to_string(),
        };
        format!("{} verified by {by}", endpoint.url)
    });
    let from: Vec<_> = bundle.into_iter().chain(endpoint).collect();
    format!("{} by {}", foreign.domain, from.join(" and "))
}

fn of_listener(snapshot: &Snapshot, listener: &Listener) -> Fields {
    let Listener {
        name: _,
        address,
        role,
        only,
        // What services say of themselves.
        hosts: _,
        sources,
        proxies,
        handshakes,
    } = listener;
    let role = match role {
        Role::Mesh => "mesh",
        Role::Workloads => "workloads",
    };
    let rate = handshakes.map(|rate| format!("{}/s", rate.get()));
    Fields::from([
        ("address", one(address)),
        ("role", one(role)),
        ("route", maybe(only.map(|ix| &snapshot.service(ix).name))),
        ("sources", all(sources)),
        ("proxyProtocol.trusted", all(proxies)),
        ("handshakes.perSource", maybe(rate)),
    ])
}

fn of_peer(peer: &Peer) -> Fields {
    let Peer {
        name: _,
        cluster,
        locality,
        ids,
        attests,
        sources,
        keepalive_ping,
        keepalive_timeout,
        when_stale,
    } = peer;
    let when_stale = match when_stale {
        WhenStale::Hold => "hold",
        WhenStale::Drop => "drop",
    };
    Fields::from([
        ("cluster", one(cluster)),
        ("locality", one(locality)),
        ("spiffeIDs", all(ids)),
        (ATTESTS, all(attests)),
        ("sources", all(sources)),
        ("keepalive.ping", one(duration(*keepalive_ping))),
        ("keepalive.timeout", one(duration(*keepalive_timeout))),
        ("whenStale", one(when_stale)),
    ])
}

fn of_service(snapshot: &Snapshot, service: &Service) -> Fields {
    let Service {
        name: _,
        port: _,
        ports: _,
        hosts,
        protocol,
        inbound,
        outbound,
        own: _,
        policy,
        export,
        mirrors,
        rules: http_rules,
        inside: _,
        is_upgraded: _,
        position: _,
    } = service;
    let peers = |peers: &[PeerIx]| {
        let names = peers.iter().map(|ix| snapshot.peer(*ix).name.to_string());
        names.collect::<BTreeSet<_>>()
    };
    let rules = |rules: &[Rule]| rules.iter().map(|rule| of_rule(snapshot, rule)).collect();
    let cluster = snapshot.cluster(*outbound);
    let mirrors = mirrors.iter().map(|mirror| of_mirror(snapshot, mirror));
    let mut fields = Fields::from([
        (ANSWERS, all(hosts)),
        ("protocol", one(format!("{protocol:?}").to_lowercase())),
        ("inbound", one(format!("{inbound:?}").to_lowercase())),
        (MAY_CALL, rules(&policy.allow)),
        (MAY_NOT_CALL, rules(&policy.deny)),
        (
            "policy",
            one(match policy.mode {
                PolicyMode::Enforce => "enforce",
                PolicyMode::Audit => "audit",
            }),
        ),
        (
            EXPORTED,
            match export {
                Export::Nobody => BTreeSet::new(),
                Export::To(to) => peers(to),
                Export::AllPeers => one("every peer"),
            },
        ),
        ("mirror", mirrors.collect()),
        ("rules", of_http_rules(http_rules.as_deref())),
        ("endpoints", of_endpoints(cluster)),
    ]);
    of_policy(&cluster.policy, &mut fields);
    fields
}

fn of_rule(snapshot: &Snapshot, rule: &Rule) -> String {
    let Rule {
        from,
        via,
        listeners,
        sources,
        sni,
        methods,
        paths,
        headers,
        position: _,
    } = rule;
    let list = |word: &str, values: Vec<String>| match values.as_slice() {
        [] => None,
        values => Some(format!("{word} {}", values.join(" or "))),
    };
    let list_all = |word: &str, values: Vec<String>| {
        (!values.is_empty()).then(|| format!("{word} {}", values.join(" and ")))
    };
    let texts = |values: &[std::sync::Arc<str>]| values.iter().map(ToString::to_string).collect();
    let via = via.iter().map(|ix| snapshot.peer(*ix).name.to_string());
    let parts = [
        list("from", from.iter().map(ToString::to_string).collect()),
        list("via", via.collect()),
        list("on listener", texts(listeners)),
        list("of", sources.iter().map(ToString::to_string).collect()),
        list("for SNI", sni.iter().map(ToString::to_string).collect()),
        list("by", texts(methods)),
        list("at", paths.iter().map(ToString::to_string).collect()),
        list_all("with", headers.iter().map(ToString::to_string).collect()),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// Each rule with what it matches and does. Which endpoints its parts have is said of their backends.
fn of_http_rules(rules: Option<&Rules>) -> BTreeSet<String> {
    let list = rules.iter().flat_map(|rules| &rules.list).enumerate();
    list.map(|(nth, rule)| {
        let wanted = rules.iter().flat_map(|rules| &rules.matches);
        let wanted = wanted.filter(|one| one.rule == nth).map(match_text);
        let wanted: Vec<_> = wanted.collect();
        [wanted.join(" or "), of_http_rule(nth, rule)].concat()
    })
    .collect()
}

fn of_http_rule(nth: usize, rule: &HttpRule) -> String {
    let HttpRule {
        label,
        split,
        timeouts: RuleTimeouts {
            response_headers,
            per_try,
        },
        retries:
            RuleRetries {
                attempts,
                on,
                any_method,
            },
        request,
        response,
        position: _,
    } = rule;
    let mut text = String::new();
    let mut add = |what: &str, value: String| {
        text += &format!(", {what} {value}");
    };
    if *nth.to_string() != **label {
        add("name", label.to_string());
    }
    if let Some(split) = split {
        let parts = split
            .iter()
            .map(|part| format!("{} of {}", part.weight, part.label));
        add("split", parts.collect::<Vec<_>>().join(" and "));
    }
    if let Some(limit) = response_headers {
        add("timeouts.responseHeaders", duration(*limit));
    }
    if let Some(limit) = per_try {
        add("timeouts.perTry", limit.map_or("none".to_owned(), duration));
    }
    if let Some(attempts) = attempts {
        add("retries.attempts", attempts.to_string());
    }
    if let Some(on) = on {
        let on = on.iter().map(|failure| crate::compile::cause(*failure));
        add("retries.on", on.collect::<Vec<_>>().join(" "));
    }
    if let Some(any) = any_method {
        add("retries.any", any.to_string());
    }
    for (way, changes) in [("request", request), ("response", response)] {
        let HeaderChanges {
            set,
            add: more,
            remove,
        } = changes;
        for (kind, fields) in [("set", set), ("add", more)] {
            for field in fields {
                add(
                    &format!("{way} {kind}"),
                    format!("{}: {}", field.name, field.value),
                );
            }
        }
        for name in remove {
            add(&format!("{way} remove"), name.to_string());
        }
    }
    text
}

fn of_mirror(snapshot: &Snapshot, mirror: &Mirror) -> String {
    let Mirror {
        route,
        to,
        host: _,
        share,
        timeout,
        body_bytes_max,
        in_flight_max,
        compare,
        position: _,
    } = mirror;
    let to = snapshot.cluster(*to).endpoints.iter();
    let to: Vec<_> = to.map(|endpoint| endpoint.address.to_string()).collect();
    format!(
        "{} to {route} at {}, timeout {}, bodyLimit {body_bytes_max}B, inFlight {in_flight_max}{}",
        percent(*share),
        to.join(" and "),
        duration(*timeout),
        if *compare { ", compared" } else { "" },
    )
}

/// Each endpoint with its level.
fn of_endpoints(cluster: &Cluster) -> BTreeSet<String> {
    let levels = (1..).zip(&cluster.levels);
    let all = levels.flat_map(|(nth, level)| {
        let members = level.members.iter();
        members.map(move |ix| format!("level {nth}: {}", of_endpoint(cluster.endpoint(*ix))))
    });
    all.collect()
}

fn of_endpoint(endpoint: &Endpoint) -> String {
    let address = &endpoint.address;
    let mut text = match endpoint.peer {
        Some(_) => format!("{address} of peer {}", endpoint.backend),
        None => address.to_string(),
    };
    if (endpoint.weight - 1.0).abs() > f64::EPSILON && endpoint.peer.is_none() {
        text.push_str(&format!(", weight {}", endpoint.weight));
    }
    match &endpoint.tls {
        EndpointTls::None => {}
        EndpointTls::Workload => text.push_str(", tls workload"),
        EndpointTls::Mesh { sni: _, expected } => {
            let expected: Vec<_> = expected.iter().map(ToString::to_string).collect();
            text.push_str(&format!(", who must be {}", expected.join(" or ")));
        }
    }
    match endpoint.version {
        HttpVersion::Same => {}
        HttpVersion::H1 => text.push_str(", version h1"),
        HttpVersion::H2 => text.push_str(", version h2"),
    }
    if endpoint.proxy_protocol {
        text.push_str(", proxyProtocol");
    }
    if let Some(capacity) = endpoint.capacity {
        text.push_str(&format!(
            ", capacity of {} {}/s",
            endpoint.backend,
            capacity.get()
        ));
    }
    text
}

fn of_policy(policy: &ClusterPolicy, fields: &mut Fields) {
    let ClusterPolicy {
        balance,
        spread,
        failover,
        active,
        passive,
        connection_age_max,
        slow_start,
        timeouts,
        retries,
        limits,
    } = policy;
    fields.insert("balance.policy", one(format!("{balance:?}")));
    let age = duration(*connection_age_max);
    fields.insert("balance.maxConnectionAge", one(age));
    let parts = spread
        .iter()
        .map(|part| format!("{}: {:.4}", part.locality, part.weight));
    fields.insert("locality.spread", parts.collect());
    of_failover(failover, fields);
    if let Some(active) = active {
        let asks = match &active.kind {
            ActiveKind::Http { path, .. } => format!("http {path}"),
            ActiveKind::Tcp => "tcp".to_owned(),
            ActiveKind::Grpc { service, .. } => format!("grpc {service:?}"),
        };
        let every = (duration(active.every), duration(active.timeout));
        let (up, down) = (active.up, active.down);
        let text = format!(
            "{asks}, every {}, timeout {}, up {up}, down {down}",
            every.0, every.1
        );
        fields.insert("health.active", one(text));
    }
    of_passive(passive, fields);
    fields.insert("health.slowStart", one(duration(*slow_start)));
    let Timeouts {
        connect,
        connect_peer,
        response_headers,
        idle,
        per_try,
    } = timeouts;
    let connect = format!(
        "{}, to a peer {}",
        duration(*connect),
        duration(*connect_peer)
    );
    fields.insert("timeouts.connect", one(connect));
    fields.insert("timeouts.responseHeaders", one(duration(*response_headers)));
    fields.insert("timeouts.idle", one(duration(*idle)));
    fields.insert("timeouts.perTry", maybe(per_try.map(duration)));
    let Retries {
        attempts,
        on,
        budget,
        buffer_bytes_max,
        any_method,
        hedge_after,
    } = retries;
    fields.insert("retries.attempts", one(attempts));
    fields.insert("retries.on", on.iter().map(of_failure).collect());
    fields.insert("retries.budget", one(percent(*budget)));
    fields.insert("retries.buffer", one(format!("{buffer_bytes_max}B")));
    fields.insert("retries.any", one(any_method));
    fields.insert("retries.hedge.after", maybe(hedge_after.map(duration)));
    fields.insert("limits.connections", maybe(limits.connections));
    fields.insert("limits.pending", maybe(limits.pending));
    fields.insert("limits.requests", maybe(limits.requests));
}

fn of_failure(failure: &Failure) -> String {
    if let Failure::Status(status) = failure {
        return status.to_string();
    }
    failure.label().to_owned()
}

fn of_failover(failover: &Failover, fields: &mut Fields) {
    let Failover {
        // "with endpoints down" says what these mean.
        start: _,
        full: _,
        too_few: _,
        hold,
        failback_after,
        failback_ramp,
        failback,
    } = failover;
    fields.insert("failover.hold", one(duration(*hold)));
    fields.insert("failover.failback.after", one(duration(*failback_after)));
    fields.insert("failover.failback.ramp", one(duration(*failback_ramp)));
    let mode = match failback {
        Failback::Auto => "auto",
        Failback::Manual => "manual",
    };
    fields.insert("failover.failback.mode", one(mode));
}

fn of_passive(passive: &PassiveCheck, fields: &mut Fields) {
    let PassiveCheck {
        consecutive,
        on,
        error_rate,
        slow,
        eject,
        max_ejected,
        keep_at_least,
    } = passive;
    let rate = error_rate.map(|rate| format!("over {} of {}", percent(rate.over), rate.requests));
    fields.insert("health.passive.consecutive", one(consecutive));
    fields.insert("health.passive.on", on.iter().map(of_failure).collect());
    fields.insert("health.passive.errorRate", maybe(rate));
    let slow = slow.map(|slow| format!("over {}x of {}", slow.over, slow.requests));
    fields.insert("health.passive.slow", maybe(slow));
    fields.insert("health.passive.eject", one(duration(*eject)));
    fields.insert("health.passive.maxEjected", one(percent(*max_ejected)));
    fields.insert("health.passive.keepAtLeast", one(keep_at_least));
}

impl Difference {
    /// What of it ends open connections, by the rules of a recheck, in words; what only moves where new
    /// connections go ends none.
    pub fn ends(&self) -> impl Iterator<Item = String> {
        let Self {
            kind, name, change, ..
        } = self;
        // A listener of a one-route service may only have another name: that ends nothing.
        let gone = (*change == Change::Removed && matches!(*kind, "listener" | "service"))
            .then(|| format!("what is open by {kind} {name}: it is gone"));
        let fields = self.fields.iter().filter(|field| field.ends);
        let fields = fields
            .filter(|_| *change == Change::Changed)
            .map(move |field| {
                let field = field.field;
                format!("what only `{field}` of {kind} {name} let in as it is")
            });
        gone.into_iter().chain(fields)
    }
}

impl fmt::Display for Difference {
    /// For what is new or gone, what says who reaches it and where it goes; else every field.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} {} {}", self.change.sign(), self.kind, self.name)?;
        for field in &self.fields {
            let matters = [
                MAY_CALL,
                MAY_NOT_CALL,
                EXPORTED,
                ANSWERS,
                "endpoints",
                "address",
            ];
            if self.change != Change::Changed && !matters.contains(&field.field) {
                continue;
            }
            let ends = if field.ends {
                " (ends what only this let in)"
            } else {
                ""
            };
            writeln!(f, "    {}:{ends}", field.field)?;
            for (sign, values) in [('-', &field.removed), ('+', &field.added)] {
                for value in values {
                    writeln!(f, "      {sign} {value}")?;
                }
            }
        }
        Ok(())
    }
}
