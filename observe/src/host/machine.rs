//! The host: its memory, its pools of huge pages, its paging, and what a hypervisor above it takes.

use std::mem::offset_of;

use super::file::ProcFile;
use super::parse::{lookup, number, steal_ticks};
use super::{Follower, Roots, USER_TICK_NS};
use crate::blackbox::{BlackBox, BlackBoxError, Block};
use crate::cell::{Counter, Gauge};
use crate::clock::{Clock, monotonic_ns, realtime_ns};
use crate::schema::{Field, Section, Unit};

/// Rows of the table of pools, and the folder of each in `/sys/kernel/mm/hugepages`.
pub const HUGEPAGE_SIZES: [(&str, &str); 2] =
    [("2M", "hugepages-2048kB"), ("1G", "hugepages-1048576kB")];

/// Two readings that are further apart are none of the same moment.
const CLOCKS_APART_NS: u64 = 10_000_000;

/// A pool of huge pages.
#[derive(Debug, Default)]
#[repr(C)]
pub struct HugepageRow {
    /// Pages in the pool (`nr_hugepages`).
    pub pages: Gauge,
    /// Pages that nobody uses (`free_hugepages`).
    pub free: Gauge,
    /// Free pages that somebody has been promised (`resv_hugepages`).
    pub reserved: Gauge,
    /// 1 if the host has no such pool.
    pub missing: Gauge,
}

/// The section `host`.
#[derive(Debug, Default)]
#[repr(C)]
pub struct HostBlock {
    /// When it was last sampled.
    pub sampled_at: Gauge,
    /// Of meminfo, vmstat and stat, how many could not be read.
    pub missing: Gauge,
    /// MemTotal.
    pub memory: Gauge,
    /// MemAvailable.
    pub memory_available: Gauge,
    /// SwapTotal.
    pub swap: Gauge,
    /// SwapFree.
    pub swap_free: Gauge,
    /// pgmajfault.
    pub major_faults: Counter,
    /// pswpin.
    pub swap_in: Counter,
    /// pswpout.
    pub swap_out: Counter,
    /// oom_kill.
    pub oom_kills: Counter,
    /// Time that a hypervisor above us took, summed over the CPUs.
    pub steal_ns: Counter,
    /// What the host's date is ahead of `CLOCK_MONOTONIC`, in nanoseconds.
    pub date_offset: Gauge,
    /// 1 if this host is a virtual machine itself (CPUID 1 ECX bit 31).
    pub is_virtual: Gauge,
    /// By size.
    pub hugepages: [HugepageRow; HUGEPAGE_SIZES.len()],
}

const fn pool(name: &'static str, offset: usize, help: &'static str) -> Field {
    let offset = offset_of!(HostBlock, hugepages) + offset;
    let field = Field::gauge(name, Unit::None, offset, help);
    field.column(HUGEPAGE_SIZES.len(), size_of::<HugepageRow>(), "size")
}

// SAFETY: repr(C), cells and an array of repr(C) structs of cells only.
#[allow(unsafe_code)]
unsafe impl Section for HostBlock {
    const KIND: &'static str = "host";
    const INSTANCE: &'static [&'static str] = &[];
    #[rustfmt::skip]
    const FIELDS: &'static [Field] = &[
        Field::gauge("sampled_at", Unit::Ticks, offset_of!(HostBlock, sampled_at), "When the host was last looked at."),
        Field::gauge("missing", Unit::None, offset_of!(HostBlock, missing), "Of meminfo, vmstat and stat, how many could not be read."),
        Field::gauge("memory", Unit::Bytes, offset_of!(HostBlock, memory), "Memory of the host."),
        Field::gauge("memory_available", Unit::Bytes, offset_of!(HostBlock, memory_available), "Memory that the host could give to new programs without swapping."),
        Field::gauge("swap", Unit::Bytes, offset_of!(HostBlock, swap), "Swap space of the host."),
        Field::gauge("swap_free", Unit::Bytes, offset_of!(HostBlock, swap_free), "Swap space that is free."),
        Field::counter("major_faults", Unit::None, offset_of!(HostBlock, major_faults), "Page faults that needed I/O, of the whole host."),
        Field::counter("swap_in", Unit::Pages, offset_of!(HostBlock, swap_in), "Pages that the host read from swap."),
        Field::counter("swap_out", Unit::Pages, offset_of!(HostBlock, swap_out), "Pages that the host wrote to swap."),
        Field::counter("oom_kills", Unit::None, offset_of!(HostBlock, oom_kills), "Processes of the host that the OOM killer ended."),
        Field::counter("steal", Unit::Nanoseconds, offset_of!(HostBlock, steal_ns), "Time that a hypervisor above the host took from its CPUs, all together."),
        Field::gauge("date_offset", Unit::Nanoseconds, offset_of!(HostBlock, date_offset), "What the host's date is ahead of its monotonic clock: moves when the clock is set."),
        Field::gauge("virtual", Unit::None, offset_of!(HostBlock, is_virtual), "1 if the host is a virtual machine itself."),
        pool("hugepages", offset_of!(HugepageRow, pages), "Huge pages in the host's pool."),
        pool("hugepages_free", offset_of!(HugepageRow, free), "Huge pages of the pool that nobody uses."),
        pool("hugepages_reserved", offset_of!(HugepageRow, reserved), "Free huge pages that somebody has been promised."),
        pool("hugepages_missing", offset_of!(HugepageRow, missing), "1 if the host has no huge pages of that size."),
    ];
}

