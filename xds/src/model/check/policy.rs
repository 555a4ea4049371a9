//! Locality, failover, health, timeouts, retries and mirrors of a route.

use zeugma_core::locality::Locality;
use zeugma_core::snapshot::Failure;

use super::Checker;
use crate::compile::target::{self, Target};
use crate::compile::{levels, start_of};
use crate::error::Code;
use crate::model::scalar::{Cause, Percent, Text};
use crate::model::{
    ActiveSpec, BalancePolicy, Document, HashSpec, InboundSpec, MeshGateway, MeshRoute, MirrorSpec,
    Model, Port, ProtocolSpec, Selector,
};

pub(super) fn check(model: &Model, check: &mut Checker<'_, MeshRoute>) {
    let has_http = check
        .document
        .ports()
        .iter()
        .any(|port| port.protocol == ProtocolSpec::Http);
    locality(model, check);
    failover(model, check);
    balance(check, has_http);
    health(check, has_http);
    timeouts(check, has_http);
    retries(check, has_http);
    limits(check, has_http);
    let mirrors = &check.document.spec.mirror;
    for (at, spec) in mirrors.iter().enumerate() {
        mirror(model, check, &spec.value, &format!("spec.mirror[{at}]"));
    }
}

/// The most localities that a level is spread over.
const SPREAD_MAX: usize = 64;

fn spread(model: &Model, check: &mut Checker<'_, MeshRoute>) {
    const PATH: &str = "spec.locality.spread";
    let Some(spread) = &check.document.spec.locality.spread else {
        return;
    };
    for place in spread.keys() {
        if let Err(error) = Locality::parse(place) {
            check.value(
                Code::BadValue,
                PATH,
                format!("`{place}`: {error}"),
                "write localities and their shares, such as `{ eu/eu-1: 80%, eu/eu-2: 20% }`",
            );
        }
    }
    if spread.values().all(|share| share.0.0 == 0.0) {
        check.value(
            Code::Contradiction,
            PATH,
            "no locality has a share".to_owned(),
            "give one of them more than 0%",
        );
    }
    if spread.len() > SPREAD_MAX {
        check.value(
            Code::TooLarge,
            PATH,
            format!("{} localities are more than {SPREAD_MAX}", spread.len()),
            "name fewer localities, or leave it to the endpoints",
        );
    }
    let seen = model.gateways.iter().find_map(|gateway| {
        let error = spread_seen_by(model, check.document, gateway)?;
        Some((&gateway.name, error))
    });
    if let Some((name, (what, help))) = seen {
        let what = format!("seen from gateway `{name}`, {what}");
        check.value(Code::Contradiction, PATH, what, &help);
    }
}

/// What is wrong with it as one gateway sees the localities.
fn spread_seen_by(
    model: &Model,
    route: &Document<MeshRoute>,
    gateway: &Document<MeshGateway>,
) -> Option<(String, String)> {
    let here = gateway.spec.locality.as_ref();
    let node = gateway.node(here.map(|here| here.0.clone()).unwrap_or_default());
    let ports = route.ports();
    let targets = target::targets(model, route, ports.first()?, &node);
    let targets: Vec<&Target> = targets.iter().collect();
    let (locality, failover) = (&route.spec.locality, &route.spec.failover);
    let levels = levels::levels(&targets, &node.locality, locality, failover);
    // Where nothing is left, another finding says so.
    (!levels.is_empty())
        .then(|| levels::spread_error(&targets, &levels, &levels::spread(locality)))?
}

fn locality(model: &Model, check: &mut Checker<'_, MeshRoute>) {
    spread(model, check);
    let Some(prefer) = &check.document.spec.locality.prefer else {
        return;
    };
    for (at, pair) in prefer.windows(2).enumerate() {
        if let [near, far] = pair
            && near >= far
        {
            check.value(
                Code::NoEffect,
                &format!("spec.locality.prefer[{}]", at + 1),
                "this step has no effect: the one before it is as wide or wider".to_owned(),
                "write the steps from near to far, such as `[subzone, zone, region]`",
            );
        }
    }
}

