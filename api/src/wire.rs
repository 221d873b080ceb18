//! The bodies of requests and answers, as JSON has them: one type for each of Firecracker's that
//! this build serves. Nothing here touches the host.
//!
//! Every optional field is an [`Option`], so that `null` means absent; unknown fields are refused. The
//! [`policy`] is Vitrine's own and is read by hand, so that each refusal says what is allowed.

pub mod balloon;
pub mod boot_source;
pub mod drive;
pub mod dump;
pub mod entropy;
pub mod error;
pub mod fields;
pub mod id;
pub mod logger;
pub mod machine_config;
pub mod metrics;
pub mod network;
pub mod policy;
pub mod rate_limiter;
pub mod vm;
pub mod vsock;

pub use balloon::BalloonWire;
pub use boot_source::BootSourceWire;
pub use drive::{CacheTypeWire, DrivePatchWire, DriveWire, IoEngineWire};
pub use dump::{DumpKindWire, DumpWire};
pub use entropy::EntropyWire;
pub use error::WireError;
pub use logger::{LevelWire, LoggerWire};
pub use machine_config::{HugePagesWire, MachineConfigWire};
pub use metrics::MetricsWire;
pub use network::{MacWire, NetworkPatchWire, NetworkWire};
pub use rate_limiter::{RateLimiterWire, TokenBucketWire};
pub use vm::{
    ActionTypeWire, ActionWire, InstanceInfoWire, SerialWire, VersionWire, VmStateWire, VmWire,
};
pub use vsock::VsockWire;

use serde::de::DeserializeOwned;

/// A body as `T`.
///
/// # Errors
/// Malformed JSON, an unknown or missing field, a value of the wrong kind: with the place.
pub fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, WireError> {
    serde_json::from_slice(body).map_err(WireError::Json)
}

/// Judges the body of a request that needs none: nothing, or an object without fields.
///
/// # Errors
/// As [`parse`].
pub fn parse_empty(body: &[u8]) -> Result<(), WireError> {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct EmptyWire {}
    match body {
        [] => Ok(()),
        _ => parse::<EmptyWire>(body).map(|EmptyWire {}| ()),
    }
}

#[cfg(test)]
mod tests;
