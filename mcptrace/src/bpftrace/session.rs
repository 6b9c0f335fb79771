//! One running script.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::child::ending;
use super::collect::Collector;
use super::error::{ScriptError, spoken};
use super::process::{Process, Stream};
use super::text::{escape, head};
use super::{Limits, Snapshot};

/// How much of standard error is kept, in bytes.
const STDERR_BYTES: usize = 64 * 1024;
/// How many warnings of bpftrace a snapshot repeats, and how long each may be.
const WARNINGS: usize = 20;
const WARNING_BYTES: usize = 512;

/// Why [`Session::wait`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The script ended by itself.
    Exited,
    /// Its time was up.
    Deadline,
    /// `stop` said so.
    Stopped,
}

/// A running script. The thread that spawned it must live as long as it does, and must call [`Session::wait`]: that is
/// what reads the output. Other threads look on through a [`View`].
#[derive(Debug)]
pub struct Session {
    process: Process,
    view: View,
    limits: Limits,
}

/// What a script has found so far, for any thread.
#[derive(Clone, Debug)]
pub struct View {
    state: Arc<Mutex<State>>,
}

/// A few numbers of a running script, cheaper than a [`Snapshot`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Probes announced, once bpftrace has compiled the script and attaches them.
    pub attached: Option<u64>,
    /// Lines written so far.
    pub lines: u64,
    /// Events that bpftrace lost.
    pub lost_events: u64,
}

#[derive(Debug)]
struct State {
    collector: Collector,
    stderr: Vec<u8>,
    program: String,
    started: Instant,
    attached_after: Option<Duration>,
    outcome: Option<Outcome>,
    notes: Vec<String>,
}

/// How it ended: `signalled` when we asked it to, `killed` when it did not obey.
#[derive(Clone, Copy, Debug)]
struct Outcome {
    status: Option<ExitStatus>,
    signalled: bool,
    killed: bool,
}

impl Session {
    pub(super) fn new(process: Process, program: &str, limits: Limits, notes: Vec<String>) -> Self {
        let state = State {
            collector: Collector::new(limits),
            stderr: Vec::new(),
            program: program.to_owned(),
            started: Instant::now(),
            attached_after: None,
            outcome: None,
            notes,
        };
        Self { process, view: View { state: Arc::new(Mutex::new(state)) }, limits }
    }

    /// For other threads.
    pub fn view(&self) -> View {
        self.view.clone()
    }

    /// What it has found so far.
    pub fn snapshot(&self) -> Snapshot {
        self.view.snapshot()
    }

    /// bpftrace's process id; under sudo, sudo's.
    pub fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// Reads the output until the script ends by itself, `deadline` is there or `stop` (asked every 20 ms) says so.
    pub fn wait(&mut self, deadline: Instant, stop: &dyn Fn() -> bool) -> End {
        let view = self.view.clone();
        if self.process.pump_until(deadline, stop, &mut |stream, bytes| view.lock().take(stream, bytes)) {
            End::Exited
        } else if Instant::now() >= deadline {
            End::Deadline
        } else {
            End::Stopped
        }
    }

    /// Ends it: SIGINT, on which bpftrace prints its maps, then SIGTERM, then SIGKILL, to its whole process group, with
    /// [`Limits::grace`] after the first and a third of it after the second. Reads all that comes, and reaps.
    pub fn end(mut self) -> Snapshot {
        let view = self.view.clone();
        let mut sink = |stream, bytes: &[u8]| view.lock().take(stream, bytes);
        let mut ended = self.process.has_ended();
        let signalled = !ended;
        for (signal, grace) in [(Signal::INT, self.limits.grace), (Signal::TERM, self.limits.grace / 3)] {
            if !ended {
                // Under sudo the signal fails, and what helps is the script's own `interval`: wait all the same.
                let _ = self.process.empty_and_signal(signal, &mut sink);
                ended = self.process.pump_until(Instant::now() + grace, &|| false, &mut sink);
            }
        }
        let status = self.process.finish(&mut sink);
        view.lock().end(Outcome { status, signalled, killed: !ended });
        view.snapshot()
    }
}

impl View {
    /// What it has found so far.
    pub fn snapshot(&self) -> Snapshot {
        self.lock().snapshot()
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        let state = self.lock();
        let collector = &state.collector;
        Progress { attached: collector.attached(), lines: collector.lines_total(), lost_events: collector.lost() }
    }

