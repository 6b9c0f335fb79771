//! `mcptrace config`: the configuration checked and shown; and how every command gets it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::{Arg, ArgMatches, Command, value_parser};

use super::{Failure, output};
use crate::{
    audit::Audit,
    config::{self, Config, ConfigError, DEFAULT_FILE, Loaded, VARIABLE},
    kernel::shed,
    recorder::place,
};

const AFTER_HELP: &str = "\
Examples:
  mcptrace config check             says all that is wrong with the file in use
  mcptrace config show              the settings in force, and where each comes from
  mcptrace config defaults          every key with its default and the reason, as a file to begin with";

/// The flag that all commands take.
pub(super) fn flag() -> Arg {
    Arg::new("config")
        .long("config")
        .value_name("FILE")
        .global(true)
        .value_parser(value_parser!(PathBuf))
        .help(format!("The configuration [default: ${VARIABLE} or {DEFAULT_FILE}]"))
        .help_heading("Global options")
}

/// The settings for a command, which the process goes by from here on. Where a command has `--state`, that is heard before the configuration.
pub(super) fn load(matches: &ArgMatches) -> Result<Loaded, Failure> {
    if let Ok(Some(state)) = matches.try_get_one::<PathBuf>("state") {
        place::set_folder(state);
    }
    let loaded = shed::by_own_right(|| config::load(given(matches)))?;
    loaded.config.apply();
    Ok(loaded)
}

pub(super) fn define() -> Command {
    let file = Arg::new("file").value_name("FILE").value_parser(value_parser!(PathBuf));
    Command::new("config")
        .about("Check the configuration, show what is in force, or print every key")
        .after_help(AFTER_HELP)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .subcommand(
            Command::new("check")
                .about("Say all that is wrong with a file; exit status 2 if anything is")
                .arg(file.help("The file [default: the one in use]")),
        )
        .subcommand(Command::new("show").about("Print the settings in force as a file that would set them"))
        .subcommand(Command::new("defaults").about("Print every key with its default and the reason for it"))
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    match matches.subcommand() {
        Some(("check", matches)) => shed::by_own_right(|| check(matches)),
        Some(("show", matches)) => output::text(&config::show(&shed::by_own_right(|| config::load(given(matches)))?)),
        Some(("defaults", _)) => output::text(&config::document()),
        _ => Err(Failure::usage("check, show or defaults?")),
    }
}

/// The audit log of a server, in which the first record is what is in force. To be called when there are no more processes to fork.
pub(super) fn audited(config: &Config, serves_others: bool) -> Result<Arc<Audit>, Failure> {
    let audit = Audit::new(&config.audit(serves_others));
    let in_force = serde_json::to_value(config).unwrap_or_default();
    audit.configured(in_force).map_err(|error| Failure::failed(error.to_string()))?;
    Ok(audit)
}

fn given(matches: &ArgMatches) -> Option<&Path> {
    matches.get_one::<PathBuf>("config").map(PathBuf::as_path)
}

fn check(matches: &ArgMatches) -> Result<(), Failure> {
    let named = matches.get_one::<PathBuf>("file").map(PathBuf::as_path).or_else(|| given(matches));
    if let Some(path) = named {
        let text = config::text(path)
            .map_err(|error| Failure::usage(format!("{}: cannot be read: {error}", path.display())))?;
        let errors = config::check(path, &text);
        if !errors.is_empty() {
            return Err(Failure::usage(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")));
        }
    }
    // With the environment and the file's own mode.
    let loaded = config::load(named)?;
    let changes = config::summary(&loaded);
    let file = loaded.file.map_or_else(|| format!("no {DEFAULT_FILE}"), |file| file.display().to_string());
    output::text(&format!("{file}: good, {} settings differ from the defaults\n", changes.len()))
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::usage(error.to_string())
    }
}
