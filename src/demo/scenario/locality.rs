//! Services at four distances: the nearest that lives answers, and the next when it is killed.

use std::time::Duration;

use super::{
    EAST, MARGIN, Pair, ROUTE, SETTLE, ScenarioError, WEST, client, common_claims, common_figures,
    of, or_never, pair, s, start,
};
use crate::demo::claims::{self, Claim};
use crate::demo::client::Record;
use crate::demo::journal::Verb;
use crate::demo::report::{Figure, Report};
use crate::demo::run::{Run, share, within};
use crate::demo::site::{Service, Site, SiteError};
use crate::demo::yaml;

/// The services, nearest to the gateway in eu/eu-1/rack-a first; the last is in the other cluster.
const NEAREST_FIRST: [&str; 4] = ["east-rack-a", "east-rack-b", "east-zone-2", "west-1"];

const TIMES: &str = "  failover:
    failback: { after: 1s, ramp: 1s }  # nearest first needs no word of configuration
  health:
    active: { http: /healthz, every: 500ms, up: 2, down: 2 }
    passive: { eject: 2s }
";

/// When what was done.
#[derive(Debug, Clone)]
struct Marks {
    begin: Duration,
    killed: [Duration; 3],
    restarted: Duration,
    end: Duration,
}

pub(super) async fn play(site: &mut Site) -> Result<Report, ScenarioError> {
    let pair = pair(site)?;
    let [a, b, c, west] = NEAREST_FIRST;
    let (a, b) = (site.service(a)?, site.service(b)?);
    let (c, west) = (site.service(c)?, site.service(west)?);
    configure(site, &pair, [&a, &b, &c], &west)?;
    start(site, &pair, &[&a, &b, &c], &[&west]).await?;

    let client = client(site, &pair);
    let begin = site.narrator.elapsed();
    site.watch(&client, s(3)).await?;
    let first = site.kill(&a).await?;
    site.narrator
        .tell("the next is in the same zone, another rack");
    site.watch(&client, s(3)).await?;
    let second = site.kill(&b).await?;
    site.narrator
        .tell("the next is in the same region, another zone");
    site.watch(&client, s(3)).await?;
    let third = site.kill(&c).await?;
    site.narrator.tell("the next is in the other cluster");
    site.watch(&client, s(3)).await?;
    let restarted = site.narrator.elapsed();
    site.start_services(&[&a, &b, &c]).await?;
    site.narrator
        .tell("all are started again; failback waits 1 s and takes 1 s here");
    let is_home = |records: &[Record], now: Duration| {
        let recent: Vec<_> = records
            .iter()
            .filter(|record| record.ended().is_some_and(|at| at + s(1) >= now))
            .collect();
        now > restarted + s(2) && share(&recent, |name| name == a.name) == 1000
    };
    site.watch_until(&client, s(12), is_home).await?;
    let marks = Marks {
        begin,
        killed: [first.at, second.at, third.at],
        restarted,
        end: site.narrator.elapsed(),
    };
    site.narrator.tell("the client stops");
    let run = site.finish(client, &[&a, &b, &c, &west]).await?;

    let mut figures = common_figures(&run, &pair.east, Duration::ZERO).await;
    figures.push(figure_of(&run, &marks));
    let mut claims = claims_of(&run, &marks);
    claims.extend(common_claims(&run, site.conditions.rate));
    Ok(Report::new("locality", claims, figures))
}

fn configure(
    site: &mut Site,
    pair: &Pair,
    near: [&Service; 3],
    far: &Service,
) -> Result<(), SiteError> {
    let (east_at, west_at) = (site.reached_at(&pair.east)?, site.reached_at(&pair.west)?);
    let [a, b, c] = near;
    let east = [
        yaml::head("locality", EAST),
        yaml::gateway(&pair.east),
        yaml::peer(WEST, west_at),
        yaml::route(ROUTE),
        "  backends:\n".to_owned(),
        // In another order than the one that distance gives them.
        "    - { peer: west }\n".to_owned(),
        yaml::backend("zone-2", "eu/eu-2/rack-a", &[c]),
        yaml::backend("rack-b", "eu/eu-1/rack-b", &[b]),
        yaml::backend("rack-a", "eu/eu-1/rack-a", &[a]),
        TIMES.to_owned(),
        yaml::ALLOW_APPS.to_owned(),
    ];
    let west = [
        yaml::head("locality", WEST),
        yaml::gateway(&pair.west),
        yaml::peer(EAST, east_at),
        yaml::route(ROUTE),
        "  backends:\n".to_owned(),
        yaml::backend("west", WEST.locality, &[far]),
        TIMES.to_owned(),
        yaml::allow_gateway(EAST),
    ];
    site.configure(&pair.east, &east.concat())?;
    site.configure(&pair.west, &west.concat())
}

