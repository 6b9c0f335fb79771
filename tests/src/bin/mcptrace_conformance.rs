//! The program with the fixtures of the conformance suite in its server over HTTP: see `cargo xtask conformance`.

use std::process::ExitCode;

fn main() -> ExitCode {
    mcptrace::cli::run(std::env::args_os())
}
