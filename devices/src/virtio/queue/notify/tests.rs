//! What is counted at each stage of a request, on a queue whose turns the test takes itself.

use std::sync::Arc;
use std::time::Duration;

use memory::{Bytes, GuestAddress, GuestRam};
use proptest::prelude::*;

use crate::virtio::counters::QueueBlock;
use crate::virtio::device::F_EVENT_IDX;
use crate::virtio::queue::harness::LoneQueue;
use crate::virtio::queue::{Chain, QueueLayout};
use crate::virtio::witness::Done;

const SIZE: u16 = 8;
const LAYOUT: QueueLayout = QueueLayout {
    size: SIZE,
    ready: true,
    descriptors: 0x1000,
    driver: 0x2000,
    device: 0x3000,
};
const DONE: Done = Done {
    operation: 0,
    written: 0,
    payload: 0,
    failed: false,
};
const PAUSE: Duration = Duration::from_millis(5);
const PAUSE_NS: u64 = 5_000_000;

/// A guest's driver and the queue that it talks to.
struct Guest {
    ram: Arc<GuestRam>,
    queue: LoneQueue,
    avail: u16,
}

impl Guest {
    fn new(features: u64) -> Self {
        let mut guest = Guest::unset();
        guest.activate(features);
        guest
    }

    fn unset() -> Self {
        let ram = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 1 << 16)]).unwrap());
        let queue = LoneQueue::new(Arc::clone(&ram), SIZE).unwrap();
        let guest = Guest {
            ram,
            queue,
            avail: 0,
        };
        for place in 0..u64::from(SIZE) {
            let mut descriptor = [0; 16];
            descriptor[..8].copy_from_slice(&0x8000u64.to_le_bytes());
            descriptor[8] = 16;
            let at = GuestAddress(LAYOUT.descriptors + place * 16);
            guest.ram.write_slice(&descriptor, at).unwrap();
            guest.word(LAYOUT.driver + 4 + place * 2, place as u16);
        }
        guest
    }

    fn activate(&mut self, features: u64) {
        self.queue.activate(&LAYOUT, features).unwrap();
        self.queue.begin_turn();
    }

    fn word(&self, at: u64, word: u16) {
        self.ram.write_obj(word.to_le(), GuestAddress(at)).unwrap();
    }

    /// Makes more buffers available.
    fn offer(&mut self, count: u16) {
        self.avail = self.avail.wrapping_add(count);
        self.word(LAYOUT.driver + 2, self.avail);
    }

    /// Asks for an interrupt when the used index passes `index`, having read what is before it.
    fn used_event(&self, index: u16) {
        self.word(LAYOUT.driver + 4 + u64::from(SIZE) * 2, index);
    }

    /// The turn of a kick for `count` more buffers begins.
    fn kick(&mut self, count: u16) {
        self.offer(count);
        self.queue.begin_turn();
        self.queue.kicked(1);
    }

    /// Takes the next request, in another turn if this one took too long.
    fn take(&mut self) -> Chain {
        self.queue.runner.request().unwrap_or_else(|| {
            assert!(self.queue.end_turn());
            self.queue.begin_turn();
            self.queue.runner.request().unwrap()
        })
    }

    fn complete(&mut self, chain: Chain) {
        self.queue.runner.complete(chain, DONE);
    }

    /// Serves what there is, in as many turns as it takes.
    fn serve(&mut self) {
        loop {
            while let Some(chain) = self.queue.runner.request() {
                self.complete(chain);
            }
            if !self.queue.end_turn() {
                return;
            }
            self.queue.begin_turn();
        }
    }

    fn seen(&self) -> &QueueBlock {
        &self.queue.seen
    }

    /// Requests, those with a kick, those that needed none.
    fn came(&self) -> (u64, u64, u64) {
        let seen = self.seen();
        (
            seen.requests.value(),
            seen.kick_to_pop.count(),
            seen.kicks_suppressed.value(),
        )
    }
}

