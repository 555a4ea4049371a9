//! What operators decide of failover: what traffic is taken off, and that it may come back. What they
//! have decided outlives the process, but for a [drill](super::drill).

mod file;

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{Notify, oneshot};
use zeugma_core::fleet::{Effect, Evacuation, Fleet};
use zeugma_core::simulate::Lever;
use zeugma_core::snapshot::Snapshot;
use zeugma_core::time::Time;
use zeugma_xds::suggest;

use self::file::{Keeping, Place, Written, WrittenFile};
use super::Control;
use super::drill::Drill;
use super::handover::Arrival;
use crate::simulation::Ground;

/// Wishes that wait for the control thread at once.
const WISHES_MAX: usize = 16;
/// Names of what there is, in an answer that there is not what was asked for.
const NAMES_MAX: usize = 20;

/// What is asked of the control thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wish {
    /// To take all traffic off.
    Evacuate(Evacuation, Care),
    /// To end that.
    End(Evacuation),
    /// To let traffic of this route come back.
    Reset(Arc<str>),
    /// What a lever would do, which ends after a time where it is a drill.
    Try(Lever, Option<Duration>),
    /// To take all traffic off for a time.
    Drill(Evacuation, Duration),
    /// Whoever asked for this drill is still there.
    Renew(u64),
    /// To end this drill.
    EndDrill(u64),
}

/// How an evacuation is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Care {
    /// No route may lose everything by it.
    Careful,
    /// Whatever it does.
    Force,
}

/// What is answered.
#[derive(Debug)]
pub(crate) enum Granted {
    /// It is done.
    Done(Value),
    /// What is to be played, on another thread.
    Ground(Box<Ground>),
}

/// Why a wish is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WishError {
    #[error("no endpoint is of {0}{help}", help = .1.as_ref().map_or_else(String::new, |help| format!("; {help}")))]
    Nothing(Evacuation, Option<String>),
    #[error(
        "nothing healthy would be left of {}; repeat it with `force` if that is meant",
        .0.join(", ")
    )]
    LeavesNothing(Vec<String>),
    #[error(
        "nothing healthy would be left of {}; a drill never takes the last resort: drill less, or mend \
         what is bad first (`zeugma get routes`)",
        .0.join(", ")
    )]
    DrillLeavesNothing(Vec<String>),
    #[error(
        "{0} is evacuated already, or so much is that no more is kept; `zeugma failover reset` ends that"
    )]
    Already(Evacuation),
    #[error("{0} is not evacuated; `evacuations` in /api/v1/failovers says what is")]
    NotEvacuated(Evacuation),
    #[error("there is no route {0}{help}", help = .1.as_ref().map_or_else(String::new, |help| format!("; {help}")))]
    NoRoute(Arc<str>, Option<String>),
    #[error("a drill is under way, and there is one at a time; wait for its end")]
    Drilling,
    #[error(
        "there is no such drill: it ended with the process before this one, or another was begun since"
    )]
    NoDrill,
    #[error("another gateway takes over from this one; ask it")]
    HandingOver,
    #[error("the gateway is busy or ends; ask again")]
    Busy,
}

pub(crate) type Answer = Result<Granted, WishError>;

/// The wishes that wait.
#[derive(Debug, Default)]
pub(crate) struct Wishes {
    waiting: Mutex<VecDeque<(Wish, oneshot::Sender<Answer>)>>,
    pub(super) told: Notify,
}

impl Wishes {
    /// Asks the control thread, and waits for its answer.
    ///
    /// # Errors
    /// As the control thread says; [`WishError::Busy`] where it is behind or has ended.
    ///
    /// # Cancel safety
    /// The wish is granted though nobody waits for the answer.
    pub(crate) async fn ask(&self, wish: Wish) -> Answer {
        let (answer, answered) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.len() >= WISHES_MAX {
                return Err(WishError::Busy);
            }
            waiting.push_back((wish, answer));
        }
        self.told.notify_one();
        answered.await.unwrap_or(Err(WishError::Busy))
    }

    fn take(&self) -> Option<(Wish, oneshot::Sender<Answer>)> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.pop_front()
    }
}

/// What goes on by itself of what was decided.
#[derive(Debug)]
pub(super) enum Next {
    Written(io::Result<()>),
    /// Something is due by time alone.
    Due,
}

/// What operators have decided, beside what the fleet makes of it.
#[derive(Debug, Default)]
pub(super) struct Decided {
    evacuations: Vec<(Evacuation, String)>,
    /// The last drill.
    pub(super) drill: Option<Drill>,
    pub(super) keeping: Keeping,
}

