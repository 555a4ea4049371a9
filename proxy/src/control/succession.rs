//! The control loop's part of a handover: as the process before, and as the one after.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use zeugma_core::snapshot::Snapshot;

use super::accepting::{Accepting, New};
use super::handover::{Arrival, Asked, Door, HandoverError, Offered, READY, Taking};
use super::inherit::{self, Adopted, Inherited, Place};
use super::last_good::{Keeper, Turn};
use super::reload::{Binding, Configured, NotBound, Reloaded};
use super::{Control, GatewayError, NAMES_WAIT, Stage, WORKERS_WAIT, not_bound, systemd};
use crate::admin;

/// How long it waits for an SVID before it takes over: an agent may need 30 s to find out who asks, and
/// the one before waits for longer.
const SVID_WAIT: Duration = Duration::from_secs(35);
/// How long after that it waits for a configuration, where a control plane gives it and none was kept.
const CONFIGURATION_WAIT: Duration = Duration::from_secs(10);
const _: () = assert!(
    WORKERS_WAIT.as_secs()
        + NAMES_WAIT.as_secs()
        + SVID_WAIT.as_secs()
        + CONFIGURATION_WAIT.as_secs()
        < READY.as_secs(),
    "all that it may wait for, before the one before gives it up"
);

/// What a process will accept on.
pub(super) struct Sockets {
    bound: New,
    /// Those that were opened for it and that it has not bound.
    adopted: Adopted,
    /// Those that the configuration has no place for.
    left: Inherited,
    /// What the gateway before calls those that it will have passed on.
    before: Vec<Place>,
}

impl Sockets {
    /// Those of what a gateway begins with.
    ///
    /// # Errors
    /// The first address of the files that cannot be bound.
    pub(super) fn bind(
        accepting: &Accepting,
        snapshot: &Snapshot,
        arrival: &mut Arrival,
    ) -> Result<Self, GatewayError> {
        Ok(Self {
            bound: bind_first(accepting, snapshot, &mut arrival.adopted)?,
            before: arrival.adopted.before().to_vec(),
            adopted: std::mem::take(&mut arrival.adopted),
            left: std::mem::take(&mut arrival.left),
        })
    }
}

/// Binds all listeners of what a gateway begins with; what was kept of a control plane serves without
/// those that cannot be bound, for nobody can mend it here.
///
/// # Errors
/// The first address of the files that cannot be bound.
fn bind_first(
    accepting: &Accepting,
    snapshot: &Snapshot,
    adopted: &mut Adopted,
) -> Result<New, GatewayError> {
    if !accepting.shared().control_plane.is_kept() {
        return accepting.bind_new(snapshot, adopted);
    }
    let (bound, unbound) = accepting.bind_what_can(snapshot, adopted);
    for (listener, error) in unbound.iter().map(not_bound) {
        tracing::error!(
            code = "ZG0113",
            listener,
            error,
            "a listener of what the control plane gave last cannot be bound; the others serve, and it is tried again"
        );
    }
    Ok(bound)
}

impl Control {
    /// Accepts at once, or from the moment when it takes over. Returns the stage it begins in, and
    /// what comes from the door.
    pub(super) async fn begin(
        &mut self,
        mut starting: Stage,
        mut sockets: Sockets,
        taking: Option<Taking>,
        reloaded: &mut mpsc::Receiver<Reloaded>,
    ) -> (Stage, mpsc::Receiver<Asked>, Result<(), HandoverError>) {
        let Some(taking) = taking else {
            self.accepting.commit(sockets.bound);
            self.open_interfaces();
            return (starting, self.open_door(), Ok(()));
        };
        // The one before serves meanwhile: nobody waits for this one to be ready.
        let pid = taking.pid();
        let prepared = self.prepare(pid, &mut starting, &mut sockets, reloaded);
        let taken = match prepared.await {
            Ok(()) => self.take_over(taking, sockets).await,
            Err(error) => Err(error),
        };
        match taken {
            Ok(()) => (self.become_ready(), self.open_door(), Ok(())),
            Err(error) => {
                tracing::error!(
                    code = "ZG0944",
                    %error,
                    "not taken over: what was accepted meanwhile is served to its end"
                );
                let (_nobody, asked) = mpsc::channel(1);
                (self.drain(), asked, Err(error))
            }
        }
    }

