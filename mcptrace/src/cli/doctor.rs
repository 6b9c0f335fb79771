//! `mcptrace doctor`: what this kernel and this process can do, with a remedy for each thing missing.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command};

use serde::Serialize;

use super::{Failure, config, output};
use crate::{
    config::{DEFAULT_FILE, Loaded, summary},
    kernel::support::{self, Options},
};

/// A person reads it all; this only keeps a broken system from flooding the terminal.
const MOST_BYTES: usize = 64 << 10;

pub(super) fn define() -> Command {
    Command::new("doctor")
        .about("Check what can be traced here, and say how to get what is missing")
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print JSON"))
        .after_help("Exit status 3 when native probes cannot run here, 2 when the configuration cannot be used.")
}

/// All that is printed.
#[derive(Serialize)]
struct Checkup<'a> {
    #[serde(flatten)]
    info: &'a support::Info,
    configuration: Configuration,
}

/// What is set otherwise than by default; there is no secret among the settings.
#[derive(Serialize)]
struct Configuration {
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<PathBuf>,
    changes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl Configuration {
    fn of(loaded: Result<Loaded, Failure>) -> Self {
        match loaded {
            Ok(loaded) => Self { changes: summary(&loaded), file: loaded.file, error: None },
            Err(failure) => Self { file: None, changes: Vec::new(), error: Some(failure.message) },
        }
    }

    fn text(&self) -> String {
        let file = self.file.as_ref().map_or_else(|| format!("no {DEFAULT_FILE}"), |file| file.display().to_string());
        let head = match (&self.error, self.changes.is_empty()) {
            (Some(error), _) => format!("no command runs with it: {error}"),
            (None, true) => format!("{file}, all settings are the defaults"),
            (None, false) => file,
        };
        let lines = self.changes.iter().map(|line| format!("  {line}"));
        format!("\n\nConfiguration: {head}\n") + &lines.map(|line| line + "\n").collect::<String>()
    }
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    // A configuration that is wrong is one more thing that a doctor tells, and does not keep it from telling the rest.
    let loaded = config::load(matches);
    let limits = loaded.as_ref().map(|loaded| loaded.config.limits()).unwrap_or_default();
    let info = support::info(&Options { limits, ..Options::default() });
    let configuration = Configuration::of(loaded);
    let broken = configuration.error.clone();
    if matches.get_flag("json") {
        output::json(&Checkup { info: &info, configuration })?;
    } else {
        output::text(&(support::text(&info, MOST_BYTES) + &configuration.text()))?;
    }
    if !info.native_works() {
        return Err(Failure::cannot_run("no native probe runs here; the problems above say why"));
    }
    broken.map_or(Ok(()), |error| Err(Failure::usage(error)))
}
