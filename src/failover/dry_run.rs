//! `--dry-run`: what a lever would do, as the gateway plays it.

use std::fmt::Write as _;
use std::process::ExitCode;

use serde_json::Value;

use crate::admin::{self, AdminError, Output, Target, field, query};
use crate::status::{list, word};
use crate::table::{Legend, Table, printable};
use crate::{ca, exit};

/// Routes that are told one by one to people.
const ROUTES_MAX: usize = 10;

/// The gateway would not do it.
#[derive(Debug, thiserror::Error)]
#[error("it would be refused: {0}")]
struct Refused(String);

/// Asks what a lever would do, and prints it.
pub(super) fn ask(
    (target, path): (&Target, &str),
    asked: Vec<(&'static str, &str)>,
    rate: Option<f64>,
    output: Output,
    kind: &str,
) -> Result<ExitCode, AdminError> {
    let rate = rate.map(|rate| rate.to_string());
    let mut asked: Vec<(&str, &str)> = asked;
    asked.extend(rate.as_deref().map(|rate| ("rate", rate)));
    asked.push(("dry_run", "true"));
    let answer = target.admin()?.post_json(&query(path, &asked))?;
    let refused = field(&answer, "refused").as_str().map(str::to_owned);
    let printed = match output {
        Output::Json => admin::print_json(kind, answer)?,
        Output::Human => admin::print(&to_text(&answer))?,
    };
    Ok(refused.map_or(printed, |why| {
        ca::fail(&Refused(why), "ZG1070", exit::FINDINGS)
    }))
}

fn to_text(answer: &Value) -> String {
    let simulation = field(answer, "simulation");
    let services = list(field(simulation, "services"));
    let mut text = String::new();
    // To write to a string never fails.
    writeln!(
        text,
        "nothing is changed. Played by the gateway's own engine from how it stands now, for {}, with {} \
         requests/s to each of {} service(s):",
        seconds(field(simulation, "seconds")),
        field(simulation, "rate"),
        services.len()
    )
    .ok();
    for fault in list(field(simulation, "faults")) {
        let to = field(fault, "to");
        let to = if to.is_number() {
            format!(" until {}", seconds(to))
        } else {
            String::new()
        };
        let line = format!(
            "  {} {} at {}{to}: {} endpoint(s)",
            word(field(fault, "kind")),
            word(field(fault, "what")),
            seconds(field(fault, "from")),
            field(fault, "endpoints"),
        );
        writeln!(text, "{}", printable(&line)).ok();
    }
    for service in services.iter().take(ROUTES_MAX) {
        route(service, &mut text);
    }
    let more = field(answer, "services_left_out").as_u64().unwrap_or(0);
    let more = more.saturating_add(services.len().saturating_sub(ROUTES_MAX) as u64);
    if more > 0 {
        writeln!(text, "\nand {more} more service(s)").ok();
    }
    text
}

fn route(service: &Value, text: &mut String) {
    let part = (field(service, "part").as_str()).map_or_else(String::new, |to| format!(" to {to}"));
    let name = format!(
        "{}:{}{part}",
        word(field(service, "service")),
        field(service, "port")
    );
    writeln!(text, "\n{}", printable(&name)).ok();
    let mut table = Table::new(&["LEVEL", "NOW", "LEAST", "MOST", "AT THE END"]);
    let mut legend = Legend::default();
    for level in list(field(service, "levels")) {
        let extreme = |name: &str| percent(field(field(level, name), "value"));
        table.row(vec![
            legend.short(word(field(level, "name"))),
            percent(field(level, "share")),
            extreme("share_min"),
            extreme("share_max"),
            percent(field(level, "share_end")),
        ]);
    }
    write!(text, "{table}{legend}").ok();
    let room = field(service, "room_min");
    writeln!(
        text,
        "headroom: what is healthy has room for {} of the traffic at the least, at {}",
        percent(field(room, "value")),
        seconds(field(room, "at"))
    )
    .ok();
    let requests = field(service, "requests");
    let count = |name: &str| field(requests, name).as_f64().unwrap_or_default();
    writeln!(
        text,
        "of {:.0} requests {:.0} would fail and {:.0} be refused; {:.0} extra tries",
        count("sent"),
        count("failed"),
        count("refused"),
        count("retried")
    )
    .ok();
    for phase in list(field(service, "phases")) {
        let after = field(phase, "settled_after_seconds");
        let after = if after.is_number() {
            format!("shares stay after {}", seconds(after))
        } else {
            "shares still move at the next change, or at the end".to_owned()
        };
        let at = seconds(field(phase, "at"));
        writeln!(text, "{} at {at}: {after}", word(field(phase, "edge"))).ok();
    }
}

fn percent(share: &Value) -> String {
    format!("{:.1} %", share.as_f64().unwrap_or_default() * 100.0)
}

fn seconds(value: &Value) -> String {
    let seconds = (value.as_f64().unwrap_or_default() * 10.0).round() / 10.0;
    format!("{seconds} s")
}