#[test]
fn each_stage_counts_once() {
    let mut guest = Guest::new(F_EVENT_IDX);
    guest.used_event(2);
    guest.kick(3);
    guest.serve();
    assert_eq!(guest.came(), (3, 3, 0));
    let seen = guest.seen();
    assert_eq!((seen.kicks.value(), seen.spurious_kicks.value()), (1, 0));
    assert_eq!((seen.completions.value(), seen.service.count()), (3, 3));
    assert_eq!(
        (seen.interrupts.value(), seen.done_to_interrupt.count()),
        (1, 1)
    );
    let first = seen.last_interrupt_at.value();
    assert_ne!(first, 0);
    assert_eq!(seen.interrupt_to_reclaim.count(), 0);

    guest.used_event(3);
    guest.kick(1);
    assert_eq!(guest.seen().interrupt_to_reclaim.count(), 1);
    guest.serve();
    assert_eq!(guest.came(), (4, 4, 0));
    assert_eq!(guest.seen().interrupts.value(), 2);
    assert_eq!(guest.seen().done_to_interrupt.count(), 2);
    assert!(guest.seen().last_interrupt_at.value() > first);
}

#[test]
fn an_interrupt_that_is_not_wanted_has_no_time() {
    let mut guest = Guest::new(F_EVENT_IDX);
    guest.used_event(5);
    guest.kick(2);
    guest.serve();
    let seen = guest.seen();
    assert!(seen.interrupts_suppressed.value() >= 1);
    assert_eq!(
        (seen.interrupts.value(), seen.done_to_interrupt.count()),
        (0, 0)
    );
    assert_eq!(seen.last_interrupt_at.value(), 0);
}

#[test]
fn requests_that_come_while_the_device_works_need_no_kick() {
    let mut guest = Guest::new(F_EVENT_IDX);
    guest.kick(1);
    let first = guest.take();
    guest.offer(2);
    guest.complete(first);
    guest.serve();
    assert_eq!(guest.came(), (3, 1, 2));
    guest.kick(1);
    guest.serve();
    assert_eq!(guest.came(), (4, 2, 2));
}

#[test]
fn requests_of_activations_resumes_and_lost_kicks_are_told_apart() {
    let mut guest = Guest::unset();
    guest.offer(1);
    guest.activate(0);
    guest.serve();
    assert_eq!(guest.came(), (1, 0, 0));
    // Kicked in a pause, whose length is not the device's.
    guest.kick(1);
    guest.queue.resumed();
    guest.queue.begin_turn();
    guest.serve();
    assert_eq!(guest.came(), (2, 0, 0));
    guest.offer(1);
    assert!(!guest.queue.look_around());
    assert!(guest.queue.look_around());
    guest.queue.begin_turn();
    guest.serve();
    assert_eq!(guest.came(), (3, 0, 0));
    assert_eq!(guest.seen().lost_kicks.value(), 1);
}

#[test]
fn a_buffer_that_waits_for_data_is_no_slow_kick() {
    let mut guest = Guest::new(0);
    guest.kick(3);
    let first = guest.queue.runner.take().unwrap();
    guest.complete(first);
    let second = guest.queue.runner.take().unwrap();
    guest.queue.runner.give_back(std::iter::once(second));
    guest.queue.end_turn();
    assert_eq!(guest.came(), (1, 1, 0));
    guest.queue.begin_turn();
    for _ in 0..2 {
        let chain = guest.queue.runner.take().unwrap();
        guest.complete(chain);
    }
    guest.queue.end_turn();
    assert_eq!(guest.came(), (3, 1, 0));
}

