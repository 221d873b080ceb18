//! What the two sides of a device share: the register file on vCPU threads and the device on its
//! I/O thread. Atomics and eventfds alone.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::device::ConfigSpace;
use super::messages::Messages;

/// Why the guest is interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
    /// This queue has used buffers.
    Queue(u16),
    /// The configuration or the device's status changed.
    Config,
}

impl Interrupt {
    /// Its bit in the InterruptStatus register (virtio 1.2, 4.2.2) and in the ISR status (4.1.4.5).
    fn bit(self) -> u32 {
        match self {
            Interrupt::Queue(_) => 1,
            Interrupt::Config => 2,
        }
    }
}

/// A nonblocking eventfd, as everything here wants it.
pub(crate) fn event() -> io::Result<EventFd> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
}

/// Signals an eventfd. The only error a live one gives is a full counter, and then its reader is
/// woken anyway.
pub(crate) fn signal(event: &EventFd) {
    let _ = event.write(1);
}

/// The interrupt of a device: status bits, and what KVM turns into an interrupt: the eventfd of a
/// line, or those of messages where the transport has them.
#[derive(Debug)]
pub struct InterruptLine {
    status: AtomicU32,
    event: EventFd,
    messages: OnceLock<Arc<Messages>>,
}

impl InterruptLine {
    fn new() -> io::Result<Self> {
        Ok(InterruptLine {
            status: AtomicU32::new(0),
            event: event()?,
            messages: OnceLock::new(),
        })
    }

    /// From now on, interrupts are `messages`. Only the first call has an effect.
    pub(crate) fn send_as(&self, messages: Arc<Messages>) {
        let _ = self.messages.set(messages);
    }

    /// Raises the line, or sends the message that the driver chose for this.
    pub fn trigger(&self, why: Interrupt) {
        self.status.fetch_or(why.bit(), Ordering::SeqCst);
        match self.messages.get() {
            Some(messages) => messages.send(why),
            None => signal(&self.event),
        }
    }

    /// The pending reasons, which are none from now on.
    pub(crate) fn take_status(&self) -> u32 {
        self.status.swap(0, Ordering::SeqCst)
    }

    /// An interrupt of the life before must not reach the next driver.
    fn clear(&self) {
        self.acknowledge(u32::MAX);
        // Nothing pending is fine.
        let _ = self.event.read();
        if let Some(messages) = self.messages.get() {
            messages.clear();
        }
    }

    /// The pending reasons.
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// The guest's acknowledgement: clears the bits that it names.
    pub fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }

    /// For irqfd.
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}

/// What happened to a device, for the operator. Counters tell how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceEvent {
    /// The device's name.
    pub device: String,
    /// What happened.
    pub kind: DeviceEventKind,
}

/// See [`DeviceEvent`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceEventKind {
    /// The host's kernel refused an operation. Told at most once a second for each device.
    HostError {
        /// What was asked.
        operation: &'static str,
        /// Where on the disk, if it has a place.
        sector: Option<u64>,
        /// What the kernel said.
        errno: i32,
    },
    /// The guest broke a ring; the device waits for a reset by its driver.
    QueueBroken {
        /// The queue.
        queue: u16,
        /// What is wrong with it.
        reason: String,
    },
    /// The device's backend is gone and the device can do no more.
    BackendGone {
        /// What the kernel said.
        errno: i32,
    },
    /// A drive was to work by io_uring and works by ordinary reads and writes.
    EngineFallBack {
        /// Why, and what to do.
        reason: String,
    },
    /// The device cannot start.
    NotStarted {
        /// Why.
        reason: String,
    },
}

impl std::fmt::Display for DeviceEventKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let os = |errno: &i32| io::Error::from_raw_os_error(*errno);
        match self {
            DeviceEventKind::HostError {
                operation,
                sector,
                errno,
            } => {
                let place = sector.map_or_else(String::new, |at| format!(" at sector {at}"));
                let said = os(errno);
                write!(
                    f,
                    "the host refused {operation}{place}: {said}; the guest was told"
                )
            }
            DeviceEventKind::QueueBroken { queue, reason } => write!(
                f,
                "the guest broke queue {queue}: {reason}; the device waits for its driver to reset it"
            ),
            DeviceEventKind::BackendGone { errno } => {
                write!(f, "its backend is gone: {}; it can do no more", os(errno))
            }
            DeviceEventKind::EngineFallBack { reason } => write!(
                f,
                "io_engine Async cannot be had, it works as with Sync: {reason}"
            ),
            DeviceEventKind::NotStarted { reason } => write!(f, "it cannot start: {reason}"),
        }
    }
}

/// Is told of a device's events, on its I/O thread: it must not wait.
pub type OnEvent = Arc<dyn Fn(DeviceEvent) + Send + Sync>;

/// The shared part of one device.
#[derive(Debug)]
pub struct DeviceLink {
    /// The device's name.
    pub name: String,
    /// Its interrupt.
    pub interrupt: InterruptLine,
    /// Its configuration space.
    pub config: Arc<ConfigSpace>,
    needs_reset: AtomicBool,
}

impl DeviceLink {
    pub(crate) fn new(name: String, config: Arc<ConfigSpace>) -> io::Result<Self> {
        Ok(DeviceLink {
            name,
            interrupt: InterruptLine::new()?,
            config,
            needs_reset: AtomicBool::new(false),
        })
    }

    /// Sets DEVICE_NEEDS_RESET and tells the driver by a configuration interrupt (virtio 1.2,
    /// 2.1.2). True when it was not set before.
    pub fn ask_for_reset(&self) -> bool {
        let first = !self.needs_reset.swap(true, Ordering::SeqCst);
        self.interrupt.trigger(Interrupt::Config);
        first
    }

    /// Whether the device waits for a reset.
    pub fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }

    /// A fresh start.
    pub(crate) fn clear(&self) {
        self.needs_reset.store(false, Ordering::SeqCst);
        self.interrupt.clear();
    }
}
