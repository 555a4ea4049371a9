//! Clusters of one route.

use std::sync::Arc;

use crate::fixture;
use crate::fleet::EndpointStatus;
use crate::snapshot::{Cluster, Failure};

use super::{at, fleet, key, kill, see, thousandths};

#[test]
fn clusters_of_a_route_share_endpoints_and_its_ports_fail_over_together() {
    let port = |name: &str, levels: &[&[&str]]| Cluster {
        name: name.into(),
        ..fixture::cluster(levels)
    };
    let mut fleet = fleet(vec![
        port("web", &[&["w1", "w2"], &["w3"]]),
        port("grpc", &[&["g1", "g2"], &["g3"]]),
        port("web, own", &[&["w1", "w2"]]),
    ]);
    kill(&mut fleet, "w1", at(0.0));
    let shares = fleet.shares(at(0.0));
    assert_eq!(thousandths(&shares.clusters[0].levels), [714, 286]);
    assert_eq!(thousandths(&shares.clusters[1].levels), [714, 286]);
    assert_eq!(thousandths(&shares.clusters[2].levels), [1000]);
    assert_eq!(shares.clusters[2].endpoints[0], EndpointStatus::Ejected);
    assert_eq!(shares.clusters[1].endpoints, [EndpointStatus::Healthy; 3]);
    // `keepAtLeast` counts over all levels, so the own cluster can end up with nothing: the peer
    // that called is told at once.
    kill(&mut fleet, "w2", at(0.0));
    let shares = fleet.shares(at(0.0));
    assert_eq!(shares.clusters[2].endpoints, [EndpointStatus::Ejected; 2]);
}

/// Found by a simulation: a dead canary took the share of what was well.
#[test]
fn the_parts_of_a_split_do_not_fail_over_together_as_ports_do() {
    let part = |name: &str, level: [&str; 2]| {
        let mut cluster = fixture::cluster(&[&level, &["far"]]);
        cluster.name = name.into();
        for endpoint in &mut cluster.endpoints {
            endpoint.backend = name.into();
            endpoint.key = key(&format!("{name} {}", endpoint.key));
        }
        Arc::make_mut(&mut cluster.policy).passive.keep_at_least = 0;
        cluster
    };
    let mut fleet = fleet(vec![part("main", ["a", "b"]), part("canary", ["c", "d"])]);
    for name in ["canary c", "canary d"] {
        see(&mut fleet, name, Err(Failure::Connect), 5, at(1.0));
    }
    let shares = fleet.shares(at(1.0));
    assert_eq!(shares.clusters[0].levels, [1.0, 0.0]);
    assert!(!shares.clusters[0].too_few);
    assert_eq!(shares.clusters[1].levels, [0.0, 1.0]);
}
