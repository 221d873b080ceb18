//! The engine in the background over a stand-in for the host's kernel, which ends requests when the
//! test says so, in any order, or never.

use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::tests::{DiskFile, pattern};
use super::work::{Pending, Task};
use super::*;
use crate::virtio::DeviceEventKind;
use crate::virtio::IoThreadError;
use crate::virtio::job::{Background, Op};
use crate::virtio::link::{event, signal};
use crate::virtio::mock_driver::{DATA, Driver, Machine, wait_for};
use crate::virtio::uring::UringError;

mod ends;

const SECOND: Duration = Duration::from_secs(1);

#[derive(Default)]
struct State {
    begun: Vec<Task>,
    ended: VecDeque<(Task, io::Result<usize>)>,
    submissions: u32,
    /// Whether requests end when they are cancelled.
    obedient: bool,
    room: usize,
}

/// The test's side of the stand-in.
#[derive(Clone)]
struct Kernel {
    state: Arc<Mutex<State>>,
    told: Arc<EventFd>,
}

impl Kernel {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn begun(&self, count: usize) {
        wait_for("requests in the background", || {
            self.state().begun.len() == count
        });
    }

    fn ops(&self) -> Vec<Op> {
        self.state().begun.iter().map(|task| task.op).collect()
    }

    /// Ends the request at `place` among those that are begun, as `result` says or as it goes.
    fn end(&self, place: usize, result: Option<io::Result<usize>>) {
        let mut state = self.state();
        let task = state.begun.remove(place);
        let result = result.unwrap_or_else(|| task.step());
        state.ended.push_back((task, result));
        drop(state);
        signal(&self.told);
    }

    fn fail(&self, place: usize, errno: i32) {
        self.end(place, Some(Err(io::Error::from_raw_os_error(errno))));
    }
}

impl Background<Pending> for Kernel {
    fn descriptor(&self) -> RawFd {
        self.told.as_raw_fd()
    }

    fn acknowledge(&mut self) {
        let _ = self.told.read();
    }

    fn wake(&mut self) {
        signal(&self.told);
    }

    fn has_room(&self) -> bool {
        self.in_flight() < self.state().room
    }

    fn in_flight(&self) -> usize {
        let state = self.state();
        state.begun.len() + state.ended.len()
    }

    fn start(&mut self, task: Task) -> Option<Task> {
        self.state().begun.push(task);
        None
    }

    fn submit(&mut self) {
        self.state().submissions += 1;
    }

    fn ended(&mut self) -> Option<(Task, io::Result<usize>)> {
        self.state().ended.pop_front()
    }

    fn wait(&mut self, limit: Duration) {
        std::thread::sleep(limit.min(Duration::from_millis(1)));
    }

    fn cancel(&mut self) {
        let count = self.state().begun.len();
        for _ in 0..count {
            if self.state().obedient {
                self.fail(0, libc::ECANCELED);
            }
        }
    }
}

/// A drive over the stand-in, with its driver started.
fn start(spec: BlockSpec) -> (Machine, Driver, Kernel) {
    let kernel = Kernel {
        state: Arc::default(),
        told: Arc::new(event().unwrap()),
    };
    kernel.state().room = 100;
    let mut device = BlockDevice::open(spec).unwrap();
    let queues = device.spec.queue_count();
    device.background = Some(Async::new(Box::new(kernel.clone()), queues));
    let mut machine = Machine::new();
    let mut driver = machine.attach(device, 0x1_0000);
    let many = u64::from(queues > 1) << blk::VIRTIO_BLK_F_MQ;
    driver.start_plain(many | 1 << blk::VIRTIO_BLK_F_FLUSH);
    driver.settle(&machine.thread);
    (machine, driver, kernel)
}

/// Where the data and the status of a request of sector `sector` are.
fn place(sector: u64) -> (u64, u64) {
    (DATA + 0x1_0000 + sector * 512, DATA + 0x8_0000 + sector)
}

/// Asks for `sectors` sectors from `sector` on, without a kick.
fn add(driver: &mut Driver, queue: usize, kind: u32, sector: u64, sectors: u32) -> u16 {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    let at = DATA + sector * 16;
    let (data, status) = place(sector);
    driver.ram.write_slice(&header, GuestAddress(at)).unwrap();
    driver.ram.write_obj(0xFFu8, GuestAddress(status)).unwrap();
    let mut buffers = vec![(at, 16, false)];
    if sectors > 0 {
        buffers.push((data, sectors * 512, kind == 0));
    }
    buffers.push((status, 1, true));
    driver.add(queue, &buffers)
}

