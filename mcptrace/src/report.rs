//! What an execution returns: one envelope, four shapes.
//!
//! Everything a probe or a script finds is one of [`Table`], [`Histogram`], [`Events`] or [`Stacks`]; the command line,
//! the tools and the resources show all of them through the same few functions. This module is pure.

pub mod cursor;
pub mod flamegraph;
pub mod text;
pub mod view;

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One row of a table or one event: field name to value, in the order of the report's columns or fields.
pub type Row = Map<String, Value>;

/// One of the four shapes of a result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "shape", rename_all = "snake_case")]
pub enum Report {
    /// Counters by key.
    Table(Table),
    /// Distributions by key.
    Histogram(Histogram),
    /// Single events, oldest first.
    Events(Events),
    /// Call stacks with a weight.
    Stacks(Stacks),
}

/// A column of a [`Table`] or a field of [`Events`]: its name, unit and meaning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Field {
    /// The name under which the value stands in each row.
    pub name: String,
    /// The unit of the value, where it has one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub unit: String,
}

impl Field {
    /// A field with a unit; an empty unit means that the value has none.
    pub fn new(name: impl Into<String>, unit: impl Into<String>) -> Self {
        Self { name: name.into(), unit: unit.into() }
    }
}

/// Counters by key: the top rows by the first column, everything else summed in `others`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Table {
    /// The fields of a row that name it; all others are columns.
    pub key: Vec<String>,
    /// The counters of each row.
    pub columns: Vec<Field>,
    /// The rows, largest first.
    pub rows: Vec<Row>,
    /// The columns summed over the rows that are not shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub others: Option<Row>,
    /// How many rows there are, shown or not.
    pub rows_total: u64,
}

/// Distributions by key, in log-linear buckets.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Histogram {
    /// The unit of every value, bound and percentile.
    pub unit: String,
    /// The fields of a series' `key`.
    pub key: Vec<String>,
    /// The largest relative error of a percentile, 0.0625 meaning 6.25 %.
    pub relative_error: f64,
    /// The series, most values first.
    pub series: Vec<Series>,
    /// How many series there are, shown or not.
    pub series_total: u64,
    /// All values of the series that are not shown, merged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub others: Option<Box<Rest>>,
}

/// What several distributions that are not shown come to: what can be told without their buckets.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Rest {
    /// How many values.
    pub count: u64,
    /// The smallest value.
    pub min: u64,
    /// The largest value.
    pub max: u64,
    /// The arithmetic mean.
    pub mean: f64,
    /// Further numbers, added up.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub also: Row,
}

impl From<&Series> for Rest {
    fn from(series: &Series) -> Self {
        let Series { count, min, max, mean, also, .. } = series;
        Self { count: *count, min: *min, max: *max, mean: *mean, also: also.clone() }
    }
}

/// One distribution.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Series {
    /// What this series is of.
    pub key: Row,
    /// How many values.
    pub count: u64,
    /// The smallest value.
    pub min: u64,
    /// The largest value.
    pub max: u64,
    /// The arithmetic mean.
    pub mean: f64,
    /// Half of the values are at most this.
    pub p50: u64,
    /// 90 % of the values are at most this.
    pub p90: u64,
    /// 99 % of the values are at most this.
    pub p99: u64,
    /// 99.9 % of the values are at most this.
    pub p999: u64,
    /// The non-empty buckets as `[low, high, count]`: values from `low` up to but not including `high`.
    pub buckets: Vec<(u64, u64, u64)>,
    /// Further numbers of the series, such as errors or bytes, each with its unit in the name.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub also: Row,
}

/// Single events, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Events {
    /// The fields of each row.
    pub fields: Vec<Field>,
    /// The events of this page.
    pub rows: Vec<Row>,
    /// How many events the report took in, shown or not.
    pub rows_total: u64,
    /// How many of the oldest events were let go because the report's memory was full.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub rows_evicted: u64,
}

/// Call stacks, heaviest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Stacks {
    /// The unit of every weight: `samples`, `ns`, `bytes`.
    pub unit: String,
    /// The sum of all weights.
    pub total: u64,
    /// How much of the weight is of stacks whose innermost function has no name, in percent.
    pub unknown_percent: f64,
    /// The functions with the most weight of their own.
    pub frames: Vec<FrameWeight>,
    /// How many functions there are, shown or not.
    #[serde(default)]
    pub frames_total: u64,
    /// The heaviest stacks, frames outermost first.
    pub stacks: Vec<Stack>,
    /// How many stacks there are, shown or not.
    #[serde(default)]
    pub stacks_total: u64,
    /// The resource with all stacks as folded text.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub folded_uri: String,
    /// The resource with all stacks as a picture.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub flamegraph_uri: String,
    /// All stacks as folded text. Not part of a reply: it is behind the URIs.
    #[serde(skip)]
    pub folded: Arc<str>,
}

