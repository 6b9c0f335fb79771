//! What cargo does not do by itself: `cargo xtask --help`.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it is a program for a terminal")]

mod build_ebpf;
mod process;
mod toolchain;

use std::process::ExitCode;

use clap::Parser;

/// Tasks of the mcptrace workspace.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Task {
    /// Compile the kernel programs of mcptrace-ebpf into mcptrace/bpf
    BuildEbpf(build_ebpf::Options),
}

fn main() -> ExitCode {
    let result = match Task::parse() {
        Task::BuildEbpf(options) => build_ebpf::run(&options),
    };
    let Err(error) = result else { return ExitCode::SUCCESS };
    eprintln!("error: {error:#}");
    ExitCode::FAILURE
}
