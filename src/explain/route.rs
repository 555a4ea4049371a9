//! `zeugma explain route`: where a connection or request would go, and why.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};
use zeugma_core::explain::{Question, QuestionError};
use zeugma_core::identity::SpiffeId;
use zeugma_core::locality::Locality;
use zeugma_proxy::explain::offline;
use zeugma_xds::{Findings, NodeOptions};

use super::mirrors;
use crate::admin::{self, AdminError, Output, Target, field, query};
use crate::status::{list, word};
use crate::table::{Table, printable};
use crate::{ca, exit};

#[derive(Debug, Args)]
pub(super) struct RouteArgs {
    /// What is called: a host as in Host or an SNI, a port may follow
    host: String,
    /// What its TLS names (SNI), where TLS is terminated or passed through; of what is read as HTTP
    /// HOST stays its Host [default: HOST]
    #[arg(long, value_name = "NAME")]
    sni: Option<String>,
    #[command(flatten)]
    target: Target,
    /// Answer from --config, with every endpoint taken for good; without it that is done only where
    /// no gateway answers
    #[arg(long, requires = "config", conflicts_with = "admin")]
    offline: bool,
    /// Where the gateway would stand, instead of its `locality`; implies --offline
    #[arg(
        long,
        value_name = "REGION/ZONE",
        requires = "config",
        conflicts_with = "admin",
        value_parser = Locality::parse
    )]
    at: Option<Locality>,
    /// The method, where it is a request
    #[arg(long, default_value = "GET")]
    method: String,
    /// The path, where it is a request
    #[arg(long, default_value = "/")]
    path: String,
    /// A header, where it is a request and rules look at it
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// The caller that a certificate, or the gateway of --via, vouches for [default: nobody]
    #[arg(long, value_name = "SPIFFE-ID", value_parser = SpiffeId::parse)]
    from: Option<SpiffeId>,
    /// The peer whose gateway hands it on
    #[arg(long, value_name = "PEER")]
    via: Option<String>,
    /// The address that it comes from [default: one that the listener lets in]
    #[arg(long, value_name = "IP")]
    source: Option<IpAddr>,
    /// The listener that it comes in on [default: the likeliest for that host and caller]
    #[arg(long, value_name = "NAME")]
    listener: Option<String>,
    /// The random number, to see again what was told before [default: another each time]
    #[arg(long, value_name = "N")]
    draw: Option<u64>,
    /// How to answer
    #[arg(short, long, value_enum, default_value_t = Output::Human)]
    output: Output,
}

fn header(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
    let (name, value) = pair.ok_or("write NAME=VALUE")?;
    if text.contains(char::is_control) {
        return Err("a header is one line".to_owned());
    }
    Ok((name.to_ascii_lowercase(), value.to_owned()))
}

