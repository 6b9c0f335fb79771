//! The recorder's store: what ends its writer, what becomes of its file, and how large that is.
#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use mcptrace::{
    distribution::RELATIVE_ERROR,
    recorder::{
        history::{self, Query},
        metrics::{self, METRICS},
        place,
        status::{self, Status},
        store::{self, Keeper, Limits, OpenError, Reason, State, kept::Kept},
        tick::{self, Tick},
    },
    report::Envelope,
};
use mcptrace_tests::{
    histories::{self, ask, folder, keep, keeper, limits, missing, query, sql, table, total},
    simulated::{SECOND, START, calls, latencies, level, tick},
};
use serde_json::json;
use tempfile::TempDir;

#[test]
fn every_tick_goes_into_every_tier_once_whatever_ends_the_process() {
    let folder = folder();
    let second = |n: i64| {
        tick(n, vec![calls("redis", "user", n as u64), level("sda", n as f64), latencies("sda", &[n as u64 * 1000])])
    };
    // Ends without a word after odd numbers of seconds, in the middle of spans of both tiers.
    let ends = [1, 97, 98, 1009, 2003, 4999, 5000, 7507];
    let mut before = 0;
    for end in ends {
        let mut keeper = keeper(folder.path());
        keep(&mut keeper, (before + 1..=end).map(second));
        before = end;
    }
    let last = before as u64;
    let whole =
        |metric: &str, step: &str| ask(folder.path(), &Query { step: step.into(), ..query(metric, 0, before) }, before);
    for step in ["60s", "10s", "7m"] {
        let answer = whole("test_calls", step);
        assert_eq!(total(&answer), last * (last + 1) / 2, "{step}");
        assert_eq!(answer.coverage[0].recorded_seconds as i64, before, "{step}");
    }
    let level = whole("test_level", "60s");
    let row = &table(&level).rows[0];
    assert_eq!((row["least"].as_f64(), row["greatest"].as_f64()), (Some(1.0), Some(before as f64)));
    assert!((row["average"].as_f64().unwrap() - f64::midpoint(before as f64, 1.0)).abs() < 1.0, "{row:?}");
    let latency = whole("test_latency_ns", "60s");
    let row = &table(&latency).rows[0];
    assert_eq!((row["count"].as_u64(), row["greatest"].as_u64()), (Some(last), Some(last * 1000)));
    for (name, share) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)] {
        let exact = (last as f64 * share).ceil() * 1000.0;
        let found = row[name].as_f64().unwrap();
        assert!((found - exact).abs() <= exact * RELATIVE_ERROR, "{name}: {found} for {exact}");
    }
}

/// A machine without a clock of its own starts decades ago, until somebody tells it the time.
#[test]
fn a_clock_that_is_wrong_for_some_minutes_costs_nothing_that_was_kept() {
    const YEARS: i64 = 10 * 365 * 86_400;
    let folder = folder();
    let second = |n: i64| tick(n, vec![calls("a", "user", 1)]);
    for wrong in [-YEARS, YEARS] {
        let mut keeper = keeper(folder.path());
        keep(&mut keeper, (1..=600).map(second));
        keep(&mut keeper, (601..=900).map(|n| second(n + wrong)));
        keep(&mut keeper, (901..=1200).map(second));
        drop(keeper);
        // It was started with it, and was told later.
        let mut keeper = histories::keeper(folder.path());
        keep(&mut keeper, (1201..=1500).map(|n| second(n + wrong)));
        keep(&mut keeper, (1501..=1800).map(second));
    }
    let whole = ask(folder.path(), &Query { step: "60s".into(), ..query("test_calls", 0, 1800) }, 1800);
    assert_eq!(total(&whole), 2 * 1200, "what was recorded at the right time is all there");
    // What is old by a clock that goes on for hours goes.
    let mut keeper = keeper(folder.path());
    keep(&mut keeper, (1..=4000).map(|n| second(n + 40 * 86_400)));
    let old = ask(folder.path(), &Query { step: "60s".into(), ..query("test_calls", 0, 1800) }, 40 * 86_400 + 4000);
    assert_eq!(table(&old).rows.len(), 0, "{:?}", table(&old));
}

#[test]
fn there_is_one_writer() {
    let folder = folder();
    let keeper = keeper(folder.path());
    let second = Keeper::open(&place::file(folder.path()), limits());
    assert!(matches!(second, Err(OpenError::Taken(_))), "{second:?}");
    drop(keeper);
    histories::keeper(folder.path());
}

