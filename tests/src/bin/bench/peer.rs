//! Other tracing tools, run as processes.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};

use mcptrace_tests::tracers;

/// How long a tool may take to attach, and to end.
const PATIENCE: Duration = Duration::from_secs(20);
/// A tool has attached when for so long it has attached nothing more.
const SETTLED: Duration = Duration::from_millis(300);

/// A tool that has attached. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Peer {
    child: Child,
    /// From its start until its last program was attached.
    pub(crate) took: Duration,
}

impl Peer {
    /// Starts a tool and waits until it has attached all its programs.
    pub(crate) fn start(words: &[String]) -> Result<Self> {
        let started = Instant::now();
        let mut peer = Self { child: spawn(words)?, took: Duration::ZERO };
        peer.wait_until_attached(started).with_context(|| words[0].clone())?;
        Ok(peer)
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    fn wait_until_attached(&mut self, started: Instant) -> Result<()> {
        let (mut attached, mut changed) = (0, started);
        while attached == 0 || changed.elapsed() < SETTLED {
            ensure!(started.elapsed() < PATIENCE, "it has attached nothing after {PATIENCE:?}");
            let ended = self.child.try_wait()?;
            ensure!(ended.is_none(), "it has ended: {}", ended.unwrap_or_default());
            let now = tracers::attached_by(self.id());
            if now != attached {
                (attached, changed) = (now, Instant::now());
            }
            sleep(Duration::from_millis(2));
        }
        self.took = changed - started;
        Ok(())
    }
}

impl Drop for Peer {
    /// As a user would end it; by force if it does not.
    fn drop(&mut self) {
        if let Some(pid) = Pid::from_raw(self.child.id() as i32) {
            let _ = kill_process(pid, Signal::INT);
        }
        let end = Instant::now() + PATIENCE;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < end {
            sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The resident memory of a process, in bytes.
pub(crate) fn resident_bytes(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes * 1024)
}

fn spawn(words: &[String]) -> Result<Child> {
    let (program, arguments) = words.split_first().context("no program")?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: only a system call between fork and exec. If we are killed, nothing of the tool stays attached.
    unsafe { command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?)) };
    command.spawn().with_context(|| format!("cannot start {program}"))
}
