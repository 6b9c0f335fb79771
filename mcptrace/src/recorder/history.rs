//! Answers out of what was recorded: one metric over time, all of them at a glance, two windows compared, or a query in SQL.
//!
//! Amounts become rates by the seconds in which they were recorded, percentiles come out of merged distributions, and every answer says
//! what of its window was not recorded.

mod compare;
pub mod coverage;
mod grouping;
pub mod past;
pub mod range;
pub mod reader;
mod rows;
mod sql;
pub mod text;

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    time::SystemTime,
};

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use self::{
    coverage::{Coverage, Grid, Recorded},
    grouping::Grouping,
    range::{MOST, Span, stamp, usual_step},
    reader::{Known, Mark, Reader, whole_spans},
    rows::{digits, points, table},
};
use super::{
    metrics,
    status::{self, Status},
    store::{
        self,
        body::Cell,
        schema::{Tier, kind_word},
        writer::SPREAD,
    },
    tick::Kind,
};
use crate::report::{AnyReport, Field, Report, Row, Table, Window};

/// Groups that a metric is divided into if nothing is said.
pub const DEFAULT_TOP: usize = 10;
/// The name of rates that are by the time in which a duty cycle looked: an estimate of all.
const SCALED: &str = "scaled_per_second";
/// Groups that may be asked for.
pub const MOST_TOP: usize = 200;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// The metric; empty for all.
    pub metric: String,
    /// Begin of the window.
    pub from: String,
    /// End of the window.
    pub to: String,
    /// Length of a step.
    pub step: String,
    /// Labels to divide by, with commas between them; empty for all labels, `none` for none.
    pub group_by: String,
    /// `label=glob`, with commas between them.
    pub filter: String,
    /// Another window, to be told what changed: `previous`, when it begins, or `FROM..TO`.
    pub compare_to: String,
    /// Groups that are shown.
    pub top: usize,
    /// A query in SQL instead of all that.
    pub sql: String,
}

impl Default for Query {
    fn default() -> Self {
        let empty = String::new;
        let (metric, from, to, step, group_by) = (empty(), empty(), empty(), empty(), empty());
        Self { metric, from, to, step, group_by, filter: empty(), compare_to: empty(), top: DEFAULT_TOP, sql: empty() }
    }
}

impl Query {
    /// That nothing is asked which a query in SQL would pass over.
    fn nothing_beside_sql(&self) -> Result<(), HistoryError> {
        let Self { metric, from, to, step, group_by, filter, compare_to, top: _, sql: _ } = self;
        let others = [metric, from, to, step, group_by, filter, compare_to];
        if others.iter().all(|other| other.is_empty()) {
            return Ok(());
        }
        Err(HistoryError::Sql("sql goes alone: say metric, times and labels in its WHERE".to_owned()))
    }
}

/// What is answered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct Answer {
    /// The metric.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub metric: String,
    /// Unit of its values.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub unit: String,
    /// `sum`, `gauge` or `distribution`.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub kind: &'static str,
    /// The window that is answered for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Window")]
    pub window: Option<Window>,
    /// The window that it is compared with.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Window")]
    pub compared_with: Option<Window>,
    /// Length of a step of `points`, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i64")]
    pub step_seconds: Option<i64>,
    /// The answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "AnyReport")]
    pub report: Option<Report>,
    /// The rows over time: one value for each step from the window's start on, null where nothing was recorded.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub points: Vec<Row>,
    /// What of the window is recorded.
    pub coverage: Vec<Coverage>,
    /// What a reader must know to not misread it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// Nothing was ever recorded there.
    #[error("there is no history at {}: nothing was recorded. Start the recorder with `mcptrace daemon`; \
        if it keeps its files elsewhere, set MCPTRACE_STATE to that folder", .0.display())]
    Absent(PathBuf),
    /// It is there, and its first second is not.
    #[error("the history has just begun, and nothing is recorded yet: ask again in some seconds")]
    Empty,
    /// It is there and cannot be read.
    #[error("cannot read the history {}: {error}", file.display())]
    Unreadable {
        /// Which.
        file: PathBuf,
        /// Why.
        error: String,
    },
    /// No such metric.
    #[error("there is no metric `{name}` in the history; without a metric all are listed")]
    UnknownMetric {
        /// As given.
        name: String,
        /// The nearest known name.
        did_you_mean: Option<String>,
    },
    /// No such label.
    #[error("{metric} has no label `{name}`; it has {known}")]
    UnknownLabel {
        /// The metric.
        metric: String,
        /// As given.
        name: String,
        /// What it has.
        known: String,
        /// The nearest known name.
        did_you_mean: Option<String>,
    },
    /// The window or the step does not do.
    #[error("{0}")]
    Range(String),
    /// The query in SQL does not do.
    #[error("{0}")]
    Sql(String),
    /// SQLite says no.
    #[error("the history cannot be read: {0}")]
    Sqlite(#[from] rusqlite::Error),
}

