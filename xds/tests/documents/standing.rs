//! Each document stands for itself: what serves when some of them are wrong.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;

use zeugma_core::snapshot::{Address, Export, Service};
use zeugma_xds::{Findings, Good, LastGood, Loaded, NodeOptions, Serves, Sources, Unbound};

use crate::support::{EAST, WEST_PEER, route};

/// Files, and what was good of them when they were last read.
pub(crate) struct Mesh {
    dir: tempfile::TempDir,
    good: Good,
}

impl Mesh {
    /// A gateway, the peer `west`, and the routes `shop/orders` and `shop/cart`, a file each.
    fn new() -> Self {
        let mesh = Self {
            dir: tempfile::tempdir().unwrap(),
            good: Good::default(),
        };
        mesh.write("gateway.yaml", EAST);
        mesh.write("west.yaml", WEST_PEER);
        mesh.write("orders.yaml", &to("orders", "10.0.0.1:80"));
        mesh.write("cart.yaml", &to("cart", "10.0.0.2:80"));
        mesh
    }

    /// The same, and read once.
    pub(crate) fn served() -> Self {
        let mut mesh = Self::new();
        assert!(mesh.read().refused.is_empty());
        mesh
    }

    pub(crate) fn write(&self, file: &str, text: &str) {
        fs::write(self.dir.path().join(file), text).unwrap();
    }

    pub(crate) fn remove(&self, file: &str) {
        fs::remove_file(self.dir.path().join(file)).unwrap();
    }

    fn try_read(&mut self, unbound: &[Unbound]) -> Result<Loaded, Findings> {
        let sources = Sources::read(self.dir.path())?;
        let loaded = sources.renew(&NodeOptions::default(), &self.good, unbound)?;
        self.good = loaded.good.clone();
        Ok(loaded)
    }

    /// Reads the files again, as a gateway does on a change.
    pub(crate) fn read(&mut self) -> Loaded {
        self.try_read(&[]).unwrap()
    }
}

fn to(name: &str, address: &str) -> String {
    route(
        name,
        &format!(
            "protocol: http, backends: [{{endpoints: ['{address}']}}], allow: [{{listeners: [apps]}}]"
        ),
    )
}

/// Each route and its first address.
fn served(loaded: &Loaded) -> Vec<(String, String)> {
    let address =
        |service: &Service| match &loaded.snapshot.cluster(service.outbound).endpoints[0].address {
            Address::Socket(address) => address.to_string(),
            Address::Name(host, port) | Address::Each(host, port) => format!("{host}:{port}"),
        };
    let services = loaded.snapshot.services.iter();
    services
        .map(|service| (service.name.to_string(), address(service)))
        .collect()
}

fn refused(loaded: &Loaded) -> Vec<(&str, Serves)> {
    let documents = loaded.refused.documents().iter();
    documents
        .map(|document| (document.name.as_str(), document.serves))
        .collect()
}

fn orders_and_cart(orders: &str, cart: &str) -> Vec<(String, String)> {
    vec![
        ("shop/cart".to_owned(), cart.to_owned()),
        ("shop/orders".to_owned(), orders.to_owned()),
    ]
}

#[test]
fn a_document_that_is_wrong_keeps_its_last_good_text_and_stops_no_other() {
    for wrong in [
        // A field that is not known, a value that is none, and no YAML at all.
        to("orders", "10.0.0.9:80").replace("backends", "backend"),
        to("orders", "10.0.0.9:none"),
        to("orders", "10.0.0.9:80").replace("]}]", "]}"),
        // What only the other documents tell.
        to("orders", "10.0.0.9:80").replace("[apps]", "[no-such-listener]"),
        to("orders", "10.0.0.9:80").replace("backends: [", "backends: [{peer: wets}, "),
    ] {
        let mut mesh = Mesh::served();
        mesh.write("orders.yaml", &wrong);
        mesh.write("cart.yaml", &to("cart", "10.0.0.3:80"));
        let loaded = mesh.read();
        assert_eq!(
            served(&loaded),
            orders_and_cart("10.0.0.1:80", "10.0.0.3:80"),
            "{wrong}"
        );
        let [(name, Serves::LastGood)] = refused(&loaded)[..] else {
            panic!("{wrong}: {:?}", loaded.refused);
        };
        assert!(
            name == "MeshRoute shop/orders" || name.contains("orders.yaml:"),
            "{name}"
        );
        let text = loaded.refused.findings().to_string();
        assert!(text.contains("orders.yaml:"), "{text}");
        let json = loaded.refused.to_json();
        assert_eq!(json[0]["document"], name, "{json}");
        assert_eq!(json[0]["serves"], "last-good");
        // It goes on like that, and what was kept says the same.
        assert_eq!(mesh.read(), loaded);
        let kept = LastGood::from_bytes(loaded.last_good.as_bytes().to_vec());
        assert_eq!(
            kept.load(mesh.dir.path(), &NodeOptions::default()).unwrap(),
            loaded
        );
        mesh.write("orders.yaml", &to("orders", "10.0.0.9:80"));
        let mended = mesh.read();
        assert!(mended.refused.is_empty());
        assert_eq!(
            served(&mended),
            orders_and_cart("10.0.0.9:80", "10.0.0.3:80")
        );
    }
}

