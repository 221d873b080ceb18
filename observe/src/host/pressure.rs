//! Pressure stall information: how much of the time somebody on this host waited for CPU, memory
//! or I/O.

use std::mem::offset_of;

use super::file::ProcFile;
use super::parse::pressure;
use super::{Follower, Roots};
use crate::blackbox::{BlackBox, BlackBoxError, Block};
use crate::cell::{Counter, Gauge};
use crate::clock::Clock;
use crate::schema::{Field, Section, Unit};

/// Rows of the table, which are the names of the files in `/proc/pressure`.
pub const RESOURCES: [&str; 3] = ["cpu", "memory", "io"];

/// The pressure of one resource.
#[derive(Debug, Default)]
#[repr(C)]
pub struct PressureRow {
    /// Time in which some task waited.
    pub some_ns: Counter,
    /// Time in which all tasks that had something to do waited.
    pub full_ns: Counter,
    /// Share of the last 10 s in which some task waited, in hundredths of a percent.
    pub some_avg10: Gauge,
    /// Likewise all tasks.
    pub full_avg10: Gauge,
    /// 1 if the kernel does not tell: it is old, or runs with psi=0.
    pub missing: Gauge,
}

/// The section `psi`.
#[derive(Debug)]
#[repr(C)]
pub struct PsiBlock {
    /// When it was last sampled.
    pub sampled_at: Gauge,
    /// By resource.
    pub rows: [PressureRow; RESOURCES.len()],
}

const fn column(field: Field) -> Field {
    let offset = field.offset + offset_of!(PsiBlock, rows);
    let field = Field { offset, ..field };
    field.column(RESOURCES.len(), size_of::<PressureRow>(), "resource")
}

// SAFETY: repr(C), cells and an array of repr(C) structs of cells only.
#[allow(unsafe_code)]
unsafe impl Section for PsiBlock {
    const KIND: &'static str = "psi";
    const INSTANCE: &'static [&'static str] = &[];
    #[rustfmt::skip]
    const FIELDS: &'static [Field] = &[
        Field::gauge("sampled_at", Unit::Ticks, offset_of!(PsiBlock, sampled_at), "When the host's pressure was last looked at."),
        column(Field::counter("some", Unit::Nanoseconds, offset_of!(PressureRow, some_ns), "Time in which some task of the host waited for the resource.")),
        column(Field::counter("full", Unit::Nanoseconds, offset_of!(PressureRow, full_ns), "Time in which all tasks of the host that had something to do waited for the resource.")),
        column(Field::gauge("some_avg10", Unit::None, offset_of!(PressureRow, some_avg10), "Share of the last 10 s in which some task waited, in hundredths of a percent.")),
        column(Field::gauge("full_avg10", Unit::None, offset_of!(PressureRow, full_avg10), "Share of the last 10 s in which all tasks waited, in hundredths of a percent.")),
        column(Field::gauge("missing", Unit::None, offset_of!(PressureRow, missing), "1 if the host's kernel does not tell the pressure of the resource.")),
    ];
}

/// What is followed for one resource.
struct Source {
    file: ProcFile,
    some: Follower,
    full: Follower,
}

pub(super) struct PressureSampler {
    block: Block<PsiBlock>,
    sources: [Source; RESOURCES.len()],
}

impl PressureSampler {
    pub(super) fn new(black_box: &mut BlackBox, roots: &Roots) -> Result<Self, BlackBoxError> {
        let rows = RESOURCES.map(String::from);
        let block = black_box.section(PsiBlock::KIND, &[("resource", &rows)])?;
        let sources = RESOURCES.map(|name| Source {
            file: ProcFile::new(roots.proc.join("pressure").join(name)),
            some: Follower::default(),
            full: Follower::default(),
        });
        Ok(PressureSampler { block, sources })
    }

    pub(super) fn sample(&mut self, buffer: &mut Vec<u8>) {
        for (row, source) in self.block.rows.iter().zip(&mut self.sources) {
            let text = source.file.text(buffer);
            let told = text.and_then(|text| pressure(&text));
            row.missing.set(u64::from(told.is_none()));
            let Some((some, full)) = told else {
                row.some_avg10.set(0);
                row.full_avg10.set(0);
                continue;
            };
            let ns = |us: u64| us.saturating_mul(1000);
            source.some.follow(&row.some_ns, ns(some.total_us));
            row.some_avg10.set(some.avg10);
            if let Some(full) = full {
                source.full.follow(&row.full_ns, ns(full.total_us));
                row.full_avg10.set(full.avg10);
            }
        }
        self.block.sampled_at.set(Clock::process().ticks());
    }
}
