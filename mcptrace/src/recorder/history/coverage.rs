//! Which seconds of a window were recorded, which were not, and why. Pure but for reading.

use std::collections::{BTreeMap, HashMap};

use schemars::JsonSchema;
use serde::Serialize;

use super::{
    HistoryError,
    range::{Span, stamp},
    reader::{Mark, Reader},
};
use crate::recorder::store::{
    body::Cell,
    schema::Tier,
    writer::{COVERAGE, SPREAD},
};

/// The reason that a duty cycle gives: it was recorded, but looked at for a part of the time only.
const DUTY_CYCLE: &str = "duty_cycle";
/// A share of the time that is all of it: ticks are not exactly a second long.
const WHOLE: f64 = 0.995;
/// By so much a tick may count in another second than that in which it was, in seconds.
const SHIFT: f64 = 1.0;
/// Gaps that are named one by one, at most.
const MOST_GAPS: usize = 12;

/// How much of a window is recorded.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct Coverage {
    /// The group of metrics that it is about; they are recorded and shed together.
    pub group: String,
    /// Seconds of the window, up to now.
    pub seconds: f64,
    /// Of them, those that were recorded.
    pub recorded_seconds: f64,
    /// The part of the recorded time in which it was looked, if not all of it (duty cycle).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "f64")]
    pub looked_share: Option<f64>,
    /// What was not recorded, by reason.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<Missing>,
    /// Where that is.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gaps: Vec<Gap>,
}

/// Time that was not recorded.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Missing {
    /// `not_running`, `shed`, `unsupported`, `suspend`, `clock_jump`, `disk_full`, `set_aside`, `removed` or an error.
    pub why: String,
    /// How much.
    pub seconds: f64,
}

/// Steps without a break of which a good part was not recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Gap {
    /// Its beginning, UTC.
    pub from: String,
    /// Its end, UTC.
    pub to: String,
    /// Why, for the most part.
    pub why: String,
}

/// How the window is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// The window.
    pub span: Span,
    /// Length of a step in seconds; the last may be shorter.
    pub step: i64,
}

impl Grid {
    /// How many steps.
    pub fn steps(&self) -> usize {
        ((self.span.seconds() + self.step - 1) / self.step).max(0) as usize
    }

    /// The step that a second is in.
    pub fn at(&self, second: i64) -> Option<usize> {
        let inside = second >= self.span.from && second < self.span.to;
        inside.then(|| ((second - self.span.from) / self.step) as usize)
    }

    fn step_span(&self, at: usize) -> Span {
        let from = self.span.from + at as i64 * self.step;
        Span { from, to: (from + self.step).min(self.span.to) }
    }

    /// A step as far as it can be recorded by then.
    fn step_up_to(&self, at: usize, until: i64) -> Span {
        let span = self.step_span(at);
        Span { to: span.to.min(until), ..span }
    }
}

/// What was recorded of a group, step by step, in seconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recorded {
    /// Time in which it was looked all the time, or for the part of a duty cycle.
    looked: Vec<f64>,
    /// Time in which a duty cycle did not look.
    away: Vec<f64>,
    /// Time in which it was not recorded though the recorder ran, by reason.
    not: BTreeMap<String, Vec<f64>>,
}

impl Recorded {
    /// Seconds of a step in which it was looked, if there are any. What was seen in a step came about in these, so a rate by them does not
    /// depend on how a window is divided, nor on the level of a duty cycle.
    pub fn looked_at(&self, at: usize) -> Option<f64> {
        self.looked.get(at).copied().filter(|looked| *looked > 0.0)
    }

    /// Seconds of the whole window in which it was looked.
    pub fn looked(&self) -> f64 {
        self.looked.iter().sum::<f64>() + 0.0
    }

    /// Seconds of the whole window in which it was recorded: the time between two looks of a duty cycle too, unless there was no look.
    pub fn total(&self) -> f64 {
        let looked = self.looked();
        if looked > 0.0 { looked + self.away.iter().sum::<f64>() } else { 0.0 }
    }

    /// The part of these in which it was looked.
    pub fn looked_share(&self) -> f64 {
        let total = self.total();
        if total > 0.0 { self.looked() / total } else { 1.0 }
    }

