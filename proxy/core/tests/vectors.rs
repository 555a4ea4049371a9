//! Answers of other implementations (Envoy, Istio, tower), taken from their unit tests or measured,
//! against ours. Every vector is asked, answered otherwise on purpose, or not ours to answer; the
//! last two say why.

#![expect(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use zeugma_core::admission::RouteLimits;
use zeugma_core::authorize::{Asking, Evidence, Verdict, authorize};
use zeugma_core::balance::{Candidates, Slots, pick};
use zeugma_core::fleet::{Fleet, Observation};
use zeugma_core::hello::ClientHello;
use zeugma_core::identity::{IdPattern, SpiffeId, TrustDomain};
use zeugma_core::locality::Locality;
use zeugma_core::names::HostPattern;
use zeugma_core::plan::{Why, plan};
use zeugma_core::retry::RetryBudget;
use zeugma_core::route::{Routed, route_plaintext, route_tls};
use zeugma_core::shares::{ClusterShares, EndpointStatus, capacity, healthy_share};
use zeugma_core::snapshot::*;
use zeugma_core::time::Time;

/// Level shares in percent, as we answer them, where that is not what Envoy does.
const SHARES_OTHERWISE: &[(&str, &[f64], &str)] = &[
    ("priority-09", &[0.0, 100.0], NO_PANIC),
    ("priority-17", &[0.0, 0.0, 100.0], NO_PANIC),
    ("priority-19", &[100.0, 0.0, 0.0], NEAREST),
    ("priority-24", &[100.0, 0.0, 0.0], NEAREST),
    ("priority-26", &[100.0, 0.0], NEAREST),
    ("priority-27", &[100.0, 0.0], NEAREST),
    ("priority-measured-01", &[35.7, 35.7, 28.6], NO_PANIC),
    ("priority-measured-07", &[100.0, 0.0], NEAREST),
];
const NO_PANIC: &str = "while anything is healthy only healthy endpoints are used, by capacity; \
    Envoy panics and spreads over all hosts";
const NEAREST: &str = "with nothing healthy `tooFew: use-all` uses the nearest level that has \
    passively ejected endpoints; Envoy spreads over the hosts of all levels";

/// Other questions answered otherwise on purpose: what `otherwise` asserts, and why.
const OTHERWISE: &[(&str, &str)] = &[
    (
        "panic-01",
        "2 of 6 healthy: those 2 are used; Envoy panics below 50 % and uses all 6",
    ),
    (
        "sni-filter-chain-09",
        "one trailing dot is the same name (it is absolute), not an unknown one",
    ),
    (
        "sni-filter-chain-14",
        "ALPN does not choose a service: it is the SNI's, and HTTP follows from ALPN",
    ),
    (
        "retry-budget-02",
        "a budget always allows 10 extra tries in 10 s: quiet services retry too",
    ),
];

/// What has no counterpart here.
const NOT_OURS: &[(&str, &str)] = &[
    ("priority-21", DEGRADED),
    ("priority-22", DEGRADED),
    ("locality-weight-07", IN_TURN),
    ("locality-weight-09", IN_TURN),
    ("locality-weight-12", IN_TURN),
    ("zone-aware-01", ZONE),
    ("zone-aware-02", ZONE),
    ("zone-aware-04", ZONE),
    ("outlier-01", DEVIATION),
    ("outlier-09", DEVIATION),
    (
        "outlier-11",
        "defaults are configuration's; passive checks here are always enforced",
    ),
    ("istio-failover-01", LEVELS),
    ("istio-failover-02", LEVELS),
    ("istio-failover-04", SPREAD),
    ("istio-failoverPriority-01", LABELS),
    ("istio-failoverPriority-02", LABELS),
    (
        "rbac-07",
        "a certificate's subject is no identity: only its one SPIFFE ID is",
    ),
    (
        "rbac-11",
        "rules name no port: each port of a route is a service with a policy of its own",
    ),
    ("sni-filter-chain-19", SOURCE_CHAIN),
    ("sni-filter-chain-21", PORT_CHAIN),
    ("sni-filter-chain-22", PORT_CHAIN),
    ("sni-filter-chain-24", SOURCE_CHAIN),
    ("sni-filter-chain-26", SOURCE_CHAIN),
    ("sni-filter-chain-27", SOURCE_CHAIN),
];
const DEGRADED: &str = "there is no degraded state: an endpoint is used or not";
const SPREAD: &str =
    "`locality.spread` is weights of localities inside one level, and an error over several";
