//! What an explanation says of mirrors, for people.

use serde_json::Value;

use super::route::percent;
use crate::admin::field;
use crate::status::{list, word};

/// What each mirror makes of it, and where its copy goes.
pub(super) fn lines(told: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    for mirror in list(field(told, "mirrors")) {
        lines.push(mirror_line(mirror));
        lines.extend(copied_to(mirror));
    }
    let left_out = field(told, "mirrors_left_out").as_u64().unwrap_or(0);
    if left_out > 0 {
        lines.push(format!("and {left_out} more"));
    }
    lines
}

/// What a mirror makes of it, and where the mirror is written.
fn mirror_line(mirror: &Value) -> String {
    let route = word(field(mirror, "route"));
    let fate = match word(field(mirror, "why")) {
        "" => format!("copied to {route}"),
        why => format!("not copied to {route}: {}", not_copied(why)),
    };
    let written = match field(mirror, "written").as_str() {
        Some(written) => format!(", the mirror at {written}"),
        None => String::new(),
    };
    let share = field(mirror, "percent").as_f64().unwrap_or_default();
    let share = match field(mirror, "sampled").as_bool() {
        Some(true) => format!("{} % of all, drawn for each", (share * 1e4).round() / 1e4),
        Some(false) | None => "all are".to_owned(),
    };
    let compared = match field(mirror, "compare").as_bool() {
        Some(true) => ", answers compared",
        Some(false) | None => "",
    };
    format!("{fate} ({share}{compared}{written})")
}

/// Where the copies of a mirror go: this one, or all where this is none.
fn copied_to(mirror: &Value) -> Option<String> {
    let to = Some(field(mirror, "destination")).filter(|to| !to.is_null())?;
    let levels: Vec<String> = (list(field(to, "levels")).iter())
        .filter(|level| {
            field(level, "share")
                .as_f64()
                .is_some_and(|share| share > 0.0)
        })
        .map(|level| {
            let (healthy, total) = (field(level, "healthy"), field(level, "total"));
            let share = percent(field(level, "share"));
            let name = word(field(level, "name"));
            format!("{name} with {share}, {healthy}/{total} healthy")
        })
        .collect();
    let levels = if levels.is_empty() {
        "no level, for none has a healthy endpoint".to_owned()
    } else {
        levels.join("; ")
    };
    let target = field(mirror, "target");
    let target = if target.is_null() {
        ", which is no route that is known here".to_owned()
    } else {
        let exported = list(field(target, "exported_to")).iter().map(word);
        let exported: Vec<&str> = exported.collect();
        let exported = match exported.as_slice() {
            [] => "exported to nobody".to_owned(),
            ["*"] => "exported to all peers".to_owned(),
            peers => format!("exported to {}", peers.join(", ")),
        };
        format!(
            "; its route at {} is {exported}",
            word(field(target, "written"))
        )
    };
    let this = match list(field(mirror, "attempts")).first() {
        Some(first) => format!(
            "to {} of {} (level {}) this time, of ",
            word(field(first, "address")),
            word(field(first, "backend")),
            word(field(first, "level")),
        ),
        None => "copies go to ".to_owned(),
    };
    Some(format!("{this}{levels}{target}"))
}

/// Why there is no copy, for people.
fn not_copied(why: &str) -> &str {
    match why {
        "refused" => "what is refused, or what no endpoint takes, is not copied",
        "copy" => "it is a copy itself",
        "upgrade" => "it goes on as WebSocket",
        "by-peer" => "a peer's gateway sent it, and mirrors what it sends",
        "not-drawn" => "it was not drawn this time",
        "body" => "its body is over `bodyLimit`",
        "unreachable" => "no endpoint takes a copy",
        "over-capacity" => "no backend that is healthy has capacity left for a copy",
        other => other,
    }
}
