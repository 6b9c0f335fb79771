//! Reports as text for people: bounded, with units and what was left out. Pure.
//!
//! A title, the report as columns or bars, what was lost if anything was, what the tracing cost, notes, and how to read on.
//! When it does not fit, rows go first, and the last lines say which.

mod columns;
pub mod live;
mod shapes;
pub mod units;

use std::fmt::Write as _;

use serde_json::Value;

use super::{Envelope, Kind, Loss, Overhead, Report, Row, Status, cursor::Cursor};
use shapes::{Is, Line};
use units::{count, decimal, plain, seconds};

/// Text beside the JSON of a tool's answer, unless the caller says otherwise, in bytes.
pub const DEFAULT_BYTES: usize = 4096;
/// The longest note that is shown, in characters.
const LONGEST_NOTE: usize = 400;
/// What is kept for the ending when not even the lines around the report fit.
const ENDING: &str = "\n… the text ends here: it reached its limit (max_bytes)\n";

/// Who reads the text: it names the next step in their words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// A client of the server, which calls tools.
    Client,
    /// A person at a shell, where the execution ends with the command.
    Shell,
}

/// A report as lines, all of them.
pub fn lines(report: &Report) -> Vec<String> {
    shapes::lines(report).into_iter().map(|line| line.text).collect()
}

/// A value of a unit as people read it.
pub fn quantity(value: &Value, unit: &str) -> String {
    units::quantity(value, unit)
}

/// The same with the unit, also where it is a noun.
pub fn measured(value: &Value, unit: &str) -> String {
    let quantity = units::quantity(value, unit);
    match unit {
        "ns" | "bytes" | "ns/s" | "bytes/s" | "" => quantity,
        unit => format!("{quantity} {}", plain(unit, 40)),
    }
}

/// The text beside the JSON of a tool's answer, of at most so many bytes.
pub fn envelope(envelope: &Envelope, most_bytes: usize) -> String {
    envelope_for(Reader::Client, envelope, most_bytes)
}

/// The text of a result for one of its readers, of at most so many bytes.
pub fn envelope_for(reader: Reader, envelope: &Envelope, most_bytes: usize) -> String {
    let head = head(reader, envelope);
    let mut body = body(reader, envelope);
    let whole: usize = body.iter().map(|line| line.text.len() + 1).sum();
    let mut cut = Cut::default();
    let mut foot = foot(reader, envelope, &cut);
    let mut size = whole;
    while head.len() + size + foot.len() > most_bytes
        && let Some(line) = body.pop()
    {
        size -= line.text.len() + 1;
        cut.lines += 1;
        cut.rows += u64::from(line.is == Is::Row);
        cut.events += u64::from(line.is == Is::Event);
        foot = self::foot(reader, envelope, &cut);
    }
    let body: String = body.iter().flat_map(|line| [line.text.as_str(), "\n"]).collect();
    bounded(head + &body + &foot, most_bytes)
}

/// What did not fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cut {
    /// Lines of any kind.
    lines: u64,
    /// Rows of the main report among them.
    rows: u64,
    /// Events beside it among them.
    events: u64,
}

fn head(reader: Reader, envelope: &Envelope) -> String {
    let mut head = title(envelope);
    if reader == Reader::Client {
        let _ = write!(head, " · {}", envelope.execution_id);
    }
    head.push('\n');
    if let Some(error) = &envelope.error {
        let _ = writeln!(head, "error: {}", plain(error, LONGEST_NOTE));
    }
    head
}

fn title(envelope: &Envelope) -> String {
    let window = seconds(envelope.window.seconds);
    let parts = [format!("{} {}", name(envelope), envelope.status.as_str()), window];
    parts.into_iter().chain(in_force(envelope)).collect::<Vec<_>>().join(" · ")
}

fn name(envelope: &Envelope) -> &str {
    match envelope.kind {
        Kind::Probe => &envelope.probe,
        Kind::Script => "bpftrace script",
    }
}

/// Filters and options that change what is seen, each as `name=value`.
fn in_force(envelope: &Envelope) -> Vec<String> {
    let group = |name: &str, row: &Row| {
        let set = row.iter().filter(|(_, value)| !matches!(value, Value::Null | Value::Bool(false)));
        let set: Vec<_> = set.map(|(name, value)| format!("{name}={}", plain(&units::text(value), 64))).collect();
        (!set.is_empty()).then(|| format!("{name} {}", set.join(" ")))
    };
    [group("filter", &envelope.filter), group("options", &envelope.options)].into_iter().flatten().collect()
}

/// The sections of the report, a blank line before each.
fn body(reader: Reader, envelope: &Envelope) -> Vec<Line> {
    let mut sections: Vec<Vec<Line>> = Vec::new();
    sections.extend(filled(envelope.report.as_ref()).map(shapes::lines));
    sections.extend(filled(envelope.events.as_ref()).map(shapes::events));
    sections.extend(envelope.reports.iter().map(|one| shapes::section(&plain(&one.name, 64), &one.report)));
    if sections.is_empty() {
        sections.push(vec![Line::of(nothing(reader, envelope))]);
    }
    sections.into_iter().flat_map(|lines| std::iter::once(Line::of("")).chain(lines)).collect()
}

/// What is said where there are no rows: what was watched, and what that does and does not mean.
fn nothing(reader: Reader, envelope: &Envelope) -> String {
    let total = envelope.report.as_ref().and_then(total).unwrap_or(0);
    let seen = envelope.loss.seen.unwrap_or(0);
    if envelope.status == Status::Failed {
        return format!("No result: it failed after {}.", seconds(envelope.window.seconds));
    }
    if let (None, Some(more)) = (&envelope.report, &envelope.more) {
        return format!("No row has room in this answer; {} are left.", count(more.rows_left));
    }
    if total > 0 && reader == Reader::Shell {
        return format!("{} rows, all of them above.", count(total));
    }
    if total > 0 {
        return format!("No rows on this page: the report has {}, all of them before it.", count(total));
    }
    if seen > 0 {
        let yet = if envelope.status == Status::Running { " yet" } else { "" };
        return format!("No rows, though {} events were seen: none is part of the report{yet}.", count(seen));
    }
    nothing_recorded(envelope)
}

