//! Simulations as documents, and what a lever would do, played from how the gateway stands.
//!
//! A command plays files; a gateway plays itself, on another thread than the one that has its fleet.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use zeugma_core::fleet::{Fleet, FleetEvent};
use zeugma_core::simulate::{
    Counts, Edge, Extreme, Fault, Lever, Report, Scenario, ServiceReport, simulate_from,
};
use zeugma_core::snapshot::{Cluster, EndpointKey, ServiceIx, Snapshot};
use zeugma_core::time::Time;

/// Services of which the series is told.
const SERIES_MAX: usize = 50;
/// Services that a gateway plays; the rest is counted.
const SERVICES_MAX: usize = 50;
/// The requests in a second to each service, where nothing else is asked for.
pub(crate) const RATE: f64 = 200.0;
/// When a lever is pulled.
const FROM: Duration = Duration::from_secs(5);
/// How long is looked at after all that is foreseen.
const AFTER: Duration = Duration::from_secs(30);
/// The longest that a gateway plays.
const LASTS_MAX: Duration = Duration::from_secs(7200);

/// A gateway at one moment, and what is to be tried on it.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) fleet: Fleet,
    pub(crate) now: Time,
    pub(crate) lever: Lever,
    /// For how long, where it is a drill.
    pub(crate) lasts: Option<Duration>,
    /// What it makes of each cluster once nothing is damped, for the answer.
    pub(crate) clusters: Vec<Value>,
    /// Why it would be refused.
    pub(crate) refused: Option<String>,
}

impl Ground {
    /// Plays it, with so many requests in a second to each service that it concerns.
    pub(crate) fn play(self, rate: f64) -> Value {
        let snapshot = &self.snapshot;
        let at = Time::from_origin(FROM);
        let fault = Fault::lever(self.lever, snapshot, at, self.lasts.map(|lasts| at + lasts));
        let hit: BTreeSet<&EndpointKey> = fault.hit.iter().collect();
        let is_hit = |cluster: &Arc<Cluster>| {
            let mut endpoints = cluster.endpoints.iter();
            endpoints.any(|endpoint| hit.contains(&endpoint.key))
        };
        let concerned = snapshot.clusters.iter().filter(|cluster| is_hit(cluster));
        let concerned: Vec<&Arc<Cluster>> = concerned.collect();
        let routes: BTreeSet<&str> = concerned.iter().map(|cluster| &*cluster.route).collect();
        let services: Vec<ServiceIx> = (snapshot.services.iter().enumerate())
            .filter(|(_, service)| routes.contains(&*service.name))
            .map(|(ix, _)| ServiceIx(ix))
            .collect();
        let longest = |of: fn(&Cluster) -> Duration| {
            let each = concerned.iter().map(|cluster| of(cluster));
            each.max().unwrap_or_default()
        };
        let hold = longest(|cluster| cluster.policy.failover.hold);
        let ramp = longest(|cluster| cluster.policy.failover.failback_ramp);
        let lasts = FROM + self.lasts.unwrap_or_default() + hold + ramp + AFTER;
        let left_out = services.len().saturating_sub(SERVICES_MAX);
        let scenario = Scenario {
            services: services.into_iter().take(SERVICES_MAX).collect(),
            rate,
            method: "GET".to_owned(),
            path: "/".to_owned(),
            lasts: lasts.min(LASTS_MAX),
            faults: vec![fault],
            seed: 1,
        };
        let report = simulate_from(snapshot, self.fleet, self.now, &scenario);
        json!({
            "dryRun": true,
            "refused": self.refused,
            "clusters": self.clusters,
            "services_left_out": left_out,
            "simulation": document(snapshot, &scenario, &report),
        })
    }
}

/// A simulation, as programs read it; a field may be added.
#[must_use]
pub fn document(snapshot: &Snapshot, scenario: &Scenario, report: &Report) -> Value {
    let services: Vec<Value> = (report.services.iter().enumerate())
        .map(|(nth, service)| service_json(snapshot, report, service, nth < SERIES_MAX))
        .collect();
    let events: Vec<Value> = (report.events.iter())
        .map(|(at, event)| json!({ "at": at_seconds(*at), "event": event_text(event) }))
        .collect();
    json!({
        "gateway": &*snapshot.node.name,
        "locality": snapshot.node.locality.to_string(),
        "seed": scenario.seed,
        "seconds": scenario.lasts.as_secs_f64(),
        "rate": scenario.rate,
        "method": scenario.method,
        "path": scenario.path,
        "faults": scenario.faults.iter().map(fault_json).collect::<Vec<_>>(),
        "requests": counts_json(&report.counts),
        "services": services,
        "series_left_out": report.services.len().saturating_sub(SERIES_MAX),
        "events": events,
        "events_left_out": report.events_left_out,
        "one_request_stands_for_at_most": report.weight_max,
    })
}

