//! The engine that runs native probes, on the real kernel: limits, ends, refusals, and that nothing stays behind. Needs root; without,
//! it fails.

use std::{
    collections::BTreeSet,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use aya::maps::MapError;
use mcptrace::{
    audit::Trail,
    clock::Clock,
    execution::{
        Execution, Identity,
        probe::{ProbeSource, Subject},
    },
    executions::{Executions, Limits, ProbeRequest, Refusal},
    kernel::{
        attached::{Attached, Maps, Transport, possible_cpus},
        filter::Filter,
        loader::Kernel,
    },
    principal::{Caller, Principal},
    probes::{self, Context, Found, Reader},
    report::{Field, Kind, Row, Status},
};
use mcptrace_tests::{
    prober,
    probing::{ALL, assert_adds_up, assert_gone, calls, of_pid, programs_of, request, try_start},
    workload,
    workload::hex,
};
use serde_json::{Value, json};

const PROBES: [&str; 5] = ["syscall_counts", "syscall_latency", "file_opens", "block_latency", "runq_latency"];

fn seconds(probe: &str, seconds: f64) -> ProbeRequest {
    ProbeRequest { seconds, ..request(probe, &json!({}), &Filter::default()) }
}

fn ours() -> BTreeSet<u32> {
    programs_of(std::process::id())
}

/// A zombie is still in /proc, and a thread leaves its process behind.
#[test]
fn what_had_ended_before_the_time_was_up_is_said() {
    let executions = Executions::new(Limits::default());
    let notes = |filter: Filter, end: &mut dyn FnMut()| {
        let execution = executions.start_probe(&ProbeRequest { filter, ..seconds("syscall_counts", 0.5) }).unwrap();
        end();
        assert!(execution.wait(Duration::from_secs(20)));
        execution.envelope(&ALL).notes
    };
    let has =
        |notes: &[String], what: &str| notes.iter().any(|note| note.starts_with(&format!("the {what} had ended")));
    let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let alive = notes(of_pid(child.id()), &mut || {});
    assert!(!has(&alive, "process"), "{alive:?}");
    let zombie = notes(of_pid(child.id()), &mut || child.kill().unwrap());
    assert!(has(&zombie, "process"), "{zombie:?}");
    child.wait().unwrap();
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let (tell, told) = std::sync::mpsc::channel();
    thread::spawn(move || {
        tell.send(rustix::thread::gettid().as_raw_nonzero().get() as u32).unwrap();
        _ = gone.recv();
    });
    let filter = Filter { tid: Some(told.recv().unwrap()), ..Filter::default() };
    let ended = notes(filter, &mut || go.send(()).unwrap());
    assert!(has(&ended, "thread"), "{ended:?}");
}

#[test]
fn a_probe_ends_when_its_time_is_up_and_leaves_nothing() {
    let executions = Executions::new(Limits::default());
    for probe in PROBES {
        let execution = executions.start_probe(&seconds(probe, 1.0)).unwrap();
        let programs = ours();
        assert_eq!(execution.status(), Status::Running);
        assert!(execution.wait(Duration::from_secs(20)));
        let envelope = execution.envelope(&ALL);
        assert_eq!((envelope.status, &envelope.error), (Status::Completed, &None), "{probe}");
        assert!((1.0..10.0).contains(&envelope.window.seconds), "{probe}: {:?}", envelope.window);
        assert!(envelope.report.is_some() && envelope.window.end.is_some(), "{probe}");
        assert_adds_up(&envelope);
        assert_gone(&programs);
    }
}

#[test]
fn a_probe_that_is_stopped_leaves_nothing_at_once() {
    let executions = Executions::new(Limits::default());
    for probe in PROBES {
        let execution = executions.start_probe(&seconds(probe, 600.0)).unwrap();
        let programs = ours();
        assert!(execution.stop_and_wait());
        assert_eq!(execution.status(), Status::Stopped);
        assert!(ours().is_disjoint(&programs), "{probe}");
        assert_gone(&programs);
    }
}

#[test]
fn dropping_all_executions_leaves_nothing() {
    let executions = Executions::new(Limits::default());
    for probe in PROBES {
        executions.start_probe(&seconds(probe, 600.0)).unwrap();
    }
    let programs = ours();
    // A program each for entry and return, and so on: no probe has less than two.
    assert!(programs.len() >= 2 * PROBES.len(), "{programs:?}");
    drop(executions);
    assert_gone(&programs);
}

#[test]
fn killing_the_process_leaves_nothing() {
    for probe in PROBES {
        let prober = prober!(probe, 600, json!({}), &Filter::default());
        let programs = programs_of(prober.pid());
        prober.signal(libc::SIGKILL);
        drop(prober);
        assert_gone(&programs);
    }
}

/// A probe whose reader has a bug.
struct Panics;

impl Reader for Panics {
    fn report(&self, _maps: &Maps<'_>, _seconds: f64) -> Result<Found, MapError> {
        Ok(Found::default())
    }

    fn ended(&self) {}

    fn accepts(&self, _record: &[u8]) -> bool {
        panic!("a bug in a probe")
    }

    fn take(&self, _record: &[u8]) -> bool {
        panic!("a bug in a probe")
    }

    fn bytes(&self) -> usize {
        0
    }

    fn row(&self, _record: &[u8], _clock: &Clock) -> Option<Row> {
        None
    }

    fn event_fields(&self) -> Vec<Field> {
        Vec::new()
    }
}

#[test]
fn a_panic_fails_the_execution_and_leaves_nothing() {
    let kernel = Kernel::get().unwrap();
    let entry = probes::find("file_opens").unwrap();
    let filter = Filter::default().resolve().unwrap();
    let context =
        Context { layout: &kernel.layout, filter: &filter, cpus: possible_cpus(), transport: Transport::Ring };
    let mut prepared = (entry.prepare)(&serde_json::Map::new(), &context).unwrap();
    prepared.reader = Box::new(Panics);
    let attached = Attached::new(kernel, &prepared.plan).unwrap();
    let programs = ours();
    let identity = Identity {
        id: "exec_panics".into(),
        kind: Kind::Probe,
        probe: "file_opens".into(),
        filter: Row::new(),
        options: Row::new(),
        by: Caller::default(),
    };
    let source = Box::new(ProbeSource::new(attached, prepared, false, Subject::default(), entry.cost_ns));
    let execution = Execution::spawn(identity, source, Duration::from_mins(10), Trail::default(), |_| ()).unwrap();
    workload!().run(&format!("open openat {} 0 7 -100", hex("/dev/null")));
    assert!(execution.wait(Duration::from_secs(10)));
    let envelope = execution.envelope(&ALL);
    assert_eq!(envelope.status, Status::Failed);
    assert!(envelope.error.as_deref().unwrap().contains("a bug in a probe"), "{:?}", envelope.error);
    // The execution is still there, as one that has ended is for an hour.
    assert_gone(&programs);
}

#[test]
fn no_more_run_than_may() {
    let executions = Executions::new(Limits { running: 3, ..Limits::default() });
    let running: Vec<_> = (0..3).map(|_| executions.start_probe(&seconds("syscall_counts", 600.0)).unwrap()).collect();
    let refusal = executions.start_probe(&seconds("syscall_counts", 600.0)).unwrap_err();
    assert!(matches!(refusal, Refusal::Busy { running: 3 }), "{refusal}");
    assert!(running[1].stop_and_wait());
    executions.start_probe(&seconds("syscall_counts", 600.0)).unwrap();
    assert_eq!(executions.list(&Principal::cli()).len(), 4);
}

#[test]
fn as_many_as_may_run_can_start_at_once() {
    let executions = Executions::new(Limits { running: 7, ..Limits::default() });
    thread::scope(|scope| {
        let start = || executions.start_probe(&seconds("syscall_counts", 600.0)).map(drop);
        let all: Vec<_> = (0..11).map(|_| scope.spawn(start)).collect();
        let started: Vec<_> = all.into_iter().map(|one| one.join().unwrap()).collect();
        assert_eq!(started.iter().filter(|one| one.is_ok()).count(), 7, "{started:?}");
        assert!(started.iter().filter_map(|one| one.as_ref().err()).all(|one| matches!(one, Refusal::Busy { .. })));
    });
}

#[test]
fn a_failed_start_takes_no_place() {
    let executions = Executions::new(Limits { running: 1, ..Limits::default() });
    let bad = ProbeRequest {
        options: json!({"syscall": "no_such_call"}).as_object().unwrap().clone(),
        ..seconds("syscall_latency", 600.0)
    };
    for _ in 0..3 {
        assert!(matches!(executions.start_probe(&bad), Err(Refusal::Option(_))));
    }
    executions.start_probe(&seconds("syscall_latency", 600.0)).unwrap();
}

#[test]
fn what_has_ended_expires_and_says_so() {
    let executions = Executions::new(Limits { kept: 2, keep: Duration::from_millis(1500), ..Limits::default() });
    let mut ids = Vec::new();
    for _ in 0..3 {
        let execution = executions.start_probe(&seconds("syscall_counts", 0.01)).unwrap();
        assert!(execution.wait(Duration::from_secs(10)));
        ids.push(execution.identity.id.clone());
    }
    assert!(
        matches!(executions.get(&Principal::cli(), &ids[0]), Err(Refusal::Expired(_))),
        "more have ended than are kept"
    );
    assert!(executions.get(&Principal::cli(), &ids[2]).is_ok());
    thread::sleep(Duration::from_millis(1600));
    assert!(matches!(executions.get(&Principal::cli(), &ids[2]), Err(Refusal::Expired(_))), "it is too old");
    assert!(matches!(executions.get(&Principal::cli(), "exec_never"), Err(Refusal::UnknownId(_))));
    assert!(executions.list(&Principal::cli()).is_empty());
}

/// Who has many results pushes out its own, not the one of somebody else, though that is older.
#[test]
fn nobody_pushes_out_results_of_others() {
    let executions = Executions::new(Limits { kept: 3, ..Limits::default() });
    let run = |uid| {
        let request = ProbeRequest { by: Principal::user(uid).into(), ..seconds("syscall_counts", 0.01) };
        let execution = executions.start_probe(&request).unwrap();
        assert!(execution.wait(Duration::from_secs(10)));
        execution.identity.id.clone()
    };
    let modest = run(70_001);
    let greedy: Vec<_> = (0..7).map(|_| run(70_002)).collect();
    let listed = executions.list(&Principal::cli());
    let listed: Vec<_> = listed.iter().map(|execution| execution.identity.id.as_str()).collect();
    assert_eq!(listed, [&greedy[6], &greedy[5], &modest]);
}

#[test]
fn what_runs_does_not_expire() {
    let executions = Executions::new(Limits { kept: 0, keep: Duration::ZERO, bytes: 0, ..Limits::default() });
    let execution = executions.start_probe(&seconds("file_opens", 600.0)).unwrap();
    thread::sleep(Duration::from_millis(50));
    assert!(executions.get(&Principal::cli(), &execution.identity.id).is_ok());
}

#[test]
fn lengths_that_make_no_sense_are_refused() {
    let executions = Executions::new(Limits::default());
    for bad in [0.0, -0.0, -1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 86_400.1, 1e300] {
        let refusal = executions.start_probe(&seconds("syscall_counts", bad)).unwrap_err();
        assert!(matches!(refusal, Refusal::Seconds { .. }), "{bad}: {refusal}");
        assert!(refusal.to_string().contains("more than 0 and at most 86400"), "{refusal}");
    }
    let shortest = executions.start_probe(&seconds("syscall_counts", f64::MIN_POSITIVE)).unwrap();
    assert!(shortest.wait(Duration::from_secs(10)));
    assert_eq!(shortest.status(), Status::Completed);
}

#[test]
fn what_is_unknown_is_named_with_the_nearest_that_is_known() {
    let refused = |probe: &str, options: Value| try_start(probe, &options, &Filter::default()).unwrap_err();
    let refusal = refused("file_open", json!({}));
    assert_eq!((refusal.did_you_mean(), refusal.category()), (Some("file_opens"), "unknown_probe"));
    let refusal = refused("file_opens", json!({"failed": true}));
    assert_eq!((refusal.did_you_mean(), refusal.category()), (Some("failed_only"), "unknown_option"));
    assert!(refusal.to_string().contains("path_prefix"), "{refusal}");
    let refusal = refused("syscall_latency", json!({"syscall": "opennat"}));
    assert_eq!((refusal.did_you_mean(), refusal.category()), (Some("openat"), "invalid_option"));
    for (probe, options, word) in [
        ("syscall_counts", json!({"by": "cpu"}), "total, pid, comm"),
        ("syscall_counts", json!({"by": 7}), "options.by: "),
        ("file_opens", json!({"path_prefix": "x".repeat(129)}), "128"),
        ("file_opens", json!({"path_prefix": ""}), "path_prefix"),
        ("file_opens", json!({"transport": "pigeon"}), "pigeon"),
        ("syscall_latency", json!({"slower_than_us": -1}), "slower_than_us"),
    ] {
        let refusal = refused(probe, options.clone());
        assert_eq!(refusal.category(), "invalid_option", "{options}");
        assert!(refusal.to_string().contains(word), "{options}: {refusal}");
    }
}

#[test]
fn filters_that_name_nothing_are_refused() {
    let bad = |filter: &Filter| try_start("syscall_counts", &json!({}), filter).unwrap_err();
    let none = Filter::default();
    for (filter, word) in [
        (of_pid(0x7fff_fff0), "there is no process 2147483632"),
        (Filter { tid: Some(0x7fff_fff0), ..none.clone() }, "there is no thread"),
        (Filter { comm: Some("sixteen_letters_".into()), ..none.clone() }, "15 bytes"),
        (Filter { cgroup: Some("no/such/group".into()), ..none.clone() }, "no control group"),
        (Filter { cgroup: Some("../..".into()), ..none.clone() }, "no control group"),
        (Filter { container: Some("no_such_container".into()), ..none.clone() }, "is no container id"),
        (Filter { container: Some("fedcba987654".into()), ..none.clone() }, "no control group"),
        (Filter { descendants: true, ..none.clone() }, "needs filter.pid"),
    ] {
        let refusal = bad(&filter);
        assert_eq!(refusal.category(), "invalid_filter", "{filter:?}");
        assert!(refusal.to_string().contains(word), "{refusal}");
    }
}

#[test]
fn a_filter_that_nothing_matches_gives_an_empty_report_that_says_so() {
    let executions = Executions::new(Limits::default());
    for probe in PROBES {
        let filter = Filter { comm: Some("nobody_has_this".into()), ..Filter::default() };
        let execution = executions.start_probe(&ProbeRequest { filter, ..seconds(probe, 0.3) }).unwrap();
        assert!(execution.wait(Duration::from_secs(10)));
        let envelope = execution.envelope(&ALL);
        assert_eq!((envelope.status, &envelope.error), (Status::Completed, &None), "{probe}");
        assert_eq!((envelope.loss.seen, envelope.loss.dropped_total()), (Some(0), 0), "{probe}");
        let said = envelope.notes.iter().any(|note| note.contains("nothing matched"));
        assert!(said && envelope.report.is_some(), "{probe}: {:?}", envelope.notes);
    }
}

#[test]
fn the_loss_adds_up_under_load_and_the_cost_was_measured() {
    let executions = Executions::new(Limits::default());
    for probe in PROBES {
        let mut workload = workload!();
        let execution = executions.start_probe(&seconds(probe, 1.0)).unwrap();
        workload.run(&format!("flood_seconds 3 1 {}", hex("/dev/null")));
        assert!(execution.wait(Duration::from_secs(20)));
        let envelope = execution.envelope(&ALL);
        assert_adds_up(&envelope);
        let overhead = envelope.overhead.unwrap();
        // Whether a disk is used while the cost is measured is not up to this test.
        if probe != "block_latency" {
            assert_eq!(overhead.method, "measured", "{probe}");
            assert!(envelope.loss.seen.unwrap() > 100, "{probe}: {:?}", envelope.loss);
            assert!(overhead.ns_per_event > Some(1.0) && overhead.cpu_percent > 0.0, "{probe}: {overhead:?}");
        }
    }
}

#[test]
fn whenever_it_is_asked_it_has_an_answer() {
    let executions = Executions::new(Limits::default());
    for probe in PROBES {
        let execution = executions.start_probe(&seconds(probe, 0.4)).unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        let mut last_seen = 0;
        loop {
            let ended = execution.status() != Status::Running;
            let envelope = execution.envelope(&ALL);
            assert!(envelope.report.is_some(), "{probe}: {:?} without a report", envelope.status);
            let seen = envelope.loss.seen.unwrap_or_else(|| panic!("{probe}: seen is absent"));
            assert!(seen >= last_seen, "{probe}: {seen} after {last_seen}");
            let quick = execution.loss();
            assert!(quick.seen >= Some(seen), "{probe}: {quick:?} after {seen}");
            last_seen = seen;
            if ended {
                break;
            }
            assert!(Instant::now() < until);
        }
    }
}

#[test]
fn many_executions_at_once_count_the_same() {
    let executions = Executions::new(Limits::default());
    let mut workload = workload!();
    let request = ProbeRequest { filter: of_pid(workload.pid()), ..seconds("syscall_counts", 600.0) };
    let all: Vec<Arc<Execution>> = (0..7).map(|_| executions.start_probe(&request).unwrap()).collect();
    workload.run("getppid 1009");
    for execution in &all {
        assert!(execution.stop_and_wait());
        assert_eq!(calls(&execution.envelope(&ALL)).of("getppid"), (1009, 0, 0));
    }
}
