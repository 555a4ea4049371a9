//! A session, which is lent to another thread while it takes much at once: to read and to pack ten thousand
//! services takes hundreds of milliseconds, and who drives a client has others to serve meanwhile.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio::task::JoinHandle;
use zeugma_core::time::Time;

use crate::session::client::{Action, Event, Session};

/// So many resources are much, and so many bytes of them.
const MANY: usize = 512;
const BYTES: usize = 1 << 20;

/// Something that happened, when, and what was drawn.
type Happened = (Event, Time, f64);

/// A session.
#[derive(Debug)]
pub(super) struct Lent {
    /// Not there while it is away.
    session: Option<Session>,
    away: Option<JoinHandle<Back>>,
    /// What happened meanwhile.
    later: VecDeque<Happened>,
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
            later: VecDeque::new(),
        }
    }

    /// The session, unless it is away.
    pub(super) const fn at_hand(&self) -> Option<&Session> {
        self.session.as_ref()
    }

    /// What is to be done about something; nothing yet where it is away, or goes for it. `resources`: how many
    /// it is about, if it does not say so itself.
    pub(super) fn handle(&mut self, (event, now, draw): Happened, resources: usize) -> Vec<Action> {
        let is_much = resources >= MANY || is_much(&event);
        match self.session.take() {
            None => {
                self.later.push_back((event, now, draw));
                Vec::new()
            }
            Some(mut session) if is_much => {
                self.away = Some(tokio::task::spawn_blocking(move || {
                    // A panic is told by the hook.
                    let handle = AssertUnwindSafe(|| session.handle(event, now, draw));
                    let actions = catch_unwind(handle).ok();
                    (session, actions)
                }));
                Vec::new()
            }
            Some(mut session) => {
                let actions = session.handle(event, now, draw);
                self.session = Some(session);
                actions
            }
        }
    }

    /// What is to be done once it is back; for ever where it is not away.
    ///
    /// # Cancel safety
    /// Safe: a task keeps what it has.
    pub(super) async fn back(&mut self) -> Result<Vec<Action>, Failed> {
        let back = match &mut self.away {
            Some(away) => away.await,
            None => std::future::pending().await,
        };
        let Ok((session, actions)) = back else {
            // The process ends.
            return std::future::pending().await;
        };
        self.away = None;
        self.session = Some(session);
        let Some(mut actions) = actions else {
            return Err(Failed);
        };
        while self.session.is_some()
            && let Some(happened) = self.later.pop_front()
        {
            actions.extend(self.handle(happened, 0));
        }
        Ok(actions)
    }
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
            assert!(!lent.handle((event, Time::ZERO, 0.0), 0).is_empty());
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
            let actions = lent.handle((delta(resources, bytes), now, 0.0), 0);
            assert_eq!(lent.at_hand().is_none(), is_much, "{resources} {bytes}");
            assert_eq!(actions.is_empty(), is_much);
            if !is_much {
                continue;
            }
            assert_eq!(
                lent.handle((Event::Closed(Ended::Otherwise), now, 0.0), 0),
                []
            );
            let actions = lent.back().await.unwrap();
            assert!(lent.at_hand().is_some());
            // It answered, and then it ended: the next stream is opened at once, as is drawn.
            assert_eq!(actions.first(), Some(&Action::Tell(Notice::Connected(0))));
            assert!(
                matches!(actions.last(), Some(Action::Open(0, _))),
                "{actions:?}"
            );
        }
    }

    #[tokio::test]
    async fn it_goes_again_for_what_is_much_of_what_happened_meanwhile() {
        let mut lent = open();
        for _ in 0..3 {
            assert_eq!(lent.handle((delta(MANY, 1), Time::ZERO, 0.0), 0), []);
        }
        for is_at_hand in [false, false, true] {
            assert!(lent.back().await.is_ok());
            assert_eq!(lent.at_hand().is_some(), is_at_hand);
        }
    }
}
