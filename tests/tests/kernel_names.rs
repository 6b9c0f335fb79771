//! Whose name stands beside the numbers: the thread's own where results are by command, and the last one of the process where they are by
//! process. On the real kernel; needs root, and fails without.
#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

use std::{fs, path::PathBuf};

use mcptrace::{
    kernel::filter::Filter,
    report::{Envelope, Report, Row},
};
use mcptrace_tests::{
    probing::{around, assert_no_loss, kernel_version, of_pid, rows},
    workload,
    workload::{Workload, hex},
};
use serde_json::{Value, json};

/// A command that does something so often, and where the probe shows how often. Times stand where `N` is.
struct Case {
    probe: &'static str,
    command: &'static str,
    /// What a row must have to be of the command.
    is: Option<(&'static str, &'static str)>,
    column: &'static str,
    /// Whether more counts than the command and what is under way when tracing begins, as how often a thread runs.
    at_least: bool,
}

const fn exact(probe: &'static str, command: &'static str, column: &'static str) -> Case {
    Case { probe, command, is: None, column, at_least: false }
}

const GROUPED: &[Case] = &[
    Case { is: Some(("syscall", "getppid")), ..exact("syscall_counts", "getppid N", "calls") },
    Case { is: Some(("operation", "write")), ..exact("file_io", "file_write FILE N 4096", "calls") },
    exact("page_cache", "file_write FILE N 4096", "dirtied_pages"),
    exact("net_traffic", "udp_send v4 9 N 100", "sends"),
    Case { at_least: true, ..exact("runq_latency", "nanosleep N 100", "count") },
    Case { at_least: true, ..exact("cpu_slices", "nanosleep N 100", "count") },
];

/// Those that are by process always.
const BY_PROCESS: &[Case] = &[
    Case { at_least: true, ..exact("page_faults", "touch N", "faults") },
    Case { at_least: true, ..exact("futex_waits", "futex_naps N 100", "waits") },
];

impl Case {
    /// Has it done so often, by a thread of the workload or by its first one.
    fn run(&self, workload: &mut Workload, file: &File, times: u64, in_thread: bool) {
        let path = hex(file.0.to_str().unwrap());
        let command = self.command.replace('N', &times.to_string()).replace("FILE", &path);
        // New pages each time.
        let _ = fs::remove_file(&file.0);
        workload.run(&format!("{}{command}", if in_thread { "in_thread " } else { "" }));
    }

    /// How often it was done under a name.
    fn times(&self, envelope: &Envelope, comm: &str) -> u64 {
        let of = |row: &&Row| row["comm"] == comm && self.is.is_none_or(|(field, value)| row[field] == value);
        all(envelope).iter().filter(of).map(|row| row[self.column].as_u64().unwrap()).sum()
    }

    fn assert(&self, envelope: &Envelope, comm: &str, times: u64) {
        let found = self.times(envelope, comm);
        let right = if self.at_least { found >= times } else { found == times };
        assert!(right, "{} of {comm}: {found} of {times}: {:?}", self.probe, all(envelope));
    }

    /// What began before tracing is lost.
    fn assert_no_loss(&self, envelope: &Envelope) {
        if !self.at_least {
            assert_no_loss(envelope);
        }
    }

    /// Whether this kernel has the probe.
    fn is_there(&self) -> bool {
        self.probe != "net_traffic" || kernel_version() >= (6, 4)
    }
}

/// A file that does not exist yet, on a disk; removed when dropped.
struct File(PathBuf);

impl File {
    fn new(name: &str) -> Self {
        Self(PathBuf::from(format!("{}/names_{name}_{}", env!("CARGO_TARGET_TMPDIR"), std::process::id())))
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The rows of a table, or the series of a histogram as rows.
fn all(envelope: &Envelope) -> Vec<Row> {
    match envelope.report.as_ref().unwrap() {
        Report::Histogram(histogram) => histogram
            .series
            .iter()
            .map(|one| {
                let mut row = one.key.clone();
                row.insert("count".into(), one.count.into());
                row
            })
            .collect(),
        _ => rows(envelope).to_vec(),
    }
}

#[test]
fn by_command_an_event_counts_for_the_name_that_its_thread_has() {
    let file = File::new("comm");
    for case in GROUPED.iter().filter(|case| case.is_there()) {
        let mut workload = workload!();
        workload.run("thread");
        workload.run("in_thread comm zzthread");
        let envelope = around(case.probe, &json!({"by": "comm"}), &of_pid(workload.pid()), || {
            workload.run("comm zzfirst");
            case.run(&mut workload, &file, 7, false);
            case.run(&mut workload, &file, 13, true);
            workload.run("comm zzlast");
            case.run(&mut workload, &file, 29, false);
        });
        case.assert_no_loss(&envelope);
        for (comm, times) in [("zzfirst", 7), ("zzthread", 13), ("zzlast", 29)] {
            case.assert(&envelope, comm, times);
        }
        assert!(all(&envelope).iter().all(|row| !row.contains_key("pid")), "{}", case.probe);
    }
}

#[test]
fn by_process_a_row_has_the_last_name_of_the_process_and_not_that_of_a_thread() {
    let file = File::new("pid");
    for case in GROUPED.iter().chain(BY_PROCESS).filter(|case| case.is_there()) {
        let mut workload = workload!();
        workload.run("thread");
        workload.run("in_thread comm zzthread");
        let by = if BY_PROCESS.iter().any(|one| one.probe == case.probe) { json!({}) } else { json!({"by": "pid"}) };
        let envelope = around(case.probe, &by, &of_pid(workload.pid()), || {
            case.run(&mut workload, &file, 7, true);
            workload.run("comm zzlast");
            case.run(&mut workload, &file, 13, false);
        });
        case.assert_no_loss(&envelope);
        case.assert(&envelope, "zzlast", 20);
        for row in all(&envelope) {
            assert_eq!((&row["pid"], &row["comm"]), (&json!(workload.pid()), &json!("zzlast")), "{}", case.probe);
        }
    }
}

/// The first calls of a process that executes a program are made under the name of who started it.
#[test]
fn a_process_has_the_name_of_the_program_that_it_executes() {
    let (mut workload, copy) = (workload!(), File::new("x"));
    let program = copy.0.with_file_name(format!("zz{}", std::process::id()));
    let copy = File(program.clone());
    fs::copy(env!("CARGO_BIN_EXE_workload"), &copy.0).unwrap();
    let name = program.file_name().unwrap().to_str().unwrap();
    let filter = Filter { descendants: true, ..of_pid(workload.pid()) };
    let spawn = ["close_bad", "13"].map(hex).join(" ");
    let mut pids: Vec<Value> = Vec::new();
    let by = |by: &str, workload: &mut Workload, pids: &mut Vec<Value>| {
        around("syscall_counts", &json!({"by": by}), &filter, || {
            let spawned = workload.run(&format!("spawn 7 {} {spawn}", hex(program.to_str().unwrap())));
            *pids = spawned.chunks(4).map(|one| one[0].into()).collect();
        })
    };
    let envelope = by("pid", &mut workload, &mut pids);
    for row in rows(&envelope).iter().filter(|row| row["pid"] != workload.pid()) {
        assert_eq!(row["comm"], name, "{row:?}");
        assert!(pids.contains(&row["pid"]), "{row:?}");
    }
    let envelope = by("comm", &mut workload, &mut pids);
    let errors = |row: &&Row| row["syscall"] == "close" && row["comm"] == name;
    let errors: Vec<_> = rows(&envelope).iter().filter(errors).map(|row| row["errors"].clone()).collect();
    assert_eq!(errors, [json!(7 * 13)]);
}
