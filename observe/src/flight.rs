//! The flight ring: the last events of one thread, overwritten in a circle.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::cell::Gauge;
use crate::clock::Ticks;

/// Events that a ring keeps.
pub const FLIGHT_EVENTS: usize = 512;

/// One event. `kind` and the meaning of `a` and `b` belong to the owner's section kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlightEvent {
    /// When, in ticks of the writer's clock.
    pub at: Ticks,
    /// What: `kind | detail << 8 | device << 16 | length << 32`.
    pub what: u64,
    /// An address, or the first number of the kind.
    pub address: u64,
    /// A duration in nanoseconds, or the second number of the kind.
    pub value: u64,
}

#[derive(Default, Debug)]
#[repr(C)]
struct Slot {
    at: Gauge,
    what: Gauge,
    address: Gauge,
    value: Gauge,
}

/// A ring written by one thread. `written` counts all events ever, so a reader knows the newest
/// slot (`written - 1` modulo [`FLIGHT_EVENTS`]) and what was overwritten while it read: slots that
/// were copied between two readings `w1` and `w2` of it hold events `w2 + 1 - FLIGHT_EVENTS` to
/// `w1 - 1` whole (event `w2 - FLIGHT_EVENTS` may be half overwritten by the one being written).
#[derive(Debug)]
#[repr(C)]
pub struct FlightRing {
    written: AtomicU64,
    _pad: [u64; 7],
    slots: [Slot; FLIGHT_EVENTS],
}

pub(crate) const SLOTS_OFFSET: usize = std::mem::offset_of!(FlightRing, slots);
pub(crate) const SLOT_BYTES: usize = size_of::<Slot>();

impl FlightRing {
    /// Asks the CPU for the slot of the next event, which it has not seen for a round of the ring.
    #[inline]
    #[allow(unsafe_code)]
    pub fn prefetch(&self) {
        let written = self.written.load(Ordering::Relaxed);
        if let Some(slot) = self.slots.get(written as usize % FLIGHT_EVENTS) {
            // SAFETY: PREFETCHT0 is SSE, which every x86-64 CPU has, and never faults.
            unsafe {
                std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(
                    std::ptr::from_ref(slot).cast(),
                );
            }
        }
    }

    /// Appends an event: five stores.
    #[inline]
    pub fn push(&self, event: FlightEvent) {
        let written = self.written.load(Ordering::Relaxed);
        // Whoever sees one of our stores to the slot sees the `written` of the push before. Free on
        // x86-64, as the Release below is: both only bind the compiler.
        fence(Ordering::Release);
        if let Some(slot) = self.slots.get(written as usize % FLIGHT_EVENTS) {
            slot.at.set(event.at);
            slot.what.set(event.what);
            slot.address.set(event.address);
            slot.value.set(event.value);
        }
        self.written
            .store(written.wrapping_add(1), Ordering::Release);
    }

    /// Events written so far.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }
}
