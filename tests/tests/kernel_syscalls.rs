//! `syscall_counts` and `syscall_latency` on the real kernel, against workloads of known size. Needs root; without, it fails.

use std::process::Command;

use mcptrace::{kernel::filter::Filter, report::Report};
use mcptrace_tests::{
    named_group::Named,
    probing::{
        ALL, Calls, around, assert_no_loss, calls, counts, events, executions, find_series, of_pid, one_series,
        request, rows, series, start, stop,
    },
    workload,
    workload::Workload,
};
use serde_json::json;

/// Counts system calls of a workload while it does something.
fn count(workload: &mut Workload, commands: &[&str]) -> Calls {
    count_where(&of_pid(workload.pid()), || {
        for command in commands {
            workload.run(command);
        }
    })
}

fn count_where(filter: &Filter, work: impl FnOnce()) -> Calls {
    let envelope = around("syscall_counts", &json!({}), filter, work);
    assert_no_loss(&envelope);
    calls(&envelope)
}

#[test]
fn calls_and_errors_are_exact() {
    let mut workload = workload!();
    let found = count(&mut workload, &["getppid 1009", "fail_opens 13", "close_bad 7"]);
    assert_eq!(found.of("getppid"), (1009, 0, 0));
    assert_eq!(found.of("openat"), (13, 13, 0));
    assert_eq!(found.of("close"), (7, 7, 0));
    assert_eq!(found.names().len(), 5, "those, read and write of the workload's talk, and no other: {found:?}");
}

#[test]
fn a_call_that_never_returns_counts_once() {
    let mut workload = workload!();
    let found = count_where(&of_pid(workload.pid()), || workload.end());
    assert_eq!(found.of("exit_group"), (1, 0, 0));
}

#[test]
fn sigreturn_counts_and_the_value_it_restores_is_no_error() {
    let found = count(&mut workload!(), &["sigreturn 11"]);
    assert_eq!(found.of("rt_sigreturn"), (11, 0, 0));
}

#[test]
fn the_childs_return_from_a_fork_is_no_call() {
    for kind in ["fork", "vfork", "clone", "clone3"] {
        let mut workload = workload!();
        let filter = Filter { descendants: true, ..of_pid(workload.pid()) };
        let found = count_where(&filter, || drop(workload.run(&format!("fork {kind} 17 7"))));
        assert_eq!(found.of(kind), (17, 0, 0));
        assert_eq!(found.of("exit"), (17, 0, 0), "{kind}: the children are followed to their end");
        assert_eq!(found.of("getppid"), (17 * 7, 0, 0), "{kind}: the children are followed from their start");
        assert_eq!(found.of("wait4"), (17, 0, 0));
    }
}

#[test]
fn children_are_not_followed_unless_asked_for() {
    let found = count(&mut workload!(), &["fork clone 17 7"]);
    assert_eq!((found.of("clone"), found.of("getppid"), found.of("exit")), ((17, 0, 0), (0, 0, 0), (0, 0, 0)));
}

/// arch/x86/entry/syscalls/syscall_32.tbl: 64 is getppid, 6 close; syscall_64.tbl: 64 is semget, 6 lstat.
#[cfg(target_arch = "x86_64")]
#[test]
fn a_32_bit_call_has_a_row_of_its_own() {
    let found = count(&mut workload!(), &["int80 64 1009 0", "int80 6 13 -1", "getppid 7"]);
    assert_eq!(found.of("i386:getppid"), (1009, 0, 0));
    assert_eq!(found.of("i386:close"), (13, 13, 0));
    assert_eq!(found.of("getppid"), (7, 0, 0));
    assert_eq!((found.of("semget"), found.of("lstat"), found.of("close")), ((0, 0, 0), (0, 0, 0), (0, 0, 0)));
}

