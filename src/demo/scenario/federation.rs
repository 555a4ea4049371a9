//! Two clusters that share nothing, each with a root of its own: refused until *both* have the
//! other's bundle.

use std::time::Duration;

use super::{
    EAST, MARGIN, Pair, ROUTE, ScenarioError, WEST, client, common_claims, common_figures, of, s,
    start,
};
use crate::demo::claims::{self, Claim};
use crate::demo::client::Record;
use crate::demo::credentials;
use crate::demo::narrate::said;
use crate::demo::report::{Figure, Report};
use crate::demo::run::{Run, within};
use crate::demo::site::{Service, Site, SiteError};
use crate::demo::yaml;

/// How long a bundle may take from the file to the first request that it lets through: the file
/// is noticed, the ejection of 2 s ends, and two checks of 500 ms succeed.
const NOTICED_MAX: Duration = s(10);

/// When what was done.
#[derive(Debug, Clone)]
struct Marks {
    begin: Duration,
    /// East got west's bundle.
    one_sided: Duration,
    /// West got east's bundle.
    mutual: Duration,
    end: Duration,
}

pub(super) async fn play(site: &mut Site) -> Result<Report, ScenarioError> {
    let (east, west) = (site.gateway(EAST)?, site.gateway(WEST)?);
    let mut bundles = Vec::new();
    for gateway in [&east, &west] {
        let cluster = gateway.cluster;
        let folder = site.folder().join(format!("ca-{}", cluster.name));
        let mut authority = credentials::authority(&folder, &[cluster])?;
        credentials::equip(&mut authority, gateway)?;
        let bundle = credentials::bundle(&mut authority, cluster)?;
        credentials::trust(gateway, &bundle)?;
        bundles.push(bundle);
    }
    let pair = Pair { east, west };
    let far = [site.service("west-1")?, site.service("west-2")?];
    let far = far.each_ref();
    configure(site, &pair, far)?;
    site.narrator
        .tell("east and west have a root each; neither gateway has the other's bundle");
    start(site, &pair, &[], &far).await?;

    let client = client(site, &pair);
    let begin = site.narrator.elapsed();
    site.watch(&client, s(3)).await?;
    let (mut one_sided, mut mutual) = (begin, begin);
    if let [east_bundle, west_bundle] = bundles.as_slice() {
        one_sided = site.narrator.elapsed();
        credentials::trust(&pair.east, west_bundle)?;
        site.narrator.tell(
            "east gets west's bundle: it now knows whom it calls, west does not know who calls",
        );
        site.watch(&client, s(3)).await?;
        mutual = site.narrator.elapsed();
        credentials::trust(&pair.west, east_bundle)?;
        site.narrator.tell("west gets east's bundle");
    }
    let is_through = |records: &[Record], _| {
        within(records, mutual, Duration::MAX).any(|record| record.service().is_some())
    };
    if site.watch_until(&client, NOTICED_MAX, is_through).await? {
        site.narrator.tell("the first request came through");
    }
    site.watch(&client, s(4)).await?;
    let marks = Marks {
        begin,
        one_sided,
        mutual,
        end: site.narrator.elapsed(),
    };
    site.narrator.tell("the client stops");
    let run = site.finish(client, &far).await?;

    let mut figures = common_figures(&run, &pair.east, settled(&run, &marks)).await;
    figures.extend(figures_of(&run, &marks));
    let mut claims = claims_of(&run, &marks);
    claims.extend(common_claims(&run, site.conditions.rate));
    Ok(Report::new("federation", claims, figures))
}

