//! `mcptrace serve`: the MCP server on stdio.

use clap::{ArgMatches, Command};

use super::{Failure, config, policy};
use crate::{audit::Audit, executions::Executions, server::stdio};

pub(super) fn define() -> Command {
    Command::new("serve")
        .about("Serve MCP on stdin and stdout (what `mcptrace` without a command does)")
        .args(policy::arguments())
        .after_help("An MCP client starts it. It ends when stdin closes; nothing stays attached. Logs go to stderr.")
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let config = policy::of(matches, config::load(matches)?.config);
    let executions = Executions::audited(config.limits(), Audit::new(&config.audit(false)));
    stdio::run(executions).map_err(|error| Failure::failed(chain(&error)))
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
