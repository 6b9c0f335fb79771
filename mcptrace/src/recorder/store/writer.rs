//! The open file as the recorder writes it.

use std::{
    collections::BTreeMap,
    fs::Metadata,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};

use super::{
    Limits, WriteError,
    body::{self, Cell, Cells, Level, Sparse, add},
    prune,
    rollup::{self, Rollup},
    schema::{self, METRIC_BITS},
    series::{self, Interned},
    timeline::{Placed, Timeline},
};
use crate::{
    recorder::tick::{Kind, Metric, Tick, Value},
    text::untrusted,
};

/// Every so many ticks what was written is forced to the disk.
const SYNC_TICKS: i64 = 5;
/// Every so many ticks it is looked what may go.
const SWEEP_TICKS: i64 = 60;
/// Every so many ticks it is looked whether the file is whole, since what is old is not touched otherwise. Takes some 2 ms a megabyte.
const CHECK_TICKS: i64 = 3600;
/// For how many ticks a clock must go on as it is, after the start and after it was set, before it tells what is old: many a machine starts
/// with one that is decades off, and a wrong clock of some minutes must not cost a month.
const TRUSTED_TICKS: i64 = 3600;
/// The clock was set by so much that its age of things changes.
const FAR_NS: i64 = 60_000_000_000;
/// The longest reason, in bytes.
const LONGEST_WHY: usize = 80;
/// The longest fields of an event, in bytes of JSON.
const LONGEST_EVENT: usize = 4096;
/// The mark of a tick that was read late and spread over its seconds. Nothing lacks there.
pub const SPREAD: &str = "spread";
/// Sleep of the host that is worth a mark.
const SLEEP_NS: u64 = 500_000_000;

/// What the recorder itself keeps of the time: see the view `coverage`.
pub const COVERAGE: Metric = Metric {
    name: "recorder_coverage_us",
    unit: "us",
    kind: Kind::Sum,
    group: "recorder",
    labels: &["group", "why"],
    help: "How much of the time a group of metrics was recorded; with a reason what was not",
};

/// Events that are not among those kept one by one.
pub const EVENTS_LOST: Metric = Metric {
    name: "recorder_events_lost",
    unit: "events",
    kind: Kind::Sum,
    group: "recorder",
    labels: &["kind"],
    help: "Events that came and had no room among those that are kept one by one",
};

/// The open file.
#[derive(Debug)]
pub struct Writer {
    file: PathBuf,
    /// What stood under that name when it was opened.
    opened: Option<Metadata>,
    connection: Connection,
    limits: Limits,
    interned: Interned,
    timeline: Timeline,
    rollups: Vec<Rollup>,
    /// The last tick that was written.
    seq: i64,
    swept: i64,
    checked: i64,
    /// The tick since which the clock goes on as it is.
    clock_since: i64,
}

impl Writer {
    /// Opens the file, makes or checks its tables, and takes up where the last process ended.
    pub fn open(file: &Path, limits: &Limits) -> Result<Self, WriteError> {
        super::private::begin(file);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(file, flags)?;
        set_up(&connection, limits)?;
        schema::prepare(&mut connection)?;
        check(&connection)?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let rollups = rollup::restored(&transaction)?;
        let seq = transaction.query_row("SELECT coalesce(max(seq), 0) FROM tick", [], |row| row.get(0))?;
        transaction.commit()?;
        let (interned, timeline) = (Interned::default(), Timeline::default());
        let file = file.to_path_buf();
        Ok(Self {
            opened: std::fs::metadata(&file).ok(),
            file,
            connection,
            limits: limits.clone(),
            interned,
            timeline,
            rollups,
            seq,
            swept: seq,
            checked: seq,
            clock_since: seq,
        })
    }

    /// Writes a tick. After an error what this value remembers is no longer what the file holds: open it anew.
    pub fn keep(&mut self, tick: &Tick, asleep_ns: u64) -> Result<(), WriteError> {
        let sync = if self.seq % SYNC_TICKS == 0 { "FULL" } else { "NORMAL" };
        self.connection.pragma_update(None, "synchronous", sync)?;
        let placed = self.timeline.place(tick.at_ns, tick.span_ns, asleep_ns);
        if placed.jump_ns.abs() >= FAR_NS {
            self.clock_since = self.seq;
        }
        let Self { connection, interned, rollups, seq, limits, .. } = self;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        marks(&transaction, tick, &placed)?;
        let mut metrics = metrics(&transaction, interned, tick, *seq + 1, limits)?;
        for part in 0..placed.seconds {
            *seq += 1;
            let own =
                if placed.seconds == 1 { std::mem::take(&mut metrics) } else { share(&metrics, part, placed.seconds) };
            let second = placed.first + i64::from(part);
            write_second(&transaction, (*seq, second), &own)?;
            for rollup in rollups.iter_mut() {
                rollup.take(&transaction, (*seq, second), &own)?;
            }
        }
        events(&transaction, tick)?;
        transaction.commit()?;
        self.sweep(placed.first)
    }

