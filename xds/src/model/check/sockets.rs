//! What one gateway binds: no two of its sockets may ask for one address.

use std::net::{IpAddr, SocketAddr};

use super::Checker;
use crate::error::Code;
use crate::model::MeshGateway;
use crate::model::defaults::{METRICS, PROBES, loopback};
use crate::model::scalar::{Admin, Text};

struct Bound {
    /// `listener ...`, or the name of the field.
    what: String,
    path: String,
    address: SocketAddr,
}

pub(super) fn check(check: &mut Checker<'_, MeshGateway>) {
    let gateway = check.document;
    let bound = bound(check);
    for (at, later) in bound.iter().enumerate() {
        let clash = (bound.iter().take(at)).find(|first| overlap(first.address, later.address));
        let Some(first) = clash else {
            continue;
        };
        // A default cannot be pointed at.
        let (here, other) = if gateway.is_written(&later.path) {
            (later, first)
        } else {
            (first, later)
        };
        let as_written = if other.address == here.address {
            String::new()
        } else {
            format!(" by {}", other.address)
        };
        check.value(
            Code::Duplicate,
            &here.path,
            format!(
                "{} has the address {} already{as_written}",
                other.what, here.address
            ),
            "give each socket an address or a port of its own",
        );
    }
}

fn bound(check: &Checker<'_, MeshGateway>) -> Vec<Bound> {
    let spec = &check.document.spec;
    let mut bound: Vec<Bound> = (check.document.listeners_as_written().into_iter())
        .filter_map(|name| {
            Some(Bound {
                what: format!("listener `{name}`"),
                path: format!("spec.listeners.{name}.address"),
                address: spec.listeners.get(name)?.address.0,
            })
        })
        .collect();
    let admin = match &spec.admin {
        Some(Text(Admin::Tcp(address))) => Some(*address),
        Some(Text(Admin::Unix(_))) | None => None,
    };
    let of = |written: &Option<Text<SocketAddr>>, port| {
        Some(written.as_ref().map_or_else(|| loopback(port), |at| at.0))
    };
    for (field, address) in [
        ("admin", admin),
        ("probes", of(&spec.probes, PROBES)),
        ("metrics", of(&spec.metrics, METRICS)),
    ] {
        if let Some(address) = address {
            bound.push(Bound {
                what: format!("`{field}`"),
                path: format!("spec.{field}"),
                address,
            });
        }
    }
    bound
}

/// Whether the system refuses the second of two listening sockets. `[::]` takes IPv4 as well.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let takes = |wide: IpAddr, ip: IpAddr| match wide {
        IpAddr::V4(wide) => wide.is_unspecified() && ip.is_ipv4(),
        IpAddr::V6(wide) => wide.is_unspecified(),
    };
    let (a, b) = (one.ip().to_canonical(), other.ip().to_canonical());
    one.port() == other.port() && one.port() != 0 && (a == b || takes(a, b) || takes(b, a))
}