fn failover(model: &Model, check: &mut Checker<'_, MeshRoute>) {
    let route = check.document;
    let spec = &route.spec.failover;
    let order = spec.order.iter().flatten().enumerate();
    for (at, selector) in order {
        selects_something(
            model,
            check,
            selector,
            &format!("spec.failover.order[{at}]"),
        );
    }
    for (at, selector) in spec.never.iter().enumerate() {
        selects_something(
            model,
            check,
            selector,
            &format!("spec.failover.never[{at}]"),
        );
    }
    let full = spec.full.as_ref().map_or(0.0, |full| full.0.0);
    if full >= 1.0 {
        check.value(
            Code::Contradiction,
            "spec.failover.full",
            "with `full: 100%` a level takes nothing even while all of it is healthy".to_owned(),
            "write less than `100%`",
        );
        return;
    }
    for port in route.ports() {
        let start = start_of(&route.spec, port.protocol);
        if full > start {
            let path = if spec.full.is_some() {
                "spec.failover.full"
            } else {
                "spec.failover.start"
            };
            check.value(
                Code::Contradiction,
                path,
                format!(
                    "`full` ({}) is over `start` ({})",
                    Percent(full),
                    Percent(start)
                ),
                "traffic starts to leave at `start` and has left at `full`",
            );
            return;
        }
    }
}

fn selects_something(
    model: &Model,
    check: &mut Checker<'_, MeshRoute>,
    selector: &Selector,
    path: &str,
) {
    let route = check.document;
    let mut known: Vec<String> = Vec::new();
    // For every gateway of these files: one that has the backends at another place may need it.
    for gateway in &model.gateways {
        for (at, backend) in route.spec.backends.iter().enumerate() {
            let own_cluster = &gateway.spec.cluster.0.0;
            let cluster = backend
                .cluster
                .as_ref()
                .map_or(own_cluster, |cluster| &cluster.0.0);
            let peer = match &backend.peer {
                Some(Text(peer)) => model.peer(&peer.0),
                None if cluster != own_cluster => model.peer_of_cluster(cluster),
                None => None,
            };
            match selector {
                Selector::Backend(_) => {
                    known.push(backend.display_name(at));
                    known.extend(peer.map(|peer| peer.name.clone()));
                }
                Selector::Cluster(_) => known.push(
                    peer.map_or_else(|| cluster.clone(), |peer| peer.spec.cluster.0.0.clone()),
                ),
                Selector::Region(_) => {
                    let places = [
                        backend.locality.as_ref(),
                        peer.map(|peer| &peer.spec.locality),
                        gateway.spec.locality.as_ref(),
                    ];
                    known.extend(
                        places
                            .into_iter()
                            .flatten()
                            .map(|place| place.0.region.to_string()),
                    );
                }
            }
        }
    }
    let (kind, Text(name)) = match selector {
        Selector::Region(name) => ("region", name),
        Selector::Cluster(name) => ("cluster", name),
        Selector::Backend(name) => ("backend", name),
    };
    // What defaults name is not in every route.
    let is_wrong = !known.is_empty() && !known.contains(&name.0);
    if is_wrong && !check.is_inherited(path) {
        // Of any of the peers the region may have changed.
        let peers = model.peers.iter().map(Document::nth);
        check.beside(peers, |check| {
            check.unknown(
                &format!("{path}.{kind}"),
                match selector {
                    Selector::Backend(_) => {
                        format!("no backend of this route is called `{}`", name.0)
                    }
                    Selector::Region(_) | Selector::Cluster(_) => {
                        format!("no backend of this route is in {kind} `{}`", name.0)
                    }
                },
                &name.0,
                known.iter().map(String::as_str),
            )
        });
    }
}

fn balance(check: &mut Checker<'_, MeshRoute>, has_http: bool) {
    let policy = &check.document.spec.balance.policy;
    if !has_http && check.document.spec.balance.max_connection_age.is_some() {
        http_only(check, "spec.balance.maxConnectionAge");
    }
    let by_header = match policy {
        Some(BalancePolicy::RingHash(HashSpec::Header(_))) => Some("ring-hash"),
        Some(BalancePolicy::Maglev(HashSpec::Header(_))) => Some("maglev"),
        Some(_) | None => None,
    };
    if let Some(policy) = by_header.filter(|_| !has_http) {
        check.no_effect(
            &format!("spec.balance.policy.{policy}.header"),
            "no port of the route is http",
            &format!("write `{policy}: source`"),
        );
    }
}

