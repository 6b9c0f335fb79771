//! Where ticks go.

use std::{io::Write as _, path::PathBuf};

use serde_json::{Map, Value as Json, json};

use super::{
    store::{Keeper, Limits, OpenError},
    tick::{Tick, Value},
};

/// Keeps what is recorded.
pub trait Sink: Send {
    /// Keeps a tick. Called once a second, on the recorder's thread. After an error recording goes on, and the error is shown.
    fn keep(&mut self, tick: &Tick) -> Result<(), String>;

    /// What it is and where, in words.
    fn describe(&self) -> String;

    /// What keeps it from keeping ticks at present.
    fn trouble(&self) -> Option<Trouble> {
        None
    }

    /// Ends it cleanly, after the last tick.
    fn close(self: Box<Self>) {}
}

/// Why nothing is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// In a word, as in coverage.
    pub reason: &'static str,
    /// In a sentence.
    pub message: String,
    /// Since when, in nanoseconds since 1970.
    pub since_ns: u64,
}

/// Keeps ticks in a history.
#[derive(Debug)]
pub struct History {
    keeper: Keeper,
    file: PathBuf,
}

impl History {
    /// Opens or makes the history in a file.
    pub fn open(file: PathBuf, limits: Limits) -> Result<Self, OpenError> {
        Ok(Self { keeper: Keeper::open(&file, limits)?, file })
    }
}

impl Sink for History {
    fn keep(&mut self, tick: &Tick) -> Result<(), String> {
        self.keeper.keep(tick);
        self.trouble().map_or(Ok(()), |trouble| Err(trouble.message))
    }

    fn describe(&self) -> String {
        self.file.display().to_string()
    }

    fn trouble(&self) -> Option<Trouble> {
        let (reason, message, since_ns) = self.keeper.trouble()?;
        Some(Trouble { reason: reason.word(), message: message.to_owned(), since_ns })
    }

    fn close(self: Box<Self>) {
        self.keeper.close();
    }
}

/// Writes each tick to standard output as a line of JSON: to look at what the recorder sees.
#[derive(Clone, Copy, Debug, Default)]
pub struct Print;

impl Sink for Print {
    fn keep(&mut self, tick: &Tick) -> Result<(), String> {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", json(tick)).and_then(|()| out.flush()).map_err(|error| error.to_string())
    }

    fn describe(&self) -> String {
        "standard output, as JSON lines".to_owned()
    }
}

/// A tick as JSON.
pub fn json(tick: &Tick) -> Json {
    let samples: Vec<Json> = tick.samples.iter().map(sample).collect();
    let events: Vec<Json> = tick
        .events
        .iter()
        .map(|event| json!({"at_ns": event.at_ns, "kind": event.kind, "fields": event.fields}))
        .collect();
    let coverage: Map<String, Json> = tick
        .coverage
        .iter()
        .map(|one| (one.group.to_owned(), json!({"share": one.share, "why": one.why.as_deref()})))
        .collect();
    let lost: Map<String, Json> =
        tick.events_lost.iter().map(|(kind, count)| ((*kind).to_owned(), (*count).into())).collect();
    json!({"at_ns": tick.at_ns, "span_ns": tick.span_ns, "samples": samples, "events": events, "events_lost": lost, "coverage": coverage})
}

fn sample(sample: &super::tick::Sample) -> Json {
    let labels: Map<String, Json> = sample
        .metric
        .labels
        .iter()
        .zip(&sample.labels)
        .map(|(name, value)| ((*name).to_owned(), Json::from(value.as_ref())))
        .collect();
    let value = match &sample.value {
        Value::Sum(sum) => json!(sum),
        Value::Gauge(level) => json!(level),
        Value::Distribution(all) => {
            let series = all.series(crate::report::Row::new());
            json!({"count": series.count, "min": series.min, "max": series.max, "mean": series.mean, "p50": series.p50, "p99": series.p99})
        }
    };
    json!({"metric": sample.metric.name, "labels": labels, "value": value})
}
