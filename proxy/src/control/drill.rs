//! A drill: an evacuation for a time, which ends by itself.
//!
//! ```text
//!                .--- renewed ---.
//!                v               |
//! begun --> UnderWay ------------'
//!              |  its time is over | the lease ran out: whoever asked is gone | what was left fails
//!              |  ended by whoever asked | reset by an operator
//!              |  evacuated by an operator: then no traffic comes back
//!              v
//!            Over: traffic comes back as after any evacuation; still told of, until the next
//! ```
//!
//! It is written nowhere: with the process it ends.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use zeugma_core::fleet::{Effect, Evacuation, FleetEvent, LevelMotion};
use zeugma_core::snapshot::ClusterIx;
use zeugma_core::time::Time;

use super::Control;
use super::decided::{Granted, WishError};

/// How long it goes on without a word from whoever asked for it.
pub(crate) const LEASE: Duration = Duration::from_secs(5);
/// The longest one.
pub(crate) const LASTS_MAX: Duration = Duration::from_secs(3600);
/// The clusters whose shares are told; the rest is counted.
const CLUSTERS_MAX: usize = 64;

/// A drill, until the next.
#[derive(Debug)]
pub(super) struct Drill {
    id: u64,
    of: Evacuation,
    /// What it concerns, and the shares of each before it, in the order of their names.
    clusters: Vec<(Arc<str>, Vec<f64>)>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    UnderWay { until: Time, lease: Time },
    Over { why: &'static str },
}

impl Drill {
    pub(super) fn is_under_way(&self) -> bool {
        matches!(self.stage, Stage::UnderWay { .. })
    }

    pub(super) const fn of(&self) -> &Evacuation {
        &self.of
    }

    /// When it ends by itself.
    fn ends(&self) -> Option<Time> {
        match self.stage {
            Stage::UnderWay { until, lease } => Some(until.min(lease)),
            Stage::Over { .. } => None,
        }
    }
}

impl Control {
    /// Begins a drill of what may be evacuated.
    ///
    /// # Errors
    /// Another is under way; it is evacuated already.
    pub(super) fn begin_drill(
        &mut self,
        of: Evacuation,
        lasts: Duration,
        effects: &[Effect],
    ) -> Result<Granted, WishError> {
        if self.decided.drill.as_ref().is_some_and(Drill::is_under_way) {
            return Err(WishError::Drilling);
        }
        let now = self.shared.now();
        if !self.fleet.evacuate(of.clone(), now) {
            return Err(WishError::Already(of));
        }
        let before = |effect: &Effect| effect.levels.iter().map(|level| level.1).collect();
        let mut clusters: Vec<(Arc<str>, Vec<f64>)> = (effects.iter())
            .map(|effect| (Arc::clone(&effect.cluster), before(effect)))
            .collect();
        clusters.sort_by(|a, b| a.0.cmp(&b.0));
        let drill = Drill {
            id: fastrand::u64(..),
            of,
            clusters,
            stage: Stage::UnderWay {
                until: now + lasts,
                lease: now + LEASE,
            },
        };
        let what = drill.of.to_string();
        let seconds = lasts.as_secs_f64();
        self.decided.drill = Some(drill);
        tracing::warn!(
            code = "ZG0450",
            what,
            seconds,
            "drill: all traffic is taken off for a time"
        );
        let data = json!({ "lever": "drill", "what": what, "seconds": seconds });
        self.tell_decided(data, &format!("drill: {what}"));
        Ok(Granted::Done(self.drill_json()))
    }

    /// Says that whoever asked for a drill is there, and how it stands; also of one that is over.
    ///
    /// # Errors
    /// There is no such drill.
    pub(super) fn renew_drill(&mut self, id: u64) -> Result<Granted, WishError> {
        let renewed = self.shared.now() + LEASE;
        let drill = self.decided.drill.as_mut().filter(|drill| drill.id == id);
        let drill = drill.ok_or(WishError::NoDrill)?;
        if let Stage::UnderWay { lease, .. } = &mut drill.stage {
            *lease = renewed;
        }
        Ok(Granted::Done(self.drill_json()))
    }

    /// Ends a drill for whoever asked for it, if it is not over.
    ///
    /// # Errors
    /// There is no such drill.
    pub(super) fn end_drill_of(&mut self, id: u64) -> Result<Granted, WishError> {
        let drill = self.decided.drill.as_ref().filter(|drill| drill.id == id);
        drill.ok_or(WishError::NoDrill)?;
        self.end_drill("asked");
        Ok(Granted::Done(self.drill_json()))
    }

    /// Waits until a drill ends by itself; for ever where none is under way.
    pub(super) fn drill_ends(&self) -> impl Future<Output = ()> + use<> {
        let shared = Arc::clone(&self.shared);
        let at = self.decided.drill.as_ref().and_then(Drill::ends);
        async move {
            match at {
                Some(at) => Self::wait_until(&shared, at).await,
                None => std::future::pending().await,
            }
        }
    }

    /// Ends a drill whose time or lease is over.
    pub(super) fn end_drill_in_time(&mut self) {
        let now = self.shared.now();
        let stage = self.decided.drill.as_ref().map(|drill| &drill.stage);
        let Some(Stage::UnderWay { until, lease }) = stage else {
            return;
        };
        if *until <= now {
            self.end_drill("time");
        } else if *lease <= now {
            self.end_drill("lease");
        }
    }