fn health(check: &mut Checker<'_, MeshRoute>, has_http: bool) {
    let health = &check.document.spec.health;
    if let Some(spec) = &health.active {
        active(check, spec, has_http);
    }
    let passive = &health.passive;
    if let Some(on) = &passive.on {
        causes(check, "spec.health.passive.on", on, has_http);
    }
    check.range(
        "spec.health.passive.errorRate.requests",
        passive.error_rate.requests,
        1..=1_000_000,
    );
    check.range(
        "spec.health.passive.slow.requests",
        passive.slow.requests,
        1..=1_000_000,
    );
    // What it inherits may have an effect elsewhere. Where things are written is read last: that takes
    // as long as all the rest.
    if passive.slow.over.is_none()
        && passive.slow.requests.is_some()
        && (check.document).is_written("spec.health.passive.slow.requests")
    {
        check.no_effect(
            "spec.health.passive.slow.requests",
            "nothing is ejected for being slow",
            "write `over` beside it, or remove it",
        );
    }
    check.at_least("spec.health.passive.eject", passive.eject.as_ref(), 1);
}

/// Causes that only http has.
fn causes(check: &mut Checker<'_, MeshRoute>, path: &str, on: &[Text<Cause>], has_http: bool) {
    for (at, Text(Cause(cause))) in on.iter().enumerate() {
        let is_http = matches!(
            cause,
            Failure::Status(_) | Failure::Unavailable | Failure::Grpc(_) | Failure::RefusedStream
        );
        if is_http && !has_http {
            check.value(
                Code::NoEffect,
                &format!("{path}[{at}]"),
                "this cause has no effect: only http has it".to_owned(),
                "remove it, or write `protocol: http`",
            );
        }
    }
}

/// The longest service that a check asks for.
const GRPC_SERVICE_BYTES_MAX: usize = 255;

fn active(check: &mut Checker<'_, MeshRoute>, spec: &ActiveSpec, has_http: bool) {
    let path = "spec.health.active";
    match (&spec.http, &spec.grpc, spec.tcp) {
        (Some(_), None, None) | (None, Some(_), None) | (None, None, Some(true)) => {}
        _ => check.key(
            Code::Contradiction,
            path,
            "an active check asks one thing".to_owned(),
            "write `http: /path`, `grpc: package.Service`, or `tcp: true`",
        ),
    }
    for (field, is_written) in [("http", spec.http.is_some()), ("grpc", spec.grpc.is_some())] {
        let field = format!("{path}.{field}");
        if is_written && !has_http {
            let why = "no port of the route is http";
            check.no_effect(&field, why, "write `tcp: true`");
        } else if is_written && check.document.first_host().is_none() {
            check.key(
                Code::Contradiction,
                &field,
                "the route has only wildcards, and a check asks for one host".to_owned(),
                "add a host without `*`, or write `tcp: true`",
            );
        }
    }
    if let Some(grpc) = &spec.grpc
        && (grpc.len() > GRPC_SERVICE_BYTES_MAX || grpc.chars().any(char::is_control))
    {
        check.value(
            Code::BadValue,
            &format!("{path}.grpc"),
            "it is not the name of a service".to_owned(),
            "write a name of at most 255 bytes, such as `shop.Orders`, or \"\"",
        );
    }
    if let Some(http) = &spec.http
        && (!http.starts_with('/') || http.chars().any(|c| c.is_whitespace() || c.is_control()))
    {
        check.value(
            Code::BadValue,
            &format!("{path}.http"),
            format!("`{http}` is not a path"),
            "write a path that begins with `/`, such as `/healthz`",
        );
    }
    check.at_least(&format!("{path}.every"), spec.every.as_ref(), 100);
    check.at_least(&format!("{path}.timeout"), spec.timeout.as_ref(), 1);
    check.range(&format!("{path}.up"), spec.up, 1..=100);
    check.range(&format!("{path}.down"), spec.down, 1..=100);
}

