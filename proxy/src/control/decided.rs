//! What operators decide of failover: what traffic is taken off, and that it may come back. What they
//! have decided outlives the process.
//!
//! `<stateDir>/<name>/failover` holds the evacuations, and the levels that wait for a reset.

use std::collections::VecDeque;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{Notify, oneshot};
use zeugma_core::fleet::{Effect, Evacuation, Fleet, Kept};
use zeugma_core::locality::Locality;
use zeugma_core::snapshot::Snapshot;
use zeugma_core::time::Time;

use super::Control;
use crate::state::{self, State};

/// Its name in the gateway's folder.
const FILE: &str = "failover";
/// The largest one that is read.
const FILE_BYTES_MAX: u64 = 8 << 20;
/// Wishes that wait for the control thread at once.
const WISHES_MAX: usize = 16;

/// What is asked of the control thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wish {
    /// To take all traffic off.
    Evacuate(Evacuation, Care),
    /// To end that.
    End(Evacuation),
    /// To let traffic of this route come back.
    Reset(Arc<str>),
}

/// How an evacuation is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Care {
    /// Only what it would do is asked.
    DryRun,
    /// No route may lose everything by it.
    Careful,
    /// Whatever it does.
    Force,
}

/// Why a wish is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WishError {
    #[error("no endpoint is of {0}")]
    Nothing(Evacuation),
    #[error(
        "nothing healthy would be left of {}; repeat it with `force` if that is meant",
        .0.join(", ")
    )]
    LeavesNothing(Vec<String>),
    #[error("{0} is evacuated already, or so much is that no more is kept")]
    Already(Evacuation),
    #[error("{0} is not evacuated")]
    NotEvacuated(Evacuation),
    #[error("there is no route {0}")]
    NoRoute(Arc<str>),
    #[error("another gateway takes over from this one; ask it")]
    HandingOver,
    #[error("the gateway is busy or ends; ask again")]
    Busy,
}

type Answer = Result<Value, WishError>;

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

