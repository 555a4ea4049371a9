//! Whatever is written: an answer, never a panic; and the schema says what is accepted.

use std::collections::BTreeSet;

use crate::support::{EAST, WEST_PEER, route, try_load};
use serde_json::Value;

/// A route that uses most fields.
pub(crate) fn full() -> String {
    route(
        "orders",
        r#"protocol: http, port: 8080, hosts: [orders.example, "*.orders.example"],
  backends: [
    {name: a, locality: eu/eu-1, endpoints: [{address: "10.0.1.10:8080", weight: 3}, "a.internal:8080"], version: h2},
    {name: b, cluster: east, endpoints: ["10.0.2.10:8443"], tls: mesh, spiffeIDs: ["spiffe://east.example/ns/shop/sa/orders"]},
    {peer: west, spiffeIDs: ["spiffe://west.example/ns/shop/*"]}],
  balance: {policy: round-robin}, locality: {prefer: [zone, region]},
  failover: {order: [{region: us}, {backend: b}], never: [{cluster: east}], start: 80%, full: 20%, hold: 5s, failback: {after: 3s, ramp: 7s, mode: manual}, tooFew: fail},
  health: {active: {http: /healthz, every: 500ms, timeout: 200ms, up: 1, down: 4},
    passive: {consecutive: 9, on: [reset, 500], errorRate: {over: 25%, requests: 40}, slow: {over: 2.5x, requests: 30}, eject: 2s, maxEjected: 50%, keepAtLeast: 2}},
  timeouts: {connect: 250ms, responseHeaders: 4s, idle: 2m, perTry: none},
  retries: {attempts: 4, on: [timeout, 429], budget: 12.5%, buffer: 1MiB, any: true, hedge: {after: 30ms}}, limits: {pending: 7, requests: 9},
  rules: [{name: rest}, {matches: [{path: {prefix: /v1}, method: GET, headers: {x-beta: "1"}, query: {q: "2"}}, {grpc: {service: shop.Orders, method: Get}}, {path: {exact: /a}}],
    split: [{backends: [a, west], weight: 9}, {backends: [west]}], timeouts: {responseHeaders: 1s, perTry: none}, retries: {attempts: 1, on: [503, internal], any: true},
    headers: {request: {set: {x-a: b}, add: {x-c: d}, remove: [x-e]}, response: {add: {x-f: g}}}}],
  allow: [{from: ["spiffe://east.example/ns/shop/*"], methods: [GET], paths: ["/v1/*"]}, {listeners: [apps], sources: ["10.0.0.0/8"]}],
  deny: [{sources: ["10.9.0.0/16"]}], export: {to: [west]}"#,
    )
}

/// SplitMix64 (Steele, Lea, Flood 2014), so that a seed alone replays a failure.
pub(crate) struct Draw(pub(crate) u64);

impl Draw {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(n.max(1)).unwrap()).unwrap()
    }

    fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}

const SPLINTERS: [&str; 32] = [
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "-",
    "&a ",
    "*a",
    "|",
    ">",
    "'",
    "\"",
    "#",
    "!!int ",
    "? ",
    "%",
    "\n",
    "\t",
    "\u{0}",
    "ß",
    "~",
    "0",
    "-1",
    "999999999999999999999",
    "0s",
    "100%",
    "east",
    "west",
    "spiffe://",
    "*",
    "<<: ",
];

fn mutate(text: &str, draw: &mut Draw) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    for _ in 0..=draw.below(3) {
        let at = draw.below(chars.len());
        let end = (at + 1 + draw.below(12)).min(chars.len());
        match draw.below(4) {
            0 => drop(chars.drain(at..end)),
            1 => drop(chars.splice(at..at, draw.pick(&SPLINTERS).chars())),
            2 => {
                let copy: Vec<char> = chars[at..end].to_vec();
                let to = draw.below(chars.len());
                drop(chars.splice(to..to, copy));
            }
            _ => drop(chars.splice(at..end, draw.pick(&SPLINTERS).chars())),
        }
    }
    chars.into_iter().collect()
}

#[test]
fn any_edit_of_a_configuration_loads_or_is_explained() {
    let text = [EAST, WEST_PEER, &full()].concat();
    assert!(try_load(&[&text], None).is_ok());
    let seed = std::env::var("ZEUGMA_SEED").map_or(2026, |seed| seed.parse().unwrap());
    let mut draw = Draw(seed);
    let mut refused = 0;
    for round in 0..300 {
        let edited = mutate(&text, &mut draw);
        if let Err(findings) = try_load(&[&edited], None) {
            refused += 1;
            assert!(findings.has_errors(), "seed {seed} round {round}");
            // Rendering meets every span, whatever the text.
            let human = findings.to_human(zeugma_xds::Color::Plain);
            assert!(
                human.contains("error["),
                "seed {seed} round {round}: {human}"
            );
        }
    }
    assert!(refused > 50, "only {refused} edits were refused");
}

