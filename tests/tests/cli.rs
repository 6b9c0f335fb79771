//! The command line, as a person at a shell has it: the built program, as root, on the real kernel.
#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader, Read as _},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    process::{Child, Command, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use mcptrace::{
    probes::PROBES,
    report::{Envelope, Kind, Report, Status},
};
use mcptrace_tests::{
    probing::{assert_gone, programs_of},
    program::program,
};

fn mcptrace(arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(arguments);
    command
}

fn output(arguments: &[&str]) -> Output {
    mcptrace(arguments).output().unwrap()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

fn succeeded(arguments: &[&str]) -> String {
    let output = output(arguments);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", stderr(&output));
    stdout(&output).to_owned()
}

fn envelope(arguments: &[&str]) -> Envelope {
    let text = succeeded(arguments);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// What a command that must fail says, after checking its exit status.
fn refused(arguments: &[&str], status: i32) -> String {
    let output = output(arguments);
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {}{}", stdout(&output), stderr(&output));
    assert_eq!(stdout(&output), "", "errors go to stderr");
    stderr(&output).to_owned()
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "{what} did not come");
        sleep(Duration::from_millis(10));
    }
}

/// A run of `file_opens`, once its two programs are there.
fn attached(arguments: &[&str]) -> (Child, BTreeSet<u32>) {
    let mut command = mcptrace(&["run", "file_opens"]);
    let child = command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let programs = wait_for("the programs", || Some(programs_of(child.id())).filter(|programs| programs.len() >= 2));
    // What is loaded is not attached yet.
    sleep(Duration::from_millis(500));
    (child, programs)
}

fn signal(pid: u32, signal: i32) {
    // SAFETY: kill takes no pointer.
    assert_eq!(unsafe { libc::kill(pid as i32, signal) }, 0);
}

fn ended(child: Child, programs: &BTreeSet<u32>) -> Output {
    let output = child.wait_with_output().unwrap();
    assert_gone(programs);
    output
}

/// A shell that opens a file of a folder 23 times, 7 of them in vain.
fn opens_23_times(folder: &str) -> String {
    fs::write(format!("{folder}/there"), "").unwrap();
    format!(
        "for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do true < {folder}/there; done; \
         for n in 1 2 3 4 5 6 7; do true < {folder}/missing; done 2> /dev/null; exit 3"
    )
}

/// The program as nobody, from a folder that nobody can reach, which that of the build need not be.
fn unprivileged(folder: &tempfile::TempDir) -> Command {
    let copy = folder.path().join("mcptrace");
    fs::copy(program(), &copy).unwrap();
    fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = Command::new(copy);
    command.uid(65_534).gid(65_534);
    command
}

/// What a probe cannot do without.
fn needed<'a>(probe: &str, pid: &'a str) -> Vec<&'a str> {
    match probe {
        "heap_growth" => vec!["--pid", pid],
        "function_latency" => vec!["--function", "getpid"],
        "usdt_events" => vec!["--binary", env!("CARGO_BIN_EXE_function_workload")],
        _ => Vec::new(),
    }
}

#[test]
fn every_probe_runs_and_shows_text() {
    for entry in PROBES {
        let own = std::process::id().to_string();
        let text = succeeded(&[&["run", entry.name, "-d", "0.3"], needed(entry.name, &own).as_slice()].concat());
        let title = text.lines().next().unwrap();
        assert!(title.starts_with(&format!("{} completed · ", entry.name)), "{text}");
        assert!(text.contains("\noverhead: "), "{text}");
    }
}

#[test]
fn every_probe_runs_and_gives_the_envelope_on_one_line() {
    for entry in PROBES {
        let own = std::process::id().to_string();
        let arguments = ["run", entry.name, "--seconds", "0.3", "--json"];
        let text = succeeded(&[&arguments, needed(entry.name, &own).as_slice()].concat());
        assert_eq!(text.lines().count(), 1);
        let envelope: Envelope = serde_json::from_str(&text).unwrap();
        assert_eq!((envelope.probe.as_str(), envelope.status), (entry.name, Status::Completed));
        assert!(envelope.window.seconds >= 0.3, "{:?}", envelope.window);
        let loss = envelope.loss;
        if loss.seen.is_none() {
            assert_eq!(entry.name, "bpf_programs", "only the kernel's own statistics are no events");
            continue;
        }
        assert_eq!(loss.seen.unwrap(), loss.delivered.unwrap() + loss.dropped_total(), "{}: {loss:?}", entry.name);
    }
}

