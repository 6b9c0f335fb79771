//! `cpu_slices`, `irq_time`, `memory_reclaim` and `page_faults` on the real kernel. Needs root; without, it fails.
#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

use std::{collections::BTreeMap, fs, io::Write as _, os::fd::AsRawFd as _, time::Duration};

use mcptrace::kernel::filter::Filter;
use mcptrace_tests::{
    memory_group::Limited,
    probing::{around, assert_no_loss, events, find_series, of_pid, one_series, rows, series},
    workload,
    workload::{Workload, hex},
};
use serde_json::json;

/// Switches and time on CPUs of the main thread of a workload, as the kernel keeps them.
#[derive(Clone, Copy, Debug)]
struct Kept {
    voluntary: u64,
    involuntary: u64,
    ran_ns: u64,
}

impl Kept {
    /// When it sleeps, so that nothing changes meanwhile.
    fn of(workload: &Workload) -> Self {
        let pid = workload.pid();
        while !fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().rsplit_once(") ").unwrap().1.starts_with('S') {
            std::thread::sleep(Duration::from_millis(1));
        }
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim_start_matches(':').trim().parse().unwrap()
        };
        let schedstat = fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap();
        Self {
            voluntary: field("voluntary_ctxt_switches"),
            involuntary: field("nonvoluntary_ctxt_switches"),
            ran_ns: schedstat.split_whitespace().next().unwrap().parse().unwrap(),
        }
    }
}

/// Two processes take turns on a CPU; gives what the probe must say of the first.
fn take_turns(pair: &mut [Workload; 2]) -> Kept {
    let before = Kept::of(&pair[0]);
    for one in pair.iter_mut() {
        one.begin("hog 0 1300");
    }
    for one in pair.iter_mut() {
        one.finish();
    }
    pair[0].run("nanosleep 31 500");
    let after = Kept::of(&pair[0]);
    Kept {
        voluntary: after.voluntary - before.voluntary,
        involuntary: after.involuntary - before.involuntary,
        ran_ns: after.ran_ns - before.ran_ns,
    }
}

#[test]
fn slices_and_switches_agree_with_the_schedulers() {
    for by in ["total", "pid", "comm", "cpu"] {
        let mut pair = [workload!(), workload!()];
        pair[0].run(&format!("comm slices_{by}"));
        let pid = pair[0].pid();
        let filter = if matches!(by, "pid" | "comm") { Filter::default() } else { of_pid(pid) };
        let mut kept = None;
        let envelope = around("cpu_slices", &json!({"by": by}), &filter, || kept = Some(take_turns(&mut pair)));
        let kept = kept.unwrap();
        let all: Vec<_> = match by {
            "pid" => vec![one_series(&envelope, "pid", pid)],
            "comm" => vec![one_series(&envelope, "comm", format!("slices_{by}"))],
            _ => series(&envelope).iter().collect(),
        };
        let sum = |field: &str| all.iter().map(|one| one.also[field].as_u64().unwrap()).sum::<u64>();
        let count: u64 = all.iter().map(|one| one.count).sum();
        assert_eq!(sum("voluntary") + sum("involuntary"), count);
        let close = |found: u64, kept: u64| found.abs_diff(kept) <= 1 + kept * 3 / 100;
        assert!(kept.involuntary > 10 && kept.voluntary >= 31, "{kept:?}");
        assert!(close(sum("voluntary"), kept.voluntary), "{by}: {} {kept:?}", sum("voluntary"));
        assert!(close(sum("involuntary"), kept.involuntary), "{by}: {} {kept:?}", sum("involuntary"));
        let ran: f64 = all.iter().map(|one| one.mean * one.count as f64).sum();
        let ratio = ran / kept.ran_ns as f64;
        // The scheduler's clock leaves out what the hypervisor took meanwhile (kernel/sched/core.c, update_rq_clock_task).
        assert!((0.9..1.3).contains(&ratio), "{by}: {ratio} {kept:?}");
    }
}

#[test]
fn moves_to_another_cpu_are_counted() {
    let mut workload = workload!();
    // From the first CPU, where it is now, to the other and back, 101 times.
    workload.run("hop 2");
    let envelope = around("cpu_slices", &json!({}), &of_pid(workload.pid()), || {
        workload.run("hop 101");
    });
    assert_eq!(series(&envelope)[0].also["migrations"], 101);
}

/// Counts of /proc/softirqs or /proc/interrupts over all CPUs, by the first or the last word of a line.
fn interrupts(file: &str, last: bool) -> BTreeMap<String, u64> {
    let text = fs::read_to_string(file).unwrap();
    let line = |line: &str| {
        let (first, rest) = line.split_once(':')?;
        let count = rest.split_whitespace().map_while(|word| word.parse::<u64>().ok()).sum();
        let name = if last { line.split_whitespace().last()? } else { first.trim() };
        Some((name.to_owned(), count))
    };
    text.lines().skip(1).filter_map(line).collect()
}

