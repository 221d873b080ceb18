//! The common configuration structure (virtio 1.2, 4.1.4.3): another form of the registers.

#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use virtio_bindings::virtio_mmio as mmio;

use crate::bus::Misuse;
use crate::virtio::front::Front;
use crate::virtio::link::Interrupt;
use crate::virtio::messages::{Messages, NO_VECTOR};
use crate::virtio::mmio::registers::{Live, Registers};

/// Bytes of the structure, without the fields of features that are not offered.
pub const BYTES: u32 = 0x38;

/// Reads at any width; bytes past the end are zero.
pub fn read(front: &Front, messages: &Messages, offset: u64, data: &mut [u8]) {
    let (registers, live) = front.registers();
    let image = image(&registers, live, messages);
    let offset = usize::try_from(offset).unwrap_or(usize::MAX);
    let from = image.iter().skip(offset).chain(std::iter::repeat(&0));
    for (to, from) in data.iter_mut().zip(from) {
        *to = *from;
    }
}

/// All fields, as they read.
fn image(registers: &Registers, live: Live, messages: &Messages) -> Vec<u8> {
    let (offered, accepted, selected) = registers.selections();
    // Registers that exist can be read.
    let register = |at: u32| registers.read(u64::from(at), live).unwrap_or(0);
    let queue = u16::try_from(selected).unwrap_or(u16::MAX);
    let mut image = Vec::with_capacity(BYTES as usize);
    image.extend(offered.to_le_bytes());
    image.extend(register(mmio::VIRTIO_MMIO_DEVICE_FEATURES).to_le_bytes());
    image.extend(accepted.to_le_bytes());
    image.extend(registers.accepted_page().to_le_bytes());
    image.extend(messages.vector(Interrupt::Config).to_le_bytes());
    image.extend(registers.queues().to_le_bytes());
    image.push(register(mmio::VIRTIO_MMIO_STATUS) as u8);
    image.push(live.generation as u8);
    image.extend(queue.to_le_bytes());
    let Some(layout) = registers.selected_queue() else {
        // A queue that does not exist: no size, no vector.
        image.extend(0u16.to_le_bytes());
        image.extend(NO_VECTOR.to_le_bytes());
        image.resize(BYTES as usize, 0);
        return image;
    };
    image.extend(layout.size.to_le_bytes());
    image.extend(messages.vector(Interrupt::Queue(queue)).to_le_bytes());
    image.extend(u16::from(layout.ready).to_le_bytes());
    // Each queue has an address for its kicks: its index is the multiplier's factor.
    image.extend(queue.to_le_bytes());
    for address in [layout.descriptors, layout.driver, layout.device] {
        image.extend(address.to_le_bytes());
    }
    image
}

/// Writes a whole field, or half of an address.
///
/// # Errors
/// [`Misuse`]: no field of this width is there to be written, or not in this state.
pub fn write(front: &Front, messages: &Messages, offset: u64, data: &[u8]) -> Result<(), Misuse> {
    let mut word = [0; 8];
    for (to, from) in word.iter_mut().zip(data) {
        *to = *from;
    }
    let value = u64::from_le_bytes(word);
    let (low, high) = (value as u32, (value >> 32) as u32);
    let register = |at: u32, value| front.write(u64::from(at), value);
    match (offset, data.len()) {
        (0x00, 4) => register(mmio::VIRTIO_MMIO_DEVICE_FEATURES_SEL, low),
        (0x08, 4) => register(mmio::VIRTIO_MMIO_DRIVER_FEATURES_SEL, low),
        (0x0C, 4) => register(mmio::VIRTIO_MMIO_DRIVER_FEATURES, low),
        (0x10, 2) => {
            messages.choose(Interrupt::Config, low as u16);
            Ok(())
        }
        (0x14, 1) => register(mmio::VIRTIO_MMIO_STATUS, low),
        (0x16, 2) => register(mmio::VIRTIO_MMIO_QUEUE_SEL, low),
        (0x18, 2) => register(mmio::VIRTIO_MMIO_QUEUE_NUM, low),
        (0x1A, 2) => choose_for_queue(front, messages, low as u16),
        (0x1C, 2) => register(mmio::VIRTIO_MMIO_QUEUE_READY, low),
        (0x20..0x38, 4) if offset.is_multiple_of(4) => register(address_register(offset)?, low),
        (0x20 | 0x28 | 0x30, 8) => {
            let at = address_register(offset)?;
            register(at, low)?;
            register(at | 4, high)
        }
        // num_queues, config_generation, queue_notify_off, and what is no field at all.
        (0x00..0x38, 1 | 2 | 4 | 8) => Err(front.refuse(Misuse::State)),
        _ => Err(front.refuse(Misuse::Register)),
    }
}

/// The register of an address or of its high half.
fn address_register(offset: u64) -> Result<u32, Misuse> {
    let high = if offset & 4 == 0 { 0 } else { 4 };
    let low = match offset & !7 {
        0x20 => mmio::VIRTIO_MMIO_QUEUE_DESC_LOW,
        0x28 => mmio::VIRTIO_MMIO_QUEUE_AVAIL_LOW,
        0x30 => mmio::VIRTIO_MMIO_QUEUE_USED_LOW,
        _ => return Err(Misuse::Register),
    };
    Ok(low | high)
}

fn choose_for_queue(front: &Front, messages: &Messages, vector: u16) -> Result<(), Misuse> {
    let (registers, _) = front.registers();
    let (_, _, selected) = registers.selections();
    match u16::try_from(selected) {
        Ok(queue) if registers.selected_queue().is_some() => {
            messages.choose(Interrupt::Queue(queue), vector);
            Ok(())
        }
        _ => Err(front.refuse(Misuse::State)),
    }
}
