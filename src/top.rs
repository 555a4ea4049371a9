//! `zeugma top`: what each route carries now, again and again.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _};
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Args;
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style, Stylize as _};
use ratatui::text::Line;
use ratatui::widgets::{Cell, Row, Table as Grid};
use serde_json::{Value, json};

use crate::admin::{self, Admin, AdminError, Output, Target, field};
use crate::status::{list, word};
use crate::table::Table;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);
const HEADING: [&str; 7] = [
    "SERVICE",
    "PORT",
    "PER-S",
    "FAILED/S",
    "SHARE",
    "WHY",
    "LEVELS(healthy/total)",
];

#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    #[command(flatten)]
    target: Target,
    /// Print one table and end, even on a terminal
    #[arg(long)]
    once: bool,
    /// How to answer where it is not on a terminal, or with --once
    #[arg(short, long, value_enum, default_value_t = Output::Human)]
    output: Output,
}

/// Runs `zeugma top`.
pub(crate) fn run(args: &TopArgs) -> ExitCode {
    try_run(args).unwrap_or_else(|error| error.fail())
}

fn try_run(args: &TopArgs) -> Result<ExitCode, AdminError> {
    let admin = args.target.admin()?;
    let is_live = !args.once && args.output == Output::Human;
    if is_live && io::stdout().is_terminal() && io::stdin().is_terminal() {
        return live(&admin);
    }
    let before = Look::at(&admin)?;
    sleep(EVERY);
    let rows = rows(&before, &Look::at(&admin)?);
    match args.output {
        Output::Json => admin::print_json("Top", json!({ "routes": to_json(&rows) })),
        Output::Human => admin::print(&to_text(&rows)),
    }
}

/// What a gateway said at one moment.
#[derive(Debug)]
struct Look {
    at: Instant,
    routes: Value,
    /// By service: how many ended, and how many of them failed.
    ended: BTreeMap<String, (u64, u64)>,
}

impl Look {
    fn at(admin: &Admin) -> Result<Self, AdminError> {
        let metrics = admin.read("/metrics")?;
        Ok(Self {
            at: Instant::now(),
            routes: admin.part("/api/v1/routes", "routes")?,
            ended: ended(&String::from_utf8_lossy(&metrics)),
        })
    }
}

/// The sum of a counter's lines by service.
pub(crate) fn counted(metrics: &str, name: &str) -> BTreeMap<String, u64> {
    let mut all: BTreeMap<String, u64> = BTreeMap::new();
    for line in metrics.lines().filter(|line| line.starts_with(name)) {
        if let (Some(service), Some(count)) = (label(line, "destination_service"), count(line)) {
            *all.entry(service.to_owned()).or_default() += count;
        }
    }
    all
}

fn label<'l>(line: &'l str, name: &str) -> Option<&'l str> {
    let (_, rest) = line.split_once(&format!("{name}=\""))?;
    Some(rest.split_once('"')?.0)
}

fn count(line: &str) -> Option<u64> {
    line.rsplit_once(' ')
        .and_then(|(_, count)| count.parse().ok())
}

/// Requests, and connections of what has none, by service.
pub(crate) fn ended(metrics: &str) -> BTreeMap<String, (u64, u64)> {
    let mut all: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let of = |name: &'static str| metrics.lines().filter(move |line| line.starts_with(name));
    // Requests first, wherever they stand: the connection of requests is no work of its own.
    let requests = of("zeugma_requests_total{").map(|line| (true, line));
    let connections = of("zeugma_connections_total{").map(|line| (false, line));
    for (is_request, line) in requests.chain(connections) {
        let label = |name: &str| label(line, name);
        let (Some(service), Some(count)) = (label("destination_service"), count(line)) else {
            continue;
        };
        let is_good = match label("response_code").and_then(|code| code.parse::<u16>().ok()) {
            Some(status) => status < 500,
            None => matches!(
                label("reason"),
                Some("completed" | "drained" | "idle-timeout")
            ),
        };
        if !is_request && is_good && all.contains_key(service) {
            continue;
        }
        let (total, failed) = all.entry(service.to_owned()).or_default();
        *total += u64::to_owned(&count);
        *failed += if is_good { 0 } else { count };
    }
    all
}

