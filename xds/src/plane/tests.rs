//! What is made again of what changed is what would be made of everything.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use bytes::Bytes;

use super::*;
use crate::packed::{self, Resources};
use crate::pb::{self, Any, PbValue, cluster};
use crate::session::Kind;

const MESH: &str = include_str!("../catalog/mesh.yaml");
const DEFAULTS: &str = "apiVersion: zeugma.dev/v1alpha1
kind: MeshDefaults
metadata: { name: all }
spec: { retries: { attempts: 4 }, deny: [{ sources: [192.0.2.99] }] }
";
const SAME_HOST: &str = "apiVersion: zeugma.dev/v1alpha1
kind: MeshRoute
metadata: { name: same, namespace: shop }
spec:
  hosts: [orders.example]
  port: 7000
  backends: [{ endpoints: [\"10.0.7.1:7000\"] }]
  allow: [{ listeners: [apps] }]
";

/// A folder with a file for each document.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        for (nth, document) in MESH.split("---\n").enumerate() {
            folder.write(&file(nth), document);
        }
        folder
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.0.path().join(file), text).unwrap();
    }

    fn replace(&self, nth: usize, from: &str, to: &str) {
        let path = self.0.path().join(file(nth));
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(path, text.replacen(from, to, 1)).unwrap();
    }

    fn remove(&self, file: &str) {
        fs::remove_file(self.0.path().join(file)).unwrap();
    }

    fn sources(&self) -> Sources {
        Sources::read(self.0.path()).unwrap()
    }
}

fn file(nth: usize) -> String {
    format!("{nth:02}.yaml")
}

const ORDERS: usize = 2;
const PG: usize = 5;
const MORE: usize = 7;

fn view(flavor: Flavor) -> View {
    View {
        gateway: "east-gw".to_owned(),
        locality: "eu/eu-1".to_owned(),
        flavor,
    }
}

const FLAVORS: [Flavor; 4] = [Flavor::Proxy, Flavor::Envoy, Flavor::Bare, Flavor::Grpc];

fn bytes(catalog: &Catalog) -> BTreeMap<(Kind, String), Bytes> {
    let of = |kind: Kind| {
        let all = catalog.shelf(kind).iter();
        all.map(move |one| ((kind, one.name().to_string()), one.delta()))
    };
    Kind::ALL.into_iter().flat_map(of).collect()
}

