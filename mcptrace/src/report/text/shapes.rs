//! The four shapes as lines.

use serde_json::Value;

use super::{
    columns::{Column, aligned},
    units::{self, count, decimal, plain, quantity},
};
use crate::report::{Events, Field, Histogram, Report, Rest, Row, Series, Stacks, Table};

/// Series that get bars, at most; more are compared by their percentiles.
const MOST_BARRED: usize = 2;
/// The longest bar, in characters.
const BAR: usize = 40;
/// Frames and stacks that are shown, at most.
const MOST_FRAMES: usize = 20;
/// The longest stack that is shown, in characters.
const LONGEST_STACK: usize = 400;

/// A line, and whether a cursor can come back to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) text: String,
    pub(super) is: Is,
}

/// What a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Is {
    /// Nothing that is counted.
    Other,
    /// A row of the main report.
    Row,
    /// An event beside it.
    Event,
}

impl Line {
    pub(super) fn of(text: impl Into<String>) -> Self {
        Self { text: text.into(), is: Is::Other }
    }
}

/// The main report.
pub(super) fn lines(report: &Report) -> Vec<Line> {
    match report {
        Report::Table(table) => rows(table_lines(table), table.rows.len()),
        Report::Histogram(histogram) => histogram_lines(histogram),
        Report::Events(events) => rows(event_lines(events), events.rows.len()),
        Report::Stacks(stacks) => stack_lines(stacks).into_iter().map(Line::of).collect(),
    }
}

/// The events beside the main report.
pub(super) fn events(report: &Report) -> Vec<Line> {
    let rows = crate::report::view::rows_of(Some(report));
    let mut lines = section("events", report);
    // Below the name and the head.
    lines.iter_mut().skip(2).take(rows).for_each(|line| line.is = Is::Event);
    lines
}

/// A further report under its name, with how much of it is shown.
pub(super) fn section(name: &str, report: &Report) -> Vec<Line> {
    let shown = crate::report::view::rows_of(Some(report)) as u64;
    let total = super::total(report).unwrap_or(shown);
    let part = if total > shown { format!(" ({} of {})", count(shown), count(total)) } else { String::new() };
    let head = Line::of(format!("{name}{part}:"));
    std::iter::once(head).chain(lines(report).into_iter().map(|line| Line::of(line.text))).collect()
}

/// Marks the lines after the head as rows.
fn rows(lines: Vec<String>, rows: usize) -> Vec<Line> {
    let is = |at: usize| if (1..=rows).contains(&at) { Is::Row } else { Is::Other };
    lines.into_iter().enumerate().map(|(at, text)| Line { text, is: is(at) }).collect()
}

/// The names of rows that are columns: a container only where some row has one.
fn shown_keys<'a>(key: &'a [String], rows: &[Row]) -> Vec<&'a String> {
    let has_container = rows.iter().any(|row| row.contains_key("container"));
    let unit = has_unit_column(key.iter().map(String::as_str));
    let is_shown = |name: &&String| (*name != "container" || has_container) && (*name != "unit" || unit);
    key.iter().filter(is_shown).collect()
}

/// Whether units are a column: only where rows are of nothing narrower. On a host every process is in some unit; who wants to know it of
/// one finds it in the JSON.
fn has_unit_column<'a>(mut names: impl Iterator<Item = &'a str>) -> bool {
    !names.any(|name| name == "pid")
}

fn table_lines(table: &Table) -> Vec<String> {
    let key = shown_keys(&table.key, &table.rows);
    let keys = key.iter().map(|name| key_column(name, &table.rows));
    let values = table.columns.iter().map(|field| value_column(field, table));
    let columns: Vec<_> = keys.chain(values).collect();
    let cells = |row: &Row| {
        let keys = key.iter().map(|name| cell(row.get(*name)));
        let values = table.columns.iter().map(|field| quantity_of(row, field));
        keys.chain(values).collect::<Vec<_>>()
    };
    let mut rows: Vec<_> = table.rows.iter().map(cells).collect();
    rows.extend(table.others.as_ref().map(|others| with_name(cells(others), "(others)", key.len())));
    aligned(&columns, &rows)
}

fn key_column(key: &str, rows: &[Row]) -> Column {
    let numbers = rows.iter().all(|row| row.get(key).is_some_and(Value::is_number)) && !rows.is_empty();
    Column { head: key.to_owned(), right: numbers }
}

