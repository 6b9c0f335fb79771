//! An execution of before: its result as it was kept in the history, read like that of any other.

use std::{
    any::Any,
    sync::{Arc, Mutex, OnceLock},
    time::{Duration, SystemTime},
};

use tokio::sync::watch;

use super::{Control, Execution, Identity, Outcome, Page, Snapshot, Source};
use crate::{
    audit::Trail,
    clock,
    principal::Caller,
    report::{Envelope, Events, Loss, Report},
};

/// A row of events has more bytes of JSON than this: more rows are not made than can have room.
const LEAST_ROW: usize = 64;

/// The result of an execution that has ended, in this process or one before.
pub struct KeptSource {
    envelope: Envelope,
    folded: OnceLock<Arc<str>>,
}

impl Execution {
    /// What a reader keeps of it: everything, as far as it has room in so many bytes of JSON. What has none is said in the notes.
    pub fn to_keep(&self, most_bytes: usize) -> Envelope {
        let page = Page { from: 0, event: 0, limit: most_bytes / LEAST_ROW, max_bytes: most_bytes };
        let mut envelope = self.envelope(&page);
        if let Some(more) = envelope.more.take() {
            envelope.notes.push(format!("{} rows were not kept: there was no room for them", more.rows_left));
        }
        envelope
    }

    /// An execution whose result was kept.
    pub fn kept(by: Caller, envelope: Envelope) -> Arc<Self> {
        let started_at = clock::moment(&envelope.window.start).unwrap_or(SystemTime::UNIX_EPOCH);
        let at = envelope.window.end.as_deref().and_then(clock::moment).unwrap_or(started_at);
        let outcome =
            Outcome { status: envelope.status, error: envelope.error.clone(), at, seconds: envelope.window.seconds };
        let identity = Identity {
            id: envelope.execution_id.clone(),
            kind: envelope.kind,
            probe: envelope.probe.clone(),
            filter: envelope.filter.clone(),
            options: envelope.options.clone(),
            by,
        };
        let length = Duration::try_from_secs_f64(envelope.window.seconds).unwrap_or_default();
        Arc::new(Self {
            identity,
            started_at,
            control: Control::new(length),
            source: Box::new(KeptSource { envelope, folded: OnceLock::new() }),
            begun: Mutex::default(),
            outcome: Mutex::new(Some(outcome)),
            ended: watch::Sender::new(true),
            trail: Trail::default(),
        })
    }
}

impl Source for KeptSource {
    fn run(&self, _control: &Control) -> Result<(), String> {
        Err("it has ended before".to_owned())
    }

    fn snapshot(&self, _seconds: f64, page: &Page) -> Snapshot {
        let Envelope { report, events, reports, loss, overhead, notes, .. } = &self.envelope;
        let (reports, loss, overhead) = (reports.clone(), loss.clone(), overhead.clone());
        let mut found = Snapshot { reports, loss, overhead, notes: notes.clone(), ..Snapshot::default() };
        found.notes.push("read from the history, where it was kept when it ended".to_owned());
        let events = if matches!(report, Some(Report::Events(_))) {
            report
        } else {
            found.report.clone_from(report);
            events
        };
        if let Some(Report::Events(events)) = events {
            let (events, next, left) = page_of(events, page);
            (found.events, found.events_next, found.events_left) = (Some(events), Some(next), left);
        }
        found
    }

    fn folded(&self, _seconds: f64) -> Option<(Arc<str>, String)> {
        let Some(Report::Stacks(stacks)) = &self.envelope.report else { return None };
        let folded = self.folded.get_or_init(|| {
            let line = |frames: &[String], value| format!("{} {value}\n", frames.join(";"));
            stacks.stacks.iter().map(|stack| line(&stack.frames, stack.value)).collect::<String>().into()
        });
        Some((Arc::clone(folded), stacks.unit.clone()))
    }

    fn loss(&self) -> Loss {
        self.envelope.loss.clone()
    }

    /// It is read when it is asked for, and held by nobody.
    fn bytes(&self) -> usize {
        0
    }

    fn release(&self) {}

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The rows of a page, the place after them, and how many there are after it. A place counts events from the first that was seen, so those
/// that were let go count.
fn page_of(events: &Events, page: &Page) -> (Events, u64, u64) {
    let first = events.rows_evicted;
    let from = page.event.max(first);
    let skipped = usize::try_from(from - first).unwrap_or(usize::MAX).min(events.rows.len());
    let rows: Vec<_> = events.rows[skipped..].iter().take(page.limit).cloned().collect();
    let next = first + (skipped + rows.len()) as u64;
    let left = (events.rows.len() - skipped - rows.len()) as u64;
    let Events { fields, rows_total, rows_evicted, .. } = events;
    let (rows_total, rows_evicted) = (*rows_total, *rows_evicted);
    (Events { fields: fields.clone(), rows, rows_total, rows_evicted }, next, left)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        principal::Principal,
        report::{Status, cursor::Cursor},
    };

