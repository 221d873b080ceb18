//! `/entropy`.

use serde::{Deserialize, Serialize};
use vmm::EntropySpec;

use super::{RateLimiterWire, WireError, rate_limiter};

/// The entropy device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EntropyWire {
    /// Not supported by this build.
    pub rate_limiter: Option<RateLimiterWire>,
}

impl EntropyWire {
    /// The device as GET /vm/config shows it, and as a spec.
    ///
    /// # Errors
    /// A field that this build does not support.
    pub fn convert(self) -> Result<(EntropyWire, EntropySpec), WireError> {
        rate_limiter::refuse(self.rate_limiter.as_ref(), "rate_limiter")?;
        Ok((EntropyWire::default(), EntropySpec::default()))
    }
}
