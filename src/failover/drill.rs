//! `zeugma failover drill`: a rehearsal on the gateway that runs.
//!
//! The gateway holds the drill by a lease that this command renews: whatever becomes of the command,
//! traffic comes back.

mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::{ArgGroup, Args};
use serde_json::Value;
use zeugma_core::simulate::{duration, rate, share};

use super::{Place, dry_run};
use crate::admin::{self, Admin, AdminError, Output, Target, field, query};
use crate::status::{list, word};
use crate::top;
use crate::{ca, exit};

use report::{Counts, Outcome, Point, Report};

/// Between two looks at the shares.
const LOOK: Duration = Duration::from_millis(250);
/// Between two looks at the counters.
const COUNT: Duration = Duration::from_secs(1);
/// How long is looked at what fails before.
const BEFORE: Duration = Duration::from_secs(2);
/// The fewest requests that errors are judged by.
const JUDGED_MIN: u64 = 20;
/// How long the gateway may not answer.
const SILENT_MAX: Duration = Duration::from_secs(10);
/// The longest drill, and the longest wait for its traffic.
const LASTS_MAX: Duration = Duration::from_secs(3600);
/// Within so much of what they were, shares are back.
const CLOSE: f64 = 0.01;

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("place").required(true).args(["locality", "peer", "backend"]))]
pub(crate) struct DrillArgs {
    #[command(flatten)]
    place: Place,
    /// The route of --backend
    #[arg(long, value_name = "NAMESPACE/NAME", requires = "backend")]
    route: Option<String>,
    /// How long traffic stays off, 1s to 1h
    #[arg(long = "for", value_name = "TIME", default_value = "30s", value_parser = lasts)]
    lasts: Duration,
    /// Give up as soon as a larger share of requests fails than did before, by so much
    #[arg(long, value_name = "SHARE", default_value = "1%", value_parser = share)]
    max_failed: f64,
    /// How long traffic may take to come back, `failover.failback.ramp` included
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = lasts)]
    back_within: Duration,
    /// Change nothing: have the gateway play it from how it stands now, and say what would become of
    /// shares and requests; exit code 2 where it would be refused
    #[arg(long)]
    dry_run: bool,
    /// Requests in a second to each port of each route that are played [default: 200/s]
    #[arg(long, value_name = "N/s", requires = "dry_run", value_parser = rate)]
    rate: Option<f64>,
    #[command(flatten)]
    target: Target,
    /// How to answer
    #[arg(short, long, value_enum, default_value_t = Output::Human)]
    output: Output,
}

fn lasts(text: &str) -> Result<Duration, String> {
    let lasts = duration(text).map_err(|error| error.to_string())?;
    if lasts < Duration::from_secs(1) || lasts > LASTS_MAX {
        return Err("write 1s to 1h".to_owned());
    }
    Ok(lasts)
}

/// The drill found something.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Found(String);

/// Runs `zeugma failover drill`.
pub(super) fn drill(args: &DrillArgs) -> Result<ExitCode, AdminError> {
    let seconds = args.lasts.as_secs_f64().to_string();
    let mut asked = args.place.asked();
    asked.extend(args.route.as_deref().map(|route| ("route", route)));
    asked.push(("seconds", &seconds));
    let path = "/api/v1/failover/drill";
    if args.dry_run {
        return dry_run::ask((&args.target, path), asked, args.rate, args.output, "Drill");
    }
    let admin = args.target.admin()?;
    let before = Metrics::of(&admin)?;
    sleep(BEFORE);
    let begins = Metrics::of(&admin)?;
    let told = admin.post_json(&query(path, &asked))?;
    let mut watch = Watch::new(&admin, args, told, (&before, begins));
    watch.run()?;
    let report = watch.report();
    let printed = match args.output {
        Output::Human => admin::print(&report.to_text())?,
        Output::Json => admin::print_json("Drill", report.to_json())?,
    };
    Ok(match report.found() {
        None => printed,
        Some(found) => ca::fail(&Found(found), "ZG1071", exit::FINDINGS),
    })
}

/// The counters of each service.
#[derive(Debug, Clone)]
struct Metrics {
    /// How many ended, and how many of them failed.
    ended: BTreeMap<String, (u64, u64)>,
    retried: BTreeMap<String, u64>,
}

impl Metrics {
    fn of(admin: &Admin) -> Result<Self, AdminError> {
        let text = admin.read("/metrics")?;
        let text = String::from_utf8_lossy(&text);
        Ok(Self {
            ended: top::ended(&text),
            retried: top::counted(&text, "zeugma_retries_total{"),
        })
    }

    /// What came since `before`, of these services.
    fn since(&self, before: &Self, of: &BTreeSet<String>) -> Counts {
        let mut counts = Counts::default();
        for service in of {
            let (ended, failed) = self.ended.get(service).copied().unwrap_or_default();
            let was = before.ended.get(service).copied().unwrap_or_default();
            counts.ended += ended.saturating_sub(was.0);
            counts.failed += failed.saturating_sub(was.1);
            let retried = self.retried.get(service).copied().unwrap_or_default();
            let was = before.retried.get(service).copied().unwrap_or_default();
            counts.retried += retried.saturating_sub(was);
        }
        counts
    }
}

/// A drill under way.
struct Watch<'a> {
    admin: &'a Admin,
    args: &'a DrillArgs,
    id: String,
    /// As the gateway told last.
    told: Value,
    began: Instant,
    services: BTreeSet<String>,
    failed_before: f64,
    /// The counters when it began, and when it was over.
    begins: Metrics,
    over: Option<(Instant, Metrics)>,
    latest: Metrics,
    counted: Instant,
    points: Vec<Point>,
    outcome: Outcome,
    back: Option<Duration>,
    /// Another was begun, or the gateway ended, before it was.
    is_lost: bool,
    is_shown: bool,
}