/// The weight of one function over all stacks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FrameWeight {
    /// The function.
    pub frame: String,
    /// Weight of the stacks that end in it.
    #[serde(rename = "self")]
    pub self_weight: u64,
    /// Weight of the stacks that contain it.
    pub total: u64,
}

/// One call stack.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Stack {
    /// The frames, outermost first; those of the kernel end in `_[k]`.
    pub frames: Vec<String>,
    /// Its weight.
    pub value: u64,
    /// The command it belongs to.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub comm: String,
}

/// How far an execution has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It is attached and collecting.
    Running,
    /// Its time was up, or the script ended by itself.
    Completed,
    /// Somebody ended it before its time.
    Stopped,
    /// It ended with `error`.
    Failed,
}

impl Status {
    /// The word used in JSON and text.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }
}

/// Native probe or bpftrace script.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A native probe of the catalogue.
    Probe,
    /// A bpftrace program.
    Script,
}

/// When the execution collected.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Window {
    /// Start of collection, UTC, RFC 3339.
    pub start: String,
    /// End of collection, UTC; absent while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub end: Option<String>,
    /// Length so far, in seconds.
    pub seconds: f64,
}

/// What was seen by the kernel side and what of it did not reach the report.
///
/// `seen = delivered + sum(dropped)` when the execution has ended; the three are counted independently.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Loss {
    /// Events that passed the filters, counted in the kernel. Absent where the source cannot count them (scripts).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u64")]
    pub seen: Option<u64>,
    /// Events that are part of the report, counted where it was built. Absent where that cannot be counted (scripts).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u64")]
    pub delivered: Option<u64>,
    /// Events lost, by cause.
    pub dropped: std::collections::BTreeMap<String, u64>,
    /// Runs of the counting program that the kernel skipped because it was already running on that CPU: an upper bound
    /// of what was never seen; and processes and requests that there was no room to follow. Absent where the kernel does not tell
    /// (before 5.12).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u64")]
    pub missed: Option<u64>,
}

impl Loss {
    /// The sum of all causes.
    pub fn dropped_total(&self) -> u64 {
        self.dropped.values().sum()
    }

    /// Whether anything was lost or missed.
    pub fn any(&self) -> bool {
        self.dropped_total() > 0 || self.missed.unwrap_or(0) > 0
    }
}

/// What the tracing itself cost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Overhead {
    /// Nanoseconds of CPU added to each event seen; absent if no event was seen while it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "f64")]
    pub ns_per_event: Option<f64>,
    /// CPU time added, in percent of one CPU.
    pub cpu_percent: f64,
    /// `measured`: program run time sampled on this kernel in this execution, plus the calibrated cost of the hooks.
    /// `estimated`: from the reference measurement, because the kernel's run-time statistics could not be used.
    pub method: String,
}

/// What is not in this reply, and how to get it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct More {
    /// Rows of the report after this page.
    pub rows_left: u64,
    /// Pass it to `get_result` to read on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub cursor: Option<String>,
}

/// What `run_probe`, `get_result`, `stop_execution`, resources and the command line's `--json` return.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Envelope {
    /// Names the execution for `get_result` and `stop_execution`.
    pub execution_id: String,
    /// Native probe or script.
    pub kind: Kind,
    /// The probe's name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub probe: String,
    /// How far it has come.
    pub status: Status,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub error: Option<String>,
    /// When it collected.
    pub window: Window,
    /// The filters in force.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub filter: Row,
    /// The options in force.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub options: Row,
    /// What was found. Its schema is the resource `mcptrace://schema/report`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "AnyReport")]
    pub report: Option<Report>,
    /// Single events beside the main report, such as the slow calls of `syscall_latency`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "AnyReport")]
    pub events: Option<Report>,
    /// What a script printed or kept, one per map or series.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<AnyReport>")]
    pub reports: Vec<NamedReport>,
    /// What was seen and lost.
    pub loss: Loss,
    /// What the tracing cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Overhead")]
    pub overhead: Option<Overhead>,
    /// What a reader must know to not misread the report.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// What is not in this reply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "More")]
    pub more: Option<More>,
}

/// A report of a script: the map's name, or the kind of output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NamedReport {
    /// The bpftrace map (`@reads`) or the kind of output (`printf`).
    pub name: String,
    /// What it holds.
    #[serde(flatten)]
    pub report: Report,
}

/// Stands for [`Report`] in tool schemas, where the full one would cost every client 4.8 KB a tool.
#[derive(JsonSchema)]
#[schemars(inline)]
#[expect(dead_code, reason = "only its schema is used")]
pub struct AnyReport {
    /// table, histogram, events or stacks; the full schema is the resource mcptrace://schema/report
    shape: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}
