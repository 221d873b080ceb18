//! CPUID as each vCPU sees it: what KVM supports, with the topology, identity and clock leaves of
//! this machine (Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E).

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// How the guest's CPUs are arranged: one package, cores of one or two threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// vCPUs in all.
    pub vcpus: u8,
    /// Whether two vCPUs share a core.
    pub smt: bool,
}

impl Topology {
    /// Threads a core.
    pub fn threads(self) -> u32 {
        if self.smt && self.vcpus > 1 { 2 } else { 1 }
    }

    /// APIC id bits that number the threads of a core.
    pub fn thread_bits(self) -> u32 {
        self.threads().trailing_zeros()
    }

    /// APIC id bits that number the threads of the package.
    pub fn package_bits(self) -> u32 {
        u32::from(self.vcpus).next_power_of_two().trailing_zeros()
    }

    fn cores(self) -> u32 {
        u32::from(self.vcpus).div_ceil(self.threads())
    }
}

/// What CPUID tells of the machine's clocks, in kHz.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clocks {
    /// The time-stamp counter's frequency; 0 if KVM does not tell.
    pub tsc_khz: u32,
    /// Whether KVM emulates the LAPIC's TSC deadline mode.
    pub tsc_deadline: bool,
}

/// KVM's virtual APIC bus runs at 1 GHz: its timer counts nanoseconds (arch/x86/kvm/lapic.h).
const APIC_BUS_KHZ: u32 = 1_000_000;
const LEAF_TOPOLOGY: u32 = 0xB;
const LEAF_TOPOLOGY_V2: u32 = 0x1F;
const LEAF_TSC: u32 = 0x15;
const LEAF_FREQUENCY: u32 = 0x16;
const LEAF_HYPERVISOR_TIMING: u32 = 0x4000_0010;

/// The CPUID table of the vCPU with APIC id `apic_id`, from what KVM supports on this host.
pub fn table(
    supported: &CpuId,
    topology: Topology,
    clocks: Clocks,
    apic_id: u8,
) -> Vec<kvm_cpuid_entry2> {
    let mut entries: Vec<kvm_cpuid_entry2> = supported.as_slice().to_vec();
    let intel = is_vendor(&entries, b"GenuineIntel");
    let amd = is_vendor(&entries, b"AuthenticAMD");
    entries.retain(|e| !matches!(e.function, LEAF_TOPOLOGY | LEAF_TOPOLOGY_V2));
    for entry in &mut entries {
        patch(entry, topology, clocks, apic_id, amd);
    }
    add_topology(&mut entries, LEAF_TOPOLOGY, topology, apic_id);
    if intel && max_leaf(&entries, 0) >= LEAF_TOPOLOGY_V2 {
        add_topology(&mut entries, LEAF_TOPOLOGY_V2, topology, apic_id);
    }
    raise_max_leaf(&mut entries, 0, LEAF_TOPOLOGY);
    if clocks.tsc_khz != 0 {
        add_clock_leaves(&mut entries, clocks, intel);
    }
    entries
}

fn is_vendor(entries: &[kvm_cpuid_entry2], name: &[u8; 12]) -> bool {
    entries.iter().find(|e| e.function == 0).is_some_and(|e| {
        let text = [
            e.ebx.to_le_bytes(),
            e.edx.to_le_bytes(),
            e.ecx.to_le_bytes(),
        ]
        .concat();
        text == name
    })
}

