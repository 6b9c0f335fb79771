//! What of a probe's events was seen, lost and paid for, out of what the kernel side, the kernel and the reader counted. Pure.

use mcptrace_wire::Counter;

use crate::{
    kernel::{attached::Counters, cost::Cost},
    report::{Loss, Overhead},
};

/// What was counted, each where it happened; none of it is derived from another.
#[derive(Clone, Copy, Debug)]
pub struct Account<'a> {
    /// By the kernel side.
    pub counters: &'a Counters,
    /// Runs that the kernel skipped: of the program that counts what is seen, and of all others. `None` where it does not tell.
    pub missed: Option<(u64, u64)>,
    /// Records that nobody could read.
    pub malformed: u64,
    /// Whether only a part of all events is asked for.
    pub filtered: bool,
}

impl Account<'_> {
    /// The account of loss, by the number of events that are in the report.
    pub fn loss(&self, delivered: u64) -> Loss {
        let count = |counter| self.counters.get(counter);
        // Each of what was not followed is at least one event that was never seen.
        let unfollowed = Some(count(Counter::FollowFull)).filter(|count| *count > 0);
        let skipped = self.missed.map(|(counting, _)| counting);
        let causes = [
            ("buffer_full", count(Counter::BufferFull)),
            ("start_missing", count(Counter::StartMissing)),
            ("map_full", count(Counter::MapFull)),
            ("stack_busy", count(Counter::StackBusy)),
            ("malformed", self.malformed),
        ];
        Loss {
            seen: Some(count(Counter::Seen)),
            delivered: Some(delivered),
            dropped: causes.into_iter().filter(|(_, n)| *n > 0).map(|(cause, n)| (cause.to_owned(), n)).collect(),
            missed: if skipped.is_none() { unfollowed } else { skipped.map(|count| count + unfollowed.unwrap_or(0)) },
        }
    }

    /// What a reader must know of the account, and of what is beside it.
    pub fn notes(&self) -> Vec<String> {
        let count = |counter| self.counters.get(counter);
        let mut notes = Vec::new();
        match self.missed {
            None => notes.push(
                "this kernel does not tell how many events its recursion guard kept from the programs (missed): before 5.12".into(),
            ),
            Some((1.., _)) if self.filtered => {
                notes.push("missed is an upper bound: it includes events that the filters would have left out".into());
            }
            Some(_) => {}
        }
        if let Some((_, others @ 1..)) = self.missed {
            notes.push(format!(
                "{others} runs of helper programs were missed: some starts, errors or wakeups are not in the numbers"
            ));
        }
        if let side_lost @ 1.. = count(Counter::SideBufferFull) {
            notes.push(format!(
                "{side_lost} of {} are not among the events: the buffer was full",
                count(Counter::SideSeen)
            ));
        }
        if let unfollowed @ 1.. = count(Counter::FollowFull) {
            notes.push(format!(
                "{unfollowed} processes or requests were not followed: the table was full; their events are missing, and each of them counts once as \
                 missed"
            ));
        }
        notes
    }
}

