//! A canary in the other cluster gets a copy of each request, while it is well, slow and dead; the
//! callers notice none of it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{
    EAST, MARGIN, Pair, ROUTE, ScenarioError, WEST, client, common_claims, common_figures, of,
    pair, s, start,
};
use crate::demo::claims::{self, Claim};
use crate::demo::client::Record;
use crate::demo::fetch;
use crate::demo::hold::Hold;
use crate::demo::journal::{Journal, Verb};
use crate::demo::metrics;
use crate::demo::narrate::{percent, said};
use crate::demo::report::{Figure, Report};
use crate::demo::run::{Run, latency, within};
use crate::demo::site::{Gateway, Service, Site, SiteError, journal};
use crate::demo::yaml;

const CANARY_ROUTE: &str = "orders-canary";
/// The same services without a mirror: what callers would see if there were none.
const PLAIN_ROUTE: &str = "orders-plain";
const PLAIN_RATE: u32 = 200;
/// Longer than the mirror's own timeout.
const SLOW: Duration = s(4);
/// What median and 99th percentile may differ by chance. A caller that waits for a slow copy waits
/// two seconds.
const MEDIAN_MORE_MAX: Duration = Duration::from_millis(30);
const TAIL_MORE_MAX: Duration = Duration::from_millis(150);
/// Of the copies that a healthy canary is due, in thousandths: a copy is dropped, never waited for,
/// where the machine is too busy.
const COPIED_LEAST: usize = 900;
/// What becomes of copies, as the gateway counts it.
const MIRRORED: &str = "zeugma_mirrored_total";

/// When what was done.
#[derive(Debug, Clone)]
struct Marks {
    begin: Duration,
    slowed: Duration,
    killed: Duration,
    end: Duration,
}

pub(super) async fn play(site: &mut Site) -> Result<Report, ScenarioError> {
    let pair = pair(site)?;
    let near = [site.service("east-1")?, site.service("east-2")?];
    let near = near.each_ref();
    let canary = site.service("west-canary")?;
    configure(site, &pair, near, &canary)?;
    start(site, &pair, &near, &[&canary]).await?;

    site.narrator
        .tell("each request is copied to a canary in west; what it answers is thrown away");
    let client = client(site, &pair);
    site.narrator.tell(&format!(
        "a second one sends {PLAIN_RATE} requests/s to the same services on a route without a mirror"
    ));
    let plain = site.second_client(&pair.east, &yaml::host(PLAIN_ROUTE), PLAIN_RATE);
    let begin = site.narrator.elapsed();
    site.watch(&client, s(4)).await?;
    let slowed = site.narrator.elapsed();
    site.hold(&canary, Hold::new(SLOW, SLOW)).await?;
    site.narrator.tell(&format!(
        "the canary turns slow: {} a request, its copies time out after 2 s",
        said(SLOW)
    ));
    site.watch(&client, s(4)).await?;
    let killed = site.kill(&canary).await?.at;
    site.watch(&client, s(4)).await?;
    let marks = Marks {
        begin,
        slowed,
        killed,
        end: site.narrator.elapsed(),
    };
    site.narrator.tell("the client stops");
    let plain = plain.stop().await;
    let run = site.finish(client, &near).await?;
    let copies = journal(&canary)?;
    let accounts = accounts(&pair.east, run.records.len()).await;

    let mut figures = common_figures(&run, &pair.east, Duration::ZERO).await;
    figures.extend(figures_of(&run, &copies, &marks));
    let mut claims = claims_of(&run, &plain, &copies, &marks);
    claims.push(accounted(&run, &accounts));
    claims.extend(common_claims(&run, site.conditions.rate));
    Ok(Report::new("mirror", claims, figures))
}

