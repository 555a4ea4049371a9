//! `zeugma status`: where traffic goes now, and why.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use zeugma_xds::suggest;

use crate::admin::{self, Admin, AdminError, Output, Target, field, query};
use crate::get::report;
use crate::table::Table;

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    target: Target,
    /// Only this route
    #[arg(long, value_name = "NAMESPACE/NAME")]
    service: Option<String>,
    /// How to answer
    #[arg(short, long, value_enum, default_value_t = Output::Human)]
    output: Output,
}

/// Runs `zeugma status`.
pub(crate) fn run(args: &StatusArgs) -> ExitCode {
    try_run(args).unwrap_or_else(|error| error.fail())
}

fn try_run(args: &StatusArgs) -> Result<ExitCode, AdminError> {
    let admin = args.target.admin()?;
    let state = State::ask(&admin, args.service.as_deref())?;
    match args.output {
        Output::Json => admin::print_json("Status", state.to_json()),
        Output::Human => admin::print(&state.to_text(OffsetDateTime::now_utc())),
    }
}

/// What a gateway says of itself.
#[derive(Debug)]
struct State {
    server: Value,
    identities: Value,
    findings: Value,
    control_plane: Value,
    peers: Value,
    routes: Value,
}

impl State {
    fn ask(admin: &Admin, service: Option<&str>) -> Result<Self, AdminError> {
        const ROUTES: &str = "/api/v1/routes";
        let asked: Vec<_> = service.iter().map(|name| ("service", *name)).collect();
        let routes = admin.part(&query(ROUTES, &asked), "routes")?;
        if let Some(service) = service
            && list(&routes).is_empty()
        {
            let all = admin.part(ROUTES, "routes")?;
            let names = list(&all).iter().map(|route| word(field(route, "service")));
            let (shown, service) = (admin.shown(), service.to_owned());
            let help = suggest(&service, names);
            return Err(AdminError::Service(shown, service, help));
        }
        Ok(Self {
            server: admin.get("/server_info")?,
            identities: admin.part("/api/v1/identities", "identities")?,
            findings: admin.part("/api/v1/findings", "findings")?,
            control_plane: admin.part("/api/v1/control-plane", "control_plane")?,
            peers: admin.part("/api/v1/peers", "peers")?,
            routes,
        })
    }

    fn to_json(&self) -> Value {
        json!({
            "gateway": self.server,
            "identity": field(&self.identities, "own"),
            "findings": self.findings,
            "control_plane": self.control_plane,
            "peers": self.peers,
            "routes": self.routes,
        })
    }

    fn to_text(&self, now: OffsetDateTime) -> String {
        let mut text = String::new();
        let server = &self.server;
        // To write to a string never fails.
        writeln!(
            text,
            "gateway {}  cluster {}  {}  {}  version {}  up {}",
            word(field(server, "name")),
            word(field(server, "cluster")),
            word(field(server, "locality")),
            word(field(server, "state")),
            word(field(server, "version")),
            span(field(server, "uptime_seconds").as_i64().unwrap_or_default()),
        )
        .ok();
        let findings = self.findings.as_array().map_or(0, Vec::len);
        let refused = match findings {
            0 => String::new(),
            n => format!("  {n} finding(s): `zeugma get findings` shows them"),
        };
        writeln!(
            text,
            "configuration generation {}{refused}",
            field(server, "config_generation")
        )
        .ok();
        if let Some(line) = control_plane_line(&self.control_plane) {
            writeln!(text, "{line}").ok();
        }
        let own = field(&self.identities, "own");
        let identity = match word(field(own, "spiffe_id")) {
            "" => "none yet".to_owned(),
            id => format!("{id}  expires {}", until(field(own, "not_after"), now)),
        };
        let agents = ["workload_api", "sds"].map(|name| field(&self.identities, name));
        let api = agents.into_iter().find(|agent| !agent.is_null());
        let api = api.unwrap_or(&Value::Null);
        let from = match (word(field(api, "address")), field(api, "answers").as_bool()) {
            ("", _) => String::new(),
            (address, Some(true)) => format!("  by {address}"),
            (address, _) => format!("  by {address}, which does not answer"),
        };
        writeln!(text, "identity {identity}{from}").ok();
        for peer in list(&self.peers) {
            writeln!(text, "{}", peer_line(peer)).ok();
        }
        let mut table = Table::new(&[
            "SERVICE",
            "PORT",
            "LEVELS(healthy/total)",
            "SHARE",
            "WHY",
            "SINCE",
            "EXPORTED-TO",
        ]);
        for route in list(&self.routes) {
            table.row(row(route, now));
        }
        if table.is_empty() {
            text.push_str("no routes\n");
        } else {
            write!(text, "\n{table}").ok();
        }
        for line in over_capacity(&self.routes) {
            writeln!(text, "{line}").ok();
        }
        text
    }
}