/// The settled part of each phase, nearest first.
fn phases(marks: &Marks) -> [(Duration, Duration); 4] {
    let [first, second, third] = marks.killed;
    [
        (marks.begin, first.saturating_sub(MARGIN)),
        (first + SETTLE, second.saturating_sub(MARGIN)),
        (second + SETTLE, third.saturating_sub(MARGIN)),
        (third + SETTLE, marks.restarted),
    ]
}

fn claims_of(run: &Run, marks: &Marks) -> Vec<Claim> {
    let mut claims = vec![
        claims::none_lost(run, Verb::Get),
        claims::posts_lost_only_at(run, &marks.killed),
    ];
    for ((from, to), name) in phases(marks).into_iter().zip(NEAREST_FIRST) {
        let records = run.sent_within(from, to);
        let claim = format!("{name}, the nearest that lived, answered all");
        claims.push(claims::all_answered_by(claim, &records, |service| {
            service == name
        }));
    }
    let [nearest, ..] = NEAREST_FIRST;
    let last = run.sent_within(marks.end.saturating_sub(s(1)), marks.end);
    claims.push(claims::all_answered_by(
        "in the end the nearest answered all again",
        &last,
        |service| service == nearest,
    ));
    claims.push(claims::caller_handed_on(
        run,
        of(WEST),
        &WEST.gateway_id(),
        &EAST.gateway_id(),
    ));
    claims
}

fn figure_of(run: &Run, marks: &Marks) -> Figure {
    let [_, next @ ..] = NEAREST_FIRST;
    let keys = ["failoverRackMs", "failoverZoneMs", "failoverClusterMs"];
    let mut words = Vec::new();
    let mut times = Vec::new();
    for ((killed, name), key) in marks.killed.into_iter().zip(next).zip(keys) {
        let first = within(&run.records, killed, marks.end)
            .filter(|record| record.service() == Some(name))
            .filter_map(Record::ended)
            .min();
        let took = first.map(|at| at - killed);
        words.push(format!("{} to {name}", or_never(took)));
        times.push((key, took));
    }
    times.into_iter().fold(
        Figure::new("time to fail over", words.join(", ")),
        |figure, (key, took)| figure.time(key, took),
    )
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
            killed: [ms(3000), ms(6000), ms(9000)],
            restarted: ms(12_000),
            end: ms(16_000),
        }
    }

    fn who(at: u64) -> &'static str {
        match at {
            0..3000 => "east-rack-a",
            3000..6000 => "east-rack-b",
            6000..9000 => "east-zone-2",
            9000..14_000 => "west-1",
            _ => "east-rack-a",
        }
    }

    fn broken(who: impl Fn(u64) -> &'static str) -> Vec<String> {
        let mut run = Run::of(&NEAREST_FIRST);
        for at in (0..16_000).step_by(20) {
            run = run.answered(Verb::Get, at, who(at));
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
        claims_of(&run, &marks())
            .into_iter()
            .filter(|claim| !claim.held)
            .map(|claim| claim.claim)
            .collect()
    }

    #[test]
    fn all_claims_hold_when_the_nearest_that_lives_answers() {
        assert_eq!(broken(who), Vec::<String>::new());
    }

    #[test]
    fn one_answer_from_farther_than_needed_breaks_a_claim() {
        let broken = broken(|at| if at == 5000 { "east-zone-2" } else { who(at) });
        assert_eq!(
            broken,
            ["east-rack-b, the nearest that lived, answered all"]
        );
    }

    #[test]
    fn its_yaml_is_what_a_gateway_reads() {
        let (mut site, pair) = quiet();
        let [a, b, c, west] = NEAREST_FIRST.map(|name| site.service(name).unwrap());
        configure(&mut site, &pair, [&a, &b, &c], &west).unwrap();
        assert_eq!(levels(&loaded(&pair.east), "shop/orders"), [1, 1, 1, 1]);
        assert_eq!(levels(&loaded(&pair.west), "shop/orders"), [1]);
    }
}