#[test]
fn a_command_is_counted_to_the_open() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().to_str().unwrap();
    let script = opens_23_times(folder);
    let envelope = envelope(&["run", "file_opens", "--path-prefix", folder, "--json", "--", "sh", "-c", &script]);
    let Some(Report::Events(events)) = &envelope.report else { panic!("{envelope:?}") };
    let failed = events.rows.iter().filter(|row| row.get("errno").is_some_and(|errno| errno == "ENOENT")).count();
    assert_eq!((events.rows.len(), failed), (23, 7));
    assert_eq!((envelope.loss.seen, envelope.loss.delivered, envelope.loss.dropped_total()), (Some(23), Some(23), 0));
    assert_eq!(envelope.status, Status::Completed);
    assert!(envelope.notes.contains(&"the command ended with exit status 3".to_owned()), "{:?}", envelope.notes);
}

#[test]
fn a_command_is_traced_from_its_first_instruction_and_nothing_else_is() {
    let envelope = envelope(&["run", "syscall_counts", "--json", "--", "/bin/true"]);
    let Some(Report::Table(table)) = &envelope.report else { panic!("{envelope:?}") };
    let calls = |name: &str| {
        table.rows.iter().find(|row| row["syscall"] == name).map_or(0, |row| row["calls"].as_u64().unwrap())
    };
    assert_eq!((calls("execve"), calls("exit_group")), (1, 1));
    // What the program does while it waits to become the command.
    for own in ["kill", "tgkill", "rt_sigaction", "prctl", "wait4", "clone3"] {
        assert_eq!(calls(own), 0, "{own}: {table:?}");
    }
    assert_eq!(envelope.loss.dropped_total(), 0, "{:?}", envelope.loss);
}

#[test]
fn json_on_stdout_has_nothing_of_the_command_in_it() {
    let output = output(&["run", "syscall_counts", "--json", "--", "sh", "-c", "echo words of the command"]);
    let envelope: Envelope = serde_json::from_str(stdout(&output)).unwrap();
    assert!(envelope.report.is_some());
    assert!(String::from_utf8_lossy(&output.stderr).contains("words of the command"), "{output:?}");
}