/// The routes that refused something for want of capacity; what is counted is of all ports of one.
fn over_capacity(routes: &Value) -> Vec<String> {
    let mut told = BTreeMap::new();
    for route in list(routes) {
        let count = field(route, "refused_over_capacity").as_u64().unwrap_or(0);
        let now = [field(route, "outbound"), field(route, "own")]
            .into_iter()
            .map(|to| field(to, "load"))
            .find(|load| field(load, "refused_share").as_f64() > Some(0.0));
        if count == 0 && now.is_none() {
            continue;
        }
        let of = told
            .entry(word(field(route, "service")))
            .or_insert((count, None));
        of.1 = of.1.or(now);
    }
    (told.into_iter())
        .map(|(service, (count, now))| {
            let now = now.map_or_else(String::new, |load| {
                let number = |name| field(load, name).as_f64().unwrap_or_default();
                format!(
                    "; of {:.1}/s that are offered {} fits nowhere",
                    number("offered_per_second"),
                    percent(number("refused_share"))
                )
            });
            format!("{service}: {count} refused for capacity since the start (ZG0442){now}")
        })
        .collect()
}

/// Where the configuration comes from, if not from files.
fn control_plane_line(control_plane: &Value) -> Option<String> {
    let told = field(control_plane, "addresses").as_array()?;
    let server = match word(field(control_plane, "connected")) {
        "" => {
            let all: Vec<&str> = told.iter().map(word).collect();
            format!("{}, which does not answer", all.join(", "))
        }
        address => address.to_owned(),
    };
    let kept = match field(control_plane, "kept").as_bool() {
        Some(true) => match word(field(control_plane, "kept_from")) {
            "" => ", kept from before the start".to_owned(),
            by => format!(" by {by}, kept from before the start"),
        },
        Some(false) | None => String::new(),
    };
    let age = match field(control_plane, "age_seconds").as_i64() {
        Some(age) => format!("updated {} ago{kept}", span(age)),
        None => "nothing yet".to_owned(),
    };
    let refused = match field(control_plane, "refused").as_u64() {
        Some(0) | None => String::new(),
        Some(n) => format!("  {n} resource(s) refused"),
    };
    Some(format!("control plane {server}  {age}{refused}"))
}

/// A peer in a line.
fn peer_line(peer: &Value) -> String {
    let gateways = || list(field(peer, "gateways")).iter();
    let count = |name: &str| {
        let counts = gateways().filter_map(|one| field(one, name).as_u64());
        counts.sum::<u64>()
    };
    let reports: Vec<String> = (gateways().map(|one| report(field(one, "report"))))
        .filter(|words| !words.is_empty())
        .collect();
    let reports = if reports.is_empty() {
        String::new()
    } else {
        format!("  reports: {}", reports.join(", "))
    };
    format!(
        "peer {}  {}  {}  {}/{} ways healthy{reports}",
        word(field(peer, "name")),
        word(field(peer, "locality")),
        word(field(peer, "state")),
        count("healthy"),
        count("total"),
    )
}

