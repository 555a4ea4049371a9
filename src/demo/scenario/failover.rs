//! The main job: the local services are killed, one and then the other, traffic goes to the other
//! cluster, and comes home when they are back.

use std::time::Duration;

use super::{
    EAST, MARGIN, Pair, ROUTE, SETTLE, ScenarioError, WEST, client, common_claims, common_figures,
    of, or_never, pair, s, start,
};
use crate::demo::claims::{self, Claim};
use crate::demo::client::Record;
use crate::demo::journal::Verb;
use crate::demo::narrate::{percent, said};
use crate::demo::report::{Figure, Report};
use crate::demo::run::{Run, latency, share, within};
use crate::demo::site::{Service, Site, SiteError};
use crate::demo::yaml;

/// As the YAML's `failback` says.
const FAILBACK_AFTER: Duration = s(3);
const FAILBACK_RAMP: Duration = s(5);
const KILLED_HELD_LEAST: u64 = 20;

/// When what was done.
#[derive(Debug, Clone)]
struct Marks {
    begin: Duration,
    one_killed: Duration,
    all_killed: Duration,
    restarted: Duration,
    end: Duration,
    /// How many requests the killed processes held.
    held: [u64; 2],
}

pub(super) async fn play(site: &mut Site) -> Result<Report, ScenarioError> {
    let pair = pair(site)?;
    let near = [site.service("east-1")?, site.service("east-2")?];
    let far = [site.service("west-1")?, site.service("west-2")?];
    let (near, far) = (each(&near), each(&far));
    configure(site, &pair, near, far)?;
    start(site, &pair, &near, &far).await?;

    let rate = site.conditions.rate;
    let client = client(site, &pair);
    let begin = site.narrator.elapsed();
    site.watch(&client, s(3)).await?;
    let one = site.kill(near[0]).await?;
    site.narrator.tell(
        "east has half its services: under 70 % (failover.start), so part of the traffic moves on",
    );
    site.watch(&client, s(4)).await?;
    let all = site.kill(near[1]).await?;
    site.narrator.tell("east has no service left");
    site.watch(&client, s(4)).await?;
    let restarted = site.narrator.elapsed();
    site.start_services(&near).await?;
    site.narrator.tell(
        "east's services are started again; failback waits 3 s, then moves traffic back over 5 s",
    );
    let is_back = |records: &[Record], now: Duration| {
        let recent: Vec<_> = records
            .iter()
            .filter(|record| record.ended().is_some_and(|at| at + s(2) >= now))
            .collect();
        now > restarted + FAILBACK_AFTER && share(&recent, of(EAST)) == 1000
    };
    site.watch_until(&client, s(16), is_back).await?;
    let end = site.narrator.elapsed();
    let marks = Marks {
        begin,
        one_killed: one.at,
        all_killed: all.at,
        restarted,
        end,
        held: [one.held, all.held],
    };
    site.narrator.tell("the client stops");
    let everyone = [near[0], near[1], far[0], far[1]];
    let run = site.finish(client, &everyone).await?;

    let mut figures = common_figures(&run, &pair.east, Duration::ZERO).await;
    figures.extend(figures_of(&run, &marks));
    let mut claims = claims_of(&run, &marks);
    claims.extend(common_claims(&run, rate));
    Ok(Report::new("failover", claims, figures))
}

fn each<const N: usize>(services: &[Service; N]) -> [&Service; N] {
    services.each_ref()
}

fn configure(
    site: &mut Site,
    pair: &Pair,
    near: [&Service; 2],
    far: [&Service; 2],
) -> Result<(), SiteError> {
    let (east_at, west_at) = (site.reached_at(&pair.east)?, site.reached_at(&pair.west)?);
    let east = [
        yaml::head("failover", EAST),
        yaml::gateway(&pair.east),
        yaml::peer(WEST, west_at),
        yaml::route(ROUTE),
        "  backends:\n".to_owned(),
        yaml::backend("east", EAST.locality, &near),
        "    - { peer: west }\n".to_owned(),
        yaml::SHORT_TIMES.to_owned(),
        yaml::ALLOW_APPS.to_owned(),
    ];
    let west = [
        yaml::head("failover", WEST),
        yaml::gateway(&pair.west),
        yaml::peer(EAST, east_at),
        yaml::route(ROUTE),
        "  backends:\n".to_owned(),
        yaml::backend("west", WEST.locality, &far),
        yaml::SHORT_TIMES.to_owned(),
        yaml::allow_gateway(EAST),
    ];
    site.configure(&pair.east, &east.concat())?;
    site.configure(&pair.west, &west.concat())
}