    /// Whether the file is still there: what goes into one that was removed or replaced, nobody reads.
    pub fn is_in_place(&self) -> bool {
        let place = |found: &Metadata| (found.dev(), found.ino());
        std::fs::metadata(&self.file).ok().as_ref().map(place) == self.opened.as_ref().map(place)
    }

    /// When the file was begun, as far as that is known.
    pub fn began(&self) -> Option<SystemTime> {
        self.opened.as_ref()?.created().ok()
    }

    /// Notes something that happened to the recorder.
    pub fn mark(&self, at_ns: u64, kind: &str, seconds: f64, text: &str) -> Result<(), WriteError> {
        mark(&self.connection, at_ns, kind, seconds, text)
    }

    /// Ends it cleanly: everything is in the one file.
    pub fn close(self) -> Result<(), WriteError> {
        self.connection.close().map_err(|(_, error)| error.into())
    }

    fn sweep(&mut self, now: i64) -> Result<(), WriteError> {
        if self.seq - self.swept < SWEEP_TICKS {
            return Ok(());
        }
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        self.interned.sweep(&transaction, self.seq, self.swept)?;
        series::forget(&transaction, self.seq, self.limits.series)?;
        let now = (self.seq - self.clock_since >= TRUSTED_TICKS).then_some(now);
        prune::by_age(&transaction, &self.limits, self.seq, now)?;
        prune::by_size(&transaction, &self.limits, self.seq)?;
        transaction.commit()?;
        self.swept = self.seq;
        if self.seq - self.checked >= CHECK_TICKS {
            self.checked = self.seq;
            // With eyes of its own: this connection remembers what it has written.
            check(&Connection::open_with_flags(&self.file, OpenFlags::SQLITE_OPEN_READ_ONLY)?)?;
        }
        Ok(())
    }
}

fn set_up(connection: &Connection, limits: &Limits) -> rusqlite::Result<()> {
    connection.busy_timeout(Duration::from_secs(1))?;
    connection.set_prepared_statement_cache_capacity(64);
    connection.pragma_update(None, "page_size", 4096)?;
    connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))?;
    connection.pragma_update(None, "journal_size_limit", 8 << 20)?;
    connection.pragma_update(None, "cache_size", -2048)?;
    connection.pragma_update_and_check(None, "max_page_count", (limits.bytes / 4096) as i64, |_| Ok(()))
}

/// Looks whether the file is whole.
fn check(connection: &Connection) -> Result<(), WriteError> {
    let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if found == "ok" { Ok(()) } else { Err(WriteError::Damaged(found)) }
}

fn marks(connection: &Connection, tick: &Tick, placed: &Placed) -> Result<(), WriteError> {
    if placed.seconds > 1 {
        let text = "read late: what came about meanwhile is spread evenly, levels are those of the end";
        mark(connection, tick.at_ns, SPREAD, tick.span_ns as f64 / 1e9, text)?;
    }
    // It came about before the span that the tick is about, as far as is known.
    let before = tick.at_ns.saturating_sub(tick.span_ns);
    if placed.slept_ns >= SLEEP_NS {
        mark(connection, before, "suspend", placed.slept_ns as f64 / 1e9, "the host slept")?;
    }
    if placed.jump_ns != 0 {
        mark(connection, before, "clock_jump", placed.jump_ns as f64 / 1e9, "the clock was set")?;
    }
    if placed.seconds == 0 {
        let text = "nothing was read for so long that nobody knows when in it what happened";
        mark(connection, tick.at_ns, "late", tick.span_ns as f64 / 1e9, text)?;
    }
    Ok(())
}

fn mark(connection: &Connection, at_ns: u64, kind: &str, seconds: f64, text: &str) -> Result<(), WriteError> {
    let sql = "INSERT INTO mark_log (at_ns, kind, seconds, text) VALUES (?, ?, ?, ?)";
    connection.execute(sql, (at_ns as i64, kind, seconds, text))?;
    Ok(())
}

