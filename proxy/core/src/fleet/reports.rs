//! What peers' gateways report of the endpoints behind them, and how long that counts.
//!
//! ```text
//!             report                 STALE_AFTER without one
//! (nothing) ----------> Fresh ---------------------------------> Stale
//!     ^                 ^   |                                     |   |
//!     |                 |   `--- forget (it does not report) -.   |   | `drop`: nothing is known
//!     |                 `------------- report ----------------+---'   |
//!     `-------------------------------------------------------+-------'
//! ```
//!
//! Until the first report, and after the last one that counts, nothing is known: the endpoint weighs
//! what is configured, and all of it is healthy.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::{Fleet, FleetEvent};
use crate::names::HostPattern;
use crate::report::{Presence, Report};
use crate::shares::{Counts, Worth};
use crate::snapshot::{Address, Cluster, Endpoint, EndpointKey, PeerIx, Snapshot, WhenStale};
use crate::time::Time;

/// After how long without a word a report is old.
pub const STALE_AFTER: Duration = Duration::from_secs(10);

/// What was heard of each gateway of each peer.
#[derive(Debug, Clone, Default)]
pub(super) struct Reports {
    /// By the peer's name and the gateway's address.
    heard: BTreeMap<Arc<str>, BTreeMap<Address, Heard>>,
    /// The peers of the snapshot last reconciled.
    pub(super) peers: Vec<(Arc<str>, WhenStale)>,
}

#[derive(Debug, Clone)]
struct Heard {
    at: Time,
    is_stale: bool,
    report: Arc<Report>,
}

/// The service that a cluster carries, as a peer's gateway is asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    host: HostPattern,
    port: u16,
    names_port: bool,
}

/// What is reported of what stands behind one endpoint.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Behind {
    /// `None` where it does not name what is asked for.
    counts: Option<Counts>,
    healthy_weight: f64,
    weight: f64,
    capacity: Option<f64>,
    presence: Presence,
    pub(super) is_stale: bool,
}

/// What a peer's gateway is taken to say of one endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// So many of those behind it are healthy.
    Healthy(Counts),
    /// It is on its way out.
    Leaving,
    /// It was, and nobody answers there any more.
    Gone,
    /// Nothing that counts.
    Nothing,
}

impl Behind {
    /// Whether a call would find nothing there.
    pub(super) fn is_empty(&self) -> bool {
        self.presence == Presence::Gone || self.healthy_weight <= 0.0
    }

    pub(super) const fn reports_capacity(&self) -> bool {
        self.capacity.is_some()
    }

    /// What it makes of the weight that is configured.
    pub(super) fn worth(&self, configured: f64) -> Worth {
        let healthy = if self.is_empty() {
            0.0
        } else {
            configured * self.healthy_weight
        };
        Worth {
            weight: configured * self.weight,
            healthy,
            drawn: match self.presence {
                Presence::Serving => healthy,
                Presence::Leaving | Presence::Gone => 0.0,
            },
            reported: self.counts,
            capacity: self.capacity,
        }
    }
}

impl Said {
    fn of(behind: Option<&Behind>) -> Self {
        match behind {
            None => Self::Nothing,
            Some(behind) if behind.presence == Presence::Gone => Self::Gone,
            Some(behind) if behind.presence == Presence::Leaving && !behind.is_empty() => {
                Self::Leaving
            }
            Some(behind) => Self::Healthy(behind.counts.unwrap_or_default()),
        }
    }
}

impl Reports {
    /// Takes the peers of a snapshot; whether they are what they were.
    pub(super) fn are_of(&mut self, snapshot: &Snapshot) -> bool {
        let peers = snapshot.peers.iter();
        let peers: Vec<_> = peers
            .map(|peer| (Arc::clone(&peer.name), peer.when_stale))
            .collect();
        let same = peers == self.peers;
        self.peers = peers;
        same
    }

