//! Model-specific registers at reset (Intel SDM vol. 4), as far as KVM's own defaults do not do.

use kvm_bindings::{Msrs, kvm_msr_entry};

const IA32_MISC_ENABLE: u32 = 0x1A0;
/// Fast string operation.
const MISC_ENABLE_FAST_STRING: u64 = 1;
const IA32_MTRR_DEF_TYPE: u32 = 0x2FF;
/// MTRRs on, default type write-back: RAM is cacheable without any range.
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

/// The registers that a vCPU starts with.
///
/// # Errors
/// Never with these few entries; the type's constructor has a limit.
pub fn initial() -> Result<Msrs, vmm_sys_util::fam::Error> {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let entries = [
        entry(IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        entry(IA32_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK),
    ];
    Msrs::from_entries(&entries)
}
