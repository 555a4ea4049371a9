//! What a configuration's numbers mean, in words.

use std::fmt;

use zeugma_core::snapshot::{Address, Cluster, Failover, Level, Snapshot, TooFew};

/// Where a service's traffic goes, level by level.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceMeaning {
    /// `namespace/name:port`.
    pub service: String,
    /// The levels, preferred first.
    pub levels: Vec<LevelMeaning>,
    /// What happens when no level has a healthy endpoint.
    pub too_few: TooFew,
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
            }
        })
        .collect()
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
    LevelMeaning {
        name: level.name.to_string(),
        endpoints,
        names: names.collect(),
        first: (first, leaving(first)),
        all,
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

impl LevelMeaning {
    const fn noun(&self) -> &'static str {
        if self.endpoints == 1 {
            "endpoint"
        } else {
            "endpoints"
        }
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
