//! What a drill came to, for people and for scripts.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use crate::admin::field;
use crate::status::{list, word};
use crate::table::{Legend, Table, printable};

/// Moments that are told to people.
const POINTS_MAX: usize = 40;
/// What shares may still differ by once they stay.
const SETTLED: f64 = 0.01;

/// What became of requests.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Counts {
    pub(super) ended: u64,
    pub(super) failed: u64,
    pub(super) retried: u64,
}

impl Counts {
    /// The share that failed.
    pub(super) fn share(&self) -> f64 {
        self.failed as f64 / self.ended.max(1) as f64
    }

    fn to_json(self) -> Value {
        json!({ "ended": self.ended, "failed": self.failed, "retried": self.retried })
    }
}

/// The shares at a moment: of each cluster, of each level.
#[derive(Debug)]
pub(super) struct Point {
    pub(super) at: Duration,
    /// The drill was over by then.
    pub(super) is_over: bool,
    pub(super) shares: Vec<Vec<f64>>,
    /// What of it has room where backends take only so much; this is no part of what comes back, since
    /// it follows what is offered.
    pub(super) placed: Vec<Vec<Option<f64>>>,
}

impl Point {
    /// Whether there is nothing new to tell in `other`.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        let both = self
            .placed
            .iter()
            .flatten()
            .zip(other.placed.iter().flatten());
        let is_moved = |(one, other): (&Option<f64>, &Option<f64>)| match (one, other) {
            (Some(one), Some(other)) => (one - other).abs() > SETTLED,
            (one, other) => one.is_some() != other.is_some(),
        };
        self.shares == other.shares && !both.into_iter().any(is_moved)
    }

    fn placed(&self, cluster: usize, level: usize) -> Option<f64> {
        *self.placed.get(cluster)?.get(level)?
    }
}

/// How it ended.
#[derive(Debug)]
pub(super) enum Outcome {
    UnderWay,
    /// As the gateway says, or since it is another one.
    Over(String),
    /// More failed than may.
    Failing(Counts),
}

/// All of it.
pub(super) struct Report<'a> {
    /// As the gateway told last.
    pub(super) told: &'a Value,
    pub(super) lasts: Duration,
    pub(super) failed_before: f64,
    pub(super) during: Counts,
    pub(super) after: Counts,
    /// When it was over.
    pub(super) over: Option<Duration>,
    /// How long after that traffic was back.
    pub(super) back: Option<Duration>,
    pub(super) back_within: Duration,
    /// Nobody tells any more whether it is.
    pub(super) is_lost: bool,
    pub(super) outcome: &'a Outcome,
    pub(super) points: &'a [Point],
}

