//! What cargo does not do by itself: `cargo xtask --help`.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it is a program for a terminal")]

mod bench;
mod build_ebpf;
mod checks;
mod conformance;
mod coverage;
mod demo;
mod fuzz;
mod kernels;
mod mcp_client;
mod mutants;
mod package;
mod packages;
mod page;
mod process;
mod soak;
mod test;
mod toolchain;
mod tools;
mod vm;

use std::process::ExitCode;

use clap::Parser;

/// Tasks of the mcptrace workspace.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Task {
    /// Measure what tracing costs, beside other tools, and write docs/performance.md
    Bench(bench::Options),
    /// Compile the kernel programs of mcptrace-ebpf into mcptrace/bpf
    BuildEbpf(build_ebpf::Options),
    /// Install what is missing, then run the official conformance suite against the MCP server
    Conformance(conformance::Options),
    /// Find which lines the tests that need no root run, and write docs/coverage.md
    Coverage(coverage::Options),
    /// Install what is missing, then drive the MCP server through native probes on this kernel
    Demo(demo::Options),
    /// Fuzz all that reads other people's bytes, each target for a while
    Fuzz(fuzz::Options),
    /// Change the code in small ways and see whether a unit test fails
    Mutants(mutants::Options),
    /// Pack the crates and a package for Debian, and try both out
    Package(package::Options),
    /// Use a daemon in every way at once for a long time, and see whether it grows
    Soak(soak::Options),
    /// Install what is missing, then run rustfmt, clippy and all tests
    Test(test::Options),
}

fn main() -> ExitCode {
    let result = match Task::parse() {
        Task::Bench(options) => bench::run(&options),
        Task::BuildEbpf(options) => build_ebpf::run(&options),
        Task::Conformance(options) => conformance::run(&options),
        Task::Coverage(options) => coverage::run(&options),
        Task::Demo(options) => demo::run(&options),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Mutants(options) => mutants::run(&options),
        Task::Package(options) => package::run(&options),
        Task::Soak(options) => soak::run(&options),
        Task::Test(options) => test::run(&options),
    };
    let Err(error) = result else { return ExitCode::SUCCESS };
    eprintln!("error: {error:#}");
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn arguments_are_consistent() {
        super::Task::command().debug_assert();
    }
}
