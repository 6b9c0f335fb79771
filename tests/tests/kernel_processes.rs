//! `process_exec`, `process_exit`, `signals` and `oom_kills` on the real kernel. Needs root; without, it fails.
#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

use std::{fs, process::Command};

use mcptrace::{
    kernel::filter::Filter,
    report::{Envelope, Row},
};
use mcptrace_tests::{
    memory_group::Limited,
    named_group::{Named, Version1},
    probing::{around, assert_no_loss, calls, events, of_pid},
    workload,
    workload::{Workload, hex},
};
use serde_json::{Value, json};

/// A process and all that it starts.
fn family(workload: &Workload) -> Filter {
    Filter { descendants: true, ..of_pid(workload.pid()) }
}

fn words(words: &[&str]) -> String {
    words.iter().map(hex).collect::<Vec<_>>().join(" ")
}

fn numbers(rows: &[Row], field: &str) -> Vec<i64> {
    rows.iter().map(|row| row[field].as_i64().unwrap()).collect()
}

fn with<'a>(envelope: &'a Envelope, field: &str, value: &Value) -> Vec<&'a Row> {
    events(envelope).iter().filter(|row| row.get(field) == Some(value)).collect()
}

#[test]
fn every_program_is_seen_once_with_its_parent_and_masked_arguments() {
    for transport in ["ring", "perf"] {
        let mut workload = workload!();
        let filter = family(&workload);
        let mut spawned = Vec::new();
        let envelope = around("process_exec", &json!({"transport": transport}), &filter, || {
            spawned = workload.run(&format!("spawn 97 {}", words(&["/bin/true", "--token=hunter2", "plain"])));
        });
        assert_no_loss(&envelope);
        let pids: Vec<i64> = spawned.chunks(4).map(|one| one[0]).collect();
        assert_eq!(numbers(events(&envelope), "pid"), pids);
        for row in events(&envelope) {
            assert_eq!(row["ppid"], workload.pid());
            assert_eq!((&row["comm"], &row["parent_comm"]), (&json!("true"), &json!("workload")));
            assert_eq!((&row["filename"], &row["uid"]), (&json!("/bin/true"), &json!(0)));
            assert_eq!(row["arguments"], json!(["/bin/true", "--token=<7 bytes>", "<5 bytes>"]));
            assert_eq!(row["cwd"], std::env::current_dir().unwrap().to_str().unwrap());
            assert_eq!(ancestors(row), above_this_process());
            assert!(!row.contains_key("arguments_bytes"), "all of them are there: {row:?}");
        }
        assert!(envelope.notes.iter().any(|note| note.contains("masked")), "{:?}", envelope.notes);
    }
}

#[test]
fn containers_of_version_1_are_named_and_filters_say_why_they_cannot() {
    let id = "0123456789abcdef".repeat(4);
    let group = format!("docker/{id}");
    let hierarchy = Version1::new(&group);
    let mut workload = workload!();
    hierarchy.put(&group, &workload);
    let envelope = around("process_exec", &json!({}), &family(&workload), || {
        workload.run(&format!("spawn 7 {}", words(&["/bin/true"])));
    });
    assert_eq!(events(&envelope).len(), 7);
    assert!(
        events(&envelope).iter().all(|row| row.get("container") == Some(&json!(&id[..12]))),
        "{:?}",
        events(&envelope)[0]
    );
    let refused = |filter: Filter| filter.resolve().unwrap_err().to_string();
    for filter in [
        Filter { container: Some(id[..12].to_owned()), ..Filter::default() },
        Filter { cgroup: Some(format!("/{group}")), ..Filter::default() },
    ] {
        let said = refused(filter);
        assert!(said.contains("version 1") && said.contains("filter.descendants") && said.contains(&id), "{said}");
    }
    let none = refused(Filter { container: Some("fedcba987654".into()), ..Filter::default() });
    assert!(none.contains("is the container running?"), "{none}");
}