#[test]
fn what_never_was_good_serves_nothing_and_is_told() {
    let mut mesh = Mesh::new();
    mesh.write("more.yaml", &route("more", "protocol: gopher"));
    let loaded = mesh.read();
    assert_eq!(served(&loaded).len(), 2);
    assert_eq!(refused(&loaded), [("MeshRoute shop/more", Serves::Nothing)]);
}

#[test]
fn a_deleted_document_is_deleted() {
    let mut mesh = Mesh::served();
    mesh.remove("cart.yaml");
    let loaded = mesh.read();
    assert!(loaded.refused.is_empty());
    assert_eq!(served(&loaded).len(), 1);
    // Also where another file is wrong at that moment.
    mesh.write("cart.yaml", &to("cart", "10.0.0.2:80"));
    mesh.read();
    mesh.remove("cart.yaml");
    mesh.write("orders.yaml", "a: [");
    let loaded = mesh.read();
    assert_eq!(
        served(&loaded),
        [("shop/orders".to_owned(), "10.0.0.1:80".to_owned())]
    );
}

#[test]
fn text_that_is_no_yaml_keeps_every_document_of_its_file() {
    let mut mesh = Mesh::served();
    let (orders, cart) = (to("orders", "10.0.0.4:80"), to("cart", "10.0.0.5:80"));
    mesh.remove("cart.yaml");
    mesh.write("orders.yaml", &format!("{orders}{cart}"));
    assert!(mesh.read().refused.is_empty());
    mesh.write(
        "orders.yaml",
        &format!("{}\n---\nkind: [\n", to("orders", "10.0.0.6:80")),
    );
    let loaded = mesh.read();
    assert_eq!(
        served(&loaded),
        orders_and_cart("10.0.0.6:80", "10.0.0.5:80")
            .into_iter()
            .rev()
            .collect::<Vec<_>>()
    );
    let [(name, Serves::LastGood)] = refused(&loaded)[..] else {
        panic!("{:?}", loaded.refused);
    };
    assert!(name.contains("orders.yaml:"), "{name}");
}

#[test]
fn a_route_goes_on_without_a_peer_that_was_deleted() {
    let mut mesh = Mesh::served();
    let both = to("orders", "10.0.0.1:80")
        .replace("backends: [", "backends: [{peer: west}, ")
        .replace("allow: [", "export: {to: [west]}, allow: [");
    mesh.write("orders.yaml", &both);
    let loaded = mesh.read();
    assert!(loaded.refused.is_empty(), "{:?}", loaded.refused);
    let orders = &loaded.snapshot.services[1];
    assert_eq!(loaded.snapshot.cluster(orders.outbound).endpoints.len(), 3);
    assert!(matches!(&orders.export, Export::To(peers) if peers.len() == 1));
    mesh.remove("west.yaml");
    let loaded = mesh.read();
    assert!(loaded.snapshot.peers.is_empty());
    let orders = &loaded.snapshot.services[1];
    assert_eq!(loaded.snapshot.cluster(orders.outbound).endpoints.len(), 1);
    assert_eq!(orders.export, Export::Nobody);
    assert_eq!(refused(&loaded), [("MeshRoute shop/orders", Serves::Rest)]);
    // A change of it must be right, and is refused as long as it is not.
    mesh.write("orders.yaml", &both.replace("10.0.0.1", "10.0.0.7"));
    let loaded = mesh.read();
    assert_eq!(served(&loaded)[1].1, "10.0.0.1:80");
    mesh.write("west.yaml", WEST_PEER);
    let loaded = mesh.read();
    assert!(loaded.refused.is_empty());
    let orders = &loaded.snapshot.services[1];
    assert_eq!(loaded.snapshot.cluster(orders.outbound).endpoints.len(), 3);
}