    /// A panic of another thread leaves the state as readable as before.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self, stream: Stream, bytes: &[u8]) {
        match stream {
            Stream::Out => {
                self.collector.feed(bytes);
                if self.attached_after.is_none() && self.collector.attached().is_some() {
                    self.attached_after = Some(self.started.elapsed());
                }
            }
            Stream::Err => {
                let room = STDERR_BYTES - self.stderr.len();
                self.stderr.extend_from_slice(&bytes[..bytes.len().min(room)]);
            }
        }
    }

    fn end(&mut self, outcome: Outcome) {
        self.collector.finish();
        self.outcome = Some(outcome);
    }

    fn snapshot(&self) -> Snapshot {
        let stderr = String::from_utf8_lossy(&self.stderr);
        let error = self.outcome.and_then(|outcome| self.error(outcome, &stderr));
        let attached = self.collector.attached().filter(|_| !attach_failed(error.as_ref()));
        Snapshot {
            lines: self.collector.lines(),
            lines_total: self.collector.lines_total(),
            reports: self.collector.reports(),
            lost_events: self.collector.lost(),
            cut: self.collector.cut(),
            attached,
            attached_after: self.attached_after.filter(|_| attached.is_some()),
            exit: self.outcome.and_then(|outcome| outcome.status).map(ending),
            warnings: if error.is_none() { warnings(&stderr) } else { Vec::new() },
            notes: self.notes(error.is_none()),
            error,
        }
    }

    /// An end that we brought about is no error, however bpftrace took it.
    fn error(&self, outcome: Outcome, stderr: &str) -> Option<ScriptError> {
        let status = outcome.status?;
        if status.success() || (outcome.signalled && status.signal().is_some()) {
            return None;
        }
        let words = if spoken(stderr).is_empty() { self.collector.lines().join("\n") } else { stderr.to_owned() };
        Some(ScriptError::from_output(&self.program, &words, &ending(status)))
    }

    fn notes(&self, good: bool) -> Vec<String> {
        let mut notes = self.notes.clone();
        if let (Some(outcome), true) = (self.outcome, good) {
            notes.extend(self.end_notes(outcome));
        }
        notes.extend(self.collector.notes());
        notes
    }

    fn end_notes(&self, outcome: Outcome) -> Vec<String> {
        self.how_it_ended(outcome).into_iter().chain(self.discarded(outcome)).collect()
    }

    fn how_it_ended(&self, outcome: Outcome) -> Option<String> {
        let Outcome { status, signalled, killed } = outcome;
        if status.is_none() {
            return Some("it could not be ended from here and may still run".into());
        }
        let by_signal = signalled && status.is_some_and(|status| status.signal().is_some());
        match self.collector.attached() {
            None if signalled => Some("it ended before bpftrace had attached; nothing was recorded".into()),
            _ if killed => Some("it did not end when asked and was killed; its maps were lost".into()),
            _ if by_signal => Some("it ended before it could print its maps; they were lost".into()),
            Some(probes) if self.collector.records() == 0 => {
                Some(format!("bpftrace attached {probes} probes, and the script printed nothing and kept nothing"))
            }
            _ => None,
        }
    }

    /// Once it is asked to end, bpftrace 0.17 drops what is still in its perf buffers (`src/bpftrace.cpp`,
    /// `perf_event_printer`), and counts it nowhere.
    fn discarded(&self, outcome: Outcome) -> Option<String> {
        let maps = if self.program.contains('@') && self.collector.reports().is_empty() {
            "it printed no maps: whatever they held is lost"
        } else {
            "maps are complete"
        };
        (outcome.signalled && self.collector.had_events()).then(|| {
            format!("bpftrace drops, uncounted, printed events that it has not read yet when it is ended; {maps}")
        })
    }
}

/// bpftrace 0.17 says how many probes it attaches before it tries.
fn attach_failed(error: Option<&ScriptError>) -> bool {
    error
        .is_some_and(|error| error.said.contains("Error attaching probe") || error.said.contains("No probes to attach"))
}

fn warnings(stderr: &str) -> Vec<String> {
    spoken(stderr).into_iter().take(WARNINGS).map(|line| escape(head(line, WARNING_BYTES))).collect()
}