impl<'a> Watch<'a> {
    fn new(
        admin: &'a Admin,
        args: &'a DrillArgs,
        told: Value,
        (before, begins): (&Metrics, Metrics),
    ) -> Self {
        let services = list(field(&told, "clusters")).iter();
        let services: BTreeSet<String> = services
            .map(|cluster| word(field(cluster, "route")).to_owned())
            .collect();
        let is_shown = args.output == Output::Human && std::io::stderr().is_terminal();
        let mut this = Self {
            admin,
            args,
            id: word(field(&told, "drill")).to_owned(),
            failed_before: begins.since(before, &services).share(),
            told,
            began: Instant::now(),
            services,
            latest: begins.clone(),
            begins,
            over: None,
            counted: Instant::now(),
            points: Vec::new(),
            outcome: Outcome::UnderWay,
            back: None,
            is_lost: false,
            is_shown,
        };
        this.note();
        this
    }

    /// Watches until traffic is back, or may not take longer.
    fn run(&mut self) -> Result<(), AdminError> {
        let mut heard = Instant::now();
        loop {
            sleep(LOOK);
            match self.look() {
                Ok(()) => heard = Instant::now(),
                // The gateway that began it is gone, and with it the drill.
                Err(AdminError::Refused(_, _, status, _)) if status == http::StatusCode::GONE => {
                    if self.over.is_none() {
                        self.outcome = Outcome::Over("restarted".to_owned());
                        return Ok(());
                    }
                    // It ended as was told; of what came after nobody tells any more.
                    self.is_lost = true;
                    break;
                }
                Err(error) if error.may_pass() && heard.elapsed() < SILENT_MAX => continue,
                Err(error) => return Err(error),
            }
            let Some((over, _)) = &self.over else {
                continue;
            };
            if matches!(&self.outcome, Outcome::Over(why) if why == "evacuated") {
                break;
            }
            if self.is_back() {
                self.back = Some(over.elapsed());
                break;
            }
            if over.elapsed() >= self.args.back_within {
                break;
            }
        }
        self.latest = Metrics::of(self.admin)?;
        Ok(())
    }

    fn look(&mut self) -> Result<(), AdminError> {
        let path = query("/api/v1/failover/drill/renew", &[("id", &self.id)]);
        self.told = self.admin.post_json(&path)?;
        self.note();
        let is_over = word(field(&self.told, "state")) == "over" && self.over.is_none();
        if is_over || self.counted.elapsed() >= COUNT {
            self.latest = Metrics::of(self.admin)?;
            self.counted = Instant::now();
        }
        if is_over {
            self.over = Some((Instant::now(), self.latest.clone()));
            if matches!(self.outcome, Outcome::UnderWay) {
                self.outcome = Outcome::Over(word(field(&self.told, "why")).to_owned());
            }
        } else if self.over.is_none() && self.fails() {
            let counts = self.latest.since(&self.begins, &self.services);
            self.outcome = Outcome::Failing(counts);
            let path = query("/api/v1/failover/drill/end", &[("id", &self.id)]);
            self.told = self.admin.post_json(&path)?;
            self.over = Some((Instant::now(), self.latest.clone()));
            self.note();
        }
        Ok(())
    }

    /// Whether more fails than may.
    fn fails(&self) -> bool {
        let counts = self.latest.since(&self.begins, &self.services);
        counts.ended >= JUDGED_MIN && counts.share() > self.failed_before + self.args.max_failed
    }

    fn is_back(&self) -> bool {
        let clusters = list(field(&self.told, "clusters"));
        let mut levels = clusters
            .iter()
            .flat_map(|cluster| list(field(cluster, "levels")));
        levels.all(|level| {
            let of = |name: &str| field(level, name).as_f64().unwrap_or_default();
            (of("share") - of("before")).abs() <= CLOSE
        })
    }

    /// Notes the shares, where they are others.
    fn note(&mut self) {
        let share = |level: &Value| field(level, "share").as_f64().unwrap_or_default();
        let shares = clusters_of(&self.told, share);
        let placed = |level: &Value| field(level, "placed").as_f64();
        let point = Point {
            at: self.began.elapsed(),
            is_over: word(field(&self.told, "state")) == "over",
            shares,
            placed: clusters_of(&self.told, placed),
        };
        if self.points.last().is_some_and(|last| last.is_like(&point)) {
            return;
        }
        if self.is_shown {
            let line = report::line(&self.told, &point);
            // Nobody is left to tell if standard error is closed.
            writeln!(std::io::stderr(), "{line}").ok();
        }
        self.points.push(point);
    }

    fn report(&self) -> Report<'_> {
        let (over, then) = match &self.over {
            Some((over, then)) => (Some(over.duration_since(self.began)), then),
            None => (None, &self.latest),
        };
        Report {
            told: &self.told,
            lasts: self.args.lasts,
            failed_before: self.failed_before,
            during: then.since(&self.begins, &self.services),
            after: self.latest.since(then, &self.services),
            over,
            back: self.back,
            back_within: self.args.back_within,
            is_lost: self.is_lost,
            outcome: &self.outcome,
            points: &self.points,
        }
    }
}

/// Something of each level, of each cluster.
fn clusters_of<T>(told: &Value, of: impl Fn(&Value) -> T) -> Vec<Vec<T>> {
    let clusters = list(field(told, "clusters")).iter();
    let levels = clusters.map(|cluster| list(field(cluster, "levels")).iter());
    levels.map(|levels| levels.map(&of).collect()).collect()
}