#[test]
fn a_split_goes_on_without_a_route_that_was_deleted() {
    let mut mesh = Mesh::served();
    let split = to("orders", "10.0.0.1:80").replace(
        "allow: [",
        "rules: [{split: [{route: cart}, {backends: [backend-1], weight: 9}]}], allow: [",
    );
    mesh.write("orders.yaml", &split);
    let parts = |loaded: &Loaded| -> Vec<String> {
        let rules = loaded
            .snapshot
            .services
            .iter()
            .find_map(|one| one.rules.as_ref());
        let split = rules.unwrap().list[0].split.as_ref().unwrap();
        split.iter().map(|part| part.label.to_string()).collect()
    };
    assert_eq!(parts(&mesh.read()), ["shop/cart", "backend-1"]);
    mesh.remove("cart.yaml");
    let loaded = mesh.read();
    assert_eq!(parts(&loaded), ["backend-1"]);
    assert_eq!(refused(&loaded), [("MeshRoute shop/orders", Serves::Rest)]);
    mesh.write("cart.yaml", &to("cart", "10.0.0.2:80"));
    let loaded = mesh.read();
    assert!(loaded.refused.is_empty());
    assert_eq!(parts(&loaded), ["shop/cart", "backend-1"]);
}

#[test]
fn of_two_that_claim_the_same_the_one_that_served_stays() {
    // By name; the file of the new one is read first.
    let mut mesh = Mesh::served();
    mesh.write("a.yaml", &to("orders", "10.0.0.8:80"));
    let loaded = mesh.read();
    assert_eq!(
        served(&loaded),
        orders_and_cart("10.0.0.1:80", "10.0.0.2:80")
    );
    assert_eq!(
        refused(&loaded),
        [("MeshRoute shop/orders", Serves::Nothing)]
    );
    let text = loaded.refused.findings().to_string();
    assert!(
        text.contains("a.yaml:5:19: metadata.name: a second MeshRoute shop/orders")
            && text.contains("orders.yaml:5"),
        "{text}"
    );
    // By host: one that is new, and one that served with another host.
    mesh.write(
        "a.yaml",
        &to("another", "10.0.0.8:80").replace(
            "backends",
            "hosts: [orders.shop.svc.clusterset.local], backends",
        ),
    );
    let loaded = mesh.read();
    assert_eq!(
        refused(&loaded),
        [("MeshRoute shop/another", Serves::Nothing)]
    );
    mesh.remove("a.yaml");
    mesh.write(
        "cart.yaml",
        &to("cart", "10.0.0.8:80").replace(
            "backends",
            "hosts: [orders.shop.svc.clusterset.local], backends",
        ),
    );
    let loaded = mesh.read();
    assert_eq!(
        served(&loaded),
        orders_and_cart("10.0.0.1:80", "10.0.0.2:80")
    );
    assert_eq!(
        refused(&loaded),
        [("MeshRoute shop/cart", Serves::LastGood)]
    );
}

#[test]
fn the_document_that_changed_is_at_fault_and_not_those_that_rely_on_it() {
    let mut mesh = Mesh::served();
    // Every route's rule names the listener.
    mesh.write("gateway.yaml", &EAST.replace("apps:", "workloads:"));
    let loaded = mesh.read();
    assert_eq!(
        refused(&loaded),
        [("MeshGateway east-gw", Serves::LastGood)]
    );
    assert_eq!(&*loaded.snapshot.listeners[1].name, "apps");
    assert_eq!(served(&loaded).len(), 2);
    // With the routes it is a change like any other; who does not follow is alone.
    mesh.write(
        "orders.yaml",
        &to("orders", "10.0.0.1:80").replace("apps", "workloads"),
    );
    mesh.write(
        "cart.yaml",
        &to("cart", "10.0.0.2:80").replace("apps", "wrokloads"),
    );
    let loaded = mesh.read();
    assert_eq!(&*loaded.snapshot.listeners[1].name, "workloads");
    assert_eq!(refused(&loaded), [("MeshRoute shop/cart", Serves::Rest)]);
    assert_eq!(loaded.snapshot.services[0].policy.allow.len(), 0);
    assert_eq!(loaded.snapshot.services[1].policy.allow.len(), 1);
}