const IN_TURN: &str = "the locality is drawn by its share, not taken in turn";
const ZONE: &str = "there is no routing by the callers' distribution over zones: the nearest \
    level comes first and spills by health and capacity";
const DEVIATION: &str = "ejection is by share of failures (`errorRate`), not by deviation from \
    the other hosts' success rates";
const LEVELS: &str = "levels are computed when configuration is compiled, and tested there";
const LABELS: &str = "levels follow from localities and `order`, not from labels";
const SOURCE_CHAIN: &str = "sources do not choose a service: they are a matter of policy";
const PORT_CHAIN: &str = "a listener has one address: its port is no further condition";

#[test]
fn every_vector_is_asked_or_has_a_reason() {
    let file: Value = serde_json::from_str(include_str!("vectors/policy.json")).unwrap();
    let vectors = file["vectors"].as_array().unwrap();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for vector in vectors {
        let id = vector["id"].as_str().unwrap();
        let outcome = if reason(NOT_OURS, id).is_some() {
            "not ours"
        } else if reason(OTHERWISE, id).is_some() {
            otherwise(id, &vector["input"]);
            "otherwise"
        } else {
            ask(id, vector)
        };
        *counts.entry(outcome).or_default() += 1;
    }
    assert_eq!(
        Some(vectors.len()),
        file["count"].as_u64().map(|n| n as usize)
    );
    let known = SHARES_OTHERWISE.len() + OTHERWISE.len() + NOT_OURS.len();
    let excused = counts["not ours"] + counts["otherwise"];
    assert_eq!(excused, known, "an id in the tables is of no vector");
    assert_eq!(counts["same"], vectors.len() - known);
}

fn reason<'a>(table: &[(&str, &'a str)], id: &str) -> Option<&'a str> {
    table
        .iter()
        .find(|(of, _)| *of == id)
        .map(|(_, reason)| *reason)
}

fn ask(id: &str, vector: &Value) -> &'static str {
    let (input, expected) = (&vector["input"], &vector["expected"]);
    match vector["group"].as_str().unwrap() {
        "priority" | "priority-weighted" | "priority-measured" => {
            return ask_shares(id, input, expected);
        }
        "locality-weight" => ask_locality_weight(id, input, expected),
        "panic" => ask_panic(id, input, expected),
        "wrr" => ask_wrr(id, input, expected),
        "outlier" => ask_outlier(id, input, expected),
        "retry-budget" => {
            let share = number(&input["budget_percent"]) / 100.0;
            let taken = RetryBudget::default().take(share, Time::ZERO);
            assert_eq!(Value::Bool(taken), expected["retry"], "{id}");
        }
        "rbac" => ask_rbac(id, input, expected),
        "sni-filter-chain" => {
            let chain = chain(id, input);
            // What no server name matches goes to a catch-all chain, or is closed: refused here.
            let theirs = match expected["chain"].as_str().unwrap() {
                "any-tls" | "tls" | "CLOSED" | "DEFAULT" => None,
                named => Some(named.to_owned()),
            };
            assert_eq!(chain, theirs, "{id}");
        }
        "sni-filter-chain-invalid" => ask_invalid(id, input),
        group => panic!("{id}: nobody asks the group {group}"),
    }
    "same"
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

fn count(value: &Value) -> usize {
    value.as_u64().unwrap() as usize
}

// Shares.

