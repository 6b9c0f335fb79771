//! `cargo xtask coverage`: which lines the tests that need no root run, by module, into docs/coverage.md.

mod lines;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use xtask::workspace_root;

use crate::packages::{self, TO_BUILD};
use crate::page::Page;
use crate::process;
use crate::toolchain::{self, Host};
use crate::tools::Tool;

use lines::Lines;

/// What builds with counters, runs the tests and gathers what they counted. It builds in a folder of its own, `target/llvm-cov-target`.
const LLVM_COV: Tool = Tool { name: "cargo-llvm-cov", version: "0.9.1" };
/// What is tested: the library, and the records that it shares with the kernel programs.
const PACKAGES: [&str; 2] = ["mcptrace", "mcptrace-wire"];
/// Their unit and integration tests, and of the tests of the built program those of the history, which need no kernel either.
const TESTS: [&str; 8] = [
    "--package=mcptrace-tests",
    "--lib",
    "--test=links",
    "--test=manifest",
    "--test=security",
    "--test=history",
    "--test=history_file",
    "--test=history_sql",
];
/// Where their sources are, and what stands in the table before the name of a module.
const SOURCES: [(&str, &str); 2] = [("mcptrace/src/", ""), ("mcptrace-ebpf/wire/src/", "wire/")];
/// Modules and files that need nothing but their input and files of their own: decoders, folds, policy, accounts, answers.
const PURE: &[&str] = &[
    "wire",
    "bpftrace/collect",
    "bpftrace/error",
    "bpftrace/policy",
    "bpftrace/record",
    "bpftrace/reports",
    "bpftrace/text",
    "clock",
    "config",
    "distribution",
    "execution/account",
    "execution/governor",
    "principal",
    "probes",
    "recorder/governor",
    "recorder/history",
    "recorder/kept",
    "recorder/metrics",
    "recorder/store",
    "recorder/tick",
    "report",
    "scripts",
    "secrets",
    "server/arguments",
    "server/schema",
    "signals",
    "store",
    "suggest",
    "text",
    "triage",
];

const PAGE: &str = "docs/coverage.md";
const BEGIN: &str = "<!-- Written by `cargo xtask coverage`: -->\n";
const END: &str = "<!-- Written until here. -->";

/// Options of `cargo xtask coverage`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    packages: packages::InstallOptions,
    /// Also list every file, and its lines that no test runs
    #[arg(long)]
    files: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    packages::ensure_installed(&TO_BUILD.iter().collect::<Vec<_>>(), &options.packages)?;
    let root = workspace_root();
    let page = Page::read(&root.join(PAGE), BEGIN, END)?;
    let host = Host::find()?;
    let trace = root.join("target/coverage.info");
    measure(&host, &trace)?;
    let trace = fs::read_to_string(&trace).with_context(|| trace.display().to_string())?;
    let files = lines::read(&trace, &root)?;
    if options.files {
        for (path, lines) in &files {
            println!("{path}: {lines}");
        }
    }
    let day = process::output(Command::new("date").args(["-u", "+%F"]))?;
    page.write(&table(&files, &format!("{}, {}", day.trim(), host.version))?)
}

/// Runs the tests and writes which lines they ran.
fn measure(host: &Host, trace: &Path) -> Result<()> {
    let mut command = LLVM_COV.command()?;
    command.args(PACKAGES.map(|package| format!("--package={package}"))).args(TESTS);
    command.args(["--lcov", "--output-path"]).arg(trace);
    if !host.sysroot.join("lib/rustlib").join(&host.triple).join("bin/llvm-cov").is_file() {
        command.env("LLVM_COV", llvm_program("llvm-cov", host)?);
        command.env("LLVM_PROFDATA", llvm_program("llvm-profdata", host)?);
    }
    process::run(&mut command)
}

