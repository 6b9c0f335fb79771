//! `get_result`: reads any execution. One of the original's four: for scripts its fields and its text are as there.

use std::{sync::Arc, time::Duration};

use schemars::{JsonSchema, schema_for};
use serde::{Deserialize, Serialize};

use super::{Effect, Outcome, Row};
use crate::{
    bpftrace::PRINTED,
    execution::{Execution, Page, script::ScriptSource},
    report::{Envelope, Kind, Loss, NamedReport, Report, Status, cursor::Cursor, view},
    server::{
        bounds::{self, DEFAULT_BYTES, Wanted, size},
        call::{Call, Reply, Waited},
        error::ToolError,
        schema,
    },
};

const NAME: &str = "get_result";

pub(super) const ROW: Row = Row {
    name: NAME,
    title: "Read an execution",
    description: "Reads what an execution found so far, running or ended. Use it for background runs, for scripts, and to read on with \
        the cursor of a reply. wait_seconds waits for the end, or with a cursor of events (e0: the first) for the next ones, which is better \
        than asking again and again. Not for starting anything.",
    input: || schema_for!(Arguments),
    // The envelope stands in full in the schema of run_probe.
    output: || schema::outline(schema::of_result::<Reading>()),
    effect: Effect::Reads,
    call: |call| Box::pin(run(call)),
};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Arguments {
    /// From run_probe or exec_program
    execution_id: String,
    /// First row, or first line of a script's output
    #[serde(default)]
    offset: u64,
    /// Rows or lines at most
    #[serde(default = "thousand")]
    #[schemars(range(min = 1, max = 10_000))]
    limit: u64,
    /// From `more` of the reply before; instead of offset
    #[serde(default)]
    cursor: String,
    /// Wait at most so long
    #[serde(default)]
    #[schemars(range(min = 0, max = 50))]
    wait_seconds: f64,
    /// Size of the whole reply at most
    #[serde(default = "bytes")]
    #[schemars(range(min = 1024, max = 1_048_576))]
    max_bytes: u64,
}

fn thousand() -> u64 {
    1000
}

fn bytes() -> u64 {
    DEFAULT_BYTES
}

/// The envelope; for scripts with the original's fields first.
#[derive(Serialize, JsonSchema)]
struct Reading {
    #[serde(flatten)]
    original: Option<Original>,
    #[serde(flatten)]
    envelope: Envelope,
}

/// The original's fields, exactly; `execution_id` and `status` are the envelope's.
#[derive(Clone, Serialize, JsonSchema)]
struct Original {
    /// Scripts: lines of output so far; of those after the limit only the number is kept
    lines_total: u64,
    /// Scripts: how many of them are in this reply
    lines_returned: u64,
    /// Scripts: the lines
    output: Vec<String>,
    /// Scripts: whether there are lines after these
    has_more: bool,
    /// Scripts: why it failed, or null
    #[schemars(schema_with = "schema::text_or_null")]
    error_message: Option<String>,
    /// Scripts: seconds it ran, or null while it runs
    #[schemars(schema_with = "schema::number_or_null")]
    duration: Option<f64>,
}

/// The original's answer, whole; beside it what a reader of the text alone must know to not misread it.
#[derive(Serialize)]
struct OriginalAnswer<'a> {
    execution_id: &'a str,
    status: &'static str,
    #[serde(flatten)]
    original: &'a Original,
    #[serde(skip_serializing_if = "Option::is_none")]
    loss: Option<&'a Loss>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    notes: &'a [String],
}

async fn run(mut call: Call) -> Outcome {
    let arguments: Arguments = call.arguments()?;
    let execution = call.find(&arguments.execution_id, NAME)?;
    let part = Part::of(&arguments)?;
    let most = Duration::from_secs_f64(arguments.wait_seconds);
    let goes_on = match part.cursor {
        Some(Cursor::Events(place)) => call.wait_for_event(&execution, place, most).await,
        _ => call.wait(&execution, most).await != Waited::Cancelled,
    };
    if !goes_on {
        return Err(ToolError::new("cancelled", "the call was cancelled; the execution goes on"));
    }
    reply(&call, &execution, part).await
}

/// Which part of a result is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    cursor: Option<Cursor>,
    /// The first row or line.
    from: u64,
    /// The first event.
    event: u64,
    rows: u64,
    bytes: u64,
}

impl Part {
    /// From the beginning.
    pub(super) fn first(rows: u64, bytes: u64) -> Self {
        Self { cursor: None, from: 0, event: 0, rows, bytes }
    }

