//! Which second of the calendar a tick belongs to, and whether the clock has jumped. Pure.

/// A difference between the calendar's clock and the steady one that is called a jump. Slewing is at most 0.05 % of a second.
const JUMP_NS: i64 = 500_000_000;
/// A tick of up to so long belongs to one second.
const ONE_SECOND_NS: u64 = 1_500_000_000;
/// Ticks that took longer are not kept: nobody knows when in them what happened.
pub const LONGEST_NS: u64 = 60_000_000_000;
/// How far the second that follows may lie from where the clock says it is, so that jitter makes neither holes nor doubles.
const SLACK_NS: i64 = 900_000_000;
/// A second whose end is so near is over.
const NEARLY_NS: i64 = 100_000_000;
const SECOND_NS: i64 = 1_000_000_000;

/// Where a tick belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Its first second since 1970.
    pub first: i64,
    /// How many seconds its amounts are spread over; 0 if it is too long to be kept.
    pub seconds: u32,
    /// How far the clock was set, in nanoseconds; 0 if it was not.
    pub jump_ns: i64,
    /// How long the host slept, in nanoseconds.
    pub slept_ns: u64,
}

/// What is known of the time before.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timeline {
    last: Option<Last>,
}

#[derive(Clone, Copy, Debug)]
struct Last {
    end_ns: i64,
    second: i64,
    asleep_ns: u64,
}

impl Timeline {
    /// Places a tick by its end and length; `asleep_ns` is how long the host has slept since it was started.
    pub fn place(&mut self, at_ns: u64, span_ns: u64, asleep_ns: u64) -> Placed {
        let end_ns = at_ns.min(i64::MAX as u64) as i64;
        let slept_ns = self.last.map_or(0, |last| asleep_ns.saturating_sub(last.asleep_ns));
        let moved = |last: Last| end_ns - last.end_ns - span_ns as i64 - slept_ns as i64;
        let moved = self.last.map_or(0, moved);
        let jump_ns = if moved.abs() >= JUMP_NS { moved } else { 0 };
        let seconds = seconds_of(span_ns);
        let first = self.first(end_ns, span_ns, seconds);
        let seconds = self.over(end_ns, first, seconds);
        let second = if seconds == 0 { end_ns.div_euclid(SECOND_NS) } else { first + i64::from(seconds) - 1 };
        self.last = Some(Last { end_ns, second, asleep_ns });
        Placed { first, seconds, jump_ns, slept_ns }
    }

    fn first(&self, end_ns: i64, span_ns: u64, seconds: u32) -> i64 {
        let middle = end_ns - span_ns as i64 / 2;
        let by_clock = (middle - SECOND_NS * i64::from(seconds.saturating_sub(1)) / 2).div_euclid(SECOND_NS);
        let Some(last) = self.last else { return by_clock.max(0) };
        let next = last.second + 1;
        let middle_if_next = next * SECOND_NS + SECOND_NS * i64::from(seconds) / 2;
        if (middle - middle_if_next).abs() <= SLACK_NS { next } else { by_clock.max(0) }
    }

    /// A tick that is spread has the seconds that are over by its end: the next one, which takes up the rhythm, has a second of its own then, and
    /// not a part of one.
    fn over(&self, end_ns: i64, first: i64, seconds: u32) -> u32 {
        let follows = self.last.is_some_and(|last| last.second + 1 == first);
        if seconds < 2 || !follows {
            return seconds;
        }
        let over = (end_ns + NEARLY_NS).div_euclid(SECOND_NS) - first;
        over.clamp(1, i64::from(seconds) + 1) as u32
    }
}