impl Decided {
    /// A fleet of `snapshot`, told what was decided before the gateway started.
    pub(super) fn begin(arrival: &Arrival, snapshot: &Snapshot) -> (Fleet, Self) {
        let mut fleet = Fleet::new();
        fleet.reconcile(snapshot, Time::ZERO);
        let folder = arrival.state.as_ref().map(|state| state.path(""));
        let written = (folder.as_deref()).map_or_else(WrittenFile::default, WrittenFile::read);
        let mut decided = Self {
            keeping: Keeping::begin(folder, arrival.taking.is_some()),
            ..Self::default()
        };
        decided.take(written, &mut fleet, Time::ZERO);
        (fleet, decided)
    }

    /// Takes what was written in place of what is decided.
    fn take(&mut self, written: WrittenFile, fleet: &mut Fleet, now: Time) {
        let kept = written.kept();
        let evacuations = written.evacuations.into_iter();
        let wanted: Vec<(Evacuation, String)> = evacuations
            .filter_map(|one| Some((one.of.parsed()?, one.since)))
            .collect();
        for (evacuation, _) in std::mem::take(&mut self.evacuations) {
            if wanted.iter().all(|(wanted, _)| *wanted != evacuation) {
                fleet.end_evacuation(&evacuation, now);
            }
        }
        for (evacuation, since) in wanted {
            let is_there = fleet.evacuations().any(|one| *one == evacuation);
            if is_there || fleet.evacuate(evacuation.clone(), now) {
                self.evacuations.push((evacuation, since));
            }
        }
        fleet.keep(&kept, now);
    }

    fn written(&self) -> Vec<Written> {
        let of = |(evacuation, since): &(Evacuation, String)| Written {
            of: Place::of(evacuation),
            since: since.clone(),
        };
        self.evacuations.iter().map(of).collect()
    }

    /// Waits until a file is written, or something is due by time alone.
    ///
    /// # Cancel safety
    /// Safe: state, and a sleep until a fixed moment.
    pub(super) async fn next(&mut self, due: impl Future<Output = ()>) -> Next {
        tokio::select! {
            written = self.keeping.written() => Next::Written(written),
            () = due => Next::Due,
        }
    }

    /// What is told of it.
    pub(super) fn told(&self) -> Value {
        let mut told: Vec<Value> = (self.written().iter())
            .filter_map(|one| serde_json::to_value(one).ok())
            .collect();
        if let Some(drill) = self.drill.as_ref().filter(|drill| drill.is_under_way()) {
            let of = serde_json::to_value(Place::of(drill.of()));
            told.extend(of.ok().map(|of| with(of, "drill", true.into())));
        }
        told.into()
    }
}

impl Control {
    /// Grants what operators wish.
    pub(super) fn grant_wishes(&mut self) {
        let shared = Arc::clone(&self.shared);
        while let Some((wish, answer)) = shared.admin.levers.failover.take() {
            let is_kept = matches!(wish, Wish::Evacuate(..) | Wish::End(_) | Wish::Reset(_));
            // Whoever does not wait any more has it granted all the same.
            match self.grant(wish) {
                Ok(Granted::Done(told)) if is_kept => {
                    self.decided.keeping.tell_when_kept(told, answer);
                }
                granted => drop(answer.send(granted)),
            }
        }
    }

    fn grant(&mut self, wish: Wish) -> Answer {
        // A drill that is under way is no other process's.
        let is_of_drill = matches!(wish, Wish::Renew(_) | Wish::EndDrill(_));
        if self.handing.is_some() && !is_of_drill {
            return Err(WishError::HandingOver);
        }
        match wish {
            Wish::Evacuate(evacuation, care) => self.evacuate(evacuation, care),
            Wish::End(evacuation) => self.end(evacuation),
            Wish::Reset(route) => self.reset(&route),
            Wish::Try(lever, lasts) => self.ground(lever, lasts),
            Wish::Drill(evacuation, lasts) => {
                let (effects, lost) = self.effects(&evacuation)?;
                if lost.is_empty() {
                    self.begin_drill(evacuation, lasts, &effects)
                } else {
                    Err(WishError::DrillLeavesNothing(lost))
                }
            }
            Wish::Renew(id) => self.renew_drill(id),
            Wish::EndDrill(id) => self.end_drill_of(id),
        }
    }

