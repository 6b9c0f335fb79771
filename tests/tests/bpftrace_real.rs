//! The bpftrace fallback with the real bpftrace on the real kernel. Needs root, bpftrace and tracefs; without them it
//! fails.
#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

use std::fs;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mcptrace::bpftrace::{Bpftrace, Category, End, Limits, ScriptError, Session, Snapshot, policy::Policy};
use mcptrace::report::{Histogram, Report, Row};

/// A prime number.
const CALLS: u64 = 1009;

fn bpftrace() -> &'static Bpftrace {
    static FOUND: OnceLock<Bpftrace> = OnceLock::new();
    FOUND.get_or_init(|| {
        // A fresh machine has tracefs unmounted; that it is mounted already is as good.
        let _ = Command::new("mount").args(["-t", "tracefs", "tracefs", "/sys/kernel/tracing"]).status();
        assert!(fs::exists("/sys/kernel/tracing/events").unwrap(), "no tracefs");
        Bpftrace::find(None).unwrap().boxed()
    })
}

fn start(program: &str) -> Session {
    bpftrace().compile(program).unwrap();
    bpftrace().spawn(program, Limits::default()).unwrap()
}

fn run(program: &str, time: Duration) -> (End, Snapshot) {
    let mut session = start(program);
    let end = session.wait(Instant::now() + time, &|| false);
    (end, session.end())
}

/// Runs the script until it has printed `ready`, then the workload, then ends it.
fn around(program: &str, workload: impl FnOnce()) -> Snapshot {
    let mut session =
        start(&format!("{program} interval:ms:100 {{ if (!@ready) {{ @ready = 1; printf(\"ready\\n\"); }} }}"));
    let view = session.view();
    let ready = || view.snapshot().lines.iter().any(|line| line == "ready");
    assert_eq!(session.wait(Instant::now() + Duration::from_secs(20), &ready), End::Stopped);
    workload();
    session.end()
}

fn getppid(calls: u64) {
    for _ in 0..calls {
        // SAFETY: the call has no preconditions.
        unsafe { libc::getppid() };
    }
}

/// The other tests are threads of this process.
fn tid() -> i32 {
    // SAFETY: the call has no preconditions.
    unsafe { libc::gettid() }
}

fn rows<'a>(snapshot: &'a Snapshot, name: &str) -> &'a [Row] {
    let Report::Table(table) = report(snapshot, name) else { panic!("no table: {snapshot:?}") };
    &table.rows
}

fn histogram<'a>(snapshot: &'a Snapshot, name: &str) -> &'a Histogram {
    let Report::Histogram(histogram) = report(snapshot, name) else { panic!("no histogram: {snapshot:?}") };
    histogram
}

fn report<'a>(snapshot: &'a Snapshot, name: &str) -> &'a Report {
    &snapshot.reports.iter().find(|report| report.name == name).unwrap_or_else(|| panic!("{snapshot:?}")).report
}

/// The processes, zombies left out, whose command line holds `mark`.
fn processes(mark: &str) -> Vec<u32> {
    let folders = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    // A zombie has no command line.
    let marked = |pid: &u32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.starts_with(b"/usr/bin/bpftrace") && String::from_utf8_lossy(&words).contains(mark)
    };
    folders.filter(marked).collect()
}