#[test]
fn a_peer_that_changed_is_at_fault_for_what_it_makes_unsafe() {
    let mut mesh = Mesh::served();
    let sources = format!("{WEST_PEER}  sources: [192.0.2.0/24]\n");
    mesh.write("west.yaml", &sources);
    mesh.write(
        "db.yaml",
        &route(
            "db",
            "port: 5432, backends: [{endpoints: ['10.0.0.1:5432'], tls: workload}], \
             export: {to: [west]}, allow: [{listeners: [mesh]}]",
        ),
    );
    assert!(mesh.read().refused.is_empty());
    mesh.write("west.yaml", WEST_PEER);
    let loaded = mesh.read();
    assert_eq!(refused(&loaded), [("MeshPeer west", Serves::LastGood)]);
    assert_eq!(loaded.snapshot.peers[0].sources.len(), 1);
}

#[test]
fn a_file_that_cannot_be_read_keeps_its_documents() {
    let mut mesh = Mesh::served();
    let gone = mesh.dir.path().join("gone");
    mesh.remove("orders.yaml");
    symlink(&gone, mesh.dir.path().join("orders.yaml")).unwrap();
    mesh.write("cart.yaml", &to("cart", "10.0.0.3:80"));
    let loaded = mesh.read();
    assert_eq!(
        served(&loaded),
        orders_and_cart("10.0.0.1:80", "10.0.0.3:80")
    );
    let [(name, Serves::LastGood)] = refused(&loaded)[..] else {
        panic!("{:?}", loaded.refused);
    };
    assert!(name.ends_with("orders.yaml"), "{name}");
    // The link that leads somewhere again.
    fs::write(&gone, to("orders", "10.0.0.4:80")).unwrap();
    let loaded = mesh.read();
    assert_eq!(
        served(&loaded),
        orders_and_cart("10.0.0.4:80", "10.0.0.3:80")
    );
}

/// Files that were renamed and cannot be read would look like the end of every route.
#[test]
fn an_update_that_would_end_every_route_while_a_file_cannot_be_read_ends_none() {
    let mut mesh = Mesh::served();
    mesh.remove("orders.yaml");
    mesh.remove("cart.yaml");
    symlink("nowhere", mesh.dir.path().join("routes.yaml")).unwrap();
    let loaded = mesh.read();
    assert_eq!(
        served(&loaded),
        orders_and_cart("10.0.0.1:80", "10.0.0.2:80")
    );
    // Where every file can be read, it is meant.
    mesh.remove("routes.yaml");
    let loaded = mesh.read();
    assert!(loaded.refused.is_empty());
    assert_eq!(served(&loaded), []);
}

#[test]
fn a_folder_without_files_is_no_configuration() {
    let mut mesh = Mesh::served();
    for file in ["gateway.yaml", "west.yaml", "orders.yaml", "cart.yaml"] {
        mesh.remove(file);
    }
    let findings = mesh.try_read(&[]).unwrap_err();
    assert!(findings.to_string().contains("no file here ends in"));
    fs::remove_dir(mesh.dir.path()).unwrap();
    let findings = mesh.try_read(&[]).unwrap_err();
    assert!(findings.to_string().contains("cannot read"), "{findings}");
}

#[test]
fn the_gateway_goes_on_without_its_own_document() {
    let mut mesh = Mesh::served();
    mesh.remove("gateway.yaml");
    mesh.write("cart.yaml", &to("cart", "10.0.0.3:80"));
    let loaded = mesh.read();
    assert_eq!(
        refused(&loaded),
        [("MeshGateway east-gw", Serves::LastGood)]
    );
    assert_eq!(
        served(&loaded),
        orders_and_cart("10.0.0.1:80", "10.0.0.3:80")
    );
    let text = loaded.refused.findings().to_string();
    assert!(text.contains("no MeshGateway in"), "{text}");
}

#[test]
fn nothing_begins_without_a_gateway_or_a_route_that_is_good() {
    let mut mesh = Mesh::new();
    mesh.write("gateway.yaml", &EAST.replace("role: mesh", "role: mush"));
    let findings = mesh.try_read(&[]).unwrap_err();
    assert!(findings.to_string().contains("`mush`"), "{findings}");
    let mut mesh = Mesh::new();
    mesh.write("orders.yaml", "a: [");
    mesh.write("cart.yaml", &route("cart", "protocol: gopher"));
    let findings = mesh.try_read(&[]).unwrap_err();
    assert_eq!(findings.iter().count(), 2, "{findings}");
}