/// A daemon must begin however often somebody looks whether one runs.
#[test]
fn who_looks_whether_it_is_recorded_keeps_nobody_from_beginning() {
    let folder = folder();
    let file = place::file(folder.path());
    drop(keeper(folder.path()));
    let end = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !end.load(std::sync::atomic::Ordering::Relaxed) {
                    store::is_recorded(&file);
                }
            });
        }
        let begun: Vec<bool> = (0..50).map(|_| Keeper::open(&file, limits()).is_ok()).collect();
        let seen = Keeper::open(&file, limits()).map(|_keeper| store::is_recorded(&file));
        end.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(begun.iter().all(|begun| *begun), "{begun:?}");
        assert!(seen.unwrap() && !store::is_recorded(&file));
    });
}

/// Runs a process that writes from a second on, kills it after so long, and gives the last second that it said it had handed over.
fn write_and_kill(folder: &Path, first: i64, after: Duration) -> i64 {
    let mut writer = Command::new(env!("CARGO_BIN_EXE_history_writer"));
    writer.arg(folder).arg(first.to_string()).stdout(Stdio::piped());
    let mut writer = writer.spawn().unwrap();
    let output = writer.stdout.take().unwrap();
    let reader = std::thread::spawn(move || BufReader::new(output).lines().map_while(Result::ok).last());
    std::thread::sleep(after);
    writer.kill().unwrap();
    writer.wait().unwrap();
    reader.join().unwrap().map_or(first - 1, |last| last.parse().unwrap())
}

#[test]
fn a_killed_writer_loses_nothing_that_it_had_handed_over() {
    let folder = folder();
    keep(&mut keeper(folder.path()), [tick(0, vec![calls("a", "user", 1)])]);
    let mut next = 1;
    for round in 0..25_u64 {
        // Whoever is killed at any moment has said at most one second less than it has written.
        let last = write_and_kill(folder.path(), next, Duration::from_millis(20 + round * 23 % 170));
        let mut keeper = keeper(folder.path());
        let answer =
            ask(folder.path(), &Query { step: "1s".into(), ..query("test_calls", last - 500, last + 5) }, last + 5);
        let rates =
            answer.points.first().map(|points| points["per_second"].as_array().unwrap().clone()).unwrap_or_default();
        if last >= next {
            assert_eq!(rates[499].as_f64(), Some(1.0), "round {round}: second {last} of {next}..: {rates:?}");
        }
        // The next process begins two seconds later, so that nothing is written twice.
        next = last + 3;
        keep(&mut keeper, [tick(next - 1, vec![calls("a", "user", 1)])]);
        drop(keeper);
    }
    assert!(next > 500, "{next}: the writer hardly wrote");
    // In parts, because an answer has a bounded number of steps, and a quick machine writes many seconds.
    let whole = |step: &str| -> u64 {
        let parts = (0..next).step_by(12_000).map(|from| query("test_calls", from, next.min(from + 12_000)));
        parts.map(|part| total(&ask(folder.path(), &Query { step: step.into(), ..part }, next))).sum()
    };
    let (fine, coarse) = (whole("10s"), whole("60s"));
    assert_eq!(fine, coarse, "both tiers hold the same ticks");
    assert!(fine as i64 >= next - 1 - 25 && fine as i64 <= next + 1, "{fine} of {next}");
    let checked = rusqlite_check(folder.path());
    assert_eq!(checked, "ok");
}

fn rusqlite_check(folder: &Path) -> String {
    let connection = rusqlite::Connection::open(place::file(folder)).unwrap();
    connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap()
}

