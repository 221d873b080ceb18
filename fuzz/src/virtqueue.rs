//! A queue whose rings and descriptors are the input, and whose device does any of the things
//! that devices do, in any order, while the guest goes on changing its memory.

use std::cell::RefCell;
use std::sync::Arc;

use devices::virtio::device::F_EVENT_IDX;
use devices::virtio::queue::harness::LoneQueue;
use devices::virtio::queue::{QueueLayout, TURN_REQUESTS};
use devices::virtio::vectors::{GuestByte, MAX_VECTORS};
use devices::virtio::{Chain, Done};
use memory::{Bytes, GuestAddress, GuestRam};

use super::input::Input;

const RAM_BYTES: usize = 64 << 10;
const MAX_SIZE: u16 = 256;
/// Where the rings begin. Not at 0, where virtio-queue takes a ring for one that is not set up.
const RINGS: usize = 0x100;
/// Bytes of the script; what follows is guest memory from [`RINGS`] on.
const SCRIPT_BYTES: usize = 32;
/// Chains that the device keeps at most.
const MAX_HELD: usize = 600;

struct Machine {
    queue: LoneQueue,
    ram: Arc<GuestRam>,
}

thread_local! {
    static MACHINE: RefCell<Machine> = RefCell::new(Machine::new());
}

impl Machine {
    fn new() -> Self {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), RAM_BYTES)]);
        let ram = Arc::new(ram.expect("64 KiB of memory"));
        let queue = LoneQueue::new(Arc::clone(&ram), MAX_SIZE);
        Machine {
            queue: queue.expect("a black box"),
            ram,
        }
    }
}

/// Runs the target: 2 bytes of layout, the script, the guest's memory.
pub fn run(bytes: &[u8]) {
    MACHINE.with_borrow_mut(|machine| {
        let mut input = Input(bytes);
        let (kind, size) = (input.u8(), input.u8());
        let layout = layout(kind, size);
        let script = input.slice(SCRIPT_BYTES);
        let mut memory = vec![0; RAM_BYTES];
        let given = input.slice(RAM_BYTES - RINGS);
        memory[RINGS..RINGS + given.len()].copy_from_slice(given);
        machine
            .ram
            .write_slice(&memory, GuestAddress(0))
            .expect("inside");
        let mut device = Device {
            queue: &mut machine.queue,
            ram: &machine.ram,
            layout,
            features: if kind & 1 == 0 { 0 } else { F_EVENT_IDX },
            held: Vec::new(),
            status: Vec::new(),
        };
        if device.start() {
            for step in script.chunks(2) {
                device.step(step[0], step.get(1).copied().unwrap_or(0));
            }
        }
        device.queue.deactivate();
        assert_eq!(device.queue.in_flight(), 0);
        assert_eq!(device.queue.seen.oldest_since.value(), 0);
        let seen = &device.queue.seen;
        let told = seen.kick_to_pop.count() + seen.kicks_suppressed.value();
        assert!(told <= seen.requests.value());
        assert_eq!(seen.service.count(), seen.completions.value());
        assert_eq!(seen.done_to_interrupt.count(), seen.interrupts.value());
        assert!(seen.interrupt_to_reclaim.count() <= seen.interrupts.value());
    });
}

/// The available ring, the descriptors and the used ring, one after the other, for most inputs.
fn layout(kind: u8, size: u8) -> QueueLayout {
    let size = 1u16 << (size % 9);
    let driver = RINGS as u64;
    let descriptors = driver + (u64::from(size) * 2 + 6).next_multiple_of(16);
    let device = descriptors + u64::from(size) * 16;
    let good = QueueLayout {
        size,
        ready: true,
        descriptors,
        driver,
        device,
    };
    match kind >> 1 {
        // All in one place: what the device writes it reads again.
        1 => QueueLayout {
            descriptors: driver,
            device: driver,
            ..good
        },
        2 => QueueLayout {
            device: RAM_BYTES as u64 - u64::from(size) * 8 - 8,
            ..good
        },
        3 => QueueLayout {
            device: RAM_BYTES as u64 - u64::from(size) * 8 - 4,
            ..good
        },
        4 => QueueLayout {
            driver: u64::MAX - u64::from(size),
            ..good
        },
        5 => QueueLayout {
            size: size - 1,
            ..good
        },
        6 => QueueLayout {
            descriptors: 8,
            ..good
        },
        _ => good,
    }
}

struct Device<'a> {
    queue: &'a mut LoneQueue,
    ram: &'a GuestRam,
    layout: QueueLayout,
    features: u64,
    /// Chains, and whether they were taken as buffers for data to come.
    held: Vec<(Chain, bool)>,
    status: Vec<GuestByte>,
}

