//! Measures all variants of a case in turn, round after round, and what each adds to an event.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result};

use crate::{
    cases::Case,
    tracers,
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
        let (rounds, milliseconds) = if quick { (rounds.min(3), 100) } else { (rounds, 350) };
        Self { rounds, length: Duration::from_millis(milliseconds), quick }
    }
}

/// What was measured of a case.
#[derive(Debug)]
pub(crate) struct Costs {
    pub(crate) case: &'static Case,
    /// By variant, one timing a round. A variant that cannot run here is not there.
    pub(crate) timings: BTreeMap<Variant, Vec<Timing>>,
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
}

/// Runs all rounds of a case.
pub(crate) fn measure(case: &'static Case, plan: &Plan) -> Result<Costs> {
    let mut costs = Costs { case, timings: BTreeMap::new(), failures: Vec::new(), disturbed: 0, seen_per_event: 0.0 };
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
    Ok(costs)
}

impl Costs {
    /// What a variant adds.
    pub(crate) fn added(&self, variant: Variant) -> Option<Added> {
        added(self.timings.get(&variant)?, self.timings.get(&Variant::None)?)
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
const TRIES: u32 = 4;
const OTHERS_PATIENCE: Duration = Duration::from_secs(3);

/// The order of a round: each variant comes first in its turn, so that none always follows the same one.
fn rotated(variants: &[Variant], round: usize) -> Vec<Variant> {
    let mut order = variants.to_vec();
    order.rotate_left(round % variants.len().max(1));
    order
}

fn added(traced: &[Timing], untraced: &[Timing]) -> Option<Added> {
    let differences = traced.iter().zip(untraced).map(|(traced, untraced)| traced.fastest - untraced.fastest);
    Some(Added { min: fastest(traced) - fastest(untraced), median: median(differences.collect())? })
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
        assert_eq!(added(&traced, &untraced), Some(Added { min: 80.0, median: 90.0 }));
        assert_eq!(added(&[], &untraced), None);
    }

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(Vec::new()), None);
    }
}
