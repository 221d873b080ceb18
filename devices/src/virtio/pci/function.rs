//! The configuration space of a virtio function: who it is, and where its structures are (virtio
//! 1.2, 4.1.2 and 4.1.4).

#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use super::{BAR_BYTES, COMMON, DEVICE, ISR, NOTIFY, NOTIFY_STRIDE, PAGE, PENDING, TABLE, common};
use crate::pci::{Bar, ConfigRegisters, Identity, msix};

/// The vendor of all virtio devices.
const VENDOR: u16 = 0x1AF4;
/// Device ids begin here; the virtio device type is added.
const FIRST_DEVICE: u16 = 0x1040;
/// A modern device has revision 1 or higher.
const REVISION: u8 = 1;
/// The id of vendor capabilities.
const VENDOR_CAPABILITY: u8 = 0x09;

const COMMON_CFG: u8 = 1;
const NOTIFY_CFG: u8 = 2;
const ISR_CFG: u8 = 3;
const DEVICE_CFG: u8 = 4;
const PCI_CFG: u8 = 5;

/// The registers of a function, and where those are that do something when they are written.
pub struct Function {
    /// The registers.
    pub config: ConfigRegisters,
    /// MSI-X's message control.
    pub control: u16,
    /// `pci_cfg_cap`: `bar`, `offset`, `length` lie at +4, +8, +12, the data at +16.
    pub window: u16,
}

/// Where an access through `pci_cfg_data` goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Through {
    /// Offset in the BAR.
    pub offset: u64,
    /// Bytes: 1, 2 or 4.
    pub width: usize,
}

impl Function {
    /// The function of a device of `device_type` with so many vectors, at `address`. `None` only if
    /// its capabilities did not fit, which they do.
    pub fn new(device_type: u32, vectors: u16, address: u64) -> Option<Self> {
        let kind = u16::try_from(device_type).ok()?;
        let identity = Identity {
            id: (VENDOR, FIRST_DEVICE.checked_add(kind)?),
            revision: REVISION,
            class: class(device_type),
            subsystem: (VENDOR, kind),
        };
        let bar = Bar {
            address,
            bytes: BAR_BYTES,
        };
        let mut config = ConfigRegisters::new(identity, Some(bar));
        let queues = vectors.saturating_sub(1);
        let kicks = u32::from(queues).saturating_mul(NOTIFY_STRIDE as u32);
        for (kind, offset, bytes) in [
            (COMMON_CFG, COMMON, common::BYTES),
            (ISR_CFG, ISR, 1),
            (DEVICE_CFG, DEVICE, PAGE as u32),
        ] {
            config.add_capability(VENDOR_CAPABILITY, &structure(kind, offset, bytes, &[]), &[])?;
        }
        let stride = (NOTIFY_STRIDE as u32).to_le_bytes();
        let notify = structure(NOTIFY_CFG, NOTIFY, kicks, &stride);
        config.add_capability(VENDOR_CAPABILITY, &notify, &[])?;
        // bar, offset and length are the driver's, the data lead elsewhere.
        let window = structure(PCI_CFG, 0, 0, &[0; 4]);
        // Length and type are not, nor are the id and the padding behind the bar.
        let mut writable = [0xFF; 14];
        for (place, mask) in writable.iter_mut().enumerate() {
            *mask = if matches!(place, 2 | 6..) { 0xFF } else { 0 };
        }
        let window = config.add_capability(VENDOR_CAPABILITY, &window, &writable)?;
        let messages = table(vectors);
        let writable = msix::CONTROL_BITS.to_le_bytes();
        let at = config.add_capability(msix::CAPABILITY, &messages, &writable)?;
        Some(Function {
            config,
            control: at.checked_add(2)?,
            window,
        })
    }

    /// Whether an access at `offset` is one to `pci_cfg_data`.
    pub fn is_data(&self, offset: u16) -> bool {
        let data = self.window.saturating_add(16);
        (data..data.saturating_add(4)).contains(&offset)
    }

    /// Where the driver had `pci_cfg_data` lead; `None` to nowhere.
    pub fn through(&self) -> Option<Through> {
        let field = |at: u16| self.config.double_word(self.window.saturating_add(at));
        let bar = field(4) as u8;
        let (offset, length) = (u64::from(field(8)), field(12));
        let fits = bar == 0
            && matches!(length, 1 | 2 | 4)
            && offset.is_multiple_of(u64::from(length))
            && offset < BAR_BYTES;
        fits.then_some(Through {
            offset,
            width: length as usize,
        })
    }
}

/// What follows the id and the link of a vendor capability.
fn structure(kind: u8, offset: u64, bytes: u32, more: &[u8]) -> Vec<u8> {
    // The length counts id, link and itself.
    let length = if more.is_empty() { 16 } else { 20 };
    let mut body = vec![length, kind, 0, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend(bytes.to_le_bytes());
    body.extend(more);
    body
}

/// What follows the id and the link of the MSI-X capability: everything is in BAR 0.
fn table(vectors: u16) -> Vec<u8> {
    let mut body = vectors.saturating_sub(1).to_le_bytes().to_vec();
    body.extend((TABLE as u32).to_le_bytes());
    body.extend((PENDING as u32).to_le_bytes());
    body
}

/// The PCI class of a virtio device type: class, subclass, interface.
fn class(device_type: u32) -> u32 {
    match device_type {
        // An Ethernet controller.
        1 => 0x02_0000,
        // Mass storage of another kind.
        2 => 0x01_8000,
        // A communication controller of another kind: the console.
        3 => 0x07_8000,
        // What fits into no class.
        _ => 0xFF_0000,
    }
}
