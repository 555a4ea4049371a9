//! `MeshDefaults`: what routes mean where they write nothing.

use zeugma_core::snapshot::{Balance, Cluster, HashOn, Service, Snapshot};
use zeugma_xds::{Code, Severity};

use crate::standing::Mesh;
use crate::support::{EAST, WEST_PEER, loaded, route, try_load, unplaced};

const ALLOW: &str = "allow: [{listeners: [apps]}]";

fn defaults(namespace: Option<&str>, spec: &str) -> String {
    let namespace = namespace.map_or(String::new(), |name| format!(", namespace: {name}"));
    format!(
        "\n---\napiVersion: zeugma.dev/v1alpha1\nkind: MeshDefaults\nmetadata: {{ name: defaults{namespace} }}\nspec: {{ {spec} }}\n"
    )
}

fn http(name: &str, more: &str) -> String {
    let backends = "backends: [{name: near, endpoints: ['10.0.0.1:80', '10.0.0.2:80']}, \
                    {name: far, locality: eu/eu-2, endpoints: ['10.0.0.3:80']}, {peer: west}]";
    let comma = if more.is_empty() { "" } else { ", " };
    route(name, &format!("protocol: http, {backends}{comma}{more}"))
}

fn snapshot(documents: &[&str]) -> Snapshot {
    let mut all = vec![EAST, WEST_PEER];
    all.extend(documents);
    unplaced(loaded(&all, None).snapshot)
}

/// Every field of the document, each alone: it is as if the route had written it.
#[test]
fn each_field_means_what_it_means_in_a_route() {
    let copies = http("copies", ALLOW);
    for field in [
        "balance: {policy: random}",
        "locality: {prefer: [region]}",
        "failover: {order: [{backend: far}]}",
        "failover: {never: [{backend: far}]}",
        "failover: {start: 50%}",
        "failover: {full: 20%}",
        "failover: {hold: 3s}",
        "failover: {failback: {after: 3s}}",
        "failover: {failback: {ramp: 3s}}",
        "failover: {failback: {mode: manual}}",
        "failover: {tooFew: fail}",
        "health: {active: {http: /healthz}}",
        "health: {active: {tcp: true, every: 2s}}",
        "health: {active: {tcp: true, timeout: 2s}}",
        "health: {active: {tcp: true, up: 7}}",
        "health: {active: {tcp: true, down: 7}}",
        "health: {passive: {consecutive: 7}}",
        "health: {passive: {on: [connect]}}",
        "health: {passive: {errorRate: {over: 10%}}}",
        "health: {passive: {errorRate: {requests: 7}}}",
        "health: {passive: {slow: {over: 7x}}}",
        "health: {passive: {slow: {over: 7x, requests: 7}}}",
        "health: {passive: {eject: 7s}}",
        "health: {passive: {maxEjected: 50%}}",
        "health: {passive: {keepAtLeast: 2}}",
        "timeouts: {connect: 7s}",
        "timeouts: {responseHeaders: 7s}",
        "timeouts: {idle: 7s}",
        "timeouts: {perTry: 7s}",
        "retries: {attempts: 7}",
        "retries: {on: [reset]}",
        "retries: {budget: 7%}",
        "retries: {buffer: 7KiB}",
        "retries: {any: true}",
        "retries: {hedge: {after: 7ms}}",
        "limits: {pending: 7}",
        "limits: {requests: 7}",
        "mirror: [{route: shop/copies, percent: 7%}]",
        "allow: [{listeners: [apps], methods: [GET]}]",
        "deny: [{sources: [10.0.0.0/8]}]",
        "policy: audit",
        "export: {to: [west]}",
    ] {
        let own_allow = if field.starts_with("allow") {
            ""
        } else {
            ALLOW
        };
        let comma = if own_allow.is_empty() { "" } else { ", " };
        let bare = snapshot(&[&http("orders", own_allow)]);
        // Where the other route cannot but inherit as well, it is left out.
        let others: &[&str] = if field.starts_with("mirror") {
            &[&copies]
        } else {
            &[]
        };
        let orders = http("orders", own_allow);
        let inherited = defaults(None, field);
        let mut documents = vec![inherited.as_str(), &orders];
        documents.extend(others);
        let taken = snapshot(&documents);
        let written = http("orders", &format!("{own_allow}{comma}{field}"));
        let mut documents = vec![written.as_str()];
        documents.extend(others);
        assert_eq!(taken, snapshot(&documents), "{field}");
        let of = |snapshot: &Snapshot| -> (Service, Vec<Cluster>) {
            let clusters = snapshot
                .clusters
                .iter()
                .map(|cluster| Cluster::clone(cluster));
            let orders = clusters.filter(|cluster| &*cluster.route == "shop/orders");
            (snapshot.services[0].clone(), orders.collect())
        };
        assert_ne!(of(&taken), of(&bare), "{field} changes nothing");
    }
    let tcp = |more: &str| {
        let spec =
            format!("port: 5432, backends: [{{endpoints: ['10.0.0.1:5432']}}], {ALLOW}{more}");
        route("db", &spec)
    };
    let limited = "limits: {connections: 7}";
    assert_eq!(
        snapshot(&[&defaults(None, limited), &tcp("")]),
        snapshot(&[&tcp(&format!(", {limited}"))])
    );
    assert_ne!(
        snapshot(&[&defaults(None, limited), &tcp("")]),
        snapshot(&[&tcp("")])
    );
}

