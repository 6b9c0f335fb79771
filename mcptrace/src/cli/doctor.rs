//! `mcptrace doctor`: what this kernel and this process can do, with a remedy for each thing missing.

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::Failure;

pub(super) fn define() -> Command {
    Command::new("doctor")
        .about("Check what can be traced here, and say how to get what is missing")
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print JSON"))
        .after_help("Exit status 3 when native probes cannot run here.")
}

pub(super) fn run(_matches: &ArgMatches) -> Result<(), Failure> {
    Err(Failure::failed("doctor is not in this build"))
}