#[test]
fn numbers_that_no_table_has_are_one_row() {
    // The second one is getpid of the x32 ABI, which this kernel lacks or names in no table of ours.
    let found = count(&mut workload!(), &["call 9999 7", &format!("call {} 11", 0x4000_0000_u32 + 600)]);
    assert_eq!(found.of("unknown"), (18, 18, 0));
}

/// At its return nothing tells it from `rt_sigreturn`, so that its errors are not counted.
#[test]
fn the_number_minus_one_is_no_call_of_sigreturn() {
    let found = count(&mut workload!(), &["call -1 7"]);
    assert_eq!((found.of("unknown"), found.of("rt_sigreturn")), ((7, 0, 0), (0, 0, 0)));
}

#[test]
fn an_interrupted_call_is_no_error() {
    let found = count(&mut workload!(), &["interrupt 7"]);
    assert_eq!(found.of("recvfrom"), (7, 0, 7));
}

/// Such a call gets its errno before the kernel enters it (kernel/entry/common.c).
#[test]
fn a_call_that_seccomp_refuses_is_an_error_that_nobody_made() {
    let mut workload = workload!();
    workload.run(&format!("seccomp_refuse {}", libc::SYS_getpgid));
    let found = count(&mut workload, &[&format!("call {} 13", libc::SYS_getpgid), "getppid 7"]);
    assert_eq!(found.of("getpgid"), (0, 13, 0));
    assert_eq!(found.of("getppid"), (7, 0, 0));
}

#[test]
fn every_process_has_its_rows() {
    let (mut one, mut other) = (workload!(), workload!());
    one.run("comm first");
    other.run("comm second");
    for by in ["pid", "comm"] {
        // Unfiltered: whatever else runs on this machine is in the report as well.
        let envelope = around("syscall_counts", &json!({"by": by}), &Filter::default(), || {
            one.run("getppid 1009");
            other.run("getppid 503");
            other.run("close_bad 13");
        });
        let found = |call: &str, pid: u32, comm: &str| {
            let is = |row: &&mcptrace::report::Row| {
                row["syscall"] == call && row["comm"] == comm && (by == "comm" || row["pid"] == pid)
            };
            let found: Vec<_> = rows(&envelope).iter().filter(is).map(counts).collect();
            assert!(found.len() <= 1, "{found:?}");
            found.first().copied().unwrap_or_default()
        };
        assert_eq!(found("getppid", one.pid(), "first"), (1009, 0, 0));
        assert_eq!(found("getppid", other.pid(), "second"), (503, 0, 0));
        assert_eq!(found("close", other.pid(), "second"), (13, 13, 0));
        assert_eq!(found("close", one.pid(), "first"), (0, 0, 0));
    }
}

#[test]
fn the_thread_filter_shows_one_thread() {
    let mut workload = workload!();
    let tid = workload.run("thread")[0];
    let found = count_where(&Filter { tid: Some(tid as u32), ..Filter::default() }, || {
        workload.run("getppid 503");
        workload.run("in_thread getppid 1009");
    });
    assert_eq!(found.of("getppid"), (1009, 0, 0));
    assert_eq!(found.of("read"), (0, 0, 0), "the main thread reads");
}

#[test]
fn the_command_filter_shows_one_command() {
    let (mut one, mut other) = (workload!(), workload!());
    // 15 bytes, the longest there is; the other differs in the last.
    one.run("comm mcptrace_prime1");
    other.run("comm mcptrace_prime2");
    let found = count_where(&Filter { comm: Some("mcptrace_prime1".into()), ..Filter::default() }, || {
        one.run("getppid 1009");
        other.run("getppid 503");
    });
    assert_eq!(found.of("getppid"), (1009, 0, 0));
}

#[test]
fn the_user_filter_shows_one_user() {
    const USER: u32 = 61_007;
    let (mut one, mut other) = (workload!(), workload!());
    one.run(&format!("setuid {USER}"));
    let found = count_where(&Filter { uid: Some(USER), ..Filter::default() }, || {
        one.run("getppid 1009");
        other.run("getppid 503");
    });
    assert_eq!(found.of("getppid"), (1009, 0, 0));
}

