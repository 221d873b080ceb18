//! What every virtio device must do, run over each of them by a mock driver through registers, a
//! real I/O thread and guest memory.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use memory::{Backing, Bytes, Discarder, GuestAddress};
use proptest::prelude::*;

use super::TransportKind;
use super::balloon::counters::BalloonBlock;
use super::balloon::{BalloonDevice, BalloonSpec};
use super::blk::{BlockDevice, BlockSpec, IoEngine};
use super::device::{F_EVENT_IDX, F_VERSION_1};
use super::limiter::LimiterSpec;
use super::mock_driver::{
    DATA, Driver, INDIRECT, Machine, NEXT, QUEUE_SIZE, RAM_BYTES, WRITE, wait_for,
};
use super::net::NetDevice;
use super::rng::EntropyDevice;
use super::vsock::{VsockBlock, VsockDevice, VsockSpec};
use crate::bus::Misuse;

/// The queue that the suite talks to, and a device with a request for it that always succeeds.
struct Subject {
    driver: Driver,
    queue: usize,
    request: Vec<super::mock_driver::Buffer>,
    /// Keeps the other side of a backend.
    _other: Option<UnixDatagram>,
    _folder: tempdir::Folder,
}

mod stages;

pub(super) mod tempdir {
    //! A folder that is gone when the test is over.
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU32, Ordering};

    pub struct Folder(pub PathBuf);

    static NEXT: AtomicU32 = AtomicU32::new(0);

    impl Folder {
        pub fn new() -> Self {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = format!("vitrine-devices-{}-{number}", std::process::id());
            let path = std::env::temp_dir().join(name);
            std::fs::create_dir_all(&path).unwrap();
            Folder(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

fn disk(machine: &mut Machine, id: &str, rings: u64) -> Subject {
    drive(machine, id, rings, IoEngine::Sync)
}

fn background_disk(machine: &mut Machine, id: &str, rings: u64) -> Subject {
    drive(machine, id, rings, IoEngine::Async)
}

fn drive(machine: &mut Machine, id: &str, rings: u64, engine: IoEngine) -> Subject {
    let folder = tempdir::Folder::new();
    let path = folder.0.join("disk");
    std::fs::write(&path, vec![7u8; 64 * 512]).unwrap();
    let device = BlockDevice::open(BlockSpec {
        id: id.into(),
        path,
        read_only: false,
        flush: true,
        limiter: LimiterSpec::default(),
        queues: 1,
        engine,
    });
    let driver = machine.attach(device.unwrap(), rings);
    // A read of sector 0: the header at DATA is all zeros.
    let request = vec![
        (DATA, 16, false),
        (DATA + 0x1000, 512, true),
        (DATA + 0x2000, 1, true),
    ];
    Subject {
        driver,
        queue: 0,
        request,
        _other: None,
        _folder: folder,
    }
}

fn interface(machine: &mut Machine, id: &str, rings: u64) -> Subject {
    let (tap, other) = UnixDatagram::pair().unwrap();
    tap.set_nonblocking(true).unwrap();
    other.set_nonblocking(true).unwrap();
    let spec = crate::virtio::net::tests::stand_in_spec(id);
    let device = NetDevice::with_stand_ins(spec, [OwnedFd::from(tap)]).unwrap();
    let driver = machine.attach(device, rings);
    Subject {
        driver,
        queue: 1,
        request: vec![(DATA, 12, false), (DATA + 0x1000, 60, false)],
        _other: Some(other),
        _folder: tempdir::Folder::new(),
    }
}

/// One with two queue pairs and a control queue, whose driver uses the first pair.
fn wide_interface(machine: &mut Machine, id: &str, rings: u64) -> Subject {
    let (tap, other) = UnixDatagram::pair().unwrap();
    let (second, _) = UnixDatagram::pair().unwrap();
    tap.set_nonblocking(true).unwrap();
    other.set_nonblocking(true).unwrap();
    let spec = crate::virtio::net::tests::stand_in_spec(id);
    let taps = [tap, second].map(OwnedFd::from);
    let device = NetDevice::with_stand_ins(spec, taps).unwrap();
    Subject {
        driver: machine.attach(device, rings),
        queue: 1,
        request: vec![(DATA, 12, false), (DATA + 0x1000, 60, false)],
        _other: Some(other),
        _folder: tempdir::Folder::new(),
    }
}

fn balloon(machine: &mut Machine, id: &str, rings: u64) -> Subject {
    let spec = BalloonSpec {
        id: id.into(),
        pages: 0,
        deflate_on_oom: true,
        statistics_s: 1,
        hinting: true,
        reporting: true,
    };
    let block = BalloonBlock::place(&mut machine.black_box).unwrap();
    let memory = Discarder::new(&machine.ram, Backing::Anonymous);
    let (device, _) = BalloonDevice::new(spec, memory, block).unwrap();
    Subject {
        driver: machine.attach(device, rings),
        queue: 0,
        // Page 0, which nobody uses.
        request: vec![(DATA, 4, false)],
        _other: None,
        _folder: tempdir::Folder::new(),
    }
}

fn entropy(machine: &mut Machine, id: &str, rings: u64) -> Subject {
    Subject {
        driver: machine.attach(
            EntropyDevice::new(id, LimiterSpec::default()).unwrap(),
            rings,
        ),
        queue: 0,
        request: vec![(DATA, 64, true)],
        _other: None,
        _folder: tempdir::Folder::new(),
    }
}

fn sockets(machine: &mut Machine, id: &str, rings: u64) -> Subject {
    let folder = tempdir::Folder::new();
    let spec = VsockSpec {
        name: id.into(),
        guest_cid: 3,
        path: folder.0.join("v"),
    };
    let block = VsockBlock::place(&mut machine.black_box, id).unwrap();
    let driver = machine.attach(VsockDevice::open(spec, block).unwrap(), rings);
    // A reset of a connection that is not there: from 3 to 2, a stream, operation 3.
    let mut header = [0; 44];
    (header[0], header[8], header[28], header[30]) = (3, 2, 1, 3);
    driver.ram.write_slice(&header, GuestAddress(DATA)).unwrap();
    Subject {
        driver,
        queue: 1,
        request: vec![(DATA, 44, false)],
        _other: None,
        _folder: folder,
    }
}

/// Makes a device with a request.
type Make = fn(&mut Machine, &str, u64) -> Subject;

/// Each kind of device over each transport.
fn everywhere() -> impl Iterator<Item = (Make, TransportKind)> {
    let kinds = [TransportKind::Mmio, TransportKind::Pci];
    let makes = [
        disk as Make,
        background_disk,
        interface,
        wide_interface,
        balloon,
        entropy,
        sockets,
    ];
    kinds
        .into_iter()
        .flat_map(move |kind| makes.map(|make| (make, kind)))
}

/// Runs a test over each of them.
fn each(test: impl Fn(&mut Machine, Subject)) {
    for (make, kind) in everywhere() {
        let mut machine = Machine::of(kind);
        let subject = make(&mut machine, "subject", 0x1_0000);
        test(&mut machine, subject);
        assert_eq!(
            machine
                .thread
                .stop(Duration::from_secs(5))
                .map_err(|e| e.to_string()),
            Ok(())
        );
        assert_eq!(machine.failures.try_recv().ok(), None);
    }
}

impl Subject {
    fn send(&mut self, count: usize) {
        for _ in 0..count {
            let request = self.request.clone();
            self.driver.add(self.queue, &request);
        }
    }

    fn seen(&self) -> &super::QueueBlock {
        &self.driver.seen.queues[self.queue]
    }

    fn drain(&self) {
        let mut frame = [0; 2048];
        while self
            ._other
            .as_ref()
            .is_some_and(|other| other.recv(&mut frame).is_ok())
        {}
    }

    fn quiet(&self) {
        let seen = self.seen();
        wait_for("an idle queue", || seen.in_flight.value() == 0);
        assert_eq!(seen.in_flight_since.value(), 0);
        assert_eq!(seen.oldest_since.value(), 0);
    }
}

#[test]
fn requests_kicks_and_completions_are_counted_exactly() {
    each(|_, mut subject| {
        subject.driver.start_plain(0);
        for batch in [1u16, 3, 4] {
            subject.send(usize::from(batch));
            subject.driver.kick(subject.queue);
            let used = subject.driver.wait_used(subject.queue, batch);
            assert_eq!(used.len(), usize::from(batch));
            subject.drain();
        }
        let (queue, seen) = (subject.queue, subject.seen());
        wait_for("the kicks", || seen.kicks.value() == 3);
        subject.quiet();
        assert_eq!((seen.requests.value(), seen.completions.value()), (8, 8));
        assert_eq!(seen.service.count(), 8);
        wait_for("the interrupts", || seen.interrupts.value() >= 3);
        assert_eq!(seen.interrupts_suppressed.value(), 0);
        let operations = &subject.driver.seen.device.operations;
        let count: u64 = operations.iter().map(|row| row.count.value()).sum();
        assert_eq!(count, 8, "{queue}");
        assert_eq!(
            operations.iter().map(|row| row.errors.value()).sum::<u64>(),
            0
        );
        assert_eq!(subject.driver.seen.transport.trapped_kicks.value(), 3);
    });
}

#[test]
fn a_kick_is_counted_however_many_find_nothing() {
    each(|machine, mut subject| {
        subject.driver.start_plain(0);
        subject.driver.settle(&machine.thread);
        for _ in 0..5 {
            subject.driver.kick(subject.queue);
        }
        let seen = subject.seen();
        wait_for("the kicks", || seen.kicks.value() == 5);
        // A kick is counted before the ring is looked at, and that before it is found empty.
        wait_for("an empty ring", || seen.spurious_kicks.value() >= 1);
        subject.driver.settle(&machine.thread);
        assert!(seen.spurious_kicks.value() <= 5);
        assert_eq!(seen.requests.value(), 0);
    });
}

#[test]
fn configuration_past_the_end_is_zero_and_read_at_any_width() {
    each(|_, subject| {
        let transport = &subject.driver.transport;
        for offset in [0x100, 0xef8] {
            for width in [1, 2, 4, 8] {
                let mut data = vec![0xFF; width];
                transport.read_config(offset, &mut data).unwrap();
                assert_eq!(data, vec![0; width]);
            }
        }
        assert!(transport.write_config(0, &[1]).is_err());
        let refused = transport.write_config(0, &[1, 2, 3, 4]);
        assert_eq!(refused, Err(Misuse::State));
        assert_eq!(subject.driver.seen.transport.refused.value(), 2);
    });
}

#[test]
fn a_reset_device_is_as_new_and_serves_again() {
    each(|_, mut subject| {
        for round in 1..=3u64 {
            subject.driver.start_plain(F_EVENT_IDX * (round % 2));
            subject.send(2);
            subject.driver.kick(subject.queue);
            assert_eq!(subject.driver.wait_used(subject.queue, 2).len(), 2);
            subject.drain();
            subject.driver.write(0x70, 0);
            assert_eq!(subject.driver.read(0x70), 0);
            assert_eq!(subject.driver.read(0x60), 0);
            assert_eq!(subject.driver.read(0x44), 0);
            assert_eq!(subject.seen().size.value(), 0);
            assert_eq!(subject.driver.seen.device.resets.value(), round);
        }
        // What is offered to a device that is not running is not taken.
        subject.send(1);
        subject.driver.kick(subject.queue);
        wait_for("the kick", || subject.seen().kicks.value() == 4);
        assert_eq!(subject.seen().requests.value(), 6);
    });
}

#[test]
fn unknown_features_are_refused() {
    each(|_, mut subject| {
        let offered = subject.driver.offered();
        assert!(!subject.driver.start(offered & !F_VERSION_1));
        assert!(!subject.driver.start(offered | 1 << 50));
        assert!(subject.driver.start(offered));
    });
}

#[test]
fn stop_can_be_asked_for_twice_and_leaves_a_dead_but_safe_transport() {
    each(|machine, mut subject| {
        subject.driver.start_plain(0);
        machine.thread.stop(Duration::from_secs(5)).unwrap();
        machine.thread.stop(Duration::from_secs(5)).unwrap();
        subject.driver.kick(subject.queue);
        subject.driver.write(0x70, 0);
        assert_eq!(subject.driver.read(0x70), 15 | 64);
        assert_eq!(subject.driver.seen.transport.resets_missed.value(), 1);
        assert!(machine.thread.pause(Duration::from_secs(1)).is_err());
    });
}

#[test]
fn nothing_is_served_in_a_pause_and_everything_after_it() {
    each(|machine, mut subject| {
        subject.driver.start_plain(0);
        machine.thread.pause(Duration::from_secs(5)).unwrap();
        subject.send(3);
        subject.driver.kick(subject.queue);
        wait_for("the kick", || subject.seen().kicks.value() == 1);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(subject.seen().requests.value(), 0);
        machine.thread.resume(Duration::from_secs(5)).unwrap();
        assert_eq!(subject.driver.wait_used(subject.queue, 3).len(), 3);
        subject.quiet();
    });
}

#[test]
fn with_event_idx_the_driver_decides_when_it_is_interrupted() {
    each(|machine, mut subject| {
        subject.driver.start_plain(F_EVENT_IDX);
        let ring = &subject.driver.queues[subject.queue];
        let used_event = GuestAddress(ring.avail + 4 + 2 * u64::from(QUEUE_SIZE));
        // Only the fifth completion matters.
        subject
            .driver
            .ram
            .write_obj(4u16.to_le(), used_event)
            .unwrap();
        for served in 1..=5u64 {
            subject.send(1);
            subject.driver.kick(subject.queue);
            subject.driver.wait_used(subject.queue, 1);
            subject.drain();
            subject.driver.settle(&machine.thread);
            let seen = subject.seen();
            assert_eq!(
                seen.interrupts.value(),
                u64::from(served == 5),
                "after {served}"
            );
            assert_eq!(seen.interrupts_suppressed.value(), served.min(4));
        }
        assert_eq!(subject.driver.read(0x60), 1);
        subject.driver.write(0x64, 1);
        assert_eq!(subject.driver.read(0x60), 0);
        assert!(subject.driver.interrupt_count() >= 1);
    });
}

#[test]
fn without_event_idx_the_drivers_flag_is_heeded() {
    each(|machine, mut subject| {
        subject.driver.start_plain(0);
        let avail = subject.driver.queues[subject.queue].avail;
        subject
            .driver
            .ram
            .write_obj(1u16.to_le(), GuestAddress(avail))
            .unwrap();
        subject.send(1);
        subject.driver.kick(subject.queue);
        subject.driver.wait_used(subject.queue, 1);
        subject.driver.settle(&machine.thread);
        let seen = subject.seen();
        assert_eq!(
            (seen.interrupts.value(), seen.interrupts_suppressed.value()),
            (0, 1)
        );
    });
}

#[test]
fn more_requests_than_a_turn_are_all_served_after_one_kick() {
    each(|machine, mut subject| {
        subject.driver.queues[subject.queue].size = 256;
        subject.driver.start_plain(0);
        // Activation serves what is there; only the kick is to.
        subject.driver.settle(&machine.thread);
        let parts = subject.request.len();
        let count = 252 / parts;
        subject.send(count);
        subject.driver.kick(subject.queue);
        let mut used = 0;
        while used < count {
            used += subject.driver.wait_used(subject.queue, 1).len();
            subject.drain();
        }
        subject.quiet();
        // A full socket ends turns too, so an interface may never come to the end of one.
        if subject._other.is_none() {
            wait_for("a yield", || subject.seen().yields.value() >= 1);
        }
        assert_eq!(subject.seen().kicks.value(), 1);
    });
}

#[test]
fn a_lost_kick_is_found_counted_and_made_good() {
    each(|machine, mut subject| {
        subject.driver.start_plain(0);
        subject.driver.settle(&machine.thread);
        // Whatever woke the queues after the settling is over.
        std::thread::sleep(Duration::from_millis(50));
        subject.send(1);
        let sent = Instant::now();
        subject.driver.wait_used(subject.queue, 1);
        // A look comes within a second, and the one that believes it soon after.
        let took = sent.elapsed();
        assert!(took < Duration::from_millis(1800), "{took:?}");
        assert_eq!(subject.seen().lost_kicks.value(), 1);
        assert_eq!(subject.seen().kicks.value(), 0);
        assert_eq!(subject.seen().kick_to_pop.count(), 0);
        assert_eq!(subject.seen().kicks_suppressed.value(), 0);
    });
}

/// Breaks the ring of one device and sees the other go on.
fn break_ring(what: &str, break_it: impl Fn(&mut Driver, usize)) {
    // A machine has one balloon, which is none of the bystanders then.
    let others = [interface as Make, disk as Make, disk as Make];
    for ((make, kind), other) in everywhere().zip(others.into_iter().cycle()) {
        let mut machine = Machine::of(kind);
        let mut subject = make(&mut machine, "broken", 0x1_0000);
        let mut bystander = other(&mut machine, "bystander", 0x4_0000);
        subject.driver.start_plain(0);
        bystander.driver.start_plain(0);
        break_it(&mut subject.driver, subject.queue);
        subject.driver.kick(subject.queue);
        let link = subject.driver.link.clone();
        wait_for(what, || link.needs_reset());
        assert_eq!(subject.driver.read(0x70), 15 | 64, "{what}");
        assert_eq!(subject.driver.read(0x60) & 2, 2, "{what}");
        let event = machine.events.recv_timeout(Duration::from_secs(5)).unwrap();
        assert_eq!(event.device, "broken");
        let seen = subject.seen();
        assert_eq!(seen.broken.value(), 1, "{what}: {event:?}");
        assert_ne!(seen.broken_reason.value(), 0);
        assert_eq!(seen.in_flight.value(), 0);
        assert_eq!(seen.oldest_since.value(), 0);
        assert_eq!(subject.driver.seen.device.needs_reset.value(), 1);

        bystander.send(1);
        bystander.driver.kick(bystander.queue);
        assert_eq!(bystander.driver.wait_used(bystander.queue, 1).len(), 1);
        assert!(!bystander.driver.link.needs_reset());

        // The driver's reset makes it whole.
        subject.driver.start_plain(0);
        assert_eq!(subject.driver.read(0x70), 15);
        subject.send(1);
        subject.driver.kick(subject.queue);
        assert_eq!(subject.driver.wait_used(subject.queue, 1).len(), 1);
        subject.quiet();
    }
}

#[test]
fn a_loop_breaks_its_ring_alone() {
    break_ring("a loop", |driver, queue| {
        let table = driver.queues[queue].table;
        driver.descriptor(table, (DATA, 16), NEXT, 1);
        driver.descriptor(table + 16, (DATA, 16), NEXT, 0);
        driver.offer(queue, 0);
    });
}

#[test]
fn a_head_outside_the_table_breaks_its_ring_alone() {
    break_ring("a wild head", |driver, queue| {
        driver.offer(queue, QUEUE_SIZE);
    });
}

#[test]
fn an_available_index_that_leaps_breaks_its_ring_alone() {
    break_ring("a leap", |driver, queue| {
        let avail = driver.queues[queue].avail;
        driver
            .ram
            .write_obj(1000u16.to_le(), GuestAddress(avail + 2))
            .unwrap();
    });
}

#[test]
fn buffers_that_are_none_break_their_ring_alone() {
    for (what, address, bytes) in [
        ("no bytes", DATA, 0),
        ("outside RAM", RAM_BYTES as u64, 16),
        ("across the end of RAM", RAM_BYTES as u64 - 8, 16),
        ("at the end of the world", u64::MAX - 3, 16),
    ] {
        break_ring(what, |driver, queue| {
            driver.add(queue, &[(DATA, 16, false), (address, bytes, true)]);
        });
    }
}

#[test]
fn chains_out_of_order_or_off_the_table_break_their_ring_alone() {
    break_ring("order", |driver, queue| {
        driver.add(queue, &[(DATA, 16, true), (DATA, 16, false)]);
    });
    break_ring("a next outside the table", |driver, queue| {
        let table = driver.queues[queue].table;
        driver.descriptor(table, (DATA, 16), NEXT, QUEUE_SIZE);
        driver.offer(queue, 0);
    });
    break_ring("a nested indirect table", |driver, queue| {
        let table = driver.queues[queue].table;
        driver.descriptor(table, (DATA + 0x100, 16), INDIRECT, 0);
        driver.descriptor(DATA + 0x100, (DATA + 0x100, 16), INDIRECT, 0);
        driver.offer(queue, 0);
    });
    break_ring("a misshapen indirect table", |driver, queue| {
        let table = driver.queues[queue].table;
        driver.descriptor(table, (DATA, 17), INDIRECT, 0);
        driver.offer(queue, 0);
    });
    break_ring("an endless indirect table", |driver, queue| {
        let table = driver.queues[queue].table;
        let pages = 0x2000;
        driver.descriptor(table, (DATA + 0x1_0000, pages * 16), INDIRECT, 0);
        for index in 0..pages {
            let (at, next) = (DATA + 0x1_0000 + u64::from(index) * 16, index as u16 + 1);
            driver.descriptor(at, (DATA, 1), NEXT, next);
        }
        driver.offer(queue, 0);
    });
}

#[test]
fn queues_in_impossible_places_need_a_reset() {
    each(|_, mut subject| {
        for (offset, value) in [
            (0x80, RAM_BYTES as u32),
            (0x90, 0x2001),
            (0xa4, u32::MAX),
            (0x38, 3),
            (0x38, 512),
            (0x38, 0),
        ] {
            let driver = &mut subject.driver;
            for (register, value) in [(0x70, 0), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11)] {
                driver.write(register, value);
            }
            for index in 0..driver.queues.len() as u32 {
                let writes = [
                    (0x30, index),
                    (0x38, 8),
                    (0x80, 0x1000),
                    (0x90, 0x2000),
                    (0xa0, 0x3000),
                    (offset, value),
                    (0x44, 1),
                ];
                for (register, value) in writes {
                    driver.write(register, value);
                }
            }
            driver.write(0x70, 15);
            let link = driver.link.clone();
            wait_for("DEVICE_NEEDS_RESET", || link.needs_reset());
            driver.write(0x70, 0);
            assert_eq!(driver.read(0x70), 0);
        }
    });
}

#[test]
fn a_random_table_never_brings_the_thread_down() {
    each(|machine, mut subject| {
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
            cases: 64,
            failure_persistence: None,
            ..ProptestConfig::default()
        });
        let address = prop_oneof![
            Just(DATA),
            Just(RAM_BYTES as u64 - 64),
            0..RAM_BYTES as u64,
            any::<u64>()
        ];
        let bytes = prop_oneof![Just(16u32), Just(512), 0..128u32, any::<u32>()];
        let flags = prop_oneof![Just(NEXT), Just(WRITE), Just(INDIRECT), 0..8u16];
        let descriptor = (address, bytes, flags, 0..QUEUE_SIZE + 1);
        let table = prop::collection::vec(descriptor, usize::from(QUEUE_SIZE));
        let heads = prop::collection::vec(0..QUEUE_SIZE + 1, 1..8);
        let subject = std::cell::RefCell::new(&mut subject);
        let outcome = runner.run(&(table, heads), |(table, heads)| {
            let subject = &mut *subject.borrow_mut();
            // Rings and data survive what the device writes into them: all is written anew.
            subject.driver.start_plain(0);
            for queue in 0..subject.driver.queues.len() {
                let at = subject.driver.queues[queue].table;
                for (place, (address, bytes, flags, next)) in (0u64..).zip(&table) {
                    // Not over the rings themselves, which the test reads back.
                    let address = if *address < DATA {
                        address + DATA
                    } else {
                        *address
                    };
                    subject
                        .driver
                        .descriptor(at + place * 16, (address, *bytes), *flags, *next);
                }
                for head in &heads {
                    subject.driver.offer(queue, *head);
                }
                subject.driver.kick(queue);
            }
            subject.driver.settle(&machine.thread);
            subject.drain();
            subject.driver.write(0x70, 0);
            prop_assert_eq!(subject.driver.read(0x70), 0);
            prop_assert_eq!(subject.seen().in_flight.value(), 0);
            Ok(())
        });
        outcome.unwrap();
        assert!(machine.failures.try_recv().is_err());
    });
}
