//! A child in a process group of its own: started with nothing but what it needs, in a box if there is to be one, and ended whole.
//!
//! The parent-death signal fires when the thread that spawned ends, not the process (prctl(2)): the thread that spawns
//! must live as long as the child.

use std::{
    ffi::OsString,
    fs::File,
    io,
    os::fd::OwnedFd,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    process::{Child, Command, ExitStatus, Stdio},
};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

use super::sandbox::{Cgroup, Sandbox, Steps};
use crate::kernel::privilege;

/// What the child gets of this process's environment. `BPFTRACE_BTF` and its kin say where kernel types and headers
/// are; `TZ` and `TZDIR` are for `time()`.
pub(super) const ENVIRONMENT: &[&str] = &[
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
/// Where programs are, for a process that has more privilege than whoever set its environment.
const USUAL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Without this setting bpftrace 0.17 asks the kernel for its types in a way that takes `CAP_SYS_ADMIN`, which it lacks in a box.
const BTF: (&str, &str) = ("BPFTRACE_BTF", "/sys/kernel/btf/vmlinux");

/// Landlock keeps bpftrace from looking into processes, and 0.17 crashes when it cannot look for the names of their functions.
const NO_USER_SYMBOLS: &str = "BPFTRACE_NO_USER_SYMBOLS";

/// How many keys a map may have, by the names of this setting up to bpftrace 0.20 and after. It is bpftrace's default
/// too, which holds under sudo.
pub(crate) const MAP_KEYS: u64 = 4096;
const MAP_KEYS_NAMES: [&str; 2] = ["BPFTRACE_MAP_KEYS_MAX", "BPFTRACE_MAX_MAP_KEYS"];

/// How much a pipe is to hold; a pipe has 64 KB unless asked, and 1 MB is what anybody may ask for (pipe(7)).
const PIPE_BYTES: usize = 1 << 20;

/// A variable of the environment. That of a program with file capabilities was set by somebody with less privilege, who shall not choose
/// what it runs and reads.
pub(super) fn variable(name: &str) -> Option<OsString> {
    if privilege::is_by_file() {
        return (name == "PATH").then(|| USUAL_PATH.into());
    }
    std::env::var_os(name)
}

/// A child of this process, the process group that it leads, and its control group. It is not reaped before it is asked to be.
#[derive(Debug)]
pub(super) struct Own {
    child: Child,
    group: Pid,
    /// What it is counted and killed with. It goes after the child.
    cgroup: Option<Cgroup>,
    status: Option<ExitStatus>,
}

impl Own {
    /// Starts `words` followed by `arguments`, in a box if there is to be one; gives its output and its errors too, to be read without
    /// blocking. An error means that nothing runs.
    pub(super) fn spawn(
        words: &[String],
        arguments: &[String],
        sandbox: Option<&Sandbox>,
    ) -> io::Result<(Self, File, File)> {
        let (program, fixed) = words.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let prepared = sandbox.map(|sandbox| sandbox.prepare(words)).transpose()?;
        let (steps, cgroup, inside) =
            prepared.map_or((None, None, None), |one| (Some(one.steps), one.cgroup, Some(one.program)));
        let mut command = Command::new(inside.as_deref().unwrap_or(program));
        command.args(fixed).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        set_environment(&mut command, sandbox.is_some());
        let parent = rustix::process::getpid();
        let begin = move || {
            lead(steps.is_some())?;
            steps.as_ref().map_or(Ok(()), Steps::enter)?;
            // After that: whoever becomes another user loses the signal.
            leash(parent)?;
            steps.as_ref().map_or(Ok(()), Steps::seal)
        };
        // SAFETY: all of it only makes system calls that are async-signal-safe, and allocates nothing.
        unsafe { command.pre_exec(begin) };
        let mut child = command.spawn()?;
        let group = Pid::from_child(&child);
        let pipes = (child.stdout.take(), child.stderr.take());
        let own = Self { child, group, cgroup, status: None };
        let (Some(out), Some(err)) = pipes else { return Err(io::ErrorKind::BrokenPipe.into()) };
        match (nonblocking(out.into()), nonblocking(err.into())) {
            (Ok(out), Ok(err)) => Ok((own, out, err)),
            (Err(error), _) | (_, Err(error)) => {
                own.kill();
                Err(error)
            }
        }
    }

    /// Its process id.
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its process group, whose number is its process id.
    pub(super) fn group(&self) -> Pid {
        self.group
    }

    /// Whether it has ended. It is not reaped, so that its group's number cannot pass to others yet.
    pub(super) fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        self.status.is_some() || !matches!(rustix::process::waitid(WaitId::Pid(self.group), options), Ok(None))
    }

    /// Sends a signal to the whole group. It fails when the child is not ours to signal, as under sudo.
    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        if self.status.is_some() {
            return Ok(());
        }
        Ok(rustix::process::kill_process_group(self.group, signal)?)
    }

    /// Kills its process group and all that is in its control group.
    pub(super) fn kill(&self) {
        let _ = self.signal(Signal::KILL);
        self.cgroup.iter().for_each(Cgroup::kill);
    }

    /// Waits for its end.
    pub(super) fn reap(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.wait().ok();
        }
        self.status
    }

    /// Its control group, to be removed when it is empty.
    pub(super) fn take_cgroup(&mut self) -> Option<Cgroup> {
        self.cgroup.take()
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

fn set_environment(command: &mut Command, boxed: bool) {
    command.env_clear().envs(ENVIRONMENT.iter().filter_map(|name| Some((name, variable(name)?))));
    command.envs(MAP_KEYS_NAMES.map(|name| (name, MAP_KEYS.to_string())));
    if boxed {
        command.env(NO_USER_SYMBOLS, "1");
    }
    // Given an empty file, bpftrace 0.17 crashes.
    let has_types = std::fs::metadata(BTF.1).is_ok_and(|file| file.len() > 0);
    if boxed && variable(BTF.0).is_none() && has_types {
        command.env(BTF.0, BTF.1);
    }
    command.env("LC_ALL", "C.UTF-8").current_dir("/");
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