impl Device<'_> {
    fn start(&mut self) -> bool {
        let started = self.queue.activate(&self.layout, self.features).is_ok();
        if started {
            self.queue.begin_turn();
        }
        started
    }

    fn step(&mut self, what: u8, value: u8) {
        match what % 14 {
            0 | 1 => self.requests(value),
            2 => self.take(value),
            3 => self.complete_first(u32::from(value)),
            4 => self.complete_all(u32::from(value)),
            5 => self.give_back(value),
            6 => {
                if let Some((chain, _)) = self.pick(value) {
                    self.queue.runner.reject(chain);
                }
            }
            7 => self.guest_adds(value.cast_signed() as u16),
            8 | 9 => {
                self.queue.end_turn();
                self.queue.begin_turn();
            }
            10 => {
                self.queue.kicked(u64::from(value));
                self.queue.look_around();
                if value & 1 == 1 {
                    self.queue.resumed();
                }
            }
            11 => self.copy(value),
            12 => self.guest_writes(value),
            _ => self.restart(value),
        }
        self.check();
    }

    /// No number grows beyond the queue, and the oldest request is there when one is.
    fn check(&self) {
        let (in_flight, seen) = (self.queue.in_flight(), &self.queue.seen);
        assert!(in_flight <= self.layout.size);
        assert_eq!(seen.in_flight.value(), u64::from(in_flight));
        assert_eq!(seen.oldest_since.value() == 0, in_flight == 0);
        assert!(seen.unread_completions.value() <= u64::from(self.layout.size));
    }

    fn hold(&mut self, chain: Chain, taken: bool) {
        let vectors = chain.readable.bytes() + chain.writable.bytes();
        assert!(vectors > 0, "a chain without a buffer");
        assert!(vectors <= 2 * MAX_VECTORS * RAM_BYTES);
        if self.held.len() < MAX_HELD {
            self.held.push((chain, taken));
        } else {
            self.finish(chain, 0);
        }
    }

    fn finish(&mut self, chain: Chain, written: u32) {
        let done = Done {
            operation: (written % 3) as u8,
            written,
            payload: u64::from(written),
            failed: written == 1,
        };
        self.queue.runner.complete(chain, done);
    }

    fn requests(&mut self, most: u8) {
        let mut count = 0;
        while count < u32::from(most) {
            let Some(chain) = self.queue.runner.request() else {
                break;
            };
            count += 1;
            self.hold(chain, false);
        }
        assert!(count <= TURN_REQUESTS, "a turn without end");
    }

    fn take(&mut self, most: u8) {
        for _ in 0..most {
            let Some(chain) = self.queue.runner.take() else {
                break;
            };
            self.hold(chain, true);
        }
    }

    fn pick(&mut self, value: u8) -> Option<(Chain, bool)> {
        let count = self.held.len();
        (count > 0).then(|| self.held.swap_remove(usize::from(value) % count))
    }

    fn complete_first(&mut self, written: u32) {
        if let Some((chain, _)) = self.pick(0) {
            self.finish(chain, written);
        }
    }

    fn complete_all(&mut self, written: u32) {
        let done = Done {
            operation: 0,
            written,
            payload: 0,
            failed: false,
        };
        let chains = self.held.drain(..).map(|(chain, _)| (chain, done));
        self.queue.runner.complete_all(chains);
    }

    fn give_back(&mut self, most: u8) {
        let last = self.held.iter().rev().take_while(|(_, taken)| *taken);
        let from = self.held.len() - last.count().min(usize::from(most));
        let chains = self.held.drain(from..).map(|(chain, _)| chain);
        self.queue.runner.give_back(chains);
    }

    /// The guest moves the available index.
    fn guest_adds(&mut self, count: u16) {
        let at = GuestAddress(self.layout.driver + 2);
        let index: u16 = self.ram.read_obj(at).expect("inside");
        let index = index.wrapping_add(count);
        self.ram.write_obj(index, at).expect("inside");
    }

    /// The guest changes its rings under the device.
    fn guest_writes(&mut self, value: u8) {
        let at = GuestAddress(RINGS as u64 + u64::from(value) * 5 % 1024);
        self.ram.write_obj(value, at).expect("inside");
    }

    /// The device does its work, perhaps in the rings.
    fn copy(&mut self, value: u8) {
        let Some((chain, _)) = self.held.last_mut() else {
            return;
        };
        let mut data = [0; 512];
        let offset = usize::from(value) * 3;
        let read = chain.readable.copy_to(offset, &mut data);
        assert_eq!(
            read,
            chain
                .readable
                .bytes()
                .saturating_sub(offset)
                .min(data.len())
        );
        let room = chain.writable.bytes();
        let written = chain
            .writable
            .copy_from(offset, &data[..usize::from(value)]);
        assert_eq!(written, room.saturating_sub(offset).min(usize::from(value)));
        if value & 1 == 1
            && let Some(status) = chain.writable.split_last_byte()
        {
            assert_eq!(chain.writable.bytes(), room - 1);
            self.status.push(status);
        }
        if value & 2 == 2 {
            chain.readable.advance(usize::from(value));
        }
        if value & 4 == 4 {
            let mut all = self.queue.runner.vectors();
            let _ = all.append(&chain.readable) && all.append(&chain.writable);
        }
        for status in &self.status {
            status.set(value);
        }
    }

    /// The driver resets the device and takes it again, while chains of its former life are held.
    fn restart(&mut self, value: u8) {
        self.queue.deactivate();
        if value & 1 == 1 {
            self.start();
        }
        if value & 2 == 2 {
            self.complete_all(7);
        }
    }
}
