//! What the demo claims, each claim a pure function of what the run left behind.

use std::time::Duration;

use serde::Serialize;

use super::client::{End, Record};
use super::journal::{Journal, Verb};
use super::narrate::percent;
use super::run::{Run, share};
use super::service::Counts;

/// A claim and how it turned out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Claim {
    /// What is claimed.
    pub(crate) claim: String,
    /// Whether it held.
    pub(crate) held: bool,
    /// What was found.
    pub(crate) found: String,
}

impl Claim {
    /// A claim that held or did not, with what was found.
    pub(crate) fn new(claim: impl Into<String>, held: bool, found: impl Into<String>) -> Self {
        Self {
            claim: claim.into(),
            held,
            found: found.into(),
        }
    }
}

/// No request of that method was lost.
pub(crate) fn none_lost(run: &Run, verb: Verb) -> Claim {
    let lost = run.lost(verb);
    let sent = run.sent(verb);
    let mut found = format!("{} of {sent} lost", lost.len());
    if let Some(first) = lost.first() {
        found.push_str(&format!(", the first: {}", why(first)));
    }
    let word = word(verb);
    Claim::new(
        format!("no {word} was lost: a healthy endpoint existed at all times"),
        lost.is_empty() && sent > 0,
        found,
    )
}

/// How far around a kill a request may have been sent and still be under way to what was killed.
const KILL_MARGIN: Duration = Duration::from_millis(250);

/// A POST that may have reached a killed process must not be sent again; any other is not lost.
pub(crate) fn posts_lost_only_at(run: &Run, kills: &[Duration]) -> Claim {
    let lost = run.lost(Verb::Post);
    let at_a_kill = |record: &&&Record| {
        kills.iter().any(|&kill| {
            let ended_after = record.ended().is_none_or(|end| end + KILL_MARGIN >= kill);
            record.sent <= kill + KILL_MARGIN && ended_after
        })
    };
    let explained = lost.iter().filter(at_a_kill).count();
    let mut found = format!("{} of {} lost", lost.len(), run.sent(Verb::Post));
    if !lost.is_empty() {
        found.push_str(&format!(", {explained} of them at a kill"));
    }
    Claim::new(
        "a POST was lost only under way in a process that was killed: sending it again could \
         order twice",
        explained == lost.len(),
        found,
    )
}

/// Nobody ordered twice.
pub(crate) fn no_post_twice(run: &Run) -> Claim {
    let again = run.received_again(Verb::Post);
    Claim::new(
        "no POST reached services twice",
        again == 0,
        format!("{again} of {} did", run.sent(Verb::Post)),
    )
}

/// The services counted what the client says they answered, and nothing that it never sent.
pub(crate) fn counts_agree(run: &Run) -> Claim {
    let mut confirmed = 0_usize;
    let mut denied = 0_usize;
    for record in &run.records {
        let Some(service) = record.service() else {
            continue;
        };
        let counted = run.journals.iter().any(|journal| {
            journal.service == service && journal.answered(record.verb, record.id) > 0
        });
        if counted { confirmed += 1 } else { denied += 1 }
    }
    let unsent = run
        .journals
        .iter()
        .flat_map(|journal| journal.requests())
        .filter(|&(verb, id)| {
            let index = usize::try_from(id).unwrap_or(usize::MAX);
            run.records
                .get(index)
                .is_none_or(|record| record.verb != verb)
        })
        .count();
    let miscounted: Vec<_> = run
        .counts
        .iter()
        .filter(|counts| !run.journals.iter().any(|journal| same(counts, journal)))
        .map(|counts| counts.service.as_str())
        .collect();
    let mut found = format!("{confirmed} answers confirmed");
    if !miscounted.is_empty() {
        let names = miscounted.join(", ");
        found.push_str(&format!(", {names} counted other than its journal"));
    }
    if denied + unsent > 0 {
        found.push_str(&format!(
            ", {denied} not counted by the service that gave them, {unsent} counted but never sent"
        ));
    }
    Claim::new(
        "the services' own counts confirm every answer the client got",
        denied + unsent + miscounted.len() == 0 && confirmed > 0,
        found,
    )
}

