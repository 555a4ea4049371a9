//! Reads counters out of a gateway's metrics in Prometheus' text format.

use std::collections::BTreeMap;

/// The sum of all series of `name`; none if there is no such series.
pub(crate) fn sum(text: &str, name: &str) -> Option<u64> {
    series(text, name)
        .map(|(_, value)| value)
        .reduce(u64::saturating_add)
}

/// The sums of the series of `name` by what they say of `label`.
pub(crate) fn by_label(text: &str, name: &str, label: &str) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    let before = format!("{label}=\"");
    for (labels, value) in series(text, name) {
        let said = labels
            .split(',')
            .find_map(|one| one.strip_prefix(&before)?.strip_suffix('"'));
        let sum: &mut u64 = sums.entry(said.unwrap_or_default().to_owned()).or_default();
        *sum = sum.saturating_add(value);
    }
    sums
}

/// The labels and value of each series of `name`.
fn series<'t>(text: &'t str, name: &'t str) -> impl Iterator<Item = (&'t str, u64)> {
    text.lines().filter_map(move |line| {
        let rest = line.strip_prefix(name)?;
        let (labels, value) = match rest.strip_prefix('{') {
            Some(labelled) => labelled.rsplit_once('}')?,
            None => ("", rest.strip_prefix(' ')?),
        };
        let number = value.split_whitespace().next()?;
        // Counters are whole; some encoders write them as `3.0`.
        let number = number.strip_suffix(".0").unwrap_or(number).parse().ok()?;
        Some((labels, number))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_the_series_of_one_name_and_of_no_other() {
        let text = "# TYPE zeugma_retries_total counter\n\
                    zeugma_retries_total{route=\"a\",cause=\"{x}\"} 3\n\
                    zeugma_retries_total{route=\"b\"} 4.0\n\
                    zeugma_retries_total_created 9\n\
                    zeugma_requests_total 12 1700000000\n";
        assert_eq!(sum(text, "zeugma_retries_total"), Some(7));
        assert_eq!(sum(text, "zeugma_requests_total"), Some(12));
        assert_eq!(sum(text, "zeugma_absent_total"), None);
    }

    #[test]
    fn sums_the_series_of_one_name_by_a_label() {
        let text = "m{a=\"x\",result=\"sent\"} 3\nm{a=\"y\",result=\"sent\"} 4\n\
                    m{result=\"slow\",a=\"x\"} 1\n";
        let sums: Vec<_> = by_label(text, "m", "result").into_iter().collect();
        assert_eq!(sums, [("sent".to_owned(), 7), ("slow".to_owned(), 1)]);
    }
}
