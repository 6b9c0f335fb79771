//! How large an answer may be: text and structured content together.

use std::sync::Arc;

use serde::Serialize;

use super::{
    call::{Call, Reply},
    error::ToolError,
};
use crate::{
    execution::{Execution, Page},
    report::{Envelope, Report, cursor::Cursor, text, view},
};

/// What an answer has at most unless the call says otherwise, in bytes.
pub(super) const DEFAULT_BYTES: u64 = 24 * 1024;
/// What the longest of lists and descriptions may take, in bytes.
pub(super) const LIST_BYTES: usize = 64 * 1024;
/// What the text of an answer has at most, in bytes.
pub(super) const TEXT_BYTES: usize = 4096;
/// How often an envelope that turned out too large is made anew.
const TRIES: usize = 3;

/// The rows that a caller wants, and the room for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The first row.
    pub(super) from: u64,
    /// The first event.
    pub(super) event: u64,
    /// Rows at most.
    pub(super) rows: usize,
    /// Bytes at most.
    pub(super) bytes: usize,
    /// Which report a cursor belongs to, if it was kept.
    pub(super) of: Option<u64>,
}

/// An execution as a reply that is no larger than wanted.
pub(super) async fn reply(call: &Call, execution: &Arc<Execution>, wanted: Wanted) -> Result<Reply, ToolError> {
    let maker = call.room(wanted.bytes).await?;
    let execution = Arc::clone(execution);
    let made = call.settled(move |_| make(&execution, wanted)).await?;
    drop(maker);
    made
}

/// Blocks: what is large takes a while.
fn make(execution: &Execution, wanted: Wanted) -> Result<Reply, ToolError> {
    let text_bytes = TEXT_BYTES.min(wanted.bytes / 3);
    let room = wanted.bytes - text_bytes;
    let mut aim = room;
    let mut of = wanted.of;
    let read = |aim: usize, of| execution.read(&wanted.page(aim), of).ok_or_else(let_go);
    let mut envelope = read(aim, of)?;
    for _ in 0..TRIES {
        let excess = size(&envelope).saturating_sub(room);
        if excess == 0 {
            break;
        }
        // The fitting stops a little late, because what says that something was left out comes after it.
        aim = aim.saturating_sub(excess + 64);
        of = of.or_else(|| kept(envelope.more.as_ref()?.cursor.as_deref()?));
        envelope = read(aim, of)?;
    }
    if size(&envelope) > room {
        let of = of.or_else(|| kept(envelope.more.as_ref()?.cursor.as_deref()?));
        strip(&mut envelope, wanted, of);
    }
    Reply::with_text(text::envelope(&envelope, text_bytes), &envelope)
}

/// Which report a cursor belongs to.
fn kept(cursor: &str) -> Option<u64> {
    Cursor::parse(cursor)?.of()
}

fn let_go() -> ToolError {
    ToolError::new(
        "invalid_cursor",
        "the report that `cursor` belongs to is not kept any more: others have begun to read it since",
    )
    .remedy("leave the cursor out: the report begins anew")
}

/// A start as a reply: there is nothing to tell yet of what it finds.
pub(super) async fn started(call: &Call, execution: &Arc<Execution>) -> Result<Reply, ToolError> {
    let page = Page { limit: 1, max_bytes: DEFAULT_BYTES as usize, ..Page::default() };
    let mut envelope = call.envelope(execution, page).await?;
    envelope.report = None;
    envelope.events = None;
    envelope.more = None;
    Reply::with_text(text::envelope(&envelope, TEXT_BYTES), &envelope)
}

impl Wanted {
    fn page(self, max_bytes: usize) -> Page {
        Page { from: self.from, event: self.event, limit: self.rows, max_bytes }
    }
}

/// What is left when not even one row has room: what happened, what was lost, and that the rows are still to be read.
fn strip(envelope: &mut Envelope, wanted: Wanted, of: Option<u64>) {
    let [shown, beside] = [&envelope.report, &envelope.events].map(|rows| view::rows_of(rows.as_ref()) as u64);
    let shown = shown + beside;
    if shown > 0 {
        let cursor = match &envelope.report {
            Some(Report::Events(_)) => Cursor::Events(wanted.event),
            _ => Cursor::Rows { row: wanted.from, event: envelope.events.as_ref().map(|_| wanted.event), of },
        };
        let more = envelope.more.get_or_insert_default();
        more.rows_left += shown;
        more.cursor = Some(cursor.to_string());
    }
    envelope.report = None;
    envelope.events = None;
    envelope.reports.clear();
    envelope.overhead = None;
    envelope.notes = vec!["max_bytes leaves no room for a row: call get_result with more".into()];
}

/// A text, cut at a line if it is too long for an answer; says so.
pub(super) fn cut(mut text: String) -> String {
    if text.len() > TEXT_BYTES {
        let end = (0..=TEXT_BYTES).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(text[..end].rfind('\n').unwrap_or(end));
        text.push_str("\n… the rest is in the structured content");
    }
    text
}

/// The length of something as JSON, in bytes.
pub(super) fn size(value: &impl Serialize) -> usize {
    serde_json::to_string(value).map_or(0, |text| text.len())
}
