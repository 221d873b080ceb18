//! Interrupts as messages: vectors that the driver masks and opens on a vCPU thread, and that the
//! device sends on its I/O thread. Atomics and eventfds alone.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};

use vmm_sys_util::eventfd::EventFd;

use super::link::{Interrupt, event, signal};

/// `VIRTIO_MSI_NO_VECTOR`: nobody is to be told.
pub(crate) const NO_VECTOR: u16 = 0xFFFF;

/// What becomes of a vector's interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Gate {
    /// They are lost.
    Off,
    /// One is kept.
    Masked,
    /// They are sent.
    Open,
}

/// One vector. An interrupt first sets `pending` and then looks at the gate; who opens the gate
/// then looks at `pending`. Whichever comes second sees the other, so none is lost, and whoever
/// takes `pending` back sends it, so none is sent twice.
#[derive(Debug)]
struct Vector {
    event: EventFd,
    gate: AtomicU8,
    pending: AtomicBool,
}

impl Vector {
    fn send(&self) {
        if self.gate.load(Ordering::SeqCst) == Gate::Off as u8 {
            return;
        }
        self.pending.store(true, Ordering::SeqCst);
        if self.gate.load(Ordering::SeqCst) == Gate::Open as u8 {
            self.send_pending();
        }
    }

    fn send_pending(&self) {
        if self.pending.swap(false, Ordering::SeqCst) {
            signal(&self.event);
        }
    }
}

/// The vectors of a device, and which of them the driver chose for what.
#[derive(Debug)]
pub struct Messages {
    vectors: Vec<Vector>,
    config: AtomicU16,
    queues: Vec<AtomicU16>,
}

impl Messages {
    /// A vector for each queue and one for the configuration; none is chosen for anything.
    pub(crate) fn new(queues: u16) -> io::Result<Self> {
        let vector = |_| {
            Ok(Vector {
                event: event()?,
                gate: AtomicU8::new(Gate::Off as u8),
                pending: AtomicBool::new(false),
            })
        };
        Ok(Messages {
            vectors: (0..=queues).map(vector).collect::<io::Result<_>>()?,
            config: AtomicU16::new(NO_VECTOR),
            queues: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
        })
    }

    /// How many vectors there are.
    pub(crate) fn count(&self) -> u16 {
        u16::try_from(self.vectors.len()).unwrap_or(u16::MAX)
    }

    /// Each vector's number and event, for irqfds.
    pub(crate) fn events(&self) -> impl Iterator<Item = (u16, &EventFd)> {
        (0..).zip(self.vectors.iter().map(|vector| &vector.event))
    }

    fn chosen(&self, why: Interrupt) -> Option<&AtomicU16> {
        match why {
            Interrupt::Config => Some(&self.config),
            Interrupt::Queue(queue) => self.queues.get(usize::from(queue)),
        }
    }

    /// The vector for `why`, or [`NO_VECTOR`].
    pub(crate) fn vector(&self, why: Interrupt) -> u16 {
        let chosen = self.chosen(why);
        chosen.map_or(NO_VECTOR, |chosen| chosen.load(Ordering::SeqCst))
    }

    /// The driver chooses a vector; one that does not exist is none, as it can read back.
    pub(crate) fn choose(&self, why: Interrupt, vector: u16) {
        let known = usize::from(vector) < self.vectors.len();
        if let Some(chosen) = self.chosen(why) {
            let vector = if known { vector } else { NO_VECTOR };
            chosen.store(vector, Ordering::SeqCst);
        }
    }

    /// Sends what the driver chose for `why`.
    pub(crate) fn send(&self, why: Interrupt) {
        if let Some(vector) = self.vectors.get(usize::from(self.vector(why))) {
            vector.send();
        }
    }

    /// Opens or shuts a vector.
    pub(crate) fn set(&self, vector: u16, gate: Gate) {
        let Some(vector) = self.vectors.get(usize::from(vector)) else {
            return;
        };
        vector.gate.store(gate as u8, Ordering::SeqCst);
        match gate {
            Gate::Off => vector.pending.store(false, Ordering::SeqCst),
            Gate::Masked => {}
            Gate::Open => vector.send_pending(),
        }
    }

    /// Whether a vector keeps an interrupt.
    pub(crate) fn is_pending(&self, vector: usize) -> bool {
        let vector = self.vectors.get(vector);
        vector.is_some_and(|vector| vector.pending.load(Ordering::SeqCst))
    }

    /// The driver reset the device: nothing is chosen, nothing is kept. Gates stay.
    pub(crate) fn clear(&self) {
        for chosen in self.queues.iter().chain([&self.config]) {
            chosen.store(NO_VECTOR, Ordering::SeqCst);
        }
        for vector in &self.vectors {
            vector.pending.store(false, Ordering::SeqCst);
            // Nothing to take back is fine.
            let _ = vector.event.read();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(messages: &Messages) -> Vec<u64> {
        let events = messages.events();
        events.map(|(_, event)| event.read().unwrap_or(0)).collect()
    }

    #[test]
    fn each_reason_is_sent_by_the_vector_that_was_chosen() {
        let messages = Messages::new(2).unwrap();
        messages.choose(Interrupt::Config, 0);
        messages.choose(Interrupt::Queue(0), 2);
        messages.choose(Interrupt::Queue(1), 3);
        messages.choose(Interrupt::Queue(9), 1);
        assert_eq!(messages.vector(Interrupt::Queue(1)), NO_VECTOR);
        for vector in 0..3 {
            messages.set(vector, Gate::Open);
        }
        messages.send(Interrupt::Queue(0));
        messages.send(Interrupt::Queue(0));
        messages.send(Interrupt::Queue(1));
        messages.send(Interrupt::Config);
        assert_eq!(sent(&messages), [1, 0, 2]);
        messages.clear();
        messages.send(Interrupt::Queue(0));
        assert_eq!(sent(&messages), [0, 0, 0]);
    }

    #[test]
    fn a_masked_vector_keeps_one_interrupt_and_one_that_is_off_none() {
        let messages = Messages::new(1).unwrap();
        messages.choose(Interrupt::Queue(0), 1);
        messages.send(Interrupt::Queue(0));
        messages.set(1, Gate::Masked);
        assert!(!messages.is_pending(1));
        messages.send(Interrupt::Queue(0));
        messages.send(Interrupt::Queue(0));
        assert!(messages.is_pending(1) && !messages.is_pending(0));
        assert_eq!(sent(&messages), [0, 0]);
        messages.set(1, Gate::Open);
        assert!(!messages.is_pending(1));
        assert_eq!(sent(&messages), [0, 1]);
        messages.set(1, Gate::Masked);
        messages.send(Interrupt::Queue(0));
        messages.set(1, Gate::Off);
        messages.set(1, Gate::Open);
        assert_eq!(sent(&messages), [0, 0]);
    }

    #[test]
    fn no_interrupt_is_lost_or_doubled_while_the_gate_moves() {
        const ROUNDS: u64 = 20_000;
        let messages = Messages::new(1).unwrap();
        messages.choose(Interrupt::Queue(0), 1);
        messages.set(1, Gate::Open);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..ROUNDS {
                    messages.set(1, Gate::Masked);
                    messages.set(1, Gate::Open);
                }
            });
            for _ in 0..ROUNDS {
                let _ = messages.events().nth(1).unwrap().1.read();
                messages.send(Interrupt::Queue(0));
            }
        });
        // The gate is open at the end: nothing is kept, and something was sent.
        assert!(!messages.is_pending(1));
        messages.send(Interrupt::Queue(0));
        assert!((1..=ROUNDS + 1).contains(&sent(&messages)[1]));
    }
}