#[test]
fn interrupts_are_counted_as_proc_does() {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let file = hex(directory.path().join("file").to_string_lossy().as_bytes());
    let mut workload = workload!();
    let read = || {
        let lines = |last| interrupts("/proc/interrupts", last);
        (interrupts("/proc/softirqs", false), lines(true), lines(false))
    };
    let outer = read();
    let mut inner = None;
    let envelope = around("irq_time", &json!({}), &Filter::default(), || {
        let begin = read();
        workload.run(&format!("fsync {file} 53"));
        workload.run("nanosleep 23 10000");
        inner = Some((begin, read()));
    });
    let last = read();
    let (begin, end) = inner.unwrap();
    let missed = envelope.loss.missed.unwrap_or(0) + envelope.loss.dropped_total();
    let mut vectors = 0;
    for (name, count) in &end.0 {
        let (least, most) = (count - begin.0[name], last.0[name] - outer.0[name]);
        let found = series(&envelope).iter().find(|one| one.key["kind"] == "soft" && one.key["name"] == *name);
        let found = found.map_or(0, |one| one.count);
        // The kernel counts a vector a moment before its tracepoint, on each CPU.
        assert!(found + missed + 4 >= least && found <= most + 2, "{name}: {least} <= {found} <= {most}");
        vectors += u32::from(found > 0);
    }
    assert!(vectors >= 3, "timers, the scheduler and RCU have some");
    for (name, line) in [("local_timer", "LOC"), ("reschedule", "RES")] {
        let (least, most) = (end.2[line] - begin.2[line], last.2[line] - outer.2[line]);
        let found = series(&envelope).iter().find(|one| one.key["kind"] == "vector" && one.key["name"] == name);
        let found = found.map_or(0, |one| one.count);
        assert!(found + missed + 4 >= least && found <= most + 2, "{name}: {least} <= {found} <= {most}");
        assert!(name != "local_timer" || found > 23, "timers have ended 23 sleeps");
    }
    let hard: Vec<_> = series(&envelope).iter().filter(|one| one.key["kind"] == "hard").collect();
    assert!(!hard.is_empty(), "the disk has interrupted");
    for one in hard {
        let name = one.key["name"].as_str().unwrap();
        let (least, most) = (end.1[name] - begin.1[name], last.1[name] - outer.1[name]);
        assert!(one.count + missed + 2 >= least && one.count <= most + 2, "{name}: {least} {} {most}", one.count);
        assert!(one.also["total_ns"].as_u64().unwrap() > 0);
    }
}

fn family(workload: &Workload) -> Filter {
    Filter { descendants: true, ..of_pid(workload.pid()) }
}

#[test]
fn each_zone_that_is_compacted_is_a_stall() {
    let zones = fs::read_to_string("/proc/zoneinfo").unwrap();
    let present = zones.lines().filter_map(|line| line.trim().strip_prefix("present")?.trim().parse::<u64>().ok());
    let populated = present.filter(|pages| *pages > 0).count() as u64;
    let mut workload = workload!();
    let script = "for i in 1 2 3; do echo 1 > /proc/sys/vm/compact_memory; done";
    let words: Vec<_> = ["/bin/sh", "-c", script].iter().map(hex).collect();
    for transport in ["ring", "perf"] {
        let options = json!({"slower_than_us": 0, "transport": transport});
        let envelope = around("memory_reclaim", &options, &family(&workload), || {
            workload.run(&format!("spawn 1 {}", words.join(" ")));
        });
        assert_no_loss(&envelope);
        assert_eq!(one_series(&envelope, "stall", "compaction").count, 3 * populated);
        let listed = events(&envelope).iter().filter(|row| row["stall"] == "compaction");
        let listed: Vec<_> = listed.inspect(|row| assert_eq!(row["comm"], "sh")).collect();
        assert_eq!(listed.len() as u64, 3 * populated);
        assert!(listed.iter().all(|row| !row.contains_key("pages")), "nobody counted them: {listed:?}");
    }
}

