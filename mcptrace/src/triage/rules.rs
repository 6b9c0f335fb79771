//! The rules: each looks at the evidence for one kind of trouble, and says nothing if there is none. Pure.
//!
//! Thresholds are levels at which work visibly suffers on any machine, not levels of one machine: shares of time, and rates that no healthy
//! program has. `over` makes of a value and two such levels an impact from 0 to 1.

mod cpu;
mod disk;
mod locks;
mod memory;
mod network;
mod processes;

pub(super) use self::memory::{held_up, is_short, near_limit};
use super::{
    Focus,
    evidence::Evidence,
    finding::{Finding, Judged, Kind},
};

/// A rule.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// What it finds.
    pub kind: Kind,
    /// Where it belongs.
    pub focus: Focus,
    /// Probes that it looks at; without them it says less, or nothing.
    pub probes: &'static [&'static str],
    judge: fn(&Evidence) -> Option<Judged>,
}

/// All rules.
pub const RULES: &[Rule] = &[
    cpu::SATURATION,
    cpu::RUNQ_DELAY,
    cpu::RUNAWAY,
    cpu::STEAL,
    cpu::INTERRUPTS,
    cpu::THROTTLING,
    memory::RECLAIM,
    memory::LIMIT,
    memory::OOM,
    disk::FSYNC_STORM,
    disk::SATURATION,
    disk::LATENCY,
    locks::USER,
    locks::KERNEL,
    network::RETRANSMITS,
    network::REFUSED,
    network::DROPS,
    network::NAMES,
    processes::EXEC_STORM,
    processes::SIGNAL_STORM,
    processes::FAILURES,
];

impl Rule {
    /// What it finds in the evidence.
    pub fn judge(&self, evidence: &Evidence) -> Option<Finding> {
        (self.judge)(evidence).map(|judged| Finding::new(self.kind, judged))
    }
}

/// CPUs count as used up from here.
pub(super) const USED_UP: f64 = 0.9;

/// How bad a value is, from 0.2 at the level where it is worth knowing to 1 at the level where work does not get done; `None` below.
/// Between them by orders of magnitude.
pub(super) fn over(value: f64, notable: f64, bad: f64) -> Option<f64> {
    let place = (value / notable).ln() / (bad / notable).ln();
    (value >= notable).then(|| 0.2 + 0.8 * place.clamp(0.0, 1.0))
}

/// Milliseconds of nanoseconds.
pub(super) fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

#[cfg(test)]
mod tests;