    /// What is reported of an endpoint of a cluster that carries `asked`, if anything counts.
    pub(super) fn behind(&self, endpoint: &Endpoint, asked: &Asked) -> Option<Behind> {
        let (peer, when_stale) = self.peers.get(endpoint.peer?.0)?;
        let heard = self.heard.get(peer)?.get(&endpoint.address)?;
        if heard.is_stale && *when_stale == WhenStale::Drop {
            return None;
        }
        let standing = (heard.report).find(&asked.host, asked.port, asked.names_port);
        let presence = heard.report.presence;
        let Some(standing) = standing else {
            // What it does not name is as if it had not reported, but for its own end.
            return (presence != Presence::Serving).then_some(Behind {
                counts: None,
                healthy_weight: 1.0,
                weight: 1.0,
                capacity: None,
                presence,
                is_stale: heard.is_stale,
            });
        };
        Some(Behind {
            counts: Some(Counts {
                healthy: standing.healthy(),
                total: standing.total(),
            }),
            healthy_weight: standing.healthy_weight(),
            weight: standing.weight(),
            capacity: standing.capacity().map(|rate| f64::from(rate.get())),
            presence,
            is_stale: heard.is_stale,
        })
    }

    fn when_stale(&self, peer: &str) -> Option<WhenStale> {
        let mut peers = self.peers.iter();
        peers.find_map(|(name, when)| (**name == *peer).then_some(*when))
    }

    /// What is not old by now will never be.
    pub(super) fn hold(&mut self) {
        for heard in self.heard.values_mut().flat_map(BTreeMap::values_mut) {
            heard.at = Time::from_origin(Duration::MAX);
        }
    }

    /// When the next report is old.
    pub(super) fn next_stale(&self) -> Option<Time> {
        (self.heard.values().flat_map(BTreeMap::values))
            .filter(|heard| !heard.is_stale)
            .map(|heard| heard.at + STALE_AFTER)
            .min()
    }

    /// Marks those that are old by now, and names them.
    fn grow_stale(&mut self, now: Time) -> Vec<(Arc<str>, Address)> {
        let mut stale = Vec::new();
        for (peer, gateways) in &mut self.heard {
            for (gateway, heard) in gateways {
                if !heard.is_stale && heard.at + STALE_AFTER <= now {
                    heard.is_stale = true;
                    stale.push((Arc::clone(peer), gateway.clone()));
                }
            }
        }
        stale
    }
}

/// The service that each cluster with a peer's gateways carries, in the order of the clusters.
pub(super) fn asked_of(snapshot: &Snapshot) -> Vec<Option<Asked>> {
    let mut asked: Vec<Option<Asked>> = Vec::new();
    asked.resize_with(snapshot.clusters.len(), || None);
    if snapshot.peers.is_empty() {
        return asked;
    }
    for service in &snapshot.services {
        let cluster = snapshot.clusters.get(service.outbound.0);
        let has_peers = cluster.is_some_and(|cluster| has_peers(cluster));
        let place = asked.get_mut(service.outbound.0).filter(|_| has_peers);
        if let (Some(place), Some(host)) = (place, service.hosts.first()) {
            *place = Some(Asked {
                host: host.clone(),
                port: service.port,
                names_port: service.ports > 1,
            });
        }
    }
    asked
}

/// The endpoints of a cluster that are a peer's gateway.
fn gateways_in<'c>(
    cluster: &'c Cluster,
    peer: PeerIx,
    gateway: &Address,
) -> impl Iterator<Item = &'c Endpoint> {
    let endpoints = cluster.endpoints.iter();
    endpoints.filter(move |endpoint| endpoint.peer == Some(peer) && endpoint.address == *gateway)
}

fn has_peers(cluster: &Cluster) -> bool {
    cluster
        .endpoints
        .iter()
        .any(|endpoint| endpoint.peer.is_some())
}