#[test]
fn an_address_that_cannot_be_bound_refuses_the_gateways_document_alone() {
    let mut mesh = Mesh::served();
    let gateway = EAST.replace("127.0.0.1:15001", "127.0.0.1:15009");
    mesh.write("gateway.yaml", &gateway);
    mesh.write("cart.yaml", &to("cart", "10.0.0.3:80"));
    let before = Mesh {
        dir: tempfile::tempdir().unwrap(),
        good: mesh.good.clone(),
    };
    let asked = mesh.read();
    mesh.good = before.good;
    let mut unbound = Unbound {
        gateway: asked.gateway,
        listeners: vec![(
            "apps".to_owned(),
            "`127.0.0.1:15009` cannot be bound".to_owned(),
        )],
    };
    let loaded = mesh.try_read(std::slice::from_ref(&unbound)).unwrap();
    assert_eq!(
        refused(&loaded),
        [("MeshGateway east-gw", Serves::LastGood)]
    );
    assert_eq!(loaded.snapshot.listeners[1].address.port(), 15001);
    assert_eq!(
        served(&loaded),
        orders_and_cart("10.0.0.1:80", "10.0.0.3:80")
    );
    let text = loaded.refused.findings().to_string();
    assert!(
        text.contains("gateway.yaml:13:") && text.contains("spec.listeners.apps.address"),
        "{text}"
    );
    // Another text may be bound.
    unbound.gateway ^= 1;
    assert!(
        mesh.try_read(std::slice::from_ref(&unbound))
            .unwrap()
            .refused
            .is_empty()
    );
}

#[test]
fn a_file_that_is_cut_to_nothing_keeps_its_documents_and_one_that_is_removed_does_not() {
    let mut mesh = Mesh::served();
    mesh.write("orders.yaml", "\n");
    let loaded = mesh.read();
    assert_eq!(
        served(&loaded),
        orders_and_cart("10.0.0.1:80", "10.0.0.2:80")
    );
    assert_eq!(loaded.refused.documents()[0].serves, Serves::LastGood);
    // And again, as long as it is empty.
    assert_eq!(served(&mesh.read()).len(), 2);
    mesh.write("orders.yaml", "# nothing here any more\n");
    assert_eq!(served(&mesh.read()).len(), 1);
    mesh.remove("orders.yaml");
    assert!(mesh.read().refused.is_empty());
}

/// The route `shop/orders`, whose denial names a peer.
fn denying(more: &str) -> String {
    route(
        "orders",
        &format!(
            "protocol: http, backends: [{{endpoints: ['10.0.0.1:80']}}], export: {{to: ['*']}}, \
             allow: [{{from: ['spiffe://west.example/*']}}], \
             deny: [{{from: ['spiffe://west.example/ns/bad/*'], via: [west]}}]{more}"
        ),
    )
}

#[test]
fn a_route_whose_denial_names_a_peer_that_is_gone_does_not_serve_without_it() {
    let mut mesh = Mesh::new();
    let attesting = WEST_PEER.replace("spec:", "spec:\n  attests: [west.example]");
    mesh.write("west.yaml", &attesting);
    mesh.write("orders.yaml", &denying(""));
    let first = mesh.read();
    assert!(first.refused.is_empty(), "{:?}", first.refused);
    mesh.write(
        "west.yaml",
        &attesting.replace("name: west", "name: us-west"),
    );
    let loaded = mesh.read();
    let orders = (loaded.snapshot.services.iter()).find(|service| &*service.name == "shop/orders");
    assert!(
        orders.is_none_or(|orders| orders.policy.deny.len() == 1),
        "it serves without its denial: {:?}",
        loaded.refused
    );
}

#[test]
fn defaults_that_contradict_routes_are_at_fault_and_the_routes_go_on() {
    let mut mesh = Mesh::new();
    let full = "protocol: http, backends: [{endpoints: ['10.0.0.1:80']}], allow: [{listeners: [apps]}], \
                failover: {full: 20%}";
    mesh.write("orders.yaml", &route("orders", full));
    assert!(mesh.read().refused.is_empty());
    mesh.write(
        "defaults.yaml",
        "apiVersion: zeugma.dev/v1alpha1\nkind: MeshDefaults\nmetadata: {name: mesh}\n\
         spec: {failover: {start: 10%}}\n",
    );
    let loaded = mesh.read();
    assert_eq!(served(&loaded).len(), 2, "{:?}", loaded.refused);
    assert_eq!(refused(&loaded), [("MeshDefaults mesh", Serves::Nothing)]);
}

