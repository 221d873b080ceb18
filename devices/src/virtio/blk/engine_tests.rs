//! The engine in the background over a stand-in for the host's kernel, which ends requests when the
//! test says so, in any order, or never.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

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
fn a_pause_waits_for_what_is_in_flight_and_begins_nothing() {
    let file = DiskFile::new(&pattern(64 * 512));
    let (machine, mut driver, kernel) = start(file.spec());
    add(&mut driver, 0, 0, 1, 1);
    driver.kick(0);
    kernel.begun(1);
    let late = machine.thread.pause(Duration::from_millis(50));
    assert!(matches!(late, Err(IoThreadError::Deadline { .. })));
    machine.thread.resume(SECOND * 5).unwrap();

    let (other, told) = (kernel.clone(), Instant::now());
    let ending = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        other.end(0, None);
    });
    machine.thread.pause(SECOND * 5).unwrap();
    assert!(told.elapsed() >= Duration::from_millis(200));
    ending.join().unwrap();
    assert_eq!(driver.wait_used(0, 1).len(), 1, "and it was given back");
    assert_eq!(driver.seen.queues[0].in_flight.value(), 0);
    add(&mut driver, 0, 0, 2, 1);
    driver.kick(0);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(kernel.ops(), []);
    machine.thread.resume(SECOND * 5).unwrap();
    kernel.begun(1);
    kernel.end(0, None);
    driver.wait_used(0, 1);
}

#[test]
fn a_reset_waits_and_what_takes_too_long_is_cancelled() {
    let file = DiskFile::new(&pattern(64 * 512));
    let (machine, mut driver, kernel) = start(file.spec());
    // It ends in time.
    add(&mut driver, 0, 0, 1, 1);
    driver.kick(0);
    kernel.begun(1);
    let other = kernel.clone();
    let ending = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        other.end(0, None);
    });
    driver.write(0x70, 0);
    assert_eq!(driver.read(0x70), 0);
    ending.join().unwrap();
    assert_eq!(status(&driver, 1), 0);
    assert_eq!(driver.seen.queues[0].in_flight.value(), 0);

    // It does not, and can be cancelled.
    kernel.state().obedient = true;
    driver.start_plain(0);
    add(&mut driver, 0, 0, 2, 1);
    driver.kick(0);
    kernel.begun(1);
    let began = Instant::now();
    driver.write(0x70, 0);
    assert_eq!(driver.read(0x70), 0);
    assert!(began.elapsed() >= PATIENCE);
    assert_eq!(kernel.state().begun.len(), 0);
    let queue = &driver.seen.queues[0];
    assert_eq!(
        (queue.in_flight.value(), queue.oldest_since.value()),
        (0, 0)
    );
    assert_eq!(driver.seen.device.host_errors.value(), 0);
    assert_eq!(driver.seen.device.operations[0].errors.value(), 1);

    // And then it serves.
    driver.start_plain(0);
    add(&mut driver, 0, 0, 3, 1);
    driver.kick(0);
    kernel.begun(1);
    kernel.end(0, None);
    driver.wait_used(0, 1);
    assert_eq!(status(&driver, 3), 0);
    assert!(machine.events.try_recv().is_err());
}

#[test]
fn a_reset_is_not_confirmed_while_the_host_may_write_the_guests_memory() {
    let file = DiskFile::new(&pattern(64 * 512));
    let (machine, mut driver, kernel) = start(file.spec());
    let front = driver.transport.front_mut();
    front.set_reset_deadline(Duration::from_millis(100));
    add(&mut driver, 0, 0, 1, 1);
    driver.kick(0);
    kernel.begun(1);
    driver.write(0x70, 0);
    assert_ne!(driver.read(0x70) & 64, 0, "DEVICE_NEEDS_RESET");
    // Past waiting and cancelling: the thread hears its owner again, and the gauge tells.
    let refused = machine.thread.pause(PATIENCE + CANCEL_PATIENCE + SECOND);
    assert!(refused.is_err());
    machine.thread.resume(SECOND * 5).unwrap();
    driver.write(0x70, 0);
    assert_ne!(driver.read(0x70), 0);
    assert_eq!(driver.seen.queues[0].in_flight.value(), 1);
    assert_eq!(driver.seen.device.resets.value(), 0);

    // It ends at last. The guest sees its data, but neither a status nor a used buffer.
    kernel.end(0, None);
    wait_for("the reset", || {
        driver.write(0x70, 0);
        driver.read(0x70) == 0
    });
    assert_eq!(driver.seen.queues[0].in_flight.value(), 0);
    assert_eq!(driver.seen.device.resets.value(), 1);
    assert_eq!(status(&driver, 1), 0xFF);
    assert_eq!(driver.wait_used(0, 0), []);
    driver.start_plain(0);
    add(&mut driver, 0, 0, 2, 1);
    driver.kick(0);
    kernel.begun(1);
    kernel.end(0, None);
    driver.wait_used(0, 1);
    assert_eq!(status(&driver, 2), 0);
}