impl Fleet {
    /// As [`asked_of`], where the services are those of before and each cluster that changed has peers
    /// where it had.
    pub(super) fn asked_as_before(&self, snapshot: &Snapshot) -> Option<Vec<Option<Asked>>> {
        let is_alike = self.services.is_one_with(&snapshot.services)
            && self.clusters.len() == snapshot.clusters.len();
        if !is_alike || snapshot.peers.is_empty() {
            return None;
        }
        let both = self.clusters.iter().zip(&snapshot.clusters);
        both.map(|(state, next)| {
            let before = &state.cluster;
            let is_alike = Arc::ptr_eq(before, next) || has_peers(before) == has_peers(next);
            is_alike.then(|| state.asked.clone())
        })
        .collect()
    }

    /// Takes what a peer's gateway reports. The same report again says that it still holds.
    pub fn report(&mut self, peer: &Arc<str>, gateway: &Address, report: &Arc<Report>, now: Time) {
        self.advance(now);
        let gateways = self.reports.heard.entry(Arc::clone(peer)).or_default();
        let next = Heard {
            at: now,
            is_stale: false,
            report: Arc::clone(report),
        };
        let before = gateways.insert(gateway.clone(), next);
        let before = before.filter(|heard| !heard.is_stale);
        if (before.as_ref()).is_some_and(|heard| Arc::ptr_eq(&heard.report, report)) {
            return;
        }
        let before = before.map(|heard| heard.report);
        self.hear(peer, gateway, before.as_deref().zip(Some(&**report)), now);
    }

    /// Forgets what a peer's gateway reported: it does not any more, or is none of the peer's.
    pub fn forget_report(&mut self, peer: &str, gateway: &Address, now: Time) {
        self.advance(now);
        let Some(gateways) = self.reports.heard.get_mut(peer) else {
            return;
        };
        if gateways.remove(gateway).is_none() {
            return;
        }
        if gateways.is_empty() {
            self.reports.heard.remove(peer);
        }
        self.hear(peer, gateway, None, now);
    }

    /// Lets reports grow old.
    pub(super) fn grow_stale(&mut self, now: Time) {
        if self.reports.next_stale().is_none_or(|at| at > now) {
            return;
        }
        for (peer, gateway) in self.reports.grow_stale(now) {
            if let Some(when_stale) = self.reports.when_stale(&peer) {
                self.tell(FleetEvent::ReportStale {
                    peer: Arc::clone(&peer),
                    gateway: gateway.clone(),
                    when_stale,
                });
            }
            self.hear(&peer, &gateway, None, now);
        }
    }

    /// Applies what is known of a gateway to the endpoints that it is.
    ///
    /// Where one report follows another, of both nothing else is looked at than what differs.
    fn hear(
        &mut self,
        peer: &str,
        gateway: &Address,
        reports: Option<(&Report, &Report)>,
        now: Time,
    ) {
        let mut peers = self.reports.peers.iter();
        let Some(peer_ix) = peers.position(|(name, _)| **name == *peer).map(PeerIx) else {
            return;
        };
        let is_alike = |asked: &Asked| {
            reports.is_some_and(|(before, after)| {
                let find = |of: &Report| of.find(&asked.host, asked.port, asked.names_port);
                before.presence == after.presence && find(before) == find(after)
            })
        };
        let asking =
            || (self.clusters.iter()).filter_map(|of| Some((&of.cluster, of.asked.as_ref()?)));
        let turned: BTreeSet<&EndpointKey> = asking()
            .filter(|(_, asked)| !is_alike(asked))
            .flat_map(|(cluster, _)| gateways_in(cluster, peer_ix, gateway))
            .map(|endpoint| &endpoint.key)
            .collect();
        let mut behind: BTreeMap<EndpointKey, Option<Behind>> = BTreeMap::new();
        for (cluster, asked) in asking().filter(|_| !turned.is_empty()) {
            // One endpoint may carry several services.
            let endpoints = gateways_in(cluster, peer_ix, gateway);
            let endpoints = endpoints.filter(|endpoint| turned.contains(&endpoint.key));
            self.gather(endpoints, asked, &mut behind);
        }
        let mut routes = BTreeSet::new();
        for (key, next) in behind {
            if let Some(event) = self.set_behind(&key, next) {
                if let Some(event) = event {
                    self.tell(event);
                }
                let home = self.endpoints.get(&key).and_then(|state| state.home);
                routes.extend(home.map(|home| super::cluster_route(&self.clusters, home)));
            }
        }
        for route in routes {
            self.step_route(&route, now);
        }
        self.check_invariants(now);
    }

