//! The register file of virtio-mmio version 2 (virtio 1.2, section 4.2.2), as a state machine
//! without threads or memory: what a guest writes comes in, what is to be done goes out.

#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use virtio_bindings::virtio_config as status;
use virtio_bindings::virtio_mmio as at;

use crate::bus::Misuse;
use crate::virtio::device::F_VERSION_1;
use crate::virtio::queue::QueueLayout;

/// `virt`, little-endian.
const MAGIC: u32 = 0x7472_6976;
/// The version of the register layout.
const VERSION: u32 = 2;
/// `VTRN`, little-endian.
const VENDOR: u32 = u32::from_le_bytes(*b"VTRN");
/// SHMSel; there is no shared memory, and its length reads as all ones.
const SHM_FIRST: u32 = 0xac;
/// SHMBaseHigh.
const SHM_LAST: u32 = 0xbc;
/// ConfigGeneration.
const CONFIG_GENERATION: u32 = 0xfc;
/// First offset of the configuration space.
pub const CONFIG: u64 = 0x100;
/// QueueNotify: where ioeventfds listen.
pub const QUEUE_NOTIFY: u64 = at::VIRTIO_MMIO_QUEUE_NOTIFY as u64;

const ACKNOWLEDGE: u32 = status::VIRTIO_CONFIG_S_ACKNOWLEDGE;
const DRIVER: u32 = status::VIRTIO_CONFIG_S_DRIVER;
const DRIVER_OK: u32 = status::VIRTIO_CONFIG_S_DRIVER_OK;
const FEATURES_OK: u32 = status::VIRTIO_CONFIG_S_FEATURES_OK;
const NEEDS_RESET: u32 = status::VIRTIO_CONFIG_S_NEEDS_RESET;
const FAILED: u32 = status::VIRTIO_CONFIG_S_FAILED;
/// The low half of an address or of the features.
const LOW: u64 = 0xFFFF_FFFF;
/// What a driver may set.
const DRIVER_BITS: u32 = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED;

/// What a register write asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing more.
    None,
    /// The queue was kicked.
    Notify(u32),
    /// These interrupts were acknowledged.
    Acknowledge(u32),
    /// DRIVER_OK: the device begins with these features and queues.
    Activate(u64, Vec<QueueLayout>),
    /// A device that is not running was reset: the registers are fresh already.
    Cleared,
    /// A running device is to be reset; [`Registers::finish_reset`] follows.
    Reset,
}

/// What the device's side adds to the registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Live {
    /// The interrupt status bits.
    pub interrupts: u32,
    /// Whether the device asks for a reset.
    pub needs_reset: bool,
    /// The generation of the configuration space.
    pub generation: u32,
}

/// The registers of one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registers {
    device_type: u32,
    offered: u64,
    max_sizes: Vec<u16>,
    queues: Vec<QueueLayout>,
    status: u32,
    accepted: u64,
    offered_page: u32,
    accepted_page: u32,
    selected: u32,
    reset: ResetPhase,
    /// Whether queues have their largest size until a driver writes another.
    filled: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ResetPhase {
    None,
    /// A vCPU waits for the device.
    Waiting,
    /// The device did not confirm in time.
    Missed,
}

impl Registers {
    /// The registers of a device that nobody has touched.
    pub fn new(device_type: u32, offered: u64, max_sizes: &[u16]) -> Self {
        Registers {
            device_type,
            offered,
            max_sizes: max_sizes.to_vec(),
            queues: vec![QueueLayout::default(); max_sizes.len()],
            status: 0,
            accepted: 0,
            offered_page: 0,
            accepted_page: 0,
            selected: 0,
            reset: ResetPhase::None,
            filled: false,
        }
    }

    /// The same with queues of their largest size until a driver writes another, as PCI has it
    /// (virtio 1.2, 4.1.4.3).
    #[must_use]
    pub fn filled(mut self) -> Self {
        self.filled = true;
        for (queue, max) in self.queues.iter_mut().zip(&self.max_sizes) {
            queue.size = *max;
        }
        self
    }

    /// The status register without the device's own bit.
    pub fn status(&self) -> u32 {
        self.status
    }

    /// The features that the driver has accepted so far.
    pub fn accepted(&self) -> u64 {
        self.accepted
    }