fn service_json(
    snapshot: &Snapshot,
    report: &Report,
    service: &ServiceReport,
    with_series: bool,
) -> Value {
    let names = snapshot.cluster(service.cluster).levels.iter();
    let levels: Vec<Value> = (names.map(|level| &*level.name).zip(&service.levels))
        .map(|(name, level)| {
            json!({
                "name": name,
                "share": level.start,
                "share_min": extreme_json(level.min),
                "share_max": extreme_json(level.max),
                "share_end": level.end,
                "endpoint_rate_max": level.endpoint_rate_max,
            })
        })
        .collect();
    let phases: Vec<Value> = (service.phases.iter())
        .map(|phase| {
            json!({
                "at": at_seconds(phase.at),
                "fault": phase.fault,
                "edge": match phase.edge {
                    Edge::Begins => "begins",
                    Edge::Ends => "ends",
                },
                "settled_after_seconds": phase.settled_after.map(|after| after.as_secs_f64()),
            })
        })
        .collect();
    let at = snapshot.service(service.service);
    json!({
        "service": &*at.name,
        "port": at.port,
        "part": service.part.as_deref(),
        "requests": counts_json(&service.counts),
        "levels": levels,
        "room_min": extreme_json(service.room_min),
        "phases": phases,
        "series": with_series.then(|| series_json(report, service)),
    })
}

fn series_json(report: &Report, service: &ServiceReport) -> Value {
    let of = |count: &dyn Fn(&Counts) -> f64| -> Vec<f64> {
        let ticks = service.series.iter();
        ticks.map(|tick| count(&tick.counts)).collect()
    };
    let shares: Vec<&[f64]> = service.series.iter().map(|tick| &*tick.shares).collect();
    json!({
        "step_seconds": report.tick.as_secs_f64(),
        "shares": shares,
        "sent": of(&|counts| counts.sent),
        "lost": of(&Counts::lost),
        "retried": of(&|counts| counts.retried),
    })
}

fn fault_json(fault: &Fault) -> Value {
    json!({
        "kind": fault.kind.label(),
        "what": fault.what,
        "endpoints": fault.hit.len(),
        "of": fault.of,
        "from": at_seconds(fault.from),
        "to": fault.to.map(at_seconds),
    })
}

fn counts_json(counts: &Counts) -> Value {
    json!({
        "sent": counts.sent,
        "answered": counts.answered,
        "late": counts.slow,
        "retried": counts.retried,
        "lost": counts.lost(),
        "failed": counts.failed,
        "refused": counts.refused,
        "over_capacity": counts.over_capacity,
    })
}

fn extreme_json(extreme: Extreme) -> Value {
    json!({ "value": extreme.value, "at": at_seconds(extreme.at) })
}

fn at_seconds(at: Time) -> f64 {
    at.since_origin().as_secs_f64()
}

/// An event of a simulation in words.
#[must_use]
pub fn event_text(event: &FleetEvent) -> String {
    match event {
        FleetEvent::Ejected { key, cause, lasts } => {
            let lasts = seconds(*lasts);
            format!("{} ejected for {lasts}: {}", endpoint(key), cause.label())
        }
        FleetEvent::Readmitted { key } => format!("{} readmitted", endpoint(key)),
        FleetEvent::Unhealthy { key } => format!("{} fails its active check", endpoint(key)),
        FleetEvent::Healthy { key } => format!("{} passes its active check", endpoint(key)),
        FleetEvent::FailsAlike { route } => {
            format!("every level of {route} fails alike: nothing is ejected")
        }
        FleetEvent::SharesMoved {
            cluster, levels, ..
        } => {
            let moved: Vec<String> = (levels.iter())
                .filter(|(_, before, after)| (before - after).abs() > 1e-3)
                .map(|(name, before, after)| {
                    format!("{name} {} -> {}", percent(*before), percent(*after))
                })
                .collect();
            format!("traffic of {cluster}: {}", moved.join(", "))
        }
        FleetEvent::WaitsForReset { cluster, level, .. } => {
            format!("{level} of {cluster} is well again, and waits for a reset")
        }
        // No peer reports while a simulation runs.
        other @ (FleetEvent::Reported { .. } | FleetEvent::ReportStale { .. } | _) => {
            format!("{other:?}")
        }
    }
}

/// An endpoint as people know it: its route, backend and address, without its TLS.
fn endpoint(key: &EndpointKey) -> String {
    let parts: Vec<&str> = key.0.split('|').take(3).collect();
    parts.join(" ")
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

fn seconds(time: Duration) -> String {
    let seconds = (time.as_secs_f64() * 10.0).round() / 10.0;
    format!("{seconds}s")
}
