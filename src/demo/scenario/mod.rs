//! The scenarios: each sets up a site, does something to it, and claims what must then be so.

mod failover;
mod federation;
mod locality;
mod mirror;

use std::time::Duration;

use super::claims::Claim;
use super::client::Client;
use super::credentials::{self, CredentialError};
use super::fetch;
use super::journal::Verb;
use super::narrate::said;
use super::report::{Figure, Report};
use super::run::{Run, latency};
use super::site::{Cluster, EAST, Gateway, Service, Site, SiteError, WEST, West};
use super::yaml;
use super::{claims, metrics};

/// What there is to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Scenario {
    /// The local services are killed, all of them, and come back
    Failover,
    /// Services at several distances: the nearest that lives answers
    Locality,
    /// Copies of requests go to a canary in the other cluster, which is slow and then killed
    Mirror,
    /// Two clusters with a root each: refused until both have the other's bundle
    Federation,
}

/// What stops a scenario before its claims could be checked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ScenarioError {
    #[error(transparent)]
    Site(#[from] SiteError),
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    #[error("this scenario needs the cluster west; leave out --without-west")]
    WestNeeded,
}

impl From<super::process::ProcessError> for ScenarioError {
    fn from(error: super::process::ProcessError) -> Self {
        Self::Site(error.into())
    }
}

impl Scenario {
    /// Plays it.
    ///
    /// # Errors
    /// When something of the demo itself fails; a gateway that ends by itself is one such thing.
    pub(crate) async fn play(self, site: &mut Site) -> Result<Report, ScenarioError> {
        let needs_west = match self {
            Self::Failover | Self::Locality => false,
            Self::Mirror | Self::Federation => true,
        };
        if needs_west && site.conditions.west == West::Missing {
            return Err(ScenarioError::WestNeeded);
        }
        match self {
            Self::Failover => Box::pin(failover::play(site)).await,
            Self::Locality => Box::pin(locality::play(site)).await,
            Self::Mirror => Box::pin(mirror::play(site)).await,
            Self::Federation => Box::pin(federation::play(site)).await,
        }
    }
}

/// The two clusters' gateways and how they reach one another.
#[derive(Debug)]
struct Pair {
    east: Gateway,
    west: Gateway,
}

/// Finds places for two gateways that share a root, each with an issuer of its own, and lets
/// them trust one another.
fn pair(site: &mut Site) -> Result<Pair, ScenarioError> {
    let (east, west) = (site.gateway(EAST)?, site.gateway(WEST)?);
    let mut authority = credentials::authority(&site.folder().join("ca"), &[EAST, WEST])?;
    for gateway in [&east, &west] {
        credentials::equip(&mut authority, gateway)?;
        for cluster in [EAST, WEST] {
            let bundle = credentials::bundle(&mut authority, cluster)?;
            credentials::trust(gateway, &bundle)?;
        }
    }
    Ok(Pair { east, west })
}

/// Starts the client of every scenario.
fn client(site: &mut Site, pair: &Pair) -> Client {
    site.narrator.tell(&format!(
        "a client in east sends {} requests/s to its gateway, every fifth a POST",
        site.conditions.rate
    ));
    site.client(&pair.east, &yaml::host(ROUTE))
}

/// Starts services and gateways, west's only where it is to be there, and says what runs where.
async fn start(
    site: &mut Site,
    pair: &Pair,
    east: &[&Service],
    west: &[&Service],
) -> Result<(), ScenarioError> {
    site.start_services(east).await?;
    if site.conditions.west == West::Started {
        site.start_services(west).await?;
        site.start_gateways(&[&pair.west, &pair.east]).await?;
    } else {
        site.start_gateways(&[&pair.east]).await?;
    }
    introduce(site, pair);
    Ok(())
}

/// Says what runs, where its files are, and how to try it oneself.
fn introduce(site: &Site, pair: &Pair) {
    let narrator = &site.narrator;
    narrator.tell(match site.conditions.west {
        West::Started => "the clusters east and west are up, each with an issuer and a gateway",
        West::Missing => "the cluster east is up, west is not: --without-west",
    });
    for (program, pid) in site.processes.list() {
        let at = program
            .probe
            .map(|(address, _)| address.to_string())
            .unwrap_or_default();
        narrator.line(&format!(
            "  {:<8} {:<9} pid {pid:<8} {at}",
            program.role, program.name
        ));
    }
    for gateway in [&pair.east, &pair.west] {
        narrator.line(&format!(
            "  {}'s YAML  {}",
            gateway.cluster.name,
            gateway.config().display()
        ));
    }
    let access_log = site.processes.output(&pair.east.cluster.gateway());
    narrator.line("Try it yourself (with --keep it stays up until Ctrl-C):");
    for command in [
        format!(
            "curl -H 'host: {}' http://{}/orders/1",
            yaml::host(ROUTE),
            pair.east.apps
        ),
        format!(
            "curl -s http://{}/metrics | grep ^zeugma_",
            pair.east.metrics
        ),
        format!("tail -f {}", access_log.display()),
    ] {
        narrator.line(&format!("  {command}"));
    }
}

