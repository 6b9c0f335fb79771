//! Measures all variants of a case in turn, round after round, and what each adds to an event.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result};
use mcptrace_tests::tracers;

use crate::{
    cases::Case,
    statistics::{self, InPrograms},
    variant::{Running, Variant},
    workload::Timing,
};

/// How long and how often to measure.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) rounds: u32,
    /// Of one measurement. Shorter than the time after which mcptrace samples its own cost, half a second: a window of 50 ms in
    /// every minute must not be a seventh of what is measured.
    pub(crate) length: Duration,
    pub(crate) quick: bool,
}

impl Plan {
    pub(crate) fn new(rounds: u32, quick: bool) -> Self {
        let (rounds, milliseconds) = if quick { (rounds.min(2), 100) } else { (rounds, 300) };
        Self { rounds, length: Duration::from_millis(milliseconds), quick }
    }
}

/// What was measured of a case.
#[derive(Debug)]
pub(crate) struct Costs {
    pub(crate) case: &'static Case,
    /// By variant, one timing a round. A variant that cannot run here is not there.
    pub(crate) timings: BTreeMap<Variant, Vec<Timing>>,
    /// By variant, what its programs took by the kernel's statistics.
    pub(crate) in_programs: BTreeMap<Variant, InPrograms>,
    /// Why variants are missing.
    pub(crate) failures: Vec<String>,
    /// Measurements during which programs of others came, went or stayed.
    pub(crate) disturbed: u32,
    /// What the probe saw of every event of the workload.
    pub(crate) seen_per_event: f64,
}

/// What a variant adds to an event, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Added {
    /// The fastest round, less the fastest without tracing: what the machine can do undisturbed.
    pub(crate) min: f64,
    /// The median over the rounds of the difference to no tracing in the same round.
    pub(crate) median: f64,
    /// The median distance of the rounds from that median.
    pub(crate) spread: f64,
}

impl Added {
    /// Whether it stands out of what the loop itself varies by.
    pub(crate) fn is_clear(self) -> bool {
        self.median > 4.0 * self.spread && self.min > 0.0
    }
}

/// What something costs, and how it was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cost {
    pub(crate) ns: f64,
    /// By what the loop took longer; else by the kernel's statistics of the programs.
    pub(crate) by_loop: bool,
}

/// Runs all rounds of a case.
pub(crate) fn measure(case: &'static Case, plan: &Plan) -> Result<Costs> {
    let mut costs = Costs {
        case,
        timings: BTreeMap::new(),
        in_programs: BTreeMap::new(),
        failures: Vec::new(),
        disturbed: 0,
        seen_per_event: 0.0,
    };
    let mut variants: Vec<_> = Variant::ALL.into_iter().filter(|variant| variant.is_there(case)).collect();
    for round in 0..plan.rounds {
        eprintln!("bench: {} round {} of {}", case.probe, round + 1, plan.rounds);
        for variant in rotated(&variants, round as usize) {
            match costs.measure_once(variant, plan) {
                Ok(timing) => {
                    eprintln!("bench:   {}: {:.1} ns", variant.name(case), timing.fastest);
                    costs.timings.entry(variant).or_default().push(timing);
                }
                Err(error) if matches!(variant, Variant::Bpftrace | Variant::Tool) => {
                    eprintln!("bench: {}: {error:#}", case.probe);
                    costs.failures.push(format!("{}: {error:#}", variant.name(case)));
                    costs.timings.remove(&variant);
                    variants.retain(|other| *other != variant);
                }
                Err(error) => return Err(error).with_context(|| format!("{} of {}", variant.name(case), case.probe)),
            }
        }
    }
    for variant in variants.into_iter().filter(|variant| *variant != Variant::None) {
        let found = statistics::measure(case, variant, 2 * plan.length)?;
        eprintln!("bench:   {} in its programs: {:.1} ns in {:.2} runs", variant.name(case), found.ns, found.runs);
        costs.in_programs.insert(variant, found);
    }
    Ok(costs)
}

impl Costs {
    /// What a variant adds.
    pub(crate) fn added(&self, variant: Variant) -> Option<Added> {
        added(self.timings.get(&variant)?, self.timings.get(&Variant::None)?)
    }

    /// What the probe costs for each event that it sees.
    pub(crate) fn of_event(&self) -> Option<Cost> {
        let added = self.added(Variant::Mcptrace)?;
        if added.is_clear() && self.seen_per_event > 0.0 {
            return Some(Cost { ns: added.median / self.seen_per_event, by_loop: true });
        }
        let found = self.in_programs.get(&Variant::Mcptrace)?;
        (found.seen > 0.0).then(|| Cost { ns: found.ns / found.seen, by_loop: false })
    }

    /// The peer that adds least, and what the probe adds as a ratio to it.
    pub(crate) fn to_cheapest_peer(&self) -> Option<(Variant, Cost)> {
        let ratios = [Variant::Bpftrace, Variant::Tool].map(|peer| Some((peer, self.ratio_to(peer)?)));
        // The cheapest peer is the one to which the ratio is largest.
        ratios.into_iter().flatten().max_by(|one, other| one.1.ns.total_cmp(&other.1.ns))
    }

