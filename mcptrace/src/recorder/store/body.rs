//! The values of a metric in one span of time, and how they are written: as JSON, so that whoever has `sqlite3` can read them. Pure.
//!
//! `{"12":345}` is an amount of series 12. A level is `[average, least, greatest, seconds]`. A distribution is
//! `[count, sum, least, greatest, [[bucket, count, count, …], …]]`: runs of neighbouring buckets, each with the number of its first.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
};

use mcptrace_wire::BUCKETS;

use crate::{distribution::Distribution, recorder::tick::Kind};

/// The values of one metric in one span, by series.
pub type Cells = BTreeMap<u32, Cell>;

/// The values of one series in one span.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// An amount.
    Sum(u64),
    /// A level.
    Gauge(Level),
    /// Values of single events.
    Distribution(Box<Sparse>),
}

/// A level over a span of time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Level {
    /// The average.
    pub average: f64,
    /// The least.
    pub least: f64,
    /// The greatest.
    pub greatest: f64,
    /// How often it was read, which is once a second.
    pub readings: u64,
}

impl Level {
    /// A level that was read once.
    pub fn once(value: f64) -> Self {
        Self { average: value, least: value, greatest: value, readings: 1 }
    }

    /// Takes the readings of another span in.
    pub fn merge(&mut self, other: &Self) {
        let readings = self.readings + other.readings;
        let weighted = self.average * self.readings as f64 + other.average * other.readings as f64;
        self.average = weighted / readings.max(1) as f64;
        self.least = self.least.min(other.least);
        self.greatest = self.greatest.max(other.greatest);
        self.readings = readings;
    }
}

/// A distribution without its empty buckets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sparse {
    /// How many values.
    pub count: u64,
    /// Their sum.
    pub sum: u64,
    /// The least.
    pub least: u64,
    /// The greatest.
    pub greatest: u64,
    /// Filled buckets with their counts, ascending.
    pub buckets: Vec<(u16, u64)>,
}

impl Sparse {
    /// The filled buckets of a distribution.
    pub fn of(distribution: &Distribution) -> Self {
        let (sum, least, greatest) = distribution.extent();
        let buckets = distribution.counts().map(|(bucket, count)| (bucket as u16, count)).collect();
        Self { count: distribution.count(), sum, least, greatest, buckets }
    }

    /// The distribution again.
    pub fn whole(&self) -> Distribution {
        let buckets = self.buckets.iter().map(|(bucket, count)| (usize::from(*bucket), *count));
        Distribution::restored(buckets, self.sum, self.least, self.greatest)
    }

    /// One of so many even parts: each takes its turn in the values from the least to the greatest, so that all have some of each kind.
    /// All parts together are the whole: of the sum, each has as much as of the values, and one without values none.
    #[must_use]
    pub fn part(&self, part: u32, parts: u32) -> Self {
        let (part, parts) = (u128::from(part), u128::from(parts));
        let mut own = Self { least: self.least, greatest: self.greatest, ..Self::default() };
        let mut before = 0_u64;
        for (bucket, all) in &self.buckets {
            // How many of the first so many values are this part's: each value goes to the next part.
            let first = |values: u64| ((u128::from(values) + parts - 1 - part) / parts) as u64;
            let count = first(before + all) - first(before);
            before += all;
            if count > 0 {
                own.count += count;
                own.buckets.push((*bucket, count));
            }
        }
        let all = u128::from(before);
        let sum_of = |values: u128| (u128::from(self.sum) * values / all.max(1)) as u64;
        let earlier = part * (all / parts) + part.min(all % parts);
        own.sum = sum_of(earlier + u128::from(own.count)) - sum_of(earlier);
        own
    }

    /// Takes the values of another one in.
    pub fn merge(&mut self, other: &Self) {
        if other.count == 0 {
            return;
        }
        (self.least, self.greatest) = if self.count == 0 {
            (other.least, other.greatest)
        } else {
            (self.least.min(other.least), self.greatest.max(other.greatest))
        };
        self.count = self.count.saturating_add(other.count);
        self.sum = self.sum.saturating_add(other.sum);
        for (bucket, count) in &other.buckets {
            match self.buckets.binary_search_by_key(bucket, |(bucket, _)| *bucket) {
                Ok(at) => self.buckets[at].1 = self.buckets[at].1.saturating_add(*count),
                Err(at) => self.buckets.insert(at, (*bucket, *count)),
            }
        }
    }
}

