//! What was checked and what came of it: the summary of `cargo xtask test`.

use std::fmt;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::process;

/// What was checked so far.
#[derive(Debug, Default)]
pub(crate) struct Checks(Vec<Check>);

#[derive(Debug)]
pub(crate) struct Check {
    pub(crate) name: String,
    pub(crate) counts: Counts,
    pub(crate) took: Duration,
}

/// Tests by outcome. A step that is not made of tests is one that passed or failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
    pub(crate) ignored: u32,
}

impl Checks {
    /// A command that passes or fails as a whole.
    pub(crate) fn step(&mut self, name: &str, command: &mut Command) {
        self.record(name, || {
            process::run(command)?;
            Ok(Counts { passed: 1, ..Counts::default() })
        });
    }

    /// A command that runs tests of libtest.
    pub(crate) fn tests(&mut self, name: &str, command: &mut Command) {
        self.record(name, || run_tests(command));
    }

    pub(crate) fn add(&mut self, check: Check) {
        self.0.push(check);
    }

    pub(crate) fn record(&mut self, name: &str, check: impl FnOnce() -> Result<Counts>) {
        println!("\n=== {name}");
        let start = Instant::now();
        let counts = check().unwrap_or_else(|error| {
            eprintln!("error: {name}: {error:#}");
            Counts { failed: 1, ..Counts::default() }
        });
        self.0.push(Check { name: name.to_owned(), counts, took: start.elapsed() });
    }

    /// Prints the summary, whose last line is for machines.
    pub(crate) fn finish(self, filter: Option<&str>) -> Result<()> {
        println!("\n=== summary");
        for check in &self.0 {
            println!("{check}");
        }
        let total = self.0.iter().fold(Counts::default(), |sum, check| sum.plus(check.counts));
        println!("{} passed, {} failed", total.passed, total.failed);
        ensure!(total.failed == 0, "not everything passed");
        ensure!(total.passed > 0, "no test has a name with {:?} in it", filter.unwrap_or_default());
        Ok(())
    }
}

impl fmt::Display for Check {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, counts: Counts { passed, failed, ignored }, took } = self;
        let verdict = if *failed == 0 { "ok" } else { "FAILED" };
        let seconds = took.as_secs_f64();
        write!(
            formatter,
            "{verdict:7} {name:28} {passed:5} passed {failed:4} failed {ignored:4} ignored {seconds:7.1} s"
        )
    }
}

impl Counts {
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            ignored: self.ignored + other.ignored,
        }
    }

    /// Reads `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
    pub(crate) fn of_line(line: &str) -> Option<Self> {
        let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let count = |name: &str| {
            let part = counts.split(';').find_map(|part| part.trim().strip_suffix(name))?;
            part.trim().parse().ok()
        };
        Some(Self { passed: count("passed")?, failed: count("failed")?, ignored: count("ignored")? })
    }
}

/// Runs tests, shows what they print, and adds up their results. A program that ends badly without saying which test failed
/// counts as one that failed.
fn run_tests(command: &mut Command) -> Result<Counts> {
    let name = process::name(command);
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start {name}"))?;
    let stdout = child.stdout.take().context("no stdout")?;
    let mut total = Counts::default();
    for line in BufReader::new(stdout).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        println!("{line}");
        total = total.plus(Counts::of_line(&line).unwrap_or_default());
    }
    let status = child.wait()?;
    if !status.success() && total.failed == 0 {
        eprintln!("error: {name}: {status}");
        total.failed = 1;
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read_from_what_libtest_prints() {
        let line = "test result: FAILED. 3 passed; 1 failed; 2 ignored; 0 measured; 4 filtered out; finished in 0.11s";
        assert_eq!(Counts::of_line(line), Some(Counts { passed: 3, failed: 1, ignored: 2 }));
        assert_eq!(Counts::of_line("test a ... ok"), None);
    }

    #[test]
    fn a_program_that_crashes_counts_as_failed() {
        let counts = run_tests(
            Command::new("sh").args(["-c", "echo 'test result: ok. 2 passed; 0 failed; 0 ignored'; exit 101"]),
        );
        assert_eq!(counts.unwrap(), Counts { passed: 2, failed: 1, ignored: 0 });
        assert!(run_tests(&mut Command::new("no-such-program")).is_err());
    }

    #[test]
    fn a_failure_or_nothing_at_all_is_an_error() {
        let finish = |passed, failed| {
            let counts = Counts { passed, failed, ignored: 0 };
            Checks(vec![Check { name: "x".into(), counts, took: Duration::ZERO }]).finish(Some("filter"))
        };
        assert!(finish(1, 0).is_ok());
        assert!(finish(1, 1).is_err());
        assert!(finish(0, 0).unwrap_err().to_string().contains("filter"));
    }
}