    /// Takes what comes until all is asked that a start asks, and there is what a gateway cannot do
    /// without: else the one before serves better.
    ///
    /// # Errors
    /// An agent gave no SVID in time, or a control plane no configuration.
    async fn prepare(
        &mut self,
        pid: i32,
        starting: &mut Stage,
        sockets: &mut Sockets,
        reloaded: &mut mpsc::Receiver<Reloaded>,
    ) -> Result<(), HandoverError> {
        let mut is_passed_over = false;
        loop {
            // Both keep what they have.
            tokio::select! {
                () = starting.over() => break,
                Some(next) = reloaded.recv() => {
                    is_passed_over |= self.take_before(next, starting, sockets);
                }
            }
        }
        let mut until = Instant::now() + SVID_WAIT;
        let mut had_svid = false;
        while !self.has_all() {
            if self.has_svid() && !std::mem::replace(&mut had_svid, true) {
                until = Instant::now() + CONFIGURATION_WAIT;
            }
            let next = tokio::time::timeout_at(until, reloaded.recv()).await;
            let Ok(Some(next)) = next else {
                return Err(if self.has_svid() {
                    HandoverError::NoConfiguration { pid }
                } else {
                    HandoverError::NoSvid { pid }
                });
            };
            is_passed_over |= self.take_before(next, starting, sockets);
        }
        if is_passed_over {
            self.again.notify_one();
        }
        Ok(())
    }

    /// Takes what a reload brought before anything is accepted; whether it has to come again.
    fn take_before(
        &mut self,
        mut reloaded: Reloaded,
        starting: &Stage,
        sockets: &mut Sockets,
    ) -> bool {
        let (config, answer) = (reloaded.config.take(), reloaded.answer.take());
        reloaded.bind = None;
        self.apply(reloaded, starting);
        let Some(config) = config else {
            return false;
        };
        if self.shared.settings.control_plane.is_none() {
            // The sockets are those of the files that it began with.
            return true;
        }
        let configured = self.configure_before(config, sockets);
        if let Some(answer) = answer {
            // An error is a reader that has ended with the process.
            answer.send(configured).ok();
        }
        false
    }

    /// Has a configuration serve from the moment when this process takes over.
    ///
    /// # Errors
    /// The listeners that cannot be bound; nothing has changed then.
    fn configure_before(
        &mut self,
        (snapshot, resources, _, binding): Configured,
        sockets: &mut Sockets,
    ) -> Result<(), NotBound> {
        let places = inherit::places(&self.shared.settings, &snapshot);
        let (ours, left) = std::mem::take(&mut sockets.left).assign(&places);
        sockets.left = left;
        sockets.before.extend_from_slice(ours.before());
        sockets.adopted.extend(ours);
        let before = std::mem::take(&mut sockets.bound);
        let (bound, unbound) = (self.accepting).bind_anew(&snapshot, before, &mut sockets.adopted);
        sockets.bound = bound;
        if binding == Binding::All && !unbound.is_empty() {
            // It comes again without them.
            return Err(unbound.iter().map(not_bound).collect());
        }
        self.publish_next(Arc::new(snapshot), resources);
        self.has_configuration = true;
        Ok(())
    }

    /// Serves probes, metrics and the admin interface.
    fn open_interfaces(&mut self) {
        if let Some(interfaces) = self.interfaces.take() {
            let (shared, passed_on) = (Arc::clone(&self.shared), self.passed_on.clone());
            self.beside
                .spawn_local(admin::serve(interfaces, shared, passed_on));
        }
    }

    /// Ends the interfaces; those that were passed on answer first what was asked of this process.
    pub(super) async fn end_interfaces(&mut self) {
        if self.passed_on.is_cancelled() {
            let answered = async { while self.beside.join_next().await.is_some() {} };
            // Late: a caller that reads nothing.
            drop(tokio::time::timeout(admin::LAST_WORDS, answered).await);
        }
    }

    /// Lets successors ask from now on.
    fn open_door(&mut self) -> mpsc::Receiver<Asked> {
        let (ask, asked) = mpsc::channel(1);
        let name = &self.shared.settings.name;
        match self.state.as_ref().map(|state| Door::open(state, name)) {
            Some(Ok(door)) => {
                self.beside.spawn_local(door.serve(ask));
            }
            Some(Err(error)) => {
                tracing::warn!(code = "ZG0945", %error, "no other process can take over from this one");
            }
            // It was told of when the folder could not be had.
            None => {}
        }
        asked
    }

