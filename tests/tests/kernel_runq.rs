//! `runq_latency` on the real kernel, compared with what the scheduler keeps itself. Needs root; without, it fails.
#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    time::Duration,
};

use mcptrace::{
    kernel::filter::Filter,
    report::{Envelope, Series},
};
use mcptrace_tests::{
    probing::{around, find_series, of_pid, one_series, series},
    workload,
    workload::Workload,
};
use serde_json::json;

/// What the scheduler keeps of a thread: time in the queue, and how often it was put on a CPU (Documentation/scheduler/sched-stats.rst).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Scheduled {
    waited_ns: u64,
    times: u64,
}

impl Scheduled {
    fn of(workload: &Workload) -> Self {
        asleep(workload);
        let text = fs::read_to_string(format!("/proc/{}/schedstat", workload.pid())).unwrap();
        let numbers: Vec<u64> = text.split_whitespace().map(|number| number.parse().unwrap()).collect();
        Self { waited_ns: numbers[1], times: numbers[2] }
    }

    fn since(self, before: Self) -> Self {
        Self { waited_ns: self.waited_ns - before.waited_ns, times: self.times - before.times }
    }
}

/// Waits until the main thread of a workload sleeps in its read. Before that it may be put on a CPU once more.
fn asleep(workload: &Workload) {
    let state = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", workload.pid())).unwrap();
        stat.rsplit_once(") ").unwrap().1.chars().next().unwrap()
    };
    while state() != 'S' {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Both keep CPU 0 busy for so many milliseconds, and sleep again afterwards.
fn hog_together(pair: &mut [Workload; 2], milliseconds: u64) {
    for one in pair.iter_mut() {
        one.begin(&format!("hog 0 {milliseconds}"));
    }
    for one in pair {
        one.finish();
        asleep(one);
    }
}

fn total_ns(series: &Series) -> f64 {
    series.mean * series.count as f64
}

/// Two processes share a CPU; what the probe says of both, and what the scheduler does.
fn shared_cpu(
    options: &serde_json::Value,
    filter: impl FnOnce(&Workload) -> Filter,
) -> (Envelope, [Scheduled; 2], [u32; 2]) {
    let mut pair = [workload!(), workload!()];
    pair[0].run("comm hog_first");
    pair[1].run("comm hog_second");
    let before = [0, 1].map(|one| Scheduled::of(&pair[one]));
    let filter = filter(&pair[0]);
    let envelope = around("runq_latency", options, &filter, || {
        hog_together(&mut pair, 1500);
    });
    let scheduled = [0, 1].map(|one| Scheduled::of(&pair[one]).since(before[one]));
    (envelope, scheduled, [0, 1].map(|one| pair[one].pid()))
}

/// Every time on the CPU was one wait. The scheduler's count is now and then a few ahead of its tracepoint on a busy machine, with
/// bpftrace as with this probe; more waits than times there cannot be.
fn assert_as_often(waits: u64, scheduled: Scheduled) {
    assert!(scheduled.times > 20, "they took turns: {scheduled:?}");
    assert!(
        waits <= scheduled.times && waits + scheduled.times * 3 / 100 + 1 >= scheduled.times,
        "{waits} {scheduled:?}"
    );
}

fn assert_agrees(series: &Series, scheduled: Scheduled) {
    assert_as_often(series.count, scheduled);
    let ratio = total_ns(series) / scheduled.waited_ns as f64;
    assert!((0.9..1.1).contains(&ratio), "{ratio}: {scheduled:?} {series:?}");
    assert_eq!(series.buckets.iter().map(|bucket| bucket.2).sum::<u64>(), series.count);
    assert!(series.min <= series.p50 && series.p50 <= series.p99 && series.p99 <= series.max, "{series:?}");
}

#[test]
fn a_filtered_process_waits_as_often_and_as_long_as_the_scheduler_says() {
    let (envelope, scheduled, _) = shared_cpu(&json!({}), |one| of_pid(one.pid()));
    assert!(!envelope.loss.any(), "it slept when the probe attached: {:?}", envelope.loss);
    assert_eq!(series(&envelope).len(), 1);
    assert_agrees(&series(&envelope)[0], scheduled[0]);
}

#[test]
fn processes_and_commands_are_told_apart() {
    for by in ["pid", "comm"] {
        let (envelope, scheduled, pids) = shared_cpu(&json!({"by": by}), |_| Filter::default());
        for (index, comm) in ["hog_first", "hog_second"].into_iter().enumerate() {
            let found = one_series(&envelope, "comm", comm);
            assert_agrees(found, scheduled[index]);
            if by == "pid" {
                assert_eq!(found.key["pid"], pids[index]);
            }
        }
        assert!(find_series(&envelope, "comm", "swapper/0").is_none(), "the idle thread waits for nothing");
    }
}

#[test]
fn the_command_filter_shows_one_command_on_its_cpu() {
    let filter = Filter { comm: Some("hog_second".into()), ..Filter::default() };
    let (envelope, scheduled, _) = shared_cpu(&json!({"by": "cpu"}), |_| filter);
    // It may wait elsewhere until it pins itself.
    let all: u64 = series(&envelope).iter().map(|one| one.count).sum();
    assert_as_often(all, scheduled[1]);
    let ratio = series(&envelope).iter().map(total_ns).sum::<f64>() / scheduled[1].waited_ns as f64;
    assert!((0.9..1.1).contains(&ratio), "{ratio}");
    assert!(one_series(&envelope, "cpu", 0).count + 7 > all, "{:?}", series(&envelope));
}

#[test]
fn more_threads_than_cpus_wait_long_and_on_an_empty_cpu_they_do_not() {
    let mut workload = workload!();
    workload.run("comm crowd");
    let envelope =
        around("runq_latency", &json!({}), &of_pid(workload.pid()), || drop(workload.run("spin_threads 7 1000")));
    let found = &series(&envelope)[0];
    // Each of seven has the CPU for a seventh of the second: six of seven seconds are spent waiting.
    let waited = total_ns(found) / 1e9;
    assert!(waited > 4.0, "{waited} s in all: {found:?}");
    assert!(found.p50 > 1_000_000, "{found:?}");
}

#[test]
fn short_waits_are_left_out_if_asked_for() {
    let filter = |one: &Workload| Filter { min_duration_us: Some(1000), ..of_pid(one.pid()) };
    let (envelope, scheduled, _) = shared_cpu(&json!({}), filter);
    let found = &series(&envelope)[0];
    assert!(found.min >= 1_000_000 && found.count > 0 && found.count <= scheduled[0].times, "{found:?}");
    assert!(found.buckets.iter().all(|(_, high, _)| *high > 1_000_000));
}

#[test]
fn threads_and_children_are_followed_if_asked_for() {
    let mut workload = workload!();
    let tid = workload.run("thread")[0] as u32;
    let of_thread = Filter { tid: Some(tid), ..Filter::default() };
    let envelope = around("runq_latency", &json!({}), &of_thread, || drop(workload.run("in_thread nanosleep 23 1000")));
    // Woken for the command and after each sleep; it may have been preempted as well. A sleep whose time is up before the thread
    // has left its CPU, as happens when a hypervisor takes the CPU away, is no wait.
    assert!(series(&envelope)[0].count >= 22, "{:?}", series(&envelope));
    let with_children = Filter { descendants: true, ..of_pid(workload.pid()) };
    let envelope =
        around("runq_latency", &json!({"by": "pid"}), &with_children, || drop(workload.run("fork clone 17 7")));
    assert_eq!(series(&envelope).len(), 18, "the process and its 17 children: {:?}", series(&envelope));
}

/// `runqlat` of libbpf-tools prints how many waits there were in each power of two microseconds.
#[test]
fn runqlat_sees_as_many_waits() {
    let mut pair = [workload!(), workload!()];
    let pid = pair[0].pid().to_string();
    let mut runqlat =
        Command::new("stdbuf").args(["-oL", "runqlat", "-p", &pid, "600", "1"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(runqlat.stdout.take().unwrap()).lines().map(|line| line.unwrap());
    assert!(lines.next().unwrap().starts_with("Tracing"), "printed when it has attached");
    pair.iter().for_each(asleep);
    let envelope = around("runq_latency", &json!({}), &of_pid(pair[0].pid()), || {
        hog_together(&mut pair, 1000);
    });
    // SAFETY: the child has not been waited for.
    unsafe { libc::kill(runqlat.id() as i32, libc::SIGINT) };
    let count = |line: String| line.split('|').next()?.split(':').nth(1)?.trim().parse::<u64>().ok();
    let waits: u64 = lines.filter_map(count).sum();
    runqlat.wait().unwrap();
    assert!(waits > 20, "{waits}");
    assert_eq!(series(&envelope)[0].count, waits);
}
