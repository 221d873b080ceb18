//! A guest's driver for tests: it builds rings in guest memory and reaches its device by register
//! accesses alone, through a real I/O thread.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use memory::{Bytes, GuestAddress, GuestRam};
use observe::{BlackBox, Meta};

use super::{
    DeviceCounters, DeviceEvent, DeviceLink, IoThread, IoThreadSpec, TransportKind, VirtioDevice,
};
use crate::bus::Misuse;
use crate::virtio::device::F_VERSION_1;
use crate::virtio::mock_transport::MockTransport;

pub const RAM_BYTES: usize = 4 << 20;
pub const QUEUE_SIZE: u16 = 16;
/// Data of the tests lies from here on, rings below.
pub const DATA: u64 = 1 << 20;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// A thread, a device on it, and what they count.
pub struct Machine {
    pub thread: IoThread,
    pub events: Receiver<DeviceEvent>,
    pub failures: Receiver<String>,
    pub black_box: BlackBox,
    pub ram: GuestRam,
    kind: TransportKind,
}

impl Machine {
    pub fn new() -> Self {
        Machine::of(TransportKind::Mmio)
    }

    pub fn of(kind: TransportKind) -> Self {
        let meta = Meta {
            vm_id: "test".into(),
            version: "0".into(),
        };
        let mut black_box = BlackBox::anonymous(1 << 20, &meta).unwrap();
        let block = black_box.section("thread/io-test", &[]).unwrap();
        let (send, events) = sync_channel(64);
        let (fail, failures) = sync_channel(1);
        let thread = IoThread::spawn(IoThreadSpec {
            name: "test".into(),
            block,
            events: Some(std::sync::Arc::new(move |event| drop(send.try_send(event)))),
            on_failure: Box::new(move |what| fail.send(what).unwrap()),
        });
        Machine {
            thread: thread.unwrap(),
            events,
            failures,
            black_box,
            ram: GuestRam::from_ranges(&[(GuestAddress(0), RAM_BYTES)]).unwrap(),
            kind,
        }
    }

    /// Attaches a device whose rings lie from `rings` on.
    pub fn attach(&mut self, device: impl VirtioDevice + 'static, rings: u64) -> Driver {
        let profile = device.profile();
        let counters = DeviceCounters::place(&mut self.black_box, &profile).unwrap();
        let seen = counters.clone();
        let device = Box::new(device);
        let front = self.thread.attach(device, counters, &self.ram).unwrap();
        let link = Arc::clone(front.link());
        let transport = MockTransport::new(front, self.kind, profile.device_type);
        let queues = (0..profile.queue_max_sizes.len() as u64)
            .map(|index| Ring::new(rings + index * 0x4000))
            .collect();
        Driver {
            link,
            transport,
            ram: self.ram.clone(),
            queues,
            seen,
        }
    }
}

/// A buffer in a chain: address, bytes, whether the device writes it.
pub type Buffer = (u64, u32, bool);

pub struct Ring {
    pub table: u64,
    pub avail: u64,
    pub used: u64,
    pub size: u16,
    pub avail_index: u16,
    pub used_index: u16,
    pub next_free: u16,
}

impl Ring {
    fn new(at: u64) -> Self {
        Ring {
            table: at,
            avail: at + 0x1000,
            used: at + 0x2000,
            size: QUEUE_SIZE,
            avail_index: 0,
            used_index: 0,
            next_free: 0,
        }
    }
}

pub struct Driver {
    pub link: Arc<DeviceLink>,
    pub transport: MockTransport,
    pub ram: GuestRam,
    pub queues: Vec<Ring>,
    pub seen: DeviceCounters,
}

impl Driver {
    pub fn read(&self, offset: u64) -> u32 {
        self.transport.read(offset)
    }

    pub fn try_write(&self, offset: u64, value: u32) -> Result<(), Misuse> {
        self.transport.write(offset, value)
    }

    pub fn write(&self, offset: u64, value: u32) {
        self.try_write(offset, value).unwrap();
    }

    pub fn offered(&self) -> u64 {
        self.write(0x14, 1);
        let high = u64::from(self.read(0x10));
        self.write(0x14, 0);
        (high << 32) | u64::from(self.read(0x10))
    }