    fn of(arguments: &Arguments) -> Result<Self, ToolError> {
        let Arguments { offset, limit, cursor, max_bytes, .. } = arguments;
        let cursor = match (cursor.as_str(), offset) {
            ("", _) => None,
            (cursor, 0) => Some(Cursor::parse(cursor).ok_or_else(|| bad_cursor(cursor, "is not one"))?),
            _ => return Err(ToolError::new("invalid_cursor", "`cursor` and `offset` exclude each other: give one")),
        };
        let (from, event) = match cursor {
            None => (*offset, *offset),
            Some(Cursor::Events(event)) => (0, event),
            Some(Cursor::Rows { row, event, .. }) => (row, event.unwrap_or(0)),
        };
        Ok(Self { cursor, from, event, rows: *limit, bytes: *max_bytes })
    }
}

fn bad_cursor(cursor: &str, why: &str) -> ToolError {
    let cursor = crate::text::untrusted(cursor.as_bytes(), 60);
    ToolError::new("invalid_cursor", format!("`cursor` {why}: `{cursor}`"))
        .remedy("pass `more.cursor` of the reply before, unchanged, or leave it out to start at the beginning")
}

/// What an execution found, as its kind of reply.
pub(super) async fn reply(call: &Call, execution: &Arc<Execution>, part: Part) -> Outcome {
    match execution.identity.kind {
        Kind::Script => script_reply(call, execution, part).await,
        Kind::Probe => probe_reply(call, execution, part).await,
    }
}

async fn probe_reply(call: &Call, execution: &Arc<Execution>, part: Part) -> Outcome {
    let mut of = None;
    if let Some(cursor) = part.cursor {
        check_kind(call, execution, cursor).await?;
        of = cursor.of();
    }
    let Part { from, event, rows, bytes, .. } = part;
    let wanted = Wanted { from, event, rows: rows as usize, bytes: bytes as usize, of };
    bounds::reply(call, execution, wanted).await
}

/// A cursor of one kind of report must not be taken for a place in another.
async fn check_kind(call: &Call, execution: &Arc<Execution>, cursor: Cursor) -> Result<(), ToolError> {
    let page = Page { limit: 1, max_bytes: usize::MAX, ..Page::default() };
    let envelope = call.envelope(execution, page).await?;
    let is_right = match (&envelope.report, cursor) {
        (Some(Report::Events(_)), cursor) => matches!(cursor, Cursor::Events(_)),
        (_, Cursor::Rows { event, .. }) => event.is_none() || envelope.events.is_some(),
        (_, Cursor::Events(_)) => false,
    };
    if is_right { Ok(()) } else { Err(bad_cursor(&cursor.to_string(), "belongs to another execution")) }
}

async fn script_reply(call: &Call, execution: &Arc<Execution>, part: Part) -> Outcome {
    if let Some(cursor) = part.cursor.filter(|cursor| !matches!(cursor, Cursor::Rows { event: None, .. })) {
        return Err(bad_cursor(&cursor.to_string(), "belongs to another execution"));
    }
    let maker = call.room(part.bytes as usize).await?;
    let execution = Arc::clone(execution);
    let made = call.settled(move |_| script_result(&execution, part)).await?;
    drop(maker);
    made
}

fn script_result(execution: &Execution, part: Part) -> Outcome {
    let bytes = part.bytes as usize;
    let page = Page { limit: usize::MAX, max_bytes: usize::MAX, ..Page::default() };
    let mut envelope = execution.envelope(&page);
    // Lines are in the text and in the structure: a third each, and a third for what the reports say beyond the lines.
    let original = original(&envelope, &printed(execution, &envelope), part, bytes / 3);
    let text = original_text(&envelope, &original)?;
    let room = bytes.saturating_sub(text.len() + size(&original));
    envelope.reports.retain(|report| report.name != PRINTED);
    fit_reports(&mut envelope, room);
    Reply::with_text(text, &Reading { original: Some(original), envelope })
}

/// What a script printed.
struct Printed {
    /// The lines that are kept.
    lines: Vec<String>,
    /// How many there were.
    total: u64,
}

/// What a script printed, as text. A result that was kept has it in its reports only, and its maps there alone; of what was left out there a
/// record is a line.
fn printed(execution: &Execution, envelope: &Envelope) -> Printed {
    if let Some(source) = execution.source().as_any().downcast_ref::<ScriptSource>() {
        let found = source.found();
        return found.map_or(Printed { lines: Vec::new(), total: 0 }, |found| Printed {
            lines: found.lines,
            total: found.lines_total,
        });
    }
    let Some(Report::Events(events)) =
        envelope.reports.iter().find(|report| report.name == PRINTED).map(|report| &report.report)
    else {
        return Printed { lines: Vec::new(), total: 0 };
    };
    let texts = events.rows.iter().filter_map(|row| row.get("text")?.as_str());
    let lines: Vec<String> = texts.flat_map(str::lines).map(str::to_owned).collect();
    let total = lines.len() as u64 + events.rows_total.saturating_sub(events.rows.len() as u64);
    Printed { lines, total }
}

