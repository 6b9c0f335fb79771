//! `mcptrace triage`: what is wrong with this machine.

use std::{
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use clap::{Arg, ArgAction, ArgMatches, Command, builder::EnumValueParser};
use serde_json::json;
use tokio::{runtime, select, time::sleep};

use super::{Failure, config, output, progress::draw, run::interrupts};
use crate::{
    audit::Audit,
    executions::{Executions, Refusal},
    principal::Principal,
    recorder::place,
    triage::{
        self, Focus,
        gather::{Gathering, SECONDS},
        lately,
    },
};

pub(super) fn define() -> Command {
    Command::new("triage")
        .about("Look at everything for some seconds and rank what is wrong")
        .arg(
            Arg::new("seconds")
                .short('d')
                .long("seconds")
                .value_name("N")
                .default_value("10")
                .allow_negative_numbers(true)
                .value_parser(length)
                .help("How long to look, in seconds"),
        )
        .arg(
            Arg::new("focus")
                .long("focus")
                .value_name("AREA")
                .value_parser(EnumValueParser::<Focus>::new())
                .help("Look at one area only"),
        )
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print JSON"))
        .after_help(
            "Without privilege it looks at /proc only, and says so. Ctrl-C ends it early, with what was found so far.",
        )
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let seconds = matches.get_one::<f64>("seconds").copied().unwrap_or(10.0);
    let focus = matches.get_one::<Focus>("focus").copied();
    let config = config::load(matches)?.config;
    let records = Executions::audited(config.limits(), Audit::new(&config.audit(false)));
    let trail = records.trail(&Principal::cli(), json!({ "tool": "triage", "focus": focus }));
    trail.starts(seconds).map_err(Refusal::from)?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let gathering = Gathering::start(focus, seconds);
    runtime.block_on(wait(&gathering, seconds))?;
    let (evidence, window) = gathering.finish();
    let triage = triage::judge(&evidence, window, lately::look(&place::folder(None)));
    trail.ended("completed", None, triage.window.seconds, None);
    if matches.get_flag("json") { output::json(&triage) } else { output::text(&triage::text(&triage)) }
}

fn length(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().unwrap_or(f64::NAN);
    let right = || format!("takes a number of seconds from {} to {}", SECONDS.start(), SECONDS.end());
    if SECONDS.contains(&seconds) { Ok(seconds) } else { Err(right()) }
}

/// Waits until the time is up or somebody interrupts.
async fn wait(gathering: &Gathering, seconds: f64) -> Result<(), Failure> {
    let interrupted = interrupts()?;
    let (started, shown) = (Instant::now(), std::io::stderr().is_terminal());
    while started.elapsed().as_secs_f64() < seconds {
        let left = Duration::from_secs_f64(seconds).saturating_sub(started.elapsed());
        select! {
            () = interrupted.cancelled() => break,
            () = sleep(left.min(Duration::from_millis(200))) => {}
        }
        if shown {
            let elapsed = started.elapsed().as_secs_f64().min(seconds);
            draw(&format!("\rlooking: {elapsed:.1} of {seconds:.1} s, {} events\x1b[K", gathering.seen()));
        }
    }
    if shown {
        draw("\r\x1b[K");
    }
    Ok(())
}
