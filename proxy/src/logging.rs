//! The gateway's own log, on standard error: its two forms, and how much it tells.

use std::fmt::{self, Write as _};

use tracing::field::{Field, Visit};
use tracing::level_filters::{LevelFilter, STATIC_MAX_LEVEL};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::Directive;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry, reload};

/// The environment variable of what is told from the start on.
const VARIABLE: &str = "ZEUGMA_LOG";
/// What is told where nothing else is asked for.
const LEVEL_DEFAULT: LevelFilter = LevelFilter::INFO;
/// Levels that may be set one after the other, so that the list does not grow for ever.
const DIRECTIVES_MAX: usize = 32;
/// The longest name of a target.
const TARGET_BYTES_MAX: usize = 128;

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people: time, level, code, what happened, and `name=value` for each fact.
    Text,
    /// For programs: one JSON object.
    Json,
}

/// How much the log tells; it can be changed while the gateway runs.
#[derive(Debug, Clone, Default)]
pub struct Logging {
    /// None: the process's log is not ours.
    filter: Option<reload::Handle<EnvFilter, Registry>>,
}

/// Why what the log tells is not changed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LevelError {
    #[error("`{0}` is not a level; write off, error, warn, info, debug or trace")]
    Level(String),
    #[error("an optimised build tells nothing of `{0}`; write debug, or run one that is not")]
    NotBuilt(LevelFilter),
    #[error(
        "`{0}` is not what a level can be set of; write `level`, or a module such as zeugma_proxy::probe"
    )]
    Target(String),
    #[error("over {DIRECTIVES_MAX} levels are set; begin anew with `level`")]
    TooMany,
    #[error("the log of this process cannot be changed")]
    NotOurs,
}

impl Logging {
    /// Begins the log of the process: what `$ZEUGMA_LOG` lets through, else what of ours is `info` or worse.
    #[must_use]
    pub fn start(format: LogFormat) -> Self {
        let asked = std::env::var(VARIABLE).ok().filter(|text| !text.is_empty());
        let parsed = asked.as_deref().map(EnvFilter::try_new);
        let wrong = parsed.as_ref().and_then(|parsed| parsed.as_ref().err());
        let wrong = wrong.map(ToString::to_string);
        let filter = (parsed.and_then(Result::ok)).unwrap_or_else(|| everything(LEVEL_DEFAULT));
        let (filter, handle) = reload::Layer::new(filter);
        // The access log has standard output for itself. That standard error cannot be written would be
        // told there as well, by a macro that panics then.
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(false)
            .with_target(false)
            .log_internal_errors(false);
        let lines = match format {
            LogFormat::Text => lines.event_format(Lines).boxed(),
            LogFormat::Json => lines
                .json()
                .flatten_event(true)
                .with_current_span(false)
                .with_span_list(false)
                .boxed(),
        };
        let is_ours = tracing_subscriber::registry()
            .with(filter)
            .with(lines)
            .try_init()
            .is_ok();
        if let Some(error) = wrong {
            tracing::warn!(
                code = "ZG0969",
                error,
                "{VARIABLE} is not understood; {LEVEL_DEFAULT} is told"
            );
        }
        Self {
            filter: is_ours.then_some(handle),
        }
    }

    /// What is told now, as `$ZEUGMA_LOG` would say it.
    pub(crate) fn filter(&self) -> Result<String, LevelError> {
        self.now().map(|filter| filter.to_string())
    }

    /// Sets the level of everything where the name is `level`, else of one module, in this order.
    ///
    /// # Errors
    /// What is wrong with the first that cannot be set; nothing is changed then.
    pub(crate) fn set(&self, levels: &[(String, String)]) -> Result<(), LevelError> {
        let mut filter = self.now()?;
        for (name, level) in levels {
            let level = (level.parse::<LevelFilter>())
                .ok()
                // It takes numbers as well, and nothing for `error`.
                .filter(|_| level.starts_with(|c: char| c.is_ascii_alphabetic()))
                .ok_or_else(|| LevelError::Level(shown(level)))?;
            let level = built(level, STATIC_MAX_LEVEL)?;
            if name == "level" {
                filter = everything(level);
            } else {
                filter = filter.add_directive(directive(name, level)?);
            }
            if filter.to_string().split(',').count() > DIRECTIVES_MAX {
                return Err(LevelError::TooMany);
            }
        }
        let handle = self.filter.as_ref().ok_or(LevelError::NotOurs)?;
        handle.reload(filter).map_err(|_gone| LevelError::NotOurs)
    }

