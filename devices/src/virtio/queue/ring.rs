//! The ring itself: where it may lie, how a chain is followed, what is written back and when the
//! driver wants to hear of it. Functions over guest memory, without state of their own.

#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestRam};
use observe::Ticks;
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};

use super::QueueError;
use super::in_flight::NOWHERE;
use super::stages::{Came, Reach};
use crate::virtio::vectors::{GuestVectors, VectorError};

/// Descriptors in a chain at most. The specification says the queue's size; indirect tables of
/// existing drivers go beyond it, and no host call takes more vectors than this.
const MAX_DESCRIPTORS: usize = 1024;

/// Where the driver put a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueLayout {
    /// Descriptors.
    pub size: u16,
    /// Whether the driver set it up at all.
    pub ready: bool,
    /// The descriptor table.
    pub descriptors: u64,
    /// The available ring.
    pub driver: u64,
    /// The used ring.
    pub device: u64,
}

/// A request of the guest: its buffers, validated and ready for I/O.
pub struct Chain {
    pub(super) head: u16,
    pub(super) epoch: u32,
    pub(super) counted: bool,
    pub(super) taken: Ticks,
    /// Where it is among the requests in flight.
    pub(super) place: u16,
    pub(super) came: Came,
    pub(super) readable_bytes: usize,
    /// What the device may read.
    pub readable: GuestVectors,
    /// What the device may write.
    pub writable: GuestVectors,
}

impl Chain {
    /// A chain without buffers yet.
    pub(in crate::virtio) fn new(ram: &Arc<GuestRam>) -> Self {
        Chain {
            head: 0,
            epoch: 0,
            counted: false,
            taken: 0,
            place: NOWHERE,
            came: Came::Otherwise,
            readable_bytes: 0,
            readable: GuestVectors::new(Arc::clone(ram)),
            writable: GuestVectors::new(Arc::clone(ram)),
        }
    }
}

/// Judges a layout: size, alignment (virtio 1.2, 2.7) and place of each ring.
pub(super) fn validated(
    layout: &QueueLayout,
    max_size: u16,
    ram: &GuestRam,
) -> Result<Queue, QueueError> {
    let size = layout.size;
    let mut ring = Queue::new(max_size).map_err(|_| QueueError::Size(max_size))?;
    ring.try_set_size(size)
        .map_err(|_| QueueError::Size(size))?;
    let places = [
        (layout.descriptors, 0, 16, "the descriptor table"),
        (layout.driver, 6, 2, "the available ring"),
        (layout.device, 6, 8, "the used ring"),
    ];
    for (address, header, element, name) in places {
        let bytes = usize::from(size)
            .saturating_mul(element)
            .saturating_add(header);
        let inside = address.checked_add(bytes as u64).is_some();
        if !inside || !ram.check_range(GuestAddress(address), bytes) {
            return Err(QueueError::RingOutsideRam(name));
        }
    }
    let [table, driver, device] = places.map(|(address, ..)| GuestAddress(address));
    ring.try_set_desc_table_address(table)
        .map_err(|_| QueueError::Alignment("the descriptor table"))?;
    ring.try_set_avail_ring_address(driver)
        .map_err(|_| QueueError::Alignment("the available ring"))?;
    ring.try_set_used_ring_address(device)
        .map_err(|_| QueueError::Alignment("the used ring"))?;
    Ok(ring)
}

/// Takes the next chain from the ring; false when there is none.
pub(super) fn pop(
    ring: &mut Queue,
    ram: &GuestRam,
    in_flight: u16,
    chain: &mut Chain,
) -> Result<bool, QueueError> {
    let size = ring.size();
    let mut available = ring.iter(ram).map_err(|_| QueueError::AvailIndex)?;
    let Some(descriptors) = available.next() else {
        return Ok(false);
    };
    if in_flight >= size {
        return Err(QueueError::TooManyInFlight);
    }
    chain.head = descriptors.head_index();
    walk(descriptors, size, chain)?;
    chain.readable_bytes = chain.readable.bytes();
    Ok(true)
}