#[test]
fn each_stage_takes_the_time_that_it_takes() {
    let mut guest = Guest::new(F_EVENT_IDX);
    guest.used_event(1);
    guest.kick(2);
    let first = guest.take();
    std::thread::sleep(PAUSE);
    guest.complete(first);
    let second = guest.take();
    let seen = guest.seen();
    // The first was taken at once, the second waited for it.
    assert_eq!(seen.kick_to_pop.count(), 2);
    assert!(seen.kick_to_pop.sum() >= PAUSE_NS);
    assert_eq!(seen.kick_to_pop.sum(), seen.kick_to_pop.max());
    assert!(seen.service.max() >= PAUSE_NS);
    assert_eq!(seen.in_flight.value(), 1);

    guest.queue.end_turn();
    guest.queue.begin_turn();
    guest.complete(second);
    std::thread::sleep(PAUSE);
    guest.queue.end_turn();
    assert_eq!(guest.seen().done_to_interrupt.count(), 1);
    assert!(guest.seen().done_to_interrupt.max() >= PAUSE_NS);

    std::thread::sleep(PAUSE);
    guest.used_event(2);
    guest.kick(1);
    assert_eq!(guest.seen().interrupt_to_reclaim.count(), 1);
    assert!(guest.seen().interrupt_to_reclaim.max() >= PAUSE_NS);
}

#[test]
fn a_kick_counts_from_when_the_thread_turned_to_it() {
    let mut guest = Guest::new(0);
    let noticed = observe::Clock::process().ticks();
    std::thread::sleep(PAUSE);
    guest.offer(1);
    guest.queue.begin_turn();
    guest.queue.kicked_at(1, noticed);
    guest.serve();
    assert_eq!(guest.came(), (1, 1, 0));
    assert!(guest.seen().kick_to_pop.max() >= PAUSE_NS);
}

#[test]
fn the_oldest_request_is_followed_through_any_order() {
    let mut guest = Guest::new(0);
    let mut held = Vec::new();
    let mut since = Vec::new();
    for _ in 0..3 {
        guest.kick(1);
        std::thread::sleep(Duration::from_millis(1));
        held.push(guest.take());
        guest.queue.end_turn();
        since.push(guest.seen().oldest_since.value());
    }
    assert!(since[0] > 0 && since[1] == since[0] && since[2] == since[0]);
    assert_eq!(guest.seen().in_flight_since.value(), since[0]);
    let second = held.remove(1);
    guest.complete(second);
    assert_eq!(guest.seen().oldest_since.value(), since[0]);
    let first = held.remove(0);
    guest.complete(first);
    let third = guest.seen().oldest_since.value();
    assert!(third > since[0]);
    assert_eq!(guest.seen().in_flight_since.value(), since[0]);
    let third = held.remove(0);
    guest.complete(third);
    let seen = guest.seen();
    assert_eq!((seen.oldest_since.value(), seen.in_flight.value()), (0, 0));
}

#[test]
fn a_refused_request_is_the_oldest_no_more() {
    let mut guest = Guest::new(0);
    guest.kick(1);
    let chain = guest.take();
    assert_ne!(guest.seen().oldest_since.value(), 0);
    guest.queue.runner.reject(chain);
    assert_eq!(guest.seen().oldest_since.value(), 0);
    assert_eq!(guest.seen().in_flight.value(), 0);
}

#[test]
fn the_look_around_tells_what_the_guest_has_not_read() {
    let mut guest = Guest::new(F_EVENT_IDX);
    guest.kick(3);
    guest.serve();
    let interrupts = guest.seen().interrupts.value();
    for (event, unread) in [(0, 3), (1, 2), (1, 2), (3, 0), (6, 0)] {
        guest.used_event(event);
        guest.queue.look_around();
        assert_eq!(guest.seen().unread_completions.value(), unread, "{event}");
    }
    // The second look found what the first had waited for: a time of at least that between them.
    assert_eq!(guest.seen().interrupt_to_reclaim.count(), 1);
    assert_eq!(guest.seen().interrupts.value(), interrupts);

    let mut plain = Guest::new(0);
    plain.kick(3);
    plain.serve();
    plain.queue.look_around();
    assert_eq!(plain.seen().unread_completions.value(), 0);
}

