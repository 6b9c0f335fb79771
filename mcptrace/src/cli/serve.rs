//! `mcptrace serve`: the MCP server, on stdio or over HTTP.

use std::io::Write as _;

use clap::{ArgMatches, Command};

use super::{Failure, config, http, policy, pump};
use crate::{
    bpftrace::launcher,
    config::Config,
    executions::Executions,
    kernel::{loader, privilege, shed},
    memory,
    server::{stdio, tools},
};

pub(super) fn define() -> Command {
    Command::new("serve")
        .about("Serve MCP on stdin and stdout (what `mcptrace` without a command does), or over HTTP")
        .args(policy::arguments())
        .args(http::arguments())
        .after_help("On stdio an MCP client starts it. It ends when stdin closes; nothing stays attached. Without the privilege to trace it \
             passes everything on to `mcptrace daemon`, if that runs and lets this user connect. Over HTTP it ends at SIGTERM or SIGINT. Logs \
             go to stderr.")
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let settings = http::of(matches, policy::of(matches, config::load(matches)?.config));
    let over_http = http::is_asked_for(matches);
    if over_http {
        launcher::start(&settings.launcher());
        // What a low port takes is not needed once it is bound.
        let bound = http::Bound::new(settings.http.clone())?;
        // Before there is a second thread: each has capabilities of its own.
        shed::shed(shed::needed())?;
        return http::run(executions(&settings, true)?, bound);
    }
    if loader::lack_of_privilege().is_some() {
        match pump::connect(&settings.socket.path) {
            Ok(daemon) => return pump::run(daemon),
            Err(why) => say(&why),
        }
    }
    launcher::start(&settings.launcher());
    shed::shed(shed::needed())?;
    // Every client asks for it first. What writes the schemas is not needed again.
    drop(tools::list());
    memory::release_start();
    stdio::run(executions(&settings, false)?).map_err(|error| Failure::failed(chain(&error)))
}

fn executions(settings: &Config, over_http: bool) -> Result<Executions, Failure> {
    Ok(Executions::audited(settings.served_limits(), config::audited(settings, over_http)?))
}

/// Both ways to go on, for whoever reads the log of the client; answers to calls say them too.
fn say(why: &str) {
    let process = privilege::process();
    let grant = process.grant(&process.missing_for_native());
    let _ = writeln!(
        std::io::stderr(),
        "mcptrace: cannot trace: {why}, and this process lacks the privilege. Either start the daemon as root (`mcptrace daemon`, \
         or its systemd unit) and let this user connect, or: {grant}"
    );
}

/// An error with its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