impl Cell {
    /// Takes the values of another span or series in. Cells of one metric are of one kind.
    pub fn merge(&mut self, other: &Self) {
        match (self, other) {
            (Self::Sum(own), Self::Sum(more)) => *own = own.saturating_add(*more),
            (Self::Gauge(own), Self::Gauge(more)) => own.merge(more),
            (Self::Distribution(own), Self::Distribution(more)) => own.merge(more),
            _ => {}
        }
    }

    /// By what the largest of many are found.
    pub fn weight(&self) -> f64 {
        match self {
            Self::Sum(amount) => *amount as f64,
            Self::Gauge(level) => level.average.abs(),
            Self::Distribution(values) => values.sum as f64,
        }
    }
}

/// Takes a cell in among others.
pub fn add(cells: &mut Cells, series: u32, cell: &Cell) {
    match cells.get_mut(&series) {
        Some(own) => own.merge(cell),
        None => {
            cells.insert(series, cell.clone());
        }
    }
}

/// Cells as they are written.
pub fn written(cells: &Cells) -> String {
    let mut text = String::with_capacity(cells.len() * 12 + 2);
    for (series, cell) in cells {
        text.push(if text.is_empty() { '{' } else { ',' });
        // Writing to a string does not fail.
        let _ = write!(text, "\"{series}\":").and_then(|()| write_cell(&mut text, cell));
    }
    if text.is_empty() { "{}".into() } else { text + "}" }
}

fn write_cell(text: &mut String, cell: &Cell) -> fmt::Result {
    match cell {
        // SQLite's JSON makes a float of what is more.
        Cell::Sum(amount) => write!(text, "{}", amount.min(&(i64::MAX as u64))),
        Cell::Gauge(Level { average, least, greatest, readings }) => {
            let (average, least, greatest) = (short(*average), short(*least), short(*greatest));
            write!(text, "[{average},{least},{greatest},{readings}]")
        }
        Cell::Distribution(values) => {
            let Sparse { count, sum, least, greatest, buckets } = &**values;
            write!(text, "[{count},{},{least},{greatest},[", sum.min(&(i64::MAX as u64)))?;
            write_runs(text, buckets)?;
            text.write_str("]]")
        }
    }
}

fn write_runs(text: &mut String, buckets: &[(u16, u64)]) -> fmt::Result {
    let mut before = None;
    for (bucket, count) in buckets {
        match before {
            Some(before) if before + 1 == *bucket => write!(text, ",{count}")?,
            Some(_) => write!(text, "],[{bucket},{count}")?,
            None => write!(text, "[{bucket},{count}")?,
        }
        before = Some(*bucket);
    }
    if before.is_some() { text.write_char(']') } else { Ok(()) }
}

/// A fraction with seven digits that count; whole numbers as they are.
fn short(value: f64) -> f64 {
    if value.fract() == 0.0 {
        return value;
    }
    format!("{value:.6e}").parse().unwrap_or(value)
}

/// What is written is not what we wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a row of the history is damaged")]
pub struct Damaged;

/// Reads cells and hands them over one by one.
pub fn read(text: &str, kind: Kind, mut each: impl FnMut(u32, Cell)) -> Result<(), Damaged> {
    let mut reader = Reader { left: text.as_bytes() };
    reader.expect(b'{')?;
    if reader.next_is(b'}') {
        return Ok(());
    }
    loop {
        reader.expect(b'"')?;
        let series = u32::try_from(reader.whole()?).map_err(|_| Damaged)?;
        reader.expect(b'"')?;
        reader.expect(b':')?;
        each(series, reader.cell(kind)?);
        if !reader.next_is(b',') {
            return reader.expect(b'}');
        }
    }
}

struct Reader<'a> {
    left: &'a [u8],
}