/// One route, as it is shown.
#[derive(Debug, Clone, PartialEq)]
struct Shown {
    service: String,
    port: u64,
    per_second: f64,
    failed_per_second: f64,
    shares: String,
    why: String,
    levels: String,
}

/// What happened between two looks, busiest first.
fn rows(before: &Look, now: &Look) -> Vec<Shown> {
    let seconds = (now.at - before.at).as_secs_f64().max(0.001);
    let none = (0, 0);
    let mut rows: Vec<Shown> = (list(&now.routes).iter())
        .map(|route| {
            let service = word(field(route, "service")).to_owned();
            let (total, failed) = now.ended.get(&service).unwrap_or(&none);
            let (total_before, failed_before) = before.ended.get(&service).unwrap_or(&none);
            let outbound = field(route, "outbound");
            let levels = list(field(outbound, "levels"));
            let rate = |now: u64, before: u64| per_second(now.saturating_sub(before), seconds);
            let share = |level: &Value| field(level, "share").as_f64().unwrap_or_default();
            Shown {
                port: field(route, "port").as_u64().unwrap_or_default(),
                per_second: rate(*total, *total_before),
                failed_per_second: rate(*failed, *failed_before),
                shares: joined(levels, |level| format!("{:.0} %", share(level) * 100.0)),
                why: word(field(outbound, "why")).to_owned(),
                levels: joined(levels, |level| {
                    let (healthy, total) = (field(level, "healthy"), field(level, "total"));
                    format!("{} {healthy}/{total}", word(field(level, "name")))
                }),
                service,
            }
        })
        .collect();
    rows.sort_by(|a, b| {
        (b.per_second.total_cmp(&a.per_second)).then_with(|| a.service.cmp(&b.service))
    });
    rows
}

#[expect(
    clippy::cast_precision_loss,
    reason = "what is shown has three digits; a count of a second is far below 2^52"
)]
fn per_second(count: u64, seconds: f64) -> f64 {
    count as f64 / seconds
}

fn joined(levels: &[Value], text: impl Fn(&Value) -> String) -> String {
    levels.iter().map(text).collect::<Vec<_>>().join(", ")
}

impl Shown {
    fn cells(&self) -> [String; 7] {
        [
            self.service.clone(),
            self.port.to_string(),
            format!("{:.0}", self.per_second),
            format!("{:.0}", self.failed_per_second),
            self.shares.clone(),
            self.why.clone(),
            self.levels.clone(),
        ]
    }
}

fn to_text(rows: &[Shown]) -> String {
    let mut table = Table::new(&HEADING);
    for row in rows {
        table.row(row.cells().to_vec());
    }
    table.to_string()
}

fn to_json(rows: &[Shown]) -> Value {
    (rows.iter())
        .map(|row| {
            json!({
                "service": row.service,
                "port": row.port,
                "per_second": row.per_second,
                "failed_per_second": row.failed_per_second,
                "why": row.why,
            })
        })
        .collect()
}

/// Draws until `q`, Esc or Ctrl-C; whatever happens the terminal is given back as it was.
fn live(admin: &Admin) -> Result<ExitCode, AdminError> {
    let mut before = Look::at(admin)?;
    let mut shown = rows(&before, &before);
    let mut terminal = ratatui::try_init().map_err(AdminError::Print)?;
    let mut failed = None;
    let ended = loop {
        let said = failed.as_ref().map(AdminError::to_string);
        let drawn = terminal.draw(|frame| draw(frame, &admin.shown(), &shown, said.as_deref()));
        if let Err(error) = drawn {
            break Err(AdminError::Print(error));
        }
        match is_over(EVERY) {
            Ok(true) => break Ok(ExitCode::SUCCESS),
            Ok(false) => {}
            Err(error) => break Err(AdminError::Print(error)),
        }
        match Look::at(admin) {
            Ok(now) => {
                shown = rows(&before, &now);
                before = now;
                failed = None;
            }
            // It may come back.
            Err(error) => failed = Some(error),
        }
    };
    ratatui::restore();
    ended
}

/// Waits for so long, or until somebody wants to end.
fn is_over(wait: Duration) -> io::Result<bool> {
    let until = Instant::now() + wait;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if !event::poll(left)? {
            return Ok(false);
        }
        if let Event::Key(key) = event::read()?
            && key.kind == KeyEventKind::Press
        {
            let is_ctrl_c =
                key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
            if is_ctrl_c || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                return Ok(true);
            }
        }
    }
}

