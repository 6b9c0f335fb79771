//! Bounds the records of refusals, which cost those who cause them nothing: of one caller and kind one in a minute is written, the others
//! are counted and told later. Pure.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// One record of a caller and kind in so long.
pub(super) const EVERY: Duration = Duration::from_mins(1);
/// Callers and kinds that are told apart.
const MOST: usize = 256;
/// Records of all callers in a burst; one more is allowed each [`EVERY`].
const BURST: u64 = 60;
/// Callers that are named when it is told what was left out.
const NAMED: usize = 16;

/// Who was refused, and what kind of refusal it was.
pub(super) type Key = (String, &'static str);

/// What was refused lately.
#[derive(Debug)]
pub(super) struct Refusals {
    known: HashMap<Key, Since>,
    /// Those that there was no place for.
    rest: u64,
    /// Records that may be written now, and up to when that is reckoned.
    allowed: u64,
    allowed_at: Option<Instant>,
    told_at: Option<Instant>,
}

/// A caller's refusals of one kind.
#[derive(Debug)]
struct Since {
    /// When the last record was written, or the first was left out.
    at: Instant,
    left_out: u64,
}

/// Refusals without a record of their own.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct LeftOut {
    /// All of them.
    pub(super) total: u64,
    /// Who caused most, and how many.
    pub(super) most: Vec<(Key, u64)>,
}

impl Default for Refusals {
    fn default() -> Self {
        Self { known: HashMap::new(), rest: 0, allowed: BURST, allowed_at: None, told_at: None }
    }
}

impl Refusals {
    /// Takes a refusal in. If it is to be written: how many of the same kind were left out before it.
    pub(super) fn note(&mut self, key: Key, now: Instant) -> Option<u64> {
        if let Some(since) = self.known.get_mut(&key)
            && now.duration_since(since.at) < EVERY
        {
            since.left_out += 1;
            return None;
        }
        if !self.known.contains_key(&key) && self.known.len() >= MOST {
            self.known.retain(|_, since| since.left_out > 0 || now.duration_since(since.at) < EVERY);
        }
        let has_place = self.known.contains_key(&key) || self.known.len() < MOST;
        if !has_place {
            self.rest += 1;
            return None;
        }
        let may_write = self.take_one(now);
        let since = self.known.entry(key).or_insert(Since { at: now, left_out: 0 });
        since.at = now;
        if may_write {
            return Some(std::mem::take(&mut since.left_out));
        }
        since.left_out += 1;
        None
    }

    /// What was left out and is to be told now, if anything: once in [`EVERY`], or at the end.
    pub(super) fn left_out(&mut self, now: Instant, at_the_end: bool) -> Option<LeftOut> {
        let begun = *self.told_at.get_or_insert(now);
        if !at_the_end && now.duration_since(begun) < EVERY {
            return None;
        }
        self.told_at = Some(now);
        let mut most: Vec<(Key, u64)> =
            self.known.iter_mut().map(|(key, since)| (key.clone(), std::mem::take(&mut since.left_out))).collect();
        self.known.retain(|_, since| now.duration_since(since.at) < EVERY);
        most.retain(|(_, count)| *count > 0);
        let total = std::mem::take(&mut self.rest) + most.iter().map(|(_, count)| count).sum::<u64>();
        most.sort_by(|one, other| other.1.cmp(&one.1).then_with(|| one.0.cmp(&other.0)));
        most.truncate(NAMED);
        (total > 0).then_some(LeftOut { total, most })
    }

    fn take_one(&mut self, now: Instant) -> bool {
        let since = now.duration_since(*self.allowed_at.get_or_insert(now));
        let more = since.as_secs() / EVERY.as_secs();
        self.allowed_at = self.allowed_at.map(|at| at + EVERY * more as u32);
        self.allowed = (self.allowed + more).min(BURST);
        let may = self.allowed > 0;
        self.allowed = self.allowed.saturating_sub(1);
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(caller: &str) -> Key {
        (caller.to_owned(), "token")
    }

    #[test]
    fn of_one_caller_and_kind_one_a_minute_is_written_with_how_many_were_left_out() {
        let (mut refusals, begun) = (Refusals::default(), Instant::now());
        assert_eq!(refusals.note(key("a"), begun), Some(0));
        assert!((0..997).all(|_| refusals.note(key("a"), begun).is_none()));
        assert_eq!(refusals.note(("a".into(), "host"), begun), Some(0), "another kind");
        assert_eq!(refusals.note(key("b"), begun), Some(0), "another caller");
        assert_eq!(refusals.note(key("a"), begun + EVERY), Some(997));
        assert_eq!(refusals.note(key("a"), begun + EVERY), None);
    }

    #[test]
    fn what_was_left_out_is_told_when_nothing_more_comes() {
        let (mut refusals, begun) = (Refusals::default(), Instant::now());
        assert_eq!(refusals.left_out(begun, false), None);
        for _ in 0..8 {
            refusals.note(key("a"), begun);
        }
        assert_eq!(refusals.left_out(begun, false), None, "not at every look");
        let told = LeftOut { total: 7, most: vec![(key("a"), 7)] };
        assert_eq!(refusals.left_out(begun + EVERY, false), Some(told));
        assert_eq!(refusals.left_out(begun + EVERY * 2, false), None, "and once");
        refusals.note(key("a"), begun + EVERY * 2);
        refusals.note(key("a"), begun + EVERY * 2);
        assert_eq!(refusals.left_out(begun + EVERY * 2, true).map(|told| told.total), Some(1), "at the end at once");
    }

    /// Whoever has any number of addresses gets a bounded number of lines, and nothing goes uncounted.
    #[test]
    fn callers_without_end_get_a_bounded_number_of_lines() {
        let (mut refusals, begun) = (Refusals::default(), Instant::now());
        let (mut lines, mut told) = (0, 0);
        let minutes = 60;
        for minute in 0..minutes {
            let now = begun + EVERY * minute;
            for caller in 0..1000 {
                if let Some(before) = refusals.note(key(&format!("{minute}.{caller}")), now) {
                    (lines, told) = (lines + 1, told + 1 + before);
                }
            }
            if let Some(left) = refusals.left_out(now, false) {
                assert!(left.most.len() <= NAMED);
                (lines, told) = (lines + 1, told + left.total);
            }
        }
        told += refusals.left_out(begun + EVERY * minutes, true).map_or(0, |left| left.total);
        assert!(lines < BURST + 2 * u64::from(minutes) + 1, "{lines}");
        assert_eq!(told, 1000 * u64::from(minutes));
        assert!(refusals.known.len() <= MOST);
    }
}