    /// What is reported of endpoints that carry `asked`; of one that carries several services, the
    /// least.
    fn gather<'e>(
        &self,
        endpoints: impl Iterator<Item = &'e Endpoint>,
        asked: &Asked,
        into: &mut BTreeMap<EndpointKey, Option<Behind>>,
    ) {
        for endpoint in endpoints {
            let found = self.reports.behind(endpoint, asked);
            let known = into.entry(endpoint.key.clone()).or_insert(found);
            let share = |of: &Option<Behind>| match of {
                None => 1.0,
                Some(of) if of.is_empty() => 0.0,
                Some(of) => of.healthy_weight / of.weight,
            };
            if share(&found) < share(known) {
                *known = found;
            }
        }
    }

    /// Has an endpoint stand as is reported; `None` where that changes nothing, else what is to be
    /// told.
    fn set_behind(
        &mut self,
        key: &EndpointKey,
        next: Option<Behind>,
    ) -> Option<Option<FleetEvent>> {
        let state = self.endpoints.get_mut(key)?;
        let before = state.behind.as_deref().copied();
        if before == next {
            return None;
        }
        state.behind = next.map(Box::new);
        self.restate(key);
        let is_empty = |of: Option<&Behind>| of.is_some_and(Behind::is_empty);
        let said = Said::of(next.as_ref());
        let told = said != Said::of(before.as_ref());
        Some(told.then(|| FleetEvent::Reported {
            key: key.clone(),
            peer: self.peer_of(key),
            said,
            turned: is_empty(before.as_ref()) != is_empty(next.as_ref()),
        }))
    }

    fn peer_of(&self, key: &EndpointKey) -> Arc<str> {
        let home = self.endpoints.get(key).and_then(|state| state.home);
        let endpoint = home.and_then(|home| {
            let state = self.clusters.get(home.cluster())?;
            state.cluster.endpoints.get(home.endpoint())?.peer
        });
        let peer = endpoint.and_then(|ix| self.reports.peers.get(ix.0));
        peer.map_or_else(|| "".into(), |(name, _)| Arc::clone(name))
    }

    /// Has the endpoints of clusters of the next snapshot stand as is reported; nobody is told, for
    /// the configuration is the cause.
    pub(super) fn hear_of<'c>(
        &mut self,
        clusters: impl Iterator<Item = (&'c Arc<Cluster>, Option<&'c Asked>)>,
    ) {
        let mut behind = BTreeMap::new();
        for (cluster, asked) in clusters {
            let peers = || {
                let endpoints = cluster.endpoints.iter();
                endpoints.filter(|endpoint| endpoint.peer.is_some())
            };
            match asked {
                Some(asked) => self.gather(peers(), asked, &mut behind),
                None => {
                    for endpoint in peers() {
                        behind.entry(endpoint.key.clone()).or_insert(None);
                    }
                }
            }
        }
        for (key, next) in behind {
            if let Some(state) = self.endpoints.get_mut(&key) {
                state.behind = next.map(Box::new);
            }
        }
    }

    /// What each endpoint of a cluster is worth in its level; nothing where all are worth what is
    /// configured.
    pub(super) fn worths(&self, cluster: &Cluster) -> Vec<Worth> {
        let behind = |endpoint: &Endpoint| {
            endpoint.peer?;
            self.endpoints.get(&endpoint.key)?.behind.as_deref()
        };
        let mut endpoints = cluster.endpoints.iter();
        if !endpoints.any(|endpoint| behind(endpoint).is_some()) {
            return Vec::new();
        }
        let worth = |endpoint: &Endpoint| {
            let of = behind(endpoint).map(|behind| behind.worth(endpoint.weight));
            of.unwrap_or_else(|| Worth::configured(endpoint.weight))
        };
        cluster.endpoints.iter().map(worth).collect()
    }
}
