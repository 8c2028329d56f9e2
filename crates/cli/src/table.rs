//! Tables without borders, with headers in capitals.

use comfy_table::{CellAlignment, ContentArrangement, Table};

use crate::printer::printable;

/// Narrowest that a cut column gets.
const CUT_WIDTH_MIN: usize = 8;

/// One column.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Column {
    header: &'static str,
    right: bool,
    cut: bool,
}

impl Column {
    /// A column of text.
    pub(crate) const fn left(header: &'static str) -> Self {
        Self {
            header,
            right: false,
            cut: false,
        }
    }

    /// A column of numbers.
    pub(crate) const fn right(header: &'static str) -> Self {
        Self {
            header,
            right: true,
            cut: false,
        }
    }

    /// A column that is cut where the terminal is too narrow.
    pub(crate) const fn cut(header: &'static str) -> Self {
        Self {
            header,
            right: false,
            cut: true,
        }
    }
}

/// Writes a table no wider than `width`, if its cut columns allow it.
pub(crate) fn render(columns: &[Column], rows: &[Vec<String>], width: Option<usize>) -> String {
    let mut rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| single_line(cell)).collect())
        .collect();
    if let Some(width) = width {
        cut_to(columns, &mut rows, width);
    }
    let mut table = Table::new();
    table
        .load_style(comfy_table::presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(columns.iter().map(|column| column.header));
    table.add_rows(rows);
    for (column, shown) in columns.iter().zip(table.column_iter_mut()) {
        shown.set_padding((0, 2));
        if column.right {
            shown.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn single_line(cell: &str) -> String {
    printable(cell).replace(['\n', '\t'], " ")
}

fn cut_to(columns: &[Column], rows: &mut [Vec<String>], width: usize) {
    let widest = |index: usize, rows: &[Vec<String>]| {
        rows.iter()
            .filter_map(|row| row.get(index))
            .map(|cell| cell.chars().count())
            .chain(columns.get(index).map(|column| column.header.len()))
            .max()
            .unwrap_or(0)
    };
    for (index, _) in columns.iter().enumerate().filter(|(_, column)| column.cut) {
        let total: usize = (0..columns.len()).map(|at| widest(at, rows) + 2).sum();
        // The last column's padding is trimmed.
        let excess = total.saturating_sub(2).saturating_sub(width);
        let keep = widest(index, rows)
            .saturating_sub(excess)
            .max(CUT_WIDTH_MIN);
        for cell in rows.iter_mut().filter_map(|row| row.get_mut(index)) {
            if cell.chars().count() > keep {
                *cell = cell.chars().take(keep - 1).chain(['…']).collect();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: &[Column] = &[
        Column::cut("NAME"),
        Column::right("CPU"),
        Column::left("UP"),
    ];

    #[test]
    fn columns_line_up_without_borders() {
        let rows = [
            vec!["a".to_owned(), "1.5%".to_owned(), "2m".to_owned()],
            vec!["longer".to_owned(), "100.0%".to_owned(), String::new()],
        ];
        assert_eq!(
            render(COLUMNS, &rows, None),
            "NAME       CPU  UP\na         1.5%  2m\nlonger  100.0%\n"
        );
    }

    #[test]
    fn only_what_may_be_cut_is_cut() {
        let row = vec!["n".repeat(100), "1%".to_owned(), "3m\n4".to_owned()];
        let text = render(COLUMNS, &[row], Some(40));
        assert!(
            text.lines().all(|line| line.chars().count() <= 40),
            "{text}"
        );
        assert!(text.contains("…") && text.contains("3m 4"));
    }
}
