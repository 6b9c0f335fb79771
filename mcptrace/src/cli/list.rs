//! `mcptrace list`: native probes, and what else this kernel or a binary could be traced by.

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use serde_json::{Value, json};

use super::{Failure, config, failure, output};
use crate::{
    executions::obstacle,
    kernel::discovery::{self, Access, DEFAULT_LIMIT, MAX_LIMIT, Page, Query},
    probes::{Entry, PROBES},
    report::text::units,
};

const AFTER_HELP: &str = "\
Examples:
  mcptrace list                          the native probes
  mcptrace list 'syscalls:*read*'        tracepoints, as perf and bpftrace name them
  mcptrace list 'kfunc:*tcp*'            kernel functions
  mcptrace list binary:/bin/bash         symbols and USDT probes of a program

Kernel probes are listed where a filter is given; `run` takes native probes only. tracefs is mounted if it is not.";

pub(super) fn define() -> Command {
    let limit = value_parser!(u64).range(1..=MAX_LIMIT as u64);
    Command::new("list")
        .about("List native probes and, with a filter, kernel probes")
        .arg(
            Arg::new("filter")
                .value_name("FILTER")
                .help("A part of a probe's name or summary, or a glob over kernel probes"),
        )
        .arg(
            Arg::new("limit")
                .long("limit")
                .value_name("N")
                .value_parser(limit)
                .help(format!("Kernel probes to show at most [default: {DEFAULT_LIMIT}]")),
        )
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print JSON"))
        .after_help(AFTER_HELP)
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    // It needs no setting; one that is wrong is an error as everywhere.
    config::load(matches)?;
    let filter = matches.get_one::<String>("filter").map(String::as_str);
    let limit = matches.get_one::<u64>("limit").map_or(DEFAULT_LIMIT, |limit| *limit as usize);
    let native: Vec<_> = PROBES.iter().filter(|entry| filter.is_none_or(|filter| entry.is_about(filter))).collect();
    let kernel = filter.map(|filter| kernel_probes(filter, limit)).transpose()?;
    if matches.get_flag("json") {
        return output::json(&as_json(&native, kernel.as_ref()));
    }
    output::text(&as_text(&native, kernel.as_ref()))
}

fn kernel_probes(filter: &str, limit: usize) -> Result<Page, Failure> {
    let access = Access { allow_mount: true, fentry_works: None };
    Ok(discovery::list(&Query { filter: Some(filter), limit, cursor: None }, access)?)
}

fn as_json(native: &[&Entry], kernel: Option<&Page>) -> Value {
    let native: Vec<_> = native.iter().map(|entry| native_json(entry)).collect();
    let mut all = json!({ "native": native });
    if let Some(page) = kernel {
        all["probes"] = json!(page.names);
        all["count"] = json!(page.names.len());
        all["total"] = json!(page.total);
        all["notes"] = json!(page.notes);
    }
    all
}

fn native_json(entry: &Entry) -> Value {
    let obstacle = obstacle(entry);
    let mut one = json!({
        "name": entry.name,
        "category": entry.category,
        "summary": entry.summary,
        "available": obstacle.is_none(),
    });
    if let Some(reason) = obstacle {
        one["reason"] = reason.into();
    }
    one
}

fn as_text(native: &[&Entry], kernel: Option<&Page>) -> String {
    let mut lines = Vec::new();
    let obstacles: Vec<_> = native.iter().filter_map(|entry| obstacle(entry)).collect();
    if !native.is_empty() {
        lines.push("Native probes (mcptrace run NAME):".to_owned());
        lines.extend(native_lines(native));
    }
    if let Some(reason) = failure::lack_of_privilege() {
        lines.push(format!("\nnote: {reason}"));
    } else {
        lines.extend(obstacles.iter().map(|reason| format!("\nnote: {reason}")));
    }
    match kernel {
        Some(page) => lines.extend(page_lines(page, !native.is_empty())),
        None => lines
            .push("\nKernel probes: mcptrace list 'syscalls:*read*', or another filter (mcptrace list --help)".into()),
    }
    lines.join("\n") + "\n"
}

fn native_lines(native: &[&Entry]) -> Vec<String> {
    let longest = |of: fn(&Entry) -> &str| native.iter().map(|entry| of(entry).len()).max().unwrap_or(0);
    let (names, categories) = (longest(|entry| entry.name), longest(|entry| entry.category));
    let line = |entry: &&Entry| format!("  {:<names$}  {:<categories$}  {}", entry.name, entry.category, entry.summary);
    native.iter().map(line).collect()
}

fn page_lines(page: &Page, after_native: bool) -> Vec<String> {
    let shown = page.names.len() as u64;
    let mut lines = Vec::new();
    if after_native {
        lines.push(String::new());
    }
    lines.push(format!("Kernel probes: {}", units::count(page.total)));
    lines.extend(page.names.iter().map(|name| format!("  {}", units::plain(name, 512))));
    if page.total > shown {
        let left = units::count(page.total - shown);
        lines.push(format!("{left} more: --limit N shows up to {MAX_LIMIT}, a narrower filter the rest"));
    }
    lines.extend(page.notes.iter().map(|note| format!("note: {note}")));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probes::find;

    #[test]
    fn a_filter_finds_probes_by_name_category_and_question() {
        let opens = find("file_opens").unwrap();
        for filter in ["file", "FILE_opens", "file*ns", "*opens*", "files", "which opens fail"] {
            assert!(opens.is_about(filter), "{filter}");
        }
        for filter in ["tcp", "opens*file_", "syscalls:*open*"] {
            assert!(!opens.is_about(filter), "{filter}");
        }
    }

    #[test]
    fn what_is_not_shown_is_counted() {
        let page = Page { names: vec!["tracepoint:a:b".into()], total: 1234, next: None, notes: vec!["n".into()] };
        let lines = page_lines(&page, false);
        assert_eq!(lines[..2], ["Kernel probes: 1,234", "  tracepoint:a:b"]);
        assert!(lines[2].starts_with("1,233 more: --limit"), "{}", lines[2]);
        assert_eq!(lines[3], "note: n");
    }
}