    /// A ratio of costs, whose `ns` it is.
    fn ratio_to(&self, peer: Variant) -> Option<Cost> {
        let (ours, theirs) = (self.added(Variant::Mcptrace)?, self.added(peer)?);
        if ours.is_clear() && theirs.is_clear() {
            return Some(Cost { ns: ours.median / theirs.median, by_loop: true });
        }
        let [ours, theirs] = [Variant::Mcptrace, peer].map(|variant| self.in_programs.get(&variant));
        let (ours, theirs) = (ours?.ns, theirs?.ns);
        (theirs > 0.0).then(|| Cost { ns: ours / theirs, by_loop: false })
    }

    /// What an event takes without tracing: the fastest slice, in nanoseconds.
    pub(crate) fn untraced(&self) -> f64 {
        let without = self.timings.get(&Variant::None).map(Vec::as_slice).unwrap_or_default();
        fastest(without)
    }

    /// Measures a variant, again and again if others traced meanwhile, but not for ever.
    fn measure_once(&mut self, variant: Variant, plan: &Plan) -> Result<Timing> {
        for _ in 0..TRIES {
            let others = tracers::wait_for_none(OTHERS_PATIENCE);
            let running = variant.start(self.case)?;
            let before = tracers::loaded();
            let seen = running.seen();
            let timing = self.case.workload.run(plan.length)?;
            self.note_seen(&running, seen, timing.events);
            if others.is_empty() && tracers::loaded() == before {
                return Ok(timing);
            }
            drop(running);
        }
        self.disturbed += 1;
        let _running = variant.start(self.case)?;
        self.case.workload.run(plan.length)
    }

    /// Keeps the least that the probe saw of the workload's events: a probe that sees nothing is cheap.
    fn note_seen(&mut self, running: &Running, before: Option<u64>, events: u64) {
        let Some((before, after)) = before.zip(running.seen()) else { return };
        let seen = (after - before) as f64 / events as f64;
        self.seen_per_event = if self.seen_per_event == 0.0 { seen } else { self.seen_per_event.min(seen) };
    }
}

/// How often a measurement is made again, and how long the programs of others are waited for.
const TRIES: u32 = 2;
const OTHERS_PATIENCE: Duration = Duration::from_millis(500);

/// The order of a round: each variant comes first in its turn, so that none always follows the same one.
fn rotated(variants: &[Variant], round: usize) -> Vec<Variant> {
    let mut order = variants.to_vec();
    order.rotate_left(round % variants.len().max(1));
    order
}

fn added(traced: &[Timing], untraced: &[Timing]) -> Option<Added> {
    let differences = traced.iter().zip(untraced).map(|(traced, untraced)| traced.fastest - untraced.fastest);
    let differences: Vec<_> = differences.collect();
    let middle = median(differences.clone())?;
    let spread = median(differences.iter().map(|one| (one - middle).abs()).collect())?;
    Some(Added { min: fastest(traced) - fastest(untraced), median: middle, spread })
}

fn fastest(timings: &[Timing]) -> f64 {
    timings.iter().map(|timing| timing.fastest).fold(f64::INFINITY, f64::min)
}

/// The median; the mean of the two in the middle.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = values[(values.len() - 1) / 2];
    Some(f64::midpoint(lower, upper))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timing(fastest: f64) -> Timing {
        Timing { fastest, events: 1 }
    }

    #[test]
    fn every_variant_comes_first_in_its_turn() {
        let firsts: Vec<_> = (0..5).map(|round| rotated(&Variant::ALL, round)[0]).collect();
        assert_eq!(firsts, Variant::ALL);
        assert_eq!(rotated(&Variant::ALL, 6)[4], Variant::None);
    }

    #[test]
    fn what_is_added_is_counted_from_no_tracing_in_the_same_round() {
        let untraced = [100.0, 310.0, 101.0].map(timing);
        let traced = [180.0, 400.0, 900.0].map(timing);
        assert_eq!(added(&traced, &untraced), Some(Added { min: 80.0, median: 90.0, spread: 10.0 }));
        assert_eq!(added(&[], &untraced), None);
    }

    #[test]
    fn what_does_not_stand_out_is_taken_from_the_statistics() {
        let mut costs = Costs {
            case: &crate::cases::CASES[0],
            timings: BTreeMap::new(),
            in_programs: BTreeMap::new(),
            failures: Vec::new(),
            disturbed: 0,
            seen_per_event: 2.0,
        };
        let all = |values: [f64; 3]| values.map(timing).to_vec();
        costs.timings.insert(Variant::None, all([100.0, 100.0, 100.0]));
        costs.timings.insert(Variant::Mcptrace, all([200.0, 201.0, 202.0]));
        costs.timings.insert(Variant::Tool, all([300.0, 301.0, 302.0]));
        assert_eq!(costs.of_event(), Some(Cost { ns: 50.5, by_loop: true }));
        let (peer, ratio) = costs.to_cheapest_peer().unwrap();
        assert_eq!((peer, ratio.by_loop), (Variant::Tool, true));
        assert!((ratio.ns - 101.0 / 201.0).abs() < 1e-9);
        costs.timings.insert(Variant::Mcptrace, all([150.0, 201.0, 252.0]));
        assert_eq!(costs.of_event(), None);
        costs.in_programs.insert(Variant::Mcptrace, InPrograms { ns: 60.0, runs: 2.0, seen: 2.0 });
        costs.in_programs.insert(Variant::Tool, InPrograms { ns: 240.0, runs: 2.0, seen: 0.0 });
        assert_eq!(costs.of_event(), Some(Cost { ns: 30.0, by_loop: false }));
        assert_eq!(costs.to_cheapest_peer(), Some((Variant::Tool, Cost { ns: 0.25, by_loop: false })));
    }

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(Vec::new()), None);
    }
}
