//! One line on the terminal that says how far a run is. Nothing where stderr is no terminal.

use std::io::{self, IsTerminal as _, Write as _};

use terminal_size::{Width, terminal_size_of};

use crate::{
    execution::Execution,
    report::{Loss, text::units},
};

/// The line; gone when dropped.
#[derive(Debug)]
pub(super) struct Progress {
    shown: bool,
}

impl Progress {
    /// A line, if it is wanted and somebody can see it.
    pub(super) fn new(wanted: bool) -> Self {
        Self { shown: wanted && io::stderr().is_terminal() }
    }

    /// Redraws it.
    pub(super) fn show(&self, execution: &Execution) {
        if self.shown {
            let line =
                line(&execution.identity.probe, execution.seconds(), execution.planned_seconds(), &execution.loss());
            let columns = terminal_size_of(io::stderr()).map_or(80, |(Width(columns), _)| usize::from(columns));
            // A line that is broken could not be drawn over.
            let line: String = line.chars().take(columns.saturating_sub(1)).collect();
            draw(&format!("\r{line}\x1b[K"));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            draw("\r\x1b[K");
        }
    }
}

fn line(probe: &str, seconds: f64, planned: f64, loss: &Loss) -> String {
    let seen = units::count(loss.seen.unwrap_or(0));
    let lost = units::count(loss.dropped_total());
    format!("{probe}: {:.1} of {planned:.1} s, {seen} seen, {lost} lost", seconds.min(planned))
}

/// Writes to the terminal of stderr.
pub(super) fn draw(text: &str) {
    let mut stderr = io::stderr().lock();
    // A terminal that has gone away does not end the run.
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_it_is_and_what_was_lost() {
        let loss = Loss { seen: Some(1234), dropped: [("buffer_full".into(), 7)].into(), ..Loss::default() };
        assert_eq!(line("p", 1.26, 5.0, &loss), "p: 1.3 of 5.0 s, 1,234 seen, 7 lost");
    }
}