/// The claims that hold in every scenario: the client's word and the services' agree.
fn common_claims(run: &Run, rate: u32) -> Vec<Claim> {
    vec![
        claims::counts_agree(run),
        claims::no_post_twice(run),
        claims::rate_kept(run, rate),
    ]
}

/// The figures that every scenario ends with; what was refused before `from` was not lost.
async fn common_figures(run: &Run, gateway: &Gateway, from: Duration) -> Vec<Figure> {
    let (gets, posts) = (run.sent(Verb::Get), run.sent(Verb::Post));
    let lost = |verb| run.lost(verb).iter().filter(|r| r.sent >= from).count();
    let (gets_lost, posts_lost) = (lost(Verb::Get), lost(Verb::Post));
    let again = run.received_again(Verb::Get);
    let metrics = fetch::get(gateway.metrics, "/metrics").await.ok();
    let retries = metrics
        // A counter that never counted is not written.
        .map(|text| metrics::sum(&String::from_utf8_lossy(&text), RETRIES).unwrap_or(0));
    let retried = retries.map_or_else(|| "unknown".to_owned(), |count| count.to_string());
    let all: Vec<_> = run.records.iter().collect();
    let at = |thousandths| latency(&all, thousandths);
    vec![
        Figure::new("sent", format!("{gets} GET, {posts} POST"))
            .count("sentGets", Some(gets))
            .count("sentPosts", Some(posts)),
        Figure::new("lost", format!("{gets_lost} GET, {posts_lost} POST"))
            .count("lostGets", Some(gets_lost))
            .count("lostPosts", Some(posts_lost)),
        Figure::new(
            "tried again by the gateway",
            format!("{retried}, of which {again} GET had already reached a service"),
        )
        .count("retries", retries.and_then(|count| count.try_into().ok()))
        .count("getsReceivedAgain", Some(again)),
        Figure::new(
            "latency",
            format!(
                "p50 {}, p99 {}, most {}",
                or_never(at(500)),
                or_never(at(990)),
                or_never(at(1000))
            ),
        )
        .time("latencyP50Ms", at(500))
        .time("latencyP99Ms", at(990))
        .time("latencyMaxMs", at(1000)),
    ]
}

/// A time as people say it.
fn or_never(span: Option<Duration>) -> String {
    span.map_or_else(|| "never".to_owned(), said)
}

/// What the gateway counts requests by that it tried again.
const RETRIES: &str = "zeugma_retries_total";
/// The service that the client calls.
const ROUTE: &str = "orders";
/// How long health takes to be seen: two checks up or down, every 500 ms, and a little.
const SETTLE: Duration = Duration::from_millis(1500);
/// Requests sent this shortly before a change may still be under way at it.
const MARGIN: Duration = Duration::from_millis(300);

/// Seconds.
const fn s(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// The names of clusters as a match on services' names.
fn of(cluster: Cluster) -> impl Fn(&str) -> bool {
    move |service| super::run::is_of(service, cluster.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::narrate::{Narrator, Voice};
    use crate::demo::site::Conditions;
    use zeugma_core::snapshot::Snapshot;
    use zeugma_xds::{NodeOptions, load};

    /// A site on which nothing runs.
    pub(super) fn quiet() -> (Site, Pair) {
        let conditions = Conditions {
            rate: 400,
            rtt: Duration::ZERO,
            west: West::Started,
        };
        let mut site = Site::open(Narrator::new(Voice::Quiet), conditions).unwrap();
        let (east, west) = (site.gateway(EAST).unwrap(), site.gateway(WEST).unwrap());
        (site, Pair { east, west })
    }

    /// What a gateway makes of the YAML written for it; no finding, not even a warning.
    pub(super) fn loaded(gateway: &Gateway) -> Snapshot {
        let options = NodeOptions {
            name: Some(gateway.cluster.gateway()),
            locality: None,
        };
        match load(&gateway.config(), &options) {
            Ok(loaded) => {
                assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
                loaded.snapshot
            }
            Err(findings) => panic!("{}", findings.to_human(zeugma_xds::Color::Plain)),
        }
    }

    /// How many endpoints each level of a route's cluster has, the preferred one first.
    pub(super) fn levels(snapshot: &Snapshot, route: &str) -> Vec<usize> {
        let mut clusters = snapshot.clusters.iter();
        let cluster = clusters.find(|cluster| &*cluster.route == route).unwrap();
        let levels = cluster.levels.iter();
        levels.map(|level| level.members.len()).collect()
    }
}