#[test]
fn a_first_start_does_not_go_without_defaults_that_may_hold_a_denial() {
    let mut mesh = Mesh::new();
    mesh.write(
        "defaults.yaml",
        "apiVersion: zeugma.dev/v1alpha1\nkind: MeshDefaults\nmetadata: {name: mesh}\n\
         spec: {deny: [{sources: ['not a network']}]}\n",
    );
    assert!(mesh.try_read(&[]).is_err());
    mesh.remove("defaults.yaml");
    assert!(mesh.read().refused.is_empty());
}

#[test]
fn a_document_that_moves_to_another_file_and_breaks_keeps_its_last_good_text() {
    for wrong in [
        to("orders", "10.0.0.9:80").replace("]}]", "]}"),
        to("orders", "10.0.0.9:80").replace("spec: {", "spec: { a: 'b, "),
        to("orders", "10.0.0.9:80").replace("orders", "[orders"),
        "a: [".to_owned(),
    ] {
        let mut mesh = Mesh::served();
        mesh.remove("orders.yaml");
        mesh.write("shop-orders.yaml", &wrong);
        let loaded = mesh.read();
        assert_eq!(
            served(&loaded),
            orders_and_cart("10.0.0.1:80", "10.0.0.2:80"),
            "{wrong}"
        );
        let is_told = |(name, serves): &(&str, Serves)| {
            *name == "MeshRoute shop/orders" && *serves == Serves::LastGood
        };
        let all = refused(&loaded);
        assert!(all.iter().any(is_told), "{wrong}: {all:?}");
        let text = loaded.refused.findings().to_string();
        assert!(text.contains("shop-orders.yaml:"), "{text}");
        assert_eq!(mesh.read(), loaded);
        mesh.write("shop-orders.yaml", &to("orders", "10.0.0.9:80"));
        let mended = mesh.read();
        assert!(mended.refused.is_empty());
        assert_eq!(
            served(&mended),
            orders_and_cart("10.0.0.9:80", "10.0.0.2:80")
        );
    }
}

/// Two documents that run into each other are read as one, of the second's name.
#[test]
fn a_separator_that_is_lost_deletes_no_document() {
    let mut mesh = Mesh::served();
    mesh.remove("cart.yaml");
    let both = format!(
        "{}{}",
        to("orders", "10.0.0.1:80"),
        to("cart", "10.0.0.2:80")
    );
    mesh.write("orders.yaml", &both);
    assert!(mesh.read().refused.is_empty());
    let (first, second) = both.rsplit_once("---\n").unwrap();
    mesh.write("orders.yaml", &format!("{first}{second}"));
    let loaded = mesh.read();
    let mut served = served(&loaded);
    served.sort();
    assert_eq!(served, orders_and_cart("10.0.0.1:80", "10.0.0.2:80"));
}

#[test]
fn a_second_gateway_is_refused_and_the_one_that_served_goes_on() {
    let mut mesh = Mesh::served();
    let second = EAST.replace("east-gw", "other-gw");
    mesh.write("another.yaml", &second);
    mesh.write("cart.yaml", &to("cart", "10.0.0.3:80"));
    let loaded = mesh.read();
    assert_eq!(
        refused(&loaded),
        [("MeshGateway other-gw", Serves::Nothing)]
    );
    assert_eq!(
        served(&loaded),
        orders_and_cart("10.0.0.1:80", "10.0.0.3:80")
    );
    let text = loaded.refused.findings().to_string();
    assert!(
        text.contains("another.yaml:5:") && text.contains("say which with `--name`"),
        "{text}"
    );
    // A change of the gateway's own document is taken meanwhile.
    mesh.write("gateway.yaml", &EAST.replace("15001", "15009"));
    let loaded = mesh.read();
    assert_eq!(
        refused(&loaded),
        [("MeshGateway other-gw", Serves::Nothing)]
    );
    assert_eq!(loaded.snapshot.listeners[1].address.port(), 15009);
    // Where none of them served, nobody can tell.
    let mut mesh = Mesh::new();
    mesh.write("another.yaml", &second);
    let findings = mesh.try_read(&[]).unwrap_err();
    assert!(
        findings.to_string().contains("several MeshGateways"),
        "{findings}"
    );
}

