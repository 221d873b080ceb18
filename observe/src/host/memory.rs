//! Guest memory as the host holds it, region by region.

use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::mem::offset_of;
use std::path::PathBuf;

use super::OTHER;
use super::parse::{Smaps, Usage, Vma};
use crate::blackbox::{BlackBox, BlackBoxError, Block};
use crate::cell::{Counter, Gauge};
use crate::clock::{Clock, monotonic_ns, thread_cpu_ns};
use crate::schema::{Field, Section, Unit};

/// Rows of the table: 15 regions, and `other` for those beyond.
pub const MEMORY_ROWS: usize = 16;

/// The next sample is this many times as far off as the last one took: a thousandth of a CPU.
const REST: u64 = 1000;

/// Bytes that are read at a time.
const BUFFER_BYTES: usize = 16 << 10;

/// What the host holds of one region.
#[derive(Debug, Default)]
#[repr(C)]
pub struct MemoryRow {
    /// In the host's memory, huge pages of all kinds included.
    pub resident: Gauge,
    /// In swap.
    pub swapped: Gauge,
    /// In transparent huge pages of anonymous memory.
    pub anonymous_huge: Gauge,
    /// In transparent huge pages of shared memory (memfd).
    pub shared_huge: Gauge,
    /// In huge pages from a pool (hugetlbfs).
    pub hugetlb: Gauge,
    /// Locked into the host's memory.
    pub locked: Gauge,
    /// 1 if a mapping reaches beyond the region and was shared out by length.
    pub estimated: Gauge,
}

/// The section `memory`.
#[derive(Debug)]
#[repr(C)]
pub struct MemoryBlock {
    /// When it was last sampled.
    pub sampled_at: Gauge,
    /// 1 if the last sample failed; then the rows are those of the one before.
    pub missing: Gauge,
    /// Samples taken.
    pub sampled: Counter,
    /// CPU time that they took.
    pub sampling_ns: Counter,
    /// By region.
    pub rows: [MemoryRow; MEMORY_ROWS],
}

const fn column(name: &'static str, unit: Unit, offset: usize, help: &'static str) -> Field {
    let offset = offset_of!(MemoryBlock, rows) + offset;
    let field = Field::gauge(name, unit, offset, help);
    field.column(MEMORY_ROWS, size_of::<MemoryRow>(), "region")
}

// SAFETY: repr(C), cells and an array of repr(C) structs of cells only.
#[allow(unsafe_code)]
unsafe impl Section for MemoryBlock {
    const KIND: &'static str = "memory";
    const INSTANCE: &'static [&'static str] = &[];
    #[rustfmt::skip]
    const FIELDS: &'static [Field] = &[
        Field::gauge("sampled_at", Unit::Ticks, offset_of!(MemoryBlock, sampled_at), "When guest memory was last looked at; 0 if it never was."),
        Field::gauge("missing", Unit::None, offset_of!(MemoryBlock, missing), "1 if guest memory could not be looked at."),
        Field::counter("sampled", Unit::None, offset_of!(MemoryBlock, sampled), "Times that guest memory was looked at."),
        Field::counter("sampling", Unit::Nanoseconds, offset_of!(MemoryBlock, sampling_ns), "CPU time spent on looking at guest memory."),
        column("resident", Unit::Bytes, offset_of!(MemoryRow, resident), "Guest memory in the host's memory, huge pages included."),
        column("swapped", Unit::Bytes, offset_of!(MemoryRow, swapped), "Guest memory in the host's swap."),
        column("anonymous_huge", Unit::Bytes, offset_of!(MemoryRow, anonymous_huge), "Guest memory in transparent huge pages."),
        column("shared_huge", Unit::Bytes, offset_of!(MemoryRow, shared_huge), "Guest memory in transparent huge pages of shared memory."),
        column("hugetlb", Unit::Bytes, offset_of!(MemoryRow, hugetlb), "Guest memory in huge pages of the host's pools."),
        column("locked", Unit::Bytes, offset_of!(MemoryRow, locked), "Guest memory locked into the host's memory."),
        column("estimated", Unit::None, offset_of!(MemoryRow, estimated), "1 if a mapping reaches beyond the region, and the region has a share of it by length."),
    ];
}

/// A region in this process, and its row.
struct Region {
    start: u64,
    end: u64,
    row: usize,
}

/// Samples the host's side of guest memory into the section `memory`, seldom enough to cost at
/// most a thousandth of a CPU: the kernel walks the page tables for it.
pub struct MemorySampler {
    block: Block<MemoryBlock>,
    smaps: PathBuf,
    file: Option<BufReader<File>>,
    regions: Vec<Region>,
    line: Vec<u8>,
    /// `CLOCK_MONOTONIC`; not before.
    next_ns: u64,
}

