//! `/boot-source`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What to boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootSourceWire {
    /// The kernel's file.
    pub kernel_image_path: PathBuf,
    /// The initial RAM disk's file.
    pub initrd_path: Option<PathBuf>,
    /// The kernel command line.
    pub boot_args: Option<String>,
}
