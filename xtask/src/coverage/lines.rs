//! What LLVM tells of lines, without those of tests.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::SOURCES;

/// Files that are tests as a whole.
const TESTS: [&str; 3] = ["tests.rs", "fuzz.rs", "fuzzing.rs"];

/// The lines of a file that have code and are no tests.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Lines {
    pub(super) all: usize,
    /// Those that no test runs.
    pub(super) missed: Vec<usize>,
}

/// Reads a trace in the format of lcov. Files are named as they stand in the table.
pub(super) fn read(trace: &str, root: &Path) -> Result<BTreeMap<String, Lines>> {
    let mut files = BTreeMap::new();
    for record in trace.split("end_of_record") {
        let Some(path) = record.lines().find_map(|line| line.strip_prefix("SF:")) else { continue };
        let Some(name) = name(Path::new(path), root) else { continue };
        let source = fs::read_to_string(path).with_context(|| path.to_owned())?;
        files.insert(name, of_record(record, &source).with_context(|| path.to_owned())?);
    }
    Ok(files)
}

/// None for what is not measured: other packages, and tests.
fn name(path: &Path, root: &Path) -> Option<String> {
    let path = path.strip_prefix(root).ok()?.to_str()?;
    let (name, prefix) = SOURCES.iter().find_map(|(folder, prefix)| Some((path.strip_prefix(folder)?, prefix)))?;
    let file = name.rsplit('/').next()?;
    (!TESTS.contains(&file)).then(|| format!("{prefix}{name}"))
}

fn of_record(record: &str, source: &str) -> Result<Lines> {
    let tests = lines_of_tests(source);
    let mut lines = Lines::default();
    for entry in record.lines().filter_map(|line| line.strip_prefix("DA:")) {
        let mut parts = entry.split(',');
        let mut number = || parts.next()?.parse::<u64>().ok();
        let (line, count) = number().zip(number()).with_context(|| format!("DA:{entry}"))?;
        let line = usize::try_from(line)?;
        if tests.get(line - 1) == Some(&true) {
            continue;
        }
        lines.all += 1;
        if count == 0 {
            lines.missed.push(line);
        }
    }
    Ok(lines)
}

/// For each line of a file that rustfmt has formatted, whether it belongs to an item that only tests have: up to the line that ends
/// it, which is indented as its first one is.
fn lines_of_tests(source: &str) -> Vec<bool> {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut end_at = None;
    source
        .lines()
        .map(|line| {
            if end_at.is_none() && line.trim() == "#[cfg(test)]" {
                end_at = Some(indent(line));
                return true;
            }
            let Some(depth) = end_at else { return false };
            let ends = line.trim_end().ends_with([';', '}']);
            if ends && indent(line) == depth {
                end_at = None;
            }
            true
        })
        .collect()
}

impl fmt::Display for Lines {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} of {} lines are run", self.all - self.missed.len(), self.all)?;
        if !self.missed.is_empty() {
            write!(formatter, "; not")?;
        }
        self.missed.iter().try_for_each(|line| write!(formatter, " {line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "\
use a::b;
#[cfg(test)]
mod fuzz;

fn counted() {
    if x {
        y();
    }
}

#[cfg(test)]
impl Thing {
    fn for_tests() {}
}

fn after() {}

#[cfg(test)]
mod tests {
    #[test]
    fn it_works() {
        counted();
    }
}
";

    #[test]
    fn lines_of_tests_are_left_out_and_others_are_not() {
        let tests = lines_of_tests(SOURCE);
        let rest: Vec<_> = (1..).zip(&tests).filter(|(_, test)| !**test).map(|(line, _)| line).collect();
        assert_eq!(rest, [1, 4, 5, 6, 7, 8, 9, 10, 15, 16, 17]);
    }

    #[test]
    fn lines_are_counted_once_and_those_that_nobody_ran_are_named() {
        let record = "SF:x.rs\nFN:5,counted\nDA:5,3\nDA:6,3\nDA:7,0\nDA:9,3\nDA:16,0\nDA:13,0\nDA:21,1\nLF:7\n";
        let lines = of_record(record, SOURCE).unwrap();
        assert_eq!(lines, Lines { all: 5, missed: vec![7, 16] });
        assert_eq!(lines.to_string(), "3 of 5 lines are run; not 7 16");
        assert!(of_record("DA:5,many", SOURCE).is_err());
    }

    #[test]
    fn only_sources_of_the_two_packages_are_measured() {
        let name = |path: &str| name(Path::new(path), Path::new("/w"));
        assert_eq!(name("/w/mcptrace/src/report/text.rs").as_deref(), Some("report/text.rs"));
        assert_eq!(name("/w/mcptrace-ebpf/wire/src/net.rs").as_deref(), Some("wire/net.rs"));
        for other in ["/w/xtask/src/lib.rs", "/w/mcptrace/src/bpftrace/policy/tests.rs", "/elsewhere/mcptrace/src/a.rs"]
        {
            assert_eq!(name(other), None, "{other}");
        }
    }
}
