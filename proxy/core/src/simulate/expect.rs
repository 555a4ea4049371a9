//! What is expected of a simulation, and whether it held.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::listed::listed;
use crate::snapshot::Snapshot;
use crate::time::Time;

use super::text::{self, TextError, plain};
use super::{Counts, Edge, Extreme, Report, ServiceReport};

/// Something that must hold of each service, such as `share(west)<=30%`.
#[derive(Debug, Clone, PartialEq)]
pub struct Expectation {
    text: String,
    metric: Metric,
    operator: Operator,
    value: f64,
}

#[derive(Debug, Clone, PartialEq)]
enum Metric {
    /// The share of the levels that are called so, at any time.
    Share(String),
    /// The same at the end.
    ShareEnd(String),
    Lost,
    LostShare,
    Retried,
    RetriedShare,
    /// From the beginning of each fault to shares that stay, in seconds.
    Converge,
    /// The same from its end.
    Recover,
    /// What the levels have room for beyond all traffic, as a share of it, at any time.
    Headroom,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    AtMost,
    Below,
    AtLeast,
    Above,
}

/// Why a text is no expectation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpectError {
    /// It has no operator.
    #[error("`{0}`: write what is compared, such as `lost<=0.1%`, with <=, <, >= or >")]
    Operator(String),
    /// It names nothing that is measured.
    #[error(
        "`{0}` is not measured; there are share(LEVEL), share-end(LEVEL), lost, retried, converge, recover and headroom"
    )]
    Metric(String),
    /// The value is not one of what is measured.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The value of a count is none.
    #[error("`{0}` is neither a count nor a share; write such as `5` or `0.1%`")]
    Count(String),
    /// No level is called so.
    #[error("no level is called `{0}`; there are: {1}")]
    Level(String, String),
}

/// Whether an expectation held.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// As it was written.
    pub expected: String,
    /// Whether it held.
    pub met: bool,
    /// What was measured, in words: the worst of all services.
    pub measured: String,
}

impl Expectation {
    /// Parses it.
    ///
    /// # Errors
    /// As [`ExpectError`].
    pub fn parse(text: &str, snapshot: &Snapshot) -> Result<Self, ExpectError> {
        let (name, operator, value) = split(text)?;
        let (metric, value) = match name {
            "lost" => count(value, Metric::Lost, Metric::LostShare)?,
            "retried" => count(value, Metric::Retried, Metric::RetriedShare)?,
            "converge" => (Metric::Converge, text::duration(value)?.as_secs_f64()),
            "recover" => (Metric::Recover, text::duration(value)?.as_secs_f64()),
            // There may be more room than for all.
            "headroom" => (Metric::Headroom, percent(value)?),
            _ => {
                let of = |prefix: &str| name.strip_prefix(prefix)?.strip_suffix(')');
                let metric = match (of("share("), of("share-end(")) {
                    (Some(level), _) => Metric::Share(level.to_owned()),
                    (_, Some(level)) => Metric::ShareEnd(level.to_owned()),
                    (None, None) => return Err(ExpectError::Metric(name.to_owned())),
                };
                (metric, text::share(value)?)
            }
        };
        if let Metric::Share(level) | Metric::ShareEnd(level) = &metric {
            check_level(level, snapshot)?;
        }
        Ok(Self {
            text: text.to_owned(),
            metric,
            operator,
            value,
        })
    }

    /// Holds a report to it.
    #[must_use]
    pub fn judge(&self, report: &Report, snapshot: &Snapshot) -> Judgement {
        let wants_little = matches!(self.operator, Operator::AtMost | Operator::Below);
        let mut worst: Option<Measured> = None;
        for service in &report.services {
            let Some(measured) = self.measure(service, snapshot, (wants_little, report.tick))
            else {
                continue;
            };
            let is_worse = worst.as_ref().is_none_or(|worst| {
                if wants_little {
                    measured.value > worst.value
                } else {
                    measured.value < worst.value
                }
            });
            if is_worse {
                worst = Some(measured);
            }
        }
        // What was never measured was not as expected.
        let met =
            (worst.as_ref()).is_some_and(|worst| self.operator.holds(worst.value, self.value));
        Judgement {
            expected: self.text.clone(),
            met,
            measured: worst.map_or_else(
                || "nothing: it has no value here".to_owned(),
                |worst| worst.text,
            ),
        }
    }

    /// The worst value of one service; `None` where it has none.
    fn measure(
        &self,
        service: &ServiceReport,
        snapshot: &Snapshot,
        (wants_little, tick): (bool, Duration),
    ) -> Option<Measured> {
        let at = snapshot.service(service.service);
        let part = (service.part.as_ref()).map_or_else(String::new, |part| format!(" to {part}"));
        let of = format!("{}:{}{part}", at.name, at.port);
        let percent = |value: f64| format!("{:.2} %", value * 100.0);
        let told = |value: f64, text: String| {
            Some(Measured {
                value,
                text: format!("{text} ({of})"),
            })
        };
        let Counts { sent, retried, .. } = service.counts;
        let lost = service.counts.lost();
        let share = |count: f64| if sent > 0.0 { count / sent } else { 0.0 };
        match &self.metric {
            Metric::Share(level) => {
                let extreme = extreme_share(service, snapshot, level, (wants_little, tick))?;
                let when = extreme.at.since_origin();
                told(
                    extreme.value,
                    format!("{} at {}", percent(extreme.value), Seconds(when)),
                )
            }
            Metric::ShareEnd(level) => {
                let value = (levels_of(service, snapshot, level))
                    .map(|ix| service.levels.get(ix).map_or(0.0, |level| level.end))
                    .reduce(|a, b| a + b)?;
                told(value, format!("{} at the end", percent(value)))
            }
            Metric::Lost => told(lost, format!("{lost:.0} of {sent:.0}")),
            Metric::LostShare => {
                let value = share(lost);
                told(
                    value,
                    format!("{} ({lost:.0} of {sent:.0})", percent(value)),
                )
            }
            Metric::Retried => told(retried, format!("{retried:.0} of {sent:.0}")),
            Metric::RetriedShare => {
                let value = share(retried);
                told(
                    value,
                    format!("{} ({retried:.0} of {sent:.0})", percent(value)),
                )
            }
            Metric::Converge => slowest(service, Edge::Begins).and_then(|(v, t)| told(v, t)),
            Metric::Recover => slowest(service, Edge::Ends).and_then(|(v, t)| told(v, t)),
            Metric::Headroom => {
                let value = service.room_min.value - 1.0;
                let when = Seconds(service.room_min.at.since_origin());
                told(value, format!("{} at {when}", percent(value)))
            }
        }
    }
}