    /// Accepts on what was taken over, and becomes the gateway.
    ///
    /// # Errors
    /// The one before did not say that it stops.
    async fn take_over(
        &mut self,
        taking: Taking,
        Sockets { bound, before, .. }: Sockets,
    ) -> Result<(), HandoverError> {
        let pid = taking.pid();
        // The ports of the probes are already shared: whoever asks there is answered the same.
        self.shared.ready.store(true, Ordering::Release);
        self.accepting.commit(bound);
        self.open_interfaces();
        let sockets = before.len();
        taking.finish(before).await?;
        if let Some(keeper) = &self.keeper {
            keeper.turn(Turn::Now);
        }
        self.take_decided();
        tracing::info!(
            code = "ZG0941",
            pid,
            sockets,
            "taken over from the gateway before"
        );
        Ok(())
    }

    /// Answers what the door asks.
    pub(super) fn asked(&mut self, asked: Asked, stage: Stage) -> Stage {
        match asked {
            Asked::Offer { pid, answer } => {
                let offered = self.offer(&stage);
                if let Ok(offered) = &offered {
                    let sockets = offered.len();
                    tracing::info!(
                        code = "ZG0942",
                        pid,
                        sockets,
                        "a successor asks for the sockets"
                    );
                    self.handing = Some(pid);
                }
                // Nobody listens where the successor has gone; then it is told of as abandoned.
                drop(answer.send(offered));
                stage
            }
            Asked::Last { answer } => {
                self.give_over(answer);
                stage
            }
            Asked::Abandoned { pid, why } => {
                self.handing = None;
                self.decided.keeping.take();
                if let Some(keeper) = &self.keeper {
                    keeper.turn(Turn::Now);
                }
                tracing::warn!(code = "ZG0943", pid, error = %why, "not handed over; serving on");
                if let Some(config) = self.waiting.take() {
                    self.configure_late(config, &stage);
                }
                stage
            }
            Asked::Done { pid, adopted } => {
                self.handing = None;
                tracing::info!(
                    code = "ZG0942",
                    "handing over to pid {pid}: {} sockets",
                    adopted.len()
                );
                let stage = self.hand_over(pid, &adopted, stage);
                if let Some(config) = self.waiting.take() {
                    self.configure_late(config, &stage);
                }
                stage
            }
        }
    }

    /// Writes nothing more from here on, and tells when the last is written.
    fn give_over(&mut self, answer: oneshot::Sender<()>) {
        let (told, written) = oneshot::channel();
        self.decided.keeping.lend(told);
        let kept = self.keeper.as_ref().map(Keeper::give_over);
        self.beside.spawn_local(async move {
            // Both wait for this machine's disk; who asked gives it up in time.
            if let Some(kept) = kept {
                kept.await;
            }
            if written.await.is_ok() {
                answer.send(()).ok();
            }
        });
    }

    fn offer(&self, stage: &Stage) -> Result<Vec<Offered>, String> {
        if matches!(stage, Stage::Draining { .. }) {
            let why = "it drains and its listeners are closed; start again when it has ended";
            return Err(why.to_owned());
        }
        let interfaces = self.passed.iter().map(|offered| {
            Ok(Offered {
                place: offered.place.clone(),
                socket: offered.socket.try_clone()?,
            })
        });
        let all = self.accepting.offered().and_then(|listeners| {
            let all = listeners.into_iter().map(Ok).chain(interfaces);
            all.collect::<io::Result<Vec<_>>>()
        });
        all.map_err(|error| format!("its sockets cannot be passed on: {error}"))
    }

    /// The sockets are the successor's: no more of them here, and it needs no `delay`, since the
    /// successor is ready already.
    fn hand_over(&mut self, pid: i32, adopted: &[Place], stage: Stage) -> Stage {
        systemd::main_pid(pid);
        self.passed_on.cancel();
        self.passed.clear();
        // Not unlocked, which would unlock the successor's too: closed.
        self.state = None;
        if let Some(keeper) = self.keeper.take() {
            // The control plane's side has it too.
            keeper.turn(Turn::Over);
        }
        self.decided.keeping.give_up();
        self.accepting.hand_over(adopted);
        match stage {
            // Still ready, if anybody is: who asked here a moment ago means them both.
            Stage::Starting { .. }
            | Stage::Awaiting { .. }
            | Stage::Serving
            | Stage::Leaving { .. } => self.end_open(),
            Stage::Draining { .. } => stage,
        }
    }
}
