//! The bpftrace fallback against a false bpftrace, a shell script that does what a real one does only now and then.
//! Needs no root.
#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use mcptrace::bpftrace::{Bpftrace, Category, Cut, End, Limits, Snapshot};
use mcptrace::report::Report;
use tempfile::TempDir;

const ATTACHED: &str = r#"echo '{"type": "attached_probes", "data": {"probes": 1}}'"#;
/// Waits until the grandchild has left the group.
const LEFT: &str = "while [ ! -s $folder/pid ]; do sleep 0.01; done";
/// A shell function, so that it can stand in a trap.
const PRINT_MAP: &str = r#"map() { echo '{"type": "map", "data": {"@": 23}}'; }"#;

/// A shell script in the place of bpftrace, in a folder of its own that it knows as `$folder`.
struct False {
    folder: TempDir,
}

impl False {
    fn new(body: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display();
        let script =
            format!("folder={path}\n[ \"$1\" = --version ] && echo bpftrace v0.17.0 && exit 0\n{PRINT_MAP}\n{body}\n");
        fs::write(folder.path().join("bpftrace"), script).unwrap();
        Self { folder }
    }

    /// Through `sh`, because a script that another test's fork still holds open cannot be executed (ETXTBSY).
    fn words(&self) -> Vec<String> {
        vec!["/bin/sh".into(), self.path("bpftrace").display().to_string()]
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn bpftrace(&self) -> Bpftrace {
        Bpftrace::find(Some(&self.words())).unwrap()
    }

    /// Runs it for at most `seconds` and gives how the wait ended, what came, and how long all took.
    fn run(&self, seconds: f64, limits: Limits) -> (End, Snapshot, f64) {
        let started = Instant::now();
        let mut session = self.bpftrace().spawn("BEGIN { }", limits).unwrap();
        let end = session.wait(started + Duration::from_secs_f64(seconds), &|| false);
        let snapshot = session.end();
        (end, snapshot, started.elapsed().as_secs_f64())
    }

    fn pid(&self) -> u32 {
        wait_for("the pid", || fs::read_to_string(self.path("pid")).ok()?.trim().parse().ok())
    }
}

fn quick() -> Limits {
    Limits { grace: Duration::from_millis(600), ..Limits::default() }
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "{what} did not come");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A zombie does not count: nobody may be there to reap it.
fn lives(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

fn assert_gone(pid: u32) {
    wait_for("the end of the process", || (!lives(pid)).then_some(()));
}

fn value(snapshot: &Snapshot, name: &str) -> serde_json::Value {
    let report = snapshot.reports.iter().find(|report| report.name == name).unwrap_or_else(|| panic!("{snapshot:?}"));
    let Report::Table(table) = &report.report else { panic!("no table: {report:?}") };
    table.rows[0]["value"].clone()
}

#[test]
fn a_flood_ends_in_time_and_keeps_its_head_and_its_map() {
    let line = r#"{"type": "printf", "data": "x\n"}"#;
    let fake = False::new(&format!("{ATTACHED}\ntrap 'kill $!; wait; echo; map; exit 0' INT\nyes '{line}' &\nwait"));
    let (end, snapshot, seconds) = fake.run(1.0, Limits { lines: 17, ..quick() });
    assert_eq!(end, End::Deadline);
    assert!((1.0..2.5).contains(&seconds), "{seconds}");
    assert_eq!(snapshot.lines.len(), 17);
    assert!(snapshot.lines_total > 10_000, "{}", snapshot.lines_total);
    assert_eq!(snapshot.cut.lines + 17, snapshot.lines_total);
    assert_eq!(value(&snapshot, "@"), 23);
    assert_eq!(snapshot.error, None);
}

#[test]
fn one_that_ignores_sigint_is_terminated_and_keeps_its_map() {
    let fake = False::new(&format!("{ATTACHED}\ntrap '' INT\ntrap 'map; exit 0' TERM\nwhile :; do sleep 0.05; done"));
    let (end, snapshot, seconds) = fake.run(0.3, quick());
    assert_eq!((end, value(&snapshot, "@")), (End::Deadline, 23.into()));
    assert!(seconds < 2.0, "{seconds}");
}

#[test]
fn one_that_ignores_all_is_killed_and_the_loss_is_said() {
    let fake =
        False::new(&format!("echo $$ > $folder/pid\n{ATTACHED}\ntrap '' INT TERM\nwhile :; do sleep 0.05; done"));
    let (_, snapshot, seconds) = fake.run(0.3, quick());
    assert!(seconds < 2.5, "{seconds}");
    assert_gone(fake.pid());
    assert!(snapshot.notes.iter().any(|note| note.contains("was killed; its maps were lost")), "{snapshot:?}");
    assert_eq!(snapshot.exit.as_deref(), Some("was ended by signal 9"));
}

#[test]
fn a_grandchild_of_the_group_is_killed_too() {
    let fake = False::new(&format!("{ATTACHED}\nsleep 300 &\necho $! > $folder/pid\nmap"));
    let (end, snapshot, seconds) = fake.run(20.0, quick());
    assert_eq!((end, value(&snapshot, "@")), (End::Exited, 23.into()));
    assert!(seconds < 3.0, "{seconds}");
    assert_gone(fake.pid());
}

#[test]
fn a_grandchild_that_left_the_group_and_keeps_the_pipe_holds_nothing_up() {
    let fake =
        False::new(&format!("{ATTACHED}\nsetsid sh -c 'echo $$ > $0/pid; exec sleep 300' $folder &\n{LEFT}\nmap"));
    let (end, snapshot, seconds) = fake.run(20.0, quick());
    assert_eq!((end, value(&snapshot, "@")), (End::Exited, 23.into()));
    assert!(seconds < 3.0, "{seconds}");
    assert!(Command::new("kill").arg(fake.pid().to_string()).status().unwrap().success());
}

#[test]
fn a_grandchild_that_floods_the_pipe_holds_nothing_up() {
    let fake = False::new(&format!("{ATTACHED}\nmap\nsetsid sh -c 'echo $$ > $0/pid; exec yes' $folder &\n{LEFT}"));
    let (end, snapshot, seconds) = fake.run(20.0, quick());
    assert_eq!((end, value(&snapshot, "@")), (End::Exited, 23.into()));
    assert!(seconds < 6.0, "{seconds}");
    assert_gone(fake.pid());
}

#[test]
fn garbage_is_kept_escaped_and_said() {
    let fake = False::new(&format!("{ATTACHED}\nhead -c 100000 /dev/urandom\necho\nprintf '\\033[31m\\377\\n'\nmap"));
    let (_, snapshot, _) = fake.run(20.0, quick());
    assert!(snapshot.lines.iter().all(|line| !line.contains(|c: char| c.is_control() && c != '\t')));
    assert!(snapshot.lines.contains(&"\\u{1b}[31m\u{fffd}".to_owned()));
    assert!(snapshot.notes.iter().any(|note| note.contains("are not JSON")), "{:?}", snapshot.notes);
    assert_eq!(value(&snapshot, "@"), 23);
}

#[test]
fn a_line_of_a_megabyte_is_cut_and_one_of_twenty_not_even_read() {
    let text = "head -c $1 /dev/zero | tr '\\0' x";
    let body = format!(
        "{ATTACHED}\nlong() {{ {text}; }}\nprintf '{{\"type\": \"printf\", \"data\": \"'; long 1000000; echo '\"}}'\nlong 20000000\necho\nmap"
    );
    let (_, snapshot, _) = False::new(&body).run(20.0, quick());
    assert_eq!(snapshot.lines[1], "x".repeat(4096) + " [995904 bytes cut]");
    assert_eq!((snapshot.cut.long_lines, snapshot.cut.long_records), (1, 1));
    assert_eq!(value(&snapshot, "@"), 23);
}

#[test]
fn a_compile_error_has_its_place() {
    let fake = False::new("echo 'stdin:3:8-9: ERROR: syntax error, unexpected ;' >&2\nexit 1");
    let error = fake.bpftrace().compile("BEGIN {\n").unwrap_err();
    assert_eq!((error.category, error.line, error.column), (Category::Syntax, Some(3), Some(8)));
    assert_eq!(error.said, "stdin:3:8-9: ERROR: syntax error, unexpected ;");
}

#[test]
fn an_error_at_run_time_is_an_error_and_the_memlock_line_is_not() {
    let memlock = r#"echo "ERROR: Unknown error -1: couldn't set RLIMIT_MEMLOCK for bpftrace." >&2"#;
    let fails =
        False::new(&format!("{memlock}\n{ATTACHED}\necho \"ERROR: Error attaching probe: 'kprobe:f'\" >&2\nexit 255"));
    let (end, snapshot, _) = fails.run(20.0, quick());
    let error = snapshot.error.unwrap();
    assert_eq!((end, error.category), (End::Exited, Category::UnsupportedProbeType));
    assert!(!error.said.contains("RLIMIT"), "{}", error.said);
    assert_eq!(snapshot.attached, None);
    let works = False::new(&format!("{memlock}\n{ATTACHED}\nmap"));
    let (_, snapshot, _) = works.run(20.0, quick());
    assert_eq!((snapshot.error, snapshot.warnings, snapshot.attached), (None, vec![], Some(1)));
}

#[test]
fn a_silent_end_is_told_from_one_before_attaching() {
    let (end, snapshot, _) = False::new(ATTACHED).run(20.0, quick());
    assert_eq!((end, snapshot.attached), (End::Exited, Some(1)));
    assert!(snapshot.notes[0].contains("printed nothing and kept nothing"), "{:?}", snapshot.notes);
    let (end, snapshot, _) = False::new("sleep 30").run(0.2, quick());
    assert_eq!((end, snapshot.attached, snapshot.error), (End::Deadline, None, None));
    assert_eq!(snapshot.notes, ["it ended before bpftrace had attached; nothing was recorded"]);
}

#[test]
fn a_death_by_signal_is_an_error() {
    let (end, snapshot, _) = False::new(&format!("{ATTACHED}\nkill -SEGV $$")).run(20.0, quick());
    assert_eq!(end, End::Exited);
    assert_eq!(snapshot.error.unwrap().message, "bpftrace was ended by signal 11: Attaching 1 probe...");
}

#[test]
fn it_gets_the_program_as_one_word_no_input_and_a_clean_environment() {
    let fake = False::new(
        "for word; do echo \"$word\"; done > $folder/words\nenv > $folder/environment\nreadlink /proc/self/fd/0 > $folder/input",
    );
    for program in ["--version", "-l", "$(touch x) 'q' \"r\"\nBEGIN { }"] {
        fake.bpftrace().spawn(program, quick()).unwrap().wait(Instant::now() + Duration::from_secs(20), &|| false);
        let words = fs::read_to_string(fake.path("words")).unwrap();
        assert_eq!(words, format!("-f\njson\n-B\nline\n-k\n-e\n{program}\n"));
    }
    assert_eq!(fs::read_to_string(fake.path("input")).unwrap(), "/dev/null\n");
    let environment = fs::read_to_string(fake.path("environment")).unwrap();
    // The shell adds those of the second line.
    let known = ["PATH", "LC_ALL", "TZ", "TZDIR"].into_iter().chain(["PWD", "OLDPWD", "SHLVL", "_"]);
    let names: Vec<&str> = environment.lines().map(|line| line.split('=').next().unwrap()).collect();
    let strange: Vec<&&str> = names
        .iter()
        .filter(|name| !name.starts_with("BPFTRACE_") && !known.clone().any(|known| known == **name))
        .collect();
    assert!(strange.is_empty() && std::env::vars().count() > names.len(), "{strange:?}");
}

#[test]
fn the_longest_program_arrives_and_a_longer_one_is_refused() {
    let fake = False::new("for word; do :; done\nprintf %s \"$word\" | wc -c > $folder/length");
    let program = "x".repeat(mcptrace::bpftrace::PROGRAM_BYTES);
    fake.bpftrace().spawn(&program, quick()).unwrap().wait(Instant::now() + Duration::from_secs(20), &|| false);
    assert_eq!(fs::read_to_string(fake.path("length")).unwrap().trim(), "65536");
    let error = fake.bpftrace().spawn(&(program + "x"), quick()).unwrap_err();
    assert_eq!(error.to_string(), "the program has 65537 bytes; at most 65536 are taken");
}

#[test]
fn others_see_it_while_it_runs_and_can_stop_it() {
    let fake = False::new(&format!("{ATTACHED}\nwhile :; do map; sleep 0.05; done"));
    let mut session = fake.bpftrace().spawn("BEGIN { }", quick()).unwrap();
    let view = session.view();
    let stop = move || view.progress().lines >= 5;
    assert_eq!(session.wait(Instant::now() + Duration::from_secs(20), &stop), End::Stopped);
    let running = session.snapshot();
    assert_eq!((running.attached, running.exit.as_deref()), (Some(1), None));
    assert!(running.lines_total >= 5);
    assert!(session.end().exit.is_some());
}

#[test]
fn a_dropped_session_leaves_no_process() {
    let fake = False::new("echo $$ > $folder/pid\ntrap '' INT TERM\nwhile :; do sleep 0.05; done");
    let session = fake.bpftrace().spawn("BEGIN { }", quick()).unwrap();
    let pid = fake.pid();
    assert!(lives(pid));
    drop(session);
    assert!(!lives(pid));
}

#[test]
fn a_killed_parent_leaves_no_process() {
    let fake = False::new("echo $$ > $folder/pid\ntrap '' INT TERM HUP\nexec sleep 300");
    let mut command = Command::new(env!("CARGO_BIN_EXE_run_script"));
    let mut parent = command.arg("BEGIN { }").args(fake.words()).spawn().unwrap();
    let pid = fake.pid();
    assert!(lives(pid));
    parent.kill().unwrap();
    parent.wait().unwrap();
    assert_gone(pid);
}

#[test]
fn under_sudo_the_script_ends_itself_and_that_is_said() {
    let fake = False::new(&format!("for word; do :; done\necho \"$word\" > $folder/program\n{ATTACHED}\nmap"));
    symlink("/usr/bin/env", fake.path("sudo")).unwrap();
    let sudo = fake.path("sudo").display().to_string();
    let words: Vec<String> = std::iter::once(sudo).chain(fake.words()).collect();
    let bpftrace = Bpftrace::find(Some(&words)).unwrap();
    let mut session = bpftrace.spawn("BEGIN { }", Limits { seconds: 7, ..quick() }).unwrap();
    session.wait(Instant::now() + Duration::from_secs(20), &|| false);
    let snapshot = session.end();
    assert_eq!(fs::read_to_string(fake.path("program")).unwrap(), "BEGIN { }\ninterval:s:7 { exit(); }\n");
    assert!(snapshot.notes[0].starts_with("unboxed"), "{:?}", snapshot.notes);
    assert_eq!((value(&snapshot, "@"), snapshot.cut), (23.into(), Cut::default()));
}

#[test]
fn what_is_no_bpftrace_is_refused() {
    let error = Bpftrace::find(Some(&["/bin/echo".into()])).unwrap_err();
    assert_eq!(error.category, Category::Missing);
    assert!(error.message.starts_with("/bin/echo is no bpftrace"), "{error}");
}
