//! `zeugma simulate`: a configuration under load and faults, on a virtual clock.

mod report;
mod svg;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use zeugma_core::simulate::{
    ExpectError, Expectation, Fault, FaultError, Judgement, Scenario, duration, rate, simulate,
};
use zeugma_core::snapshot::{ServiceIx, Snapshot};
use zeugma_xds::{Findings, NodeOptions, suggest};

use crate::admin::{self, AdminError};
use crate::{ca, exit};

use report::Played;

/// The longest simulation.
const LASTS_MAX: Duration = Duration::from_secs(86_400);
/// The most faults of one simulation.
const FAULTS_MAX: usize = 256;

/// In each fault, WHAT is an endpoint's address, a backend, a peer, a cluster, or a locality or its
/// beginning; SHARE says how many of its endpoints are hit [default: 100%], and FROM and TO when
/// [default: from a tenth to six tenths of --for]. Of several that hit one endpoint at once the first
/// of `down`, `cut`, `flap`, `errors` and `slow` counts.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct SimulateArgs {
    /// The YAML file, or a directory of them
    #[arg(long, value_name = "FILE|DIR")]
    config: PathBuf,
    /// The MeshGateway that is meant, where there are several
    #[arg(long)]
    name: Option<String>,
    /// Where the gateway stands, instead of its `locality`
    #[arg(long, value_name = "REGION/ZONE")]
    locality: Option<String>,
    /// Only this route [default: every one]
    #[arg(long, value_name = "NAMESPACE/NAME")]
    route: Option<String>,
    /// Nothing listens there, such as eu/eu-1=60%@10s..40s
    #[arg(long, value_name = "WHAT[=SHARE][@FROM[..TO]]")]
    down: Vec<String>,
    /// Nothing comes through and nobody says so, as where a link is cut, such as west@1m..2m
    #[arg(long, value_name = "WHAT[=SHARE][@FROM[..TO]]")]
    cut: Vec<String>,
    /// Down and up by turns [default: of 2s], such as eu-1=50%,5s
    #[arg(long, value_name = "WHAT[=SHARE[,TURN]][@FROM[..TO]]")]
    flap: Vec<String>,
    /// Answers come so much later, such as west=100%,3s
    #[arg(long, value_name = "WHAT=SHARE,TIME[@FROM[..TO]]")]
    slow: Vec<String>,
    /// A share of its answers [default: all] is 503, or a reset where it is not HTTP, such as
    /// eu-1=100%,20%
    #[arg(long, value_name = "WHAT[=SHARE[,ANSWERS]][@FROM[..TO]]")]
    errors: Vec<String>,
    /// A backend takes no more than so many requests in a second, and the gateway knows it, such as
    /// west=300/s@1m..2m
    #[arg(long, value_name = "WHAT=N/s[@FROM[..TO]]")]
    capacity: Vec<String>,
    /// Requests in a second to each port of each route
    #[arg(long, value_name = "N/s", default_value = "200/s", value_parser = rate)]
    rate: f64,
    /// The method of the requests
    #[arg(long, default_value = "GET")]
    method: String,
    /// Their path, which rules look at; they have no headers
    #[arg(long, default_value = "/")]
    path: String,
    /// How long, on the virtual clock
    #[arg(long = "for", value_name = "TIME", default_value = "5m", value_parser = lasts)]
    lasts: Duration,
    /// What must hold of each route: share(LEVEL), share-end(LEVEL), lost, retried, converge, recover
    /// or headroom, with <=, <, >= or >; such as 'share(west)<=30%' or 'lost<=0.1%'
    #[arg(long, value_name = "EXPECTATION")]
    expect: Vec<String>,
    /// What chance is drawn from; the same number gives the same history
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// How to answer
    #[arg(short, long, value_enum, default_value_t = Output::Human)]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    #[value(alias = "text")]
    Human,
    /// For scripts
    Json,
    /// A chart of the shares over time
    Svg,
}

