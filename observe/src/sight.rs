//! What the watcher finds when it looks into a vCPU that may be stuck: the section `sight`.
//!
//! A look disturbs the guest a little, so there is one only while the cheap signals ask for it; the
//! section says which did, since when, and what the last looks had in common.

use std::mem::offset_of;

use crate::cell::{Counter, Gauge};
use crate::schema::{Field, Section, Unit};
use crate::words::Words;

/// Words of the text of a place, and of a stack.
const PLACE_WORDS: usize = 20;
const STACK_WORDS: usize = 64;

/// Why a vCPU is looked into: what the watcher saw of it from outside for the whole last second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    any(test, feature = "recording"),
    derive(serde::Serialize, serde::Deserialize)
)]
pub enum Suspicion {
    /// It is not: it does something, or nothing tells.
    #[default]
    None = 0,
    /// Halted all the time, and no interrupt came.
    Halted = 1,
    /// It ran without a halt and without a user exit, and was given no interrupt.
    Deaf = 2,
    /// The same, and was given interrupts.
    Busy = 3,
    /// It has never run.
    NotStarted = 4,
}

impl Suspicion {
    /// All, by number.
    pub const ALL: [Suspicion; 5] = [
        Suspicion::None,
        Suspicion::Halted,
        Suspicion::Deaf,
        Suspicion::Busy,
        Suspicion::NotStarted,
    ];
    /// Their names, by number: what a section `sight` is made with.
    pub const NAMES: [&'static str; 5] = ["none", "halted", "deaf", "busy", "not_started"];

    /// The one of that number.
    pub fn of(number: u64) -> Option<Self> {
        Suspicion::ALL.into_iter().find(|one| *one as u64 == number)
    }
}

/// The section `sight/N`. Written by the watcher.
#[derive(Debug)]
#[repr(C)]
pub struct SightBlock {
    /// A [`Suspicion`], by number.
    pub suspicion: Gauge,
    /// Since when, in ticks.
    pub suspected_since: Gauge,
    /// When it was last looked into.
    pub sampled_at: Gauge,
    /// Looks.
    pub looks: Counter,
    /// Looks that KVM refused, or for which the VM was at its end.
    pub refused: Counter,
    /// Looks that had no answer in time.
    pub late: Counter,
    /// The next instruction.
    pub rip: Gauge,
    /// The lowest next instruction of the last looks that were alike.
    pub rip_low: Gauge,
    /// And the highest.
    pub rip_high: Gauge,
    /// How many these are, the last one among them.
    pub alike: Gauge,
    /// When the first of them was.
    pub alike_since: Gauge,
    /// General registers that were not the same in all of them.
    pub changed_registers: Gauge,
    /// RFLAGS.IF.
    pub interrupts_on: Gauge,
    /// The privilege level.
    pub ring: Gauge,
    /// KVM's number for what the vCPU does.
    pub mp_state: Gauge,
    /// Whether the local APIC's timer will raise an interrupt.
    pub timer_armed: Gauge,
    /// When, in ticks; 0 if that is not known.
    pub timer_due: Gauge,
    /// The highest interrupt that the local APIC has not yet delivered; 0 if there is none.
    pub pending_vector: Gauge,
    /// The last looks that all found it waiting, with interrupts off in the kernel.
    pub pending_looks: Gauge,
    /// When the first of these was.
    pub pending_since: Gauge,
    /// An NMI waits to be delivered.
    pub pending_nmi: Gauge,
    /// Where it is.
    pub place: Words<PLACE_WORDS>,
    /// And who called that, a line each.
    pub stack: Words<STACK_WORDS>,
}

// SAFETY: repr(C), cells only.
#[allow(unsafe_code)]
unsafe impl Section for SightBlock {
    const KIND: &'static str = "sight";
    const INSTANCE: &'static [&'static str] = &["vcpu"];
    #[rustfmt::skip]
    const FIELDS: &'static [Field] = &[
        Field::gauge("suspicion", Unit::None, offset_of!(SightBlock, suspicion), "Why the vCPU is looked into, by number; 0 if it is not."),
        Field::gauge("suspected_since", Unit::Ticks, offset_of!(SightBlock, suspected_since), "Since when it does what makes it be looked into; 0 if it does not."),
        Field::gauge("sampled_at", Unit::Ticks, offset_of!(SightBlock, sampled_at), "When the watcher last looked into it; 0 if it never did."),
        Field::counter("looks", Unit::None, offset_of!(SightBlock, looks), "Times that the watcher looked into it."),
        Field::counter("refused", Unit::None, offset_of!(SightBlock, refused), "Looks that KVM refused or the VM's end prevented."),
        Field::counter("late", Unit::None, offset_of!(SightBlock, late), "Looks that had no answer in time."),
        Field::gauge("rip", Unit::None, offset_of!(SightBlock, rip), "The next instruction at the last look."),
        Field::gauge("rip_low", Unit::None, offset_of!(SightBlock, rip_low), "The lowest next instruction of the last looks that were alike."),
        Field::gauge("rip_high", Unit::None, offset_of!(SightBlock, rip_high), "The highest next instruction of the last looks that were alike."),
        Field::gauge("alike", Unit::None, offset_of!(SightBlock, alike), "How many of the last looks were alike, the last one among them."),
        Field::gauge("alike_since", Unit::Ticks, offset_of!(SightBlock, alike_since), "When the first of these was."),
        Field::gauge("changed_registers", Unit::None, offset_of!(SightBlock, changed_registers), "General registers that were not the same in all of these."),
        Field::gauge("interrupts_on", Unit::None, offset_of!(SightBlock, interrupts_on), "1 if the vCPU took interrupts (RFLAGS.IF) at the last look."),
        Field::gauge("ring", Unit::None, offset_of!(SightBlock, ring), "The privilege level at the last look: 0 is the kernel, 3 user space."),
        Field::gauge("mp_state", Unit::None, offset_of!(SightBlock, mp_state), "What KVM had the vCPU do at the last look: 0 run, 1 wait for its start, 3 be halted."),
        Field::gauge("timer_armed", Unit::None, offset_of!(SightBlock, timer_armed), "1 if the local APIC's timer was to raise an interrupt."),
        Field::gauge("timer_due", Unit::Ticks, offset_of!(SightBlock, timer_due), "When that is; 0 if it is not known."),
        Field::gauge("pending_vector", Unit::None, offset_of!(SightBlock, pending_vector), "The highest interrupt that was not yet delivered at the last look; 0 if there was none."),
        Field::gauge("pending_looks", Unit::None, offset_of!(SightBlock, pending_looks), "How many of the last looks found that one waiting with interrupts off."),
        Field::gauge("pending_since", Unit::Ticks, offset_of!(SightBlock, pending_since), "When the first of these was."),
        Field::gauge("pending_nmi", Unit::None, offset_of!(SightBlock, pending_nmi), "1 if an NMI waited at the last look."),
        Field::words::<PLACE_WORDS>("place", offset_of!(SightBlock, place), "The function that it was in, or what else is known of the place."),
        Field::words::<STACK_WORDS>("stack", offset_of!(SightBlock, stack), "Who called that, a line each; one that was guessed begins with a question mark."),
    ];
}

/// KVM's numbers for what a vCPU does (Documentation/virt/kvm/api.rst, 4.38).
pub mod mp_state {
    /// Runs, or could.
    pub const RUNNABLE: u64 = 0;
    /// Waits for its INIT or startup IPI.
    pub const UNINITIALIZED: u64 = 1;
    /// Has its INIT and waits for the startup IPI.
    pub const INIT_RECEIVED: u64 = 2;
    /// Is halted.
    pub const HALTED: u64 = 3;
}