fn llvm_program(name: &str, host: &Host) -> Result<PathBuf> {
    let major = host.llvm_major;
    toolchain::llvm_program(name, major).with_context(|| {
        format!(
            "no {name} of LLVM {major}, the compiler's, found. Either of these brings it:
  with rustup:     rustup component add llvm-tools
  Debian, Ubuntu:  apt-get install llvm-{major}"
        )
    })
}

/// The table of all modules, pure ones first.
fn table(files: &BTreeMap<String, Lines>, made: &str) -> Result<String> {
    ensure!(!files.is_empty(), "no file of {} was measured", PACKAGES.join(" and "));
    let mut text = format!("{made}.\n");
    let (pure, of_system): (Vec<_>, Vec<_>) = files.iter().partition(|(path, _)| is_pure(path));
    for (title, files) in [("Pure modules", pure), ("Modules whose work is with the system", of_system)] {
        let mut modules: BTreeMap<&str, Vec<&Lines>> = BTreeMap::new();
        for (path, lines) in &files {
            modules.entry(module(path)).or_default().push(lines);
        }
        write!(text, "\n## {title}\n\n| module | files | lines | run | % |\n|---|---:|---:|---:|---:|\n")?;
        for (module, lines) in &modules {
            row(&mut text, &format!("`{module}`"), lines)?;
        }
        row(&mut text, "**all**", &files.iter().map(|(_, lines)| *lines).collect::<Vec<_>>())?;
    }
    Ok(text)
}

fn row(text: &mut String, name: &str, files: &[&Lines]) -> Result<()> {
    let (lines, run) =
        files.iter().fold((0, 0), |(all, run), lines| (all + lines.all, run + lines.all - lines.missed.len()));
    let percent = if lines == 0 { 100.0 } else { run as f64 / lines as f64 * 100.0 };
    writeln!(text, "| {name} | {} | {lines} | {run} | {percent:.1} |", files.len())?;
    Ok(())
}

fn is_pure(path: &str) -> bool {
    PURE.iter().any(|part| path == format!("{part}.rs") || path.starts_with(&format!("{part}/")))
}

/// The module of a file as the table tells them apart: its folder, but `report` for what is below it, and the file itself at the top.
fn module(path: &str) -> &str {
    const TOGETHER: [&str; 6] = ["cli", "kernel", "probes", "report", "server", "triage"];
    let stem = path.trim_end_matches(".rs");
    let (top, _) = stem.split_once('/').unwrap_or((stem, ""));
    if TOGETHER.contains(&top) {
        return top;
    }
    stem.rsplit_once('/').map_or(stem, |(folder, _)| folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_row_for_each_module_and_sums() {
        let lines = |all, missed: &[usize]| Lines { all, missed: missed.to_vec() };
        let files = BTreeMap::from([
            ("report.rs".to_owned(), lines(10, &[])),
            ("report/text/units.rs".to_owned(), lines(30, &[3, 4])),
            ("wire/net.rs".to_owned(), lines(0, &[])),
            ("kernel/loader.rs".to_owned(), lines(5, &[1, 2, 3, 4, 5])),
        ]);
        let text = table(&files, "2026-01-02, rustc 1.95.0").unwrap();
        assert!(text.starts_with("2026-01-02, rustc 1.95.0.\n"), "{text}");
        let (pure, of_system) = text.split_once("## Modules whose work is with the system").unwrap();
        for row in
            ["| `report` | 2 | 40 | 38 | 95.0 |", "| `wire` | 1 | 0 | 0 | 100.0 |", "| **all** | 3 | 40 | 38 | 95.0 |"]
        {
            assert!(pure.contains(row), "{row}: {text}");
        }
        assert!(of_system.contains("| `kernel` | 1 | 5 | 0 | 0.0 |"), "{text}");
        assert!(table(&BTreeMap::new(), "").is_err(), "an empty table would look like a result");
    }

    #[test]
    fn every_pure_module_is_there() {
        for part in PURE.iter().filter(|part| **part != "wire") {
            let path = workspace_root().join("mcptrace/src").join(part);
            assert!(path.is_dir() || path.with_extension("rs").is_file(), "{part}");
        }
    }
}
