//! Keeps the recorder within its budget. Pure: it is told what was measured and says what to do.
//!
//! Over budget it first looks at system calls for a shorter time, then sheds the dearest group; far over it, at once and as many groups as
//! that takes. When there has been room for a while it takes back what it shed last. What was taken back and had to be shed again soon waits
//! twice as long the next time.
//!
//! Where the recorder's thread alone is over the budget, nothing that is left out brings all within it. Then its programs have the budget for
//! themselves, and are left out only if they are over it.

use std::collections::BTreeMap;

/// How often system calls are looked at, in ticks.
pub const DUTY_TICKS: u64 = 10;
/// For how long, in milliseconds: the levels of the duty cycle.
const DUTY_MS: [u64; 6] = [500, 200, 100, 50, 20, 0];
/// The level to begin with: what a second costs is not known yet.
const FIRST_DUTY: usize = 2;

/// Measurements over the budget, one after the other, before something is given up.
const PATIENCE: u32 = 2;
/// Budgets that are too much to wait for another measurement.
const FAR: f64 = 2.0;
/// The share of the budget that all together may take after something is taken back.
const ROOM: f64 = 0.8;
/// Seconds of calm before something is taken back.
const CALM: f64 = 30.0;
/// The longest that seconds of calm get.
const LONGEST_CALM: f64 = 1920.0;

