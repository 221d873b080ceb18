//! The register window of one device, on the bus.

use std::ops::Deref;

use vmm_sys_util::eventfd::EventFd;

use super::registers::CONFIG;
use crate::bus::{BusDevice, Effect, Misuse};
use crate::virtio::counters::TransportKind;
use crate::virtio::front::Front;

/// A virtio-mmio window. The guest reaches it over the bus, at any width that the specification
/// has; kicks may pass it by: by ioeventfds at the window's base +
/// [`super::registers::QUEUE_NOTIFY`], 4 bytes wide, matching the queue's index.
pub struct MmioTransport {
    front: Front,
}

impl MmioTransport {
    /// The window of a device.
    pub fn new(front: Front) -> Self {
        front.behind(TransportKind::Mmio);
        MmioTransport { front }
    }

    /// The interrupt, for an irqfd. Edge-triggered: the device signals it for every interrupt.
    pub fn interrupt_event(&self) -> &EventFd {
        self.front.link().interrupt.event()
    }

    #[cfg(test)]
    pub(crate) fn front_mut(&mut self) -> &mut Front {
        &mut self.front
    }
}

impl Deref for MmioTransport {
    type Target = Front;

    fn deref(&self) -> &Front {
        &self.front
    }
}

impl BusDevice for MmioTransport {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), Misuse> {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.front.link().config.read(offset, data);
            return Ok(());
        }
        let data: &mut [u8; 4] = data.try_into().map_err(|_| Misuse::Width)?;
        *data = self.front.read(offset)?.to_le_bytes();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<Effect, Misuse> {
        if let Some(place) = offset.checked_sub(CONFIG)
            && self.front.write_config(place, data)
        {
            return Ok(Effect::None);
        }
        match <[u8; 4]>::try_from(data) {
            Ok(value) if offset < CONFIG => self.front.write(offset, u32::from_le_bytes(value))?,
            // The rest of the configuration is the host's to write.
            refused => {
                let why = refused.map_or(Misuse::Width, |_| Misuse::State);
                return Err(self.front.refuse(why));
            }
        }
        Ok(Effect::None)
    }
}
