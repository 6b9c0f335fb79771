//! A window of everything that is recorded, for those who judge it: the latest, as far as it is fresh.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use super::{
    HistoryError, Now, Plan,
    coverage::{self, Recorded},
    merge, of_group,
    range::Span,
    reader::Reader,
};
use crate::{
    recorder::{
        metrics::GROUPS,
        store::body::{Cell, Level, Sparse},
    },
    report::{Row, Window},
};

/// Events that are looked at, the latest.
const MOST_EVENTS: usize = 2_000;

/// Everything that was recorded in a window.
#[derive(Clone, Debug, Default)]
pub struct Past {
    /// The window.
    pub window: Option<Window>,
    /// What was kept one by one: kind and fields.
    pub events: Vec<(String, Row)>,
    /// Groups of metrics that were not recorded in most of it.
    pub lacking: Vec<&'static str>,
    metrics: BTreeMap<String, Recording>,
}

/// A metric over the whole window.
#[derive(Clone, Debug, Default)]
struct Recording {
    /// Seconds in which it was recorded.
    seconds: f64,
    /// The part of these in which it was looked.
    looked: f64,
    series: Vec<(Vec<String>, Cell)>,
}

/// The last seconds that were recorded in a folder; `None` if nobody records now or the recorder has just begun.
pub fn lately(folder: &Path, seconds: i64, now: i64) -> Result<Option<Past>, HistoryError> {
    let reader = Reader::open(folder)?;
    let now = Now::of(folder, &reader, now)?;
    if !now.notes.is_empty() {
        return Ok(None);
    }
    reader.at_once(|reader| read(reader, Span { from: now.until - seconds, to: now.until }, &now))
}

fn read(reader: &Reader, span: Span, now: &Now) -> Result<Option<Past>, HistoryError> {
    let plan = Plan::new(reader, span, "1s", now)?;
    let groups = coverage::recorded(reader, &plan.tier, plan.grid)?;
    let recorded = longest(&groups);
    if recorded < LEAST_SECONDS {
        return Ok(None);
    }
    let mut metrics = BTreeMap::new();
    for metric in reader.metrics()? {
        let recorded = of_group(&groups, &metric.group);
        if recorded.total() == 0.0 {
            continue;
        }
        let labels = reader.series(&metric)?;
        let mut cells = HashMap::new();
        reader.scan(&metric, &plan.tier, plan.grid.span, |_, id, cell| merge(&mut cells, id, cell))?;
        let series = cells.into_iter().filter_map(|(id, cell)| Some((labels.get(&id)?.clone(), cell))).collect();
        let recording = Recording { seconds: recorded.total(), looked: recorded.looked_share(), series };
        metrics.insert(metric.name, recording);
    }
    let total = |group: &str| groups.get(group).map_or(0.0, Recorded::total);
    let lacking = GROUPS.iter().copied().filter(|group| total(group) < recorded / 2.0).collect();
    let events = reader.events(plan.grid.span, MOST_EVENTS)?;
    let window = Window { seconds: recorded.round(), ..plan.window() };
    Ok(Some(Past { window: Some(window), events, lacking, metrics }))
}

/// Less than this says nothing.
const LEAST_SECONDS: f64 = 4.0;

fn longest(groups: &HashMap<String, Recorded>) -> f64 {
    groups.values().map(Recorded::total).fold(0.0, f64::max)
}

impl Past {
    /// Whether a metric was recorded at all.
    pub fn has(&self, metric: &str) -> bool {
        self.metrics.contains_key(metric)
    }

    /// What an amount came to in a second, all series together of which the labels are wanted.
    pub fn rate(&self, metric: &str, wanted: impl Fn(&[String]) -> bool) -> f64 {
        self.rates(metric).filter(|(labels, _)| wanted(labels)).map(|(_, rate)| rate).sum()
    }

    /// What each series of an amount came to in a second. What a duty cycle did not see is estimated.
    pub fn rates(&self, metric: &str) -> impl Iterator<Item = (&[String], f64)> {
        self.series(metric).filter_map(|(labels, cell, seconds)| match cell {
            Cell::Sum(amount) => Some((labels, *amount as f64 / seconds)),
            _ => None,
        })
    }

    /// The level of each series.
    pub fn levels(&self, metric: &str) -> impl Iterator<Item = (&[String], Level)> {
        self.series(metric).filter_map(|(labels, cell, _)| match cell {
            Cell::Gauge(level) => Some((labels, *level)),
            _ => None,
        })
    }

    /// The distribution of each series, with the seconds in which it was looked.
    pub fn distributions(&self, metric: &str) -> impl Iterator<Item = (&[String], &Sparse, f64)> {
        self.series(metric).filter_map(|(labels, cell, seconds)| match cell {
            Cell::Distribution(values) => Some((labels, &**values, seconds)),
            _ => None,
        })
    }

    /// The series of a metric with the seconds in which it was looked.
    fn series(&self, metric: &str) -> impl Iterator<Item = (&[String], &Cell, f64)> {
        self.metrics.get(metric).into_iter().flat_map(|one| {
            let seconds = (one.seconds * one.looked).max(0.001);
            one.series.iter().map(move |(labels, cell)| (labels.as_slice(), cell, seconds))
        })
    }

    /// A window with these series, for tests of those who judge.
    #[cfg(test)]
    pub(crate) fn of(seconds: f64, series: &[(&str, &[&str], Cell)]) -> Self {
        let mut past = Self { window: Some(Window { seconds, ..Window::default() }), ..Self::default() };
        for (metric, labels, cell) in series {
            let one = past.metrics.entry((*metric).to_owned()).or_default();
            (one.seconds, one.looked) = (seconds, 1.0);
            one.series.push((labels.iter().map(|label| (*label).to_owned()).collect(), cell.clone()));
        }
        past
    }
}