fn claims_of(run: &Run, marks: &Marks) -> Vec<Claim> {
    let before = run.sent_within(marks.begin, marks.one_killed.saturating_sub(MARGIN));
    let half = run.sent_within(
        marks.one_killed + SETTLE,
        marks.all_killed.saturating_sub(MARGIN),
    );
    let none = run.sent_within(marks.all_killed + SETTLE, marks.restarted);
    let last = run.sent_within(marks.end.saturating_sub(s(1)), marks.end);
    vec![
        claims::none_lost(run, Verb::Get),
        claims::posts_lost_only_at(run, &[marks.one_killed, marks.all_killed]),
        claims::under_way_at_kills(&marks.held, KILLED_HELD_LEAST),
        claims::all_answered_by(
            "before the first kill all were answered in east",
            &before,
            of(EAST),
        ),
        spilled(&half),
        claims::all_answered_by(
            "with no service left in east west answered all",
            &none,
            of(WEST),
        ),
        came_back(run, marks),
        claims::all_answered_by(
            "in the end all were answered in east again",
            &last,
            of(EAST),
        ),
        claims::caller_handed_on(run, of(WEST), &WEST.gateway_id(), &EAST.gateway_id()),
    ]
}

/// With half of two services healthy east keeps 50 % / 70 % = 71.4 %: the formula of `start`.
fn spilled(half: &[&Record]) -> Claim {
    let part = share(half, of(WEST));
    Claim::new(
        "with one of two services left in east 28.6 % went to west (between 20 % and 37 %)",
        !half.is_empty() && (200..=370).contains(&part),
        format!("{} of {}", percent(part), half.len()),
    )
}

/// Traffic stays away for as long as `failback.after` says, then returns within the ramp.
fn came_back(run: &Run, marks: &Marks) -> Claim {
    let claim = "traffic came back no sooner than 3 s after the restart, and all of it within 12 s";
    let (Some(first), Some(all)) = (first_back(run, marks), all_back(run, marks)) else {
        return Claim::new(claim, false, "it never came back");
    };
    let held = first >= FAILBACK_AFTER && all <= FAILBACK_AFTER + FAILBACK_RAMP + s(4);
    let found = format!("the first after {}, all after {}", said(first), said(all));
    Claim::new(claim, held, found)
}

/// From the restart to the first request that east answered again.
fn first_back(run: &Run, marks: &Marks) -> Option<Duration> {
    within(&run.records, marks.restarted, marks.end)
        .find(|record| record.service().is_some_and(of(EAST)))
        .map(|record| record.sent - marks.restarted)
}

/// From the restart to the last request that east did not answer, where some came after it.
fn all_back(run: &Run, marks: &Marks) -> Option<Duration> {
    let in_east = |record: &Record| record.service().is_some_and(of(EAST));
    let after = run.sent_within(marks.restarted, marks.end);
    let last = after.iter().rposition(|record| !in_east(record));
    match (last, after.last()) {
        (Some(last), Some(end)) if in_east(end) => {
            let at = after.get(last)?.sent;
            Some(at - marks.restarted)
        }
        (None, Some(_)) => Some(Duration::ZERO),
        _ => None,
    }
}

/// From the kill of the last local service to the first answer from west to a request sent after.
fn first_answer(run: &Run, marks: &Marks) -> Option<Duration> {
    within(&run.records, marks.all_killed, marks.restarted)
        .filter(|record| record.service().is_some_and(of(WEST)))
        .filter_map(Record::ended)
        .min()
        .map(|at| at - marks.all_killed)
}

/// The longest that a caller waited whose request was under way at the last kill or sent soon after.
fn longest_wait(run: &Run, marks: &Marks) -> Option<Duration> {
    let around = within(
        &run.records,
        marks.all_killed.saturating_sub(s(1)),
        marks.all_killed + SETTLE,
    );
    let under_way: Vec<_> = around
        .filter(|record| record.ended().is_none_or(|at| at >= marks.all_killed))
        .collect();
    latency(&under_way, 1000)
}

