//! What tracing costs: each probe against no tracing, empty programs, bpftrace and libbpf-tools. `cargo xtask bench` runs this.
//!
//! The document goes to stdout, progress to stderr.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it is a program for a terminal")]

mod cases;
mod document;
mod flood;
mod games;
mod machine;
mod memory;
mod peer;
mod rounds;
mod startup;
mod tracers;
mod variant;
mod workload;

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

use crate::{cases::Case, document::Document};

/// The CPU that user space of the tools keeps to, and the one that workloads keep to.
const TOOLS_CPU: usize = 0;
const WORKLOAD_CPU: usize = 1;

/// Measures what tracing costs; prints a Markdown document.
#[derive(Debug, Parser)]
struct Arguments {
    /// Only these probes, and only what they add to an event
    probes: Vec<String>,
    /// How often everything is measured in turn
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// A few short rounds: shows that it works, not what things cost
    #[arg(long)]
    quick: bool,
    /// The mcptrace program whose memory is measured
    #[arg(long)]
    server: Option<PathBuf>,
    /// Be the process that opens files for so many seconds
    #[arg(long, hide = true)]
    flood_child: Option<u64>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(seconds) = arguments.flood_child {
        println!("{}", flood::child(seconds)?);
        return Ok(());
    }
    ensure!(rustix::process::geteuid().is_root(), "this attaches tracing programs: run it as root (cargo xtask bench)");
    let cases = cases::chosen(&arguments.probes)?;
    machine::keep_to_cpu(TOOLS_CPU).context("cannot keep the tools to one CPU")?;
    let document = if arguments.probes.is_empty() { whole(&arguments, &cases)? } else { costs(&arguments, &cases)? };
    println!("{document}");
    Ok(())
}

/// Start-up comes first: the first call of a process must not find what an earlier measurement has read.
fn whole(arguments: &Arguments, cases: &[&'static Case]) -> Result<Document> {
    let startup = startup::measure(cases, arguments.quick)?;
    let memory = memory::measure(arguments.server.as_deref())?;
    let flood = flood::measure(arguments.quick)?;
    Ok(Document { startup: Some(startup), memory, flood: Some(flood), ..costs(arguments, cases)? })
}

fn costs(arguments: &Arguments, cases: &[&'static Case]) -> Result<Document> {
    let plan = rounds::Plan::new(arguments.rounds, arguments.quick);
    let costs = cases.iter().map(|case| rounds::measure(case, &plan)).collect::<Result<_>>()?;
    Ok(Document { machine: machine::Machine::read(), plan, costs, startup: None, memory: None, flood: None })
}
