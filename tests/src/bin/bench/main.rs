//! What tracing costs: each probe against no tracing, empty programs, bpftrace and libbpf-tools. `cargo xtask bench` runs this.
//!
//! The document goes to stdout, progress to stderr.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it is a program for a terminal")]

mod cases;
mod client;
mod document;
mod flood;
mod games;
mod growth;
mod machine;
mod memory;
mod peer;
mod rounds;
mod server;
mod startup;
mod statistics;
mod variant;
mod workload;

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, ValueEnum};

use crate::{cases::Case, document::Document};

/// The CPU that user space of the tools keeps to, and the one that workloads keep to.
const TOOLS_CPU: usize = 0;
const WORKLOAD_CPU: usize = 1;

/// Measures what tracing costs; prints a Markdown document.
#[derive(Debug, Parser)]
struct Arguments {
    /// Only these probes, and only what they add to an event
    probes: Vec<String>,
    /// Only these parts; may be given several times
    #[arg(long = "part", value_enum)]
    parts: Vec<Part>,
    /// How often everything is measured in turn
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// A few short rounds: shows that it works, not what things cost
    #[arg(long)]
    quick: bool,
    /// The mcptrace program whose memory and answers are measured
    #[arg(long)]
    server: Option<PathBuf>,
    /// Be the process that opens files for so many seconds
    #[arg(long, hide = true)]
    flood_child: Option<u64>,
    /// Be a process that wants more memory than it may have
    #[arg(long, hide = true)]
    victim: bool,
}

/// A part of the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// What each probe adds to an event, beside others
    Costs,
    /// How long it takes until programs are attached
    Startup,
    /// What a server holds
    Memory,
    /// How many events a second come through
    Flood,
    /// How fast a server answers many calls
    Server,
    /// What grows with what a server keeps
    Growth,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if arguments.victim {
        games::want_memory();
        return Ok(());
    }
    if let Some(seconds) = arguments.flood_child {
        println!("{}", flood::child(seconds)?);
        return Ok(());
    }
    ensure!(rustix::process::geteuid().is_root(), "this attaches tracing programs: run it as root (cargo xtask bench)");
    let cases = cases::chosen(&arguments.probes)?;
    machine::keep_to_cpu(TOOLS_CPU).context("cannot keep the tools to one CPU")?;
    let document = measure(&arguments, &cases)?;
    println!("{document}");
    Ok(())
}

/// Start-up comes first: the first call of a process must not find what an earlier measurement has read.
fn measure(arguments: &Arguments, cases: &[&'static Case]) -> Result<Document> {
    let quick = arguments.quick;
    let is_asked_for = |part| arguments.parts.contains(&part) || arguments.parts.is_empty() && arguments.is_whole(part);
    let server = || arguments.server.as_deref().context("--server is missing");
    let mut document = Document::new(rounds::Plan::new(arguments.rounds, quick));
    if is_asked_for(Part::Startup) {
        document.startup = Some(startup::measure(cases, quick)?);
    }
    if is_asked_for(Part::Memory) {
        document.memory = Some(memory::measure(server()?, cases)?);
    }
    if is_asked_for(Part::Flood) {
        document.flood = Some(flood::measure(quick)?);
    }
    if is_asked_for(Part::Server) {
        machine::keep_to_no_cpu()?;
        document.server = Some(server::measure(server()?)?);
        machine::keep_to_cpu(TOOLS_CPU)?;
    }
    if is_asked_for(Part::Growth) {
        document.growth = Some(growth::measure(server()?, quick)?);
    }
    if is_asked_for(Part::Costs) {
        let costs = cases.iter().map(|case| rounds::measure(case, &document.plan)).collect::<Result<_>>()?;
        document.costs = Some(costs);
    }
    document.machine = machine::Machine::read();
    Ok(document)
}

impl Arguments {
    /// Whether a part belongs to what is measured when no part is named: all of them, and of some probes their costs.
    fn is_whole(&self, part: Part) -> bool {
        self.probes.is_empty() || part == Part::Costs
    }
}
