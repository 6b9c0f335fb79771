//! Cells in aligned columns.

use super::units::plain;

/// The widest column, in characters.
pub(super) const WIDEST: usize = 64;

/// A column: its head, and whether its cells are numbers, which stand on the right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) head: String,
    pub(super) right: bool,
}

impl Column {
    pub(super) fn left(head: impl Into<String>) -> Self {
        Self { head: head.into(), right: false }
    }

    pub(super) fn right(head: impl Into<String>) -> Self {
        Self { head: head.into(), right: true }
    }
}

/// The head and the rows as lines, columns two spaces apart, cells cut to [`WIDEST`] characters.
pub(super) fn aligned(columns: &[Column], rows: &[Vec<String>]) -> Vec<String> {
    let heads = columns.iter().map(|column| column.head.clone()).collect();
    let cells: Vec<Vec<String>> =
        std::iter::once(&heads).chain(rows).map(|row| row.iter().map(|cell| plain(cell, WIDEST)).collect()).collect();
    let widths: Vec<usize> = (0..columns.len()).map(|at| width(&cells, at)).collect();
    cells.iter().map(|row| line(columns, &widths, row)).collect()
}

fn width(cells: &[Vec<String>], at: usize) -> usize {
    cells.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max().unwrap_or(0)
}

pub(super) fn line(columns: &[Column], widths: &[usize], row: &[String]) -> String {
    let cells = columns.iter().zip(widths).zip(row);
    let cells = cells.map(
        |((column, width), cell)| {
            if column.right { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        },
    );
    cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_on_the_right_and_long_cells_are_cut() {
        let columns = [Column::left("name"), Column::right("calls")];
        let rows = [vec!["é".to_owned(), "7".to_owned()], vec!["x".repeat(99), "1,234".to_owned()]];
        let lines = aligned(&columns, &rows);
        assert_eq!(lines[0], format!("name{}  calls", " ".repeat(60)));
        assert_eq!(lines[1], format!("é{}      7", " ".repeat(63)));
        assert_eq!(lines[2], format!("{}…  1,234", "x".repeat(63)));
    }
}