/// Defaults of the mesh that deny a network, or say nonsense.
fn defaults(spec: &str) -> String {
    format!(
        "apiVersion: zeugma.dev/v1alpha1\nkind: MeshDefaults\nmetadata: {{name: mesh}}\nspec: {spec}\n"
    )
}

#[test]
fn routes_that_come_with_defaults_that_are_refused_wait_for_them() {
    for wrong in [
        defaults("{deny: [{sources: ['not a network']}]}"),
        defaults("{deny: [{sources: ['10.0.0.0/8']}]"),
        // What only the routes tell.
        defaults("{failover: {start: 10%}, deny: [{sources: ['10.0.0.0/8']}]}"),
        "apiVersion: zeugma.dev/v1alpha1\nkind: MeshDefaults\nmetadata: {name: [\n".to_owned(),
    ] {
        let mut mesh = Mesh::new();
        let full = to("cart", "10.0.0.2:80").replace("backends", "failover: {full: 20%}, backends");
        mesh.write("cart.yaml", &full);
        assert!(mesh.read().refused.is_empty());
        mesh.write("defaults.yaml", &wrong);
        mesh.write("orders.yaml", &to("orders", "10.0.0.9:80"));
        mesh.write("more.yaml", &to("more", "10.0.0.9:80"));
        let loaded = mesh.read();
        assert_eq!(
            served(&loaded),
            orders_and_cart("10.0.0.1:80", "10.0.0.2:80"),
            "{wrong}"
        );
        let refused = refused(&loaded);
        assert!(
            refused.contains(&("MeshRoute shop/orders", Serves::LastGood))
                && refused.contains(&("MeshRoute shop/more", Serves::Nothing)),
            "{refused:?}"
        );
        let text = loaded.refused.findings().to_string();
        assert!(
            text.contains("more.yaml:5:19: metadata.name: it would go without the MeshDefaults"),
            "{text}"
        );
        // It stays so until they are right, or gone.
        assert_eq!(served(&mesh.read()).len(), 2);
        mesh.write(
            "defaults.yaml",
            &defaults("{deny: [{sources: ['10.0.0.0/8']}]}"),
        );
        let loaded = mesh.read();
        assert!(loaded.refused.is_empty(), "{:?}", loaded.refused);
        let services = &loaded.snapshot.services;
        assert!(services.iter().all(|one| one.policy.deny.len() == 1) && services.len() == 3);
    }
}

#[test]
fn defaults_of_another_namespace_that_are_refused_hold_back_no_route() {
    let mut mesh = Mesh::served();
    let wrong = defaults("{deny: [{sources: ['not a network']}]}");
    let of_bank = wrong.replace("name: mesh", "name: mesh, namespace: bank");
    mesh.write("defaults.yaml", &of_bank);
    mesh.write("orders.yaml", &to("orders", "10.0.0.9:80"));
    let loaded = mesh.read();
    assert_eq!(
        served(&loaded),
        orders_and_cart("10.0.0.9:80", "10.0.0.2:80")
    );
}

#[test]
fn defaults_whose_denial_names_a_peer_that_is_gone_go_on_denying() {
    let mut mesh = Mesh::new();
    let attesting = WEST_PEER.replace("spec:", "spec:\n  attests: [west.example]");
    mesh.write("west.yaml", &attesting);
    mesh.write(
        "orders.yaml",
        &route(
            "orders",
            "protocol: http, backends: [{endpoints: ['10.0.0.1:80']}], export: {to: ['*']}, \
             allow: [{from: ['spiffe://west.example/*']}]",
        ),
    );
    mesh.write(
        "defaults.yaml",
        &defaults("{deny: [{from: ['spiffe://west.example/ns/bad/*'], via: [west]}]}"),
    );
    let first = mesh.read();
    let denies = |loaded: &Loaded| {
        let mut of_all = loaded.snapshot.services.iter();
        of_all.all(|one| &*one.name != "shop/orders" || one.policy.deny.len() == 1)
    };
    assert!(denies(&first), "{:?}", first.refused);
    mesh.write(
        "west.yaml",
        &attesting.replace("name: west", "name: us-west"),
    );
    let loaded = mesh.read();
    assert!(denies(&loaded), "{:?}", loaded.refused);
    assert_eq!(loaded.snapshot.services.len(), 2);
    assert_eq!(
        refused(&loaded),
        [
            ("MeshPeer west", Serves::LastGood),
            ("MeshPeer us-west", Serves::Nothing)
        ]
    );
    let json = loaded.refused.to_json();
    let of = |name| {
        json.as_array()
            .unwrap()
            .iter()
            .any(|one| one["document"] == name)
    };
    assert!(of("MeshPeer west") && of("MeshPeer us-west"), "{json}");
    let denied = defaults("{deny: [{from: ['spiffe://west.example/ns/bad/*'], via: [us-west]}]}");
    mesh.write("defaults.yaml", &denied);
    let loaded = mesh.read();
    assert!(loaded.refused.is_empty() && denies(&loaded));
}

