//! Map contents as reports: pure.
//!
//! A map that was printed once is a table or a histogram with the parts of its key as fields. One that was printed
//! several times has the number of the print, counted from 1, as first key field, `print`.

use serde_json::{Value, json};

use super::record::{MapKind, Node};
use super::text::{STATS, escape, is_stats};
use crate::report::{Field, Histogram, Report, Row, Series, Table};

/// What one print of a map said.
#[derive(Clone, Debug)]
pub(crate) struct Print {
    /// Which print of this map, from 1.
    pub(crate) number: u64,
    pub(crate) kind: MapKind,
    pub(crate) body: Node,
}

/// A bucket; an open end is `None`, both bounds are part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bucket {
    pub(crate) min: Option<i128>,
    pub(crate) max: Option<i128>,
    pub(crate) count: u64,
}

/// One entry of a map: its key in parts, and its value.
struct Entry<'a> {
    print: u64,
    key: Vec<String>,
    value: &'a Node,
}

/// The report of one map. `several`: the map was printed more than once, so each row says in which print it stood.
pub(crate) fn map_report(prints: &[&Print], several: bool, rows: usize) -> Report {
    let entries: Vec<Entry<'_>> = prints.iter().flat_map(|print| entries(print)).collect();
    let keys = Keys::of(&entries, several);
    if prints.iter().all(|print| print.kind == MapKind::Hist) {
        Report::Histogram(histogram(&keys, &entries, rows))
    } else {
        Report::Table(table(&keys, &entries, rows))
    }
}

fn entries(print: &Print) -> Vec<Entry<'_>> {
    let whole = |value| vec![Entry { print: print.number, key: Vec::new(), value }];
    match &print.body {
        Node::Pairs(pairs) if print.kind == MapKind::Stats && is_stats(pairs) => whole(&print.body),
        Node::Pairs(pairs) => {
            pairs.iter().map(|(key, value)| Entry { print: print.number, key: split_key(key), value }).collect()
        }
        body => whole(body),
    }
}

/// The parts of a key. bpftrace 0.17 joins them with a bare comma, and so the text is split where no space follows;
/// a string that itself holds a bare comma cannot be told from two parts.
pub(crate) fn split_key(key: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut rest = key.chars().peekable();
    while let Some(character) = rest.next() {
        match parts.last_mut() {
            Some(_) if character == ',' && rest.peek() != Some(&' ') => parts.push(String::new()),
            Some(part) => part.push(character),
            None => {}
        }
    }
    parts
}

/// The key fields of a map and whether each is a number throughout.
struct Keys {
    names: Vec<String>,
    numeric: Vec<bool>,
    several: bool,
    /// Whether all keys have as many parts; otherwise a key is shown whole.
    even: bool,
}