    fn envelope(report: &serde_json::Value) -> Envelope {
        let bare = json!({
            "execution_id": "exec_1", "kind": "probe", "probe": "file_opens", "status": "completed", "report": report,
            "loss": { "seen": 7, "delivered": 7, "dropped": {} },
            "window": { "start": "2026-01-02T03:04:05.678Z", "end": "2026-01-02T03:04:07.678Z", "seconds": 2.0 } });
        serde_json::from_value(bare).unwrap()
    }

    #[test]
    fn events_are_read_page_by_page_as_from_a_running_one() {
        let rows: Vec<_> = (3..7).map(|number| json!({ "pid": number })).collect();
        let events = json!({ "shape": "events", "fields": [{ "name": "pid" }], "rows": rows, "rows_total": 7, "rows_evicted": 3 });
        let kept = Execution::kept(Principal::cli().into(), envelope(&events));
        let page = kept.envelope(&Page { from: 0, event: 0, limit: 3, max_bytes: usize::MAX });
        assert_eq!((page.status, &page.window.start[..]), (Status::Completed, "2026-01-02T03:04:05.678Z"));
        assert_eq!(page.window.end.as_deref(), Some("2026-01-02T03:04:07.678Z"));
        let more = page.more.unwrap();
        assert_eq!((more.rows_left, more.cursor.as_deref()), (1, Some("e6")));
        let rest = kept.envelope(&Page { from: 0, event: 6, limit: 3, max_bytes: usize::MAX });
        let Some(Report::Events(events)) = rest.report else { panic!() };
        assert_eq!((events.rows[0]["pid"].as_u64(), events.rows.len(), rest.more), (Some(6), 1, None));
    }

    #[test]
    fn events_beside_a_report_are_read_to_the_last_and_once_each() {
        let number = |number: u64| json!({ "number": number });
        let rows = |numbers: std::ops::Range<u64>| numbers.map(number).collect::<Vec<_>>();
        let mut envelope = envelope(
            &json!({ "shape": "table", "key": ["number"], "columns": [], "rows": rows(0..3), "rows_total": 3 }),
        );
        let events = json!({ "shape": "events", "fields": [{ "name": "number" }], "rows": rows(2..9), "rows_total": 9, "rows_evicted": 2 });
        envelope.events = serde_json::from_value(events).unwrap();
        let kept = Execution::kept(Principal::cli().into(), envelope);
        let (mut page, mut left, mut rows, mut events) = (Page { limit: 2, ..Page::default() }, Vec::new(), 0, 0);
        loop {
            let found = kept.envelope(&page);
            let (Some(Report::Table(table)), Some(Report::Events(beside))) = (found.report, found.events) else {
                panic!()
            };
            rows += table.rows.len();
            let numbers: Vec<_> = beside.rows.iter().map(|row| row["number"].as_u64().unwrap()).collect();
            assert!(numbers.iter().copied().eq((2 + events..).take(numbers.len())), "{numbers:?} after {events}");
            events += numbers.len() as u64;
            let Some(more) = found.more else { break };
            left.push((more.rows_left, more.cursor.clone().unwrap()));
            let cursor = Cursor::parse(&more.cursor.unwrap());
            let Some(Cursor::Rows { row, event: Some(event), .. }) = cursor else { panic!("{cursor:?}") };
            (page.from, page.event) = (row, event);
        }
        assert_eq!((rows, events), (3, 7));
        let left: Vec<_> = left.iter().map(|(left, cursor)| (*left, cursor.as_str())).collect();
        assert_eq!(left, [(6, "r2e4"), (3, "r3e6"), (1, "r3e8")]);
    }

    #[test]
    fn stacks_are_folded_again() {
        let stacks = json!({ "shape": "stacks", "unit": "samples", "total": 5, "unknown_percent": 0.0, "frames": [],
            "stacks": [{ "frames": ["main", "work"], "value": 3 }, { "frames": ["main"], "value": 2 }] });
        let kept = Execution::kept(Principal::cli().into(), envelope(&stacks));
        assert_eq!(kept.folded().as_deref(), Some("main;work 3\nmain 2\n"));
        assert!(kept.flamegraph().unwrap().contains("<svg"));
    }
}