impl HistoryError {
    /// One word for programs.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Absent(_) | Self::Empty => "no_history",
            Self::Unreadable { .. } | Self::Sqlite(_) => "unreadable_history",
            Self::UnknownMetric { .. } => "unknown_metric",
            Self::UnknownLabel { .. } => "unknown_label",
            Self::Range(_) => "invalid_range",
            Self::Sql(_) => "invalid_sql",
        }
    }

    /// The nearest known name, where there is one.
    pub fn did_you_mean(&self) -> Option<&str> {
        match self {
            Self::UnknownMetric { did_you_mean, .. } | Self::UnknownLabel { did_you_mean, .. } => {
                did_you_mean.as_deref()
            }
            _ => None,
        }
    }
}

/// Answers a question out of the history of a folder.
pub fn ask(folder: &Path, query: &Query) -> Result<Answer, HistoryError> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    ask_at(folder, query, since.map_or(0, |since| since.as_secs() as i64))
}

/// Answers a question as if it were that second since 1970.
pub fn ask_at(folder: &Path, query: &Query, second: i64) -> Result<Answer, HistoryError> {
    if !query.sql.is_empty() {
        query.nothing_beside_sql()?;
        return sql::ask(folder, &query.sql, second);
    }
    let reader = Reader::open(folder)?;
    let now = Now::of(folder, &reader, second)?;
    if !query.compare_to.is_empty() {
        return reader.at_once(|reader| compare::ask(reader, query, &now));
    }
    reader.at_once(|reader| if query.metric.is_empty() { all(reader, query, &now) } else { one(reader, query, &now) })
}

/// What time it is, and how far it was recorded.
#[derive(Clone, Debug)]
struct Now {
    second: i64,
    /// Up to when something can have been recorded.
    until: i64,
    notes: Vec<String>,
    /// Why a recorder that runs keeps nothing at present.
    stopped: Option<Mark>,
}

/// The last tick is this old at most while it is recorded, in seconds.
const FRESH: i64 = 5;

impl Now {
    fn of(folder: &Path, reader: &Reader, second: i64) -> Result<Self, HistoryError> {
        let latest = reader.latest()?;
        let fresh = latest.is_some_and(|latest| (second - latest).abs() <= FRESH);
        let last = latest.map_or_else(|| "never".to_owned(), stamp);
        let mut notes = Vec::new();
        // What other processes are told is some seconds old: what was kept since then says that it goes on.
        let stopped = status::read(folder).and_then(|status| stopped(&status, second));
        let stopped = stopped.filter(|mark| latest.is_none_or(|latest| latest as f64 <= mark.at - mark.seconds + 1.0));
        if !store::is_recorded(&super::place::file(folder)) {
            notes.push(format!("the recorder is not running (last record: {last}); start it with `mcptrace daemon`"));
        } else if let Some(stopped) = &stopped {
            notes.push(format!("the recorder runs but keeps nothing (last record: {last}): {}", stopped.text));
        } else if !fresh {
            notes.push(format!("the recorder runs but records nothing (last record: {last}): its log says why"));
        }
        let until = latest.filter(|_| fresh && stopped.is_none()).map_or(second, |latest| latest + 1);
        Ok(Self { second, until, notes, stopped })
    }

    /// What happened to the recorder in a window, up to now.
    fn marks(&self, reader: &Reader, span: Span) -> Result<Vec<Mark>, HistoryError> {
        let mut marks = reader.marks(span)?;
        marks.extend(self.stopped.clone());
        Ok(marks)
    }
}

