//! `zeugma get`: one kind of what a gateway knows, as a table or as it is.

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use zeugma_xds::suggest;

use crate::admin::{self, Admin, AdminError, Output, Target, field, query};
use crate::status::{list, word};
use crate::table::Table;

#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// What
    what: What,
    #[command(flatten)]
    target: Target,
    /// Only of this route (connections, routes)
    #[arg(long, value_name = "NAMESPACE/NAME")]
    service: Option<String>,
    /// At most so many (connections, routes)
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// How to answer
    #[arg(short, long, value_enum, default_value_t = Output::Human)]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Each endpoint of each route, with its level and state
    Routes,
    /// Other clusters' gateways, and how many ways through them are healthy
    Peers,
    /// What moved traffic lately, oldest first
    Failovers,
    /// Its own certificate, and the anchors it trusts
    Identities,
    /// What is wrong with the files on disk
    Findings,
    /// What is open now, and who called
    Connections,
}

/// Runs `zeugma get`.
pub(crate) fn run(args: &GetArgs) -> ExitCode {
    try_run(args).unwrap_or_else(|error| error.fail())
}

fn try_run(args: &GetArgs) -> Result<ExitCode, AdminError> {
    let admin = args.target.admin()?;
    let content = admin.get(&args.path())?;
    args.check_service(&admin, &content)?;
    if args.output == Output::Json {
        let key = args.what.key();
        return admin::print_json(args.what.kind(), json!({ key: field(&content, key) }));
    }
    let table = args.what.table(&content);
    if table.is_empty() {
        return admin::print("none\n");
    }
    admin::print(&table.to_string())
}

impl GetArgs {
    /// Nothing of a route is no answer where there is no such route.
    fn check_service(&self, admin: &Admin, content: &Value) -> Result<(), AdminError> {
        let content = field(content, self.what.key());
        let is_empty = match self.what {
            What::Routes => list(content).is_empty(),
            What::Connections => list(field(content, "connections")).is_empty(),
            // These are of no route.
            What::Peers | What::Failovers | What::Identities | What::Findings => {
                return self.service.as_ref().map_or(Ok(()), |_| {
                    Err(AdminError::NotByService(self.what.kind().to_lowercase()))
                });
            }
        };
        let Some(wanted) = self.service.as_ref().filter(|_| is_empty) else {
            return Ok(());
        };
        let routes = admin.part("/api/v1/routes", "routes")?;
        let known = || {
            list(&routes)
                .iter()
                .map(|route| word(field(route, "service")))
        };
        if known().any(|name| name == wanted) {
            return Ok(());
        }
        let help = suggest(wanted, known());
        Err(AdminError::Service(admin.shown(), wanted.clone(), help))
    }

    fn path(&self) -> String {
        let limit = self.limit.map(|limit| limit.to_string());
        let asked = [("service", &self.service), ("limit", &limit)];
        let asked = asked.into_iter();
        let asked: Vec<_> = asked
            .filter_map(|(name, value)| Some((name, value.as_deref()?)))
            .collect();
        let path = match self.what {
            What::Routes => "routes",
            What::Peers => "peers",
            What::Failovers => "failovers",
            What::Identities => "identities",
            What::Findings => "findings",
            What::Connections => "connections",
        };
        query(&format!("/api/v1/{path}"), &asked)
    }
}

impl What {
    const fn kind(self) -> &'static str {
        match self {
            Self::Routes => "Routes",
            Self::Peers => "Peers",
            Self::Failovers => "Failovers",
            Self::Identities => "Identities",
            Self::Findings => "Findings",
            Self::Connections => "Connections",
        }
    }

    const fn key(self) -> &'static str {
        match self {
            Self::Routes => "routes",
            Self::Peers => "peers",
            Self::Failovers => "failovers",
            Self::Identities => "identities",
            Self::Findings => "findings",
            Self::Connections => "carried",
        }
    }

    fn table(self, content: &Value) -> Table {
        let content = field(content, self.key());
        match self {
            Self::Routes => routes(content),
            Self::Peers => peers(content),
            Self::Failovers => failovers(field(content, "timeline")),
            Self::Identities => identities(content),
            Self::Findings => findings(content),
            Self::Connections => connections(field(content, "connections")),
        }
    }
}

fn texts<const N: usize>(of: &Value, names: [&str; N]) -> Vec<String> {
    (names.iter())
        .map(|name| match field(of, name) {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            other @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
                other.to_string()
            }
        })
        .collect()
}

fn routes(content: &Value) -> Table {
    let mut table = Table::new(&[
        "SERVICE", "PORT", "LEVEL", "SHARE", "BACKEND", "ENDPOINT", "LOCALITY", "STATUS",
    ]);
    for route in list(content) {
        for level in list(field(field(route, "outbound"), "levels")) {
            let share = field(level, "share").as_f64().unwrap_or_default() * 100.0;
            for endpoint in list(field(level, "endpoints")) {
                let mut row = texts(route, ["service", "port"]);
                row.push(word(field(level, "name")).to_owned());
                row.push(format!("{share:.0} %"));
                row.extend(texts(endpoint, ["backend", "address", "locality"]));
                let part = field(endpoint, "given").as_f64().filter(|part| *part < 1.0);
                let part = part.map(|part| format!(" (slow start, {:.0} %)", part * 100.0));
                let status = word(field(endpoint, "status"));
                row.push(format!("{status}{}", part.unwrap_or_default()));
                table.row(row);
            }
        }
    }
    table
}