/// A file system in memory of so many megabytes, which is unmounted with it.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn new(megabytes: u64) -> Self {
        let folder = folder();
        let size = format!("size={megabytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path()).status();
        assert!(mounted.unwrap().success(), "needs root to mount a small file system");
        Self(folder)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_stops_the_recording_and_nothing_else() {
    let disk = SmallDisk::new(8);
    let folder = disk.0.path();
    let mut keeper = keeper(folder);
    keep(&mut keeper, (1..=100).map(|n| tick(n, vec![calls("a", "user", 1)])));
    let ballast = folder.join("ballast");
    let filled = std::fs::write(&ballast, vec![1; 16 << 20]);
    assert!(filled.is_err(), "the disk is full");
    for n in 101..=160 {
        keeper.keep(&tick(n, vec![calls("a", "user", 1), latencies("sda", &[n as u64; 50])]));
    }
    let State::Stopped { reason, message, since } = keeper.state().clone() else { panic!("{:?}", keeper.state()) };
    assert_eq!((reason, since.len()), (Reason::DiskFull, 24), "{message}");
    let answer = ask(folder, &query("test_calls", 0, 100), 160);
    assert_eq!(total(&answer), 100, "what was recorded can be read");
    std::fs::remove_file(&ballast).unwrap();
    keep(&mut keeper, (161..=200).map(|n| tick(n, vec![calls("a", "user", 1)])));
    let answer = ask(folder, &Query { step: "10s".into(), ..query("test_calls", 0, 200) }, 200);
    assert!((140..160).contains(&total(&answer)), "{}", total(&answer));
    let marks = sql(folder, "SELECT kind, seconds FROM marks WHERE kind = 'disk_full'").unwrap();
    assert_eq!(table(&marks).rows.len(), 1, "{marks:?}");
}

/// What stops the recording passes, be it before the first file is made.
#[test]
fn a_folder_that_takes_no_file_at_first_is_waited_for() {
    let disk = SmallDisk::new(8);
    let folder = disk.0.path();
    let remount = |options: &str| {
        let done = Command::new("mount").args(["-o", options]).arg(folder).status();
        assert!(done.unwrap().success(), "{options}");
    };
    remount("remount,ro");
    let file = place::file(folder);
    let mut keeper = Keeper::open(&file, limits()).unwrap();
    keeper.keep(&tick(1, vec![calls("a", "user", 1)]));
    assert!(matches!(keeper.state(), State::Stopped { reason: Reason::ReadOnly, .. }), "{:?}", keeper.state());
    assert!(keeper.trouble().unwrap().1.contains("Read-only"), "{:?}", keeper.trouble());
    remount("remount,rw");
    keep(&mut keeper, (2..=9).map(|n| tick(n, vec![calls("a", "user", 1)])));
    assert!(store::is_recorded(&file));
    assert_eq!(total(&ask(folder, &query("test_calls", 0, 10), 10)), 8);
    // Nor has a lock file any room.
    drop(keeper);
    std::fs::remove_file(place::lock_file(&file)).unwrap();
    remount("remount,nr_inodes=20");
    let files = (0..20).take_while(|n| std::fs::write(folder.join(format!("file-{n}")), "").is_ok()).count();
    assert!(files < 20, "there is no room for a file");
    let mut keeper = Keeper::open(&file, limits()).unwrap();
    assert!(matches!(keeper.state(), State::Stopped { reason: Reason::DiskFull, .. }), "{:?}", keeper.state());
    let second = Keeper::open(Path::new("/dev/null/history.db"), limits());
    assert!(matches!(second, Err(OpenError::Folder { .. })), "what does not pass ends the start: {second:?}");
    (0..files).for_each(|n| std::fs::remove_file(folder.join(format!("file-{n}"))).unwrap());
    keep(&mut keeper, [tick(11, vec![calls("a", "user", 1)])]);
}

#[test]
fn a_file_that_is_removed_or_replaced_is_begun_anew_and_that_is_said() {
    let folder = folder();
    let file = place::file(folder.path());
    let mut keeper = keeper(folder.path());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
    let second = |n: i64| tick(now - START + n, vec![calls("a", "user", 1)]);
    keep(&mut keeper, (-5..=0).map(second));
    std::thread::sleep(Duration::from_millis(2100));
    std::fs::remove_file(&file).unwrap();
    keeper.keep(&second(1));
    let (reason, message, since) = keeper.trouble().unwrap();
    assert!(reason == Reason::Removed && message.contains("removed or replaced") && since > 0, "{message}");
    keep(&mut keeper, (2..=4).map(second));
    let seconds = |kind: &str| {
        let marks = sql(folder.path(), &format!("SELECT kind, seconds FROM marks WHERE kind = '{kind}'")).unwrap();
        table(&marks).rows.first().map(|row| row["seconds"].as_f64().unwrap())
    };
    assert!(seconds("removed").is_some_and(|seconds| seconds > 2.0), "{:?}", seconds("removed"));
    let from = now - START;
    assert_eq!(total(&ask(folder.path(), &query("test_calls", from, from + 5), from + 4)), 3);
    // Another file in its place is as good as none.
    let other = folder.path().join("other.db");
    std::fs::write(&other, "").unwrap();
    std::fs::rename(&other, &file).unwrap();
    keeper.keep(&second(5));
    assert_eq!(keeper.trouble().map(|(reason, ..)| reason), Some(Reason::Removed));
    keep(&mut keeper, (6..=7).map(second));
}

#[test]
fn while_nothing_can_be_kept_the_reason_is_that_of_the_recorder() {
    let disk = SmallDisk::new(8);
    let folder = disk.0.path();
    let mut keeper = keeper(folder);
    keep(&mut keeper, (1..=100).map(|n| tick(n, vec![calls("a", "user", 1)])));
    status::write(folder, &Status::default()).unwrap();
    // To the last byte: there is no room for another file either.
    assert!(std::fs::write(folder.join("ballast"), vec![1; 16 << 20]).is_err());
    let stopped_ns = Some((START + 100) as u64 * SECOND);
    let error = Some("31 MB are left".to_owned());
    status::write(folder, &Status { error, stopped_by: Some("disk_full".into()), stopped_ns, ..Status::default() })
        .unwrap();
    let answer = ask(folder, &query("test_calls", 0, 160), 160);
    assert_eq!(missing(&answer.coverage[0]), [("disk_full", 60.0)]);
    assert!(answer.notes.iter().any(|note| note.contains("31 MB are left")), "{:?}", answer.notes);
}

#[test]
fn room_that_is_for_others_is_left_to_them() {
    let disk = SmallDisk::new(8);
    let file = place::file(disk.0.path());
    let keeper = Keeper::open(&file, Limits { spare_bytes: 9 << 20, ..limits() }).unwrap();
    assert!(matches!(keeper.state(), State::Stopped { reason: Reason::DiskFull, .. }), "{:?}", keeper.state());
    assert!(!file.exists());
}

#[test]
fn a_damaged_file_is_set_aside_and_a_new_one_begun() {
    let folder = folder();
    let file = place::file(folder.path());
    let mut keeper = keeper(folder.path());
    keep(&mut keeper, (1..=2000).map(|n| tick(n, vec![calls("a", "user", 1)])));
    keeper.close();
    let mut bytes = std::fs::read(&file).unwrap();
    for at in (4096..bytes.len()).step_by(3 * 4096) {
        bytes[at..at + 64].fill(0xa5);
    }
    std::fs::write(&file, &bytes).unwrap();
    // Who only reads gets an error or what is left, and no panic.
    for step in ["1s", "10s", "60s"] {
        let _ =
            history::ask_at(folder.path(), &Query { step: step.into(), ..query("test_calls", 0, 2000) }, START + 2000);
    }
    let mut keeper = histories::keeper(folder.path());
    keep(&mut keeper, (2001..=2010).map(|n| tick(n, vec![calls("a", "user", 1)])));
    assert_eq!(total(&ask(folder.path(), &query("test_calls", 1990, 2010), 2010)), 10);
    let aside = folder.path().join("history.db.damaged");
    assert_eq!(std::fs::read(&aside).unwrap(), bytes, "the damaged file is kept as it was");
    let marks = sql(folder.path(), "SELECT text FROM marks WHERE kind = 'set_aside'").unwrap();
    assert!(table(&marks).rows[0]["text"].as_str().unwrap().contains("history.db.damaged"), "{marks:?}");
    let marks = sql(folder.path(), "SELECT seconds FROM marks WHERE kind = 'set_aside'").unwrap();
    assert!(table(&marks).rows[0]["seconds"].as_f64().unwrap() > 0.0, "as long as there was a file: {marks:?}");
}

#[test]
fn a_file_of_noise_or_of_somebody_else_never_ends_the_recorder() {
    let folder = folder();
    let file = place::file(folder.path());
    std::fs::write(&file, vec![0x5a; 70_000]).unwrap();
    keep(&mut keeper(folder.path()), [tick(1, vec![calls("a", "user", 1)])]);
    assert!(folder.path().join("history.db.damaged").exists());
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(folder.path().join(format!("history.db{suffix}")));
    }
    let other = rusqlite::Connection::open(&file).unwrap();
    other.execute_batch("CREATE TABLE precious (a); INSERT INTO precious VALUES (1)").unwrap();
    drop(other);
    let mut keeper = Keeper::open(&file, limits()).unwrap();
    keeper.keep(&tick(1, vec![calls("a", "user", 1)]));
    assert!(matches!(keeper.state(), State::Stopped { reason: Reason::Foreign, .. }), "{:?}", keeper.state());
    let other = rusqlite::Connection::open(&file).unwrap();
    let rows: i64 = other.query_row("SELECT count(*) FROM precious", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 1, "it is left alone");
}

