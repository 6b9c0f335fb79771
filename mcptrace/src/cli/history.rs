//! `mcptrace history`: what the recorder kept.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use super::{Failure, config, output};
use crate::recorder::{
    history::{self, DEFAULT_TOP, MOST_TOP, Query, text},
    place,
};

const AFTER_HELP: &str = "\
Examples:
  mcptrace history                                    all metrics, with their values of the last minute
  mcptrace history runq_latency_ns --from -1h         an hour, in steps of a minute
  mcptrace history cpu_process_ns --from -15m --group-by comm --top 5
  mcptrace history block_service_ns --from 2026-01-02T03:00:00Z --to 2026-01-02T04:00:00Z --where device=sda
  mcptrace history --from -10m --compare-to -1h10m    what changed most since an hour ago, over all metrics

A dot in a line of bars is a time that was not recorded. docs/history.md tells how to read the file with sqlite3.";

/// The longest text on a terminal, in bytes.
const LONGEST: usize = 1 << 20;

pub(super) fn define() -> Command {
    let text = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).allow_hyphen_values(true).help(help)
    };
    Command::new("history")
        .about("Ask what `mcptrace daemon` recorded")
        .arg(Arg::new("metric").value_name("METRIC").help("What to look at; without it all metrics are listed"))
        .arg(text("from", "TIME", "Begin: -15m, -2h, -1d, or 2026-01-02T03:04:05Z [default: -15m]"))
        .arg(text("to", "TIME", "End [default: now]"))
        .arg(text("step", "LENGTH", "Length of a step: 1s, 10s, 5m [default: about 60 steps]"))
        .arg(text("group-by", "LABELS", "Labels with commas between them, or none [default: all]"))
        .arg(text("where", "LABEL=GLOB", "Only these, with commas between several"))
        .arg(text(
            "compare-to",
            "TIME",
            "Rank what changed against another window: previous, when it begins, or FROM..TO",
        ))
        .arg(
            Arg::new("top")
                .long("top")
                .value_name("N")
                .value_parser(value_parser!(u64).range(1..=MOST_TOP as u64))
                .help(format!("Rows to show at most; the rest are summed up [default: {DEFAULT_TOP}]")),
        )
        .arg(text("sql", "SELECT", "A query on the views of docs/history.md instead"))
        .arg(state_folder())
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print JSON"))
        .after_help(AFTER_HELP)
}

/// Where the recorder's folder is, for those who ask it.
pub(super) fn state_folder() -> Arg {
    Arg::new("state")
        .long("state")
        .value_name("DIR")
        .value_parser(value_parser!(PathBuf))
        .help(format!("Folder of the recorder [default: $MCPTRACE_STATE or {}]", place::DEFAULT))
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    config::load(matches)?;
    let answer = history::ask(&place::folder(None), &query(matches))?;
    if matches.get_flag("json") {
        return output::json(&answer);
    }
    output::text(&(text::answer(&answer, LONGEST) + "\n"))
}

fn query(matches: &ArgMatches) -> Query {
    let text = |name: &str| matches.get_one::<String>(name).cloned().unwrap_or_default();
    Query {
        metric: text("metric"),
        from: text("from"),
        to: text("to"),
        step: text("step"),
        group_by: text("group-by"),
        filter: text("where"),
        compare_to: text("compare-to"),
        sql: text("sql"),
        top: matches.get_one::<u64>("top").map_or(DEFAULT_TOP, |top| *top as usize),
    }
}