#[test]
fn an_unchanged_gateway_goes_on_without_the_listeners_that_cannot_be_bound() {
    let mut mesh = Mesh::served();
    mesh.write("cart.yaml", &to("cart", "10.0.0.3:80"));
    let unbound = Unbound {
        gateway: mesh.read().gateway,
        listeners: ["apps", "mesh"]
            .map(|listener| (listener.to_owned(), "it is taken".to_owned()))
            .into(),
    };
    mesh.write("cart.yaml", &to("cart", "10.0.0.4:80"));
    let loaded = mesh.try_read(&[unbound]).unwrap();
    assert_eq!(refused(&loaded), [("MeshGateway east-gw", Serves::Rest)]);
    assert_eq!(
        served(&loaded),
        orders_and_cart("10.0.0.1:80", "10.0.0.4:80")
    );
    let text = loaded.refused.findings().to_string();
    for listener in ["apps", "mesh"] {
        let path = format!("spec.listeners.{listener}.address");
        assert!(text.contains(&path), "{text}");
    }
    let json = loaded.refused.to_json();
    assert_eq!(json[0]["serves"], "rest", "{json}");
}

#[test]
fn a_file_that_may_have_been_cut_off_is_told_from_one_that_was_changed() {
    let mut mesh = Mesh::served();
    let both = format!(
        "{}{}",
        to("orders", "10.0.0.1:80"),
        to("cart", "10.0.0.2:80")
    );
    mesh.remove("cart.yaml");
    mesh.write("orders.yaml", &both);
    mesh.read();
    let cut = |text: &str| {
        mesh.write("orders.yaml", text);
        let sources = Sources::read(mesh.dir.path()).unwrap();
        let cut = sources.cut(&mesh.good);
        assert!(cut.iter().all(|file| file.ends_with("/orders.yaml")));
        !cut.is_empty()
    };
    assert!(!cut(&both));
    assert!(!cut(&both.replace("10.0.0.2", "10.0.0.20")));
    assert!(!cut(&format!("{both}{}", to("more", "10.0.0.3:80"))));
    for len in 0..both.len() - 1 {
        assert!(cut(&both[..len]), "{len} of {}", both.len());
    }
    // Whoever writes no end of the last line is waited for once.
    let unended = both.trim_end();
    assert!(cut(unended));
    mesh.write("orders.yaml", unended);
    mesh.read();
    assert!(
        Sources::read(mesh.dir.path())
            .unwrap()
            .cut(&mesh.good)
            .is_empty()
    );
}

#[test]
fn a_file_that_does_not_come_to_rest_is_told_and_its_documents_go_on() {
    let mut mesh = Mesh::served();
    mesh.write("orders.yaml", "");
    mesh.write("cart.yaml", &to("cart", "10.0.0.3:80"));
    let restless = mesh.dir.path().join("orders.yaml").display().to_string();
    let sources = Sources::read(mesh.dir.path()).unwrap();
    let looks = sources.looks();
    assert_eq!((looks.len(), sources.looks()), (4, looks.clone()));
    let sources = sources.without(&[Arc::from(restless.as_str())].into());
    let loaded = sources
        .renew(&NodeOptions::default(), &mesh.good, &[])
        .unwrap();
    assert_eq!(
        served(&loaded),
        orders_and_cart("10.0.0.1:80", "10.0.0.3:80")
    );
    assert_eq!(refused(&loaded), [(restless.as_str(), Serves::LastGood)]);
    let text = loaded.refused.findings().to_string();
    assert!(text.contains("does not come to rest"), "{text}");
    // Of the same length, and of another content or time.
    mesh.write("cart.yaml", &to("cart", "10.0.0.4:80"));
    assert_ne!(Sources::read(mesh.dir.path()).unwrap().looks(), looks);
    mesh.good = loaded.good;
    mesh.write("orders.yaml", &to("orders", "10.0.0.9:80"));
    assert!(mesh.read().refused.is_empty());
}