/// Levels of (weight, healthy) endpoints, and the start that an overprovisioning factor means.
fn levels(input: &Value) -> (Vec<Vec<(f64, bool)>>, f64) {
    let flat =
        |healthy: usize, bad: usize| [vec![(1.0, true); healthy], vec![(1.0, false); bad]].concat();
    if let Some(levels) = input["levels"].as_array() {
        // Excluded hosts are not counted; here they would not be in the cluster yet.
        let of = |level: &Value| {
            let all = count(&level["hosts"]) - count(&level["excluded"]);
            let healthy = count(&level["healthy"]);
            flat(healthy, all - healthy)
        };
        let factor = number(&input["overprovisioning_factor"]);
        return (levels.iter().map(of).collect(), 100.0 / factor);
    }
    if let Some(levels) = input["levels_healthy_unhealthy"].as_array() {
        let of = |level: &Value| flat(count(&level[0]), count(&level[1]));
        return (levels.iter().map(of).collect(), 100.0 / 140.0);
    }
    let of = |level: &Value| {
        (level.as_array().unwrap().iter())
            .filter(|host| host[1] != "excluded")
            .map(|host| (number(&host[0]), host[1] == "H"))
            .collect()
    };
    let levels = ["P0", "P1"].map(|level| of(&input[level])).to_vec();
    (levels, 100.0 / number(&input["opf"]))
}

fn shares_of(levels: &[Vec<(f64, bool)>], start: f64) -> (Cluster, ClusterShares) {
    let sizes: Vec<usize> = levels.iter().map(Vec::len).collect();
    let mut cluster = cluster(&sizes);
    Arc::make_mut(&mut cluster.policy).failover.start = start;
    let hosts = levels.concat();
    for (endpoint, (weight, _)) in cluster.endpoints.iter_mut().zip(&hosts) {
        endpoint.weight = *weight;
    }
    let status = |(_, healthy): &(f64, bool)| match healthy {
        true => EndpointStatus::Healthy,
        false => EndpointStatus::Ejected,
    };
    let statuses: Vec<_> = hosts.iter().map(status).collect();
    let capacities: Vec<f64> = (0..levels.len())
        .map(|level| {
            capacity(
                healthy_share(&cluster, &statuses, &[], level),
                &cluster.policy.failover,
            )
        })
        .collect();
    let shares = ClusterShares::new(&cluster, statuses, Vec::new(), &capacities);
    (cluster, shares)
}

fn ask_locality_weight(id: &str, input: &Value, expected: &Value) {
    let weights: Vec<f64> = input["weights"]
        .as_array()
        .unwrap()
        .iter()
        .map(number)
        .collect();
    let list = |name: &str| -> Vec<usize> {
        let list = input[name].as_array();
        list.map_or_else(
            || vec![1; weights.len()],
            |list| list.iter().map(count).collect(),
        )
    };
    let (hosts, healthy) = (list("hosts"), list("healthy"));
    let mut cluster = cluster(&[hosts.iter().sum()]);
    let policy = Arc::make_mut(&mut cluster.policy);
    let factor = input["opf"].as_f64().unwrap_or(140.0);
    policy.failover.start = 100.0 / factor;
    let place = |at: usize| Locality::parse(&format!("r/z{at}")).unwrap();
    let parts = weights.iter().enumerate();
    policy.spread = parts
        .map(|(at, weight)| SpreadPart {
            locality: place(at),
            weight: *weight,
        })
        .collect();
    let mut statuses = Vec::new();
    for (at, (hosts, healthy)) in hosts.iter().zip(&healthy).enumerate() {
        for nth in 0..*hosts {
            cluster.endpoints[statuses.len()].locality = place(at);
            statuses.push(match nth < *healthy {
                true => EndpointStatus::Healthy,
                false => EndpointStatus::Ejected,
            });
        }
    }
    let shares = ClusterShares::new(&cluster, statuses, Vec::new(), &[1.0]);
    let ours = &shares.spread.unwrap().shares;
    let theirs = expected["picks"]
        .as_array()
        .or_else(|| expected["counts"].as_array());
    let theirs: Vec<f64> = theirs.unwrap().iter().map(number).collect();
    let all: f64 = theirs.iter().sum();
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert!(
            (ours - theirs / all).abs() < 0.005,
            "{id}: {ours}, not {theirs} of {all}"
        );
    }
}

fn ask_shares(id: &str, input: &Value, expected: &Value) -> &'static str {
    let (levels, start) = levels(input);
    let (_, shares) = shares_of(&levels, start);
    let ours: Vec<f64> = shares.levels.iter().map(|share| share * 100.0).collect();
    let theirs: Vec<f64> = match expected["healthy_load"].as_array() {
        Some(loads) => loads.iter().map(number).collect(),
        None => (0..levels.len())
            .map(|l| number(&expected[format!("P{l}")]))
            .collect(),
    };
    let otherwise = SHARES_OTHERWISE.iter().find(|(of, _, _)| *of == id);
    let wanted = otherwise.map_or(&*theirs, |(_, wanted, _)| wanted);
    // Envoy counts in whole percent; measurements are good to 1.5 points.
    let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1.5);
    assert!(close(&ours, wanted), "{id}: {ours:?}, not {wanted:?}");
    match otherwise {
        None => "same",
        Some((_, _, reason)) => {
            assert!(!close(&ours, &theirs), "{id} is as theirs, though {reason}");
            "otherwise"
        }
    }
}