fn timeouts(check: &mut Checker<'_, MeshRoute>, has_http: bool) {
    let spec = &check.document.spec.timeouts;
    for (is_written, field) in [
        (spec.response_headers.is_some(), "responseHeaders"),
        (spec.per_try.is_some(), "perTry"),
    ] {
        if is_written && !has_http {
            http_only(check, &format!("spec.timeouts.{field}"));
        }
    }
    check.at_least("spec.timeouts.connect", spec.connect.as_ref(), 1);
    check.at_least(
        "spec.timeouts.responseHeaders",
        spec.response_headers.as_ref(),
        1,
    );
    check.at_least("spec.timeouts.idle", spec.idle.as_ref(), 1);
    let per_try = spec.per_try.as_ref().and_then(|limit| limit.0.0).map(Text);
    check.at_least("spec.timeouts.perTry", per_try.as_ref(), 1);
}

fn http_only(check: &mut Checker<'_, MeshRoute>, path: &str) {
    check.no_effect(
        path,
        "the route is tcp",
        "remove it, or write `protocol: http`",
    );
}

fn limits(check: &mut Checker<'_, MeshRoute>, has_http: bool) {
    let route = check.document;
    let has_tcp = route
        .ports()
        .iter()
        .any(|port| port.protocol == ProtocolSpec::Tcp);
    let limits = &route.spec.limits;
    for (value, field, is_http) in [
        (limits.connections, "connections", false),
        (limits.pending, "pending", true),
        (limits.requests, "requests", true),
    ] {
        if value.is_none() {
            continue;
        }
        let path = format!("spec.limits.{field}");
        check.range(&path, value, 1..=10_000_000);
        if is_http && !has_http {
            http_only(check, &path);
        }
        if !is_http && !has_tcp {
            check.no_effect(
                &path,
                "the route is http, where requests are counted",
                "remove it, or write `requests`",
            );
        }
    }
}

/// Extra tries of one request.
pub(super) const ATTEMPTS_MAX: u32 = 10;

fn retries(check: &mut Checker<'_, MeshRoute>, has_http: bool) {
    let spec = &check.document.spec.retries;
    check.range("spec.retries.attempts", spec.attempts, 0..=ATTEMPTS_MAX);
    check.size("spec.retries.buffer", spec.buffer.as_ref(), 0..=16 << 20);
    // What no endpoint saw is always tried elsewhere; bytes that one saw never are.
    for (is_written, field) in [
        (spec.attempts.is_some(), "attempts"),
        (spec.budget.is_some(), "budget"),
        (spec.on.is_some(), "on"),
        (spec.buffer.is_some(), "buffer"),
        (spec.any.is_some(), "any"),
        (spec.hedge.after.is_some(), "hedge.after"),
    ] {
        if is_written && !has_http {
            http_only(check, &format!("spec.retries.{field}"));
        }
    }
    let after = spec.hedge.after.as_ref();
    let after = after.and_then(|after| after.0.0).map(Text);
    check.at_least("spec.retries.hedge.after", after.as_ref(), 1);
    // What it inherits may have an effect elsewhere.
    if after.is_some()
        && spec.attempts == Some(0)
        && !check
            .document
            .spec
            .rules
            .iter()
            .any(|rule| rule.value.retries.attempts.is_some())
        && check.document.is_written("spec.retries.hedge.after")
    {
        check.no_effect(
            "spec.retries.hedge.after",
            "there are no extra tries (`attempts: 0`)",
            "write more `attempts`, or remove it",
        );
    }
}

