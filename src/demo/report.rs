//! How a demo ended: its claims and figures, for people and for scripts.

use serde::Serialize;

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
    figures: Vec<Figure>,
}

/// A number worth knowing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Figure {
    figure: &'static str,
    value: String,
}

impl Figure {
    /// A figure and its value as people say it.
    pub(crate) fn new(figure: &'static str, value: impl Into<String>) -> Self {
        Self {
            figure,
            value: value.into(),
        }
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
        let width = self.figures.iter().map(|f| f.figure.len()).max();
        for Figure { figure, value } in &self.figures {
            let width = width.unwrap_or_default();
            narrator.line(&format!("  {figure:<width$}  {value}"));
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
}