#[test]
fn what_follows_a_change_is_what_is_made_of_all_documents() {
    type Step = (&'static str, fn(&Folder));
    let steps: [Step; 16] = [
        ("nothing", |_| {}),
        ("an endpoint", |f| {
            f.replace(ORDERS, "10.0.2.10:80", "10.0.2.11:80")
        }),
        ("a share of a mirror", |f| f.replace(MORE, "12.5%", "25%")),
        ("a host that others name", |f| {
            f.replace(ORDERS, "orders.example", "o.example")
        }),
        ("it is called as before", |f| {
            f.replace(ORDERS, "o.example", "orders.example")
        }),
        ("a host of two ports", |f| {
            f.write("03-same.yaml", SAME_HOST)
        }),
        ("defaults", |f| f.write("99.yaml", DEFAULTS)),
        ("a route with defaults", |f| {
            f.replace(PG, "10.0.5.1", "10.0.5.2")
        }),
        ("other defaults", |f| {
            f.write("99.yaml", &DEFAULTS.replace(": 4", ": 5"))
        }),
        ("defaults of another number", |f| f.remove("03-same.yaml")),
        ("no defaults", |f| f.remove("99.yaml")),
        ("a peer", |f| f.replace(1, "192.0.2.8", "192.0.2.9")),
        ("lines before a document", |f| {
            f.replace(ORDERS, "apiVersion", "# one\n\napiVersion")
        }),
        ("a document that cannot be read", |f| {
            f.replace(MORE, "spec:", "spec: [")
        }),
        ("a peer that a rule names", |f| f.remove("06.yaml")),
        ("a listener", |f| {
            f.replace(0, "0.0.0.0:15443", "0.0.0.0:15444")
        }),
    ];
    let folder = Folder::new();
    let mut store = Store::default();
    let mut plane = folder.sources().plane(&Good::default()).unwrap();
    let mut told = FLAVORS.map(|flavor| plane.catalog(&view(flavor), &mut store, None).unwrap());
    for (what, step) in steps {
        step(&folder);
        let anew = folder.sources().plane(plane.good()).unwrap();
        plane = folder.sources().plane_after(&plane).unwrap();
        assert_eq!(
            plane.refused().to_json(),
            anew.refused().to_json(),
            "{what}"
        );
        assert_eq!(
            plane.warnings().to_json(),
            anew.warnings().to_json(),
            "{what}"
        );
        assert_eq!(plane.good(), anew.good(), "{what}");
        for (flavor, told) in FLAVORS.into_iter().zip(&mut told) {
            let view = view(flavor);
            let expected = anew.catalog(&view, &mut Store::default(), None).unwrap();
            *told = plane.catalog(&view, &mut store, Some(told)).unwrap();
            let (told, expected) = (bytes(told), bytes(&expected));
            let others = expected
                .iter()
                .filter(|(key, one)| told.get(key) != Some(one));
            let others: Vec<_> = others.map(|(key, _)| key).collect();
            assert!(others.is_empty(), "{what}, {flavor:?}: {others:?}");
            assert_eq!(told.len(), expected.len(), "{what}, {flavor:?}");
        }
    }
}

#[test]
fn a_document_that_is_as_it_was_is_not_read_again() {
    let folder = Folder::new();
    let first = folder.sources().plane(&Good::default()).unwrap();
    folder.replace(ORDERS, "10.0.2.10:80", "10.0.2.11:80");
    let second = folder.sources().plane_after(&first).unwrap();
    let both = first.model.routes.iter().zip(&second.model.routes);
    let others: Vec<&str> = both
        .filter(|(one, other)| !std::sync::Arc::ptr_eq(one, other))
        .map(|(_, other)| other.name.as_str())
        .collect();
    assert_eq!(others, ["orders"]);
}

#[test]
fn files_in_another_folder_are_named_alike_and_read_again() {
    let one = Folder::new();
    let other = Folder::new();
    let first = one.sources().plane(&Good::default()).unwrap();
    let second = other.sources().plane_after(&first).unwrap();
    let made = |plane: &Plane| {
        let made = plane.catalog(&view(Flavor::Proxy), &mut Store::default(), None);
        bytes(&made.unwrap())
    };
    assert_eq!(made(&first), made(&second));
    assert!(Path::new(&*second.model.routes[0].source().file).starts_with(other.0.path()));
}

/// What is `dev.zeugma` of a cluster, and of its endpoints.
fn change_metadata(any: &Any, of: impl Fn(&mut BTreeMap<String, PbValue>)) -> Any {
    let mut cluster: cluster::Cluster = pb::unpack(any).unwrap();
    let assigned = cluster.load_assignment.iter_mut();
    let groups = assigned.flat_map(|one| &mut one.endpoints);
    let endpoints = groups.flat_map(|group| &mut group.lb_endpoints);
    let all = endpoints.map(|one| &mut one.metadata);
    for metadata in all.chain([&mut cluster.metadata]).flatten() {
        if let Some(ours) = metadata.filter_metadata.get_mut(pb::METADATA) {
            let mut fields = std::mem::take(&mut ours.fields).into_iter().collect();
            of(&mut fields);
            ours.fields = fields.into_iter().collect();
        }
    }
    pb::pack(&cluster)
}

// A server of another minor version says less, or more: fields of messages that this version does not
// know are passed over; what is missing is as it is by default; a word of our metadata that is not known
// refuses the one resource that has it, by name, for half of what it means is not what was meant.
#[test]
fn resources_of_another_version_are_read_as_far_as_they_are_meant() {
    let folder = Folder::new();
    let plane = folder.sources().plane(&Good::default()).unwrap();
    let gateway = plane.gateway("east-gw").unwrap();
    let node = gateway.node(Locality::parse("eu/eu-1").unwrap());
    let context = Context {
        model: &plane.model,
        gateway,
        node: &node,
    };
    let made = packed::compile(context, &mut Findings::new());
    let expected = packed::ingest(&made, node.clone()).unwrap();
    let with = |change: &dyn Fn(&Any) -> Any| {
        let all = |of: &[(String, Any)]| {
            of.iter()
                .map(|(name, any)| (name.clone(), change(any)))
                .collect()
        };
        Resources {
            clusters: all(&made.clusters),
            routes: all(&made.routes),
            listeners: all(&made.listeners),
        }
    };
    let newer = with(&|any| {
        let mut any = any.clone();
        // Field 2000, a number.
        any.value.extend([0x80, 0x7d, 0x01]);
        any
    });
    assert_eq!(packed::ingest(&newer, node.clone()), Ok(expected.clone()));

    let of_clusters = |change: &dyn Fn(&mut BTreeMap<String, PbValue>)| Resources {
        clusters: (made.clusters.iter())
            .map(|(name, any)| (name.clone(), change_metadata(any, change)))
            .collect(),
        ..made.clone()
    };
    let later = [
        "spreadPriority",
        "peakEwma",
        "hashOn",
        "slowStartMillis",
        "each",
        "dropsStale",
    ];
    let older = of_clusters(&|fields| fields.retain(|name, _| !later.contains(&name.as_str())));
    assert_eq!(packed::ingest(&older, node.clone()), Ok(expected));

    let newer = of_clusters(&|fields| {
        if let Some(kind) = fields.get("kind").cloned() {
            fields.insert("future".to_owned(), kind);
        }
    });
    let refused = packed::ingest(&newer, node).unwrap_err().to_string();
    assert!(
        refused.contains("future") && refused.contains("outbound|shop/orders:80"),
        "{refused}"
    );
}
