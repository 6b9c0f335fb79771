//! Triage against faults that are really there. Needs root, and a machine that does little else; without root it fails.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "the helpers are part of the tests, and the score is printed"
)]

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use mcptrace::triage::{
    Triage,
    finding::{Finding, Kind, Severity},
    gather::Gathering,
    judge,
    lately::Lately,
    recorded::{self, NAMING_SECONDS},
    text,
};
use mcptrace_tests::program::program;

/// A fault of one test is not to be found by the other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A fault, what triage may call it, and whether its process is to be named.
#[derive(Clone, Copy)]
struct Case {
    fault: &'static str,
    kinds: &'static [Kind],
    names_process: bool,
}

const fn case(fault: &'static str, kinds: &'static [Kind]) -> Case {
    Case { fault, kinds, names_process: true }
}

const CASES: &[Case] = &[
    case("cpu_hog", &[Kind::CpuSaturation]),
    case("exec_storm", &[Kind::ExecStorm]),
    case("fsync_loop", &[Kind::FsyncStorm]),
    case("direct_io", &[Kind::DiskSaturation, Kind::DiskLatency]),
    case("lock_convoy", &[Kind::UserLockContention]),
    case("kernel_lock", &[Kind::KernelLockContention]),
    case("memory_limit", &[Kind::MemoryLimit]),
    case("throttled", &[Kind::CgroupThrottling]),
    // A segment is sent again by a timer or an interrupt: the kernel knows the peer, not the process.
    Case { fault: "lossy_link", kinds: &[Kind::TcpRetransmits], names_process: false },
    case("refused", &[Kind::ConnectionRefused]),
    case("failing_opens", &[Kind::SyscallFailures]),
    case("slow_names", &[Kind::DnsSlow]),
    case("signal_storm", &[Kind::SignalStorm]),
    case("soft_interrupts", &[Kind::IrqLoad]),
];

/// A fault at work, under a name that says nothing.
struct Fault {
    child: Child,
    folder: PathBuf,
}

impl Fault {
    fn start(name: &str) -> Self {
        // On a disk: what is in memory has nothing to make durable.
        let target = Path::new(env!("CARGO_BIN_EXE_fault")).parent().unwrap();
        let folder = tempfile::tempdir_in(target).unwrap().keep();
        let random: u32 = std::process::id().wrapping_mul(2_654_435_761) ^ name.len() as u32;
        let program = folder.join(format!("p{random:x}"));
        fs::copy(env!("CARGO_BIN_EXE_fault"), &program).unwrap();
        let mut child = Command::new(&program).arg(name).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "{name} cannot be made here");
        Self { child, folder }
    }
}

impl Drop for Fault {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        thread::sleep(Duration::from_millis(200));
        let _ = fs::remove_dir_all(&self.folder);
        for controller in ["", "cpu", "memory"] {
            let name = format!("mcptrace-fault-{}", self.child.id());
            let _ = fs::remove_dir(Path::new("/sys/fs/cgroup").join(controller).join(name));
        }
    }
}

fn look(seconds: u64) -> Triage {
    let gathering = Gathering::start(None, seconds as f64);
    thread::sleep(Duration::from_secs(seconds));
    let (evidence, window) = gathering.finish();
    judge(&evidence, window, Lately::default())
}

/// What was found of a case: whether the cause came first, and whether its process was named with it. That others use up the CPUs of a busy
/// machine is true, and no answer to the fault.
fn verdict(case: &Case, found: &Triage, pid: u32) -> (bool, bool) {
    let of_others = |one: &Finding| {
        let is_of_cpus = matches!(one.kind, Kind::CpuSaturation | Kind::RunqDelay | Kind::RunawayProcess);
        is_of_cpus && !case.kinds.contains(&one.kind) && one.pids().next() != Some(pid)
    };
    let first = found.findings.iter().find(|one| !of_others(one));
    let cause = first.is_some_and(|one| case.kinds.contains(&one.kind));
    let named = first.is_some_and(|one| one.who.iter().any(|who| who.pid == Some(pid)));
    (cause, named || !case.names_process)
}

