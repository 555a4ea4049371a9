//! How a demo ended: its claims and figures, for people and for scripts.

use std::time::Duration;

use serde::{Serialize, Serializer};

use super::claims::Claim;
use super::narrate::Narrator;

/// The end of a demo.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    #[serde(rename = "apiVersion")]
    api_version: &'static str,
    kind: &'static str,
    scenario: &'static str,
    /// Whether every claim held.
    held: bool,
    claims: Vec<Claim>,
    #[serde(serialize_with = "numbers")]
    figures: Vec<Figure>,
}

/// Every number of the figures by its key.
fn numbers<S: Serializer>(figures: &[Figure], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(
        figures
            .iter()
            .flat_map(|figure| figure.numbers.iter().copied()),
    )
}

/// Something worth knowing: in words for people, in numbers for scripts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Figure {
    name: &'static str,
    words: String,
    numbers: Vec<(&'static str, Option<u64>)>,
}

impl Figure {
    /// A figure as people say it.
    pub(crate) fn new(name: &'static str, words: impl Into<String>) -> Self {
        Self {
            name,
            words: words.into(),
            numbers: Vec::new(),
        }
    }

    /// A count of it, none if unknown.
    pub(crate) fn count(mut self, key: &'static str, count: Option<usize>) -> Self {
        let count = count.and_then(|count| count.try_into().ok());
        self.numbers.push((key, count));
        self
    }

    /// A time of it in milliseconds, none if it never came.
    pub(crate) fn time(mut self, key: &'static str, span: Option<Duration>) -> Self {
        let milliseconds = span.and_then(|span| span.as_millis().try_into().ok());
        self.numbers.push((key, milliseconds));
        self
    }
}

impl Report {
    /// The end of `scenario`.
    pub(crate) fn new(scenario: &'static str, claims: Vec<Claim>, figures: Vec<Figure>) -> Self {
        Self {
            api_version: "cli.zeugma.dev/v1",
            kind: "DemoReport",
            scenario,
            held: !claims.is_empty() && claims.iter().all(|claim| claim.held),
            claims,
            figures,
        }
    }

    /// Whether every claim held.
    pub(crate) fn held(&self) -> bool {
        self.held
    }

    /// Tells it to a person.
    pub(crate) fn tell(&self, narrator: &Narrator) {
        narrator.line("\nFigures");
        let width = self.figures.iter().map(|f| f.name.len()).max();
        for Figure { name, words, .. } in &self.figures {
            let width = width.unwrap_or_default();
            narrator.line(&format!("  {name:<width$}  {words}"));
        }
        narrator.line("\nClaims");
        for Claim { claim, held, found } in &self.claims {
            narrator.verdict(*held, &format!("{claim} ({found})"));
        }
        let broken = self.claims.iter().filter(|claim| !claim.held).count();
        narrator.line(&match broken {
            0 => format!("\nAll {} claims held.", self.claims.len()),
            _ => format!("\n{broken} of {} claims did not hold.", self.claims.len()),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_holds_only_if_each_claim_did_and_there_was_one() {
        let claim = |held| Claim::new("a", held, "b");
        let held = |claims| Report::new("failover", claims, Vec::new()).held();
        assert!(held(vec![claim(true), claim(true)]));
        assert!(!held(vec![claim(true), claim(false)]));
        assert!(!held(Vec::new()));
    }

    #[test]
    fn scripts_get_the_figures_as_numbers() {
        let figures = vec![
            Figure::new("lost", "0 GET, 2 POST")
                .count("lostGets", Some(0))
                .count("lostPosts", Some(2)),
            Figure::new("time", "never")
                .time("failoverMs", None)
                .time("backMs", Some(Duration::from_secs(3))),
        ];
        let report = serde_json::to_value(Report::new("failover", Vec::new(), figures)).unwrap();
        let expected = serde_json::json!({
            "apiVersion": "cli.zeugma.dev/v1", "kind": "DemoReport", "scenario": "failover",
            "held": false, "claims": [],
            "figures": { "lostGets": 0, "lostPosts": 2, "failoverMs": null, "backMs": 3000 },
        });
        assert_eq!(report, expected);
    }
}
