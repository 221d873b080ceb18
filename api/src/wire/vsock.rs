//! `/vsock`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vmm::VsockSpec;

/// The socket device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockWire {
    /// Firecracker's old name for the device; it means nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vsock_id: Option<String>,
    /// The guest's address.
    pub guest_cid: u32,
    /// The Unix socket at which programs of the host reach the guest.
    pub uds_path: PathBuf,
}

impl VsockWire {
    /// As a spec.
    pub fn spec(&self) -> VsockSpec {
        VsockSpec {
            guest_cid: self.guest_cid,
            path: self.uds_path.clone(),
        }
    }
}