struct Measured {
    value: f64,
    text: String,
}

/// A time in a simulation, for people.
struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1}s", self.0.as_secs_f64())
    }
}

impl Operator {
    fn holds(self, value: f64, bound: f64) -> bool {
        const EPSILON: f64 = 1e-9;
        match self {
            Self::AtMost => value <= bound + EPSILON,
            Self::Below => value < bound,
            Self::AtLeast => value >= bound - EPSILON,
            Self::Above => value > bound,
        }
    }
}

fn split(text: &str) -> Result<(&str, Operator, &str), ExpectError> {
    // Those that begin another stand first.
    for (sign, operator) in [
        ("<=", Operator::AtMost),
        (">=", Operator::AtLeast),
        ("<", Operator::Below),
        (">", Operator::Above),
    ] {
        if let Some((name, value)) = text.split_once(sign) {
            return Ok((name.trim(), operator, value.trim()));
        }
    }
    Err(ExpectError::Operator(text.to_owned()))
}

/// A count, or a share of all requests.
fn count(value: &str, count: Metric, share: Metric) -> Result<(Metric, f64), ExpectError> {
    if value.ends_with('%') {
        return Ok((share, text::share(value)?));
    }
    let number = plain(value).ok_or_else(|| ExpectError::Count(value.to_owned()))?;
    Ok((count, number))
}

/// A percentage that may be above 100.
fn percent(value: &str) -> Result<f64, ExpectError> {
    let number = value.strip_suffix('%').and_then(plain);
    let wrong = || TextError::Share(value.to_owned());
    Ok(number.ok_or_else(wrong)? / 100.0)
}

fn check_level(level: &str, snapshot: &Snapshot) -> Result<(), ExpectError> {
    let mut known: Vec<&Arc<str>> = (snapshot.clusters.iter())
        .flat_map(|cluster| &cluster.levels)
        .map(|level| &level.name)
        .collect();
    if known.iter().any(|name| is_called(name, level)) {
        return Ok(());
    }
    known.sort_unstable();
    known.dedup();
    Err(ExpectError::Level(level.to_owned(), listed(&known)))
}

/// Whether a level is called so: by its whole name, or by one of the places and peers in it.
fn is_called(name: &str, wanted: &str) -> bool {
    let is_part = |part: &str| {
        part == wanted
            || part.strip_prefix("peer ") == Some(wanted)
            || part
                .strip_prefix(wanted)
                .is_some_and(|rest| rest.starts_with('/'))
    };
    name == wanted || name.split(", ").any(is_part)
}

/// The levels of a service that are called so.
fn levels_of<'a>(
    service: &ServiceReport,
    snapshot: &'a Snapshot,
    level: &'a str,
) -> impl Iterator<Item = usize> + 'a {
    let cluster = snapshot.cluster(service.cluster);
    (cluster.levels.iter().enumerate())
        .filter(move |(_, one)| is_called(&one.name, level))
        .map(|(ix, _)| ix)
}

/// The largest or least share of these levels; of several together as the steps of the series have it.
fn extreme_share(
    service: &ServiceReport,
    snapshot: &Snapshot,
    level: &str,
    (wants_little, tick): (bool, Duration),
) -> Option<Extreme> {
    let all: Vec<usize> = levels_of(service, snapshot, level).collect();
    match all.as_slice() {
        [] => return None,
        [only] => {
            let level = service.levels.get(*only)?;
            return Some(if wants_little { level.max } else { level.min });
        }
        _ => {}
    }
    let steps = (0u32..).zip(&service.series).map(|(nth, step)| Extreme {
        value: all.iter().filter_map(|ix| step.shares.get(*ix)).sum(),
        at: Time::from_origin(tick * nth),
    });
    if wants_little {
        steps.max_by(|a, b| a.value.total_cmp(&b.value))
    } else {
        steps.min_by(|a, b| a.value.total_cmp(&b.value))
    }
}

/// The longest time until shares stayed, after one side of every fault; endless where they did not.
fn slowest(service: &ServiceReport, edge: Edge) -> Option<(f64, String)> {
    (service.phases.iter())
        .filter(|phase| phase.edge == edge)
        .map(|phase| match phase.settled_after {
            Some(after) => (after.as_secs_f64(), Seconds(after).to_string()),
            None => (f64::INFINITY, "still moving".to_owned()),
        })
        .max_by(|a, b| a.0.total_cmp(&b.0))
}
