//! What strangers' resources are made into, and what the engine decides by it.

mod build;
mod clusters;
mod http;
mod listeners;
mod rbac;

use std::collections::HashMap;
use std::net::IpAddr;

use zeugma_core::authorize::Evidence;
use zeugma_core::engine::{Arrival, Decision, Headers, Request, SniPort, Wants, decide};
use zeugma_core::hello::ClientHello;
use zeugma_core::identity::{SpiffeId, TrustDomain};
use zeugma_core::locality::Locality;
use zeugma_core::shares::Shares;
use zeugma_core::snapshot::{Cluster, Node, Service, ServiceIx, Snapshot};

use self::build::Listed;
use crate::body::Body;
use crate::ingest::{Packed, Served, check};
use crate::session::Kind;

fn node() -> Node {
    Node {
        name: "east-gw".into(),
        cluster: "east".into(),
        locality: Locality::parse("eu/eu-1").unwrap(),
        trust_domain: TrustDomain::parse("east.example").unwrap(),
    }
}

/// The snapshot of these resources; what is wrong with each otherwise.
fn ingest(all: &[Listed]) -> Result<Snapshot, Vec<String>> {
    let bodies: Vec<Body> = all.iter().map(|one| one.body.clone().into()).collect();
    let of = |kind: Kind| -> Vec<(&str, &Body)> {
        let named = all.iter().zip(&bodies).filter(|(one, _)| one.kind == kind);
        named.map(|(one, body)| (one.name.as_str(), body)).collect()
    };
    let packed = Packed {
        clusters: of(Kind::Cluster),
        endpoints: of(Kind::Endpoints).into_iter().collect::<HashMap<_, _>>(),
        routes: of(Kind::Routes),
        empty_routes: Vec::new(),
        listeners: of(Kind::Listener),
    };
    match packed.ingest(node()) {
        Ok(Served { snapshot, .. }) => {
            // Each of them is right by itself too, and says nothing that is not on the list.
            for one in all {
                assert_eq!(check(one.kind, &one.body, &node()), Ok(()), "{}", one.name);
            }
            Ok(snapshot)
        }
        Err(errors) => Err((errors.0.iter())
            .map(|one| format!("{} {}: {}", one.kind.as_str(), one.name, one.why))
            .collect()),
    }
}

/// The only thing that is wrong, with these resources together and with the one by itself.
fn refused(all: &[Listed]) -> String {
    let faults = ingest(all).unwrap_err();
    assert_eq!(faults.len(), 1, "{faults:#?}");
    faults.into_iter().next().unwrap()
}

fn cluster<'s>(snapshot: &'s Snapshot, name: &str) -> &'s Cluster {
    let mut all = snapshot.clusters.iter();
    let names: Vec<&str> = snapshot.clusters.iter().map(|one| &*one.name).collect();
    all.find(|one| &*one.name == name)
        .unwrap_or_else(|| panic!("{name}: {names:?}"))
}

fn service<'s>(snapshot: &'s Snapshot, name: &str) -> &'s Service {
    let names: Vec<&str> = snapshot.services.iter().map(|one| &*one.name).collect();
    let mut all = snapshot.services.iter();
    all.find(|one| &*one.name == name)
        .unwrap_or_else(|| panic!("{name}: {names:?}"))
}

/// A caller.
#[derive(Debug, Clone, Copy)]
struct Caller<'a> {
    source: &'a str,
    id: Option<&'a str>,
    /// What its TLS names.
    sni: Option<&'a str>,
}

const SOMEBODY: Caller<'_> = Caller {
    source: "192.0.2.1",
    id: None,
    sni: None,
};

fn known(id: &str) -> Caller<'_> {
    Caller {
        id: Some(id),
        ..SOMEBODY
    }
}

fn from(source: &str) -> Caller<'_> {
    Caller { source, ..SOMEBODY }
}

/// What becomes of an arrival on the listener `in`.
fn decided(snapshot: &Snapshot, caller: Caller<'_>, wants: Wants<'_>) -> String {
    let id = caller.id.map(|id| SpiffeId::parse(id).unwrap());
    let arrival = Arrival {
        listener: snapshot.listener("in").unwrap(),
        source: caller.source.parse::<IpAddr>().unwrap(),
        evidence: id.as_ref().map_or(Evidence::Network, Evidence::Verified),
        sni: caller.sni,
        wants,
    };
    let shares = Shares::all_healthy(snapshot);
    let name = |ix: ServiceIx| snapshot.service(ix).name.to_string();
    match decide(snapshot, &shares, &arrival, &|_| 0, 1) {
        Decision::Carry(carry) => {
            let (service, cluster) = (name(carry.service), snapshot.cluster(carry.cluster));
            format!("{service} to {}", cluster.name)
        }
        Decision::Terminate(ix, port) => {
            assert_eq!(port, SniPort::Known);
            format!("terminate {}", name(ix))
        }
        Decision::Report => "report".to_owned(),
        Decision::ReadHttp => "http".to_owned(),
        Decision::Refuse(refusal) => refusal.reason.to_string(),
    }
}

fn hello(sni: Option<&str>) -> ClientHello {
    ClientHello {
        sni: sni.map(str::to_owned),
        ..ClientHello::default()
    }
}

fn by_sni(snapshot: &Snapshot, sni: Option<&str>) -> String {
    decided(snapshot, SOMEBODY, Wants::Hello(&hello(sni)))
}

fn door(snapshot: &Snapshot, name: &str) -> ServiceIx {
    let mut all = snapshot.services.iter();
    ServiceIx(all.position(|one| &*one.name == name).unwrap())
}

/// A request inside the TLS of a chain.
fn inside(
    snapshot: &Snapshot,
    (chain, caller): (&str, Caller<'_>),
    (method, authority, path): (&str, &str, &str),
) -> String {
    let request = Request {
        authority,
        method,
        path,
        headers: Headers::NONE,
    };
    let wants = Wants::RequestInside {
        sni: door(snapshot, chain),
        port: SniPort::Known,
        request,
    };
    decided(snapshot, caller, wants)
}

/// A plaintext request.
fn plain(snapshot: &Snapshot, authority: &str, path: &str) -> String {
    asked(snapshot, SOMEBODY, ("GET", authority, path), &[])
}

fn asked(
    snapshot: &Snapshot,
    caller: Caller<'_>,
    (method, authority, path): (&str, &str, &str),
    headers: &[(&str, &str)],
) -> String {
    let each = |name: &str, tell: &mut dyn FnMut(&[u8])| {
        let all = headers.iter().filter(|(known, _)| *known == name);
        all.for_each(|(_, value)| tell(value.as_bytes()));
    };
    let request = Request {
        authority,
        method,
        path,
        headers: Headers(&each),
    };
    decided(snapshot, caller, Wants::Request(request))
}