impl Report<'_> {
    /// What is wrong, if something is.
    pub(super) fn found(&self) -> Option<String> {
        let why = match self.outcome {
            Outcome::Failing(counts) => format!(
                "given up: {} of {} requests failed ({}; {} before it began); look at what is left with \
                 `zeugma get routes`",
                counts.failed,
                counts.ended,
                percent(counts.share()),
                percent(self.failed_before)
            ),
            Outcome::Over(why) if why == "time" => return self.late(),
            Outcome::Over(why) => match &**why {
                "restarted" => "the gateway was restarted or handed over, which ended the drill: do it again".to_owned(),
                "lease" => "the gateway did not hear from this command in time and ended the drill: do it again from where it is reached".to_owned(),
                "last-resort" => "nothing else of a route was healthy any more, so that the gateway gave traffic back at once: mend what failed meanwhile (`zeugma get failovers`)".to_owned(),
                "evacuated" => "somebody evacuated it meanwhile: traffic stays off until `zeugma failover reset`".to_owned(),
                "reset" => "somebody else reset it before its time".to_owned(),
                other => format!("it was over before its time: {other}"),
            },
            Outcome::UnderWay => "it was never seen to end".to_owned(),
        };
        Some(why)
    }

    fn late(&self) -> Option<String> {
        if self.back.is_some() {
            return None;
        }
        if self.is_lost {
            return Some("it ended in time, and another drill was begun or the gateway ended before traffic was seen to be back: do it again alone".to_owned());
        }
        Some(format!(
            "traffic was not back {} after the drill; see `failover.failback` of the routes, and `zeugma status`",
            seconds(self.back_within)
        ))
    }

    fn why(&self) -> &str {
        match self.outcome {
            Outcome::UnderWay => "under-way",
            Outcome::Over(why) => why,
            Outcome::Failing(_) => "failing",
        }
    }

    /// The moments while it lasted.
    fn during(&self) -> impl DoubleEndedIterator<Item = &Point> {
        self.points.iter().filter(|point| !point.is_over)
    }

    /// How long after it began shares were within a point of what they were at its end.
    fn converged(&self) -> Option<Duration> {
        let points: Vec<&Point> = self.during().collect();
        let last = points.last()?;
        let is_off = |point: &&Point| {
            let last = last.shares.iter().flatten();
            let mut both = point.shares.iter().flatten().zip(last);
            both.any(|(a, b)| (a - b).abs() > SETTLED)
        };
        Some(match points.iter().rposition(is_off) {
            None => Duration::ZERO,
            Some(nth) => points.get(nth + 1)?.at,
        })
    }

    /// The least and the most of one level until it was over, what it had then, and at the end.
    fn level(&self, cluster: usize, level: usize) -> [f64; 4] {
        let share = |point: &Point| {
            let of = point.shares.get(cluster).and_then(|of| of.get(level));
            of.copied().unwrap_or_default()
        };
        let during = || self.during().map(share);
        let least = during().fold(f64::INFINITY, f64::min);
        let most = during().fold(0.0, f64::max);
        let end = self.points.last().map(share).unwrap_or_default();
        [least, most, during().next_back().unwrap_or_default(), end]
    }

    /// What of a level's share had room when it was over.
    fn placed(&self, cluster: usize, level: usize) -> Option<f64> {
        self.during().next_back()?.placed(cluster, level)
    }

    pub(super) fn to_text(&self) -> String {
        let mut text = String::new();
        let over = self.over.map_or_else(|| "?".to_owned(), seconds);
        let what = word(field(self.told, "what"));
        let head = format!("drill of {what}: over after {over} ({})", self.why());
        // To write to a string never fails.
        writeln!(text, "{}", printable(&head)).ok();
        let mut table = Table::new(&[
            "CLUSTER",
            "LEVEL",
            "BEFORE",
            "LEAST",
            "MOST",
            "AT ITS END",
            "AFTER",
            "PLACED AT ITS END",
        ]);
        let mut legend = Legend::default();
        let clusters = list(field(self.told, "clusters"));
        for (nth, cluster) in clusters.iter().enumerate() {
            for (at, level) in list(field(cluster, "levels")).iter().enumerate() {
                let before = field(level, "before").as_f64().unwrap_or_default();
                let mut row = vec![
                    legend.short(word(field(cluster, "cluster"))),
                    legend.short(word(field(level, "name"))),
                    percent(before),
                ];
                row.extend(self.level(nth, at).map(percent));
                row.push(self.placed(nth, at).map_or_else(|| "-".to_owned(), percent));
                table.row(row);
            }
        }
        write!(text, "\n{table}{legend}").ok();
        if let Some(more) = field(self.told, "clusters_left_out")
            .as_u64()
            .filter(|n| *n > 0)
        {
            writeln!(text, "and {more} more clusters, which are not watched").ok();
        }
        writeln!(
            text,
            "\nrequests while it lasted: {} ended, {} failed ({}; before {}), {} extra tries",
            self.during.ended,
            self.during.failed,
            percent(self.during.share()),
            percent(self.failed_before),
            self.during.retried
        )
        .ok();
        writeln!(
            text,
            "requests until traffic was back: {} ended, {} failed, {} extra tries",
            self.after.ended, self.after.failed, self.after.retried
        )
        .ok();
        if let Some(after) = self.converged() {
            writeln!(text, "shares stayed {} after it began", seconds(after)).ok();
        }
        match self.back {
            Some(back) => writeln!(text, "traffic was back {} after it ended", seconds(back)),
            None => writeln!(text, "traffic is not back"),
        }
        .ok();
        text.push('\n');
        for point in self.points.iter().take(POINTS_MAX) {
            writeln!(text, "{}", line(self.told, point)).ok();
        }
        let more = self.points.len().saturating_sub(POINTS_MAX);
        if more > 0 {
            writeln!(text, "and {more} more moments; -o json has all").ok();
        }
        text
    }

    pub(super) fn to_json(&self) -> Value {
        let clusters: Vec<Value> = (list(field(self.told, "clusters")).iter().enumerate())
            .map(|(nth, cluster)| {
                let levels: Vec<Value> = (list(field(cluster, "levels")).iter().enumerate())
                    .map(|(at, level)| {
                        let [least, most, end, after] = self.level(nth, at);
                        json!({
                            "name": field(level, "name"),
                            "share_before": field(level, "before"),
                            "share_min": least,
                            "share_max": most,
                            "share_end": end,
                            "share_after": after,
                            "placed_end": self.placed(nth, at),
                        })
                    })
                    .collect();
                json!({
                    "cluster": field(cluster, "cluster"),
                    "route": field(cluster, "route"),
                    "levels": levels,
                })
            })
            .collect();
        let series: Vec<Value> = (self.points.iter())
            .map(|point| json!({ "at": point.at.as_secs_f64(), "shares": point.shares, "placed": point.placed }))
            .collect();
        let found = self.found();
        json!({
            "what": field(self.told, "what"),
            "seconds": self.lasts.as_secs_f64(),
            "over": self.why(),
            "over_after_seconds": self.over.map(|over| over.as_secs_f64()),
            "settled_after_seconds": self.converged().map(|after| after.as_secs_f64()),
            "back_after_seconds": self.back.map(|back| back.as_secs_f64()),
            "failed_share_before": self.failed_before,
            "requests": self.during.to_json(),
            "requests_after": self.after.to_json(),
            "clusters": clusters,
            "clusters_left_out": field(self.told, "clusters_left_out"),
            "series": series,
            "ok": found.is_none(),
            "found": found,
        })
    }
}

