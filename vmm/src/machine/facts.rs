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
    /// vCPUs that the command line lets a Linux guest start; 0 if it says nothing of that.
    pub vcpus_allowed: Gauge,
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
        Field::gauge("vcpus_allowed", Unit::None, offset_of!(MachineBlock, vcpus_allowed), "vCPUs that the command line lets a Linux guest start (maxcpus, nr_cpus, nosmp); 0 if it says nothing of that."),
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
        let cmdline = spec.boot.cmdline.as_deref().unwrap_or_default();
        block.vcpus_allowed.set(vcpus_allowed(cmdline));
        block.drives.set(spec.drives.len() as u64);
        block.networks.set(spec.networks.len() as u64);
        Ok(block)
    }
}

/// How many CPUs these words let Linux start; 0 if they say nothing of that.
fn vcpus_allowed(cmdline: &str) -> u64 {
    let limits = cmdline.split_ascii_whitespace().filter_map(|word| {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        match name {
            "nosmp" => Some(1),
            // 0 is as nosmp (Documentation/admin-guide/kernel-parameters.txt).
            "maxcpus" | "nr_cpus" => value.parse().ok().map(|limit: u64| limit.max(1)),
            _ => None,
        }
    });
    limits.min().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_says_how_many_cpus_a_guest_may_start() {
        for (cmdline, allowed) in [
            ("console=ttyS0 quiet", 0),
            ("console=ttyS0 maxcpus=2 quiet", 2),
            ("maxcpus=4 nr_cpus=3", 3),
            ("nosmp", 1),
            ("maxcpus=0", 1),
            ("maxcpus= xmaxcpus=7", 0),
        ] {
            assert_eq!(vcpus_allowed(cmdline), allowed, "{cmdline}");
        }
    }
}
