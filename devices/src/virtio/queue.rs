//! The queue runner: the only code that touches [`virtio_queue::Queue`].
//!
//! It takes requests from the ring, gives them back, suppresses kicks while it works, interrupts
//! the guest when the driver wants it, and counts all of that, once for every device. A guest that
//! breaks a ring gets DEVICE_NEEDS_RESET; the runner then gives nothing more until the next
//! activation, and everything around it goes on.
//!
//! A device's loop is
//! ```text
//! while let Some(chain) = queue.request() { ...; queue.complete(chain, done) }
//! ```
//! which ends when the ring is empty and kicks are wanted again, or when the turn is used up; then
//! the runner asks for another turn by itself.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

mod error;
#[cfg(any(test, feature = "fuzzing"))]
pub mod harness;
mod in_flight;
mod notify;
mod report;
mod ring;
mod stages;

use std::sync::Arc;

use memory::GuestRam;
use observe::{Block, Ticks};
use virtio_queue::{Queue, QueueOwnedT, QueueT};

pub use self::error::QueueError;
use self::in_flight::InFlight;
pub use self::ring::{Chain, QueueLayout};
use self::ring::{pop, put_unseen, reach, validated};
use self::stages::{Came, Stages};
use super::counters::QueueBlock;
use super::device::F_EVENT_IDX;
use super::telling::Telling;
use super::witness::{Done, Witness};

/// Requests in one turn at most; another turn follows after the thread's other work.
pub const TURN_REQUESTS: u32 = 64;
/// A turn ends when it took this long.
const TURN_NS: u64 = 5_000_000;
/// A completion waits no longer than this for others to share its interrupt.
const SIGNAL_NS: u64 = 100_000;
/// One queue of one device, for the device's whole life.
pub struct QueueRunner {
    index: u16,
    max_size: u16,
    ram: Arc<GuestRam>,
    block: Arc<Block<QueueBlock>>,
    witness: Arc<Witness>,
    ring: Option<Queue>,
    broken: Option<QueueError>,
    /// How often the operator was told that it broke.
    telling: Telling,
    /// Counts activations, so that a chain of a former one is recognised.
    epoch: u32,
    in_flight: InFlight,
    stages: Stages,
    suppressed: bool,
    now: Ticks,
    turn_began: Ticks,
    turn_left: u32,
    again: bool,
    /// When the oldest completion was made that no interrupt decision has covered.
    unsignalled: Option<Ticks>,
    /// The used index at the last interrupt decision.
    signalled: u16,
    /// The ring position at which a kick seemed to be missing at the last look.
    suspect: Option<u16>,
    spare: Vec<Chain>,
}

impl QueueRunner {
    pub(crate) fn new(
        index: u16,
        max_size: u16,
        ram: Arc<GuestRam>,
        block: Arc<Block<QueueBlock>>,
        witness: Arc<Witness>,
    ) -> Self {
        QueueRunner {
            index,
            max_size,
            ram,
            block,
            witness,
            ring: None,
            broken: None,
            telling: Telling::default(),
            epoch: 0,
            in_flight: InFlight::new(max_size),
            stages: Stages::default(),
            suppressed: false,
            now: 0,
            turn_began: 0,
            turn_left: 0,
            again: false,
            unsignalled: None,
            signalled: 0,
            suspect: None,
            spare: Vec::new(),
        }
    }

    /// Sets the queue up where the driver put it. A layout that is not ready leaves it unused.
    pub(crate) fn activate(
        &mut self,
        layout: &QueueLayout,
        features: u64,
    ) -> Result<(), QueueError> {
        self.deactivate();
        if !layout.ready {
            return Ok(());
        }
        let mut ring = validated(layout, self.max_size, &self.ram)?;
        ring.set_event_idx(features & F_EVENT_IDX != 0);
        ring.set_ready(true);
        if let Some(reach) = reach(&ring, &self.ram) {
            self.stages.known(reach.avail);
        }
        self.ring = Some(ring);
        self.block.size.set(u64::from(layout.size));
        Ok(())
    }

