//! `mcptrace triage`: what is wrong with this machine.

use std::{
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use clap::{Arg, ArgAction, ArgMatches, Command, builder::EnumValueParser};
use serde_json::json;
use tokio::{runtime, select, time::sleep};

use super::{Failure, config, history::state_folder, output, progress::draw, run::interrupts};
use crate::{
    audit::Audit,
    config::Config,
    executions::{Executions, Refusal},
    principal::Principal,
    recorder::place,
    report::Window,
    triage::{
        self, Focus, Triage,
        evidence::Evidence,
        gather::{Gathering, SECONDS, USUAL},
        lately,
        recorded::{self, Draft, NAMING_SECONDS},
    },
};

pub(super) fn define() -> Command {
    Command::new("triage")
        .about("Rank what is wrong: out of the recorder's last minute, or by looking for some seconds")
        .arg(
            Arg::new("seconds")
                .short('d')
                .long("seconds")
                .value_name("N")
                .allow_negative_numbers(true)
                .value_parser(length)
                .help("Look live, for so long [default: the recorder's last minute at once; 10 s where nothing is recorded]"),
        )
        .arg(
            Arg::new("focus")
                .long("focus")
                .value_name("AREA")
                .value_parser(EnumValueParser::<Focus>::new())
                .help("Look at one area only"),
        )
        .arg(state_folder())
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print JSON"))
        .after_help(
            "Without privilege it looks at /proc only, and says so. Ctrl-C ends it early, with what was found so far.",
        )
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let seconds = matches.get_one::<f64>("seconds").copied();
    let focus = matches.get_one::<Focus>("focus").copied();
    let config = config::load(matches)?.config;
    let recorded = || recorded::now(&place::folder(None), focus);
    let triage = match if seconds.is_none() { recorded() } else { None } {
        Some(draft) => named(&config, draft)?.answer(),
        None => live(&config, seconds.unwrap_or(USUAL), focus)?,
    };
    if matches.get_flag("json") { output::json(&triage) } else { output::text(&(triage::text(&triage) + "\n")) }
}

fn live(config: &Config, seconds: f64, focus: Option<Focus>) -> Result<Triage, Failure> {
    let (evidence, window) = gather(config, seconds, focus, || Gathering::start(focus, seconds))?;
    Ok(triage::judge(&evidence, window, lately::look(&place::folder(None))))
}

/// Looks for a moment whose doing that is of which the recorder does not know it.
fn named(config: &Config, mut draft: Draft) -> Result<Draft, Failure> {
    let kinds = draft.unnamed();
    if !kinds.is_empty() {
        let (evidence, _) = gather(config, NAMING_SECONDS, None, || Gathering::of(&kinds, NAMING_SECONDS))?;
        draft.name(&kinds, &evidence);
    }
    Ok(draft)
}

fn gather(
    config: &Config,
    seconds: f64,
    focus: Option<Focus>,
    start: impl FnOnce() -> Gathering,
) -> Result<(Evidence, Window), Failure> {
    let records = Executions::audited(config.limits(), Audit::new(&config.audit(false)));
    let trail = records.trail(&Principal::cli(), json!({ "tool": "triage", "focus": focus }));
    trail.starts(json!({ "seconds": seconds })).map_err(Refusal::from)?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let gathering = start();
    runtime.block_on(wait(&gathering, seconds))?;
    let (evidence, window) = gathering.finish();
    trail.ended("completed", None, window.seconds, None);
    Ok((evidence, window))
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
