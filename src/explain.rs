//! `zeugma explain`: what a code means and what to do about it; where a request would go, and why.

mod mirrors;
mod route;

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use zeugma_core::codes::{self, Entry, PREFIX};
use zeugma_core::verdict::Reason;

use crate::admin::{self, AdminError, Output};
use crate::table::Table;
use crate::{ca, exit};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct ExplainArgs {
    #[command(subcommand)]
    command: Option<Command>,
    /// The code, such as ZG0702, or a verdict of the access log, such as `not-allowed`
    #[arg(required_unless_present = "list")]
    code: Option<String>,
    /// Every code there is
    #[arg(long, conflicts_with = "code")]
    list: bool,
    /// How to answer
    #[arg(short, long, value_enum, default_value_t = Output::Human)]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Where a connection or request would go, and why: the gateway's own decision, step by step
    Route(route::RouteArgs),
}

/// Nothing has that code.
#[derive(Debug, thiserror::Error)]
#[error("there is no code `{code}`; {hint}")]
struct UnknownCode {
    code: String,
    hint: String,
}

/// Runs `zeugma explain`.
pub(crate) fn run(args: &ExplainArgs) -> ExitCode {
    if let Some(Command::Route(args)) = &args.command {
        return route::run(args);
    }
    let told = match &args.code {
        Some(code) => match find(code) {
            Ok(entry) => explain(entry, args.output),
            Err(unknown) => return ca::fail(&unknown, "ZG1011", exit::FAILED),
        },
        None => list(args.output),
    };
    told.unwrap_or_else(|error| error.fail())
}

/// The entry of a code in any case, with or without its prefix, or of a verdict.
fn find(asked: &str) -> Result<&'static Entry, UnknownCode> {
    let verdict = Reason::ALL.iter().find(|reason| reason.label() == asked);
    let code = normal(asked);
    (codes::find(&code).or_else(|| codes::find(verdict?.code()?))).ok_or_else(|| UnknownCode {
        hint: hint(asked, &code),
        code: asked.escape_debug().to_string(),
    })
}

fn normal(asked: &str) -> String {
    let upper = asked.trim().to_ascii_uppercase();
    let digits = upper.strip_prefix(PREFIX).unwrap_or(&upper);
    format!("{PREFIX}{digits}")
}

fn hint(asked: &str, code: &str) -> String {
    if asked == Reason::Completed.label() {
        return "it is how a connection or request ends where nothing went wrong".to_owned();
    }
    let labels = Reason::ALL.iter().map(|reason| reason.label());
    let near = |known: &mut dyn Iterator<Item = &'static str>, typed: &str, most: usize| {
        (known
            .map(|known| (strsim::damerau_levenshtein(typed, known), known))
            .min())
        .filter(|(distance, _)| *distance <= most)
        .map(|(_, known)| known)
    };
    let best = near(&mut codes::all().map(|entry| entry.code), code, 1)
        .or_else(|| near(&mut labels.into_iter(), asked, 3));
    match best {
        Some(best) => format!("did you mean {best}? `zeugma explain --list` shows all"),
        None => "`zeugma explain --list` shows all".to_owned(),
    }
}

fn explain(entry: &Entry, output: Output) -> Result<ExitCode, AdminError> {
    match output {
        Output::Human => admin::print(&to_text(entry)),
        Output::Json => admin::print_json("Code", to_json(entry)),
    }
}

fn list(output: Output) -> Result<ExitCode, AdminError> {
    if output == Output::Json {
        let all: Vec<Value> = codes::all().map(to_json).collect();
        return admin::print_json("CodeList", json!({ "codes": all }));
    }
    let mut table = Table::new(&["CODE", "ABOUT", "WHAT"]);
    for area in codes::AREAS {
        for entry in area.entries {
            let cells = [entry.code, area.name, entry.title];
            table.row(cells.map(str::to_owned).to_vec());
        }
    }
    admin::print(&table.to_string())
}

/// The verdict of the access log that has the code.
fn verdict_of(entry: &Entry) -> Option<&'static str> {
    let reason = (Reason::ALL.iter()).find(|reason| reason.code() == Some(entry.code));
    reason.map(|reason| reason.label())
}

fn to_text(entry: &Entry) -> String {
    let seen: Vec<&str> = entry.seen.iter().map(|seen| seen.text()).collect();
    let verdict = (verdict_of(entry)).map_or(String::new(), |label| format!(" (verdict {label})"));
    format!(
        "{}: {}\n\n{}\n\nWhat to do: {}\n\nMet in: {}{verdict}\n",
        entry.code,
        entry.title,
        folded(entry.meaning, 0),
        folded(entry.action, "What to do: ".len()),
        seen.join(", "),
    )
}

fn to_json(entry: &Entry) -> Value {
    let seen: Vec<&str> = entry.seen.iter().map(|seen| seen.text()).collect();
    json!({
        "code": entry.code,
        "title": entry.title,
        "meaning": entry.meaning,
        "action": entry.action,
        "seen": seen,
        "verdict": verdict_of(entry),
    })
}

/// Text in lines of at most 80 characters where its words allow; the first has less room.
fn folded(text: &str, taken: usize) -> String {
    const WIDTH: usize = 80;
    let mut lines = String::new();
    let mut at = taken;
    for word in text.split(' ') {
        let width = word.chars().count();
        if !lines.is_empty() {
            let is_over = at + 1 + width > WIDTH;
            lines.push(if is_over { '\n' } else { ' ' });
            at = if is_over { 0 } else { at + 1 };
        }
        lines.push_str(word);
        at += width;
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_found_as_people_type_it_and_by_its_verdict() {
        for asked in ["ZG0702", "zg0702", " 0702", "not-allowed"] {
            assert_eq!(find(asked).unwrap().code, "ZG0702", "{asked}");
        }
    }

    #[test]
    fn what_is_no_code_is_told_with_what_was_meant() {
        let hint = |asked| find(asked).unwrap_err().hint;
        assert!(hint("ZG1702").contains("did you mean ZG0702?"));
        assert!(hint("not-alowed").contains("did you mean not-allowed?"));
        assert!(hint("completed").contains("nothing went wrong"));
        assert_eq!(hint("everything"), "`zeugma explain --list` shows all");
    }

    #[test]
    fn text_is_folded_between_words() {
        let text = folded(&"word ".repeat(40), 10);
        let widths: Vec<usize> = text.lines().map(str::len).collect();
        assert!(widths.iter().all(|width| *width <= 80), "{widths:?}");
        assert!(widths.len() == 3 && widths[0] <= 70, "{widths:?}");
    }
}