    /// Ends a drill whose place is missed: nothing else of a route is healthy any more.
    pub(super) fn end_drill_if_missed(&mut self, events: &[FleetEvent]) {
        let drill = self.decided.drill.as_ref();
        let Some(of) = drill.filter(|drill| drill.is_under_way()).map(Drill::of) else {
            return;
        };
        let routes = events.iter().filter_map(|event| {
            let FleetEvent::SharesMoved { route, .. } = event else {
                return None;
            };
            Some(route)
        });
        let routes: BTreeSet<&Arc<str>> = routes.collect();
        if routes
            .into_iter()
            .any(|route| self.fleet.is_missed(of, Some(route)))
        {
            self.end_drill("last-resort");
        }
    }

    /// The same after a configuration was applied, which may have taken away what was left.
    pub(super) fn end_drill_if_missed_anywhere(&mut self) {
        let drill = self.decided.drill.as_ref();
        let of = drill.filter(|drill| drill.is_under_way()).map(Drill::of);
        if of.is_some_and(|of| self.fleet.is_missed(of, None)) {
            self.end_drill("last-resort");
        }
    }

    fn end_drill(&mut self, why: &'static str) {
        let now = self.shared.now();
        let Some(drill) = self
            .decided
            .drill
            .as_mut()
            .filter(|drill| drill.is_under_way())
        else {
            return;
        };
        drill.stage = Stage::Over { why };
        let of = drill.of.clone();
        self.fleet.end_evacuation(&of, now);
        self.tell_drill_over(&of, why);
    }

    /// Whether a drill is under way of this.
    pub(super) fn is_drilled(&self, of: &Evacuation) -> bool {
        let drill = self.decided.drill.as_ref();
        drill.is_some_and(|drill| drill.is_under_way() && drill.of == *of)
    }

    /// Notes that an operator has the evacuation that a drill is go on until a reset.
    pub(super) fn end_drill_by_evacuation(&mut self) {
        let Some(drill) = &mut self.decided.drill else {
            return;
        };
        drill.stage = Stage::Over { why: "evacuated" };
        let of = drill.of.clone();
        self.tell_drill_over(&of, "evacuated");
    }

    /// Notes that an operator ended the evacuation that a drill is.
    pub(super) fn end_drill_by_reset(&mut self) {
        let left: Vec<_> = self.fleet.evacuations().cloned().collect();
        let drill = self
            .decided
            .drill
            .as_mut()
            .filter(|drill| drill.is_under_way());
        let Some(drill) = drill.filter(|drill| !left.contains(&drill.of)) else {
            return;
        };
        drill.stage = Stage::Over { why: "reset" };
        let of = drill.of.clone();
        self.tell_drill_over(&of, "reset");
    }

    fn tell_drill_over(&mut self, of: &Evacuation, why: &'static str) {
        let what = of.to_string();
        if why == "evacuated" {
            tracing::warn!(code = "ZG0451", what, why, "drill over: it is evacuated");
        } else {
            tracing::warn!(code = "ZG0451", what, why, "drill over: traffic comes back");
        }
        let data = json!({ "lever": "drill-over", "what": what, "why": why });
        self.tell_decided(data, &format!("drill over: {what} ({why})"));
    }

    /// How it stands, and the present shares of what it concerns.
    fn drill_json(&self) -> Value {
        let Some(drill) = &self.decided.drill else {
            return Value::Null;
        };
        let now = self.shared.now();
        let published = self.shared.published.load();
        let of = |name: &Arc<str>| {
            let at = drill.clusters.binary_search_by(|(one, _)| one.cmp(name));
            Some(&drill.clusters.get(at.ok()?)?.1)
        };
        let concerned = (published.snapshot.clusters.iter().enumerate())
            .filter_map(|(ix, cluster)| Some((ix, cluster, of(&cluster.name)?)));
        let clusters: Vec<Value> = concerned
            .take(CLUSTERS_MAX)
            .map(|(ix, cluster, before)| {
                let shares = published.shares_of(ClusterIx(ix));
                let is_metered = shares.metered.is_some();
                let levels: Vec<Value> =
                    (cluster.levels.iter().zip(shares.by_health()).enumerate())
                        .map(|(at, (level, share))| {
                            let motion = shares.motions.get(at).copied();
                            json!({
                                "name": &*level.name,
                                "before": before.get(at),
                                "share": share,
                                "placed": shares.levels.get(at).filter(|_| is_metered),
                                "state": motion.unwrap_or(LevelMotion::Settled).label(),
                            })
                        })
                        .collect();
                json!({ "cluster": &*cluster.name, "route": &*cluster.route, "levels": levels })
            })
            .collect();
        let (state, why, left) = match drill.stage {
            Stage::UnderWay { until, .. } => ("under-way", None, until.since(now)),
            Stage::Over { why } => ("over", Some(why), Duration::ZERO),
        };
        json!({
            // As text: not every reader of JSON has numbers of 64 bits.
            "drill": drill.id.to_string(),
            "what": drill.of.to_string(),
            "state": state,
            "why": why,
            "seconds_left": left.as_secs_f64(),
            "lease_seconds": LEASE.as_secs_f64(),
            "clusters_left_out": drill.clusters.len().saturating_sub(CLUSTERS_MAX),
            "clusters": clusters,
        })
    }
}
