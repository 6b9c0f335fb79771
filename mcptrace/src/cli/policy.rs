//! What the operator allows scripts, as arguments of the commands that run them.

use clap::{
    Arg, ArgAction, ArgMatches,
    builder::{PossibleValuesParser, TypedValueParser as _},
};

use crate::{bpftrace::policy::Level, config::Config};

/// `--allow-scripts` and `--allow-script-programs`.
pub(super) fn arguments() -> [Arg; 2] {
    let levels = PossibleValuesParser::new(Level::ALL.map(|(name, _)| name)).try_map(|name| name.parse::<Level>());
    [
        Arg::new("allow-scripts").long("allow-scripts").value_name("LEVEL").value_parser(levels).help(
            "Which bpftrace scripts may run: never, those that the policy admits, or any [default: scripts.allow]",
        ),
        Arg::new("allow-script-programs")
            .long("allow-script-programs")
            .action(ArgAction::SetTrue)
            .help("Let scripts attach to functions of programs (uprobe, usdt), which read what users type"),
    ]
}

/// The configuration with what they say.
pub(super) fn of(matches: &ArgMatches, config: Config) -> Config {
    config.with_policy(matches.get_one("allow-scripts").copied(), matches.get_flag("allow-script-programs"))
}
