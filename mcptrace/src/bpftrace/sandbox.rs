//! The box that scripts run in: what bpftrace needs to see, and nothing it could do harm with.
//!
//! Each part is tried out once, in a child that does nothing else. What the machine cannot give is left out and said; what it can give
//! is required from then on: a script whose box cannot be built is not run.

mod cgroup;
mod child;
mod filter;
mod view;

use std::{
    io,
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    path::Path,
    process::{Command, Stdio},
    sync::OnceLock,
};

use schemars::JsonSchema;
use serde::Serialize;

pub(super) use cgroup::Cgroup;
pub(super) use child::Steps;

use super::launcher;

/// Memory of bpftrace, in bytes: it takes 90 MB to start, and maps and stacks on top.
const MEMORY: u64 = 768 << 20;
/// Threads of bpftrace.
const THREADS: u64 = 64;

/// A part of the box.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Part {
    /// What it is
    pub name: &'static str,
    /// What it keeps a script from
    pub purpose: &'static str,
    /// Whether this machine gives it
    pub works: bool,
    /// Why not
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub reason: Option<String>,
}

/// What of the box this machine gives.
#[derive(Debug)]
pub struct Sandbox {
    parts: Vec<Part>,
}

/// A box for one run, to be entered by the child.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) steps: Steps,
    pub(super) cgroup: Option<Cgroup>,
    /// The file to be run, as it is called inside.
    pub(super) program: String,
}

const CGROUP: &str = "cgroup";
const VIEW: &str = "mount_namespace";
const NETWORK: &str = "network_namespace";
const CAPABILITIES: &str = "capabilities";
const LANDLOCK: &str = "landlock";
const SECCOMP: &str = "seccomp";

/// What is tried out, and what each is good for.
const PARTS: [(&str, &str); 6] = [
    (CGROUP, "taking the host's memory and threads"),
    (VIEW, "reading other files than bpftrace needs, and writing any"),
    (NETWORK, "reaching the network"),
    (CAPABILITIES, "using more of root's rights than tracing needs"),
    (LANDLOCK, "the same once more, and looking into or signalling other processes"),
    (SECCOMP, "starting processes of its own, signalling, mounting, opening sockets, loading modules"),
];

impl Sandbox {
    /// The box of this machine, tried out the first time.
    pub fn get() -> &'static Self {
        static KNOWN: OnceLock<Sandbox> = OnceLock::new();
        KNOWN.get_or_init(Self::try_out)
    }

    /// What works and what does not.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Makes ready what the child needs, so that it has nothing to do but system calls.
    pub(super) fn prepare(&self, words: &[String]) -> io::Result<Prepared> {
        let (mut steps, program) = steps(words, &|name| self.has(name))?;
        steps.become_root = !rustix::process::geteuid().is_root();
        let cgroup = if self.has(CGROUP) { Some(Cgroup::new(MEMORY, THREADS)?) } else { None };
        Ok(Prepared { steps: steps.joining(cgroup.as_ref())?, cgroup, program })
    }

    fn has(&self, name: &str) -> bool {
        self.parts.iter().any(|part| part.name == name && part.works)
    }

    fn try_out() -> Self {
        Self { parts: parts(|name| attempt(name).err().map(|error| error.to_string())) }
    }
}

/// The box that scripts get here: the launcher's, if this process has one, and else its own.
pub fn in_force() -> Vec<Part> {
    match launcher::get() {
        Some(Ok(launcher)) => launcher.parts(),
        Some(Err(why)) => parts(|_| Some(format!("the launcher could not be started: {why}"))),
        None => Sandbox::get().parts().to_vec(),
    }
}

/// The memory that a script's bpftrace may take in its box, in bytes; `None` where this machine bounds it not.
pub fn memory() -> Option<u64> {
    in_force().iter().any(|part| part.name == CGROUP && part.works).then_some(MEMORY)
}

/// All parts, each with why it does not work.
pub(super) fn parts(reason: impl Fn(&str) -> Option<String>) -> Vec<Part> {
    let part = |(name, purpose)| {
        let reason = reason(name);
        Part { name, purpose, works: reason.is_none(), reason }
    };
    PARTS.into_iter().map(part).collect()
}

/// What a reader of a result must know. `None`: all of it works.
pub(super) fn note(parts: &[Part]) -> Option<String> {
    let lacking = parts.iter().filter(|part| !part.works);
    let lacking: Vec<String> =
        lacking.map(|part| format!("{} ({})", part.name, part.reason.as_deref().unwrap_or_default())).collect();
    (!lacking.is_empty())
        .then(|| format!("the script's box lacks what this machine does not give: {}", lacking.join(", ")))
}

fn steps(words: &[String], has: &dyn Fn(&str) -> bool) -> io::Result<(Steps, String)> {
    let files = view::Files::of(words, has(VIEW))?;
    let steps = Steps {
        cgroups: Vec::new(),
        become_root: false,
        view: if has(VIEW) { Some(files.view()?) } else { None },
        network: has(NETWORK),
        capabilities: has(CAPABILITIES),
        landlock: if has(LANDLOCK) { Some(files.landlock()?) } else { None },
        filter: if has(SECCOMP) { filter::program() } else { Vec::new() },
    };
    Ok((steps, files.program()))
}

/// Tries one part alone, in a child that ends after it.
fn attempt(name: &str) -> io::Result<()> {
    if name == CGROUP {
        return Cgroup::new(MEMORY, THREADS).map(drop);
    }
    if name == SECCOMP && filter::program().is_empty() {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "there is no filter for this processor"));
    }
    let (steps, _) = steps(&["/proc/self/exe".to_owned()], &|part| part == name)?;
    let mut command = Command::new("/proc/self/exe");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let enter = move || {
        steps.enter()?;
        steps.seal()?;
        // SAFETY: ends the child without running anything of the parent's.
        unsafe { libc::_exit(0) }
    };
    // SAFETY: `enter` only makes system calls that are async-signal-safe, and allocates nothing.
    unsafe { command.pre_exec(enter) };
    let status = command.status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(super::child::ending(status))) }
}

/// Whether a path is there, links followed.
fn exists(path: &Path) -> bool {
    path.exists()
}

/// A file descriptor that only names a file or folder.
fn open_path(path: &Path) -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags, open};
    Ok(open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}
