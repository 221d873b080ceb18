//! `/metrics`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where Firecracker's metrics go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricsWire {
    /// A file, made if absent, or a FIFO.
    pub metrics_path: PathBuf,
    /// Whether each line has the VM's `id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub emit_id: Option<bool>,
    /// Put into each line as `properties`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub properties: Option<BTreeMap<String, String>>,
}