    fn evacuate(&mut self, evacuation: Evacuation, care: Care) -> Answer {
        let (effects, lost) = self.effects(&evacuation)?;
        if care == Care::Careful && !lost.is_empty() {
            return Err(WishError::LeavesNothing(lost));
        }
        let is_drilled = self.is_drilled(&evacuation);
        if !is_drilled && !self.fleet.evacuate(evacuation.clone(), self.shared.now()) {
            return Err(WishError::Already(evacuation));
        }
        let told = json!({
            "evacuation": Place::of(&evacuation),
            "clusters": effects.iter().map(effect_json).collect::<Vec<_>>(),
        });
        let what = evacuation.to_string();
        let since = crate::journal::now();
        self.decided.evacuations.push((evacuation, since));
        if is_drilled {
            self.end_drill_by_evacuation();
        }
        tracing::warn!(code = "ZG0440", what, "evacuated: all traffic is taken off");
        let data = json!({ "lever": "evacuate", "what": what });
        self.tell_decided(data, &format!("evacuated: {what}"));
        Ok(Granted::Done(told))
    }

    fn end(&mut self, evacuation: Evacuation) -> Answer {
        let now = self.shared.now();
        if !self.fleet.end_evacuation(&evacuation, now) {
            return Err(WishError::NotEvacuated(evacuation));
        }
        let what = evacuation.to_string();
        tracing::info!(code = "ZG0441", what, "reset: traffic comes back");
        self.end_drill_by_reset();
        let data = json!({ "lever": "reset", "what": what });
        self.tell_decided(data, &format!("reset: {what}"));
        Ok(Granted::Done(json!({ "reset": what })))
    }

    fn reset(&mut self, route: &Arc<str>) -> Answer {
        self.check_route(route)?;
        let released = self.fleet.reset(route, self.shared.now());
        tracing::info!(code = "ZG0441", what = %route, released, "reset: traffic comes back");
        self.end_drill_by_reset();
        let data = json!({ "lever": "reset", "what": &**route, "released": released });
        self.tell_decided(data, &format!("reset: {route}"));
        let told = json!({ "reset": &**route, "released": released });
        Ok(Granted::Done(told))
    }

    /// How things stand, for whoever plays what a lever would do.
    fn ground(&self, lever: Lever, lasts: Option<Duration>) -> Answer {
        let mut refused = None;
        let mut effects = Vec::new();
        match &lever {
            Lever::Evacuate(evacuation) => {
                let is_there = self.fleet.evacuations().any(|one| one == evacuation);
                // A drill is one for a time, which an operator may have go on.
                if is_there && (lasts.is_some() || !self.is_drilled(evacuation)) {
                    return Err(WishError::Already(evacuation.clone()));
                }
                let (all, lost) = self.effects(evacuation)?;
                if !lost.is_empty() {
                    let error = match lasts {
                        Some(_) => WishError::DrillLeavesNothing(lost),
                        None => WishError::LeavesNothing(lost),
                    };
                    refused = Some(error.to_string());
                }
                effects = all;
            }
            Lever::End(evacuation) => {
                if self.fleet.evacuations().all(|one| one != evacuation) {
                    return Err(WishError::NotEvacuated(evacuation.clone()));
                }
            }
            Lever::Reset(route) => self.check_route(route)?,
        }
        let snapshot = Arc::clone(&self.shared.published.load().snapshot);
        Ok(Granted::Ground(Box::new(Ground {
            snapshot,
            fleet: self.fleet.clone(),
            now: self.shared.now(),
            lever,
            lasts,
            clusters: effects.iter().map(effect_json).collect(),
            refused,
        })))
    }

    fn check_route(&self, route: &Arc<str>) -> Result<(), WishError> {
        let snapshot = &self.shared.published.load().snapshot;
        let mut names = snapshot.services.iter().map(|service| &*service.name);
        if names.clone().any(|name| *name == **route) {
            return Ok(());
        }
        let near = suggest(route, names.by_ref());
        Err(WishError::NoRoute(Arc::clone(route), near))
    }

    /// What an evacuation would do, and the clusters that it would leave nothing.
    fn effects(&self, of: &Evacuation) -> Result<(Vec<Effect>, Vec<String>), WishError> {
        let effects = self.fleet.effect(of);
        if effects.is_empty() {
            return Err(WishError::Nothing(of.clone(), self.what_there_is(of)));
        }
        let lost = effects.iter().filter(|effect| effect.leaves_nothing);
        let mut lost: Vec<String> = lost.map(|effect| effect.cluster.to_string()).collect();
        lost.dedup();
        Ok((effects, lost))
    }

