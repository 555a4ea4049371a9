//! Calls, at random: most near what the configuration names, many just beside it.

use fastrand::Rng;

use crate::world::{Call, Entry, Opening, Protocol, Request, Route, World};
use crate::worlds::{IDS, PATHS, SENT, pick};

const SOURCES: &[&str] = &[
    "10.0.0.0",
    "10.0.0.1",
    "10.0.0.2",
    "10.255.255.255",
    "9.255.255.255",
    "11.0.0.0",
    "203.0.113.7",
    "203.0.113.8",
    "203.0.113.255",
    "127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:203.0.113.7",
    "::ffff:203.0.113.8",
    // These are not IPv4-mapped.
    "::10.0.0.1",
    "::ffff:0:10.0.0.1",
    "64:ff9b::10.0.0.1",
    "::1",
    "2001:db8::1",
    "2001:db8:ffff::1",
    "2001:db7:ffff::1",
    "fe80::1",
];
const METHODS: &[&str] = &[
    "GET", "POST", "DELETE", "OPTIONS", "get", "Delete", "DELET", "DELETES", "HEAD", "",
];
/// What changes a path, or seems to.
const TWISTS: &[(&str, &str)] = &[
    ("/", "//"),
    ("/", "/./"),
    ("/", "/../"),
    ("/", "%2F"),
    ("/", "%2f"),
    ("/", "\\"),
    ("/", "%5C"),
    ("/", "/;x/"),
    ("/", ";x/"),
    ("/", "/%2e/"),
    ("/", "/x/%2E%2e/"),
    ("/", "/..;/"),
    ("/", "/%252e%252e/"),
    ("/", "/.../"),
    ("/", "/%00"),
    ("/", "/\t"),
    ("v", "%76"),
    ("v", "V"),
    ("v", "%56"),
    ("v", "%2576"),
    ("o", "%6f"),
    ("a", "%61"),
    ("a", "%C3%A1"),
    ("a", "\u{430}"),
    (":", "%3A"),
    (":", "%3a"),
    (":", "%253a"),
    ("%3A", ":"),
    ("%20", " "),
    ("%20", "+"),
    ("%20", "%2520"),
    ("%C3%A9", "\u{e9}"),
    ("%C3%A9", "%c3%a9"),
    ("%C3%A9", "e%CC%81"),
    ("@", "%40"),
    ("1", "1 "),
    ("1", "1%"),
    ("1", "1%3F"),
    ("1", "1%3Bx"),
    ("1", "1#x"),
    ("1", "1%25"),
    ("s", "s.json"),
];
const ENDS: &[&str] = &[
    "",
    "/",
    "//",
    "/x",
    "x",
    "?",
    "?/../admin",
    ";",
    ";/x",
    "/;x",
    "/..",
    "/.",
    "/%2e",
    "%00",
    "%2F",
    "%",
    "*",
    "/*",
    "#",
    "%20",
    ".",
    "/x/y;z//",
    "/%3A",
];

pub(crate) fn call(rng: &mut Rng, world: &World) -> Call {
    let listener = match rng.u8(..20) {
        0 => "raw",
        1..=11 => "mesh",
        _ => "apps",
    };
    let is_plaintext = match listener {
        "mesh" => rng.u8(..40) == 0,
        _ => rng.bool(),
    };
    // One that can be called so, most often.
    let can_be = |route: &&Route| match (listener, is_plaintext) {
        ("mesh", _) => !route.export.is_empty(),
        (_, true) => route
            .ports
            .iter()
            .any(|port| port.protocol == Protocol::Http),
        (_, false) => true,
    };
    let able: Vec<&Route> = world.routes.iter().filter(can_be).collect();
    let route = match able.as_slice() {
        able if !able.is_empty() && rng.u8(..12) > 0 => pick(rng, able),
        _ => &world.routes[rng.usize(..world.routes.len())],
    };
    let entries: Vec<&Entry> = route.allow.iter().chain(&route.deny).collect();
    let id = id(rng, &entries);
    let (id, claim) = match rng.u8(..4) {
        // As a gateway.
        0 => {
            let peer = &world.peers[rng.usize(..world.peers.len())];
            let gateway = peer.ids[0].replace('*', "gateway");
            (gateway, (rng.u8(..4) > 0).then_some(id))
        }
        1 if rng.u8(..4) == 0 => (id, Some(pick(rng, IDS).to_owned())),
        _ => (id, None),
    };
    let host = host(rng, route);
    let port = route.ports[rng.usize(..route.ports.len())].number;
    let opening = match rng.u8(..80) {
        _ if is_plaintext => Opening::Plaintext,
        0 => Opening::Tls(None),
        _ if route.ports.len() > 1 && rng.u8(..4) > 0 => {
            Opening::Tls(Some(format!("outbound_.{port}_._.{host}")))
        }
        _ => Opening::Tls(Some(sni(rng, &host, port))),
    };
    Call {
        listener,
        source: source(rng, world, &entries),
        opening,
        id,
        claim,
        request: Request {
            authority: authority(rng, world, &host, port),
            method: match entries
                .iter()
                .filter_map(|entry| entry.methods.as_ref())
                .next()
            {
                Some(methods) if rng.bool() => pick(rng, methods),
                _ => pick(rng, METHODS),
            },
            path: path(rng, &entries),
            headers: (0..rng.usize(..4)).map(|_| pick(rng, SENT)).collect(),
        },
    }
}

