//! What a simulation came to, for people and for scripts.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};
use zeugma_core::simulate::{
    Counts, Edge, Extreme, Fault, FaultKind, Judgement, Phase, Report, Scenario, ServiceReport,
};
use zeugma_core::snapshot::Snapshot;
use zeugma_proxy::simulation::{self, event_text};

use crate::table::{Legend, Table, printable};

/// Services that are told one by one to people.
const SERVICES_MAX: usize = 10;
/// Lines of what happened, for people.
const EVENTS_MAX: usize = 40;

/// A simulation and what came of it.
pub(super) struct Played<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) scenario: &'a Scenario,
    pub(super) report: &'a Report,
    pub(super) judged: &'a [Judgement],
}

impl Played<'_> {
    /// `namespace/name:port`, and the part of a split.
    pub(super) fn name(&self, service: &ServiceReport) -> String {
        let at = self.snapshot.service(service.service);
        let part = (service.part.as_ref()).map_or_else(String::new, |part| format!(" to {part}"));
        format!("{}:{}{part}", at.name, at.port)
    }

    /// The names of a service's levels.
    pub(super) fn levels(&self, service: &ServiceReport) -> Vec<&str> {
        let levels = &self.snapshot.cluster(service.cluster).levels;
        levels.iter().map(|level| &*level.name).collect()
    }

    pub(super) fn to_text(&self) -> String {
        let mut text = String::new();
        // To write to a string never fails.
        writeln!(text, "{}", self.first_line()).ok();
        for fault in &self.scenario.faults {
            writeln!(text, "  {}", printable(&told(fault))).ok();
        }
        for service in self.report.services.iter().take(SERVICES_MAX) {
            self.service(service, &mut text);
        }
        let more = self.report.services.len().saturating_sub(SERVICES_MAX);
        if more > 0 {
            writeln!(
                text,
                "\nand {more} more; --route tells of one, -o json of all"
            )
            .ok();
        }
        self.events(&mut text);
        if !self.judged.is_empty() {
            let mut table = Table::new(&["EXPECTED", "HOLDS", "MEASURED"]);
            for one in self.judged {
                let holds = if one.met { "yes" } else { "NO" };
                let cells = [&*one.expected, holds, &*one.measured];
                table.row(cells.map(str::to_owned).to_vec());
            }
            write!(text, "\n{table}").ok();
        }
        if self.report.weight_max > 1.0 {
            writeln!(
                text,
                "\nWhere nothing failed or moved, one planned request stood for up to {:.0}.",
                self.report.weight_max
            )
            .ok();
        }
        text
    }

    fn first_line(&self) -> String {
        let Counts {
            sent,
            retried,
            failed,
            refused,
            over_capacity,
            slow,
            ..
        } = self.report.counts;
        let lost = self.report.counts.lost();
        let mut line = format!("of {sent:.0} requests ");
        if lost > 0.0 {
            write!(
                line,
                "{lost:.0} are lost ({}; {failed:.0} failed, {refused:.0} refused",
                percent(lost / sent.max(1.0))
            )
            .ok();
            if over_capacity > 0.0 {
                write!(line, ", {over_capacity:.0} of those over capacity").ok();
            }
            line.push(')');
        } else {
            line.push_str("none is lost");
        }
        write!(line, ", {retried:.0} extra tries").ok();
        if slow > 0.0 {
            write!(line, ", {slow:.0} answers came late").ok();
        }
        write!(
            line,
            ": {} in a second to each of {} service(s), for {}",
            self.scenario.rate,
            self.scenario.services.len(),
            seconds(self.scenario.lasts)
        )
        .ok();
        line
    }

    fn service(&self, service: &ServiceReport, text: &mut String) {
        writeln!(text, "\n{}", printable(&self.name(service))).ok();
        let mut table = Table::new(&[
            "LEVEL",
            "SHARE",
            "LEAST",
            "MOST",
            "AT THE END",
            "ONE ENDPOINT",
        ]);
        let mut legend = Legend::default();
        for (name, level) in self.levels(service).into_iter().zip(&service.levels) {
            table.row(vec![
                legend.short(name),
                percent(level.start),
                extreme(level.min, level.start),
                extreme(level.max, level.start),
                percent(level.end),
                format!("<= {:.1}/s", level.endpoint_rate_max),
            ]);
        }
        write!(text, "{table}{legend}").ok();
        let room = service.room_min;
        writeln!(
            text,
            "room: all levels together have room for {} of the traffic at the least, at {}",
            percent(room.value),
            seconds(room.at.since_origin())
        )
        .ok();
        let lost = service.counts.lost();
        if lost > 0.0 {
            writeln!(text, "lost: {lost:.0} of {:.0}", service.counts.sent).ok();
        }
        for phase in &service.phases {
            writeln!(text, "{}", printable(&self.phase(phase))).ok();
        }
    }

    fn phase(&self, phase: &Phase) -> String {
        let fault = self.scenario.faults.get(phase.fault);
        let fault = fault.map_or_else(String::new, |fault| {
            format!("{} {}", fault.kind.label(), fault.what)
        });
        let edge = match phase.edge {
            Edge::Begins => "begins",
            Edge::Ends => "ends",
        };
        let after = match phase.settled_after {
            Some(after) => format!("shares stay after {}", seconds(after)),
            None => "shares still move when the next change comes, or at the end".to_owned(),
        };
        let at = seconds(phase.at.since_origin());
        format!("{fault} {edge} at {at}: {after}")
    }

    fn events(&self, text: &mut String) {
        let all = &self.report.events;
        if all.is_empty() {
            return;
        }
        text.push('\n');
        for (at, event) in all.iter().take(EVENTS_MAX) {
            let line = format!("{:>8}  {}", seconds(at.since_origin()), event_text(event));
            writeln!(text, "{}", printable(&line)).ok();
        }
        let more = all.len().saturating_sub(EVENTS_MAX) + self.report.events_left_out;
        if more > 0 {
            writeln!(text, "{:>8}  and {more} more events", "").ok();
        }
    }

    pub(super) fn to_json(&self) -> Value {
        let expectations: Vec<Value> = (self.judged.iter())
            .map(
                |one| json!({ "expected": one.expected, "met": one.met, "measured": one.measured }),
            )
            .collect();
        let mut document = simulation::document(self.snapshot, self.scenario, self.report);
        if let Some(all) = document.as_object_mut() {
            all.insert("expectations".to_owned(), expectations.into());
            let is_met = self.judged.iter().all(|one| one.met);
            all.insert("ok".to_owned(), is_met.into());
        }
        document
    }
}

