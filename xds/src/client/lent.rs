//! A session, which is lent to another thread while it takes much at once: to read and to pack ten thousand
//! services takes hundreds of milliseconds, and who drives a client has others to serve meanwhile.

use std::collections::{BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio::task::JoinHandle;
use zeugma_core::time::Time;

use super::Told;
use super::holdings::Key;
use crate::session::client::{Action, Event, Session};

/// So many resources are much, and so many bytes of them.
const MANY: usize = 512;
const BYTES: usize = 1 << 20;

/// Something that happened, when, and what was drawn.
type Happened = (Event, Time, f64);

/// What follows, in the order in which it happened.
#[derive(Debug, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all of them are the large one"
)]
pub(super) enum Turn {
    Act(Action),
    /// Who drives the client knew it before the session did.
    Tell(Told),
}

/// A session.
#[derive(Debug)]
pub(super) struct Lent {
    /// Not there while it is away, and after it failed until that was said.
    session: Option<Session>,
    away: Option<JoinHandle<Back>>,
    failed: Option<Session>,
    /// What happened meanwhile.
    later: VecDeque<Later>,
}

#[derive(Debug)]
struct Later {
    /// What is told before it.
    told: Option<Told>,
    happened: Happened,
    /// How many it is about, if it does not say so itself.
    resources: usize,
}

/// What it came back with; no actions where it could not take what it was given.
type Back = (Session, Option<Vec<Action>>);

/// It could not take what it was given, for a defect of its own.
#[derive(Debug)]
pub(super) struct Failed;

impl Lent {
    pub(super) const fn new(session: Session) -> Self {
        Self {
            session: Some(session),
            away: None,
            failed: None,
            later: VecDeque::new(),
        }
    }

    /// The session, unless it is away.
    pub(super) const fn at_hand(&self) -> Option<&Session> {
        self.session.as_ref()
    }

    /// What it handed on and was told no verdict of, if there is such a thing and it is at hand.
    pub(super) fn undone(&mut self) -> Option<BTreeSet<Key>> {
        self.session.as_mut()?.under_way()
    }

    /// What is to be done about something; nothing yet where it is away, or goes for it. `resources`: how many
    /// it is about, if it does not say so itself; `told`: what is to be told of it first.
    pub(super) fn handle(
        &mut self,
        told: Option<Told>,
        happened: Happened,
        resources: usize,
    ) -> Vec<Turn> {
        self.later.push_back(Later {
            told,
            happened,
            resources,
        });
        self.go_on()
    }

    /// Takes what happened, in order, until it goes for something or fails.
    pub(super) fn go_on(&mut self) -> Vec<Turn> {
        let mut turns = Vec::new();
        while let Some(session) = self.session.take() {
            let Some(later) = self.later.pop_front() else {
                self.session = Some(session);
                break;
            };
            turns.extend(later.told.map(Turn::Tell));
            let happened = later.happened;
            if later.resources >= MANY || is_much(&happened.0) {
                self.away = Some(tokio::task::spawn_blocking(move || {
                    handled(session, happened)
                }));
                break;
            }
            match handled(session, happened) {
                (session, Some(actions)) => {
                    turns.extend(actions.into_iter().map(Turn::Act));
                    self.session = Some(session);
                }
                (session, None) => self.failed = Some(session),
            }
        }
        turns
    }

    /// What is to be done once it is back; for ever where it is not away. Where it failed, what happened
    /// meanwhile is taken by the next [`go_on`](Self::go_on).
    ///
    /// # Cancel safety
    /// Safe: a task keeps what it has.
    pub(super) async fn back(&mut self) -> Result<Vec<Turn>, Failed> {
        if let Some(session) = self.failed.take() {
            self.session = Some(session);
            return Err(Failed);
        }
        let back = match &mut self.away {
            Some(away) => away.await,
            None => std::future::pending().await,
        };
        self.away = None;
        let Ok((session, actions)) = back else {
            // The process ends.
            return std::future::pending().await;
        };
        self.session = Some(session);
        let actions = actions.ok_or(Failed)?;
        let mut turns: Vec<Turn> = actions.into_iter().map(Turn::Act).collect();
        turns.extend(self.go_on());
        Ok(turns)
    }

    /// Has it take something, and fail at the end of that.
    #[cfg(test)]
    pub(super) fn fail_at(&mut self, (event, now, draw): Happened) {
        if let Some(mut session) = self.session.take() {
            drop(session.handle(event, now, draw));
            self.failed = Some(session);
        }
    }
}

/// What a session does about something; a panic is told by the hook.
fn handled(mut session: Session, (event, now, draw): Happened) -> Back {
    let handle = AssertUnwindSafe(|| session.handle(event, now, draw));
    let actions = catch_unwind(handle).ok();
    (session, actions)
}

