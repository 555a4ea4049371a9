//! The same YAML, compiled for Envoy (`zeugma config compile`) and read by our gateway: beside the same
//! endpoints both give the same shares and let in the same requests, but for what differs on purpose.

pub(crate) mod endpoint;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use self::endpoint::{Answers, Endpoint, answers};
use crate::curl;
use crate::envoy::Compiled;
use crate::folder;
use crate::gateways::Mesh;
use crate::pki::{Svid, Trust};
use crate::support::process::READY_WITHIN;
use crate::zeugma::{EAST, Gateway, Setup, WEST};

/// Requests for one share; a share of one half has a standard deviation of 0.5 points then.
const REQUESTS: usize = 10_000;
/// How far two shares that are the same may be apart, in points: over four standard deviations of each.
const POINTS: f64 = 2.0;

/// What ours and Envoy must give each answer, in percent.
#[derive(Clone, Copy)]
enum Shares {
    Same(&'static [(&'static str, f64)]),
    /// Ours, Envoy's, and why.
    Otherwise(
        &'static [(&'static str, f64)],
        &'static [(&'static str, f64)],
        &'static str,
    ),
}

/// A route; `@x` is the endpoint called `x`, and `@-` one that is down.
struct Case {
    name: &'static str,
    spec: &'static [&'static str],
    shares: Shares,
}

