//! `cargo xtask mutants`: changes the code in small ways, one at a time, and sees whether a unit test fails.

use anyhow::Result;
use xtask::workspace_root;

use crate::packages::{self, TO_BUILD};
use crate::process;
use crate::tools::Tool;

/// What makes the changes, by `.cargo/mutants.toml`.
const MUTANTS: Tool = Tool { name: "cargo-mutants", version: "27.1.0" };

/// What is changed where no file is named: decoders, folds, histograms, accounts of loss, policy, pages, judgements. All of it is pure; what
/// ends processes, removes files or attaches programs is not to be changed at random.
const FILES: &[&str] = &[
    "mcptrace-ebpf/wire/src/*.rs",
    "mcptrace/src/bpftrace/policy/{lexer,memory,parser,rules}.rs",
    "mcptrace/src/bpftrace/record.rs",
    "mcptrace/src/distribution.rs",
    "mcptrace/src/execution/{account,governor}.rs",
    "mcptrace/src/range.rs",
    "mcptrace/src/recorder/kept.rs",
    "mcptrace/src/recorder/store/body.rs",
    "mcptrace/src/report/view.rs",
    "mcptrace/src/store.rs",
    "mcptrace/src/triage/rules/*.rs",
];

/// Options of `cargo xtask mutants`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    packages: packages::InstallOptions,
    /// Only this part of all mutants, such as 0/4
    #[arg(long, value_name = "K/N")]
    shard: Option<String>,
    /// Only list them
    #[arg(long)]
    list: bool,
    /// Files to change instead of those that docs/mutation.md is about; may have wildcards
    #[arg(value_name = "FILE")]
    files: Vec<String>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    packages::ensure_installed(&TO_BUILD.iter().collect::<Vec<_>>(), &options.packages)?;
    let target = workspace_root().join("target/mutants");
    let mut command = MUTANTS.command()?;
    // One folder for all runs, though each changes a copy of its own; and what only debuggers read is not written anew for each mutant.
    command.env("CARGO_TARGET_DIR", &target).env("CARGO_PROFILE_DEV_DEBUG", "false").env("FUZZ_ROUNDS", "500");
    command.args(["--package=mcptrace", "--package=mcptrace-wire", "--output"]).arg(&target);
    let named = options.files.iter().map(String::as_str);
    let files: Vec<_> = if options.files.is_empty() { FILES.to_vec() } else { named.collect() };
    command.args(files.iter().map(|file| format!("--file={file}")));
    command.args(options.shard.iter().map(|shard| format!("--shard={shard}")));
    if options.list {
        command.arg("--list");
    }
    process::run(&mut command)
}