    /// How many queues there are.
    pub fn queues(&self) -> u16 {
        u16::try_from(self.queues.len()).unwrap_or(u16::MAX)
    }

    /// What the driver selected: pages of the features offered and accepted, and a queue.
    pub fn selections(&self) -> (u32, u32, u32) {
        (self.offered_page, self.accepted_page, self.selected)
    }

    /// 32 of the accepted features, those of the selected page.
    pub fn accepted_page(&self) -> u32 {
        page(self.accepted, self.accepted_page)
    }

    /// The selected queue, if there is such a queue.
    pub fn selected_queue(&self) -> Option<&QueueLayout> {
        self.selected()
    }

    /// Reads a register.
    ///
    /// # Errors
    /// [`Misuse::Register`] where there is none to read.
    pub fn read(&self, offset: u64, live: Live) -> Result<u32, Misuse> {
        let offset = u32::try_from(offset).map_err(|_| Misuse::Register)?;
        Ok(match offset {
            at::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            at::VIRTIO_MMIO_VERSION => VERSION,
            at::VIRTIO_MMIO_DEVICE_ID => self.device_type,
            at::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            at::VIRTIO_MMIO_DEVICE_FEATURES => page(self.offered, self.offered_page),
            at::VIRTIO_MMIO_QUEUE_NUM_MAX => self.selected_max(),
            at::VIRTIO_MMIO_QUEUE_READY => self.selected().map_or(0, |q| u32::from(q.ready)),
            at::VIRTIO_MMIO_INTERRUPT_STATUS => live.interrupts,
            at::VIRTIO_MMIO_STATUS if live.needs_reset => self.status | NEEDS_RESET,
            at::VIRTIO_MMIO_STATUS => self.status,
            CONFIG_GENERATION => live.generation,
            SHM_FIRST..=SHM_LAST if offset.is_multiple_of(4) => u32::MAX,
            _ => return Err(Misuse::Register),
        })
    }

    fn selected(&self) -> Option<&QueueLayout> {
        self.queues.get(self.selected as usize)
    }

    fn selected_max(&self) -> u32 {
        let max = self.max_sizes.get(self.selected as usize);
        max.map_or(0, |max| u32::from(*max))
    }

    /// Writes a register.
    ///
    /// # Errors
    /// [`Misuse`]; nothing has changed then.
    pub fn write(&mut self, offset: u64, value: u32) -> Result<Action, Misuse> {
        let offset = u32::try_from(offset).map_err(|_| Misuse::Register)?;
        match offset {
            at::VIRTIO_MMIO_QUEUE_NOTIFY => return Ok(Action::Notify(value)),
            at::VIRTIO_MMIO_INTERRUPT_ACK => return Ok(Action::Acknowledge(value)),
            _ if self.resetting() && offset != at::VIRTIO_MMIO_STATUS => return Err(Misuse::State),
            at::VIRTIO_MMIO_STATUS => return self.write_status(value),
            at::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.offered_page = value,
            at::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.accepted_page = value,
            at::VIRTIO_MMIO_DRIVER_FEATURES => self.accept(value)?,
            at::VIRTIO_MMIO_QUEUE_SEL => self.selected = value,
            SHM_FIRST => {}
            _ => self.write_queue(offset, value)?,
        }
        Ok(Action::None)
    }

    fn accept(&mut self, value: u32) -> Result<(), Misuse> {
        if self.status & (DRIVER | FEATURES_OK | FAILED) != DRIVER {
            return Err(Misuse::State);
        }
        let (mask, shift) = match self.accepted_page {
            0 => (LOW, 0),
            1 => (!LOW, 32),
            // Drivers may clear pages that no feature lives on.
            _ if value == 0 => return Ok(()),
            _ => return Err(Misuse::Register),
        };
        self.accepted = (self.accepted & !mask) | (u64::from(value) << shift);
        Ok(())
    }

