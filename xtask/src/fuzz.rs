//! `cargo xtask fuzz`: libFuzzer on all that reads other people's bytes, with the stable compiler and without cargo-fuzz.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use xtask::workspace_root;

use crate::packages::{self, TO_BUILD, TO_FUZZ};
use crate::process;
use crate::toolchain::Host;

/// Counters at each edge, and comparisons told to the fuzzer: what `cargo fuzz` sets too. No sanitizer, which would need a nightly compiler.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1";
/// The longest input, and what one may take.
const LIMITS: [&str; 3] = ["-max_len=16384", "-timeout=10", "-rss_limit_mb=2048"];

/// Options of `cargo xtask fuzz`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    packages: packages::InstallOptions,
    /// How long for each target, in seconds
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    seconds: u32,
    /// Where the fuzzer's chance begins, so that a run can be had again; at random without
    #[arg(long)]
    seed: Option<u32>,
    /// Only this target
    target: Option<String>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let root = workspace_root().join("fuzz");
    let targets = targets(&root.join("targets"))?;
    let wanted: Vec<_> =
        targets.iter().filter(|name| options.target.as_ref().is_none_or(|target| target == *name)).collect();
    ensure!(!wanted.is_empty(), "there is no such target; there are {}", targets.join(", "));
    let needs: Vec<_> = TO_BUILD.iter().chain(TO_FUZZ).collect();
    packages::ensure_installed(&needs, &options.packages)?;
    let triple = Host::find()?.triple;
    build(&root, &triple, options.target.as_deref())?;
    for target in wanted {
        println!("\n=== fuzz {target}");
        let program = workspace_root().join("target/fuzz").join(&triple).join("release").join(target);
        fuzz(&root, &program, target, options)?;
    }
    println!("\nnothing was found");
    Ok(())
}

fn targets(folder: &Path) -> Result<Vec<String>> {
    let files = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let stem = |path: &Path| Some(path.file_stem()?.to_str()?.to_owned());
    let mut names: Vec<_> = files.flatten().filter_map(|file| stem(&file.path())).collect();
    names.sort();
    Ok(names)
}

/// With a target given, build scripts and macros are built without the flags.
fn build(root: &Path, triple: &str, only: Option<&str>) -> Result<()> {
    let mut build = process::cargo();
    build.current_dir(root).env("RUSTFLAGS", FLAGS).args(["build", "--release", "--target", triple, "--target-dir"]);
    build.arg(workspace_root().join("target/fuzz"));
    match only {
        Some(name) => build.args(["--bin", name]),
        None => build.arg("--bins"),
    };
    process::run(&mut build)
}

/// What is found new stays in `target`; what fails is written into `fuzz/artifacts`.
fn fuzz(root: &Path, program: &Path, target: &str, options: &Options) -> Result<()> {
    let found = workspace_root().join("target/fuzz/corpus").join(target);
    let artifacts = root.join("artifacts").join(target);
    for folder in [&found, &artifacts] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let mut fuzzer = Command::new(program);
    fuzzer.arg(&found).arg(root.join("corpus").join(target)).args(LIMITS).arg("-print_final_stats=1");
    fuzzer.args(options.seed.map(|seed| format!("-seed={seed}")));
    fuzzer
        .arg(format!("-max_total_time={}", options.seconds))
        .arg(format!("-artifact_prefix={}/", artifacts.display()));
    process::run(&mut fuzzer).with_context(|| format!("{target}: the input is in {}", artifacts.display()))
}