fn mirror(model: &Model, check: &mut Checker<'_, MeshRoute>, spec: &MirrorSpec, path: &str) {
    let route = check.document;
    let id = spec.route.0.id(&route.namespace);
    let route_path = format!("{path}.route");
    match model.route(&id) {
        None => {
            check.unknown(
                &route_path,
                format!("no MeshRoute `{id}`"),
                &id,
                model.route_ids(),
            );
        }
        Some(_) if id == route.id() => check.value(
            Code::Contradiction,
            &route_path,
            "a route cannot be its own mirror".to_owned(),
            "name another route",
        ),
        Some(to) => check.beside([to.nth()], |check| {
            mirror_target(check, to, &id, &route_path);
        }),
    }
    if let Some(Text(peer)) = &spec.peer
        && model.peer(&peer.0).is_none()
    {
        check.unknown(
            &format!("{path}.peer"),
            format!("no MeshPeer `{}`", peer.0),
            &peer.0,
            model.peers.iter().map(|peer| peer.name.as_str()),
        );
    }
    if spec.percent.as_ref().is_some_and(|share| share.0.0 <= 0.0) {
        check.no_effect(
            &format!("{path}.percent"),
            "nothing would be copied",
            "write more than `0%`, or remove the mirror",
        );
    }
    check.at_least(&format!("{path}.timeout"), spec.timeout.as_ref(), 1);
    check.size(
        &format!("{path}.bodyLimit"),
        spec.body_limit.as_ref(),
        0..=16 << 20,
    );
    check.range(&format!("{path}.inFlight"), spec.in_flight, 1..=10_000);
    let is_tcp = (check.document.ports().iter()).all(|port| port.protocol == ProtocolSpec::Tcp);
    if is_tcp && spec.compare == Some(true) {
        http_only(check, &format!("{path}.compare"));
    }
    if is_tcp && spec.body_limit.as_ref().is_some_and(|size| size.0.0 == 0) {
        check.no_effect(
            &format!("{path}.bodyLimit"),
            "no byte could wait for the copy of a connection",
            "write at least 1B, or remove it",
        );
    }
}

fn mirror_target(
    check: &mut Checker<'_, MeshRoute>,
    to: &Document<MeshRoute>,
    id: &str,
    path: &str,
) {
    let (own, theirs) = (check.document.ports(), to.ports());
    let has = |ports: &[Port], protocol| ports.iter().any(|port| port.protocol == protocol);
    let mut common = [ProtocolSpec::Http, ProtocolSpec::Tcp]
        .into_iter()
        .filter(|protocol| has(&own, *protocol) && has(&theirs, *protocol))
        .peekable();
    if common.peek().is_none() {
        let (is, copies, name) = if has(&theirs, ProtocolSpec::Tcp) {
            ("tcp", "copies are http requests", "http")
        } else {
            ("http", "copies are connections of tcp", "tcp")
        };
        check.no_effect(
            path,
            &format!("`{id}` is {is}, and {copies}"),
            &format!("name a route of protocol {name}"),
        );
        return;
    }
    if to.first_host().is_none() {
        check.value(
            Code::Contradiction,
            path,
            format!("`{id}` has only wildcards, and a copy is sent to one host"),
            "add a host without `*` there",
        );
        return;
    }
    for protocol in common {
        if protocol == ProtocolSpec::Tcp && !passes_bytes(check, to, id, path) {
            continue;
        }
        let mut here = own.iter().filter(|port| port.protocol == protocol);
        let there: Vec<u16> = (theirs.iter())
            .filter(|port| port.protocol == protocol)
            .map(|port| port.port)
            .collect();
        if there.len() > 1
            && let Some(port) = here.find(|port| !there.contains(&port.port))
        {
            check.value(
                Code::Contradiction,
                path,
                format!("`{id}` has several ports but no port {}", port.port),
                "give it that port, or mirror to a route with one port",
            );
        }
    }
}

/// Whether what a tcp route and its mirror carry is plain bytes to the gateway.
fn passes_bytes(
    check: &mut Checker<'_, MeshRoute>,
    to: &Document<MeshRoute>,
    id: &str,
    path: &str,
) -> bool {
    if check.document.inbound() == InboundSpec::Passthrough {
        check.no_effect(
            path,
            "the route passes its callers' TLS through, and what is encrypted for one endpoint means nothing to another",
            "write `inbound: terminate`, or remove it",
        );
        return false;
    }
    if to.inbound() == InboundSpec::Passthrough {
        check.no_effect(
            path,
            &format!("the endpoints of `{id}` speak TLS themselves, and copies are plain bytes"),
            "name a route with `inbound: terminate`, or remove it",
        );
        return false;
    }
    true
}