#[test]
fn damage_while_it_records_is_found_and_mended() {
    let folder = folder();
    let file = place::file(folder.path());
    let mut keeper = keeper(folder.path());
    keep(&mut keeper, (1..=1000).map(|n| tick(n, vec![calls("a", "user", 1)])));
    let size = std::fs::metadata(&file).unwrap().len();
    std::fs::write(&file, vec![0xa5; size as usize]).unwrap();
    for n in 1001..=4500 {
        keeper.keep(&tick(n, vec![calls("a", "user", 1)]));
    }
    assert!(matches!(keeper.state(), State::Recording { .. }), "{:?}", keeper.state());
    assert!(folder.path().join("history.db.damaged").exists());
    assert_eq!(total(&ask(folder.path(), &query("test_calls", 4400, 4500), 4500)), 100);
}

#[test]
fn the_file_keeps_to_its_size_and_the_present_to_its_detail() {
    let folder = folder();
    let file = place::file(folder.path());
    let cap = 4 << 20;
    let mut keeper = Keeper::open(&file, Limits { bytes: cap, ..limits() }).unwrap();
    let second = |n: i64| {
        let names: Vec<String> = (0..40).map(|one| format!("process-{one}")).collect();
        let mut samples: Vec<_> = names.iter().map(|name| calls(name, "user", n as u64 * 1000)).collect();
        samples.push(latencies("sda", &(0..200).map(|value| value * value * 1000).collect::<Vec<u64>>()));
        tick(n, samples)
    };
    keep(&mut keeper, (1..=9000).map(second));
    let size = std::fs::metadata(&file).unwrap().len();
    assert!(size <= cap, "{size}");
    assert!(size > cap / 2, "{size}: the test fills it");
    let answer = ask(folder.path(), &Query { step: "1s".into(), ..query("test_calls", 8900, 9000) }, 9000);
    assert_eq!(answer.step_seconds, Some(1), "the last minutes are there by the second");
    assert_eq!(answer.coverage[0].recorded_seconds as i64, 100);
    let early = ask(folder.path(), &query("test_calls", 60, 1200), 9000);
    assert_eq!(early.coverage[0].recorded_seconds as i64, 1140, "the first minutes are there, but not by the second");
    assert!(early.step_seconds >= Some(10), "{:?}", early.step_seconds);
}