/// The time in which a recorder has kept nothing until now, as the mark that it writes afterwards.
fn stopped(status: &Status, second: i64) -> Option<Mark> {
    let kind = status.stopped_by.clone()?.into_owned();
    let (at, since) = (second as f64, status.stopped_ns? as f64 / 1e9);
    Some(Mark { at, kind, seconds: (at - since).max(0.0), text: status.error.clone().unwrap_or_default() })
}

/// A question as it can be answered.
struct Plan {
    tier: Tier,
    grid: Grid,
    notes: Vec<String>,
}

impl Plan {
    fn new(reader: &Reader, span: Span, step: &str, now: &Now) -> Result<Self, HistoryError> {
        let asked = if step.is_empty() { usual_step(span.seconds()) } else { range::length(step)? };
        if asked < 1 {
            return Err(HistoryError::Range("a step is 1s or longer".to_owned()));
        }
        Self::stepped(reader, span, asked, now)
    }

    /// One step over all of it.
    fn whole(reader: &Reader, span: Span, now: &Now) -> Result<Self, HistoryError> {
        let mut plan = Self::stepped(reader, span, reader::width(fine(span), |_| true), now)?;
        plan.grid.step = plan.grid.span.seconds();
        Ok(plan)
    }

    fn stepped(reader: &Reader, span: Span, asked: i64, now: &Now) -> Result<Self, HistoryError> {
        // So short that steps and ends of the window are where they were asked for.
        let width = reader::width(asked.min(fine(span)), |width| asked % width == 0);
        let (tier, span) = reader.choose(span, width, now.second)?;
        let step = whole_spans(&tier, asked);
        let mut notes = Vec::new();
        if step > asked {
            notes.push(format!(
                "what is older is kept in steps of {} s: a step is {step} s instead of {asked} s",
                tier.width
            ));
        }
        let grid = Grid { span, step };
        if grid.steps() as i64 > MOST {
            let least = span.seconds() / MOST + 1;
            return Err(HistoryError::Range(format!(
                "that makes {} steps of {step} s: give a step of {least}s or more",
                grid.steps()
            )));
        }
        Ok(Self { tier, grid, notes })
    }

    fn window(&self) -> Window {
        let Span { from, to } = self.grid.span;
        Window { start: stamp(from), end: Some(stamp(to)), seconds: (to - from) as f64 }
    }
}

/// A step by which the ends of a window move little.
fn fine(span: Span) -> i64 {
    (span.seconds() / 60).max(1)
}

/// One metric over time.
fn one(reader: &Reader, query: &Query, now: &Now) -> Result<Answer, HistoryError> {
    let metric = reader.metric(&query.metric)?;
    let grouping = Grouping::new(reader, &metric, &query.group_by, &query.filter)?;
    let span = Span::asked(&query.from, &query.to, now.second)?;
    let plan = Plan::new(reader, span, &query.step, now)?;
    let marks = now.marks(reader, plan.grid.span)?;
    let groups = coverage::recorded(reader, &plan.tier, plan.grid)?;
    let recorded = of_group(&groups, &metric.group);
    let (ranked, damaged) = ranked(reader, &metric, &grouping, &plan)?;
    let top = query.top.clamp(1, MOST_TOP);
    let steps = steps(reader, &metric, &grouping, &plan, &ranked[..top.min(ranked.len())])?;
    let table = table(&metric, &grouping, &ranked, top, &recorded);
    let shown = ranked.iter().take(top).map(|(key, _)| key).zip(&steps);
    let points = shown.map(|(key, steps)| points(&grouping.row(key), metric.kind, steps, &recorded)).collect();
    let coverage = Coverage::of(&metric.group, &recorded, plan.grid, &marks, now.until);
    let mut notes = notes(&metric, &grouping, &coverage, &marks, damaged);
    if let Some(unfit) = &grouping.unfit {
        notes.push(unfit.clone());
    } else if ranked.is_empty() && coverage.recorded_seconds > 0.0 {
        notes.push("it was recorded in this window, and none of it came about".to_owned());
    }
    notes.extend(plan.notes.iter().chain(&now.notes).cloned());
    Ok(Answer {
        metric: metric.name.clone(),
        unit: metric.unit.clone(),
        kind: kind_word(metric.kind),
        window: Some(plan.window()),
        compared_with: None,
        step_seconds: Some(plan.grid.step),
        report: Some(Report::Table(table)),
        points,
        coverage: vec![coverage],
        notes,
    })
}

