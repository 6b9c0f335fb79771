//! Two windows side by side: what changed most.
//!
//! A change counts by its factor, and by how far it stands out of the noise of both windows. A hundredth of the largest value of a
//! metric is added to both sides, so that next to nothing does not become a hundred times next to nothing.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    Answer, Grouping, HistoryError, Now, Plan, Query,
    coverage::{self, Coverage, Grid, Recorded},
    digits, fine, of_group,
    range::Span,
    reader::{Known, Reader, whole_spans, within},
    steps,
};
use crate::{
    recorder::{
        store::{body::Cell, schema::Tier},
        tick::Kind,
    },
    report::{Field, Report, Row, Table},
};

/// Steps of a window, by which its noise is told.
const STEPS: i64 = 12;
/// The part of a metric's largest value that counts as nothing.
const NOTHING: f64 = 0.01;
/// A change of more than two to the power of so much is not larger than one of this.
const LARGEST: f64 = 10.0;
/// A percentile of so many values counts half.
const FEW: f64 = 20.0;
/// Groups of a metric that are compared, at most.
const GROUPS: usize = 500;

/// One number of a group in one window.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Measured {
    value: f64,
    /// Standard error, by the steps.
    error: f64,
    /// How many values it is of, if it is a percentile.
    values: Option<u64>,
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
    let (plan, other_plan) = plans(reader, span, other, now)?;
    let metrics = if query.metric.is_empty() { reader.metrics()? } else { vec![reader.metric(&query.metric)?] };
    let (window, compared_with) = (Some(plan.window()), Some(other_plan.window()));
    let mut answer = Answer { window, compared_with, notes: now.notes.clone(), ..Answer::default() };
    let common = plan.grid.span.to.min(other_plan.grid.span.to) - plan.grid.span.from.max(other_plan.grid.span.from);
    if common > 0 {
        answer.notes.push(format!("{common} s are in both windows: what happened in them is no difference"));
    }
    let (mut candidates, mut lacks) = (Vec::new(), Lacks::new());
    for metric in metrics.iter().filter(|metric| metric.group != "recorder") {
        let (late, coverage) = measured(reader, query, metric, &plan, now)?;
        let (early, other_coverage) = measured(reader, query, metric, &other_plan, now)?;
        candidates.extend(paired(metric, early, late));
        note(&mut answer, &mut lacks, &coverage, "the window");
        note(&mut answer, &mut lacks, &other_coverage, "the window to compare with");
    }
    let lacks = lacks.iter().map(|(which, what, groups)| format!("{which} lacks of {}: {what}", groups.join(", ")));
    answer.notes.extend(lacks);
    candidates.sort_by(|a, b| b.score.total_cmp(&a.score));
    answer.report = Some(Report::Table(table(&candidates, query.top)));
    answer.metric.clone_from(&query.metric);
    Ok(answer)
}

