//! `zeugma check`: whether a gateway can do what it is configured to do, step by step.

use std::borrow::Cow;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::admin::{self, Admin, AdminError, Output, Target, field, query};
use crate::exit;
use crate::status::{list, until, word};
use crate::table::Table;

/// Between two looks of `--wait`.
const LOOK: Duration = Duration::from_secs(1);
/// A clock that is further off than this is told: TLS still works, tokens and short SVIDs may not.
const SKEW_SECONDS_WARN: i64 = 5;
/// Less than this part of its life left, and the SVID should have been renewed.
const LIFE_LEFT_WARN: f64 = 0.2;

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    target: Target,
    /// Reach for this peer alone
    #[arg(long, value_name = "NAME")]
    peer: Option<String>,
    /// Check again until all is well, for so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    wait: Option<Duration>,
    /// How to answer
    #[arg(short, long, value_enum, default_value_t = Output::Human)]
    output: Output,
}

/// `60s` or `60`.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix('s').unwrap_or(text);
    let seconds: u64 = (number.parse()).map_err(|_| "write seconds, such as `60s`".to_owned())?;
    if seconds > 86_400 {
        return Err("at most 86400s".to_owned());
    }
    Ok(Duration::from_secs(seconds))
}

/// How one thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Well,
    Warning,
    Failed,
}

/// One thing that was looked at.
#[derive(Debug)]
struct Item {
    verdict: Verdict,
    what: String,
    found: String,
    /// Of what is not well.
    code: Option<Cow<'static, str>>,
}

impl Item {
    /// Something with the code that it has where it is not well.
    fn new(verdict: Verdict, what: String, found: String, code: &'static str) -> Self {
        Self {
            code: (verdict != Verdict::Well).then_some(Cow::Borrowed(code)),
            verdict,
            what,
            found,
        }
    }
}

/// Runs `zeugma check`.
pub(crate) fn run(args: &CheckArgs) -> ExitCode {
    try_run(args).unwrap_or_else(|error| error.fail())
}

fn try_run(args: &CheckArgs) -> Result<ExitCode, AdminError> {
    let admin = args.target.admin()?;
    let until = Instant::now() + args.wait.unwrap_or_default();
    let items = loop {
        let looked = look(&admin, args.peer.as_deref());
        let is_last = match &looked {
            Ok(items) => items.iter().all(|item| item.verdict != Verdict::Failed),
            Err(error) => !error.may_pass(),
        };
        if is_last || Instant::now() >= until {
            break looked?;
        }
        sleep(LOOK);
    };
    match args.output {
        Output::Json => admin::print_json("Check", to_json(&items))?,
        Output::Human => admin::print(&to_text(&items))?,
    };
    let failed = items.iter().any(|item| item.verdict == Verdict::Failed);
    Ok(if failed {
        ExitCode::from(exit::FINDINGS)
    } else {
        ExitCode::SUCCESS
    })
}

fn look(admin: &Admin, peer: Option<&str>) -> Result<Vec<Item>, AdminError> {
    let asked: Vec<_> = peer.iter().map(|name| ("peer", *name)).collect();
    let path = query("/api/v1/check", &asked);
    let server = admin.get("/server_info")?;
    let identities = admin.part("/api/v1/identities", "identities")?;
    let findings = admin.part("/api/v1/findings", "findings")?;
    let reached = admin.post(&path)?;
    let reached: Value = serde_json::from_slice(&reached)
        .map_err(|error| AdminError::Json(admin.shown(), path, error))?;
    let now = OffsetDateTime::now_utc();
    let mut items = vec![of_server(&server), of_own(field(&identities, "own"), now)];
    for (name, kind) in [("workload_api", "Workload API"), ("sds", "SDS server")] {
        items.extend(of_agent(kind, field(&identities, name)));
    }
    items.extend(
        list(field(&identities, "bundles"))
            .iter()
            .map(|one| of_bundle(one, now)),
    );
    items.extend(of_findings(&findings));
    items.extend(
        list(field(&reached, "gateways"))
            .iter()
            .flat_map(of_gateway),
    );
    items.extend(list(field(&reached, "unused")).iter().map(|name| {
        // Who asked for one peer alone is told that it was not reached.
        let verdict = if peer.is_some() {
            Verdict::Failed
        } else {
            Verdict::Warning
        };
        let found = "no route goes to it; nothing to reach for".to_owned();
        Item::new(verdict, format!("peer {}", word(name)), found, "ZG1049")
    }));
    items.extend(of_left_out(&reached));
    Ok(items)
}

