//! Rows and points of an answer: amounts become rates by the time that was recorded, distributions percentiles. Pure.

use serde_json::{Value, json};

use super::{Grouping, Ranked, SCALED, coverage::Recorded, reader::Known};
use crate::{
    recorder::{
        store::body::{Cell, Sparse},
        tick::Kind,
    },
    report::{Field, Row, Table},
};

/// The groups over the whole window.
pub(super) fn table(metric: &Known, grouping: &Grouping, ranked: &Ranked, top: usize, recorded: &Recorded) -> Table {
    let row = |key: Row, cell: &Cell| {
        let mut row = key;
        row.extend(numbers(cell, recorded));
        row
    };
    let rows = ranked.iter().take(top).map(|(key, cell)| row(grouping.row(key), cell)).collect();
    let rest = ranked.iter().skip(top).map(|(_, cell)| cell.clone());
    let others = rest.reduce(|mut sum, cell| {
        sum.merge(&cell);
        sum
    });
    // An average of the levels that are not shown says nothing.
    let others = others.filter(|_| metric.kind != Kind::Gauge).map(|cell| row(Row::new(), &cell));
    Table {
        key: grouping.by.clone(),
        columns: columns(metric, recorded),
        rows,
        others,
        rows_total: ranked.len() as u64,
    }
}

/// A group over time.
pub(super) fn points(key: &Row, kind: Kind, steps: &[Option<Cell>], recorded: &Recorded) -> Row {
    let mut point = Row::new();
    if !key.is_empty() {
        point.insert("key".into(), Value::Object(key.clone()));
    }
    let series = |of: &dyn Fn(usize, Option<&Cell>) -> Option<f64>| -> Value {
        let values = steps.iter().enumerate().map(|(at, cell)| of(at, cell.as_ref()).map(digits));
        values.collect::<Vec<_>>().into()
    };
    // What was recorded and did not happen is 0; what was not recorded is nothing. Of a duty cycle only the time counts in which it looked,
    // else the same calls would have another rate in shorter steps.
    let rate = |at: usize, amount: u64| recorded.looked_at(at).map(|seconds| amount as f64 / seconds);
    let rate_name = if recorded.is_whole() { "per_second" } else { SCALED };
    let amount = |cell: Option<&Cell>| match cell {
        Some(Cell::Sum(amount)) => *amount,
        Some(Cell::Distribution(values)) => values.count,
        _ => 0,
    };
    let percentile = |cell: Option<&Cell>, share: f64| match cell {
        Some(Cell::Distribution(values)) if values.count > 0 => Some(values.whole().percentile(share) as f64),
        _ => None,
    };
    let level = |cell: Option<&Cell>| match cell {
        Some(Cell::Gauge(level)) => Some(level.average),
        _ => None,
    };
    match kind {
        Kind::Gauge => drop(point.insert("average".into(), series(&|_, cell| level(cell)))),
        Kind::Sum => drop(point.insert(rate_name.into(), series(&|at, cell| rate(at, amount(cell))))),
        Kind::Distribution => {
            point.insert(rate_name.into(), series(&|at, cell| rate(at, amount(cell))));
            point.insert("p50".into(), series(&|_, cell| percentile(cell, 0.5)));
            point.insert("p99".into(), series(&|_, cell| percentile(cell, 0.99)));
        }
    }
    point
}

/// A number with the digits that a reader needs.
pub(super) fn digits(value: f64) -> f64 {
    if value.fract() == 0.0 || value.abs() >= 1e5 {
        return value.round() + 0.0;
    }
    format!("{value:.3e}").parse().unwrap_or(value)
}

fn columns(metric: &Known, recorded: &Recorded) -> Vec<Field> {
    let unit = &metric.unit;
    let rate = format!("{unit}/s");
    let mut columns = match metric.kind {
        Kind::Sum => vec![Field::new("total", unit), Field::new("per_second", &rate)],
        Kind::Gauge => ["average", "least", "greatest"].map(|name| Field::new(name, unit)).to_vec(),
        Kind::Distribution => {
            let mut columns = vec![Field::new("count", ""), Field::new("per_second", "1/s")];
            columns.extend(["mean", "p50", "p90", "p99", "greatest"].map(|name| Field::new(name, unit)));
            columns
        }
    };
    if !recorded.is_whole() && metric.kind != Kind::Gauge {
        let unit = if metric.kind == Kind::Sum { rate.as_str() } else { "1/s" };
        columns.push(Field::new(SCALED, unit));
    }
    columns
}

/// What a cell is over the recorded time.
fn numbers(cell: &Cell, recorded: &Recorded) -> Row {
    let (seconds, looked) = (recorded.total(), recorded.looked());
    let rate = |amount: u64| if seconds > 0.0 { json!(digits(amount as f64 / seconds)) } else { Value::Null };
    let mut row = Row::new();
    let amount = match cell {
        Cell::Sum(amount) => {
            row.insert("total".into(), json!(amount));
            row.insert("per_second".into(), rate(*amount));
            Some(*amount)
        }
        Cell::Gauge(level) => {
            row.insert("average".into(), json!(digits(level.average)));
            row.insert("least".into(), json!(digits(level.least)));
            row.insert("greatest".into(), json!(digits(level.greatest)));
            None
        }
        Cell::Distribution(values) => {
            row.insert("count".into(), json!(values.count));
            row.insert("per_second".into(), rate(values.count));
            row.extend(percentiles(values));
            Some(values.count)
        }
    };
    if let Some(amount) = amount
        && looked > 0.0
        && !recorded.is_whole()
    {
        row.insert(SCALED.into(), json!(digits(amount as f64 / looked)));
    }
    row
}

fn percentiles(values: &Sparse) -> Row {
    let whole = values.whole();
    let mean = if values.count == 0 { 0.0 } else { values.sum as f64 / values.count as f64 };
    let shares = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)];
    let mut row = Row::from_iter([("mean".to_owned(), json!(digits(mean)))]);
    row.extend(shares.map(|(name, share)| (name.to_owned(), json!(whole.percentile(share)))));
    row.insert("greatest".into(), json!(values.greatest));
    row
}
