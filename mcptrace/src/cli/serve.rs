//! `mcptrace serve`: the MCP server, on stdio or over HTTP.

use clap::{Arg, ArgMatches, Command};

use super::{Failure, http, policy};
use crate::{executions::Limits, server::stdio};

pub(super) fn define() -> Command {
    Command::new("serve")
        .about("Serve MCP on stdin and stdout (what `mcptrace` without a command does), or over HTTP")
        .args(policy::arguments())
        .arg(budget_argument())
        .args(http::arguments())
        .after_help(
            "On stdio an MCP client starts it. It ends when stdin closes; nothing stays attached. Over HTTP it ends at SIGTERM or \
             SIGINT. Logs go to stderr.",
        )
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let limits = Limits { scripts: policy::of(matches), budget: budget(matches), ..Limits::default() };
    match http::of(matches)? {
        Some(options) => http::run(limits, &options),
        None => stdio::run(limits).map_err(|error| Failure::failed(chain(&error))),
    }
}

/// What an execution may cost.
pub(super) fn budget_argument() -> Arg {
    Arg::new("execution-budget")
        .long("execution-budget")
        .value_name("PERCENT")
        .env("MCPTRACE_EXECUTION_BUDGET")
        .value_parser(percent)
        .default_value("5")
        .help("What an execution may cost, in percent of one CPU, before it is detached; 0 for no bound")
}

/// What the argument says; `None` for no bound.
pub(super) fn budget(matches: &ArgMatches) -> Option<f64> {
    matches.get_one::<f64>("execution-budget").copied().filter(|percent| *percent > 0.0)
}

fn percent(text: &str) -> Result<f64, String> {
    let percent = text.parse::<f64>().ok().filter(|percent| (0.0..=100_000.0).contains(percent));
    percent.ok_or_else(|| "a number of percent, 0 or more".to_owned())
}

/// An error with its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
