//! Answers as text for people: a head, the table, a line of bars for each row, what was not recorded. Pure.

use std::borrow::Cow;

use serde_json::Value;

use super::{Answer, SCALED, coverage::Coverage};
use crate::{
    report::{
        Report, Row, Window,
        text::{self, units},
    },
    text::clipped,
};

/// Bars of eight heights; a dot stands for what was not recorded.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const NOTHING: char = '·';
/// The longest name of a row of bars, in characters.
const LONGEST_KEY: usize = 40;

/// An answer of at most so many bytes.
pub fn answer(answer: &Answer, most_bytes: usize) -> String {
    let mut lines = vec![head(answer)];
    lines.extend(answer.report.iter().flat_map(|report| text::lines(&as_read(answer, report))));
    lines.extend(nothing_changed(answer));
    if !answer.points.is_empty() {
        lines.push(String::new());
        lines.extend(bars(answer));
    }
    let foot: Vec<String> = lacks(&answer.coverage).into_iter().chain(answer.notes.iter().map(note)).collect();
    let foot = foot.join("\n");
    let room = most_bytes.saturating_sub(foot.len() + 80);
    let mut body = lines.join("\n");
    if body.len() > room {
        let end = (0..=room).rev().find(|end| body.is_char_boundary(*end)).unwrap_or(0);
        body.truncate(body[..end].rfind('\n').unwrap_or(end));
        body.push_str("\n… the rest is in the structured content");
    }
    let text = if foot.is_empty() { body } else { format!("{body}\n{foot}") };
    clipped(text, most_bytes)
}

/// Numbers of a query stand as they are: nobody knows which are times and ids. Others whose rows have a unit each stand in it.
fn as_read<'a>(answer: &Answer, report: &'a Report) -> Cow<'a, Report> {
    let Report::Table(table) = report else { return Cow::Borrowed(report) };
    let is_of_sql = answer.window.is_none();
    if !is_of_sql && table.columns.iter().all(|column| column.name != "unit") {
        return Cow::Borrowed(report);
    }
    let mut table = table.clone();
    if is_of_sql {
        for value in table.rows.iter_mut().flat_map(Row::values_mut).filter(|value| value.is_number()) {
            *value = Value::String(value.to_string());
        }
    } else {
        table.columns.retain(|column| column.name != "unit");
        table.rows.iter_mut().for_each(in_unit);
    }
    Cow::Owned(Report::Table(table))
}

fn in_unit(row: &mut Row) {
    let Some(Value::String(mut unit)) = row.remove("unit") else { return };
    if row.get("is").and_then(Value::as_str).is_some_and(|is| is.ends_with("per_second")) {
        unit.push_str("/s");
    }
    for name in ["value", "before", "now"] {
        if let Some(value) = row.get_mut(name).filter(|value| value.is_number()) {
            *value = text::measured(value, &unit).into();
        }
    }
}

/// Why a comparison has no rows.
fn nothing_changed(answer: &Answer) -> Option<String> {
    let (Some(_), Some(Report::Table(table))) = (&answer.compared_with, &answer.report) else { return None };
    match table.rows_total {
        _ if !table.rows.is_empty() => None,
        0 => Some("nothing could be compared: one of the windows has nothing of it".to_owned()),
        compared => Some(format!("nothing stands out of {compared} numbers that were compared")),
    }
}

fn note(note: &String) -> String {
    format!("note: {note}")
}

