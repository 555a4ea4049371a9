//! What traffic teaches about one endpoint: failures in a row, and the share of failures in the
//! last 10 s.

use std::time::Duration;

use crate::slow::TookWindow;
use crate::snapshot::{ErrorRate, Failure, PassiveCheck};
use crate::time::Time;

/// How far back a share of failures looks.
pub const WINDOW: Duration = Duration::from_secs(10);
const SLOTS: usize = 10;

/// An ejection lasts at most so many times as long as the first.
pub const STRIKES_MAX: u32 = 10;

/// Why an endpoint was ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EjectCause {
    /// It could not be reached, so many times in a row or by too large a share: no request can be at
    /// fault.
    Unreachable,
    /// So many failures in a row.
    Consecutive,
    /// Too large a share of failures.
    ErrorRate,
    /// It answers, but later than the others of its level.
    Slow,
}

impl EjectCause {
    /// The word in logs and metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Consecutive => "consecutive",
            Self::ErrorRate => "error-rate",
            Self::Slow => "slow",
        }
    }
}

/// What an outcome is to passive checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// The endpoint answered as it should, or with something that is not counted as a failure.
    Good,
    /// It failed, and answered or broke off: the request may be at fault.
    Bad,
    /// It failed before it saw the request.
    Unreachable,
    /// It says nothing about the endpoint.
    Nothing,
}

/// What `result` is to passive checks that count what `passive.on` names.
#[must_use]
pub fn count(passive: &PassiveCheck, result: Result<(), Failure>) -> Counted {
    let Err(failure) = result else {
        return Counted::Good;
    };
    let listed = passive.on.contains(&failure);
    match failure {
        Failure::Connect if listed => Counted::Unreachable,
        // It reaches us as a 503, or where there is no HTTP as a session that does not come about.
        Failure::NoLocalEndpoint
            if listed
                || passive.on.contains(&Failure::Connect)
                || passive.on.contains(&Failure::Status(503)) =>
        {
            Counted::Unreachable
        }
        _ if listed => Counted::Bad,
        Failure::Status(_) | Failure::Unavailable | Failure::Grpc(_) => Counted::Good,
        Failure::Connect
        | Failure::NoLocalEndpoint
        | Failure::RefusedStream
        | Failure::Reset
        | Failure::Timeout => Counted::Nothing,
    }
}

/// Outcomes of the last 10 s, in slots of one second.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Window {
    /// Made by the first outcome: of ten thousand routes most have none.
    slots: Option<Box<[Slot; SLOTS]>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Slot {
    second: u64,
    requests: u32,
    failures: u32,
}

impl Window {
    /// Counts one outcome.
    pub fn add(&mut self, failed: bool, now: Time) {
        self.add_request(now);
        if failed {
            self.add_failure(now);
        }
    }

    /// Counts a request, whatever comes of it.
    pub fn add_request(&mut self, now: Time) {
        self.add_requests(1, now);
    }

    /// Counts so many requests, whatever comes of them.
    pub fn add_requests(&mut self, times: u32, now: Time) {
        if let Some(slot) = self.slot(now) {
            slot.requests = slot.requests.saturating_add(times);
        }
    }

    /// Counts a failure of a request that was counted.
    pub fn add_failure(&mut self, now: Time) {
        if let Some(slot) = self.slot(now) {
            slot.failures = slot.failures.saturating_add(1);
        }
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "a remainder is below the number of slots"
    )]
    fn slot(&mut self, now: Time) -> Option<&mut Slot> {
        let second = now.since_origin().as_secs();
        let slots = self.slots.get_or_insert_default();
        let slot = &mut slots[usize::try_from(second).unwrap_or_default() % SLOTS];
        // What is told so late is no part of the window any more, and the slot is another second's.
        if slot.second > second {
            return None;
        }
        if slot.second < second {
            *slot = Slot {
                second,
                ..Slot::default()
            };
        }
        Some(slot)
    }

    /// Requests and failures of the last 10 s.
    #[must_use]
    pub fn totals(&self, now: Time) -> (u32, u32) {
        let second = now.since_origin().as_secs();
        self.slots
            .iter()
            .flat_map(|slots| slots.iter())
            .filter(|slot| slot.second + WINDOW.as_secs() > second && slot.second <= second)
            .fold((0, 0), |(requests, failures), slot| {
                (
                    requests.saturating_add(slot.requests),
                    failures.saturating_add(slot.failures),
                )
            })
    }

    /// Whether more than the share of `rate` failed, with enough requests to tell.
    #[must_use]
    pub fn is_over(&self, rate: ErrorRate, now: Time) -> bool {
        let (requests, failures) = self.totals(now);
        requests >= rate.requests.max(1) && f64::from(failures) > f64::from(requests) * rate.over
    }
}