fn configure(site: &mut Site, pair: &Pair, far: [&Service; 2]) -> Result<(), SiteError> {
    let (east_at, west_at) = (site.reached_at(&pair.east)?, site.reached_at(&pair.west)?);
    let east = [
        yaml::head("federation", EAST),
        yaml::gateway(&pair.east),
        yaml::peer(WEST, west_at),
        yaml::route(ROUTE),
        "  backends:\n    - { peer: west }\n".to_owned(),
        yaml::SHORT_TIMES.to_owned(),
        yaml::ALLOW_APPS.to_owned(),
    ];
    let west = [
        yaml::head("federation", WEST),
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
    let after = run.sent_within(settled(run, marks), marks.end);
    vec![
        all_refused(
            "without the other's bundle every request was refused",
            &run.sent_within(marks.begin, marks.one_sided.saturating_sub(MARGIN)),
            run,
        ),
        all_refused(
            "with west's bundle in east alone every request was still refused",
            &run.sent_within(marks.one_sided, marks.mutual.saturating_sub(MARGIN)),
            run,
        ),
        claims::all_answered_by(
            "with both bundles in place west answered all, GET and POST",
            &after,
            of(WEST),
        ),
        claims::caller_handed_on(run, of(WEST), &WEST.gateway_id(), &EAST.gateway_id()),
    ]
}

/// None was answered, and no service ever saw one: what the client was told alone could be a
/// failure on the way back.
fn all_refused(claim: &str, records: &[&Record], run: &Run) -> Claim {
    let answered = records.iter().filter(|r| r.service().is_some()).count();
    let reached = records
        .iter()
        .filter(|record| {
            let saw = |journal: &&crate::demo::journal::Journal| {
                journal.received(record.verb, record.id) > 0
            };
            run.journals.iter().find(saw).is_some()
        })
        .count();
    let mut found = format!(
        "{answered} of {} answered, {reached} reached a service",
        records.len()
    );
    if let Some(first) = records.iter().find(|record| record.is_lost()) {
        found.push_str(&format!("; told: {}", claims::why(first)));
    }
    Claim::new(claim, !records.is_empty() && answered + reached == 0, found)
}

/// When the first request that came through was sent.
fn first_through(run: &Run, marks: &Marks) -> Option<Duration> {
    within(&run.records, marks.mutual, marks.end)
        .find(|record| record.service().is_some())
        .map(|record| record.sent)
}

/// From when on no request may be refused.
fn settled(run: &Run, marks: &Marks) -> Duration {
    first_through(run, marks).map_or(marks.end, |first| first + s(1))
}

fn figures_of(run: &Run, marks: &Marks) -> [Figure; 2] {
    let took = first_through(run, marks).map(|first| first - marks.mutual);
    let before = run.sent_within(marks.begin, settled(run, marks));
    let refused = before.iter().filter(|record| record.is_lost()).count();
    let trust = took.map_or_else(
        || "never".to_owned(),
        |took| {
            format!(
                "{} from west's file to the first request through",
                said(took)
            )
        },
    );
    [
        Figure::new("refused without trust", refused.to_string()).count("refused", Some(refused)),
        Figure::new("time to trust", trust).time("trustMs", took),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::tests::{levels, loaded, quiet};
    use super::*;
    use crate::demo::client::End;
    use crate::demo::journal::{Event, Verb};
    use crate::demo::run::tests::ms;

    fn marks() -> Marks {
        Marks {
            begin: ms(0),
            one_sided: ms(1000),
            mutual: ms(2000),
            end: ms(6000),
        }
    }

    fn run(through_from: u64) -> Run {
        let mut run = Run::of(&["west-1"]);
        for at in (0..6000).step_by(20) {
            run = if at < through_from {
                run.lost_one(Verb::Get, at, None)
            } else {
                run.answered(Verb::Get, at, "west-1")
            };
            if let Some(End::Answered { caller, .. }) = run.records.last_mut().map(|r| &mut r.end) {
                *caller = Some(format!(
                    "By={};URI={}",
                    WEST.gateway_id(),
                    EAST.gateway_id()
                ));
            }
        }
        run
    }

    fn broken(run: &Run) -> usize {
        let claims = claims_of(run, &marks());
        claims.iter().filter(|claim| !claim.held).count()
    }

    #[test]
    fn all_claims_hold_when_only_mutual_trust_lets_through() {
        assert_eq!(broken(&run(3000)), 0);
    }

    #[test]
    fn trust_without_a_bundle_breaks_a_claim() {
        assert_eq!(broken(&run(1500)), 1);
        assert_eq!(broken(&run(500)), 2);
    }

    #[test]
    fn a_refused_request_that_reached_a_service_breaks_a_claim() {
        let mut run = run(3000);
        run.note(Verb::Get, 3, "west-1", &[Event::Received]);
        assert_eq!(broken(&run), 1);
    }

    #[test]
    fn no_trust_ever_breaks_the_claims() {
        assert_eq!(broken(&run(9000)), 2);
    }

    #[test]
    fn its_yaml_is_what_a_gateway_reads() {
        let (mut site, pair) = quiet();
        let far = ["west-1", "west-2"].map(|name| site.service(name).unwrap());
        configure(&mut site, &pair, far.each_ref()).unwrap();
        assert_eq!(levels(&loaded(&pair.east), "shop/orders"), [1]);
        assert_eq!(levels(&loaded(&pair.west), "shop/orders"), [2]);
    }
}
