//! The box that scripts run in, attacked from inside by a false bpftrace, and lived in by the real one. Needs root.
#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use mcptrace::bpftrace::{Bpftrace, End, Limits, ScriptError, Snapshot, sandbox::Sandbox};

const GONE: &[&str] = &["ENOENT"];
const REFUSED: &[&str] = &["EACCES", "EROFS"];

fn attack(words: &[&str]) -> Snapshot {
    let command: Vec<String> =
        std::iter::once(env!("CARGO_BIN_EXE_escape")).chain(words.iter().copied()).map(str::to_owned).collect();
    let bpftrace = Bpftrace::find(Some(&command)).unwrap().boxed();
    let mut session = bpftrace.spawn("BEGIN { }", Limits::default()).unwrap();
    let end = session.wait(Instant::now() + Duration::from_secs(30), &|| false);
    assert_eq!(end, End::Exited);
    session.end()
}

/// Asserts that each attempt ended as told.
fn expect(found: &Snapshot, outcomes: &[(&str, &[&str])]) {
    for (attempt, allowed) in outcomes {
        let line = found.lines.iter().find_map(|line| line.strip_prefix(attempt)?.strip_prefix(": "));
        assert!(line.is_some_and(|line| allowed.contains(&line)), "{attempt}: {line:?}, not {allowed:?}: {found:?}");
    }
    // The first line says what was attached.
    assert_eq!(found.lines.len(), outcomes.len() + 1, "{found:?}");
}

#[test]
fn every_part_of_the_box_works_here() {
    for part in Sandbox::get().parts() {
        assert!(part.works, "{part:?}");
    }
    assert_eq!(Sandbox::get().parts().len(), 6);
}

#[test]
fn no_file_is_read_that_bpftrace_does_not_need_and_none_written() {
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    fs::write(&secret, "planted").unwrap();
    let found = attack(&["files", secret.to_str().unwrap()]);
    expect(
        &found,
        &[
            // A file that the command names is shown; nothing else of its folder is.
            ("read secret", &["done"]),
            ("read shadow", GONE),
            ("read root", GONE),
            ("read home", GONE),
            ("read var", GONE),
            ("read tmp", REFUSED),
            ("read environ", REFUSED),
            ("read root of 1", REFUSED),
            ("read kcore", &["EPERM", "EACCES", "ENOENT"]),
            ("read disk", GONE),
            ("create", REFUSED),
            ("create in usr", REFUSED),
            ("write memory of 1", REFUSED),
            ("write sysctl", REFUSED),
            ("write trace buffer", REFUSED),
            ("write passwd", REFUSED),
            ("make a folder", REFUSED),
            ("remove", &["EACCES", "EROFS", "EBUSY"]),
            ("write null", &["done"]),
            ("read passwd", &["done"]),
            ("read types", &["done"]),
        ],
    );
}

#[test]
fn nothing_outside_is_reached() {
    let refused: &[&str] = &["EPERM"];
    let attempts = [
        "socket",
        "unix socket",
        "netlink",
        "fork",
        "clone",
        "signal parent",
        "signal init",
        "signal all",
        "trace parent",
        "session",
        "mount",
        "unmount",
        "namespace",
        "chroot",
        "module",
        "reboot",
        "io_uring",
        "time",
        "limits of parent",
        "own file sizes",
        "scheduler",
        "scheduling",
        "priority parameter",
        "processors",
        "priority",
        "disk priority",
        "compare",
        "pages",
        "shared memory",
        "death signal",
        "tree",
        "mounts",
        "mount status",
        "release",
        "quota",
    ];
    let mut outcomes: Vec<(&str, &[&str])> = attempts.iter().map(|attempt| (*attempt, refused)).collect();
    outcomes.push(("exec", &["EACCES"]));
    outcomes.push(("handle", &["ENOSYS"]));
    outcomes.extend([("own limits", &["done"] as &[&str]), ("own files", &["done"])]);
    // What is run in its place does nothing and fails.
    outcomes.push(("shell", &["Some(1), 0 bytes"]));
    expect(&attack(&["out"]), &outcomes);
}

