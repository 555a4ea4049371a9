//! Alert rules and the dashboard. That their metrics and labels exist is tested where the metrics
//! are, in `proxy/src/metrics.rs`.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::support::peers::{Debian, debian};
use crate::{folder, printed, repository, said};

fn promtool() -> Option<PathBuf> {
    match debian("promtool", "prometheus").unwrap() {
        Debian::Found(path) => Some(path),
        Debian::Missing => None,
    }
}

fn rules(file: &str) -> String {
    fs::read_to_string(repository("deploy/prometheus").join(file)).unwrap()
}

fn after<'a>(text: &'a str, start: &str) -> Vec<&'a str> {
    let found = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix(start));
    found.map(str::trim).collect()
}

#[test]
fn alerts_fire_on_what_they_are_for_and_on_nothing_beside_it() {
    let Some(promtool) = promtool() else { return };
    for words in [["check", "rules"], ["test", "rules"]] {
        let file = match words[0] {
            "check" => "alerts.yaml",
            _ => "alerts_test.yaml",
        };
        let mut command = Command::new(&promtool);
        command.args(words).arg(file);
        printed(command.current_dir(repository("deploy/prometheus")));
    }
}

#[test]
fn every_alert_is_tested_and_says_what_to_do() {
    let (alerts, tests) = (rules("alerts.yaml"), rules("alerts_test.yaml"));
    let names = after(&alerts, "- alert:");
    assert!(names.len() >= 20, "{names:?}");
    for name in &names {
        let fires = format!("ALERTS{{alertname=\"{name}\", alertstate=\"firing\"");
        assert!(tests.contains(&fires), "no test in which {name} fires");
    }
    for (at, rule) in alerts.split("- alert:").skip(1).enumerate() {
        for field in ["severity: ", "summary: ", "description: >-"] {
            assert_eq!(rule.matches(field).count(), 1, "{}: {field}", names[at]);
        }
    }
    // A moment at which nothing fires has no `exp_samples`.
    let checks = tests.split("eval_time:").skip(1);
    let silent = checks.filter(|check| !check.starts_with(" 40m\n        exp_alerts"));
    let silent = silent
        .filter(|check| !check.contains("exp_samples"))
        .count();
    assert!(silent >= names.len(), "only {silent} silent moments");
}

#[test]
fn every_query_of_the_dashboard_is_one_that_prometheus_reads() {
    let Some(promtool) = promtool() else { return };
    let folder = folder("dashboard");
    let text = fs::read_to_string(repository("deploy/grafana/zeugma.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let queries = queries(&dashboard);
    assert!(queries.len() > 40, "{}", queries.len());
    let check = |file: &str, queries: &[String]| {
        let path = folder.join(file);
        fs::write(&path, as_rules(queries)).unwrap();
        let mut command = Command::new(&promtool);
        command.args(["check", "rules"]).arg(path).output().unwrap()
    };
    let checked = check("queries.yaml", &queries);
    let expected = format!("SUCCESS: {} rules found", queries.len());
    assert!(said(&checked).contains(&expected), "{}", said(&checked));
    // It would have said so.
    let wrong = ["sum by (x) rate(zeugma_requests_total[5m])".to_owned()];
    assert!(!check("wrong.yaml", &wrong).status.success());
}

#[test]
fn every_panel_has_a_title_a_description_and_a_place_of_its_own() {
    let text = fs::read_to_string(repository("deploy/grafana/zeugma.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let mut taken = std::collections::BTreeSet::new();
    let mut ids = std::collections::BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}");
        if panel["type"] != "row" {
            assert!(
                panel["description"].as_str().unwrap().ends_with('.'),
                "{title}"
            );
            assert!(
                panel["fieldConfig"]["defaults"]["unit"].is_string(),
                "{title}"
            );
        }
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24, "{title}");
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                assert!(taken.insert((x, y)), "{title} lies over another panel");
            }
        }
    }
}

/// Every query, its variables replaced by what Grafana would put there.
fn queries(dashboard: &Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels
        .iter()
        .filter_map(|panel| panel["targets"].as_array());
    let annotations = dashboard["annotations"]["list"].as_array().unwrap();
    let all = targets.flatten().chain(annotations);
    let query = |target: &Value| {
        let query = target["expr"].as_str().unwrap();
        let query = query.replace("$__rate_interval", "5m");
        let query = query.replace("$job", "zeugma");
        let query = query.replace("$instance", ".*").replace("$service", ".*");
        assert!(!query.contains('$'), "{query}");
        query
    };
    all.map(query).collect()
}

/// A file of recording rules, one for each query. JSON strings are YAML strings.
fn as_rules(queries: &[String]) -> String {
    let mut text = "groups:\n  - name: dashboard\n    rules:\n".to_owned();
    for (nth, query) in queries.iter().enumerate() {
        let query = Value::from(query.as_str());
        writeln!(text, "      - {{ record: \"q:{nth}\", expr: {query} }}").unwrap();
    }
    text
}