fn wait_for(what: &str, mut look: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !look() {
        assert!(Instant::now() < until, "{what} did not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn version_and_info_are_told() {
    assert!(bpftrace().version() >= (0, 17, 0));
    let info = bpftrace().info().unwrap();
    assert!(info.contains("Probe types") && !info.contains("RLIMIT"), "{info}");
}

#[test]
fn a_map_holds_the_exact_count() {
    let tid = tid();
    let program = format!("tracepoint:syscalls:sys_enter_getppid /tid == {tid}/ {{ @calls[comm, tid] = count(); }}");
    let snapshot = around(&program, || getppid(CALLS));
    let rows = rows(&snapshot, "@calls");
    assert_eq!((&rows[0]["key2"], &rows[0]["value"], rows.len()), (&tid.into(), &CALLS.into(), 1));
    assert_eq!((snapshot.error, snapshot.lost_events), (None, 0));
}

/// The original killed bpftrace when the time was up, and maps and histograms were lost.
#[test]
fn maps_and_histograms_are_kept_when_the_time_is_up() {
    let program = "BEGIN { @h = hist(5); @h = hist(700); @l[\"k\"] = lhist(15, 0, 100, 10); @n = 23; @s = stats(6); }";
    let (end, snapshot) = run(program, Duration::from_secs(2));
    assert_eq!((end, snapshot.exit.as_deref()), (End::Deadline, Some("exited with status 0")));
    assert_eq!(histogram(&snapshot, "@h").series[0].buckets, [(4, 8, 1), (512, 1024, 1)]);
    assert_eq!(histogram(&snapshot, "@l").series[0].buckets, [(10, 20, 1)]);
    assert_eq!(rows(&snapshot, "@n")[0]["value"], 23);
    assert_eq!(rows(&snapshot, "@s")[0]["average"], 6);
    assert!(snapshot.lines.contains(&"@n: 23".to_owned()), "{:?}", snapshot.lines);
}

/// The original looked at the clock only while nothing was printed. It also kept no more than the deadline's time.
#[test]
fn the_deadline_holds_for_a_script_that_never_pauses() {
    // Not of every process: bpftrace's own writes would feed it, and on two CPUs it then needs longer to end than it is given.
    let program =
        "tracepoint:raw_syscalls:sys_enter /comm == \"dd\"/ { @n = count(); printf(\"%d %s\\n\", pid, comm); }";
    bpftrace().compile(program).unwrap();
    let mut load = Command::new("dd").args(["if=/dev/zero", "of=/dev/null", "bs=1", "status=none"]).spawn().unwrap();
    let started = Instant::now();
    let mut session = bpftrace().spawn(program, Limits::default()).unwrap();
    let end = session.wait(started + Duration::from_secs(3), &|| false);
    let fired = started.elapsed().as_secs_f64();
    load.kill().unwrap();
    load.wait().unwrap();
    let snapshot = session.end();
    let ended = started.elapsed().as_secs_f64();
    assert_eq!(end, End::Deadline);
    assert!((3.0..8.0).contains(&fired), "{fired}");
    assert!(ended < 20.0, "{ended}");
    // How much it prints depends on how busy the machine is; what is kept does not.
    let kept = snapshot.lines.len() as u64;
    assert_eq!(kept, snapshot.lines_total.min(10_000));
    assert_eq!(snapshot.lines_total, snapshot.cut.lines + kept);
    assert!(rows(&snapshot, "@n")[0]["value"].as_u64().unwrap() > 1_000, "{:?}", snapshot.notes);
}

/// The original answered "started", and later "completed" without an error.
#[test]
fn a_syntax_error_has_line_and_column() {
    let error = bpftrace().compile("BEGIN {\n  @a = count();\n  $b = ;\n}").unwrap_err();
    assert_eq!((error.category, error.line, error.column), (Category::Syntax, Some(3), Some(8)));
    assert_eq!(error.message, "syntax error, unexpected ;");
    let mut session = bpftrace().spawn("BEGIN {", Limits::default()).unwrap();
    assert_eq!(session.wait(Instant::now() + Duration::from_secs(20), &|| false), End::Exited);
    assert_eq!(session.end().error.unwrap().category, Category::Syntax);
}

#[test]
fn unknown_names_come_with_near_ones() {
    let error = bpftrace().compile("tracepoint:sched:sched_swich { }").unwrap_err();
    assert_eq!((error.category, error.line, error.column), (Category::UnknownProbe, Some(1), Some(1)));
    assert_eq!(error.did_you_mean[0], "sched:sched_switch");
    let error = bpftrace().compile("BEGIN { @ = cuont(); }").unwrap_err();
    assert_eq!((error.category, error.did_you_mean[0].as_str()), (Category::UnknownFunction, "count"));
    let error = bpftrace().compile("tracepont:sched:sched_switch { }").unwrap_err();
    assert_eq!(
        (error.category, error.column, error.did_you_mean[0].as_str()),
        (Category::UnknownProbe, Some(1), "tracepoint")
    );
    let error = bpftrace().compile("BEGIN { system(\"true\"); }").unwrap_err();
    assert_eq!(error.category, Category::Unsafe);
}

#[test]
fn a_program_that_looks_like_an_option_is_a_program() {
    for program in ["--version", "-l", "-", "--info"] {
        assert_eq!(bpftrace().compile(program).unwrap_err().category, Category::Syntax, "{program}");
    }
}

#[test]
fn the_longest_program_runs() {
    let filler = "x".repeat(mcptrace::bpftrace::PROGRAM_BYTES - 30);
    let (end, snapshot) = run(&format!("BEGIN {{ exit(); }} /*{filler}*/"), Duration::from_secs(20));
    assert_eq!((end, snapshot.error, snapshot.attached), (End::Exited, None, Some(1)));
}

/// `-d` is content with a symbol that is not there.
#[test]
fn a_probe_that_is_found_missing_only_when_it_attaches_is_an_error() {
    let (end, snapshot) = run("uprobe:/bin/sh:no_such_symbol { @ = count(); }", Duration::from_secs(20));
    assert_eq!(end, End::Exited);
    assert_eq!((snapshot.error.map(|error| error.category), snapshot.attached), (Some(Category::UnknownProbe), None));
}

#[test]
fn a_script_stopped_before_it_attached_says_so() {
    let session = start("BEGIN { @ = 1; }");
    let snapshot = session.end();
    assert_eq!((snapshot.attached, snapshot.error), (None, None));
    assert_eq!(snapshot.notes, ["it ended before bpftrace had attached; nothing was recorded"]);
}

#[test]
fn text_of_every_kind_arrives() {
    let program = "BEGIN { printf(\"a\\nb\"); printf(\"c\\n\"); printf(\"é\\033[1m\\n\"); print((1, \"x\")); cat(\"/proc/self/comm\"); exit(); }";
    let (end, snapshot) = run(program, Duration::from_secs(20));
    assert_eq!(end, End::Exited);
    assert_eq!(snapshot.lines, ["Attaching 1 probe...", "a", "bc", "é\\u{1b}[1m", "(1, x)", "bpftrace"]);
    let Report::Events(events) = report(&snapshot, "output") else { panic!("{snapshot:?}") };
    assert_eq!(
        events.rows.iter().map(|row| row["type"].as_str().unwrap()).collect::<Vec<_>>(),
        ["printf", "printf", "printf", "value", "cat"]
    );
}

/// 4096 keys fit into a map of bpftrace 0.17; how many updates of the other 97 failed is counted.
#[test]
fn a_full_map_is_said() {
    let program = "BEGIN { @i = 0; } tracepoint:syscalls:sys_enter_getppid /tid == TID/ { @i++; @full[@i] = 1; }";
    let calls = 4096 + 97;
    let snapshot = around(&program.replace("TID", &tid().to_string()), || {
        getppid(calls);
        // What bpftrace has not read when it is ended is lost, and the notes say that it can be.
        std::thread::sleep(Duration::from_secs(1));
    });
    assert_eq!((rows(&snapshot, "@i")[0]["value"].clone(), rows(&snapshot, "@full").len()), (calls.into(), 4096));
    assert!(
        snapshot.notes.iter().any(|note| note.starts_with("map_update_elem failed 97 times")),
        "{:?}",
        snapshot.notes
    );
}

/// The original left bpftrace behind when its client went away.
#[test]
fn a_killed_parent_leaves_no_bpftrace() {
    let mark = format!("a_killed_parent_{}", std::process::id());
    let mut parent = Command::new(env!("CARGO_BIN_EXE_run_script"))
        .args([&format!("BEGIN {{ @ = \"{mark}\"; }}"), "bpftrace"])
        .spawn()
        .unwrap();
    wait_for("bpftrace", || !processes(&mark).is_empty());
    parent.kill().unwrap();
    parent.wait().unwrap();
    wait_for("its end", || processes(&mark).is_empty());
}

/// The original killed only sudo when the time was up.
#[test]
fn no_bpftrace_is_left_after_the_time_is_up() {
    let mark = format!("time_is_up_{}", std::process::id());
    let mut session = bpftrace().spawn(&format!("BEGIN {{ @ = \"{mark}\"; }}"), Limits::default()).unwrap();
    session.wait(Instant::now() + Duration::from_secs(1), &|| false);
    assert_eq!(processes(&mark).len(), 1);
    drop(session);
    assert_eq!(processes(&mark), [0u32; 0]);
}

fn policy(program: &str) -> Result<(), ScriptError> {
    Policy::default().check(bpftrace(), program, Duration::from_millis(100))
}

#[test]
fn wildcards_are_counted_and_bounded() {
    policy("tracepoint:sched:sched_* { @[probe] = count(); }").unwrap();
    policy("tracepoint:syscalls:sys_enter_* { @[probe] = count(); }").unwrap();
    for program in ["tracepoint:*:* { @ = count(); }", "BEGIN { } t:syscalls:*, t:s*:*, rt:* { @ = count(); }"] {
        let error = policy(program).unwrap_err();
        assert_eq!(error.category, Category::Policy, "{program}: {error}");
        assert!(error.message.contains("more than 512 hooks; at most 512"), "{program}: {error}");
    }
}

#[test]
fn what_prints_at_each_event_of_a_busy_hook_is_refused() {
    let print = |hook: &str, predicate: &str| format!("{hook} {predicate} {{ printf(\"%d\\n\", pid); }}");
    // Nothing else asks so often for the priority of a thread.
    let hook = "tracepoint:syscalls:sys_enter_getpriority";
    policy(&print(hook, "")).unwrap();
    let end = AtomicBool::new(false);
    let found = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !end.load(Ordering::Relaxed) {
                // SAFETY: the call has no preconditions.
                unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
            }
        });
        let found = ["", "/pid == 1/"].map(|predicate| policy(&print(hook, predicate)));
        let counted = policy(&format!("{hook} {{ @[comm] = count(); }} interval:s:1 {{ print(@); }}"));
        let of_many = policy(&print("tracepoint:syscalls:sys_enter_getp*", ""));
        end.store(true, Ordering::Relaxed);
        counted.unwrap();
        (found, of_many)
    });
    for error in found.0.into_iter().chain([found.1]).map(Result::unwrap_err) {
        assert_eq!((error.category, error.line), (Category::Policy, Some(1)), "{error}");
        assert!(
            error.message.contains("times a second") && error.remedy.unwrap().contains("aggregate"),
            "{}",
            error.message
        );
    }
}