/// What it cost: as it was measured, together with how many events were seen meanwhile, else by the reference cost of an event.
pub fn overhead(measured: Option<(Cost, u64)>, reference_ns: f64, seen: u64, seconds: f64) -> Overhead {
    let round = |value: f64| (value * 1000.0).round() / 1000.0;
    // A window in which nothing happened says nothing of a run in which something did.
    let told = measured.filter(|(_, seen_in_window)| *seen_in_window > 0 || seen == 0);
    let Some((cost, seen_in_window)) = told else {
        let percent = reference_ns * seen as f64 / (seconds.max(0.001) * 1e9) * 100.0;
        return Overhead { ns_per_event: Some(reference_ns), cpu_percent: round(percent), method: "estimated".into() };
    };
    // Where most runs of a program are not about events that pass, their cost is not the events'.
    let mostly_events = seen_in_window > 0 && cost.events <= seen_in_window.saturating_mul(4);
    let per_event = mostly_events.then(|| round(cost.ns / seen_in_window as f64));
    let percent = cost.ns / cost.window.as_nanos() as f64 * 100.0;
    Overhead { ns_per_event: per_event, cpu_percent: round(percent), method: "measured".into() }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn counted(counts: &[(Counter, u64)]) -> Counters {
        let mut values = vec![0; mcptrace_wire::COUNTERS as usize];
        for (counter, count) in counts {
            values[*counter as usize] = *count;
        }
        Counters::of(values)
    }

    fn account(counters: &Counters, missed: Option<(u64, u64)>) -> Account<'_> {
        Account { counters, missed, malformed: 0, filtered: false }
    }

    #[test]
    fn every_cause_of_loss_stands_by_its_name_and_what_was_not_lost_does_not() {
        let counters = counted(&[
            (Counter::Seen, 1000),
            (Counter::BufferFull, 2),
            (Counter::StartMissing, 3),
            (Counter::MapFull, 5),
            (Counter::StackBusy, 7),
            (Counter::SideSeen, 11),
            (Counter::SideBufferFull, 13),
        ]);
        let loss = Account { malformed: 17, ..account(&counters, Some((19, 23))) }.loss(966);
        assert_eq!((loss.seen, loss.delivered, loss.missed), (Some(1000), Some(966), Some(19)));
        let causes = [("buffer_full", 2), ("malformed", 17), ("map_full", 5), ("stack_busy", 7), ("start_missing", 3)];
        assert_eq!(loss.dropped, causes.map(|(cause, count)| (cause.to_owned(), count)).into());
        assert_eq!(loss.seen.unwrap(), loss.delivered.unwrap() + loss.dropped_total());

        let loss = account(&counted(&[(Counter::Seen, 3)]), Some((0, 0))).loss(3);
        assert!(loss.dropped.is_empty() && !loss.any(), "{loss:?}");
    }

    #[test]
    fn what_was_not_followed_is_missed_whether_the_kernel_tells_its_part_or_not() {
        let full = counted(&[(Counter::FollowFull, 4)]);
        assert_eq!(account(&full, Some((3, 9))).loss(0).missed, Some(7));
        assert_eq!(account(&full, None).loss(0).missed, Some(4));
        let none = counted(&[]);
        assert_eq!(account(&none, Some((3, 9))).loss(0).missed, Some(3));
        assert_eq!(account(&none, None).loss(0).missed, None, "not known is not zero");
    }

    #[test]
    fn a_reader_is_told_what_the_account_does_not_say() {
        let nothing = counted(&[]);
        assert_eq!(account(&nothing, Some((0, 0))).notes(), Vec::<String>::new());
        let filtered = |missed| Account { filtered: true, ..account(&nothing, missed) }.notes();
        assert_eq!(filtered(Some((0, 0))), Vec::<String>::new());
        assert!(filtered(Some((1, 0)))[0].starts_with("missed is an upper bound"));
        assert_eq!(account(&nothing, Some((1, 0))).notes(), Vec::<String>::new(), "without filters it is exact");
        assert!(account(&nothing, None).notes()[0].contains("does not tell"));
        assert!(account(&nothing, Some((0, 6))).notes()[0].starts_with("6 runs of helper programs"));

        let counters = counted(&[(Counter::SideSeen, 90), (Counter::SideBufferFull, 8), (Counter::FollowFull, 4)]);
        let notes = account(&counters, Some((0, 0))).notes();
        assert!(notes[0].starts_with("8 of 90 are not among the events"), "{notes:?}");
        assert!(notes[1].starts_with("4 processes or requests were not followed"), "{notes:?}");
        assert_eq!(notes.len(), 2);
        assert_eq!(account(&counted(&[(Counter::SideSeen, 90)]), Some((0, 0))).notes(), Vec::<String>::new());
    }

    fn cost(ns: f64, events: u64) -> Cost {
        Cost { ns, events, window: Duration::from_millis(50) }
    }

    fn said(ns_per_event: Option<f64>, cpu_percent: f64, method: &str) -> Overhead {
        Overhead { ns_per_event, cpu_percent, method: method.into() }
    }

    #[test]
    fn cost_is_what_was_measured_for_each_event_and_of_a_cpu() {
        let told = overhead(Some((cost(90_000.0, 1000), 1000)), 50.0, 7, 1.0);
        assert_eq!(told, said(Some(90.0), 0.18, "measured"));
        let thirds = overhead(Some((cost(1000.0, 3), 3)), 50.0, 3, 1.0);
        assert_eq!(thirds, said(Some(333.333), 0.002, "measured"));
    }

    #[test]
    fn runs_that_are_mostly_not_about_events_give_no_cost_of_an_event() {
        assert_eq!(overhead(Some((cost(80_000.0, 400), 100)), 50.0, 7, 1.0), said(Some(800.0), 0.16, "measured"));
        assert_eq!(overhead(Some((cost(80_000.0, 401), 100)), 50.0, 7, 1.0), said(None, 0.16, "measured"));
    }

    #[test]
    fn a_window_in_which_nothing_happened_counts_only_where_nothing_happened_at_all() {
        let idle = Some((cost(0.0, 0), 0));
        assert_eq!(overhead(idle, 50.0, 0, 2.0), said(None, 0.0, "measured"));
        assert_eq!(overhead(idle, 50.0, 4_000_000, 2.0), said(Some(50.0), 10.0, "estimated"));
        assert_eq!(overhead(None, 50.0, 4_000_000, 2.0), said(Some(50.0), 10.0, "estimated"));
        assert_eq!(overhead(None, 50.0, 0, 0.0), said(Some(50.0), 0.0, "estimated"));
        assert_eq!(overhead(None, 50.0, 1000, 0.0), said(Some(50.0), 5.0, "estimated"), "no time is taken for 1 ms");
    }
}
