//! One running trace, whatever runs it: a probe or a script. It has a deadline, can be stopped, and ends with nothing attached.

pub mod account;
pub mod governor;
pub mod kept;
pub mod probe;
pub mod script;

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::watch;

use crate::{
    audit::Trail,
    clock,
    principal::{Caller, Principal},
    report::{
        Envelope, Events, Kind, Loss, More, NamedReport, Overhead, Report, Row, Status, Window, flamegraph, view,
    },
};

/// How long an ended execution has been waited for to give up, at most.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// What an execution runs on its own thread.
pub trait Source: Send + Sync {
    /// Collects until the deadline or until told to stop, then detaches everything. Gives an error if it failed.
    fn run(&self, control: &Control) -> Result<(), String>;

    /// What was found so far; after `run` has returned, all of it.
    fn snapshot(&self, seconds: f64, page: &Page) -> Snapshot;

    /// All stacks found so far as folded text, with their unit; `None` if what it finds is no stacks.
    fn folded(&self, _seconds: f64) -> Option<(Arc<str>, String)> {
        None
    }

    /// The events of a page and the place after them, if it sends events; cheap, unlike [`Source::snapshot`].
    fn events(&self, _page: &Page) -> Option<(Events, u64)> {
        None
    }

    /// What was seen and lost so far; cheap.
    fn loss(&self) -> Loss;

    /// Memory that it holds, in bytes.
    fn bytes(&self) -> usize;

    /// Detaches and ends everything, after `run` has panicked.
    fn release(&self);

    /// The source as what it is, for what only one kind has.
    fn as_any(&self) -> &dyn Any;
}

/// Which rows a reader wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The first: a place in the sequence of events, or an index into sorted rows.
    pub from: u64,
    /// How many at most.
    pub limit: usize,
    /// The JSON of the whole answer, at most, in bytes.
    pub max_bytes: usize,
}

impl Default for Page {
    fn default() -> Self {
        Self { from: 0, limit: 20, max_bytes: 20_000 }
    }
}

/// What a source found.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// The main report, all rows; events only those of the page.
    pub report: Option<Report>,
    /// Events beside the main report.
    pub events: Option<Events>,
    /// Reports of a script.
    pub reports: Vec<NamedReport>,
    /// What was seen and lost.
    pub loss: Loss,
    /// What it cost.
    pub overhead: Option<Overhead>,
    /// What a reader must know.
    pub notes: Vec<String>,
    /// Events after the page.
    pub events_left: u64,
    /// Where to read on in the sequence of events.
    pub events_next: Option<u64>,
}

/// Tells a source when to end.
#[derive(Debug)]
pub struct Control {
    started: Instant,
    deadline: Instant,
    stopped: Mutex<bool>,
    changed: Condvar,
    collected: OnceLock<Duration>,
}

impl Control {
    /// A control that ends after a time.
    pub fn new(length: Duration) -> Self {
        let started = Instant::now();
        Self {
            started,
            deadline: started + length,
            stopped: Mutex::new(false),
            changed: Condvar::new(),
            collected: OnceLock::new(),
        }
    }