#[test]
fn a_command_keeps_its_stdin_stdout_and_stderr() {
    let mut command = mcptrace(&["run", "runq_latency", "--", "sh", "-c", "cat; echo problem >&2"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"what was said\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let text = stdout(&output);
    assert!(text.starts_with("what was said\nrunq_latency completed"), "{text}");
    assert_eq!(stderr(&output), "problem\n");
}

#[test]
fn a_command_that_outlives_its_tracing_is_ended_and_that_is_said() {
    let started = Instant::now();
    let envelope = envelope(&["run", "file_opens", "-d", "0.3", "--json", "--", "sleep", "1000"]);
    assert!(started.elapsed() < Duration::from_secs(20));
    let expected = "the command still ran when tracing ended and got SIGTERM: the command was ended by signal 15";
    assert!(envelope.notes.contains(&expected.to_owned()), "{:?}", envelope.notes);
}

#[test]
fn a_command_does_not_outlive_a_killed_tracer() {
    let (mut child, programs) = attached(&["--", "sh", "-c", "echo $$; exec sleep 1000"]);
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let command: u32 = line.trim().parse().unwrap();
    signal(child.id(), libc::SIGKILL);
    child.wait().unwrap();
    assert_gone(&programs);
    wait_for("the command's end", || {
        let stat = fs::read_to_string(format!("/proc/{command}/stat")).unwrap_or_default();
        (stat.is_empty() || stat.contains(") Z")).then_some(())
    });
}

#[test]
fn an_interrupt_gives_the_result_so_far() {
    for (number, text) in [(libc::SIGINT, false), (libc::SIGTERM, true), (libc::SIGHUP, true)] {
        let arguments: &[&str] = if text { &["-d", "1000"] } else { &["-d", "1000", "--json"] };
        let (child, programs) = attached(arguments);
        fs::read("/etc/passwd").unwrap();
        signal(child.id(), number);
        let output = ended(child, &programs);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        if text {
            assert!(stdout(&output).starts_with("file_opens stopped · "), "{}", stdout(&output));
        } else {
            let envelope: Envelope = serde_json::from_str(stdout(&output)).unwrap();
            assert_eq!(envelope.status, Status::Stopped);
            let Some(Report::Events(events)) = &envelope.report else { panic!("{envelope:?}") };
            assert!(events.rows.iter().any(|row| row.get("path").is_some_and(|path| path == "/etc/passwd")));
        }
    }
}

#[test]
fn a_second_interrupt_ends_it_at_once() {
    // A command that heeds no SIGTERM holds the program back for two seconds after the first.
    let (mut child, programs) = attached(&["--", "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"]);
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    signal(child.id(), libc::SIGINT);
    sleep(Duration::from_millis(500));
    signal(child.id(), libc::SIGINT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_gone(&programs);
}

#[test]
fn a_filter_that_nothing_matches_is_a_result_that_says_so() {
    let text = succeeded(&["run", "file_opens", "-d", "0.3", "--comm", "nobody_is_this"]);
    let expected = "with filter comm=nobody_is_this, and no event that it looks for was seen.";
    assert!(text.contains("Nothing recorded: file_opens was attached for 0.3") && text.contains(expected), "{text}");
}

#[test]
fn options_and_filters_reach_the_kernel() {
    let me = std::process::id().to_string();
    let arguments =
        ["run", "syscall_latency", "-d", "0.3", "--json", "--pid", &me, "--syscall", "openat", "--slower-than-us", "1"];
    let envelope = envelope(&arguments);
    assert_eq!(envelope.filter["pid"], std::process::id());
    assert_eq!(
        (envelope.options["syscall"].as_str(), envelope.options["slower_than_us"].as_u64()),
        (Some("openat"), Some(1))
    );
}

#[test]
fn usage_errors_say_what_would_be_right() {
    let cases: &[(&[&str], &[&str])] = &[
        (&["run", "file_open"], &["there is no probe `file_open`", "did you mean `file_opens`?", "runq_latency"]),
        (&["run", "file_opens", "--faild-only"], &["--failed-only"]),
        (&["run", "file_opens", "--nosuch"], &["unexpected argument '--nosuch' found\n\nUsage: "]),
        (&["run", "file_opens", "--seconds", "0"], &["more than 0 and at most 86400"]),
        (&["run", "file_opens", "--seconds", "-1"], &["more than 0 and at most 86400"]),
        (&["run", "file_opens", "--seconds", "nan"], &["more than 0 and at most 86400"]),
        (&["run", "file_opens", "--seconds", "1e99"], &["more than 0 and at most 86400"]),
        (&["run", "file_opens", "--top", "0"], &["--top"]),
        (&["run", "file_opens", "--pid", "many"], &["'many'", "--pid"]),
        (&["run", "file_opens", "--pid", "4294967295"], &["--pid: there is no process 4294967295"]),
        (&["run", "file_opens", "--descendants"], &["--descendants needs --pid"]),
        (
            &["run", "syscall_counts", "--min-duration-us", "5"],
            &["--min-duration-us: syscall_counts measures no durations"],
        ),
        (&["run", "file_opens", "--pid", "1", "--", "true"], &["do not go with a command"]),
        (&["run", "file_opens", "--", "no_such_program"], &["there is no program `no_such_program`"]),
        (&["run", "runq_latency", "--by", "user"], &["total, pid, comm, cpu"]),
        (&["run", "syscall_latency", "--syscall", "opennat"], &["--syscall", "did you mean `openat`?"]),
        (&["describe", "file_open"], &["did you mean `file_opens`?"]),
        (&["describe", "tracepoint:sched:sched_swich"], &["sched_switch"]),
        (&["list", "--limit", "0"], &["--limit"]),
        (&["lst"], &["list"]),
    ];
    for (arguments, parts) in cases {
        let message = refused(arguments, 2);
        assert!(message.starts_with("error: "), "{message}");
        for part in *parts {
            assert!(message.contains(part), "{arguments:?}: {part}: {message}");
        }
    }
}

#[test]
fn without_privilege_it_says_which_capability_and_the_command_that_grants_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = unprivileged(&folder);
    let output = command.args(["run", "file_opens", "-d", "0.1"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    let grant = format!("sudo setcap cap_bpf,cap_perfmon+ep {}", folder.path().join("mcptrace").display());
    let message = stderr(&output);
    assert!(message.contains("CAP_BPF and CAP_PERFMON") && message.contains(&grant), "{message}");
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let mut child = mcptrace(&["list", "tracepoint:*", "--limit", "1000"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // One byte, then the pipe is closed while there is more than it holds.
    child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.status.signal()), (Some(0), None));
    assert_eq!(stderr(&output), "");
}

#[test]
fn following_ends_when_its_reader_leaves() {
    for words in [
        &["run", "file_opens", "--follow"][..],
        &["run", "syscall_counts", "--follow", "--json"],
        &["daemon", "--print"],
    ] {
        let mut child = mcptrace(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        while child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < until, "{words:?}: it goes on");
            // Something to follow.
            _ = fs::File::open("/etc/hostname");
            sleep(Duration::from_millis(20));
        }
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{words:?}: {}", stderr(&output));
        assert!(words[0] == "daemon" || stderr(&output).is_empty(), "{words:?}: {}", stderr(&output));
    }
}

#[test]
fn triage_names_next_steps_that_can_be_typed() {
    let mut fault =
        Command::new(env!("CARGO_BIN_EXE_fault")).arg("failing_opens").stdout(Stdio::piped()).spawn().unwrap();
    BufReader::new(fault.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
    let found = output(&["triage", "--seconds", "3", "--focus", "processes"]);
    let text = stdout(&found);
    let step = text.lines().find_map(|line| line.trim().strip_prefix("next: mcptrace ")).unwrap_or_default();
    let step = output(&step.replace("-d 10", "-d 0.5").split(' ').collect::<Vec<_>>());
    _ = (fault.kill(), fault.wait());
    assert!(text.ends_with('\n') && !text.contains("run_probe"), "{text}");
    assert!(stdout(&step).contains(" · 0."), "{text}{}", stderr(&step));
}

/// A pager that is not scrolled, a terminal after Ctrl-S.
#[test]
fn a_second_interrupt_ends_a_run_that_nobody_reads() {
    let mut child = mcptrace(&["run", "file_opens", "--follow", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let output = child.stdout.take().unwrap();
    let waiting = || rustix::io::ioctl_fionread(&output).unwrap();
    let until = Instant::now() + Duration::from_mins(1);
    // As full as lines fill a pipe, and no fuller: it waits in the middle of a write.
    let mut before = 0;
    while waiting() < 32 << 10 || waiting() > before {
        before = waiting();
        assert!(Instant::now() < until, "{before} bytes are in the pipe");
        (0..3000).for_each(|_| _ = fs::File::open("/no/such/file"));
        sleep(Duration::from_millis(200));
    }
    let pid = child.id() as i32;
    for _ in 0..2 {
        // SAFETY: kill takes numbers only; the process is our child and has not been waited for.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGINT) }, 0);
        sleep(Duration::from_millis(500));
    }
    let ended = (0..200).find_map(|_| {
        sleep(Duration::from_millis(100));
        child.try_wait().unwrap()
    });
    let _ = child.kill();
    assert_eq!(ended.and_then(|status| status.code()), Some(130));
}

#[test]
fn where_stacks_cannot_be_written_is_said_before_anything_is_traced() {
    let mut run = mcptrace(&["run", "cpu_profile", "-d", "60", "--folded", "/no/such/folder/x"]);
    let begun = Instant::now();
    let output = run.output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(begun.elapsed() < Duration::from_secs(30) && stderr(&output).contains("/no/such/folder/x"));
}

#[test]
fn without_stacks_none_are_written_and_nothing_is_traced() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cpu.svg");
    let path = file.to_str().unwrap();
    let said = refused(&["run", "file_opens", "--flamegraph", path], 2);
    assert!(said.contains("file_opens has no stacks") && said.contains("cpu_profile, "), "{said}");
    let said = refused(&["run", "futex_waits", "--folded", path], 2);
    assert!(said.contains("only with --stacks"), "{said}");
    assert!(!file.exists(), "an empty file would be taken for a result");
    succeeded(&["run", "futex_waits", "-d", "0.1", "--stacks", "--folded", path]);
    assert!(file.exists());
}

#[test]
fn list_shows_native_and_kernel_probes() {
    let text = succeeded(&["list"]);
    for entry in PROBES {
        assert!(text.contains(entry.name) && text.contains(entry.summary), "{text}");
    }
    let reads = succeeded(&["list", "syscalls:*read*"]);
    assert!(reads.contains("  tracepoint:syscalls:sys_enter_read"), "{reads}");
    let json: serde_json::Value =
        serde_json::from_str(&succeeded(&["list", "sched:sched_*", "--limit", "3", "--json"])).unwrap();
    assert_eq!((json["count"].as_u64(), json["probes"].as_array().unwrap().len()), (Some(3), 3));
    assert!(json["total"].as_u64().unwrap() > 3);
    let nothing = succeeded(&["list", "no_such_thing_at_all"]);
    assert!(nothing.contains("Kernel probes: 0\nnote: "), "{nothing}");
}

#[test]
fn scripts_are_listed_shown_and_run() {
    let listed = succeeded(&["script", "list"]);
    assert!(listed.contains(" *sleep_requests ") && listed.contains("bpftrace tools of this host"), "{listed}");
    let json: serde_json::Value = serde_json::from_str(&succeeded(&["script", "list", "--json"])).unwrap();
    let one = json["scripts"].as_array().unwrap().iter().find(|one| one["name"] == "slab_growth").unwrap();
    assert_eq!((one["by_pid"].as_bool(), one["cost"].as_str()), (Some(false), Some("high")));
    assert!(succeeded(&["script", "show", "tcp-round-trip"]).starts_with("// question: "));
    let text = succeeded(&["script", "run", "workqueue_latency", "-d", "2"]);
    assert!(text.contains("@run_us is") || text.contains("@run_us:"), "{text}");
    let json = succeeded(&["script", "run", "thread_starts", "-d", "1", "--pid", "1", "--json"]);
    let envelope: Envelope = serde_json::from_str(&json).unwrap();
    assert_eq!((envelope.kind, envelope.options["script"].as_str()), (Kind::Script, Some("thread_starts")));
    for (arguments, part) in [
        (["script", "run", "slab_growth", "--pid=1"], "leave --pid out"),
        (["script", "run", "syscall_stacks", "-d1"], "give its --pid"),
        (["script", "run", "tcp_round_trips", "-d1"], "did you mean `tcp_round_trip`?"),
    ] {
        let message = refused(&arguments, 2);
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn describe_tells_all_about_native_and_kernel_probes() {
    let native = succeeded(&["describe", "file_opens"]);
    for part in ["--path-prefix TEXT", "latency_ns (ns)", "tp_btf/sys_exit", "mcptrace run file_opens --failed-only"] {
        assert!(native.contains(part), "{part}: {native}");
    }
    let json: serde_json::Value = serde_json::from_str(&succeeded(&["describe", "file_opens", "--json"])).unwrap();
    assert!(json["options"]["properties"]["path_prefix"].is_object());
    assert!(succeeded(&["describe", "sched:sched_switch"]).contains("  next_pid  "));
}

#[test]
fn help_of_a_probe_shows_its_question_options_fields_and_an_example() {
    let text = succeeded(&["run", "syscall_latency", "--help"]);
    for part in
        ["How long does each system call take", "--slower-than-us <N>", "--min-duration-us <N>", "Fields:", "Example:"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(succeeded(&["--help"]).contains("Exit status:"));
}

#[test]
fn doctor_says_what_works_here() {
    let text = succeeded(&["doctor"]);
    assert!(PROBES.iter().all(|entry| text.contains(entry.name)), "{text}");
    let info: serde_json::Value = serde_json::from_str(&succeeded(&["doctor", "--json"])).unwrap();
    assert_eq!(info["native_works"], true);
}

#[test]
fn doctor_fails_where_native_probes_cannot_run() {
    let folder = tempfile::tempdir().unwrap();
    let output = unprivileged(&folder).arg("doctor").output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(stdout(&output).contains("CAP_BPF"), "{}", stdout(&output));
}

#[test]
fn followed_events_come_once_each_and_while_the_run_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().to_str().unwrap();
    let (mut child, programs) = attached(&["--follow", "--json", "--path-prefix", folder, "--comm", "sh"]);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(|line| line.unwrap());
    assert!(Command::new("sh").args(["-c", &opens_23_times(folder)]).status().unwrap().code() == Some(3));
    let rows: Vec<serde_json::Value> =
        lines.by_ref().take(23).map(|line| serde_json::from_str(&line).unwrap()).collect();
    assert_eq!(child.try_wait().unwrap(), None, "it came before the end");
    assert_eq!(rows.iter().filter(|row| row["errno"] == "ENOENT").count(), 7, "{rows:?}");
    signal(child.id(), libc::SIGINT);
    let last: Envelope = serde_json::from_str(&lines.next().unwrap()).unwrap();
    assert_eq!((last.status, last.loss.seen, last.loss.delivered), (Status::Stopped, Some(23), Some(23)));
    let Some(Report::Events(events)) = last.report else { panic!("{:?}", last.report) };
    assert_eq!((events.rows.len(), events.rows_total), (0, 23), "nothing comes twice");
    assert_eq!(lines.next(), None);
    ended(child, &programs);
}

#[test]
fn followed_events_end_with_what_they_came_to_and_no_empty_page() {
    let folder = tempfile::tempdir().unwrap();
    let script = opens_23_times(folder.path().to_str().unwrap());
    let prefix = folder.path().to_str().unwrap();
    let output = output(&["run", "file_opens", "--follow", "--path-prefix", prefix, "--", "sh", "-c", &script]);
    let text = stdout(&output);
    assert_eq!(text.matches(prefix).count(), 23 + 1, "each once, and in the title: {text}");
    assert!(text.contains("\n23 rows, all of them above.\n") && !text.contains("on this page"), "{text}");
}

#[test]
fn followed_events_beside_a_report_end_with_the_whole_report() {
    let script = "for i in 1 2 3 4 5 6 7; do cat /nonexistent_mcptrace; done";
    let output = output(&["run", "syscall_errors", "--follow", "--json", "--events", "--", "sh", "-c", script]);
    let text = stdout(&output);
    let (last, events) =
        text.lines().collect::<Vec<_>>().split_last().map(|(last, events)| (*last, events.len())).unwrap();
    let last: Envelope = serde_json::from_str(last).unwrap();
    let Some(Report::Table(table)) = last.report else { panic!("{:?}", last.report) };
    assert!(events >= 7 && table.rows_total > 0, "{text}");
    assert_eq!((table.rows.len() as u64, last.more), (table.rows_total, None), "{text}");
    let Some(Report::Events(beside)) = last.events else { panic!("{:?}", last.events) };
    assert_eq!((beside.rows.len(), beside.rows_total), (0, events as u64), "nothing comes twice");
}

#[test]
fn a_followed_report_that_stays_as_it_is_comes_once() {
    let text =
        succeeded(&["run", "syscall_counts", "--follow", "--json", "--seconds", "3.5", "--comm", "nobody_is_this"]);
    assert!(text.lines().count() <= 2, "at most one while it runs, and the last: {text}");
}

#[test]
fn a_program_is_named_relative_to_where_it_is_run() {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(env!("CARGO_BIN_EXE_function_workload"), folder.path().join("program")).unwrap();
    let mut command = mcptrace(&["run", "function_latency", "--json", "--function", "main", "--binary"]);
    let output =
        command.args(["./program", "--", "./program"]).current_dir(folder.path()).stdin(Stdio::null()).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let found: Envelope = serde_json::from_str(stdout(&output).lines().last().unwrap()).unwrap();
    assert_eq!(found.loss.seen, Some(1), "{found:?}");
}

#[test]
fn a_followed_report_comes_anew_every_second() {
    let text = succeeded(&["run", "syscall_counts", "--follow", "--json", "--seconds", "2.5"]);
    let calls: Vec<u64> = text
        .lines()
        .map(|line| serde_json::from_str::<Envelope>(line).unwrap())
        .map(|envelope| envelope.loss.seen.unwrap())
        .collect();
    assert!(calls.len() >= 2 && calls.is_sorted() && calls[0] < calls[calls.len() - 1], "{calls:?}");
}

mod configuration {
    use super::*;

    /// A file of settings, and the flag that names it.
    fn config(text: &str) -> (tempfile::TempDir, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        fs::write(&path, text).unwrap();
        let path = path.to_str().unwrap().to_owned();
        (folder, path)
    }

    fn mcptrace(words: &[&str], variables: &[(&str, &str)]) -> (i32, String, String) {
        let output = Command::new(program()).args(words).envs(variables.iter().copied()).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place_and_no_command_runs_with_it() {
        let (_folder, path) = config("[scripts]\nallow = \"never\"\nprogams = true\n");
        let said = format!("{path}:3:1: there is no key `scripts.progams`; did you mean `scripts.programs`?");
        for words in [["config", "check", &path].as_slice(), &["--config", &path], &["serve", "--config", &path]] {
            let (status, _, stderr) = mcptrace(words, &[]);
            assert_eq!(status, 2, "{words:?}: {stderr}");
            assert!(stderr.contains(&said), "{words:?}: {stderr}");
        }
        for words in [
            &["run", "syscall_counts", "-d", "0.1"][..],
            &["list"],
            &["script", "list"],
            &["script", "show", "sleep_requests"],
            &["describe", "file_opens"],
        ] {
            let (status, _, stderr) = mcptrace(words, &[("MCPTRACE_CONFIG", &path)]);
            assert!(status == 2 && stderr.contains(&said), "{words:?}: {stderr}");
        }
    }

    #[test]
    fn flags_go_before_the_environment_and_that_before_the_file() {
        let (_folder, path) = config("[scripts]\nallow = \"never\"\n");
        let script = ["script", "run", "sleep_requests", "-d", "1", "--config", &path];
        let (status, _, stderr) = mcptrace(&script, &[]);
        assert!(status != 0 && stderr.contains("allows no scripts"), "{stderr}");
        let shown = |variables: &[(&str, &str)]| mcptrace(&["config", "show", "--config", &path], variables).1;
        assert!(shown(&[]).contains("# (from the file)\nallow = \"never\""), "{}", shown(&[]));
        let any = [("MCPTRACE_ALLOW_SCRIPTS", "any")];
        assert!(shown(&any).contains("# (from MCPTRACE_ALLOW_SCRIPTS)\nallow = \"any\""), "{}", shown(&any));
        let (_, _, stderr) = mcptrace(&[&script[..], &["--allow-scripts", "never"]].concat(), &any);
        assert!(stderr.contains("allows no scripts"), "{stderr}");
    }

    #[test]
    fn doctor_tells_what_is_set() {
        let (_folder, path) = config("[limits]\nrunning = 3\n");
        let (_, stdout, _) = mcptrace(&["doctor", "--config", &path], &[]);
        assert!(stdout.contains(&format!("Configuration: {path}\n  limits.running = 3 (from the file)\n")), "{stdout}");
        let (_, stdout, _) = mcptrace(&["doctor", "--json", "--config", &path], &[]);
        let told: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!(told["configuration"]["changes"][0], "limits.running = 3 (from the file)");
        assert_eq!(told["limits"]["running"], 3, "{}", told["limits"]);
    }

    #[test]
    fn doctor_tells_all_and_fails_where_the_configuration_is_wrong() {
        let (_folder, path) = config("[limits]\nrunnning = 3\n");
        for json in [&[][..], &["--json"]] {
            let (status, stdout, stderr) = mcptrace(&[&["doctor", "--config", &path], json].concat(), &[]);
            let said = "there is no key `limits.runnning`; did you mean `limits.running`?";
            assert_eq!(status, 2, "{stderr}");
            assert!(stdout.contains(said) && stderr.contains(said) && stdout.contains("kernel"), "{stdout}\n{stderr}");
        }
    }

    #[test]
    fn commands_at_a_shell_are_recorded_too() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("audit.jsonl");
        let (_config, path) = config(&format!("[audit]\nto = \"{}\"\n", log.display()));
        let (status, _, stderr) = mcptrace(&["run", "syscall_counts", "-d", "0.1", "--config", &path], &[]);
        assert_eq!(status, 0, "{stderr}");
        let text = fs::read_to_string(&log).unwrap();
        let events: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(events.len(), 2, "{text}");
        assert_eq!((&events[0]["event"], &events[0]["transport"]), (&"start".into(), &"cli".into()));
        assert_eq!((&events[1]["event"], &events[1]["outcome"]), (&"end".into(), &"completed".into()));
    }
}

#[test]
fn following_a_process_ends_with_it() {
    let mut sleeper = Command::new("sleep").arg("3").spawn().unwrap();
    let begun = Instant::now();
    let output = output(&["run", "file_opens", "--follow", "--seconds", "300", "--pid", &sleeper.id().to_string()]);
    assert!(begun.elapsed() < Duration::from_secs(200), "it goes on after the process has ended");
    let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && text.contains("has ended: there is nothing more to follow"), "{text}");
    sleeper.wait().unwrap();
}
