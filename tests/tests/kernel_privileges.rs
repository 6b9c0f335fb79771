//! `syscall_errors`, `capability_checks` and `privileged_actions` on the real kernel. Needs root; without, it fails.
#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

use mcptrace::report::{Envelope, Row};
use mcptrace_tests::{
    probing::{around, assert_no_loss, events, of_pid, rows},
    workload,
    workload::{Workload, hex},
};
use serde_json::{Value, json};

fn one_row<'a>(envelope: &'a Envelope, wanted: &[(&str, Value)]) -> &'a Row {
    let matches = |row: &&Row| wanted.iter().all(|(field, value)| row.get(*field) == Some(value));
    let found: Vec<_> = rows(envelope).iter().filter(matches).collect();
    assert_eq!(found.len(), 1, "{wanted:?}: {:?}", rows(envelope));
    found[0]
}

#[test]
fn failures_are_counted_by_call_and_errno() {
    for by in ["total", "pid"] {
        let mut workload = workload!();
        let pid = workload.pid();
        let envelope = around("syscall_errors", &json!({"by": by}), &of_pid(pid), || {
            workload.run("fail_opens 101");
            workload.run("close_bad 53");
            workload.run("interrupt 17");
            workload.run("int80 6 7 -1");
        });
        assert_no_loss(&envelope);
        let errors = |syscall: &str, errno: &str| {
            let row = one_row(&envelope, &[("syscall", json!(syscall)), ("errno", json!(errno))]);
            assert_eq!((&row["comm"], row.get("pid")), (&json!("workload"), (by == "pid").then_some(&json!(pid))));
            row["errors"].as_u64().unwrap()
        };
        assert_eq!((errors("openat", "ENOENT"), errors("close", "EBADF")), (101, 53));
        assert_eq!(errors("i386:close", "EBADF"), 7);
        assert!(errors("recvfrom", "interrupted") >= 17);
        assert!(envelope.events.is_none());
    }
}

#[test]
fn one_call_can_be_singled_out_and_its_failures_listed() {
    for transport in ["ring", "perf"] {
        let mut workload = workload!();
        let options = json!({"syscall": "close", "events": true, "transport": transport});
        let envelope = around("syscall_errors", &options, &of_pid(workload.pid()), || {
            workload.run("fail_opens 11");
            workload.run("close_bad 997");
        });
        assert_eq!((rows(&envelope).len(), &rows(&envelope)[0]["errors"]), (1, &json!(997)));
        assert_eq!(events(&envelope).len(), 997);
        for event in events(&envelope) {
            assert_eq!((&event["syscall"], &event["errno"]), (&json!("close"), &json!("EBADF")));
            assert_eq!((&event["arguments"][0], &event["pid"]), (&json!("0xffffffffffffffff"), &json!(workload.pid())));
        }
    }
}

/// chroot to the root: one check of one capability, and nothing changes.
fn chroot(workload: &mut Workload, times: u32) -> i64 {
    let call = format!("raw {} {}", libc::SYS_chroot, hex("/"));
    (0..times).map(|_| workload.run(&call)[0]).last().unwrap()
}

#[test]
fn capabilities_are_granted_to_root_and_refused_to_others() {
    for (uid, times) in [(0, 97_u32), (65_534, 89)] {
        let mut workload = workload!();
        workload.run(&format!("setuid {uid}"));
        let options = json!({"by": "pid", "events": true});
        let mut result = 0;
        let envelope = around("capability_checks", &options, &of_pid(workload.pid()), || {
            result = chroot(&mut workload, times);
        });
        assert_no_loss(&envelope);
        let refused = uid != 0;
        assert_eq!(result, if refused { -i64::from(libc::EPERM) } else { 0 });
        let row = one_row(&envelope, &[("capability", json!("CAP_SYS_CHROOT")), ("pid", json!(workload.pid()))]);
        let expected = if refused { (0, times) } else { (times, 0) };
        assert_eq!((&row["granted"], &row["refused"]), (&json!(expected.0), &json!(expected.1)));
        let listed = events(&envelope).iter().filter(|row| row["capability"] == "CAP_SYS_CHROOT");
        let result = if refused { "EPERM" } else { "granted" };
        let listed: Vec<_> =
            listed.map(|row| (row["result"].as_str().unwrap(), row["uid"].as_u64().unwrap())).collect();
        assert_eq!(listed, vec![(result, uid); times as usize]);
    }
}

