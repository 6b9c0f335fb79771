//! A child in a process group of its own: started with nothing but what it needs, read without blocking, ended whole.
//!
//! The parent-death signal fires when the thread that spawned ends, not the process (prctl(2)): the thread that spawns
//! must live as long as the child.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

use super::sandbox::{Cgroup, Sandbox, Steps};

/// What the child gets of this process's environment. `BPFTRACE_BTF` and its kin say where kernel types and headers
/// are; `TZ` and `TZDIR` are for `time()`.
const ENVIRONMENT: &[&str] = &[
    "PATH",
    "TZ",
    "TZDIR",
    "BPFTRACE_BTF",
    "BPFTRACE_VMLINUX",
    "BPFTRACE_KERNEL_SOURCE",
    "BPFTRACE_KERNEL_BUILD",
    "BPFTRACE_MAX_PROBES",
    "BPFTRACE_STRLEN",
];

/// Without this setting bpftrace 0.17 asks the kernel for its types in a way that takes `CAP_SYS_ADMIN`, which it lacks in a box.
const BTF: (&str, &str) = ("BPFTRACE_BTF", "/sys/kernel/btf/vmlinux");

/// Landlock keeps bpftrace from looking into processes, and 0.17 crashes when it cannot look for the names of their functions.
const NO_USER_SYMBOLS: &str = "BPFTRACE_NO_USER_SYMBOLS";

/// How many keys a map may have, by the names of this setting up to bpftrace 0.20 and after. It is bpftrace's default
/// too, which holds under sudo.
pub(crate) const MAP_KEYS: u64 = 4096;
const MAP_KEYS_NAMES: [&str; 2] = ["BPFTRACE_MAP_KEYS_MAX", "BPFTRACE_MAX_MAP_KEYS"];

/// One read.
const CHUNK: usize = 64 * 1024;
/// How much a pipe is to hold; a pipe has 64 KB unless asked, and 1 MB is what anybody may ask for (pipe(7)).
const PIPE_BYTES: usize = 1 << 20;
/// So many reads of a stream at once, then the clock and the stop are looked at again.
const READS: usize = 8;
/// How often a full pipe is emptied before a signal, at most: the writer may be faster.
const EMPTYING: usize = 8;
/// How long output is still read after the child has ended. A grandchild may hold the pipe open for ever.
const DRAIN: Duration = Duration::from_secs(2);
/// How often the end of the child is looked for when it writes nothing.
const TICK: Duration = Duration::from_millis(20);
/// How long a killed child may take to end; one that sits in the kernel can take for ever.
const KILL_WAIT: Duration = Duration::from_secs(2);

/// Which of the two streams bytes came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Out,
    Err,
}

/// A running child and the process group that it leads.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    group: Pid,
    out: Option<File>,
    err: Option<File>,
    buffer: Vec<u8>,
    status: Option<ExitStatus>,
    /// What it is counted and killed with. It goes after the child.
    cgroup: Option<Cgroup>,
}

impl Process {
    /// Starts `words` followed by `arguments`, in a box if there is to be one. An error means that nothing runs.
    pub(crate) fn spawn(words: &[String], arguments: &[&str], sandbox: Option<&Sandbox>) -> io::Result<Self> {
        let (program, fixed) = words.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let prepared = sandbox.map(|sandbox| sandbox.prepare(words)).transpose()?;
        let (steps, cgroup, inside) =
            prepared.map_or((None, None, None), |one| (Some(one.steps), one.cgroup, Some(one.program)));
        let mut command = Command::new(inside.as_deref().unwrap_or(program));
        command.args(fixed).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.env_clear().envs(ENVIRONMENT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        command.envs(MAP_KEYS_NAMES.map(|name| (name, MAP_KEYS.to_string())));
        if sandbox.is_some() {
            command.env(NO_USER_SYMBOLS, "1");
        }
        // Given an empty file, bpftrace 0.17 crashes.
        let has_types = std::fs::metadata(BTF.1).is_ok_and(|file| file.len() > 0);
        if sandbox.is_some() && std::env::var_os(BTF.0).is_none() && has_types {
            command.env(BTF.0, BTF.1);
        }
        command.env("LC_ALL", "C.UTF-8").current_dir("/");
        let parent = rustix::process::getpid();
        let begin = move || {
            lead(steps.is_some())?;
            leash(parent)?;
            steps.as_ref().map_or(Ok(()), Steps::enter)
        };
        // SAFETY: all of it only makes system calls that are async-signal-safe, and allocates nothing.
        unsafe { command.pre_exec(begin) };
        let mut child = command.spawn()?;
        let out = child.stdout.take().map(|pipe| nonblocking(pipe.into())).transpose()?;
        let err = child.stderr.take().map(|pipe| nonblocking(pipe.into())).transpose()?;
        let group = Pid::from_child(&child);
        Ok(Self { child, group, out, err, buffer: vec![0; CHUNK], status: None, cgroup })
    }

    /// Hands on what the child has written, waiting at most `timeout` for something to come.
    pub(crate) fn pump(&mut self, timeout: Duration, sink: &mut dyn FnMut(Stream, &[u8])) {
        self.poll(timeout);
        drain(&mut self.out, &mut self.buffer, &mut |bytes| sink(Stream::Out, bytes));
        drain(&mut self.err, &mut self.buffer, &mut |bytes| sink(Stream::Err, bytes));
    }

    /// Sleeps until there is something to read, or until `timeout`.
    fn poll(&self, timeout: Duration) {
        let mut fds: Vec<PollFd<'_>> =
            [&self.out, &self.err].into_iter().flatten().map(|file| PollFd::new(file, PollFlags::IN)).collect();
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
        // An interrupted or failed poll only means that the reads come early.
        let _ = rustix::event::poll(&mut fds, Some(&timeout));
    }

    /// Whether the child has ended. It is not reaped, so that its group's number cannot pass to others yet.
    pub(crate) fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        self.status.is_some() || !matches!(rustix::process::waitid(WaitId::Pid(self.group), options), Ok(None))
    }