/// The files of a pool.
struct Pool {
    pages: ProcFile,
    free: ProcFile,
    reserved: ProcFile,
}

pub(super) struct MachineSampler {
    block: Block<HostBlock>,
    meminfo: ProcFile,
    vmstat: ProcFile,
    stat: ProcFile,
    pools: [Pool; HUGEPAGE_SIZES.len()],
    paging: [Follower; 4],
    steal: Follower,
}

impl MachineSampler {
    pub(super) fn new(black_box: &mut BlackBox, roots: &Roots) -> Result<Self, BlackBoxError> {
        let sizes = HUGEPAGE_SIZES.map(|(size, _)| size.to_owned());
        let block: Block<HostBlock> = black_box.section(HostBlock::KIND, &[("size", &sizes)])?;
        let hypervisor = std::arch::x86_64::__cpuid(1).ecx >> 31;
        block.is_virtual.set(u64::from(hypervisor));
        let pools = roots.sys.join("kernel/mm/hugepages");
        Ok(MachineSampler {
            block,
            meminfo: ProcFile::new(roots.proc.join("meminfo")),
            vmstat: ProcFile::new(roots.proc.join("vmstat")),
            stat: ProcFile::new(roots.proc.join("stat")),
            pools: HUGEPAGE_SIZES.map(|(_, folder)| {
                let file = |name| ProcFile::new(pools.join(folder).join(name));
                Pool {
                    pages: file("nr_hugepages"),
                    free: file("free_hugepages"),
                    reserved: file("resv_hugepages"),
                }
            }),
            paging: Default::default(),
            steal: Follower::default(),
        })
    }

    pub(super) fn sample(&mut self, buffer: &mut Vec<u8>) {
        let there = [self.memory(buffer), self.paging(buffer), self.steal(buffer)];
        let missing = there.iter().filter(|there| there.is_none()).count();
        self.block.missing.set(missing as u64);
        for (row, pool) in self.block.hugepages.iter().zip(&mut self.pools) {
            let mut gauge = |file: &mut ProcFile, cell: &Gauge| {
                let value = file.text(buffer).and_then(|text| number(&text));
                cell.set(value.unwrap_or(0));
                value.is_some()
            };
            let there = gauge(&mut pool.pages, &row.pages);
            gauge(&mut pool.free, &row.free);
            gauge(&mut pool.reserved, &row.reserved);
            row.missing.set(u64::from(!there));
        }
        self.date();
        self.block.sampled_at.set(Clock::process().ticks());
    }

    /// Reads both clocks at once. When another had the CPU between the two, what was known stays.
    fn date(&self) {
        let before = monotonic_ns();
        let date = realtime_ns();
        let took = monotonic_ns().saturating_sub(before);
        if took < CLOCKS_APART_NS {
            let offset = date.saturating_sub(before.saturating_add(took / 2));
            self.block.date_offset.set(offset);
        }
    }

    fn memory(&mut self, buffer: &mut Vec<u8>) -> Option<()> {
        let keys = ["MemTotal", "MemAvailable", "SwapTotal", "SwapFree"];
        let values = lookup(&self.meminfo.text(buffer)?, keys);
        let block = &self.block;
        let cells = [
            &block.memory,
            &block.memory_available,
            &block.swap,
            &block.swap_free,
        ];
        for (cell, value) in cells.into_iter().zip(values) {
            cell.set(value.unwrap_or(0));
        }
        Some(())
    }

    fn paging(&mut self, buffer: &mut Vec<u8>) -> Option<()> {
        let keys = ["pgmajfault", "pswpin", "pswpout", "oom_kill"];
        let values = lookup(&self.vmstat.text(buffer)?, keys);
        let block = &self.block;
        let cells = [
            &block.major_faults,
            &block.swap_in,
            &block.swap_out,
            &block.oom_kills,
        ];
        for ((follower, cell), value) in self.paging.iter_mut().zip(cells).zip(values) {
            if let Some(value) = value {
                follower.follow(cell, value);
            }
        }
        Some(())
    }

    fn steal(&mut self, buffer: &mut Vec<u8>) -> Option<()> {
        let ticks = steal_ticks(&self.stat.text(buffer)?)?;
        let ns = ticks.saturating_mul(USER_TICK_NS);
        self.steal.follow(&self.block.steal_ns, ns);
        Some(())
    }
}