#[test]
fn whoever_runs_in_a_container_or_unit_is_shown_with_it() {
    let id = format!("4f2a99{:058x}", std::process::id());
    let service = format!("mcptrace-test-{}.service", std::process::id());
    for (path, field, name) in [
        (format!("docker-{id}.scope"), "container", &id[..12]),
        (format!("system.slice/{service}"), "unit", service.as_str()),
    ] {
        let group = Named::new(&path);
        let mut workload = workload!();
        group.add(&workload);
        for probe in ["process_exec", "process_exit"] {
            let envelope = around(probe, &json!({}), &family(&workload), || {
                workload.run(&format!("spawn 7 {}", words(&["/bin/true"])));
            });
            assert_no_loss(&envelope);
            let rows = with(&envelope, "comm", &json!("true"));
            assert_eq!(rows.len(), 7, "{probe}");
            assert!(rows.iter().all(|row| row.get(field) == Some(&json!(name))), "{probe}: {:?}", rows[0]);
        }
        let envelope = around("signals", &json!({}), &family(&workload), || {
            workload.run(&format!("spawn 1 {}", words(&["/bin/sh", "-c", "kill -USR1 $$"])));
        });
        let rows = with(&envelope, "signal", &json!("SIGUSR1"));
        assert_eq!(rows.len(), 1, "{:?}", events(&envelope));
        for role in ["sender", "target"] {
            assert_eq!(rows[0].get(&format!("{role}_{field}")), Some(&json!(name)), "{:?}", rows[0]);
        }
    }
}

/// The processes above the parent of an exec.
fn ancestors(row: &Row) -> Vec<u32> {
    let all = row["ancestors"].as_array().unwrap().iter().map(|one| one.as_str().unwrap());
    all.map(|one| one.split_once(' ').unwrap().0.parse().unwrap()).collect()
}

/// This process and those above it, six at most, as /proc tells.
fn above_this_process() -> Vec<u32> {
    let parent = |pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap();
        Some(line.trim().parse().unwrap()).filter(|parent| *parent != 0)
    };
    std::iter::successors(Some(std::process::id()), parent).take(6).collect()
}

#[test]
fn long_arguments_are_cut_and_the_result_says_how_long_they_are() {
    let mut workload = workload!();
    let long = "y".repeat(3001);
    let envelope = around("process_exec", &json!({}), &family(&workload), || {
        workload.run(&format!("spawn 1 {}", words(&["/bin/true", &long])));
    });
    let [row] = events(&envelope) else { panic!("{envelope:?}") };
    assert_eq!(row["arguments_bytes"], "/bin/true".len() + 1 + 3001 + 1);
    assert_eq!(row["arguments"], json!(["/bin/true", format!("<{} bytes>", 2047 - "/bin/true".len() - 1)]));
}

#[test]
fn exits_agree_with_what_the_parent_gets() {
    let mut workload = workload!();
    let mut spawned = Vec::new();
    let burn = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; exit 3";
    let envelope = around("process_exit", &json!({}), &family(&workload), || {
        for script in ["exit 7", "kill -KILL $$", "kill -SEGV $$", "sleep 0.3", burn] {
            spawned.push(workload.run(&format!("spawn 1 {}", words(&["/bin/sh", "-c", script]))));
        }
    });
    assert_no_loss(&envelope);
    let row = |spawned: &[i64]| {
        let rows = with(&envelope, "pid", &spawned[0].into());
        assert_eq!(rows.len(), 1, "{rows:?}");
        rows[0]
    };
    for spawned in &spawned {
        let (row, status) = (row(spawned), spawned[1] as i32);
        if libc::WIFEXITED(status) {
            assert_eq!(row["exit_code"], libc::WEXITSTATUS(status));
            assert!(!row.contains_key("signal"));
        } else {
            assert_eq!(row["signal"], mcptrace::signals::name(libc::WTERMSIG(status)));
            assert_eq!(row["core"], libc::WCOREDUMP(status));
        }
        assert_eq!(row["max_rss_bytes"], spawned[3] * 1024);
        let (cpu, expected) = (row["cpu_ns"].as_i64().unwrap(), spawned[2] * 1000);
        // The parent is told a moment later than the probe looks.
        assert!(cpu <= expected + 1000 && expected - cpu < 5_000_000, "{cpu} {expected}");
        assert_eq!(row["user_ns"].as_i64().unwrap() + row["system_ns"].as_i64().unwrap(), cpu);
    }
    assert_eq!((&row(&spawned[0])["exit_code"], &row(&spawned[1])["signal"]), (&json!(7), &json!("SIGKILL")));
    assert!((300_000_000..2_000_000_000).contains(&row(&spawned[3])["lifetime_ns"].as_i64().unwrap()));
    assert!(row(&spawned[4])["cpu_ns"].as_i64().unwrap() > 20_000_000, "it has counted to 200,000");
}