/// Why there is no explanation.
#[derive(Debug, thiserror::Error)]
enum RouteError {
    #[error(transparent)]
    Admin(#[from] AdminError),
    #[error(transparent)]
    Question(#[from] QuestionError),
    #[error("{0} has errors, so that nothing can be told of it\n{1}")]
    Files(String, Findings),
}

/// What is told, and by whom.
struct Told {
    explanation: Value,
    gateway: String,
    generation: Value,
    /// Where no gateway answered, though one was asked.
    unanswered: Option<String>,
}

/// Runs `zeugma explain route`.
pub(super) fn run(args: &RouteArgs) -> ExitCode {
    let printed = args.ask().and_then(|told| {
        Ok(match args.output {
            Output::Human => admin::print(&told.to_text())?,
            Output::Json => admin::print_json("RouteExplanation", told.to_json())?,
        })
    });
    printed.unwrap_or_else(|error| match &error {
        RouteError::Admin(error) => error.fail(),
        RouteError::Question(_) => ca::fail(&error, "ZG0981", exit::USAGE),
        RouteError::Files(..) => ca::fail(&error, "ZG1061", exit::DATA),
    })
}

impl RouteArgs {
    fn ask(&self) -> Result<Told, RouteError> {
        let is_offline = self.offline || self.at.is_some();
        let Some((files, options)) = self.target.files() else {
            return Ok(self.ask_gateway()?);
        };
        if is_offline {
            return self.read(files, options, None);
        }
        match self.ask_gateway() {
            Err(error @ AdminError::Connect(..)) => {
                self.read(files, options, Some(error.to_string()))
            }
            told => Ok(told?),
        }
    }

    fn ask_gateway(&self) -> Result<Told, AdminError> {
        let from = self.from.as_ref().map(ToString::to_string);
        let source = self.source.map(|source| source.to_string());
        let draw = self.draw.map(|draw| draw.to_string());
        let headers: Vec<String> = (self.headers.iter())
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let headers = (!headers.is_empty()).then(|| headers.join("\n"));
        let given = [
            ("sni", &self.sni),
            ("headers", &headers),
            ("from", &from),
            ("via", &self.via),
            ("source", &source),
            ("listener", &self.listener),
            ("draw", &draw),
        ];
        let mut asked = vec![
            ("host", &*self.host),
            ("method", &*self.method),
            ("path", &*self.path),
        ];
        let given = given.into_iter();
        asked.extend(given.filter_map(|(name, value)| Some((name, value.as_deref()?))));
        let said = self
            .target
            .admin()?
            .get(&query("/api/v1/explain", &asked))?;
        Ok(Told {
            explanation: field(&said, "explanation").clone(),
            gateway: word(field(&said, "gateway")).to_owned(),
            generation: field(&said, "generation").clone(),
            unanswered: None,
        })
    }

    fn read(
        &self,
        files: &Path,
        options: NodeOptions,
        unanswered: Option<String>,
    ) -> Result<Told, RouteError> {
        let options = NodeOptions {
            locality: self.at.as_ref().map(ToString::to_string),
            ..options
        };
        let loaded = zeugma_xds::load(files, &options)
            .map_err(|findings| RouteError::Files(files.display().to_string(), findings))?;
        let question = Question {
            host: self.host.clone(),
            sni: self.sni.clone(),
            method: self.method.clone(),
            path: self.path.clone(),
            headers: self.headers.clone(),
            from: self.from.clone(),
            via: self.via.clone(),
            source: self.source,
            listener: self.listener.clone(),
        };
        let draw = self.draw.unwrap_or_else(|| fastrand::u64(..));
        Ok(Told {
            explanation: offline(&loaded.snapshot, &loaded.settings, &question, draw)?,
            gateway: loaded.settings.name.clone(),
            generation: Value::Null,
            unanswered,
        })
    }
}

impl Told {
    fn to_json(&self) -> Value {
        let mut all = json!({ "gateway": self.gateway, "generation": self.generation });
        if let (Some(all), Some(told)) = (all.as_object_mut(), self.explanation.as_object()) {
            all.extend(told.clone());
        }
        all
    }

    fn to_text(&self) -> String {
        let told = &self.explanation;
        let mut text = Text(String::new());
        text.line(word(field(told, "answer")));
        for todo in list(field(told, "to_do")) {
            text.line(&format!("  - {}", word(todo)));
        }
        if word(field(told, "health")) == "assumed" {
            let because = (self.unanswered.as_deref()).unwrap_or("no gateway was asked");
            text.line(&format!(
                "NOT LIVE: {because}; told by the files, with every endpoint taken for good"
            ));
            let trust = field(told, "trust");
            text.line(match field(trust, "applied").as_bool() {
                Some(true) => "deny list and bundles are applied as they are on disk, and a CRL where it is too old; which certificate the caller has is not known",
                Some(false) | None => "deny list, bundles and CRLs cannot be read, and are not applied",
            });
            for left_out in list(field(trust, "left_out")) {
                text.line(&format!("  - not applied: {}", word(left_out)));
            }
        }
        text.line("");
        self.arrival(&mut text);
        decisions(told, &mut text);
        if let Some(position) = field(told, "deny_list").as_str() {
            text.part("deny list", &format!("names the caller at {position}"));
        }
        policy(field(told, "policy"), &mut text);
        http_rule(field(told, "rule"), &mut text);
        destination(field(told, "destination"), &mut text);
        mirrors(told, &mut text);
        attempts(told, &mut text);
        text.0
    }

    fn arrival(&self, text: &mut Text) {
        let told = &self.explanation;
        let listener = field(told, "listener");
        let caller = field(told, "caller");
        let by = match (
            field(caller, "source_principal").as_str(),
            field(caller, "source_attested").as_str(),
        ) {
            (None, _) => "nobody verified".to_owned(),
            (Some(id), None) => id.to_owned(),
            (Some(by), Some(id)) => format!(
                "{id}, handed on by {by} of peer {}",
                word(field(caller, "attested_by"))
            ),
        };
        let generation = (self.generation.as_u64()).map_or_else(String::new, |generation| {
            format!(", configuration generation {generation}")
        });
        text.part("gateway", &format!("{}{generation}", self.gateway));
        text.part(
            "comes in",
            &format!(
                "on listener {} ({}), from {}, {by}",
                word(field(listener, "name")),
                word(field(listener, "role")),
                word(field(caller, "source")),
            ),
        );
        let assumed: Vec<&str> = list(field(told, "assumed")).iter().map(word).collect();
        if !assumed.is_empty() {
            text.part("assumed", &assumed.join("; "));
        }
    }
}

fn decisions(told: &Value, text: &mut Text) {
    for (nth, step) in list(field(told, "steps")).iter().enumerate() {
        let what = word(field(step, "what"));
        let asks = match word(field(step, "asks")) {
            "hello" => format!("TLS for {what}"),
            "plaintext" => "no TLS".to_owned(),
            "request" => format!("a request to {what}"),
            "request-inside-tls" => format!("a request to {what} inside the TLS"),
            "inside-tls" => "what is inside the TLS".to_owned(),
            other => other.to_owned(),
        };
        let answer = match word(field(step, "answer")) {
            "terminate" => format!("ended here for {}", word(field(step, "service"))),
            "read-http" => "read as HTTP".to_owned(),
            "carry" => "carried".to_owned(),
            "refuse" => format!("refused: {}", word(field(step, "reason"))),
            other => other.to_owned(),
        };
        let title = if nth == 0 { "decisions" } else { "" };
        text.part(title, &format!("{}. {asks} -> {answer}", nth + 1));
    }
    let route = field(told, "route");
    if !route.is_null() {
        text.part(
            "route",
            &format!(
                "{}:{} ({}, {}) {}",
                word(field(route, "service")),
                field(route, "port"),
                word(field(route, "protocol")),
                word(field(route, "inbound")),
                word(field(route, "written")),
            ),
        );
    }
}

fn http_rule(rule: &Value, text: &mut Text) {
    if rule.is_null() {
        return;
    }
    let name = word(field(rule, "name"));
    text.part("rule", &format!("{name} {}", word(field(rule, "written"))));
    let parts: Vec<String> = (list(field(rule, "split")).iter())
        .map(|part| {
            let to = word(field(part, "to"));
            let drawn = field(part, "drawn").as_bool() == Some(true);
            let drawn = if drawn { " (this time)" } else { "" };
            format!("{to} by {}{drawn}", field(part, "weight"))
        })
        .collect();
    if !parts.is_empty() {
        text.part("", &format!("splits to {}", parts.join(", ")));
    }
}

fn policy(policy: &Value, text: &mut Text) {
    if policy.is_null() {
        return;
    }
    let reason = word(field(policy, "reason"));
    let verdict = match word(field(policy, "verdict")) {
        "allow" => "allowed".to_owned(),
        "audit" => format!("let in by `policy: audit`; enforced: {reason}"),
        _ => format!("refused: {reason}"),
    };
    text.part("policy", &verdict);
    let decided = field(policy, "rule");
    if !decided.is_null() {
        text.part("", &format!("by {}", rule(decided)));
    }
    let nearest = field(policy, "nearest");
    if !nearest.is_null() {
        text.part("", &format!("nearest is {}", rule(nearest)));
        let failed = list(field(policy, "nearest_failed"));
        let failed: Vec<&str> = failed.iter().map(word).collect();
        text.part(
            "",
            &format!("which does not match in: {}", failed.join(", ")),
        );
    }
}

/// A rule as it is written, and where.
fn rule(rule: &Value) -> String {
    let fields = [
        "from",
        "via",
        "listeners",
        "sources",
        "sni",
        "methods",
        "paths",
        "headers",
    ];
    let written: Vec<String> = (fields.into_iter())
        .filter_map(|name| {
            let values = list(field(rule, name));
            let shown: Vec<&str> = values.iter().map(word).collect();
            let more = match field(rule, &format!("{name}_left_out")).as_u64() {
                Some(more) => format!(" and {more} more"),
                None => String::new(),
            };
            (!values.is_empty()).then(|| format!("{name}: [{}{more}]", shown.join(", ")))
        })
        .collect();
    format!(
        "the {} rule at {}: {{ {} }}",
        word(field(rule, "kind")),
        word(field(rule, "written")),
        written.join(", ")
    )
}

fn destination(to: &Value, text: &mut Text) {
    if to.is_null() {
        return;
    }
    let mut levels = Table::new(&["LEVEL", "HEALTHY", "ROOM", "SHARE", "STATE"]);
    let mut endpoints = Table::new(&["LEVEL", "ENDPOINT", "BACKEND", "LOCALITY", "STATUS"]);
    for level in list(field(to, "levels")) {
        let name = word(field(level, "name"));
        levels.row(vec![
            name.to_owned(),
            format!("{}/{}", field(level, "healthy"), field(level, "total")),
            percent(field(level, "damped_capacity")),
            percent(field(level, "share")),
            state(field(level, "state")),
        ]);
        for endpoint in list(field(level, "endpoints")) {
            endpoints.row(vec![
                name.to_owned(),
                word(field(endpoint, "address")).to_owned(),
                word(field(endpoint, "backend")).to_owned(),
                word(field(endpoint, "locality")).to_owned(),
                status(endpoint),
            ]);
        }
        if let Some(more) = field(level, "endpoints_left_out")
            .as_u64()
            .filter(|n| *n > 0)
        {
            endpoints.row(vec![name.to_owned(), format!("and {more} more")]);
        }
    }
    if let Some(more) = field(to, "levels_left_out").as_u64().filter(|n| *n > 0) {
        levels.row(vec![format!("and {more} more")]);
    }
    text.table(&levels);
    load(field(to, "load"), text);
    let causes: Vec<&str> = list(field(to, "causes")).iter().map(word).collect();
    if !causes.is_empty() {
        text.line(&format!(
            "moved last at {}, because: {}",
            word(field(to, "since")),
            causes.join("; ")
        ));
    }
    text.table(&endpoints);
}

/// What is offered, and what backends take of it.
fn load(load: &Value, text: &mut Text) {
    if load.is_null() {
        return;
    }
    let number = |of: &Value, name: &str| field(of, name).as_f64().unwrap_or_default();
    let each: Vec<String> = (list(field(load, "backends")).iter())
        .map(|one| {
            let by = match field(one, "written").as_str() {
                Some(written) => format!("written at {written}"),
                None => "reported by the peer".to_owned(),
            };
            let is_full = field(one, "full").as_bool() == Some(true);
            format!(
                "{} takes {:.1}/s ({by}){}",
                word(field(one, "backend")),
                number(one, "takes_per_second"),
                if is_full { ", and is full now" } else { "" }
            )
        })
        .collect();
    let refused = match number(load, "refused_share") {
        share if share > 0.0 => format!("; {:.1} % fits nowhere", share * 100.0),
        _ => String::new(),
    };
    text.line(&format!(
        "{:.1}/s are offered: {}{refused}",
        number(load, "offered_per_second"),
        each.join(", ")
    ));
}

fn state(state: &Value) -> String {
    let seconds = |name: &str| field(state, name).as_f64().unwrap_or_default();
    let (since, left) = (seconds("for_seconds"), seconds("ends_in_seconds"));
    match word(field(state, "is")) {
        "holding" => format!("holds for {left:.1} s more (hold; worse since {since:.1} s)"),
        "waiting" => format!("waits {left:.1} s more (failback.after; well since {since:.1} s)"),
        "waiting-for-reset" => {
            format!("waits for a reset (failback.mode: manual; well since {since:.1} s)")
        }
        "ramping" => format!("comes back, whole in {left:.1} s (failback.ramp)"),
        other => other.to_owned(),
    }
}

fn status(endpoint: &Value) -> String {
    let status = word(field(endpoint, "status"));
    match field(endpoint, "ejected_by").as_str() {
        Some(cause) => {
            let left = field(endpoint, "ejected_for_seconds").as_f64();
            format!("{status}: {cause}, {:.1} s more", left.unwrap_or_default())
        }
        None if status == "unhealthy" => "unhealthy: fails its active check".to_owned(),
        None => status.to_owned(),
    }
}

fn mirrors(told: &Value, text: &mut Text) {
    for (nth, line) in mirrors::lines(told).iter().enumerate() {
        if nth == 0 {
            text.line("");
        }
        text.part(if nth == 0 { "mirrors" } else { "" }, line);
    }
}

fn attempts(told: &Value, text: &mut Text) {
    let attempts = list(field(told, "attempts"));
    if attempts.is_empty() {
        return;
    }
    let mut table = Table::new(&["TRY", "ENDPOINT", "BACKEND", "LEVEL", "REASON"]);
    for (nth, attempt) in attempts.iter().enumerate() {
        table.row(vec![
            (nth + 1).to_string(),
            word(field(attempt, "address")).to_owned(),
            word(field(attempt, "backend")).to_owned(),
            word(field(attempt, "level")).to_owned(),
            word(field(attempt, "reason")).to_owned(),
        ]);
    }
    let key = field(told, "key");
    let how = match field(key, "known").as_bool() {
        Some(true) => format!(
            "By its key ({}, {}), always",
            word(field(key, "policy")),
            word(field(key, "of"))
        ),
        Some(false) => format!(
            "This time (--draw {}; its key, {}, is not in the question: say it by --header)",
            word(field(told, "draw")),
            word(field(key, "of"))
        ),
        None => format!("This time (--draw {})", word(field(told, "draw"))),
    };
    text.line(&format!(
        "\n{how}, each where those before it fail; at most {} extra tries where one may \
         have seen the request:",
        field(told, "extra_tries_max")
    ));
    if let Some(after) = field(told, "hedged_after_seconds").as_f64() {
        text.line(&format!(
            "(the next one already where one has not answered after {} ms, if the method is idempotent)",
            (after * 1e3).round()
        ));
    }
    text.line(table.to_string().trim_end());
}

pub(super) fn percent(share: &Value) -> String {
    let share = share.as_f64();
    share.map_or_else(String::new, |share| format!("{:.1} %", share * 100.0))
}

/// Text for a terminal.
struct Text(String);

impl Text {
    fn line(&mut self, line: &str) {
        for one in line.split('\n') {
            self.0.push_str(&printable(one));
            self.0.push('\n');
        }
    }

    /// A line under a title, which is empty where it goes on.
    fn part(&mut self, title: &str, line: &str) {
        let line = printable(line);
        // To write to a string never fails.
        writeln!(self.0, "{title:10} {}", line.trim_end()).ok();
    }

    fn table(&mut self, table: &Table) {
        // Its cells are printable.
        write!(self.0, "\n{table}").ok();
    }
}
