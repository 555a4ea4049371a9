//! What the gateway of one cluster reports to those of another: how much of what it would carry each
//! service to is healthy.
//!
//! A report names services by host and port, as the SNI between gateways does: that is what decides
//! which of its services a gateway carries a call to, whatever the routes are called on both sides.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::admission::Rate;
use crate::names::{Host, HostPattern};
use crate::shares::Shares;
use crate::snapshot::{Export, PeerIx, Service, Snapshot};

/// The most hosts and ports that one report holds; what is beyond that is not reported, so that
/// nothing is known of it.
pub const ENTRIES_MAX: usize = 65_536;
/// The most that the endpoints of one service may weigh together.
pub const WEIGHT_MAX: f64 = 1e9;

/// How much of what stands behind a gateway is healthy, of one service.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Standing {
    healthy: u32,
    total: u32,
    healthy_weight: f64,
    weight: f64,
    capacity: Option<Rate>,
}

impl Standing {
    /// Of `total` endpoints that weigh `weight`, `healthy` that weigh `healthy_weight` are healthy;
    /// `None` if that cannot be so.
    #[must_use]
    pub fn new(healthy: u32, total: u32, healthy_weight: f64, weight: f64) -> Option<Self> {
        // What is no number is in no range.
        let is_sound = healthy <= total
            && (0.0..=WEIGHT_MAX).contains(&weight)
            && (0.0..=weight).contains(&healthy_weight);
        is_sound.then_some(Self {
            healthy,
            total,
            healthy_weight,
            weight,
            capacity: None,
        })
    }

    /// The same that takes so many requests (tcp: connections) in a second; `None`: it is not known.
    #[must_use]
    pub const fn taking(self, capacity: Option<Rate>) -> Self {
        Self { capacity, ..self }
    }

    /// What stands behind this gateway for callers from other clusters: its own endpoints alone.
    #[must_use]
    pub fn of(snapshot: &Snapshot, shares: &Shares, service: &Service) -> Self {
        let own = service
            .own
            .and_then(|ix| Some((snapshot.cluster(ix), shares.clusters.get(ix.0)?)));
        let Some((cluster, of)) = own else {
            return Self::default();
        };
        let mut standing = Self::default();
        // Healthy or not: where everything is refused, nothing is to be had.
        let refuses = of.refuses();
        for (endpoint, status) in cluster.endpoints.iter().zip(&of.endpoints) {
            standing.total = standing.total.saturating_add(1);
            standing.weight += endpoint.weight;
            if status.is_healthy() && !refuses {
                standing.healthy = standing.healthy.saturating_add(1);
                standing.healthy_weight += endpoint.weight;
            }
        }
        if standing.weight > WEIGHT_MAX {
            standing.healthy_weight *= WEIGHT_MAX / standing.weight;
            standing.weight = WEIGHT_MAX;
        }
        standing.taking(of.metered.as_ref().and_then(|metered| metered.all()))
    }

    /// The healthy endpoints.
    #[must_use]
    pub const fn healthy(&self) -> u32 {
        self.healthy
    }

    /// All endpoints.
    #[must_use]
    pub const fn total(&self) -> u32 {
        self.total
    }

    /// What the healthy ones weigh, at most [`Self::weight`].
    #[must_use]
    pub const fn healthy_weight(&self) -> f64 {
        self.healthy_weight
    }

    /// What all of them weigh.
    #[must_use]
    pub const fn weight(&self) -> f64 {
        self.weight
    }

    /// What the healthy ones take in a second, each backend by the part of it that is healthy; `None`
    /// where it is not known of one of them.
    #[must_use]
    pub const fn capacity(&self) -> Option<Rate> {
        self.capacity
    }

    /// Whether a call would find nothing healthy.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.healthy_weight <= 0.0
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} healthy", self.healthy, self.total)
    }
}

/// Another standing of a service, by one of its hosts.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// The host.
    pub host: HostPattern,
    /// The port.
    pub port: u16,
    /// How it stands; `None`: nothing is reported of it any more.
    pub standing: Option<Standing>,
}

/// Whether a gateway takes new work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Presence {
    /// It does.
    #[default]
    Serving,
    /// It still does, and is on its way out: others beside it are better.
    Leaving,
    /// It was on its way out, and nobody answers there any more.
    Gone,
}

impl Presence {
    /// The word in documents.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Leaving => "leaving",
            Self::Gone => "gone",
        }
    }
}

/// What one gateway reports.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Report {
    /// Whether it takes new work.
    pub presence: Presence,
    exact: Hosts,
    below: Hosts,
    count: usize,
}

/// How the services of a host stand, by port: a peer may name every port of one host.
type Ports = BTreeMap<u16, Standing>;

#[derive(Debug, Clone, PartialEq, Default)]
struct Hosts(BTreeMap<Host, Ports>);

impl Report {
    /// What this gateway tells a caller that is of all of `peers` alike: how each service stands that
    /// is exported to one of them.
    #[must_use]
    pub fn to(snapshot: &Snapshot, shares: &Shares, peers: &[PeerIx]) -> Self {
        let mut report = Self::default();
        for service in &snapshot.services {
            if !is_exported(&service.export, peers) {
                continue;
            }
            let standing = Standing::of(snapshot, shares, service);
            for host in &service.hosts {
                report.set(host, service.port, standing);
            }
        }
        report
    }