/// What traffic taught about one endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outlier {
    /// Failures since the last good outcome.
    in_a_row: u32,
    /// How many of the latest failures left the request unseen.
    unreachable_in_a_row: u32,
    window: Window,
    /// As `window`, with what left the request unseen as the only failures.
    unreachable: Window,
    /// How long its answers took; made by the first, where it is asked for.
    pub(crate) took: Option<Box<TookWindow>>,
    ejected: Option<Ejection>,
    /// Ejections that are not forgiven.
    strikes: u32,
    /// Since when it has been in again.
    readmitted: Option<Time>,
}

/// An ejection under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ejection {
    /// When it began.
    pub since: Time,
    /// When it ends; with the endpoint on trial, when there is another.
    pub until: Time,
    /// Why it is.
    pub cause: EjectCause,
}

impl Outlier {
    /// Counts an outcome; returns why the endpoint should be ejected, if it should.
    #[must_use]
    pub fn record(
        &mut self,
        counted: Counted,
        passive: &PassiveCheck,
        now: Time,
    ) -> Option<EjectCause> {
        match counted {
            Counted::Nothing => return None,
            Counted::Good => {
                self.succeeded(1, now);
                return None;
            }
            Counted::Bad | Counted::Unreachable => {}
        }
        self.window.add(true, now);
        self.unreachable.add(counted == Counted::Unreachable, now);
        if self.ejected.is_some() {
            return None;
        }
        self.in_a_row = self.in_a_row.saturating_add(1);
        self.unreachable_in_a_row = match counted {
            Counted::Unreachable => self.unreachable_in_a_row.saturating_add(1),
            Counted::Good | Counted::Bad | Counted::Nothing => 0,
        };
        let limit = passive.consecutive;
        let over =
            |window: &Window| (passive.error_rate).is_some_and(|rate| window.is_over(rate, now));
        if (limit > 0 && self.unreachable_in_a_row >= limit) || over(&self.unreachable) {
            return Some(EjectCause::Unreachable);
        }
        if limit > 0 && self.in_a_row >= limit {
            return Some(EjectCause::Consecutive);
        }
        over(&self.window).then_some(EjectCause::ErrorRate)
    }

    /// Counts so many good outcomes, as [`record`](Self::record) would one after the other.
    pub fn succeeded(&mut self, times: u32, now: Time) {
        self.window.add_requests(times, now);
        self.unreachable.add_requests(times, now);
        self.in_a_row = 0;
        self.unreachable_in_a_row = 0;
    }

    /// The ejection under way.
    #[must_use]
    pub const fn ejection(&self) -> Option<Ejection> {
        self.ejected
    }

    /// As [`ejection`](Self::ejection).
    pub(crate) const fn ejection_mut(&mut self) -> Option<&mut Ejection> {
        self.ejected.as_mut()
    }

    /// Ejects the endpoint: the first time for `eject`, and for as much longer each time, up to
    /// [`STRIKES_MAX`]. Each such time that it is in again forgives one.
    pub fn eject(&mut self, cause: EjectCause, eject: Duration, now: Time) -> Ejection {
        let well = self.readmitted.take().map(|at| now.since(at).as_nanos());
        let forgiven = well.unwrap_or_default() / eject.as_nanos().max(1);
        let forgiven = u32::try_from(forgiven).unwrap_or(u32::MAX);
        self.strikes = (self.strikes.saturating_sub(forgiven) + 1).min(STRIKES_MAX);
        let ejection = Ejection {
            since: now,
            until: now + eject * self.strikes,
            cause,
        };
        self.ejected = Some(ejection);
        ejection
    }