    fn now(&self) -> Result<EnvFilter, LevelError> {
        let handle = self.filter.as_ref().ok_or(LevelError::NotOurs)?;
        (handle.clone_current()).ok_or(LevelError::NotOurs)
    }
}

/// The level, if this build has it.
fn built(level: LevelFilter, most: LevelFilter) -> Result<LevelFilter, LevelError> {
    if level > most {
        return Err(LevelError::NotBuilt(level));
    }
    Ok(level)
}

/// All that is ours, and nothing of the libraries below: what they warn of a peer can bring about as
/// often as it likes, it has no code, and it may hold what others sent.
fn everything(level: LevelFilter) -> EnvFilter {
    EnvFilter::new(format!("off,zeugma={level}"))
}

fn directive(target: &str, level: LevelFilter) -> Result<Directive, LevelError> {
    let is_target = !target.is_empty()
        && target.len() <= TARGET_BYTES_MAX
        && (target.bytes()).all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':'))
        // Alone it would be read as the level of everything.
        && target.parse::<LevelFilter>().is_err();
    (is_target.then(|| format!("{target}={level}").parse().ok()))
        .flatten()
        .ok_or_else(|| LevelError::Target(shown(target)))
}

/// What somebody asked for, short enough to say it again.
fn shown(text: &str) -> String {
    let mut shown = String::new();
    push_printable(&mut shown, text, |_| false);
    shown.chars().take(TARGET_BYTES_MAX).collect()
}

/// The text form: one line for each event, but for findings, which stand below theirs.
struct Lines;

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut parts = Parts::default();
        event.record(&mut parts);
        SystemTime.format_time(&mut writer)?;
        write!(writer, " {:>5}", event.metadata().level())?;
        let (first, below) = (parts.message.split_once('\n'))
            .map_or((parts.message.as_str(), ""), |(first, below)| {
                (first, below)
            });
        writeln!(writer, "{} {first}{}", parts.code, parts.facts)?;
        for line in below.lines() {
            writeln!(writer, "{line}")?;
        }
        Ok(())
    }
}

/// What an event says. Nothing of it moves a terminal's cursor, or looks like another line.
#[derive(Default)]
struct Parts {
    code: String,
    message: String,
    facts: String,
}

impl Visit for Parts {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "code" {
            self.code.push(' ');
            push_printable(&mut self.code, value, |_| false);
        } else {
            self.record_debug(field, &value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" {
            push_printable(&mut self.message, &text, |c| c == '\n');
        } else {
            // To write to a string never fails.
            write!(self.facts, " {}=", field.name()).ok();
            push_printable(&mut self.facts, &text, |_| false);
        }
    }
}

