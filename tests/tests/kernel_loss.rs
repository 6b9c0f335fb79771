//! What is lost is counted, to the event, on the real kernel: floods, a reader that stands still, full buffers and full maps. Needs root;
//! without, it fails.
//!
//! `MCPTRACE_TEST_EVENTS` says how many events each test makes; 200,000 if it is not set. With 10,000,000 all of it takes some minutes.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "the helpers are part of the tests")]

use std::time::Duration;

use mcptrace::{
    execution::Page,
    report::{Envelope, Report},
};
use mcptrace_tests::{
    prober,
    probing::{assert_adds_up, of_pid, start},
    workload,
    workload::{Workload, hex},
};
use serde_json::{Value, json};

/// How events travel.
const TRANSPORTS: [&str; 2] = ["ring", "perf"];

/// More than any buffer or map holds.
const LEAST: u64 = 200_000;

fn asked_for() -> u64 {
    let Ok(text) = std::env::var("MCPTRACE_TEST_EVENTS") else { return LEAST };
    let number = text.parse().unwrap_or_else(|error| panic!("MCPTRACE_TEST_EVENTS={text}: {error}"));
    assert!(number >= LEAST, "MCPTRACE_TEST_EVENTS={text}: fewer than {LEAST} fill nothing");
    number
}

/// Has a workload do something under a probe, which may then take its time: a full map has thousands of rows.
fn watched(probe: &str, options: &Value, workload: &mut Workload, command: &str) -> Envelope {
    let execution = start(probe, options, &of_pid(workload.pid()));
    workload.run(command);
    execution.stop();
    assert!(execution.wait(Duration::from_mins(2)), "{probe} does not end");
    execution.envelope(&Page { from: 0, event: 0, limit: 7, max_bytes: usize::MAX })
}

/// Every event that the workload made was delivered, dropped for a reason, or kept from the program by the kernel, who counts that.
#[track_caller]
fn assert_accounted_for(what: &str, envelope: &Envelope, made: u64) {
    let loss = &envelope.loss;
    let (seen, delivered, missed) = (loss.seen.unwrap(), loss.delivered.unwrap(), loss.missed.unwrap());
    println!("{what}: made {made}, seen {seen}, delivered {delivered}, dropped {:?}, missed {missed}", loss.dropped);
    assert_adds_up(envelope);
    assert_eq!(seen + missed, made, "{what}: {loss:?}");
    if let Some(Report::Events(events)) = &envelope.report {
        assert_eq!(delivered, events.rows_total, "{what}: what is in the report was counted where it was built");
    }
}

/// Something that can be made in any number, and the probe that sees each.
struct Flood {
    probe: &'static str,
    options: Value,
    /// The command that makes so many.
    command: fn(u64) -> String,
}

/// Two threads that open a file.
fn opens() -> Flood {
    let command = |events: u64| format!("flood 2 {} {}", events / 2, hex("/dev/null"));
    Flood { probe: "file_opens", options: json!({}), command }
}

/// The same with paths of a thousand bytes, of which few fit into a buffer.
fn long_opens() -> Flood {
    let command = |events: u64| format!("flood 2 {} {}", events / 2, hex(format!("{}dev/null", "/".repeat(1000))));
    Flood { command, ..opens() }
}

/// A process that sends itself signals that it ignores.
fn raised() -> Flood {
    let command = |events: u64| format!("raise {events} {}", libc::SIGURG);
    Flood { probe: "signals", options: json!({}), command }
}

impl Flood {
    fn by(&self, transport: &str) -> Value {
        let mut options = self.options.clone();
        options["transport"] = json!(transport);
        options
    }
}

#[test]
fn a_flood_of_events_is_accounted_for() {
    let events = asked_for();
    for flood in [opens(), raised()] {
        for transport in TRANSPORTS {
            let mut workload = workload!();
            let envelope = watched(flood.probe, &flood.by(transport), &mut workload, &(flood.command)(events));
            assert_accounted_for(&format!("flood of {} by {transport}", flood.probe), &envelope, events);
        }
    }
}

#[test]
fn what_a_reader_that_stands_still_leaves_is_accounted_for() {
    let events = asked_for();
    let (before, after) = (5_000, 5_000);
    for flood in [opens(), raised()] {
        for transport in TRANSPORTS {
            let mut workload = workload!();
            let mut reader = prober!(flood.probe, 3600, flood.by(transport), &of_pid(workload.pid()));
            workload.run(&(flood.command)(before));
            reader.signal(libc::SIGSTOP);
            workload.run(&(flood.command)(events));
            reader.signal(libc::SIGCONT);
            workload.run(&(flood.command)(after));
            let envelope = reader.end();
            let what = format!("{} by {transport}, the reader stopped", flood.probe);
            assert_accounted_for(&what, &envelope, before + events + after);
            assert!(envelope.loss.dropped["buffer_full"] > 0, "{what}: {:?}", envelope.loss);
        }
    }
}

#[test]
fn what_finds_the_buffers_full_is_accounted_for() {
    let events = asked_for();
    let flood = long_opens();
    for transport in TRANSPORTS {
        let mut workload = workload!();
        let mut reader = prober!(flood.probe, 3600, flood.by(transport), &of_pid(workload.pid()));
        reader.signal(libc::SIGSTOP);
        workload.run(&(flood.command)(events));
        reader.signal(libc::SIGCONT);
        let envelope = reader.end();
        let what = format!("long paths by {transport}, the buffers full");
        assert_accounted_for(&what, &envelope, events);
        // A record is more than 1 KB, and the buffers of all CPUs are some MB: nearly all of it is lost.
        assert!(envelope.loss.dropped["buffer_full"] > events / 2, "{what}: {:?}", envelope.loss);
    }
}

#[test]
fn what_finds_a_map_of_errors_full_is_accounted_for() {
    let events = asked_for();
    // By command: more names than the map has room for, 16,384.
    let names = 20_011;
    let mut workload = workload!();
    let options = json!({"syscall": "close"});
    let command = format!("close_bad_named {events} {names}");
    let envelope = watched("syscall_errors", &options, &mut workload, &command);
    assert_accounted_for("a map of errors that is full", &envelope, events);
    // Every name comes as often, and once there it stays.
    let (rounds, rest) = (events / names, events % names);
    let kept = 16_384 * rounds + rest.min(16_384);
    assert_eq!(envelope.loss.dropped["map_full"], events - kept, "{:?}", envelope.loss);
}

#[test]
fn what_finds_a_map_of_files_full_is_accounted_for() {
    // A file costs more than a call.
    let files = asked_for() / 10;
    let mut workload = workload!();
    let envelope = watched("file_io", &json!({}), &mut workload, &format!("file_write_each {files}"));
    assert_accounted_for("a map of files that is full", &envelope, files);
    assert!(envelope.loss.dropped["map_full"] > 0, "{:?}", envelope.loss);
}

#[test]
fn a_flood_of_calls_from_several_threads_is_counted_without_loss() {
    let events = asked_for();
    let threads = 4;
    let mut workload = workload!();
    let options = json!({"syscall": "getppid"});
    let command = format!("getppid_threads {threads} {}", events / threads);
    let envelope = watched("syscall_latency", &options, &mut workload, &command);
    assert_accounted_for("a flood of calls", &envelope, events / threads * threads);
    let Some(Report::Histogram(histogram)) = &envelope.report else { panic!("{envelope:?}") };
    let counted: u64 = histogram.series.iter().map(|one| one.count).sum();
    assert_eq!(Some(counted), envelope.loss.delivered);
}