#[test]
fn nothing_is_inherited_that_is_not_needed() {
    let kept: u64 = [2, 14, 19, 34, 38, 39].iter().map(|capability| 1_u64 << capability).sum();
    let kept = format!("{kept:016x}");
    let found = attack(&["self"]);
    let environment = found.lines.iter().find_map(|line| line.strip_prefix("environment: ")).unwrap().to_owned();
    let expected: [(&str, &[&str]); 8] = [
        ("CapEff", &[&kept]),
        ("CapBnd", &[&kept]),
        ("NoNewPrivs", &["1"]),
        ("Seccomp", &["2"]),
        ("files", &["0 1 2"]),
        ("devices", &["lo"]),
        ("session", &["own"]),
        ("environment", &[&environment]),
    ];
    expect(&found, &expected);
    for name in environment.split(' ') {
        assert!(name.starts_with("BPFTRACE_") || ["PATH", "LC_ALL", "TZ", "TZDIR"].contains(&name), "{name}");
    }
}

#[test]
fn threads_and_memory_are_bounded() {
    let found = attack(&["threads"]);
    let started: u32 = found.lines[1].strip_prefix("threads: ").unwrap().parse().unwrap();
    assert!((10..64).contains(&started), "{found:?}");
    let found = attack(&["memory"]);
    assert!(found.lines.len() == 1 && found.exit.as_deref().is_some_and(|exit| exit.contains("signal")), "{found:?}");
}

#[test]
fn no_control_group_is_left() {
    attack(&["self"]);
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let own = format!("mcptrace_script-{}-", std::process::id());
    for place in mounts.lines().filter(|line| line.contains("cgroup")).filter_map(|line| line.split(' ').nth(1)) {
        // Those of tests that run beside this one go soon.
        let until = Instant::now() + Duration::from_secs(40);
        let left = || names(Path::new(place)).into_iter().filter(|name| name.starts_with(&own)).count();
        while left() > 0 {
            assert!(Instant::now() < until, "{place}: {:?}", names(Path::new(place)));
            thread::sleep(Duration::from_millis(50));
        }
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

#[test]
fn the_real_bpftrace_traces_from_inside() {
    let bpftrace = Bpftrace::find(None).unwrap().boxed();
    let program = "tracepoint:sched:sched_switch { @[comm, kstack(1)] = count(); @user[username] = count(); } interval:ms:300 { time(); exit(); }";
    bpftrace.compile(program).unwrap();
    let mut session = bpftrace.spawn(program, Limits::default()).unwrap();
    assert_eq!(session.wait(Instant::now() + Duration::from_secs(20), &|| false), End::Exited);
    let found = session.end();
    assert_eq!((found.error.as_ref(), found.notes.len()), (None, 0), "{found:?}");
    // Kernel symbols and user names are read inside.
    assert!(found.lines.iter().any(|line| line.starts_with("@user[root]")), "{found:?}");
    // Where others trace the same hook it is called by way of an iterator.
    let is_named = |line: &String| ["schedule+", "__traceiter_sched_switch+"].iter().any(|name| line.contains(name));
    assert!(found.lines.iter().any(is_named), "{found:?}");
    let error = bpftrace.compile("BEGIN { system(\"id\"); }").unwrap_err();
    assert!(error.said.contains("unsafe function"), "{error:?}");
}

#[test]
fn a_box_that_cannot_be_built_starts_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("bpftrace");
    fs::copy(env!("CARGO_BIN_EXE_escape"), &program).unwrap();
    let command = [program.display().to_string(), "self".to_owned()];
    // A child that another test forks at this moment still has the copy open for writing.
    let busy =
        |found: &Result<Bpftrace, ScriptError>| found.as_ref().is_err_and(|error| error.message.contains("busy"));
    let mut found = Bpftrace::find(Some(&command));
    while busy(&found) {
        thread::sleep(Duration::from_millis(10));
        found = Bpftrace::find(Some(&command));
    }
    let bpftrace = found.unwrap().boxed();
    fs::remove_file(&program).unwrap();
    let error = bpftrace.spawn("BEGIN { }", Limits::default()).unwrap_err();
    assert!(error.message.contains("is not started without"), "{error}");
}
