//! `zeugma demo`: two clusters on this machine, of real processes, sockets and certificates.
//!
//! ```text
//! client --plaintext--> east-gw --plaintext--> east-1, east-2
//!                          `--SPIFFE mTLS--> [relay] --> west-gw --plaintext--> west-1, west-2
//! ```
//! The client runs in the demo's own process; everything else is a child of it: this same binary
//! as `zeugma gateway`, `zeugma demo-service` and `zeugma demo-relay`.

mod claims;
mod client;
mod credentials;
mod fetch;
mod hold;
mod journal;
mod metrics;
mod narrate;
mod process;
mod relay;
mod report;
mod run;
mod scenario;
mod service;
mod site;
mod yaml;

use std::error::Error;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use self::hold::span;
use self::narrate::{Narrator, Voice};
use self::process::ChildArgs;
use self::relay::RelayArgs;
use self::report::Report;
use self::scenario::{Scenario, ScenarioError};
use self::service::ServiceArgs;
use self::site::{Conditions, Site, West};
use crate::exit;

/// The demo and the processes it is made of.
#[derive(Debug, Subcommand)]
pub(crate) enum DemoCommand {
    /// Two clusters on this machine: kill the services of one and watch the other take over
    Demo(DemoArgs),
    /// A service of the demo
    #[command(hide = true)]
    DemoService(ServiceArgs),
    /// The distance between the demo's clusters
    #[command(hide = true)]
    DemoRelay(RelayArgs),
    /// Becomes another zeugma that ends with the process that started it
    #[command(hide = true)]
    DemoChild(ChildArgs),
}

/// What `zeugma demo` is told.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// What there is to see
    #[arg(long, value_enum, default_value = "failover")]
    scenario: Scenario,
    /// Keep everything running after the scenario, until Ctrl-C, and the files after that
    #[arg(long)]
    keep: bool,
    /// The round trip between the two clusters, such as 80ms
    #[arg(long, value_parser = span, default_value = "0ms")]
    rtt: Duration,
    /// Requests per second
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u32).range(50..=2000))]
    rate: u32,
    /// Do not start the cluster west: then the claims cannot hold
    #[arg(long)]
    without_west: bool,
    /// For people, or one JSON document for scripts (then the telling goes to standard error)
    #[arg(short, long, value_enum, default_value = "human")]
    output: Output,
    /// Tell nothing while it runs
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Human,
    Json,
}

/// Runs the demo, or one of its processes.
pub(crate) fn run(command: DemoCommand) -> ExitCode {
    match command {
        DemoCommand::Demo(args) => on_this_thread(demo(args)),
        DemoCommand::DemoService(args) => on_this_thread(async {
            let name = args.name.clone();
            ended(&name, service::run(args).await)
        }),
        DemoCommand::DemoRelay(args) => {
            on_this_thread(async { ended("demo-relay", relay::run(args).await) })
        }
        DemoCommand::DemoChild(args) => failed(&process::become_child(&args)),
    }
}

/// The kernel ends a child with the *thread* that started it, so all of it is on this one.
fn on_this_thread(work: impl Future<Output = ExitCode>) -> ExitCode {
    match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime.block_on(work),
        Err(error) => failed(&error),
    }
}

fn ended(name: &str, result: io::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            writeln!(io::stderr(), "error[ZG1031]: {name}: {error}").ok();
            ExitCode::from(exit::FAILED)
        }
    }
}

/// Says what failed and why, down to the first cause.
fn failed(error: &dyn Error) -> ExitCode {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    writeln!(io::stderr(), "error[ZG1031]: {text}").ok();
    ExitCode::from(exit::FAILED)
}

/// How the playing ended.
enum Played {
    ToTheEnd(Result<Report, ScenarioError>),
    /// Somebody asked it to end.
    Stopped,
}

async fn demo(args: DemoArgs) -> ExitCode {
    let voice = match (args.quiet, args.output) {
        (true, _) => Voice::Quiet,
        (false, Output::Human) => Voice::Out,
        (false, Output::Json) => Voice::Err,
    };
    let narrator = Narrator::new(voice);
    let conditions = Conditions {
        rate: args.rate,
        rtt: args.rtt,
        west: if args.without_west {
            West::Missing
        } else {
            West::Started
        },
    };
    let mut site = match Site::open(narrator.clone(), conditions) {
        Ok(site) => site,
        Err(error) => return failed(&error),
    };
    if args.keep {
        site.keep_folder();
    }
    narrator.tell(&format!(
        "the demo's files are in {}{}",
        site.folder().display(),
        if args.keep { "" } else { ", gone when it ends" }
    ));
    let played = tokio::select! {
        // Dropping the scenario drops its client; its processes belong to the site.
        report = Box::pin(args.scenario.play(&mut site)) => Played::ToTheEnd(report),
        () = asked_to_end() => Played::Stopped,
    };
    let code = match played {
        Played::ToTheEnd(Ok(report)) => {
            let code = told(&report, args.output, &narrator);
            if args.keep {
                keep(&mut site).await;
            }
            code
        }
        Played::ToTheEnd(Err(error)) => failed(&error),
        Played::Stopped => {
            narrator.tell("asked to end");
            ExitCode::from(exit::FAILED)
        }
    };
    site.processes.end().await;
    code
}

/// Hands out the report; the exit code that says whether its claims held.
fn told(report: &Report, output: Output, narrator: &Narrator) -> ExitCode {
    report.tell(narrator);
    if output == Output::Json {
        let written = serde_json::to_writer_pretty(io::stdout(), report)
            .map_err(io::Error::from)
            .and_then(|()| writeln!(io::stdout()));
        if let Err(error) = written {
            return failed(&error);
        }
    }
    if report.held() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(exit::FAILED)
    }
}

/// Leaves everything running until somebody asks it to end.
async fn keep(site: &mut Site) {
    let narrator = &site.narrator;
    narrator
        .line("\nEverything stays up until Ctrl-C: call with the curl above, kill what you like.");
    narrator.line("A service that you killed comes back with:");
    for (program, _) in site.processes.list() {
        if program.role == "service" {
            narrator.line(&format!("  {}", site.processes.by_hand(program)));
        }
    }
    asked_to_end().await;
    site.narrator.tell(&format!(
        "ending; the files stay in {}",
        site.folder().display()
    ));
}

/// Ends at SIGINT, SIGTERM or SIGHUP.
async fn asked_to_end() {
    let wait = async |kind| match signal(kind) {
        Ok(mut signals) => {
            signals.recv().await;
        }
        // Without a handler the signal itself ends the process, and the kernel its children.
        Err(_) => std::future::pending().await,
    };
    tokio::select! {
        () = wait(SignalKind::interrupt()) => {}
        () = wait(SignalKind::terminate()) => {}
        () = wait(SignalKind::hangup()) => {}
    }
}
