//! The register window of one device, on the bus.

use std::sync::mpsc::{Receiver, Sender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use observe::Block;
use vmm_sys_util::eventfd::EventFd;

use super::registers::{Action, CONFIG, Live, Registers};
use crate::bus::{BusDevice, Effect, Misuse};
use crate::virtio::counters::TransportBlock;
use crate::virtio::device::DeviceProfile;
use crate::virtio::device_loop::Control;
use crate::virtio::link::{DeviceLink, Interrupt, signal};

/// How long a vCPU waits for the I/O thread to give the queues up.
pub const RESET_DEADLINE: Duration = Duration::from_secs(5);

/// The register file and what belongs to it. The mutex is there because several vCPUs may write
/// registers at once and the file is a state machine over many of them. It is held for the
/// machine's own steps and to put a message into the mailbox, so that messages have the order of
/// the writes; never across a system call or a wait.
struct State {
    registers: Registers,
    block: Arc<Block<TransportBlock>>,
    /// The confirmation of a reset that was asked for.
    awaited: Option<Receiver<()>>,
}

/// A virtio-mmio window. The guest reaches it over the bus, at any width that the specification
/// has; kicks may pass it by (ioeventfd).
pub struct MmioTransport {
    state: Mutex<State>,
    link: Arc<DeviceLink>,
    kicks: Vec<Arc<EventFd>>,
    mail: Sender<Control>,
    wake: Arc<EventFd>,
    reset_deadline: Duration,
}

impl MmioTransport {
    pub(crate) fn new(
        profile: &DeviceProfile,
        link: Arc<DeviceLink>,
        kicks: Vec<Arc<EventFd>>,
        mail: Sender<Control>,
        wake: Arc<EventFd>,
        block: Arc<Block<TransportBlock>>,
    ) -> Self {
        let sizes = &profile.queue_max_sizes;
        MmioTransport {
            state: Mutex::new(State {
                registers: Registers::new(profile.device_type, profile.features, sizes),
                block,
                awaited: None,
            }),
            link,
            kicks,
            mail,
            wake,
            reset_deadline: RESET_DEADLINE,
        }
    }

    /// Each queue's index and kick event, for ioeventfds at the window's base +
    /// [`super::registers::QUEUE_NOTIFY`], 4 bytes wide, matching the index.
    pub fn kick_events(&self) -> Vec<(u32, &EventFd)> {
        (0..).zip(self.kicks.iter().map(AsRef::as_ref)).collect()
    }

    /// The interrupt, for an irqfd. Edge-triggered: the device signals it for every interrupt.
    pub fn interrupt_event(&self) -> &EventFd {
        self.link.interrupt.event()
    }

    /// What the transport shares with the device: its name, configuration space and status.
    pub fn link(&self) -> &Arc<DeviceLink> {
        &self.link
    }

    /// Tells the driver that the configuration space changed.
    pub fn config_changed(&self) {
        self.link.interrupt.trigger(Interrupt::Config);
    }

    #[cfg(test)]
    pub(crate) fn set_reset_deadline(&mut self, deadline: Duration) {
        self.reset_deadline = deadline;
    }

    /// A panic while the lock was held cannot leave the registers half-written in a way that the
    /// state machine does not also meet from a hostile guest.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_register(&self, offset: u64, value: u32) -> Result<(), Misuse> {
        let mut state = self.lock();
        let action = state.registers.write(offset, value);
        state.note(action.is_err());
        match action? {
            Action::None => {}
            Action::Acknowledge(bits) => self.link.interrupt.acknowledge(bits),
            Action::Cleared => {
                drop(state);
                self.link.clear();
            }
            Action::Notify(queue) => {
                state.block.trapped_kicks.inc();
                drop(state);
                // A queue that does not exist has no ioeventfd either.
                if let Some(kick) = self.kicks.get(queue as usize) {
                    signal(kick);
                }
            }
            Action::Activate(features, layouts) => {
                let sent = self.mail.send(Control::Activate { features, layouts });
                drop(state);
                signal(&self.wake);
                if sent.is_err() {
                    self.link.ask_for_reset();
                }
            }
            Action::Reset => {
                let confirmation = state.awaited.take().unwrap_or_else(|| self.ask_for_reset());
                drop(state);
                signal(&self.wake);
                self.wait_for_reset(confirmation);
            }
        }
        Ok(())
    }

    /// Asks once: a driver that tries again waits for the same confirmation.
    fn ask_for_reset(&self) -> Receiver<()> {
        let (done, confirmation) = sync_channel(1);
        // A thread that has ended drops `done`, and the wait is over at once.
        let _ = self.mail.send(Control::Reset { done });
        confirmation
    }

    fn wait_for_reset(&self, confirmation: Receiver<()>) {
        let confirmed = confirmation.recv_timeout(self.reset_deadline).is_ok();
        if confirmed {
            self.link.clear();
        } else {
            self.link.ask_for_reset();
        }
        let mut state = self.lock();
        state.registers.finish_reset(confirmed);
        if !confirmed {
            state.block.resets_missed.inc();
            state.awaited = Some(confirmation);
        }
        state.note(false);
    }
}

impl State {
    fn note(&self, refused: bool) {
        self.block.refused.add(u64::from(refused));
        self.block.status.set(u64::from(self.registers.status()));
        self.block.driver_features.set(self.registers.accepted());
    }
}

impl BusDevice for MmioTransport {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), Misuse> {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.link.config.read(offset, data);
            return Ok(());
        }
        let data: &mut [u8; 4] = data.try_into().map_err(|_| Misuse::Width)?;
        let live = Live {
            interrupts: self.link.interrupt.status(),
            needs_reset: self.link.needs_reset(),
            generation: self.link.config.generation(),
        };
        *data = self.lock().registers.read(offset, live)?.to_le_bytes();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<Effect, Misuse> {
        if let Some(place) = offset.checked_sub(CONFIG)
            && self.link.config.driver_write(place, data)
        {
            return Ok(Effect::None);
        }
        let value = match <[u8; 4]>::try_from(data) {
            Ok(value) if offset < CONFIG => u32::from_le_bytes(value),
            refused => {
                self.lock().note(true);
                // The rest of the configuration is the host's to write.
                return Err(refused.map_or(Misuse::Width, |_| Misuse::State));
            }
        };
        self.write_register(offset, value)?;
        Ok(Effect::None)
    }
}
