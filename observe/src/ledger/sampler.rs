//! The ledger as it is kept: where the time of each vCPU went, from the making of the black box on.

use std::mem::offset_of;

use super::{Account, Moment, Note, between};
use crate::blackbox::{BlackBox, BlackBoxError, Block};
use crate::cell::{Counter, Gauge};
use crate::clock::Clock;
use crate::reader::Snapshot;
use crate::schema::{Field, Section, Unit};

/// The parts of an account, in the order of [`Account::parts`].
pub const PARTS: [&str; 9] = [
    "guest",
    "kernel",
    "handler",
    "halted",
    "waiting",
    "throttled",
    "fault",
    "blocked",
    "paused",
];

/// The section `ledger/N`, written by the thread that samples.
#[derive(Debug, Default)]
#[repr(C)]
pub struct LedgerBlock {
    /// Up to when it is kept.
    pub sampled_at: Gauge,
    /// All time.
    pub wall_ns: Counter,
    /// By part.
    pub parts: [Counter; PARTS.len()],
    /// Time that no part has.
    pub unaccounted_ns: Counter,
    /// Time that more than one part has.
    pub overclaimed_ns: Counter,
    /// What could not be told the last time.
    pub notes: [Gauge; Note::ALL.len()],
}

// SAFETY: repr(C), cells and arrays of cells only.
#[allow(unsafe_code)]
unsafe impl Section for LedgerBlock {
    const KIND: &'static str = "ledger";
    const INSTANCE: &'static [&'static str] = &["vcpu"];
    #[rustfmt::skip]
    const FIELDS: &'static [Field] = &[
        Field::gauge("sampled_at", Unit::Ticks, offset_of!(LedgerBlock, sampled_at), "Up to when the ledger is kept."),
        Field::counter("wall", Unit::Nanoseconds, offset_of!(LedgerBlock, wall_ns), "All time of the vCPU: the parts and what no part has."),
        Field::counter("time", Unit::Nanoseconds, offset_of!(LedgerBlock, parts), "Where the vCPU's time went.").column(PARTS.len(), 8, "part"),
        Field::counter("unaccounted", Unit::Nanoseconds, offset_of!(LedgerBlock, unaccounted_ns), "Time that no part has."),
        Field::counter("overclaimed", Unit::Nanoseconds, offset_of!(LedgerBlock, overclaimed_ns), "Time that more than one part has."),
        Field::gauge("untold", Unit::None, offset_of!(LedgerBlock, notes), "1 for what could not be told in the last account.").column(Note::ALL.len(), 8, "note"),
    ];
}

/// Keeps the ledger of all vCPUs.
pub struct LedgerSampler {
    vcpus: Vec<Kept>,
    clock: Clock,
}

struct Kept {
    block: Block<LedgerBlock>,
    last: Option<Moment>,
}

impl LedgerSampler {
    /// Places the sections `ledger/0` to `ledger/N`.
    ///
    /// # Errors
    /// [`BlackBoxError::Full`].
    pub fn new(black_box: &mut BlackBox, vcpus: usize) -> Result<Self, BlackBoxError> {
        let parts = PARTS.map(ToOwned::to_owned);
        let notes = Note::ALL.map(|note| note.name().to_owned());
        let labels: [(&str, &[String]); 2] = [("part", &parts), ("note", &notes)];
        let blocks = (0..vcpus).map(|vcpu| black_box.section(&format!("ledger/{vcpu}"), &labels));
        let kept = blocks.map(|block| {
            let last = None;
            block.map(|block| Kept { block, last })
        });
        Ok(LedgerSampler {
            vcpus: kept.collect::<Result<_, _>>()?,
            clock: Clock::process(),
        })
    }

    /// Accounts for the time since the last sample. `snapshot` is of the same black box, made after
    /// the sections `task`, `cgroup` and `kvm_vcpu` were sampled; it needs no others but `vcpu`.
    pub fn sample(&mut self, snapshot: &Snapshot) {
        for (vcpu, kept) in self.vcpus.iter_mut().enumerate() {
            let now = Moment::of(snapshot, vcpu);
            let last = kept.last.take();
            let last = last.unwrap_or_else(|| Moment::making(snapshot));
            write(&kept.block, &between(&last, &now, vcpu));
            kept.block.sampled_at.set(self.clock.ticks());
            kept.last = Some(now);
        }
    }
}

/// Adds an account to what is kept.
fn write(block: &LedgerBlock, account: &Account) {
    block.wall_ns.add(account.wall_ns);
    for (counter, (_, ns)) in block.parts.iter().zip(account.parts()) {
        counter.add(ns.unwrap_or(0));
    }
    let residue = u64::try_from(account.residue_ns.unsigned_abs()).unwrap_or(u64::MAX);
    if account.residue_ns >= 0 {
        block.unaccounted_ns.add(residue);
    } else {
        block.overclaimed_ns.add(residue);
    }
    for (gauge, note) in block.notes.iter().zip(Note::ALL) {
        gauge.set(u64::from(account.notes.contains(&note)));
    }
}
