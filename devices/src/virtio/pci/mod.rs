//! The virtio-pci transport, modern devices (virtio 1.2, section 4.1): one BAR with all structures,
//! each on pages of its own, and interrupts by MSI-X.
//!
//! `queue_reset` and notification data are not offered. The bus master bit is not looked at: a
//! driver that clears it has reset the device.

mod common;
mod function;
#[cfg(test)]
mod tests;
mod transport;

pub use transport::{MessageRouter, PciTransport};

/// Bytes of the BAR.
pub const BAR_BYTES: u64 = 0x8000;
/// Bytes that a structure may have.
const PAGE: u64 = 0x1000;
/// The common configuration structure.
const COMMON: u64 = 0;
/// The ISR status.
const ISR: u64 = 0x1000;
/// The device's configuration space.
const DEVICE: u64 = 0x2000;
/// Kicks: where ioeventfds listen, of any width and whatever is written.
const NOTIFY: u64 = 0x3000;
/// The MSI-X table.
const TABLE: u64 = 0x4000;
/// The MSI-X pending bits.
const PENDING: u64 = 0x5000;
/// Bytes from a queue's notify address to the next queue's.
const NOTIFY_STRIDE: u64 = 4;
/// Most queues of a device: their vectors have to fit into the table's page.
const MAX_QUEUES: u16 = 255;