#[test]
fn a_process_of_several_threads_ends_once_and_has_the_time_of_all() {
    let mut workload = workload!();
    let pid = workload.pid();
    let envelope = around("process_exit", &json!({}), &of_pid(pid), || {
        workload.run("spin_threads 3 600");
        workload.run("thread");
        workload.end();
    });
    let [row] = events(&envelope) else { panic!("{envelope:?}") };
    assert_eq!((&row["pid"], &row["exit_code"], &row["comm"]), (&json!(pid), &json!(0), &json!("workload")));
    // The three spin on one CPU until the clock says that 600 ms have gone by, of which others may take most.
    assert!(row["cpu_ns"].as_i64().unwrap() > 40_000_000, "{row:?}");
}

#[test]
fn short_lives_are_left_out_by_the_kernel() {
    let mut workload = workload!();
    let filter = Filter { min_duration_us: Some(200_000), ..family(&workload) };
    let envelope = around("process_exit", &json!({}), &filter, || {
        workload.run(&format!("spawn 13 {}", words(&["/bin/true"])));
        workload.run(&format!("spawn 1 {}", words(&["/bin/sleep", "0.4"])));
    });
    let [row] = events(&envelope) else { panic!("{envelope:?}") };
    assert_eq!(row["comm"], "sleep");
    assert_eq!(envelope.loss.seen, Some(1));
}

#[test]
fn signals_have_a_sender_a_target_and_a_result() {
    let mut workload = workload!();
    let pid = workload.pid();
    let envelope = around("signals", &json!({}), &of_pid(pid), || {
        workload.run(&format!("raise 101 {}", libc::SIGURG));
        workload.run(&format!("raise_blocked 11 {}", libc::SIGUSR2));
        for _ in 0..7 {
            // SAFETY: takes numbers; the workload has not been waited for.
            assert_eq!(unsafe { libc::kill(pid as i32, libc::SIGWINCH) }, 0);
        }
        workload.run(&format!("spawn 5 {}", words(&["/bin/true"])));
    });
    assert_no_loss(&envelope);
    let of = |signal: &str| with(&envelope, "signal", &json!(signal));
    assert_eq!(of("SIGURG").len(), 101);
    for row in of("SIGURG") {
        assert_eq!((&row["sender_pid"], &row["target_pid"]), (&json!(pid), &json!(pid)));
        assert_eq!((&row["origin"], &row["result"], &row["group"]), (&json!("user"), &json!("ignored"), &json!(true)));
    }
    let results: Vec<_> = of("SIGUSR2").into_iter().map(|row| row["result"].as_str().unwrap()).collect();
    assert_eq!((results[0], results.len()), ("delivered", 11));
    assert!(results[1..].iter().all(|result| *result == "already_pending"), "{results:?}");
    let from_here = of("SIGWINCH");
    assert_eq!(from_here.len(), 7);
    assert!(from_here.iter().all(|row| row["sender_pid"] == std::process::id() && row["target_comm"] == "workload"));
    let children = of("SIGCHLD");
    assert_eq!(children.len(), 5);
    assert!(children.iter().all(|row| row["sender_comm"] == "true" && row["origin"] == "kernel"), "{children:?}");
}

#[test]
fn a_timers_signal_has_no_sender_and_others_are_left_out_when_one_is_asked_for() {
    let mut workload = workload!();
    let options = json!({"signal": "prof"});
    let mut made = 0;
    // A timer of CPU time, which fires in the thread that uses it up: one of the clock fires in whatever runs just then, and there are
    // machines whose kernel runs no programs in some processes of its host's.
    let envelope = around("signals", &options, &of_pid(workload.pid()), || {
        workload.run(&format!("raise 3 {}", libc::SIGURG));
        made = workload.run("use_up_time 17")[0];
    });
    assert_no_loss(&envelope);
    assert_eq!(events(&envelope).len() as i64, made);
    for row in events(&envelope) {
        assert_eq!((&row["signal"], &row["origin"]), (&json!("SIGPROF"), &json!("kernel")));
        assert_eq!((row.contains_key("sender_pid"), &row["target_pid"]), (false, &json!(workload.pid())));
    }
}

