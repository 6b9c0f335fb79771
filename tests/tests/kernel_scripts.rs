//! The library of scripts with the real bpftrace on the real kernel: each compiles and attaches without a word of warning, and sees what a
//! workload does so many times.
//!
//! `SCRIPTS=a,b` in the environment runs those alone, and fails if this kernel has no hooks for them.
#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use mcptrace::{
    bpftrace::{Bpftrace, End, Limits, Snapshot, tools},
    kernel::discovery::{Access, obstacle},
    report::{Report, Row},
    scripts::{self, ByPid, Script},
};
use serde_json::Value;

/// What a script must have found of the workload.
enum Expect {
    /// So many things in all rows of a map whose keys have all of these, which may be parts of words.
    Exactly(&'static str, &'static [&'static str], u64),
    /// At least so many: others do it too.
    AtLeast(&'static str, u64),
    /// So many lines with this in them.
    Lines(&'static str, usize),
    /// That it attaches is all that can be tried here.
    Attaches,
}
use Expect::{AtLeast, Attaches, Exactly, Lines};

const EXPECTED: &[(&str, &[Expect])] = &[
    ("workqueue_latency", &[AtLeast("@run_us", 1)]),
    ("timer_functions", &[AtLeast("@ns", 1), AtLeast("@hrtimers", 1)]),
    // A guest may leave its idle states to the host.
    ("cpu_idle_states", &[Attaches]),
    ("cross_cpu_calls", &[AtLeast("@function_ns", 1)]),
    ("tlb_flushes", &[AtLeast("@flushes", 13)]),
    ("scheduling_changes", &[Lines("setpriority 0 nice=0", 3)]),
    ("sleep_requests", &[Exactly("@requested_us", &["script_work"], 18), Exactly("@until", &["script_work"], 3)]),
    ("poll_timeouts", &[Exactly("@events", &["script_work"], 7)]),
    ("thread_starts", &[Exactly("@threads", &["script_work"], 5), Exactly("@processes", &["script_work"], 3)]),
    ("syscall_stacks", &[Exactly("@stacks", &["110"], 23)]),
    // No guests run here.
    ("hypervisor_exits", &[Attaches]),
    ("io_request_sizes", &[AtLeast("@read_bytes", 23), AtLeast("@write_bytes", 19)]),
    (
        "file_status_calls",
        &[Exactly("@looked_up", &["/nonexistent/mcptrace"], 13), Exactly("@failed", &["script_work", "2"], 13)],
    ),
    ("directory_scans", &[Exactly("@calls", &["script_work"], 11)]),
    ("directory_cache", &[AtLeast("@fast", 23)]),
    ("vfs_call_rates", &[AtLeast("@calls", 46)]),
    ("file_removals", &[Lines(" rename ", 7), Lines(" unlink ", 7), Lines(" rmdir ", 1)]),
    (
        "file_watches",
        &[Exactly("@added", &["script_work"], 5), Exactly("@removed", &["script_work"], 1), Lines(" watches /", 5)],
    ),
    ("file_locks", &[Exactly("@flock_us", &["script_work"], 4), Exactly("@record_locks", &["script_work", "0"], 6)]),
    ("fd_growth", &[Exactly("@opened", &["script_work"], 17), Exactly("@closed", &["script_work"], 13)]),
    // Filling a ring takes a library of its own.
    ("io_uring_requests", &[Attaches]),
    (
        "memory_mappings",
        &[Exactly("@mapped_bytes", &["script_work"], 13), Exactly("@unmapped_bytes", &["script_work"], 13)],
    ),
    ("address_space_lock", &[AtLeast("@wait_us", 26)]),
    ("page_allocations", &[AtLeast("@pages", 61)]),
    ("kernel_allocations", &[AtLeast("@calls", 23)]),
    ("slab_growth", &[AtLeast("@allocated", 1), AtLeast("@freed", 1)]),
    // These want memory pressure, huge pages or a full page cache.
    ("kswapd_activity", &[Attaches]),
    ("huge_page_collapse", &[Attaches]),
    ("dirty_throttling", &[Attaches]),
    ("writeback_reasons", &[AtLeast("@started", 1)]),
    // These want the file system and disk of the test's folder to be ext4 on a disk.
    ("journal_commits", &[Attaches]),
    ("disk_access_pattern", &[Attaches]),
    ("block_errors", &[Attaches]),
    ("tcp_round_trip", &[AtLeast("@rtt_us", 23)]),
    ("accept_queue", &[AtLeast("@queued", 1)]),
    ("socket_overflows", &[AtLeast("@udp_failed", 50)]),
    ("napi_budget", &[AtLeast("@packets", 1)]),
    ("packet_sizes", &[AtLeast("@sent_bytes", 23), AtLeast("@received_bytes", 23)]),
    (
        "unix_connections",
        &[Exactly("@connects", &["/nonexistent/mcptrace.sock"], 7), Exactly("@failed", &["script_work", "2"], 7)],
    ),
    ("socket_kinds", &[Lines(", 1, 2]: 5", 1), Exactly("@listening", &["script_work", "17"], 1)]),
    (
        "datagram_peers",
        &[Exactly("@sends", &["script_work", "127.0.0.1"], 19), Exactly("@bytes", &["script_work", "::1"], 1300)],
    ),
    ("neighbour_changes", &[Attaches]),
    ("route_failures", &[AtLeast("@looked_up", 1)]),
    ("permission_changes", &[Lines(" chmod 640 /", 5), Lines(" chmod 600 fd:", 2), Lines(" chown 0:0 /", 3)]),
    ("writable_code", &[Lines(" mmap 0x0 4096 prot=7", 3)]),
    ("memory_file_use", &[Lines(" memfd_create mcptrace", 5), Lines(" execveat fd:-1 nothing", 2)]),
    ("cgroup_changes", &[Lines("/mcptrace-script-", 2)]),
    ("clock_changes", &[Exactly("@adjusted", &["script_work"], 3)]),
];

/// What happens on any machine at any time.
const ALWAYS: [&str; 4] = ["workqueue_latency", "timer_functions", "cross_cpu_calls", "slab_growth"];
/// How many scripts run at once; each start of bpftrace takes a CPU for half a second.
const AT_ONCE: usize = 2;
const READY: &str =
    "\ninterval:ms:50 { if (@mcptrace_ready == 0) { @mcptrace_ready = 1; printf(\"mcptrace_ready\\n\"); } }\n";

fn bpftrace() -> &'static Bpftrace {
    static FOUND: OnceLock<Bpftrace> = OnceLock::new();
    FOUND.get_or_init(|| Bpftrace::find(None).unwrap().boxed())
}

fn obstacle_of(script: &Script) -> Option<String> {
    let hooks = script.hooks();
    obstacle(hooks.iter().map(String::as_str), Access { allow_mount: true, fentry_works: None })
}

struct Worker {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Worker {
    fn start(folder: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_script_workload"));
        let mut child = command.arg(folder).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut worker = Self { child, stdout };
        worker.expect("ready\n");
        worker
    }

    fn perform(&mut self, what: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{what}").unwrap();
        self.expect("ok\n");
    }

    fn expect(&mut self, answer: &str) {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        assert_eq!(line, answer);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a script around its workload.
fn run(script: &Script, works: bool) -> Snapshot {
    let folder = tempfile::tempdir().unwrap();
    let mut worker = Worker::start(folder.path());
    let pid = (script.pid != ByPid::Never).then(|| worker.child.id());
    let program = script.program(pid).unwrap() + READY;
    bpftrace().compile(&program).unwrap_or_else(|error| panic!("{}: {error}", script.name));
    let mut session = bpftrace().spawn(&program, Limits::default()).unwrap();
    let view = session.view();
    let ready = || view.snapshot().lines.iter().any(|line| line == "mcptrace_ready");
    let end = session.wait(Instant::now() + Duration::from_secs(30), &ready);
    assert_eq!(end, End::Stopped, "{}: {:?}", script.name, view.snapshot());
    if works {
        worker.perform(&script.name);
    }
    // What bpftrace has not read yet when it is ended is lost, and some of it comes with the machine's own time.
    session.wait(Instant::now() + Duration::from_millis(700), &|| false);
    session.end()
}

/// What a script counts of a process that does two things one for one, before, while and after it is traced.
fn of_pairs(name: &str, maps: [&str; 2]) -> [u64; 2] {
    let script = scripts::find(name).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut worker = Worker::start(folder.path());
    let program = script.program(Some(worker.child.id())).unwrap() + READY;
    writeln!(worker.child.stdin.as_mut().unwrap(), "pairs").unwrap();
    let mut session = bpftrace().spawn(&program, Limits::default()).unwrap();
    let view = session.view();
    let ready = || view.snapshot().lines.iter().any(|line| line == "mcptrace_ready");
    assert_eq!(session.wait(Instant::now() + Duration::from_secs(30), &ready), End::Stopped, "{name}");
    session.wait(Instant::now() + Duration::from_millis(300), &|| false);
    let found = session.end();
    assert!(found.reports.iter().all(|report| !["@go", "@self"].contains(&report.name.as_str())), "{:?}", found.lines);
    maps.map(|map| total(&found, map, &["script_work"]))
}

/// Hooks come and go one after the other: what a script compares must not differ by that.
#[test]
fn what_is_done_and_undone_one_for_one_is_counted_alike() {
    for (name, maps) in
        [("fd_growth", ["@opened", "@closed"]), ("memory_mappings", ["@mapped_bytes", "@unmapped_bytes"])]
    {
        let [done, undone] = of_pairs(name, maps);
        assert!(done > 100 && done.abs_diff(undone) <= 2, "{name}: {done} and {undone}");
    }
}

fn check(script: &Script) -> Vec<String> {
    let expected = EXPECTED.iter().find(|(name, _)| *name == script.name).unwrap().1;
    let by_itself = matches!(expected, [Attaches]) || ALWAYS.contains(&script.name.as_str());
    let found = run(script, !by_itself);
    let mut wrong: Vec<String> = found.error.iter().map(|error| format!("{}: {error}", script.name)).collect();
    wrong.extend(found.warnings.iter().map(|warning| format!("{}: warning: {warning}", script.name)));
    wrong.extend(
        expected.iter().filter_map(|expect| difference(expect, &found)).map(|text| format!("{}: {text}", script.name)),
    );
    wrong
}

fn difference(expect: &Expect, found: &Snapshot) -> Option<String> {
    match expect {
        Exactly(map, keys, count) => {
            let counted = total(found, map, keys);
            (counted != *count).then(|| format!("{map}: {counted}, not {count}: {:?}", found.lines))
        }
        AtLeast(map, count) => {
            let counted = total(found, map, &[]);
            (counted < *count).then(|| format!("{map}: {counted}, not {count} or more: {:?}", found.lines))
        }
        Lines(part, count) => {
            let counted = found.lines.iter().filter(|line| line.contains(part)).count();
            (counted != *count).then(|| format!("{counted} lines with {part:?}, not {count}: {:?}", found.lines))
        }
        Attaches => found.attached.is_none().then(|| "did not attach".into()),
    }
}

/// The sum of a map's rows whose keys have these words: what is counted, summed, or in histograms.
fn total(found: &Snapshot, map: &str, keys: &[&str]) -> u64 {
    let Some(named) = found.reports.iter().find(|report| report.name == map) else { return 0 };
    match &named.report {
        Report::Table(table) => table.rows.iter().filter(|row| has(row, keys)).map(counted).sum(),
        Report::Histogram(histogram) => {
            histogram.series.iter().filter(|series| has(&series.key, keys)).map(|series| series.count).sum()
        }
        other => panic!("{map}: {other:?}"),
    }
}

fn counted(row: &Row) -> u64 {
    row.get("value").or_else(|| row.get("count")).and_then(Value::as_u64).unwrap_or(0)
}

/// Whether the keys of a row have all of these: numbers whole, words as a part.
fn has(row: &Row, keys: &[&str]) -> bool {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let values: Vec<String> =
        row.iter().filter(|(name, _)| name.starts_with("key")).map(|(_, value)| text(value)).collect();
    let is = |value: &String, key: &str| value == key || (key.len() > 3 && value.contains(key));
    keys.iter().all(|key| values.iter().any(|value| is(value, key)))
}

/// Scripts for kernels with kprobes.
const KPROBES: [&str; 3] = ["directory_cache", "vfs_call_rates", "accept_queue"];

/// Those that are to run: all but what wants kprobes where there are none.
fn wanted() -> Vec<&'static Script> {
    let named = std::env::var("SCRIPTS").ok();
    let is_named =
        |script: &&Script| named.as_ref().is_none_or(|names| names.split(',').any(|name| name == script.name));
    let (runnable, others): (Vec<&Script>, Vec<&Script>) =
        scripts::library().iter().filter(is_named).partition(|script| obstacle_of(script).is_none());
    let others: Vec<&str> = others.iter().map(|script| script.name.as_str()).collect();
    let excused = named.is_none() && others.iter().all(|name| KPROBES.contains(name));
    assert!(others.is_empty() || excused, "no hooks for {others:?}");
    assert!(!runnable.is_empty());
    runnable
}

#[test]
fn each_attaches_without_warnings_and_sees_what_is_there() {
    let runnable = wanted();
    let (next, wrong) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(script) = runnable.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = check(script);
                    wrong.lock().unwrap().extend(found);
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_script_has_an_expectation() {
    let names: Vec<&str> = scripts::library().iter().map(|script| script.name.as_str()).collect();
    let expected: Vec<&str> = EXPECTED.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, expected);
}

/// Compilation needs no hooks but tracepoints: what wants kprobes compiles here too.
#[test]
fn those_without_hooks_here_compile() {
    for script in scripts::library().iter().filter(|script| obstacle_of(script).is_some()) {
        let pid = (script.pid == ByPid::Required).then_some(1);
        bpftrace().compile(&script.program(pid).unwrap()).unwrap_or_else(|error| panic!("{}: {error}", script.name));
    }
}

/// Debian's package has them; the catalogue must show them with a question each.
#[test]
fn the_hosts_own_tools_are_found() {
    let tools = tools::installed();
    let tool = tools.iter().find(|tool| tool.name == "bitesize.bt").unwrap();
    assert_eq!(tool.question, "Show disk I/O size as a histogram.");
    assert!(tool.path.as_ref().is_some_and(|path| path.ends_with("bitesize.bt")));
    assert!(tools.iter().all(|tool| !tool.question.is_empty() && !tool.hooks().is_empty()), "{tools:?}");
    assert_eq!(tools::named("bitesize.bt").unwrap().text, tool.text);
    assert!(tools::named("../sbin/bitesize.bt").is_none());
}