fn nothing_recorded(envelope: &Envelope) -> String {
    let yet = if envelope.status == Status::Running { " yet" } else { "" };
    let in_force = in_force(envelope);
    let under = if in_force.is_empty() { "no filter".to_owned() } else { in_force.join(", ") };
    let length = seconds(envelope.window.seconds);
    match envelope.kind {
        Kind::Probe => format!(
            "Nothing recorded{yet}: {} was attached for {length} with {under}, and no event that it looks for was seen.",
            envelope.probe
        ),
        Kind::Script => format!("Nothing recorded{yet}: the script ran for {length} and printed nothing."),
    }
}

fn foot(reader: Reader, envelope: &Envelope, cut: &Cut) -> String {
    let mut lines = vec![String::new()];
    lines.extend(loss(&envelope.loss));
    lines.extend(envelope.overhead.as_ref().map(overhead));
    lines.extend(envelope.notes.iter().map(|note| format!("note: {}", plain(note, LONGEST_NOTE))));
    lines.extend(more(reader, envelope, cut));
    if lines.len() == 1 { String::new() } else { lines.join("\n") + "\n" }
}

fn loss(loss: &Loss) -> Option<String> {
    let dropped = loss.dropped_total();
    let causes: Vec<_> = loss.dropped.iter().map(|(cause, n)| format!("{} {}", plain(cause, 64), count(*n))).collect();
    let of = loss.seen.map_or_else(String::new, |seen| format!(" of {} seen", count(seen)));
    let lost = (dropped > 0).then(|| format!("lost: {}{of} ({})", count(dropped), causes.join(", ")));
    let missed = loss.missed.filter(|missed| *missed > 0).map(|missed| format!("missed at most {}", count(missed)));
    match (lost, missed) {
        (Some(lost), Some(missed)) => Some(format!("{lost}; {missed}")),
        (lost, missed) => lost.or(missed),
    }
}

/// Without the cost of an event where the sampled window had none.
fn overhead(cost: &Overhead) -> String {
    let each = cost.ns_per_event.map(|ns| format!("{} an event, ", units::duration(ns)));
    let percent = decimal(cost.cpu_percent);
    format!("overhead: {}{percent} % of one CPU ({})", each.unwrap_or_default(), plain(&cost.method, 32))
}

/// What is not shown and the next step that shows it.
fn more(reader: Reader, envelope: &Envelope, cut: &Cut) -> Option<String> {
    let left = envelope.more.as_ref().map_or(0, |more| more.rows_left) + cut.rows + cut.events;
    if left == 0 && cut.lines == 0 {
        return (envelope.status == Status::Running && reader == Reader::Client)
            .then(|| format!("still running: {}", call(envelope, cursor(envelope, cut).as_deref())));
    }
    let what = if left > 0 { format!("{} more rows", count(left)) } else { format!("{} lines cut", count(cut.lines)) };
    Some(match reader {
        Reader::Shell => format!("{what}: --top N shows more rows, --json all of them"),
        Reader::Client => format!("{what}: {}", call(envelope, cursor(envelope, cut).as_deref())),
    })
}

fn call(envelope: &Envelope, cursor: Option<&str>) -> String {
    let mut arguments = Row::new();
    arguments.insert("execution_id".into(), envelope.execution_id.clone().into());
    if let Some(cursor) = cursor {
        arguments.insert("cursor".into(), cursor.into());
    }
    format!("get_result {}", Value::Object(arguments))
}

/// Where to read on: the envelope's cursor, moved back by what the text had no room for.
fn cursor(envelope: &Envelope, cut: &Cut) -> Option<String> {
    let given = envelope.more.as_ref().and_then(|more| more.cursor.clone());
    if cut.rows + cut.events == 0 {
        return given;
    }
    let end = given.as_deref().and_then(Cursor::parse).or_else(|| end(envelope))?;
    Some(end.back(cut.rows, cut.events).to_string())
}

/// The place after all that there is.
fn end(envelope: &Envelope) -> Option<Cursor> {
    let row = total(envelope.report.as_ref()?)?;
    Some(match envelope.report {
        Some(Report::Events(_)) => Cursor::Events(row),
        _ => Cursor::Rows { row, event: envelope.events.as_ref().and_then(total), of: None },
    })
}

fn total(report: &Report) -> Option<u64> {
    match report {
        Report::Table(table) => Some(table.rows_total),
        Report::Histogram(histogram) => Some(histogram.series_total),
        Report::Events(events) => Some(events.rows_total),
        Report::Stacks(_) => None,
    }
}

fn filled(report: Option<&Report>) -> Option<&Report> {
    report.filter(|report| !is_empty(report))
}

fn is_empty(report: &Report) -> bool {
    let others = match report {
        Report::Table(table) => table.others.is_some(),
        Report::Histogram(histogram) => histogram.others.is_some(),
        Report::Events(_) | Report::Stacks(_) => false,
    };
    super::view::rows_of(Some(report)) == 0 && !others
}

fn bounded(mut text: String, most_bytes: usize) -> String {
    if text.len() <= most_bytes {
        return text;
    }
    let room = most_bytes.saturating_sub(ENDING.len());
    let end = (0..=room).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text.truncate(end);
    text + ENDING
}

#[cfg(test)]
mod tests;
