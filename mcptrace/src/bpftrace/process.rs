//! The output of a child: read without blocking, to the end.

use std::fs::File;
use std::io::{self, Read};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Signal, WaitId, WaitIdOptions};

use super::child::Own;
use super::launcher::Running;

/// One read.
const CHUNK: usize = 64 * 1024;
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

/// A running bpftrace and what it writes.
#[derive(Debug)]
pub(crate) struct Process {
    child: Held,
    out: Option<File>,
    err: Option<File>,
    buffer: Vec<u8>,
    status: Option<ExitStatus>,
}

/// Whose child it is.
#[derive(Debug)]
pub(super) enum Held {
    /// This process's.
    Own(Own),
    /// The launcher's.
    Launched(Running),
}

impl Process {
    /// A child that has just been started. `out` and `err` do not block.
    pub(super) fn new(child: Held, out: File, err: File) -> Self {
        Self { child, out: Some(out), err: Some(err), buffer: vec![0; CHUNK], status: None }
    }

    /// The child's process id.
    pub(crate) fn id(&self) -> u32 {
        match &self.child {
            Held::Own(own) => own.id(),
            Held::Launched(running) => running.id(),
        }
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

    /// Whether the child has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.status.is_some()
            || match &mut self.child {
                Held::Own(own) => own.has_ended(),
                Held::Launched(running) => running.status().is_some(),
            }
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
    fn signal(&self, signal: Signal) -> io::Result<()> {
        match &self.child {
            _ if self.status.is_some() => Ok(()),
            Held::Own(own) => own.signal(signal),
            Held::Launched(running) => running.signal(signal),
        }
    }

    fn kill(&self) {
        match &self.child {
            _ if self.status.is_some() => {}
            Held::Own(own) => own.kill(),
            // Where that cannot be said any more, the launcher has killed it.
            Held::Launched(running) => drop(running.signal(Signal::KILL)),
        }
    }

    /// Kills what is left of the group, reads what is left in the pipes, and reaps. `None`: it could not be killed.
    pub(crate) fn finish(&mut self, sink: &mut dyn FnMut(Stream, &[u8])) -> Option<ExitStatus> {
        self.kill();
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
            self.status = match &mut self.child {
                Held::Own(own) => own.reap(),
                Held::Launched(running) => running.status(),
            };
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
        // That of the launcher is waited for there.
        let Held::Own(own) = &self.child else { return };
        let pid = own.group();
        let reaper = move || rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED).map(drop);
        let _ = std::thread::Builder::new().name("reaper".into()).spawn(reaper);
    }
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
