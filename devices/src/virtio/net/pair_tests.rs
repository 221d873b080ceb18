//! Several queue pairs under a mock driver, with sockets for the files of a tap.

mod real;

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use memory::{Bytes, GuestAddress};

use super::tests::{no_programs, stand_in_spec};
use super::*;
use crate::virtio::mock_driver::{DATA, Driver, Machine, wait_for};
use crate::virtio::{BucketSpec, DeviceEventKind, LimiterSpec, QueueBlock, TransportKind};

const MQ: u64 = 1 << net::VIRTIO_NET_F_MQ;
const COMMANDS: u64 = 1 << net::VIRTIO_NET_F_CTRL_VQ;
/// The control queue of two pairs.
const CONTROL: usize = 4;
/// Where a command lies, and its answer.
const COMMAND: u64 = DATA + 0x10_0000;
const ANSWER: u64 = COMMAND + 0x100;
/// Buffers of a pair's receive queue.
const BUFFERS: u64 = DATA + 0x2_0000;
const FRAME: usize = HEADER_BYTES + 60;

/// Two pairs, each with a socket for its file of the tap.
struct Wires {
    machine: Machine,
    driver: Driver,
    hosts: Vec<UnixDatagram>,
}

fn wires_of(kind: TransportKind, spec: TapSpec, features: u64) -> Wires {
    let mut machine = Machine::of(kind);
    let (mut taps, mut hosts) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let (tap, host) = UnixDatagram::pair().unwrap();
        tap.set_nonblocking(true).unwrap();
        host.set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        taps.push(OwnedFd::from(tap));
        hosts.push(host);
    }
    let device = NetDevice::with_stand_ins(spec, taps).unwrap();
    let mut driver = machine.attach(device, 0x1_0000);
    driver.start_plain(features);
    Wires {
        machine,
        driver,
        hosts,
    }
}

fn wires(features: u64) -> Wires {
    wires_of(TransportKind::Mmio, stand_in_spec("eth0"), features)
}

impl Wires {
    fn settle(&self) {
        self.driver.settle(&self.machine.thread);
    }

    fn drops(&self, cause: Loss) -> u64 {
        self.driver.seen.device.drops[cause as usize].value()
    }
}

fn queue(driver: &Driver, index: usize) -> &QueueBlock {
    &driver.seen.queues[index]
}

/// Says a command on the queue `index`, and gives the answer.
fn say(driver: &mut Driver, index: usize, command: &[u8]) -> u8 {
    let ram = driver.ram.clone();
    ram.write_slice(command, GuestAddress(COMMAND)).unwrap();
    ram.write_obj(0xEEu8, GuestAddress(ANSWER)).unwrap();
    let command = (COMMAND, command.len() as u32, false);
    driver.add(index, &[command, (ANSWER, 1, true)]);
    driver.kick(index);
    assert_eq!(driver.wait_used(index, 1)[0].1, 1, "one byte is written");
    ram.read_obj(GuestAddress(ANSWER)).unwrap()
}

fn use_pairs(driver: &mut Driver, pairs: u8) {
    assert_eq!(say(driver, CONTROL, &[4, 0, pairs, 0]), control::OK);
}

fn give(driver: &mut Driver, pair: usize, count: u64) {
    for place in 0..count {
        let at = BUFFERS + pair as u64 * 0x2_0000 + place * 0x1000;
        driver.add(rx(pair), &[(at, 2000, true)]);
    }
    driver.kick(rx(pair));
}

fn send(driver: &mut Driver, pair: usize) {
    driver.add(tx(pair), &[(DATA, FRAME as u32, false)]);
    driver.kick(tx(pair));
}

