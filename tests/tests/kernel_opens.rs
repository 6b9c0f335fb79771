//! `file_opens` on the real kernel, against workloads of known size. Needs root; without, it fails.
#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    time::Duration,
};

use mcptrace::{
    kernel::filter::Filter,
    report::{Envelope, Report, Row},
};
use mcptrace_tests::{
    prober,
    probing::{around, assert_adds_up, assert_no_loss, events, of_pid},
    workload,
    workload::{Workload, hex},
};
use serde_json::{Value, json};

const KINDS: [&str; 6] = ["open", "openat", "openat2", "creat", "i386:open", "i386:openat"];

/// What `file_opens` shows of a workload.
fn opens(workload: &mut Workload, options: &Value, commands: &[String]) -> Vec<Row> {
    let envelope = around("file_opens", options, &of_pid(workload.pid()), || {
        for command in commands {
            workload.run(command);
        }
    });
    assert_no_loss(&envelope);
    events(&envelope).to_vec()
}

/// A command that opens so often.
fn open(kind: &str, path: impl AsRef<[u8]>, flags: i32, times: u32) -> String {
    format!("open {kind} {} {flags} {times} -100", hex(path))
}

fn one_open(workload: &mut Workload, path: impl AsRef<[u8]>) -> Row {
    let rows = opens(workload, &json!({}), &[open("openat", path, 0, 1)]);
    assert_eq!(rows.len(), 1, "{rows:?}");
    rows.into_iter().next().unwrap()
}

fn time(row: &Row) -> String {
    row["time"].as_str().unwrap().to_owned()
}

fn path_of(directory: &tempfile::TempDir, name: &str) -> String {
    directory.path().join(name).to_str().unwrap().to_owned()
}

#[test]
fn naming_a_process_is_not_traced_into_more_to_name() {
    let own = std::process::id();
    let envelope = around("file_opens", &json!({}), &of_pid(own), || {
        fs::File::open("/etc/hostname").unwrap();
        std::thread::sleep(Duration::from_secs(2));
    });
    let looks = format!("/proc/{own}/");
    let looks =
        events(&envelope).iter().filter(|row| row["path"].as_str().is_some_and(|path| path.starts_with(&looks)));
    assert!(looks.count() <= 4, "each look at this process was traced, and looked at: {:?}", envelope.loss);
}

#[test]
fn every_open_is_an_event_with_all_that_it_was_asked_and_given() {
    let directory = tempfile::tempdir().unwrap();
    let there = path_of(&directory, "there");
    let missing = path_of(&directory, "no/such/file");
    for transport in ["ring", "perf"] {
        for kind in KINDS {
            fs::write(&there, "").unwrap();
            let mut workload = workload!();
            workload.run("comm opener");
            let mut results = Vec::new();
            let envelope = around("file_opens", &json!({"transport": transport}), &of_pid(workload.pid()), || {
                results.extend(workload.run(&open(kind, &there, libc::O_WRONLY | libc::O_APPEND, 16)));
                results.extend(workload.run(&open(kind, &missing, libc::O_WRONLY | libc::O_APPEND, 7)));
            });
            assert_no_loss(&envelope);
            let mut rows = events(&envelope).to_vec();
            // The buffers of several CPUs are read one after the other; the ring has one order.
            if transport == "perf" {
                rows.sort_by_key(time);
            }
            assert!(rows.is_sorted_by_key(time));
            assert_eq!(rows.len(), 23, "{transport} {kind}");
            for (index, (row, result)) in rows.iter().zip(&results).enumerate() {
                let fails = index >= 16;
                assert_eq!(row["path"], if fails { &*missing } else { &there });
                let flags = if kind == "creat" { "O_WRONLY|O_CREAT|O_TRUNC" } else { "O_WRONLY|O_APPEND" };
                assert_eq!((&row["syscall"], &row["flags"]), (&json!(kind), &json!(flags)));
                assert_eq!(
                    (&row["pid"], &row["tid"], &row["uid"]),
                    (&json!(workload.pid()), &json!(workload.pid()), &json!(0))
                );
                assert_eq!(row["comm"], "opener");
                assert!(row["latency_ns"].as_u64().unwrap() > 0);
                if fails {
                    assert_eq!((*result, row.get("errno"), row.get("fd")), (-2, Some(&json!("ENOENT")), None));
                } else {
                    assert_eq!((row.get("fd"), row.get("errno")), (Some(&json!(result)), None));
                }
            }
        }
    }
}