/// What is not recorded: of which window, how much and why, of which groups of metrics.
type Lacks = Vec<(&'static str, String, Vec<String>)>;

/// Notes what of a window is not recorded, once for all groups of metrics that lack the same.
fn note(answer: &mut Answer, lacks: &mut Lacks, coverage: &Coverage, which: &'static str) {
    let Coverage { group, missing, looked_share, .. } = coverage;
    if !missing.is_empty() {
        let missing = missing.iter().map(|one| format!("{} s {}", one.seconds, one.why)).collect::<Vec<_>>().join(", ");
        match lacks.iter_mut().find(|(other, what, _)| *other == which && *what == missing) {
            Some((.., groups)) if groups.contains(group) => {}
            Some((.., groups)) => groups.push(group.clone()),
            None => lacks.push((which, missing, vec![group.clone()])),
        }
    }
    if let Some(share) = looked_share {
        let percent = digits(share * 100.0);
        let note =
            format!("rates of {group} are estimates: in {which} a duty cycle looked for {percent} % of the time");
        if !answer.notes.contains(&note) {
            answer.notes.push(note);
        }
    }
}

/// Both windows, out of the same tier.
fn plans(reader: &Reader, span: Span, other: Span, now: &Now) -> Result<(Plan, Plan), HistoryError> {
    let tier = |span: Span| Ok::<_, HistoryError>(reader.choose(span, fine(span), now.second)?.0);
    let (own, others) = (tier(span)?, tier(other)?);
    let tier = if own.width >= others.width { own } else { others };
    let (late, early) = apart(&tier, span, other, now.second)?;
    let plan = |span: Span| {
        let step = whole_spans(&tier, (span.seconds() / STEPS).max(1));
        Plan { tier, grid: Grid { span, step }, notes: Vec::new() }
    };
    Ok((plan(late), plan(early)))
}

/// The windows as a tier can answer them. Those that have no second in common have none afterwards: the earlier one ends where the later begins.
fn apart(tier: &Tier, span: Span, other: Span, now: i64) -> Result<(Span, Span), HistoryError> {
    let (mut late, mut early) = (within(tier, span, now), within(tier, other, now));
    if other.to <= span.from {
        early.to = early.to.min(late.from);
    } else if span.to <= other.from {
        late.to = late.to.min(early.from);
    }
    if late.seconds() > 0 && early.seconds() > 0 {
        return Ok((late, early));
    }
    let width = tier.width;
    Err(HistoryError::Range(format!("one of these windows is shorter than the {width} s in which that time is kept")))
}

type Measures = BTreeMap<(Vec<String>, &'static str), (Row, Measured)>;

/// All numbers of a metric in a window; none if it was not recorded in it.
fn measured(
    reader: &Reader,
    query: &Query,
    metric: &Known,
    plan: &Plan,
    now: &Now,
) -> Result<(Option<Measures>, Coverage), HistoryError> {
    let grouping = Grouping::new(reader, metric, &group_by(query, metric), &query.filter)?;
    let groups = coverage::recorded(reader, &plan.tier, plan.grid)?;
    let recorded = of_group(&groups, &metric.group);
    let marks = now.marks(reader, plan.grid.span)?;
    let coverage = Coverage::of(&metric.group, &recorded, plan.grid, &marks, now.until);
    if recorded.total() == 0.0 {
        return Ok((None, coverage));
    }
    let (mut ranked, _) = super::ranked(reader, metric, &grouping, plan)?;
    ranked.truncate(GROUPS);
    let steps = steps(reader, metric, &grouping, plan, &ranked)?;
    let mut all = Measures::new();
    for ((key, whole), steps) in ranked.iter().zip(&steps) {
        for measure in measures(metric) {
            let Some(value) = value(measure, whole, recorded.looked()) else { continue };
            let (error, values) = (error(measure, steps, &recorded), values(measure, whole));
            all.insert((key.clone(), measure), (grouping.row(key), Measured { value, error, values }));
        }
    }
    Ok((Some(all), coverage))
}

/// Pids come and go; what a process is called by stays.
fn group_by(query: &Query, metric: &Known) -> String {
    if !query.group_by.is_empty() {
        return query.group_by.clone();
    }
    let labels: Vec<&str> = metric.labels.iter().map(String::as_str).filter(|label| *label != "pid").collect();
    if labels.is_empty() { "none".to_owned() } else { labels.join(",") }
}

/// Distributions of what another metric counts by the same labels: that there are more or fewer values is told once.
const COUNTED: [&str; 4] = ["syscall_ns", "block_queue_ns", "block_service_ns", "tcp_connect_ns"];

fn measures(metric: &Known) -> &'static [&'static str] {
    match metric.kind {
        Kind::Distribution if COUNTED.contains(&metric.name.as_str()) => &["p99"],
        Kind::Sum => &["per_second"],
        Kind::Gauge => &["average"],
        Kind::Distribution => &["p99", "per_second"],
    }
}

/// A number of a cell, rates by the seconds in which it was looked: two windows may have had different duty cycles. Nothing where there is
/// no value to tell it by.
fn value(measure: &str, cell: &Cell, looked: f64) -> Option<f64> {
    match (cell, measure) {
        (Cell::Sum(amount), _) => Some(*amount as f64 / looked),
        (Cell::Gauge(level), _) => Some(level.average),
        (Cell::Distribution(values), "p99") => (values.count > 0).then(|| values.whole().percentile(0.99) as f64),
        (Cell::Distribution(values), _) => Some(values.count as f64 / looked),
    }
}

/// How many values a percentile is of.
fn values(measure: &str, cell: &Cell) -> Option<u64> {
    match cell {
        Cell::Distribution(values) if measure == "p99" => Some(values.count),
        _ => None,
    }
}

/// The standard error of the average over the steps that were recorded.
fn error(measure: &str, steps: &[Option<Cell>], recorded: &Recorded) -> f64 {
    let of = |(at, cell): (usize, &Option<Cell>)| {
        let looked = recorded.looked_at(at)?;
        match cell {
            Some(cell) => value(measure, cell, looked),
            None => (measure == "per_second").then_some(0.0),
        }
    };
    let of_steps: Vec<f64> = steps.iter().enumerate().filter_map(of).collect();
    let count = of_steps.len() as f64;
    if count < 2.0 {
        return 0.0;
    }
    let mean = of_steps.iter().sum::<f64>() / count;
    let variance = of_steps.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0);
    (variance / count).sqrt()
}