/// Why nothing is simulated.
#[derive(Debug, thiserror::Error)]
enum SimulateError {
    #[error("{0} has errors, so that nothing can be told of it\n{1}")]
    Files(String, Findings),
    #[error("--{0} {1}")]
    Fault(&'static str, String, #[source] FaultError),
    #[error("--expect {0}")]
    Expect(String, #[source] ExpectError),
    #[error("there is no route `{0}`{help}", help = .1.as_ref().map_or_else(String::new, |help| format!("; {help}")))]
    Route(String, Option<String>),
    #[error("more than {FAULTS_MAX} faults in one simulation")]
    Faults,
    #[error(transparent)]
    Print(#[from] AdminError),
}

fn lasts(text: &str) -> Result<Duration, String> {
    let lasts = duration(text).map_err(|error| error.to_string())?;
    if lasts < Duration::from_secs(1) || lasts > LASTS_MAX {
        return Err("write 1s to 24h".to_owned());
    }
    Ok(lasts)
}

/// Runs `zeugma simulate`.
pub(crate) fn run(args: &SimulateArgs) -> ExitCode {
    args.play().unwrap_or_else(|error| match &error {
        SimulateError::Files(..) => ca::fail(&error, "ZG1061", exit::DATA),
        SimulateError::Fault(..)
        | SimulateError::Expect(..)
        | SimulateError::Route(..)
        | SimulateError::Faults => ca::fail(&error, "ZG1062", exit::USAGE),
        SimulateError::Print(error) => error.fail(),
    })
}

impl SimulateArgs {
    fn play(&self) -> Result<ExitCode, SimulateError> {
        let options = NodeOptions {
            name: self.name.clone(),
            locality: self.locality.clone(),
        };
        let loaded = zeugma_xds::load(&self.config, &options).map_err(|findings| {
            SimulateError::Files(self.config.display().to_string(), findings)
        })?;
        let snapshot = &loaded.snapshot;
        let scenario = Scenario {
            services: self.services(snapshot)?,
            rate: self.rate,
            method: self.method.clone(),
            path: self.path.clone(),
            lasts: self.lasts,
            faults: self.faults(snapshot)?,
            seed: self.seed,
        };
        let expectations = (self.expect.iter())
            .map(|text| {
                Expectation::parse(text, snapshot)
                    .map_err(|error| SimulateError::Expect(text.clone(), error))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let report = simulate(snapshot, &scenario);
        let judged: Vec<Judgement> = (expectations.iter())
            .map(|expectation| expectation.judge(&report, snapshot))
            .collect();
        let played = Played {
            snapshot,
            scenario: &scenario,
            report: &report,
            judged: &judged,
        };
        match self.output {
            Output::Human => admin::print(&played.to_text())?,
            Output::Json => admin::print_json("Simulation", played.to_json())?,
            Output::Svg => admin::print(&svg::draw(&played))?,
        };
        let mut code = ExitCode::SUCCESS;
        for one in judged.iter().filter(|one| !one.met) {
            code = ca::fail(&NotMet(one.clone()), "ZG1063", exit::FINDINGS);
        }
        Ok(code)
    }

    fn services(&self, snapshot: &Snapshot) -> Result<Vec<ServiceIx>, SimulateError> {
        let Some(wanted) = &self.route else {
            return Ok((0..snapshot.services.len()).map(ServiceIx).collect());
        };
        let all = snapshot.services.iter().enumerate();
        let found: Vec<ServiceIx> = all
            .filter(|(_, service)| *service.name == **wanted)
            .map(|(ix, _)| ServiceIx(ix))
            .collect();
        if found.is_empty() {
            let known = snapshot.services.iter().map(|service| &*service.name);
            return Err(SimulateError::Route(wanted.clone(), suggest(wanted, known)));
        }
        Ok(found)
    }

    /// What is written last of all that hit an endpoint counts.
    fn faults(&self, snapshot: &Snapshot) -> Result<Vec<Fault>, SimulateError> {
        let kinds = [
            ("slow", &self.slow),
            ("errors", &self.errors),
            ("flap", &self.flap),
            ("cut", &self.cut),
            ("down", &self.down),
            ("capacity", &self.capacity),
        ];
        let mut faults = Vec::new();
        for (kind, texts) in kinds {
            for text in texts {
                let fault = Fault::parse(kind, text, snapshot, self.lasts, self.seed);
                let wrong = |error| SimulateError::Fault(kind, text.clone(), error);
                faults.push(fault.map_err(wrong)?);
            }
        }
        if faults.len() > FAULTS_MAX {
            return Err(SimulateError::Faults);
        }
        Ok(faults)
    }
}

/// An expectation that does not hold.
#[derive(Debug, thiserror::Error)]
#[error("expected {expected}, and it was {measured}", expected = .0.expected, measured = .0.measured)]
struct NotMet(Judgement);