#[test]
fn a_relative_path_stands_with_its_directory() {
    let mut workload = workload!();
    let directory = workload.run(&format!("opendir {}", hex("/proc/self")))[0];
    let rows = opens(
        &mut workload,
        &json!({}),
        &[
            format!("open openat {} 0 1 {directory}", hex("status")),
            open("openat", "no_such_relative", 0, 1),
            open("open", "no_such_relative", 0, 1),
            open("openat", "", 0, 1),
            open("openat", "/proc/self/status", 0, 1),
        ],
    );
    let found: Vec<_> = rows.iter().map(|row| (row["path"].as_str().unwrap(), row.get("dirfd").cloned())).collect();
    assert_eq!(
        found,
        [
            ("status", Some(json!(directory))),
            ("no_such_relative", Some(json!(-100))),
            ("no_such_relative", Some(json!(-100))),
            ("", Some(json!(-100))),
            ("/proc/self/status", None),
        ]
    );
}

#[test]
fn only_failures_are_shown_if_asked_for() {
    for kind in KINDS {
        let directory = tempfile::tempdir().unwrap();
        let rows = opens(
            &mut workload!(),
            &json!({"failed_only": true}),
            &[
                open(kind, path_of(&directory, "made"), libc::O_WRONLY | libc::O_CREAT, 16),
                open(kind, path_of(&directory, "no/such"), libc::O_WRONLY | libc::O_CREAT, 7),
            ],
        );
        // openat of the 32-bit table gets no mode from the workload; it does not matter to the result.
        assert_eq!(rows.len(), 7, "{kind}");
        assert!(rows.iter().all(|row| row["errno"] == "ENOENT"), "{kind}");
    }
}

#[test]
fn a_prefix_keeps_what_starts_with_it_and_nothing_else() {
    let mut workload = workload!();
    for length in [1, 7, 8, 9, 63, 64, 65, 127, 128] {
        let prefix = format!("/{}", "p".repeat(length - 1));
        let differs_in_the_last = format!("{}q", &prefix[..length - 1]);
        let rows = opens(
            &mut workload,
            &json!({"path_prefix": prefix}),
            &[
                open("openat", &prefix, 0, 2),
                open("openat", format!("{prefix}/longer"), 0, 3),
                open("open", format!("{prefix}x"), 0, 5),
                open("openat", &differs_in_the_last, 0, 7),
                open("openat", format!("{differs_in_the_last}{prefix}"), 0, 11),
                open("openat", &prefix[..length - 1], 0, 13),
                open("openat", format!("q{}", &prefix[1..]), 0, 17),
                "open_unreadable openat 19".to_owned(),
            ],
        );
        assert_eq!(rows.len(), 2 + 3 + 5, "{length}");
        assert!(rows.iter().all(|row| row["path"].as_str().unwrap().starts_with(&prefix)));
    }
}

#[test]
fn what_a_shorter_path_left_behind_is_not_compared() {
    let rows = opens(
        &mut workload!(),
        &json!({"path_prefix": "/aaaaaaaa"}),
        &[open("openat", "/aaaaaaaaaaaa", 0, 3), open("openat", "/aaaa", 0, 7)],
    );
    assert_eq!(rows.len(), 3);
}

#[test]
fn the_longest_path_is_whole() {
    // PATH_MAX counts the final NUL (include/uapi/linux/limits.h).
    let path = format!("{}dev/null", "/".repeat(4095 - 8));
    for transport in ["ring", "perf"] {
        let rows = opens(&mut workload!(), &json!({"transport": transport}), &[open("openat", &path, 0, 3)]);
        assert_eq!(rows.len(), 3);
        assert!(rows.iter().all(|row| row["path"] == *path && row["fd"].is_number()));
    }
}

