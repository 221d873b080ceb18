use super::*;
use crate::virtio::device::{ConfigSpace, DeviceProfile, TRANSPORT_FEATURES};
use crate::virtio::mock_driver::{DATA, Driver, Machine, wait_for};
use crate::virtio::{DeviceEventKind, Done};
use observe::Activity;

/// What the device does with a request.
#[derive(Clone, Copy)]
enum Vice {
    None,
    Panic,
    Sleep(Duration),
    RefuseToStart,
}

struct Rogue(Vice);

impl VirtioDevice for Rogue {
    fn profile(&self) -> DeviceProfile {
        DeviceProfile {
            device_type: 42,
            name: "rogue".into(),
            features: TRANSPORT_FEATURES,
            queue_max_sizes: vec![16; 3],
            config: Arc::new(ConfigSpace::new(&[])),
            operations: &["only"],
            drop_causes: &[],
            queue_names: Vec::new(),
        }
    }

    fn activate(&mut self, _: u64, _: &mut [QueueRunner]) -> io::Result<()> {
        match self.0 {
            Vice::RefuseToStart => Err(io::Error::other("the host has none left")),
            _ => Ok(()),
        }
    }

    fn queue_ready(&mut self, index: usize, queues: &mut [QueueRunner]) {
        while let Some(chain) = queues[index].request() {
            match self.0 {
                Vice::Panic => panic!("a fault of the device"),
                Vice::Sleep(time) => std::thread::sleep(time),
                Vice::None | Vice::RefuseToStart => {}
            }
            let done = Done {
                operation: 0,
                written: 1,
                payload: 0,
                failed: false,
            };
            queues[index].complete(chain, done);
        }
    }

    fn reset(&mut self) {}
}

#[test]
fn a_panic_ends_the_thread_and_not_the_vmm() {
    let mut machine = Machine::new();
    let mut driver = machine.attach(Rogue(Vice::Panic), 0x1_0000);
    driver.start_plain(0);
    driver.add(0, &[(DATA, 1, true)]);
    driver.kick(0);
    let said = machine.failures.recv_timeout(Duration::from_secs(60));
    assert_eq!(said.unwrap(), "a fault of the device");
    assert_eq!(driver.read(0x70), 15 | 64);
    let last = u64::from(Activity::Ended as u8);
    wait_for("the end", || machine.thread.block.heartbeat.state() == last);
    // The request that it died of can still be seen.
    assert_eq!(driver.seen.queues[0].in_flight.value(), 1);
    assert_eq!(driver.seen.queues[0].requests.value(), 1);
    machine.thread.stop(Duration::from_secs(5)).unwrap();
}

#[test]
fn a_reset_that_comes_too_late_is_counted_and_can_be_tried_again() {
    let mut machine = Machine::new();
    let slow = Rogue(Vice::Sleep(Duration::from_millis(300)));
    let mut driver = machine.attach(slow, 0x1_0000);
    let front = driver.transport.front_mut();
    front.set_reset_deadline(Duration::from_millis(20));
    driver.start_plain(0);
    driver.add(0, &[(DATA, 1, true)]);
    driver.kick(0);
    let seen = driver.seen.clone();
    wait_for("the request", || seen.queues[0].in_flight.value() == 1);
    assert_ne!(seen.queues[0].in_flight_since.value(), 0);
    driver.write(0x70, 0);
    assert_eq!(driver.read(0x70), 15 | 64);
    assert_eq!(driver.seen.transport.resets_missed.value(), 1);
    let stuck = machine.thread.pause(Duration::from_millis(20)).unwrap_err();
    assert_eq!(stuck.to_string(), "io-test did not pause within 20 ms");
    machine.thread.resume(Duration::from_secs(5)).unwrap();
    wait_for("the late reset", || {
        driver.write(0x70, 0);
        driver.read(0x70) == 0
    });
    assert_eq!(driver.seen.device.resets.value(), 1);
}

#[test]
fn a_device_that_cannot_start_asks_for_a_reset_and_says_why() {
    let mut machine = Machine::new();
    let mut driver = machine.attach(Rogue(Vice::RefuseToStart), 0x1_0000);
    driver.start_plain(0);
    let event = machine
        .events
        .recv_timeout(Duration::from_secs(60))
        .unwrap();
    let reason = "the host has none left".to_owned();
    assert_eq!(event.kind, DeviceEventKind::NotStarted { reason });
    assert_eq!(driver.read(0x70), 15 | 64);
}

#[test]
fn a_thread_that_ends_leaves_no_descriptor_behind() {
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mut counts = Vec::new();
    for _ in 0..20 {
        let mut machine = Machine::new();
        let mut driver = machine.attach(Rogue(Vice::None), 0x1_0000);
        driver.start_plain(0);
        driver.write(0x70, 0);
        drop(driver);
        drop(machine);
        counts.push(open());
    }
    // Other tests open files meanwhile; a leak would add at least three in every round.
    assert!(counts[19] < counts[0] + 40, "{counts:?}");
}

#[test]
fn a_kick_waits_from_when_the_thread_woke_while_others_are_served() {
    const LONG: Duration = Duration::from_millis(50);
    let from = Instant::now();
    let mut machine = Machine::new();
    let mut driver = machine.attach(Rogue(Vice::Sleep(LONG)), 0x1_0000);
    driver.start_plain(0);
    driver.settle(&machine.thread);
    let requests = |driver: &Driver| driver.seen.queues[0].requests.value();
    for queue in 0..3 {
        driver.add(queue, &[(DATA, 1, true)]);
        driver.kick(queue);
        // The kicks of the others come while the thread is busy, so it finds both at once.
        wait_for("the first request", || requests(&driver) == 1);
    }
    for queue in 0..3 {
        driver.wait_used(queue, 1);
    }
    driver.settle(&machine.thread);
    let waited = |queue: usize| &driver.seen.queues[queue].kick_to_pop;
    assert!((0..3).all(|queue| waited(queue).count() == 1));
    let most = waited(1).max().max(waited(2).max());
    assert!(u128::from(most) >= LONG.as_nanos());
    assert!(u128::from(most) < from.elapsed().as_nanos());
    machine.thread.stop(Duration::from_secs(5)).unwrap();
}

#[test]
fn no_message_is_left_lying_that_comes_while_the_thread_wakes() {
    let mut machine = Machine::new();
    let mut driver = machine.attach(Rogue(Vice::None), 0x1_0000);
    driver.start_plain(0);
    for _ in 0..50_000 {
        // The message may be read in the kick's turn, and the next one comes in its own. One that
        // nobody woke the thread for would lie there until the deadline of `settle`.
        driver.kick(0);
        driver.settle(&machine.thread);
    }
    machine.thread.stop(Duration::from_secs(5)).unwrap();
}