/// What was recorded of a group. Metrics of the recorder itself are recorded with any, and so is what is always read: in files of the time when
/// that was no group, too.
fn of_group(groups: &HashMap<String, Recorded>, group: &str) -> Recorded {
    let is_always = group == "recorder" || group == metrics::PROC;
    let most = || groups.values().max_by(|a, b| a.looked().total_cmp(&b.looked()));
    let own = if is_always { most() } else { groups.get(group) };
    own.cloned().unwrap_or_default()
}

type Ranked = Vec<(Vec<String>, Cell)>;

/// The groups of a metric over the whole window, the largest first, and how many rows are damaged.
fn ranked(reader: &Reader, metric: &Known, grouping: &Grouping, plan: &Plan) -> Result<(Ranked, u64), HistoryError> {
    let mut series: HashMap<u32, Cell> = HashMap::new();
    let damaged = reader.scan(metric, &plan.tier, plan.grid.span, |_, id, cell| merge(&mut series, id, cell))?;
    let mut groups: BTreeMap<Vec<String>, Cell> = BTreeMap::new();
    for (id, cell) in series {
        if let Some(key) = grouping.key(id) {
            match groups.get_mut(&key) {
                Some(own) => own.merge(&cell),
                None => drop(groups.insert(key, cell)),
            }
        }
    }
    let mut ranked: Ranked = groups.into_iter().collect();
    ranked.sort_by(|a, b| b.1.weight().total_cmp(&a.1.weight()));
    Ok((ranked, damaged))
}

fn merge(cells: &mut HashMap<u32, Cell>, id: u32, cell: Cell) {
    match cells.get_mut(&id) {
        Some(own) => own.merge(&cell),
        None => drop(cells.insert(id, cell)),
    }
}

/// The steps of some groups.
fn steps(
    reader: &Reader,
    metric: &Known,
    grouping: &Grouping,
    plan: &Plan,
    groups: &[(Vec<String>, Cell)],
) -> Result<Vec<Vec<Option<Cell>>>, HistoryError> {
    let places: HashMap<&[String], usize> =
        groups.iter().enumerate().map(|(at, (key, _))| (key.as_slice(), at)).collect();
    let mut steps = vec![vec![None; plan.grid.steps()]; groups.len()];
    reader.scan(metric, &plan.tier, plan.grid.span, |second, id, cell| {
        let place = grouping.key(id).and_then(|key| places.get(key.as_slice()).copied());
        if let (Some(place), Some(at)) = (place, plan.grid.at(second)) {
            let own: &mut Option<Cell> = &mut steps[place][at];
            match own {
                Some(own) => own.merge(&cell),
                None => *own = Some(cell),
            }
        }
    })?;
    Ok(steps)
}

fn notes(metric: &Known, grouping: &Grouping, coverage: &Coverage, marks: &[Mark], damaged: u64) -> Vec<String> {
    let mut notes = Vec::new();
    if coverage.recorded_seconds == 0.0 {
        notes.push("nothing was recorded in this window: no value does not mean that nothing happened".to_owned());
    }
    if let Some(share) = coverage.looked_share.filter(|_| metric.kind != Kind::Gauge) {
        let percent = digits(share * 100.0);
        notes.push(format!("a duty cycle looked for {percent} % of the time: totals and per_second are what was seen, scaled_per_second (all that points have) estimates all"));
    }
    if metric.kind == Kind::Gauge && grouping.narrower {
        notes.push("levels of several series are averaged, not added".to_owned());
    }
    for mark in marks.iter().filter(|mark| mark.kind == "clock_jump" && mark.seconds < 0.0).take(3) {
        let (at, back) = (stamp(mark.at as i64), digits(-mark.seconds));
        notes.push(format!("at {at} the clock was set back by {back} s: what follows stands beside what was recorded there before, rates stay right"));
    }
    for mark in marks.iter().filter(|mark| mark.kind == SPREAD).take(3) {
        notes.push(format!("{} s before {} were {}", digits(mark.seconds), stamp(mark.at as i64), mark.text));
    }
    if damaged > 0 {
        notes.push(format!("{damaged} rows of the file are damaged and left out"));
    }
    notes
}

