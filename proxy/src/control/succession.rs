//! The control loop's part of a handover: as the process before, and as the one after.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;

use super::accepting::New;
use super::handover::{Asked, Door, HandoverError, Offered, READY, Taking};
use super::inherit::Place;
use super::reload::Reloaded;
use super::{Control, NAMES_WAIT, Stage, WORKERS_WAIT, systemd};
use crate::admin;

/// How long it waits for an SVID before it takes over: an agent may need 30 s to find out who asks, and
/// the one before waits for longer.
const SVID_WAIT: Duration = Duration::from_secs(35);
const _: () = assert!(
    WORKERS_WAIT.as_secs() + NAMES_WAIT.as_secs() + SVID_WAIT.as_secs() < READY.as_secs(),
    "all that it may wait for, before the one before gives it up"
);

impl Control {
    /// Accepts at once, or from the moment when it takes over. Returns the stage it begins in, and
    /// what comes from the door.
    pub(super) async fn begin(
        &mut self,
        mut starting: Stage,
        bound: New,
        (taking, before): (Option<Taking>, Vec<Place>),
        reloaded: &mut mpsc::Receiver<Reloaded>,
    ) -> (Stage, mpsc::Receiver<Asked>, Result<(), HandoverError>) {
        let Some(taking) = taking else {
            self.accepting.commit(bound);
            self.open_interfaces();
            return (starting, self.open_door(), Ok(()));
        };
        // The one before serves meanwhile: nobody waits for this one to be ready.
        starting.over().await;
        let pid = taking.pid();
        let taken = match self.await_svid_of(pid, &starting, reloaded).await {
            Ok(()) => self.take_over(taking, bound, before).await,
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

    /// Waits for the first SVID: without one, the gateway before serves better.
    ///
    /// # Errors
    /// A Workload API gave none in time.
    async fn await_svid_of(
        &mut self,
        pid: i32,
        stage: &Stage,
        reloaded: &mut mpsc::Receiver<Reloaded>,
    ) -> Result<(), HandoverError> {
        let until = tokio::time::Instant::now() + SVID_WAIT;
        let mut is_passed_over = false;
        while !self.has_svid() {
            let next = tokio::time::timeout_at(until, reloaded.recv()).await;
            let Ok(Some(mut next)) = next else {
                return Err(HandoverError::NoSvid { pid });
            };
            // The sockets are those of the configuration that it began with.
            is_passed_over |= next.config.take().is_some();
            (next.answer, next.bind) = (None, None);
            self.apply(next, stage);
        }
        if is_passed_over {
            self.again.notify_one();
        }
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
        bound: New,
        before: Vec<Place>,
    ) -> Result<(), HandoverError> {
        let pid = taking.pid();
        // The ports of the probes are already shared: whoever asks there is answered the same.
        self.shared.ready.store(true, Ordering::Release);
        self.accepting.commit(bound);
        self.open_interfaces();
        let sockets = before.len();
        taking.finish(before).await?;
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
                self.decided.keeping.lend(answer);
                stage
            }
            Asked::Abandoned { pid, why } => {
                self.handing = None;
                self.decided.keeping.take();
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
        self.keeper = None;
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