/// One evacuation, as it is written and told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Written {
    #[serde(flatten)]
    of: Place,
    /// RFC 3339.
    since: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Place {
    Locality(String),
    Peer(String),
    Backend { route: String, name: String },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct WrittenLevel {
    cluster: String,
    level: String,
    damped: f64,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
struct WrittenFile {
    evacuations: Vec<Written>,
    #[serde(default)]
    kept: Vec<WrittenLevel>,
}

/// What operators have decided, beside what the fleet makes of it.
#[derive(Debug, Default)]
pub(super) struct Decided {
    evacuations: Vec<(Evacuation, String)>,
}

impl Decided {
    /// A fleet of `snapshot`, told what was decided before the gateway started.
    pub(super) fn begin(state: Option<&State>, snapshot: &Snapshot) -> (Fleet, Self) {
        let mut fleet = Fleet::new();
        fleet.reconcile(snapshot, Time::ZERO);
        let read = state.map(|state| read(&state.path(FILE)));
        let written = match read {
            None => WrittenFile::default(),
            Some(Ok(written)) => written,
            Some(Err(error)) => {
                tracing::warn!(
                    code = "ZG0439",
                    %error,
                    "what operators decided of failover cannot be read: nothing is evacuated"
                );
                WrittenFile::default()
            }
        };
        let mut decided = Self::default();
        for one in written.evacuations {
            let Some(evacuation) = one.of.parsed() else {
                continue;
            };
            if fleet.evacuate(evacuation.clone(), Time::ZERO) {
                decided.evacuations.push((evacuation, one.since));
            }
        }
        let kept: Vec<Kept> = (written.kept.into_iter())
            .map(|level| Kept {
                cluster: level.cluster.into(),
                level: level.level.into(),
                damped: level.damped,
            })
            .collect();
        fleet.keep(&kept, Time::ZERO);
        (fleet, decided)
    }

    fn written(&self) -> Vec<Written> {
        let of = |(evacuation, since): &(Evacuation, String)| Written {
            of: Place::of(evacuation),
            since: since.clone(),
        };
        self.evacuations.iter().map(of).collect()
    }

    /// What is told of it.
    pub(super) fn told(&self) -> Value {
        serde_json::to_value(self.written()).unwrap_or_else(|_| json!([]))
    }

    fn keep(&self, state: &State, fleet: &Fleet) -> io::Result<()> {
        let of = |kept: Kept| WrittenLevel {
            cluster: kept.cluster.to_string(),
            level: kept.level.to_string(),
            damped: kept.damped,
        };
        let file = WrittenFile {
            evacuations: self.written(),
            kept: fleet.kept().map(of).collect(),
        };
        state::write(&state.path(""), FILE, &serde_json::to_vec_pretty(&file)?)
    }
}

fn read(path: &Path) -> io::Result<WrittenFile> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(WrittenFile::default()),
        Err(error) => return Err(error),
    };
    let mut text = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

impl Place {
    fn of(evacuation: &Evacuation) -> Self {
        match evacuation {
            Evacuation::Locality(place) => Self::Locality(place.to_string()),
            Evacuation::Peer(name) => Self::Peer(name.to_string()),
            Evacuation::Backend { route, backend } => Self::Backend {
                route: route.to_string(),
                name: backend.to_string(),
            },
        }
    }

    fn parsed(self) -> Option<Evacuation> {
        Some(match self {
            Self::Locality(text) => Evacuation::Locality(Locality::parse(&text).ok()?),
            Self::Peer(name) => Evacuation::Peer(name.into()),
            Self::Backend { route, name } => Evacuation::Backend {
                route: route.into(),
                backend: name.into(),
            },
        })
    }
}

impl Control {
    /// Grants what operators wish.
    pub(super) fn grant_wishes(&mut self) {
        let shared = Arc::clone(&self.shared);
        while let Some((wish, answer)) = shared.admin.levers.failover.take() {
            // Whoever does not wait any more has it granted all the same.
            answer.send(self.grant(wish)).ok();
        }
    }

    fn grant(&mut self, wish: Wish) -> Answer {
        if self.handing.is_some() {
            return Err(WishError::HandingOver);
        }
        let now = self.shared.now();
        let (done, data, answer) = match wish {
            Wish::Evacuate(evacuation, care) => {
                let effects = self.check_evacuation(&evacuation, care)?;
                let told = json!({
                    "evacuation": Place::of(&evacuation),
                    "dryRun": care == Care::DryRun,
                    "clusters": effects.iter().map(effect_json).collect::<Vec<_>>(),
                });
                if care == Care::DryRun {
                    return Ok(told);
                }
                if !self.fleet.evacuate(evacuation.clone(), now) {
                    return Err(WishError::Already(evacuation));
                }
                let what = evacuation.to_string();
                let since = crate::journal::now();
                self.decided.evacuations.push((evacuation, since));
                tracing::warn!(code = "ZG0440", what, "evacuated: all traffic is taken off");
                (
                    format!("evacuated: {what}"),
                    json!({ "lever": "evacuate", "what": what }),
                    told,
                )
            }
            Wish::End(evacuation) => {
                if !self.fleet.end_evacuation(&evacuation, now) {
                    return Err(WishError::NotEvacuated(evacuation));
                }
                let what = evacuation.to_string();
                tracing::info!(code = "ZG0441", what, "reset: traffic comes back");
                (
                    format!("reset: {what}"),
                    json!({ "lever": "reset", "what": what }),
                    json!({ "reset": what }),
                )
            }
            Wish::Reset(route) => {
                let snapshot = &self.shared.published.load().snapshot;
                if !snapshot
                    .services
                    .iter()
                    .any(|service| service.name == route)
                {
                    return Err(WishError::NoRoute(route));
                }
                let released = self.fleet.reset(&route, now);
                tracing::info!(code = "ZG0441", what = %route, released, "reset: traffic comes back");
                (
                    format!("reset: {route}"),
                    json!({ "lever": "reset", "what": &*route, "released": released }),
                    json!({ "reset": &*route, "released": released }),
                )
            }
        };
        let left: Vec<_> = self.fleet.evacuations().cloned().collect();
        (self.decided.evacuations).retain(|(evacuation, _)| left.contains(evacuation));
        let told = self.decided.told();
        self.shared.admin.evacuations.store(Arc::new(told));
        self.shared.admin.journal.add("lever", data);
        self.publish_shares_because(Some(&done));
        let kept = self.keep_decided();
        Ok(with(answer, "kept", kept.into()))
    }

    fn check_evacuation(&self, of: &Evacuation, care: Care) -> Result<Vec<Effect>, WishError> {
        let effects = self.fleet.effect(of);
        if effects.is_empty() {
            return Err(WishError::Nothing(of.clone()));
        }
        let lost = effects.iter().filter(|effect| effect.leaves_nothing);
        let mut lost: Vec<String> = lost.map(|effect| effect.cluster.to_string()).collect();
        lost.dedup();
        if care == Care::Careful && !lost.is_empty() {
            return Err(WishError::LeavesNothing(lost));
        }
        Ok(effects)
    }

    /// Writes down what has been decided; whether it outlives the process.
    pub(super) fn keep_decided(&self) -> bool {
        let Some(state) = &self.state else {
            return false;
        };
        // It is small, and whoever decided is told when it is safe.
        match self.decided.keep(state, &self.fleet) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(
                    code = "ZG0439",
                    %error,
                    "what operators decided of failover cannot be kept: it ends with the process"
                );
                false
            }
        }
    }
}

fn with(mut object: Value, name: &str, value: Value) -> Value {
    if let Some(fields) = object.as_object_mut() {
        fields.insert(name.to_owned(), value);
    }
    object
}

fn effect_json(effect: &Effect) -> Value {
    let level = |(name, before, after): &(Arc<str>, f64, f64)| json!({ "name": &**name, "before": before, "after": after });
    json!({
        "cluster": &*effect.cluster,
        "route": &*effect.route,
        "endpoints": effect.endpoints,
        "levels": effect.levels.iter().map(level).collect::<Vec<_>>(),
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

    #[test]
    fn what_is_written_is_read_again() {
        let file = WrittenFile {
            evacuations: [
                Evacuation::Locality(Locality::parse("eu/eu-1").unwrap()),
                Evacuation::Peer("west".into()),
                Evacuation::Backend {
                    route: "shop/orders".into(),
                    backend: "eu-1".into(),
                },
            ]
            .iter()
            .map(|of| Written {
                of: Place::of(of),
                since: "2026-01-01T00:00:00Z".to_owned(),
            })
            .collect(),
            kept: Vec::new(),
        };
        let text = serde_json::to_string(&file).unwrap();
        assert!(text.contains(r#"{"locality":"eu/eu-1","since":"#), "{text}");
        assert_eq!(serde_json::from_str::<WrittenFile>(&text).unwrap(), file);
    }
}
