//! An execution of a native probe: drains its events, samples its cost, and accounts for what was lost.

use std::{
    any::Any,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use mcptrace_wire::Counter;

use super::{
    Control, Page, Snapshot, Source,
    account::{self, Account},
    governor::Governor,
};
use crate::{
    clock::Clock,
    kernel::{
        attached::{Attached, Counters},
        cgroups,
        cost::{Cost, Sample},
        loader::chain,
        processes::{process_has_ended, thread_has_ended},
    },
    probes::{
        Found, Prepared, Reader,
        options::{self, By},
        places,
    },
    report::{Events, Loss, Report, Row},
    store::Store,
};

/// How often buffers are looked at while events come, and when none came for a while.
const BUSY: Duration = Duration::from_millis(2);
const IDLE: Duration = Duration::from_millis(20);
/// The most that is taken out of a buffer at once.
const BATCH_BYTES: usize = 1 << 20;
/// Records that an execution keeps for reading, in bytes: some 60,000 opens.
pub const STORE_BYTES: usize = 8 << 20;
/// Length of the window in which run time is sampled, and how long a run must be to have one.
const SAMPLE: Duration = Duration::from_millis(50);
const SHORTEST_SAMPLED: Duration = Duration::from_millis(300);
/// How soon after the start of a run the first is opened, at most.
const FIRST_SAMPLE: Duration = Duration::from_millis(500);

/// What a reader must know of rows by container on a host of version 1.
const VERSION_1: &str = "some containers here have control groups of version 1, which programs in the kernel do not see: rows are of groups of \
    version 2, and those containers are together in one of them; options.by = pid names the container of each process that still runs";
/// Records of one look at the buffer whose process is looked up in groups of version 1.
const MOST_ASKED: usize = 32;

/// A native probe at work.
pub struct ProbeSource {
    live: Mutex<Option<Attached>>,
    reader: Box<dyn Reader>,
    store: Mutex<Store>,
    clock: Clock,
    /// Whether it sends records at all, and whether they are events of the report.
    sends: bool,
    sends_events: bool,
    narrowed: Narrowed,
    /// The control group of the last record, where rows say to which container or unit a process belongs.
    last_cgroup: Option<AtomicU64>,
    /// Whether rows are of containers, and there are some that the kernel side cannot tell apart.
    misses_containers: bool,
    counts: &'static str,
    cost_ns: f64,
    /// The only process and the only thread that are looked at.
    subject: Subject,
    state: Mutex<State>,
}

/// By what a reader may have narrowed a probe, so that nothing is seen.
#[derive(Clone, Copy, Debug)]
struct Narrowed {
    by_filters: bool,
    by_options: bool,
}

impl Narrowed {
    /// What a reader of the JSON alone must know of a report without rows.
    fn nothing_seen(self) -> &'static str {
        match (self.by_filters, self.by_options) {
            (true, false) => "nothing matched the filters while this ran",
            (true, true) => "nothing matched the filters and options while this ran",
            (false, true) => "nothing matched the options while this ran",
            (false, false) => "no event that it looks for was seen while this ran",
        }
    }
}

/// What a probe is narrowed to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Subject {
    /// A process.
    pub pid: Option<u32>,
    /// A thread.
    pub tid: Option<u32>,
}

impl Subject {
    /// What of it has ended, if it has.
    fn ended(self) -> Option<&'static str> {
        if self.pid.is_some_and(process_has_ended) {
            return Some("process");
        }
        self.tid.is_some_and(thread_has_ended).then_some("thread")
    }
}

#[derive(Default)]
struct State {
    malformed: u64,
    cost: Option<(Cost, u64)>,
    governor: Governor,
    /// What was found in the end; set once.
    last: Option<Last>,
    /// What was looked at and had ended before its time was up.
    ended: Option<&'static str>,
}

#[derive(Clone)]
struct Last {
    found: Result<Arc<Found>, String>,
    counters: Counters,
    missed: Option<(u64, u64)>,
}

impl Last {
    fn folded_bytes(&self) -> usize {
        match self.found.as_ref().map(|found| found.report.as_ref()) {
            Ok(Some(Report::Stacks(stacks))) => stacks.folded.len(),
            _ => 0,
        }
    }
}

impl ProbeSource {
    /// Takes over an attached probe.
    pub fn new(attached: Attached, prepared: Prepared, filtered: bool, subject: Subject, cost_ns: f64) -> Self {
        let by_container = prepared.options.get("by").is_some_and(|by| by == By::Container.as_str());
        let sends_events = prepared.plan.event_bytes > 0 && !prepared.reader.event_fields().is_empty();
        Self {
            live: Mutex::new(Some(attached)),
            narrowed: Narrowed { by_filters: filtered, by_options: options::narrow(&prepared.options) },
            reader: prepared.reader,
            store: Mutex::new(Store::new(STORE_BYTES)),
            clock: Clock::now(),
            sends: prepared.plan.event_bytes > 0,
            sends_events,
            last_cgroup: prepared.plan.places.then(AtomicU64::default),
            misses_containers: by_container && cgroups::version_1::has_containers(),
            counts: prepared.plan.counts,
            cost_ns,
            subject,
            state: Mutex::default(),
        }
    }