/// That there are more gateways than one check reaches for.
fn of_left_out(reached: &Value) -> Option<Item> {
    let left_out = field(reached, "left_out").as_u64().filter(|n| *n > 0)?;
    let what = format!("{left_out} more gateways of peers");
    let found = "not reached for: one check reaches for so many; ask with --peer".to_owned();
    Some(Item::new(Verdict::Warning, what, found, "ZG1050"))
}

fn of_server(server: &Value) -> Item {
    let state = word(field(server, "state"));
    let verdict = if state == "LIVE" {
        Verdict::Well
    } else {
        Verdict::Failed
    };
    let what = format!("gateway {}", word(field(server, "name")));
    let generation = field(server, "config_generation");
    let found = format!("{state}, configuration generation {generation}");
    Item::new(verdict, what, found, "ZG1041")
}

fn moment(value: &Value) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(word(value), &Rfc3339).ok()
}

/// Of an agent what fails is told as a finding.
fn of_agent(kind: &str, api: &Value) -> Option<Item> {
    let what = format!("{kind} {}", field(api, "address").as_str()?);
    let last = match word(field(api, "last_answer")) {
        "" => "no answer yet".to_owned(),
        at => format!("last answer {at}"),
    };
    let (verdict, found) = match field(api, "answers").as_bool() {
        Some(true) => (Verdict::Well, last),
        _ => (Verdict::Failed, format!("it does not answer; {last}")),
    };
    Some(Item::new(verdict, what, found, "ZG1059"))
}

fn of_own(own: &Value, now: OffsetDateTime) -> Item {
    if own.is_null() {
        let found = "none yet: the agent has given no SVID".to_owned();
        return Item::new(Verdict::Failed, "identity".to_owned(), found, "ZG1042");
    }
    let what = format!("identity {}", word(field(own, "spiffe_id")));
    let (Some(from), Some(to)) = (
        moment(field(own, "not_before")),
        moment(field(own, "not_after")),
    ) else {
        let found = "its validity cannot be read".to_owned();
        return Item::new(Verdict::Failed, what, found, "ZG1042");
    };
    let left = (to - now) / (to - from);
    let (verdict, why) = if now < from {
        (
            Verdict::Failed,
            ": not valid yet; is the clock of this machine behind?",
        )
    } else if now >= to {
        (
            Verdict::Failed,
            ": renew it; the gateway takes a new one when it comes",
        )
    } else if left < LIFE_LEFT_WARN {
        (
            Verdict::Warning,
            ": most of its life is over; does its renewal work?",
        )
    } else {
        (Verdict::Well, "")
    };
    let found = format!("expires {}{why}", until(field(own, "not_after"), now));
    let code = if verdict == Verdict::Warning {
        "ZG1043"
    } else {
        "ZG1042"
    };
    Item::new(verdict, what, found, code)
}

