//! Configurations, at random.

use fastrand::Rng;

use crate::opinion;
use crate::world::{
    Backends, Entry, Inbound, Peer, Policy, Port, Protocol, Route, Rule, RulePath, World,
};

/// Near each other, so that what one entry names is what another nearly names.
pub(crate) const IDS: &[&str] = &[
    "spiffe://west.example/zeugma/gateway",
    "spiffe://west.example/zeugma/gateway2",
    "spiffe://west.example/ns/shop/sa/cart",
    "spiffe://west.example/ns/shop/sa/cart2",
    "spiffe://west.example/ns/shop/sa/Cart",
    "spiffe://west.example/ns/shop/sa",
    "spiffe://west.example/ns/shop",
    "spiffe://west.example/ns/shopping/sa/cart",
    "spiffe://west.example/ns",
    "spiffe://west.example",
    "spiffe://west.example.evil/ns/shop/sa/cart",
    "spiffe://awest.example/ns/shop/sa/cart",
    "spiffe://est.example/ns/shop/sa/cart",
    "spiffe://east.example/ns/shop/sa/cart",
    "spiffe://north.example/zeugma/gateway",
    "spiffe://north.example/ns/shop/sa/cart",
];
const PATTERNS: &[&str] = &[
    "spiffe://west.example/ns/shop/sa/cart",
    "spiffe://west.example/ns/shop/sa/cart/*",
    "spiffe://west.example/ns/shop/sa/*",
    "spiffe://west.example/ns/shop/*",
    "spiffe://west.example/ns/*",
    "spiffe://west.example/*",
    "spiffe://west.example",
    "spiffe://west.example/zeugma/gateway",
    "spiffe://west.example/zeugma/*",
    "spiffe://east.example/*",
    "spiffe://north.example/*",
    "spiffe://north.example/ns/shop/sa/cart",
];
/// Networks, an IPv4-mapped one among them.
const NETS: &[&str] = &[
    "10.0.0.0/8",
    "10.0.0.0/31",
    "203.0.113.7",
    "203.0.113.0/29",
    "0.0.0.0/0",
    "::ffff:203.0.113.0/120",
    "2001:db8::/32",
    "2001:db8::1",
    "127.0.0.0/8",
    "::1",
];
const METHODS: &[&str] = &["GET", "POST", "DELETE", "OPTIONS"];
pub(crate) const PATHS: &[&str] = &[
    "/",
    "/*",
    "/v1",
    "/v1/*",
    "/v1/orders",
    "/v1/orders/*",
    "/v1/orders:cancel",
    "/v1/orders%3Acancel",
    "/admin",
    "/admin/*",
    "/admin/",
    "/a%20b/*",
    "/%C3%A9",
    "/@fs/*",
    "/v1/.x",
];
const RULE_PATHS: &[&str] = &["/", "/v1", "/v1/orders", "/admin", "/a:b", "/a%20b"];
const HEADERS: &[(&str, &str)] = &[
    ("x-beta", "1"),
    ("x-beta", "2"),
    ("x-user", "a"),
    ("x-user", ""),
];
/// What requests have: as rules name it, and nearly.
pub(crate) const SENT: &[(&str, &str)] = &[
    ("x-beta", "1"),
    ("x-beta", "2"),
    ("x-user", "a"),
    ("x-user", ""),
    ("X-Beta", "1"),
    ("x-beta", "2,1"),
    ("x-beta", "2, 1 "),
    ("x-beta", "12"),
    ("x-user", "A"),
    ("x-user", "ab"),
    ("x-user", "b,\tAB"),
    ("x-user", "ab,b"),
    ("x-user", "ab, a"),
    ("x-team", "a"),
    ("x-team", "1"),
];
/// What rules name beside the hosts of their route: what is near to these.
const SNI: &[&str] = &[
    "*.example",
    "a.example",
    "*.a.example",
    "a.shop.example",
    "*.a.shop.example",
];
const VALUES: &[&str] = &["1", "2", "a", "a*", "*", "b*", "12"];

/// A configuration that is right.
pub(crate) fn world(rng: &mut Rng) -> World {
    let mut world = unchecked(rng);
    for (route, list, nth) in opinion::without_effect(&world).into_iter().rev() {
        let route = world.routes.iter_mut().find(|of| of.name == route).unwrap();
        match list {
            "allow" => drop(route.allow.remove(nth)),
            _ => drop(route.deny.remove(nth)),
        }
    }
    world
}

