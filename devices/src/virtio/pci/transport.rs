//! One device as a PCI function: its configuration space, and its BAR on the bus.

use std::io;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::function::{Function, Through};
use super::{COMMON, DEVICE, ISR, MAX_QUEUES, NOTIFY, NOTIFY_STRIDE, PAGE, PENDING, TABLE, common};
use crate::bus::{BusDevice, Effect, Misuse};
use crate::pci::{MsixTable, PciFunction, VectorState};
use crate::virtio::counters::TransportKind;
use crate::virtio::front::Front;
use crate::virtio::messages::{Gate, Messages};

/// Says where the messages of a device's vectors go. Implemented by the machine, for KVM.
pub trait MessageRouter: Send + Sync {
    /// From now on, signalling the event of `vector` sends `data` to `address`. Called by vCPU
    /// threads.
    ///
    /// # Errors
    /// The host refused; what was routed before stays.
    fn route(&self, vector: u16, address: u64, data: u32) -> io::Result<()>;
}

/// The table of MSI-X, and what of it the router knows. One lock, so that routes change in the
/// order of the writes; it is held across the router's system call, which only vCPUs that write to
/// this table or to MSI-X's control wait for.
struct Msix {
    table: MsixTable,
    routed: Vec<Option<(u64, u32)>>,
}

/// A virtio function. Its configuration space is reached over the root ([`PciFunction`]), its BAR
/// over the bus ([`BusDevice`]); kicks may pass it by, by ioeventfds at the BAR's address +
/// [`PciTransport::notify_offset`] of any width.
pub struct PciTransport {
    front: Front,
    messages: Arc<Messages>,
    /// Several vCPUs may write registers at once. Never held across a system call.
    function: Mutex<Function>,
    msix: Mutex<Msix>,
    router: Box<dyn MessageRouter>,
}

impl PciTransport {
    /// Makes a device a function whose BAR lies at `address`.
    ///
    /// # Errors
    /// The host gives no eventfds, or the device has more queues than a function can have.
    pub fn new(
        front: Front,
        device_type: u32,
        address: u64,
        router: Box<dyn MessageRouter>,
    ) -> io::Result<Self> {
        let queues = front.kick_events().len();
        let queues = u16::try_from(queues).ok().filter(|n| *n <= MAX_QUEUES);
        let queues = queues.ok_or_else(|| io::Error::other("it has too many queues for PCI"))?;
        let messages = Arc::new(Messages::new(queues)?);
        let vectors = messages.count();
        let function = Function::new(device_type, vectors, address)
            .ok_or_else(|| io::Error::other("its device type has no PCI id"))?;
        front.behind(TransportKind::Pci);
        front.link().interrupt.send_as(Arc::clone(&messages));
        Ok(PciTransport {
            front,
            messages,
            function: Mutex::new(function),
            msix: Mutex::new(Msix {
                table: MsixTable::new(vectors),
                routed: vec![None; usize::from(vectors)],
            }),
            router,
        })
    }

    /// Each vector's number and event, for irqfds.
    pub fn message_events(&self) -> impl Iterator<Item = (u16, &EventFd)> {
        self.messages.events()
    }

    /// Where in the BAR the kicks of `queue` go.
    pub fn notify_offset(queue: u32) -> u64 {
        NOTIFY + u64::from(queue) * NOTIFY_STRIDE
    }

    #[cfg(test)]
    pub(crate) fn front_mut(&mut self) -> &mut Front {
        &mut self.front
    }

    fn function(&self) -> MutexGuard<'_, Function> {
        self.function.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn msix(&self) -> MutexGuard<'_, Msix> {
        self.msix.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a vector's gate be as the table says, after its route.
    fn settle(&self, msix: &mut Msix, vector: u16) {
        let gate = match msix.table.state(vector) {
            VectorState::Off => Gate::Off,
            VectorState::Masked => Gate::Masked,
            VectorState::Open { address, data } => self.open(msix, vector, (address, data)),
        };
        self.messages.set(vector, gate);
    }

    fn open(&self, msix: &mut Msix, vector: u16, wanted: (u64, u32)) -> Gate {
        let Some(routed) = msix.routed.get_mut(usize::from(vector)) else {
            return Gate::Off;
        };
        if *routed != Some(wanted) {
            let (address, data) = wanted;
            if let Err(error) = self.router.route(vector, address, data) {
                // What it is to send is kept: the driver may write the entry again.
                let name = &self.front.link().name;
                tracing::error!(
                    "interrupt {vector} of {name} cannot be routed to {address:#x}: {error}; the \
                     guest does not get it until its driver sets it up again"
                );
                return Gate::Masked;
            }
            *routed = Some(wanted);
        }
        Gate::Open
    }