/// A fault in words.
pub(super) fn told(fault: &Fault) -> String {
    let how = match &fault.kind {
        FaultKind::Down | FaultKind::Cut | FaultKind::Lever(_) => String::new(),
        FaultKind::Flap(turn) => format!(" by turns of {}", seconds(*turn)),
        FaultKind::Slow(by) => format!(" by {}", seconds(*by)),
        FaultKind::Errors(share) => format!(" in {} of answers", percent(*share)),
        FaultKind::Capacity(most) => format!(" of {most}/s"),
    };
    let from = seconds(fault.from.since_origin());
    let to = fault
        .to
        .map_or_else(|| "the end".to_owned(), |to| seconds(to.since_origin()));
    format!(
        "{} {}{how}: {} of {} endpoint(s), from {from} to {to}",
        fault.kind.label(),
        fault.what,
        fault.hit.len(),
        fault.of
    )
}

fn extreme(extreme: Extreme, start: f64) -> String {
    if (extreme.value - start).abs() < 1e-9 {
        return percent(extreme.value);
    }
    let at = seconds(extreme.at.since_origin());
    format!("{} at {at}", percent(extreme.value))
}

pub(super) fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

pub(super) fn seconds(time: Duration) -> String {
    let seconds = (time.as_secs_f64() * 10.0).round() / 10.0;
    format!("{seconds}s")
}