#[test]
fn filters_that_are_set_must_all_match() {
    let (mut one, mut other) = (workload!(), workload!());
    one.run("comm together");
    other.run("comm together");
    let filter = Filter { comm: Some("together".into()), ..of_pid(one.pid()) };
    let found = count_where(&filter, || {
        one.run("getppid 1009");
        other.run("getppid 503");
    });
    assert_eq!(found.of("getppid"), (1009, 0, 0));
    let filter = Filter { uid: Some(61_007), ..filter };
    assert!(count_where(&filter, || drop(one.run("getppid 7"))).names().is_empty());
}

#[test]
fn the_cgroup_filter_shows_the_group_and_those_below() {
    let name = format!("mcptrace_test_{}", std::process::id());
    let (outer, inner, beside) =
        (Named::new(&name), Named::new(&format!("{name}/inner")), Named::new(&format!("{name}_beside")));
    let groups = (outer, inner, beside);
    let (mut a, mut b, mut c) = (workload!(), workload!(), workload!());
    groups.0.add(&a);
    groups.1.add(&b);
    groups.2.add(&c);
    let mut found = |path: &str| {
        let filter = Filter { cgroup: Some(path.to_owned()), ..Filter::default() };
        count_where(&filter, || {
            a.run("getppid 1009");
            b.run("getppid 503");
            c.run("getppid 7");
        })
        .of("getppid")
        .0
    };
    let seen = [name.clone(), format!("/{name}/inner"), format!("{name}_beside")].map(|path| found(&path));
    drop((a, b, c));
    drop((groups.1, groups.0, groups.2));
    assert_eq!(seen, [1009 + 503, 503, 7]);
}

/// Maps are read in few calls: a probe that counts calls must not fill its report with those of its own reader.
#[test]
fn reading_a_running_probe_is_hardly_seen() {
    for probe in ["syscall_counts", "syscall_latency"] {
        let execution = start(probe, &json!({}), &of_pid(std::process::id()));
        for _ in 0..10 {
            execution.envelope(&ALL);
        }
        let envelope = stop(&execution);
        let own = match &envelope.report {
            Some(Report::Table(_)) => calls(&envelope).of("bpf").0,
            _ => find_series(&envelope, "syscall", "bpf").map_or(0, |series| series.count),
        };
        assert!((10..400).contains(&own), "{probe}: {own} calls of bpf to read it ten times");
    }
}

#[test]
fn the_container_filter_shows_one_container() {
    let id = format!("4f2a{:060x}", std::process::id());
    let other_id = format!("5f2a{:060x}", std::process::id());
    let groups = [id.as_str(), &other_id].map(|id| Named::new(&format!("docker-{id}.scope")));
    let (mut one, mut other) = (workload!(), workload!());
    groups[0].add(&one);
    groups[1].add(&other);
    let mut found = |id: &str| {
        let filter = Filter { container: Some(id.to_owned()), ..Filter::default() };
        count_where(&filter, || {
            one.run("getppid 1009");
            other.run("getppid 503");
        })
        .of("getppid")
        .0
    };
    let seen = [found(&id), found(&other_id)];
    drop((one, other));
    drop(groups);
    assert_eq!(seen, [1009, 503]);
}

