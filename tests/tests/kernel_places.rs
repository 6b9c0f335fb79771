//! To which container or unit a process belongs: in events and in rows of processes, also when process and control group are gone. On the
//! real kernel; needs root, and fails without.
#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

use std::{fs, os::unix::process::CommandExt as _, path::PathBuf, process::Command};

use mcptrace::{
    kernel::filter::Filter,
    report::{Envelope, Report, Row},
};
use mcptrace_tests::{
    named_group::{Named, Version1},
    probing::{around, events, kernel_version, of_pid, rows},
    workload,
    workload::{Workload, hex},
};
use serde_json::{Value, json};

const FUNCTIONS: &str = env!("CARGO_BIN_EXE_function_workload");

/// A control group named as docker names that of a container, and the name of the container.
fn container(tag: u32) -> (Named, String) {
    let id = format!("{tag:06x}{:058x}", std::process::id());
    (Named::new(&format!("docker-{id}.scope")), id[..12].to_owned())
}

/// A file that does not exist yet, on a disk; removed when dropped.
struct File(PathBuf);

impl File {
    fn new(name: &str) -> Self {
        Self(PathBuf::from(format!("{}/places_{name}_{}", env!("CARGO_TARGET_TMPDIR"), std::process::id())))
    }

    /// A command with this file in the place of `FILE`.
    fn in_command(&self, command: &str) -> String {
        let _ = fs::remove_file(&self.0);
        command.replace("FILE", &hex(self.0.to_str().unwrap()))
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The rows of a table, or the keys of the series of a histogram.
fn all(envelope: &Envelope) -> Vec<Row> {
    match envelope.report.as_ref().unwrap() {
        Report::Histogram(histogram) => histogram.series.iter().map(|one| one.key.clone()).collect(),
        _ => rows(envelope).to_vec(),
    }
}

fn assert_all_in(probe: &str, rows: &[Row], field: &str, name: &str) {
    assert!(!rows.is_empty(), "{probe}: no rows");
    let are_in = rows.iter().all(|row| row.get(field).is_some_and(|value| value == name));
    assert!(are_in, "{probe}: not all in {field} {name}: {rows:?}");
}

/// Whether this kernel has a probe.
fn is_there(probe: &str) -> bool {
    match probe {
        "net_traffic" => kernel_version() >= (6, 4),
        "capability_checks" => kernel_version() >= (6, 14),
        _ => true,
    }
}

#[test]
fn events_say_in_which_container_or_unit_their_process_is() {
    let file = File::new("events");
    let null = hex("/dev/null");
    let native = env!("CARGO_BIN_EXE_workload");
    let function = |options: Value| {
        let Value::Object(mut options) = options else { panic!() };
        options.insert("binary".into(), FUNCTIONS.into());
        Value::Object(options)
    };
    let cases = [
        ("file_opens", native, json!({}), format!("open openat {null} 0 7 -100")),
        ("syscall_latency", native, json!({"slower_than_us": 0, "syscall": "getppid"}), "getppid 7".to_owned()),
        ("fs_sync", native, json!({}), "file_sync FILE fsync 7".to_owned()),
        ("syscall_errors", native, json!({"events": true}), "close_bad 7".to_owned()),
        (
            "function_latency",
            FUNCTIONS,
            function(json!({"function": "mcptrace_leaf", "slower_than_us": 0})),
            "leaf 7 0".to_owned(),
        ),
        ("dns_latency", FUNCTIONS, json!({}), "lookup 7 127.0.0.1".to_owned()),
        ("usdt_events", FUNCTIONS, function(json!({"usdt": "*:*"})), "usdt 7 11".to_owned()),
    ];
    let service = format!("mcptrace-places-{}.service", std::process::id());
    for (probe, program, options, command) in cases {
        let (group, name) = container(0x1_0001);
        let unit = Named::new(&format!("system.slice/{service}"));
        for (group, field, name) in [(&group, "container", &name), (&unit, "unit", &service)] {
            let mut workload = Workload::start(program);
            group.add(&workload);
            let envelope = around(probe, &options, &of_pid(workload.pid()), || {
                workload.run(&file.in_command(&command));
            });
            assert_eq!(events(&envelope).len() / 7, 1, "{probe}: {:?}", events(&envelope));
            assert_all_in(probe, events(&envelope), field, name);
            workload.end();
        }
    }
}

/// A connection is closed in whatever thread the last packet interrupts, which may be of another container.
#[test]
fn a_connection_is_in_the_container_of_who_connected_or_accepted() {
    let ((client_group, client_name), (server_group, server_name)) = (container(0x2_0001), container(0x2_0002));
    let (mut client, mut server) = (workload!(), workload!());
    client_group.add(&client);
    server_group.add(&server);
    let port = server.run("tcp_listen v4")[0];
    let envelope = around("tcp_connections", &json!({"port": port}), &Filter::default(), || {
        server.begin("tcp_serve 7 100 200");
        client.run(&format!("tcp_connect v4 {port} 7 100 200"));
        server.finish();
    });
    for (who, name, steps) in
        [(&client, client_name, ["connect", "close"]), (&server, server_name, ["accept", "close"])]
    {
        let of: Vec<_> =
            events(&envelope).iter().filter(|row| row.get("pid") == Some(&json!(who.pid()))).cloned().collect();
        for step in steps {
            assert_eq!(of.iter().filter(|row| row["event"] == step).count(), 7, "{step}: {of:?}");
        }
        assert_all_in("tcp_connections", &of, "container", &name);
    }
    let nobody: Vec<_> = events(&envelope).iter().filter(|row| !row.contains_key("pid")).collect();
    assert!(nobody.iter().all(|row| !row.contains_key("container")), "{nobody:?}");
}

/// Probes whose rows are of processes, and what makes such a row.
const BY_PROCESS: &[(&str, &str)] = &[
    ("syscall_counts", "getppid 7"),
    ("syscall_errors", "close_bad 7"),
    ("capability_checks", "setuid 0"),
    ("page_faults", "touch 7"),
    ("futex_waits", "futex_naps 7 100"),
    ("file_io", "file_write FILE 7 4096"),
    ("net_traffic", "udp_send v4 9 7 100"),
    ("cpu_slices", "nanosleep 7 100"),
    ("runq_latency", "nanosleep 7 100"),
    ("page_cache", "file_write FILE 7 4096"),
];

/// Those whose rows are always of processes.
const HAVE_NO_BY: [&str; 2] = ["page_faults", "futex_waits"];

/// Those that group by container as well.
const BY_CONTAINER: [&str; 6] =
    ["syscall_counts", "file_io", "page_cache", "net_traffic", "cpu_slices", "runq_latency"];

#[test]
fn rows_of_processes_say_in_which_container_they_are_and_rows_of_containers_are_named() {
    let file = File::new("tables");
    for (probe, command) in BY_PROCESS.iter().filter(|(probe, _)| is_there(probe)) {
        let (group, name) = container(0x3_0001);
        let mut workload = workload!();
        group.add(&workload);
        let has_by = !HAVE_NO_BY.contains(probe);
        for by in ["pid", "container"].iter().filter(|by| **by == "pid" || BY_CONTAINER.contains(probe)) {
            let options = if has_by { json!({ "by": by }) } else { json!({}) };
            let envelope = around(probe, &options, &of_pid(workload.pid()), || {
                workload.run(&file.in_command(command));
            });
            let rows = all(&envelope);
            assert_all_in(probe, &rows, "container", &name);
            assert_eq!(rows.iter().all(|row| row.contains_key("pid")), *by == "pid", "{probe}: {rows:?}");
        }
        workload.end();
    }
}

/// Kernel programs see nothing of version 1: its containers are found by their processes.
#[test]
fn processes_in_containers_of_version_1_are_shown_with_them_and_rows_by_container_say_that_they_cannot() {
    let id = format!("6{:063x}", std::process::id());
    let group = format!("docker/{id}");
    let hierarchy = Version1::new(&group);
    let file = File::new("version_1");
    let mut workload = workload!();
    hierarchy.put(&group, &workload);
    for (probe, command) in BY_PROCESS.iter().filter(|(probe, _)| is_there(probe)) {
        let options = if HAVE_NO_BY.contains(probe) { json!({}) } else { json!({"by": "pid"}) };
        let envelope = around(probe, &options, &of_pid(workload.pid()), || {
            workload.run(&file.in_command(command));
        });
        assert_all_in(probe, &all(&envelope), "container", &id[..12]);
    }
    let family = Filter { descendants: true, ..of_pid(workload.pid()) };
    let envelope = around("signals", &json!({"signal": "SIGUSR1"}), &family, || {
        workload.run(&format!("spawn 1 {}", ["/bin/sh", "-c", "kill -USR1 $$"].map(hex).join(" ")));
    });
    assert_eq!(events(&envelope).len(), 1);
    assert_all_in("signals", events(&envelope), "sender_container", &id[..12]);
    assert_all_in("signals", events(&envelope), "target_container", &id[..12]);
    let open = format!("open openat {} 0 7 -100", hex("/dev/null"));
    let envelope = around("file_opens", &json!({}), &of_pid(workload.pid()), || {
        workload.run(&open);
        workload.end();
    });
    assert_all_in("file_opens", events(&envelope), "container", &id[..12]);
    let note = |by: &str| {
        let envelope = around("syscall_counts", &json!({ "by": by }), &of_pid(std::process::id()), || {});
        envelope.notes.iter().any(|note| note.contains("version 1"))
    };
    assert_eq!((note("container"), note("pid")), (true, false));
}

/// Nobody can look a process up in /proc that has ended, nor a control group that was removed.
#[test]
fn what_was_gone_before_the_result_was_read_has_its_container_all_the_same() {
    for (probe, options) in [
        ("syscall_counts", json!({"by": "pid"})),
        ("syscall_counts", json!({"by": "container"})),
        ("page_faults", json!({})),
        ("file_opens", json!({})),
        ("process_exit", json!({})),
    ] {
        let (group, name) = container(0x4_0001);
        let mut workload = workload!();
        let pid = workload.pid();
        let filter = Filter { descendants: true, ..of_pid(pid) };
        let mut spawned = Vec::new();
        let envelope = around(probe, &options, &filter, || {
            group.add(&workload);
            spawned = workload.run(&format!("spawn 7 {}", hex("/bin/true"))).chunks(4).map(|one| one[0]).collect();
            workload.end();
            drop(group);
        });
        let rows = if envelope.events.is_some() || !matches!(envelope.report, Some(Report::Table(_))) {
            events(&envelope).to_vec()
        } else {
            all(&envelope)
        };
        if options["by"] == "container" {
            assert_all_in(probe, &rows, "container", &name);
            continue;
        }
        for pid in spawned {
            let of: Vec<_> = rows.iter().filter(|row| row["pid"] == pid).cloned().collect();
            assert_all_in(probe, &of, "container", &name);
        }
    }
}

/// What starts a service or a container moves into its control group and then executes its program: the first events come before.
#[test]
fn a_process_is_where_it_was_when_it_executed_its_program() {
    let (group, name) = container(0x5_0001);
    let filter = Filter { descendants: true, ..of_pid(std::process::id()) };
    let procs = group.processes();
    let mut pid = 0;
    let envelope = around("syscall_counts", &json!({"by": "pid"}), &filter, || {
        let mut command = Command::new("/bin/true");
        // SAFETY: nothing but a write to a file whose path is there already.
        unsafe { command.pre_exec(move || fs::write(&procs, "0")) };
        let mut child = command.spawn().unwrap();
        pid = child.id();
        child.wait().unwrap();
    });
    let of: Vec<_> = rows(&envelope).iter().filter(|row| row["pid"] == pid).cloned().collect();
    // It wrote before it was in the group.
    assert!(of.iter().any(|row| row["syscall"] == "write"), "{of:?}");
    assert_all_in("syscall_counts", &of, "container", &name);
}