    /// Takes the device through the whole initialisation; true when it accepted `features`.
    pub fn start(&mut self, features: u64) -> bool {
        self.write(0x70, 0);
        self.write(0x70, 1);
        self.write(0x70, 3);
        for (page, bits) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(0x24, page);
            self.write(0x20, bits);
        }
        self.write(0x70, 11);
        if self.read(0x70) & 8 == 0 {
            return false;
        }
        self.transport.set_up_interrupts(self.queues.len());
        for index in 0..self.queues.len() {
            self.set_up_queue(index);
        }
        self.write(0x70, 15);
        true
    }

    /// As [`Driver::start`] with what every driver takes, and `more`.
    pub fn start_plain(&mut self, more: u64) {
        assert!(self.start(F_VERSION_1 | more));
    }

    fn set_up_queue(&mut self, index: usize) {
        let ring = &mut self.queues[index];
        (ring.avail_index, ring.used_index, ring.next_free) = (0, 0, 0);
        for base in [ring.avail, ring.used] {
            self.ram
                .write_slice(&[0; 0x200], GuestAddress(base))
                .unwrap();
        }
        let (table, avail, used, size) = (ring.table, ring.avail, ring.used, ring.size);
        self.write(0x30, index as u32);
        self.write(0x38, u32::from(size));
        for (offset, address) in [(0x80, table), (0x90, avail), (0xa0, used)] {
            self.write(offset, address as u32);
            self.write(offset + 4, (address >> 32) as u32);
        }
        self.write(0x44, 1);
    }

    pub fn descriptor(&self, at: u64, buffer: (u64, u32), flags: u16, next: u16) {
        let at = GuestAddress(at);
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&buffer.0.to_le_bytes());
        bytes[8..12].copy_from_slice(&buffer.1.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.ram.write_slice(&bytes, at).unwrap();
    }

    /// Puts a chain of these buffers into the ring and gives its head. Does not kick.
    pub fn add(&mut self, queue: usize, buffers: &[Buffer]) -> u16 {
        let ring = &mut self.queues[queue];
        let (head, size, table) = (ring.next_free, ring.size, ring.table);
        ring.next_free = (head + buffers.len() as u16) % size;
        for (place, (address, bytes, write)) in (0u16..).zip(buffers) {
            let more = usize::from(place) + 1 < buffers.len();
            let flags = (u16::from(more) * NEXT) | (u16::from(*write) * WRITE);
            let (index, next) = ((head + place) % size, (head + place + 1) % size);
            self.descriptor(
                table + u64::from(index) * 16,
                (*address, *bytes),
                flags,
                next,
            );
        }
        self.offer(queue, head);
        head
    }

    /// Makes `head` available.
    pub fn offer(&mut self, queue: usize, head: u16) {
        let ring = &mut self.queues[queue];
        let slot = ring.avail + 4 + u64::from(ring.avail_index % ring.size) * 2;
        ring.avail_index = ring.avail_index.wrapping_add(1);
        let (index, avail) = (ring.avail_index, ring.avail);
        self.ram
            .write_obj(head.to_le(), GuestAddress(slot))
            .unwrap();
        let order = std::sync::atomic::Ordering::SeqCst;
        self.ram
            .store(index.to_le(), GuestAddress(avail + 2), order)
            .unwrap();
    }

    pub fn kick(&self, queue: usize) {
        self.write(0x50, queue as u32);
    }

    /// The used elements since the last call, after waiting for `count` of them.
    pub fn wait_used(&mut self, queue: usize, count: u16) -> Vec<(u32, u32)> {
        let ring = &self.queues[queue];
        let (used, size, seen) = (ring.used, ring.size, ring.used_index);
        let index = || {
            let order = std::sync::atomic::Ordering::SeqCst;
            u16::from_le(self.ram.load(GuestAddress(used + 2), order).unwrap())
        };
        wait_for("used buffers", || index().wrapping_sub(seen) >= count);
        let all = index().wrapping_sub(seen);
        let elements = (0..all).map(|place| {
            let slot = u64::from(seen.wrapping_add(place) % size);
            let element: u64 = self
                .ram
                .read_obj(GuestAddress(used + 4 + slot * 8))
                .unwrap();
            (element as u32, (element >> 32) as u32)
        });
        let elements = elements.collect();
        self.queues[queue].used_index = seen.wrapping_add(all);
        elements
    }

    /// Waits until the I/O thread has done all that was asked before: kicks read, queues served.
    pub fn settle(&self, thread: &IoThread) {
        thread.pause(Duration::from_secs(5)).unwrap();
        thread.resume(Duration::from_secs(5)).unwrap();
    }

    pub fn interrupt_count(&self) -> u64 {
        self.transport.interrupt_count()
    }
}

pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < until, "{what} did not come in time");
        std::thread::sleep(Duration::from_micros(200));
    }
}