fn seconds_of(span_ns: u64) -> u32 {
    match span_ns {
        0..=ONE_SECOND_NS => 1,
        LONGEST_NS.. => 0,
        _ => ((span_ns + SECOND_NS as u64 / 2) / SECOND_NS as u64) as u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 1_767_323_045;
    const SECOND: u64 = 1_000_000_000;

    fn placed(ticks: &[(u64, u64)]) -> Vec<Placed> {
        let mut timeline = Timeline::default();
        ticks.iter().map(|(at, span)| timeline.place(*at, *span, 0)).collect()
    }

    #[test]
    fn jitter_makes_neither_holes_nor_doubles() {
        // The end of the ticks wanders to and fro over the border of a second.
        let mut at = START * SECOND;
        let mut timeline = Timeline::default();
        let mut seconds = Vec::new();
        for step in 0..600_u64 {
            let jitter = (step * 7_919_777) % 40_000_001;
            let span = SECOND - 20_000_000 + jitter;
            at += span;
            let placed = timeline.place(at, span, 0);
            assert_eq!((placed.jump_ns, placed.seconds), (0, 1));
            seconds.push(placed.first);
            assert!((placed.first - (at / SECOND) as i64).abs() <= 1, "{placed:?} at {at}");
        }
        assert!(seconds.windows(2).all(|pair| pair[1] == pair[0] + 1), "{seconds:?}");
    }

    #[test]
    fn a_late_tick_is_spread_over_its_seconds() {
        let at = START * SECOND;
        let placed = placed(&[(at, SECOND), (at + 4 * SECOND, 4 * SECOND), (at + 5 * SECOND, SECOND)]);
        let start = START as i64;
        assert_eq!(
            placed.iter().map(|placed| (placed.first, placed.seconds)).collect::<Vec<_>>(),
            [(start - 1, 1), (start, 4), (start + 4, 1)]
        );
    }

    #[test]
    fn what_follows_a_late_tick_has_a_second_of_its_own() {
        let at = START * SECOND;
        let late = at + 10 * SECOND + SECOND / 2;
        let placed = placed(&[
            (at, SECOND),
            (late, late - at),
            (late + SECOND / 2, SECOND / 2),
            (late + 3 * SECOND / 2, SECOND),
        ]);
        let seconds: Vec<_> = placed.iter().map(|one| (one.first - START as i64, one.seconds)).collect();
        assert_eq!(
            seconds,
            [(-1, 1), (0, 10), (10, 1), (11, 1)],
            "half a second alone would seem to lack the other half"
        );
    }

    #[test]
    fn a_tick_of_minutes_is_not_kept() {
        let at = START * SECOND;
        let placed = placed(&[(at, SECOND), (at + 600 * SECOND, 600 * SECOND), (at + 601 * SECOND, SECOND)]);
        assert_eq!((placed[1].seconds, placed[1].jump_ns), (0, 0));
        assert_eq!((placed[2].first, placed[2].seconds), (START as i64 + 600, 1));
    }

    #[test]
    fn a_clock_that_is_set_back_or_forth_is_a_jump_and_followed() {
        let at = START * SECOND;
        let back =
            placed(&[(at, SECOND), (at + SECOND - 3600 * SECOND, SECOND), (at + 2 * SECOND - 3600 * SECOND, SECOND)]);
        assert_eq!((back[1].jump_ns, back[1].first), (-3600 * SECOND as i64, START as i64 - 3600));
        assert_eq!((back[2].jump_ns, back[2].first), (0, START as i64 - 3599));
        let forth = placed(&[(at, SECOND), (at + 8 * SECOND, SECOND)]);
        assert_eq!((forth[1].jump_ns, forth[1].first), (7 * SECOND as i64, START as i64 + 7));
    }

    #[test]
    fn a_step_of_less_than_a_second_is_told_but_makes_no_hole() {
        let at = START * SECOND;
        let placed = placed(&[(at, SECOND), (at + SECOND + 700_000_000, SECOND)]);
        assert_eq!((placed[1].jump_ns, placed[1].first), (700_000_000, START as i64));
    }

    #[test]
    fn sleep_is_not_a_jump() {
        let mut timeline = Timeline::default();
        timeline.place(START * SECOND, SECOND, 5 * SECOND);
        let placed = timeline.place((START + 3601) * SECOND, SECOND, 3605 * SECOND);
        assert_eq!((placed.jump_ns, placed.slept_ns), (0, 3600 * SECOND));
        assert_eq!(placed.first, START as i64 + 3600);
    }
}