fn is_much(event: &Event) -> bool {
    match event {
        Event::Delta(response) => {
            let all = response.resources.iter();
            let bodies = all.filter_map(|one| one.resource.as_ref());
            response.resources.len() >= MANY
                || response.removed_resources.len() >= MANY
                || bodies.map(|body| body.value.len()).sum::<usize>() >= BYTES
        }
        Event::Full(response) => {
            let bodies = response.resources.iter();
            response.resources.len() >= MANY
                || bodies.map(|body| body.value.len()).sum::<usize>() >= BYTES
        }
        Event::Opened | Event::Closed(_) | Event::Applied(_) | Event::Tick => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::{Any, core, discovery};
    use crate::session::Kind;
    use crate::session::client::{Ended, Limits, Notice};

    fn open() -> Lent {
        let session = Session::new(core::Node::default(), 1, Limits::default(), []);
        let mut lent = Lent::new(session);
        for event in [Event::Tick, Event::Opened] {
            assert!(!lent.handle(None, (event, Time::ZERO, 0.0), 0).is_empty());
        }
        lent
    }

    fn delta(resources: usize, bytes: usize) -> Event {
        let resource = discovery::Resource {
            resource: Some(Any {
                value: vec![0; bytes],
                ..Default::default()
            }),
            ..Default::default()
        };
        Event::Delta(discovery::DeltaDiscoveryResponse {
            type_url: Kind::Cluster.type_url(),
            nonce: "n".to_owned(),
            resources: vec![resource; resources],
            ..Default::default()
        })
    }

    /// What broke: to pack a large response held up whoever drove the client.
    #[tokio::test]
    async fn what_is_much_is_taken_on_another_thread_and_what_happens_meanwhile_after_it() {
        for (resources, bytes, is_much) in [
            (MANY - 1, 1, false),
            (MANY, 1, true),
            (2, BYTES / 2 - 1, false),
            (2, BYTES / 2, true),
        ] {
            let mut lent = open();
            let now = Time::ZERO;
            let actions = lent.handle(None, (delta(resources, bytes), now, 0.0), 0);
            assert_eq!(lent.at_hand().is_none(), is_much, "{resources} {bytes}");
            assert_eq!(actions.is_empty(), is_much);
            if !is_much {
                continue;
            }
            let lost = || Told::Lost(0, "it ended".to_owned());
            let ended = (Event::Closed(Ended::Otherwise), now, 0.0);
            assert_eq!(lent.handle(Some(lost()), ended, 0), []);
            let turns = lent.back().await.unwrap();
            assert!(lent.at_hand().is_some());
            // It answered, and then it ended: the next stream is opened at once, as is drawn.
            let connected = Action::Tell(Notice::Connected(0));
            assert_eq!(turns.first(), Some(&Turn::Act(connected)));
            assert!(turns.contains(&Turn::Tell(lost())), "{turns:?}");
            assert!(
                matches!(turns.last(), Some(Turn::Act(Action::Open(0, _)))),
                "{turns:?}"
            );
        }
    }

    #[tokio::test]
    async fn it_goes_again_for_what_is_much_of_what_happened_meanwhile() {
        let mut lent = open();
        for _ in 0..3 {
            assert_eq!(lent.handle(None, (delta(MANY, 1), Time::ZERO, 0.0), 0), []);
        }
        for is_at_hand in [false, false, true] {
            assert!(lent.back().await.is_ok());
            assert_eq!(lent.at_hand().is_some(), is_at_hand);
        }
    }

    #[tokio::test]
    async fn what_is_about_much_is_so_later_too() {
        let mut lent = open();
        lent.handle(None, (delta(MANY, 1), Time::ZERO, 0.0), 0);
        lent.handle(None, (Event::Tick, Time::ZERO, 0.0), MANY);
        for is_at_hand in [false, true] {
            assert!(lent.back().await.is_ok());
            assert_eq!(lent.at_hand().is_some(), is_at_hand);
        }
    }

    #[tokio::test]
    async fn what_happened_before_a_failure_is_taken_before_what_follows_of_it() {
        let mut lent = open();
        let session = lent.session.take().unwrap();
        lent.away = Some(tokio::task::spawn_blocking(move || (session, None)));
        let closed = |ended| ((Event::Closed(ended), Time::ZERO, 0.0), 0);
        let (happened, about) = closed(Ended::Otherwise);
        assert_eq!(lent.handle(None, happened, about), []);
        assert!(lent.back().await.is_err());
        assert_eq!(lent.later.len(), 1);
        let actions = lent.go_on();
        assert!(lent.later.is_empty() && !actions.is_empty(), "{actions:?}");
    }
}