fn status(driver: &Driver, sector: u64) -> u8 {
    let (_, status) = place(sector);
    driver.ram.read_obj(GuestAddress(status)).unwrap()
}

fn bytes(driver: &Driver, sector: u64, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    let (data, _) = place(sector);
    driver
        .ram
        .read_slice(&mut bytes, GuestAddress(data))
        .unwrap();
    bytes
}

#[test]
fn requests_are_given_back_in_the_order_in_which_they_end() {
    let file = DiskFile::new(&pattern(64 * 512));
    let (_machine, mut driver, kernel) = start(file.spec());
    let heads: Vec<_> = (0..4).map(|at| add(&mut driver, 0, 0, at, 1)).collect();
    let before = kernel.state().submissions;
    driver.kick(0);
    kernel.begun(4);
    wait_for("the submission", || kernel.state().submissions > before);
    let seen = driver.seen.clone();
    let queue = &seen.queues[0];
    wait_for("the gauge", || queue.in_flight.value() == 4);
    let oldest = queue.oldest_since.value();
    for (place, left) in [(3, 3), (1, 2), (1, 1)] {
        kernel.end(place, None);
        wait_for("the gauge", || queue.in_flight.value() == left);
        assert_eq!(queue.oldest_since.value(), oldest, "it is there still");
    }
    kernel.end(0, None);
    let used = driver.wait_used(0, 4);
    let order: Vec<u32> = used.iter().map(|(head, _)| *head).collect();
    assert_eq!(order, [3, 1, 2, 0].map(|at| u32::from(heads[at])));
    for sector in 0..4 {
        assert_eq!(status(&driver, sector), 0);
        let at = sector as usize * 512;
        assert_eq!(
            bytes(&driver, sector, 512),
            pattern(64 * 512)[at..at + 512],
            "{sector}"
        );
    }
    wait_for("an idle queue", || queue.in_flight.value() == 0);
    assert_eq!(
        (queue.oldest_since.value(), queue.in_flight_since.value()),
        (0, 0)
    );
    assert_eq!(queue.service.count(), 4);
    let row = &seen.device.operations[0];
    assert_eq!((row.count.value(), row.bytes.value()), (4, 4 * 512));
    assert_eq!(seen.device.io_engine.value(), 2);
}

#[test]
fn what_the_kernel_cut_short_goes_on_where_it_stopped() {
    let file = DiskFile::new(&pattern(64 * 512));
    let (_machine, mut driver, kernel) = start(file.spec());
    add(&mut driver, 0, 0, 3, 2);
    driver.kick(0);
    kernel.begun(1);
    assert_eq!(kernel.ops(), [Op::Read(3 * 512)]);
    kernel.fail(0, libc::EINTR);
    wait_for("another attempt", || kernel.ops() == [Op::Read(3 * 512)]);
    kernel.end(0, Some(Ok(700)));
    wait_for("the rest", || kernel.ops() == [Op::Read(3 * 512 + 700)]);
    kernel.end(0, None);
    assert_eq!(driver.wait_used(0, 1)[0].1, 1025);
    let expected = &pattern(64 * 512)[3 * 512..];
    assert_eq!(bytes(&driver, 3, 1024)[700..], expected[700..1024]);
    assert_eq!(bytes(&driver, 3, 700), [0; 700], "nobody read these");

    // A file that ends early is an error, and so is a disk that takes nothing.
    for kind in [0, 1] {
        add(&mut driver, 0, kind, 5, 1);
        driver.kick(0);
        kernel.begun(1);
        kernel.end(0, Some(Ok(0)));
        driver.wait_used(0, 1);
        assert_eq!(status(&driver, 5), 1, "{kind}");
    }
}

#[test]
fn the_hosts_errors_are_told_with_their_place() {
    let file = DiskFile::new(&pattern(64 * 512));
    let (machine, mut driver, kernel) = start(file.spec());
    add(&mut driver, 0, 1, 9, 1);
    add(&mut driver, 0, 1, 7, 1);
    driver.kick(0);
    kernel.begun(2);
    kernel.fail(1, libc::ENOSPC);
    driver.wait_used(0, 1);
    kernel.end(0, None);
    driver.wait_used(0, 1);
    assert_eq!((status(&driver, 7), status(&driver, 9)), (1, 0));
    let told = machine.events.recv_timeout(SECOND * 5).unwrap().kind;
    let expected = DeviceEventKind::HostError {
        operation: "write",
        sector: Some(7),
        errno: libc::ENOSPC,
    };
    assert_eq!(told, expected);
    let row = &driver.seen.device.operations[1];
    assert_eq!((row.count.value(), row.errors.value()), (2, 1));
}

