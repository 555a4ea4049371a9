//! The middle of some values, and how far they lie from it.

/// A median and the distance to it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spread {
    /// The median.
    pub(crate) median: f64,
    /// The median of the distances to it.
    pub(crate) deviation: f64,
}

impl Spread {
    /// Of at least one value.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let median = middle(values.to_vec())?;
        let distances = values.iter().map(|value| (value - median).abs()).collect();
        Some(Self {
            median,
            deviation: middle(distances)?,
        })
    }

    /// The deviation as a share of the median.
    pub(crate) fn relative(&self) -> f64 {
        if self.median == 0.0 {
            0.0
        } else {
            self.deviation / self.median
        }
    }
}

fn middle(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    if values.len() % 2 == 1 {
        return Some(upper);
    }
    let lower = *values.get((values.len() / 2).checked_sub(1)?)?;
    Some(f64::midpoint(lower, upper))
}