    fn write_queue(&mut self, offset: u32, value: u32) -> Result<(), Misuse> {
        let setting_up = self.status & (FEATURES_OK | DRIVER_OK | FAILED) == FEATURES_OK;
        let released = self.status & DRIVER_OK == 0;
        let Some(queue) = self.queues.get_mut(self.selected as usize) else {
            return Err(Misuse::State);
        };
        // Drivers disable queues once more after a reset; there is nothing left to disable.
        if offset == at::VIRTIO_MMIO_QUEUE_READY && value == 0 && released {
            queue.ready = false;
            return Ok(());
        }
        let place = match offset {
            at::VIRTIO_MMIO_QUEUE_NUM | at::VIRTIO_MMIO_QUEUE_READY => None,
            at::VIRTIO_MMIO_QUEUE_DESC_LOW | at::VIRTIO_MMIO_QUEUE_DESC_HIGH => {
                Some(&mut queue.descriptors)
            }
            at::VIRTIO_MMIO_QUEUE_AVAIL_LOW | at::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => {
                Some(&mut queue.driver)
            }
            at::VIRTIO_MMIO_QUEUE_USED_LOW | at::VIRTIO_MMIO_QUEUE_USED_HIGH => {
                Some(&mut queue.device)
            }
            _ => return Err(Misuse::Register),
        };
        let frozen = queue.ready && offset != at::VIRTIO_MMIO_QUEUE_READY;
        if !setting_up || frozen {
            return Err(Misuse::State);
        }
        match place {
            // The low and the high half of an address lie 4 bytes apart.
            Some(address) if offset & 4 == 0 => *address = (*address & !LOW) | u64::from(value),
            Some(address) => *address = (*address & LOW) | (u64::from(value) << 32),
            None if offset == at::VIRTIO_MMIO_QUEUE_READY => queue.ready = value & 1 == 1,
            // Judged when the device begins; what does not fit 16 bits cannot be right.
            None => queue.size = u16::try_from(value).unwrap_or(0),
        }
        Ok(())
    }

    /// Virtio 1.2, section 3.1.1 and 2.1.
    fn write_status(&mut self, value: u32) -> Result<Action, Misuse> {
        if value == 0 {
            return self.begin_reset();
        }
        let value = value & DRIVER_BITS;
        let (old, new) = (self.status, value & !self.status);
        // Bits are only added, nothing follows FAILED, and each step needs the one before.
        let dropped = old & !value != 0;
        let ended = old & FAILED != 0 && new != 0;
        let driver_early = value & DRIVER != 0 && value & ACKNOWLEDGE == 0;
        let features_early = value & FEATURES_OK != 0 && value & DRIVER == 0;
        let start_early = value & DRIVER_OK != 0 && old & FEATURES_OK == 0;
        let early = (driver_early || features_early || start_early) && value & FAILED == 0;
        if self.resetting() || dropped || ended || early {
            return Err(Misuse::State);
        }
        let mut granted = if value & FAILED == 0 {
            value
        } else {
            old | FAILED
        };
        if granted & !old & FEATURES_OK != 0 && !self.features_are_fit() {
            // The driver reads the register back and sees that the bit is missing.
            granted &= !FEATURES_OK;
        }
        self.status = granted;
        if granted & !old & DRIVER_OK != 0 {
            return Ok(Action::Activate(self.accepted, self.queues.clone()));
        }
        Ok(Action::None)
    }

    fn features_are_fit(&self) -> bool {
        self.accepted & !self.offered == 0 && self.accepted & F_VERSION_1 != 0
    }

    fn resetting(&self) -> bool {
        self.reset != ResetPhase::None
    }

    /// One vCPU at a time waits for a reset; after a missed one the driver may try again.
    fn begin_reset(&mut self) -> Result<Action, Misuse> {
        if self.reset == ResetPhase::Waiting {
            return Err(Misuse::State);
        }
        if self.status & DRIVER_OK == 0 && !self.resetting() {
            self.clear();
            return Ok(Action::Cleared);
        }
        self.reset = ResetPhase::Waiting;
        Ok(Action::Reset)
    }

    /// The device gave its queues up, or did not in time: then it stays as it is, and only
    /// another reset is accepted.
    pub fn finish_reset(&mut self, confirmed: bool) {
        if confirmed {
            self.clear();
        } else {
            self.reset = ResetPhase::Missed;
        }
    }

    fn clear(&mut self) {
        let fresh = Registers::new(self.device_type, self.offered, &self.max_sizes);
        *self = if self.filled { fresh.filled() } else { fresh };
    }
}

/// 32 feature bits; pages that do not exist have none.
fn page(features: u64, page: u32) -> u32 {
    match page {
        0 => (features & LOW) as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
#[path = "registers_tests.rs"]
mod tests;
