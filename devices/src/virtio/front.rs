//! The vCPUs' side of one device: its register file, behind whichever transport the guest reaches
//! it by.

use std::sync::mpsc::{Receiver, Sender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use observe::Block;
use vmm_sys_util::eventfd::EventFd;

use super::counters::{TransportBlock, TransportKind};
use super::device::DeviceProfile;
use super::device_loop::Control;
use super::link::{DeviceLink, Interrupt, signal};
use super::mmio::registers::{Action, Live, Registers};
use crate::bus::Misuse;

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

/// The register file of a device and its way to the I/O thread. A transport gives it places on the
/// bus; registers have their numbers in virtio-mmio, whichever the transport.
pub struct Front {
    state: Mutex<State>,
    link: Arc<DeviceLink>,
    kicks: Vec<Arc<EventFd>>,
    mail: Sender<Control>,
    wake: Arc<EventFd>,
    reset_deadline: Duration,
}

impl Front {
    pub(crate) fn new(
        profile: &DeviceProfile,
        link: Arc<DeviceLink>,
        kicks: Vec<Arc<EventFd>>,
        mail: Sender<Control>,
        wake: Arc<EventFd>,
        block: Arc<Block<TransportBlock>>,
    ) -> Self {
        let sizes = &profile.queue_max_sizes;
        Front {
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

    /// Each queue's index and kick event, for ioeventfds where the transport says.
    pub fn kick_events(&self) -> Vec<(u32, &EventFd)> {
        (0..).zip(self.kicks.iter().map(AsRef::as_ref)).collect()
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

    /// Becomes part of a transport, before the guest can reach it.
    pub(crate) fn behind(&self, kind: TransportKind) {
        let mut state = self.lock();
        state.block.kind.set(kind as u64);
        if kind == TransportKind::Pci {
            state.registers = state.registers.clone().filled();
        }
    }

    /// Writes the device's configuration space. False where that is not the driver's to write, and
    /// nothing has changed then.
    pub(crate) fn write_config(&self, place: u64, data: &[u8]) -> bool {
        self.link.config.driver_write(place, data)
    }

    /// Counts an access that the transport itself refused, and gives it back.
    pub(crate) fn refuse(&self, why: Misuse) -> Misuse {
        self.lock().note(true);
        why
    }

    /// Reads a register.
    ///
    /// # Errors
    /// [`Misuse::Register`] where there is none to read.
    pub(crate) fn read(&self, offset: u64) -> Result<u32, Misuse> {
        let live = self.live();
        self.lock().registers.read(offset, live)
    }

    /// A copy of all registers, and what the device's side adds to them.
    pub(crate) fn registers(&self) -> (Registers, Live) {
        let live = self.live();
        (self.lock().registers.clone(), live)
    }

    fn live(&self) -> Live {
        Live {
            interrupts: self.link.interrupt.status(),
            needs_reset: self.link.needs_reset(),
            generation: self.link.config.generation(),
        }
    }

    /// Kicks a queue by hand, because no ioeventfd did.
    pub(crate) fn kick(&self, queue: u32) {
        self.lock().block.trapped_kicks.inc();
        // A queue that does not exist has no ioeventfd either.
        if let Some(kick) = self.kicks.get(queue as usize) {
            signal(kick);
        }
    }

    /// Writes a register and does what it asks for.
    ///
    /// # Errors
    /// [`Misuse`]; nothing has changed then.
    pub(crate) fn write(&self, offset: u64, value: u32) -> Result<(), Misuse> {
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
                drop(state);
                self.kick(queue);
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
