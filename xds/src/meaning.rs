//! What a configuration's numbers mean, in words.

use std::collections::BTreeMap;
use std::fmt;

use zeugma_core::admission::Rate;
use zeugma_core::rules::{Field, Match, PathMatch, Rules};
use zeugma_core::snapshot::{Address, Cluster, Failover, Level, Snapshot, TooFew};

use crate::model::scalar::Percent;

/// Where a service's traffic goes, level by level.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceMeaning {
    /// `namespace/name:port`.
    pub service: String,
    /// The levels, preferred first.
    pub levels: Vec<LevelMeaning>,
    /// What happens when no level has a healthy endpoint.
    pub too_few: TooFew,
    /// How its requests are told apart, in the order that is asked; nothing where they are all alike.
    pub rules: Vec<MatchMeaning>,
}

/// One match of a rule.
#[derive(Debug, Clone, PartialEq)]
pub struct MatchMeaning {
    /// What it wants: `GET /v1/* x-beta: 1`, or `all`.
    pub wanted: String,
    /// The name or the place of its rule.
    pub rule: String,
    /// Each part of the rule's split with its share, 0 to 1; nothing where it has none.
    pub parts: Option<Vec<(String, f64)>>,
}

/// One level and when traffic leaves it.
#[derive(Debug, Clone, PartialEq)]
pub struct LevelMeaning {
    /// The localities and peers in it.
    pub name: String,
    /// How many endpoints it has; a name whose addresses are endpoints counts as one.
    pub endpoints: usize,
    /// The names whose addresses are endpoints: how many those are is not known.
    pub names: Vec<String>,
    /// How many must be down for something to leave, and the share of all its traffic that leaves
    /// then; an endpoint counts by its weight, and the heaviest go first.
    pub first: (usize, f64),
    /// How many must be down for all to leave.
    pub all: usize,
    /// Its backends that take only so much, and how much in a second.
    pub capacities: Vec<(String, u32)>,
    /// What it takes in a second; `None` where one of its backends takes anything.
    pub takes: Option<u64>,
}

/// What each service of `snapshot` does when endpoints go down.
#[must_use]
pub fn meaning(snapshot: &Snapshot) -> Vec<ServiceMeaning> {
    snapshot
        .services
        .iter()
        .map(|service| {
            let cluster = snapshot.cluster(service.outbound);
            ServiceMeaning {
                service: format!("{}:{}", service.name, service.port),
                levels: cluster
                    .levels
                    .iter()
                    .map(|level| level_meaning(cluster, level))
                    .collect(),
                too_few: cluster.policy.failover.too_few,
                rules: service
                    .rules
                    .as_deref()
                    .map(rules_meaning)
                    .unwrap_or_default(),
            }
        })
        .collect()
}

fn rules_meaning(rules: &Rules) -> Vec<MatchMeaning> {
    let of = |one: &Match| {
        let rule = rules.list.get(one.rule)?;
        let parts = rule.split.as_ref().map(|split| {
            let total: f64 = split.iter().map(|part| f64::from(part.weight)).sum();
            let share = |weight: u32| f64::from(weight) / total.max(1.0);
            let each = split.iter();
            each.map(|part| (part.label.to_string(), share(part.weight)))
                .collect()
        });
        Some(MatchMeaning {
            wanted: match_text(one),
            rule: rule.label.to_string(),
            parts,
        })
    };
    rules.matches.iter().filter_map(of).collect()
}

/// What is wanted where nothing is.
const ALL: &str = "all";

/// What a match wants.
pub(crate) fn match_text(one: &Match) -> String {
    let Match {
        rule: _,
        path,
        method,
        headers,
        query,
    } = one;
    let fields = |fields: &[Field], sign: &str| -> Vec<String> {
        let texts = fields
            .iter()
            .map(|field| format!("{}{sign}{}", field.name, field.value));
        texts.collect()
    };
    let path = match path {
        PathMatch::Any => None,
        PathMatch::Exact(path) => Some(path.to_string()),
        PathMatch::Prefix(prefix) => Some(format!("{prefix}/*")),
        PathMatch::Begins(text) => Some(format!("{text}*")),
    };
    let parts: Vec<String> = (method.iter().map(ToString::to_string).chain(path))
        .chain(fields(query, "="))
        .chain(fields(headers, ": "))
        .collect();
    if parts.is_empty() {
        ALL.to_owned()
    } else {
        parts.join(" ")
    }
}

fn level_meaning(cluster: &Cluster, level: &Level) -> LevelMeaning {
    let mut weights: Vec<f64> = level
        .members
        .iter()
        .map(|ix| cluster.endpoint(*ix).weight)
        .collect();
    weights.sort_by(|a, b| b.total_cmp(a));
    let addresses = level
        .members
        .iter()
        .map(|ix| &cluster.endpoint(*ix).address);
    let names = addresses.filter_map(|address| match address {
        Address::Each(host, _) => Some(host.to_string()),
        Address::Name(..) | Address::Socket(_) => None,
    });
    let total: f64 = weights.iter().sum();
    let leaving = |down: usize| {
        let gone: f64 = weights.iter().take(down).sum();
        let healthy = if down >= weights.len() {
            0.0
        } else {
            (total - gone) / total
        };
        1.0 - kept(&cluster.policy.failover, healthy)
    };
    let endpoints = weights.len();
    let first = (1..=endpoints)
        .find(|down| leaving(*down) > 1e-9)
        .unwrap_or(endpoints);
    let all = (1..=endpoints)
        .find(|down| leaving(*down) > 1.0 - 1e-9)
        .unwrap_or(endpoints);
    let backends: BTreeMap<&str, Option<u32>> = (level.members.iter())
        .map(|ix| cluster.endpoint(*ix))
        .map(|endpoint| (&*endpoint.backend, endpoint.capacity.map(Rate::get)))
        .collect();
    LevelMeaning {
        name: level.name.to_string(),
        endpoints,
        names: names.collect(),
        first: (first, leaving(first)),
        all,
        takes: (backends.values())
            .map(|capacity| capacity.map(u64::from))
            .sum(),
        capacities: (backends.iter())
            .filter_map(|(name, capacity)| Some(((*name).to_owned(), (*capacity)?)))
            .collect(),
    }
}