#[test]
fn a_path_that_is_too_long_fails_and_shows_its_beginning() {
    let row = one_open(&mut workload!(), format!("/{}", "x".repeat(5000)));
    assert_eq!(row["errno"], "ENAMETOOLONG");
    assert!(row["path"].as_str().unwrap().starts_with(&format!("/{}", "x".repeat(4094))));
}

#[test]
fn a_path_that_cannot_be_read_is_said_to_be_so() {
    for kind in KINDS {
        let rows = opens(&mut workload!(), &json!({}), &[format!("open_unreadable {kind} 7")]);
        assert_eq!(rows.len(), 7, "{kind}");
        for row in rows {
            assert_eq!(
                (row.get("path"), &row["path_error"], &row["errno"]),
                (None, &json!("EFAULT"), &json!("EFAULT"))
            );
        }
    }
}

#[test]
fn what_a_path_could_do_to_a_reader_is_escaped() {
    let mut workload = workload!();
    let mut path = |bytes: &[u8]| one_open(&mut workload, bytes)["path"].as_str().unwrap().to_owned();
    assert_eq!(path(b"/tmp/\x1b[2J\r\n\x07"), "/tmp/\\u{1b}[2J\\u{d}\\u{a}\\u{7}");
    assert_eq!(path(b"/tmp/\xff\xc3"), "/tmp/\\xff\\xc3");
    assert_eq!(path("/tmp/é\u{202e}".as_bytes()), "/tmp/é\\u{202e}");
}

#[test]
fn a_short_open_is_left_out_if_asked_for() {
    let mut workload = workload!();
    let filter = Filter { min_duration_us: Some(60_000_000), ..of_pid(workload.pid()) };
    let envelope = around("file_opens", &json!({}), &filter, || drop(workload.run(&open("openat", "/dev/null", 0, 7))));
    assert_eq!((events(&envelope).len(), envelope.loss.seen), (0, Some(0)));
}

#[test]
fn filters_show_what_matches_and_nothing_else() {
    const USER: u32 = 61_013;
    let (mut one, mut other) = (workload!(), workload!());
    one.run("comm first_opener");
    one.run(&format!("setuid {USER}"));
    let tid = one.run("thread")[0] as u32;
    let by = |filter: Filter| filter;
    let filters = [
        (by(Filter { comm: Some("first_opener".into()), ..Filter::default() }), 18),
        (by(Filter { uid: Some(USER), ..Filter::default() }), 18),
        (by(Filter { tid: Some(tid), ..Filter::default() }), 11),
        (by(Filter { tid: Some(one.pid()), ..Filter::default() }), 7),
        (by(of_pid(one.pid())), 18),
        (by(of_pid(other.pid())), 5),
    ];
    for (filter, expected) in filters {
        let envelope = around("file_opens", &json!({}), &filter, || {
            one.run(&open("openat", "/dev/null", 0, 7));
            one.run(&format!("in_thread {}", open("openat", "/dev/null", 0, 11)));
            other.run(&open("openat", "/dev/null", 0, 5));
        });
        assert_no_loss(&envelope);
        assert_eq!(events(&envelope).len(), expected, "{filter:?}");
    }
}

#[test]
fn without_a_filter_the_opens_of_all_are_there() {
    let (mut one, mut other) = (workload!(), workload!());
    let envelope = around("file_opens", &json!({"path_prefix": "/nonexistent/prime"}), &Filter::default(), || {
        one.run(&open("openat", "/nonexistent/prime/23", 0, 23));
        other.run(&open("openat", "/nonexistent/prime/29", 0, 29));
    });
    assert_no_loss(&envelope);
    let of = |pid: u32| events(&envelope).iter().filter(|row| row["pid"] == pid).count();
    assert_eq!((of(one.pid()), of(other.pid())), (23, 29));
}

/// The report as JSON has numbers that do not fit into a page of rows.
fn taken_in(envelope: &Envelope) -> (u64, u64) {
    match envelope.report.as_ref().unwrap() {
        Report::Events(events) => (events.rows_total, events.rows_evicted),
        other => panic!("not events: {other:?}"),
    }
}