/// Whether a service's counter says what its journal says.
fn same(counts: &Counts, journal: &Journal) -> bool {
    let equals = |count: u64, verb| usize::try_from(count) == Ok(journal.count(verb));
    counts.service == journal.service
        && equals(counts.gets, Verb::Get)
        && equals(counts.posts, Verb::Post)
}

/// The client kept its schedule.
pub(crate) fn rate_kept(run: &Run, rate: u32) -> Claim {
    let first = run.records.first().map_or(Duration::ZERO, |r| r.sent);
    let last = run.records.last().map_or(Duration::ZERO, |r| r.sent);
    let span = last.saturating_sub(first).as_millis().max(1);
    let count = run.records.len().saturating_sub(1);
    let per_second = (count as u128 * 1000 / span).try_into().unwrap_or(u32::MAX);
    Claim::new(
        format!("the client sent on schedule, {rate} requests/s, whatever was broken"),
        u64::from(per_second) * 100 >= u64::from(rate) * 95,
        format!("{per_second} requests/s"),
    )
}

/// Enough was under way in each process when it was killed.
pub(crate) fn under_way_at_kills(under_way: &[u64], least: u64) -> Claim {
    let all: Vec<_> = under_way.iter().map(ToString::to_string).collect();
    Claim::new(
        format!("each killed process was holding at least {least} requests"),
        !under_way.is_empty() && under_way.iter().all(|&count| count >= least),
        format!("{} held", all.join(" and ")),
    )
}

/// All of `records` were answered by services that `is_one` picks.
pub(crate) fn all_answered_by(
    claim: impl Into<String>,
    records: &[&Record],
    is_one: impl Fn(&str) -> bool,
) -> Claim {
    let part = share(records, is_one);
    Claim::new(
        claim,
        !records.is_empty() && part == 1000,
        format!("{} of {}", percent(part), records.len()),
    )
}

/// Services of the other cluster saw who called them, and by whom it was vouched for.
pub(crate) fn caller_handed_on(
    run: &Run,
    is_remote: impl Fn(&str) -> bool,
    by: &str,
    uri: &str,
) -> Claim {
    let expected = format!("By={by};URI={uri}");
    let mut right = 0_usize;
    let mut wrong = Vec::new();
    for record in &run.records {
        match &record.end {
            End::Answered {
                service, caller, ..
            } if is_remote(service) => {
                if caller.as_deref() == Some(expected.as_str()) {
                    right += 1;
                } else {
                    wrong.push(caller.as_deref().unwrap_or("nothing"));
                }
            }
            End::Answered { .. } | End::Lost { .. } | End::Pending => {}
        }
    }
    let mut found = format!("{right} of {} saw it", right + wrong.len());
    if let Some(first) = wrong.first() {
        found.push_str(&format!(", another saw {first}"));
    }
    Claim::new(
        format!("each request that crossed arrived as {uri}, verified by mTLS"),
        wrong.is_empty() && right > 0,
        found,
    )
}

/// The method's name.
pub(crate) fn word(verb: Verb) -> &'static str {
    match verb {
        Verb::Get => "GET",
        Verb::Post => "POST",
    }
}

