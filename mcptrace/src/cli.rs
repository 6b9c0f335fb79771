//! The commands for people. Each is a file of its own and a row in [`VERBS`].

mod config;
mod daemon;
mod describe;
mod doctor;
mod failure;
mod gate;
mod generate;
mod history;
mod http;
mod launcher;
mod list;
mod options;
mod output;
mod policy;
mod probe_help;
mod progress;
mod pump;
mod run;
mod script;
mod serve;
mod setup;
mod triage;
mod watch;
mod workload;

use std::{ffi::OsString, process::ExitCode};

use clap::{
    ArgMatches, Command,
    error::{ContextKind, ErrorKind},
};

use crate::kernel::shed;
use failure::Failure;

/// A command: how its arguments are written and what it does.
#[derive(Debug)]
pub struct Verb {
    define: fn() -> Command,
    run: fn(&ArgMatches) -> Result<(), Failure>,
}

/// Everything that the program can do, in the order of its help.
pub const VERBS: &[Verb] = &[
    Verb { define: serve::define, run: serve::run },
    Verb { define: run::define, run: run::run },
    Verb { define: list::define, run: list::run },
    Verb { define: describe::define, run: describe::run },
    Verb { define: script::define, run: script::run },
    Verb { define: history::define, run: history::run },
    Verb { define: triage::define, run: triage::run },
    Verb { define: doctor::define, run: doctor::run },
    Verb { define: daemon::define, run: daemon::run },
    Verb { define: config::define, run: config::run },
    Verb { define: setup::define, run: setup::run },
    Verb { define: generate::define, run: generate::run },
    Verb { define: gate::define, run: gate::run },
    Verb { define: launcher::define, run: launcher::run },
];

const ABOUT: &str = "See what a Linux kernel is doing: native eBPF probes for people and, over MCP, for AI assistants";
const AFTER_HELP: &str = "\
Examples:
  mcptrace list                             what can be traced
  mcptrace run file_opens --failed-only     opens that fail, for 5 seconds
  mcptrace run syscall_latency -d 10 --comm nginx
  mcptrace run syscall_counts -- ls /etc    trace a command from its first instruction
  mcptrace                                  MCP server on stdin and stdout, as an MCP client starts it

Exit status:
  0    it worked, also when there was nothing to record
  1    it failed while it ran
  2    it was called wrongly
  3    it cannot run here: a missing capability, kernel types (BTF) or hook
  130  it was interrupted twice

MCPTRACE_LOG sets what is logged to stderr: error, warn (as it is), info, debug.";

/// Runs the program with its arguments, the first of which is its name.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    shed::lay_down();
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    let parse = |arguments: &[OsString]| command().try_get_matches_from(arguments);
    let mut matches = parse(&arguments);
    if matches.as_ref().is_ok_and(|matches| matches.subcommand().is_none()) {
        // Defaults and the environment are those of the command.
        arguments.push("serve".into());
        matches = parse(&arguments);
    }
    let matches = match matches {
        Ok(matches) => matches,
        Err(error) => return usage(without_tip(error)),
    };
    let Some((name, matches)) = matches.subcommand() else { return ExitCode::SUCCESS };
    let verb = VERBS.iter().find(|verb| (verb.define)().get_name() == name);
    match verb.map_or(Ok(()), |verb| (verb.run)(matches)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.tell(),
    }
}

/// All arguments of the program.
pub fn command() -> Command {
    Command::new("mcptrace")
        .version(env!("CARGO_PKG_VERSION"))
        .about(ABOUT)
        .after_help(AFTER_HELP)
        .arg(config::flag())
        .subcommands(VERBS.iter().map(|verb| (verb.define)()))
}

/// Where a flag is unknown, clap offers to take it as a part of COMMAND, which it hardly ever is.
fn without_tip(mut error: clap::Error) -> clap::Error {
    if error.kind() == ErrorKind::UnknownArgument {
        error.remove(ContextKind::Suggested);
        error.remove(ContextKind::TrailingArg);
    }
    error
}

/// clap's own words; help and version are no errors.
fn usage(error: clap::Error) -> ExitCode {
    // A closed pipe at the other end is no reason to fail.
    let _ = error.print();
    ExitCode::from(error.exit_code() as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_well_formed() {
        command().debug_assert();
    }

    #[test]
    fn an_unknown_flag_is_not_said_to_belong_behind_dashes() {
        let arguments = ["mcptrace", "run", "file_opens", "--nosuch"];
        let text = without_tip(command().try_get_matches_from(arguments).unwrap_err()).to_string();
        assert!(text.contains("unexpected argument '--nosuch'") && !text.contains("tip:"), "{text}");
        let near = ["mcptrace", "run", "file_opens", "--failed-onyl"];
        let text = without_tip(command().try_get_matches_from(near).unwrap_err()).to_string();
        assert!(text.contains("--failed-only"), "{text}");
    }

    #[test]
    fn every_exit_status_is_documented() {
        for failure in [Failure::failed(""), Failure::usage(""), Failure::cannot_run("")] {
            assert!(AFTER_HELP.contains(&format!("\n  {}  ", failure.status)), "{failure:?}");
        }
        assert!(AFTER_HELP.contains(&format!("\n  {}  ", failure::INTERRUPTED_TWICE)));
    }

    #[test]
    fn every_command_but_the_hidden_one_says_what_it_does() {
        for verb in VERBS.iter().map(|verb| (verb.define)()).filter(|verb| !verb.is_hide_set()) {
            assert!(verb.get_about().is_some(), "{}", verb.get_name());
        }
    }
}