    /// Pumps until the child ends, `until` is reached or `stop` says so; true when it has ended.
    pub(crate) fn pump_until(
        &mut self,
        until: Instant,
        stop: &dyn Fn() -> bool,
        sink: &mut dyn FnMut(Stream, &[u8]),
    ) -> bool {
        loop {
            if self.has_ended() {
                return true;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || stop() {
                return false;
            }
            self.pump(left.min(TICK), sink);
        }
    }

    /// Takes what is in the pipes, then sends a signal. A bpftrace that sits in a write to a full pipe when it is signalled takes the
    /// interrupted write for an error of its output, and writes nothing more: its maps would be lost.
    pub(crate) fn empty_and_signal(&mut self, signal: Signal, sink: &mut dyn FnMut(Stream, &[u8])) -> io::Result<()> {
        for _ in 0..EMPTYING {
            if !self.has_more() {
                break;
            }
            self.pump(Duration::ZERO, sink);
        }
        self.signal(signal)
    }

    /// Sends a signal to the whole group. It fails when the child is not ours to signal, as under sudo.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        if self.status.is_some() {
            return Ok(());
        }
        Ok(rustix::process::kill_process_group(self.group, signal)?)
    }

    /// Kills what is left of the group, reads what is left in the pipes, and reaps. `None`: it could not be killed.
    pub(crate) fn finish(&mut self, sink: &mut dyn FnMut(Stream, &[u8])) -> Option<ExitStatus> {
        let _ = self.signal(Signal::KILL);
        self.cgroup.iter().for_each(Cgroup::kill);
        let ended = self.pump_until(Instant::now() + KILL_WAIT, &|| false, sink);
        let until = Instant::now() + DRAIN;
        while Instant::now() < until && self.has_more() {
            self.pump(Duration::ZERO, sink);
        }
        if ended { self.reap() } else { None }
    }

    /// Whether a pipe has bytes in it at this moment.
    fn has_more(&self) -> bool {
        let full = |file: &File| rustix::io::ioctl_fionread(file).is_ok_and(|bytes| bytes > 0);
        self.out.as_ref().is_some_and(full) || self.err.as_ref().is_some_and(full)
    }

    fn reap(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.wait().ok();
        }
        self.status
    }
}

impl Drop for Process {
    /// Nothing is left behind. A child that cannot be killed at once is waited for by a thread.
    fn drop(&mut self) {
        if self.status.is_some() || self.finish(&mut |_, _| ()).is_some() {
            return;
        }
        let pid = self.group;
        let reaper = move || rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED).map(drop);
        let _ = std::thread::Builder::new().name("reaper".into()).spawn(reaper);
    }
}

/// How a child ended, in words.
pub(crate) fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with status {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".into(),
    }
}

/// Runs in the child before exec: it leads a group of its own, and in a box a session.
fn lead(session: bool) -> io::Result<()> {
    if session {
        rustix::process::setsid()?;
    } else {
        rustix::process::setpgid(None, None)?;
    }
    Ok(())
}

/// Runs in the child before exec: it dies with its parent, dumps no core and takes signals as if started by a shell.
fn leash(parent: Pid) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // A parent that died before the line above sends no signal any more.
    if rustix::process::getppid() != Some(parent) {
        return Err(io::ErrorKind::NotConnected.into());
    }
    let no_core = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(rustix::process::Resource::Core, no_core)?;
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: setting a default disposition has no preconditions.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    Ok(())
}

fn nonblocking(pipe: OwnedFd) -> io::Result<File> {
    rustix::io::ioctl_fionbio(&pipe, true)?;
    // Refused where the user's pipes hold too much already; a small one does, less well.
    let _ = rustix::pipe::fcntl_setpipe_size(&pipe, PIPE_BYTES);
    Ok(pipe.into())
}

/// Reads until there is nothing, or enough for one turn; forgets the pipe at its end.
fn drain(pipe: &mut Option<File>, buffer: &mut [u8], sink: &mut dyn FnMut(&[u8])) {
    for _ in 0..READS {
        let Some(file) = pipe else { return };
        match file.read(buffer) {
            Ok(0) => *pipe = None,
            Ok(length) => sink(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(_) => *pipe = None,
        }
    }
}