fn configure(
    site: &mut Site,
    pair: &Pair,
    near: [&Service; 2],
    canary: &Service,
) -> Result<(), SiteError> {
    let (east_at, west_at) = (site.reached_at(&pair.east)?, site.reached_at(&pair.west)?);
    let mirror = format!(
        "  mirror:\n    - {{ route: shop/{CANARY_ROUTE}, percent: 100%, timeout: 2s, inFlight: 256 }}\n"
    );
    let east = [
        yaml::head("mirror", EAST),
        yaml::gateway(&pair.east),
        yaml::peer(WEST, west_at),
        yaml::route(ROUTE),
        "  backends:\n".to_owned(),
        yaml::backend("east", EAST.locality, &near),
        mirror,
        yaml::ALLOW_APPS.to_owned(),
        yaml::route(PLAIN_ROUTE),
        "  backends:\n".to_owned(),
        yaml::backend("east", EAST.locality, &near),
        yaml::ALLOW_APPS.to_owned(),
        yaml::route(CANARY_ROUTE),
        "  backends:\n    - { peer: west }\n".to_owned(),
        yaml::ALLOW_APPS.to_owned(),
    ];
    let west = [
        yaml::head("mirror", WEST),
        yaml::gateway(&pair.west),
        yaml::peer(EAST, east_at),
        yaml::route(CANARY_ROUTE),
        "  backends:\n".to_owned(),
        yaml::backend("canary", WEST.locality, &[canary]),
        yaml::allow_gateway(EAST),
    ];
    site.configure(&pair.east, &east.concat())?;
    site.configure(&pair.west, &west.concat())
}

fn claims_of(run: &Run, plain: &[Record], copies: &Journal, marks: &Marks) -> Vec<Claim> {
    let all: Vec<_> = run.records.iter().collect();
    vec![
        claims::none_lost(run, Verb::Get),
        claims::none_lost(run, Verb::Post),
        claims::all_answered_by(
            "all callers were answered by east, none by the canary",
            &all,
            of(EAST),
        ),
        copied(run, copies, marks),
        copied_faithfully(run, copies),
        unaffected("well", run, plain, (marks.begin, marks.slowed)),
        unaffected("slow", run, plain, (marks.slowed, marks.killed)),
        unaffected("dead", run, plain, (marks.killed, marks.end)),
    ]
}