    /// Whether it was looked all the time in which it was recorded.
    pub fn is_whole(&self) -> bool {
        self.looked_share() >= WHOLE
    }

    /// Why a step was not recorded though the recorder ran, and for how long.
    fn not(&self, at: usize) -> impl Iterator<Item = (&str, f64)> {
        let all = self.not.iter().filter_map(move |(why, seconds)| Some((why.as_str(), *seconds.get(at)?)));
        all.filter(|(_, seconds)| *seconds > 0.0)
    }

    /// For how long of a step it is known whether it was recorded.
    fn known(&self, at: usize) -> f64 {
        let away = self.away.get(at).copied().unwrap_or(0.0);
        self.looked_at(at).unwrap_or(0.0) + away + self.not(at).map(|(_, seconds)| seconds).sum::<f64>()
    }

    fn put(&mut self, steps: usize, at: usize, why: &str, seconds: f64) {
        let into = match why {
            "" => &mut self.looked,
            DUTY_CYCLE => &mut self.away,
            other => self.not.entry(other.to_owned()).or_default(),
        };
        into.resize(steps, 0.0);
        into[at] += seconds;
    }
}

/// What was recorded, by group.
pub fn recorded(reader: &Reader, tier: &Tier, grid: Grid) -> Result<HashMap<String, Recorded>, HistoryError> {
    let metric = reader.metric(COVERAGE.name)?;
    let series = reader.series(&metric)?;
    let mut groups: HashMap<String, Recorded> = HashMap::new();
    reader.scan(&metric, tier, grid.span, |second, series_id, cell| {
        if let (Some(at), Some([group, why]), Cell::Sum(us)) =
            (grid.at(second), series.get(&series_id).map(Vec::as_slice), cell)
        {
            let one = groups.entry(group.clone()).or_default();
            one.put(grid.steps(), at, why, us as f64 / 1e6);
        }
    })?;
    Ok(groups)
}

impl Coverage {
    /// The coverage of a window up to `until`, the end of what can be recorded by now.
    pub fn of(group: &str, recorded: &Recorded, grid: Grid, marks: &[Mark], until: i64) -> Self {
        let mut missing: BTreeMap<String, f64> = BTreeMap::new();
        let mut steps = Vec::new();
        let mut seconds = 0.0;
        for (at, rest) in unknown(recorded, grid, until).into_iter().enumerate() {
            let span = grid.step_up_to(at, until);
            let length = span.length();
            seconds += length;
            let lacks = lacks(recorded, at, span, rest, marks);
            let lacking: f64 = lacks.iter().map(|(_, lack)| lack).sum();
            let worst = lacks.iter().max_by(|a, b| a.1.total_cmp(&b.1)).map(|(why, _)| why.clone());
            steps.push(worst.filter(|_| lacking > 0.1 * length));
            for (why, lack) in lacks {
                *missing.entry(why).or_default() += lack;
            }
        }
        let share = recorded.looked_share();
        let missing = missing.into_iter().map(|(why, seconds)| Missing { why, seconds: tenths(seconds) });
        Self {
            group: group.to_owned(),
            seconds,
            recorded_seconds: tenths(recorded.total()),
            looked_share: (!recorded.is_whole()).then(|| (share * 1000.0).round() / 1000.0),
            missing: missing.filter(|missing| missing.seconds > 0.0).collect(),
            gaps: gaps(&steps, grid),
        }
    }
}

/// For how long of each step nothing is known, in seconds. Ticks are not exactly a second long, and each counts in one second: what a step
/// has too much, its neighbours have too little.
fn unknown(recorded: &Recorded, grid: Grid, until: i64) -> Vec<f64> {
    let rest = |at: usize| grid.step_up_to(at, until).length() - recorded.known(at);
    let mut rests: Vec<f64> = (0..grid.steps()).map(rest).collect();
    let mut left_over: f64 = 0.0;
    for at in 0..rests.len() {
        if rests[at] >= 0.0 {
            left_over -= pay(&mut rests[at], left_over);
            continue;
        }
        let more = (-std::mem::take(&mut rests[at])).min(SHIFT);
        let paid = if at > 0 { pay(&mut rests[at - 1], more) } else { 0.0 };
        left_over = (left_over + more - paid).min(SHIFT);
    }
    rests
}