const CASES: &[Case] = &[
    Case {
        name: "half-down",
        spec: &[
            "backends: [{ locality: eu/eu-1, endpoints: [@a, @-] }, { locality: eu/eu-2, endpoints: [@b] }]",
        ],
        // 0.5 / 0.7.
        shares: Shares::Same(&[("a", 71.4), ("b", 28.6)]),
    },
    Case {
        name: "third-down",
        spec: &[
            "backends: [{ locality: eu/eu-1, endpoints: [@a, @b, @-] }, { locality: eu/eu-2, endpoints: [@c] }]",
            // What is open at once is no matter here.
            "balance: { policy: random }",
        ],
        // Two thirds / 0.7.
        shares: Shares::Same(&[("a", 47.6), ("b", 47.6), ("c", 4.8)]),
    },
    Case {
        name: "three-levels",
        spec: &[
            "backends: [{ locality: eu/eu-1, endpoints: [@a, @-, @-] }, { locality: eu/eu-2, endpoints: [@b, @-, @-] }, { locality: us/us-1, endpoints: [@c, @-, @-] }]",
        ],
        shares: Shares::Same(&[("a", 47.6), ("b", 47.6), ("c", 4.8)]),
    },
    Case {
        name: "too-little-everywhere",
        spec: &[
            "backends: [{ locality: eu/eu-1, endpoints: [@a, @-, @-, @-] }, { locality: eu/eu-2, endpoints: [@b, @-, @-, @-, @-] }]",
        ],
        // 0.25 / 0.7 and 0.2 / 0.7, of their sum.
        shares: Shares::Same(&[("a", 55.6), ("b", 44.4)]),
    },
    Case {
        name: "start-at-zero",
        spec: &[
            "backends: [{ locality: eu/eu-1, endpoints: [@a, @-, @-, @-] }, { locality: eu/eu-2, endpoints: [@b] }]",
            "failover: { start: 0% }",
        ],
        shares: Shares::Same(&[("a", 100.0)]),
    },
    Case {
        name: "start-at-once",
        spec: &[
            "backends: [{ locality: eu/eu-1, endpoints: [@a, @-] }, { locality: eu/eu-2, endpoints: [@b] }]",
            "failover: { start: 100% }",
        ],
        shares: Shares::Same(&[("a", 50.0), ("b", 50.0)]),
    },
    Case {
        name: "order",
        spec: &[
            "backends: [{ name: near, locality: eu/eu-1, endpoints: [@-] }, { name: mid, locality: eu/eu-2, endpoints: [@a] }, { name: far, locality: us/us-1, endpoints: [@b] }]",
            "failover: { order: [{ region: us }] }",
        ],
        // What `order` does not name is not used.
        shares: Shares::Same(&[("b", 100.0)]),
    },
    Case {
        name: "weights",
        spec: &[
            "backends: [{ locality: eu/eu-1, endpoints: [@a, { address: @b, weight: 3 }] }]",
            "balance: { policy: round-robin }",
        ],
        shares: Shares::Same(&[("a", 25.0), ("b", 75.0)]),
    },
    Case {
        name: "weights-and-down",
        spec: &[
            "backends: [{ locality: eu/eu-1, endpoints: [@a, { address: @-, weight: 3 }] }, { locality: eu/eu-2, endpoints: [@b] }]",
        ],
        // A quarter of the weight is healthy: 0.25 / 0.7.
        shares: Shares::Same(&[("a", 35.7), ("b", 64.3)]),
    },
    Case {
        name: "spread",
        spec: &[
            "backends: [{ locality: eu/eu-1, endpoints: [@a] }, { locality: eu/eu-2, endpoints: [@b] }]",
            "locality: { prefer: [region], spread: { eu/eu-1: 80%, eu/eu-2: 20% } }",
        ],
        shares: Shares::Same(&[("a", 80.0), ("b", 20.0)]),
    },
    Case {
        name: "spread-and-down",
        spec: &[
            "backends: [{ locality: eu/eu-1, endpoints: [@a, @-] }, { locality: eu/eu-2, endpoints: [@b] }]",
            "locality: { prefer: [region], spread: { eu/eu-1: 80%, eu/eu-2: 20% } }",
        ],
        // 0.8 * 0.5 / 0.7 to 0.2.
        shares: Shares::Same(&[("a", 74.1), ("b", 25.9)]),
    },
    Case {
        name: "split",
        spec: &[
            "backends: [{ name: one, locality: eu/eu-1, endpoints: [@a] }, { name: two, locality: eu/eu-1, endpoints: [@b] }]",
            "rules: [{ split: [{ backends: [one], weight: 90 }, { backends: [two], weight: 10 }] }]",
        ],
        shares: Shares::Same(&[("a", 90.0), ("b", 10.0)]),
    },
    Case {
        name: "split-to-route",
        spec: &[
            "backends: [{ name: own, locality: eu/eu-1, endpoints: [@c] }]",
            "rules: [{ split: [{ backends: [own], weight: 75 }, { route: shop/weights, weight: 25 }] }]",
        ],
        shares: Shares::Same(&[("c", 75.0), ("a", 6.25), ("b", 18.75)]),
    },
    Case {
        name: "split-and-fail-over",
        spec: &[
            "backends: [{ name: one, locality: eu/eu-1, endpoints: [@a, @-] }, { name: more, locality: eu/eu-2, endpoints: [@b] }, { name: two, locality: eu/eu-1, endpoints: [@c] }]",
            "rules: [{ split: [{ backends: [one, more], weight: 80 }, { backends: [two], weight: 20 }] }]",
        ],
        shares: Shares::Same(&[("a", 57.1), ("b", 22.9), ("c", 20.0)]),
    },
    Case {
        name: "mirrored",
        spec: &[
            "backends: [{ locality: eu/eu-1, endpoints: [@a] }]",
            "mirror: [{ route: shop/copies, percent: 10%, inFlight: 10000 }]",
        ],
        shares: Shares::Same(&[("a", 100.0)]),
    },
    Case {
        name: "copies",
        spec: &["backends: [{ locality: eu/eu-1, endpoints: [@copies] }]"],
        shares: Shares::Same(&[("copies", 100.0)]),
    },
    Case {
        name: "retried",
        spec: &[
            "backends: [{ locality: eu/eu-1, endpoints: [@a, @503] }]",
            "balance: { policy: round-robin }",
            "retries: { attempts: 1, on: [503], budget: 100% }",
        ],
        // Each on another endpoint.
        shares: Shares::Same(&[("a", 100.0)]),
    },
    Case {
        name: "not-retried",
        spec: &[
            "backends: [{ locality: eu/eu-1, endpoints: [@a, @503] }]",
            "balance: { policy: round-robin }",
            "retries: { attempts: 0 }",
        ],
        shares: Shares::Same(&[("a", 50.0), ("503", 50.0)]),
    },
    Case {
        name: "all-down",
        spec: &[
            "backends: [{ locality: eu/eu-1, endpoints: [@-, @-] }, { locality: eu/eu-2, endpoints: [@-] }]",
        ],
        shares: Shares::Same(&[("503", 100.0)]),
    },
    Case {
        name: "full",
        spec: &[
            "backends: [{ locality: eu/eu-1, endpoints: [@a, @-] }, { locality: eu/eu-2, endpoints: [@b] }]",
            "failover: { full: 30% }",
        ],
        // (0.5 - 0.3) / (0.7 - 0.3).
        shares: Shares::Otherwise(
            &[("a", 50.0), ("b", 50.0)],
            &[("a", 71.4), ("b", 28.6)],
            "Envoy's overprovisioning begins at nothing healthy: it cannot say `full`",
        ),
    },
    Case {
        name: "dead-part",
        spec: &[
            "backends: [{ name: one, locality: eu/eu-1, endpoints: [@a] }, { name: two, locality: eu/eu-1, endpoints: [@-] }]",
            "rules: [{ split: [{ backends: [one], weight: 50 }, { backends: [two], weight: 50 }] }]",
        ],
        shares: Shares::Otherwise(
            &[("a", 100.0)],
            &[("a", 50.0), ("503", 50.0)],
            "a dead part's share goes to the others; Envoy draws a cluster without a look at its health",
        ),
    },
];

/// What every route of [`CASES`] has: who may call, and that nothing but active checks tells who is down.
const COMMON: &[&str] = &[
    "protocol: http",
    "allow: [{ listeners: [apps] }]",
    "health: { active: { tcp: true, every: 100ms, up: 1, down: 1 }, passive: { consecutive: 0, errorRate: { over: 100% } } }",
];

