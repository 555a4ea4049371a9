//! `zeugma tap`: what a gateway carries, line by line as it ends.

use std::ops::ControlFlow;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::admin::{self, Admin, AdminError, Output, Target, field};
use crate::check::seconds;
use crate::exit;
use crate::status::word;
use crate::table::printable;

#[derive(Debug, Args)]
pub(crate) struct TapArgs {
    #[command(flatten)]
    target: Target,
    /// Only requests, or only connections
    #[arg(long, value_enum)]
    kind: Option<Kind>,
    /// Only of this route
    #[arg(long, value_name = "NAMESPACE/NAME")]
    service: Option<String>,
    /// Only what came in there
    #[arg(long, value_name = "NAME")]
    listener: Option<String>,
    /// Only from this network or address
    #[arg(long, value_name = "CIDR")]
    source: Option<String>,
    /// Only by this caller: a SPIFFE ID, or a pattern such as spiffe://east.example/ns/shop/*
    #[arg(long, value_name = "ID")]
    from: Option<String>,
    /// Only what ended so, such as not-allowed
    #[arg(long, value_name = "VERDICT")]
    verdict: Option<String>,
    /// Only requests answered so: 503, or 5xx
    #[arg(long, value_name = "STATUS")]
    status: Option<String>,
    /// Only requests whose path begins so
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
    /// Only what did not end well
    #[arg(long)]
    failed: bool,
    /// At most so many a second, 1 to 10000; more are dropped, counted and told [default: 100]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rate: Option<u32>,
    /// End after so many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after so many seconds
    #[arg(long = "for", value_name = "SECONDS", value_parser = seconds)]
    lasts: Option<Duration>,
    /// How to answer: JSON is one object a line
    #[arg(short, long, value_enum, default_value_t = Output::Human)]
    output: Output,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    Request,
    Connection,
}

/// Runs `zeugma tap`.
pub(crate) fn run(args: &TapArgs) -> ExitCode {
    try_run(args).unwrap_or_else(|error| error.fail())
}

fn try_run(args: &TapArgs) -> Result<ExitCode, AdminError> {
    let admin = args.target.admin()?;
    let mut shown = 0;
    let watching = watch(&admin, args, &mut shown);
    let ended = admin::runtime()?.block_on(async {
        match args.lasts {
            Some(lasts) => timeout(lasts, watching).await.unwrap_or(Ok(())),
            None => watching.await,
        }
    });
    ended?;
    let is_short = args.count.is_some_and(|count| shown < count);
    Ok(if is_short {
        ExitCode::from(exit::FINDINGS)
    } else {
        ExitCode::SUCCESS
    })
}

/// Shows what comes, until there was enough; a gateway ends each stream after some minutes, and one
/// that hands over to the next at once.
async fn watch(admin: &Admin, args: &TapArgs, shown: &mut u64) -> Result<(), AdminError> {
    let path = args.path_of();
    let mut is_first = true;
    let mut is_again = false;
    loop {
        let mut is_silent = true;
        let each = |line: &[u8]| -> Result<ControlFlow<()>, AdminError> {
            is_silent = false;
            let event: Value = serde_json::from_slice(line)
                .map_err(|error| AdminError::Json(admin.shown(), path.clone(), error))?;
            let is_one = matches!(word(field(&event, "kind")), "request" | "connection");
            if is_one || is_first || word(field(&event, "kind")) == "dropped" {
                let text = match args.output {
                    Output::Json => as_json(&event),
                    Output::Human => as_text(&event),
                };
                if print(&text)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            is_first = false;
            *shown += u64::from(is_one);
            let is_enough = args.count.is_some_and(|count| *shown >= count);
            Ok(if is_enough {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            })
        };
        let read = match admin.lines(&path, each).await {
            Ok(read) => read,
            // A gateway that ends may still have accepted, and answers nobody.
            Err(AdminError::Http(at, why)) if is_again => {
                return Err(AdminError::Connect(at, std::io::Error::other(why)));
            }
            Err(error) => return Err(error),
        };
        if read.is_break() {
            return Ok(());
        }
        is_again = true;
        if is_silent {
            // Each begins with a line: to ask again at once would go on for ever.
            return Err(AdminError::Body(admin.shown()));
        }
    }
}

/// Prints a line; a break where nobody reads any more.
fn print(text: &str) -> Result<ControlFlow<()>, AdminError> {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Ok(()) => Ok(ControlFlow::Continue(())),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
        Err(error) => Err(AdminError::Print(error)),
    }
}