/// Adds text of anybody's, what is not printable escaped as Rust does.
fn push_printable(to: &mut String, text: &str, is_let_through: impl Fn(char) -> bool) {
    for c in text.chars() {
        let escaped = c.escape_debug();
        if escaped.len() == 1 || matches!(c, '"' | '\'' | '\\') || is_let_through(c) {
            to.push(c);
        } else {
            to.extend(escaped);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex, PoisonError};

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            kept.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What the log holds after `work`, under a filter that can be changed.
    fn told(work: impl FnOnce(&Logging)) -> String {
        let kept = Kept::default();
        let writer = kept.clone();
        let (filter, handle) = reload::Layer::new(everything(LEVEL_DEFAULT));
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .event_format(Lines);
        let subscriber = tracing_subscriber::registry().with(filter).with(lines);
        let logging = Logging {
            filter: Some(handle),
        };
        tracing::subscriber::with_default(subscriber, || work(&logging));
        let bytes = kept.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    fn pairs(levels: &[(&str, &str)]) -> Vec<(String, String)> {
        (levels.iter())
            .map(|(name, level)| ((*name).to_owned(), (*level).to_owned()))
            .collect()
    }

    #[test]
    fn a_line_has_its_code_first_and_nothing_in_it_looks_like_another_line() {
        let log = told(|_| {
            let hostile = "a\u{1b}[2J\n2026 INFO ZG0901 gateway ready\u{9b}\u{202e}";
            tracing::warn!(code = "ZG0421", text = hostile, shown = %hostile, n = 3, "ejected {hostile}");
        });
        let (first, rest) = log.split_once('\n').unwrap();
        let (_time, first) = first.split_once(' ').unwrap();
        assert!(
            first.starts_with(" WARN ZG0421 ejected a\\u{1b}[2J"),
            "{first}"
        );
        let fact = "shown=a\\u{1b}[2J\\n2026 INFO ZG0901 gateway ready\\u{9b}\\u{202e} n=3";
        assert!(first.ends_with(fact), "{first}");
        // A message may have lines below it: findings do.
        assert_eq!(rest, "2026 INFO ZG0901 gateway ready\\u{9b}\\u{202e}\n");
    }

    #[test]
    fn levels_change_while_it_runs_and_libraries_stay_quiet() {
        let log = told(|logging| {
            tracing::debug!("not told");
            logging.set(&pairs(&[("level", "debug")])).unwrap();
            tracing::debug!("told");
            tracing::debug!(target: "h2", "of a library");
            logging.set(&pairs(&[("level", "error")])).unwrap();
            tracing::warn!("not told any more");
            let one = pairs(&[("zeugma_proxy::logging", "debug"), ("h2", "debug")]);
            logging.set(&one).unwrap();
            tracing::debug!("of one module");
            tracing::debug!(target: "h2", "of a library that was asked for");
            tracing::warn!(target: "zeugma_proxy::probe", "of another module");
            let filter = logging.filter().unwrap();
            assert!(filter.contains("zeugma_proxy::logging=debug"), "{filter}");
        });
        let said: Vec<&str> = (log.lines())
            .map(|line| line.split_once(' ').unwrap().1.trim())
            .collect();
        assert_eq!(
            said,
            [
                "DEBUG told",
                "DEBUG of one module",
                "DEBUG of a library that was asked for"
            ]
        );
    }

    #[test]
    fn a_level_that_is_not_built_is_refused() {
        let debug = LevelFilter::DEBUG;
        assert_eq!(built(debug, debug), Ok(debug));
        assert_eq!(built(LevelFilter::OFF, debug), Ok(LevelFilter::OFF));
        let refused = built(LevelFilter::TRACE, debug).unwrap_err().to_string();
        assert!(
            refused.contains("`trace`") && refused.contains("write debug"),
            "{refused}"
        );
    }

    #[test]
    fn what_is_no_level_or_no_module_changes_nothing() {
        told(|logging| {
            let before = logging.filter().unwrap();
            for level in ["", "loud", "3", "debug,h2=trace", "info=debug"] {
                let wrong = logging.set(&pairs(&[("level", "warn"), ("level", level)]));
                assert_eq!(wrong, Err(LevelError::Level(level.to_owned())));
            }
            let long = "a".repeat(TARGET_BYTES_MAX + 1);
            for target in ["", "debug", "a=b", "a,b", "a[span]", "a b", "a\n", &long] {
                let wrong = logging.set(&pairs(&[(target, "debug")]));
                assert!(matches!(wrong, Err(LevelError::Target(_))), "{target}");
            }
            let many: Vec<_> = (0..DIRECTIVES_MAX)
                .map(|nth| (format!("module{nth}"), "debug".to_owned()))
                .collect();
            assert_eq!(logging.set(&many), Err(LevelError::TooMany));
            assert_eq!(logging.filter().unwrap(), before);
        });
        assert_eq!(Logging::default().filter(), Err(LevelError::NotOurs));
    }
}
