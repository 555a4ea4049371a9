//! Durations, shares and rates as people write them.

use std::time::Duration;

/// Why a text is none of them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// Not a duration.
    #[error("`{0}` is no duration; write such as `500ms`, `30s`, `5m` or `1h`")]
    Duration(String),
    /// Not a share.
    #[error("`{0}` is no share; write `0%` to `100%`")]
    Share(String),
    /// Not a rate.
    #[error("`{0}` is no rate; write such as `200/s`, above 0 and at most 1000000/s")]
    Rate(String),
}

/// Parses `500ms`, `30s`, `1.5m`, `1h`.
///
/// # Errors
/// A text without a unit, or above a thousand days.
pub fn duration(text: &str) -> Result<Duration, TextError> {
    const SECONDS_MAX: f64 = 86_400.0 * 1000.0;
    let wrong = || TextError::Duration(text.to_owned());
    let (number, unit) = [("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)]
        .into_iter()
        .find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, seconds)))
        .ok_or_else(wrong)?;
    let seconds = plain(number).ok_or_else(wrong)? * unit;
    if seconds > SECONDS_MAX {
        return Err(wrong());
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// Parses `0%` to `100%`.
///
/// # Errors
/// Any other text.
pub fn share(text: &str) -> Result<f64, TextError> {
    let number = text.strip_suffix('%').and_then(plain);
    (number.filter(|percent| *percent <= 100.0))
        .map(|percent| percent / 100.0)
        .ok_or_else(|| TextError::Share(text.to_owned()))
}

/// Parses `200/s`.
///
/// # Errors
/// Any other text; 0, and what is above a million.
pub fn rate(text: &str) -> Result<f64, TextError> {
    let number = text.strip_suffix("/s").and_then(plain);
    (number.filter(|rate| *rate > 0.0 && *rate <= 1e6))
        .ok_or_else(|| TextError::Rate(text.to_owned()))
}

/// A number without a sign, in digits.
pub(super) fn plain(text: &str) -> Option<f64> {
    let is_plain = text
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.');
    text.parse().ok().filter(|_| is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_is_read_and_the_rest_is_told() {
        for (text, millis) in [
            ("500ms", 500),
            ("30s", 30_000),
            ("1.5m", 90_000),
            ("1h", 3_600_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for wrong in ["", "s", "30", "-1s", "1e3s", "NaNs", "infs", "99999h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
        assert_eq!(share("60%"), Ok(0.6));
        for wrong in ["60", "101%", "-1%", "%"] {
            assert!(share(wrong).is_err(), "{wrong}");
        }
        assert_eq!(rate("200/s"), Ok(200.0));
        for wrong in ["200", "0/s", "1000001/s", "x/s"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }
}
