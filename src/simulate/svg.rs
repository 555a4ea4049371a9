//! A simulation as a chart: the shares of each level over time, one on the other, with what went
//! wrong behind them and what was lost below.

use std::fmt::Write as _;
use std::time::Duration;

use zeugma_core::simulate::{ServiceReport, Tick};

use super::report::{Played, seconds, told};

/// Charts of one picture.
const CHARTS_MAX: usize = 8;
const WIDTH: f64 = 960.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 20.0;
const HEAD: f64 = 50.0;
const PLOT: f64 = 180.0;
const LOST: f64 = 30.0;
const CHART: f64 = HEAD + PLOT + LOST + 40.0;
/// Told apart by people who see colours differently (Okabe and Ito).
const COLOURS: [&str; 7] = [
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#f0e442", "#999999",
];

/// Draws it.
pub(super) fn draw(played: &Played<'_>) -> String {
    let services = || played.report.services.iter().take(CHARTS_MAX);
    let faults = played.scenario.faults.len();
    let head = 40.0 + 16.0 * faults as f64;
    let height = head + CHART * services().count() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    let counts = &played.report.counts;
    let title = format!(
        "{:.0} requests, {:.0} lost, {:.0} extra tries (seed {})",
        counts.sent,
        counts.lost(),
        counts.retried,
        played.scenario.seed
    );
    text(&mut svg, (LEFT, 22.0), "font-size=\"15\"", &title);
    let mut y = 40.0;
    for fault in &played.scenario.faults {
        text(&mut svg, (LEFT, y), "fill=\"#b00020\"", &told(fault));
        y += 16.0;
    }
    for (nth, service) in services().enumerate() {
        chart(&mut svg, played, service, head + CHART * nth as f64);
    }
    svg.push_str("</svg>\n");
    svg
}

fn chart(svg: &mut String, played: &Played<'_>, service: &ServiceReport, top: f64) {
    let lasts = played.scenario.lasts;
    let x = |at: Duration| {
        LEFT + (WIDTH - LEFT - RIGHT) * (at.as_secs_f64() / lasts.as_secs_f64()).min(1.0)
    };
    let plot = top + HEAD;
    text(
        svg,
        (LEFT, top + 18.0),
        "font-weight=\"bold\"",
        &played.name(service),
    );
    let mut at = LEFT;
    for (name, colour) in played
        .levels(service)
        .into_iter()
        .zip(COLOURS.iter().cycle())
    {
        // To write to a string never fails.
        writeln!(
            svg,
            "<rect x=\"{at:.1}\" y=\"{:.1}\" width=\"10\" height=\"10\" fill=\"{colour}\"/>",
            top + 28.0
        )
        .ok();
        text(svg, (at + 14.0, top + 37.0), "", name);
        at += 30.0 + 7.0 * name.chars().count() as f64;
    }
    areas(svg, service, played.report.tick, plot, &x);
    for fault in &played.scenario.faults {
        let from = x(fault.from.since_origin());
        let to = x(fault.to.map_or(lasts, |to| to.since_origin()));
        let width = (to - from).max(1.0);
        writeln!(
            svg,
            "<rect x=\"{from:.1}\" y=\"{plot:.1}\" width=\"{width:.1}\" height=\"{:.1}\" \
             fill=\"none\" stroke=\"#b00020\" stroke-dasharray=\"3 3\"/>\n\
             <rect x=\"{from:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{LOST}\" \
             fill=\"#b00020\" fill-opacity=\"0.12\"/>",
            PLOT + LOST,
            plot + PLOT,
        )
        .ok();
    }
    losses(svg, service, played.report.tick, plot + PLOT, &x);
    for (share, label) in [(0.0, "0 %"), (0.5, "50 %"), (1.0, "100 %")] {
        let y = plot + PLOT * (1.0 - share);
        text(svg, (LEFT - 6.0, y + 4.0), "text-anchor=\"end\"", label);
    }
    text(
        svg,
        (LEFT - 6.0, plot + PLOT + LOST),
        "text-anchor=\"end\"",
        "lost",
    );
    for part in 0..=5u32 {
        let at = lasts * part / 5;
        let place = (x(at), plot + PLOT + LOST + 16.0);
        text(svg, place, "text-anchor=\"middle\"", &seconds(at));
    }
}

/// The share of each level, on those of the levels before it.
fn areas(
    svg: &mut String,
    service: &ServiceReport,
    tick: Duration,
    plot: f64,
    x: &dyn Fn(Duration) -> f64,
) {
    let levels = service.levels.len();
    let below = |step: &Tick, level: usize| step.shares.iter().take(level).sum::<f64>().min(1.0);
    for (level, colour) in (0..levels).zip(COLOURS.iter().cycle()) {
        if service
            .series
            .iter()
            .all(|step| step.shares.get(level) == Some(&0.0))
        {
            continue;
        }
        let mut upper = String::new();
        let mut lower = Vec::new();
        for (nth, step) in (0u32..).zip(&service.series) {
            let high = plot + PLOT * (1.0 - below(step, level + 1));
            let low = plot + PLOT * (1.0 - below(step, level));
            for at in [x(tick * nth), x(tick * (nth + 1))] {
                write!(upper, "{at:.1},{high:.1} ").ok();
                lower.push(format!("{at:.1},{low:.1}"));
            }
        }
        lower.reverse();
        writeln!(
            svg,
            "<polygon points=\"{upper}{}\" fill=\"{colour}\" fill-opacity=\"0.85\"/>",
            lower.join(" ")
        )
        .ok();
    }
}

/// What was lost of each step's requests.
fn losses(
    svg: &mut String,
    service: &ServiceReport,
    tick: Duration,
    top: f64,
    x: &dyn Fn(Duration) -> f64,
) {
    for (nth, step) in (0u32..).zip(&service.series) {
        let lost = step.counts.lost();
        if lost <= 0.0 {
            continue;
        }
        let (from, to) = (x(tick * nth), x(tick * (nth + 1)));
        // A little is seen as well.
        let height = (LOST * lost / step.counts.sent.max(1.0)).clamp(2.0, LOST);
        writeln!(
            svg,
            "<rect x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{height:.1}\" fill=\"#b00020\"/>",
            top + LOST - height,
            (to - from).max(1.0)
        )
        .ok();
    }
}

fn text(svg: &mut String, (x, y): (f64, f64), attributes: &str, said: &str) {
    writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" {attributes}>{}</text>",
        escaped(said)
    )
    .ok();
}

/// Text as XML has it, without what it must not hold (XML 1.0 §2.2).
fn escaped(text: &str) -> String {
    let mut all = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => all.push_str("&amp;"),
            '<' => all.push_str("&lt;"),
            '>' => all.push_str("&gt;"),
            c if c.is_control() => all.push('\u{fffd}'),
            c => all.push(c),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_no_markup() {
        assert_eq!(escaped("a<b>&\u{7}c"), "a&lt;b&gt;&amp;\u{fffd}c");
    }
}