#[test]
fn one_pair_offers_nothing_more_than_before_and_two_say_so() {
    let mut machine = Machine::new();
    let (tap, _host) = UnixDatagram::pair().unwrap();
    let device = NetDevice::with_stand_ins(stand_in_spec("one"), [tap.into()]).unwrap();
    let plain = device.profile();
    assert_eq!(plain.queue_max_sizes.len(), 2);
    assert_eq!(plain.operations, ["rx", "tx"]);
    let driver = machine.attach(device, 0x8_0000);
    assert_eq!(driver.offered() & (MQ | COMMANDS), 0);
    let pairs = |driver: &Driver| {
        let mut pairs = [0xFF; 2];
        driver.link.config.read(8, &mut pairs);
        u16::from_le_bytes(pairs)
    };
    assert_eq!(pairs(&driver), 1);

    let wires = wires(0);
    assert_eq!(wires.driver.offered() & (MQ | COMMANDS), MQ | COMMANDS);
    assert_eq!(wires.driver.offered() & !(MQ | COMMANDS), plain.features);
    assert_eq!(wires.driver.queues.len(), 5);
    assert_eq!(pairs(&wires.driver), 2);
}

#[test]
fn each_pair_carries_frames_both_ways_once_the_driver_uses_it() {
    for kind in [TransportKind::Mmio, TransportKind::Pci] {
        let mut wires = wires_of(kind, stand_in_spec("eth0"), MQ | COMMANDS);
        for pair in 0..2 {
            give(&mut wires.driver, pair, 4);
            wires.hosts[pair].send(&[0; FRAME]).unwrap();
        }
        assert_eq!(wires.driver.wait_used(rx(0), 1).len(), 1);
        wires.settle();
        assert_eq!(wires.driver.wait_used(rx(1), 0), [], "it is not used yet");
        use_pairs(&mut wires.driver, 2);
        assert_eq!(wires.driver.wait_used(rx(1), 1), [(0, FRAME as u32)]);
        for pair in 0..2 {
            wires.hosts[pair].send(&[0; FRAME + 1]).unwrap();
            let used = wires.driver.wait_used(rx(pair), 1);
            assert_eq!(used, [(1, FRAME as u32 + 1)]);
            send(&mut wires.driver, pair);
            wires.driver.wait_used(tx(pair), 1);
            assert_eq!(wires.hosts[pair].recv(&mut [0; 2000]).unwrap(), FRAME);
            assert_eq!(queue(&wires.driver, tx(pair)).completions.value(), 1);
        }
        let rows = &wires.driver.seen.device.operations;
        wait_for("the counters", || rows[2].count.value() == 1);
        assert_eq!((rows[2].bytes.value(), rows[2].errors.value()), (4, 0));
        assert_eq!((rows[0].count.value(), rows[1].count.value()), (4, 2));
        assert_eq!(queue(&wires.driver, CONTROL).completions.value(), 1);
    }
}

#[test]
fn commands_that_cannot_be_are_answered_so_and_change_nothing() {
    let mut wires = wires(MQ | COMMANDS);
    let refused: [&[u8]; 9] = [
        &[4, 0, 0, 0],
        &[4, 0, 3, 0],
        &[4, 0, 0xFF, 0xFF],
        &[4, 0, 2],
        &[4, 0, 2, 0, 0],
        &[4],
        &[4, 1, 2, 0],
        &[0, 0, 1],
        &[1, 1, 2, 0, 0, 0, 0, 9],
    ];
    for command in refused {
        let answer = say(&mut wires.driver, CONTROL, command);
        assert_eq!(answer, control::ERR, "{command:?}");
    }
    send(&mut wires.driver, 1);
    wires.driver.wait_used(tx(1), 1);
    assert_eq!(wires.drops(Loss::TxUnusedPair), 1);
    let row = &wires.driver.seen.device.operations[2];
    wait_for("the counters", || row.errors.value() == 9);
    assert_eq!(wires.driver.read(0x70), 15, "the device goes on");
    use_pairs(&mut wires.driver, 2);
}

#[test]
fn a_command_without_room_for_an_answer_breaks_the_queue() {
    let mut wires = wires(MQ | COMMANDS);
    wires.driver.add(CONTROL, &[(COMMAND, 4, false)]);
    wires.driver.kick(CONTROL);
    wait_for("the broken queue", || {
        queue(&wires.driver, CONTROL).broken.value() == 1
    });
    wait_for("the wish for a reset", || wires.driver.read(0x70) & 64 != 0);
    wires.driver.start_plain(MQ | COMMANDS);
    use_pairs(&mut wires.driver, 2);
}

