//! Configurations and calls, as texts.

use std::fmt::Write as _;
use std::net::IpAddr;

use serde_json::{Value, json};

/// What one gateway is configured with.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) mesh_sources: Vec<&'static str>,
    pub(crate) apps_sources: Vec<&'static str>,
    pub(crate) peers: Vec<Peer>,
    pub(crate) routes: Vec<Route>,
}

#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    pub(crate) ids: Vec<&'static str>,
    pub(crate) attests: Vec<&'static str>,
    pub(crate) sources: Vec<&'static str>,
}

#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) name: &'static str,
    pub(crate) hosts: Vec<&'static str>,
    pub(crate) ports: Vec<Port>,
    pub(crate) inbound: Inbound,
    pub(crate) backends: Backends,
    pub(crate) allow: Vec<Entry>,
    pub(crate) deny: Vec<Entry>,
    pub(crate) policy: Policy,
    pub(crate) export: Vec<&'static str>,
    /// None: there are no `rules`.
    pub(crate) rules: Vec<Rule>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Port {
    pub(crate) number: u16,
    pub(crate) protocol: Protocol,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http,
    Tcp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Inbound {
    Terminate,
    Passthrough,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backends {
    Own,
    PeersAlone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policy {
    Enforce,
    Audit,
}

/// An entry of `allow` or `deny`; what is `None` is not written.
#[derive(Debug, Clone, Default)]
pub(crate) struct Entry {
    pub(crate) from: Option<Vec<String>>,
    pub(crate) via: Option<Vec<&'static str>>,
    pub(crate) listeners: Option<Vec<&'static str>>,
    pub(crate) sources: Option<Vec<&'static str>>,
    pub(crate) sni: Option<Vec<&'static str>>,
    pub(crate) methods: Option<Vec<&'static str>>,
    pub(crate) paths: Option<Vec<&'static str>>,
    /// By name.
    pub(crate) headers: Option<Vec<(&'static str, Vec<&'static str>)>>,
}

/// An entry of `rules`, with one match.
#[derive(Debug, Default)]
pub(crate) struct Rule {
    pub(crate) path: Option<RulePath>,
    pub(crate) method: Option<&'static str>,
    pub(crate) headers: Vec<(&'static str, &'static str)>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum RulePath {
    Exact(&'static str),
    Prefix(&'static str),
}

/// Somebody who calls.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) listener: &'static str,
    pub(crate) source: IpAddr,
    pub(crate) opening: Opening,
    /// The ID of its certificate, where it is asked for one.
    pub(crate) id: String,
    /// For whom it says it calls.
    pub(crate) claim: Option<String>,
    /// What it says where it is read as HTTP.
    pub(crate) request: Request,
}

#[derive(Debug)]
pub(crate) enum Opening {
    Plaintext,
    /// TLS with this server name.
    Tls(Option<String>),
}

#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) authority: String,
    pub(crate) method: &'static str,
    pub(crate) path: String,
    pub(crate) headers: Vec<(&'static str, &'static str)>,
}

impl World {
    /// The documents; flow style with JSON's texts, which YAML reads alike.
    pub(crate) fn yaml(&self) -> String {
        let mut listeners = json!({
            "mesh": { "address": "0.0.0.0:15443", "role": "mesh" },
            "apps": { "address": "127.0.0.1:15001", "role": "workloads" },
            "raw": { "address": "127.0.0.1:15432", "role": "workloads", "route": "shop/raw" },
        });
        for (name, sources) in [("mesh", &self.mesh_sources), ("apps", &self.apps_sources)] {
            if !sources.is_empty() {
                listeners[name]["sources"] = json!(sources);
            }
        }
        let gateway = json!({
            "trustDomain": "east.example", "cluster": "east", "locality": "eu/eu-1",
            "svid": { "files": { "certificate": "gw.pem", "key": "gw.key", "bundles": "bundles/" } },
            "listeners": listeners,
        });
        let mut text = String::new();
        document(
            &mut text,
            "MeshGateway",
            &json!({ "name": "east-gw" }),
            &gateway,
        );
        for (nth, peer) in self.peers.iter().enumerate() {
            let spec = json!({
                "cluster": peer.name, "locality": "us/us-1",
                "gateways": [format!("192.0.2.{nth}:15443")],
                "spiffeIDs": peer.ids, "attests": peer.attests, "sources": peer.sources,
            });
            document(&mut text, "MeshPeer", &json!({ "name": peer.name }), &spec);
        }
        for route in &self.routes {
            let name = json!({ "name": route.name, "namespace": "shop" });
            document(&mut text, "MeshRoute", &name, &self.route(route));
        }
        text
    }

    fn route(&self, route: &Route) -> Value {
        let mut spec = json!({
            "hosts": route.hosts,
            "inbound": match route.inbound {
                Inbound::Terminate => "terminate",
                Inbound::Passthrough => "passthrough",
            },
            "policy": match route.policy {
                Policy::Enforce => "enforce",
                Policy::Audit => "audit",
            },
            "allow": route.allow.iter().map(entry).collect::<Vec<_>>(),
            "deny": route.deny.iter().map(entry).collect::<Vec<_>>(),
            "export": { "to": route.export },
        });
        let protocol = |port: &Port| match port.protocol {
            Protocol::Http => "http",
            Protocol::Tcp => "tcp",
        };
        if let [only] = route.ports.as_slice() {
            spec["port"] = json!(only.number);
            spec["protocol"] = json!(protocol(only));
        } else {
            for port in &route.ports {
                let value = json!({ "port": port.number, "protocol": protocol(port) });
                spec["ports"][format!("p{}", port.number)] = value;
            }
        }
        let tls = match route.inbound {
            Inbound::Terminate => "none",
            Inbound::Passthrough => "workload",
        };
        spec["backends"] = match route.backends {
            // Without a port each port of the route goes to the one of its number.
            Backends::Own => json!([{ "endpoints": ["10.9.9.9"], "tls": tls }]),
            Backends::PeersAlone => {
                let peers = self.peers.iter().map(|peer| json!({ "peer": peer.name }));
                Value::from(peers.collect::<Vec<_>>())
            }
        };
        if !route.rules.is_empty() {
            spec["rules"] = Value::from(route.rules.iter().map(rule).collect::<Vec<_>>());
        }
        spec
    }
}

fn document(text: &mut String, kind: &str, metadata: &Value, spec: &Value) {
    write!(
        text,
        "---\napiVersion: zeugma.dev/v1alpha1\nkind: {kind}\nmetadata: {metadata}\nspec:\n"
    )
    .unwrap();
    for (field, value) in spec.as_object().unwrap() {
        let list = value
            .as_array()
            .filter(|_| matches!(field.as_str(), "allow" | "deny"));
        match list {
            // An entry on a line of its own, so that findings tell them apart.
            Some(entries) if !entries.is_empty() => {
                writeln!(text, "  {field}:").unwrap();
                for entry in entries {
                    writeln!(text, "    - {entry}").unwrap();
                }
            }
            Some(_) | None => writeln!(text, "  {field}: {value}").unwrap(),
        }
    }
}

fn entry(entry: &Entry) -> Value {
    let mut value = json!({});
    for (field, written) in [
        ("from", entry.from.as_ref().map(|list| json!(list))),
        ("via", entry.via.as_ref().map(|list| json!(list))),
        (
            "listeners",
            entry.listeners.as_ref().map(|list| json!(list)),
        ),
        ("sources", entry.sources.as_ref().map(|list| json!(list))),
        ("sni", entry.sni.as_ref().map(|list| json!(list))),
        ("methods", entry.methods.as_ref().map(|list| json!(list))),
        ("paths", entry.paths.as_ref().map(|list| json!(list))),
        (
            "headers",
            entry.headers.as_ref().map(|all| {
                all.iter()
                    .map(|(name, values)| ((*name).to_owned(), json!(values)))
                    .collect::<serde_json::Map<_, _>>()
                    .into()
            }),
        ),
    ] {
        if let Some(written) = written {
            value[field] = written;
        }
    }
    value
}

fn rule(rule: &Rule) -> Value {
    let mut of = json!({});
    match rule.path {
        Some(RulePath::Exact(path)) => of["path"] = json!({ "exact": path }),
        Some(RulePath::Prefix(path)) => of["path"] = json!({ "prefix": path }),
        None => {}
    }
    if let Some(method) = rule.method {
        of["method"] = json!(method);
    }
    for (name, value) in &rule.headers {
        of["headers"][*name] = json!(value);
    }
    // What changes something, so that it is no rule without effect.
    let mut value = json!({ "timeouts": { "responseHeaders": "5s" } });
    if of != json!({}) {
        value["matches"] = json!([of]);
    }
    value
}