    /// Waits at most so long; true if it is time to end.
    pub fn wait(&self, most: Duration) -> bool {
        let stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        let most = most.min(self.deadline.saturating_duration_since(Instant::now()));
        let waited = self.changed.wait_timeout_while(stopped, most, |stopped| !*stopped);
        let (stopped, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *stopped || Instant::now() >= self.deadline
    }

    /// When to end.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// When it began.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// How long it is to run.
    pub fn length(&self) -> Duration {
        self.deadline - self.started
    }

    /// Says that collecting has ended, though reading what was collected may still take a while.
    pub fn has_collected(&self) -> Duration {
        *self.collected.get_or_init(|| self.started.elapsed())
    }

    /// Whether somebody asked for the end.
    pub fn is_stopped(&self) -> bool {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for the end.
    pub fn stop(&self) {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }
}

/// What identifies an execution and never changes.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its id.
    pub id: String,
    /// Probe or script.
    pub kind: Kind,
    /// The probe's name; empty for scripts.
    pub probe: String,
    /// The filters in force.
    pub filter: Row,
    /// The options in force.
    pub options: Row,
    /// Who started it.
    pub by: Caller,
}

/// One run of a probe or script.
pub struct Execution {
    /// What it is.
    pub identity: Identity,
    started_at: SystemTime,
    control: Control,
    source: Box<dyn Source>,
    outcome: Mutex<Option<Outcome>>,
    ended: watch::Sender<bool>,
    trail: Trail,
}

#[derive(Clone, Debug)]
struct Outcome {
    status: Status,
    error: Option<String>,
    at: SystemTime,
    seconds: f64,
}

impl Execution {
    /// Runs a source on a thread of its own; its end is recorded. `then` is called there, before anybody is told of the end.
    ///
    /// # Errors
    ///
    /// If the system has no more threads.
    pub fn spawn(
        identity: Identity,
        source: Box<dyn Source>,
        length: Duration,
        trail: Trail,
        then: impl FnOnce(&Self) + Send + 'static,
    ) -> std::io::Result<Arc<Self>> {
        let execution = Arc::new(Self {
            identity,
            started_at: SystemTime::now(),
            control: Control::new(length),
            source,
            outcome: Mutex::new(None),
            ended: watch::Sender::new(false),
            trail,
        });
        let runner = Arc::clone(&execution);
        std::thread::Builder::new().name("mcptrace-run".into()).spawn(move || runner.run(then))?;
        Ok(execution)
    }

    /// How far it is.
    pub fn status(&self) -> Status {
        self.outcome().as_ref().map_or(Status::Running, |outcome| outcome.status)
    }

    /// When it ended, if it has.
    pub fn ended_at(&self) -> Option<SystemTime> {
        self.outcome().as_ref().map(|outcome| outcome.at)
    }

    /// How long it has collected, in seconds.
    pub fn seconds(&self) -> f64 {
        self.outcome()
            .as_ref()
            .map_or_else(|| self.control.started().elapsed().as_secs_f64(), |outcome| outcome.seconds)
    }

    /// How long it is to run, in seconds.
    pub fn planned_seconds(&self) -> f64 {
        self.control.length().as_secs_f64()
    }

    /// When it began, UTC.
    pub fn started(&self) -> String {
        clock::utc(self.started_at)
    }

    /// Asks it to end; does not wait.
    pub fn stop(&self) {
        self.control.stop();
    }

    /// The same, with a record of who asked and why. Only the first one is told.
    pub fn stop_for(&self, by: &Principal, reason: &str) {
        if self.status() == Status::Running && !self.control.is_stopped() {
            self.trail.stopped(by, reason);
        }
        self.stop();
    }

    /// Waits for its end.
    pub async fn ended(&self) {
        // An error means that the sender is gone, and it is a field of `self`.
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }

    /// Waits for its end on this thread, at most so long; true if it has ended.
    pub fn wait(&self, most: Duration) -> bool {
        let until = Instant::now() + most;
        while !*self.ended.borrow() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
        *self.ended.borrow()
    }

    /// Stops it and waits until it has detached.
    pub fn stop_and_wait(&self) -> bool {
        self.stop();
        self.wait(END_PATIENCE)
    }

    /// What was seen and lost so far.
    pub fn loss(&self) -> Loss {
        self.source.loss()
    }

    /// Memory that it holds, in bytes.
    pub fn bytes(&self) -> usize {
        self.source.bytes()
    }

    /// All stacks as folded text; `None` if it finds no stacks.
    pub fn folded(&self) -> Option<Arc<str>> {
        self.source.folded(self.seconds()).map(|(folded, _)| folded)
    }

    /// All stacks as a flame graph, an SVG; `None` if it finds no stacks.
    pub fn flamegraph(&self) -> Option<String> {
        let (folded, unit) = self.source.folded(self.seconds())?;
        let title = format!("{} {}, {:.1} s", self.identity.probe, self.started(), self.seconds());
        Some(flamegraph::svg(&title, &folded, &unit))
    }

