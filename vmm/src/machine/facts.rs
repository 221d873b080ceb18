//! What the machine is: its section `machine`, written when it is built and when it starts.

use std::mem::offset_of;

use observe::{BlackBox, BlackBoxError, Block, Field, Gauge, Section, Unit};

use crate::spec::VmSpec;

/// The section `machine`. Written by the `vm` thread.
#[derive(Debug, Default)]
#[repr(C)]
pub struct MachineBlock {
    /// Guest memory.
    pub memory: Gauge,
    /// vCPUs.
    pub vcpus: Gauge,
    /// Drives.
    pub drives: Gauge,
    /// Network interfaces.
    pub networks: Gauge,
    /// When the vCPUs first ran, in ticks; 0 before.
    pub started_at: Gauge,
}

// SAFETY: repr(C), cells only.
#[allow(unsafe_code)]
unsafe impl Section for MachineBlock {
    const KIND: &'static str = "machine";
    const INSTANCE: &'static [&'static str] = &[];
    #[rustfmt::skip]
    const FIELDS: &'static [Field] = &[
        Field::gauge("memory", Unit::Bytes, offset_of!(MachineBlock, memory), "Guest memory, as it was configured."),
        Field::gauge("vcpus", Unit::None, offset_of!(MachineBlock, vcpus), "vCPUs."),
        Field::gauge("drives", Unit::None, offset_of!(MachineBlock, drives), "Drives."),
        Field::gauge("networks", Unit::None, offset_of!(MachineBlock, networks), "Network interfaces."),
        Field::gauge("started_at", Unit::Ticks, offset_of!(MachineBlock, started_at), "When the vCPUs ran for the first time; 0 before."),
    ];
}

impl MachineBlock {
    /// Places the section for the machine of `spec`.
    ///
    /// # Errors
    /// [`BlackBoxError::Full`] when the black box has no room for it.
    pub fn place(black_box: &mut BlackBox, spec: &VmSpec) -> Result<Block<Self>, BlackBoxError> {
        let block: Block<Self> = black_box.section(Self::KIND, &[])?;
        block.memory.set(spec.memory.bytes());
        block.vcpus.set(u64::from(spec.vcpus));
        block.drives.set(spec.drives.len() as u64);
        block.networks.set(spec.networks.len() as u64);
        Ok(block)
    }
}
