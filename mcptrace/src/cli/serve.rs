//! `mcptrace serve`: the MCP server on stdio.

use std::sync::Arc;

use clap::{ArgMatches, Command};
use tokio::runtime;

use super::Failure;
use crate::{
    executions::{Executions, Limits},
    server::stdio,
};

pub(super) fn define() -> Command {
    Command::new("serve")
        .about("Serve MCP on stdin and stdout (what `mcptrace` without a command does)")
        .after_help("An MCP client starts it. It ends when stdin closes; nothing stays attached. Logs go to stderr.")
}

pub(super) fn run(_matches: &ArgMatches) -> Result<(), Failure> {
    // Two threads: the protocol is light work, and every execution has a thread of its own.
    let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| Failure::failed(format!("cannot start: {error}")))?;
    let served = runtime.block_on(stdio::run(Arc::new(Executions::new(Limits::default()))));
    // A thread may wait for standard input for ever.
    runtime.shutdown_background();
    served.map_err(|error| Failure::failed(error.to_string()))
}
