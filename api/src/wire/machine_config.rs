//! `/machine-config`.

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use vmm::{Backing, MemorySpec};

use super::WireError;

/// A PUT's or PATCH's body. A PUT must give the first two; what it leaves out falls back to its
/// default, while a PATCH leaves it as it is.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfigWire {
    /// Number of vCPUs.
    pub vcpu_count: Option<u64>,
    /// Guest memory in MiB.
    pub mem_size_mib: Option<u64>,
    /// Whether two vCPUs share a core.
    pub smt: Option<bool>,
    /// Only `None` (the text) in this build.
    pub cpu_template: Option<String>,
    /// Only false in this build.
    pub track_dirty_pages: Option<bool>,
    /// What backs guest memory.
    pub huge_pages: Option<HugePagesWire>,
    /// Not supported by this build, as all that follow.
    pub huge_pages_fallback: Option<bool>,
    /// See above.
    pub prefault: Option<bool>,
    /// See above.
    pub lock: Option<bool>,
    /// See above.
    pub numa_node: Option<IgnoredAny>,
    /// See above.
    pub memory_nodes: Option<IgnoredAny>,
    /// See above.
    pub cpu_affinity: Option<IgnoredAny>,
    /// See above.
    pub io_affinity: Option<IgnoredAny>,
}

/// `huge_pages`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HugePagesWire {
    /// As the host has it.
    #[default]
    None,
    /// Transparent huge pages.
    Transparent,
    /// The host's pool of 2 MiB pages.
    #[serde(rename = "2M")]
    TwoMib,
    /// The host's pool of 1 GiB pages: not supported by this build.
    #[serde(rename = "1G")]
    OneGib,
}

/// The machine as it is configured; what GET answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MachineConfig {
    /// Number of vCPUs.
    pub vcpu_count: u64,
    /// Guest memory in MiB.
    pub mem_size_mib: u64,
    /// Whether two vCPUs share a core.
    pub smt: bool,
    /// Always false in this build.
    pub track_dirty_pages: bool,
    /// What backs guest memory.
    pub huge_pages: HugePagesWire,
}

impl Default for MachineConfig {
    fn default() -> Self {
        MachineConfig {
            vcpu_count: 1,
            mem_size_mib: MemorySpec::default().size_mib,
            smt: false,
            track_dirty_pages: false,
            huge_pages: HugePagesWire::None,
        }
    }
}

impl MachineConfig {
    /// The memory that this asks for.
    pub fn memory(&self) -> MemorySpec {
        MemorySpec {
            size_mib: self.mem_size_mib,
            backing: match self.huge_pages {
                HugePagesWire::Transparent => Backing::Transparent,
                HugePagesWire::TwoMib => Backing::HugeTlb2M,
                HugePagesWire::None | HugePagesWire::OneGib => Backing::Anonymous,
            },
        }
    }
}

impl MachineConfigWire {
    /// The whole configuration that a PUT asks for.
    ///
    /// # Errors
    /// A required field is missing; a field that this build does not support.
    pub fn put(&self) -> Result<MachineConfig, WireError> {
        let required = [
            ("vcpu_count", self.vcpu_count, "give 1 to 32"),
            (
                "mem_size_mib",
                self.mem_size_mib,
                "give the guest's memory in MiB",
            ),
        ];
        for (field, value, remedy) in required {
            if value.is_none() {
                return Err(WireError::Missing { field, remedy });
            }
        }
        self.apply(&MachineConfig::default())
    }

    /// The configuration that a PATCH makes of `current`.
    ///
    /// # Errors
    /// Nothing is given; a field that this build does not support.
    pub fn patch(&self, current: &MachineConfig) -> Result<MachineConfig, WireError> {
        if *self == MachineConfigWire::default() {
            return Err(WireError::EmptyBody("PATCH".to_owned()));
        }
        self.apply(current)
    }

    fn apply(&self, current: &MachineConfig) -> Result<MachineConfig, WireError> {
        self.refuse_unsupported()?;
        Ok(MachineConfig {
            vcpu_count: self.vcpu_count.unwrap_or(current.vcpu_count),
            mem_size_mib: self.mem_size_mib.unwrap_or(current.mem_size_mib),
            smt: self.smt.unwrap_or(current.smt),
            track_dirty_pages: false,
            huge_pages: self.huge_pages.unwrap_or(current.huge_pages),
        })
    }

    fn refuse_unsupported(&self) -> Result<(), WireError> {
        if let Some(name) = self.cpu_template.as_deref().filter(|name| *name != "None") {
            return Err(WireError::field_not_supported(format!(
                "cpu_template {name}"
            )));
        }
        let fields = [
            ("track_dirty_pages", self.track_dirty_pages == Some(true)),
            (
                "huge_pages 1G",
                self.huge_pages == Some(HugePagesWire::OneGib),
            ),
            (
                "huge_pages_fallback",
                self.huge_pages_fallback == Some(true),
            ),
            ("prefault", self.prefault == Some(true)),
            ("lock", self.lock == Some(true)),
            ("numa_node", self.numa_node.is_some()),
            ("memory_nodes", self.memory_nodes.is_some()),
            ("cpu_affinity", self.cpu_affinity.is_some()),
            ("io_affinity", self.io_affinity.is_some()),
        ];
        match fields.iter().find(|(_, given)| *given) {
            Some((field, _)) => Err(WireError::field_not_supported(*field)),
            None => Ok(()),
        }
    }
}