/// Words are read from the left; numbers stand on the right, also those that are written out.
fn value_column(field: &Field, table: &Table) -> Column {
    let is_word = |value: &Value| value.as_str().is_some_and(|text| text.parse::<f64>().is_err());
    let words = table.rows.iter().filter_map(|row| row.get(&field.name)).any(is_word);
    Column { head: head(field, &table.columns), right: !words }
}

/// The name of a column: without the unit where the values show it and no other column is called so, with it where they do not and
/// it is not a mere noun.
fn head(field: &Field, all: &[Field]) -> String {
    let without = |unit: &str| {
        let short = field.name.trim_end_matches(unit);
        let is_taken = all.iter().any(|other| other.name == short);
        if is_taken { field.name.clone() } else { short.to_owned() }
    };
    match field.unit.as_str() {
        "ns" => without("_ns"),
        "bytes" => without("_bytes"),
        "ns/s" | "bytes/s" => field.name.clone(),
        unit if unit.contains(['/', '%']) => format!("{} ({unit})", field.name),
        _ => field.name.clone(),
    }
}

fn quantity_of(row: &Row, field: &Field) -> String {
    row.get(&field.name).map_or_else(|| "-".to_owned(), |value| quantity(value, &field.unit))
}

fn cell(value: Option<&Value>) -> String {
    value.map_or_else(|| "-".to_owned(), units::text)
}

/// The row of a sum has no key: its name stands in the first column.
fn with_name(mut cells: Vec<String>, name: &str, keys: usize) -> Vec<String> {
    cells.iter_mut().take(keys).for_each(String::clear);
    if let Some(first) = cells.first_mut().filter(|_| keys > 0) {
        name.clone_into(first);
    }
    cells
}

fn histogram_lines(histogram: &Histogram) -> Vec<Line> {
    let mut lines = rows(series_lines(histogram), histogram.series.len());
    if histogram.series.len() <= MOST_BARRED {
        lines.extend(histogram.series.iter().flat_map(|series| bars(series, &histogram.unit)).map(Line::of));
    }
    lines
}

fn series_lines(histogram: &Histogram) -> Vec<String> {
    let also = also(&histogram.series);
    let keys: Vec<Row> = histogram.series.iter().map(|series| series.key.clone()).collect();
    let names = shown_keys(&histogram.key, &keys);
    let mut columns: Vec<_> = names.iter().map(|name| key_column(name, &keys)).collect();
    columns.extend(["count", "mean", "p50", "p90", "p99", "p99.9", "max"].map(Column::right));
    columns.extend(also.iter().map(|name| Column::right(name.as_str())));
    let cells = |key: &Row, numbers: Vec<String>, further: &Row| {
        let mut cells: Vec<_> = names.iter().map(|name| cell(key.get(*name))).collect();
        cells.extend(numbers);
        cells.extend(also.iter().map(|name| quantity_of(further, &Field::new(name, name))));
        cells
    };
    let of_series = |one: &Series| {
        let shares = [one.p50, one.p90, one.p99, one.p999].map(Some);
        cells(&one.key, numbers(&one.into(), shares, &histogram.unit), &one.also)
    };
    let mut rows: Vec<_> = histogram.series.iter().map(of_series).collect();
    let others = histogram.others.as_deref();
    let others = others.map(|others| cells(&Row::new(), numbers(others, [None; 4], &histogram.unit), &others.also));
    rows.extend(others.map(|cells| with_name(cells, "(others)", names.len())));
    aligned(&columns, &rows)
}