#[test]
fn a_control_group_at_its_limit_reclaims() {
    const PAGES: u64 = 12_000;
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = directory.path().join("file");
    fs::write(&path, vec![7; PAGES as usize * 4096]).unwrap();
    forget(&path);
    let group = Limited::new("reclaim", 12 << 20);
    let mut workload = workload!();
    group.add(workload.pid());
    let envelope = around("memory_reclaim", &json!({"slower_than_us": 0}), &of_pid(workload.pid()), || {
        workload.run(&format!("map_file {} {PAGES}", hex(path.to_string_lossy().as_bytes())));
    });
    assert_no_loss(&envelope);
    let stalls = one_series(&envelope, "stall", "cgroup");
    let pages = stalls.also["pages"].as_u64().unwrap();
    // 47 MB went through 12: what did not fit was reclaimed, mostly by the one who read.
    assert!((PAGES / 2..=PAGES * 2).contains(&pages), "{stalls:?}");
    let listed: Vec<_> = events(&envelope).iter().filter(|row| row["stall"] == "cgroup").collect();
    assert_eq!(listed.len() as u64, stalls.count);
    assert_eq!(listed.iter().map(|row| row["pages"].as_u64().unwrap()).sum::<u64>(), pages);
    let longest = listed.iter().map(|row| row["latency_ns"].as_u64().unwrap()).max().unwrap();
    assert_eq!(longest, stalls.max);
}

/// Writes a file out and drops it from memory.
fn forget(path: &std::path::Path) {
    let mut file = fs::OpenOptions::new().append(true).open(path).unwrap();
    file.flush().unwrap();
    file.sync_all().unwrap();
    // SAFETY: takes numbers.
    assert_eq!(unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) }, 0);
}

/// Minor and major faults of a process, as the kernel keeps them (fields 10 and 12 of proc_pid_stat(5)).
fn faults(pid: u32) -> (u64, u64) {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    (fields[7].parse().unwrap(), fields[9].parse().unwrap())
}

#[test]
fn faults_are_those_that_the_kernel_counts_and_memory_grows() {
    const PAGES: u64 = 5003;
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = directory.path().join("file");
    fs::write(&path, vec![7; 211 * 4096]).unwrap();
    forget(&path);
    let mut workload = workload!();
    let pid = workload.pid();
    // What it has to set up, it has now.
    workload.run("getppid 1");
    Kept::of(&workload);
    let (mut before, mut after) = ((0, 0), (0, 0));
    let envelope = around("page_faults", &json!({}), &of_pid(pid), || {
        before = faults(pid);
        workload.run(&format!("touch {PAGES}"));
        workload.run(&format!("map_file {} 211", hex(path.to_string_lossy().as_bytes())));
        after = faults(pid);
    });
    assert_no_loss(&envelope);
    let [row] = rows(&envelope) else { panic!("{envelope:?}") };
    let (minor, major) = (after.0 - before.0, after.1 - before.1);
    assert!(minor >= PAGES && major > 0, "{minor} {major}");
    assert_eq!((&row["minor"], &row["major"]), (&json!(minor), &json!(major)));
    assert_eq!((&row["faults"], &row["comm"], &row["pid"]), (&json!(minor + major), &json!("workload"), &json!(pid)));
    let growth = row["growth_bytes"].as_i64().unwrap();
    let expected = (PAGES * 4096) as i64;
    assert!((growth - expected).abs() < 2 << 20, "{growth} {expected}");
}

#[test]
fn what_was_freed_again_shows_as_the_peak() {
    const PAGES: u64 = 5003;
    let mut workload = workload!();
    let envelope = around("page_faults", &json!({}), &of_pid(workload.pid()), || {
        workload.run("touch 11");
        workload.run(&format!("touch_and_free {PAGES}"));
        workload.run("touch 11");
    });
    let [row] = rows(&envelope) else { panic!("{envelope:?}") };
    let [growth, resident, peak] =
        ["growth_bytes", "resident_bytes", "peak_bytes"].map(|name| row[name].as_i64().unwrap());
    assert!(growth < 4 << 20, "{row:?}");
    let freed = peak - resident;
    assert!((freed - (PAGES * 4096) as i64).abs() < 2 << 20, "{row:?}");
}

#[test]
fn each_fault_is_a_sample_of_its_stack() {
    const PAGES: u64 = 4093;
    let mut workload = workload!();
    let pid = workload.pid();
    let (mut before, mut after) = ((0, 0), (0, 0));
    let envelope = around("page_faults", &json!({ "stacks": true }), &of_pid(pid), || {
        before = faults(pid);
        workload.run(&format!("touch {PAGES}"));
        after = faults(pid);
    });
    assert_no_loss(&envelope);
    let faults = after.0 + after.1 - before.0 - before.1;
    let report = serde_json::to_value(&envelope.report).unwrap();
    assert!(faults >= PAGES);
    assert_eq!((&report["shape"], &report["total"]), (&json!("stacks"), &json!(faults)), "{report}");
}

#[test]
fn nothing_is_said_of_what_did_not_stall() {
    let workload = workload!();
    let envelope = around("memory_reclaim", &json!({}), &of_pid(workload.pid()), || {});
    assert!(find_series(&envelope, "stall", "direct").is_none());
    assert!(envelope.notes.iter().any(|note| note.contains("nothing matched")), "{:?}", envelope.notes);
}