#[test]
fn the_threads_end_gives_back_what_was_begun() {
    let file = DiskFile::new(&pattern(64 * 512));
    let (mut machine, mut driver, kernel) = start(file.spec());
    add(&mut driver, 0, 1, 1, 1);
    driver.kick(0);
    kernel.begun(1);
    let other = kernel.clone();
    let ending = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        other.end(0, None);
    });
    machine.thread.stop(SECOND * 5).unwrap();
    ending.join().unwrap();
    assert_eq!(driver.wait_used(0, 1).len(), 1);
    assert_eq!(driver.seen.queues[0].in_flight.value(), 0);
    assert_eq!(status(&driver, 1), 0);
}

#[test]
fn another_image_waits_for_what_is_in_flight_or_is_refused() {
    let (first, second) = (DiskFile::new(&[1; 4 * 512]), DiskFile::new(&[2; 4 * 512]));
    let (machine, mut driver, kernel) = start(first.spec());
    let change = || {
        let path = Some(second.spec().path);
        let change = DriveChange {
            path,
            ..DriveChange::default()
        };
        let change = DeviceChange::Drive(change);
        machine.thread.change(0, change, SECOND * 5)
    };
    add(&mut driver, 0, 0, 1, 1);
    driver.kick(0);
    kernel.begun(1);
    let error = change().unwrap_err().to_string();
    assert!(error.contains("under way for more than 2 s"), "{error}");
    let other = kernel.clone();
    let ending = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        other.end(0, None);
    });
    change().unwrap();
    ending.join().unwrap();
    driver.wait_used(0, 1);
    assert_eq!(bytes(&driver, 1, 512), [1; 512]);
    add(&mut driver, 0, 0, 1, 1);
    driver.kick(0);
    kernel.begun(1);
    kernel.end(0, None);
    driver.wait_used(0, 1);
    assert_eq!(bytes(&driver, 1, 512), [2; 512]);
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

#[test]
fn after_a_reset_the_host_writes_the_guests_memory_no_more() {
    if try_async().is_err() {
        return;
    }
    // A read of an empty pipe ends when somebody writes.
    let file = DiskFile::new(&pattern(64 * 512));
    let (reader, mut writer) = io::pipe().unwrap();
    let spec = BlockSpec {
        engine: IoEngine::Async,
        ..file.spec()
    };
    let mut device = BlockDevice::open(spec).unwrap();
    device.file = Arc::new(File::from(std::os::fd::OwnedFd::from(reader)));
    let mut machine = Machine::new();
    let mut driver = machine.attach(device, 0x1_0000);
    driver.start_plain(0);
    add(&mut driver, 0, 0, 0, 1);
    add(&mut driver, 0, 0, 0, 1);
    driver.kick(0);
    let seen = driver.seen.clone();
    wait_for("the requests", || seen.queues[0].in_flight.value() == 2);
    driver.write(0x70, 0);
    assert_eq!(driver.read(0x70), 0);
    assert_eq!(seen.queues[0].in_flight.value(), 0);
    std::io::Write::write_all(&mut writer, &[0xEE; 1024]).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(bytes(&driver, 0, 512), [0; 512]);
    // The next driver's request reads what nobody took.
    driver.start_plain(0);
    add(&mut driver, 0, 0, 0, 1);
    driver.kick(0);
    driver.wait_used(0, 1);
    assert_eq!(bytes(&driver, 0, 512), [0xEE; 512]);
}