#[test]
fn a_routes_own_words_win_and_its_namespaces_before_the_meshs() {
    let mesh = defaults(
        None,
        "timeouts: {connect: 1s, responseHeaders: 2s, idle: 3s}, retries: {on: [reset, 503]}, \
         health: {active: {http: /mesh, every: 9s}}, export: {to: [west]}, \
         deny: [{sources: [10.1.0.0/16]}], allow: [{listeners: [apps]}]",
    );
    let shop = defaults(
        Some("shop"),
        "timeouts: {connect: 4s, responseHeaders: 5s}, deny: [{sources: [10.2.0.0/16]}]",
    );
    let orders = http(
        "orders",
        "timeouts: {connect: 6s}, retries: {on: [502]}, health: {active: {tcp: true}}, \
         deny: [{sources: [10.3.0.0/16]}], export: {to: []}",
    );
    let as_written = http(
        "orders",
        "timeouts: {connect: 6s, responseHeaders: 5s, idle: 3s}, retries: {on: [502]}, \
         health: {active: {tcp: true, every: 9s}}, allow: [{listeners: [apps]}], \
         deny: [{sources: [10.3.0.0/16]}, {sources: [10.2.0.0/16]}, {sources: [10.1.0.0/16]}]",
    );
    assert_eq!(snapshot(&[&mesh, &shop, &orders]), snapshot(&[&as_written]));
    // Of another namespace, nothing.
    let elsewhere = defaults(Some("elsewhere"), "timeouts: {connect: 4s}");
    let bare = http("orders", ALLOW);
    assert_eq!(snapshot(&[&elsewhere, &bare]), snapshot(&[&bare]));
    // Nobody, though the mesh lets someone in.
    let nobody = snapshot(&[&mesh, &http("orders", "allow: []")]);
    assert_eq!(nobody.services[0].policy.allow, []);
}

#[test]
fn what_suits_only_some_routes_is_left_out_of_the_others() {
    let mesh = defaults(
        None,
        "timeouts: {responseHeaders: 2s, perTry: 1s}, retries: {attempts: 3}, \
         limits: {pending: 5, requests: 5, connections: 6}, health: {active: {http: /healthz, every: 9s}}, \
         mirror: [{route: shop/copies}], failover: {order: [{region: mars}]}, \
         balance: {policy: {ring-hash: {header: x-user}}}, \
         allow: [{listeners: [apps]}, {listeners: [apps], methods: [GET]}]",
    );
    let db = route(
        "db",
        "port: 5432, backends: [{endpoints: ['10.0.0.1:5432']}]",
    );
    let all = [&*mesh, &db, &http("orders", ""), &http("copies", "")];
    let snapshot = snapshot(&all);
    let db = snapshot.cluster(snapshot.services[0].outbound);
    assert_eq!(db.policy.limits.connections, Some(6));
    assert_eq!(
        (db.policy.limits.pending, db.policy.limits.requests),
        (None, None)
    );
    let active = db.policy.active.as_ref().unwrap();
    assert_eq!(active.kind, zeugma_core::snapshot::ActiveKind::Tcp);
    assert_eq!(active.every.as_secs(), 9);
    // A connection of bytes has no header.
    assert_eq!(db.policy.balance, Balance::RingHash(HashOn::Source));
    let orders = snapshot.cluster(snapshot.services[1].outbound);
    let by_header = Balance::RingHash(HashOn::Header("x-user".into()));
    assert_eq!(orders.policy.balance, by_header);
    let mirrors = |at: usize| snapshot.services[at].mirrors.len();
    // The route of the copies is not its own mirror.
    assert_eq!((mirrors(0), mirrors(1), mirrors(2)), (0, 1, 0));
}