/// What the client was told of a lost request.
pub(crate) fn why(record: &Record) -> &str {
    match &record.end {
        End::Lost { why, .. } => why,
        End::Pending => "no answer before the end",
        End::Answered { .. } => "answered",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::journal::Event;
    use crate::demo::run::tests::ms;

    fn both() -> Run {
        Run::of(&["east-1", "west-1"])
            .answered(Verb::Get, 0, "east-1")
            .answered(Verb::Get, 10, "west-1")
            .answered(Verb::Post, 20, "east-1")
    }

    #[test]
    fn a_run_in_which_all_went_well_breaks_no_claim() {
        let run = both();
        assert!(none_lost(&run, Verb::Get).held);
        assert!(none_lost(&run, Verb::Post).held);
        assert!(posts_lost_only_at(&run, &[]).held);
        assert!(no_post_twice(&run).held);
        assert!(counts_agree(&run).held);
    }

    #[test]
    fn one_lost_get_breaks_the_claim_and_says_why() {
        let claim = none_lost(&both().lost_one(Verb::Get, 30, None), Verb::Get);
        assert!(!claim.held);
        assert_eq!(claim.found, "1 of 3 lost, the first: status 502");
    }

    #[test]
    fn a_request_without_an_end_is_lost() {
        let mut run = both();
        run.records[0].end = End::Pending;
        assert!(!none_lost(&run, Verb::Get).held);
    }

    #[test]
    fn nothing_sent_proves_nothing() {
        let run = Run::of(&["east-1"]);
        assert!(!none_lost(&run, Verb::Get).held);
        assert!(!counts_agree(&run).held);
        assert!(!all_answered_by("all", &[], |_| true).held);
        assert!(!under_way_at_kills(&[], 20).held);
    }

    #[test]
    fn a_lost_post_is_explained_by_a_kill_and_by_nothing_else() {
        let run = both().lost_one(Verb::Post, 1000, Some("east-1"));
        assert!(posts_lost_only_at(&run, &[ms(1005)]).held);
        assert!(posts_lost_only_at(&run, &[ms(5000), ms(900)]).held);
        let claim = posts_lost_only_at(&run, &[ms(5000)]);
        assert!(!claim.held);
        assert_eq!(claim.found, "1 of 2 lost, 0 of them at a kill");
        assert!(!posts_lost_only_at(&run, &[ms(600)]).held);
    }

    #[test]
    fn an_answer_that_its_service_did_not_count_is_caught() {
        let mut run = both();
        run.journals[1] = Journal::new("west-1");
        let claim = counts_agree(&run);
        assert!(!claim.held);
        assert_eq!(
            claim.found,
            "2 answers confirmed, 1 not counted by the service that gave them, 0 counted but \
             never sent"
        );
    }

    #[test]
    fn a_request_that_nobody_sent_is_caught() {
        let mut run = both();
        run.note(Verb::Get, 99, "west-1", &[Event::Received]);
        assert!(!counts_agree(&run).held);
        // The number was sent, but as another method.
        let mut run = both();
        run.note(Verb::Post, 0, "west-1", &[Event::Received]);
        assert!(!counts_agree(&run).held);
    }

    #[test]
    fn a_counter_that_differs_from_the_journal_is_caught() {
        let mut run = both();
        let counts = |gets| Counts {
            service: "east-1".to_owned(),
            gets,
            posts: 1,
            repeated: 0,
            unnumbered: 0,
            in_flight: 0,
        };
        run.counts = vec![counts(1)];
        assert!(counts_agree(&run).held);
        run.counts = vec![counts(2)];
        let claim = counts_agree(&run);
        assert!(!claim.held);
        let expected = "3 answers confirmed, east-1 counted other than its journal";
        assert_eq!(claim.found, expected);
    }

    #[test]
    fn a_post_that_reached_two_services_or_one_twice_is_caught() {
        let mut run = both();
        run.note(Verb::Post, 2, "west-1", &[Event::Received]);
        assert!(!no_post_twice(&run).held);
        let mut run = both();
        run.note(Verb::Post, 2, "east-1", &[Event::Received]);
        assert!(!no_post_twice(&run).held);
    }

    #[test]
    fn a_client_that_falls_behind_is_caught() {
        let mut run = Run::of(&["east-1"]);
        for index in 0..=100 {
            run = run.answered(Verb::Get, index * 10, "east-1");
        }
        assert_eq!(rate_kept(&run, 100).found, "100 requests/s");
        assert!(rate_kept(&run, 105).held);
        assert!(!rate_kept(&run, 106).held);
    }

    #[test]
    fn a_kill_of_a_process_that_held_little_proves_little() {
        assert!(under_way_at_kills(&[20, 35], 20).held);
        assert!(!under_way_at_kills(&[20, 19], 20).held);
    }

    #[test]
    fn a_caller_that_is_not_handed_on_is_caught() {
        let (by, uri) = ("spiffe://west.example/gw", "spiffe://east.example/gw");
        let remote = |name: &str| name == "west-1";
        let mut run = both();
        assert!(!caller_handed_on(&run, remote, by, uri).held);
        if let End::Answered { caller, .. } = &mut run.records[1].end {
            *caller = Some(format!("By={by};URI={uri}"));
        }
        assert!(caller_handed_on(&run, remote, by, uri).held);
        assert!(!caller_handed_on(&run, |_| true, by, uri).held);
    }
}
