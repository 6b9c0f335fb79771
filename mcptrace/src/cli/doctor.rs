//! `mcptrace doctor`: what this kernel and this process can do, with a remedy for each thing missing.

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::{Failure, output};
use crate::{
    executions::Limits,
    kernel::support::{self, Options},
    recorder::place,
};

/// A person reads it all; this only keeps a broken system from flooding the terminal.
const MOST_BYTES: usize = 64 << 10;

pub(super) fn define() -> Command {
    Command::new("doctor")
        .about("Check what can be traced here, and say how to get what is missing")
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print JSON"))
        .after_help("Exit status 3 when native probes cannot run here.")
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let limits = Limits { history: Some(place::folder(None)), ..Limits::default() };
    let info = support::info(&Options { limits, ..Options::default() });
    if matches.get_flag("json") {
        output::json(&info)?;
    } else {
        output::text(&support::text(&info, MOST_BYTES))?;
    }
    if info.native_works() {
        Ok(())
    } else {
        Err(Failure::cannot_run("no native probe runs here; the problems above say why"))
    }
}
