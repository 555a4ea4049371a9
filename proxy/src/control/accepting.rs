//! Which listeners accept: new ones are bound before a configuration is published.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::oneshot;
use zeugma_core::snapshot::Snapshot;

use super::{GatewayError, system};
use crate::listener::{WorkerHandle, accept, bind};
use crate::runtime::Shared;

/// The listeners that accept.
pub(super) struct Accepting {
    shared: Arc<Shared>,
    workers: Arc<[WorkerHandle]>,
    open: BTreeMap<Arc<str>, Bound>,
}

struct Bound {
    /// As configured.
    address: SocketAddr,
    /// As it is: the kernel chooses a port where 0 is configured.
    actual: SocketAddr,
    /// Dropping it ends accepting.
    _stop: oneshot::Sender<()>,
}

/// Listeners bound for a configuration that is not published yet.
pub(super) struct New(Vec<(Arc<str>, SocketAddr, TcpListener)>);

impl Accepting {
    pub(super) fn new(shared: Arc<Shared>, workers: Vec<WorkerHandle>) -> Self {
        Self {
            shared,
            workers: workers.into(),
            open: BTreeMap::new(),
        }
    }

    /// Binds what `snapshot` listens on and is not bound yet.
    ///
    /// # Errors
    /// The first address that cannot be bound; those bound before are closed again, unused.
    pub(super) fn bind_new(&self, snapshot: &Snapshot) -> Result<New, GatewayError> {
        let mut new = Vec::new();
        for listener in &snapshot.listeners {
            let known = self.open.get(&listener.name);
            if known.is_some_and(|bound| bound.address == listener.address) {
                continue;
            }
            let socket = bind(listener.address).map_err(|source| GatewayError::Listener {
                name: listener.name.to_string(),
                address: listener.address.to_string(),
                source,
            })?;
            let socket =
                TcpListener::from_std(socket).map_err(system("a listener cannot be watched"))?;
            new.push((Arc::clone(&listener.name), listener.address, socket));
        }
        Ok(New(new))
    }

    /// Accepts on what was bound and stops listening where `snapshot` does not.
    pub(super) fn commit(&mut self, snapshot: &Snapshot, new: New) {
        self.open.retain(|name, bound| {
            snapshot
                .listener(name)
                .is_some_and(|l| l.address == bound.address)
        });
        for (name, address, socket) in new.0 {
            let actual = socket.local_addr().unwrap_or(address);
            let (stop, stopped) = oneshot::channel();
            let accepting = accept(
                socket,
                stopped,
                Arc::clone(&name),
                Arc::clone(&self.shared),
                Arc::clone(&self.workers),
            );
            // Ends when `stop` is dropped, or with the process.
            drop(tokio::task::spawn_local(accepting));
            self.open.insert(
                name,
                Bound {
                    address,
                    actual,
                    _stop: stop,
                },
            );
        }
    }

    /// Stops accepting and lets the workers end: theirs are the only other ends of their queues.
    pub(super) fn stop(&mut self) {
        self.open.clear();
        self.workers = Arc::new([]);
    }
}

impl fmt::Display for Accepting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, (name, bound)) in self.open.iter().enumerate() {
            let comma = if nth > 0 { ", " } else { "" };
            write!(f, "{comma}{name} {}", bound.actual)?;
        }
        Ok(())
    }
}
