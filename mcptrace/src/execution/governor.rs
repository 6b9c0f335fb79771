//! Keeps an execution within its budget: is told what it costs, warns, and says when it must end. Pure.
//!
//! One measurement over the budget is a warning; the third in a row ends the execution. Then whoever reads the result finds the reason
//! in its notes, and what was found until then.

use std::time::Duration;

/// Measurements over the budget, one after the other, that end an execution.
const PATIENCE: u32 = 3;
/// How soon it is measured again while it is over the budget, near it, and at most.
const SOON: Duration = Duration::from_millis(200);
const NEAR: Duration = Duration::from_secs(1);
const FAR: Duration = Duration::from_secs(10);
/// How often where there is no budget.
const UNBOUND: Duration = Duration::from_mins(1);

/// Judges what an execution costs.
#[derive(Clone, Debug, Default)]
pub struct Governor {
    budget: Option<f64>,
    over: u32,
    highest: f64,
    pause: Duration,
    ended: bool,
}

impl Governor {
    /// With a budget in percent of one CPU; `None` for no bound.
    pub fn new(budget: Option<f64>) -> Self {
        Self { budget, pause: NEAR, ..Self::default() }
    }

    /// Takes what it costs now, in percent of one CPU. True if it must end.
    pub fn judge(&mut self, percent: f64) -> bool {
        let Some(budget) = self.budget else { return false };
        self.highest = self.highest.max(percent);
        self.over = if percent > budget { self.over + 1 } else { 0 };
        self.pause = match percent / budget {
            share if share > 1.0 => SOON,
            share if share > 0.25 => NEAR,
            _ => (self.pause.max(NEAR) * 2).min(FAR),
        };
        self.ended = self.over >= PATIENCE;
        self.ended
    }

    /// How long until it should be measured again. Measuring costs too.
    pub fn pause(&self) -> Duration {
        if self.budget.is_some() { self.pause } else { UNBOUND }
    }

    /// What a reader of the result must know, if it has been over its budget.
    pub fn note(&self) -> Option<String> {
        let budget = self.budget.filter(|budget| self.highest > *budget)?;
        let cost = format!("it cost up to {:.1} % of one CPU, over the budget of {budget} %", self.highest);
        Some(if self.ended {
            format!(
                "detached before its time: {cost} in a stretch of its run (`overhead` is the mean of all of it). It saw nothing after that. Narrow it (filter by pid, comm or cgroup, fewer hooks, slower_than_us) or ask for a shorter time; the operator sets the budget with --execution-budget"
            )
        } else {
            format!("warning: {cost}; if it stays there it is detached")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_peak_is_a_warning_and_three_in_a_row_are_the_end() {
        let mut governor = Governor::new(Some(5.0));
        assert_eq!((governor.judge(4.0), governor.note()), (false, None));
        assert!(!governor.judge(9.0) && !governor.judge(8.0) && !governor.judge(1.0));
        let note = governor.note().unwrap();
        assert!(note.starts_with("warning: it cost up to 9.0 %"), "{note}");
        assert!(!governor.judge(6.0) && !governor.judge(6.0) && governor.judge(12.0));
        let note = governor.note().unwrap();
        assert!(note.starts_with("detached") && note.contains("12.0 % of one CPU") && note.contains("5 %"), "{note}");
    }

    #[test]
    fn without_a_budget_nothing_is_too_much() {
        let mut governor = Governor::new(None);
        assert!((0..9).all(|_| !governor.judge(100.0)));
        assert_eq!((governor.note(), governor.pause()), (None, UNBOUND));
    }

    #[test]
    fn what_costs_little_is_measured_seldom_and_what_costs_much_soon() {
        let mut governor = Governor::new(Some(5.0));
        let mut pauses = Vec::new();
        for percent in [0.1, 0.1, 0.1, 0.1, 0.1, 2.0, 6.0] {
            governor.judge(percent);
            pauses.push(governor.pause().as_millis());
        }
        assert_eq!(pauses, [2000, 4000, 8000, 10_000, 10_000, 1000, 200]);
    }

    #[test]
    fn what_costs_just_its_budget_is_within_it() {
        let mut governor = Governor::new(Some(4.0));
        assert!((0..9).all(|_| !governor.judge(4.0)));
        assert_eq!((governor.note(), governor.pause()), (None, NEAR));
        governor.judge(1.0);
        assert_eq!(governor.pause(), NEAR * 2, "a quarter of it is little");
    }
}