    /// Makes it what [`Self::to`] gives for the same snapshot and peers with `now` where it was made
    /// with `before`; returns what changes by that. It costs what the clusters that changed do.
    pub fn update(
        &mut self,
        snapshot: &Snapshot,
        (before, now): (&Shares, &Shares),
        peers: &[PeerIx],
    ) -> Vec<Change> {
        let changed: BTreeSet<usize> = now.clusters.changed_since(&before.clusters).collect();
        let mut changes = Vec::new();
        if changed.is_empty() {
            return changes;
        }
        for service in &snapshot.services {
            let has_changed = service.own.is_some_and(|own| changed.contains(&own.0));
            if !has_changed || !is_exported(&service.export, peers) {
                continue;
            }
            let standing = Standing::of(snapshot, now, service);
            for host in &service.hosts {
                if self.standing(host, service.port) != Some(standing)
                    && self.set(host, service.port, standing)
                {
                    changes.push(Change {
                        host: host.clone(),
                        port: service.port,
                        standing: Some(standing),
                    });
                }
            }
        }
        changes
    }

    fn standing(&self, host: &HostPattern, port: u16) -> Option<Standing> {
        let ports = match host {
            HostPattern::Exact(host) => self.exact.0.get(host),
            HostPattern::Below(host) => self.below.0.get(host),
        };
        ports?.get(&port).copied()
    }

    /// Sets how a service stands; whether there was room for it.
    pub fn set(&mut self, host: &HostPattern, port: u16, standing: Standing) -> bool {
        let is_full = self.count >= ENTRIES_MAX;
        let (hosts, host) = self.hosts_mut(host);
        if let Some(known) = (hosts.0.get_mut(host)).and_then(|ports| ports.get_mut(&port)) {
            *known = standing;
            return true;
        }
        if is_full {
            return false;
        }
        let ports = hosts.0.entry(host.clone()).or_default();
        ports.insert(port, standing);
        self.count += 1;
        true
    }

    /// Takes a change into it; whether there was room for it.
    pub fn apply(&mut self, change: &Change) -> bool {
        match change.standing {
            Some(standing) => self.set(&change.host, change.port, standing),
            None => {
                self.remove(&change.host, change.port);
                true
            }
        }
    }

    fn remove(&mut self, host: &HostPattern, port: u16) {
        let (hosts, host) = self.hosts_mut(host);
        let Some(ports) = hosts.0.get_mut(host) else {
            return;
        };
        let removed = usize::from(ports.remove(&port).is_some());
        if ports.is_empty() {
            hosts.0.remove(host);
        }
        self.count -= removed;
    }

    fn hosts_mut<'h>(&mut self, host: &'h HostPattern) -> (&mut Hosts, &'h Host) {
        match host {
            HostPattern::Exact(host) => (&mut self.exact, host),
            HostPattern::Below(host) => (&mut self.below, host),
        }
    }

    /// How many hosts and ports it is of.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.count
    }

    /// Whether it is of nothing.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// How the service stands that the reporting gateway finds for this host and port: an exact host
    /// beats a wildcard, and a longer wildcard a shorter one.
    ///
    /// Who names no port (`port` is the only one of its route) means the only one there.
    #[must_use]
    pub fn find(&self, host: &HostPattern, port: u16, names_port: bool) -> Option<Standing> {
        let ports = self.ports(host)?;
        let same = ports.get(&port).copied();
        let only = || ports.values().next().copied().filter(|_| ports.len() == 1);
        same.or_else(|| if names_port { None } else { only() })
    }

    fn ports(&self, host: &HostPattern) -> Option<&Ports> {
        let mut rest = match host {
            HostPattern::Exact(host) => match self.exact.0.get(host) {
                Some(ports) => return Some(ports),
                None => host.as_str(),
            },
            HostPattern::Below(host) => match self.below.0.get(host) {
                Some(ports) => return Some(ports),
                None => host.as_str(),
            },
        };
        while let Some((_, suffix)) = rest.split_once('.') {
            if let Some(ports) = self.below.0.get(suffix) {
                return Some(ports);
            }
            rest = suffix;
        }
        None
    }

    /// Every host and port, and how it stands, in their order.
    pub fn entries(&self) -> impl Iterator<Item = (HostPattern, u16, Standing)> {
        let exact =
            (self.exact.0.iter()).map(|(host, ports)| (HostPattern::Exact(host.clone()), ports));
        let below =
            (self.below.0.iter()).map(|(host, ports)| (HostPattern::Below(host.clone()), ports));
        exact.chain(below).flat_map(|(host, ports)| {
            (ports.iter()).map(move |(port, standing)| (host.clone(), *port, *standing))
        })
    }

    /// What makes this one of `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Vec<Change> {
        let mut changes = Vec::new();
        self.exact
            .since(&before.exact, HostPattern::Exact, &mut changes);
        self.below
            .since(&before.below, HostPattern::Below, &mut changes);
        changes
    }
}

impl Hosts {
    /// Most hosts are as they were: they cost one look.
    fn since(&self, before: &Self, named: fn(Host) -> HostPattern, changes: &mut Vec<Change>) {
        let none = Ports::new();
        let mut change = |host: &Host, port, standing| {
            changes.push(Change {
                host: named(host.clone()),
                port,
                standing,
            });
        };
        for (host, ports) in &self.0 {
            let were = before.0.get(host).unwrap_or(&none);
            if were == ports {
                continue;
            }
            for (port, now) in ports {
                if were.get(port) != Some(now) {
                    change(host, *port, Some(*now));
                }
            }
        }
        for (host, were) in &before.0 {
            let ports = self.0.get(host).unwrap_or(&none);
            for port in were.keys() {
                if !ports.contains_key(port) {
                    change(host, *port, None);
                }
            }
        }
    }
}

fn is_exported(export: &Export, peers: &[PeerIx]) -> bool {
    match export {
        Export::Nobody => false,
        Export::To(to) => peers.iter().any(|peer| to.contains(peer)),
        Export::AllPeers => !peers.is_empty(),
    }
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