fn ask_panic(id: &str, input: &Value, expected: &Value) {
    let (healthy, hosts) = (count(&input["healthy"]), count(&input["hosts"]));
    let level = [
        vec![(1.0, true); healthy],
        vec![(1.0, false); hosts - healthy],
    ]
    .concat();
    let (mut cluster, mut shares) = shares_of(&[level], 0.7);
    if input["threshold"] == 0 {
        Arc::make_mut(&mut cluster.policy).failover.too_few = TooFew::Fail;
        shares = ClusterShares::new(&cluster, shares.endpoints, Vec::new(), &[0.0]);
    }
    // Not those that come when all of these have failed.
    let tried: Vec<_> = plan(&cluster, &shares, &|_| 0, 1)
        .take_while(|attempt| attempt.why != Why::TooFew)
        .collect();
    if expected["pick_from"] == "healthy" {
        assert_eq!(tried.len(), healthy, "{id}");
        assert!(
            tried.iter().all(|attempt| attempt.endpoint.0 < healthy),
            "{id}"
        );
    } else {
        assert!(expected["host"].is_null() && tried.is_empty(), "{id}");
    }
}

/// Envoy's order of turns is its scheduler's; what must be the same is how often each is picked.
fn ask_wrr(id: &str, input: &Value, expected: &Value) {
    let weights: Vec<f64> = input["weights"]
        .as_array()
        .unwrap()
        .iter()
        .map(number)
        .collect();
    let wanted: Vec<usize> = match expected["counts"].as_array() {
        Some(counts) => counts.iter().map(count).collect(),
        None => {
            let order = expected["order"].as_array().unwrap();
            let of = |ix| order.iter().filter(|turn| count(turn) == ix).count();
            (0..weights.len()).map(of).collect()
        }
    };
    let mut cluster = cluster(&[weights.len()]);
    Arc::make_mut(&mut cluster.policy).balance = Balance::RoundRobin;
    for (endpoint, weight) in cluster.endpoints.iter_mut().zip(&weights) {
        endpoint.weight = *weight;
    }
    let candidates = Candidates {
        cluster: &cluster,
        level: &cluster.levels[0],
        worths: &[],
        parts: &[],
        seeds: &[],
        usable: &|_| true,
    };
    let turns = 100 * wanted.iter().sum::<usize>();
    let mut picked = vec![0usize; weights.len()];
    for turn in 0..turns {
        picked[pick(candidates, &|_| 0, turn as u64).unwrap().0] += 1;
    }
    for (picked, wanted) in picked.iter().zip(&wanted) {
        assert!(
            picked.abs_diff(wanted * 100) <= 3,
            "{id}: {picked} of {turns}"
        );
    }
}

fn ask_outlier(id: &str, input: &Value, expected: &Value) {
    let mut world = snapshot(vec![]);
    world.clusters = vec![Arc::new(cluster(&[2]))].into();
    let listed: &[u16] = match input.get("consecutive_5xx") {
        Some(_) => &[500, 502, 503, 504],
        None => &[502, 503, 504],
    };
    let first = Arc::make_mut(&mut world.clusters[0]);
    Arc::make_mut(&mut first.policy).passive.on =
        listed.iter().map(|code| Failure::Status(*code)).collect();
    let mut fleet = Fleet::new();
    fleet.reconcile(&world, Time::ZERO);
    let key = world.clusters[0].endpoints[0].key.clone();
    let mut codes: Vec<u16> = (input["codes"].as_array().into_iter().flatten())
        .map(|code| code.as_u64().unwrap() as u16)
        .collect();
    if let Some(lasts) = input["base_ejection_ms"].as_u64() {
        assert_eq!(
            world.clusters[0].policy.passive.eject,
            Duration::from_millis(lasts)
        );
        codes = vec![503; 5];
    }
    for code in codes {
        let result = if code < 400 {
            Ok(())
        } else {
            Err(Failure::Status(code))
        };
        let key = key.clone();
        fleet.observe(&Observation { key, result }, Time::ZERO);
    }
    let after = Duration::from_millis(input["check_ms"].as_u64().unwrap_or_default());
    let status = fleet.shares(Time::from_origin(after)).clusters[0].endpoints[0];
    let theirs = expected
        .get("ejected")
        .unwrap_or_else(|| &expected["still_ejected"]);
    assert_eq!(
        Value::Bool(status == EndpointStatus::Ejected),
        *theirs,
        "{id}"
    );
}