fn of_bundle(bundle: &Value, now: OffsetDateTime) -> Item {
    let anchors = list(field(bundle, "anchors"));
    let is_valid = |anchor: &&Value| moment(field(anchor, "not_after")).is_some_and(|to| to > now);
    let shown: Vec<String> = (anchors.iter())
        .map(|anchor| {
            let print = word(field(anchor, "fingerprint"));
            let short: String = print.chars().take(16).collect();
            format!("{short} expires {}", until(field(anchor, "not_after"), now))
        })
        .collect();
    let verdict = match anchors.iter().filter(is_valid).count() {
        0 => Verdict::Failed,
        n if n < anchors.len() => Verdict::Warning,
        _ => Verdict::Well,
    };
    let what = format!("trust domain {}", word(field(bundle, "trust_domain")));
    Item::new(verdict, what, shown.join("; "), "ZG1044")
}

fn of_findings(findings: &Value) -> Vec<Item> {
    (list(findings).iter())
        .map(|finding| Item {
            verdict: match word(field(finding, "severity")) {
                "error" => Verdict::Failed,
                _ => Verdict::Warning,
            },
            what: match (field(finding, "file").as_str(), field(finding, "line")) {
                (Some(file), line) => format!("{file}:{line}"),
                (None, _) => "configuration".to_owned(),
            },
            found: format!(
                "{} {}",
                word(field(finding, "message")),
                word(field(finding, "help"))
            ),
            code: field(finding, "code")
                .as_str()
                .map(|code| Cow::Owned(code.to_owned())),
        })
        .collect()
}

/// How far the gateway came with one of a peer's: each step that was taken.
fn of_gateway(reached: &Value) -> Vec<Item> {
    let what = format!(
        "peer {} at {}",
        word(field(reached, "peer")),
        word(field(reached, "address"))
    );
    let failed = word(field(reached, "failed"));
    let error = word(field(reached, "error"));
    let step = |name: &str, verdict, found: String, code: &'static str| {
        Item::new(verdict, format!("{what}: {name}"), found, code)
    };
    let mut items = Vec::new();
    for (name, says, code) in [
        ("name", "", "ZG1045"),
        ("tcp", "round_trip_ms", "ZG1046"),
        ("tls", "tls_ms", "ZG1047"),
    ] {
        if failed == name {
            let rule = match word(field(reached, "rule")) {
                "" => String::new(),
                rule => format!(" (rule {rule})"),
            };
            items.push(step(name, Verdict::Failed, format!("{error}{rule}"), code));
            return items;
        }
        if let Some(took) = field(reached, says).as_f64() {
            items.push(step(name, Verdict::Well, format!("{took} ms"), code));
        }
    }
    if let Some(identity) = field(reached, "identity").as_str() {
        items.push(step(
            "identity",
            Verdict::Well,
            identity.to_owned(),
            "ZG1047",
        ));
    }
    if let Some(skew) = field(reached, "clock_skew_seconds").as_i64() {
        let verdict = if skew.abs() > SKEW_SECONDS_WARN {
            Verdict::Warning
        } else {
            Verdict::Well
        };
        items.push(step(
            "clock",
            verdict,
            format!("{skew:+} s against ours"),
            "ZG1048",
        ));
    }
    items
}

impl Verdict {
    const fn word(self) -> &'static str {
        match self {
            Self::Well => "ok",
            Self::Warning => "warning",
            Self::Failed => "FAILED",
        }
    }
}

fn to_text(items: &[Item]) -> String {
    let mut table = Table::new(&["RESULT", "WHAT", "FOUND"]);
    for item in items {
        table.row(vec![
            item.verdict.word().to_owned(),
            item.what.clone(),
            match &item.code {
                Some(code) => format!("{} ({code})", item.found),
                None => item.found.clone(),
            },
        ]);
    }
    table.to_string()
}