#[test]
fn a_finding_points_to_where_the_value_is_written() {
    let mesh = defaults(
        None,
        "failover: {start: 10%, full: 30%}, export: {to: [wets]}, deny: [{sources: [10.0.0.0/8]}, {listeners: [nope]}]",
    );
    let orders = http(
        "orders",
        &format!("deny: [{{sources: [10.9.0.0/16]}}], {ALLOW}"),
    );
    let findings = try_load(
        &[EAST, WEST_PEER, &orders, &http("cart", ALLOW), &mesh],
        None,
    )
    .unwrap_err();
    let line = |path: &str| {
        let of = findings.iter().find(|one| {
            let place = one.place.as_ref().unwrap();
            place.path == path && place.text.contains("10.0.0.0/8")
        });
        of.unwrap_or_else(|| panic!("{path}: {findings}"))
    };
    assert_eq!(line("spec.failover.full").code, Code::Contradiction);
    assert_eq!(line("spec.export.to[0]").code, Code::UnknownReference);
    assert_eq!(
        line("spec.deny[1].listeners[0]").code,
        Code::UnknownReference
    );
    // Once, however many routes inherit it.
    assert_eq!(findings.iter().count(), 3, "{findings}");
    // The line of a rule or a mirror that is inherited is the one in its own file, too.
    let both = "deny: [{sources: [10.0.0.0/8]}], mirror: [{route: shop/canary}]";
    let both = defaults(None, both);
    let canary = http("canary", ALLOW);
    let documents = [EAST, WEST_PEER, &both, &http("orders", ALLOW), &canary];
    let loaded = loaded(&documents, None);
    let all = documents.concat();
    let mut services = loaded.snapshot.services.iter();
    let orders = services.find(|one| &*one.name == "shop/orders").unwrap();
    let rule = (orders.policy.deny[0].position.as_ref(), "10.0.0.0/8");
    let mirror = (orders.mirrors[0].position.as_ref(), "route: shop/canary");
    for (position, text) in [rule, mirror] {
        let line = usize::try_from(position.unwrap().line).unwrap();
        assert!(all.lines().nth(line - 1).unwrap().contains(text), "{text}");
    }
}

/// Whoever is denied by identity comes in where nobody's is known: an error where a route says it, and
/// told where it is said for all.
#[test]
fn a_denial_that_a_route_cannot_enforce_is_told() {
    let mesh = defaults(None, "deny: [{from: ['spiffe://west.example/*']}]");
    let db = route(
        "db",
        "port: 5432, backends: [{endpoints: ['10.0.0.1:5432'], tls: workload}], allow: [{listeners: [apps]}]",
    );
    let loaded = loaded(&[EAST, WEST_PEER, &mesh, &db], None);
    let [warning] = loaded.warnings.iter().as_slice() else {
        panic!("{:?}", loaded.warnings);
    };
    assert_eq!(warning.severity, Severity::Warning);
    assert!(
        warning.message.contains("TLS is passed through"),
        "{warning}"
    );
    assert_eq!(warning.place.as_ref().unwrap().path, "spec.deny[0].from");
}

#[test]
fn one_document_is_for_one_scope() {
    let first = defaults(None, "timeouts: {connect: 1s}");
    let second = first.replace("name: defaults", "name: others");
    let orders = http("orders", ALLOW);
    let findings = try_load(&[EAST, WEST_PEER, &orders, &first, &second], None).unwrap_err();
    assert!(
        findings
            .to_string()
            .contains("a second MeshDefaults `of the mesh`"),
        "{findings}"
    );
}

#[test]
fn defaults_that_are_wrong_keep_their_last_good_text() {
    let mut mesh = Mesh::served();
    let connect = |mesh: &mut Mesh| {
        let loaded = mesh.read();
        let orders = loaded
            .snapshot
            .cluster(loaded.snapshot.services[1].outbound);
        let refused: Vec<String> = (loaded.refused.documents().iter())
            .map(|document| document.name.clone())
            .collect();
        (orders.policy.timeouts.connect.as_secs(), refused)
    };
    mesh.write("defaults.yaml", &defaults(None, "timeouts: {connect: 2s}"));
    assert_eq!(connect(&mut mesh), (2, vec![]));
    for wrong in [
        // What reading tells, what each route tells, and what no route can tell.
        "timeouts: {connect: soon}",
        "timeouts: {connect: 3s}, retries: {attempts: 11}",
        "timeouts: {connect: 3s}, export: {to: [wets]}",
    ] {
        mesh.write("defaults.yaml", &defaults(None, wrong));
        let refused = vec!["MeshDefaults defaults".to_owned()];
        assert_eq!(connect(&mut mesh), (2, refused), "{wrong}");
    }
    mesh.write("defaults.yaml", &defaults(None, "timeouts: {connect: 3s}"));
    assert_eq!(connect(&mut mesh), (3, vec![]));
    mesh.remove("defaults.yaml");
    assert_eq!(connect(&mut mesh), (1, vec![]));
    // Never good, they are not there.
    mesh.write("defaults.yaml", &defaults(None, "retries: {attempts: 11}"));
    let refused = vec!["MeshDefaults defaults".to_owned()];
    assert_eq!(connect(&mut mesh), (1, refused));
}