fn ask_rbac(id: &str, input: &Value, expected: &Value) {
    let mut rule = Rule::default();
    let mut source = "192.0.2.1".to_owned();
    let to_id = |name: &str| format!("spiffe://a/{name}");
    if let Some(net) = input["cidr"].as_str() {
        // A rule names the address a call comes from; the sense of a network is the same.
        rule.sources = vec![net.parse().unwrap()];
        let ip = input.get("src_ip").unwrap_or_else(|| &input["dest_ip"]);
        source = ip.as_str().unwrap().to_owned();
    } else {
        let pattern = input["rule"]
            .as_str()
            .map_or_else(|| "spiffe://a/*".to_owned(), to_id);
        rule.from = vec![IdPattern::parse(&pattern).unwrap()];
    }
    let caller = input["uri_san"]
        .as_str()
        .map(|name| SpiffeId::parse(&to_id(name)).unwrap());
    let mut world = snapshot(vec![service("a.b")]);
    world.services[0].policy.allow = vec![rule];
    let asking = Asking {
        listener: &world.listeners[0],
        source: source.parse().unwrap(),
        evidence: caller
            .as_ref()
            .map_or(Evidence::Network, Evidence::Verified),
        sni: None,
        method: None,
        path: None,
        headers: None,
    };
    let allowed = matches!(
        authorize(&world, ServiceIx(0), &asking),
        Verdict::Allow { .. }
    );
    assert_eq!(Value::Bool(allowed), expected["match"], "{id}");
}

// Server names.

/// The name of the chain whose server names a client reaches.
fn chain(id: &str, input: &Value) -> Option<String> {
    let chains = input["chains"].as_array().unwrap();
    let mut names = Vec::new();
    let mut services = Vec::new();
    for chain in chains {
        for host in chain[1]["server_names"].as_array().into_iter().flatten() {
            names.push(chain[0].as_str().unwrap().to_owned());
            services.push(service(host.as_str().unwrap()));
        }
    }
    let world = snapshot(services);
    let client = &input["client"];
    let routed = if client["plain"] == true {
        let mut mesh = world.listeners[0].clone();
        mesh.role = Role::Mesh;
        route_plaintext(&mesh)
    } else {
        let hello = ClientHello {
            sni: client["sni"].as_str().map(str::to_owned),
            ..ClientHello::default()
        };
        route_tls(&world, &world.listeners[0], &hello)
    };
    match routed {
        Routed::Terminate(ix) => Some(names[ix.0].clone()),
        Routed::Refuse(_) => None,
        other => panic!("{id}: {other:?}"),
    }
}

fn ask_invalid(id: &str, input: &Value) {
    let case = input["case"].as_str().unwrap();
    let list = case.strip_prefix("pattern ").unwrap();
    let patterns: Vec<String> = serde_json::from_str(list).unwrap();
    let mut table = HostTable::default();
    let refused = patterns
        .iter()
        .any(|pattern| match HostPattern::parse(pattern) {
            Err(_) => true,
            Ok(pattern) => table.insert(&pattern, 80, ServiceIx(0)).is_some(),
        });
    assert!(refused, "{id}: {case}");
}