/// A configuration of one route, an entry of which may have no effect.
pub(crate) fn doubtful(rng: &mut Rng) -> World {
    let mut world = unchecked(rng);
    let kept = rng.usize(..world.routes.len());
    // The listener of its own needs its route.
    let mut nth = 0;
    world.routes.retain(|route| {
        nth += 1;
        nth - 1 == kept || route.name == "raw"
    });
    for route in &mut world.routes {
        if route.name == "raw" && kept != 0 {
            route.allow.clear();
            route.deny.clear();
        }
        route.allow.truncate(1);
        route.deny.truncate(1);
    }
    world
}

/// A configuration in which entries may have no effect.
fn unchecked(rng: &mut Rng) -> World {
    let peers = peers(rng);
    let often = |rng: &mut Rng| {
        if rng.u8(..14) == 0 {
            some(rng, NETS, 3)
        } else {
            Vec::new()
        }
    };
    let mut world = World {
        mesh_sources: often(rng),
        apps_sources: often(rng),
        routes: Vec::new(),
        peers,
    };
    world.routes = routes(rng, &world.peers);
    world
}

fn peers(rng: &mut Rng) -> Vec<Peer> {
    let mut peers = Vec::new();
    for (name, ids, domain) in [
        (
            "west",
            ["spiffe://west.example/zeugma/gateway"].as_slice(),
            "west.example",
        ),
        (
            "west2",
            &["spiffe://west.example/zeugma/gateway2"],
            "west.example",
        ),
        (
            "north",
            &["spiffe://north.example/zeugma/gateway"],
            "north.example",
        ),
    ] {
        if name != "west" && rng.bool() {
            continue;
        }
        let attests = match rng.u8(..6) {
            0 | 1 => Vec::new(),
            2..=4 => vec![domain],
            _ => vec![domain, "east.example"],
        };
        // Whoever is believed about others is named in full.
        let ids = if attests.is_empty() && name == "north" && rng.bool() {
            vec!["spiffe://north.example/zeugma/*"]
        } else {
            ids.to_vec()
        };
        let sources = match rng.u8(..5) {
            0 => vec!["203.0.113.0/29"],
            1 => vec!["203.0.113.7", "2001:db8::/32"],
            2 => vec!["10.0.0.0/8"],
            _ => Vec::new(),
        };
        peers.push(Peer {
            name,
            ids,
            attests,
            sources,
        });
    }
    peers
}

fn routes(rng: &mut Rng, peers: &[Peer]) -> Vec<Route> {
    use Protocol::{Http, Tcp};
    let mut routes = Vec::new();
    for (name, hosts, ports) in [
        ("raw", ["raw.example"].as_slice(), [(5432, Tcp)].as_slice()),
        ("orders", &["orders.example"], &[(80, Http)]),
        ("wild", &["*.example"], &[(80, Http)]),
        ("deep", &["*.shop.example", "shop.example"], &[(8080, Http)]),
        (
            "multi",
            &["multi.example"],
            &[(80, Http), (9090, Http), (5432, Tcp)],
        ),
        ("lines", &["lines.example"], &[(5432, Tcp), (5433, Tcp)]),
        ("tcp", &["tcp.example"], &[(9000, Tcp)]),
        ("secure", &["secure.example"], &[(443, Tcp)]),
        ("secure-wild", &["*.secure.example"], &[(443, Tcp)]),
        ("far", &["far.example"], &[(80, Http)]),
        (
            "orders-too",
            &["orders.example", "third.example"],
            &[(81, Http)],
        ),
    ] {
        if name == "orders-too" && rng.u8(..6) > 0 {
            continue;
        }
        let ports = ports.iter().map(|(number, protocol)| Port {
            number: *number,
            protocol: *protocol,
        });
        let ports = ports.collect();
        let inbound = match name.starts_with("secure") {
            true => Inbound::Passthrough,
            false => Inbound::Terminate,
        };
        let backends = if name == "far" {
            Backends::PeersAlone
        } else {
            Backends::Own
        };
        let mut route = Route {
            name,
            hosts: hosts.to_vec(),
            ports,
            inbound,
            backends,
            allow: entries(rng, (peers, hosts), 6),
            deny: Vec::new(),
            policy: if rng.u8(..6) == 0 {
                Policy::Audit
            } else {
                Policy::Enforce
            },
            export: export(rng, peers, inbound),
            rules: Vec::new(),
        };
        if rng.u8(..9) > 3 {
            route.deny = entries(rng, (peers, hosts), 2);
        }
        let is_http = route.ports.iter().all(|port| port.protocol == Http);
        if is_http && rng.bool() {
            route.rules = rules(rng);
        }
        routes.push(route);
    }
    routes
}

