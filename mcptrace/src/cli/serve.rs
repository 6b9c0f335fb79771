//! `mcptrace serve`: the MCP server on stdio.

use clap::{ArgMatches, Command};

use super::Failure;

pub(super) fn define() -> Command {
    Command::new("serve")
        .about("Serve MCP on stdin and stdout (what `mcptrace` without a command does)")
        .after_help("An MCP client starts it. It ends when stdin closes; nothing stays attached. Logs go to stderr.")
}

pub(super) fn run(_matches: &ArgMatches) -> Result<(), Failure> {
    Err(Failure::failed("the MCP server is not in this build"))
}
