//! `mcptrace serve`: the MCP server, on stdio or over HTTP.

use clap::{ArgMatches, Command};

use super::{Failure, config, http, policy};
use crate::{audit::Audit, executions::Executions, server::stdio};

pub(super) fn define() -> Command {
    Command::new("serve")
        .about("Serve MCP on stdin and stdout (what `mcptrace` without a command does), or over HTTP")
        .args(policy::arguments())
        .args(http::arguments())
        .after_help(
            "On stdio an MCP client starts it. It ends when stdin closes; nothing stays attached. Over HTTP it ends at SIGTERM or \
             SIGINT. Logs go to stderr.",
        )
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let config = http::of(matches, policy::of(matches, config::load(matches)?.config));
    let over_http = http::is_asked_for(matches);
    let executions = Executions::audited(config.served_limits(), Audit::new(&config.audit(over_http)));
    if over_http {
        return http::run(executions, config.http);
    }
    stdio::run(executions).map_err(|error| Failure::failed(chain(&error)))
}

/// An error with its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