/// What a tick cost, in shares of the time of all CPUs.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Of the recorder's own thread.
    pub own: f64,
    /// Of its programs in the kernel, by group.
    pub groups: BTreeMap<&'static str, f64>,
    /// What system calls would cost if they were looked at all the time; `None` until that is known.
    pub syscalls_always: Option<f64>,
    /// Seconds since the last measurement.
    pub seconds: f64,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Stop recording a group.
    Shed(&'static str),
    /// Record it again.
    Restore(&'static str),
}

/// Decides.
#[derive(Clone, Debug)]
pub struct Governor {
    budget: f64,
    duty: usize,
    over: u32,
    calm: f64,
    shed: Vec<Shed>,
    waits: BTreeMap<&'static str, f64>,
    restored: Option<(&'static str, f64)>,
    last: f64,
}

#[derive(Clone, Copy, Debug)]
struct Shed {
    group: &'static str,
    cost: f64,
}

/// Groups whose cost goes by switches between threads.
const SCHEDULING: [&str; 2] = ["cpu", "runq"];

/// The groups that may be shed. Not those out of /proc, which have no programs.
const SHEDDABLE: &[&str] = &["runq", "block", "tcp", "processes", "memory", "interrupts", "locks", "cpu"];

impl Governor {
    /// With a budget as a share of the time of all CPUs.
    pub fn new(budget: f64) -> Self {
        Self {
            budget,
            duty: FIRST_DUTY,
            over: 0,
            calm: 0.0,
            shed: Vec::new(),
            waits: BTreeMap::new(),
            restored: None,
            last: 0.0,
        }
    }

    /// The budget.
    pub fn budget(&self) -> f64 {
        self.budget
    }

    /// For how many milliseconds of every [`DUTY_TICKS`] seconds system calls are looked at; 0 for not at all.
    pub fn duty_ms(&self) -> u64 {
        DUTY_MS[self.duty]
    }

    /// Whether a group is shed.
    pub fn has_shed(&self, group: &str) -> bool {
        self.shed.iter().any(|shed| shed.group == group)
    }

    /// What all cost at the last measurement, as a share of the time of all CPUs.
    pub fn cost(&self) -> f64 {
        self.last
    }

    /// Whether so much of the recorder's thread and of programs is more than may be, if leaving programs out can help.
    pub fn is_over(&self, own: f64, programs: f64) -> bool {
        programs > self.left_by(own)
    }

    /// Whether programs are over what they may cost if there are so many times more switches between threads than when that was measured.
    pub fn would_be_over(&self, measured: &Measured, times: f64) -> bool {
        let scheduling = SCHEDULING.iter().filter(|group| !self.has_shed(group));
        let cost: f64 = scheduling.filter_map(|group| measured.groups.get(group)).sum();
        self.excess(measured) + cost * (times - 1.0) > 0.0
    }

    /// Takes a measurement and decides.
    pub fn decide(&mut self, measured: &Measured) -> Vec<Action> {
        self.last = measured.own + self.programs(measured);
        if let Some((_, seconds)) = &mut self.restored {
            *seconds += measured.seconds;
        }
        if self.excess(measured) > 0.0 {
            self.calm = 0.0;
            self.over += 1;
            let is_far = self.programs(measured) > FAR * self.left_by(measured.own);
            if self.over < PATIENCE && !is_far {
                return Vec::new();
            }
            self.over = 0;
            return self.give_up(measured, is_far);
        }
        self.over = 0;
        self.calm += measured.seconds;
        self.take_back(measured).into_iter().collect()
    }

    /// What the recorder's thread leaves to programs; all if it is over the budget by itself.
    fn left_by(&self, own: f64) -> f64 {
        if own < self.budget { self.budget - own } else { self.budget }
    }

    /// By how much programs cost more than they may.
    fn excess(&self, measured: &Measured) -> f64 {
        self.programs(measured) - self.left_by(measured.own)
    }

    /// What all programs cost. What is shed no longer does, even where the measurement is still of before.
    fn programs(&self, measured: &Measured) -> f64 {
        let on = measured.groups.iter().filter(|(group, _)| !self.has_shed(group));
        on.map(|(_, cost)| cost).sum::<f64>() + syscalls(measured, self.duty)
    }

    /// One group, or all that it takes.
    fn give_up(&mut self, measured: &Measured, all: bool) -> Vec<Action> {
        let mut excess = self.excess(measured);
        // System calls first, as far as that helps: down to the level that is enough, or to none.
        if syscalls(measured, self.duty) > 0.0 {
            let enough = |duty: &usize| syscalls(measured, self.duty) - syscalls(measured, *duty) >= excess;
            self.duty = (self.duty + 1..DUTY_MS.len()).find(enough).unwrap_or(DUTY_MS.len() - 1);
            excess = self.excess(measured);
        }
        let mut actions = Vec::new();
        while excess > 0.0
            && (all || actions.is_empty())
            && let Some((group, cost)) = self.dearest(measured)
        {
            self.shed.push(Shed { group, cost });
            self.wait_longer_for(group);
            actions.push(Action::Shed(group));
            excess -= cost;
        }
        actions
    }

    fn dearest(&self, measured: &Measured) -> Option<(&'static str, f64)> {
        let on = SHEDDABLE.iter().filter(|group| !self.has_shed(group));
        let costs = on.map(|group| (*group, measured.groups.get(group).copied().unwrap_or(0.0)));
        costs.max_by(|one, other| one.1.total_cmp(&other.1)).filter(|(_, cost)| *cost > 0.0)
    }

    /// What came back a short while ago and is too dear again waits twice as long.
    fn wait_longer_for(&mut self, group: &'static str) {
        let again = self.restored.take_if(|(restored, seconds)| *restored == group && *seconds < 2.0 * CALM).is_some();
        let wait = self.waits.entry(group).or_insert(CALM);
        *wait = if again { (*wait * 2.0).min(LONGEST_CALM) } else { CALM };
    }

    fn take_back(&mut self, measured: &Measured) -> Option<Action> {
        if self.calm < CALM {
            return None;
        }
        let room = self.left_by(measured.own) - self.budget * (1.0 - ROOM) - self.programs(measured);
        if let Some(shed) = self.shed.last().copied() {
            let wait = self.waits.get(shed.group).copied().unwrap_or(CALM);
            // What it cost when it was shed says little about now once it has waited for long: then it is tried.
            let fits = shed.cost <= room || self.calm >= 2.0 * wait;
            if self.calm < wait || !fits || room <= 0.0 {
                return None;
            }
            self.shed.pop();
            self.calm = 0.0;
            self.restored = Some((shed.group, 0.0));
            return Some(Action::Restore(shed.group));
        }
        let longer = self.duty.checked_sub(1)?;
        let unknown = measured.syscalls_always.is_none() && self.duty == DUTY_MS.len() - 1;
        if unknown || syscalls(measured, longer) - syscalls(measured, self.duty) <= room {
            self.duty = longer;
            self.calm = 0.0;
        }
        None
    }
}

/// What system calls cost at a level of the duty cycle.
fn syscalls(measured: &Measured, duty: usize) -> f64 {
    measured.syscalls_always.unwrap_or(0.0) * DUTY_MS[duty] as f64 / (DUTY_TICKS * 1000) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(groups: &[(&'static str, f64)], syscalls_always: f64) -> Measured {
        Measured {
            own: 0.0005,
            groups: groups.iter().copied().collect(),
            syscalls_always: Some(syscalls_always),
            seconds: 5.0,
        }
    }

    fn decide(governor: &mut Governor, measured: &Measured, times: usize) -> Vec<Action> {
        (0..times).flat_map(|_| governor.decide(measured)).collect()
    }

    #[test]
    fn within_budget_nothing_is_shed_and_system_calls_get_more_time() {
        let mut governor = Governor::new(0.01);
        assert_eq!(governor.duty_ms(), 100);
        assert_eq!(decide(&mut governor, &measured(&[("runq", 0.002)], 0.01), 100), []);
        assert_eq!(governor.duty_ms(), 500);
        assert!((governor.cost() - 0.003).abs() < 1e-9);
    }

    #[test]
    fn one_measurement_over_budget_is_no_reason() {
        let mut governor = Governor::new(0.01);
        let dear = measured(&[("runq", 0.015)], 0.0);
        let cheap = measured(&[("runq", 0.002)], 0.0);
        for _ in 0..20 {
            assert_eq!(governor.decide(&dear), []);
            assert_eq!(governor.decide(&cheap), []);
        }
    }

    #[test]
    fn far_over_budget_all_that_it_takes_is_shed_at_once() {
        let mut governor = Governor::new(0.01);
        let flood = measured(&[("cpu", 0.012), ("runq", 0.02), ("tcp", 0.002), ("interrupts", 0.001)], 0.0);
        assert_eq!(governor.decide(&flood), [Action::Shed("runq"), Action::Shed("cpu")]);
        let rest = measured(&[("tcp", 0.002), ("interrupts", 0.001)], 0.0);
        assert_eq!(decide(&mut governor, &rest, 5), []);
        // Both come back, the last one first, and not at once.
        assert_eq!(decide(&mut governor, &rest, 100), [Action::Restore("cpu"), Action::Restore("runq")]);
    }

    #[test]
    fn system_calls_go_first_and_only_as_far_as_needed() {
        let mut governor = Governor::new(0.01);
        // 100 ms in 10 s of 60 %: 0.6 %, with 0.5 % of others. 50 ms are enough.
        let busy = measured(&[("runq", 0.005)], 0.6);
        assert_eq!(decide(&mut governor, &busy, 2), []);
        assert_eq!(governor.duty_ms(), 50);
        assert_eq!(decide(&mut governor, &busy, 100), []);
        assert_eq!(governor.duty_ms(), 50, "and it stays there: 100 ms would be too much");
    }

    #[test]
    fn the_dearest_group_goes_next_and_comes_back_when_it_is_calm() {
        let mut governor = Governor::new(0.01);
        let busy = measured(&[("cpu", 0.006), ("runq", 0.009), ("tcp", 0.001)], 0.4);
        assert_eq!(decide(&mut governor, &busy, 2), [Action::Shed("runq")]);
        assert_eq!(governor.duty_ms(), 0);
        assert!(governor.has_shed("runq"));
        let calmer = measured(&[("cpu", 0.004), ("tcp", 0.001)], 0.0);
        assert_eq!(decide(&mut governor, &calmer, 6), [], "0.9 % more would be too much");
        let calm = measured(&[("cpu", 0.0001)], 0.0);
        // 0.9 % did not fit into 80 % of the budget, but it has been calm for long.
        assert_eq!(decide(&mut governor, &calm, 12), [Action::Restore("runq")]);
        assert!(!governor.has_shed("runq"));
        assert_eq!(decide(&mut governor, &calm, 36), []);
        assert_eq!(governor.duty_ms(), 500);
    }

    #[test]
    fn a_burst_of_switches_is_over_budget_before_it_is_measured() {
        let mut governor = Governor::new(0.01);
        let quiet = measured(&[("cpu", 0.0004), ("runq", 0.0002), ("tcp", 0.002)], 0.0);
        assert!(!governor.would_be_over(&quiet, 12.0), "0.05 % of its own, 0.2 % of tcp and 0.72 % of switches");
        assert!(governor.would_be_over(&quiet, 13.0));
        assert!(!governor.would_be_over(&quiet, 0.0));
        assert!(!governor.would_be_over(&Measured::default(), 1e9), "nothing is known");
        assert_eq!(decide(&mut governor, &measured(&[("cpu", 0.02), ("runq", 0.01)], 0.0), 1).len(), 2);
        assert!(!governor.would_be_over(&quiet, 1e6), "they are shed");
    }

    #[test]
    fn what_comes_back_too_early_waits_longer() {
        let mut governor = Governor::new(0.01);
        let busy = measured(&[("cpu", 0.001), ("runq", 0.02)], 0.0);
        let calm = measured(&[("cpu", 0.001)], 0.0);
        let mut restores = Vec::new();
        for _ in 0..4 {
            assert_eq!(governor.decide(&busy), [Action::Shed("runq")]);
            let ticks = (1..1000).find(|_| !governor.decide(&calm).is_empty()).unwrap();
            restores.push(ticks);
        }
        assert!(restores.is_sorted() && restores[3] >= 4 * restores[0], "{restores:?}");
    }

    #[test]
    fn what_costs_nothing_is_not_shed_however_dear_the_thread_is() {
        let mut governor = Governor::new(0.01);
        let own = Measured { own: 0.05, seconds: 5.0, ..Measured::default() };
        assert_eq!(decide(&mut governor, &own, 10), []);
    }

    #[test]
    fn what_cannot_bring_all_within_the_budget_is_not_shed() {
        let mut governor = Governor::new(0.01);
        let dear = |own, runq| Measured { own, ..measured(&[("cpu", 0.001), ("runq", runq)], 0.01) };
        assert_eq!(decide(&mut governor, &dear(0.027, 0.0006), 20), []);
        assert_eq!(governor.duty_ms(), 500, "nor is less looked at system calls");
        assert!((governor.cost() - 0.0291).abs() < 1e-9, "it is said all the same: {}", governor.cost());
        assert!(!governor.is_over(0.027, 0.0016) && governor.is_over(0.009, 0.0016));
        // The programs by themselves are over the budget: they are brought within it.
        assert_eq!(decide(&mut governor, &dear(0.027, 0.02), 2), [Action::Shed("runq")]);
    }
}
