//! Tables for people: columns as wide as what is in them, nothing cut.

/// Rows under a heading.
#[derive(Debug)]
pub(crate) struct Table {
    heading: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(heading: &[&'static str]) -> Self {
        Self {
            heading: heading.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; what is missing at its end stays empty, and what has no text is `-`.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        let cell = |cell: String| {
            if cell.is_empty() {
                "-".to_owned()
            } else {
                printable(&cell)
            }
        };
        self.rows.push(cells.into_iter().map(cell).collect());
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

/// Text of anybody's, without what would move a terminal's cursor or colours.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let heading: Vec<String> = self.heading.iter().map(|&text| text.to_owned()).collect();
        let all = || std::iter::once(&heading).chain(&self.rows);
        let width = |column: usize| {
            let cells = all().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.heading.len()).map(width).collect();
        for row in all() {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&format!("{cell:width$}  "));
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// The widest name in a column of names; a wider one has a number there, and is written below.
const NAME_WIDTH_MAX: usize = 32;

/// Names too wide for their column.
#[derive(Debug, Default)]
pub(crate) struct Legend(Vec<String>);

impl Legend {
    /// A name as it stands in the column.
    pub(crate) fn short(&mut self, name: &str) -> String {
        if name.chars().count() <= NAME_WIDTH_MAX {
            return name.to_owned();
        }
        let nth = self.0.iter().position(|known| known == name);
        let nth = nth.unwrap_or_else(|| {
            self.0.push(name.to_owned());
            self.0.len() - 1
        });
        format!("#{}", nth + 1)
    }
}

impl std::fmt::Display for Legend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (nth, name) in self.0.iter().enumerate() {
            writeln!(f, "#{} is {}", nth + 1, printable(name))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_too_wide_for_its_column_stands_below() {
        let mut legend = Legend::default();
        let (wide, fits) = ("x".repeat(33), "x".repeat(32));
        assert_eq!(legend.short(&fits), fits);
        assert_eq!((&*legend.short(&wide), &*legend.short(&wide)), ("#1", "#1"));
        assert_eq!(legend.short(&"y".repeat(40)), "#2");
        let said = format!("#1 is {wide}\n#2 is {}\n", "y".repeat(40));
        assert_eq!(legend.to_string(), said);
    }

    #[test]
    fn columns_are_as_wide_as_the_widest_and_nothing_moves_the_terminal() {
        let mut table = Table::new(&["SERVICE", "WHY"]);
        table.row(vec!["shop/orders".to_owned(), String::new()]);
        table.row(vec!["a\u{1b}[2Jb".to_owned(), "failover".to_owned()]);
        assert_eq!(
            table.to_string(),
            "SERVICE      WHY\nshop/orders  -\na\u{fffd}[2Jb       failover\n"
        );
    }
}
