//! `zeugma failover`: what an operator decides of where traffic goes.

mod drill;
mod dry_run;

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::{ArgGroup, Args, Subcommand};
use serde_json::Value;
use zeugma_core::simulate::rate;

use crate::admin::{self, AdminError, Output, Target, field, query};
use crate::status::{list, word};
use crate::table::{Table, printable};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Take all new traffic off a locality, a peer or a backend until it is reset, restarts included;
    /// what is open ends by itself
    Evacuate(EvacuateArgs),
    /// Let traffic come back: to a route's levels that wait for it (`failback.mode: manual`) and its
    /// backends, or to what was evacuated; by `failback.ramp`, without `after`
    Reset(ResetArgs),
    /// Take all new traffic off a locality, a peer or a backend for a time, watch what happens, and
    /// bring it back: a rehearsal. Never the last resort of a route; ends by itself when this command
    /// is gone, when the gateway restarts, and when what is left fails
    Drill(drill::DrillArgs),
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("place").required(true).args(["locality", "peer", "backend"]))]
pub(crate) struct EvacuateArgs {
    #[command(flatten)]
    place: Place,
    /// The route of --backend
    #[arg(long, value_name = "NAMESPACE/NAME", requires = "backend")]
    route: Option<String>,
    /// Change nothing: have the gateway play it with its own engine from how it stands now, and say
    /// what would become of shares and requests; exit code 2 where it would be refused
    #[arg(long)]
    dry_run: bool,
    /// Requests in a second to each port of each route that are played [default: 200/s]
    #[arg(long, value_name = "N/s", requires = "dry_run", value_parser = rate)]
    rate: Option<f64>,
    /// Even if nothing healthy is left for a route
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    target: Target,
    /// How to answer
    #[arg(short, long, value_enum, default_value_t = Output::Human)]
    output: Output,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("place").required(true).multiple(true).args(["route", "locality", "peer", "backend"]))]
pub(crate) struct ResetArgs {
    /// The route
    #[arg(value_name = "NAMESPACE/NAME", conflicts_with_all = ["locality", "peer"])]
    route: Option<String>,
    #[command(flatten)]
    place: Place,
    /// Change nothing: have the gateway play it from how it stands now, and say what would become of
    /// shares and requests
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

#[derive(Debug, Args)]
struct Place {
    /// All that stands in `region`, `region/zone` or `region/zone/subzone`
    #[arg(long, value_name = "LOCALITY")]
    locality: Option<String>,
    /// All that is reached through the gateways of this MeshPeer
    #[arg(long, value_name = "NAME", conflicts_with = "locality")]
    peer: Option<String>,
    /// This backend of the route
    #[arg(long, value_name = "NAME", conflicts_with_all = ["locality", "peer"], requires = "route")]
    backend: Option<String>,
}

impl Place {
    fn asked(&self) -> Vec<(&'static str, &str)> {
        let all = [
            ("locality", &self.locality),
            ("peer", &self.peer),
            ("backend", &self.backend),
        ];
        let given = all.into_iter();
        given
            .filter_map(|(name, value)| Some((name, value.as_deref()?)))
            .collect()
    }
}

/// Runs `zeugma failover`.
pub(crate) fn run(command: &Command) -> ExitCode {
    let done = match command {
        Command::Evacuate(args) => evacuate(args),
        Command::Reset(args) => reset(args),
        Command::Drill(args) => drill::drill(args),
    };
    done.unwrap_or_else(|error| error.fail())
}

fn evacuate(args: &EvacuateArgs) -> Result<ExitCode, AdminError> {
    let mut asked = args.place.asked();
    asked.extend(args.route.as_deref().map(|route| ("route", route)));
    asked.extend(args.force.then_some(("force", "true")));
    let path = "/api/v1/failover/evacuate";
    if args.dry_run {
        return dry_run::ask(
            (&args.target, path),
            asked,
            args.rate,
            args.output,
            "Evacuation",
        );
    }
    let answer = post(&args.target, &query(path, &asked))?;
    if args.output == Output::Json {
        return admin::print_json("Evacuation", answer);
    }
    let mut table = Table::new(&["CLUSTER", "LEVEL", "BEFORE", "AFTER"]);
    let mut short_of_room = String::new();
    for cluster in list(field(&answer, "clusters")) {
        if let Some(refused) = field(cluster, "refusedAfter")
            .as_f64()
            .filter(|it| *it > 0.0)
        {
            let name = printable(word(field(cluster, "cluster")));
            // To write to a string never fails.
            writeln!(
                short_of_room,
                "of what is offered to {name} at the moment {:.0} % fits nowhere then: see `capacity` of \
                 its backends",
                refused * 100.0
            )
            .ok();
        }
        for level in list(field(cluster, "levels")) {
            // What has room, where that is known.
            let percent = |name: &str, placed: &str| {
                let share = field(level, placed).as_f64();
                let share = share.or_else(|| field(level, name).as_f64());
                let share = share.unwrap_or_default();
                format!("{:.0} %", share * 100.0)
            };
            table.row(vec![
                word(field(cluster, "cluster")).to_owned(),
                word(field(level, "name")).to_owned(),
                percent("before", "placedBefore"),
                percent("after", "placedAfter"),
            ]);
        }
    }
    let said = said_kept("evacuated", &answer);
    admin::print(&format!("{table}\n{short_of_room}{said}\n"))
}

fn reset(args: &ResetArgs) -> Result<ExitCode, AdminError> {
    let mut asked = args.place.asked();
    asked.extend(args.route.as_deref().map(|route| ("route", route)));
    let path = "/api/v1/failover/reset";
    if args.dry_run {
        return dry_run::ask((&args.target, path), asked, args.rate, args.output, "Reset");
    }
    let answer = post(&args.target, &query(path, &asked))?;
    if args.output == Output::Json {
        return admin::print_json("Reset", answer);
    }
    let said = if field(&answer, "released").as_u64() == Some(0) {
        "nothing of it waited"
    } else {
        said_kept("reset: traffic comes back", &answer)
    };
    admin::print(&format!("{said}\n"))
}

/// Whether what was done outlives the gateway.
fn said_kept(done: &'static str, answer: &Value) -> &'static str {
    match (done, field(answer, "kept").as_bool()) {
        ("evacuated", Some(true)) => "evacuated until a reset",
        ("evacuated", _) => {
            "evacuated until a reset or the end of the process: nothing can be kept in its stateDir"
        }
        _ => done,
    }
}

fn post(target: &Target, path: &str) -> Result<Value, AdminError> {
    target.admin()?.post_json(path)
}
