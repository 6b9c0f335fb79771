//! The recent events of an execution: bounded, with a place in the sequence for each, so that a reader neither repeats nor skips one
//! and knows what fell out. Pure.

use std::collections::VecDeque;

use bytes::Bytes;

/// What a record takes beside its bytes: its place in the queue.
const PER_RECORD: usize = size_of::<Bytes>();

/// A bounded queue of records.
#[derive(Debug)]
pub struct Store {
    records: VecDeque<Bytes>,
    bytes: usize,
    most_bytes: usize,
    /// How many came in, which is also the place of the next.
    total: u64,
}

impl Store {
    /// A store of at most so many bytes.
    pub fn new(most_bytes: usize) -> Self {
        Self { records: VecDeque::new(), bytes: 0, most_bytes, total: 0 }
    }

    /// Takes a record in; the oldest go when there is no more room.
    pub fn push(&mut self, record: Bytes) {
        self.bytes += record.len() + PER_RECORD;
        self.records.push_back(record);
        self.total += 1;
        while self.bytes > self.most_bytes {
            let Some(oldest) = self.records.pop_front() else { break };
            self.bytes -= oldest.len() + PER_RECORD;
        }
    }

    /// How many records came in.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// How many records are no longer there.
    pub fn evicted(&self) -> u64 {
        self.total - self.records.len() as u64
    }

    /// What the records take, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The records from a place in the sequence on, or from the oldest that is left, with their places.
    pub fn from(&self, place: u64) -> impl Iterator<Item = (u64, &Bytes)> {
        let first = self.evicted();
        let skip = place.saturating_sub(first).min(self.records.len() as u64) as usize;
        self.records.range(skip..).zip(first + skip as u64..).map(|(record, place)| (place, record))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(records: u64, room_for: usize) -> Store {
        let mut store = Store::new(room_for * (8 + PER_RECORD));
        for number in 0..records {
            store.push(Bytes::copy_from_slice(&number.to_ne_bytes()));
        }
        store
    }

    #[test]
    fn pages_neither_repeat_nor_skip() {
        let store = filled(23, 100);
        let mut place = 0;
        let mut seen = Vec::new();
        loop {
            let page: Vec<_> = store.from(place).take(7).map(|(place, _)| place).collect();
            let Some(last) = page.last() else { break };
            place = last + 1;
            seen.extend(page);
        }
        assert_eq!(seen, (0..23).collect::<Vec<_>>());
    }

    #[test]
    fn the_oldest_go_first_and_are_counted() {
        let store = filled(23, 5);
        assert_eq!((store.total(), store.evicted(), store.bytes()), (23, 18, 5 * (8 + PER_RECORD)));
        assert_eq!(store.from(0).map(|(place, _)| place).collect::<Vec<_>>(), [18, 19, 20, 21, 22]);
        assert_eq!(store.from(20).next().map(|(place, record)| (place, record[0])), Some((20, 20)));
        assert_eq!(store.from(99).count(), 0);
    }

    #[test]
    fn a_store_without_room_keeps_nothing_and_says_so() {
        let store = filled(3, 0);
        assert_eq!((store.total(), store.evicted(), store.bytes()), (3, 3, 0));
    }
}
