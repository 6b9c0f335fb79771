//! The mcptrace program.

use std::{process::ExitCode, sync::Arc};

use mcptrace::{
    executions::{Executions, Limits},
    server::stdio,
};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    log_to_stderr();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("mcptrace: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let served = runtime.block_on(stdio::run(Arc::new(Executions::new(Limits::default()))));
    // A thread may wait for standard input for ever.
    runtime.shutdown_background();
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mcptrace: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Standard output is the protocol.
fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("MCPTRACE_LOG").unwrap_or_else(|_| EnvFilter::new("warn,rmcp=error"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
}