#[test]
fn bpftrace_counts_the_same() {
    let mut workload = workload!();
    let program = format!("tracepoint:syscalls:sys_enter_getppid /pid == {}/ {{ @calls = count(); }}", workload.pid());
    let bpftrace = mcptrace::bpftrace::Bpftrace::find(None).unwrap();
    let _ = Command::new("mount").args(["-t", "tracefs", "tracefs", "/sys/kernel/tracing"]).status();
    let ready = "interval:ms:100 { if (!@ready) { @ready = 1; printf(\"ready\\n\"); } }";
    let mut session = bpftrace.spawn(&format!("{program} {ready}"), mcptrace::bpftrace::Limits::default()).unwrap();
    let view = session.view();
    let is_ready = || view.snapshot().lines.iter().any(|line| line == "ready");
    session.wait(std::time::Instant::now() + std::time::Duration::from_secs(20), &is_ready);
    let found = count(&mut workload, &["getppid 1009"]);
    let lines = session.end().lines;
    assert!(lines.iter().any(|line| line == "@calls: 1009"), "{lines:?}");
    assert_eq!(found.of("getppid"), (1009, 0, 0));
}

#[test]
fn latencies_are_counted_exactly_and_a_sleep_takes_its_time() {
    let mut workload = workload!();
    let envelope = around("syscall_latency", &json!({}), &of_pid(workload.pid()), || {
        workload.run("getppid 1009");
        workload.run("nanosleep 23 3000");
    });
    assert_eq!(one_series(&envelope, "syscall", "getppid").count, 1009);
    let sleeps = one_series(&envelope, "syscall", "nanosleep");
    assert_eq!(sleeps.count, 23);
    assert!(sleeps.min >= 3_000_000 && sleeps.p50 >= 3_000_000, "{sleeps:?}");
    // A second of slack each: this is about units, not about how busy the machine is.
    assert!(sleeps.p50 < 1_000_000_000 && sleeps.max >= sleeps.p999 && sleeps.p999 >= sleeps.p50, "{sleeps:?}");
    assert_eq!(sleeps.buckets.iter().map(|(_, _, count)| count).sum::<u64>(), 23);
    let mean = sleeps.buckets.iter().map(|(low, _, count)| *low as f64 * *count as f64).sum::<f64>() / 23.0;
    assert!(sleeps.mean >= mean && sleeps.mean <= mean * 1.125, "{sleeps:?}");
    // It slept in a read when the probe attached; that one began before.
    assert_eq!(envelope.loss.dropped.get("start_missing"), Some(&1));
    assert_eq!(envelope.loss.dropped_total(), 1, "{:?}", envelope.loss);
}

#[test]
fn only_the_call_that_was_asked_for_is_timed() {
    let mut workload = workload!();
    for (name, calls) in [("getppid", 1009), ("i386:getppid", 503)] {
        let envelope = around("syscall_latency", &json!({"syscall": name}), &of_pid(workload.pid()), || {
            workload.run("getppid 1009");
            workload.run("int80 64 503 0");
            workload.run("close_bad 7");
        });
        assert_no_loss(&envelope);
        assert_eq!(series(&envelope).len(), 1);
        assert_eq!((one_series(&envelope, "syscall", name).count, envelope.loss.seen), (calls, Some(calls)));
    }
}

#[test]
fn slow_calls_are_listed_by_ring_and_by_perf_buffers() {
    for transport in ["ring", "perf"] {
        let mut workload = workload!();
        let options = json!({"slower_than_us": 4000, "transport": transport, "syscall": "nanosleep"});
        let envelope = around("syscall_latency", &options, &of_pid(workload.pid()), || {
            workload.run("nanosleep 1009 1");
            workload.run("nanosleep 23 5000");
        });
        assert_no_loss(&envelope);
        assert_eq!(one_series(&envelope, "syscall", "nanosleep").count, 1032);
        // Of the short ones some may have been slow because the machine is busy; the histogram knows how many.
        let slow: Vec<_> = events(&envelope).iter().collect();
        assert!(slow.len() >= 23, "{transport}: {}", slow.len());
        let long = slow.iter().filter(|row| row["latency_ns"].as_u64().unwrap() >= 5_000_000).count();
        assert!(long >= 23);
        let buckets = &one_series(&envelope, "syscall", "nanosleep").buckets;
        let at_least = |bound| buckets.iter().filter(|(low, ..)| *low >= bound).map(|bucket| bucket.2 as usize).sum();
        // The bound lies within a bucket: between those above it and those that touch it.
        let surely: usize = at_least(4_000_000);
        let touching: usize =
            buckets.iter().filter(|(_, high, _)| *high > 4_000_000).map(|bucket| bucket.2 as usize).sum();
        assert!((surely..=touching).contains(&slow.len()), "{transport}: {surely} {} {touching}", slow.len());
        for row in slow {
            assert!(row["latency_ns"].as_u64().unwrap() >= 4_000_000, "{row:?}");
            assert_eq!((&row["syscall"], &row["result"]), (&json!("nanosleep"), &json!(0)));
            assert_eq!(
                (&row["pid"], &row["tid"], &row["comm"]),
                (&json!(workload.pid()), &json!(workload.pid()), &json!("workload"))
            );
        }
        workload.end();
    }
}

