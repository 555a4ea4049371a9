//! The addresses of the names that peers' gateways and endpoints are given by.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use tokio::sync::watch;
use zeugma_core::names::Host;
use zeugma_core::snapshot::{Address, Snapshot};

use crate::runtime::Shared;

/// Answers are asked again no sooner than this, whatever their TTL.
const TTL_MIN: Duration = Duration::from_secs(1);
/// Answers are asked again no later than this, whatever their TTL.
const TTL_MAX: Duration = Duration::from_secs(300);
/// A name that did not resolve is asked again after this.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// How long one name may take.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// Addresses of one name that are used.
const ADDRESSES_MAX: usize = 64;

/// What each name resolves to at present.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Names(BTreeMap<Host, Vec<IpAddr>>);

impl Names {
    /// An address to connect, drawn from those of the name.
    pub(crate) fn address(&self, address: &Address) -> Option<SocketAddr> {
        match address {
            Address::Socket(socket) => Some(*socket),
            Address::Name(host, port) => {
                let addresses = self.0.get(host)?;
                let drawn = fastrand::usize(..addresses.len().max(1));
                Some(SocketAddr::new(*addresses.get(drawn)?, *port))
            }
        }
    }
}

/// Keeps the names of the present snapshot resolved, for ever.
pub(crate) async fn run(shared: Arc<Shared>, mut snapshots: watch::Receiver<Arc<Snapshot>>) {
    let mut resolver = Resolver::new();
    loop {
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        resolver.reconcile(&snapshot);
        loop {
            // A question that a new snapshot cuts short is asked again.
            tokio::select! {
                names = resolver.next() => if let Some(names) = names {
                    shared.names.store(Arc::new(names));
                },
                changed = snapshots.changed() => match changed {
                    Ok(()) => break,
                    Err(_ended) => return,
                },
            }
        }
    }
}

/// Resolves names by their TTL; an answer that fails keeps the last good addresses.
#[derive(Debug)]
struct Resolver {
    resolver: Option<TokioResolver>,
    due: BTreeMap<Host, tokio::time::Instant>,
    names: Names,
}

impl Resolver {
    /// A resolver with the system's name servers; made when the first name is configured.
    fn new() -> Self {
        Self {
            resolver: None,
            due: BTreeMap::new(),
            names: Names::default(),
        }
    }

    /// Takes up the names of a snapshot and forgets those it does not have.
    fn reconcile(&mut self, snapshot: &Snapshot) {
        let mut wanted = BTreeMap::new();
        for endpoint in snapshot
            .clusters
            .iter()
            .flat_map(|cluster| &cluster.endpoints)
        {
            if let Address::Name(host, _) = &endpoint.address {
                let due = self
                    .due
                    .get(host)
                    .copied()
                    .unwrap_or_else(tokio::time::Instant::now);
                wanted.insert(host.clone(), due);
            }
        }
        self.names.0.retain(|host, _| wanted.contains_key(host));
        self.due = wanted;
    }

    /// Waits for the next name to be due, asks for it, and returns all names if any changed.
    ///
    /// # Cancel safety
    /// A question that is abandoned is asked again by the next call.
    async fn next(&mut self) -> Option<Names> {
        let Some((host, due)) = self.due.iter().min_by_key(|(_, due)| **due) else {
            return std::future::pending().await;
        };
        let host = host.clone();
        tokio::time::sleep_until(*due).await;
        let (addresses, again) = self.look_up(&host).await;
        self.due
            .insert(host.clone(), tokio::time::Instant::now() + again);
        let addresses = addresses?;
        if self.names.0.get(&host) == Some(&addresses) {
            return None;
        }
        self.names.0.insert(host, addresses);
        Some(self.names.clone())
    }

    async fn look_up(&mut self, host: &Host) -> (Option<Vec<IpAddr>>, Duration) {
        if host.as_str() == "localhost" {
            return (Some(vec![IpAddr::from([127, 0, 0, 1])]), TTL_MAX);
        }
        if self.resolver.is_none() {
            match TokioResolver::builder_tokio().and_then(|builder| builder.build()) {
                Ok(resolver) => self.resolver = Some(resolver),
                Err(error) => {
                    tracing::error!(%error, "the system's resolver configuration is not usable");
                    return (None, RETRY_AFTER);
                }
            }
        }
        let Some(resolver) = &self.resolver else {
            return (None, RETRY_AFTER);
        };
        // The final dot keeps search domains out of it.
        let asking = resolver.lookup_ip(format!("{host}."));
        match tokio::time::timeout(LOOKUP_TIMEOUT, asking).await {
            Ok(Ok(found)) => {
                let ttl = found
                    .valid_until()
                    .saturating_duration_since(std::time::Instant::now())
                    .clamp(TTL_MIN, TTL_MAX);
                let mut addresses: Vec<IpAddr> = found.iter().take(ADDRESSES_MAX).collect();
                addresses.sort_unstable();
                (Some(addresses), ttl)
            }
            Ok(Err(error)) => {
                tracing::warn!(%host, %error, "name not resolved; keeping its last addresses");
                (None, RETRY_AFTER)
            }
            Err(_elapsed) => {
                tracing::warn!(%host, "name not resolved in time; keeping its last addresses");
                (None, RETRY_AFTER)
            }
        }
    }
}