impl TapArgs {
    fn path_of(&self) -> String {
        let kind = self.kind.map(|kind| match kind {
            Kind::Request => "request".to_owned(),
            Kind::Connection => "connection".to_owned(),
        });
        let fields = [
            ("kind", kind),
            ("service", self.service.clone()),
            ("listener", self.listener.clone()),
            ("source", self.source.clone()),
            ("from", self.from.clone()),
            ("verdict", self.verdict.clone()),
            ("status", self.status.clone()),
            ("path", self.path.clone()),
            ("failed", self.failed.then(|| "true".to_owned())),
            ("rate", self.rate.map(|rate| rate.to_string())),
        ];
        let written: Vec<(&str, &str)> = (fields.iter())
            .filter_map(|(name, value)| Some((*name, value.as_deref()?)))
            .collect();
        admin::query("/api/v1/tap", &written)
    }
}

/// The line as it is; the first of them has the version of the form.
fn as_json(event: &Value) -> String {
    let mut event = event.clone();
    if word(field(&event, "kind")) == "tap"
        && let Some(all) = event.as_object_mut()
    {
        all.insert("apiVersion".to_owned(), json!("cli.zeugma.dev/v1"));
        all.insert("kind".to_owned(), json!("Tap"));
    }
    event.to_string()
}

fn as_text(event: &Value) -> String {
    let text = |name: &str| word(field(event, name));
    let number = |name: &str| field(event, name).as_u64().unwrap_or_default();
    match text("kind") {
        "tap" => {
            let (name, rate) = (text("gateway"), number("rate"));
            return printable(&format!(
                "what {name} carries, as it ends; at most {rate} a second. Open ones: `zeugma get connections`"
            ));
        }
        "dropped" => {
            let (rate, slow) = (number("over_rate"), number("not_read"));
            return format!(
                "... {rate} over the rate and {slow} too fast for this view are not shown"
            );
        }
        _ => {}
    }
    let who = match (text("src.attested"), text("src.identity")) {
        ("", "") => text("src.addr").to_owned(),
        ("", identity) => identity.to_owned(),
        (attested, _) => format!("{attested} (by {})", text("src.peer")),
    };
    let asked = match text("http.method") {
        "" => text("sni").to_owned(),
        method => format!(
            "{method} {}{} {}",
            text("http.authority"),
            text("http.path"),
            number("http.status")
        ),
    };
    let to = match (text("dst.backend"), text("dst.addr")) {
        ("", _) => String::new(),
        (backend, address) => format!("{backend} {address} {}", text("reason")),
    };
    let why = [text("verdict"), text("policy.rule"), text("error")];
    let words = [
        text("time"),
        text("listener"),
        &who,
        "->",
        text("dst.service"),
        &asked,
        &to,
        text("duration"),
    ];
    let words: Vec<&str> = (words.into_iter())
        .chain(why)
        .filter(|word| !word.is_empty())
        .collect();
    printable(&words.join("  "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_who_called_what_where_it_went_and_why_it_ended() {
        let event = json!({
            "time": "2026-11-26T00:00:00.000Z", "kind": "request", "listener": "mesh",
            "src.addr": "10.0.0.1:1", "src.identity": "spiffe://west.example/zeugma/gateway",
            "src.attested": "spiffe://west.example/cart", "src.peer": "west",
            "dst.service": "shop/orders", "http.method": "GET", "http.authority": "orders",
            "http.path": "/\u{1b}[2J", "http.status": 403, "verdict": "not-allowed",
            "policy.rule": "a.yaml:7", "duration": "3ms",
        });
        assert_eq!(
            as_text(&event),
            "2026-11-26T00:00:00.000Z  mesh  spiffe://west.example/cart (by west)  ->  shop/orders  \
             GET orders/\u{fffd}[2J 403  3ms  not-allowed  a.yaml:7"
        );
        let first = json!({ "kind": "tap", "gateway": "east-gw", "rate": 7 });
        assert!(as_text(&first).contains("at most 7 a second"));
        let json: Value = serde_json::from_str(&as_json(&first)).unwrap();
        assert_eq!(
            json,
            json!({ "apiVersion": "cli.zeugma.dev/v1", "kind": "Tap", "gateway": "east-gw", "rate": 7 })
        );
    }
}
