//! `/entropy`.

use serde::{Deserialize, Serialize};
use vmm::EntropySpec;

use super::RateLimiterWire;

/// The entropy device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EntropyWire {
    /// How much the guest may ask.
    pub rate_limiter: Option<RateLimiterWire>,
}

impl EntropyWire {
    /// The device as GET /vm/config shows it, and as a spec.
    pub fn convert(self) -> (EntropyWire, EntropySpec) {
        let rate_limiter = self.rate_limiter.and_then(RateLimiterWire::tidy);
        let limiter = RateLimiterWire::spec_of(rate_limiter.as_ref());
        (EntropyWire { rate_limiter }, EntropySpec { limiter })
    }
}
