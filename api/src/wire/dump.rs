//! `/observe/dump`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vmm::DumpKind;

/// POST /observe/dump.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DumpWire {
    /// What.
    pub kind: DumpKindWire,
    /// Where to, an absolute path.
    pub path: PathBuf,
}

/// `kind` of POST /observe/dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DumpKindWire {
    /// A copy of the black box.
    Blackbox,
    /// An ELF core of the guest.
    Core,
    /// The registers of all vCPUs.
    Registers,
}

impl DumpKindWire {
    /// As a request says it.
    pub fn name(self) -> &'static str {
        match self {
            DumpKindWire::Blackbox => "blackbox",
            DumpKindWire::Core => "core",
            DumpKindWire::Registers => "registers",
        }
    }

    /// As the VM takes it.
    pub fn kind(self) -> DumpKind {
        match self {
            DumpKindWire::Blackbox => DumpKind::BlackBox,
            DumpKindWire::Core => DumpKind::Core,
            DumpKindWire::Registers => DumpKind::Registers,
        }
    }
}
