//! Two windows side by side: what changed most.
//!
//! A change counts by its factor, and by how far it stands out of the noise of both windows. A hundredth of the largest value of a
//! metric is added to both sides, so that next to nothing does not become a hundred times next to nothing.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    Answer, Grouping, HistoryError, Now, Plan, Query,
    coverage::{self, Coverage, Recorded},
    digits, of_group,
    range::Span,
    reader::{Known, Reader},
    steps,
};
use crate::{
    recorder::{store::body::Cell, tick::Kind},
    report::{Field, Report, Row, Table},
};

/// Steps of a window, by which its noise is told.
const STEPS: i64 = 12;
/// The part of a metric's largest value that counts as nothing.
const NOTHING: f64 = 0.01;
/// A change of more than two to the power of so much is not larger than one of this.
const LARGEST: f64 = 10.0;
/// Groups of a metric that are compared, at most.
const GROUPS: usize = 500;

/// One number of a group in one window.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Measured {
    value: f64,
    /// Standard error, by the steps.
    error: f64,
}

/// A number that can be compared.
#[derive(Clone, Debug)]
struct Candidate {
    metric: String,
    group: Row,
    measure: &'static str,
    unit: String,
    before: Measured,
    now: Measured,
    score: f64,
}

/// Answers what changed between `compare_to` and the window.
pub(super) fn ask(reader: &Reader, query: &Query, now: &Now) -> Result<Answer, HistoryError> {
    let span = Span::asked(&query.from, &query.to, now.second)?;
    let other = span.other(&query.compare_to, now.second)?;
    let metrics = if query.metric.is_empty() { reader.metrics()? } else { vec![reader.metric(&query.metric)?] };
    let mut answer = Answer { notes: now.notes.clone(), ..Answer::default() };
    let mut candidates = Vec::new();
    for metric in metrics.iter().filter(|metric| metric.group != "recorder") {
        let (late, window, coverage) = measured(reader, query, metric, span, now)?;
        let (early, other_window, other_coverage) = measured(reader, query, metric, other, now)?;
        candidates.extend(paired(metric, early, late));
        note(&mut answer, coverage, "the window");
        note(&mut answer, other_coverage, "the window to compare with");
        (answer.window, answer.compared_with) = (Some(window.window()), Some(other_window.window()));
    }
    candidates.sort_by(|a, b| b.score.total_cmp(&a.score));
    answer.report = Some(Report::Table(table(&candidates, query.top)));
    answer.metric.clone_from(&query.metric);
    Ok(answer)
}

/// Says what of a window is not recorded, once for each group of metrics.
fn note(answer: &mut Answer, coverage: Coverage, which: &str) {
    if coverage.missing.is_empty() {
        return;
    }
    let missing = coverage.missing.iter().map(|one| format!("{} s {}", one.seconds, one.why)).collect::<Vec<_>>();
    let note = format!("{which} lacks of {}: {}", coverage.group, missing.join(", "));
    if !answer.notes.contains(&note) {
        answer.notes.push(note);
    }
}

type Measures = BTreeMap<(Vec<String>, &'static str), (Row, Measured)>;

/// All numbers of a metric in a window; none if it was not recorded in it.
fn measured(
    reader: &Reader,
    query: &Query,
    metric: &Known,
    span: Span,
    now: &Now,
) -> Result<(Option<Measures>, Plan, Coverage), HistoryError> {
    let plan = Plan::new(reader, span, &format!("{}", (span.seconds() / STEPS).max(1)), now)?;
    let grouping = Grouping::new(reader, metric, &group_by(query, metric), &query.filter)?;
    let groups = coverage::recorded(reader, &plan.tier, plan.grid)?;
    let recorded = of_group(&groups, &metric.group);
    let marks = reader.marks(plan.grid.span)?;
    let coverage = Coverage::of(&metric.group, &recorded, plan.grid, &marks, now.until);
    if recorded.total() == 0.0 {
        return Ok((None, plan, coverage));
    }
    let (mut ranked, _) = super::ranked(reader, metric, &grouping, &plan)?;
    ranked.truncate(GROUPS);
    let steps = steps(reader, metric, &grouping, &plan, &ranked)?;
    let mut all = Measures::new();
    for ((key, whole), steps) in ranked.iter().zip(&steps) {
        for measure in measures(metric.kind) {
            let value = value(measure, whole, Some(recorded.total()));
            let error = error(measure, steps, &recorded);
            all.insert((key.clone(), measure), (grouping.row(key), Measured { value, error }));
        }
    }
    Ok((Some(all), plan, coverage))
}

/// Pids come and go; what a process is called by stays.
fn group_by(query: &Query, metric: &Known) -> String {
    if !query.group_by.is_empty() {
        return query.group_by.clone();
    }
    let labels: Vec<&str> = metric.labels.iter().map(String::as_str).filter(|label| *label != "pid").collect();
    if labels.is_empty() { "none".to_owned() } else { labels.join(",") }
}

fn measures(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Sum => &["per_second"],
        Kind::Gauge => &["average"],
        Kind::Distribution => &["p99", "per_second"],
    }
}

