//! Rate limiters.

use serde::{Deserialize, Serialize};
use vmm::{BucketSpec, LimiterSpec};

/// The rate limiters of drives, interfaces and the entropy device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimiterWire {
    /// Bytes.
    pub bandwidth: Option<TokenBucketWire>,
    /// Operations.
    pub ops: Option<TokenBucketWire>,
}

impl RateLimiterWire {
    /// As the VM takes it.
    pub fn spec(&self) -> LimiterSpec {
        LimiterSpec {
            bandwidth: self.bandwidth.as_ref().map(TokenBucketWire::spec),
            ops: self.ops.as_ref().map(TokenBucketWire::spec),
        }
    }

    /// As [`RateLimiterWire::spec`]; one that is not there limits nothing.
    pub fn spec_of(limiter: Option<&RateLimiterWire>) -> LimiterSpec {
        limiter.map(RateLimiterWire::spec).unwrap_or_default()
    }

    /// Buckets that limit nothing left out; `None` when none is left.
    pub fn tidy(self) -> Option<RateLimiterWire> {
        let bandwidth = self.bandwidth.filter(TokenBucketWire::limits);
        let ops = self.ops.filter(TokenBucketWire::limits);
        (bandwidth.is_some() || ops.is_some()).then_some(RateLimiterWire { bandwidth, ops })
    }

    /// This one, with the buckets of `change` where it has them.
    #[must_use]
    pub fn changed(self, change: RateLimiterWire) -> RateLimiterWire {
        RateLimiterWire {
            bandwidth: change.bandwidth.or(self.bandwidth),
            ops: change.ops.or(self.ops),
        }
    }
}

/// One bucket: `size` tokens come back in `refill_time` ms.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenBucketWire {
    /// Tokens it holds.
    pub size: u64,
    /// Tokens that it holds once, at the start.
    pub one_time_burst: Option<u64>,
    /// Milliseconds in which it fills.
    pub refill_time: u64,
}

impl TokenBucketWire {
    /// As the VM takes it.
    pub fn spec(&self) -> BucketSpec {
        BucketSpec {
            size: self.size,
            one_time_burst: self.one_time_burst.unwrap_or(0),
            refill_ms: self.refill_time,
        }
    }

    /// A bucket without size or time limits nothing.
    pub fn limits(&self) -> bool {
        self.size != 0 && self.refill_time != 0
    }
}
