//! What goes to stdout.

use std::io::{self, IsTerminal as _, Write as _};

use serde::Serialize;

use super::Failure;

/// Writes text; a reader that has gone away (`| head`) ends the command quietly.
pub(super) fn text(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::reader_gone()),
        other => other.map_err(|error| Failure::failed(format!("cannot write to stdout: {error}"))),
    }
}

/// Writes JSON: indented for a terminal, on one line for a program.
pub(super) fn json(value: &impl Serialize) -> Result<(), Failure> {
    if io::stdout().is_terminal() { written(serde_json::to_string_pretty(value)) } else { json_line(value) }
}

/// Writes JSON on one line, also for a terminal.
pub(super) fn json_line(value: &impl Serialize) -> Result<(), Failure> {
    written(serde_json::to_string(value))
}

fn written(json: serde_json::Result<String>) -> Result<(), Failure> {
    text(&(json.map_err(|error| Failure::failed(error.to_string()))? + "\n"))
}