/// Makes up for what a step lacks, as far as there is something to do it with; how much of that went.
fn pay(rest: &mut f64, with: f64) -> f64 {
    let paid = rest.clamp(0.0, with);
    *rest -= paid;
    paid
}

/// What of a step is not recorded, by reason; of its rest nothing is known but what marks tell.
fn lacks(recorded: &Recorded, at: usize, span: Span, mut rest: f64, marks: &[Mark]) -> Vec<(String, f64)> {
    let mut lacks: Vec<_> = recorded.not(at).map(|(why, seconds)| (why.to_owned(), seconds)).collect();
    let away = recorded.away.get(at).copied().unwrap_or(0.0);
    if recorded.looked() == 0.0 && away > 0.0 {
        lacks.push((DUTY_CYCLE.to_owned(), away));
    }
    // Ticks are not exactly a second long.
    let slack = (0.02 * span.length()).max(0.25);
    if rest < slack {
        return lacks;
    }
    for mark in marks.iter().filter(|mark| mark.seconds > 0.0 && mark.kind != SPREAD) {
        let overlap = mark.at.min(span.to as f64) - (mark.at - mark.seconds).max(span.from as f64);
        let part = overlap.clamp(0.0, rest);
        if part > 0.0 {
            lacks.push((mark.kind.clone(), part));
            rest -= part;
        }
    }
    if rest >= slack {
        lacks.push(("not_running".to_owned(), rest));
    }
    lacks
}

fn gaps(steps: &[Option<String>], grid: Grid) -> Vec<Gap> {
    let mut gaps: Vec<Gap> = Vec::new();
    let mut before = None;
    for (at, why) in steps.iter().enumerate() {
        let span = grid.step_span(at);
        match (why, gaps.last_mut()) {
            (Some(why), Some(last)) if before == Some(why) => {
                last.to = stamp(span.to);
                debug_assert_eq!(&last.why, why);
            }
            (Some(why), _) => gaps.push(Gap { from: stamp(span.from), to: stamp(span.to), why: why.clone() }),
            (None, _) => {}
        }
        before = why.as_ref();
    }
    gaps.truncate(MOST_GAPS);
    gaps
}

