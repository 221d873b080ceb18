//! Single-writer cells: what a thread counts, readable by anybody.
//!
//! All cells are atomics so that readers of other threads and processes are well-defined, but a
//! write is a relaxed load and a relaxed store: two plain `mov` on x86-64. Exactly one thread may
//! write a cell; a second writer would lose counts (never memory safety).

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A count that only goes up, written by one thread.
#[derive(Default, Debug)]
#[repr(transparent)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`; wraps at 2^64.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Adds one.
    #[inline]
    pub fn inc(&self) {
        self.add(1);
    }

    /// The count now.
    #[inline]
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A value that goes up and down, written by one thread.
#[derive(Default, Debug)]
#[repr(transparent)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Replaces the value.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// The value now.
    #[inline]
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Sub-buckets in each power of two (as a power of two): 4, so a bucket is at most 25 % wide.
const SUB_BITS: u32 = 2;
/// Buckets of a [`Histogram`]: values up to 2^41 (36 minutes in nanoseconds) are told apart.
pub const BUCKETS: usize = 160;

/// A log-linear histogram: four buckets to each power of two. Its memory layout, as the black box
/// describes it to readers: sum, max, then [`BUCKETS`] counts.
#[derive(Debug)]
#[repr(C)]
pub struct Histogram {
    sum: Counter,
    max: Gauge,
    buckets: [Counter; BUCKETS],
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram {
            sum: Counter::default(),
            max: Gauge::default(),
            buckets: std::array::from_fn(|_| Counter::default()),
        }
    }
}

impl Histogram {
    /// Where the sum lies: it can be a counter field of its own.
    pub const SUM_OFFSET: usize = std::mem::offset_of!(Histogram, sum);

    /// Counts one observation of `value`.
    #[inline]
    pub fn record(&self, value: u64) {
        self.record_sum(value);
        self.record_bucket(value);
    }

    /// The first half of [`record`](Histogram::record), for who does the other a little later.
    #[inline]
    pub fn record_sum(&self, value: u64) {
        self.sum.add(value);
    }

    /// The second half of [`record`](Histogram::record).
    #[inline]
    pub fn record_bucket(&self, value: u64) {
        if value > self.max.value() {
            self.max.set(value);
        }
        if let Some(bucket) = self.buckets.get(bucket_of(value)) {
            bucket.inc();
        }
    }

    /// Observations so far.
    pub fn count(&self) -> u64 {
        self.buckets
            .iter()
            .fold(0, |n, b| n.wrapping_add(b.value()))
    }

    /// Sum of all observed values; wraps at 2^64.
    pub fn sum(&self) -> u64 {
        self.sum.value()
    }

    /// The largest value observed, 0 if none.
    pub fn max(&self) -> u64 {
        self.max.value()
    }
}

/// The bucket that counts `value`; values of 7 * 2^38 and more share the last one.
#[inline]
pub fn bucket_of(value: u64) -> usize {
    if value < 1 << SUB_BITS {
        return value as usize;
    }
    let exponent = 63 - value.leading_zeros();
    let sub = (value >> (exponent - SUB_BITS)) & ((1 << SUB_BITS) - 1);
    let index = ((exponent - SUB_BITS + 1) << SUB_BITS) as usize + sub as usize;
    index.min(BUCKETS - 1)
}

/// The smallest value that falls into `bucket` (so bucket `b` holds `low(b)..low(b + 1)`, the last
/// one all above its low); 2^41 for a `bucket` that no [`Histogram`] has.
pub fn bucket_low(bucket: usize) -> u64 {
    let bucket = bucket.min(BUCKETS);
    let sub_count = 1usize << SUB_BITS;
    if bucket < sub_count {
        return bucket as u64;
    }
    let exponent = (bucket >> SUB_BITS) as u32 + SUB_BITS - 1;
    let sub = (bucket & (sub_count - 1)) as u64;
    (1u64 << exponent) + (sub << (exponent - SUB_BITS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_contiguous_and_hold_their_own_low() {
        for bucket in 0..BUCKETS {
            assert_eq!(bucket_of(bucket_low(bucket)), bucket);
            if bucket > 0 {
                assert_eq!(bucket_of(bucket_low(bucket) - 1), bucket - 1);
            }
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn a_histogram_counts_each_observation_once() {
        let histogram = Histogram::default();
        for value in [0, 1, 3, 4, 1000, u64::from(u32::MAX)] {
            histogram.record(value);
        }
        assert_eq!(histogram.count(), 6);
        assert_eq!(histogram.sum(), 1008 + u64::from(u32::MAX));
        assert_eq!(histogram.max(), u64::from(u32::MAX));
    }
}