/// Follows a chain to its end. The iterator stops without a word where a chain is broken, so a
/// chain is whole only when its last descriptor says that it is the last.
fn walk(
    descriptors: DescriptorChain<&GuestRam>,
    size: u16,
    chain: &mut Chain,
) -> Result<(), QueueError> {
    let head = chain.head;
    let (mut count, mut more) = (0usize, true);
    for descriptor in descriptors {
        count = count.saturating_add(1);
        more = descriptor.has_next();
        let list = match descriptor.is_write_only() {
            true => &mut chain.writable,
            false if chain.writable.is_empty() => &mut chain.readable,
            false => return Err(QueueError::Order(head)),
        };
        if descriptor.len() == 0 {
            return Err(QueueError::ZeroLength(head));
        }
        if count > MAX_DESCRIPTORS {
            return Err(QueueError::Endless(head));
        }
        list.push(descriptor.addr(), descriptor.len() as usize)
            .map_err(|error| match error {
                VectorError::OutsideRam => QueueError::BufferOutsideRam(head),
                VectorError::TooMany => QueueError::Endless(head),
            })?;
    }
    match (count, more) {
        // The table of such a head is in RAM: the first descriptor names an indirect table that is none.
        (0, _) if head < size => Err(QueueError::BrokenOff(head)),
        (0, _) => Err(QueueError::Head(head)),
        (_, true) if count >= usize::from(size) => Err(QueueError::Endless(head)),
        (_, true) => Err(QueueError::BrokenOff(head)),
        (_, false) => Ok(()),
    }
}

/// Writes a used element that the index does not cover yet.
pub(super) fn put_unseen(ring: &mut Queue, ram: &GuestRam, head: u16, written: u32) -> bool {
    let slot = ring.next_used().checked_rem(ring.size()).unwrap_or(0);
    let offset = u64::from(slot).saturating_mul(8).saturating_add(4);
    let element = u64::from(head) | (u64::from(written) << 32);
    ring.set_next_used(ring.next_used().wrapping_add(1));
    GuestAddress(ring.used_ring())
        .checked_add(offset)
        .is_some_and(|at| ram.write_obj(element.to_le(), at).is_ok())
}

/// Whether the driver wants an interrupt for what was completed since the used index `old`
/// (virtio 1.2, 2.7.7). virtio-queue's own answer knows neither the flag nor batches.
pub(super) fn interrupt_is_wanted(
    ring: &Queue,
    ram: &GuestRam,
    old: u16,
) -> Result<bool, QueueError> {
    // The used index must be out before the driver's wish is read: it looks the other way round.
    fence(Ordering::SeqCst);
    let word = driver_word(ring, ram).ok_or(QueueError::UsedRing)?;
    let new = ring.next_used();
    Ok(match ring.event_idx_enabled() {
        true => new.wrapping_sub(word).wrapping_sub(1) < new.wrapping_sub(old),
        false => u32::from(word) & VRING_AVAIL_F_NO_INTERRUPT == 0,
    })
}

/// The available ring's `used_event` with EVENT_IDX, its flags without.
fn driver_word(ring: &Queue, ram: &GuestRam) -> Option<u16> {
    let place = match ring.event_idx_enabled() {
        true => u64::from(ring.size()).saturating_mul(2).saturating_add(4),
        false => 0,
    };
    GuestAddress(ring.avail_ring())
        .checked_add(place)
        .and_then(|at| ram.load(at, Ordering::Relaxed).ok())
        .map(u16::from_le)
}

/// What the guest's side of the ring shows now.
pub(super) fn reach(ring: &Queue, ram: &GuestRam) -> Option<Reach> {
    let used_event = match ring.event_idx_enabled() {
        true => Some(driver_word(ring, ram)?),
        false => None,
    };
    let avail = ring.avail_idx(ram, Ordering::Acquire).ok()?;
    Some(Reach {
        avail: avail.0,
        used_event,
    })
}