/// A second of a busy host, of the metrics that the recorder has.
fn busy(n: i64) -> Tick {
    let seed = n as u64;
    let random = |salt: u64| {
        (seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(salt.wrapping_mul(1_442_695_040_888_963_407))) >> 33
    };
    // Three powers of two wide, as latencies of one kind are for the most part, and now and then a slow one.
    let values = |salt: u64, count: u64| -> Vec<u64> {
        let usual: u64 = 1 << (9 + salt % 11);
        let slow = usual << (3 + random(salt) % 6);
        (0..count).map(|one| usual + random(salt + one) % (usual * 7)).chain([slow]).collect()
    };
    let mut samples = Vec::new();
    for metric in METRICS {
        let series: Vec<Vec<String>> = match metric.name {
            // Forty that stay, and a container that lives for a moment: 900 an hour.
            "cpu_process_ns" => (0..40)
                .map(|one| {
                    [format!("{}", 1000 + one), format!("worker-{}", one % 13), "/system.slice/app.service".into()]
                })
                .chain([[format!("{}", 100_000 + n / 4), "sh".into(), format!("/docker/{:064x}", n / 4)]])
                .map(Into::into)
                .collect(),
            "interrupts" | "interrupt_ns" => (0..25).map(|one| vec!["hard".into(), format!("eth0-{one}")]).collect(),
            // A duty cycle: each tenth second.
            "syscall_ns" | "syscalls" | "syscall_errors" if n % 10 != 0 => Vec::new(),
            "syscall_ns" | "syscalls" | "syscall_errors" => (0..60).map(|one| vec![format!("call{one}")]).collect(),
            _ => (0..if metric.labels.is_empty() { 1 } else { 4 })
                .map(|one| metric.labels.iter().map(|label| format!("{label}{one}")).collect())
                .collect(),
        };
        for (at, labels) in series.iter().enumerate() {
            let salt = at as u64 * 1000 + metric.name.len() as u64;
            let value = match metric.kind {
                tick::Kind::Sum => tick::Value::Sum(random(salt) % 30_000_000),
                tick::Kind::Gauge => tick::Value::Gauge(random(salt) as f64),
                tick::Kind::Distribution => {
                    tick::Value::Distribution(Box::new(mcptrace_tests::simulated::distribution(&values(salt, 60))))
                }
            };
            let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
            samples.push(mcptrace_tests::simulated::sample(metric, &labels, value));
        }
    }
    let coverage = metrics::GROUPS.iter().map(|group| tick::Coverage { group, share: 1.0, why: None });
    Tick { coverage: coverage.collect(), ..tick(n, samples) }
}