#[test]
fn what_an_idle_queue_is_found_to_have_done_has_no_time() {
    for (features, seconds) in [(F_EVENT_IDX, 0), (0, 1)] {
        let mut guest = Guest::new(features);
        guest.kick(1);
        guest.serve();
        guest.used_event(1);
        guest.queue.look_around();
        assert_eq!(guest.seen().interrupt_to_reclaim.count(), 0);
        // Without EVENT_IDX, only the next buffers are a sign.
        guest.kick(1);
        assert_eq!(guest.seen().interrupt_to_reclaim.count(), seconds);
    }
}

#[test]
fn a_reset_ends_what_is_so_and_keeps_what_was() {
    let mut guest = Guest::new(F_EVENT_IDX);
    guest.kick(2);
    let first = guest.take();
    guest.complete(first);
    let second = guest.take();
    guest.queue.end_turn();
    guest.queue.look_around();
    let seen = guest.seen();
    assert_ne!(seen.oldest_since.value(), 0);
    assert_eq!(seen.unread_completions.value(), 1);
    let at = seen.last_interrupt_at.value();
    guest.queue.deactivate();
    let check = |guest: &Guest| {
        let seen = guest.seen();
        assert_eq!((seen.in_flight.value(), seen.oldest_since.value()), (0, 0));
        assert_eq!(seen.unread_completions.value(), 0);
        assert_eq!(seen.last_interrupt_at.value(), at);
        assert_eq!(guest.came(), (2, 2, 0));
        assert_eq!(seen.service.count(), 1);
        assert_eq!(seen.done_to_interrupt.count(), 1);
    };
    check(&guest);
    // A chain of the former life changes nothing in the next.
    guest.avail = 0;
    guest.offer(0);
    guest.activate(F_EVENT_IDX);
    guest.complete(second);
    guest.queue.end_turn();
    check(&guest);
}

proptest! {
    /// Whatever the guest writes into its side of the ring, and whenever: nothing panics, gauges
    /// stay within the queue, and the stages fit together.
    #[test]
    fn hostile_indices_break_no_count(
        event_idx: bool,
        steps in prop::collection::vec((0u8..8, any::<u16>()), 1..80),
    ) {
        let mut guest = Guest::new(if event_idx { F_EVENT_IDX } else { 0 });
        let mut held = Vec::new();
        for (what, value) in steps {
            match what {
                0 => guest.offer(value),
                1 => guest.offer(value % 4),
                2 => guest.used_event(value),
                3 => guest.kick(value % 4),
                4 => held.extend(guest.queue.runner.request()),
                5 if !held.is_empty() => {
                    let chain = held.swap_remove(usize::from(value) % held.len());
                    guest.complete(chain);
                }
                6 => {
                    guest.queue.end_turn();
                    guest.queue.look_around();
                    guest.queue.begin_turn();
                }
                7 if value % 8 == 0 => guest.queue.resumed(),
                7 if value % 8 == 1 => {
                    guest.queue.deactivate();
                    guest.activate(if event_idx { F_EVENT_IDX } else { 0 });
                }
                _ => {}
            }
            let seen = guest.seen();
            prop_assert!(seen.in_flight.value() <= u64::from(SIZE));
            prop_assert!(seen.unread_completions.value() <= u64::from(SIZE));
            prop_assert_eq!(seen.in_flight.value() == 0, seen.oldest_since.value() == 0);
            let (requests, kicked, unasked) = guest.came();
            prop_assert!(kicked + unasked <= requests);
            prop_assert_eq!(seen.service.count(), seen.completions.value());
            prop_assert_eq!(seen.done_to_interrupt.count(), seen.interrupts.value());
            prop_assert!(seen.interrupt_to_reclaim.count() <= seen.interrupts.value());
        }
    }
}
