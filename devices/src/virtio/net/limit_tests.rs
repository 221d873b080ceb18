//! Limits of an interface, under a mock driver and with a socket for a tap.

use std::time::Duration;

use super::tests::{Wire, ip, stand_in_spec, tap_spec, with_tap};
use super::*;
use crate::virtio::mock_driver::{DATA, Machine, wait_for};
use crate::virtio::{BucketSpec, DriveChange, LimiterSpec};

const HOUR_MS: u64 = 3_600_000;
const NONE: Option<BucketSpec> = Some(BucketSpec {
    size: 0,
    one_time_burst: 0,
    refill_ms: 0,
});
const FREE: LimiterSpec = LimiterSpec {
    bandwidth: NONE,
    ops: NONE,
};

fn bucket(size: u64, refill_ms: u64) -> Option<BucketSpec> {
    Some(BucketSpec {
        size,
        one_time_burst: 0,
        refill_ms,
    })
}

/// So many, and then none for an hour.
fn only_ops(size: u64) -> LimiterSpec {
    LimiterSpec {
        bandwidth: None,
        ops: bucket(size, HOUR_MS),
    }
}

fn only_bytes(size: u64) -> LimiterSpec {
    LimiterSpec {
        bandwidth: bucket(size, HOUR_MS),
        ops: None,
    }
}

fn wire(rx_limiter: LimiterSpec, tx_limiter: LimiterSpec) -> Wire {
    let spec = TapSpec {
        rx_limiter,
        tx_limiter,
        ..stand_in_spec("eth0")
    };
    Wire::with(spec, 0)
}

fn change(wire: &Wire, change: NetChange) -> Result<(), String> {
    let (change, within) = (DeviceChange::Network(change), Duration::from_secs(5));
    let done = wire.machine.thread.change(0, change, within);
    done.map_err(|error| error.to_string())
}

/// The guest sends frames of 100 bytes.
fn guest_sends(wire: &mut Wire, count: u64) {
    for _ in 0..count {
        wire.driver
            .add(TX, &[(DATA, HEADER_BYTES as u32 + 100, false)]);
    }
    wire.driver.kick(TX);
}

fn gives_buffers(wire: &mut Wire, count: u64) {
    for place in 0..count {
        let at = DATA + 0x1_0000 + place * 0x1000;
        wire.driver.add(RX, &[(at, 2000, true)]);
    }
    wire.driver.kick(RX);
}

#[test]
fn frames_over_the_limit_stay_in_the_guests_ring_until_it_is_lifted() {
    // A frame that does not fit what is left waits; one that fits exactly does not.
    for (limiter, through) in [(only_ops(2), 2), (only_bytes(300), 3)] {
        let mut wire = wire(LimiterSpec::default(), limiter);
        guest_sends(&mut wire, 5);
        let done = wire.driver.wait_used(TX, through);
        assert_eq!(done.len(), usize::from(through));
        wire.driver.settle(&wire.machine.thread);
        assert_eq!(wire.driver.wait_used(TX, 0), []);
        assert_eq!(wire.tx().limited.value(), 1);
        assert_ne!(wire.tx().limited_since.value(), 0);
        assert_eq!(wire.tx().requests.value(), u64::from(through));
        assert_eq!(wire.tx().in_flight.value(), 0);
        assert_eq!(wire.rx().limited.value(), 0);
        let free = NetChange {
            tx_limiter: FREE,
            ..NetChange::default()
        };
        change(&wire, free).unwrap();
        wire.driver.wait_used(TX, 5 - through);
        let mut frame = [0; 200];
        for _ in 0..5 {
            assert_eq!(wire.host.recv(&mut frame).unwrap(), HEADER_BYTES + 100);
        }
        wait_for("the end", || wire.tx().limited_since.value() == 0);
        assert!(wire.tx().limited_ns.value() > 0);
    }
}