fn patch(entry: &mut kvm_cpuid_entry2, t: Topology, clocks: Clocks, apic_id: u8, amd: bool) {
    match entry.function {
        // Features: initial APIC id, logical processors, HTT, hypervisor present.
        0x1 => {
            let logical = u32::from(t.vcpus).next_power_of_two();
            entry.ebx = (entry.ebx & 0xFFFF) | logical << 16 | u32::from(apic_id) << 24;
            entry.ecx = set(entry.ecx, 31, true);
            entry.ecx = set(entry.ecx, 24, clocks.tsc_deadline);
            entry.edx = set(entry.edx, 28, t.vcpus > 1);
        }
        // Cache topology (Intel): who shares each cache, and cores in the package.
        0x4 if entry.eax & 0x1F != 0 => {
            let level = entry.eax >> 5 & 7;
            let sharing = if level >= 3 {
                1 << t.package_bits()
            } else {
                t.threads()
            };
            let cores = (1u32 << t.package_bits()) >> t.thread_bits();
            entry.eax &= 0x3FFF;
            entry.eax |= (sharing - 1) << 14 | (cores.max(1) - 1) << 26;
        }
        // Performance monitoring is not offered: there is no PMU in this machine.
        0xA => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        0x8000_0001 if amd => {
            // CmpLegacy: the logical processors are cores; TopologyExtensions: 1D and 1E count.
            entry.ecx = set(entry.ecx, 1, t.vcpus > 1 && t.threads() == 1);
            entry.ecx = set(entry.ecx, 22, true);
        }
        0x8000_0008 if amd => {
            entry.ecx = (u32::from(t.vcpus) - 1) | t.package_bits() << 12;
        }
        // Cache topology (AMD), as leaf 4.
        0x8000_001D if entry.eax & 0x1F != 0 => {
            let level = entry.eax >> 5 & 7;
            let sharing = if level >= 3 {
                u32::from(t.vcpus)
            } else {
                t.threads()
            };
            entry.eax = (entry.eax & 0x3FFF) | (sharing - 1) << 14;
        }
        // Extended APIC id, core id and threads a core, node id and nodes (AMD).
        0x8000_001E => {
            entry.eax = u32::from(apic_id);
            entry.ebx = (u32::from(apic_id) >> t.thread_bits()) | (t.threads() - 1) << 8;
            entry.ecx = 0;
            entry.edx = 0;
        }
        _ => {}
    }
}

fn set(word: u32, bit: u32, on: bool) -> u32 {
    if on {
        word | 1 << bit
    } else {
        word & !(1 << bit)
    }
}

/// Leaves 0Bh and 1Fh: sub-leaf 0 counts threads, 1 cores, 2 ends the list.
fn add_topology(entries: &mut Vec<kvm_cpuid_entry2>, function: u32, t: Topology, apic_id: u8) {
    const THREAD_LEVEL: u32 = 1;
    const CORE_LEVEL: u32 = 2;
    let levels = [
        (t.thread_bits(), t.threads(), THREAD_LEVEL),
        (t.package_bits(), u32::from(t.vcpus), CORE_LEVEL),
        (0, 0, 0),
    ];
    for (index, (shift, count, level)) in (0u32..).zip(levels) {
        entries.push(kvm_cpuid_entry2 {
            function,
            index,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift,
            ebx: count,
            ecx: index | level << 8,
            edx: u32::from(apic_id),
            ..Default::default()
        });
    }
    debug_assert!(t.cores() >= 1);
}

/// The TSC's frequency, so that no guest needs to measure it: 15h and 16h (Intel), and the
/// hypervisors' timing leaf 4000_0010h (TSC and APIC bus in kHz).
fn add_clock_leaves(entries: &mut Vec<kvm_cpuid_entry2>, clocks: Clocks, intel: bool) {
    entries.retain(|e| e.function != LEAF_HYPERVISOR_TIMING);
    entries.push(kvm_cpuid_entry2 {
        function: LEAF_HYPERVISOR_TIMING,
        eax: clocks.tsc_khz,
        ebx: APIC_BUS_KHZ,
        ..Default::default()
    });
    raise_max_leaf(entries, 0x4000_0000, LEAF_HYPERVISOR_TIMING);
    if !intel {
        return;
    }
    entries.retain(|e| !matches!(e.function, LEAF_TSC | LEAF_FREQUENCY));
    // TSC = crystal * ebx / eax, with the APIC bus as the crystal: 1 GHz * kHz / 10^6.
    entries.push(kvm_cpuid_entry2 {
        function: LEAF_TSC,
        eax: APIC_BUS_KHZ,
        ebx: clocks.tsc_khz,
        ecx: APIC_BUS_KHZ * 1000,
        ..Default::default()
    });
    let mhz = clocks.tsc_khz / 1000;
    entries.push(kvm_cpuid_entry2 {
        function: LEAF_FREQUENCY,
        eax: mhz,
        ebx: mhz,
        ecx: 100,
        ..Default::default()
    });
    raise_max_leaf(entries, 0, LEAF_FREQUENCY);
}