/// The shares at a moment, in one line.
pub(super) fn line(told: &Value, point: &Point) -> String {
    let clusters = list(field(told, "clusters")).iter().zip(&point.shares);
    let of: Vec<String> = (clusters.enumerate())
        .map(|(nth, (cluster, shares))| {
            let levels = list(field(cluster, "levels")).iter().zip(shares);
            let levels: Vec<String> = (levels.enumerate())
                .map(|(at, (level, share))| {
                    let placed = point.placed(nth, at);
                    let placed =
                        placed.map_or_else(String::new, |it| format!(" (placed {})", percent(it)));
                    format!("{} {}{placed}", word(field(level, "name")), percent(*share))
                })
                .collect();
            format!("{}: {}", word(field(cluster, "cluster")), levels.join(", "))
        })
        .collect();
    printable(&format!("{:>8}  {}", seconds(point.at), of.join("; ")))
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

fn seconds(time: Duration) -> String {
    let seconds = (time.as_secs_f64() * 10.0).round() / 10.0;
    format!("{seconds} s")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(at: u64, near: f64) -> Point {
        Point {
            at: Duration::from_millis(at),
            is_over: at > 10_000,
            shares: vec![vec![near, 1.0 - near]],
            placed: Vec::new(),
        }
    }

    fn told() -> Value {
        json!({ "what": "locality eu", "clusters": [{
            "cluster": "outbound|a/b", "route": "a/b",
            "levels": [
                { "name": "near", "before": 1.0, "share": 1.0 },
                { "name": "far", "before": 0.0, "share": 0.0 },
            ],
        }] })
    }

    fn report<'a>(told: &'a Value, points: &'a [Point], outcome: &'a Outcome) -> Report<'a> {
        let counts = Counts {
            ended: 100,
            failed: 2,
            retried: 3,
        };
        Report {
            told,
            lasts: Duration::from_secs(10),
            failed_before: 0.0,
            during: counts,
            after: Counts::default(),
            over: Some(Duration::from_secs(10)),
            back: Some(Duration::from_secs(20)),
            back_within: Duration::from_secs(300),
            is_lost: false,
            outcome,
            points,
        }
    }

    #[test]
    fn a_drill_is_told_by_when_shares_stay_and_are_back() {
        let points = [
            point(0, 1.0),
            point(500, 0.5),
            point(750, 0.005),
            point(1000, 0.0),
            point(20_000, 0.5),
            point(30_000, 1.0),
        ];
        let (told, over) = (told(), Outcome::Over("time".to_owned()));
        let report = report(&told, &points, &over);
        assert_eq!(report.converged(), Some(Duration::from_millis(750)));
        assert_eq!(report.level(0, 0), [0.0, 1.0, 0.0, 1.0]);
        assert_eq!(report.found(), None);
        let text = report.to_text();
        assert!(
            text.contains("100 ended, 2 failed (2.0 %; before 0.0 %), 3 extra tries"),
            "{text}"
        );
        assert!(
            text.contains("traffic was back 20 s after it ended"),
            "{text}"
        );
        let json = report.to_json();
        assert_eq!(json["clusters"][0]["levels"][1]["share_end"], 1.0);
        assert_eq!(json["ok"], true);
    }

    #[test]
    fn what_ended_it_before_its_time_is_a_finding_that_says_what_to_do() {
        let told = told();
        let failing = Outcome::Failing(Counts {
            ended: 50,
            failed: 10,
            retried: 0,
        });
        let found = report(&told, &[], &failing).found().unwrap();
        assert!(
            found.contains("10 of 50 requests failed (20.0 %; 0.0 % before it began)"),
            "{found}"
        );
        for (why, says) in [
            ("restarted", "do it again"),
            ("lease", "do it again"),
            ("last-resort", "mend what failed"),
            ("reset", "somebody else"),
            ("evacuated", "until `zeugma failover reset`"),
        ] {
            let over = Outcome::Over(why.to_owned());
            let found = report(&told, &[], &over).found().unwrap();
            assert!(found.contains(says), "{found}");
        }
        let over = Outcome::Over("time".to_owned());
        let late = Report {
            back: None,
            ..report(&told, &[], &over)
        };
        assert!(late.found().unwrap().contains("failover.failback"));
        // What broke: that was told as a restart which ended it.
        let late = Report {
            is_lost: true,
            ..late
        };
        let found = late.found().unwrap();
        assert!(
            found.contains("it ended in time, and another drill"),
            "{found}"
        );
    }
}