#[test]
fn the_childs_return_from_a_fork_has_no_latency() {
    for kind in ["fork", "vfork", "clone", "clone3"] {
        let mut workload = workload!();
        let filter = Filter { descendants: true, ..of_pid(workload.pid()) };
        let envelope =
            around("syscall_latency", &json!({}), &filter, || drop(workload.run(&format!("fork {kind} 17 7"))));
        assert_eq!(one_series(&envelope, "syscall", kind).count, 17);
        assert_eq!(one_series(&envelope, "syscall", "getppid").count, 17 * 7);
        assert!(find_series(&envelope, "syscall", "exit").is_none(), "it never returns");
        assert_eq!(envelope.loss.dropped_total(), 1, "{kind}: the read under way at the start: {:?}", envelope.loss);
    }
}

/// The first child dies in its exit, whose start nobody takes; the second has its id and comes out of clone3 with no call of its own.
#[test]
fn a_thread_that_gets_a_dead_ones_id_does_not_inherit_its_call() {
    let mut workload = workload!();
    let filter = Filter { descendants: true, ..of_pid(workload.pid()) };
    let envelope = around("syscall_latency", &json!({}), &filter, || drop(workload.run("fork_twice_as_one_id")));
    assert_eq!(one_series(&envelope, "syscall", "clone3").count, 2);
}

#[test]
fn only_long_calls_are_counted_if_asked_for() {
    let mut workload = workload!();
    let filter = Filter { min_duration_us: Some(3000), ..of_pid(workload.pid()) };
    let envelope = around("syscall_latency", &json!({"syscall": "nanosleep"}), &filter, || {
        workload.run("nanosleep 23 3000");
        workload.run("getppid 1009");
    });
    assert_eq!((series(&envelope).len(), one_series(&envelope, "syscall", "nanosleep").count), (1, 23));
    let filter = Filter { min_duration_us: Some(60_000_000), ..of_pid(workload.pid()) };
    let envelope = around("syscall_latency", &json!({"syscall": "nanosleep"}), &filter, || {
        drop(workload.run("nanosleep 23 3000"));
    });
    assert_eq!((series(&envelope).len(), envelope.loss.seen), (0, Some(0)));
}

#[test]
fn a_handled_signal_has_the_latency_of_its_return() {
    let mut workload = workload!();
    let envelope =
        around("syscall_latency", &json!({}), &of_pid(workload.pid()), || drop(workload.run("sigreturn 11")));
    assert_eq!(one_series(&envelope, "syscall", "rt_sigreturn").count, 11);
}

#[test]
fn what_was_found_can_be_read_while_it_runs_and_never_shrinks() {
    let mut workload = workload!();
    let execution = executions().start_probe(&request("syscall_counts", &json!({}), &of_pid(workload.pid()))).unwrap();
    for round in 1..=7 {
        workload.run("getppid 101");
        assert_eq!(calls(&execution.envelope(&ALL)).of("getppid"), (101 * round, 0, 0));
    }
    assert_eq!(calls(&stop(&execution)).of("getppid"), (707, 0, 0));
}
