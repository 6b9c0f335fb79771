//! Which series of a metric are looked at, and what is taken together. Pure but for reading.

use std::collections::HashMap;

use serde_json::Value;

use super::{
    HistoryError,
    reader::{Known, Reader},
};
use crate::{
    recorder::metrics::OTHERS,
    report::Row,
    suggest::nearest,
    text::{matches_glob, untrusted},
};

/// Which series are looked at, and what they are taken together by.
pub(super) struct Grouping {
    /// Names of the labels.
    pub(super) by: Vec<String>,
    /// The group of each series; those that the filter leaves out are not here.
    group: HashMap<u32, Vec<String>>,
    /// Whether series that are forgotten count, as "others".
    forgotten: bool,
    /// Whether a group can hold several series.
    pub(super) narrower: bool,
    /// That no series fits the filter.
    pub(super) unfit: Option<String>,
}

impl Grouping {
    pub(super) fn new(reader: &Reader, metric: &Known, group_by: &str, filter: &str) -> Result<Self, HistoryError> {
        let by = match group_by.trim() {
            "" => metric.labels.clone(),
            "none" => Vec::new(),
            some => some.split(',').map(|name| label(metric, name.trim())).collect::<Result<_, _>>()?,
        };
        let wanted = conditions(metric, filter)?;
        let at: Vec<usize> =
            by.iter().filter_map(|name| metric.labels.iter().position(|label| label == name)).collect();
        let fits = |values: &[String]| wanted.iter().all(|(at, glob)| matches_glob(glob, &values[*at]));
        let key = |values: &[String]| at.iter().map(|at| values[*at].clone()).collect();
        let series = reader.series(metric)?;
        let group = series.iter().filter(|(_, values)| fits(values)).map(|(id, values)| (*id, key(values))).collect();
        let group: HashMap<_, _> = group;
        let narrower = by.len() < metric.labels.len();
        let unfit = (group.is_empty() && !wanted.is_empty()).then(|| unfit(metric, &wanted, &series));
        Ok(Self { by, group, forgotten: wanted.is_empty(), narrower, unfit })
    }

    pub(super) fn key(&self, series: u32) -> Option<Vec<String>> {
        let forgotten = || self.forgotten.then(|| self.by.iter().map(|_| OTHERS.to_owned()).collect());
        self.group.get(&series).cloned().or_else(forgotten)
    }

    pub(super) fn row(&self, key: &[String]) -> Row {
        self.by.iter().zip(key).map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect()
    }
}

/// `label=glob` with commas between them, as places of labels and globs.
fn conditions(metric: &Known, filter: &str) -> Result<Vec<(usize, String)>, HistoryError> {
    let parts = filter.split(',').map(str::trim).filter(|part| !part.is_empty());
    let mut all: Vec<(usize, String)> = Vec::new();
    for part in parts {
        let (name, glob) = part.split_once('=').ok_or_else(|| {
            HistoryError::Range(format!("`where` is label=value, not `{}`", untrusted(part.as_bytes(), 60)))
        })?;
        let name = label(metric, name.trim())?;
        let at = metric.labels.iter().position(|label| *label == name).unwrap_or_default();
        if all.iter().any(|(other, _)| *other == at) {
            return Err(HistoryError::Range(format!(
                "`where` takes a condition of `{name}` once, and all conditions have to fit: * in a value stands for anything"
            )));
        }
        all.push((at, glob.trim().to_owned()));
    }
    Ok(all)
}

/// That nothing fits, and which of the conditions it is.
fn unfit(metric: &Known, wanted: &[(usize, String)], series: &HashMap<u32, Vec<String>>) -> String {
    let fits = |(at, glob): &&(usize, String)| !series.values().any(|values| matches_glob(glob, &values[*at]));
    let which = match wanted.iter().find(fits) {
        Some((at, glob)) => format!("{}={}", metric.labels[*at], untrusted(glob.as_bytes(), 60)),
        None => "all conditions of `where` together".to_owned(),
    };
    format!("nothing of {} that is in the history fits {which}; without `where` its rows show the values", metric.name)
}

fn label(metric: &Known, name: &str) -> Result<String, HistoryError> {
    if metric.labels.iter().any(|label| label == name) {
        return Ok(name.to_owned());
    }
    let known = if metric.labels.is_empty() { "none".to_owned() } else { metric.labels.join(", ") };
    let did_you_mean = nearest(name, metric.labels.iter().map(String::as_str)).map(str::to_owned);
    let name = untrusted(name.as_bytes(), 60);
    Err(HistoryError::UnknownLabel { metric: metric.name.clone(), name, known, did_you_mean })
}
