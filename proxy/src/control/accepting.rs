//! Which listeners accept: new ones are bound before a configuration is published.
//!
//! A socket belongs to its address. The name of the listener that it serves may change while it
//! accepts, so that renaming a listener, or swapping two addresses, closes nothing.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::sync::oneshot;
use zeugma_core::snapshot::{Listener, Snapshot};

use super::handover::Offered;
use super::inherit::{Adopted, At, Place, Role};
use super::{GatewayError, system};
use crate::listener::{Listening, ServedName, WorkerHandle, bind};
use crate::runtime::Shared;

/// The listeners that accept.
pub(super) struct Accepting {
    shared: Arc<Shared>,
    workers: Arc<[WorkerHandle]>,
    open: Vec<Bound>,
}

struct Bound {
    /// As configured.
    address: SocketAddr,
    /// As it is: the kernel chooses a port where 0 is configured.
    actual: SocketAddr,
    name: ServedName,
    /// The same socket, to be passed on.
    passed: OwnedFd,
    /// Dropping it ends accepting; telling it leaves the queue to whom the socket was passed on.
    stop: oneshot::Sender<()>,
}

impl Bound {
    fn place(&self) -> Place {
        Place {
            role: Role::Listener(self.name.get().to_string()),
            at: At::Tcp(self.address),
        }
    }
}

/// Where each listener of a configuration that is not accepted on yet will accept.
#[derive(Default)]
pub(super) struct New(Vec<(Arc<str>, SocketAddr, Socket)>);

enum Socket {
    /// One that is open, by its place in [`Accepting::open`].
    Kept(usize),
    Fresh(TcpListener, OwnedFd),
}

