//! All kinds of section that a VM has in its black box.

use devices::legacy::{ConsoleBlock, PvpanicBlock, WatchBlock};
use devices::virtio::{
    BalloonBlock, DeviceBlock, QueueBlock, ThreadBlock, TransportBlock, VsockBlock,
};
use observe::SectionKind;
use observe::host::{CgroupBlock, HostBlock, MemoryBlock, PsiBlock, TaskBlock};
use observe::ledger::LedgerBlock;
use observe::sight::SightBlock;
use observe::verdict::ThresholdsBlock;

use crate::machine::facts::MachineBlock;
use crate::vcpu::counters::VcpuBlock;
use crate::watcher::kicks::KickBlock;
use crate::watcher::kvm_table::{KvmVcpuBlock, KvmVmBlock};
use crate::watcher::samples::{BalloonRing, MachineRing, QueueRing, VcpuRing};

/// Every kind, one a line. What is not here is not in `docs/metrics.md`.
pub const SECTIONS: &[SectionKind] = &[
    SectionKind::of::<MachineBlock>(),
    SectionKind::of::<VcpuBlock>(),
    SectionKind::of::<QueueBlock>(),
    SectionKind::of::<KickBlock>(),
    SectionKind::of::<DeviceBlock>(),
    SectionKind::of::<VsockBlock>(),
    SectionKind::of::<TransportBlock>(),
    SectionKind::of::<BalloonBlock>(),
    SectionKind::of::<ThreadBlock>(),
    SectionKind::of::<ConsoleBlock>(),
    SectionKind::of::<WatchBlock>(),
    SectionKind::of::<PvpanicBlock>(),
    SectionKind::of::<KvmVmBlock>(),
    SectionKind::of::<KvmVcpuBlock>(),
    SectionKind::of::<TaskBlock>(),
    SectionKind::of::<PsiBlock>(),
    SectionKind::of::<CgroupBlock>(),
    SectionKind::of::<HostBlock>(),
    SectionKind::of::<MemoryBlock>(),
    SectionKind::of::<LedgerBlock>(),
    SectionKind::of::<SightBlock>(),
    SectionKind::of::<ThresholdsBlock>(),
    SectionKind::of::<MachineRing>(),
    SectionKind::of::<VcpuRing>(),
    SectionKind::of::<QueueRing>(),
    SectionKind::of::<BalloonRing>(),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_report_shows_is_what_is_written() {
        for (kind, fields) in observe::report::SHOWN_FIELDS {
            let section = SECTIONS.iter().find(|section| section.kind == kind);
            let section = section.unwrap_or_else(|| panic!("nobody writes {kind}"));
            for name in fields {
                let known = section.fields.iter().any(|field| field.name == *name);
                assert!(known, "{kind} has no {name}");
            }
        }
    }
}