#[test]
fn a_driver_has_its_control_queue_behind_the_pairs_that_it_knows() {
    // Without VIRTIO_NET_F_MQ it is the third queue, and there is nothing to say on it.
    let mut one = wires(COMMANDS);
    assert_eq!(say(&mut one.driver, 2, &[4, 0, 1, 0]), control::ERR);
    // Without a control queue there is no way to more pairs than one, and no queue is served.
    let mut mute = wires(MQ);
    for index in [tx(1), CONTROL] {
        mute.driver
            .add(index, &[(COMMAND, 4, false), (ANSWER, 1, true)]);
        mute.driver.kick(index);
    }
    mute.settle();
    assert_eq!(mute.driver.wait_used(tx(1), 0), []);
    assert_eq!(mute.driver.wait_used(CONTROL, 0), []);
    send(&mut mute.driver, 0);
    mute.driver.wait_used(tx(0), 1);
}

#[test]
fn a_pair_that_is_used_no_more_gives_its_buffers_back_and_nobody_misses_a_kick() {
    let mut wires = wires(MQ | COMMANDS);
    use_pairs(&mut wires.driver, 2);
    // One that is used up: kicks are asked for then.
    give(&mut wires.driver, 1, 1);
    // What came before the command still goes its way.
    wires.hosts[1].send(&[0; FRAME]).unwrap();
    wires.driver.add(tx(1), &[(DATA, FRAME as u32, false)]);
    use_pairs(&mut wires.driver, 1);
    assert_eq!(wires.driver.wait_used(rx(1), 1).len(), 1);
    assert_eq!(wires.hosts[1].recv(&mut [0; 2000]).unwrap(), FRAME);
    wires.driver.wait_used(tx(1), 1);
    wires.hosts[1].send(&[0; FRAME]).unwrap();
    give(&mut wires.driver, 1, 1);
    send(&mut wires.driver, 1);
    wires.driver.wait_used(tx(1), 1);
    assert_eq!(wires.drops(Loss::TxUnusedPair), 1);
    // Two looks find a frame that no kick announced, and would find the buffers.
    wires.settle();
    wires.driver.add(tx(0), &[(DATA, FRAME as u32, false)]);
    wires.driver.wait_used(tx(0), 1);
    wait_for("the lost kick", || {
        queue(&wires.driver, tx(0)).lost_kicks.value() == 1
    });
    let rx1 = queue(&wires.driver, rx(1));
    assert_eq!((rx1.lost_kicks.value(), rx1.starved_since.value()), (0, 0));
    assert_eq!((rx1.completions.value(), rx1.avail_index.value()), (1, 1));
    use_pairs(&mut wires.driver, 2);
    assert_eq!(wires.driver.wait_used(rx(1), 1), [(1, FRAME as u32)]);
}

#[test]
fn a_reset_leaves_one_pair() {
    let mut wires = wires(MQ | COMMANDS);
    use_pairs(&mut wires.driver, 2);
    give(&mut wires.driver, 1, 2);
    wires.driver.start_plain(MQ | COMMANDS);
    give(&mut wires.driver, 1, 2);
    wires.hosts[1].send(&[0; FRAME]).unwrap();
    send(&mut wires.driver, 1);
    wires.driver.wait_used(tx(1), 1);
    assert_eq!(wires.drops(Loss::TxUnusedPair), 1);
    wires.settle();
    assert_eq!(wires.driver.wait_used(rx(1), 0), []);
    use_pairs(&mut wires.driver, 2);
    assert_eq!(wires.driver.wait_used(rx(1), 1).len(), 1);
}