fn draw(frame: &mut Frame<'_>, from: &str, rows: &[Shown], failed: Option<&str>) {
    let parts = Layout::vertical([Constraint::Length(1), Constraint::Min(1)]);
    let [head, body] = parts.areas(frame.area());
    let line = match failed {
        Some(failed) => Line::from(failed.to_owned()).red(),
        None => Line::from(format!("{from}  {} route(s)  q ends", rows.len())).dim(),
    };
    frame.render_widget(line, head);
    let heading = Row::new(HEADING).style(Style::new().add_modifier(Modifier::BOLD));
    let grid_rows = rows.iter().map(|row| {
        let color = match row.why.as_str() {
            "preferred" => Color::Reset,
            "spill" | "too-few" => Color::Yellow,
            _ => Color::Red,
        };
        Row::new(row.cells().map(Cell::from)).style(Style::new().fg(color))
    });
    let widths = [
        Constraint::Min(16),
        Constraint::Length(5),
        Constraint::Length(8),
        Constraint::Length(8),
        Constraint::Min(12),
        Constraint::Length(10),
        Constraint::Min(24),
    ];
    frame.render_widget(Grid::new(grid_rows, widths).header(heading), body);
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    const METRICS: &str = r#"
zeugma_connections_total{listener="apps",destination_service="shop/orders",reason="completed",response_flags="-"} 9
zeugma_requests_total{listener="apps",destination_service="shop/orders",response_code="200",reason="completed",response_flags="-"} 70
zeugma_requests_total{listener="apps",destination_service="shop/orders",response_code="503",reason="no-healthy-endpoint",response_flags="UH"} 5
zeugma_connections_total{listener="db",destination_service="shop/db",reason="completed",response_flags="-"} 3
zeugma_connections_total{listener="db",destination_service="shop/db",reason="connect-failed",response_flags="UF"} 2
"#;

    fn looks() -> (Look, Look) {
        let routes = json!([
            { "service": "shop/db", "port": 5432, "outbound": { "why": "preferred", "levels": [] } },
            { "service": "shop/orders", "port": 80, "outbound": { "why": "spill", "levels": [
                { "name": "eu", "share": 0.7, "healthy": 1, "total": 2 },
                { "name": "peer west", "share": 0.3, "healthy": 1, "total": 1 },
            ] } },
        ]);
        let at = Instant::now();
        let before = Look {
            at,
            routes: Value::Null,
            ended: BTreeMap::from([("shop/orders".to_owned(), (25, 1))]),
        };
        let now = Look {
            at: at + Duration::from_secs(2),
            routes,
            ended: ended(METRICS),
        };
        (before, now)
    }

    #[test]
    fn rates_are_of_requests_where_there_are_some_and_else_of_connections() {
        let (before, now) = looks();
        let rows = rows(&before, &now);
        let shown: Vec<_> = (rows.iter())
            .map(|row| (row.service.as_str(), row.per_second, row.failed_per_second))
            .collect();
        assert_eq!(shown, [("shop/orders", 25.0, 2.0), ("shop/db", 2.5, 1.0)]);
        assert_eq!(rows[0].levels, "eu 1/2, peer west 1/1");
        assert_eq!(rows[0].shares, "70 %, 30 %");
    }

    #[test]
    fn a_screen_holds_the_busiest_first_and_what_went_wrong() {
        let (before, now) = looks();
        let rows = rows(&before, &now);
        let mut terminal = Terminal::new(TestBackend::new(100, 5)).unwrap();
        let mut screen = |failed: Option<&str>| {
            terminal
                .draw(|frame| draw(frame, "unix:a.sock", &rows, failed))
                .unwrap();
            terminal.backend().to_string()
        };
        let text = screen(None);
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[0].contains("unix:a.sock  2 route(s)  q ends"),
            "{text}"
        );
        assert!(lines[1].contains("SERVICE"), "{text}");
        assert!(
            lines[2].contains("shop/orders") && lines[2].contains("spill"),
            "{text}"
        );
        assert!(lines[3].contains("shop/db"), "{text}");
        assert!(screen(Some("no gateway answers")).contains("no gateway answers"));
    }
}
