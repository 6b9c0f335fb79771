//! Log-linear histograms in user space: merging what the kernel kept, percentiles. Pure.

use mcptrace_wire::{BUCKETS, Histogram, SUB_BUCKET_BITS, bucket_high, bucket_low, bucket_of};

use crate::report::{Row, Series};

/// The largest relative error of a percentile: half a bucket, and a bucket is an eighth of its lower bound.
pub const RELATIVE_ERROR: f64 = 0.5 / (1 << SUB_BUCKET_BITS) as f64;

/// A distribution of values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Distribution {
    buckets: Vec<u64>,
    count: u64,
    sum: u64,
    min: u64,
    max: u64,
}

impl Default for Distribution {
    fn default() -> Self {
        Self { buckets: vec![0; BUCKETS], count: 0, sum: 0, min: u64::MAX, max: 0 }
    }
}

impl Distribution {
    /// Adds what one CPU or group kept in the kernel.
    pub fn add(&mut self, kept: &Histogram) {
        let mut count = 0;
        for (bucket, more) in self.buckets.iter_mut().zip(&kept.buckets) {
            *bucket += more;
            count += more;
        }
        if count == 0 {
            return;
        }
        self.count += count;
        self.sum = self.sum.saturating_add(kept.sum);
        let (min, max) = extremes(kept);
        self.min = self.min.min(min);
        self.max = self.max.max(max);
    }

    /// Adds another distribution.
    pub fn merge(&mut self, other: &Self) {
        let Self { buckets, count, sum, min, max } = other;
        for (bucket, more) in self.buckets.iter_mut().zip(buckets) {
            *bucket += more;
        }
        self.count += count;
        self.sum = self.sum.saturating_add(*sum);
        self.min = self.min.min(*min);
        self.max = self.max.max(*max);
    }

    /// Adds one value.
    pub fn record(&mut self, value: u64) {
        self.buckets[bucket_of(value)] += 1;
        self.count += 1;
        self.sum = self.sum.saturating_add(value);
        self.min = self.min.min(value);
        self.max = self.max.max(value);
    }

    /// A distribution out of its filled buckets and its sum, least and greatest value.
    pub fn restored(filled: impl IntoIterator<Item = (usize, u64)>, sum: u64, min: u64, max: u64) -> Self {
        let mut restored = Self { sum, ..Self::default() };
        for (bucket, count) in filled {
            if let Some(own) = restored.buckets.get_mut(bucket) {
                *own += count;
                restored.count += count;
            }
        }
        if restored.count > 0 {
            (restored.min, restored.max) = (min, max);
        }
        restored
    }

    /// The filled buckets with their counts, ascending.
    pub fn counts(&self) -> impl Iterator<Item = (usize, u64)> {
        self.buckets.iter().copied().enumerate().filter(|(_, count)| *count > 0)
    }

    /// The sum, the least and the greatest value; zeros if there are none.
    pub fn extent(&self) -> (u64, u64, u64) {
        (self.sum, if self.count == 0 { 0 } else { self.min }, self.max)
    }

    /// How many values.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The value that a share of all values is at most, within [`RELATIVE_ERROR`]. 0 if there are none.
    pub fn percentile(&self, share: f64) -> u64 {
        let rank = ((share * self.count as f64).ceil() as u64).clamp(1, self.count.max(1));
        let mut below = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            below += count;
            if below >= rank {
                let middle = u64::midpoint(bucket_low(bucket), bucket_high(bucket) - 1);
                return middle.clamp(self.min, self.max);
            }
        }
        0
    }

    /// The distribution as a series of a report.
    pub fn series(&self, key: Row) -> Series {
        let empty = self.count == 0;
        Series {
            key,
            count: self.count,
            min: if empty { 0 } else { self.min },
            max: self.max,
            mean: if empty { 0.0 } else { (self.sum as f64 / self.count as f64 * 10.0).round() / 10.0 },
            p50: self.percentile(0.5),
            p90: self.percentile(0.9),
            p99: self.percentile(0.99),
            p999: self.percentile(0.999),
            buckets: self.filled(),
            also: Row::new(),
        }
    }

    fn filled(&self) -> Vec<(u64, u64, u64)> {
        let filled = self.buckets.iter().enumerate().filter(|(_, count)| **count > 0);
        filled.map(|(bucket, count)| (bucket_low(bucket), bucket_high(bucket), *count)).collect()
    }
}