    /// Ends an ejection. What led to it is forgotten, so that the endpoint is judged anew; how often
    /// it was out is not.
    pub fn readmit(&mut self, now: Time) {
        *self = Self {
            strikes: self.strikes,
            readmitted: Some(now),
            ..Self::default()
        };
    }

    /// Has the next failure be the last of as many in a row as eject it, `limit`.
    pub(crate) fn watch(&mut self, limit: u32) {
        self.in_a_row = limit.saturating_sub(1);
    }

    /// Forgets how often it was out: it was not to blame.
    pub fn forgive(&mut self) {
        (self.strikes, self.readmitted) = (0, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::cluster;

    fn at(seconds: u64) -> Time {
        Time::from_origin(Duration::from_secs(seconds))
    }

    fn passive() -> PassiveCheck {
        cluster(&[&["a"]]).policy.passive.clone()
    }

    #[test]
    fn failures_in_a_row_count_and_a_good_outcome_starts_anew() {
        let passive = passive();
        let mut outlier = Outlier::default();
        for _ in 0..4 {
            assert_eq!(outlier.record(Counted::Bad, &passive, at(0)), None);
        }
        assert_eq!(outlier.record(Counted::Nothing, &passive, at(0)), None);
        assert_eq!(
            outlier.record(Counted::Bad, &passive, at(0)),
            Some(EjectCause::Consecutive)
        );
        assert_eq!(outlier.record(Counted::Good, &passive, at(0)), None);
        assert_eq!(outlier.record(Counted::Bad, &passive, at(0)), None);
    }

    #[test]
    fn only_a_row_of_unreachables_is_unreachable() {
        let passive = passive();
        let mut outlier = Outlier::default();
        for counted in [Counted::Unreachable; 4] {
            assert_eq!(outlier.record(counted, &passive, at(0)), None);
        }
        let mut mixed = outlier.clone();
        assert_eq!(
            outlier.record(Counted::Unreachable, &passive, at(0)),
            Some(EjectCause::Unreachable)
        );
        assert_eq!(
            mixed.record(Counted::Bad, &passive, at(0)),
            Some(EjectCause::Consecutive)
        );
    }

    #[test]
    fn a_share_of_failures_is_judged_over_enough_requests_of_ten_seconds() {
        let passive = PassiveCheck {
            consecutive: 0,
            ..passive()
        };
        let mut outlier = Outlier::default();
        // 9 good and 9 bad, then a 19th and a 20th bad one: 11 of 20 is over 50 %.
        for _ in 0..9 {
            assert_eq!(outlier.record(Counted::Good, &passive, at(5)), None);
            assert_eq!(outlier.record(Counted::Bad, &passive, at(5)), None);
        }
        assert_eq!(outlier.record(Counted::Bad, &passive, at(14)), None);
        let mut later = outlier.clone();
        assert_eq!(
            outlier.record(Counted::Bad, &passive, at(14)),
            Some(EjectCause::ErrorRate)
        );
        assert_eq!(later.record(Counted::Bad, &passive, at(15)), None);
    }

    #[test]
    fn a_share_that_could_not_be_reached_is_unreachable_whatever_counts_in_a_row() {
        for consecutive in [0, 100] {
            let passive = PassiveCheck {
                consecutive,
                ..passive()
            };
            let mut outlier = Outlier::default();
            for _ in 0..9 {
                assert_eq!(outlier.record(Counted::Good, &passive, at(5)), None);
                assert_eq!(outlier.record(Counted::Unreachable, &passive, at(5)), None);
            }
            assert_eq!(outlier.record(Counted::Unreachable, &passive, at(5)), None);
            let mut mixed = outlier.clone();
            // 11 of 20 could not be reached; or 10, and one answered badly.
            assert_eq!(
                outlier.record(Counted::Unreachable, &passive, at(5)),
                Some(EjectCause::Unreachable)
            );
            assert_eq!(
                mixed.record(Counted::Bad, &passive, at(5)),
                Some(EjectCause::ErrorRate)
            );
        }
    }

    #[test]
    fn exactly_the_share_is_not_over_it() {
        let mut window = Window::default();
        for failed in [true, false].repeat(10) {
            window.add(failed, at(1));
        }
        let rate = ErrorRate {
            over: 0.5,
            requests: 20,
        };
        assert!(!window.is_over(rate, at(1)));
        window.add(true, at(1));
        assert!(window.is_over(rate, at(1)));
        assert!(!window.is_over(rate, at(11)));
    }

    #[test]
    fn what_is_told_ten_seconds_late_takes_nothing_from_what_came_since() {
        let mut window = Window::default();
        window.add(true, at(15));
        window.add(false, at(5));
        window.add_failure(at(5));
        assert_eq!(window.totals(at(15)), (1, 1));
        // Late, but of a second that is still looked at.
        window.add(false, at(14));
        assert_eq!(window.totals(at(15)), (2, 1));
    }

    #[test]
    fn an_endpoint_that_is_out_is_not_ejected_again() {
        let passive = passive();
        let mut outlier = Outlier::default();
        outlier.eject(EjectCause::Unreachable, Duration::from_secs(9), at(0));
        for _ in 0..50 {
            assert_eq!(outlier.record(Counted::Bad, &passive, at(0)), None);
        }
        outlier.readmit(at(9));
        assert_eq!(outlier.ejection(), None);
        assert_eq!(outlier.record(Counted::Bad, &passive, at(9)), None);
    }

    #[test]
    fn each_ejection_lasts_longer_and_each_such_time_that_is_well_forgives_one() {
        let mut outlier = Outlier::default();
        let mut eject = |from, is_well: Option<u64>| {
            let lasts = Duration::from_secs(30);
            let ejection = outlier.eject(EjectCause::Consecutive, lasts, at(from));
            if let Some(at_again) = is_well {
                outlier.readmit(at(at_again));
            }
            ejection.until.since(ejection.since).as_secs()
        };
        assert_eq!(eject(0, None), 30);
        assert_eq!(eject(100, None), 60);
        assert_eq!(eject(200, Some(300)), 90);
        // Well for 29 s: as bad as before, and worse.
        assert_eq!(eject(329, Some(500)), 120);
        // For 89 s: two are forgiven.
        assert_eq!(eject(589, Some(700)), 90);
        assert_eq!(eject(9999, None), 30);
        for _ in 0..20 {
            eject(10_000, None);
        }
        assert_eq!(eject(10_000, Some(10_001)), 300);
        outlier.forgive();
        let lasts = Duration::from_secs(30);
        let ejection = outlier.eject(EjectCause::Consecutive, lasts, at(10_002));
        assert_eq!(ejection.until, at(10_032));
    }

    #[test]
    fn what_is_not_listed_is_an_answer_or_nothing() {
        let passive = passive();
        for (failure, expected) in [
            (Failure::Connect, Counted::Unreachable),
            (Failure::NoLocalEndpoint, Counted::Unreachable),
            (Failure::Reset, Counted::Bad),
            (Failure::Timeout, Counted::Bad),
            (Failure::Status(503), Counted::Bad),
            (Failure::Status(500), Counted::Good),
            (Failure::Unavailable, Counted::Good),
            (Failure::Grpc(13), Counted::Good),
            (Failure::RefusedStream, Counted::Nothing),
        ] {
            assert_eq!(count(&passive, Err(failure)), expected, "{failure:?}");
        }
        assert_eq!(count(&passive, Ok(())), Counted::Good);
        let nothing = PassiveCheck {
            on: vec![],
            ..passive
        };
        for failure in [Failure::Connect, Failure::Reset, Failure::NoLocalEndpoint] {
            assert_eq!(count(&nothing, Err(failure)), Counted::Nothing);
        }
    }
}
