//! Triage: a ranked answer to "what is wrong with this machine".
//!
//! [`gather`] looks at the kernel's own statistics and, where the process may, at a bounded set of native probes, for some seconds.
//! [`rules`] make findings of that, each on its own, and [`rank`] puts causes before what follows from them. Only `gather` and `system`
//! touch the system.

pub mod evidence;
pub mod finding;
pub mod gather;
pub mod lately;
pub mod rank;
pub mod rules;
pub mod system;
mod text;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::{evidence::Evidence, finding::Finding, lately::Lately};
use crate::report::Window;

/// What to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[clap(rename_all = "snake_case")]
pub enum Focus {
    /// CPUs, run queues, interrupts, limits of control groups.
    Cpu,
    /// Reclaim, limits, kills.
    Memory,
    /// Block devices and durability.
    Disk,
    /// TCP, drops, names.
    Network,
    /// Locks of programs and of the kernel.
    Locks,
    /// Starts, signals, failing system calls.
    Processes,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Triage {
    /// What stands out, the likeliest cause first; empty if nothing does.
    pub findings: Vec<Finding>,
    /// The numbers that were looked at, whether they stand out or not.
    pub looked_at: Vec<Number>,
    /// What has changed since an hour ago, if somebody records.
    #[serde(default)]
    pub lately: Lately,
    /// When.
    pub window: Window,
    /// What was not looked at, and what a reader must know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// A number with its name and unit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Number {
    /// What it is.
    pub name: String,
    /// Its value.
    pub value: f64,
    /// Its unit.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub unit: String,
}

impl Number {
    /// A number, rounded to what a reader can use.
    pub fn new(name: &str, value: f64, unit: &str) -> Self {
        Self { name: name.into(), value: rounded(value), unit: unit.into() }
    }
}

/// How many findings an answer has at most.
const MOST_FINDINGS: usize = 8;

/// The answer that the evidence gives, beside what was recorded lately.
pub fn judge(evidence: &Evidence, window: Window, lately: Lately) -> Triage {
    let wanted = rules::RULES.iter().filter(|rule| evidence.focus.is_none_or(|focus| focus == rule.focus));
    let found = wanted.filter_map(|rule| rule.judge(evidence)).collect();
    let mut findings = rank::ranked(found);
    let mut notes = evidence.notes.clone();
    if findings.len() > MOST_FINDINGS {
        notes.push(format!("{} lesser findings are left out", findings.len() - MOST_FINDINGS));
        findings.truncate(MOST_FINDINGS);
    }
    Triage { findings, looked_at: evidence.numbers(), lately, window, notes }
}

/// The answer as a person reads it.
pub fn text(triage: &Triage) -> String {
    text::triage(triage)
}

/// Three significant digits below 1,000, whole numbers above.
fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return 0.0;
    }
    let digits = (2 - value.abs().log10().floor() as i32).max(0);
    let scale = 10_f64.powi(digits);
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_rounded_to_three_digits() {
        for (given, rounded_to) in
            [(0.0, 0.0), (0.012_345, 0.0123), (1.2345, 1.23), (999.6, 1000.0), (123_456.7, 123_457.0)]
        {
            assert!((rounded(given) - rounded_to).abs() < 1e-9, "{given}: {}", rounded(given));
        }
    }
}
