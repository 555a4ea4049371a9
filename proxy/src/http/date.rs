//! `date`: whoever forwards an answer without one adds it (RFC 9110 §6.6.1).

use std::cell::RefCell;
use std::time::{Duration, Instant};

use http::HeaderValue;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime};

/// IMF-fixdate (RFC 9110 §5.6.7), of a time in UTC.
const FORMAT: &[BorrowedFormatItem<'_>] = format_description!(
    "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
);
/// How long one is used again.
const FRESH: Duration = Duration::from_millis(500);

thread_local! {
    static LAST: RefCell<Option<(Instant, HeaderValue)>> = const { RefCell::new(None) };
}

/// The time, up to half a second ago.
pub(super) fn now() -> Option<HeaderValue> {
    with_now(HeaderValue::clone)
}

/// What `tell` makes of it.
pub(super) fn with_now<T>(tell: impl FnOnce(&HeaderValue) -> T) -> Option<T> {
    LAST.with_borrow_mut(|last| {
        if last.as_ref().is_none_or(|(at, _)| at.elapsed() >= FRESH) {
            let date = format(OffsetDateTime::now_utc())?;
            *last = Some((Instant::now(), date));
        }
        last.as_ref().map(|(_, date)| tell(date))
    })
}

/// What a `date` says; `None` where it is not of the preferred form.
pub(crate) fn parse(date: &HeaderValue) -> Option<OffsetDateTime> {
    let parsed = PrimitiveDateTime::parse(date.to_str().ok()?, FORMAT).ok()?;
    Some(parsed.assume_utc())
}

fn format(at: OffsetDateTime) -> Option<HeaderValue> {
    HeaderValue::try_from(at.format(FORMAT).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_written_as_the_rfc_does() {
        let at = OffsetDateTime::from_unix_timestamp(784_111_777).unwrap();
        let date = format(at).unwrap();
        assert_eq!(date, "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(parse(&date), Some(at));
        assert_eq!(now().unwrap().len(), 29);
    }
}