#[test]
fn the_same_yaml_gives_the_same_shares_in_envoy() -> Result<()> {
    let folder = folder("the_same_yaml_gives_the_same_shares_in_envoy")?;
    let endpoints: BTreeMap<&str, Endpoint> = [
        ("a", Answers::WithItsName),
        ("b", Answers::WithItsName),
        ("c", Answers::WithItsName),
        ("copies", Answers::WithItsName),
        ("503", Answers::Unavailable),
    ]
    .into_iter()
    .map(|(name, answers)| Ok((name, Endpoint::start(name, answers)?)))
    .collect::<Result<_>>()?;
    let mut setup = |setup: Setup| {
        CASES.iter().fold(setup, |setup, case| {
            let spec = case
                .spec
                .iter()
                .map(|field| with_addresses(field, &endpoints));
            let own: Vec<String> = spec.collect();
            let is_written = |field: &&&str| {
                let name = field.split_once(':').map_or("", |(name, _)| name);
                !own.iter().any(|line| line.starts_with(&format!("{name}:")))
            };
            let common = COMMON
                .iter()
                .filter(is_written)
                .map(|line| (*line).to_owned());
            let all: Vec<String> = common.chain(own.iter().cloned()).collect();
            setup.route(
                case.name,
                &all.iter().map(String::as_str).collect::<Vec<_>>(),
            )
        })
    };
    let both = Both::start(&folder, &Mesh::new(&folder)?, &mut setup)?;
    both.know_who_is_down()?;
    let mut table = String::new();
    let mut wrong = 0;
    for case in CASES {
        let (ours, theirs, why) = match case.shares {
            Shares::Same(shares) => (shares, shares, ""),
            Shares::Otherwise(ours, theirs, why) => (ours, theirs, why),
        };
        for (who, entry, wanted) in [
            ("zeugma", both.ours.apps, ours),
            ("envoy", both.envoy.listener("apps")?, theirs),
        ] {
            let before = (both.copied(who)?.1, endpoints["copies"].requests());
            let host = format!("{}.shop.svc.clusterset.local", case.name);
            // Where chance has no part, a few say it.
            let is_certain = wanted.len() == 1 && case.name != "mirrored";
            let requests = if is_certain { REQUESTS / 10 } else { REQUESTS };
            let counted = answers(entry, &host, requests)?;
            let got = percent(&counted);
            let is_as_wanted = is_close(&got, wanted);
            writeln!(table, "{:<22} {who:<7} {got:?} {why}", case.name)?;
            if !is_as_wanted {
                writeln!(table, "{:<22} NOT AS  {wanted:?}", "")?;
                wrong += 1;
            }
            if case.name == "mirrored" {
                let copied = both.settled(who, &endpoints["copies"], before)?;
                let share = 100.0 * copied as f64 / REQUESTS as f64;
                writeln!(table, "{:<22} {who:<7} {share:.1} percent copied", "")?;
                wrong += usize::from((share - 10.0).abs() > POINTS);
            }
        }
    }
    std::fs::write(folder.join("shares.txt"), &table)?;
    assert_eq!(wrong, 0, "shares otherwise than they should be:\n{table}");
    Ok(())
}

/// Puts the addresses of endpoints in the place of their names.
fn with_addresses(field: &str, endpoints: &BTreeMap<&str, Endpoint>) -> String {
    let mut text = String::new();
    // Port 9 is nobody's; each that is down has an address of its own.
    let mut down = 0;
    for (nth, part) in field.split('@').enumerate() {
        if nth == 0 {
            text.push_str(part);
            continue;
        }
        let end = part.find([',', ' ', ']']).unwrap_or(part.len());
        let (name, rest) = part.split_at(end);
        let address = match endpoints.get(name) {
            Some(endpoint) => endpoint.address,
            None => {
                down += 1;
                SocketAddr::from(([127, 0, 9, down], 9))
            }
        };
        text.push_str(&format!("\"{address}\"{rest}"));
    }
    text
}

fn percent(counted: &BTreeMap<String, usize>) -> BTreeMap<String, f64> {
    let all: usize = counted.values().sum();
    let share = |count: usize| (1000.0 * count as f64 / all as f64).round() / 10.0;
    (counted.iter())
        .map(|(name, count)| (name.clone(), share(*count)))
        .collect()
}

fn is_close(got: &BTreeMap<String, f64>, wanted: &[(&str, f64)]) -> bool {
    let of = |name: &str| {
        wanted
            .iter()
            .find(|(of, _)| *of == name)
            .map_or(0.0, |(_, share)| *share)
    };
    let names = got
        .keys()
        .map(String::as_str)
        .chain(wanted.iter().map(|(name, _)| *name));
    names
        .into_iter()
        .all(|name| (got.get(name).copied().unwrap_or_default() - of(name)).abs() <= POINTS)
}

