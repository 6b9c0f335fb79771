//! One running trace, whatever runs it: a probe or a script. It has a deadline, can be stopped, and ends with nothing attached.

pub mod account;
pub mod governor;
pub mod kept;
pub mod probe;
pub mod script;

use std::{
    any::Any,
    collections::VecDeque,
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
        Envelope, Events, Kind, Loss, More, NamedReport, Overhead, Report, Row, Status, Window, cursor::Cursor,
        flamegraph, view,
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
    /// The first of sorted rows: an index.
    pub from: u64,
    /// The first of events: a place in their sequence.
    pub event: u64,
    /// How many of either at most.
    pub limit: usize,
    /// The JSON of the whole answer, at most, in bytes.
    pub max_bytes: usize,
}

impl Default for Page {
    fn default() -> Self {
        Self { from: 0, event: 0, limit: 20, max_bytes: 20_000 }
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
    trail: Trail,
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
            trail: Trail::default(),
        }
    }

    /// With the records of what is run.
    fn recorded(self, trail: Trail) -> Self {
        Self { trail, ..self }
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

    /// Ends what costs too much. That nobody has asked for it is recorded first.
    pub fn end_for_cost(&self, reason: Option<&str>) {
        if !self.is_stopped() {
            self.trail.stopped(&Principal::cli(), reason.unwrap_or("it costs too much"));
        }
        self.stop();
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
    begun: Mutex<AllBegun>,
    ended: watch::Sender<bool>,
    trail: Trail,
}

/// A report of which the first rows have been read while it ran.
#[derive(Debug)]
struct Begun {
    report: Report,
    seconds: f64,
}

/// The latest of them, with their numbers.
#[derive(Debug, Default)]
struct AllBegun {
    last: u64,
    kept: VecDeque<(u64, Arc<Begun>)>,
}

/// Reports that are kept for those who read on.
const MOST_BEGUN: usize = 2;
/// What a row of one takes, about, in bytes.
const ROW_BYTES: usize = 512;
/// What is said of rows that are not of a report whose first rows were read.
const SORTED_ANEW: &str = "it runs, and its rows are sorted anew at each call: some may come twice and some never; begin without offset and \
     read on with the cursor of each reply";

/// Which rows are shown.
enum Rows {
    /// Those of now.
    Now,
    /// Those of now, which are kept to be read on.
    Keep,
    /// Those that were kept.
    Kept(u64, Arc<Begun>),
}

impl AllBegun {
    fn keep(&mut self, begun: Begun) -> (u64, Arc<Begun>) {
        if self.kept.len() >= MOST_BEGUN {
            self.kept.pop_front();
        }
        self.last += 1;
        let kept = Arc::new(begun);
        self.kept.push_back((self.last, Arc::clone(&kept)));
        (self.last, kept)
    }

    fn get(&self, number: u64) -> Option<Arc<Begun>> {
        self.kept.iter().find(|(kept, _)| *kept == number).map(|(_, begun)| Arc::clone(begun))
    }

    fn bytes(&self) -> usize {
        self.kept.iter().map(|(_, begun)| view::rows_of(Some(&begun.report)) * ROW_BYTES).sum()
    }
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
            control: Control::new(length).recorded(trail.clone()),
            source,
            outcome: Mutex::new(None),
            begun: Mutex::default(),
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
        self.source.bytes() + self.begun().bytes()
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
        self.shape(page, Rows::Now)
    }

    /// The same, to be read on with its cursor: while it runs the report is kept as it is now, because its rows are sorted anew all the
    /// time, and some would come twice and others never. `of` is what an earlier cursor says; `None` if that is not kept any more.
    pub fn read(&self, page: &Page, of: Option<u64>) -> Option<Envelope> {
        let rows = match of {
            Some(number) => Rows::Kept(number, self.begun().get(number)?),
            None if page.from == 0 && self.status() == Status::Running => Rows::Keep,
            None => Rows::Now,
        };
        let mut envelope = self.shape(page, rows);
        let is_sorted = envelope.report.as_ref().is_some_and(|report| !matches!(report, Report::Events(_)));
        if of.is_none() && page.from > 0 && is_sorted && envelope.status == Status::Running {
            envelope.notes.push(SORTED_ANEW.into());
        }
        Some(envelope)
    }

    fn shape(&self, page: &Page, rows: Rows) -> Envelope {
        let outcome = self.outcome().clone();
        let seconds = if let Rows::Kept(_, kept) = &rows { kept.seconds } else { self.seconds() };
        let found = self.source.snapshot(seconds, page);
        let is_events = found.report.is_none() && found.events.is_some();
        let Snapshot { report, events, reports, loss, overhead, notes, events_left, events_next } = found;
        let (report, events) =
            if is_events { (events.map(Report::Events), None) } else { (report, events.map(Report::Events)) };
        let mut of = None;
        let (report, left) = match report {
            Some(report) if !is_events => {
                let kept = match rows {
                    Rows::Now => Arc::new(Begun { report, seconds }),
                    Rows::Kept(number, kept) => {
                        of = Some(number);
                        kept
                    }
                    Rows::Keep => {
                        let (number, kept) = self.begun().keep(Begun { report, seconds });
                        of = Some(number);
                        kept
                    }
                };
                let (mut report, left) = view::page(&kept.report, page.from, page.limit);
                self.name_resources(&mut report);
                (Some(report), left)
            }
            other => (other, 0),
        };
        let left = left + events_left;
        let shown = |report: Option<&Report>| view::rows_of(report) as u64;
        let (rows, beside) = (shown(report.as_ref()), shown(events.as_ref()));
        let first = events_next.map(|next| next - if is_events { rows } else { beside });
        let cursor = |rows: u64, beside: u64| match first {
            Some(first) if is_events => Cursor::Events(first + rows),
            first => Cursor::Rows { row: page.from + rows, event: first.map(|first| first + beside), of },
        };
        // While it runs there is always a place to read on from.
        let follows = is_events && outcome.is_none();
        let more =
            (left > 0 || follows).then(|| More { rows_left: left, cursor: Some(cursor(rows, beside).to_string()) });
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
        let nothing = Page { limit: 0, max_bytes: 0, ..Page::default() };
        let cost = catch_unwind(AssertUnwindSafe(|| self.source.snapshot(seconds, &nothing).overhead)).ok().flatten();
        self.trail.ended(status.as_str(), error.as_deref(), seconds, cost.as_ref());
    }

    fn begun(&self) -> MutexGuard<'_, AllBegun> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
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

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use super::*;
    use crate::report::{Field, Table};

    /// Thirty rows, each time in another order, until it is told to stop.
    struct Turning(AtomicUsize);

    impl Source for Turning {
        fn run(&self, control: &Control) -> Result<(), String> {
            while !control.wait(Duration::from_millis(10)) {}
            Ok(())
        }

        fn snapshot(&self, _seconds: f64, _page: &Page) -> Snapshot {
            let turn = 7 * self.0.fetch_add(1, Ordering::Relaxed);
            let row = |number: usize| Row::from_iter([("comm".into(), format!("c{}", (number + turn) % 30).into())]);
            let table = Table {
                key: vec!["comm".into()],
                columns: vec![Field::new("calls", "calls")],
                rows: (0..30).map(row).collect(),
                others: None,
                rows_total: 30,
            };
            Snapshot { report: Some(Report::Table(table)), ..Snapshot::default() }
        }

        fn loss(&self) -> Loss {
            Loss::default()
        }

        fn bytes(&self) -> usize {
            0
        }

        fn release(&self) {}

        fn as_any(&self) -> &dyn Any {
            self
        }
    }

    fn turning() -> Arc<Execution> {
        let identity = Identity {
            id: "exec_1".into(),
            kind: Kind::Probe,
            probe: "syscall_counts".into(),
            filter: serde_json::Map::new(),
            options: serde_json::Map::new(),
            by: Caller::default(),
        };
        let source = Box::new(Turning(AtomicUsize::new(0)));
        Execution::spawn(identity, source, Duration::from_mins(1), Trail::default(), |_| {}).unwrap()
    }

    /// The names of a page, and where it is read on: a place, and which report.
    fn page(execution: &Execution, from: u64, of: Option<u64>) -> (Vec<String>, Option<(u64, Option<u64>)>) {
        let envelope = execution.read(&Page { from, event: 0, limit: 4, max_bytes: 100_000 }, of).unwrap();
        let Some(Report::Table(table)) = &envelope.report else { panic!("{envelope:?}") };
        let names = table.rows.iter().map(|row| row["comm"].as_str().unwrap().to_owned()).collect();
        let cursor = envelope.more.and_then(|more| more.cursor).map(|cursor| {
            let (place, of) = cursor[1..].split_once('s').map_or((&cursor[1..], None), |(place, of)| (place, Some(of)));
            (place.parse().unwrap(), of.map(|of| of.parse().unwrap()))
        });
        (names, cursor)
    }

    #[test]
    fn reading_on_while_it_runs_repeats_no_row_and_skips_none() {
        let execution = turning();
        let (mut names, mut next) = page(&execution, 0, None);
        // Somebody else begins to read meanwhile.
        page(&execution, 0, None);
        while let Some((from, of)) = next {
            assert!(of.is_some(), "its rows change");
            let (more, after) = page(&execution, from, of);
            names.extend(more);
            next = after;
        }
        assert_eq!((names.len(), names.iter().collect::<BTreeSet<_>>().len()), (30, 30), "{names:?}");
        execution.stop_and_wait();
    }

    #[test]
    fn few_reports_are_kept_and_who_reads_on_without_is_told() {
        let execution = turning();
        let (_, first) = page(&execution, 0, None);
        (0..MOST_BEGUN).for_each(|_| _ = page(&execution, 0, None));
        let four = Page { from: 4, event: 0, limit: 4, max_bytes: 100_000 };
        assert!(execution.read(&four, first.unwrap().1).is_none(), "it has been let go of");
        assert_eq!(execution.begun().kept.len(), MOST_BEGUN);
        assert!(execution.bytes() >= MOST_BEGUN * 30 * ROW_BYTES, "what is kept is counted");
        let anew = execution.read(&four, None).unwrap();
        assert!(anew.notes.iter().any(|note| note == SORTED_ANEW), "{:?}", anew.notes);
        execution.stop_and_wait();
        let (_, next) = page(&execution, 0, None);
        assert_eq!(next, Some((4, None)), "what has ended does not change any more");
    }
}
