//! Mixed use at full tilt for a long time. `cargo xtask soak` runs this, as root.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it is a program for a terminal")]

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Parser, value_parser};
use mcptrace_tests::soak::{Plan, Round, grown, soak, table};

/// Prints a line for each round, then the whole as a table; fails if anything grew or was left.
#[derive(Debug, Parser)]
struct Arguments {
    /// How long, in minutes
    #[arg(long, default_value_t = 60, value_parser = value_parser!(u32).range(1..=10_080))]
    minutes: u32,
    /// The mcptrace program
    #[arg(long)]
    server: PathBuf,
}

/// Work and the calm after it, some 16 s, make a minute.
const WORK: Duration = Duration::from_secs(44);

#[tokio::main]
async fn main() -> ExitCode {
    let Arguments { minutes, server } = Arguments::parse();
    if !rustix::process::geteuid().is_root() {
        eprintln!("error: this traces the kernel: run it as root (cargo xtask soak)");
        return ExitCode::FAILURE;
    }
    let plan = Plan { program: server, rounds: minutes.max(2), work: WORK };
    let outcome = soak(&plan, |round: &Round| eprintln!("{round}")).await;
    println!("{}\n", table(&outcome.rounds));
    let mut wrong = grown(&outcome.rounds);
    if outcome.exit != Some(0) {
        wrong.push(format!("the daemon ended with {:?}", outcome.exit));
    }
    if !outcome.left.is_empty() {
        wrong.push(format!("eBPF programs still there after its end: {:?}", outcome.left));
    }
    if !outcome.groups.is_empty() {
        wrong.push(format!("control groups left: {:?}", outcome.groups));
    }
    println!("{} eBPF programs came and went, {} are left.", outcome.programs, outcome.left.len());
    if wrong.is_empty() {
        println!("Nothing grew.");
        return ExitCode::SUCCESS;
    }
    println!("{}", wrong.join("\n"));
    ExitCode::FAILURE
}
