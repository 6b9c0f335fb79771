//! Runs native probes around workloads and reads their reports.
#![expect(clippy::unwrap_used, reason = "part of the tests")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use mcptrace::{
    execution::{Execution, Page},
    executions::{Executions, Limits, ProbeRequest, Refusal},
    kernel::filter::Filter,
    principal::Caller,
    report::{Envelope, Report, Row, Series, Status},
};
use serde_json::Value;

/// Everything that there is.
pub const ALL: Page = Page { from: 0, event: 0, limit: usize::MAX, max_bytes: usize::MAX };

/// The executions of a test program.
pub fn executions() -> &'static Executions {
    static ALL: OnceLock<Executions> = OnceLock::new();
    ALL.get_or_init(|| Executions::new(Limits { running: 64, running_each: 64, ..Limits::default() }))
}

/// What is to be run, for longer than any test: who starts it stops it.
pub fn request(probe: &str, options: &Value, filter: &Filter) -> ProbeRequest {
    ProbeRequest {
        probe: probe.into(),
        options: options.as_object().unwrap().clone(),
        filter: filter.clone(),
        seconds: 3600.0,
        by: Caller::default(),
    }
}

/// Starts a probe.
pub fn try_start(probe: &str, options: &Value, filter: &Filter) -> Result<Arc<Execution>, Refusal> {
    executions().start_probe(&request(probe, options, filter))
}

/// Starts a probe that must start. It is attached when this returns.
pub fn start(probe: &str, options: &Value, filter: &Filter) -> Arc<Execution> {
    try_start(probe, options, filter).unwrap_or_else(|refusal| panic!("{probe}: {refusal}"))
}

/// Ends an execution and gives all it found, whose loss must add up.
pub fn stop(execution: &Execution) -> Envelope {
    assert!(execution.stop_and_wait(), "it does not end");
    let envelope = execution.envelope(&ALL);
    assert_eq!((envelope.status, &envelope.error), (Status::Stopped, &None));
    assert_adds_up(&envelope);
    envelope
}

/// Runs a probe around a workload and gives all it found, whose loss must add up.
pub fn around(probe: &str, options: &Value, filter: &Filter, workload: impl FnOnce()) -> Envelope {
    let execution = start(probe, options, filter);
    workload();
    stop(&execution)
}

/// Only a process.
pub fn of_pid(pid: u32) -> Filter {
    Filter { pid: Some(pid), ..Filter::default() }
}

/// `seen = delivered + dropped`, to the event, and nothing was missed unsaid.
pub fn assert_adds_up(envelope: &Envelope) {
    let loss = &envelope.loss;
    let (seen, delivered) = (loss.seen.expect("seen"), loss.delivered.expect("delivered"));
    assert_eq!(seen, delivered + loss.dropped_total(), "{loss:?}");
    assert_eq!(loss.missed.is_some(), kernel_version() >= (5, 12), "5.12 and later tell what was missed");
}

/// The version of the kernel that runs.
pub fn kernel_version() -> (u32, u32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(|one: char| !one.is_ascii_digit()).map_while(|number| number.parse().ok());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// Nothing was lost.
pub fn assert_no_loss(envelope: &Envelope) {
    assert!(!envelope.loss.any(), "{:?}", envelope.loss);
}

/// Calls, errors and interrupted calls.
pub type Counts = (u64, u64, u64);

/// The rows of a table of system calls by name; (0, 0, 0) where there is none.
#[derive(Debug)]
pub struct Calls(BTreeMap<String, Counts>);

impl Calls {
    /// Those of one name.
    pub fn of(&self, name: &str) -> Counts {
        self.0.get(name).copied().unwrap_or_default()
    }

    /// The names.
    pub fn names(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }
}

/// The rows of a table.
pub fn rows(envelope: &Envelope) -> &[Row] {
    match envelope.report.as_ref().unwrap() {
        Report::Table(table) => &table.rows,
        other => panic!("not a table: {other:?}"),
    }
}

/// The numbers of a row of system calls.
pub fn counts(row: &Row) -> Counts {
    let number = |name: &str| row[name].as_u64().unwrap();
    (number("calls"), number("errors"), number("interrupted"))
}

/// A table of system calls by name.
pub fn calls(envelope: &Envelope) -> Calls {
    Calls(rows(envelope).iter().map(|row| (row["syscall"].as_str().unwrap().to_owned(), counts(row))).collect())
}

/// The series of a histogram.
pub fn series(envelope: &Envelope) -> &[Series] {
    match envelope.report.as_ref().unwrap() {
        Report::Histogram(histogram) => &histogram.series,
        other => panic!("not a histogram: {other:?}"),
    }
}

/// The series with a field of the key, if there is one.
pub fn find_series<'a>(envelope: &'a Envelope, field: &str, value: impl Into<Value>) -> Option<&'a Series> {
    let value = value.into();
    series(envelope).iter().find(|one| one.key[field] == value)
}

/// The series with a field of the key.
pub fn one_series<'a>(envelope: &'a Envelope, field: &str, value: impl Into<Value>) -> &'a Series {
    let value = value.into();
    let found = find_series(envelope, field, value.clone());
    found.unwrap_or_else(|| panic!("no series {field} = {value}: {:?}", series(envelope)))
}

/// The rows of a report of events, or of the events beside the report.
pub fn events(envelope: &Envelope) -> &[Row] {
    match envelope.events.as_ref().or(envelope.report.as_ref()) {
        Some(Report::Events(events)) => &events.rows,
        other => panic!("no events: {other:?}"),
    }
}

/// The ids of the eBPF programs that a process holds.
pub fn programs_of(pid: u32) -> BTreeSet<u32> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap();
    let texts = descriptors.filter_map(|entry| fs::read_to_string(entry.unwrap().path()).ok());
    texts.filter_map(|text| text.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok())).collect()
}

/// Waits until the kernel has let go of programs, which it does a while after the last descriptor is closed.
pub fn assert_gone(programs: &BTreeSet<u32>) {
    assert!(!programs.is_empty(), "there was nothing attached");
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        let loaded: BTreeSet<u32> = libbpf_rs::query::ProgInfoIter::default().map(|program| program.id).collect();
        let left: Vec<_> = programs.intersection(&loaded).collect();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < until, "still loaded: {left:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
