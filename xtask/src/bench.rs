//! `cargo xtask bench`: what tracing costs, beside other tools, written to docs/performance.md.

mod recorder;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result};
use xtask::workspace_root;

use crate::packages::{self, TO_BUILD, TO_TEST};
use crate::process::{self, cargo};

/// What this writes, seen from the workspace.
const DOCUMENT: &str = "docs/performance.md";
/// The part of the document that people write stands between these.
const NOTES_BEGIN: &str = "<!-- notes: written by hand, kept by `cargo xtask bench` -->";
const NOTES_END: &str = "<!-- end of notes -->";

/// Options of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    packages: packages::InstallOptions,
    /// Only these probes, and only what they add to an event; or `recorder`, and which loads (redis, cpu, threads, build): what the
    /// recorder costs programs; or `latency`: how soon watchers are told. Prints and writes nothing
    probes: Vec<String>,
    /// Only this part, which is put into the document in place of the old one; may be given several times
    #[arg(long = "part", value_name = "costs|startup|memory|flood|server|growth")]
    parts: Vec<String>,
    /// How often everything is measured in turn
    #[arg(long)]
    rounds: Option<u32>,
    /// A few short rounds that show that it works; prints and writes nothing
    #[arg(long)]
    quick: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let needs: Vec<_> = TO_BUILD.iter().chain(TO_TEST).collect();
    packages::ensure_installed(&needs, &options.packages)?;
    match options.probes.as_slice() {
        [one, loads @ ..] if one == "recorder" => {
            return recorder::run(|| build(&[]), loads, options.rounds.unwrap_or(9));
        }
        [one] if one == "latency" => return latency(&build(&["latency"])?),
        _ => {}
    }
    let programs = build(&["bench"])?;
    packages::become_able("attaching programs needs root")?;
    let measured = measure(&programs, options)?;
    println!("{measured}");
    if options.quick || !options.probes.is_empty() {
        eprintln!("xtask: {DOCUMENT} is left as it is: this was not the whole benchmark");
        return Ok(());
    }
    write(&workspace_root().join(DOCUMENT), &measured)
}

/// The folder of the release programs, which are built as the user who runs this: mcptrace, and those of the tests' package.
fn build(others: &[&str]) -> Result<PathBuf> {
    let mut build = cargo();
    build.args(["build", "--release", "--target-dir", "target", "--package", "mcptrace", "--bin", "mcptrace"]);
    if !others.is_empty() {
        build.args(["--package", "mcptrace-tests"]).args(others.iter().flat_map(|other| ["--bin", *other]));
    }
    process::run(&mut build)?;
    Ok(workspace_root().join("target/release"))
}

fn latency(programs: &Path) -> Result<()> {
    process::run(packages::as_root(&programs.join("latency").to_string_lossy()).arg(programs.join("mcptrace")))
}

fn measure(programs: &Path, options: &Options) -> Result<String> {
    let mut bench = packages::as_root(&programs.join("bench").to_string_lossy());
    bench.arg("--server").arg(programs.join("mcptrace")).args(&options.probes);
    if options.quick {
        bench.arg("--quick");
    }
    for part in &options.parts {
        bench.args(["--part", part]);
    }
    if let Some(rounds) = options.rounds {
        bench.args(["--rounds", &rounds.to_string()]);
    }
    process::output(bench.stderr(Stdio::inherit()))
}

fn write(path: &Path, measured: &str) -> Result<()> {
    let old = fs::read_to_string(path).unwrap_or_default();
    fs::write(path, document(measured, &old)).with_context(|| format!("cannot write {}", path.display()))?;
    eprintln!("xtask: wrote {}", path.display());
    Ok(())
}

/// The parts of the document, in its order; the program that measures prints each between two comments.
const PARTS: [&str; 6] = ["costs", "startup", "memory", "flood", "server", "growth"];
const PART_END: &str = "<!-- end of part -->";

/// The new document: parts that were measured, those that were not as they stood, and what people have written into the old one.
fn document(measured: &str, old: &str) -> String {
    let parts: Vec<&str> = PARTS.iter().filter_map(|name| part(measured, name).or_else(|| part(old, name))).collect();
    format!("{HEAD}\n{}\n\n{NOTES_BEGIN}\n{}\n{NOTES_END}\n", parts.join("\n\n"), notes(old))
}

/// A part with the comments around it.
fn part<'text>(text: &'text str, name: &str) -> Option<&'text str> {
    let from = text.find(&format!("<!-- part: {name} -->"))?;
    let length = text[from..].find(PART_END)? + PART_END.len();
    Some(&text[from..from + length])
}

fn notes(old: &str) -> &str {
    let notes = old.split_once(NOTES_BEGIN).and_then(|(_, rest)| rest.split_once(NOTES_END));
    notes.map_or("## What was tried\n", |(notes, _)| notes).trim()
}

const HEAD: &str = "\
# What tracing costs

`cargo xtask bench` measures this and writes this page; only the notes at its end are written by hand. Absolute numbers belong to the
machine that each part names, and other load on it moves them; all variants are measured in turn within one run, so their ratios hold better.
To reproduce: `cargo xtask bench` (root, about 20 minutes on a quiet machine), `cargo xtask bench --part costs` for a part, or
`cargo xtask bench PROBE` for one probe without writing this page.
";

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(name: &str, number: u32) -> String {
        format!("<!-- part: {name} -->\n## Of {name}\n\n{number}\n{PART_END}\n")
    }

    #[test]
    fn notes_outlive_a_new_run() {
        let first = document(&measured("costs", 11), "");
        let written = first.replace("## What was tried", "## What was tried\n\nAll sorts.");
        let second = document(&measured("costs", 22), &written);
        assert!(second.contains("22\n") && !second.contains("11\n"), "{second}");
        assert_eq!(second.matches("All sorts.").count(), 1);
        assert_eq!(document(&measured("costs", 22), &second), second);
    }

    #[test]
    fn a_part_takes_the_place_of_the_old_one_and_leaves_the_others() {
        let all = document(&(measured("costs", 11) + &measured("memory", 33)), "");
        let second = document(&measured("memory", 44), &all);
        assert!(second.contains("11\n") && second.contains("44\n") && !second.contains("33\n"), "{second}");
        assert!(second.find("Of costs") < second.find("Of memory"), "{second}");
    }
}