/// The share of all traffic that a level keeps at a healthy share of `healthy`: 0 at `full` or
/// below, 1 at `start` or above, straight in between.
fn kept(failover: &Failover, healthy: f64) -> f64 {
    if healthy <= failover.full {
        0.0
    } else if healthy >= failover.start {
        1.0
    } else {
        (healthy - failover.full) / (failover.start - failover.full)
    }
}

impl fmt::Display for ServiceMeaning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.service)?;
        for (at, level) in self.levels.iter().enumerate() {
            write!(f, "  {}. {level}", at + 1)?;
            match self.levels.get(at + 1) {
                Some(next) => writeln!(f, ": {} for {}", level.leaving(), next.name)?,
                None => writeln!(f)?,
            }
            if let Some(text) = level.taking(self.levels.get(at + 1)) {
                writeln!(f, "     {text}")?;
            }
        }
        for one in &self.rules {
            writeln!(f, "  {one}")?;
        }
        let takes_all = |one: &MatchMeaning| one.wanted == ALL;
        if !self.rules.is_empty() && !self.rules.iter().any(takes_all) {
            writeln!(f, "  requests that are none of these are refused (404)")?;
        }
        match self.too_few {
            TooFew::UseAll => writeln!(
                f,
                "  with nothing healthy, endpoints that only traffic found bad are used"
            ),
            TooFew::Fail => writeln!(f, "  with nothing healthy, callers are refused"),
        }
    }
}

impl fmt::Display for MatchMeaning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "requests by rule {}, {}: ", self.rule, self.wanted)?;
        match self.parts.as_deref() {
            None => f.write_str("as above"),
            Some([]) => f.write_str("refused, no part of the split is here"),
            Some(parts) => {
                let texts = parts
                    .iter()
                    .map(|(part, share)| format!("{} to {part}", Percent(*share)));
                f.write_str(&texts.collect::<Vec<_>>().join(", "))
            }
        }
    }
}

impl LevelMeaning {
    const fn noun(&self) -> &'static str {
        if self.endpoints == 1 {
            "endpoint"
        } else {
            "endpoints"
        }
    }

    /// What it takes, and where the rest goes.
    fn taking(&self, next: Option<&Self>) -> Option<String> {
        let each: Vec<String> = (self.capacities.iter())
            .map(|(backend, most)| format!("{backend} takes {most}/s"))
            .collect();
        let each = match each.as_slice() {
            [] => return None,
            all => all.join(", "),
        };
        Some(match (self.takes, next) {
            (Some(all), Some(next)) => {
                format!(
                    "{each}: of what is offered, what is over {all}/s is for {}",
                    next.name
                )
            }
            (Some(all), None) => format!("{each}: what is over {all}/s here is refused (503)"),
            (None, _) => format!("{each}: what is over that is for the others of this level"),
        })
    }

    fn leaving(&self) -> String {
        let (down, share) = self.first;
        let (n, noun, name) = (self.endpoints, self.noun(), &self.name);
        if !self.names.is_empty() {
            return format!("with all of them down all leaves {name}");
        }
        if n == 1 {
            return format!("with it down all leaves {name}");
        }
        if share > 1.0 - 1e-9 {
            return format!("with {down} of {n} {noun} down all leaves {name}");
        }
        format!(
            "with {down} of {n} {noun} down {:.0} % leaves {name}, with {} down all leaves it",
            share * 100.0,
            self.all
        )
    }
}

impl fmt::Display for LevelMeaning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.names.is_empty() {
            return write!(
                f,
                "{} (the addresses of {})",
                self.name,
                self.names.join(", ")
            );
        }
        write!(f, "{} ({} {})", self.name, self.endpoints, self.noun())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn failover(start: f64, full: f64) -> Failover {
        Failover {
            start,
            full,
            hold: Duration::ZERO,
            failback_after: Duration::ZERO,
            failback_ramp: Duration::ZERO,
            failback: zeugma_core::snapshot::Failback::Auto,
            too_few: TooFew::Fail,
        }
    }

    // By hand from the formula of the manual.
    #[test]
    fn the_kept_share_follows_the_formula() {
        for (start, full, healthy, expected) in [
            (0.7, 0.0, 1.0, 1.0),
            (0.7, 0.0, 0.7, 1.0),
            (0.7, 0.0, 0.5, 0.5 / 0.7),
            (0.7, 0.0, 0.0, 0.0),
            (0.8, 0.2, 0.5, 0.5),
            (0.8, 0.2, 0.2, 0.0),
            (0.0, 0.0, 0.01, 1.0),
            (0.0, 0.0, 0.0, 0.0),
        ] {
            let got = kept(&failover(start, full), healthy);
            assert!(
                (got - expected).abs() < 1e-9,
                "{start} {full} {healthy} {got}"
            );
        }
    }
}
