//! Every probe on the kernel that runs: as it is, with every filter at once, and with each of its options. A probe that cannot run says what the
//! kernel lacks, and that must be what [`mcptrace_tests::lacks`] says; a program that the kernel refuses is a defect. Needs root; without, it fails.
//!
//! It prints a line of JSON for each probe, of which `cargo xtask test --kernel … --write` makes the table of docs/kernels.md.
#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

use std::process::Command;

use mcptrace::{
    executions::Refusal,
    kernel::{filter::Filter, hook, loader::Kernel},
    probes::{Entry, PROBES},
    report::Status,
};
use mcptrace_tests::{
    lacks::{How, Lack, lacks},
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
    /// The kernel lacks something for this way.
    Refused(String),
    Failed(String),
}

#[test]
fn every_probe_runs_in_every_way_or_says_what_the_kernel_lacks() {
    let mut workload = Workload::start(PROGRAM);
    let mut wrong = Vec::new();
    for entry in PROBES {
        let lacks = lacks(entry.name);
        let mut sayings = hooks(entry);
        let mut taken = false;
        for (options, filter) in ways(entry, workload.pid()) {
            let outcome = outcome(entry, &options, &filter, &mut workload);
            let runs = lacks.iter().all(|lack| lack.how != How::NotAtAll);
            if !outcome.may_be(runs) {
                wrong.push(format!("{} {options} {filter:?}: {outcome:?}", entry.name));
            }
            taken |= outcome != Outcome::NotTaken;
            sayings.extend(outcome.sayings());
        }
        assert!(taken, "{} was tried in no way", entry.name);
        wrong.extend(unlike(&sayings, &lacks).into_iter().map(|what| format!("{}: {what}", entry.name)));
        println!("catalogue: {}", line(entry, &lacks));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What a probe says of what it does without.
type Saying = (How, String);

/// Functions that it attaches to in place of tracepoints.
fn hooks(entry: &Entry) -> Vec<Saying> {
    let attached = hook::resolve(entry.hooks, &Kernel::get().unwrap().layout).unwrap_or_default();
    let names = attached.iter().map(|one| one.hook.to_string()).filter(|name| name.starts_with("fexit/"));
    names.map(|name| (How::Elsewhere, name)).collect()
}

impl Outcome {
    /// What is said is compared apart.
    fn may_be(&self, runs: bool) -> bool {
        match self {
            Self::Ran(_) => runs,
            Self::NotTaken | Self::Refused(_) | Self::Unsupported(_) => true,
            Self::Failed(_) => false,
        }
    }

    fn sayings(self) -> Vec<Saying> {
        match self {
            Self::Ran(notes) => notes.into_iter().map(|note| (How::InPart, note)).collect(),
            Self::Unsupported(reason) => vec![(How::NotAtAll, reason)],
            Self::Refused(reason) => vec![(How::NotEveryWay, reason)],
            Self::NotTaken | Self::Failed(_) => Vec::new(),
        }
    }
}

/// What is said and is not in the table, and what is in the table and is not said.
fn unlike(sayings: &[Saying], lacks: &[&Lack]) -> Vec<String> {
    let says = |lack: &Lack, (how, what): &Saying| lack.how == *how && what.contains(lack.says);
    let new = sayings.iter().filter(|saying| !lacks.iter().any(|lack| says(lack, saying)));
    let unsaid = lacks.iter().filter(|lack| !sayings.iter().any(|saying| says(lack, saying)));
    let mut unlike: Vec<_> = new.map(|(how, what)| format!("{how:?} is not in the table: {what}")).collect();
    unlike.extend(unsaid.map(|lack| format!("the table has {:?}, which it does not say: {}", lack.how, lack.says)));
    unlike.dedup();
    unlike
}

/// A cell of docs/kernels.md.
fn line(entry: &Entry, lacks: &[&Lack]) -> Value {
    let is = |how: How| lacks.iter().any(|lack| lack.how == how);
    let runs = match (is(How::NotAtAll), is(How::InPart) || is(How::NotEveryWay)) {
        (true, _) => "no",
        (false, true) => "in part",
        (false, false) => "yes",
    };
    let mut notes: Vec<_> = lacks.iter().map(|lack| lack.note).collect();
    notes.dedup();
    json!({ "probe": entry.name, "runs": runs, "notes": notes })
}

/// As it is, with all filters, with each option and each of its words, and at several places.
fn ways(entry: &Entry, pid: u32) -> Vec<(Value, Filter)> {
    let plain = required(entry.name);
    let mut ways = vec![(plain.clone(), scope(entry.name, pid)), (plain.clone(), filters(entry, pid))];
    for (name, value) in options(entry) {
        let mut with = plain.clone();
        with[name] = value;
        ways.push((with, scope(entry.name, pid)));
    }
    ways.extend(several_places(entry.name).map(|options| (options, Filter::default())));
    ways
}

/// One program at several places.
fn several_places(probe: &str) -> Option<Value> {
    match probe {
        "function_latency" => Some(json!({ "binary": PROGRAM, "function": "mcptrace_*" })),
        "usdt_events" => Some(json!({ "binary": "libstdc++", "usdt": "libstdcxx:*" })),
        _ => None,
    }
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
        Err(Refusal::Option(error)) if error.message.contains("this kernel") => return Outcome::Refused(error.message),
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
