//! Reads a sum out of a gateway's metrics.

/// The sum of all series of `name` in Prometheus' text format; none if there is no such series.
pub(crate) fn sum(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let value = match rest.strip_prefix('{') {
                Some(labels) => labels.rsplit_once('}')?.1,
                None => rest.strip_prefix(' ')?,
            };
            let number = value.split_whitespace().next()?;
            // Counters are whole; some encoders write them as `3.0`.
            number.strip_suffix(".0").unwrap_or(number).parse().ok()
        })
        .reduce(|sum: u64, value| sum.saturating_add(value))
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
}