    /// With a bound on what it may cost, in percent of one CPU.
    #[must_use]
    pub fn within(self, budget: Option<f64>) -> Self {
        lock(&self.state).governor = Governor::new(budget);
        self
    }

    /// Takes what is in the buffers, up to a batch; gives its size in bytes.
    fn drain(&self) -> usize {
        let records = lock(&self.live).as_mut().map(|attached| attached.drain(BATCH_BYTES)).unwrap_or_default();
        let bytes = records.iter().map(Bytes::len).sum();
        let mut malformed = 0;
        let mut asked = 0;
        let mut store = lock(&self.store);
        for record in records {
            if self.sends_events && self.reader.accepts(&record) {
                self.learn_place(&record, &mut asked);
                store.push(record);
            } else if !self.reader.take(&record) {
                malformed += 1;
            }
        }
        drop(store);
        if malformed > 0 {
            lock(&self.state).malformed += malformed;
        }
        bytes
    }

    /// Has the name of its control group found now: the group may be gone when the record is shown. A process's groups of version 1 are
    /// looked at by making the row, which costs some microseconds: so not for every record of a flood.
    fn learn_place(&self, record: &[u8], asked: &mut usize) {
        let Some(last) = &self.last_cgroup else { return };
        let cgroup = mcptrace_wire::cgroup_of(record);
        if last.swap(cgroup, Ordering::Relaxed) != cgroup && cgroup != 0 {
            cgroups::path(cgroup);
        }
        if *asked < MOST_ASKED && cgroups::version_1::is_mounted() {
            *asked += 1;
            self.reader.row(record, &self.clock);
        }
    }

    fn collect(&self, control: &Control) {
        // A probe without programs has no run time to sample.
        let mut sampler = Sampler::new(if self.counts.is_empty() { Duration::ZERO } else { control.length() });
        let mut pause = IDLE;
        loop {
            let wait = if self.sends { pause } else { Duration::from_millis(100) };
            let end = control.wait(sampler.limit(wait));
            pause = match self.drain() {
                0 => (pause.max(BUSY) * 2).min(IDLE),
                bytes if bytes < BATCH_BYTES => BUSY,
                // There is more.
                _ => Duration::ZERO,
            };
            if sampler.step(self) {
                let note = lock(&self.state).governor.note();
                control.end_for_cost(note.as_deref());
            }
            if end {
                return;
            }
        }
    }

    /// Detaches, takes what is left, and reads everything for the last time.
    fn finish(&self, seconds: f64) -> Result<(), String> {
        if let Some(attached) = lock(&self.live).as_mut() {
            attached.detach();
        }
        while self.drain() > 0 {}
        // Whoever asks meanwhile waits for this lock, and then finds the last word.
        let mut live = lock(&self.live);
        let Some(attached) = live.as_ref() else { return Ok(()) };
        let counters = attached.counters().map_err(|error| chain(&error))?;
        let last = self.read_from(attached, counters, seconds);
        let result = last.found.as_ref().map(|_| ()).map_err(Clone::clone);
        lock(&self.state).last = Some(last);
        live.take();
        self.reader.ended();
        drop(live);
        crate::memory::release_free();
        result
    }

    /// What was found in the end, if it has ended.
    fn last(&self) -> Option<Last> {
        lock(&self.state).last.clone()
    }

    /// Report, counters and misses as they are now.
    fn read(&self, seconds: f64) -> Option<Last> {
        let live = lock(&self.live);
        let attached = live.as_ref()?;
        let counters = attached.counters().ok()?;
        Some(self.read_from(attached, counters, seconds))
    }

    fn read_from(&self, attached: &Attached, counters: Counters, seconds: f64) -> Last {
        // A kernel without control groups has none that go.
        if self.last_cgroup.is_some() {
            let _ = places::learn(&attached.maps());
        }
        let found = self.reader.report(&attached.maps(), seconds).map_err(|error| chain(&error));
        let found = found.map(Arc::new);
        Last { found, counters, missed: attached.missed() }
    }