    /// Gives the queue up.
    pub(crate) fn deactivate(&mut self) {
        self.limit(false);
        self.epoch = self.epoch.wrapping_add(1);
        (self.ring, self.broken, self.unsignalled, self.suspect) = (None, None, None, None);
        (self.stages, self.signalled) = (Stages::default(), 0);
        self.in_flight.clear();
        (self.suppressed, self.again) = (false, false);
        self.block.size.set(0);
        self.show_in_flight();
        self.block.unread_completions.set(0);
        self.block.starved_since.set(0);
        self.block.broken_since.set(0);
    }

    /// Marks the ring broken: nothing more comes from it until the driver resets the device.
    pub fn fail(&mut self, error: QueueError) {
        if self.broken.is_none() {
            self.broken = Some(error);
            self.block.broken.inc();
            self.block.broken_reason.set(error.number());
            let now = self.witness.clock.ticks();
            self.block.broken_since.set(now);
            let telling = &self.telling;
            self.witness.broken(self.index, &error, telling, now);
        }
    }

    /// The fault that stopped the queue, if one did.
    pub fn broken(&self) -> Option<QueueError> {
        self.broken
    }

    /// Takes the next request. `None` when the ring is empty (and kicks are wanted again), the
    /// turn is used up, or the ring is broken.
    pub fn request(&mut self) -> Option<Chain> {
        self.request_if(|_| true)
    }

    /// As [`QueueRunner::request`]. One that `may` refuses stays in the ring, by the operator's limit:
    /// who refused it asks for a turn of the queue when it may go on.
    pub fn request_if(&mut self, may: impl FnOnce(&Chain) -> bool) -> Option<Chain> {
        if self.turn_left == 0 || self.turn_is_over() {
            self.again = self.want_kicks();
            return None;
        }
        self.turn_left = self.turn_left.saturating_sub(1);
        let mut chain = self.take()?;
        let may = may(&chain);
        self.limit(!may);
        if !may {
            self.give_back(std::iter::once(chain));
            return None;
        }
        self.begin(&mut chain);
        Some(chain)
    }

    /// Takes the next chain without counting it as a request: a buffer for data to come. It is
    /// counted when it is completed, and not at all when it is given back.
    pub fn take(&mut self) -> Option<Chain> {
        self.suppress_kicks(true);
        if let Some(chain) = self.pop() {
            return Some(chain);
        }
        // Kicks are wanted again; what came just before that is taken now.
        if !self.want_kicks() {
            return None;
        }
        self.suppress_kicks(true);
        self.pop()
    }

    /// Puts `chains`, the last that were taken, back into the ring.
    pub fn give_back(&mut self, chains: impl Iterator<Item = Chain>) {
        for chain in chains {
            if chain.epoch == self.epoch
                && let Some(ring) = self.ring.as_mut()
            {
                ring.go_to_previous_position();
            }
            self.recycle(chain);
        }
    }

    /// Gives a request back to the guest.
    pub fn complete(&mut self, chain: Chain, done: Done) {
        self.complete_all(std::iter::once((chain, done)));
    }

    /// Gives several chains back at once: the guest sees all of them or none. A driver of the
    /// network does not wait for the rest of a packet.
    pub fn complete_all(&mut self, chains: impl Iterator<Item = (Chain, Done)>) {
        let mut waiting: Option<(Chain, Done)> = None;
        self.now = self.witness.clock.ticks();
        for next in chains {
            if let Some((chain, done)) = waiting.replace(next) {
                self.put_used(chain, done, false);
            }
        }
        if let Some((chain, done)) = waiting {
            self.put_used(chain, done, true);
        }
        let since = *self.unsignalled.get_or_insert(self.now);
        if self.witness.clock.ns_between(since, self.now) > SIGNAL_NS {
            self.signal();
        }
    }