#[test]
fn a_pause_gives_back_the_buffers_of_all_pairs() {
    let mut wires = wires(MQ | COMMANDS);
    use_pairs(&mut wires.driver, 2);
    for pair in 0..2 {
        give(&mut wires.driver, pair, 4);
    }
    wires.settle();
    let within = Duration::from_secs(5);
    wires.machine.thread.pause(within).unwrap();
    for pair in 0..2 {
        assert_eq!(queue(&wires.driver, rx(pair)).avail_index.value(), 0);
        wires.hosts[pair].send(&[0; FRAME]).unwrap();
    }
    assert_eq!(queue(&wires.driver, rx(1)).completions.value(), 0);
    wires.machine.thread.resume(within).unwrap();
    for pair in 0..2 {
        assert_eq!(wires.driver.wait_used(rx(pair), 1).len(), 1);
    }
}

#[test]
fn a_tap_that_goes_is_gone_for_all_pairs() {
    let mut wires = wires(MQ | COMMANDS);
    use_pairs(&mut wires.driver, 2);
    give(&mut wires.driver, 0, 2);
    let programs = no_programs();
    let (other, _) = UnixDatagram::pair().unwrap();
    drop(std::mem::replace(&mut wires.hosts[1], other));
    drop(programs);
    for pair in [1, 0] {
        send(&mut wires.driver, pair);
        wires.driver.wait_used(tx(pair), 1);
    }
    wait_for("the drops", || wires.drops(Loss::TxNoTap) == 2);
    let mut status = [0xFF; 2];
    let config = &wires.driver.link.config;
    config.read(STATUS_OFFSET as u64, &mut status);
    assert_eq!(status, [0, 0]);
    let told = wires.machine.events.try_iter();
    let gone = told.filter(|event| matches!(event.kind, DeviceEventKind::BackendGone { .. }));
    assert_eq!(gone.count(), 1, "told once");
    // The driver may say what it likes; there is nothing to do for it.
    use_pairs(&mut wires.driver, 1);
    use_pairs(&mut wires.driver, 2);
    wires.driver.start_plain(MQ | COMMANDS);
    assert_eq!(wires.driver.read(0x70), 15);
}

#[test]
fn filters_and_limits_are_for_all_pairs() {
    let spec = TapSpec {
        mac_filter: true,
        tx_limiter: LimiterSpec {
            bandwidth: None,
            ops: Some(BucketSpec {
                size: 3,
                one_time_burst: 0,
                refill_ms: 3_600_000,
            }),
        },
        ..stand_in_spec("eth0")
    };
    let mut wires = wires_of(TransportKind::Mmio, spec, MQ | COMMANDS);
    use_pairs(&mut wires.driver, 2);
    // From nobody's address.
    send(&mut wires.driver, 1);
    wires.driver.wait_used(tx(1), 1);
    assert_eq!(wires.drops(Loss::TxSpoofed), 1);
    let own = GuestAddress(DATA + HEADER_BYTES as u64 + 6);
    wires
        .driver
        .ram
        .write_slice(&[2, 0, 0, 0, 0, 1], own)
        .unwrap();
    for pair in [0, 1] {
        send(&mut wires.driver, pair);
        wires.driver.wait_used(tx(pair), 1);
    }
    // Three have gone, and no pair has more.
    for pair in [0, 1] {
        send(&mut wires.driver, pair);
    }
    wait_for("the wait", || {
        (0..2).all(|pair| queue(&wires.driver, tx(pair)).limited.value() == 1)
    });
    wires.settle();
    for pair in 0..2 {
        assert_eq!(wires.driver.wait_used(tx(pair), 0), []);
    }
}

#[test]
fn no_pair_is_always_first_when_a_wait_is_over() {
    let sockets: Vec<_> = (0..3).map(|_| UnixDatagram::pair().unwrap()).collect();
    let taps = sockets.into_iter().map(|(tap, _)| tap.into());
    let mut device = NetDevice::with_stand_ins(stand_in_spec("eth0"), taps).unwrap();
    device.layout = Layout::new(3, MQ | COMMANDS);
    let order = RefCell::new(Vec::new());
    for _ in 0..4 {
        device.in_turn(&mut [], |_, pair, _| order.borrow_mut().push(pair));
    }
    let rounds = [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]];
    assert_eq!(order.into_inner(), rounds.concat());
}