    /// What it runs.
    pub fn source(&self) -> &dyn Source {
        &*self.source
    }

    /// What it found, in the form that every face of the program shows.
    pub fn envelope(&self, page: &Page) -> Envelope {
        let outcome = self.outcome().clone();
        let seconds = self.seconds();
        let found = self.source.snapshot(seconds, page);
        let is_events = found.report.is_none() && found.events.is_some();
        let Snapshot { report, events, reports, loss, overhead, notes, events_left, events_next } = found;
        let (report, events) =
            if is_events { (events.map(Report::Events), None) } else { (report, events.map(Report::Events)) };
        let (report, left) = match report {
            Some(report) if !is_events => {
                let (mut report, left) = view::page(&report, page.from, page.limit);
                self.name_resources(&mut report);
                (Some(report), left)
            }
            other => (other, events_left),
        };
        let shown = view::rows_of(report.as_ref()) as u64;
        let first = events_next.map_or(page.from, |next| next - shown);
        let prefix = if is_events { 'e' } else { 'r' };
        let cursor = |shown: u64| format!("{prefix}{}", first + shown);
        // While it runs there is always a place to read on from.
        let follows = is_events && outcome.is_none();
        let more = (left > 0 || follows).then(|| More { rows_left: left, cursor: Some(cursor(shown)) });
        let envelope = Envelope {
            execution_id: self.identity.id.clone(),
            kind: self.identity.kind,
            probe: self.identity.probe.clone(),
            status: outcome.as_ref().map_or(Status::Running, |outcome| outcome.status),
            error: outcome.as_ref().and_then(|outcome| outcome.error.clone()),
            window: Window {
                start: self.started(),
                end: outcome.as_ref().map(|outcome| clock::utc(outcome.at)),
                seconds: (seconds * 1000.0).round() / 1000.0,
            },
            filter: self.identity.filter.clone(),
            options: self.identity.options.clone(),
            report,
            events,
            reports,
            loss,
            overhead,
            notes,
            more,
        };
        view::fit(envelope, page.max_bytes, page.from, cursor)
    }

    fn name_resources(&self, report: &mut Report) {
        if let Report::Stacks(stacks) = report {
            let uri = |what| format!("mcptrace://executions/{}/{what}", self.identity.id);
            (stacks.folded_uri, stacks.flamegraph_uri) = (uri("folded"), uri("flamegraph.svg"));
        }
    }

    fn run(&self, then: impl FnOnce(&Self)) {
        // A bug in one probe must not take the server down, nor leave its programs attached.
        let result = catch_unwind(AssertUnwindSafe(|| self.source.run(&self.control)));
        let result = result.unwrap_or_else(|panic| {
            self.source.release();
            Err(format!("internal error: {}", panic_text(&*panic)))
        });
        let status = match &result {
            Err(_) => Status::Failed,
            Ok(()) if self.control.is_stopped() => Status::Stopped,
            Ok(()) => Status::Completed,
        };
        let seconds = self.control.has_collected().as_secs_f64();
        *self.outcome() = Some(Outcome { status, error: result.err(), at: SystemTime::now(), seconds });
        if catch_unwind(AssertUnwindSafe(|| then(self))).is_err() {
            tracing::error!(id = self.identity.id, "what follows the end of an execution has failed");
        }
        self.record_end();
        self.ended.send_replace(true);
    }

    fn record_end(&self) {
        let Some(Outcome { status, error, seconds, .. }) = self.outcome().clone().filter(|_| !self.trail.is_off())
        else {
            return;
        };
        let nothing = Page { from: 0, limit: 0, max_bytes: 0 };
        let cost = catch_unwind(AssertUnwindSafe(|| self.source.snapshot(seconds, &nothing).overhead)).ok().flatten();
        self.trail.ended(status.as_str(), error.as_deref(), seconds, cost.as_ref());
    }

    fn outcome(&self) -> MutexGuard<'_, Option<Outcome>> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Execution {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Execution").field("identity", &self.identity).finish_non_exhaustive()
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panic".to_owned())
}