    fn account<'a>(&self, counters: &'a Counters, missed: Option<(u64, u64)>) -> Account<'a> {
        let malformed = lock(&self.state).malformed;
        Account { counters, missed, malformed, filtered: self.narrowed.by_filters }
    }

    fn loss_of(&self, counters: &Counters, missed: Option<(u64, u64)>, delivered: u64) -> Loss {
        // A probe without programs has nobody who counts what is seen.
        if self.counts.is_empty() { Loss::default() } else { self.account(counters, missed).loss(delivered) }
    }

    fn events_page(&self, page: &Page) -> (Events, u64, u64) {
        let store = lock(&self.store);
        let from = page.event.max(store.evicted());
        let shown: Vec<_> = store.from(from).take(page.limit).map(|(_, record)| record.clone()).collect();
        let (total, evicted) = (store.total(), store.evicted());
        drop(store);
        let (rows, looked_at) = rows_within(page.max_bytes, &shown, |record| self.reader.row(record, &self.clock));
        let next = from.min(total) + looked_at as u64;
        let events = Events { fields: self.reader.event_fields(), rows, rows_total: total, rows_evicted: evicted };
        (events, next, total - next)
    }

    fn notes(&self, last: &Last, page: &Page) -> Vec<String> {
        let mut notes: Vec<_> = lock(&self.state).governor.note().into_iter().collect();
        let Last { counters, missed, .. } = last;
        if !self.counts.is_empty() {
            notes.extend(self.account(counters, *missed).notes());
        }
        if counters.get(Counter::Seen) == 0 && !self.counts.is_empty() {
            notes.push(self.narrowed.nothing_seen().into());
        }
        if let Some(ended) = lock(&self.state).ended {
            notes.push(format!("the {ended} had ended before the time was up: rates and shares are of the whole time"));
        }
        if self.misses_containers {
            notes.push(VERSION_1.into());
        }
        if self.sends_events {
            notes.extend(evicted_note(lock(&self.store).evicted(), page));
        }
        notes
    }
}

impl Source for ProbeSource {
    fn run(&self, control: &Control) -> Result<(), String> {
        self.collect(control);
        // Whoever stops it may do so because the process has ended.
        lock(&self.state).ended = self.subject.ended().filter(|_| !control.is_stopped());
        self.finish(control.has_collected().as_secs_f64())
    }

    fn snapshot(&self, seconds: f64, page: &Page) -> Snapshot {
        // The second look is for a run that ended between the first one and the reading of its maps.
        let last = self.last().or_else(|| self.read(seconds)).or_else(|| self.last());
        last.map_or_else(Snapshot::default, |last| self.shape(last, seconds, page))
    }

    fn folded(&self, seconds: f64) -> Option<(Arc<str>, String)> {
        let last = self.last().or_else(|| self.read(seconds)).or_else(|| self.last())?;
        let found = last.found.ok()?;
        let Some(Report::Stacks(stacks)) = &found.report else { return None };
        Some((stacks.folded.clone(), stacks.unit.clone()))
    }

    fn events(&self, page: &Page) -> Option<(Events, u64)> {
        self.sends_events.then(|| {
            let (events, next, _) = self.events_page(page);
            (events, next)
        })
    }

    fn loss(&self) -> Loss {
        let ended = || self.last().map(|last| (last.counters, last.missed));
        let now = || lock(&self.live).as_ref().and_then(|live| Some((live.counters().ok()?, live.missed())));
        // The second look is for a run that ended between the first one and the reading of its counters.
        let (counters, missed) = ended().or_else(now).or_else(ended).unwrap_or_default();
        let delivered = lock(&self.store).total();
        self.loss_of(&counters, missed, delivered)
    }

    fn bytes(&self) -> usize {
        lock(&self.store).bytes() + self.reader.bytes() + self.last().map_or(0, |last| last.folded_bytes())
    }