impl MemorySampler {
    /// Places the section `memory` for `regions`: name, first byte and length in this process.
    /// Regions beyond the 15th are added up in the row `other`.
    ///
    /// # Errors
    /// [`BlackBoxError::Full`] when the black box has no room for it.
    pub fn new(
        black_box: &mut BlackBox,
        regions: &[(String, usize, usize)],
    ) -> Result<Self, BlackBoxError> {
        Self::in_file(black_box, regions, PathBuf::from("/proc/self/smaps"))
    }

    pub(super) fn in_file(
        black_box: &mut BlackBox,
        regions: &[(String, usize, usize)],
        smaps: PathBuf,
    ) -> Result<Self, BlackBoxError> {
        let last = MEMORY_ROWS - 1;
        let names = regions.iter().take(last).map(|(name, _, _)| name.clone());
        let other = (regions.len() > last).then(|| OTHER.to_owned());
        let names: Vec<String> = names.chain(other).collect();
        let block = black_box.section(MemoryBlock::KIND, &[("region", &names)])?;
        let regions = regions
            .iter()
            .enumerate()
            .map(|(i, (_, start, bytes))| Region {
                start: *start as u64,
                end: start.saturating_add(*bytes) as u64,
                row: i.min(last),
            });
        Ok(MemorySampler {
            block,
            smaps,
            file: None,
            regions: regions.collect(),
            line: Vec::new(),
            next_ns: 0,
        })
    }

    /// Looks at guest memory if the last look is long enough ago: a thousand times the CPU time
    /// that it took. Gives back whether it looked. Called by one thread alone.
    pub fn sample(&mut self) -> bool {
        if monotonic_ns() < self.next_ns {
            return false;
        }
        let start = thread_cpu_ns();
        let rows = self.walk();
        self.block.missing.set(u64::from(rows.is_none()));
        if let Some(rows) = rows {
            self.write(&rows);
            self.block.sampled.inc();
            self.block.sampled_at.set(Clock::process().ticks());
        } else {
            self.file = None;
        }
        let took = thread_cpu_ns().saturating_sub(start);
        self.block.sampling_ns.add(took);
        self.next_ns = monotonic_ns().saturating_add(took.saturating_mul(REST));
        true
    }

    /// Reads smaps; `None` if that fails.
    fn walk(&mut self) -> Option<[(Usage, bool); MEMORY_ROWS]> {
        if self.file.is_none() {
            let file = File::open(&self.smaps).ok()?;
            self.file = Some(BufReader::with_capacity(BUFFER_BYTES, file));
        }
        let file = self.file.as_mut()?;
        file.seek(SeekFrom::Start(0)).ok()?;
        let mut rows = [(Usage::default(), false); MEMORY_ROWS];
        let mut smaps = Smaps::default();
        loop {
            self.line.clear();
            if file.read_until(b'\n', &mut self.line).ok()? == 0 {
                break;
            }
            if let Some(vma) = smaps.line(&String::from_utf8_lossy(&self.line)) {
                credit(&self.regions, &vma, &mut rows);
            }
        }
        if let Some(vma) = smaps.finish() {
            credit(&self.regions, &vma, &mut rows);
        }
        Some(rows)
    }

    fn write(&self, rows: &[(Usage, bool); MEMORY_ROWS]) {
        for (cells, (usage, estimated)) in self.block.rows.iter().zip(rows) {
            let resident = usage.resident.saturating_add(usage.hugetlb);
            cells.resident.set(resident);
            cells.swapped.set(usage.swapped);
            cells.anonymous_huge.set(usage.anonymous_huge);
            cells.shared_huge.set(usage.shared_huge);
            cells.hugetlb.set(usage.hugetlb);
            cells.locked.set(usage.locked);
            cells.estimated.set(u64::from(*estimated));
        }
    }
}

/// Gives each region its share of a mapping. The kernel merges neighbours, so a mapping may reach
/// beyond a region; then nothing but lengths tells what belongs to whom.
fn credit(regions: &[Region], vma: &Vma, rows: &mut [(Usage, bool)]) {
    let length = vma.end.saturating_sub(vma.start);
    for region in regions {
        let overlap = vma
            .end
            .min(region.end)
            .saturating_sub(vma.start.max(region.start));
        if overlap > 0
            && let Some((usage, estimated)) = rows.get_mut(region.row)
        {
            usage.add_share(&vma.usage, overlap, length);
            *estimated |= overlap < length && vma.usage != Usage::default();
        }
    }
}