#[test]
fn packets_over_the_limit_stay_in_the_tap_until_it_is_lifted() {
    // Bytes are known only with the packet: the third goes into debt.
    for (limiter, through) in [(only_ops(2), 2), (only_bytes(201), 3)] {
        let mut wire = wire(limiter, LimiterSpec::default());
        gives_buffers(&mut wire, 8);
        for _ in 0..5 {
            wire.host_sends(HEADER_BYTES + 100);
        }
        let done = wire.driver.wait_used(RX, through);
        assert_eq!(done.len(), usize::from(through));
        wait_for("the wait", || wire.rx().limited.value() == 1);
        wire.driver.settle(&wire.machine.thread);
        assert_eq!(wire.driver.wait_used(RX, 0), []);
        assert_ne!(wire.rx().limited_since.value(), 0);
        assert_eq!(wire.rx().requests.value(), u64::from(through));
        assert_eq!(wire.rx().starved_since.value(), 0, "it has buffers");
        // The other direction has a limiter of its own.
        guest_sends(&mut wire, 9);
        wire.driver.wait_used(TX, 9);
        assert_eq!(wire.tx().limited.value(), 0);
        let free = NetChange {
            rx_limiter: FREE,
            ..NetChange::default()
        };
        change(&wire, free).unwrap();
        wire.driver.wait_used(RX, 5 - through);
        wait_for("the end", || wire.rx().limited_since.value() == 0);
        assert!(wire.rx().limited_ns.value() > 0);
        assert_eq!(wire.drops(Loss::RxTooLong), 0);
    }
}

#[test]
fn waits_end_by_themselves_in_both_directions() {
    let limiter = LimiterSpec {
        bandwidth: None,
        ops: bucket(1, 5),
    };
    let mut wire = wire(limiter, limiter);
    gives_buffers(&mut wire, 8);
    for _ in 0..6 {
        wire.host_sends(HEADER_BYTES + 60);
    }
    guest_sends(&mut wire, 6);
    assert_eq!(wire.driver.wait_used(RX, 6).len(), 6);
    assert_eq!(wire.driver.wait_used(TX, 6).len(), 6);
    assert!(wire.rx().limited.value() > 0);
    assert!(wire.tx().limited.value() > 0);
    let operations = &wire.driver.seen.device.operations;
    wait_for("the counters", || {
        operations[0].count.value() == 6 && operations[1].count.value() == 6
    });
}

#[test]
fn frames_larger_than_the_bucket_pass_and_are_paid_for_afterwards() {
    let limiter = LimiterSpec {
        bandwidth: bucket(10, HOUR_MS),
        ops: None,
    };
    let mut wire = wire(limiter, limiter);
    gives_buffers(&mut wire, 4);
    wire.host_sends(HEADER_BYTES + 1500);
    wire.host_sends(HEADER_BYTES + 20);
    assert_eq!(wire.driver.wait_used(RX, 1), [(0, 1512)]);
    guest_sends(&mut wire, 2);
    assert_eq!(wire.driver.wait_used(TX, 1).len(), 1);
    wire.driver.settle(&wire.machine.thread);
    assert_eq!(wire.driver.wait_used(RX, 0), []);
    assert_eq!(wire.driver.wait_used(TX, 0), []);
}

#[test]
fn an_empty_bucket_is_no_wait_as_long_as_nothing_comes() {
    let mut wire = wire(only_ops(1), only_ops(1));
    gives_buffers(&mut wire, 4);
    wire.host_sends(HEADER_BYTES + 60);
    wire.driver.wait_used(RX, 1);
    guest_sends(&mut wire, 1);
    wire.driver.wait_used(TX, 1);
    wire.driver.settle(&wire.machine.thread);
    assert_eq!(wire.rx().limited.value(), 0);
    assert_eq!(wire.tx().limited.value(), 0);
    wire.host_sends(HEADER_BYTES + 60);
    wait_for("the wait", || wire.rx().limited_since.value() != 0);
    assert_eq!(wire.rx().limited.value(), 1);
}

#[test]
fn a_limited_interface_is_reset_paused_and_started_again() {
    let mut wire = wire(only_ops(1), only_ops(1));
    gives_buffers(&mut wire, 4);
    for _ in 0..3 {
        wire.host_sends(HEADER_BYTES + 60);
    }
    guest_sends(&mut wire, 2);
    wire.driver.wait_used(RX, 1);
    wire.driver.wait_used(TX, 1);
    wait_for("the wait", || {
        wire.rx().limited_since.value() != 0 && wire.tx().limited_since.value() != 0
    });
    let within = Duration::from_secs(5);
    wire.machine.thread.pause(within).unwrap();
    wire.machine.thread.resume(within).unwrap();
    wire.driver.settle(&wire.machine.thread);
    assert_eq!(wire.driver.wait_used(RX, 0), []);
    wire.driver.start_plain(0);
    assert_eq!(wire.rx().limited_since.value(), 0);
    assert_eq!(wire.tx().limited_since.value(), 0);
    // A new driver does not get what the one before it has used up.
    gives_buffers(&mut wire, 4);
    wait_for("the wait", || wire.rx().limited_since.value() != 0);
    assert_eq!(wire.driver.wait_used(RX, 0), []);
    let free = NetChange {
        rx_limiter: FREE,
        tx_limiter: FREE,
    };
    change(&wire, free).unwrap();
    assert_eq!(wire.driver.wait_used(RX, 2).len(), 2);
}