fn figures_of(run: &Run, marks: &Marks) -> Vec<Figure> {
    let quiet = run.sent_within(marks.begin, marks.one_killed.saturating_sub(s(1)));
    let crossing = run.sent_within(marks.all_killed + SETTLE, marks.restarted);
    let (quiet, crossing) = (latency(&quiet, 500), latency(&crossing, 500));
    let (over, wait) = (first_answer(run, marks), longest_wait(run, marks));
    let (first, all) = (first_back(run, marks), all_back(run, marks));
    vec![
        Figure::new(
            "time to fail over",
            format!(
                "{} from the kill to the first answer from west; no caller waited over {}",
                or_never(over),
                or_never(wait)
            ),
        )
        .time("failoverMs", over)
        .time("failoverLongestWaitMs", wait),
        Figure::new(
            "time to fail back",
            format!(
                "{} from the restart to the first answer from east, {} to all of them",
                or_never(first),
                or_never(all)
            ),
        )
        .time("failbackFirstMs", first)
        .time("failbackAllMs", all),
        Figure::new(
            "median latency",
            format!(
                "{} in east, {} through both gateways",
                or_never(quiet),
                or_never(crossing)
            ),
        )
        .time("latencyEastP50Ms", quiet)
        .time("latencyWestP50Ms", crossing),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::tests::{levels, loaded, quiet};
    use super::*;
    use crate::demo::client::End;
    use crate::demo::run::is_of;
    use crate::demo::run::tests::ms;

    fn marks() -> Marks {
        Marks {
            begin: ms(0),
            one_killed: ms(3000),
            all_killed: ms(7000),
            restarted: ms(11_000),
            end: ms(23_000),
            held: [25, 36],
        }
    }

    /// What answers a request sent at `at` milliseconds when all goes as it should.
    fn who(at: u64) -> &'static str {
        let third = at / 10 % 10 < 3;
        match at {
            0..3000 => "east-1",
            3000..7000 if third => "west-1",
            3000..7000 => "east-2",
            7000..14_500 => "west-2",
            14_500..19_500 if third => "west-1",
            _ => "east-1",
        }
    }

    /// A run of 100 requests a second in which `who` answers; none: it is lost.
    fn run(who: impl Fn(u64) -> Option<&'static str>) -> Run {
        let mut run = Run::of(&["east-1", "east-2", "west-1", "west-2"]);
        for at in (0..23_000).step_by(10) {
            run = match who(at) {
                Some(service) => run.answered(Verb::Get, at, service),
                None => run.lost_one(Verb::Get, at, None),
            };
            if let Some(End::Answered {
                service, caller, ..
            }) = run.records.last_mut().map(|r| &mut r.end)
                && is_of(service, "west")
            {
                *caller = Some(format!(
                    "By={};URI={}",
                    WEST.gateway_id(),
                    EAST.gateway_id()
                ));
            }
        }
        run
    }

    fn broken(run: &Run, marks: &Marks) -> Vec<String> {
        claims_of(run, marks)
            .into_iter()
            .filter(|claim| !claim.held)
            .map(|claim| claim.claim)
            .collect()
    }

    #[test]
    fn all_claims_hold_when_all_goes_as_it_should() {
        let run = run(|at| Some(who(at)));
        assert_eq!(broken(&run, &marks()), Vec::<String>::new());
        assert_eq!(first_back(&run, &marks()), Some(ms(3530)));
        assert_eq!(all_back(&run, &marks()), Some(ms(8420)));
        assert_eq!(first_answer(&run, &marks()), Some(ms(100)));
        assert_eq!(longest_wait(&run, &marks()), Some(ms(100)));
    }

    #[test]
    fn without_west_the_claims_break() {
        let run = run(|at| {
            let service = who(at);
            (!is_of(service, "west")).then_some(service)
        });
        let broken = broken(&run, &marks());
        assert!(
            broken
                .iter()
                .any(|claim| claim.starts_with("no GET was lost"))
        );
        assert!(
            broken
                .iter()
                .any(|claim| claim.contains("west answered all"))
        );
        assert!(
            broken
                .iter()
                .any(|claim| claim.contains("verified by mTLS"))
        );
    }

    #[test]
    fn traffic_that_comes_back_too_soon_breaks_the_claim() {
        let run = run(|at| match at {
            11_500..14_500 => Some("east-1"),
            _ => Some(who(at)),
        });
        let broken = broken(&run, &marks());
        assert_eq!(broken.len(), 1);
        assert!(broken[0].starts_with("traffic came back no sooner than 3 s"));
    }

    #[test]
    fn traffic_that_never_comes_back_breaks_the_claims() {
        let run = run(|at| Some(if at > 11_000 { "west-1" } else { who(at) }));
        let broken = broken(&run, &marks());
        assert_eq!(broken.len(), 2, "{broken:?}");
    }

    #[test]
    fn no_spill_with_half_of_the_services_breaks_the_claim() {
        let run = run(|at| {
            Some(if (3000..7000).contains(&at) {
                "east-2"
            } else {
                who(at)
            })
        });
        let broken = broken(&run, &marks());
        assert_eq!(broken.len(), 1);
        assert!(broken[0].contains("28.6 %"));
    }

    #[test]
    fn its_yaml_is_what_a_gateway_reads() {
        let (mut site, pair) = quiet();
        let near = ["east-1", "east-2"].map(|name| site.service(name).unwrap());
        let far = ["west-1", "west-2"].map(|name| site.service(name).unwrap());
        configure(&mut site, &pair, each(&near), each(&far)).unwrap();
        assert_eq!(levels(&loaded(&pair.east), "shop/orders"), [2, 1]);
        assert_eq!(levels(&loaded(&pair.west), "shop/orders"), [2]);
    }
}
