//! The table of docs/kernels.md, out of what the test of all probes found on each kernel.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::page::Page;

/// The test program that prints a [`Probe`] for each probe.
pub(super) const PROGRAM: &str = "kernel_catalogue";

/// What stands around the part that is written; the rest of the page is by hand.
const BEGIN: &str = "<!-- Written by `cargo xtask test --kernel … --write`: -->\n";
const END: &str = "<!-- Written until here. -->";

/// What a probe does on a kernel.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub(super) struct Probe {
    #[serde(rename = "probe")]
    pub(super) name: String,
    /// `yes`, `in part`, `no`.
    pub(super) runs: String,
    /// Why not wholly, or by what other way.
    pub(super) notes: Vec<String>,
}

/// A kernel and what the probes do on it.
#[derive(Debug)]
pub(super) struct Column {
    pub(super) version: String,
    pub(super) release: String,
    pub(super) probes: Vec<Probe>,
}

/// Puts the table into the page. Refused when a kernel would lose its column.
pub(super) fn write(path: &Path, columns: &[Column]) -> Result<()> {
    let page = Page::read(path, BEGIN, END)?;
    let ran = |version: &&str| columns.iter().any(|column| column.version == **version);
    let lost: Vec<_> = kernels(&page.written).filter(|version| !ran(version)).collect();
    ensure!(lost.is_empty(), "{} has kernels that did not run: --kernel {}", path.display(), lost.join(" --kernel "));
    page.write(&table(columns)?)
}

/// The kernels of a table.
fn kernels(written: &str) -> impl Iterator<Item = &str> {
    let header = written.lines().find_map(|line| line.strip_prefix("| probe |"));
    header.unwrap_or_default().split('|').map(str::trim).filter(|name| !name.is_empty())
}

fn table(columns: &[Column]) -> Result<String> {
    let releases: Vec<_> = columns.iter().map(|column| column.release.as_str()).collect();
    let mut text = format!("Debian's kernels {}:\n\n| probe |", releases.join(", "));
    for column in columns {
        write!(text, " {} |", column.version)?;
    }
    writeln!(text, "\n|---|{}", "---|".repeat(columns.len()))?;
    let mut notes = Vec::new();
    for Probe { name, .. } in &columns.first().context("no kernel")?.probes {
        write!(text, "| `{name}` |")?;
        for column in columns {
            let probe = column.probes.iter().find(|probe| probe.name == *name);
            let probe = probe.with_context(|| format!("{} says nothing of {name}", column.release))?;
            write!(text, " {} |", cell(probe, &mut notes))?;
        }
        text += "\n";
    }
    text += "\n";
    for (number, note) in (1..).zip(&notes) {
        writeln!(text, "{number}. {note}")?;
    }
    Ok(text)
}

/// `in part (3)`; notes get their numbers where they first stand.
fn cell(probe: &Probe, notes: &mut Vec<String>) -> String {
    let numbers: Vec<_> = probe.notes.iter().map(|note| number(note, notes).to_string()).collect();
    match numbers.as_slice() {
        [] => probe.runs.clone(),
        numbers => format!("{} ({})", probe.runs, numbers.join(", ")),
    }
}

fn number(note: &str, notes: &mut Vec<String>) -> usize {
    let at = notes.iter().position(|known| known == note).unwrap_or_else(|| {
        notes.push(note.to_owned());
        notes.len() - 1
    });
    at + 1
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn column(version: &str, probes: &[(&str, &str, &[&str])]) -> Column {
        let probe = |(name, runs, notes): &(&str, &str, &[&str])| Probe {
            name: (*name).to_owned(),
            runs: (*runs).to_owned(),
            notes: notes.iter().map(|note| (*note).to_owned()).collect(),
        };
        Column {
            version: version.into(),
            release: format!("{version}.0-amd64"),
            probes: probes.iter().map(probe).collect(),
        }
    }

    fn page(text: &str) -> tempfile::NamedTempFile {
        let page = tempfile::NamedTempFile::new().unwrap();
        fs::write(page.path(), text).unwrap();
        page
    }

    #[test]
    fn the_table_replaces_the_old_one_and_nothing_else() {
        let page = page(&format!("By hand.\n\n{BEGIN}| probe | 5.10 |\n{END}\n\nAfter.\n"));
        let old = column("5.10", &[("a", "yes", &[]), ("b", "no", &["Lacks y.", "Lacks x."])]);
        let new = column("7.3", &[("a", "in part", &["Lacks x."]), ("b", "yes", &[])]);
        write(page.path(), &[old, new]).unwrap();
        let text = fs::read_to_string(page.path()).unwrap();
        let (table, rest) = text.strip_prefix("By hand.\n\n").unwrap().split_once(END).unwrap();
        assert_eq!(rest, "\n\nAfter.\n");
        let lines: Vec<_> = table.lines().skip(2).filter(|line| !line.is_empty()).collect();
        assert_eq!(
            lines,
            [
                "Debian's kernels 5.10.0-amd64, 7.3.0-amd64:",
                "| probe | 5.10 | 7.3 |",
                "|---|---|---|",
                "| `a` | yes | in part (1) |",
                "| `b` | no (2, 1) | yes |",
                "1. Lacks x.",
                "2. Lacks y."
            ]
        );
    }

    #[test]
    fn no_kernel_loses_its_column_and_no_probe_its_row() {
        let old = page(&format!("{BEGIN}| probe | 5.10 | 6.1 |\n{END}"));
        let error = write(old.path(), &[column("6.1", &[])]).unwrap_err().to_string();
        assert!(error.ends_with("--kernel 5.10"), "{error}");
        let error = table(&[column("6.1", &[("a", "yes", &[])]), column("7.3", &[])]).unwrap_err().to_string();
        assert_eq!(error, "7.3.0-amd64 says nothing of a");
    }
}
