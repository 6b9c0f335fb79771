//! The governor: an execution whose hook is hot is warned of and detached, with the reason, and what it found adds up. Needs root.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use mcptrace::{
    audit::{Audit, Destination, Settings},
    execution::Execution,
    executions::{Executions, Limits, ScriptRequest},
    kernel::filter::Filter,
    principal::Caller,
    report::{Envelope, Report, Status},
};
use mcptrace_tests::probing::{ALL, assert_adds_up, assert_gone, programs_of, request};
use serde_json::{Value, json};
use tempfile::NamedTempFile;

/// A thread that makes system calls as fast as it can.
struct Hot {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Hot {
    fn start() -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&end);
        let thread = thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                // SAFETY: getppid takes nothing and cannot fail.
                unsafe { libc::syscall(libc::SYS_getppid) };
            }
        });
        Self { end, thread: Some(thread) }
    }
}

impl Drop for Hot {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

fn within(budget: Option<f64>) -> Executions {
    Executions::new(Limits { budget, ..Limits::default() })
}

/// The same, with the file that it records in.
fn recorded_within(budget: f64) -> (Executions, NamedTempFile) {
    let file = NamedTempFile::new().unwrap();
    let settings = Settings { to: Destination::File(file.path().to_owned()), ..Settings::default() };
    (Executions::audited(Limits { budget: Some(budget), ..Limits::default() }, Audit::new(&settings)), file)
}

/// That nobody asked for the end is recorded, with the reason, before the end is.
fn assert_recorded(file: &NamedTempFile) {
    let text = std::fs::read_to_string(file.path()).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let events: Vec<&str> = lines.iter().map(|line| line["event"].as_str().unwrap()).collect();
    assert_eq!(events, ["start", "stop", "end"], "{text}");
    let reason = lines[1]["reason"].as_str().unwrap();
    assert!(reason.starts_with("detached before its time") && reason.contains("over the budget of 0.5 %"), "{reason}");
    assert!(lines[2]["cost"]["cpu_percent"].as_f64().unwrap() > 0.0, "{text}");
}

fn filter() -> Filter {
    Filter { pid: Some(std::process::id()), ..Filter::default() }
}

fn ended(execution: &Execution) -> Envelope {
    assert!(execution.wait(Duration::from_mins(1)), "it does not end");
    execution.envelope(&ALL)
}

#[test]
fn a_hot_probe_is_detached_with_the_reason_and_its_loss_adds_up() {
    let _hot = Hot::start();
    let (executions, records) = recorded_within(0.5);
    let execution = executions.start_probe(&request("syscall_counts", &json!({}), &filter())).unwrap();
    let programs = programs_of(std::process::id());
    let envelope = ended(&execution);
    assert_eq!((envelope.status, &envelope.error), (Status::Stopped, &None));
    assert!(envelope.window.seconds < 20.0, "it was to run for 60: {:?}", envelope.window);
    let note = &envelope.notes[0];
    assert!(note.starts_with("detached before its time") && note.contains("over the budget of 0.5 %"), "{note}");
    assert!(envelope.overhead.as_ref().unwrap().cpu_percent > 0.5, "{:?}", envelope.overhead);
    assert!(envelope.loss.seen.unwrap() > 10_000, "{:?}", envelope.loss);
    assert_adds_up(&envelope);
    let Some(Report::Table(table)) = &envelope.report else { panic!("{envelope:?}") };
    let getppid = table.rows.iter().find(|row| row["syscall"] == "getppid").expect("what was hot");
    assert!(getppid["calls"].as_u64().unwrap() > 10_000);
    assert_gone(&programs);
    assert_recorded(&records);
}

#[test]
fn what_stays_within_its_budget_runs_to_its_end() {
    let _hot = Hot::start();
    for budget in [Some(400.0), None] {
        let executions = within(budget);
        let mut asked = request("syscall_counts", &json!({}), &filter());
        asked.seconds = 3.0;
        let envelope = ended(&executions.start_probe(&asked).unwrap());
        assert_eq!(envelope.status, Status::Completed, "{:?}", envelope.notes);
        assert!(!envelope.notes.iter().any(|note| note.contains("budget")), "{:?}", envelope.notes);
        assert_adds_up(&envelope);
    }
}

#[test]
fn a_hot_script_is_detached_with_the_reason_and_keeps_its_maps() {
    let _hot = Hot::start();
    let (executions, records) = recorded_within(0.5);
    let pid = std::process::id();
    let program = format!("tracepoint:raw_syscalls:sys_enter /pid == {pid}/ {{ @calls = count(); }}");
    let asked = ScriptRequest { program, seconds: 50.0, by: Caller::default(), ..ScriptRequest::default() };
    let envelope = ended(&executions.start_script(&asked).unwrap());
    assert_eq!((envelope.status, &envelope.error), (Status::Stopped, &None), "{:?}", envelope.notes);
    assert!(envelope.window.seconds < 30.0, "it was to run for 50: {:?}", envelope.window);
    let note = envelope.notes.iter().find(|note| note.starts_with("detached")).expect("the reason");
    assert!(note.contains("over the budget of 0.5 %"), "{note}");
    assert_eq!(envelope.overhead.as_ref().unwrap().method, "measured");
    assert!(!envelope.reports.is_empty(), "what it counted until then: {envelope:?}");
    assert_recorded(&records);
}