    /// Writes one element of the used ring; the last of a batch also moves the index, which makes
    /// all of them visible.
    fn put_used(&mut self, mut chain: Chain, done: Done, last: bool) {
        self.begin(&mut chain);
        let Some(ring) = self.ring.as_mut().filter(|_| chain.epoch == self.epoch) else {
            return;
        };
        let put = match last {
            true => ring.add_used(&*self.ram, chain.head, done.written).is_ok(),
            false => put_unseen(ring, &self.ram, chain.head, done.written),
        };
        self.block.used_index.set(u64::from(ring.next_used()));
        self.count_completion(&chain, &done);
        self.recycle(chain);
        if !put {
            self.fail(QueueError::UsedRing);
        }
    }

    /// Refuses a request that the device can make nothing of: the ring is broken.
    pub fn reject(&mut self, chain: Chain) {
        let head = chain.head;
        if chain.counted && chain.epoch == self.epoch {
            self.leave_flight(&chain);
        }
        self.recycle(chain);
        self.fail(QueueError::TooSmall(head));
    }

    fn leave_flight(&mut self, chain: &Chain) {
        self.in_flight.leave(chain.place);
        self.show_in_flight();
    }

    fn show_in_flight(&self) {
        self.block.in_flight.set(u64::from(self.in_flight.count()));
        self.block.oldest_since.set(self.in_flight.oldest());
        if self.in_flight.count() == 0 {
            self.block.in_flight_since.set(0);
        }
    }

    fn count_completion(&mut self, chain: &Chain, done: &Done) {
        let ns = self.witness.clock.ns_between(chain.taken, self.now);
        self.leave_flight(chain);
        self.block.completions.inc();
        self.block.bytes_read.add(chain.readable_bytes as u64);
        self.block.bytes_written.add(u64::from(done.written));
        self.block.service.record(ns);
        self.witness.done(done, ns, self.now);
    }

    /// A new turn begins at `now`.
    pub(crate) fn begin_turn(&mut self, now: Ticks) {
        (self.now, self.turn_began, self.turn_left) = (now, now, TURN_REQUESTS);
    }

    /// The turn ends: interrupts what must be. True when the queue wants another turn.
    pub(crate) fn end_turn(&mut self) -> bool {
        self.signal();
        if let Some(ring) = &self.ring {
            self.block.avail_index.set(u64::from(ring.next_avail()));
        }
        let again = std::mem::take(&mut self.again) && self.broken.is_none();
        self.block.yields.add(u64::from(again));
        if !again {
            self.stages.turns_are_over();
        }
        again
    }

    fn turn_is_over(&self) -> bool {
        self.witness.clock.ns_between(self.turn_began, self.now) > TURN_NS
    }

    fn begin(&mut self, chain: &mut Chain) {
        if chain.counted || chain.epoch != self.epoch {
            return;
        }
        (chain.counted, chain.taken) = (true, self.now);
        chain.place = self.in_flight.enter(self.now);
        self.block.requests.inc();
        match chain.came {
            Came::Kicked(ns) => self.block.kick_to_pop.record(ns),
            Came::Unasked => self.block.kicks_suppressed.inc(),
            Came::Otherwise => {}
        }
        self.show_in_flight();
        if self.in_flight.count() == 1 {
            self.block.in_flight_since.set(self.now);
        }
    }

    fn recycle(&mut self, mut chain: Chain) {
        chain.readable.clear();
        chain.writable.clear();
        if self.spare.len() < usize::from(self.max_size) {
            self.spare.push(chain);
        }
    }

    fn pop(&mut self) -> Option<Chain> {
        if self.broken.is_some() {
            return None;
        }
        let ring = self.ring.as_mut()?;
        let mut chain = self.spare.pop().unwrap_or_else(|| Chain::new(&self.ram));
        (chain.epoch, chain.counted) = (self.epoch, false);
        let (position, size, now) = (ring.next_avail(), ring.size(), self.now);
        let popped = pop(ring, &self.ram, self.in_flight.count(), &mut chain);
        match popped {
            Ok(true) => {
                let clock = &self.witness.clock;
                let since = |at| clock.ns_between(at, now);
                chain.came = self.stages.came(position, size, since);
                return Some(chain);
            }
            Ok(false) => {}
            Err(error) => self.fail(error),
        }
        self.recycle(chain);
        None
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
mod tests;