fn tenths(seconds: f64) -> f64 {
    // A sum of nothing is -0.
    (seconds * 10.0).round() / 10.0 + 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const FROM: i64 = 1_767_323_040;

    fn grid() -> Grid {
        Grid { span: Span { from: FROM, to: FROM + 60 }, step: 10 }
    }

    fn all_the_time() -> Recorded {
        let mut recorded = Recorded::default();
        (0..6).for_each(|at| recorded.put(6, at, "", 10.0));
        recorded
    }

    #[test]
    fn what_is_all_recorded_lacks_nothing() {
        let coverage = Coverage::of("cpu", &all_the_time(), grid(), &[], FROM + 60);
        assert_eq!((coverage.seconds, coverage.recorded_seconds), (60.0, 60.0));
        assert!(coverage.missing.is_empty() && coverage.gaps.is_empty() && coverage.looked_share.is_none());
    }

    #[test]
    fn what_is_missing_has_a_reason_and_a_place() {
        let mut recorded = Recorded::default();
        recorded.put(6, 0, "", 10.0);
        recorded.put(6, 1, "shed", 10.0);
        recorded.put(6, 5, "", 10.0);
        let slept = Mark { at: (FROM + 40) as f64, kind: "suspend".into(), seconds: 20.0, text: String::new() };
        let coverage = Coverage::of("cpu", &recorded, grid(), &[slept], FROM + 60);
        assert_eq!((coverage.seconds, coverage.recorded_seconds), (60.0, 20.0));
        let missing: Vec<_> = coverage.missing.iter().map(|one| (one.why.as_str(), one.seconds)).collect();
        assert_eq!(missing, [("not_running", 10.0), ("shed", 10.0), ("suspend", 20.0)]);
        let gaps: Vec<_> = coverage.gaps.iter().map(|gap| (gap.from.as_str(), gap.why.as_str())).collect();
        let at = |second| stamp(FROM + second);
        assert_eq!(gaps, [(at(10).as_str(), "shed"), (at(20).as_str(), "suspend"), (at(40).as_str(), "not_running")]);
        assert_eq!(coverage.gaps[1].to, at(40));
    }

    #[test]
    fn a_duty_cycle_is_recorded_time_looked_at_in_part() {
        let mut recorded = Recorded::default();
        for at in 0..6 {
            recorded.put(6, at, "", 0.5);
            recorded.put(6, at, DUTY_CYCLE, 9.5);
        }
        let coverage = Coverage::of("syscalls", &recorded, grid(), &[], FROM + 60);
        assert_eq!((coverage.recorded_seconds, coverage.looked_share), (60.0, Some(0.05)));
        assert!(coverage.missing.is_empty());
    }

    #[test]
    fn between_two_looks_of_a_duty_cycle_is_recorded_time_however_short_the_steps_are() {
        let of = |step: usize| {
            let (mut recorded, steps) = (Recorded::default(), 60 / step);
            for second in 0..60 {
                let looked = if second % 10 == 0 { 0.1 } else { 0.0 };
                recorded.put(steps, second / step, "", looked);
                recorded.put(steps, second / step, DUTY_CYCLE, 1.0 - looked);
            }
            let coverage = Coverage::of("syscalls", &recorded, Grid { step: step as i64, ..grid() }, &[], FROM + 60);
            assert!(coverage.missing.is_empty() && coverage.gaps.is_empty(), "{coverage:?}");
            (coverage.recorded_seconds, coverage.looked_share, recorded.looked_at(1).map(tenths))
        };
        assert_eq!(of(1), (60.0, Some(0.01), None));
        assert_eq!(of(5), (60.0, Some(0.01), None));
        assert_eq!(of(10), (60.0, Some(0.01), Some(0.1)));
    }

    #[test]
    fn a_window_without_a_look_is_not_recorded() {
        let mut recorded = Recorded::default();
        (0..6).for_each(|at| recorded.put(6, at, DUTY_CYCLE, 10.0));
        let coverage = Coverage::of("syscalls", &recorded, grid(), &[], FROM + 60);
        assert_eq!(coverage.recorded_seconds.to_bits(), 0.0_f64.to_bits(), "and not -0");
        assert_eq!(coverage.missing, [Missing { why: DUTY_CYCLE.into(), seconds: 60.0 }]);
    }

    #[test]
    fn a_second_read_late_does_not_lack_in_the_next_one() {
        let grid = Grid { span: Span { from: FROM, to: FROM + 8 }, step: 1 };
        let of = |seconds: [f64; 8]| {
            let mut recorded = Recorded::default();
            seconds.into_iter().enumerate().for_each(|(at, seconds)| recorded.put(8, at, "", seconds));
            Coverage::of("cpu", &recorded, grid, &[], FROM + 8)
        };
        for whole in [[1.0, 1.4, 0.6, 1.0, 1.0, 1.0, 1.0, 1.0], [1.06, 1.06, 1.06, 1.06, 1.06, 1.06, 1.06, 0.6]] {
            let coverage = of(whole);
            assert!(coverage.missing.is_empty() && coverage.gaps.is_empty(), "{coverage:?}");
        }
        let early = of([1.0, 0.6, 1.4, 1.0, 1.0, 1.0, 1.0, 1.0]);
        assert!(early.missing.is_empty(), "{early:?}");
        let ended = of([1.0, 1.0, 1.4, 0.0, 0.0, 0.0, 1.0, 1.0]);
        assert_eq!(ended.missing, [Missing { why: "not_running".into(), seconds: 2.6 }], "{ended:?}");
        let twice = of([2.0, 2.0, 2.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
        assert_eq!(twice.missing, [Missing { why: "not_running".into(), seconds: 3.0 }], "a clock that was set back");
    }

    #[test]
    fn the_future_is_not_missing() {
        let mut recorded = Recorded::default();
        (0..3).for_each(|at| recorded.put(6, at, "", 10.0));
        let coverage = Coverage::of("cpu", &recorded, grid(), &[], FROM + 30);
        assert_eq!((coverage.seconds, coverage.recorded_seconds, coverage.missing.len()), (30.0, 30.0, 0));
    }
}