fn value(measure: &str, cell: &Cell, seconds: Option<f64>) -> f64 {
    let rate = |amount: u64| seconds.map_or(0.0, |seconds| amount as f64 / seconds);
    match (cell, measure) {
        (Cell::Sum(amount), _) => rate(*amount),
        (Cell::Gauge(level), _) => level.average,
        (Cell::Distribution(values), "p99") => values.whole().percentile(0.99) as f64,
        (Cell::Distribution(values), _) => rate(values.count),
    }
}

/// The standard error of the average over the steps that were recorded.
fn error(measure: &str, steps: &[Option<Cell>], recorded: &Recorded) -> f64 {
    let of = |(at, cell): (usize, &Option<Cell>)| {
        let seconds = recorded.seconds(at)?;
        match cell {
            Some(cell) => Some(value(measure, cell, Some(seconds))),
            None => (measure == "per_second").then_some(0.0),
        }
    };
    let values: Vec<f64> = steps.iter().enumerate().filter_map(of).collect();
    let count = values.len() as f64;
    if count < 2.0 {
        return 0.0;
    }
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0);
    (variance / count).sqrt()
}

/// What is in either window. What is in neither group of a window that was recorded is 0 there.
fn paired(metric: &Known, early: Option<Measures>, late: Option<Measures>) -> Vec<Candidate> {
    let (Some(early), Some(late)) = (early, late) else { return Vec::new() };
    let largest = |measure: &str| {
        let of = |all: &Measures| {
            all.iter().filter(|((_, own), _)| *own == measure).map(|(_, (_, one))| one.value.abs()).fold(0.0, f64::max)
        };
        of(&early).max(of(&late))
    };
    let mut keys: Vec<_> = early.keys().chain(late.keys()).cloned().collect();
    keys.sort();
    keys.dedup();
    let candidate = |key: (Vec<String>, &'static str)| {
        let (before, now) = (early.get(&key), late.get(&key));
        let group = before.or(now)?.0.clone();
        let measured = |one: Option<&(Row, Measured)>| one.map(|one| one.1).unwrap_or_default();
        let (before, now) = (measured(before), measured(now));
        let score = score(before, now, NOTHING * largest(key.1));
        let unit = match (metric.kind, key.1) {
            (Kind::Sum, _) => format!("{}/s", metric.unit),
            (Kind::Distribution, "per_second") => "1/s".to_owned(),
            _ => metric.unit.clone(),
        };
        Some(Candidate { metric: metric.name.clone(), group, measure: key.1, unit, before, now, score })
    };
    keys.into_iter().filter_map(candidate).collect()
}

fn score(before: Measured, now: Measured, nothing: f64) -> f64 {
    let difference = (now.value - before.value).abs();
    if difference == 0.0 {
        return 0.0;
    }
    let factor = ((now.value.abs() + nothing) / (before.value.abs() + nothing)).log2().abs().min(LARGEST);
    let noise = before.error.hypot(now.error);
    let stands_out = if noise > 0.0 { difference / noise } else { f64::INFINITY };
    let sure = if stands_out.is_finite() { stands_out / (stands_out + 3.0) } else { 1.0 };
    factor * sure
}

fn table(candidates: &[Candidate], top: usize) -> Table {
    let shown: Vec<&Candidate> = candidates.iter().filter(|one| one.score > 0.05).take(top).collect();
    let row = |one: &&Candidate| {
        let labels = one.group.iter().map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default()));
        let factor = one.now.value / one.before.value;
        let mut row = Row::from_iter([("metric".to_owned(), Value::from(one.metric.as_str()))]);
        row.insert("labels".into(), labels.collect::<Vec<_>>().join(",").into());
        row.insert("measure".into(), one.measure.into());
        row.insert("before".into(), json!(digits(one.before.value)));
        row.insert("now".into(), json!(digits(one.now.value)));
        row.insert("unit".into(), one.unit.as_str().into());
        if factor.is_finite() {
            row.insert("factor".into(), json!(digits(factor)));
        }
        row.insert("score".into(), json!(digits(one.score)));
        row
    };
    let columns = ["before", "now", "unit", "factor", "score"].map(|name| Field::new(name, "")).to_vec();
    let key = ["metric", "labels", "measure"].map(str::to_owned).to_vec();
    let rows = shown.iter().map(row).collect();
    Table { key, columns, rows, others: None, rows_total: candidates.len() as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(value: f64, error: f64) -> Measured {
        Measured { value, error }
    }

    #[test]
    fn a_large_sure_change_comes_before_a_small_or_noisy_one() {
        let tenfold = score(of(100.0, 1.0), of(1000.0, 5.0), 1.0);
        let tenth_more = score(of(100.0, 1.0), of(110.0, 1.0), 1.0);
        let noisy = score(of(100.0, 500.0), of(1000.0, 800.0), 1.0);
        let tiny = score(of(0.0, 0.0), of(0.5, 0.01), 10.0);
        assert!(tenfold > tenth_more && tenfold > noisy && tenfold > tiny, "{tenfold} {tenth_more} {noisy} {tiny}");
        assert!(score(of(0.0, 0.0), of(500.0, 1.0), 1.0) > tenfold, "what is new is a large change");
        assert_eq!(score(of(5.0, 0.0), of(5.0, 0.0), 1.0).to_bits(), 0.0_f64.to_bits());
    }
}