/// The further numbers of all series, in the order of their first appearance.
fn also(series: &[Series]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for name in series.iter().flat_map(|one| one.also.keys()) {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    names
}

fn numbers(all: &Rest, shares: [Option<u64>; 4], unit: &str) -> Vec<String> {
    let value = |number: u64| measure(number as f64, unit);
    let mut cells = vec![count(all.count), measure(all.mean, unit)];
    cells.extend(shares.map(|share| share.map_or_else(|| "-".to_owned(), value)));
    cells.push(value(all.max));
    cells
}

fn measure(number: f64, unit: &str) -> String {
    let value =
        if number.fract() == 0.0 { Value::from(number as u64) } else { Value::from((number * 10.0).round() / 10.0) };
    quantity(&value, unit)
}

/// The buckets of a series merged by powers of two, a bar for each.
fn bars(series: &Series, unit: &str) -> Vec<String> {
    let powers = powers(series);
    let Some(most) = powers.iter().map(|(_, count)| *count).max().filter(|most| *most > 0) else { return Vec::new() };
    let name: Vec<_> = series.key.values().map(|value| plain(&units::text(value), 64)).collect();
    let rows: Vec<_> = powers.iter().map(|(power, n)| vec![range(*power, unit), count(*n), bar(*n, most)]).collect();
    let columns = [Column::right(name.join(" ")), Column::right("count"), Column::left("")];
    std::iter::once(String::new()).chain(aligned(&columns, &rows)).collect()
}

/// How many values each power of two has, without gaps; `None` stands for zero.
fn powers(series: &Series) -> Vec<(Option<u32>, u64)> {
    let power = |low: u64| low.checked_ilog2();
    let first = series.buckets.iter().map(|(low, ..)| power(*low)).min();
    let last = series.buckets.iter().map(|(low, ..)| power(*low)).max();
    let (Some(first), Some(last)) = (first, last) else { return Vec::new() };
    let steps = first.is_none().then_some(None).into_iter();
    let steps = steps.chain(last.into_iter().flat_map(|last| first.unwrap_or(0)..=last).map(Some));
    let count = |step| series.buckets.iter().filter(|(low, ..)| power(*low) == step).map(|(.., n)| n).sum();
    steps.map(|step| (step, count(step))).collect()
}

fn range(power: Option<u32>, unit: &str) -> String {
    let Some(power) = power else { return "0".to_owned() };
    let bound = |power: u32| measure(2_f64.powi(power as i32), unit);
    format!("{} – {}", bound(power), bound(power + 1))
}

/// At least one mark for what is there at all.
fn bar(value: u64, most: u64) -> String {
    let length = (value as f64 / most as f64 * BAR as f64).round() as usize;
    "#".repeat(if value > 0 { length.max(1) } else { 0 })
}

fn event_lines(events: &Events) -> Vec<String> {
    let is_used = |field: &&Field| events.rows.iter().any(|row| row.contains_key(&field.name));
    let fields: Vec<_> = event_fields(events).into_iter().filter(is_used).collect();
    let columns: Vec<_> = fields.iter().map(|field| event_column(field, events)).collect();
    let cells = |row: &Row| fields.iter().map(|field| event_cell(row, field)).collect::<Vec<_>>();
    aligned(&columns, &events.rows.iter().map(cells).collect::<Vec<_>>())
}

/// The fields of events that can be columns.
pub(super) fn event_fields(events: &Events) -> Vec<&Field> {
    let unit = has_unit_column(events.fields.iter().map(|field| field.name.as_str()));
    events.fields.iter().filter(|field| field.name != "unit" || unit).collect()
}

pub(super) fn event_column(field: &Field, events: &Events) -> Column {
    let numbers = events.rows.iter().filter_map(|row| row.get(&field.name)).all(Value::is_number);
    let head = if field.name == "time" { "time (UTC)".to_owned() } else { head(field, &events.fields) };
    Column { head, right: numbers }
}

/// Numbers without a unit are ids and stay as they are; of a time, the date stands in the window of the JSON.
pub(super) fn event_cell(row: &Row, field: &Field) -> String {
    match row.get(&field.name) {
        None => "-".to_owned(),
        Some(Value::String(time)) if field.name == "time" => time_of_day(time),
        Some(value) if field.unit.is_empty() => units::text(value),
        Some(value) => quantity(value, &field.unit),
    }
}

fn time_of_day(time: &str) -> String {
    time.split_once('T').map_or(time, |(_, of_day)| of_day.trim_end_matches('Z')).to_owned()
}

fn stack_lines(stacks: &Stacks) -> Vec<String> {
    let percent = |weight: u64| decimal((weight as f64 / stacks.total.max(1) as f64 * 1000.0).round() / 10.0);
    let columns = [Column::right("self %"), Column::right("total %"), Column::left("frame")];
    let frames = stacks.frames.iter().take(MOST_FRAMES);
    let frames: Vec<_> =
        frames.map(|frame| vec![percent(frame.self_weight), percent(frame.total), frame.frame.clone()]).collect();
    let unknown = decimal(stacks.unknown_percent);
    let mut lines = vec![format!("{} {}, {unknown} % in code without a name", count(stacks.total), stacks.unit)];
    lines.extend(aligned(&columns, &frames));
    lines.push(String::new());
    lines.extend(stacks.stacks.iter().take(MOST_FRAMES).map(|stack| {
        let frames = plain(&stack.frames.join(";"), LONGEST_STACK);
        format!("{} % {} {frames}", percent(stack.value), plain(&stack.comm, 64))
    }));
    lines
}