/// What is promised is held where the program is optimised, of a whole day: `cargo test --release -p mcptrace-tests --test history_file a_day`.
/// Elsewhere it is two hours and what they come to in a day, and a debug build on a machine that may be busy: the limit of a question then
/// tells only rows that are read once from rows that are read for each series.
#[test]
fn a_day_is_small_and_a_question_about_it_quick() {
    let (hours, most) =
        if cfg!(debug_assertions) { (2, Duration::from_secs(1)) } else { (24, Duration::from_millis(200)) };
    let folder = folder();
    let file = place::file(folder.path());
    let mut keeper = keeper(folder.path());
    let size = || std::fs::metadata(&file).unwrap().len();
    let begun = Instant::now();
    keep(&mut keeper, (1..=3600).map(busy));
    let first = size();
    keep(&mut keeper, (3601..=hours * 3600).map(busy));
    let each = begun.elapsed() / (hours * 3600) as u32;
    let day = if hours == 24 { size() } else { first + 23 * (size() - first) };
    let longest = ["cpu_process_ns", "runq_latency_ns", "syscall_ns", "memory_available_bytes"]
        .map(|metric| quickest(folder.path(), metric, hours * 3600))
        .into_iter()
        .max()
        .unwrap();
    println!("a tick: {each:?} (with making it up); a day: {} MB; a question about {hours} h: {longest:?}", day >> 20);
    assert!(day < 200 << 20, "{day}");
    assert!(longest < most, "{longest:?}");
}

/// The least time that a question takes of three: what else the machine does is not its own.
fn quickest(folder: &Path, metric: &str, end: i64) -> Duration {
    let group_by = if metric == "cpu_process_ns" { "comm".into() } else { String::new() };
    let query = Query { group_by, ..query(metric, 0, end) };
    let took = (0..3).map(|_| {
        let begun = Instant::now();
        let answer = ask(folder, &query, end);
        assert_eq!(answer.coverage[0].recorded_seconds as i64, end);
        begun.elapsed()
    });
    took.min().unwrap()
}

#[test]
fn results_are_kept_for_their_owner_and_bounded() {
    let folder = folder();
    assert!(Kept::open(folder.path()).is_none(), "without a history nothing is kept");
    drop(keeper(folder.path()));
    let envelope = |n: usize, bytes: usize| -> Envelope {
        let text = json!({
            "execution_id": format!("exec_{n:04}"), "kind": "probe", "probe": "file_opens", "status": "completed",
            "window": {"start": "2026-01-02T03:04:05.678Z", "seconds": 5.0}, "loss": {"dropped": {}}, "notes": ["x".repeat(bytes)] });
        serde_json::from_value(text).unwrap()
    };
    let mut kept = Kept::open(folder.path()).unwrap();
    // The recorder writes meanwhile.
    let mut keeper = keeper(folder.path());
    for n in 0..300 {
        assert!(kept.keep("me", &envelope(n, 100)).unwrap());
        keeper.keep(&tick(n as i64 + 1, vec![calls("a", "user", 1)]));
    }
    assert!(matches!(keeper.state(), State::Recording { .. }), "{:?}", keeper.state());
    drop(kept);
    let mut kept = Kept::open(folder.path()).unwrap();
    let loaded = kept.load("exec_0299").unwrap().unwrap();
    assert_eq!(loaded, ("me".to_owned(), envelope(299, 100)), "after a restart, with its owner");
    assert!(kept.load("exec_0001").unwrap().is_none(), "the oldest have gone");
    let list = kept.list().unwrap();
    assert_eq!((list.len(), &list[0].1.execution_id[..], &list[0].1.probe[..]), (256, "exec_0299", "file_opens"));
    assert!(!kept.keep("me", &envelope(1000, 1 << 20)).unwrap(), "too large");
    for n in 2000..2040 {
        kept.keep("me", &envelope(n, (1 << 20) - 4096)).unwrap();
    }
    assert_eq!(kept.list().unwrap().len(), 32, "of 1 MB each");
    assert_eq!(total(&ask(folder.path(), &query("test_calls", 0, 300), 300)), 300);
}