fn peers(content: &Value) -> Table {
    let mut table = Table::new(&[
        "PEER",
        "CLUSTER",
        "LOCALITY",
        "STATE",
        "GATEWAY",
        "HEALTHY",
        "WAYS",
        "REPORT",
        "NOT-WHOLE",
    ]);
    for peer in list(content) {
        let gateways = list(field(peer, "gateways"));
        let of_peer = || texts(peer, ["name", "cluster", "locality", "state"]);
        for gateway in gateways {
            let mut row = of_peer();
            row.extend(texts(gateway, ["address", "healthy", "total"]));
            row.push(report(field(gateway, "report")));
            let behind = list(field(gateway, "behind")).iter();
            let not_whole = behind.filter(|of| field(of, "healthy") != field(of, "total"));
            let of = |of: &Value| {
                let (healthy, total) = (field(of, "healthy"), field(of, "total"));
                format!("{} {healthy}/{total}", word(field(of, "service")))
            };
            row.push(not_whole.map(of).collect::<Vec<_>>().join(", "));
            table.row(row);
        }
        if gateways.is_empty() {
            table.row(of_peer());
        }
    }
    table
}

/// How things stand with the reports of a peer's gateway, in words.
pub(crate) fn report(of: &Value) -> String {
    let state = word(field(of, "state"));
    let is_leaving = word(field(of, "presence")) == "leaving";
    match field(of, "age_seconds").as_f64() {
        Some(age) if state == "reporting" && is_leaving => format!("leaving, {age:.0}s ago"),
        Some(age) if state == "reporting" => format!("{age:.0}s ago"),
        Some(age) if state == "reaching" => format!("last {age:.0}s ago"),
        Some(_) | None => state.to_owned(),
    }
}

fn failovers(timeline: &Value) -> Table {
    let mut table = Table::new(&["WHEN", "WHAT", "ROUTE", "DETAIL", "CAUSE"]);
    for event in list(timeline) {
        let data = field(event, "data");
        let moves: Vec<String> = (list(field(data, "levels")).iter())
            .map(|level| {
                let percent = |name: &str| field(level, name).as_f64().unwrap_or_default() * 100.0;
                let name = word(field(level, "name"));
                format!(
                    "{name} {:.0} % -> {:.0} %",
                    percent("before"),
                    percent("now")
                )
            })
            .collect();
        let causes: Vec<&str> = list(field(data, "causes")).iter().map(word).collect();
        let detail = if moves.is_empty() {
            word(field(data, "endpoint")).to_owned()
        } else {
            moves.join(", ")
        };
        let cause = if causes.is_empty() {
            word(field(data, "cause")).to_owned()
        } else {
            causes.join("; ")
        };
        let mut row = texts(event, ["at", "kind"]);
        // The cluster tells what other clusters see from what the own one does.
        let of = match word(field(data, "cluster")) {
            "" => word(field(data, "route")),
            cluster => cluster,
        };
        row.extend([of.to_owned(), detail, cause]);
        table.row(row);
    }
    table
}

fn identities(content: &Value) -> Table {
    let mut table = Table::new(&["TRUST-DOMAIN", "WHAT", "FINGERPRINT", "NOT-AFTER"]);
    let own = field(content, "own");
    let mut row = vec![
        field(own, "spiffe_id")
            .as_str()
            .unwrap_or("none yet")
            .to_owned(),
        "own SVID".to_owned(),
    ];
    row.extend([String::new(), word(field(own, "not_after")).to_owned()]);
    table.row(row);
    for bundle in list(field(content, "bundles")) {
        for anchor in list(field(bundle, "anchors")) {
            let mut row = vec![
                word(field(bundle, "trust_domain")).to_owned(),
                "anchor".to_owned(),
            ];
            row.extend(texts(anchor, ["fingerprint", "not_after"]));
            table.row(row);
        }
    }
    table
}

fn findings(content: &Value) -> Table {
    let mut table = Table::new(&["SEVERITY", "CODE", "FILE", "LINE", "MESSAGE", "HELP"]);
    for finding in list(content) {
        let names = ["severity", "code", "file", "line", "message", "help"];
        table.row(texts(finding, names));
    }
    table
}

fn connections(content: &Value) -> Table {
    let mut table = Table::new(&[
        "KIND",
        "LISTENER",
        "SOURCE",
        "SERVICE",
        "PRINCIPAL",
        "REQUEST",
        "BACKEND",
    ]);
    for one in list(content) {
        let mut row = texts(one, ["kind", "listener", "source", "service"]);
        let attested = word(field(one, "source_attested"));
        row.push(if attested.is_empty() {
            word(field(one, "source_principal")).to_owned()
        } else {
            attested.to_owned()
        });
        row.push(
            format!(
                "{} {}",
                word(field(one, "method")),
                word(field(one, "path"))
            )
            .trim()
            .to_owned(),
        );
        row.extend(texts(one, ["destination_backend"]));
        table.row(row);
    }
    table
}
