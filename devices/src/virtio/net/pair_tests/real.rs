//! Several queue pairs on a tap of the kernel.

use memory::{Bytes, GuestAddress};

use super::super::tests::{ip, packet_socket, tap_spec, with_tap, with_tap_of};
use super::super::*;
use super::{COMMANDS, MQ, give, queue, send, use_pairs};
use crate::virtio::mock_driver::{DATA, Driver, Machine, wait_for};

fn wide_spec() -> TapSpec {
    TapSpec {
        queues: 2,
        ..tap_spec(None)
    }
}

/// Sends a datagram by each of many flows to a guest whose address is known.
fn many_flows() {
    for _ in 0..64 {
        let socket = std::net::UdpSocket::bind("192.0.2.1:0").unwrap();
        socket.send_to(&[7; 32], "192.0.2.2:9").unwrap();
    }
}

/// Takes what comes until `pair` has something, giving the buffers again.
fn take_until(driver: &mut Driver, pair: usize) {
    wait_for("frames of a flow", || {
        for pair in 0..2 {
            let used = driver.wait_used(rx(pair), 0).len() as u64;
            if used > 0 {
                give(driver, pair, used);
            }
        }
        many_flows();
        queue(driver, rx(pair)).completions.value() > 0
    });
}

#[test]
fn a_real_tap_spreads_flows_over_the_pairs_that_are_used() {
    with_tap_of(" multi_queue", || {
        let mut machine = Machine::new();
        let mut driver = machine.attach(NetDevice::open(wide_spec()).unwrap(), 0x1_0000);
        let offered = driver.offered();
        driver.start_plain(offered);
        assert!(ip("addr add 192.0.2.1/24 dev tap0"));
        let neighbour = "neigh add 192.0.2.2 lladdr 02:00:00:00:00:07 dev tap0";
        assert!(ip(neighbour));
        for pair in 0..2 {
            give(&mut driver, pair, 8);
        }
        // All to the first at first.
        take_until(&mut driver, 0);
        assert_eq!(queue(&driver, rx(1)).completions.value(), 0);
        use_pairs(&mut driver, 2);
        take_until(&mut driver, 1);
        // From both, frames go out.
        let host = packet_socket();
        let mut got = std::fs::File::from(host);
        for pair in 0..2 {
            let mut frame = vec![0; HEADER_BYTES];
            frame.extend([0xFF; 6]);
            frame.extend([2, 0, 0, 0, 0, 7, 0x88, 0xB5]);
            frame.extend([0x40 + pair as u8; 46]);
            driver.ram.write_slice(&frame, GuestAddress(DATA)).unwrap();
            send(&mut driver, pair);
            driver.wait_used(tx(pair), 1);
            let mut seen = [0; 2048];
            while seen[12..14] != [0x88, 0xB5] || seen[14] != 0x40 + pair as u8 {
                std::io::Read::read(&mut got, &mut seen).unwrap();
            }
        }
        // And to the first alone again, as after a reset.
        use_pairs(&mut driver, 1);
        let before = queue(&driver, rx(1)).completions.value();
        let first = queue(&driver, rx(0)).completions.value();
        driver.wait_used(rx(0), 0);
        driver.start_plain(offered);
        for pair in 0..2 {
            give(&mut driver, pair, 8);
        }
        wait_for("frames of the first", || {
            many_flows();
            queue(&driver, rx(0)).completions.value() > first
        });
        assert_eq!(queue(&driver, rx(1)).completions.value(), before);
        assert_eq!(driver.seen.device.host_errors.value(), 0);
        use_pairs(&mut driver, 2);
    });
}

#[test]
fn a_real_tap_that_is_deleted_is_noticed_by_whichever_pairs_are_used() {
    for pairs in [1, 2] {
        let test = match pairs {
            1 => || deleted(1),
            _ => || deleted(2),
        };
        with_tap_of(" multi_queue", test);
    }
}

fn deleted(pairs: u8) {
    let mut machine = Machine::new();
    let mut driver = machine.attach(NetDevice::open(wide_spec()).unwrap(), 0x1_0000);
    driver.start_plain(MQ | COMMANDS);
    use_pairs(&mut driver, 2);
    use_pairs(&mut driver, pairs);
    assert!(ip("link del tap0"));
    let link = driver.link.clone();
    wait_for("the link to go down", || {
        let mut status = [0xFF; 2];
        link.config.read(STATUS_OFFSET as u64, &mut status);
        status == [0, 0]
    });
    use_pairs(&mut driver, 2);
    for pair in 0..2 {
        send(&mut driver, pair);
        driver.wait_used(tx(pair), 1);
    }
    let drops = &driver.seen.device.drops;
    assert_eq!(drops[Loss::TxNoTap as usize].value(), 2);
    driver.start_plain(MQ | COMMANDS);
    assert_eq!(driver.read(0x70), 15);
}

#[test]
fn a_tap_of_one_queue_is_refused_with_the_remedy() {
    with_tap(|| {
        let error = NetDevice::open(wide_spec()).err().unwrap().to_string();
        assert!(
            error.starts_with("tap0 is not a tap that takes 2 queues"),
            "{error}"
        );
        assert!(
            error.contains("ip tuntap add NAME mode tap multi_queue"),
            "{error}"
        );
        // It is as it was.
        NetDevice::open(tap_spec(None)).unwrap();
    });
}
