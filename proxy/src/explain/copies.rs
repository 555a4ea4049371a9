//! What of an explanation is about mirrors: what each makes of it, and where its copy goes.

use serde_json::{Value, json};
use zeugma_core::explain::{Copied, Explanation};
use zeugma_core::mirror::Copying;
use zeugma_core::snapshot::{Export, Mirror, Service, Snapshot};
use zeugma_core::time::Time;

use super::{attempts, destination};

/// Each mirror of the service.
pub(super) fn mirrors(snapshot: &Snapshot, told: &Explanation, now: Time) -> Vec<Value> {
    let Some(service) = told.service.map(|ix| snapshot.service(ix)) else {
        return Vec::new();
    };
    (told.copies.iter())
        .filter_map(|copied| {
            let mirror = service.mirrors.get(copied.mirror)?;
            Some(one(snapshot, mirror, copied, now))
        })
        .collect()
}

/// How many mirrors of the service are not shown.
pub(super) fn left_out(snapshot: &Snapshot, told: &Explanation) -> usize {
    let service = told.service.map(|ix| snapshot.service(ix));
    let all = service.map_or(0, |service| service.mirrors.len());
    // Where it is not known who calls, none is looked at.
    if told.copies.is_empty() {
        return 0;
    }
    all.saturating_sub(told.copies.len())
}

fn one(snapshot: &Snapshot, mirror: &Mirror, copied: &Copied, now: Time) -> Value {
    let (is_copied, why) = match copied.copying {
        None => (false, Some("refused")),
        Some(Copying::Copy(_)) => (true, None),
        Some(Copying::Skip(why)) => (false, Some(why.label())),
        Some(Copying::Drop(why)) => (false, Some(why.label())),
    };
    let to = copied.to.as_ref();
    let target = target(snapshot, mirror);
    let is_aimed = is_copied.then_some(to).flatten();
    json!({
        "route": &*mirror.route,
        "written": mirror.position.as_ref().map(ToString::to_string),
        "percent": mirror.share * 100.0,
        // Whether each is drawn for itself.
        "sampled": mirror.share < 1.0,
        "compare": mirror.compare,
        "copied": is_copied,
        "why": why,
        "target": target.map(|service| json!({
            "written": service.position.as_ref().map(ToString::to_string),
            "exported_to": exported_to(snapshot, service),
        })),
        "destination": to.map(|to| destination(snapshot, to, target, now)),
        "attempts": is_aimed.map_or_else(Vec::new, |to| attempts(snapshot, to)),
    })
}

/// The route of the copies, where this gateway has it: what came from a control plane of another kind
/// names a cluster alone.
fn target<'s>(snapshot: &'s Snapshot, mirror: &Mirror) -> Option<&'s Service> {
    let of_route = || (snapshot.services.iter()).filter(|one| one.name == mirror.route);
    // Of its ports the one that is copied to.
    let copied_to = of_route().find(|one| one.outbound == mirror.to);
    copied_to.or_else(|| of_route().next())
}

/// The peers that a route is exported to, `*` for all.
pub(crate) fn exported_to(snapshot: &Snapshot, service: &Service) -> Vec<String> {
    match &service.export {
        Export::Nobody => Vec::new(),
        Export::AllPeers => vec!["*".to_owned()],
        Export::To(peers) => (peers.iter())
            .map(|ix| snapshot.peer(*ix).name.to_string())
            .collect(),
    }
}