/// The values of a tick by metric and series.
fn metrics(
    transaction: &Transaction<'_>,
    interned: &mut Interned,
    tick: &Tick,
    seq: i64,
    limits: &Limits,
) -> rusqlite::Result<BTreeMap<u32, Cells>> {
    let mut metrics: BTreeMap<u32, Cells> = BTreeMap::new();
    let mut put = |metric: &Metric, labels: &[&str], cell: Cell| -> rusqlite::Result<()> {
        let id = interned.metric(transaction, metric)?;
        let series = interned.series(transaction, (id, metric), labels, (seq, limits.fresh_series))?;
        add(metrics.entry(id).or_default(), series, &cell);
        Ok(())
    };
    for sample in &tick.samples {
        if let Some(cell) = cell(&sample.value, sample.metric.kind) {
            let labels: Vec<&str> = sample.labels.iter().map(AsRef::as_ref).collect();
            put(sample.metric, &labels, cell)?;
        }
    }
    let span_us = tick.span_ns / 1000;
    for one in &tick.coverage {
        let seen = (one.share.clamp(0.0, 1.0) * span_us as f64).round() as u64;
        if seen > 0 {
            put(&COVERAGE, &[one.group, ""], Cell::Sum(seen))?;
        }
        if seen < span_us {
            let why = untrusted(one.why.as_deref().unwrap_or("unknown").as_bytes(), LONGEST_WHY);
            put(&COVERAGE, &[one.group, &why], Cell::Sum(span_us - seen))?;
        }
    }
    for (kind, lost) in &tick.events_lost {
        put(&EVENTS_LOST, &[kind], Cell::Sum(*lost))?;
    }
    Ok(metrics)
}

/// A value as it is kept; nothing if it is not a number or not of the metric's kind.
fn cell(value: &Value, kind: Kind) -> Option<Cell> {
    match (value, kind) {
        (Value::Sum(amount), Kind::Sum) => Some(Cell::Sum(*amount)),
        (Value::Gauge(level), Kind::Gauge) if level.is_finite() => Some(Cell::Gauge(Level::once(*level))),
        (Value::Distribution(values), Kind::Distribution) => Some(Cell::Distribution(Box::new(Sparse::of(values)))),
        _ => None,
    }
}

/// What of a tick belongs to one of its seconds: an even part of amounts and values, and the level of its end.
fn share(metrics: &BTreeMap<u32, Cells>, part: u32, parts: u32) -> BTreeMap<u32, Cells> {
    let cells = |cells: &Cells| {
        cells.iter().filter_map(|(series, cell)| Some((*series, part_of(cell, part, parts)?))).collect::<Cells>()
    };
    metrics.iter().map(|(metric, own)| (*metric, cells(own))).filter(|(_, cells)| !cells.is_empty()).collect()
}

fn part_of(cell: &Cell, part: u32, parts: u32) -> Option<Cell> {
    let even = |amount: u64| {
        let until = |part: u32| (u128::from(amount) * u128::from(part) / u128::from(parts)) as u64;
        until(part + 1) - until(part)
    };
    match cell {
        Cell::Sum(amount) => Some(Cell::Sum(even(*amount))),
        Cell::Gauge(level) => Some(Cell::Gauge(*level)),
        Cell::Distribution(all) => {
            let part = all.part(part, parts);
            (part.count > 0).then(|| Cell::Distribution(Box::new(part)))
        }
    }
}

fn write_second(
    transaction: &Transaction<'_>,
    (seq, second): (i64, i64),
    metrics: &BTreeMap<u32, Cells>,
) -> rusqlite::Result<()> {
    transaction.prepare_cached("INSERT INTO tick VALUES (?, ?)")?.execute((seq, second))?;
    let mut insert = transaction.prepare_cached("INSERT INTO tier_1 VALUES (?, ?)")?;
    for (metric, cells) in metrics {
        insert.execute(((seq << METRIC_BITS) + i64::from(*metric), body::written(cells)))?;
    }
    Ok(())
}

fn events(transaction: &Transaction<'_>, tick: &Tick) -> rusqlite::Result<()> {
    let mut insert = transaction.prepare_cached("INSERT INTO event_log (at_ns, kind, fields) VALUES (?, ?, ?)")?;
    for event in &tick.events {
        let fields = serde_json::to_string(&event.fields).unwrap_or_default();
        let fields = if fields.len() > LONGEST_EVENT { "{}" } else { &fields };
        insert.execute((event.at_ns as i64, event.kind, fields))?;
    }
    Ok(())
}