    fn write_table(&self, offset: u64, data: &[u8]) -> Result<(), Misuse> {
        let mut msix = self.msix();
        let vector = msix.table.write(offset, data)?;
        self.settle(&mut msix, vector);
        Ok(())
    }

    /// Has the table follow the capability. The function's lock is taken inside the table's, so
    /// that the last write wins whoever comes last.
    fn follow_control(&self) {
        let mut msix = self.msix();
        let function = self.function();
        let word = function.config.word(function.control);
        drop(function);
        if msix.table.set_control(word) {
            for vector in 0..msix.table.vectors() {
                self.settle(&mut msix, vector);
            }
        }
    }

    fn read_pending(&self, offset: u64, data: &mut [u8]) {
        let first = usize::try_from(offset).unwrap_or(usize::MAX);
        for (place, byte) in data.iter_mut().enumerate() {
            let vector = first.saturating_add(place).saturating_mul(8);
            let bit = |bit: usize| {
                let pending = self.messages.is_pending(vector.saturating_add(bit));
                u8::from(pending) << bit
            };
            *byte = (0..8).fold(0, |bits, at| bits | bit(at));
        }
    }
}

impl Deref for PciTransport {
    type Target = Front;

    fn deref(&self) -> &Front {
        &self.front
    }
}

impl PciTransport {
    fn read_bar(&self, offset: u64, data: &mut [u8]) -> Result<(), Misuse> {
        let inside = offset % PAGE;
        match offset - inside {
            COMMON => common::read(&self.front, &self.messages, inside, data),
            ISR => {
                data.fill(0);
                if let (0, Some(status)) = (inside, data.first_mut()) {
                    *status = self.front.link().interrupt.take_status() as u8;
                }
            }
            DEVICE => self.front.link().config.read(inside, data),
            // What is written there is all that counts.
            NOTIFY => data.fill(0),
            TABLE => self.msix().table.read(inside, data)?,
            PENDING => self.read_pending(inside, data),
            _ => return Err(Misuse::Register),
        }
        Ok(())
    }

    fn write_bar(&self, offset: u64, data: &[u8]) -> Result<(), Misuse> {
        let inside = offset % PAGE;
        match offset - inside {
            COMMON => common::write(&self.front, &self.messages, inside, data),
            NOTIFY => {
                let queue = u32::try_from(inside / NOTIFY_STRIDE).unwrap_or(u32::MAX);
                self.front.kick(queue);
                Ok(())
            }
            TABLE => {
                let written = self.write_table(inside, data);
                written.map_err(|why| self.front.refuse(why))
            }
            DEVICE if self.front.write_config(inside, data) => Ok(()),
            // The rest of the configuration is the host's to write, as are all others.
            ISR | DEVICE | PENDING => Err(self.front.refuse(Misuse::State)),
            _ => Err(self.front.refuse(Misuse::Register)),
        }
    }

    /// Where `pci_cfg_data` leads an access at `offset`, if it is one.
    fn through(&self, offset: u16) -> Option<Result<Through, Misuse>> {
        let function = self.function();
        function
            .is_data(offset)
            .then(|| function.through().ok_or(Misuse::State))
    }
}

impl BusDevice for PciTransport {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), Misuse> {
        if !self.function().config.memory_is_enabled() {
            return Err(Misuse::State);
        }
        self.read_bar(offset, data)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<Effect, Misuse> {
        if !self.function().config.memory_is_enabled() {
            return Err(self.front.refuse(Misuse::State));
        }
        self.write_bar(offset, data)?;
        Ok(Effect::None)
    }
}

impl PciFunction for PciTransport {
    fn read_config(&self, offset: u16, data: &mut [u8]) -> Result<(), Misuse> {
        match self.through(offset) {
            None => self.function().config.read(offset, data),
            Some(through) => {
                let Through { offset, width } = through?;
                let mut value = [0; 4];
                let value = value.get_mut(..width).ok_or(Misuse::Width)?;
                self.read_bar(offset, value)?;
                data.fill(0);
                for (to, from) in data.iter_mut().zip(value) {
                    *to = *from;
                }
                Ok(())
            }
        }
    }

    fn write_config(&self, offset: u16, data: &[u8]) -> Result<(), Misuse> {
        if let Some(through) = self.through(offset) {
            let Through { offset, width } = through?;
            let data = data.get(..width).ok_or(Misuse::Width)?;
            return self.write_bar(offset, data);
        }
        let written = self.function().config.write(offset, data);
        // Whatever was written: only a change of the control does anything.
        self.follow_control();
        written.map_err(|why| self.front.refuse(why))
    }
}
