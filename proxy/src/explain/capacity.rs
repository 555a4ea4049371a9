//! What of an explanation is about capacity: what is offered, what backends take of it, and what moves
//! for that.

use serde_json::{Value, json};
use zeugma_core::explain::{Destination, Explanation};
use zeugma_core::shares::SHARE_EPSILON;
use zeugma_core::snapshot::{Cluster, Service, Snapshot};

use super::words::percent;

/// Backends that a sentence names.
const NAMED_MAX: usize = 4;

/// What is offered and what backends take; null where nothing is known of it.
pub(super) fn load(cluster: &Cluster, to: &Destination, service: Option<&Service>) -> Value {
    let Some(metered) = &to.metered else {
        return Value::Null;
    };
    let written = service.and_then(|service| service.position.as_ref());
    let backends: Vec<Value> = (metered.held.iter())
        .map(|held| {
            let mut endpoints = cluster.endpoints.iter();
            let configured = endpoints
                .find(|endpoint| endpoint.backend == held.backend)
                .and_then(|endpoint| endpoint.capacity);
            json!({
                "backend": &*held.backend,
                "takes_per_second": held.most,
                "configured_per_second": configured.map(|rate| rate.get()),
                "written": configured.and(written).map(ToString::to_string),
                "full": to.full.contains(&held.backend),
            })
        })
        .collect();
    json!({
        "offered_per_second": metered.load,
        "refused_share": metered.refused,
        "backends": backends,
    })
}

/// Adds to what is told of a level what it takes in a second.
pub(super) fn of_level(to: &Destination, nth: usize, told: &mut Value) {
    let most = (to.metered.as_ref()).and_then(|metered| metered.most.get(nth));
    let share = (to.metered.as_ref()).and_then(|metered| metered.by_health.get(nth));
    if let Value::Object(told) = told {
        let most = most.filter(|most| most.is_finite());
        told.insert("takes_per_second".to_owned(), json!(most));
        told.insert("share_by_health".to_owned(), json!(share));
    }
}

/// What a level has room for, where it takes less than its health would let it.
pub(super) fn has(to: &Destination, nth: usize) -> Option<String> {
    let metered = to.metered.as_ref()?;
    let by_health = metered.by_health.get(nth)?;
    let share = to.levels.get(nth)?.share;
    let most = metered.most.get(nth)?;
    (share < by_health - SHARE_EPSILON).then(|| {
        let load = metered.load;
        format!("takes {most:.0} of the {load:.0} that are offered each second (capacity)")
    })
}

/// What is said of what fits nowhere.
pub(super) fn nowhere(to: &Destination) -> String {
    let refused = to.metered.as_ref().map_or(0.0, |metered| metered.refused);
    if refused > SHARE_EPSILON {
        format!("; {} fits nowhere and is refused", percent(refused))
    } else {
        String::new()
    }
}

/// Why nothing has room, and where what it takes is written.
pub(super) fn full(snapshot: &Snapshot, told: &Explanation) -> Option<String> {
    let to = told.to.as_ref()?;
    let metered = to.metered.as_ref()?;
    let each: Vec<String> = (metered.held.iter())
        .filter(|held| to.full.contains(&held.backend))
        .take(NAMED_MAX)
        .map(|held| format!("{} takes {:.0}", held.backend, held.most))
        .collect();
    let written = told.service.map(|ix| snapshot.service(ix));
    let written = written.and_then(|service| service.position.as_ref());
    let written = written.map_or_else(String::new, |at| format!(" (the route at {at})"));
    Some(format!(
        ": of {:.0} that are offered each second {}{written}",
        metered.load,
        each.join(", ")
    ))
}
