//! What a guest prints, read line by line.

use std::time::{Duration, Instant};

use super::catalogue::Probe;
use crate::checks::{Check, Counts};

/// Before the name of a program that begins.
pub(super) const BEGINS: &str = "guest: begins ";

/// Before the status of a program that ended.
pub(super) const ENDS: &str = "guest: ended with ";

/// Before what the catalogue found out about a probe, as JSON.
const PROBE: &str = "catalogue: ";

/// The results of one guest.
pub(super) struct Log {
    version: String,
    /// Programs that have not begun yet.
    awaited: Vec<String>,
    running: Option<(String, Counts, Instant)>,
    pub(super) checks: Vec<Check>,
    pub(super) probes: Vec<Probe>,
}

impl Log {
    pub(super) fn new<'a>(version: &str, programs: impl Iterator<Item = &'a str>) -> Self {
        let awaited = programs.map(str::to_owned).collect();
        Self { version: version.to_owned(), awaited, running: None, checks: Vec::new(), probes: Vec::new() }
    }

    pub(super) fn take(&mut self, line: &str) {
        if let Some(name) = line.strip_prefix(BEGINS) {
            self.awaited.retain(|awaited| awaited != name);
            self.running = Some((name.to_owned(), Counts::default(), Instant::now()));
        } else if let Some(status) = line.strip_prefix(ENDS) {
            self.program_ended(status == "0");
        } else if let Some(counts) = Counts::of_line(line) {
            if let Some((_, sum, _)) = &mut self.running {
                *sum = sum.plus(counts);
            }
        // The name of the test stands before what the test prints first.
        } else if let Some((_, json)) = line.split_once(PROBE) {
            self.probes.extend(serde_json::from_str::<Probe>(json));
        }
    }

    /// The guest is gone: what did not come to its end has failed.
    pub(super) fn end(&mut self) {
        self.program_ended(false);
        for name in std::mem::take(&mut self.awaited) {
            self.checks.push(self.check(&name, Counts { failed: 1, ..Counts::default() }, Duration::ZERO));
        }
    }

    fn program_ended(&mut self, well: bool) {
        let Some((name, mut counts, began)) = self.running.take() else { return };
        if !well && counts.failed == 0 {
            counts.failed = 1;
        }
        self.checks.push(self.check(&name, counts, began.elapsed()));
    }

    fn check(&self, name: &str, counts: Counts, took: Duration) -> Check {
        Check { name: format!("{} {name}", self.version), counts, took }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log_of(lines: &[&str]) -> Log {
        let mut log = Log::new("6.1", ["a", "b"].into_iter());
        for line in lines {
            log.take(line);
        }
        log.end();
        log
    }

    #[test]
    fn each_program_has_its_counts() {
        let result = "test result: FAILED. 3 passed; 1 failed; 2 ignored; 0 measured";
        let log =
            log_of(&["guest: begins a", result, "guest: ended with 101", "guest: begins b", "guest: ended with 0"]);
        let counts: Vec<_> = log.checks.iter().map(|check| (check.name.as_str(), check.counts)).collect();
        let first = Counts { passed: 3, failed: 1, ignored: 2 };
        assert_eq!(counts, [("6.1 a", first), ("6.1 b", Counts::default())]);
    }

    #[test]
    fn what_did_not_end_or_not_even_begin_has_failed() {
        let log = log_of(&["guest: begins a", "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured"]);
        assert_eq!(log.checks.iter().map(|check| check.counts.failed).collect::<Vec<_>>(), [1, 1]);
    }

    #[test]
    fn what_the_catalogue_says_is_kept() {
        let log = log_of(&[
            "test every_probe ... catalogue: {\"probe\":\"x\",\"runs\":\"yes\",\"notes\":[]}",
            "catalogue: none",
        ]);
        assert_eq!(log.probes, [Probe { name: "x".into(), runs: "yes".into(), notes: Vec::new() }]);
    }
}
