//! The root of the bus: a window in which every function's configuration space has its place
//! (PCI Express 5.0, 7.2.2, "ECAM").

#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::sync::Arc;

use super::config::{ConfigRegisters, Identity};
use super::{DEVICES, FUNCTION_BYTES, FUNCTIONS};
use crate::bus::{BusDevice, Effect, Misuse};

/// The host bridge that QEMU's machines without a chipset have: no driver wants it.
const HOST_BRIDGE: Identity = Identity {
    id: (0x1B36, 0x0008),
    revision: 0,
    class: 0x06_0000,
    subsystem: (0x1AF4, 0x1100),
};

/// A function's configuration space. Called by vCPU threads, possibly several at once.
pub trait PciFunction: Send + Sync {
    /// Reads at `offset`, below [`FUNCTION_BYTES`].
    ///
    /// # Errors
    /// [`Misuse`]; the guest then gets all ones.
    fn read_config(&self, offset: u16, data: &mut [u8]) -> Result<(), Misuse>;

    /// Writes at `offset`, below [`FUNCTION_BYTES`].
    ///
    /// # Errors
    /// [`Misuse`]: the write was refused.
    fn write_config(&self, offset: u16, data: &[u8]) -> Result<(), Misuse>;
}

/// The bus and its functions; filled while the machine is built.
pub struct PciRoot {
    bridge: ConfigRegisters,
    /// Devices 1 and on.
    devices: Vec<Arc<dyn PciFunction>>,
}

/// Who answers at a place of the window.
enum Answering<'a> {
    Nobody,
    Bridge,
    Function(&'a dyn PciFunction),
}

impl Default for PciRoot {
    fn default() -> Self {
        PciRoot {
            bridge: ConfigRegisters::new(HOST_BRIDGE, None),
            devices: Vec::new(),
        }
    }
}

impl PciRoot {
    /// Puts a device on the bus and gives its number; `None` when the bus is full.
    pub fn add(&mut self, device: Arc<dyn PciFunction>) -> Option<u8> {
        let number = self.devices.len().checked_add(1)?;
        if number as u64 >= DEVICES {
            return None;
        }
        self.devices.push(device);
        u8::try_from(number).ok()
    }

    fn at(&self, offset: u64) -> (Answering<'_>, u16) {
        let inside = (offset % FUNCTION_BYTES) as u16;
        let function = offset / FUNCTION_BYTES;
        let device = usize::try_from(function / FUNCTIONS).unwrap_or(usize::MAX);
        let answering = match device.checked_sub(1) {
            _ if !function.is_multiple_of(FUNCTIONS) => Answering::Nobody,
            None => Answering::Bridge,
            Some(index) => match self.devices.get(index) {
                Some(device) => Answering::Function(&**device),
                None => Answering::Nobody,
            },
        };
        (answering, inside)
    }
}

impl BusDevice for PciRoot {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), Misuse> {
        match self.at(offset) {
            (Answering::Bridge, inside) => self.bridge.read(inside, data),
            (Answering::Function(function), inside) => function.read_config(inside, data),
            // How a driver finds out that there is nobody: no misuse.
            (Answering::Nobody, _) => {
                data.fill(0xFF);
                Ok(())
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<Effect, Misuse> {
        if let (Answering::Function(function), inside) = self.at(offset) {
            function.write_config(inside, data)?;
        }
        // The bridge has nothing to set.
        Ok(Effect::None)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::arithmetic_side_effects)]
mod tests {
    use std::sync::atomic::{AtomicU16, Ordering};

    use super::*;

    #[derive(Default)]
    struct Echo(AtomicU16);

    impl PciFunction for Echo {
        fn read_config(&self, offset: u16, data: &mut [u8]) -> Result<(), Misuse> {
            data.fill(offset as u8);
            Ok(())
        }

        fn write_config(&self, offset: u16, _: &[u8]) -> Result<(), Misuse> {
            self.0.store(offset, Ordering::SeqCst);
            Ok(())
        }
    }

    fn read(root: &PciRoot, offset: u64) -> u32 {
        let mut data = [0; 4];
        root.read(offset, &mut data).unwrap();
        u32::from_le_bytes(data)
    }

    #[test]
    fn the_bridge_is_device_0_and_the_others_follow() {
        let mut root = PciRoot::default();
        let device = Arc::new(Echo::default());
        assert_eq!(root.add(Arc::clone(&device) as _), Some(1));
        assert_eq!(read(&root, 0), 0x0008_1B36);
        assert_eq!(read(&root, 8), 0x0600_0000);
        assert_eq!(read(&root, 0x8010), 0x1010_1010);
        root.write(0x8FFC, &[0; 4]).unwrap();
        assert_eq!(device.0.load(Ordering::SeqCst), 0xFFC);
        root.write(0x4, &[0xFF; 4]).unwrap();
        assert_eq!(root.bridge, PciRoot::default().bridge);
    }

    #[test]
    fn nobody_answers_elsewhere() {
        let mut root = PciRoot::default();
        root.add(Arc::new(Echo::default())).unwrap();
        // Function 1 of a device, a device that is not there, and what no bus has.
        for offset in [0x1000, 0x9000, 0x1_0000, u64::MAX - 3] {
            assert_eq!(read(&root, offset), u32::MAX, "{offset:#x}");
            assert_eq!(root.write(offset, &[0; 4]), Ok(Effect::None));
        }
    }

    #[test]
    fn a_bus_has_31_places() {
        let mut root = PciRoot::default();
        let numbers = std::iter::from_fn(|| root.add(Arc::new(Echo::default())));
        assert_eq!(numbers.last(), Some(31));
    }
}