fn original(envelope: &Envelope, printed: &Printed, part: Part, bytes: usize) -> Original {
    let lines = &printed.lines;
    let start = usize::try_from(part.from).unwrap_or(usize::MAX).min(lines.len());
    let end = start.saturating_add(part.rows as usize).min(lines.len());
    let output = within(&lines[start..end], bytes);
    let running = envelope.status == Status::Running;
    Original {
        lines_total: printed.total,
        lines_returned: output.len() as u64,
        has_more: start + output.len() < lines.len(),
        output,
        error_message: envelope.error.clone(),
        duration: (!running).then_some(envelope.window.seconds),
    }
}

/// As many lines as have room as JSON, but at least one: else a reader would never come past it.
fn within(lines: &[String], bytes: usize) -> Vec<String> {
    let mut used = 0;
    let fits = |line: &&String| {
        let first = used == 0;
        used += size(line) + 1;
        first || used <= bytes
    };
    lines.iter().take_while(fits).cloned().collect()
}

fn original_text(envelope: &Envelope, original: &Original) -> Result<String, ToolError> {
    let answer = OriginalAnswer {
        execution_id: &envelope.execution_id,
        status: envelope.status.as_str(),
        original,
        loss: Some(&envelope.loss).filter(|loss| loss.any()),
        notes: &envelope.notes,
    };
    serde_json::to_string(&answer).map_err(|error| ToolError::new("internal", error.to_string()))
}

/// Shortens the longest reports until all have room, and says what was left out.
fn fit_reports(envelope: &mut Envelope, room: usize) {
    let before = rows(&envelope.reports);
    let mut limit = before;
    while size(envelope) > room && limit > 0 {
        limit /= 2;
        for report in &mut envelope.reports {
            report.report = view::page(&report.report, 0, limit).0;
        }
    }
    let left = before - rows(&envelope.reports);
    if left > 0 {
        envelope.notes.push(format!("{left} rows of reports are left out to fit max_bytes: ask with a larger one"));
    }
    if size(envelope) > room {
        envelope.reports.clear();
    }
}

fn rows(reports: &[NamedReport]) -> usize {
    reports.iter().map(|report| view::rows_of(Some(&report.report))).sum()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn what_is_no_cursor_is_refused_with_what_to_pass() {
        for bad in [
            "r20s",
            "r20e",
            "r20s3e4",
            "e20s3",
            "r20sx",
            "r1s2s3",
            "e",
            "x5",
            "5",
            "e-1",
            "e+1",
            "r1.5",
            "é5",
            "e99999999999999999999",
            "r5 ",
        ] {
            let arguments = serde_json::json!({"execution_id": "exec_1", "cursor": bad});
            let error = Part::of(&serde_json::from_value(arguments).unwrap()).unwrap_err();
            assert_eq!(error.category, "invalid_cursor", "{bad}");
            assert!(error.message.contains(bad) && error.remedy.is_some());
        }
    }

    #[test]
    fn the_text_of_a_script_says_what_was_lost_and_cut() {
        let bare = serde_json::json!({
            "execution_id": "exec_1", "kind": "script", "status": "stopped", "loss": { "dropped": {} },
            "window": { "start": "2026-01-02T03:04:05.678Z", "seconds": 0.05 } });
        let mut envelope: Envelope = serde_json::from_value(bare).unwrap();
        let nothing = Printed { lines: Vec::new(), total: 0 };
        let original = original(&envelope, &nothing, Part::first(1000, 1024), 1024);
        assert!(!original_text(&envelope, &original).unwrap().contains("notes"));
        envelope.loss.dropped.insert("buffer_full".into(), 7);
        envelope.notes.push("it ended before bpftrace had attached; nothing was recorded".into());
        let text: Value = serde_json::from_str(&original_text(&envelope, &original).unwrap()).unwrap();
        assert_eq!(text["loss"]["dropped"]["buffer_full"], 7);
        assert_eq!(text["notes"][0], envelope.notes[0]);
        assert_eq!(text["lines_total"], 0);
    }

    #[test]
    fn lines_fit_but_one_always_comes() {
        let lines: Vec<String> = (0..10).map(|number| format!("line {number}")).collect();
        assert_eq!(within(&lines, 22).len(), 2);
        assert_eq!(within(&lines, 0).len(), 1);
        assert_eq!(within(&[], 0).len(), 0);
    }
}
