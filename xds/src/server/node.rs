//! Which node is told what: views, and who may have which.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::watch;
use tonic::Status;
use zeugma_core::time::Time;

use super::standing::{Place, refused};
use super::{Caller, Current, Seen, Shared, lock};
use crate::catalog::{Catalog, Store};
use crate::plane::{Claim, Plane, View};

/// Views that are kept for nodes that may come back; from one more on, none of them is.
const DEPARTED_MAX: usize = 16;

/// What a stream is told, as it changes.
#[derive(Debug)]
pub(super) struct Subscribed {
    pub(super) seen: watch::Receiver<Seen>,
    pub(super) catalog: Arc<Catalog>,
}

impl Shared {
    /// How long it serves.
    pub(super) fn now(&self) -> Time {
        Time::from_origin(self.started.elapsed())
    }

    /// What a node of this claim is told, if its caller may have that: of the plane by which it was
    /// judged, for an older one may say what it must not have, and a newer one that it may have nothing.
    ///
    /// # Cancel safety
    /// What is being made is made all the same.
    ///
    /// # Errors
    /// Why not, as its client is told; the log has more.
    pub(super) async fn subscribe(
        self: &Arc<Self>,
        claim: &Claim,
        place: &Place,
    ) -> Result<Subscribed, Status> {
        loop {
            let Current { nth, plane } = lock(&self.plane).clone();
            let view = self.judge(&plane, claim, place.caller())?;
            place.looks_at(&view)?;
            let mut seen = self.look(&view, place)?;
            let made = seen.wait_for(|seen| seen.nth >= nth).await;
            let made = made.map(|seen| seen.clone());
            let Seen { nth: of, catalog } =
                made.map_err(|_gone| Status::unavailable("the configuration changes just then"))?;
            if of > nth {
                continue;
            }
            let catalog = catalog.ok_or_else(|| Status::unavailable("the gateway is no more"))?;
            return Ok(Subscribed { seen, catalog });
        }
    }

    /// Which view a node of this claim has now.
    ///
    /// # Errors
    /// As [`subscribe`](Self::subscribe).
    pub(super) fn view(&self, claim: &Claim, caller: &Caller) -> Result<View, Status> {
        let plane = lock(&self.plane).plane.clone();
        self.judge(&plane, claim, caller)
    }

    /// Which view it is, if its caller may have that.
    fn judge(&self, plane: &Plane, claim: &Claim, caller: &Caller) -> Result<View, Status> {
        // What there is, and who may have it, is not told to those who may not.
        let refuse = |why: String| {
            if let Some(left_out) = self.lines.refused.may_say() {
                tracing::warn!(
                    code = "ZG0502",
                    node = %claim.id, cluster = %claim.cluster, %caller, left_out,
                    "a node is refused: {why}"
                );
            }
            let node = &claim.id;
            let text = format!(
                "{caller} gets no configuration of node `{node}`; the server's log says why"
            );
            Status::permission_denied(text)
        };
        let view = plane.view(claim).map_err(refuse)?;
        if self.may_have(plane, &view, caller) {
            return Ok(view);
        }
        Err(refuse(format!(
            "it is no gateway of `{}` by the MeshPeer of its cluster, and is not listed for it",
            view.gateway
        )))
    }

    pub(super) fn may_have(&self, plane: &Plane, view: &View, caller: &Caller) -> bool {
        let id = match caller {
            Caller::Local => return self.admission.local,
            Caller::Verified(id) => id,
        };
        let listed = self.admission.listed.iter().any(|(gateway, pattern)| {
            gateway.as_ref().is_none_or(|name| *name == view.gateway) && pattern.matches(id)
        });
        listed || plane.is_gateway(&view.gateway, id)
    }

    /// A view, which is made where there is none: once for all who wait.
    fn look(self: &Arc<Self>, view: &View, place: &Place) -> Result<watch::Receiver<Seen>, Status> {
        let mut views = lock(&self.views);
        if let Some(seen) = views.get(view) {
            return Ok(seen.subscribe());
        }
        if views.len() >= self.limits.views {
            views.retain(|_, seen| seen.receiver_count() > 0);
        }
        if views.len() >= self.limits.views {
            let max = self.limits.views;
            let text = format!("over {max} gateways and places are served");
            return Err(Status::resource_exhausted(text));
        }
        let max = self.limits.caller_views.saturating_mul(2);
        if !self.fresh.may_make(place.charged(), max) {
            drop(views);
            let full = format!(
                "over {max} new gateways and places of {} in a minute",
                place.charged()
            );
            return Err(refused(self, place.caller(), place.node(), full));
        }
        let (seen, receiver) = watch::channel(Seen::default());
        views.insert(view.clone(), seen);
        drop(views);
        let (shared, view) = (Arc::clone(self), view.clone());
        // Not awaited: it is waited for by who looks, and ends by itself.
        drop(tokio::task::spawn_blocking(move || {
            let mut store = lock(&shared.store);
            shared.make(&view, &mut store);
            shared.forget(&mut store);
            shared.count(&store);
        }));
        Ok(receiver)
    }

    /// Makes every view anew; returns how many resources that took which were not known.
    pub(super) fn make_all(&self) -> u64 {
        let mut store = lock(&self.store);
        let before = store.encoded();
        let views: Vec<View> = {
            let mut views = lock(&self.views);
            views.retain(|_, seen| seen.receiver_count() > 0);
            views.keys().cloned().collect()
        };
        for view in &views {
            self.make(view, &mut store);
        }
        store.sweep(&views.into_iter().collect());
        self.count(&store);
        let plane = lock(&self.plane).plane.clone();
        lock(&self.loads).keep(&plane.gateways().collect());
        store.encoded() - before
    }

    /// Forgets views that nobody looks at, and what they were made of.
    fn forget(&self, store: &mut Store) {
        let kept: BTreeSet<View> = {
            let mut views = lock(&self.views);
            let departed = views.values().filter(|seen| seen.receiver_count() == 0);
            if departed.count() <= DEPARTED_MAX && store.memos() <= views.len() {
                return;
            }
            views.retain(|_, seen| seen.receiver_count() > 0);
            views.keys().cloned().collect()
        };
        store.sweep(&kept);
    }

    fn count(&self, store: &Store) {
        self.known.store(store.len(), Ordering::Relaxed);
        self.encoded.store(store.encoded(), Ordering::Relaxed);
    }

    /// Makes one view of the newest documents: the store is held, so that no older ones come later.
    /// Who looks is told even where it is as it was: whether they may have it may be otherwise.
    fn make(&self, view: &View, store: &mut Store) {
        let Current { nth, plane } = lock(&self.plane).clone();
        let Some(seen) = lock(&self.views).get(view).cloned() else {
            return;
        };
        let Seen { nth: of, catalog } = seen.borrow().clone();
        if of == nth {
            return;
        }
        // Who waits for it would wait for ever. What is half made is in nobody's hands.
        let make = AssertUnwindSafe(|| (self.make)(&plane, view, store, catalog.as_deref()));
        let made = catch_unwind(make).unwrap_or_else(|_panic| {
            tracing::error!(
                code = "ZG0510",
                gateway = view.gateway,
                locality = view.locality,
                "a configuration cannot be compiled; what was made of it last is told"
            );
            catalog.as_deref().cloned()
        });
        let catalog = match (made, catalog) {
            (Some(made), Some(before)) if made.version() == before.version() => Some(before),
            (made, _) => made.map(Arc::new),
        };
        seen.send_replace(Seen { nth, catalog });
    }
}