#[test]
fn thousands_of_routes_load_together() {
    // What grows with the square of them would take minutes without optimisation.
    const ROUTES: usize = 3000;
    let routes: Vec<String> = (0..ROUTES)
        .map(|n| {
            route(
                &format!("r{n}"),
                &format!("protocol: http, backends: [{{endpoints: ['10.0.{}.{}:80']}}, {{peer: west}}], mirror: [{{route: r{}}}], allow: [{{listeners: [apps]}}], export: {{to: [west]}}", n / 250, n % 250, (n + 1) % ROUTES),
            )
        })
        .collect();
    let mut documents = vec![EAST, WEST_PEER];
    documents.extend(routes.iter().map(String::as_str));
    let loaded = try_load(&documents, None).unwrap();
    assert_eq!(loaded.snapshot.services.len(), ROUTES);
}

#[test]
fn thousands_of_endpoints_load_together() {
    let endpoints: Vec<String> = (0..3000)
        .map(|n| format!("'10.0.{}.{}:80'", n / 250, n % 250))
        .collect();
    let spec = format!(
        "protocol: http, backends: [{{endpoints: [{}]}}]",
        endpoints.join(", ")
    );
    let loaded = try_load(&[EAST, &route("orders", &spec)], None).unwrap();
    assert_eq!(loaded.snapshot.clusters[0].endpoints.len(), 3000);
}

fn properties(schema: &Value, names: &mut BTreeSet<String>) {
    match schema {
        Value::Object(fields) => {
            if let Some(Value::Object(properties)) = fields.get("properties") {
                names.extend(properties.keys().cloned());
                assert_eq!(
                    fields.get("additionalProperties"),
                    Some(&Value::Bool(false)),
                    "unknown fields are refused: {fields:?}"
                );
            }
            fields.values().for_each(|value| properties(value, names));
        }
        Value::Array(values) => values.iter().for_each(|value| properties(value, names)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn the_schema_names_every_field_and_refuses_others() {
    let schema = zeugma_xds::schema();
    assert_eq!(
        schema["$schema"],
        "https://json-schema.org/draft/2020-12/schema"
    );
    assert_eq!(schema["oneOf"].as_array().unwrap().len(), 5);
    let mut names = BTreeSet::new();
    properties(&schema, &mut names);
    // The words of the manual's example that this version reads.
    for name in "apiVersion kind metadata spec name namespace trustDomain cluster locality svid files workloadApi sds svid certificate key bundles crls denied stateDir listeners address role route sources admin adminToken probes metrics workers limits connections handshakeTimeout headerTimeout streams headerBytes drain controlPlane addresses onEmpty accessLog format delay timeout gateways spiffeIDs attests whenStale keepalive ping hosts protocol port ports targetPort inbound backends endpoints dns weight tls version proxyProtocol peer balance policy prefer spread failover order never start full hold failback after ramp mode tooFew health active http tcp every up down passive consecutive on errorRate slow over requests eject maxEjected keepAtLeast timeouts connect responseHeaders idle perTry retries attempts budget buffer any handshakes perSource trusted memory pending requests rules matches path prefix exact method headers query grpc service capacity split request response set add remove mirror percent bodyLimit inFlight compare allow deny from via methods paths export to bundle bundleEndpointURL bundleEndpointProfile type endpointSPIFFEID".split(' ') {
        assert!(names.contains(name), "the schema lacks `{name}`");
    }
}

fn undocumented(at: &str, schema: &Value, found: &mut Vec<String>) {
    if let Value::Object(fields) = schema {
        if let Some(Value::Object(properties)) = fields.get("properties") {
            for (name, property) in properties {
                let is_envelope = ["apiVersion", "kind"].contains(&name.as_str());
                if property.get("description").is_none() && !is_envelope {
                    found.push(format!("{at}.{name}"));
                }
            }
        }
        for (name, value) in fields {
            undocumented(&format!("{at}/{name}"), value, found);
        }
    }
}

#[test]
fn every_field_is_documented() {
    let mut found = Vec::new();
    undocumented("", &zeugma_xds::schema(), &mut found);
    assert!(found.is_empty(), "{found:?}");
}
