//! How the mock driver reaches its device: the registers of virtio-mmio by their offsets, which are
//! found elsewhere on PCI.

use std::sync::Arc;

use super::counters::TransportKind;
use super::front::Front;
use super::{MessageRouter, MmioTransport, PciTransport};
use crate::bus::{BusDevice, Effect, Misuse};
use crate::pci::PciFunction;

/// The first page of the device's configuration, on PCI.
const DEVICE: u64 = 0x2000;
const ISR: u64 = 0x1000;
const TABLE: u64 = 0x4000;

pub enum MockTransport {
    Mmio(Arc<MmioTransport>),
    Pci(Arc<PciTransport>),
}

/// Every route is a good one.
struct Anywhere;

impl MessageRouter for Anywhere {
    fn route(&self, _: u16, _: u64, _: u32) -> std::io::Result<()> {
        Ok(())
    }
}

impl MockTransport {
    pub fn new(front: Front, kind: TransportKind, device_type: u32) -> Self {
        match kind {
            TransportKind::Mmio => MockTransport::Mmio(Arc::new(MmioTransport::new(front))),
            TransportKind::Pci => {
                let router = Box::new(Anywhere);
                let transport = PciTransport::new(front, device_type, 0xE800_0000, router);
                MockTransport::Pci(Arc::new(transport.unwrap()))
            }
        }
    }

    pub fn front_mut(&mut self) -> &mut Front {
        match self {
            MockTransport::Mmio(mmio) => Arc::get_mut(mmio).unwrap().front_mut(),
            MockTransport::Pci(pci) => Arc::get_mut(pci).unwrap().front_mut(),
        }
    }

    fn device(&self) -> &dyn BusDevice {
        match self {
            MockTransport::Mmio(mmio) => &**mmio,
            MockTransport::Pci(pci) => &**pci,
        }
    }

    /// Where a register is, and how wide.
    fn place(&self, offset: u64) -> (u64, usize) {
        if let MockTransport::Mmio(_) = self {
            return (offset, 4);
        }
        match offset {
            0x10 => (0x04, 4),
            0x14 => (0x00, 4),
            0x20 => (0x0C, 4),
            0x24 => (0x08, 4),
            0x30 => (0x16, 2),
            0x34 | 0x38 => (0x18, 2),
            0x44 => (0x1C, 2),
            0x60 => (ISR, 1),
            0x70 => (0x14, 1),
            0x80 | 0x84 => (offset - 0x80 + 0x20, 4),
            0x90 | 0x94 => (offset - 0x90 + 0x28, 4),
            0xA0 | 0xA4 => (offset - 0xA0 + 0x30, 4),
            0xFC => (0x15, 1),
            _ => panic!("there is no register {offset:#x} on PCI"),
        }
    }

    pub fn read(&self, offset: u64) -> u32 {
        let (at, width) = self.place(offset);
        let mut data = [0; 4];
        self.device().read(at, &mut data[..width]).unwrap();
        u32::from_le_bytes(data)
    }

    pub fn write(&self, offset: u64, value: u32) -> Result<(), Misuse> {
        let pci = matches!(self, MockTransport::Pci(_));
        let (at, width) = match offset {
            // Reading the ISR status has acknowledged it.
            0x64 if pci => return Ok(()),
            0x50 if pci => (PciTransport::notify_offset(value), 2),
            _ => self.place(offset),
        };
        let done = self.device().write(at, &value.to_le_bytes()[..width]);
        done.map(|_| ())
    }

    /// The device's configuration.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) -> Result<(), Misuse> {
        self.device().read(self.config() + offset, data)
    }

    pub fn write_config(&self, offset: u64, data: &[u8]) -> Result<(), Misuse> {
        let done = self.device().write(self.config() + offset, data);
        done.map(|_| ())
    }

    fn config(&self) -> u64 {
        match self {
            MockTransport::Mmio(_) => 0x100,
            MockTransport::Pci(_) => DEVICE,
        }
    }

    /// What a driver does between FEATURES_OK and its queues: a vector for each queue, and vector 0
    /// for the configuration.
    pub fn set_up_interrupts(&self, queues: usize) {
        let MockTransport::Pci(pci) = self else {
            return;
        };
        let write = |at: u64, data: &[u8]| assert_eq!(pci.write(at, data), Ok(Effect::None));
        write(0x10, &0u16.to_le_bytes());
        for vector in 0..=queues as u64 {
            for (at, value) in [(0, 0xFEE0_0000), (4, 0), (8, 0x40 + vector as u32), (12, 0)] {
                write(TABLE + vector * 16 + at, &u32::to_le_bytes(value));
            }
        }
        for queue in 0..queues as u16 {
            write(0x16, &queue.to_le_bytes());
            write(0x1A, &(queue + 1).to_le_bytes());
        }
        let control = self.capability(0x11).unwrap() + 2;
        pci.write_config(control, &0x8000u16.to_le_bytes()).unwrap();
    }

    /// The first capability with this id.
    fn capability(&self, id: u8) -> Option<u16> {
        let MockTransport::Pci(pci) = self else {
            return None;
        };
        let byte = |at| {
            let mut byte = [0];
            pci.read_config(at, &mut byte).unwrap();
            byte[0]
        };
        let mut at = u16::from(byte(0x34));
        while at != 0 && byte(at) != id {
            at = u16::from(byte(at + 1));
        }
        (at != 0).then_some(at)
    }

    /// Interrupts sent since the last call.
    pub fn interrupt_count(&self) -> u64 {
        match self {
            MockTransport::Mmio(mmio) => mmio.interrupt_event().read().unwrap_or(0),
            MockTransport::Pci(pci) => pci
                .message_events()
                .map(|(_, event)| event.read().unwrap_or(0))
                .sum(),
        }
    }
}
