//! Rate limits: token buckets for bytes and for operations, as Firecracker's API has them.
//!
//! A bucket holds `size` tokens and fills in `refill_ms`; `one_time_burst` tokens more can be used
//! once and never come back. What needs more tokens than the bucket holds goes on when it is full,
//! and is paid for afterwards, so that the mean rate holds for every size of request.
//!
//! No clock and no timer here: who asks says what time it is, and is told how long to wait.

#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

mod throttle;

use std::time::Duration;

pub use self::throttle::Throttle;

/// One bucket. Without a size or a refill time it limits nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BucketSpec {
    /// Tokens that it holds, and has at the start.
    pub size: u64,
    /// Tokens that it has beside these, once.
    pub one_time_burst: u64,
    /// Milliseconds in which it fills.
    pub refill_ms: u64,
}

impl BucketSpec {
    /// Whether it limits anything.
    pub fn limits(&self) -> bool {
        self.size != 0 && self.refill_ms != 0
    }
}

/// A limiter. What is `None` is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimiterSpec {
    /// A token is a byte.
    pub bandwidth: Option<BucketSpec>,
    /// A token is an operation.
    pub ops: Option<BucketSpec>,
}

impl LimiterSpec {
    /// This one, changed: a bucket that is `None` in `change` stays, one that limits nothing is
    /// taken away.
    #[must_use]
    pub fn changed(self, change: LimiterSpec) -> LimiterSpec {
        let of = |bucket: Option<BucketSpec>| bucket.filter(BucketSpec::limits);
        LimiterSpec {
            bandwidth: of(change.bandwidth.or(self.bandwidth)),
            ops: of(change.ops.or(self.ops)),
        }
    }
}

/// Most that is counted with: no product of two leaves an `i128`.
const MOST: u64 = 1 << 62;

/// A bucket at work. Its level is in parts of a token, as many to the token as the bucket needs
/// nanoseconds to fill: then it rises by `size` each nanosecond, and nothing is ever rounded.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    size: i128,
    refill_ns: i128,
    /// Below zero after what was larger than the bucket.
    level: i128,
    burst: u64,
    at_ns: u64,
}

impl Bucket {
    fn new(spec: BucketSpec, now_ns: u64) -> Option<Bucket> {
        let spec = Some(spec).filter(BucketSpec::limits)?;
        let refill_ns = spec.refill_ms.saturating_mul(1_000_000).min(MOST);
        let (size, refill_ns) = (spec.size.min(MOST).into(), refill_ns.into());
        let mut bucket = Bucket {
            size,
            refill_ns,
            level: 0,
            burst: spec.one_time_burst,
            at_ns: now_ns,
        };
        bucket.level = bucket.capacity();
        Some(bucket)
    }

    fn capacity(&self) -> i128 {
        self.size.saturating_mul(self.refill_ns)
    }

    fn fill(&mut self, now_ns: u64) {
        let passed = i128::from(now_ns.saturating_sub(self.at_ns));
        let more = passed.saturating_mul(self.size);
        self.level = self.level.saturating_add(more).min(self.capacity());
        self.at_ns = self.at_ns.max(now_ns);
    }

    /// What `tokens` take beside the burst.
    fn need(&self, tokens: u64) -> i128 {
        let tokens = tokens.saturating_sub(self.burst).min(MOST);
        i128::from(tokens).saturating_mul(self.refill_ns)
    }

    /// Nanoseconds until `tokens` can be taken; 0 if they can.
    fn wait_ns(&self, tokens: u64) -> u64 {
        let lacks = self.need(tokens).min(self.capacity());
        let lacks = lacks.saturating_sub(self.level).max(0);
        let round_up = self.size.saturating_sub(1);
        let wait = lacks.saturating_add(round_up).checked_div(self.size);
        u64::try_from(wait.unwrap_or(0)).unwrap_or(u64::MAX)
    }

    /// Tokens that can be taken at once.
    fn holds(&self) -> u64 {
        let whole = self.level.max(0).checked_div(self.refill_ns).unwrap_or(0);
        u64::try_from(whole)
            .unwrap_or(u64::MAX)
            .saturating_add(self.burst)
    }

    fn take(&mut self, tokens: u64) {
        self.level = self.level.saturating_sub(self.need(tokens));
        self.burst = self.burst.saturating_sub(tokens);
    }
}

/// A limiter at work.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limiter {
    spec: LimiterSpec,
    bandwidth: Option<Bucket>,
    ops: Option<Bucket>,
}

impl Limiter {
    /// One whose buckets are full.
    pub fn new(spec: LimiterSpec, now_ns: u64) -> Limiter {
        let make = |spec: Option<BucketSpec>| Bucket::new(spec?, now_ns);
        Limiter {
            spec,
            bandwidth: make(spec.bandwidth),
            ops: make(spec.ops),
        }
    }

    /// Changes it as [`LimiterSpec::changed`] says: a bucket that is given is full, one that is not
    /// goes on.
    pub fn change(&mut self, change: LimiterSpec, now_ns: u64) {
        let fresh = Limiter::new(change, now_ns);
        if change.bandwidth.is_some() {
            self.bandwidth = fresh.bandwidth;
        }
        if change.ops.is_some() {
            self.ops = fresh.ops;
        }
        self.spec = self.spec.changed(change);
    }

    /// What it limits to.
    pub fn spec(&self) -> LimiterSpec {
        self.spec
    }

    /// Whether it limits anything.
    pub fn limits(&self) -> bool {
        self.bandwidth.is_some() || self.ops.is_some()
    }

    /// One operation of so many bytes.
    ///
    /// # Errors
    /// How long it has to wait; nothing is taken then.
    pub fn take(&mut self, bytes: u64, now_ns: u64) -> Result<(), Duration> {
        self.wait(bytes, now_ns)?;
        self.charge(bytes);
        Ok(())
    }

    /// Whether one operation of so many bytes may go on. Takes nothing.
    ///
    /// # Errors
    /// How long it has to wait.
    pub fn wait(&mut self, bytes: u64, now_ns: u64) -> Result<(), Duration> {
        let both = [(&mut self.bandwidth, bytes), (&mut self.ops, 1)];
        let mut wait_ns = 0;
        for (bucket, tokens) in both {
            if let Some(bucket) = bucket {
                bucket.fill(now_ns);
                wait_ns = bucket.wait_ns(tokens).max(wait_ns);
            }
        }
        if wait_ns > 0 {
            return Err(Duration::from_nanos(wait_ns));
        }
        Ok(())
    }

    /// Takes as many of so many bytes as there are tokens for, and gives their number: for who drops
    /// the rest. That is no operation.
    pub fn take_part(&mut self, bytes: u64, now_ns: u64) -> u64 {
        let Some(bucket) = &mut self.bandwidth else {
            return bytes;
        };
        bucket.fill(now_ns);
        let part = bucket.holds().min(bytes);
        bucket.take(part);
        part
    }

    /// Takes what one operation of so many bytes needs, also what is not there: that is owed, and
    /// what comes next waits for it.
    pub fn charge(&mut self, bytes: u64) {
        if let Some(bucket) = &mut self.bandwidth {
            bucket.take(bytes);
        }
        if let Some(bucket) = &mut self.ops {
            bucket.take(1);
        }
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
mod tests;
