//! Every probe on the kernel that runs: as it is, with every filter at once, and with each of its options. A probe that cannot run says what the
//! kernel lacks; a program that the kernel refuses is a defect. Needs root; without, it fails.
//!
//! What it prints (`--nocapture`) are the rows of docs/kernels.md.

use std::{iter::once, process::Command};

use mcptrace::{
    executions::Refusal,
    kernel::filter::Filter,
    probes::{Entry, PROBES},
    report::Status,
};
use mcptrace_tests::{
    probing::{ALL, try_start},
    workload::Workload,
};
use serde_json::{Map, Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_function_workload");

/// What a way to run a probe came to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// With what its notes say that this kernel does not tell.
    Ran(Vec<String>),
    /// The probe does not take this filter or option.
    NotTaken,
    /// The kernel lacks something.
    Unsupported(String),
    Failed(String),
}

#[test]
fn every_probe_runs_in_every_way_or_says_what_the_kernel_lacks() {
    let mut workload = Workload::start(PROGRAM);
    let mut failed = Vec::new();
    for entry in PROBES {
        let ways = ways(entry, workload.pid());
        let outcomes: Vec<_> =
            ways.iter().map(|(options, filter)| outcome(entry, options, filter, &mut workload)).collect();
        println!("{}", row(entry, &outcomes));
        assert_ne!(outcomes[0], Outcome::NotTaken, "{}", entry.name);
        let wrong = ways.into_iter().zip(outcomes).filter(|(_, outcome)| matches!(outcome, Outcome::Failed(_)));
        failed.extend(
            wrong.map(|((options, filter), outcome)| format!("{} {options} {filter:?}: {outcome:?}", entry.name)),
        );
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// As it is, with all filters, then with each option and each of its words.
fn ways(entry: &Entry, pid: u32) -> Vec<(Value, Filter)> {
    let plain = required(entry.name);
    let mut ways = vec![(plain.clone(), scope(entry.name, pid)), (plain.clone(), filters(entry, pid))];
    for (name, value) in options(entry) {
        let mut with = plain.clone();
        with[name] = value;
        ways.push((with, scope(entry.name, pid)));
    }
    ways
}

/// Options without which a probe has nothing to look at.
fn required(probe: &str) -> Value {
    match probe {
        "function_latency" => json!({ "binary": PROGRAM, "function": "mcptrace_leaf" }),
        "usdt_events" => json!({ "binary": PROGRAM }),
        _ => json!({}),
    }
}

/// Everything, but for the probe that would trap every allocation of the machine.
fn scope(probe: &str, pid: u32) -> Filter {
    Filter { pid: (probe == "heap_growth").then_some(pid), ..Filter::default() }
}

fn filters(entry: &Entry, pid: u32) -> Filter {
    Filter {
        pid: Some(pid),
        tid: Some(pid),
        comm: Some("function_worklo".into()),
        uid: Some(0),
        cgroup: Some("/".into()),
        container: None,
        descendants: true,
        min_duration_us: entry.has_duration.then_some(1),
    }
}

/// Each option with a value that it takes; those that need a name of something have it from elsewhere.
fn options(entry: &Entry) -> Vec<(String, Value)> {
    let schema = (entry.schema)();
    let properties = schema.get("properties").and_then(Value::as_object).cloned().unwrap_or_default();
    properties
        .into_iter()
        .flat_map(|(name, property)| values(&name, &property).into_iter().map(move |value| (name.clone(), value)))
        .collect()
}

fn values(name: &str, property: &Value) -> Vec<Value> {
    let words = property["oneOf"].as_array().or_else(|| property["enum"].as_array());
    if let Some(words) = words {
        return words.iter().map(|word| word.get("const").unwrap_or(word).clone()).collect();
    }
    match (name, property["type"].as_str()) {
        (_, Some("boolean")) => vec![json!(true)],
        (_, Some("integer" | "number")) => vec![json!(50)],
        ("syscall", _) => vec![json!("openat")],
        ("errno", _) => vec![json!("ENOENT")],
        ("signal", _) => vec![json!("SIGTERM")],
        ("texts", _) => vec![json!("4,0")],
        ("path_prefix", _) => vec![json!("/etc")],
        _ => Vec::new(),
    }
}

fn outcome(entry: &Entry, options: &Value, filter: &Filter, workload: &mut Workload) -> Outcome {
    let execution = match try_start(entry.name, options, filter) {
        Ok(execution) => execution,
        Err(Refusal::Option(_)) => return Outcome::NotTaken,
        Err(Refusal::Unsupported { reason, .. }) => return Outcome::Unsupported(reason),
        Err(refusal) => return Outcome::Failed(refusal.to_string()),
    };
    workload.run("leaf 7 0");
    let _ = Command::new("cat").arg("/etc/hostname").output();
    let ended = execution.stop_and_wait();
    let envelope = execution.envelope(&ALL);
    let loss = &envelope.loss;
    let adds_up = loss.seen == loss.delivered.map(|delivered| delivered + loss.dropped_total());
    match (ended && envelope.status == Status::Stopped, adds_up || loss.seen.is_none()) {
        (true, true) => Outcome::Ran(lacking(envelope.notes)),
        (true, false) => Outcome::Failed(format!("does not add up: {loss:?}")),
        (false, _) => Outcome::Failed(format!("{:?}", envelope.error)),
    }
}

fn lacking(notes: Vec<String>) -> Vec<String> {
    // What its recursion guard kept from programs is not told of any probe by kernels before 5.12.
    notes.into_iter().filter(|note| note.contains("this kernel") && !note.contains("before 5.12")).collect()
}

fn row(entry: &Entry, outcomes: &[Outcome]) -> String {
    let ran: Vec<_> = outcomes
        .iter()
        .filter_map(|outcome| if let Outcome::Ran(lacks) = outcome { Some(lacks) } else { None })
        .collect();
    let taken = outcomes.iter().filter(|outcome| **outcome != Outcome::NotTaken).count();
    let why = outcomes.iter().find_map(|outcome| match outcome {
        Outcome::Unsupported(reason) => Some(reason.clone()),
        Outcome::Failed(error) => Some(format!("FAILED: {error}")),
        Outcome::Ran(_) | Outcome::NotTaken => None,
    });
    let name = entry.name;
    match why {
        Some(why) => format!("| `{name}` | {} of {taken} ways: {why} |", ran.len()),
        None => format!(
            "| {} |",
            once(format!("`{name}` | {taken} ways")).chain(ran[0].clone()).collect::<Vec<_>>().join("; ")
        ),
    }
}

/// The options of every probe have values to try here, but for those that name files and functions.
#[test]
fn every_option_is_tried() {
    let named = ["binary", "function", "usdt"];
    let tried = |entry: &Entry| options(entry).into_iter().collect::<Map<_, _>>();
    for entry in PROBES {
        let tried = tried(entry);
        let missing: Vec<_> = entry
            .option_names()
            .into_iter()
            .filter(|name| !tried.contains_key(name) && !named.contains(&name.as_str()))
            .collect();
        assert!(missing.is_empty(), "{}: {missing:?}", entry.name);
    }
}