fn to_json(items: &[Item]) -> Value {
    let all: Vec<Value> = (items.iter())
        .map(|item| {
            json!({
                "result": item.verdict.word().to_lowercase(),
                "what": item.what,
                "found": item.found,
                "code": item.code,
            })
        })
        .collect();
    json!({ "items": all })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_is_told_as_far_as_it_was_reached() {
        let verdicts = |reached: Value| -> Vec<(String, &'static str)> {
            (of_gateway(&reached).iter())
                .map(|item| {
                    let step = item.what.rsplit(' ').next().unwrap_or_default();
                    let told = item.code.as_deref().map_or_else(
                        || item.verdict.word(),
                        |code| {
                            let known = zeugma_core::codes::find(code);
                            known.map_or("no such code", |entry| entry.code)
                        },
                    );
                    (step.to_owned(), told)
                })
                .collect()
        };
        let owned = |steps: &[(&str, &'static str)]| -> Vec<(String, &'static str)> {
            steps
                .iter()
                .map(|(step, word)| ((*step).to_owned(), *word))
                .collect()
        };
        let refused = json!({ "round_trip_ms": 0.2, "failed": "tls", "error": "x", "rule": "V1" });
        assert_eq!(
            verdicts(refused),
            owned(&[("tcp", "ok"), ("tls", "ZG1047")])
        );
        let whole = json!({
            "round_trip_ms": 0.2, "tls_ms": 3.0, "identity": "spiffe://a/b", "clock_skew_seconds": -9,
        });
        let steps = [
            ("tcp", "ok"),
            ("tls", "ok"),
            ("identity", "ok"),
            ("clock", "ZG1048"),
        ];
        assert_eq!(verdicts(whole), owned(&steps));
        let unknown = json!({ "failed": "name", "error": "x" });
        assert_eq!(verdicts(unknown), owned(&[("name", "ZG1045")]));
        let nobody = json!({ "failed": "tcp", "error": "x" });
        assert_eq!(verdicts(nobody), owned(&[("tcp", "ZG1046")]));
    }

    #[test]
    fn an_identity_is_judged_by_what_is_left_of_its_life() {
        let own = json!({
            "spiffe_id": "spiffe://a/b",
            "not_before": "2026-01-01T00:00:00Z",
            "not_after": "2026-01-02T00:00:00Z",
        });
        let at = |hour: i64| {
            let begin = moment(&own["not_before"]).unwrap();
            let item = of_own(&own, begin + time::Duration::hours(hour));
            (item.verdict, item.code.unwrap_or_default().into_owned())
        };
        let code = |verdict, code: &str| (verdict, code.to_owned());
        assert_eq!(at(-1), code(Verdict::Failed, "ZG1042"));
        assert_eq!(at(1), code(Verdict::Well, ""));
        assert_eq!(at(20), code(Verdict::Warning, "ZG1043"));
        assert_eq!(at(24), code(Verdict::Failed, "ZG1042"));
    }

    #[test]
    fn what_a_gateway_says_of_itself_is_told_by_code() {
        let now = OffsetDateTime::from_unix_timestamp(0).unwrap();
        let expired = json!({ "anchors": [{ "not_after": "1969-01-01T00:00:00Z" }] });
        let silent = json!({ "address": "unix:///a", "answers": false });
        let draining = json!({ "state": "DRAINING" });
        let finding = json!([{ "severity": "error", "code": "ZG0107" }]);
        let many = json!({ "left_out": 3 });
        let items = [
            of_left_out(&many).unwrap(),
            of_agent("Workload API", &silent).unwrap(),
            of_own(&Value::Null, now),
            of_bundle(&expired, now),
            of_server(&draining),
            of_findings(&finding).remove(0),
        ];
        let codes: Vec<_> = items
            .iter()
            .filter_map(|item| item.code.as_deref())
            .collect();
        assert_eq!(
            codes,
            ["ZG1050", "ZG1059", "ZG1042", "ZG1044", "ZG1041", "ZG0107"]
        );
        assert!(of_agent("Workload API", &Value::Null).is_none(), "files");
        let answers = json!({ "address": "unix:///a", "answers": true });
        assert_eq!(of_agent("Workload API", &answers).unwrap().code, None);
        assert!(to_text(&items).contains("(ZG1041)"));
        assert_eq!(to_json(&items)["items"][3]["code"], "ZG1044");
    }
}