/// What the gateway says became of the copies, once that is all of them or time is up.
async fn accounts(gateway: &Gateway, sent: usize) -> BTreeMap<String, u64> {
    let mut tries = 30;
    loop {
        let text = fetch::get(gateway.metrics, "/metrics")
            .await
            .unwrap_or_default();
        let counts = metrics::by_label(&String::from_utf8_lossy(&text), MIRRORED, "result");
        tries -= 1;
        if tries == 0 || usize::try_from(counts.values().sum::<u64>()) == Ok(sent) {
            return counts;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn accounted(run: &Run, accounts: &BTreeMap<String, u64>) -> Claim {
    let all: Vec<_> = accounts
        .iter()
        .map(|(result, count)| format!("{count} {result}"))
        .collect();
    Claim::new(
        "the gateway accounts for the copy of every request",
        usize::try_from(accounts.values().sum::<u64>()) == Ok(run.records.len()),
        format!("of {}: {}", run.records.len(), all.join(", ")),
    )
}

/// What part of the requests sent while the canary was well it got, in thousandths, and of how many.
fn copied_part(run: &Run, copies: &Journal, marks: &Marks) -> (usize, usize) {
    let well = run.sent_within(marks.begin, marks.slowed.saturating_sub(MARGIN));
    let is_copied = |record: &&&Record| copies.received(record.verb, record.id) > 0;
    let copied = well.iter().filter(is_copied).count();
    let part = (copied * 1000).checked_div(well.len()).unwrap_or(0);
    (part, well.len())
}

fn copied(run: &Run, copies: &Journal, marks: &Marks) -> Claim {
    let (part, sent) = copied_part(run, copies, marks);
    Claim::new(
        format!(
            "while it was well the canary counted at least {} of the requests",
            percent(COPIED_LEAST)
        ),
        part >= COPIED_LEAST,
        format!("{} of {sent}", percent(part)),
    )
}

fn copied_faithfully(run: &Run, copies: &Journal) -> Claim {
    let (mut unsent, mut again) = (0_usize, 0_usize);
    for (verb, id) in copies.requests() {
        let index = usize::try_from(id).unwrap_or(usize::MAX);
        let sent = run.records.get(index).is_some_and(|r| r.verb == verb);
        unsent += usize::from(!sent);
        again += usize::from(copies.received(verb, id) > 1);
    }
    Claim::new(
        "the canary counted no request twice and none that was not sent",
        unsent + again == 0,
        format!("{again} twice, {unsent} never sent"),
    )
}

/// Compared with requests of the same time on a route without a mirror: the machine may be busy.
fn unaffected(state: &str, run: &Run, plain: &[Record], (from, to): (Duration, Duration)) -> Claim {
    let mirrored = run.sent_within(from, to);
    let plain: Vec<_> = within(plain, from, to).collect();
    let claim = format!("callers noticed nothing of a canary that was {state}");
    let at = |records: &[&Record]| Some((latency(records, 500)?, latency(records, 990)?));
    let (Some(mirrored), Some(plain)) = (at(&mirrored), at(&plain)) else {
        return Claim::new(claim, false, "nobody was answered");
    };
    let held = mirrored.0 <= plain.0 + MEDIAN_MORE_MAX && mirrored.1 <= plain.1 + TAIL_MORE_MAX;
    let found = format!(
        "p50 {} and p99 {}, without a mirror {} and {}",
        said(mirrored.0),
        said(mirrored.1),
        said(plain.0),
        said(plain.1)
    );
    Claim::new(claim, held, found)
}

fn figures_of(run: &Run, copies: &Journal, marks: &Marks) -> Vec<Figure> {
    let (part, sent) = copied_part(run, copies, marks);
    let (gets, posts) = (copies.count(Verb::Get), copies.count(Verb::Post));
    vec![
        Figure::new(
            "copies",
            format!(
                "{gets} GET, {posts} POST; {} of the {sent} sent while the canary was well",
                percent(part)
            ),
        )
        .count("copiedGets", Some(gets))
        .count("copiedPosts", Some(posts)),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::tests::{levels, loaded, quiet};
    use super::*;
    use crate::demo::client::End;
    use crate::demo::journal::{Entry, Event};
    use crate::demo::run::tests::ms;

    fn marks() -> Marks {
        Marks {
            begin: ms(0),
            slowed: ms(2000),
            killed: ms(4000),
            end: ms(6000),
        }
    }

    fn run() -> (Run, Journal) {
        let mut run = Run::of(&["east-1"]);
        let mut copies = Journal::new("west-canary");
        for (id, at) in (0..6000).step_by(10).enumerate() {
            run = run.answered(Verb::Get, at, "east-1");
            if at < 4000 {
                copies.add(received(id));
            }
        }
        // One POST, so that there is one to lose.
        run = run.answered(Verb::Post, 5995, "east-1");
        (run, copies)
    }

    fn received(id: usize) -> Entry {
        Entry {
            verb: Verb::Get,
            id: id.try_into().unwrap(),
            event: Event::Received,
        }
    }

    fn broken(run: &Run, copies: &Journal) -> Vec<String> {
        let plain = self::run().0.records;
        claims_of(run, &plain, copies, &marks())
            .into_iter()
            .filter(|claim| !claim.held)
            .map(|claim| claim.claim)
            .collect()
    }

    #[test]
    fn all_claims_hold_when_nobody_notices() {
        let (run, copies) = run();
        assert_eq!(broken(&run, &copies), Vec::<String>::new());
    }

    #[test]
    fn copies_that_are_missing_doubled_or_invented_are_caught() {
        let (run, mut copies) = run();
        assert_eq!(broken(&run, &Journal::new("west-canary")).len(), 1);
        copies.add(received(7));
        assert_eq!(broken(&run, &copies).len(), 1);
        let (_, mut copies) = self::run();
        copies.add(received(9999));
        assert_eq!(broken(&run, &copies).len(), 1);
    }

    #[test]
    fn callers_that_wait_for_the_canary_break_the_claim() {
        let (mut run, copies) = run();
        for record in run.records.iter_mut().filter(|r| r.sent >= ms(4000)) {
            if let End::Answered { at, .. } = &mut record.end {
                *at += ms(200);
            }
        }
        let expected = ["callers noticed nothing of a canary that was dead"];
        assert_eq!(broken(&run, &copies), expected);
    }

    #[test]
    fn its_yaml_is_what_a_gateway_reads() {
        let (mut site, pair) = quiet();
        let near = ["east-1", "east-2"].map(|name| site.service(name).unwrap());
        let canary = site.service("west-canary").unwrap();
        configure(&mut site, &pair, near.each_ref(), &canary).unwrap();
        let east = loaded(&pair.east);
        assert_eq!(levels(&east, "shop/orders"), [2]);
        assert_eq!(levels(&east, "shop/orders-canary"), [1]);
        assert_eq!(levels(&loaded(&pair.west), "shop/orders-canary"), [1]);
    }

    #[test]
    fn a_copy_that_is_not_accounted_for_is_caught() {
        let (run, _) = run();
        let counts = |sent| BTreeMap::from([("sent".to_owned(), sent), ("slow".to_owned(), 1)]);
        assert!(accounted(&run, &counts(600)).held);
        assert!(!accounted(&run, &counts(599)).held);
    }
}