    fn release(&self) {
        lock(&self.live).take();
        self.reader.ended();
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl ProbeSource {
    fn shape(&self, last: Last, seconds: f64, page: &Page) -> Snapshot {
        let mut notes = self.notes(&last, page);
        let (report, mut delivered) = match last.found {
            Ok(found) => {
                notes.extend_from_slice(&found.notes);
                (found.report.clone(), found.delivered)
            }
            Err(error) => {
                notes.push(format!("the report could not be read: {error}"));
                (None, 0)
            }
        };
        let mut snapshot = Snapshot { report, ..Snapshot::default() };
        if self.sends_events {
            let (events, next, left) = self.events_page(page);
            if snapshot.report.is_none() {
                delivered = events.rows_total;
            }
            (snapshot.events, snapshot.events_next, snapshot.events_left) = (Some(events), Some(next), left);
        }
        snapshot.loss = self.loss_of(&last.counters, last.missed, delivered);
        let seen = if self.counts.is_empty() { delivered } else { last.counters.get(Counter::Seen) };
        let cost = lock(&self.state).cost;
        snapshot.overhead = Some(account::overhead(cost, self.cost_ns, seen, seconds));
        snapshot.notes = notes;
        snapshot
    }
}

/// The rows of records until more of them could not be shown in so many bytes of JSON, and of how many records: as a map a row takes
/// several times what it takes as JSON.
fn rows_within<R>(most_bytes: usize, records: &[R], row: impl Fn(&R) -> Option<Row>) -> (Vec<Row>, usize) {
    let (mut rows, mut bytes, mut looked_at) = (Vec::new(), 0, 0);
    for record in records {
        if bytes > most_bytes {
            break;
        }
        looked_at += 1;
        if let Some(row) = row(record) {
            bytes += least_json(&row);
            rows.push(row);
        }
    }
    (rows, looked_at)
}

/// How many bytes a row takes as JSON at least.
fn least_json(row: &Row) -> usize {
    row.iter().map(|(name, value)| name.len() + 4 + value.as_str().map_or(1, |text| text.len() + 2)).sum()
}

fn evicted_note(evicted: u64, page: &Page) -> Option<String> {
    let skipped = evicted.saturating_sub(page.event);
    (skipped > 0).then(|| {
        format!("{skipped} older events are no longer kept ({} MB of memory for an execution); they are counted in rows_total", STORE_BYTES >> 20)
    })
}

/// Opens a window of run-time statistics now and then, and has the governor judge what it showed.
struct Sampler {
    next: Option<Instant>,
    open: Option<Window>,
    /// When the last window closed, and how long this thread had run by then.
    last: (Instant, Duration),
}

/// An open window: the sample, and what had been seen when it was opened. Without a sample, where the kernel does not allow one, the
/// cost is estimated from what is seen.
struct Window {
    sample: Option<Sample>,
    opened: Instant,
    seen: u64,
}

impl Sampler {
    fn new(length: Duration) -> Self {
        let first = (length >= SHORTEST_SAMPLED).then(|| Instant::now() + (length / 4).min(FIRST_SAMPLE));
        Self { next: first, open: None, last: (Instant::now(), thread_time()) }
    }

    /// A pause, shortened to the next step.
    fn limit(&self, pause: Duration) -> Duration {
        let until = match (&self.open, self.next) {
            (Some(window), _) => SAMPLE.saturating_sub(window.opened.elapsed()),
            (None, Some(next)) => next.saturating_duration_since(Instant::now()),
            (None, None) => pause,
        };
        pause.min(until.max(Duration::from_millis(1)))
    }

    /// True if it costs too much and must end.
    fn step(&mut self, source: &ProbeSource) -> bool {
        let live = lock(&source.live);
        let Some(attached) = live.as_ref() else { return false };
        let seen = || attached.counters().map_or(0, |counters| counters.get(Counter::Seen));
        if self.open.as_ref().is_some_and(|window| window.opened.elapsed() >= SAMPLE) {
            let Some(window) = self.open.take() else { return false };
            let (elapsed, seen) = (window.opened.elapsed(), seen() - window.seen);
            let cost = window.sample.and_then(|sample| sample.end(attached.programs(), source.counts));
            let ns = cost.map_or(source.cost_ns * seen as f64, |cost| cost.ns);
            let percent = ns / elapsed.as_nanos() as f64 * 100.0 + self.own_percent();
            let mut state = lock(&source.state);
            state.cost = cost.map(|cost| (cost, seen)).or(state.cost);
            let end = state.governor.judge(percent);
            self.next = Some(Instant::now() + state.governor.pause());
            return end;
        }
        if self.open.is_none() && self.next.is_some_and(|next| next <= Instant::now()) {
            let seen = seen();
            let sample = Sample::begin(attached.programs());
            self.open = Some(Window { sample, opened: Instant::now(), seen });
        }
        false
    }

    /// What this thread has used since the last window, in percent of one CPU.
    fn own_percent(&mut self) -> f64 {
        let now = (Instant::now(), thread_time());
        let used = now.1.saturating_sub(self.last.1).as_secs_f64();
        let percent = used / (now.0 - self.last.0).as_secs_f64().max(1e-3) * 100.0;
        self.last = now;
        percent
    }
}

/// CPU time of the calling thread.
fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn no_more_rows_are_made_than_have_room_and_none_is_skipped() {
        let row = |number: &u64| {
            (*number != 3).then(|| Row::from_iter([("n".into(), json!(number)), ("word".into(), json!("quoted \""))]))
        };
        let records: Vec<u64> = (0..100).collect();
        let (rows, looked_at) = rows_within(200, &records, row);
        let json = serde_json::to_string(&rows).unwrap();
        assert!(json.len() > 200 && looked_at < 12, "{looked_at} rows: {json}");
        assert_eq!(rows.len(), looked_at - 1, "a record that is no row is looked at");
        assert_eq!(
            rows_within(0, &records, row),
            (rows[..1].to_vec(), 1),
            "one is always made, to say how large it is"
        );
        assert_eq!(rows_within(usize::MAX, &records, row).1, 100);
        for row in &rows {
            assert!(least_json(row) <= serde_json::to_string(row).unwrap().len());
        }
    }
}