fn row(route: &Value, now: OffsetDateTime) -> Vec<String> {
    let outbound = field(route, "outbound");
    let levels: Vec<String> = (list(field(outbound, "levels")).iter())
        .map(|level| {
            let state = match word(field(level, "state")) {
                "waits for reset" => {
                    let since = since(field(level, "state_since"), now);
                    format!(" (waits for reset since {since})")
                }
                _ => String::new(),
            };
            format!(
                "{} {}/{}{state}",
                word(field(level, "name")),
                field(level, "healthy"),
                field(level, "total")
            )
        })
        .collect();
    let shares: Vec<String> = (list(field(outbound, "levels")).iter())
        .map(|level| percent(field(level, "share").as_f64().unwrap_or_default()))
        .collect();
    let exported: Vec<&str> = list(field(route, "exported_to")).iter().map(word).collect();
    vec![
        word(field(route, "service")).to_owned(),
        field(route, "port").to_string(),
        levels.join(", "),
        shares.join(", "),
        word(field(outbound, "why")).to_owned(),
        since(field(outbound, "since"), now),
        exported.join(", "),
    ]
}

/// A JSON string, or nothing.
pub(crate) fn word(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// A JSON list, or nothing.
pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

/// How long ago a moment was.
fn since(moment: &Value, now: OffsetDateTime) -> String {
    let moment = OffsetDateTime::parse(word(moment), &Rfc3339).ok();
    moment.map_or_else(String::new, |moment| span((now - moment).whole_seconds()))
}

/// A moment to come, and how long it is until then.
pub(crate) fn until(moment: &Value, now: OffsetDateTime) -> String {
    let Ok(at) = OffsetDateTime::parse(word(moment), &Rfc3339) else {
        return "at an unknown time".to_owned();
    };
    let left = (at - now).whole_seconds();
    if left > 0 {
        format!("in {} ({})", span(left), word(moment))
    } else {
        format!("{} ago ({})", span(-left), word(moment))
    }
}

/// Seconds in the largest unit that has two digits or fewer before it.
fn span(seconds: i64) -> String {
    match seconds {
        ..120 => format!("{}s", seconds.max(0)),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        172_800.. => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_told_in_the_unit_people_use() {
        for (seconds, text) in [
            (-1, "0s"),
            (119, "119s"),
            (120, "2m"),
            (7_199, "119m"),
            (7_200, "2h"),
            (172_799, "47h"),
            (172_800, "2d"),
        ] {
            assert_eq!(span(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn what_capacity_refused_is_told_once_for_a_route() {
        let load = json!({ "offered_per_second": 12.0, "refused_share": 0.25 });
        let route = |service: &str, count: u64, load: &Value| {
            json!({
                "service": service,
                "refused_over_capacity": count,
                "outbound": { "load": load },
                "own": null,
            })
        };
        let routes = json!([
            route("shop/orders", 7, &Value::Null),
            route("shop/orders", 7, &load),
            route("shop/quiet", 0, &Value::Null),
        ]);
        assert_eq!(
            over_capacity(&routes),
            [
                "shop/orders: 7 refused for capacity since the start (ZG0442); of 12.0/s that are \
                 offered 25 % fits nowhere"
            ]
        );
    }

    #[test]
    fn what_expired_is_told_as_past() {
        let now = OffsetDateTime::from_unix_timestamp(10_000).unwrap();
        let at = |unix: i64| {
            let at = OffsetDateTime::from_unix_timestamp(unix).unwrap();
            until(&Value::from(at.format(&Rfc3339).unwrap()), now)
        };
        assert_eq!(at(10_060), "in 60s (1970-01-01T02:47:40Z)");
        assert_eq!(at(9_940), "60s ago (1970-01-01T02:45:40Z)");
    }
}