fn assert_all_accounted_for(envelope: &Envelope, opens: u64) {
    assert_adds_up(envelope);
    let loss = &envelope.loss;
    assert_eq!(loss.seen.unwrap() + loss.missed.unwrap_or(0), opens, "{loss:?}");
    let (total, evicted) = taken_in(envelope);
    assert_eq!(loss.delivered, Some(total));
    // 8 MB of events are kept; the rest is counted, and said.
    let said = envelope.notes.iter().any(|note| note.starts_with(&format!("{evicted} older events")));
    assert_eq!(said, evicted > 0, "{evicted} of {total}: {:?}", envelope.notes);
}

#[test]
fn a_flood_is_delivered_or_counted_to_the_event() {
    let mut workload = workload!();
    let command = format!("flood_seconds 3 10 {}", hex("/dev/null"));
    let mut opens = 0;
    let envelope = around("file_opens", &json!({}), &of_pid(workload.pid()), || opens = workload.run(&command)[0]);
    println!("{opens} opens in 10 s: {:?} {:?}", envelope.loss, envelope.overhead);
    assert_all_accounted_for(&envelope, opens as u64);
}

#[test]
fn a_flood_through_perf_buffers_is_delivered_or_counted_to_the_event() {
    let mut workload = workload!();
    let command = format!("flood_seconds 3 3 {}", hex("/dev/null"));
    let mut opens = 0;
    let options = json!({"transport": "perf"});
    let envelope = around("file_opens", &options, &of_pid(workload.pid()), || opens = workload.run(&command)[0]);
    println!("{opens} opens in 3 s: {:?} {:?}", envelope.loss, envelope.overhead);
    assert_all_accounted_for(&envelope, opens as u64);
}

#[test]
fn what_a_stopped_reader_could_not_take_is_counted_to_the_event() {
    for transport in ["ring", "perf"] {
        let mut workload = workload!();
        let mut prober = prober!("file_opens", 600, json!({"transport": transport}), &of_pid(workload.pid()));
        let path = hex(format!("{}dev/null", "/".repeat(1000)));
        let mut opens = workload.run(&format!("flood 2 5003 {path}"))[0];
        prober.signal(libc::SIGSTOP);
        // 40 MB of records for buffers of 8.
        opens += workload.run(&format!("flood 2 20011 {path}"))[0];
        prober.signal(libc::SIGCONT);
        opens += workload.run(&format!("flood 2 5003 {path}"))[0];
        let envelope = prober.end();
        println!("{transport}: {:?}", envelope.loss);
        assert_all_accounted_for(&envelope, opens as u64);
        assert!(envelope.loss.dropped["buffer_full"] > 20_000, "{:?}", envelope.loss);
        assert!(taken_in(&envelope).1 > 0, "more was delivered than is kept");
    }
}

/// `opensnoop` of libbpf-tools.
#[test]
fn opensnoop_sees_the_same() {
    let mut workload = workload!();
    // It fills a whole block before it writes to a pipe, unless told otherwise.
    let arguments = ["-oL", "opensnoop", "-p", &workload.pid().to_string()].map(str::to_owned);
    let mut opensnoop = Command::new("stdbuf").args(arguments).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(opensnoop.stdout.take().unwrap()).lines().map(|line| line.unwrap());
    // It prints its heading before it listens: the first open that it shows tells that it does.
    let first = std::thread::spawn(move || lines.find(|line| line.contains("/nonexistent/first")).map(|_| lines));
    while !first.is_finished() {
        workload.run(&open("openat", "/nonexistent/first", 0, 1));
        std::thread::sleep(Duration::from_millis(50));
    }
    let lines = first.join().unwrap().expect("opensnoop of the package libbpf-tools");
    let prefix = json!({"path_prefix": "/nonexistent/prime"});
    let rows = opens(&mut workload, &prefix, &[open("openat", "/nonexistent/prime", 0, 23)]);
    workload.run(&open("openat", "/nonexistent/last", 0, 1));
    let seen = lines.take_while(|line| !line.contains("/nonexistent/last"));
    assert_eq!((rows.len(), seen.filter(|line| line.contains("/prime")).count()), (23, 23));
    opensnoop.kill().unwrap();
    opensnoop.wait().unwrap();
}
