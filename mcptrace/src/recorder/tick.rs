//! What the recorder learns in one second: the seam between those who measure and those who keep. Pure.

use std::borrow::Cow;

use crate::{distribution::Distribution, report::Row};

/// How values of a metric come together over time and over labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An amount that came about in the span of a tick; amounts add up.
    Sum,
    /// A level at the end of a tick; levels are averaged, and the least and the greatest kept.
    Gauge,
    /// Values of single events; distributions are merged, and percentiles made of the merged one.
    Distribution,
}

/// One thing that is recorded.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name, with its unit as suffix where it has one.
    pub name: &'static str,
    /// Unit of its values.
    pub unit: &'static str,
    /// How values come together.
    pub kind: Kind,
    /// What is recorded and shed together (see [`Coverage`]).
    pub group: &'static str,
    /// Names of its labels, in the order of [`Sample::labels`].
    pub labels: &'static [&'static str],
    /// What it is, in one sentence.
    pub help: &'static str,
}

/// One value of a metric.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Which metric.
    pub metric: &'static Metric,
    /// A value for each of the metric's labels. Bounded and escaped by whoever measured.
    pub labels: Vec<Cow<'static, str>>,
    /// The value.
    pub value: Value,
}

/// A value, by [`Kind`].
#[derive(Clone, Debug)]
pub enum Value {
    /// See [`Kind::Sum`]. What a duty cycle did not see is not in it: [`Coverage::share`] says how much was seen.
    Sum(u64),
    /// See [`Kind::Gauge`].
    Gauge(f64),
    /// See [`Kind::Distribution`].
    Distribution(Box<Distribution>),
}

/// Something that is kept one by one: a process that began, ended or was killed.
#[derive(Clone, Debug)]
pub struct Event {
    /// When, in nanoseconds since 1970 (UTC).
    pub at_ns: u64,
    /// What: `process_exec`, `process_exit`, `fatal_signal`, `oom_kill`.
    pub kind: &'static str,
    /// Its fields.
    pub fields: Row,
}

/// How much of a tick a group of metrics was recorded for.
#[derive(Clone, Debug)]
pub struct Coverage {
    /// The group.
    pub group: &'static str,
    /// From 0 (not at all) to 1 (all the time).
    pub share: f64,
    /// Why less than all: `duty_cycle`, `shed`, `unsupported`, or an error in words.
    pub why: Option<Cow<'static, str>>,
}

/// What one second yielded.
#[derive(Clone, Debug)]
pub struct Tick {
    /// The end of the span, in nanoseconds since 1970 (UTC) by the clock of that moment.
    pub at_ns: u64,
    /// How long the span was, in nanoseconds by a clock that never jumps.
    pub span_ns: u64,
    /// The values.
    pub samples: Vec<Sample>,
    /// What happened one by one.
    pub events: Vec<Event>,
    /// Events that came but had no room, by kind.
    pub events_lost: Vec<(&'static str, u64)>,
    /// One for each group.
    pub coverage: Vec<Coverage>,
}