#[test]
fn the_victim_of_a_control_groups_limit_is_named_with_its_memory() {
    let group = Limited::new("oom", 24 << 20);
    let mut workload = workload!();
    let pid = workload.pid();
    fs::write(format!("/proc/{pid}/oom_score_adj"), "137").unwrap();
    group.add(pid);
    let envelope = around("oom_kills", &json!({}), &of_pid(pid), || {
        // 64 MB, of which the limit allows 24.
        workload.begin("touch 16384");
        let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !ended(pid) {
            assert!(std::time::Instant::now() < until, "it was not killed");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    });
    assert_no_loss(&envelope);
    let [row] = events(&envelope) else { panic!("{envelope:?}") };
    assert_eq!((&row["pid"], &row["trigger_pid"]), (&json!(pid), &json!(pid)));
    assert_eq!((&row["comm"], &row["score_adjustment"]), (&json!("workload"), &json!(137)));
    let anonymous = row["anon_bytes"].as_u64().unwrap();
    assert!(((20 << 20)..=(25 << 20)).contains(&anonymous), "{row:?}");
    assert!(row["virtual_bytes"].as_u64().unwrap() > 64 << 20);
    assert_eq!((&row["constraint"], &row["group_limit_bytes"]), (&json!("group"), &json!(24 << 20)));
    let charged = row["group_bytes"].as_u64().unwrap();
    assert!((anonymous - (1 << 20)..=(24 << 20)).contains(&charged), "{row:?}");
}

/// Whether a process has ended, though nobody has waited for it.
fn ended(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
}

#[test]
fn execsnoop_sees_the_same_programs() {
    let mut workload = workload!();
    let mut spawned = Vec::new();
    let mut peer = Command::new("/usr/sbin/execsnoop").stdout(std::process::Stdio::piped()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_secs(2));
    let envelope = around("process_exec", &json!({}), &family(&workload), || {
        spawned = workload.run(&format!("spawn 53 {}", words(&["/bin/true"])));
    });
    std::thread::sleep(std::time::Duration::from_secs(1));
    // SAFETY: the child has not been waited for.
    unsafe { libc::kill(peer.id() as i32, libc::SIGINT) };
    let mut text = String::new();
    std::io::Read::read_to_string(&mut peer.stdout.take().unwrap(), &mut text).unwrap();
    peer.wait().unwrap();
    let parent = workload.pid().to_string();
    let theirs = text.lines().filter(|line| line.split_whitespace().nth(2) == Some(&parent)).count();
    assert_eq!((events(&envelope).len(), theirs), (53, 53), "{text}");
}

/// More than the table of followed processes has room for at once.
#[test]
fn descendants_are_followed_however_many_there_are() {
    let mut workload = workload!();
    let envelope = around("process_exit", &json!({}), &family(&workload), || drop(workload.run("fork fork 10301 0")));
    assert_no_loss(&envelope);
    assert_eq!(envelope.loss.seen, Some(10_301), "{:?}", envelope.notes);
}

#[test]
fn a_stranger_with_the_number_of_one_who_is_gone_is_not_followed() {
    let (mut followed, mut stranger) = (workload!(), workload!());
    let envelope = around("syscall_counts", &json!({}), &family(&followed), || {
        let pid = followed.run(&format!("spawn 1 {}", words(&["/bin/true"])))[0];
        // The kernel tells that a process is gone a grace period after its number is free.
        std::thread::sleep(std::time::Duration::from_millis(500));
        stranger.run(&format!("fork_as {pid} 97"));
        followed.run("fork fork 1 13");
    });
    assert_no_loss(&envelope);
    assert_eq!(calls(&envelope).of("getppid"), (13, 0, 0));
}
