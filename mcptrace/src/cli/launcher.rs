//! `mcptrace __launcher`: what builds the box of scripts for a server, and starts bpftrace in it.

use std::time::Duration;

use clap::{
    Arg, ArgAction, ArgMatches, Command,
    builder::{PossibleValuesParser, TypedValueParser as _},
    value_parser,
};

use super::Failure;
use crate::{
    bpftrace::{
        launcher::{self, NotServed, Settings},
        policy::{Level, Policy},
    },
    secrets::Reveals,
};

pub(super) fn define() -> Command {
    let levels = PossibleValuesParser::new(Level::ALL.map(|(name, _)| name)).try_map(|name| name.parse::<Level>());
    let number = |name: &'static str| Arg::new(name).long(name).required(true).value_parser(value_parser!(u32));
    Command::new(launcher::NAME)
        .hide(true)
        .arg(Arg::new("level").long("level").required(true).value_parser(levels))
        .arg(Arg::new("programs").long("programs").action(ArgAction::SetTrue))
        .arg(Arg::new("reveal").long("reveal"))
        .arg(number("most"))
        .arg(number("longest"))
        .arg(Arg::new("command").num_args(0..).allow_hyphen_values(true).last(true))
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let number = |name| matches.get_one::<u32>(name).copied().unwrap_or(0);
    let settings = Settings {
        policy: Policy {
            level: matches.get_one("level").copied().unwrap_or(Level::Never),
            programs: matches.get_flag("programs"),
            reveals: Reveals::of(matches.get_one("reveal").map_or("", String::as_str)),
        },
        most: number("most") as usize,
        longest: Duration::from_secs(number("longest").into()),
        command: matches.get_many("command").into_iter().flatten().cloned().collect(),
    };
    match launcher::serve(settings) {
        Ok(()) | Err(NotServed::Gone) => Ok(()),
        Err(error @ NotServed::ByHand) => Err(Failure::usage(error.to_string())),
        Err(error @ NotServed::System(_)) => Err(Failure::failed(error.to_string())),
    }
}