fn otherwise(id: &str, input: &Value) {
    match id {
        "panic-01" => {
            let level = [vec![(1.0, true); 2], vec![(1.0, false); 4]].concat();
            let (cluster, shares) = shares_of(&[level], 0.7);
            let tried = plan(&cluster, &shares, &|_| 0, 1);
            let bad = tried.map(|attempt| attempt.why == Why::TooFew);
            // Those found bad come last, when those that are healthy have failed.
            let bad: Vec<bool> = bad.collect();
            assert_eq!(bad, [false, false, true, true]);
        }
        "sni-filter-chain-09" => assert_eq!(chain(id, input).as_deref(), Some("exact")),
        "sni-filter-chain-14" => assert_eq!(chain(id, input).as_deref(), Some("exact-h2")),
        "retry-budget-02" => assert!(RetryBudget::default().take(0.0, Time::ZERO)),
        _ => panic!("{id} is not asserted"),
    }
}

// Snapshots.

fn cluster(sizes: &[usize]) -> Cluster {
    let mut endpoints = Vec::new();
    let mut levels = Vec::new();
    for (level, size) in sizes.iter().enumerate() {
        let members = (0..*size).map(|n| {
            endpoints.push(endpoint(&format!("{level}.{n}")));
            EndpointIx(endpoints.len() - 1)
        });
        let members = members.collect();
        levels.push(Level {
            name: format!("level {level}").into(),
            members,
            slots: Slots::default(),
        });
    }
    Cluster {
        name: "a/b:80".into(),
        route: "a/b".into(),
        endpoints,
        levels,
        policy: Arc::new(ClusterPolicy {
            balance: Balance::LeastRequest,
            spread: Vec::new(),
            failover: Failover {
                start: 0.7,
                full: 0.0,
                hold: Duration::ZERO,
                failback_after: Duration::from_secs(60),
                failback_ramp: Duration::from_secs(60),
                failback: Failback::Auto,
                too_few: TooFew::UseAll,
            },
            active: None,
            passive: PassiveCheck {
                consecutive: 5,
                on: vec![Failure::Connect],
                error_rate: None,
                slow: None,
                eject: Duration::from_secs(30),
                max_ejected: 1.0,
                keep_at_least: 1,
            },
            connection_age_max: Duration::ZERO,
            slow_start: Duration::ZERO,
            timeouts: Timeouts {
                connect: Duration::from_secs(1),
                connect_peer: Duration::from_secs(3),
                response_headers: Duration::from_secs(15),
                idle: Duration::from_secs(3600),
                per_try: None,
            },
            retries: Retries {
                attempts: 2,
                on: vec![],
                budget: 0.2,
                buffer_bytes_max: 65536,
                any_method: false,
                hedge_after: None,
            },
            limits: RouteLimits::default(),
        }),
    }
}

fn endpoint(key: &str) -> Endpoint {
    Endpoint {
        key: EndpointKey(key.into()),
        backend: "b".into(),
        address: Address::Socket("127.0.0.1:1".parse().unwrap()),
        weight: 1.0,
        locality: Locality::default(),
        peer: None,
        tls: EndpointTls::None,
        version: HttpVersion::Same,
        proxy_protocol: false,
        capacity: None,
        is_down: false,
    }
}

fn service(host: &str) -> Service {
    Service {
        name: format!("a/{host}").into(),
        port: 80,
        ports: 1,
        hosts: vec![HostPattern::parse(host).unwrap()],
        protocol: Protocol::Http,
        inbound: Inbound::Terminate,
        outbound: ClusterIx(0),
        own: None,
        policy: Policy::default(),
        export: Export::AllPeers,
        mirrors: Vec::new(),
        rules: None,
        inside: None,
        is_upgraded: true,
        position: None,
    }
}

fn snapshot(services: Vec<Service>) -> Snapshot {
    let mut hosts = HostTable::default();
    for (at, service) in services.iter().enumerate() {
        for host in &service.hosts {
            hosts.insert(host, service.port, ServiceIx(at));
        }
    }
    Snapshot {
        version: "1".into(),
        node: Node {
            name: "gw".into(),
            cluster: "east".into(),
            locality: Locality::default(),
            trust_domain: TrustDomain::parse("east.example").unwrap(),
        },
        listeners: vec![Listener {
            name: "apps".into(),
            address: "127.0.0.1:1".parse().unwrap(),
            role: Role::Workloads,
            only: None,
            hosts,
            sources: Vec::new(),
            handshakes: None,
            proxies: Vec::new(),
        }]
        .into(),
        services: services.into(),
        clusters: Table::default(),
        peers: Table::default(),
    }
}
