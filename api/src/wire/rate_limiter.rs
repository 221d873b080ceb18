//! Rate limiters. Where there are none yet, one that limits something is refused.

use serde::{Deserialize, Serialize};
use vmm::{BucketSpec, LimiterSpec};

use super::WireError;

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
        let of = |bucket: &TokenBucketWire| BucketSpec {
            size: bucket.size,
            one_time_burst: bucket.one_time_burst.unwrap_or(0),
            refill_ms: bucket.refill_time,
        };
        LimiterSpec {
            bandwidth: self.bandwidth.as_ref().map(of),
            ops: self.ops.as_ref().map(of),
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
    /// A bucket without size or time limits nothing.
    fn limits(&self) -> bool {
        self.size != 0 && self.refill_time != 0
    }
}

/// Refuses a bucket that limits something; one that limits nothing is as good as none.
///
/// # Errors
/// `field` is not supported.
pub fn refuse_bucket(bucket: Option<&TokenBucketWire>, field: &str) -> Result<(), WireError> {
    if bucket.is_some_and(TokenBucketWire::limits) {
        return Err(WireError::field_not_supported(field));
    }
    Ok(())
}