impl Keys {
    fn of(entries: &[Entry<'_>], several: bool) -> Self {
        let width = entries.first().map_or(0, |entry| entry.key.len());
        let even = entries.iter().all(|entry| entry.key.len() == width);
        let width = if even { width } else { 1 };
        let numeric = (0..width).map(|index| even && entries.iter().all(|entry| is_number(&entry.key[index])));
        let name = |index| if width == 1 { "key".to_owned() } else { format!("key{}", index + 1) };
        Self { names: (0..width).map(name).collect(), numeric: numeric.collect(), several, even }
    }

    fn fields(&self) -> Vec<String> {
        let print = self.several.then(|| "print".to_owned());
        print.into_iter().chain(self.names.iter().cloned()).collect()
    }

    fn row(&self, entry: &Entry<'_>) -> Row {
        let mut row = Row::new();
        if self.several {
            row.insert("print".into(), entry.print.into());
        }
        let parts = if self.even { entry.key.clone() } else { vec![entry.key.join(",")] };
        for ((name, numeric), part) in self.names.iter().zip(&self.numeric).zip(&parts) {
            row.insert(name.clone(), if *numeric { number(part) } else { Value::String(shown(part)) });
        }
        row
    }
}

fn is_number(text: &str) -> bool {
    text.parse::<i64>().is_ok_and(|number| number.to_string() == text)
        || text.parse::<u64>().is_ok_and(|number| number.to_string() == text)
}

fn number(text: &str) -> Value {
    text.parse::<i64>().map_or_else(|_| text.parse::<u64>().map_or(Value::Null, Value::from), Value::from)
}

/// A string of a report. A stack, which begins with a line end, becomes its frames, outermost first, joined by `;` as
/// in folded stacks.
pub(crate) fn shown(text: &str) -> String {
    if !text.starts_with('\n') {
        return escape(text);
    }
    let frames: Vec<&str> = text.lines().rev().map(str::trim).filter(|frame| !frame.is_empty()).collect();
    escape(&frames.join(";"))
}

fn table(keys: &Keys, entries: &[Entry<'_>], limit: usize) -> Table {
    let columns = columns(entries);
    let first = columns[0];
    let mut ordered: Vec<&Entry<'_>> = entries.iter().collect();
    ordered.sort_by_key(|entry| std::cmp::Reverse((entry.print, cell(entry.value, first).as_i64())));
    let mut rows: Vec<Row> = ordered.iter().map(|entry| table_row(keys, &columns, entry)).collect();
    let left = rows.split_off(limit.min(rows.len()));
    Table {
        key: keys.fields(),
        columns: columns.iter().map(|name| Field::new(*name, "")).collect(),
        rows,
        others: (!left.is_empty()).then(|| sum(&columns, &left)),
        rows_total: entries.len() as u64,
    }
}

fn columns(entries: &[Entry<'_>]) -> Vec<&'static str> {
    let stats = |entry: &Entry<'_>| matches!(entry.value, Node::Pairs(pairs) if is_stats(pairs));
    if !entries.is_empty() && entries.iter().all(stats) { STATS.to_vec() } else { vec!["value"] }
}

fn table_row(keys: &Keys, columns: &[&str], entry: &Entry<'_>) -> Row {
    let mut row = keys.row(entry);
    for column in columns {
        row.insert((*column).to_owned(), cell(entry.value, column));
    }
    row
}

fn cell(value: &Node, column: &str) -> Value {
    match value {
        Node::Plain(value) => value.clone(),
        Node::Text(text) => Value::String(shown(text)),
        Node::List(_) => Value::String(escape(&value.plain_text())),
        Node::Pairs(pairs) => match pairs.iter().find(|(name, _)| name == column) {
            Some((_, Node::Plain(value))) => value.clone(),
            _ => Value::String(escape(&value.plain_text())),
        },
    }
}

/// An average cannot be summed and is left out.
fn sum(columns: &[&str], rows: &[Row]) -> Row {
    let total = |column: &str| rows.iter().filter_map(|row| row[column].as_i64()).fold(0i64, i64::saturating_add);
    columns
        .iter()
        .filter(|column| **column != "average")
        .map(|column| ((*column).to_owned(), total(column).into()))
        .collect()
}

fn histogram(keys: &Keys, entries: &[Entry<'_>], limit: usize) -> Histogram {
    let mut error = 0f64;
    let mut series: Vec<(u64, Series)> = Vec::new();
    for entry in entries {
        let buckets = buckets(entry.value);
        error = error.max(relative_error(&buckets));
        series.push((entry.print, Series { key: keys.row(entry), ..distribution(&buckets) }));
    }
    series.sort_by_key(|(print, series)| std::cmp::Reverse((*print, series.count)));
    let series_total = series.len() as u64;
    series.truncate(limit);
    let series = series.into_iter().map(|(_, series)| series).collect();
    Histogram { unit: String::new(), key: keys.fields(), relative_error: error, series, series_total, others: None }
}

/// The buckets of a histogram; what is no bucket is left out.
pub(crate) fn buckets(body: &Node) -> Vec<Bucket> {
    let Node::List(items) = body else { return Vec::new() };
    items.iter().filter_map(bucket).collect()
}

fn bucket(node: &Node) -> Option<Bucket> {
    let Node::Pairs(fields) = node else { return None };
    let field = |name| fields.iter().find(|(field, _)| field == name).map(|(_, node)| node);
    let bound = |name| field(name).and_then(|node| node.as_i64().map(i128::from).or(node.as_u64().map(i128::from)));
    Some(Bucket { min: bound("min"), max: bound("max"), count: field("count")?.as_u64()? })
}

/// How far the upper bound of a bucket, which stands for all its values, can be above one of them: for `hist()` just
/// under 1, for `lhist()` its step over the bucket's lower bound.
fn relative_error(buckets: &[Bucket]) -> f64 {
    let closed = buckets.iter().filter(|bucket| bucket.count > 0).filter_map(bounds);
    closed.map(|(low, high)| (high - 1 - low) as f64 / low.max(1) as f64).fold(0.0, f64::max)
}

/// A bucket of values that a report can hold, as `[low, high)`: closed on both sides, not negative and not the wrong way round.
fn bounds(bucket: &Bucket) -> Option<(u64, u64)> {
    let (min, max) = (bucket.min?, bucket.max.filter(|max| *max >= bucket.min.unwrap_or_default())?);
    Some((u64::try_from(min).ok()?, u64::try_from(max).ok()?.saturating_add(1)))
}

/// A bucket's edges stand in for the smallest and largest value and the percentiles, its middle for the mean.
/// Values below zero or below the first bucket count as `below_range` and those above the last as `above_range`: they
/// are part of `count` and of the percentiles, where their place is the nearest bound.
fn distribution(buckets: &[Bucket]) -> Series {
    let count = total(buckets.iter().map(|bucket| bucket.count));
    let inside: Vec<(u64, u64, u64)> = buckets
        .iter()
        .filter(|bucket| bucket.count > 0)
        .filter_map(|bucket| bounds(bucket).map(|(low, high)| (low, high, bucket.count)))
        .collect();
    let above = buckets.iter().find(|bucket| bucket.max.is_none() && bucket.count > 0);
    let above_count = above.map_or(0, |bucket| bucket.count);
    let inside_count = total(inside.iter().map(|(_, _, count)| *count));
    let below_count = count.saturating_sub(above_count).saturating_sub(inside_count);
    let top = above.and_then(|bucket| u64::try_from(bucket.min?).ok());
    let bottom = if below_count > 0 { Some(0) } else { inside.first().map(|bucket| bucket.0).or(top) };
    let steps = Steps { below: below_count, inside: &inside, top: top.unwrap_or(0) };
    let rank = |share: f64| steps.at((share * count as f64).ceil().max(1.0) as u64);
    let mut also = Row::new();
    for (name, count) in [("below_range", below_count), ("above_range", above_count)] {
        if count > 0 {
            also.insert(name.into(), json!(count));
        }
    }
    Series {
        key: Row::new(),
        count,
        min: bottom.unwrap_or(0),
        max: top.or(inside.last().map(|bucket| bucket.1 - 1)).unwrap_or(0),
        mean: mean(&inside),
        p50: rank(0.5),
        p90: rank(0.9),
        p99: rank(0.99),
        p999: rank(0.999),
        buckets: inside,
        also,
    }
}

/// A sum that ends at the largest number.
fn total(counts: impl Iterator<Item = u64>) -> u64 {
    counts.fold(0, u64::saturating_add)
}

/// The middle of each bucket, weighted; without the values outside all buckets.
fn mean(inside: &[(u64, u64, u64)]) -> f64 {
    let count = total(inside.iter().map(|bucket| bucket.2));
    let sum: f64 =
        inside.iter().map(|(low, high, count)| f64::midpoint(*low as f64, (*high - 1) as f64) * *count as f64).sum();
    if count == 0 { 0.0 } else { sum / count as f64 }
}

struct Steps<'a> {
    below: u64,
    inside: &'a [(u64, u64, u64)],
    top: u64,
}

impl Steps<'_> {
    /// The value that so many values are at most.
    fn at(&self, rank: u64) -> u64 {
        let mut seen = self.below;
        if rank <= seen {
            return 0;
        }
        for (_, high, count) in self.inside {
            seen = seen.saturating_add(*count);
            if rank <= seen {
                return high - 1;
            }
        }
        self.top
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::{Record, parse};
    use super::*;

    fn print(number: u64, line: &str) -> Print {
        let Some(Record::Map { kind, body, .. }) = parse(line.as_bytes()) else { panic!("no map: {line}") };
        Print { number, kind, body }
    }

    fn report(lines: &[&str]) -> Value {
        let prints: Vec<Print> = (1..).zip(lines).map(|(number, line)| print(number, line)).collect();
        let prints: Vec<&Print> = prints.iter().collect();
        serde_json::to_value(map_report(&prints, lines.len() > 1, 100)).unwrap()
    }

    #[test]
    fn a_scalar_is_a_table_of_one_row_without_key() {
        let report = report(&[r#"{"type": "map", "data": {"@a": 5}}"#]);
        assert_eq!(report["rows"], json!([{"value": 5}]));
        assert_eq!(report["key"], json!([]));
    }

    #[test]
    fn keys_are_split_and_numbers_are_numbers_if_all_are() {
        let report = report(&[r#"{"type": "map", "data": {"@": {"1,a b,3": 1, "2,7,18446744073709551615": 9}}}"#]);
        assert_eq!(report["key"], json!(["key1", "key2", "key3"]));
        assert_eq!(report["rows"][0], json!({"key1": 2, "key2": "7", "key3": u64::MAX, "value": 9}));
        assert_eq!(report["rows"][1], json!({"key1": 1, "key2": "a b", "key3": 3, "value": 1}));
    }

    #[test]
    fn keys_that_cannot_be_split_evenly_stay_whole() {
        let report = report(&[r#"{"type": "map", "data": {"@": {"a,b": 1, "c": 2}}}"#]);
        assert_eq!(report["rows"], json!([{"key": "c", "value": 2}, {"key": "a,b", "value": 1}]));
    }

    #[test]
    fn several_prints_are_told_apart_newest_first() {
        let line = r#"{"type": "map", "data": {"@": {"x": 3}}}"#;
        let report = report(&[line, r#"{"type": "map", "data": {"@": {"x": 2}}}"#]);
        assert_eq!(report["key"], json!(["print", "key"]));
        assert_eq!(report["rows"][0], json!({"print": 2, "key": "x", "value": 2}));
    }

    #[test]
    fn stats_have_three_columns_and_averages_one() {
        let stats = report(&[r#"{"type": "stats", "data": {"@": {"q": {"count": 2, "average": 15, "total": 30}}}}"#]);
        assert_eq!(stats["rows"], json!([{"key": "q", "count": 2, "average": 15, "total": 30}]));
        let single = report(&[r#"{"type": "stats", "data": {"@": {"count": 1, "average": 3, "total": 3}}}"#]);
        assert_eq!(single["rows"], json!([{"count": 1, "average": 3, "total": 3}]));
        let average = report(&[r#"{"type": "stats", "data": {"@": {"q": 6}}}"#]);
        assert_eq!(average["rows"], json!([{"key": "q", "value": 6}]));
    }

    #[test]
    fn a_power_of_two_histogram_states_its_error_and_its_negative_values() {
        let report =
            report(&[r#"{"type": "hist", "data": {"@h": [{"max": -1, "count": 2}, {"min": 0, "max": 0, "count": 1},
            {"min": 1, "max": 1, "count": 0}, {"min": 512, "max": 1023, "count": 7}]}}"#]);
        let series = &report["series"][0];
        assert_eq!(series["buckets"], json!([[0, 1, 1], [512, 1024, 7]]));
        assert_eq!((series["count"].as_u64(), series["p50"].as_u64()), (Some(10), Some(1023)));
        assert_eq!(series["also"], json!({"below_range": 2}));
        assert!((report["relative_error"].as_f64().unwrap() - 511.0 / 512.0).abs() < 1e-9);
    }

    #[test]
    fn a_linear_histogram_counts_what_is_outside() {
        let report = report(&[
            r#"{"type": "hist", "data": {"@l": {"z": [{"max": -1, "count": 1}, {"min": 10, "max": 19, "count": 1},
            {"min": 100, "count": 3}]}}}"#,
        ]);
        let series = &report["series"][0];
        assert_eq!(series["key"], json!({"key": "z"}));
        assert_eq!(series["also"], json!({"below_range": 1, "above_range": 3}));
        assert_eq!(
            (series["max"].as_u64(), series["p99"].as_u64(), series["count"].as_u64()),
            (Some(100), Some(100), Some(5))
        );
    }

    #[test]
    fn an_empty_histogram_is_all_zero() {
        let report = report(&[r#"{"type": "hist", "data": {"@h": []}}"#]);
        assert_eq!(report["series"][0]["count"], 0);
    }

    #[test]
    fn a_stack_is_folded_and_a_string_escaped() {
        assert_eq!(shown("\n    leaf+1\n    main+2\n"), "main+2;leaf+1");
        assert_eq!(shown("a\u{1b}[1m"), "a\\u{1b}[1m");
    }

    #[test]
    fn rows_over_the_limit_are_summed_in_others() {
        let print = print(1, r#"{"type": "map", "data": {"@": {"a": 1, "b": 2, "c": 5}}}"#);
        let Report::Table(table) = map_report(&[&print], false, 1) else { panic!("no table") };
        assert_eq!((table.rows.len(), table.rows_total), (1, 3));
        assert_eq!(table.others, Some(Row::from_iter([("value".to_owned(), json!(3))])));
    }
}