/// What is in either window. An amount that is not in one that was recorded is 0 there; a level or a percentile that has no value is not
/// known, and that values came or ceased to come shows in their rate.
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
        if key.1 != "per_second" && (before.is_none() || now.is_none()) {
            return None;
        }
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
    let fewest = before.values.into_iter().chain(now.values).min();
    factor * sure * fewest.map_or(1.0, |values| values as f64 / (values as f64 + FEW))
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
    use crate::recorder::store::schema::TIERS;

    fn of(value: f64, error: f64) -> Measured {
        Measured { value, error, values: None }
    }

    #[test]
    fn what_another_metric_counts_is_a_distribution_by_the_same_labels() {
        use crate::recorder::metrics::metric;
        for (values, count) in
            COUNTED.into_iter().zip(["syscalls", "block_requests", "block_requests", "tcp_connected"])
        {
            let [values, count] = [values, count].map(|name| metric(name).unwrap());
            assert_eq!((values.kind, count.kind, values.labels), (Kind::Distribution, Kind::Sum, count.labels));
        }
    }

    #[test]
    fn windows_that_are_apart_stay_apart() {
        let now = 1_767_323_084;
        let (span, other) = (Span { from: now - 900, to: now }, Span { from: now - 1800, to: now - 900 });
        for tier in TIERS {
            let (late, early) = apart(&tier, span, other, now).unwrap();
            assert_eq!((late.to, early.to), (now, late.from), "{tier:?}");
            assert!(late.seconds() - early.seconds() < tier.width, "{late:?} {early:?}");
            let (early, late) = apart(&tier, other, span, now).unwrap();
            assert!(early.to <= late.from, "{early:?} {late:?}");
        }
        let close = (Span { from: 600, to: 610 }, Span { from: 590, to: 600 }, Span { from: 601, to: 605 });
        assert!(apart(&TIERS[2], close.0, close.1, now).is_ok());
        assert!(apart(&TIERS[2], Span { from: 605, to: 610 }, close.2, now).is_err());
    }

    #[test]
    fn a_percentile_of_few_values_counts_less() {
        let of = |value: f64, values: u64| Measured { value, error: 0.0, values: Some(values) };
        let (few, many) = (score(of(1e5, 4), of(1e7, 500), 1.0), score(of(1e5, 400), of(1e7, 500), 1.0));
        assert!(few < many / 4.0, "{few} {many}");
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