/// One that an entry names, or nearly.
fn id(rng: &mut Rng, entries: &[&Entry]) -> String {
    let named: Vec<&String> = entries
        .iter()
        .filter_map(|entry| entry.from.as_ref())
        .flatten()
        .collect();
    if named.is_empty() || rng.u8(..3) == 0 {
        // The first are of peers' trust domains.
        let list = if rng.bool() { &IDS[..9] } else { IDS };
        return pick(rng, list).to_owned();
    }
    let named = named[rng.usize(..named.len())];
    let below = match rng.u8(..6) {
        0 => "",
        1 => "/sa",
        2 => "/sa/cart",
        3 => "2",
        _ => "/a",
    };
    match (named.strip_suffix("/*"), rng.u8(..5)) {
        (Some(above), _) => format!("{above}{below}"),
        (None, 0) => format!("{named}{below}"),
        (None, 1) if named.ends_with(char::is_alphabetic) => named[..named.len() - 1].to_owned(),
        (None, _) => named.clone(),
    }
}

fn source(rng: &mut Rng, world: &World, entries: &[&Entry]) -> std::net::IpAddr {
    let mut nets: Vec<&str> = world
        .peers
        .iter()
        .flat_map(|peer| peer.sources.clone())
        .collect();
    nets.extend(
        entries
            .iter()
            .filter_map(|entry| entry.sources.as_ref())
            .flatten(),
    );
    let text = match nets.as_slice() {
        [] => pick(rng, SOURCES),
        _ if rng.u8(..3) == 0 => pick(rng, SOURCES),
        nets => match pick(rng, nets).split('/').next().unwrap() {
            "::ffff:203.0.113.0" => "203.0.113.200",
            first => first,
        },
    };
    text.parse().unwrap()
}

fn host(rng: &mut Rng, route: &Route) -> String {
    let host = pick(rng, &route.hosts);
    let name = match host.strip_prefix("*.") {
        Some(below) => match rng.u8(..5) {
            0 => below.to_owned(),
            1 => format!("a.b.{below}"),
            2 => format!("a{below}"),
            _ => format!("a.{below}"),
        },
        None => host.to_owned(),
    };
    match rng.u8(..120) {
        0 => name.to_ascii_uppercase(),
        1 => format!("{name}."),
        2 => format!("{name}.."),
        3 => format!("x{name}"),
        4 => format!("x.{name}"),
        5 => format!("{name}.evil"),
        6 => format!(".{name}"),
        7 => format!("*.{name}"),
        8 => "10.0.0.1".to_owned(),
        9 => String::new(),
        10 => name.replace('.', ".."),
        11 => format!("{name} "),
        12 => "peer.zeugma.internal".to_owned(),
        13 => format!("{}.{name}", "a".repeat(64)),
        14 => format!("{}{name}", "aaaaaaaaa.".repeat(25)),
        _ => name,
    }
}

fn sni(rng: &mut Rng, host: &str, port: u16) -> String {
    match rng.u8(..60) {
        0 => format!("outbound_.{port}_._.{host}"),
        1 => format!("outbound_.81_._.{host}"),
        2 => format!("outbound_.0{port}_._.{host}"),
        3 => format!("outbound_.{port}_.v1_.{host}"),
        4 => format!("OUTBOUND_.{port}_._.{host}"),
        5 => format!("outbound_.+{port}_._.{host}"),
        6 => format!("{host}:{port}"),
        _ => host.to_owned(),
    }
}

fn authority(rng: &mut Rng, world: &World, host: &str, port: u16) -> String {
    match rng.u8(..60) {
        0..=2 => format!("{host}:{port}"),
        3 => format!("{host}:81"),
        4 => format!("{host}:0{port}"),
        5 => format!("{host}:"),
        6 => format!("user@{host}"),
        7 => format!("{host}:{port}:{port}"),
        8 => format!("{host}:15443"),
        9 => format!("{host}:15001"),
        10 => String::new(),
        11 => {
            let other = &world.routes[rng.usize(..world.routes.len())];
            pick(rng, &other.hosts).replace('*', "a")
        }
        12 => format!("{host}:99999"),
        13 => format!("{host}:9090"),
        _ => host.to_owned(),
    }
}

fn path(rng: &mut Rng, entries: &[&Entry]) -> String {
    let named: Vec<&str> = (entries
        .iter()
        .filter_map(|entry| entry.paths.as_ref())
        .flatten())
    .copied()
    .collect();
    let mut path = match named.as_slice() {
        named if !named.is_empty() && rng.u8(..3) > 0 => pick(rng, named),
        _ => pick(rng, PATHS),
    }
    .to_owned();
    if let Some(above) = path.strip_suffix('*') {
        path = format!(
            "{above}{}",
            pick(rng, &["", "x", "orders", "a/b", "orders:cancel"])
        );
    }
    if rng.bool() {
        for _ in 0..rng.usize(1..=2) {
            let (from, to) = pick(rng, TWISTS);
            path = match rng.bool() {
                true => path.replacen(from, to, 1),
                false => match path.rsplit_once(from) {
                    Some((before, after)) => format!("{before}{to}{after}"),
                    None => path,
                },
            };
        }
    }
    match rng.u8(..16) {
        0..=5 => path + pick(rng, ENDS),
        6 => pick(
            rng,
            &[
                "",
                "*",
                "v1/orders",
                "http://orders.example/v1",
                "?",
                "//",
                "/.",
            ],
        )
        .to_owned(),
        _ => path,
    }
}