fn head(answer: &Answer) -> String {
    let span = |window: &Window| {
        let end = window.end.as_deref().unwrap_or_default();
        format!("{} to {} ({})", window.start, end, units::seconds(window.seconds))
    };
    let window = answer.window.as_ref().map(span);
    let other = answer.compared_with.as_ref().map(|other| format!("compared with {}", span(other)));
    let step = answer.step_seconds.map(|step| format!("steps of {step} s"));
    let name = if answer.metric.is_empty() { "history" } else { &answer.metric };
    [Some(name.to_owned()), window, other, step].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// What most rows over time are drawn by.
fn drawn(point: &Row) -> Option<(&str, &Vec<Value>)> {
    let names = ["p99", "per_second", SCALED, "average"];
    names.iter().find_map(|name| Some((*name, point.get(*name)?.as_array()?)))
}

fn bars(answer: &Answer) -> Vec<String> {
    let keys: Vec<String> = answer.points.iter().map(key).collect();
    let width = keys.iter().map(|key| key.chars().count()).max().unwrap_or(0);
    let line = |(point, key): (&Row, &String)| {
        let (name, values) = drawn(point)?;
        let most = values.iter().filter_map(Value::as_f64).fold(0.0, f64::max);
        let unit = if name == "per_second" || name == SCALED { per_second(answer) } else { answer.unit.clone() };
        let peak = text::quantity(&most.into(), &unit);
        Some(format!("{key:width$}  {}  {name}, at most {peak}", sparkline(values, most)))
    };
    answer.points.iter().zip(&keys).filter_map(line).collect()
}

fn per_second(answer: &Answer) -> String {
    if answer.kind == "distribution" { "1/s".into() } else { format!("{}/s", answer.unit) }
}

fn key(point: &Row) -> String {
    let values = point.get("key").and_then(Value::as_object).into_iter().flat_map(|key| key.values().map(units::text));
    let key = values.collect::<Vec<_>>().join(" ");
    units::plain(if key.is_empty() { "total" } else { &key }, LONGEST_KEY)
}

fn sparkline(values: &[Value], most: f64) -> String {
    let bar = |value: &Value| match value.as_f64() {
        None => NOTHING,
        Some(value) if value <= 0.0 || most <= 0.0 => BARS[0],
        Some(value) => BARS[((value / most * 8.0).ceil() as usize).clamp(1, 8) - 1],
    };
    values.iter().map(bar).collect()
}

/// What was not recorded, a line for all groups of metrics that lack the same.
fn lacks(coverage: &[Coverage]) -> Vec<String> {
    let mut lacks: Vec<(String, Vec<&str>)> = Vec::new();
    for one in coverage.iter().filter(|one| !one.missing.is_empty()) {
        let lack = lack(one);
        match lacks.iter_mut().find(|(other, _)| *other == lack) {
            Some((_, groups)) => groups.push(&one.group),
            None => lacks.push((lack, vec![&one.group])),
        }
    }
    lacks.into_iter().map(|(lack, groups)| format!("coverage of {}: {lack}", groups.join(", "))).collect()
}

fn lack(coverage: &Coverage) -> String {
    let parts = coverage.missing.iter().map(|one| format!("{} s {}", units::decimal(one.seconds), one.why));
    let parts = parts.collect::<Vec<_>>().join(", ");
    let (recorded, seconds) = (units::decimal(coverage.recorded_seconds), units::decimal(coverage.seconds));
    format!("{recorded} of {seconds} s recorded; not: {parts}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::report::{Field, Table};

    #[test]
    fn bars_show_heights_and_holes() {
        let values = [json!(0), json!(1), json!(50), json!(100), Value::Null];
        assert_eq!(sparkline(&values, 100.0), "▁▁▄█·");
        assert_eq!(sparkline(&[json!(0)], 0.0), "▁");
    }

    #[test]
    fn numbers_of_a_query_stand_as_they_are() {
        let rows = vec![Row::from_iter([("at_ns".to_owned(), json!(1_795_932_019_u64))])];
        let table = Table { columns: vec![Field::new("at_ns", "")], rows, rows_total: 1, ..Table::default() };
        let text = answer(&Answer { report: Some(Report::Table(table)), ..Answer::default() }, 1000);
        assert!(text.contains("1795932019"), "{text}");
    }

    #[test]
    fn numbers_of_rows_with_a_unit_each_stand_in_it() {
        let rows = json!([
            {"metric": "busy_ns", "value": 2e9, "is": "per_second", "unit": "ns"},
            {"metric": "load", "value": 5.5, "is": "average", "unit": "threads"},
            {"metric": "none", "unit": "ns"},
        ]);
        let columns = ["value", "is", "unit"].map(|name| Field::new(name, "")).to_vec();
        let table = Table {
            key: vec!["metric".into()],
            columns,
            rows: serde_json::from_value(rows).unwrap(),
            ..Table::default()
        };
        let window = Some(Window { start: "A".into(), end: Some("E".into()), seconds: 60.0 });
        let text = answer(&Answer { window, report: Some(Report::Table(table)), ..Answer::default() }, 1000);
        assert!(text.contains("busy_ns  2.00 s/s     per_second\nload     5.5 threads  average\nnone     -"), "{text}");
    }

    #[test]
    fn a_comparison_shows_both_windows_and_says_that_nothing_changed() {
        let window = |start: &str| Some(Window { start: start.into(), end: Some("E".into()), seconds: 900.0 });
        let of = |rows_total| Answer {
            window: window("A"),
            compared_with: window("B"),
            report: Some(Report::Table(Table { rows_total, ..Table::default() })),
            ..Answer::default()
        };
        let text = answer(&of(7), 1000);
        assert!(text.contains("A to E (900.0 s), compared with B to E (900.0 s)"), "{text}");
        assert!(text.contains("nothing stands out of 7 numbers"), "{text}");
        assert!(answer(&of(0), 1000).contains("nothing could be compared"));
    }

    #[test]
    fn a_text_keeps_to_its_size_and_keeps_its_notes() {
        let point = |n: usize| {
            Row::from_iter([
                ("key".to_owned(), json!({"comm": format!("x{n}")})),
                ("per_second".to_owned(), json!([1, 2])),
            ])
        };
        let long = Answer {
            metric: "m".into(),
            points: (0..500).map(point).collect(),
            notes: vec!["look at this".into()],
            ..Answer::default()
        };
        let text = answer(&long, 1000);
        assert!(text.len() <= 1003 && text.ends_with("note: look at this"), "{text}");
        assert!(text.contains("the rest is in the structured content"));
    }
}
