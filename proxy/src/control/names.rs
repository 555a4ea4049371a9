//! Names whose addresses are endpoints: what was configured, and what was answered, make what is
//! published.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot, watch};
use zeugma_core::names::Host;
use zeugma_core::resolved::resolved;
use zeugma_core::snapshot::{Address, Snapshot};

use super::Control;
use crate::resolve;
use crate::runtime::Shared;

/// How long addresses of names stay as they are published, though others are known: to publish ten
/// thousand routes takes its time.
const REST: Duration = Duration::from_millis(100);

/// The names of the configuration that serves.
pub(super) struct Named {
    /// It, with names where what is published has their addresses.
    written: Arc<Snapshot>,
    /// Whether there are any.
    has_names: bool,
    /// Told the names of every snapshot, for what resolves them beside the control loop.
    wanted: watch::Sender<BTreeSet<Host>>,
    /// Tells that some of them have other addresses.
    changed: Arc<Notify>,
    /// Until then they stay as they are published.
    rest: Instant,
}

impl Named {
    /// Those of `written`, what keeps them resolved, and what is told when each was asked for once.
    pub(super) fn begin(
        written: &Arc<Snapshot>,
        shared: &Arc<Shared>,
    ) -> (
        Self,
        impl Future<Output = ()> + use<>,
        oneshot::Receiver<()>,
    ) {
        let (this, names) = Self::of(written);
        let (asked, were_asked) = oneshot::channel();
        let changed = Arc::clone(&this.changed);
        let resolving = resolve::run(Arc::clone(shared), names, asked, changed);
        (this, resolving, were_asked)
    }

    /// Those of `written`, which nothing resolves yet.
    pub(super) fn of(written: &Arc<Snapshot>) -> (Self, watch::Receiver<BTreeSet<Host>>) {
        let (wanted, names) = watch::channel(resolve::names_of(written));
        let this = Self {
            written: Arc::clone(written),
            has_names: !names.borrow().is_empty(),
            wanted,
            changed: Arc::default(),
            rest: Instant::now(),
        };
        (this, names)
    }

    /// Takes the next configuration, and gives it back with the addresses that are known.
    pub(super) fn next(
        &mut self,
        written: Arc<Snapshot>,
        before: &Snapshot,
        shared: &Shared,
    ) -> Arc<Snapshot> {
        if self.has_names || has_other_names(&self.written, &written) {
            let names = resolve::names_of(&written);
            self.has_names = !names.is_empty();
            self.wanted.send_replace(names);
        }
        self.written = Arc::clone(&written);
        self.resolved(before, shared).map_or(written, Arc::new)
    }

    /// What serves with the addresses that its names have now, and what it has in common with
    /// `before` kept once; `None` where it has no such names.
    fn resolved(&self, before: &Snapshot, shared: &Shared) -> Option<Snapshot> {
        if !self.has_names {
            return None;
        }
        let names = shared.names.load();
        let mut next = resolved(&self.written, |host| names.endpoints(host))?;
        next.share(before);
        Some(next)
    }

    /// Waits until names have other addresses, and no longer rest.
    ///
    /// # Cancel safety
    /// Safe: a fixed moment, and then a permit that is kept until it is taken.
    pub(super) fn changed(&self) -> impl Future<Output = ()> + use<> {
        let (changed, rest) = (Arc::clone(&self.changed), self.rest);
        async move {
            tokio::time::sleep_until(rest.into()).await;
            changed.notified().await;
        }
    }
}

/// Whether a cluster that is not in its place in `before` has names.
fn has_other_names(before: &Snapshot, next: &Snapshot) -> bool {
    let known = before
        .clusters
        .iter()
        .map(Some)
        .chain(std::iter::repeat(None));
    let both = next.clusters.iter().zip(known);
    let mut others = both
        .filter(|(next, known)| known.is_none_or(|known| !Arc::ptr_eq(next, known)))
        .flat_map(|(next, _)| &next.endpoints);
    others.any(|endpoint| !matches!(endpoint.address, Address::Socket(_)))
}

impl Control {
    /// Has the addresses that names have now serve as endpoints. Nobody's right changes by it, and
    /// what is open goes on: the generation stays.
    pub(super) fn publish_names(&mut self) {
        self.names.rest = Instant::now() + REST;
        let before = self.shared.published.load_full();
        let Some(next) = self.names.resolved(&before.snapshot, &self.shared) else {
            return;
        };
        let (these, those) = (&next.clusters, &before.snapshot.clusters);
        let mut both = these.iter().zip(those);
        if these.len() == those.len() && both.all(|(this, that)| Arc::ptr_eq(this, that)) {
            return;
        }
        let now = self.shared.now();
        self.fleet.reconcile(&next, now);
        let shares = self.fleet.shares(now);
        self.publish(before.generation, Arc::new(next), shares);
        // To take ten thousand routes apart takes its time.
        drop(tokio::task::spawn_blocking(move || drop(before)));
        self.tell_events(Vec::new(), Some("addresses of names"));
    }
}