impl Accepting {
    pub(super) fn new(shared: Arc<Shared>, workers: Vec<WorkerHandle>) -> Self {
        Self {
            shared,
            workers: workers.into(),
            open: Vec::new(),
        }
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Binds what `snapshot` listens on and is neither bound yet nor among `adopted`.
    ///
    /// # Errors
    /// The first address that cannot be bound; those bound before are closed again, unused.
    pub(super) fn bind_new(
        &self,
        snapshot: &Snapshot,
        adopted: &mut Adopted,
    ) -> Result<New, GatewayError> {
        let (new, unbound) = self.bind_what_can(snapshot, adopted);
        unbound.into_iter().next().map_or(Ok(new), Err)
    }

    /// As [`bind_new`](Self::bind_new), without those that cannot be bound, each of which is told.
    pub(super) fn bind_what_can(
        &self,
        snapshot: &Snapshot,
        adopted: &mut Adopted,
    ) -> (New, Vec<GatewayError>) {
        let (mut new, mut unbound) = (Vec::new(), Vec::new());
        for (listener, kept) in snapshot
            .listeners
            .iter()
            .zip(self.keep(&snapshot.listeners))
        {
            let socket = match kept {
                Some(nth) => Socket::Kept(nth),
                None => {
                    let role = Role::Listener(listener.name.to_string());
                    match listening(listener, adopted.tcp(&role)) {
                        Ok((socket, passed)) => Socket::Fresh(socket, passed),
                        Err(error) => {
                            unbound.push(error);
                            continue;
                        }
                    }
                }
            };
            new.push((Arc::clone(&listener.name), listener.address, socket));
        }
        (New(new), unbound)
    }

    /// As [`bind_what_can`](Self::bind_what_can), with what was bound for another configuration before
    /// anything was accepted.
    pub(super) fn bind_anew(
        &self,
        snapshot: &Snapshot,
        New(mut before): New,
        adopted: &mut Adopted,
    ) -> (New, Vec<GatewayError>) {
        let (mut new, mut unbound) = (Vec::new(), Vec::new());
        for listener in &snapshot.listeners {
            let (name, address) = (Arc::clone(&listener.name), listener.address);
            if let Some(nth) = before.iter().position(|(_, bound, _)| *bound == address) {
                new.push((name, address, before.swap_remove(nth).2));
                continue;
            }
            let role = Role::Listener(name.to_string());
            match listening(listener, adopted.tcp(&role)) {
                Ok((socket, passed)) => new.push((name, address, Socket::Fresh(socket, passed))),
                Err(error) => unbound.push(error),
            }
        }
        (New(new), unbound)
    }

    /// The open socket that each listener keeps: one of its address, of its name if there are
    /// several, as there may be of port 0.
    fn keep(&self, listeners: &[Listener]) -> Vec<Option<usize>> {
        let mut kept = vec![None; listeners.len()];
        let mut taken = vec![false; self.open.len()];
        for by_name in [true, false] {
            for (listener, kept) in listeners.iter().zip(&mut kept) {
                if kept.is_some() {
                    continue;
                }
                let found =
                    self.open
                        .iter()
                        .zip(&mut taken)
                        .enumerate()
                        .find(|(_, (bound, taken))| {
                            !**taken
                                && bound.address == listener.address
                                && (!by_name || bound.name.get() == listener.name)
                        });
                if let Some((nth, (_, taken))) = found {
                    *taken = true;
                    *kept = Some(nth);
                }
            }
        }
        kept
    }

    /// Accepts on what was bound and stops listening where the new configuration does not.
    pub(super) fn commit(&mut self, new: New) {
        let mut before: Vec<Option<Bound>> = std::mem::take(&mut self.open)
            .into_iter()
            .map(Some)
            .collect();
        for (name, address, socket) in new.0 {
            match socket {
                Socket::Kept(nth) => {
                    if let Some(bound) = before.get_mut(nth).and_then(Option::take) {
                        bound.name.set(name);
                        self.open.push(bound);
                    }
                }
                Socket::Fresh(socket, passed) => self.open(name, address, socket, passed),
            }
        }
    }

    fn open(&mut self, name: Arc<str>, address: SocketAddr, socket: TcpListener, passed: OwnedFd) {
        let actual = socket.local_addr().unwrap_or(address);
        let name = ServedName::new(name);
        let (stop, stopped) = oneshot::channel();
        let listening = Listening {
            socket,
            stopped,
            name: name.clone(),
            shared: Arc::clone(&self.shared),
            workers: Arc::clone(&self.workers),
        };
        listening.start();
        self.open.push(Bound {
            address,
            actual,
            name,
            passed,
            stop,
        });
    }

    /// Every socket that accepts, to be passed on.
    ///
    /// # Errors
    /// Too many open files.
    pub(super) fn offered(&self) -> io::Result<Vec<Offered>> {
        let offered = self.open.iter().map(|bound| {
            Ok(Offered {
                place: bound.place(),
                socket: bound.passed.try_clone()?,
            })
        });
        offered.collect()
    }

    /// As [`stop`](Self::stop), but leaves alone what is queued on the sockets that went to a
    /// successor.
    pub(super) fn hand_over(&mut self, adopted: &[Place]) {
        for bound in self.open.drain(..) {
            if adopted.contains(&bound.place()) {
                // An error is an accepting that has ended by itself.
                bound.stop.send(()).ok();
            }
        }
        self.workers = Arc::new([]);
    }

    /// Stops accepting and lets the workers end: theirs are the only other ends of their queues.
    pub(super) fn stop(&mut self) {
        self.open.clear();
        self.workers = Arc::new([]);
    }
}

/// The socket of a listener: the one that was opened for it, or a new one; and another descriptor.
fn listening(
    listener: &Listener,
    adopted: Option<TcpListener>,
) -> Result<(TcpListener, OwnedFd), GatewayError> {
    let bound = adopted.map_or_else(|| bind(listener.address), Ok);
    let socket = bound.map_err(|source| GatewayError::Listener {
        name: listener.name.to_string(),
        address: listener.address.to_string(),
        source,
    })?;
    let passed = socket.try_clone();
    let passed = passed.map_err(system("a listener cannot be passed on"))?;
    // One that was passed on may have been made otherwise.
    let made = socket.set_nonblocking(true);
    made.map_err(system("a listener cannot be watched"))?;
    Ok((socket, passed.into()))
}

impl fmt::Display for Accepting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, bound) in self.open.iter().enumerate() {
            let comma = if nth > 0 { ", " } else { "" };
            write!(f, "{comma}{} {}", bound.name.get(), bound.actual)?;
        }
        Ok(())
    }
}
