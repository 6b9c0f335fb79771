//! Events as lines while they come: columns keep their places, and grow when they must. Pure.

use super::{
    columns::{Column, WIDEST, line},
    shapes,
    units::plain,
};
use crate::report::{Events, Field};

/// The columns so far.
#[derive(Debug, Default)]
pub struct Live {
    columns: Vec<Column>,
    widths: Vec<usize>,
}

impl Live {
    /// More events as lines; the first time there are any, after a head.
    pub fn lines(&mut self, events: &Events) -> Vec<String> {
        let fields = shapes::event_fields(events);
        let mut lines = Vec::new();
        if self.columns.is_empty() && !events.rows.is_empty() {
            self.columns = fields.iter().map(|field| shapes::event_column(field, events)).collect();
            self.widths = vec![0; self.columns.len()];
            lines.push(self.columns.iter().map(|column| column.head.clone()).collect());
        }
        lines.extend(events.rows.iter().map(|row| cells(&fields, row)));
        for cells in &lines {
            self.grow(cells);
        }
        lines.iter().map(|cells| line(&self.columns, &self.widths, cells)).collect()
    }

    fn grow(&mut self, cells: &[String]) {
        for (width, cell) in self.widths.iter_mut().zip(cells) {
            *width = (*width).max(cell.chars().count());
        }
    }
}

fn cells(fields: &[&Field], row: &crate::report::Row) -> Vec<String> {
    fields.iter().map(|field| plain(&shapes::event_cell(row, field), WIDEST)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn events(rows: serde_json::Value) -> Events {
        let fields = vec![Field::new("comm", ""), Field::new("latency_ns", "ns"), Field::new("errno", "")];
        Events { fields, rows: serde_json::from_value(rows).unwrap(), ..Events::default() }
    }

    #[test]
    fn no_two_columns_have_one_head() {
        let fields = vec![Field::new("arguments", ""), Field::new("arguments_bytes", "bytes")];
        let rows = serde_json::from_value(json!([{"arguments": "ls", "arguments_bytes": 7}])).unwrap();
        let lines = Live::default().lines(&Events { fields, rows, ..Events::default() });
        assert_eq!(lines[0], "arguments  arguments_bytes");
    }

    #[test]
    fn the_head_comes_once_and_columns_grow() {
        let mut live = Live::default();
        assert_eq!(live.lines(&events(json!([]))), [""; 0]);
        let first = live.lines(&events(json!([{"comm": "sh", "latency_ns": 7}])));
        assert_eq!(first, ["comm  latency  errno", "sh       7 ns      -"]);
        let next = live.lines(&events(json!([{"comm": "longer", "latency_ns": 1000, "errno": "ENOENT"}])));
        assert_eq!(next, ["longer  1.00 µs  ENOENT"]);
    }
}