#[test]
fn every_fault_comes_first_and_its_process_is_named() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    thread::sleep(Duration::from_secs(2));
    score(CASES, || {
        thread::sleep(Duration::from_millis(500));
        look(4)
    });
}

/// What the recorder does not see, and therefore not its answer either.
const UNSEEN: &[&str] = &["lock_convoy", "throttled", "slow_names", "signal_storm"];

/// The answer of whoever does not say how long to look, where a daemon has recorded before.
#[test]
fn every_fault_that_the_recorder_sees_comes_first_and_its_process_is_named() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let recorder = Recorder::start();
    thread::sleep(Duration::from_secs(20));
    let cases: Vec<_> = CASES.iter().filter(|case| !UNSEEN.contains(&case.fault)).copied().collect();
    // Longer than the present reaches back: the fault before is over then.
    score(&cases, || {
        thread::sleep(Duration::from_secs(23));
        recorder.look()
    });
}

/// A daemon that records, and is told to let nothing go for its cost: this machine may be busy.
struct Recorder {
    daemon: Child,
    folder: tempfile::TempDir,
}

impl Recorder {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display();
        let config = format!(
            "[socket]\npath = \"{path}/socket\"\n[recorder]\nstate = \"{path}/state\"\nbudget_percent = 50.0\n"
        );
        fs::write(folder.path().join("config.toml"), config).unwrap();
        let mut command = Command::new(program());
        command.arg("daemon").arg("--config").arg(folder.path().join("config.toml"));
        Self { daemon: command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap(), folder }
    }

    fn look(&self) -> Triage {
        let mut draft = recorded::now(&self.folder.path().join("state"), None).expect("it records");
        let kinds = draft.unnamed();
        if !kinds.is_empty() {
            let gathering = Gathering::of(&kinds, NAMING_SECONDS);
            thread::sleep(Duration::from_secs_f64(NAMING_SECONDS));
            draft.name(&kinds, &gathering.finish().0);
        }
        draft.answer()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// Makes one fault after the other, looks at each, and prints how many were found.
fn score(cases: &[Case], look: impl Fn() -> Triage) {
    let (mut table, mut wrong) = (Vec::new(), Vec::new());
    for case in cases {
        let fault = Fault::start(case.fault);
        let found = look();
        let (cause, named) = verdict(case, &found, fault.child.id());
        let all: Vec<_> = found.findings.iter().map(|one| format!("{:?}", one.kind)).collect();
        let first = all.join(" ");
        table.push(format!("{:16} {first:60} cause first: {cause:5} process named: {named}", case.fault));
        let answer = text(&found);
        assert!(answer.len() <= 4096 && !answer.contains("did not run"), "{answer}");
        if !(cause && named) {
            wrong.push(format!("{} (pid {}):\n{answer}", case.fault, fault.child.id()));
        }
    }
    println!("{}\n{} of {} right", table.join("\n"), cases.len() - wrong.len(), cases.len());
    // What else the machine does may be worse than a fault: a few may come second there.
    assert!(wrong.len() <= cases.len() / 4, "{}\n\n{}", table.join("\n"), wrong.join("\n\n"));
    println!("{}", wrong.join("\n\n"));
}

#[test]
fn an_idle_machine_alarms_nobody() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    // What ran before may still be at work; one calm look of three shows that calm is not alarmed about.
    let mut found = Triage::default();
    for _ in 0..3 {
        thread::sleep(Duration::from_secs(3));
        found = look(4);
        if found.findings.iter().all(|one| one.severity == Severity::Low) {
            break;
        }
    }
    assert!(found.findings.iter().all(|one| one.severity == Severity::Low), "{}", text(&found));
    assert!(found.looked_at.len() >= 15, "{:?}", found.looked_at);
}