fn export(rng: &mut Rng, peers: &[Peer], inbound: Inbound) -> Vec<&'static str> {
    match rng.u8(..6) {
        0 => Vec::new(),
        1 | 2 => vec!["*"],
        _ => {
            let may = |peer: &&Peer| inbound == Inbound::Terminate || !peer.sources.is_empty();
            let named: Vec<_> = peers.iter().filter(may).map(|peer| peer.name).collect();
            if named.is_empty() {
                Vec::new()
            } else {
                some(rng, &named, 2)
            }
        }
    }
}

fn entries(rng: &mut Rng, (peers, hosts): (&[Peer], &[&'static str]), most: usize) -> Vec<Entry> {
    let called = [hosts, SNI].concat();
    let names: Vec<_> = peers.iter().map(|peer| peer.name).collect();
    (0..rng.usize(most / 3..=most))
        .map(|_| {
            let mut entry = Entry::default();
            let mut fields = 0;
            while fields == 0 {
                if rng.u8(..3) == 0 {
                    let from = some(rng, PATTERNS, 3);
                    entry.from = Some(from.into_iter().map(str::to_owned).collect());
                    fields += 1;
                }
                if rng.u8(..8) == 0 {
                    entry.via = Some(some(rng, &names, 2));
                    fields += 1;
                }
                if rng.u8(..5) == 0 {
                    entry.listeners = Some(some(rng, &["mesh", "apps", "raw"], 2));
                    fields += 1;
                }
                if rng.u8(..7) == 0 {
                    entry.sources = Some(some(rng, NETS, 3));
                    fields += 1;
                }
                if rng.u8(..12) == 0 {
                    entry.sni = Some(some(rng, &called, 3));
                    fields += 1;
                }
                if rng.u8(..6) == 0 {
                    entry.methods = Some(some(rng, METHODS, 3));
                    fields += 1;
                }
                if rng.u8(..5) == 0 {
                    entry.paths = Some(some(rng, PATHS, 3));
                    fields += 1;
                }
                if rng.u8(..6) == 0 {
                    let named = some(rng, &["x-beta", "x-user", "X-Team"], 2);
                    let named = named.into_iter().map(|name| (name, some(rng, VALUES, 2)));
                    entry.headers = Some(named.collect());
                    fields += 1;
                }
            }
            entry
        })
        .collect()
}

fn rules(rng: &mut Rng) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    for _ in 0..rng.usize(1..=4) {
        let path = pick(rng, RULE_PATHS);
        let mut headers = some(rng, HEADERS, 2);
        headers.dedup_by_key(|(name, _)| *name);
        let rule = Rule {
            path: match rng.u8(..4) {
                0 => None,
                1 => Some(RulePath::Exact(path)),
                _ => Some(RulePath::Prefix(path)),
            },
            method: (rng.u8(..3) == 0).then(|| pick(rng, METHODS)),
            headers: if rng.bool() { Vec::new() } else { headers },
        };
        // One that no request reaches is a finding.
        let of = |rule: &Rule| {
            let mut headers = rule.headers.clone();
            headers.sort_unstable();
            (format!("{:?}", rule.path), rule.method, headers)
        };
        if !rules.iter().any(|other| of(other) == of(&rule)) {
            rules.push(rule);
        }
    }
    rules
}

pub(crate) fn pick<T: Copy>(rng: &mut Rng, list: &[T]) -> T {
    list[rng.usize(..list.len())]
}

/// One to `most` of them, none twice.
fn some<T: Copy + PartialEq>(rng: &mut Rng, list: &[T], most: usize) -> Vec<T> {
    let mut some = Vec::new();
    for _ in 0..rng.usize(1..=most) {
        let one = pick(rng, list);
        if !some.contains(&one) {
            some.push(one);
        }
    }
    some
}