    /// What could have been meant.
    fn what_there_is(&self, of: &Evacuation) -> Option<String> {
        let snapshot = &self.shared.published.load().snapshot;
        let endpoints = || (snapshot.clusters.iter()).flat_map(|cluster| &cluster.endpoints);
        let known: BTreeSet<String> = match of {
            Evacuation::Locality(_) => {
                let places = endpoints().map(|endpoint| endpoint.locality.to_string());
                places.collect()
            }
            Evacuation::Peer(_) => {
                let peers = snapshot.peers.iter().map(|peer| peer.name.to_string());
                peers.collect()
            }
            Evacuation::Backend { route, .. } => {
                let of_route = snapshot.clusters.iter().filter(|one| one.route == *route);
                let mut backends = of_route.flat_map(|cluster| &cluster.endpoints).peekable();
                if backends.peek().is_none() {
                    let names = snapshot.services.iter().map(|service| &*service.name);
                    return suggest(route, names);
                }
                backends.map(|one| one.backend.to_string()).collect()
            }
        };
        let shown: Vec<String> = known.iter().take(NAMES_MAX).cloned().collect();
        (!shown.is_empty()).then(|| format!("there are: {}", shown.join(", ")))
    }

    /// Tells what was decided, `because` of which shares move.
    pub(super) fn tell_decided(&mut self, data: Value, because: &str) {
        let left: Vec<_> = self.fleet.evacuations().cloned().collect();
        (self.decided.evacuations).retain(|(evacuation, _)| left.contains(evacuation));
        let told = self.decided.told();
        self.shared.admin.evacuations.store(Arc::new(told));
        self.shared.admin.journal.add("lever", data);
        self.publish_shares_because(Some(because));
    }

    /// Writes what has been decided, if it is due and nothing is being written. Waits then until a
    /// drill ends by itself, or what could not be written is tried again.
    pub(super) fn write_decided(&mut self) -> impl Future<Output = ()> + use<> {
        if self.decided.keeping.may_write() {
            let file = WrittenFile::of(self.decided.written(), &self.fleet);
            self.decided.keeping.write(file);
        }
        let (drill_ends, again) = (self.drill_ends(), self.decided.keeping.again());
        async {
            tokio::select! {
                () = drill_ends => {}
                () = again => {}
            }
        }
    }

    pub(super) fn go_on_with(&mut self, next: &Next) {
        match next {
            Next::Written(written) => self.decided.keeping.settle(written),
            // What is to be written is when the loop turns.
            Next::Due => self.end_drill_in_time(),
        }
    }

    /// Has what has been decided be written, soon.
    pub(super) fn keep_decided(&mut self) {
        self.decided.keeping.due();
    }

    /// Writes the last of it.
    pub(super) async fn finish_decided(&mut self) {
        let written = self.decided.written();
        let fleet = &self.fleet;
        let last = || WrittenFile::of(written, fleet);
        self.decided.keeping.finish(last).await;
    }

    /// Takes over what the process before has decided, and keeps it from here on.
    pub(super) fn take_decided(&mut self) {
        let Some(folder) = self.decided.keeping.take() else {
            return;
        };
        let written = WrittenFile::read(&folder);
        let now = self.shared.now();
        self.decided.take(written, &mut self.fleet, now);
        let told = self.decided.told();
        self.shared.admin.evacuations.store(Arc::new(told));
        self.publish_shares();
    }
}

fn with(mut object: Value, name: &str, value: Value) -> Value {
    if let Some(fields) = object.as_object_mut() {
        fields.insert(name.to_owned(), value);
    }
    object
}

fn effect_json(effect: &Effect) -> Value {
    let placed = effect.placed.as_ref();
    let level = |(at, (name, before, after)): (usize, &(Arc<str>, f64, f64))| {
        json!({
            "name": &**name,
            "before": before,
            "after": after,
            "placedBefore": placed.map(|(before, _)| before.shares.get(at)),
            "placedAfter": placed.map(|(_, after)| after.shares.get(at)),
        })
    };
    json!({
        "cluster": &*effect.cluster,
        "route": &*effect.route,
        "endpoints": effect.endpoints,
        "levels": effect.levels.iter().enumerate().map(level).collect::<Vec<_>>(),
        "refusedBefore": placed.map(|(before, _)| before.refused),
        "refusedAfter": placed.map(|(_, after)| after.refused),
        "leavesNothing": effect.leaves_nothing,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn wishes_that_nobody_grants_are_bounded() {
        let wishes = Wishes::default();
        let reset = || Wish::Reset("a/b".into());
        for _ in 0..WISHES_MAX {
            let mut asked = Box::pin(wishes.ask(reset()));
            assert!(futures_now(&mut asked).is_none());
        }
        assert!(matches!(wishes.ask(reset()).await, Err(WishError::Busy)));
        let (wish, answer) = wishes.take().unwrap();
        assert_eq!(wish, reset());
        drop(answer);
    }

    /// What a future yields without waiting.
    fn futures_now<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match std::pin::Pin::new(future).poll(&mut context) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        }
    }
}
