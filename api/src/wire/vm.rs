//! `/`, `/version`, `/vm`, `/actions` and `/serial`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vmm::BucketSpec;

use super::TokenBucketWire;

/// Answer of GET /.
#[derive(Clone, Debug, Serialize)]
pub struct InstanceInfoWire {
    /// The VM's id.
    pub id: String,
    /// `Not started`, `Running` or `Paused`.
    pub state: &'static str,
    /// Vitrine's version.
    pub vmm_version: &'static str,
    /// Vitrine's name.
    pub app_name: &'static str,
}

/// Answer of GET /version.
#[derive(Clone, Debug, Serialize)]
pub struct VersionWire {
    /// The version of Firecracker whose API this is.
    pub firecracker_version: &'static str,
}

/// PATCH /vm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmWire {
    /// What the VM is to be.
    pub state: VmStateWire,
}

/// `state` of PATCH /vm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmStateWire {
    /// Its vCPUs stop.
    Paused,
    /// They go on.
    Resumed,
}

impl VmStateWire {
    /// As a request says it.
    pub fn name(self) -> &'static str {
        match self {
            VmStateWire::Paused => "Paused",
            VmStateWire::Resumed => "Resumed",
        }
    }
}

/// PUT /actions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActionWire {
    /// What to do.
    pub action_type: ActionTypeWire,
}

/// `action_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ActionTypeWire {
    /// Boot the VM.
    InstanceStart,
    /// Press Ctrl-Alt-Del.
    SendCtrlAltDel,
    /// Write a line of Firecracker's metrics.
    FlushMetrics,
}

impl ActionTypeWire {
    /// As a request says it.
    pub fn name(self) -> &'static str {
        match self {
            ActionTypeWire::InstanceStart => "InstanceStart",
            ActionTypeWire::SendCtrlAltDel => "SendCtrlAltDel",
            ActionTypeWire::FlushMetrics => "FlushMetrics",
        }
    }
}

/// PUT /serial.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SerialWire {
    /// A file, made if absent, or a FIFO; standard output when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial_out_path: Option<PathBuf>,
    /// How much output there may be: a token is a byte. The rest is dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<TokenBucketWire>,
}

impl SerialWire {
    /// The console as GET /vm/config shows it: a bucket that limits nothing left out.
    #[must_use]
    pub fn tidy(self) -> SerialWire {
        SerialWire {
            rate_limiter: self.rate_limiter.filter(TokenBucketWire::limits),
            ..self
        }
    }

    /// What its output is limited to, as the VM takes it.
    pub fn limit(&self) -> Option<BucketSpec> {
        self.rate_limiter.as_ref().map(TokenBucketWire::spec)
    }
}