/// The smallest and largest value. Where CPUs share a histogram, an update of either may have been lost; the outermost buckets then
/// say more.
fn extremes(kept: &Histogram) -> (u64, u64) {
    let first = kept.buckets.iter().position(|count| *count > 0).unwrap_or(0);
    let last = kept.buckets.iter().rposition(|count| *count > 0).unwrap_or(0);
    let min = kept.min_plus_1.wrapping_sub(1).min(bucket_high(first) - 1).max(bucket_low(first));
    let max = kept.max.max(bucket_low(last)).min(bucket_high(last) - 1);
    (min.min(max), max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(values: &[u64]) -> Histogram {
        let mut histogram = Histogram::EMPTY;
        for value in values {
            histogram.buckets[bucket_of(*value)] += 1;
            histogram.sum += value;
            histogram.max = histogram.max.max(*value);
            histogram.min_plus_1 =
                if histogram.min_plus_1 == 0 { value + 1 } else { histogram.min_plus_1.min(value + 1) };
        }
        histogram
    }

    fn of(values: &[u64]) -> Distribution {
        let mut distribution = Distribution::default();
        distribution.add(&kept(values));
        distribution
    }

    #[test]
    fn percentiles_are_within_the_stated_error() {
        let values: Vec<u64> = (1..=100_000).map(|n| n * 37).collect();
        let distribution = of(&values);
        for share in [0.001, 0.5, 0.9, 0.99, 0.999, 1.0] {
            let exact = values[((share * values.len() as f64).ceil() as usize).max(1) - 1] as f64;
            let found = distribution.percentile(share) as f64;
            assert!((found - exact).abs() <= exact * RELATIVE_ERROR, "{share}: {found} for {exact}");
        }
    }

    #[test]
    fn the_stated_error_is_that_of_the_documents() {
        assert!((RELATIVE_ERROR - 0.0625).abs() < f64::EPSILON);
    }

    #[test]
    fn one_value_is_every_percentile() {
        let series = of(&[12_345]).series(Row::new());
        assert_eq!(
            (series.min, series.p50, series.p999, series.max, series.mean),
            (12_345, 12_345, 12_345, 12_345, 12_345.0)
        );
    }

    #[test]
    fn nothing_is_all_zeros_and_no_bucket() {
        let series = Distribution::default().series(Row::new());
        assert_eq!((series.count, series.min, series.max, series.p50, series.mean), (0, 0, 0, 0, 0.0));
        assert!(series.buckets.is_empty());
    }

    #[test]
    fn merging_is_adding_up() {
        let mut both = of(&[1, 2, 3]);
        both.merge(&of(&[1000, 2000]));
        assert_eq!(both, of(&[1, 2, 3, 1000, 2000]));
    }

    #[test]
    fn values_one_by_one_are_what_the_kernel_would_have_kept() {
        let values = [7, 0, 12_345, 1, 1 << 41, 12_345];
        let mut one_by_one = Distribution::default();
        for value in values {
            one_by_one.record(value);
        }
        assert_eq!(one_by_one, of(&values));
        assert_eq!(one_by_one.count(), 6);
        assert_eq!(one_by_one.extent(), ((1 << 41) + 24_698, 0, 1 << 41));
    }

    #[test]
    fn a_distribution_comes_back_out_of_its_buckets_and_extent() {
        for whole in [of(&[3, 3, 900, 70_000]), Distribution::default()] {
            let (sum, min, max) = whole.extent();
            assert_eq!(Distribution::restored(whole.counts(), sum, min, max), whole);
        }
        assert_eq!(of(&[3, 3, 900]).counts().collect::<Vec<_>>(), [(3, 2), (bucket_of(900), 1)]);
        assert_eq!(Distribution::default().extent(), (0, 0, 0));
        let twice = Distribution::restored([(3, 1), (3, 1), (BUCKETS, 5)], 6, 3, 3);
        assert_eq!(twice, of(&[3, 3]), "a bucket may come in parts, and one that there is not is nothing");
    }

    #[test]
    fn sums_stop_where_a_number_ends() {
        let mut huge = kept(&[5]);
        huge.sum = u64::MAX - 1;
        let mut distribution = Distribution::default();
        distribution.add(&huge);
        distribution.merge(&of(&[5]));
        distribution.record(5);
        assert_eq!((distribution.extent().0, distribution.count()), (u64::MAX, 3));
    }

    #[test]
    fn percentiles_count_from_the_first_value_to_the_last() {
        let distribution = of(&[1, 2, 3, 4]);
        let found = [0.0, 0.25, 0.26, 0.5, 0.75, 0.76, 1.0].map(|share| distribution.percentile(share));
        assert_eq!(found, [1, 1, 2, 2, 3, 4, 4]);
        let series = distribution.series(Row::new());
        assert_eq!((series.count, series.mean), (4, 2.5));
        assert_eq!(series.buckets, [(1, 2, 1), (2, 3, 1), (3, 4, 1), (4, 5, 1)]);
        // The middle of 1024..1152, and of it only what the extremes allow.
        assert_eq!(of(&[1024, 1030, 1151]).percentile(0.5), 1087);
        assert_eq!(of(&[1030, 1040]).percentile(0.5), 1040);
    }

    #[test]
    fn extremes_that_buckets_contradict_are_those_of_the_buckets() {
        let extent = |min_plus_1, max| {
            let mut lost = kept(&[1030, 2050]);
            (lost.min_plus_1, lost.max) = (min_plus_1, max);
            let mut distribution = Distribution::default();
            distribution.add(&lost);
            let (_, min, max) = distribution.extent();
            (min, max)
        };
        assert_eq!(extent(1031, 2050), (1030, 2050));
        assert_eq!(extent(0, 0), (1151, 2048), "both were lost");
        assert_eq!(extent(1, u64::MAX), (1024, 2303), "neither lies in an outermost bucket");
        let mut one = kept(&[1030]);
        (one.min_plus_1, one.max) = (1041, 1030);
        let mut distribution = Distribution::default();
        distribution.add(&one);
        assert_eq!(distribution.extent(), (1030, 1030, 1030), "the least is never above the greatest");
    }

    #[test]
    fn a_lost_extreme_is_mended_by_the_buckets() {
        let mut lost = kept(&[10, 1_000_000]);
        (lost.min_plus_1, lost.max) = (500, 3);
        let mut distribution = Distribution::default();
        distribution.add(&lost);
        let series = distribution.series(Row::new());
        assert_eq!(series.min, 10);
        assert!(series.max.abs_diff(1_000_000) < 125_000);
    }
}