fn max_leaf(entries: &[kvm_cpuid_entry2], base: u32) -> u32 {
    entries
        .iter()
        .find(|e| e.function == base)
        .map_or(base, |e| e.eax)
}

fn raise_max_leaf(entries: &mut [kvm_cpuid_entry2], base: u32, leaf: u32) {
    if let Some(entry) = entries.iter_mut().find(|e| e.function == base) {
        entry.eax = entry.eax.max(leaf);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supported(vendor: &[u8; 12]) -> CpuId {
        let word = |at: usize| u32::from_le_bytes(vendor[at..at + 4].try_into().unwrap());
        let leaf = |function, eax| kvm_cpuid_entry2 {
            function,
            eax,
            ..Default::default()
        };
        let identity = kvm_cpuid_entry2 {
            ebx: word(0),
            edx: word(4),
            ecx: word(8),
            ..leaf(0, 0x1F)
        };
        let functions = [leaf(1, 0), leaf(4, 0x63), leaf(0x4000_0000, 0x4000_0001)];
        let amd = [
            leaf(0x8000_0001, 0),
            leaf(0x8000_0008, 0),
            leaf(0x8000_001E, 0),
        ];
        let all: Vec<_> = [identity].into_iter().chain(functions).chain(amd).collect();
        CpuId::from_entries(&all).unwrap()
    }

    fn leaf(table: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        *table
            .iter()
            .find(|e| e.function == function && e.index == index)
            .unwrap()
    }

    const CLOCKS: Clocks = Clocks {
        tsc_khz: 2_000_000,
        tsc_deadline: true,
    };

    #[test]
    fn each_vcpu_has_its_own_apic_id_in_every_leaf_that_tells_it() {
        let topology = Topology {
            vcpus: 4,
            smt: false,
        };
        let table = table(&supported(b"AuthenticAMD"), topology, CLOCKS, 3);
        assert_eq!(leaf(&table, 1, 0).ebx >> 24, 3);
        assert_eq!(leaf(&table, 0xB, 0).edx, 3);
        assert_eq!(leaf(&table, 0x8000_001E, 0).eax, 3);
        assert_eq!(leaf(&table, 1, 0).ebx >> 16 & 0xFF, 4);
    }

    #[test]
    fn threads_cores_and_package_are_counted_alike_in_all_leaves() {
        for (vcpus, smt, threads) in [(1, false, 1), (2, true, 2), (4, true, 2), (32, false, 1)] {
            let topology = Topology { vcpus, smt };
            let table = table(&supported(b"GenuineIntel"), topology, CLOCKS, 0);
            for function in [0xB, 0x1F] {
                let (thread, core) = (leaf(&table, function, 0), leaf(&table, function, 1));
                assert_eq!(thread.ebx, threads);
                assert_eq!(core.ebx, u32::from(vcpus));
                assert_eq!(1 << core.eax, u32::from(vcpus).next_power_of_two());
                assert_eq!(leaf(&table, function, 2).ecx >> 8, 0);
            }
            let cores = (leaf(&table, 4, 0).eax >> 26) + 1;
            assert_eq!(cores * threads, u32::from(vcpus).next_power_of_two());
        }
    }

    #[test]
    fn the_guest_is_told_the_frequency_of_its_counter() {
        let topology = Topology {
            vcpus: 1,
            smt: false,
        };
        let table = table(&supported(b"GenuineIntel"), topology, CLOCKS, 0);
        let tsc = leaf(&table, 0x15, 0);
        let hz = u64::from(tsc.ecx) * u64::from(tsc.ebx) / u64::from(tsc.eax);
        assert_eq!(hz, 2_000_000_000);
        assert_eq!(leaf(&table, 0x4000_0010, 0).eax, 2_000_000);
        assert!(leaf(&table, 0x4000_0000, 0).eax >= 0x4000_0010);
        assert_ne!(leaf(&table, 1, 0).ecx & 1 << 31, 0);
    }
}