#[test]
fn refusals_alone_can_be_asked_for() {
    let mut workload = workload!();
    let envelope = around("capability_checks", &json!({"failed_only": true}), &of_pid(workload.pid()), || {
        chroot(&mut workload, 7);
        workload.run("setuid 65534");
        chroot(&mut workload, 13);
    });
    let row = one_row(&envelope, &[("capability", json!("CAP_SYS_CHROOT"))]);
    assert_eq!((&row["granted"], &row["refused"]), (&json!(0), &json!(13)));
}

#[test]
fn privileged_calls_show_their_arguments_and_results() {
    for transport in ["ring", "perf"] {
        let mut workload = workload!();
        let pid = workload.pid();
        let raw = |number: i64, arguments: &str| format!("raw {number} {arguments}");
        let mount = format!("{} {} {} 4100", hex("none"), hex("/nonexistent/\u{7}here"), hex("tmpfs"));
        let mut refused = String::new();
        let envelope = around("privileged_actions", &json!({"transport": transport}), &of_pid(pid), || {
            workload.run(&raw(libc::SYS_setresuid, "-1 0 0"));
            workload.run(&raw(libc::SYS_mount, &mount));
            workload.run(&raw(libc::SYS_chroot, &hex("/")));
            workload.run(&raw(libc::SYS_ptrace, "16 999999999"));
            refused = mcptrace::errno::name(-workload.run(&raw(libc::SYS_bpf, "5 0 0"))[0] as i32);
            workload.run(&raw(libc::SYS_unshare, &0x400_0000.to_string()));
            workload.run(&raw(libc::SYS_setns, "-1 0"));
            // CLONE_NEWNS and CLONE_FS exclude each other.
            workload.run(&raw(libc::SYS_clone, &0x2_0200.to_string()));
            workload.run("int80 213 2 0");
            // Steps of tracing and of eBPF, which are not what begins it.
            workload.run(&raw(libc::SYS_ptrace, "1 999999999"));
            workload.run(&raw(libc::SYS_bpf, "1 0 0"));
            // Neither changes privilege.
            workload.run("getppid 5");
            workload.run("fork clone 3 1");
        });
        assert_no_loss(&envelope);
        let row = |kind: &str, syscall: &str, arguments: Value, result: Value| {
            let mut row = json!({"kind": kind, "syscall": syscall, "arguments": arguments});
            row.as_object_mut().unwrap().append(&mut result.as_object().unwrap().clone());
            row
        };
        let expected = [
            row("identity", "setresuid", json!({"ruid": -1, "euid": 0, "suid": 0}), json!({"result": 0})),
            row(
                "mount",
                "mount",
                json!({"source": "none", "target": "/nonexistent/\\u{7}here", "type": "tmpfs", "flags": "MS_NODEV|MS_BIND"}),
                json!({"errno": "ENOENT"}),
            ),
            row("mount", "chroot", json!({"path": "/"}), json!({"result": 0})),
            row("ptrace", "ptrace", json!({"request": "PTRACE_ATTACH", "pid": 999_999_999}), json!({"errno": "ESRCH"})),
            row("bpf", "bpf", json!({"command": "BPF_PROG_LOAD"}), json!({"errno": refused})),
            row("namespace", "unshare", json!({"flags": "CLONE_NEWUTS"}), json!({"result": 0})),
            row("namespace", "setns", json!({"fd": -1, "type": "0x0"}), json!({"errno": "EBADF"})),
            row("namespace", "clone", json!({"flags": "CLONE_NEWNS"}), json!({"errno": "EINVAL"})),
            row("identity", "i386:setuid32", json!({"uid": 0}), json!({"result": 0})),
            row("identity", "i386:setuid32", json!({"uid": 0}), json!({"result": 0})),
        ];
        let shown: Vec<Value> = events(&envelope)
            .iter()
            .map(|row| {
                let fields = ["kind", "syscall", "arguments", "result", "errno"];
                fields
                    .iter()
                    .filter_map(|field| Some(((*field).to_owned(), row.get(*field)?.clone())))
                    .collect::<Row>()
                    .into()
            })
            .collect();
        assert_eq!(shown, expected);
        assert!(events(&envelope).iter().all(|row| row["pid"] == pid && row["comm"] == "workload"));
        assert!(envelope.notes.iter().any(|note| note.contains("options.kind = ptrace or bpf lists all")));
    }
}