/// All metrics at a glance.
fn all(reader: &Reader, query: &Query, now: &Now) -> Result<Answer, HistoryError> {
    let from = if query.from.is_empty() { "-1m" } else { &query.from };
    let span = Span::asked(from, &query.to, now.second)?;
    let plan = Plan::whole(reader, span, now)?;
    let groups = coverage::recorded(reader, &plan.tier, plan.grid)?;
    let marks = now.marks(reader, plan.grid.span)?;
    let mut rows = Vec::new();
    let mut coverage: Vec<Coverage> = Vec::new();
    for metric in reader.metrics()? {
        let recorded = of_group(&groups, &metric.group);
        if !coverage.iter().any(|one| one.group == metric.group) {
            coverage.push(Coverage::of(&metric.group, &recorded, plan.grid, &marks, now.until));
        }
        rows.push(glance(reader, &metric, &plan, &recorded)?);
    }
    let columns = ["kind", "value", "is", "unit", "labels", "help"].map(|name| Field::new(name, "")).to_vec();
    let rows_total = rows.len() as u64;
    let table = Table { key: vec!["metric".into()], columns, rows, others: None, rows_total };
    Ok(Answer {
        window: Some(plan.window()),
        report: Some(Report::Table(table)),
        coverage,
        notes: now.notes.clone(),
        ..Answer::default()
    })
}

/// A metric in one row: a rate, an average or the 99th percentile.
fn glance(reader: &Reader, metric: &Known, plan: &Plan, recorded: &Recorded) -> Result<Row, HistoryError> {
    let mut all: Option<Cell> = None;
    reader.scan(metric, &plan.tier, plan.grid.span, |_, _, cell| match &mut all {
        Some(own) => own.merge(&cell),
        None => all = Some(cell),
    })?;
    let seconds = recorded.looked();
    let rate = if recorded.is_whole() { "per_second" } else { SCALED };
    let (is, value) = match (metric.kind, &all) {
        _ if seconds == 0.0 => ("", Value::Null),
        (Kind::Sum, Some(Cell::Sum(amount))) => (rate, json!(digits(*amount as f64 / seconds))),
        (Kind::Sum, _) => (rate, json!(0)),
        (Kind::Gauge, Some(Cell::Gauge(level))) => ("average", json!(digits(level.average))),
        (Kind::Distribution, Some(Cell::Distribution(values))) if values.count > 0 => {
            ("p99", json!(values.whole().percentile(0.99)))
        }
        _ => ("", Value::Null),
    };
    let mut row = Row::from_iter([("metric".to_owned(), Value::from(metric.name.as_str()))]);
    row.insert("kind".into(), kind_word(metric.kind).into());
    if !value.is_null() {
        row.insert("value".into(), value);
        row.insert("is".into(), is.into());
    }
    row.insert("unit".into(), metric.unit.as_str().into());
    row.insert("labels".into(), metric.labels.join(",").into());
    row.insert("help".into(), metric.help.as_str().into());
    Ok(row)
}

/// An answer as JSON of at most so many bytes: rows over time go first, then rows; what went is said.
pub fn fit(mut answer: Answer, most_bytes: usize) -> Answer {
    let size = |answer: &Answer| serde_json::to_string(answer).map_or(0, |text| text.len());
    let (points, rows, groups) = (answer.points.len(), rows_of(&answer), answer.coverage.len());
    let mut note = None;
    while size(&answer) + note.as_ref().map_or(0, String::len) > most_bytes {
        let table = match &mut answer.report {
            Some(Report::Table(table)) => Some(table),
            _ => None,
        };
        if answer.points.len() > 1
            || (answer.points.len() == 1 && table.as_ref().is_none_or(|table| table.rows.len() <= 1))
        {
            answer.points.truncate(answer.points.len() / 2);
        } else if let Some(table) = table.filter(|table| !table.rows.is_empty()) {
            table.rows.truncate(table.rows.len() / 2);
        } else if !answer.coverage.is_empty() {
            answer.coverage.clear();
        } else {
            break;
        }
        let left = (points - answer.points.len(), rows - rows_of(&answer));
        let coverage = if answer.coverage.is_empty() && groups > 0 { ", what was not recorded (coverage)" } else { "" };
        note = Some(format!(
            "left out to fit max_bytes: {} rows of points, {} rows of the table{coverage}; ask with a larger one, a longer step or a smaller top",
            left.0, left.1
        ));
    }
    answer.notes.extend(note);
    answer
}

fn rows_of(answer: &Answer) -> usize {
    crate::report::view::rows_of(answer.report.as_ref())
}
