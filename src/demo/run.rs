//! What a run of the demo left behind, and the questions that claims and figures ask of it: pure.

use std::time::Duration;

use super::client::Record;
use super::journal::{Journal, Verb};
use super::service::Counts;

/// What the client saw, and what each service wrote down.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    /// Every request in the order in which it was sent: the number is the position.
    pub(crate) records: Vec<Record>,
    /// The journals of the services that answer the client.
    pub(crate) journals: Vec<Journal>,
    /// What those services answer at `/counts` that were never killed.
    pub(crate) counts: Vec<Counts>,
}

impl Run {
    /// The requests sent in `[from, to)`.
    pub(crate) fn sent_within(&self, from: Duration, to: Duration) -> Vec<&Record> {
        within(&self.records, from, to).collect()
    }

    /// The requests of that method.
    pub(crate) fn sent(&self, verb: Verb) -> usize {
        let with = |record: &&Record| record.verb == verb;
        self.records.iter().filter(with).count()
    }

    /// The requests of that method that got no answer.
    pub(crate) fn lost(&self, verb: Verb) -> Vec<&Record> {
        let lost = |record: &&Record| record.verb == verb && record.is_lost();
        self.records.iter().filter(lost).collect()
    }

    /// How many requests reached services more than once, counting over all of them.
    pub(crate) fn received_again(&self, verb: Verb) -> usize {
        let again = |record: &&Record| {
            let times: u32 = self
                .journals
                .iter()
                .map(|journal| journal.received(verb, record.id))
                .sum();
            record.verb == verb && times > 1
        };
        self.records.iter().filter(again).count()
    }
}

/// The requests sent in `[from, to)`.
pub(crate) fn within(
    records: &[Record],
    from: Duration,
    to: Duration,
) -> impl Iterator<Item = &Record> {
    records
        .iter()
        .filter(move |record| record.sent >= from && record.sent < to)
}

/// Whether a service is of a cluster: `east-1` is of `east`.
pub(crate) fn is_of(service: &str, cluster: &str) -> bool {
    service
        .strip_prefix(cluster)
        .is_some_and(|rest| rest.starts_with('-'))
}

/// What part of `records`, in thousandths, was answered by services that `is_one` picks.
pub(crate) fn share(records: &[&Record], is_one: impl Fn(&str) -> bool) -> usize {
    let picked = |record: &&&Record| record.service().is_some_and(&is_one);
    let count = records.iter().filter(picked).count();
    (count * 1000).checked_div(records.len()).unwrap_or(0)
}

/// The latency that `thousandths` of the answered requests stayed within; none if none was.
pub(crate) fn latency(records: &[&Record], thousandths: usize) -> Option<Duration> {
    let mut all: Vec<_> = records
        .iter()
        .filter_map(|record| record.latency())
        .collect();
    all.sort_unstable();
    // Nearest rank: the smallest value that at least that part is not above.
    let rank = (all.len() * thousandths).div_ceil(1000).max(1);
    all.get(rank - 1).copied()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::demo::client::End;
    use crate::demo::journal::{Entry, Event};

    /// Milliseconds.
    pub(crate) fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    impl Run {
        /// A run in which nothing has been sent to these services.
        pub(crate) fn of(services: &[&str]) -> Self {
            Self {
                records: Vec::new(),
                journals: services.iter().map(|name| Journal::new(name)).collect(),
                counts: Vec::new(),
            }
        }

        /// A request sent at `sent` and answered by `service` 100 ms later, which counted it.
        pub(crate) fn answered(mut self, verb: Verb, sent: u64, service: &str) -> Self {
            let id = self.next();
            self.note(verb, id, service, &[Event::Received, Event::Answered]);
            self.records.push(Record {
                id,
                verb,
                sent: ms(sent),
                end: End::Answered {
                    at: ms(sent + 100),
                    service: service.to_owned(),
                    caller: None,
                },
            });
            self
        }

        /// A request sent at `sent` and lost 10 ms later; `reached` had received it.
        pub(crate) fn lost_one(mut self, verb: Verb, sent: u64, reached: Option<&str>) -> Self {
            let id = self.next();
            if let Some(service) = reached {
                self.note(verb, id, service, &[Event::Received]);
            }
            self.records.push(Record {
                id,
                verb,
                sent: ms(sent),
                end: End::Lost {
                    at: ms(sent + 10),
                    why: "status 502".to_owned(),
                },
            });
            self
        }

        pub(crate) fn note(&mut self, verb: Verb, id: u64, service: &str, events: &[Event]) {
            let of = |journal: &&mut Journal| journal.service == service;
            let journal = self.journals.iter_mut().find(of).unwrap();
            for &event in events {
                journal.add(Entry { verb, id, event });
            }
        }

        fn next(&self) -> u64 {
            self.records.len().try_into().unwrap()
        }
    }

    #[test]
    fn shares_are_of_all_that_was_sent_lost_ones_too() {
        let run = Run::of(&["east-1", "west-1"])
            .answered(Verb::Get, 0, "east-1")
            .answered(Verb::Get, 10, "west-1")
            .answered(Verb::Get, 20, "west-1")
            .lost_one(Verb::Get, 30, None)
            .answered(Verb::Get, 1000, "east-1");
        let sent = run.sent_within(ms(0), ms(1000));
        assert_eq!(sent.len(), 4);
        assert_eq!(share(&sent, |name| is_of(name, "west")), 500);
        assert_eq!(share(&sent, |name| is_of(name, "eas")), 0);
        assert_eq!(share(&[], |_| true), 0);
    }

    #[test]
    fn the_latency_is_the_nearest_rank() {
        let mut run = Run::of(&["east-1"]);
        for index in 1..=200 {
            run = run.answered(Verb::Get, 0, "east-1");
            if let Some(End::Answered { at, .. }) = run.records.last_mut().map(|r| &mut r.end) {
                *at = ms(index);
            }
        }
        let all: Vec<_> = run.records.iter().collect();
        assert_eq!(latency(&all, 500), Some(ms(100)));
        assert_eq!(latency(&all, 990), Some(ms(198)));
        assert_eq!(latency(&all, 1000), Some(ms(200)));
        assert_eq!(latency(&[], 500), None);
    }
}
