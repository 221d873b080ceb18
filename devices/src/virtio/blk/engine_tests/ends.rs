//! Pauses, resets, the thread's end and another image, while requests are in flight.

use super::*;

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
