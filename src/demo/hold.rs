//! Spans of time as the demo's options write them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// How long a service holds each request: drawn evenly from a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hold {
    least: Duration,
    most: Duration,
}

impl Hold {
    /// A hold between `least` and `most`; the two are put in order.
    pub(crate) fn new(least: Duration, most: Duration) -> Self {
        Self {
            least: least.min(most),
            most: most.max(least),
        }
    }

    /// One hold, drawn evenly.
    pub(crate) fn draw(self) -> Duration {
        let span = u64::try_from((self.most - self.least).as_micros()).unwrap_or(u64::MAX);
        self.least + Duration::from_micros(fastrand::u64(0..=span))
    }
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}ms-{}ms",
            self.least.as_millis(),
            self.most.as_millis()
        )
    }
}

impl FromStr for Hold {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Self, SpanError> {
        match text.split_once('-') {
            Some((least, most)) => Ok(Self::new(span(least)?, span(most)?)),
            None => span(text).map(|both| Self::new(both, both)),
        }
    }
}

/// A span of time: a whole number and its unit, `80ms` or `2s`, at most a minute.
pub(crate) fn span(text: &str) -> Result<Duration, SpanError> {
    let bad = || SpanError(text.chars().take(32).collect());
    let (digits, milliseconds) = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(digits), _) => (digits, 1),
        (None, Some(digits)) => (digits, 1000),
        (None, None) => return Err(bad()),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad());
    }
    let span = digits
        .parse::<u64>()
        .ok()
        .and_then(|count| count.checked_mul(milliseconds))
        .map(Duration::from_millis)
        .ok_or_else(bad)?;
    if span > SPAN_MAX {
        return Err(bad());
    }
    Ok(span)
}

const SPAN_MAX: Duration = Duration::from_secs(60);

/// What was written is no span of time.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no span of time; write it as 80ms or 2s, at most 60s")]
pub(crate) struct SpanError(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_whole_numbers_with_a_unit_up_to_a_minute() {
        assert_eq!(span("80ms").unwrap(), Duration::from_millis(80));
        assert_eq!(span("60s").unwrap(), Duration::from_secs(60));
        assert_eq!(span("0ms").unwrap(), Duration::ZERO);
        for bad in [
            "",
            "80",
            "ms",
            "+1s",
            "1.5s",
            "61s",
            "60001ms",
            "99999999999999999999s",
        ] {
            assert!(span(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_hold_is_drawn_from_its_range() {
        let hold: Hold = "50ms-200ms".parse().unwrap();
        for _ in 0..1000 {
            let drawn = hold.draw();
            assert!(drawn >= Duration::from_millis(50) && drawn <= Duration::from_millis(200));
        }
        let fixed: Hold = "3s".parse().unwrap();
        assert_eq!(fixed.draw(), Duration::from_secs(3));
        assert_eq!(hold.to_string(), "50ms-200ms");
    }
}
