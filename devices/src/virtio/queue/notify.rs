//! The runner's talk with the driver: its kicks, the device's wish for them, and interrupts.

#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use observe::Ticks;
use virtio_queue::QueueT;

use super::ring::{interrupt_is_wanted, reach};
use super::stages::Reach;
use super::{QueueError, QueueRunner};
use crate::virtio::link::Interrupt;

impl QueueRunner {
    /// The guest's side of the ring, if there is a ring.
    fn reach(&self) -> Option<Reach> {
        reach(self.ring.as_ref()?, &self.ram)
    }

    /// Counts what was read from the kick's eventfd. The thread turned to the device at `noticed`.
    pub(crate) fn kicked(&mut self, kicks: u64, noticed: Ticks) {
        self.block.kicks.add(kicks);
        self.suspect = None;
        let next = self.ring.as_ref().map(QueueT::next_avail);
        let reach = self.reach();
        let new = reach.filter(|reach| Some(reach.avail) != next);
        self.block.spurious_kicks.add(u64::from(new.is_none()));
        if let Some(new) = new {
            self.stages.kicked(new.avail, noticed);
        }
        self.watch_reclaim(reach);
        self.witness.kicked(self.index, kicks, self.now);
    }

    /// The device goes on after a pause.
    pub(crate) fn resumed(&mut self) {
        if let Some(reach) = self.reach() {
            self.stages.resumed(reach.avail);
        }
    }

    /// What is to be done about once a second, also when nothing happens. Looks how far the guest
    /// has taken completions back, and for a kick that never came: buffers in the ring at two
    /// looks in a row, at the same place, while kicks were asked for. If so, counts it and gives
    /// true: the caller then serves the queue. The second look is the caller's, soon after one that
    /// [suspects](Self::suspects) that.
    pub(crate) fn look_around(&mut self, now: Ticks) -> bool {
        let healthy = self.ring.as_ref().filter(|_| self.broken.is_none());
        let Some((ring, reach)) = healthy.zip(self.reach()) else {
            self.suspect = None;
            return false;
        };
        self.now = now;
        let (next, used) = (ring.next_avail(), ring.next_used());
        self.stages.reached(reach, used, ring.size());
        if let Some(at) = self.stages.reacted_at_look(reach) {
            let ns = self.witness.clock.ns_between(at, now);
            self.block.interrupt_to_reclaim.record(ns);
        }
        let unread = reach.used_event.map_or(0, |_| self.stages.unread(used));
        self.block.unread_completions.set(u64::from(unread));

        let waiting = (!self.suppressed && reach.avail != next).then_some(next);
        let lost = waiting.is_some() && waiting == self.suspect;
        self.suspect = if lost { None } else { waiting };
        self.block.lost_kicks.add(u64::from(lost));
        if lost {
            self.stages.known(reach.avail);
        }
        lost
    }

    /// Whether the last look found buffers that no kick has announced yet.
    pub(crate) fn suspects(&self) -> bool {
        self.suspect.is_some()
    }

    /// Looks whether the guest has reacted to the interrupt that is followed.
    fn watch_reclaim(&mut self, reach: Option<Reach>) {
        let Some(ring) = &self.ring else {
            return;
        };
        let (used, size) = (ring.next_used(), ring.size());
        match reach {
            Some(reach) => self.stages.reached(reach, used, size),
            None => self.stages.given(used, size),
        }
        if let Some(at) = self.stages.reacted(reach) {
            let ns = self.witness.clock.ns_between(at, self.now);
            self.block.interrupt_to_reclaim.record(ns);
        }
    }

    pub(super) fn suppress_kicks(&mut self, suppress: bool) {
        if suppress != self.suppressed
            && let Some(ring) = self.ring.as_mut()
        {
            self.suppressed = suppress;
            if suppress && ring.disable_notification(&*self.ram).is_err() {
                self.fail(QueueError::UsedRing);
            }
        }
    }

    /// Asks for kicks; true when the ring has something already.
    pub(super) fn want_kicks(&mut self) -> bool {
        self.suppressed = false;
        if self.broken.is_some() {
            return false;
        }
        let more = self
            .ring
            .as_mut()
            .map(|ring| ring.enable_notification(&*self.ram));
        match more {
            Some(Ok(more)) => more,
            Some(Err(_)) => {
                self.fail(QueueError::UsedRing);
                false
            }
            None => false,
        }
    }

    /// Interrupts the guest for the completions since the last call, if its driver wants that.
    pub(super) fn signal(&mut self) {
        let Some(since) = self.unsignalled.take() else {
            return;
        };
        let Some(ring) = self.ring.as_ref() else {
            return;
        };
        let old = std::mem::replace(&mut self.signalled, ring.next_used());
        match interrupt_is_wanted(ring, &self.ram, old) {
            Ok(true) => self.interrupt(since),
            Ok(false) => {
                self.block.interrupts_suppressed.inc();
                self.watch_reclaim(None);
            }
            Err(error) => self.fail(error),
        }
    }

    /// Interrupts the guest for completions of which the oldest was made at `since`.
    fn interrupt(&mut self, since: Ticks) {
        self.now = self.witness.clock.ticks();
        let ns = self.witness.clock.ns_between(since, self.now);
        self.block.done_to_interrupt.record(ns);
        self.block.interrupts.inc();
        self.block.last_interrupt_at.set(self.now);
        // Before the guest can react to it.
        let reach = self.reach();
        self.watch_reclaim(reach);
        if let Some(reach) = reach {
            self.stages
                .interrupted(self.now, self.signalled, reach.avail);
        }
        self.witness
            .link
            .interrupt
            .trigger(Interrupt::Queue(self.index));
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
mod tests;
