//! `run --follow`: events as they come, or the report drawn anew every second, on a pipe only if it has changed.

use std::{
    io::{self, IsTerminal as _},
    time::{Duration, Instant},
};

use terminal_size::{Height, Width};

use super::{Failure, output};
use crate::{
    execution::{Execution, Page},
    report::{
        Events, Report,
        text::{Reader, envelope_for, live::Live},
    },
};

/// How soon it looks again where events came, and where none did.
const BUSY: Duration = Duration::from_millis(5);
const IDLE: Duration = Duration::from_millis(20);
/// How often a report is drawn anew.
const REDRAW: Duration = Duration::from_secs(1);
/// Events of one look, at most.
const MOST_EVENTS: usize = 10_000;
/// Bounds of what one look prints, in bytes.
const MOST_BYTES: usize = 16 << 20;

/// What has been shown so far.
pub(super) struct Watch {
    json: bool,
    rows: usize,
    live: Live,
    /// The place of the next event in the sequence.
    place: u64,
    drawn: Instant,
    /// What was drawn last.
    last: Option<Report>,
    /// Lines on the terminal that the next drawing replaces.
    height: usize,
}

impl Watch {
    /// Shows so many rows of a report that is drawn anew.
    pub(super) fn new(json: bool, rows: usize) -> Self {
        Self { json, rows, live: Live::default(), place: 0, drawn: Instant::now(), last: None, height: 0 }
    }

    /// Shows what is new; when to look again.
    pub(super) fn show(&mut self, execution: &Execution) -> Result<Duration, Failure> {
        let page = Page { from: 0, event: self.place, limit: MOST_EVENTS, max_bytes: MOST_BYTES };
        if let Some((events, next)) = execution.source().events(&page) {
            self.events(&events, next)?;
            return Ok(if events.rows.is_empty() { IDLE } else { BUSY });
        }
        if self.drawn.elapsed() >= REDRAW {
            self.drawn = Instant::now();
            self.redraw(execution)?;
        }
        Ok(REDRAW.saturating_sub(self.drawn.elapsed()))
    }

    /// Shows what came last; where a reader of the whole would go on.
    pub(super) fn finish(&mut self, execution: &Execution) -> Result<u64, Failure> {
        while self.show(execution)? == BUSY {}
        self.erase()?;
        Ok(self.place)
    }

    fn events(&mut self, events: &Events, next: u64) -> Result<(), Failure> {
        let skipped = next.saturating_sub(events.rows.len() as u64).saturating_sub(self.place);
        self.place = next;
        if skipped > 0 {
            warn(&format!("{skipped} events fell out of the window before they could be shown"));
        }
        if self.json {
            let lines: Result<Vec<_>, _> = events.rows.iter().map(serde_json::to_string).collect();
            let lines = lines.map_err(|error| Failure::failed(error.to_string()))?;
            print(&lines)
        } else {
            print(&self.live.lines(events))
        }
    }

    fn redraw(&mut self, execution: &Execution) -> Result<(), Failure> {
        let envelope = execution.envelope(&Page { from: 0, event: 0, limit: self.rows, max_bytes: MOST_BYTES });
        let is_terminal = io::stdout().is_terminal();
        if !is_terminal && self.last == envelope.report {
            return Ok(());
        }
        self.last.clone_from(&envelope.report);
        if self.json {
            let line = serde_json::to_string(&envelope).map_err(|error| Failure::failed(error.to_string()))?;
            return print(&[line]);
        }
        self.erase()?;
        let mut text = envelope_for(Reader::Shell, &envelope, MOST_BYTES);
        if let Some((Width(columns), Height(lines))) = terminal_size::terminal_size_of(io::stdout()) {
            text = within(&text, columns.into(), lines.into());
            self.height = text.lines().count() + 1;
        }
        output::text(&(text + "\n"))
    }

    fn erase(&mut self) -> Result<(), Failure> {
        let height = std::mem::take(&mut self.height);
        if height == 0 { Ok(()) } else { output::text(&format!("\x1b[{height}A\x1b[J")) }
    }
}

/// What a window of so many columns and lines has room for, with the cursor below it: a line that is broken or scrolled away could not be
/// drawn over.
fn within(text: &str, columns: usize, lines: usize) -> String {
    let room = lines.saturating_sub(2).max(1);
    let cut = |line: &str| line.chars().take(columns).collect::<String>();
    let mut shown: Vec<_> = text.lines().take(room).map(cut).collect();
    let left = text.lines().count().saturating_sub(room);
    if let Some(last) = shown.last_mut().filter(|_| left > 0) {
        *last = cut(&format!("… {} more lines: a higher window or --top shows them", left + 1));
    }
    shown.join("\n") + "\n"
}

fn print(lines: &[String]) -> Result<(), Failure> {
    if lines.is_empty() { Ok(()) } else { output::text(&(lines.join("\n") + "\n")) }
}

/// To people, beside what programs read.
#[expect(clippy::print_stderr, reason = "it is meant for the terminal")]
fn warn(line: &str) {
    eprintln!("mcptrace: {line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_drawn_over_fits_into_the_window() {
        assert_eq!(within("a\nb\n", 80, 24), "a\nb\n");
        assert_eq!(within("ab…cd\n", 3, 24), "ab…\n");
        assert_eq!(within("a\nb\nc\nd\n", 9, 5), "a\nb\n… 2 more \n");
        assert_eq!(within("a\nb\n", 9, 0), "… 2 more \n");
    }
}
