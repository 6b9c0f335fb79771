//! What the operator allows scripts, as arguments of the commands that run them.

use clap::{
    Arg, ArgAction, ArgMatches,
    builder::{PossibleValuesParser, TypedValueParser as _},
};

use crate::bpftrace::policy::{Level, Policy};

/// `--allow-scripts` and `--allow-script-programs`.
pub(super) fn arguments() -> [Arg; 2] {
    let levels = PossibleValuesParser::new(Level::ALL.map(|(name, _)| name)).try_map(|name| name.parse::<Level>());
    [
        Arg::new("allow-scripts")
            .long("allow-scripts")
            .value_name("LEVEL")
            .env("MCPTRACE_ALLOW_SCRIPTS")
            .default_value("policy")
            .value_parser(levels)
            .help("Which bpftrace scripts may run: never, those that the policy admits, or any"),
        Arg::new("allow-script-programs")
            .long("allow-script-programs")
            .env("MCPTRACE_ALLOW_SCRIPT_PROGRAMS")
            .action(ArgAction::SetTrue)
            .help("Let scripts attach to functions of programs (uprobe, usdt), which read what users type"),
    ]
}

/// What they say.
pub(super) fn of(matches: &ArgMatches) -> Policy {
    Policy {
        level: matches.get_one("allow-scripts").copied().unwrap_or_default(),
        programs: matches.get_flag("allow-script-programs"),
    }
}