#[test]
fn a_clock_that_is_steered_is_shown_and_one_that_is_read_is_not() {
    let machine = json!({"kind": "machine"});
    let mut workload = workload!();
    // Not allowed to steer, and with a tick that is none.
    workload.run("setuid 65534");
    let timex = hex([[0x11, 0x41, 1, 1].as_slice(), &[1; 512]].concat());
    let envelope = around("privileged_actions", &machine, &of_pid(workload.pid()), || {
        workload.run(&format!("raw {} {timex}", libc::SYS_adjtimex));
        workload.run(&format!("raw {} 0 {timex}", libc::SYS_clock_adjtime));
        workload.run(&format!("raw {} 0 0", libc::SYS_settimeofday));
        workload.run(&format!("raw {} 0 0", libc::SYS_clock_settime));
        // Nothing to read the modes from.
        workload.run(&format!("raw {} 0", libc::SYS_adjtimex));
    });
    assert_no_loss(&envelope);
    let modes = "ADJ_OFFSET|ADJ_STATUS|ADJ_SETOFFSET|ADJ_TICK|0x1010000";
    let shown: Vec<_> = events(&envelope).iter().map(|row| (&row["syscall"], &row["arguments"])).collect();
    let expected = [
        (&json!("adjtimex"), &json!({"modes": modes})),
        (&json!("clock_adjtime"), &json!({"clock": 0, "modes": modes})),
        (&json!("settimeofday"), &json!({})),
        (&json!("clock_settime"), &json!({"clock": 0})),
    ];
    assert_eq!(shown, expected);
    assert!(events(&envelope)[..2].iter().all(|row| row["errno"] == "EPERM"), "{:?}", events(&envelope));
    let envelope = around("privileged_actions", &machine, &of_pid(std::process::id()), || {
        for modes in [0, 0xa001] {
            // SAFETY: zeros are a struct timex; both modes only read.
            let read = unsafe { libc::adjtimex(&mut libc::timex { modes, ..std::mem::zeroed() }) };
            assert!(read >= 0, "{modes}");
        }
    });
    assert!(events(&envelope).is_empty(), "{:?}", events(&envelope));
}

#[test]
fn the_source_of_a_mount_by_the_new_calls_is_shown() {
    let mut workload = workload!();
    let configure = |key: &str, value: &str| format!("raw {} -1 1 {} {}", libc::SYS_fsconfig, hex(key), hex(value));
    let envelope = around("privileged_actions", &json!({"kind": "mount"}), &of_pid(workload.pid()), || {
        workload.run(&configure("source", "/dev/nothing"));
        workload.run(&configure("password", "hunter2"));
    });
    let arguments: Vec<_> = events(&envelope).iter().map(|row| row["arguments"].clone()).collect();
    let expected = [
        json!({"fd": -1, "command": "FSCONFIG_SET_STRING", "key": "source", "value": "/dev/nothing"}),
        json!({"fd": -1, "command": "FSCONFIG_SET_STRING", "key": "password"}),
    ];
    assert_eq!(arguments, expected);
}

#[test]
fn one_kind_alone_shows_every_step() {
    let mut workload = workload!();
    let envelope = around("privileged_actions", &json!({"kind": "bpf"}), &of_pid(workload.pid()), || {
        workload.run(&format!("raw {} -1 0 0", libc::SYS_setresuid));
        workload.run(&format!("raw {} 1 999999999", libc::SYS_ptrace));
        workload.run(&format!("raw {} 5 0 0", libc::SYS_bpf));
        (0..7).for_each(|_| drop(workload.run(&format!("raw {} 1 0 0", libc::SYS_bpf))));
    });
    assert_no_loss(&envelope);
    let commands: Vec<_> = events(&envelope).iter().map(|row| row["arguments"]["command"].as_str().unwrap()).collect();
    assert_eq!((commands.len(), commands[0]), (8, "BPF_PROG_LOAD"));
    assert!(commands[1..].iter().all(|command| *command == "BPF_MAP_LOOKUP_ELEM"), "{commands:?}");
    assert_eq!(envelope.notes.iter().filter(|note| note.contains("options.kind")).count(), 0);
}

#[test]
fn what_succeeds_can_be_left_out() {
    let mut workload = workload!();
    let envelope = around("privileged_actions", &json!({"failed_only": true}), &of_pid(workload.pid()), || {
        chroot(&mut workload, 5);
        workload.run(&format!("raw {} {}", libc::SYS_chroot, hex("/nonexistent")));
    });
    let [row] = events(&envelope) else { panic!("{envelope:?}") };
    assert_eq!((&row["errno"], &row["arguments"]["path"]), (&json!("ENOENT"), &json!("/nonexistent")));
    assert_eq!(envelope.loss.seen, Some(1));
}