impl Reader<'_> {
    fn cell(&mut self, kind: Kind) -> Result<Cell, Damaged> {
        Ok(match kind {
            Kind::Sum => Cell::Sum(self.whole()?),
            Kind::Gauge => Cell::Gauge(self.level()?),
            Kind::Distribution => Cell::Distribution(Box::new(self.sparse()?)),
        })
    }

    fn level(&mut self) -> Result<Level, Damaged> {
        self.expect(b'[')?;
        let average = self.number()?;
        self.expect(b',')?;
        let least = self.number()?;
        self.expect(b',')?;
        let greatest = self.number()?;
        self.expect(b',')?;
        let readings = self.whole()?;
        self.expect(b']')?;
        Ok(Level { average, least, greatest, readings })
    }

    fn sparse(&mut self) -> Result<Sparse, Damaged> {
        self.expect(b'[')?;
        let mut numbers = [0; 4];
        for number in &mut numbers {
            *number = self.whole()?;
            self.expect(b',')?;
        }
        self.expect(b'[')?;
        let buckets = self.runs()?;
        self.expect(b']')?;
        self.expect(b']')?;
        let [count, sum, least, greatest] = numbers;
        Ok(Sparse { count, sum, least, greatest, buckets })
    }

    fn runs(&mut self) -> Result<Vec<(u16, u64)>, Damaged> {
        let mut buckets: Vec<(u16, u64)> = Vec::new();
        while self.next_is(b'[') {
            let mut bucket = self.whole()?;
            while self.next_is(b',') {
                let after = buckets.last().is_none_or(|(last, _)| u64::from(*last) < bucket);
                if bucket >= BUCKETS as u64 || !after {
                    return Err(Damaged);
                }
                buckets.push((bucket as u16, self.whole()?));
                bucket += 1;
            }
            self.expect(b']')?;
            if !self.next_is(b',') {
                break;
            }
        }
        Ok(buckets)
    }

    fn whole(&mut self) -> Result<u64, Damaged> {
        let digits = self.left.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (digits, left) = self.left.split_at(digits);
        self.left = left;
        if digits.is_empty() {
            return Err(Damaged);
        }
        let digit = |sum: Option<u64>, digit: &u8| sum?.checked_mul(10)?.checked_add(u64::from(digit - b'0'));
        digits.iter().fold(Some(0), digit).ok_or(Damaged)
    }

    fn number(&mut self) -> Result<f64, Damaged> {
        let length = self.left.iter().take_while(|byte| !matches!(byte, b',' | b']' | b'}')).count();
        let (number, left) = self.left.split_at(length);
        self.left = left;
        let number: Option<f64> = std::str::from_utf8(number).ok().and_then(|number| number.parse().ok());
        number.filter(|number| number.is_finite()).ok_or(Damaged)
    }

    fn next_is(&mut self, byte: u8) -> bool {
        let is = self.left.first() == Some(&byte);
        if is {
            self.left = &self.left[1..];
        }
        is
    }

    fn expect(&mut self, byte: u8) -> Result<(), Damaged> {
        if self.next_is(byte) { Ok(()) } else { Err(Damaged) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sparse(values: &[(u16, u64)]) -> Sparse {
        let count = values.iter().map(|(_, count)| count).sum();
        Sparse { count, sum: count * 7, least: 3, greatest: 99, buckets: values.to_vec() }
    }

    fn back(cells: &Cells, kind: Kind) -> Cells {
        let mut found = Cells::new();
        read(&written(cells), kind, |series, cell| add(&mut found, series, &cell)).unwrap();
        found
    }

    #[test]
    fn what_is_written_is_read_back() {
        let sums = Cells::from([(1, Cell::Sum(0)), (77, Cell::Sum(u64::MAX / 2)), (u32::MAX, Cell::Sum(5))]);
        assert_eq!(back(&sums, Kind::Sum), sums);
        let level = Level { average: 0.25, least: -3.5, greatest: 1e300, readings: 7 };
        let levels = Cells::from([(3, Cell::Gauge(level)), (4, Cell::Gauge(Level::once(16_423_645_184.0)))]);
        assert_eq!(back(&levels, Kind::Gauge), levels);
        let runs = sparse(&[(0, 1), (1, 2), (5, 3), (300, 4), (301, 5)]);
        let values = Cells::from([(3, Cell::Distribution(Box::new(runs))), (9, Cell::Distribution(Box::default()))]);
        assert_eq!(back(&values, Kind::Distribution), values);
        assert_eq!(back(&Cells::new(), Kind::Sum), Cells::new());
    }

    #[test]
    fn the_form_is_the_documented_one() {
        assert_eq!(written(&Cells::from([(12, Cell::Sum(345)), (13, Cell::Sum(0))])), r#"{"12":345,"13":0}"#);
        let runs = Cells::from([(1, Cell::Distribution(Box::new(sparse(&[(152, 3), (153, 7), (170, 1)]))))]);
        assert_eq!(written(&runs), r#"{"1":[11,77,3,99,[[152,3,7],[170,1]]]}"#);
        assert_eq!(written(&Cells::from([(1, Cell::Gauge(Level::once(0.1 + 0.2)))])), r#"{"1":[0.3,0.3,0.3,1]}"#);
    }

    #[test]
    fn what_is_damaged_is_an_error_and_never_a_panic() {
        let bad =
            ["", "{", "{}}"[..1].into(), "[]", r#"{"1":}"#, r#"{"1":1"#, r#"{"99999999999":1}"#, r#"{"1":-1}"#, "\0\0"];
        for text in bad {
            assert_eq!(read(text, Kind::Sum, |_, _| {}), Err(Damaged), "{text}");
        }
        for text in [r#"{"1":[1,2,3,4,[[9999,1]]]}"#, r#"{"1":[1,2,3,4,[[5,1],[5,1]]]}"#, r#"{"1":[1,2,3]}"#] {
            assert_eq!(read(text, Kind::Distribution, |_, _| {}), Err(Damaged), "{text}");
        }
        assert_eq!(read(r#"{"1":[nan,1,1,1]}"#, Kind::Gauge, |_, _| {}), Err(Damaged));
    }

    #[test]
    fn levels_are_averaged_by_how_often_they_were_read() {
        let mut level = Level::once(10.0);
        level.merge(&Level { average: 2.0, least: 1.0, greatest: 3.0, readings: 3 });
        assert_eq!(level, Level { average: 4.0, least: 1.0, greatest: 10.0, readings: 4 });
        level.merge(&Level { average: 7.0, least: 6.0, greatest: 8.0, readings: 2 });
        assert_eq!(level, Level { average: 5.0, least: 1.0, greatest: 10.0, readings: 6 });
    }

    #[test]
    fn merging_distributions_is_merging_their_values() {
        let mut one = sparse(&[(3, 1), (7, 2)]);
        one.merge(&Sparse { count: 4, sum: 400, least: 1, greatest: 50, buckets: vec![(2, 1), (7, 3)] });
        assert_eq!(one.buckets, [(2, 1), (3, 1), (7, 5)]);
        assert_eq!((one.count, one.sum, one.least, one.greatest), (7, 421, 1, 99));
        let mut empty = Sparse::default();
        empty.merge(&one);
        assert_eq!(empty, one);
        one.merge(&Sparse::default());
        assert_eq!(empty, one);
    }

    #[test]
    fn a_distribution_comes_back_whole() {
        let values = sparse(&[(3, 1), (40, 2), (41, 7)]);
        assert_eq!(Sparse::of(&values.whole()), values);
        assert_eq!(Sparse::of(&Sparse::default().whole()).count, 0);
    }

    #[test]
    fn values_are_dealt_out_to_the_parts_of_a_distribution() {
        let whole = Sparse { count: 7, sum: 103, least: 3, greatest: 99, buckets: vec![(2, 1), (5, 4), (9, 2)] };
        let part = |count, sum, buckets: &[_]| Sparse { count, sum, buckets: buckets.to_vec(), ..whole.clone() };
        let parts = [0, 1, 2].map(|part| whole.part(part, 3));
        let dealt = [part(3, 44, &[(2, 1), (5, 1), (9, 1)]), part(2, 29, &[(5, 2)]), part(2, 30, &[(5, 1), (9, 1)])];
        assert_eq!(parts, dealt);
        for (sum, parts) in (100..200).flat_map(|sum| (1..=5).map(move |parts| (sum, parts))) {
            let whole = Sparse { sum, ..whole.clone() };
            let mut together = Sparse::default();
            (0..parts).for_each(|part| together.merge(&whole.part(part, parts)));
            assert_eq!(together, whole, "{parts} parts of {sum}");
        }
    }

    /// Its second keeps all of it: half of a single request's time would be a request that took half as long.
    #[test]
    fn a_part_without_values_takes_nothing_of_the_sum() {
        let one = Sparse { count: 1, sum: 10, least: 10, greatest: 10, buckets: vec![(10, 1)] };
        assert_eq!(one.part(0, 3), one);
        for part in [one.part(1, 3), one.part(2, 3), Sparse::default().part(0, 3)] {
            assert_eq!((part.count, part.sum, part.buckets.len()), (0, 0, 0));
        }
    }

    #[test]
    fn cells_of_one_kind_are_merged_and_ranked_by_what_they_weigh() {
        let level = |value| Cell::Gauge(Level::once(value));
        let values = |count| Cell::Distribution(Box::new(sparse(&[(3, count)])));
        for (mut own, more, both, weight) in [
            (Cell::Sum(3), Cell::Sum(4), Cell::Sum(7), 7.0),
            (Cell::Sum(u64::MAX), Cell::Sum(4), Cell::Sum(u64::MAX), u64::MAX as f64),
            (
                level(-2.0),
                level(-6.0),
                Cell::Gauge(Level { average: -4.0, least: -6.0, greatest: -2.0, readings: 2 }),
                4.0,
            ),
            (values(1), values(2), values(3), 21.0),
            (Cell::Sum(3), level(4.0), Cell::Sum(3), 3.0),
        ] {
            own.merge(&more);
            assert_eq!(own, both);
            assert!((own.weight() - weight).abs() < 1e-9, "{own:?}");
        }
    }
}
