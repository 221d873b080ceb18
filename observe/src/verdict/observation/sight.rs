//! What was found by looking into a vCPU.

use crate::reader::{SectionView, Snapshot};
use crate::sight::Suspicion;

/// The last looks into a vCPU.
#[derive(Clone, Debug, Default)]
#[cfg_attr(
    any(test, feature = "recording"),
    derive(serde::Serialize, serde::Deserialize),
    serde(default)
)]
pub struct SightSeen {
    /// When the last one was; 0 if there was none.
    pub at_ns: u64,
    /// Why it is looked into.
    pub suspicion: Suspicion,
    /// Since when.
    pub suspected_since_ns: u64,
    /// Looks that were alike.
    pub alike: Streak,
    /// Looks that found the same interrupt waiting, in the kernel with interrupts off.
    pub held: Streak,
    /// The next instruction.
    pub rip: u64,
    /// The lowest of those that were alike.
    pub rip_low: u64,
    /// The highest.
    pub rip_high: u64,
    /// General registers that changed meanwhile.
    pub changed_registers: u64,
    /// RFLAGS.IF.
    pub interrupts_on: bool,
    /// The privilege level.
    pub ring: u64,
    /// KVM's number for what it does.
    pub mp_state: u64,
    /// Whether the local APIC's timer is armed.
    pub timer_armed: bool,
    /// The highest interrupt that waits; 0 if none does.
    pub pending_vector: u64,
    /// An NMI waits.
    pub pending_nmi: bool,
    /// Where it is; empty if that is not known.
    pub place: String,
    /// Who called that, separated by commas; empty if that is not known.
    pub stack: String,
}

/// Looks in a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    any(test, feature = "recording"),
    derive(serde::Serialize, serde::Deserialize),
    serde(default)
)]
pub struct Streak {
    /// How many.
    pub looks: u64,
    /// When the first was.
    pub since_ns: u64,
}

impl SightSeen {
    /// What the section says; `None` if one of its numbers is not there.
    pub(super) fn of(snapshot: &Snapshot, section: &SectionView) -> Option<Self> {
        let ns = |field: &str| {
            let ticks = section.gauge(field)?;
            let of = |ticks| snapshot.header.clock.monotonic_of(ticks);
            Some(if ticks == 0 { 0 } else { of(ticks) })
        };
        let is = |field: &str| Some(section.gauge(field)? != 0);
        let text = |field: &str| section.words(field).unwrap_or_default();
        Some(SightSeen {
            at_ns: ns("sampled_at")?,
            suspicion: Suspicion::of(section.gauge("suspicion")?)?,
            suspected_since_ns: ns("suspected_since")?,
            alike: Streak {
                looks: section.gauge("alike")?,
                since_ns: ns("alike_since")?,
            },
            held: Streak {
                looks: section.gauge("pending_looks")?,
                since_ns: ns("pending_since")?,
            },
            rip: section.gauge("rip")?,
            rip_low: section.gauge("rip_low")?,
            rip_high: section.gauge("rip_high")?,
            changed_registers: section.gauge("changed_registers")?,
            interrupts_on: is("interrupts_on")?,
            ring: section.gauge("ring")?,
            mp_state: section.gauge("mp_state")?,
            timer_armed: is("timer_armed")?,
            pending_vector: section.gauge("pending_vector")?,
            pending_nmi: is("pending_nmi")?,
            place: text("place"),
            stack: text("stack").replace('\n', ", "),
        })
    }

    /// How far apart the next instructions of looks that were alike are.
    pub fn window_bytes(&self) -> u64 {
        self.rip_high.saturating_sub(self.rip_low)
    }

    /// Whether its place or its stack has that name.
    pub fn is_in(&self, name: &str) -> bool {
        self.place.contains(name) || self.stack.contains(name)
    }

    /// Its place, for a sentence: with a space before it.
    pub fn at_place(&self) -> String {
        if self.place.is_empty() {
            format!(" at {:#x}", self.rip)
        } else {
            format!(" in {}", self.place)
        }
    }
}
