//! Which node is told what: views, and who may have which.

use std::sync::Arc;

use tokio::sync::watch;
use tonic::Status;
use zeugma_core::time::Time;

use super::{Caller, Seen, Shared, lock};
use crate::catalog::Catalog;
use crate::plane::{Claim, Plane, View};

/// What a stream is told, as it changes.
#[derive(Debug)]
pub(super) struct Subscribed {
    pub(super) view: View,
    pub(super) seen: watch::Receiver<Seen>,
    pub(super) catalog: Arc<Catalog>,
}

impl Shared {
    /// How long it serves.
    pub(super) fn now(&self) -> Time {
        Time::from_origin(self.started.elapsed())
    }

    /// What a node of this claim is told, if its caller may have that.
    ///
    /// # Cancel safety
    /// What is being made is made all the same.
    ///
    /// # Errors
    /// Why not, as its client is told; the log has more.
    pub(super) async fn subscribe(
        self: &Arc<Self>,
        claim: &Claim,
        caller: &Caller,
    ) -> Result<Subscribed, Status> {
        let plane = Arc::clone(&lock(&self.plane));
        // What there is, and who may have it, is not told to those who may not.
        let refuse = |why: String| {
            tracing::warn!(
                code = "ZG0502",
                node = %claim.id, cluster = %claim.cluster, %caller,
                "a node is refused: {why}"
            );
            let node = &claim.id;
            let text = format!(
                "{caller} gets no configuration of node `{node}`; the server's log says why"
            );
            Status::permission_denied(text)
        };
        let view = plane.view(claim).map_err(refuse)?;
        if !self.may_have(&plane, &view, caller) {
            return Err(refuse(format!(
                "it is no gateway of `{}` by the MeshPeer of its cluster, and is not listed for it",
                view.gateway
            )));
        }
        let mut seen = self.look(&view)?;
        let ready = seen.wait_for(|seen| !matches!(seen, Seen::Making)).await;
        let catalog = match ready.as_deref() {
            Ok(Seen::Ready(catalog)) => Arc::clone(catalog),
            Ok(Seen::Making | Seen::Gone) | Err(_) => {
                return Err(Status::unavailable("the configuration changes just then"));
            }
        };
        drop(ready);
        Ok(Subscribed {
            view,
            seen,
            catalog,
        })
    }

    fn may_have(&self, plane: &Plane, view: &View, caller: &Caller) -> bool {
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
    fn look(self: &Arc<Self>, view: &View) -> Result<watch::Receiver<Seen>, Status> {
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
        let (seen, receiver) = watch::channel(Seen::Making);
        views.insert(view.clone(), seen);
        drop(views);
        let (shared, view) = (Arc::clone(self), view.clone());
        // Not awaited: it is waited for by who looks, and ends by itself.
        drop(tokio::task::spawn_blocking(move || {
            let mut store = lock(&shared.store);
            shared.make(&view, &mut store);
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
        store.sweep();
        self.published.send_modify(|count| *count += 1);
        store.encoded() - before
    }

    /// Makes one view of the newest documents: the store is held, so that no older ones come later.
    fn make(&self, view: &View, store: &mut crate::catalog::Store) {
        let plane = Arc::clone(&lock(&self.plane));
        let Some(seen) = lock(&self.views).get(view).cloned() else {
            return;
        };
        let before = match &*seen.borrow() {
            Seen::Ready(catalog) => Some(Arc::clone(catalog)),
            Seen::Making | Seen::Gone => None,
        };
        let made = plane.catalog(view, store, before.as_deref());
        seen.send_if_modified(|seen| {
            let now = match (made, &before) {
                (Some(made), Some(before)) if made.version() == before.version() => return false,
                (Some(made), _) => Seen::Ready(Arc::new(made)),
                (None, _) => Seen::Gone,
            };
            *seen = now;
            true
        });
    }
}