#[test]
fn what_there_is_no_room_for_stays_in_the_ring_until_there_is() {
    let file = DiskFile::new(&pattern(64 * 512));
    let spec = BlockSpec {
        queues: 2,
        ..file.spec()
    };
    let (machine, mut driver, kernel) = start(spec);
    kernel.state().room = 2;
    for sector in 0..3 {
        add(&mut driver, 0, 0, sector, 1);
    }
    driver.kick(0);
    kernel.begun(2);
    // Another queue, whose kick finds no room.
    add(&mut driver, 1, 0, 3, 1);
    driver.kick(1);
    // Longer than the look for lost kicks takes.
    std::thread::sleep(Duration::from_millis(1500));
    let seen = driver.seen.clone();
    for (queue, taken) in seen.queues.iter().zip([2, 0]) {
        assert_eq!(queue.lost_kicks.value(), 0, "it is not the guest's fault");
        assert_eq!(queue.requests.value(), taken);
    }
    for _ in 0..4 {
        wait_for("a request", || !kernel.ops().is_empty());
        assert!(kernel.ops().len() <= 2);
        kernel.end(0, None);
    }
    assert_eq!(driver.wait_used(0, 3).len(), 3);
    assert_eq!(driver.wait_used(1, 1).len(), 1);
    driver.settle(&machine.thread);
    assert_eq!(kernel.ops(), []);
}

#[test]
fn a_host_without_io_uring_is_told_of_and_the_drive_works() {
    let file = DiskFile::new(&pattern(64 * 512));
    for (errno, words) in [
        (libc::ENOSYS, "5.11 or newer"),
        (libc::EPERM, "kernel.io_uring_disabled"),
        (libc::ENOMEM, "ulimit -l"),
        (libc::EMFILE, "open files"),
    ] {
        let refused = io::Error::from_raw_os_error(errno);
        let mut device = BlockDevice::open(file.spec()).unwrap();
        let made = Err(UringError::from(refused));
        (device.background, device.fall_back) = engine::chosen(IoEngine::Async, 1, || made);
        assert!(device.background.is_none());
        let mut machine = Machine::new();
        let mut driver = machine.attach(device, 0x1_0000);
        driver.start_plain(0);
        let told = machine.events.recv_timeout(SECOND * 5).unwrap().kind;
        let text = told.to_string();
        assert!(text.contains("works as with Sync"), "{text}");
        assert!(text.contains(words), "{text}");
        add(&mut driver, 0, 0, 1, 1);
        driver.kick(0);
        driver.wait_used(0, 1);
        assert_eq!(status(&driver, 1), 0);
        assert_eq!(driver.seen.device.io_engine.value(), 1);
    }
}

#[test]
fn a_ring_of_the_hosts_does_the_same_work() {
    // Where there is none, the drive has to have fallen back.
    let number = match try_async() {
        Ok(()) => 2,
        Err(_) => 1,
    };
    let file = DiskFile::new(&pattern(64 * 512));
    let mut machine = Machine::new();
    let spec = BlockSpec {
        engine: IoEngine::Async,
        ..file.spec()
    };
    let mut driver = machine.attach(BlockDevice::open(spec).unwrap(), 0x1_0000);
    driver.start_plain(0);
    for round in 0..50u64 {
        for sector in 0..4 {
            add(&mut driver, 0, 0, (round % 8) * 4 + sector, 1);
        }
        driver.kick(0);
        assert!(!driver.wait_used(0, 4).is_empty());
        for sector in (round % 8) * 4..(round % 8) * 4 + 4 {
            let at = sector as usize * 512;
            let expected = &pattern(64 * 512)[at..at + 512];
            assert_eq!(
                (status(&driver, sector), &*bytes(&driver, sector, 512)),
                (0, expected)
            );
        }
    }
    assert_eq!(driver.seen.device.io_engine.value(), number);
    machine.thread.stop(SECOND * 5).unwrap();
    assert_eq!(driver.seen.queues[0].completions.value(), 200);
}
