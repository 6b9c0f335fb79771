//! Who runs while a tick ends. Pure.
//!
//! The kernel charges a process when a thread of it leaves its CPU. What has run for seconds is credited in between, by the clock, and what
//! was credited is taken off the charge when that comes: so a process has in all what the scheduler says, and each second its part.

use std::collections::HashMap;

use mcptrace_wire::{RUNNING_TIME_MASK, running_for, running_process};

use super::kept::Kept;

/// More than can have passed between two ticks: the kernel has read its clock after ours.
const ODD: u64 = RUNNING_TIME_MASK / 2;
/// The charge is in the bank of the tick in which its end was seen, or in the next.
const TICKS: u32 = 2;

/// What was credited and is not charged yet.
#[derive(Debug, Default)]
pub(super) struct Running {
    cpus: Vec<Credit>,
    debts: HashMap<u32, Debt>,
}

/// What runs on a CPU, and how much of it was credited.
#[derive(Clone, Copy, Debug, Default)]
struct Credit {
    word: u64,
    ns: u64,
}

/// What a process was credited for, of runs that have ended.
#[derive(Clone, Copy, Debug, Default)]
struct Debt {
    ns: u64,
    ticks_left: u32,
}

impl Running {
    /// Takes off what was credited before and adds what runs now: for each CPU its [`mcptrace_wire::CpuNow::running`], read after all
    /// charges of `kept`, and the time at which it was read.
    pub(super) fn settle(&mut self, cpus: impl Iterator<Item = (u64, u64)>, kept: &mut Kept) {
        let mut credits = Vec::new();
        for (cpu, (word, now)) in cpus.enumerate() {
            if cpu == self.cpus.len() {
                self.cpus.push(Credit::default());
            }
            credits.extend(self.credit(cpu, word, now));
        }
        self.pay(kept);
        for (process, ns) in credits {
            kept.process(process).ns += ns;
        }
    }

    /// Forgets everything: nothing was charged meanwhile.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// The process that a CPU runs, and for how long it was not credited yet.
    fn credit(&mut self, cpu: usize, word: u64, now: u64) -> Option<(u32, u64)> {
        let credit = &mut self.cpus[cpu];
        if credit.word != word {
            let ended = std::mem::replace(credit, Credit { word, ns: 0 });
            if ended.ns > 0 {
                let debt = self.debts.entry(running_process(ended.word)).or_default();
                *debt = Debt { ns: debt.ns + ended.ns, ticks_left: TICKS };
            }
        }
        let more = running_for(word, now).wrapping_sub(credit.ns) & RUNNING_TIME_MASK;
        if running_process(word) == 0 || more == 0 || more > ODD {
            return None;
        }
        credit.ns = (credit.ns + more) & RUNNING_TIME_MASK;
        Some((running_process(word), more))
    }

    fn pay(&mut self, kept: &mut Kept) {
        self.debts.retain(|process, debt| {
            if let Some(charged) = kept.processes.get_mut(process) {
                let paid = debt.ns.min(charged.ns);
                charged.ns -= paid;
                debt.ns -= paid;
            }
            debt.ticks_left -= 1;
            debt.ns > 0 && debt.ticks_left > 0
        });
    }
}

#[cfg(test)]
mod tests {
    use mcptrace_wire::running;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// One tick of one CPU: what was charged to process 7 meanwhile, what runs, and the time. Gives what process 7 has of it.
    fn tick(running: &mut Running, charged: u64, word: u64, now: u64) -> u64 {
        let mut kept = Kept::default();
        if charged > 0 {
            kept.process(7).ns = charged;
        }
        running.settle([(word, now)].into_iter(), &mut kept);
        kept.processes.get(&7).map_or(0, |process| process.ns)
    }

    #[test]
    fn each_second_has_its_part_and_all_together_what_was_charged() {
        let mut running_now = Running::default();
        let word = running(7, SECOND / 2);
        assert_eq!(tick(&mut running_now, 0, word, SECOND), SECOND / 2);
        assert_eq!(tick(&mut running_now, 0, word, 2 * SECOND), SECOND);
        // It left after 1.7 seconds, of which the host took 0.1.
        assert_eq!(tick(&mut running_now, 16 * SECOND / 10, 0, 3 * SECOND), SECOND / 10);
        assert_eq!(tick(&mut running_now, 5, 0, 4 * SECOND), 5, "the debt is paid");
    }

    #[test]
    fn a_charge_that_comes_with_the_next_bank_is_taken_off_there() {
        let mut running_now = Running::default();
        let (first, second) = (running(7, 0), running(7, SECOND + 10));
        assert_eq!(tick(&mut running_now, 0, first, SECOND), SECOND);
        // It left and came back between the turn and this reading.
        assert_eq!(tick(&mut running_now, 0, second, 2 * SECOND), SECOND - 10);
        assert_eq!(tick(&mut running_now, SECOND + 5 + SECOND, 0, 3 * SECOND), 15);
    }

    #[test]
    fn what_is_never_charged_is_not_taken_off_later_runs_for_ever() {
        let mut running_now = Running::default();
        tick(&mut running_now, 0, running(7, 0), SECOND);
        tick(&mut running_now, 0, 0, 2 * SECOND);
        tick(&mut running_now, 0, 0, 3 * SECOND);
        assert_eq!(tick(&mut running_now, 100, 0, 4 * SECOND), 100);
    }

    #[test]
    fn a_clock_read_before_the_kernels_is_no_time_at_all() {
        let mut running_now = Running::default();
        let word = running(7, 1000);
        assert_eq!(tick(&mut running_now, 0, word, 990), 0);
        assert_eq!(tick(&mut running_now, 0, word, 1100), 100);
    }

    #[test]
    fn who_never_leaves_has_a_second_each_second_although_the_time_wraps() {
        let mut running_now = Running::default();
        let word = running(7, 0);
        let seconds = 3 * (RUNNING_TIME_MASK / SECOND);
        for second in 1..=seconds {
            assert_eq!(tick(&mut running_now, 0, word, second * SECOND), SECOND, "{second}");
        }
    }

    #[test]
    fn cpus_come_and_go() {
        let mut running_now = Running::default();
        let mut kept = Kept::default();
        running_now.settle([(running(7, 0), 100), (running(8, 0), 100)].into_iter(), &mut kept);
        // The second is offline: the idle thread was the last to run there.
        running_now.settle([(running(7, 0), 200), (0, 200)].into_iter(), &mut kept);
        running_now.settle([(running(7, 0), 300), (running(9, 250), 300), (0, 300)].into_iter(), &mut kept);
        let ns = |pid| kept.processes.get(&pid).map_or(0, |process| process.ns);
        assert_eq!((ns(7), ns(9)), (300, 50));
    }
}