/// What both say to a request.
#[derive(Clone, Copy)]
enum Says {
    In,
    Out,
    /// Ours refuses, Envoy does not.
    OursRefuses(&'static str),
}

const GUARDED: &[&str] = &[
    "protocol: http",
    "backends: [{ endpoints: [@a] }]",
    "allow:",
    "  - { from: ['spiffe://west.example/ns/shop/*'], methods: [GET], paths: ['/v1/*'] }",
    "  - { from: ['spiffe://west.example/ns/shop/sa/admin'] }",
    "  - { from: ['spiffe://north.example/*', 'spiffe://east.example/*'] }",
    "  - { listeners: [apps], methods: [GET, POST], paths: [/public, '/%C3%A9'] }",
    "  - { listeners: [apps], sources: [10.0.0.0/8] }",
    "deny:",
    "  - { paths: [/v1/secret, '/v1/secret/*'] }",
    "  - { from: ['spiffe://west.example/ns/shop/sa/bad'] }",
    "  - { methods: [DELETE], paths: ['/kept/*'] }",
    "export: { to: [west] }",
];

const CART: &str = "/ns/shop/sa/cart";
const ADMIN: &str = "/ns/shop/sa/admin";
const GATEWAY: &str = "/zeugma/gateway";
/// Of a peer of the same trust domain that calls from this machine.
const GATEWAY_2: &str = "/zeugma/gateway2";
/// Of a peer of the same trust domain that calls from elsewhere.
const GATEWAY_3: &str = "/zeugma/gateway3";

/// Hosts that are exported to these peers, by whom they are asked, and whether he is let in.
const EXPORTED: &[(&str, By, bool)] = &[
    ("to-west.example", By::West(GATEWAY), true),
    ("to-west.example", By::North(GATEWAY), false),
    ("to-all.example", By::West(CART), true),
    ("to-all.example", By::North(CART), true),
    ("to-all.example", By::East(CART), false),
    // Who is listed is the peer's that lists him; others are of that which has sources.
    ("to-north.example", By::North(GATEWAY), true),
    ("to-north.example", By::North(GATEWAY_2), false),
    ("to-north.example", By::North(CART), false),
    ("to-north2.example", By::North(GATEWAY), false),
    ("to-north2.example", By::North(GATEWAY_2), true),
    ("to-north2.example", By::North(CART), true),
    ("to-north3.example", By::North(GATEWAY_3), false),
    ("to-north3.example", By::North(CART), false),
    ("to-norths.example", By::North(CART), false),
    ("to-norths.example", By::North(GATEWAY), true),
    ("to-norths.example", By::North(GATEWAY_2), false),
    ("to-norths.example", By::West(CART), false),
    // What is audited is who may call, and not to whom it is exported.
    ("audited.example", By::West(CART), true),
    ("audited.example", By::North(CART), false),
    ("a.wild.example", By::West(CART), true),
    ("a.wild.example", By::North(CART), false),
    // The best name is the one that is meant, also where it is refused.
    ("hidden.wild.example", By::West(CART), false),
    ("shared.wild.example", By::West(CART), true),
    ("outbound_.81_._.shared.wild.example", By::West(CART), false),
    ("nobody.example", By::West(CART), false),
    // By the name that their TLS has, and without TLS none.
    ("one.by.example", By::West(CART), true),
    ("One.By.example", By::West(CART), true),
    ("two.by.example", By::West(CART), false),
    ("a.deep.by.example", By::West(CART), true),
    ("b.a.deep.by.example", By::West(CART), true),
    ("x.deep.by.example", By::West(CART), false),
    ("b.x.deep.by.example", By::West(CART), true),
    // With a port that the route does not have, or of a subset, it may still be meant.
    ("outbound_.99_._.x.deep.by.example", By::West(CART), false),
    ("outbound_.80_.v1_.x.deep.by.example", By::West(CART), false),
    ("outbound_.80_.v1_.a.deep.by.example", By::West(CART), true),
    ("one.by.example", By::Nobody, false),
];

const NAMED_RULES: &[&str] = &[
    "protocol: http",
    "hosts: [one.by.example, two.by.example, '*.deep.by.example']",
    "backends: [{ endpoints: [@a] }]",
    "allow: [{ sni: [one.by.example, '*.deep.by.example'] }]",
    "deny: [{ sni: [x.deep.by.example] }]",
    "export: { to: [west] }",
];

/// Who asks: nobody in plaintext from this cluster, others by mTLS from another one.
#[derive(Debug, Clone, Copy)]
enum By {
    Nobody,
    East(&'static str),
    West(&'static str),
    North(&'static str),
}

const HEADED_RULES: &[&str] = &[
    "protocol: http",
    "backends: [{ endpoints: [@a] }]",
    "allow: [{ listeners: [apps], headers: { X-Tenant: ['*'], x-env: ['*'] } }]",
    "deny: [{ headers: { x-role: [guest, 'temp.*'] } }]",
];

/// The headers of a request, and what both say to it.
const HEADED: &[(&[&str], Says)] = &[
    (&["x-tenant: acme", "x-env: a"], Says::In),
    (&["x-tenant: acme"], Says::Out),
    (&["x-env: a"], Says::Out),
    (&["x-tenant: acme", "x-env: a, b"], Says::In),
    (&["x-tenant: acme", "x-env: a", "x-role: guests"], Says::In),
    (&["x-tenant: acme", "x-env: a", "x-role: tempx"], Says::In),
    (&["x-tenant: acme", "x-env: a", "x-role: GUEST"], Says::Out),
    (
        &["x-tenant: acme", "x-env: a", "x-role: admin, guest"],
        Says::Out,
    ),
    (
        &["x-tenant: acme", "x-env: a", "x-role: a", "x-role: guest"],
        Says::Out,
    ),
    (
        &["x-tenant: acme", "x-env: a", "x-role: a,Temp.1,b"],
        Says::Out,
    ),
];

/// By whom, the method and the path.
const DECIDED: &[(By, &str, &str, Says)] = &[
    (By::West(CART), "GET", "/v1/x", Says::In),
    (By::West(CART), "GET", "/v1/x?y=/../z", Says::In),
    (By::West(CART), "GET", "/v1/", Says::In),
    (By::West(CART), "GET", "/v1", Says::Out),
    (By::West(CART), "GET", "/v10/x", Says::Out),
    (By::West(CART), "GET", "/V1/x", Says::Out),
    (By::West(CART), "POST", "/v1/x", Says::Out),
    (By::West(CART), "HEAD", "/v1/x", Says::Out),
    (By::West(CART), "GET", "/", Says::Out),
    (By::West("/ns/shop"), "GET", "/v1/x", Says::Out),
    (By::West("/ns/shopping/sa/cart"), "GET", "/v1/x", Says::Out),
    (By::West("/ns/shop/sa/Admin"), "POST", "/x", Says::Out),
    (By::West("/ns/shop/sa/admin/x"), "POST", "/x", Says::Out),
    (By::West("/ns/shop/x"), "GET", "/v1/x", Says::In),
    (By::West(ADMIN), "POST", "/x", Says::In),
    (By::West(ADMIN), "DELETE", "/x", Says::In),
    (By::West(ADMIN), "DELETE", "/kept/x", Says::Out),
    (By::West(ADMIN), "PUT", "/kept/x", Says::In),
    (By::West(ADMIN), "GET", "/v1/secret", Says::Out),
    (By::West(ADMIN), "GET", "/v1/secret/x", Says::Out),
    (By::West(ADMIN), "GET", "/v1/secrets", Says::In),
    (By::West("/ns/shop/sa/bad"), "GET", "/v1/x", Says::Out),
    // Not to be slipped past.
    (By::West(ADMIN), "GET", "/v1//secret", Says::Out),
    (By::West(ADMIN), "GET", "//v1/secret", Says::Out),
    (By::West(ADMIN), "GET", "/v1/%73ecret", Says::Out),
    (By::West(ADMIN), "GET", "/v1/x/../secret", Says::Out),
    (By::West(ADMIN), "GET", "/v1/./secret", Says::Out),
    (By::West(ADMIN), "GET", "/v1/x/%2e%2e/secret", Says::Out),
    (By::West(ADMIN), "GET", "/v1%2Fsecret", Says::Out),
    (By::West(ADMIN), "GET", "/v1%5Csecret", Says::Out),
    (By::West(CART), "GET", "/v1/../v2", Says::Out),
    (By::West(CART), "GET", "/v1/%2e%2e/v2", Says::Out),
    (By::West(CART), "GET", "/v1/x%2F..%2F..%2Fv2", Says::Out),
    (By::Nobody, "GET", "/public", Says::In),
    (By::Nobody, "POST", "/public", Says::In),
    (By::Nobody, "GET", "/public?x", Says::In),
    (By::Nobody, "PUT", "/public", Says::Out),
    (By::Nobody, "GET", "/public/", Says::Out),
    (By::Nobody, "GET", "/public/x", Says::Out),
    (By::Nobody, "GET", "/v1/x", Says::Out),
    (By::Nobody, "GET", "/%C3%A9", Says::In),
    // Whom it is not exported to.
    (By::North(CART), "GET", "/v1/x", Says::Out),
    (By::North(GATEWAY), "GET", "/v1/x", Says::Out),
    (By::East(CART), "GET", "/v1/x", Says::Out),
    // On purpose.
    (By::West(CART), "GET", "/v1/a/../x", Says::OursRefuses(DOTS)),
    (By::West(CART), "GET", "/v1/./x", Says::OursRefuses(DOTS)),
    (
        By::West(ADMIN),
        "GET",
        "/v1/secret;x",
        Says::OursRefuses(PARAMETERS),
    ),
];
const DOTS: &str = "no entry with `paths` allows a path with dot segments, since the service may read it \
    otherwise; Envoy writes the path anew and asks then";
const PARAMETERS: &str = "many servers leave out what follows `;`, so it does not lead past a denial; to \
    Envoy it is part of the name";

/// Documents that use whatever compiles into something of its own.
const EVERYTHING: &str = include_str!("alike/everything.yaml");

#[test]
fn envoy_takes_whatever_a_configuration_compiles_to() -> Result<()> {
    let folder = folder("envoy_takes_whatever_a_configuration_compiles_to")?;
    let mesh = Mesh::new(&folder)?;
    let trusted = [&mesh.east.trust, &mesh.west.trust];
    let setup = Setup::new(&folder, EAST, &mesh.east_gateway, &trusted)?
        .listener("pg", "{ address: \"127.0.0.1:0\", role: workloads, route: shop/pg }")
        .listener(
            "told",
            "{ address: \"127.0.0.1:0\", role: workloads, sources: [10.0.0.0/8, \"::1\"], proxyProtocol: { trusted: [127.0.0.0/8] } }",
        )
        .documents(EVERYTHING);
    let envoy = Compiled::start("envoy", &setup.compile(&folder.join("envoy"))?, &folder)?;
    for listener in ["mesh", "apps", "pg", "told"] {
        envoy.listener(listener)?;
    }
    assert_eq!(envoy.rejected()?, 0);
    let log = std::fs::read_to_string(folder.join("envoy.log"))?;
    let warned = log.lines().filter(|line| line.contains("eprecated"));
    assert_eq!(warned.collect::<Vec<_>>(), [""; 0]);
    Ok(())
}

#[test]
#[expect(
    clippy::too_many_lines,
    reason = "one mesh of two peers, and what is asked of it"
)]
fn the_same_yaml_lets_in_the_same_requests_in_envoy() -> Result<()> {
    let folder = folder("the_same_yaml_lets_in_the_same_requests_in_envoy")?;
    let endpoints = BTreeMap::from([("a", Endpoint::start("a", Answers::WithItsName)?)]);
    let mesh = Mesh::new(&folder)?;
    let guarded: Vec<String> = (GUARDED.iter())
        .map(|line| with_addresses(line, &endpoints))
        .collect();
    let named = |name: &'static str, more: &[&str]| -> (&'static str, Vec<String>) {
        let spec = [
            &[
                "protocol: http",
                "backends: [{ endpoints: [@a] }]",
                "allow: [{ from: ['spiffe://west.example/*', 'spiffe://north.example/*', 'spiffe://east.example/*'] }, { listeners: [apps] }]",
            ][..],
            more,
        ]
        .concat();
        let lines = spec.iter().map(|line| with_addresses(line, &endpoints));
        (name, lines.collect())
    };
    let west = "export: { to: [west] }";
    let headed = (HEADED_RULES.iter()).map(|line| with_addresses(line, &endpoints));
    let by_name = (NAMED_RULES.iter()).map(|line| with_addresses(line, &endpoints));
    let routes = [
        ("guarded", guarded),
        ("headed", headed.collect()),
        ("by-name", by_name.collect()),
        named("wild", &["hosts: ['*.wild.example']", west]),
        named("hidden", &["hosts: [hidden.wild.example]"]),
        named("shared", &["hosts: [shared.wild.example]", west]),
        named(
            "shared-too",
            &[
                "hosts: [shared.wild.example, more.wild.example]",
                "port: 81",
            ],
        ),
        named(
            "audited",
            &[
                "hosts: [audited.example]",
                "deny: [{ methods: [GET] }]",
                "policy: audit",
                west,
            ],
        ),
        named("to-west", &["hosts: [to-west.example]", west]),
        named(
            "to-all",
            &["hosts: [to-all.example]", "export: { to: ['*'] }"],
        ),
        named(
            "to-north",
            &["hosts: [to-north.example]", "export: { to: [north] }"],
        ),
        named(
            "to-north2",
            &["hosts: [to-north2.example]", "export: { to: [north2] }"],
        ),
        named(
            "to-north3",
            &["hosts: [to-north3.example]", "export: { to: [north3] }"],
        ),
        named(
            "to-norths",
            &[
                "hosts: [to-norths.example]",
                "export: { to: [north, north3] }",
            ],
        ),
    ];
    let north = mesh.root.domain("north.example")?;
    let norths = norths(&folder, &north.trust)?;
    let mut setup = |setup: Setup| {
        let setup = setup.documents(&norths);
        routes.iter().fold(setup, |setup, (name, spec)| {
            setup.route(name, &spec.iter().map(String::as_str).collect::<Vec<_>>())
        })
    };
    let both = Both::start(&folder, &mesh, &mut setup)?;
    let calls = |by: By| match by {
        By::Nobody => Ok(None),
        By::East(path) => mesh.east.svid(path).map(Some),
        By::West(path) => mesh.west.svid(path).map(Some),
        By::North(path) => north.svid(path).map(Some),
    };
    let mut wrong = String::new();
    for (headers, says) in HEADED {
        for who in ["zeugma", "envoy"] {
            let host = "headed.shop.svc.clusterset.local";
            let status = both.ask_with(who, None, (host, "GET", "/"), headers)?;
            let wanted = match says {
                Says::In => true,
                Says::Out => false,
                Says::OursRefuses(_) => who == "envoy",
            };
            if (status == Some(200)) != wanted {
                writeln!(wrong, "{who}: {headers:?}: {status:?}")?;
            }
        }
    }
    // A byte that is not UTF-8 hides nothing. Such a header is read from a file.
    for (nth, header) in [
        &b"x-role: \xff, guest"[..],
        b"x-role: guest,\xff",
        b"x-role: temp.\xff",
    ]
    .into_iter()
    .enumerate()
    {
        let file = folder.join(format!("header-{nth}"));
        std::fs::write(&file, [header, b"\n"].concat())?;
        let file = format!("@{}", file.display());
        let headers = ["x-tenant: acme", "x-env: a", &file];
        for who in ["zeugma", "envoy"] {
            let host = "headed.shop.svc.clusterset.local";
            let status = both.ask_with(who, None, (host, "GET", "/"), &headers)?;
            if status != Some(403) {
                writeln!(wrong, "{who}: {}: {status:?}", header.escape_ascii())?;
            }
        }
    }
    let host = "guarded.shop.svc.clusterset.local";
    for (by, method, path, says) in DECIDED {
        let caller = calls(*by)?;
        let (ours, theirs, why) = match says {
            Says::In => (true, true, ""),
            Says::Out => (false, false, ""),
            Says::OursRefuses(why) => (false, true, *why),
        };
        for (who, wanted) in [("zeugma", ours), ("envoy", theirs)] {
            let status = both.ask(who, caller.as_ref(), host, method, path)?;
            if (status == Some(200)) != wanted {
                writeln!(wrong, "{who}: {method} {path} by {by:?}: {status:?} {why}")?;
            }
        }
    }
    for (host, by, wanted) in EXPORTED {
        let caller = calls(*by)?;
        for who in ["zeugma", "envoy"] {
            let status = both.ask(who, caller.as_ref(), host, "GET", "/")?;
            if (status == Some(200)) != *wanted {
                writeln!(wrong, "{who}: {host} by {by:?}: {status:?}")?;
            }
        }
    }
    assert_eq!(wrong, "", "decided otherwise than it should be:\n{wrong}");
    Ok(())
}

/// Three peers of one trust domain, and its bundle as SPIFFE has it.
fn norths(folder: &Path, trust: &Trust) -> Result<String> {
    let pem = std::fs::read_to_string(&trust.anchor)?;
    let anchor: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let bundle = folder.join("north.json");
    let keys = serde_json::json!({
        "keys": [
            { "use": "jwt-svid", "kty": "EC", "kid": "no anchor" },
            { "use": "x509-svid", "kty": "EC", "x5c": [anchor] },
        ],
    });
    std::fs::write(&bundle, keys.to_string())?;
    let mut documents = format!(
        "---
apiVersion: zeugma.dev/v1alpha1
kind: TrustDomain
metadata: {{ name: {} }}
spec: {{ bundle: {} }}
",
        trust.name,
        bundle.display(),
    );
    for (name, id, sources) in [
        ("north", GATEWAY, ""),
        ("north2", GATEWAY_2, "127.0.0.0/8"),
        ("north3", GATEWAY_3, "192.0.2.0/24"),
    ] {
        writeln!(
            documents,
            "---
apiVersion: zeugma.dev/v1alpha1
kind: MeshPeer
metadata: {{ name: {name} }}
spec:
  cluster: {name}
  locality: eu/eu-3
  gateways: [\"127.0.0.1:9\"]
  spiffeIDs: [\"spiffe://{}{id}\"]
  sources: [{sources}]",
            trust.name,
        )?;
    }
    Ok(documents)
}

/// Our gateway, and an Envoy in its place.
struct Both {
    ours: Gateway,
    envoy: Compiled,
}

impl Both {
    fn start(folder: &Path, mesh: &Mesh, with: &mut dyn FnMut(Setup) -> Setup) -> Result<Self> {
        let trusted = [&mesh.east.trust, &mesh.west.trust];
        let setup = Setup::new(folder, EAST, &mesh.east_gateway, &trusted)?
            .caller(WEST, &mesh.west_gateway.id);
        let setup = with(setup).admin_socket();
        let bootstrap = setup.compile(&folder.join("envoy"))?;
        let envoy = Compiled::start("envoy", &bootstrap, folder)?;
        let rejected = envoy.rejected()?;
        ensure!(
            rejected == 0,
            "Envoy refuses {rejected} updates; see envoy.log in {}",
            folder.display()
        );
        Ok(Self {
            ours: setup.start()?,
            envoy,
        })
    }

    /// Waits until both have found all that is down.
    fn know_who_is_down(&self) -> Result<()> {
        let until = Instant::now() + READY_WITHIN;
        loop {
            let ours = self.ours.admin("/clusters")?;
            let (ours, theirs) = (of_ours(&ours)?, of_envoys(&self.envoy.clusters()?));
            let is_known = |(down, all): (usize, usize)| down == all && all > 0;
            if is_known(ours) && is_known(theirs) {
                return Ok(());
            }
            ensure!(
                Instant::now() < until,
                "of endpoints that are down ours has found {ours:?}, envoy {theirs:?}"
            );
        }
    }

    /// How many requests of the route `mirrored` and their copies are under way, and how many copies
    /// have been sent in all, as the proxy says itself.
    fn copied(&self, who: &str) -> Result<(u64, u64)> {
        if who == "envoy" {
            let under_way = self.envoy.stat("upstream_rq_active")?;
            return Ok((under_way, self.envoy.stat("copies_80.upstream_rq_total")?));
        }
        let open = (self.ours).admin("/api/v1/connections?service=shop/mirrored")?;
        let open: Value = serde_json::from_str(&open)?;
        let under_way = open.pointer("/carried/total").and_then(Value::as_u64);
        let metrics = self.ours.admin("/metrics")?;
        let sent = metrics
            .lines()
            .filter(|line| line.starts_with("zeugma_mirrored_total{"))
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok());
        Ok((under_way.context("what is carried")?, sent.sum()))
    }

    /// How many copies have arrived since `before`, what was sent and what had arrived, once none is
    /// under way: they come behind what they are copies of.
    fn settled(&self, who: &str, at: &Endpoint, before: (u64, usize)) -> Result<usize> {
        let until = Instant::now() + READY_WITHIN;
        loop {
            let (under_way, sent) = self.copied(who)?;
            let (sent, arrived) = (sent - before.0, at.requests() - before.1);
            if under_way == 0 && usize::try_from(sent)? == arrived {
                return Ok(arrived);
            }
            ensure!(
                Instant::now() < until,
                "{who} has sent {sent} copies, {under_way} are under way, and {arrived} have arrived"
            );
        }
    }

    /// The status of an answer; `None` where there is none.
    fn ask(
        &self,
        who: &str,
        by: Option<&Svid>,
        host: &str,
        method: &str,
        path: &str,
    ) -> Result<Option<u16>> {
        self.ask_with(who, by, (host, method, path), &[])
    }

    /// The same with headers.
    fn ask_with(
        &self,
        who: &str,
        by: Option<&Svid>,
        (host, method, path): (&str, &str, &str),
        headers: &[&str],
    ) -> Result<Option<u16>> {
        let (apps, mesh) = match who {
            "zeugma" => (self.ours.apps, self.ours.mesh),
            _ => (self.envoy.listener("apps")?, self.envoy.listener("mesh")?),
        };
        let to = by.map_or(apps, |_| mesh);
        curl::status_with(to, by, (host, method, path), headers)
    }
}

/// How many of the endpoints at port 9 are known to be down, and how many there are.
fn of_ours(clusters: &str) -> Result<(usize, usize)> {
    let clusters: Value = serde_json::from_str(clusters).context("our clusters")?;
    let mut counted = (0, 0);
    count(&clusters, &mut counted);
    Ok(counted)
}

fn count(value: &Value, counted: &mut (usize, usize)) {
    match value {
        Value::Array(list) => list.iter().for_each(|one| count(one, counted)),
        Value::Object(fields) => {
            let address = fields.get("address").and_then(Value::as_str);
            if address
                .is_some_and(|address| address.ends_with(":9") && address.starts_with("127.0.9."))
            {
                counted.1 += 1;
                let status = fields.get("status").and_then(Value::as_str);
                counted.0 += usize::from(status == Some("unhealthy"));
            }
            fields.values().for_each(|one| count(one, counted));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn of_envoys(clusters: &Value) -> (usize, usize) {
    let list = |value: &Value, path: &str| value.pointer(path).and_then(Value::as_array).cloned();
    let clusters = list(clusters, "/cluster_statuses").unwrap_or_default();
    let hosts = clusters
        .iter()
        .filter_map(|one| list(one, "/host_statuses"))
        .flatten();
    let down = hosts.filter(|host| {
        host.pointer("/address/socket_address/port_value") == Some(&Value::from(9))
            && host
                .pointer("/address/socket_address/address")
                .and_then(Value::as_str)
                .is_some_and(|address| address.starts_with("127.0.9."))
    });
    down.fold((0, 0), |(down, all), host| {
        let is_down =
            host.pointer("/health_status/failed_active_health_check") == Some(&Value::Bool(true));
        (down + usize::from(is_down), all + 1)
    })
}