#[test]
fn a_tap_that_goes_ends_the_wait_for_it() {
    let mut wire = wire(only_ops(1), LimiterSpec::default());
    gives_buffers(&mut wire, 4);
    wire.host_sends(HEADER_BYTES + 60);
    wire.host_sends(HEADER_BYTES + 60);
    wait_for("the wait", || wire.rx().limited_since.value() != 0);
    let (other, _) = std::os::unix::net::UnixDatagram::pair().unwrap();
    drop(std::mem::replace(&mut wire.host, other));
    guest_sends(&mut wire, 1);
    wire.driver.wait_used(TX, 1);
    wait_for("the end", || wire.rx().limited_since.value() == 0);
}

#[test]
fn a_real_tap_keeps_what_is_over_the_limit_and_wakes_nobody_for_it() {
    with_tap(|| {
        let mut machine = Machine::new();
        let spec = TapSpec {
            rx_limiter: only_ops(2),
            ..tap_spec(None)
        };
        let mut driver = machine.attach(NetDevice::open(spec).unwrap(), 0x1_0000);
        driver.start_plain(0);
        for place in 0..12u64 {
            driver.add(RX, &[(DATA + place * 0x1000, 2000, true)]);
        }
        driver.kick(RX);
        // Of a guest whose address is known the host asks nothing: each datagram is a frame.
        assert!(ip("addr add 192.0.2.1/24 dev tap0"));
        let neighbour = "neigh add 192.0.2.2 lladdr 02:00:00:00:00:07 dev tap0";
        assert!(ip(neighbour));
        let socket = std::net::UdpSocket::bind("192.0.2.1:0").unwrap();
        let send = |count: u8| {
            for number in 0..count {
                socket.send_to(&[number; 32], "192.0.2.2:9").unwrap();
            }
        };
        send(6);
        assert_eq!(driver.wait_used(RX, 2).len(), 2);
        let rx = &driver.seen.queues[RX];
        wait_for("the wait", || rx.limited_since.value() != 0);
        let loops = || {
            let file = machine.black_box.file().unwrap();
            let reader = observe::reader::Reader::from_file(file, "test".into()).unwrap();
            let seen = reader.snapshot().unwrap();
            let thread = seen.section("thread/io-test").unwrap();
            thread.counter("loops").unwrap()
        };
        let before = loops();
        std::thread::sleep(Duration::from_millis(100));
        assert!(loops() - before < 20, "{}", loops() - before);
        assert_eq!(rx.requests.value(), 2);

        let free = DeviceChange::Network(NetChange {
            rx_limiter: FREE,
            ..NetChange::default()
        });
        let within = Duration::from_secs(5);
        machine.thread.change(0, free, within).unwrap();
        // What the host itself says (IPv6 discovery) may be among them.
        assert!(driver.wait_used(RX, 4).len() >= 4);
        let rx = &driver.seen.queues[RX];
        wait_for("the end", || rx.limited_since.value() == 0);

        // Held again, and then the tap is deleted: that is noticed, though nothing is read.
        let tight = DeviceChange::Network(NetChange {
            rx_limiter: only_ops(1),
            ..NetChange::default()
        });
        machine.thread.change(0, tight, within).unwrap();
        for place in 12..16u64 {
            driver.add(RX, &[(DATA + place * 0x1000, 2000, true)]);
        }
        driver.kick(RX);
        send(3);
        let rx = &driver.seen.queues[RX];
        wait_for("the wait", || rx.limited_since.value() != 0);
        assert!(ip("link del tap0"));
        wait_for("the end", || rx.limited_since.value() == 0);
        let mut status = [0xFF; 2];
        driver.link.config.read(STATUS_OFFSET as u64, &mut status);
        assert_eq!(status, [0, 0]);
    });
}

#[test]
fn a_change_of_another_kind_of_device_is_refused() {
    let wire = wire(LimiterSpec::default(), LimiterSpec::default());
    let change = DeviceChange::Drive(DriveChange::default());
    let thread = &wire.machine.thread;
    let error = thread.change(0, change, Duration::from_secs(5));
    let error = error.unwrap_err().to_string();
    assert!(error.contains("not of a network interface"), "{error}");
}
