//! Names whose every address is an endpoint: a snapshot as written, and what was answered, make the
//! snapshot that serves.
//!
//! Before the first answer the name stands for itself, as an endpoint that cannot be connected and
//! whose health nobody knows: its level keeps its traffic, and each attempt goes on to the next.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::balance::Slots;
use crate::names::Host;
use crate::snapshot::{Address, Cluster, Endpoint, EndpointIx, EndpointKey, Level, Snapshot};

/// `written` with an endpoint for each address of every [`Address::Each`]; `None` where there is no
/// such name.
///
/// `addresses` are those of a name at present: none of one that is gone, `None` before its first
/// answer. Clusters without such names are those of `written`, not copies.
#[must_use]
pub fn resolved<'a>(
    written: &Snapshot,
    addresses: impl Fn(&Host) -> Option<&'a [IpAddr]>,
) -> Option<Snapshot> {
    let has_names = |cluster: &Cluster| {
        let mut endpoints = cluster.endpoints.iter();
        endpoints.any(|endpoint| matches!(endpoint.address, Address::Each(..)))
    };
    if !written.clusters.iter().any(|cluster| has_names(cluster)) {
        return None;
    }
    let clusters = written.clusters.iter();
    let clusters = clusters
        .map(|cluster| {
            if has_names(cluster) {
                Arc::new(expanded(cluster, &addresses))
            } else {
                Arc::clone(cluster)
            }
        })
        .collect();
    Some(Snapshot {
        version: Arc::clone(&written.version),
        node: written.node.clone(),
        listeners: written.listeners.clone(),
        services: written.services.clone(),
        clusters,
        peers: written.peers.clone(),
    })
}

fn expanded<'a>(cluster: &Cluster, addresses: &impl Fn(&Host) -> Option<&'a [IpAddr]>) -> Cluster {
    let mut endpoints = Vec::new();
    let levels = cluster.levels.iter().map(|level| {
        let first = endpoints.len();
        for ix in &level.members {
            expand(cluster.endpoint(*ix), addresses, &mut endpoints);
        }
        Level {
            name: Arc::clone(&level.name),
            members: (first..endpoints.len()).map(EndpointIx).collect(),
            slots: Slots::default(),
        }
    });
    let levels = levels.collect();
    Cluster {
        endpoints,
        levels,
        ..cluster.clone()
    }
}

fn expand<'a>(
    written: &Endpoint,
    addresses: &impl Fn(&Host) -> Option<&'a [IpAddr]>,
    endpoints: &mut Vec<Endpoint>,
) {
    let Address::Each(host, port) = &written.address else {
        return endpoints.push(written.clone());
    };
    let Some(addresses) = addresses(host) else {
        return endpoints.push(written.clone());
    };
    let name = format!("|{}|", written.address);
    for ip in addresses {
        let address = SocketAddr::new(*ip, *port);
        let key = (written.key.0).replacen(&name, &format!("|{address}|"), 1);
        endpoints.push(Endpoint {
            key: EndpointKey(key.into()),
            address: Address::Socket(address),
            ..written.clone()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{cluster, service, snapshot};
    use crate::fleet::Fleet;
    use crate::time::Time;

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// A route of two levels, of which the first is a name beside an address.
    fn written() -> Snapshot {
        let mut named = cluster(&[&["a/b|own|db.example:5432|none", "still"], &["far"]]);
        let host = Host::parse("db.example").unwrap();
        named.endpoints[0].address = Address::Each(host, 5432);
        let mut snapshot = snapshot(vec![service("a/b", "a.b", 5432)]);
        let other = Arc::new(cluster(&[&["other"]]));
        snapshot.clusters = vec![Arc::new(named), other].into();
        snapshot
    }

    fn keys(snapshot: &Snapshot) -> Vec<Vec<String>> {
        let cluster = &snapshot.clusters[0];
        let of = |level: &Level| {
            let members = level.members.iter();
            let keys = members.map(|ix| cluster.endpoint(*ix).key.to_string());
            keys.collect()
        };
        cluster.levels.iter().map(of).collect()
    }

    #[test]
    fn each_address_of_a_name_is_an_endpoint_of_its_level() {
        let written = written();
        let two = ips(&["192.0.2.1", "2001:db8::1"]);
        let next = resolved(&written, |_| Some(&two)).unwrap();
        assert_eq!(
            keys(&next),
            [
                vec![
                    "a/b|own|192.0.2.1:5432|none",
                    "a/b|own|[2001:db8::1]:5432|none",
                    "still"
                ],
                vec!["far"]
            ]
        );
        let first = &next.clusters[0].endpoints[0];
        assert_eq!(
            first.address,
            Address::Socket("192.0.2.1:5432".parse().unwrap())
        );
        assert!(Arc::ptr_eq(&next.clusters[1], &written.clusters[1]));
        // A name that is gone leaves its level as it is; one that nobody has answered stands there.
        let none = resolved(&written, |_| Some(&[])).unwrap();
        assert_eq!(keys(&none), [vec!["still"], vec!["far"]]);
        let unknown = resolved(&written, |_| None).unwrap();
        assert_eq!(unknown.clusters[0], written.clusters[0]);
        let mut plain = written;
        plain.clusters.edit(|all| drop(all.remove(0)));
        assert_eq!(resolved(&plain, |_| None), None);
    }

    #[test]
    fn a_level_keeps_its_traffic_from_before_the_first_answer_on_and_loses_it_with_its_last_address()
     {
        let mut written = written();
        let mut only = cluster(&[&["a/b|own|db.example:5432|none"], &["far"]]);
        only.endpoints[0].address = Address::Each(Host::parse("db.example").unwrap(), 5432);
        written.clusters = vec![Arc::new(only)].into();
        let one = ips(&["192.0.2.1"]);
        let mut fleet = Fleet::new();
        let mut shares = |answer: Option<&'static [IpAddr]>| {
            let next = resolved(&written, |_| answer).unwrap();
            fleet.reconcile(&next, Time::ZERO);
            fleet.shares(Time::ZERO).clusters[0].levels.clone()
        };
        assert_eq!(shares(None), [1.0, 0.0]);
        assert_eq!(shares(Some(Vec::leak(one))), [1.0, 0.0]);
        assert_eq!(shares(Some(&[])), [0.0, 1.0]);
    }
}
