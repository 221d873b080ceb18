use super::*;
use crate::virtio::device::F_EVENT_IDX;
use crate::virtio::mock_driver::{Buffer, DATA, Driver, Machine, wait_for};
use crate::virtio::{DeviceEventKind, LimiterSpec, QueueBlock};
use memory::{Bytes, GuestAddress};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

const MERGE: u64 = 1 << net::VIRTIO_NET_F_MRG_RXBUF;

/// An interface whose tap is a socket of datagrams.
pub fn stand_in_spec(id: &str) -> TapSpec {
    TapSpec {
        id: id.to_owned(),
        tap: "stand-in".to_owned(),
        mac: Some([2, 0, 0, 0, 0, 1]),
        mtu: None,
        rx_limiter: LimiterSpec::default(),
        tx_limiter: LimiterSpec::default(),
        mac_filter: false,
        queues: 1,
    }
}

pub struct Wire {
    pub machine: Machine,
    pub driver: Driver,
    pub host: UnixDatagram,
}

impl Wire {
    pub fn new(features: u64) -> Self {
        Self::with(stand_in_spec("eth0"), features)
    }

    pub fn with(spec: TapSpec, features: u64) -> Self {
        let (tap, host) = UnixDatagram::pair().unwrap();
        tap.set_nonblocking(true).unwrap();
        host.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut machine = Machine::new();
        let device = NetDevice::with_stand_ins(spec, [OwnedFd::from(tap)]).unwrap();
        let mut driver = machine.attach(device, 0x1_0000);
        driver.start_plain(features);
        Wire {
            machine,
            driver,
            host,
        }
    }

    pub fn rx(&self) -> &QueueBlock {
        &self.driver.seen.queues[RX]
    }

    pub fn tx(&self) -> &QueueBlock {
        &self.driver.seen.queues[TX]
    }

    /// The host sends a frame of `bytes` bytes, header included.
    pub fn host_sends(&self, bytes: usize) -> Vec<u8> {
        let mut frame: Vec<u8> = (0..bytes).map(|place| place as u8 ^ 0x5A).collect();
        frame[..HEADER_BYTES].fill(0);
        self.host.send(&frame).unwrap();
        frame
    }

    fn guest_bytes(&self, address: u64, bytes: usize) -> Vec<u8> {
        let mut data = vec![0; bytes];
        self.driver
            .ram
            .read_slice(&mut data, GuestAddress(address))
            .unwrap();
        data
    }

    pub fn give(&mut self, buffers: &[Buffer]) {
        self.driver.add(RX, buffers);
        self.driver.kick(RX);
    }

    pub(super) fn drops(&self, cause: Loss) -> u64 {
        self.driver.seen.device.drops[cause as usize].value()
    }
}

#[test]
fn a_frame_goes_out_as_the_guest_wrote_it() {
    let mut wire = Wire::new(0);
    let frame: Vec<u8> = (0..100u8).collect();
    let mut whole = vec![0; HEADER_BYTES];
    whole.extend(&frame);
    wire.driver
        .ram
        .write_slice(&whole, GuestAddress(DATA))
        .unwrap();
    wire.driver.add(
        TX,
        &[
            (DATA, 5, false),
            (DATA + 5, 20, false),
            (DATA + 25, 87, false),
        ],
    );
    wire.driver.kick(TX);
    let mut seen = [0; 200];
    assert_eq!(wire.host.recv(&mut seen).unwrap(), 112);
    assert_eq!(seen[..112], whole);
    assert_eq!(wire.driver.wait_used(TX, 1), [(0, 0)]);
    let row = &wire.driver.seen.device.operations[1];
    wait_for("the counters", || row.count.value() == 1);
    assert_eq!((row.bytes.value(), row.errors.value()), (100, 0));
    assert_eq!(wire.tx().bytes_read.value(), 112);
}

#[test]
fn a_frame_comes_in_whole_in_one_chain() {
    let mut wire = Wire::new(0);
    wire.give(&[(DATA, 12, true), (DATA + 0x1000, 2000, true)]);
    let frame = wire.host_sends(500);
    assert_eq!(wire.driver.wait_used(RX, 1), [(0, 500)]);
    assert_eq!(wire.guest_bytes(DATA + 0x1000, 488), frame[12..]);
    assert_eq!(wire.guest_bytes(DATA + 10, 2), [1, 0]);
    wait_for("the interrupt", || wire.rx().interrupts.value() == 1);
    assert_eq!(wire.driver.seen.device.operations[0].bytes.value(), 488);
}

#[test]
fn a_frame_is_merged_over_as_many_buffers_as_it_needs_and_no_more() {
    let mut wire = Wire::new(MERGE);
    for place in 0..8u64 {
        wire.driver.add(RX, &[(DATA + place * 0x1000, 200, true)]);
    }
    wire.driver.kick(RX);
    let frame = wire.host_sends(500);
    let used = wire.driver.wait_used(RX, 1);
    assert_eq!(
        used,
        [(0, 200), (1, 200), (2, 100)],
        "all three become visible at once"
    );
    assert_eq!(wire.guest_bytes(DATA + 10, 2), [3, 0]);
    assert_eq!(wire.guest_bytes(DATA + 0x1000, 200), frame[200..400]);
    assert_eq!(wire.guest_bytes(DATA + 0x2000, 100), frame[400..]);
    wire.host_sends(150);
    assert_eq!(wire.driver.wait_used(RX, 1), [(3, 150)]);
    assert_eq!(wire.guest_bytes(DATA + 0x3000 + 10, 2), [1, 0]);
    let rows = &wire.driver.seen.device.operations;
    wait_for("the counters", || rows[0].count.value() == 2);
    assert_eq!(rows[0].bytes.value(), 488 + 138);
    assert_eq!(
        (wire.rx().requests.value(), wire.rx().completions.value()),
        (4, 4)
    );
    assert_eq!(wire.rx().bytes_written.value(), 650);
    assert_eq!(wire.rx().in_flight.value(), 0);
}

#[test]
fn a_pause_gives_unused_buffers_back_and_nothing_is_lost() {
    let mut wire = Wire::new(MERGE);
    for place in 0..4u64 {
        wire.driver.add(RX, &[(DATA + place * 0x1000, 2000, true)]);
    }
    wire.driver.kick(RX);
    wire.driver.settle(&wire.machine.thread);
    wire.machine.thread.pause(Duration::from_secs(5)).unwrap();
    assert_eq!(wire.rx().avail_index.value(), 0);
    wire.host_sends(100);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(wire.rx().completions.value(), 0);
    wire.machine.thread.resume(Duration::from_secs(5)).unwrap();
    assert_eq!(wire.driver.wait_used(RX, 1), [(0, 100)]);
}

#[test]
fn a_guest_without_buffers_starves_quietly_until_it_gives_some() {
    let mut wire = Wire::new(F_EVENT_IDX);
    wire.driver.settle(&wire.machine.thread);
    for _ in 0..3 {
        wire.host_sends(100);
    }
    let seen = wire.driver.seen.clone();
    wait_for("the starvation", || {
        seen.queues[RX].starved_since.value() != 0
    });
    let heart = |wire: &Wire| wire.driver.seen.queues[RX].starved.value();
    let before = heart(&wire);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(heart(&wire), before, "no busy loop");
    for place in 0..3u64 {
        wire.give(&[(DATA + place * 0x1000, 2000, true)]);
    }
    let used: usize = (0..3).map(|_| wire.driver.wait_used(RX, 0).len()).sum();
    let rest = wire.driver.wait_used(RX, 3 - used as u16).len();
    assert_eq!(used + rest, 3);
    assert_eq!(wire.rx().completions.value(), 3);
}

#[test]
fn a_frame_that_does_not_fit_is_dropped_and_counted() {
    let mut wire = Wire::new(0);
    wire.give(&[(DATA, 200, true)]);
    wire.host_sends(201);
    wire.host_sends(200);
    assert_eq!(wire.driver.wait_used(RX, 1), [(0, 200)]);
    assert_eq!(wire.drops(Loss::RxTooLong), 1);
}

#[test]
fn frames_without_header_or_too_large_are_dropped_and_given_back() {
    let mut wire = Wire::new(0);
    for (bytes, cause) in [
        (5, Loss::TxMalformed),
        (12, Loss::TxMalformed),
        (70_000, Loss::TxOversize),
    ] {
        wire.driver.add(TX, &[(DATA, bytes, false)]);
        wire.driver.kick(TX);
        wire.driver.wait_used(TX, 1);
        wait_for("the drop", || wire.drops(cause) >= 1);
    }
    let row = &wire.driver.seen.device.operations[1];
    wait_for("the counters", || row.errors.value() == 3);
    assert_eq!(row.bytes.value(), 0);
}

#[test]
fn a_full_tap_holds_the_frame_until_it_takes_more() {
    let mut wire = Wire::new(0);
    let mut sent = 0u64;
    // The socket takes some frames and then no more.
    loop {
        wire.driver.add(TX, &[(DATA, 2000, false)]);
        wire.driver.kick(TX);
        sent += 1;
        wire.driver.settle(&wire.machine.thread);
        if wire.tx().completions.value() < sent {
            break;
        }
        wire.driver.wait_used(TX, 1);
        assert!(sent < 2000);
    }
    assert_eq!(wire.tx().in_flight.value(), 1);
    assert_ne!(wire.tx().in_flight_since.value(), 0);
    let mut frame = [0; 4096];
    for _ in 0..sent {
        assert_eq!(wire.host.recv(&mut frame).unwrap(), 2000);
    }
    wire.driver.wait_used(TX, 1);
    assert_eq!(wire.tx().completions.value(), sent);
    wait_for("an idle queue", || wire.tx().in_flight.value() == 0);
    assert_eq!(
        wire.driver
            .seen
            .device
            .drops
            .iter()
            .map(observe::Counter::value)
            .sum::<u64>(),
        0
    );
}

#[test]
fn a_tap_that_goes_takes_the_link_down_and_frames_are_dropped() {
    let mut wire = Wire::new(0);
    let mut status = [0; 2];
    wire.driver
        .link
        .config
        .read(STATUS_OFFSET as u64, &mut status);
    assert_eq!(status, [1, 0]);
    let programs = no_programs();
    let (gone, _) = UnixDatagram::pair().unwrap();
    wire.host = gone;
    drop(programs);
    for _ in 0..3 {
        wire.driver.add(TX, &[(DATA, 100, false)]);
        wire.driver.kick(TX);
        wire.driver.wait_used(TX, 1);
    }
    wait_for("the drops", || wire.drops(Loss::TxNoTap) == 3);
    wire.driver
        .link
        .config
        .read(STATUS_OFFSET as u64, &mut status);
    assert_eq!(status, [0, 0]);
    assert_eq!(wire.driver.read(0x60) & 2, 2);
    assert_eq!(wire.driver.read(0x70), 15);
    let events: Vec<_> = wire
        .machine
        .events
        .try_iter()
        .map(|event| event.kind)
        .collect();
    assert!(
        events
            .iter()
            .any(|kind| matches!(kind, DeviceEventKind::BackendGone { .. })),
        "{events:?}"
    );
    assert_eq!(wire.driver.seen.device.host_errors.value(), 1);
}

#[test]
fn an_absent_tap_is_named_with_the_remedy() {
    let spec = TapSpec {
        id: "eth0".into(),
        tap: "vtr-none".into(),
        mac: None,
        mtu: None,
        ..stand_in_spec("eth0")
    };
    let error = NetDevice::open(spec).err().unwrap().to_string();
    assert!(error.contains("vtr-none does not exist"), "{error}");
    assert!(error.contains("ip tuntap add vtr-none mode tap"), "{error}");
}

/// Held while a program runs, and by tests to which it matters that a descriptor is closed: a child
/// has all descriptors of the process until it has become the program, which is after `spawn`.
static PROGRAMS: Mutex<()> = Mutex::new(());

pub(super) fn no_programs() -> MutexGuard<'static, ()> {
    PROGRAMS.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn ip(arguments: &str) -> bool {
    let _one = no_programs();
    let done = Command::new("ip").args(arguments.split(' ')).output();
    done.is_ok_and(|done| done.status.success())
}

/// Runs a test in a network namespace of its own with the tap `tap0`, where the host allows it.
pub(super) fn with_tap(test: fn()) {
    with_tap_of("", test);
}

/// As [`with_tap`], with a tap of this kind.
#[allow(unsafe_code)]
pub(super) fn with_tap_of(kind: &'static str, test: fn()) {
    let thread = std::thread::spawn(move || {
        // SAFETY: changes the network namespace of this thread alone, which ends after the test.
        let alone = unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0;
        let add = format!("tuntap add tap0 mode tap{kind}");
        if alone && ip(&add) && ip("link set tap0 up mtu 1400") {
            test();
        } else {
            eprintln!("skipped: this host gives no tap to this process");
        }
    });
    thread.join().unwrap();
}

pub(super) fn tap_spec(mtu: Option<u16>) -> TapSpec {
    TapSpec {
        id: "eth0".into(),
        tap: "tap0".into(),
        mac: Some([2, 0, 0, 0, 0, 7]),
        mtu,
        ..stand_in_spec("eth0")
    }
}

pub(super) fn packet_socket() -> std::os::fd::OwnedFd {
    use std::os::fd::FromRawFd;
    #[allow(unsafe_code)]
    // SAFETY: a new descriptor that nobody else owns, checked.
    unsafe {
        let fd = libc::socket(
            libc::AF_PACKET,
            libc::SOCK_RAW,
            i32::from((libc::ETH_P_ALL as u16).to_be()),
        );
        assert!(fd >= 0);
        OwnedFd::from_raw_fd(fd)
    }
}

#[test]
fn a_real_tap_carries_frames_both_ways() {
    with_tap(|| {
        let mut machine = Machine::new();
        let mut driver = machine.attach(NetDevice::open(tap_spec(None)).unwrap(), 0x1_0000);
        let host = packet_socket();
        let offered = driver.offered();
        driver.start_plain(offered);
        let mut frame = vec![0; HEADER_BYTES];
        frame.extend([0xFF; 6]);
        frame.extend([2, 0, 0, 0, 0, 7, 0x88, 0xB5]);
        frame.extend([0x42; 86]);
        driver.ram.write_slice(&frame, GuestAddress(DATA)).unwrap();
        driver.add(TX, &[(DATA, frame.len() as u32, false)]);
        driver.kick(TX);
        driver.wait_used(TX, 1);
        assert_eq!(driver.seen.device.host_errors.value(), 0);
        // The host's stack saw it; what the stack itself says (IPv6 discovery) is passed over.
        let mut got = std::fs::File::from(host);
        let mut seen = [0; 2048];
        loop {
            let bytes = std::io::Read::read(&mut got, &mut seen).unwrap();
            if seen[12..14] == [0x88, 0xB5] {
                assert_eq!(seen[..bytes], frame[HEADER_BYTES..]);
                break;
            }
        }
        // A neighbour that does not exist makes the host ask for it, loudly enough for the guest.
        for place in 0..8u64 {
            driver.add(RX, &[(DATA + 0x1_0000 + place * 0x1000, 2000, true)]);
        }
        driver.kick(RX);
        assert!(ip("addr add 192.0.2.1/24 dev tap0"));
        let socket = std::net::UdpSocket::bind("192.0.2.1:0").unwrap();
        socket.send_to(b"hello", "192.0.2.2:9").unwrap();
        let used = driver.wait_used(RX, 1);
        assert!(used[0].1 as usize > HEADER_BYTES + 14);
        assert!(driver.seen.device.operations[0].count.value() >= 1);
    });
}

#[test]
fn a_tap_that_is_deleted_is_survived() {
    with_tap(|| {
        let mut machine = Machine::new();
        let mut driver = machine.attach(NetDevice::open(tap_spec(None)).unwrap(), 0x1_0000);
        driver.start_plain(0);
        driver.add(RX, &[(DATA, 2000, true)]);
        driver.kick(RX);
        assert!(ip("link del tap0"));
        let link = driver.link.clone();
        wait_for("the link to go down", || {
            let mut status = [0xFF; 2];
            link.config.read(STATUS_OFFSET as u64, &mut status);
            status == [0, 0]
        });
        driver.add(TX, &[(DATA, 100, false)]);
        driver.kick(TX);
        driver.wait_used(TX, 1);
        assert_eq!(driver.seen.device.drops[Loss::TxNoTap as usize].value(), 1);
        // No busy loop on the dead descriptor.
        std::thread::sleep(Duration::from_millis(50));
        driver.start_plain(0);
        assert_eq!(driver.read(0x70), 15);
    });
}

#[test]
fn a_tap_that_is_deleted_while_the_guest_gives_no_buffers_is_noticed() {
    with_tap(|| {
        let mut machine = Machine::new();
        let mut driver = machine.attach(NetDevice::open(tap_spec(None)).unwrap(), 0x1_0000);
        driver.start_plain(0);
        // The host asks for a neighbour: a packet that waits.
        assert!(ip("addr add 192.0.2.1/24 dev tap0"));
        let socket = std::net::UdpSocket::bind("192.0.2.1:0").unwrap();
        socket.send_to(b"hello", "192.0.2.2:9").unwrap();
        let rx = &driver.seen.queues[RX];
        wait_for("the packet that waits", || rx.starved_since.value() > 0);
        let link = driver.link.clone();
        assert!(ip("link del tap0"));
        wait_for("the link to go down", || {
            let mut status = [0xFF; 2];
            link.config.read(STATUS_OFFSET as u64, &mut status);
            status == [0, 0]
        });
        // No busy loop on the dead descriptor.
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
    });
}

#[test]
fn a_tap_that_is_down_costs_frames_and_not_the_device() {
    with_tap(|| {
        let mut machine = Machine::new();
        let mut driver = machine.attach(NetDevice::open(tap_spec(None)).unwrap(), 0x1_0000);
        driver.start_plain(0);
        let send = |driver: &mut Driver| {
            driver.add(TX, &[(DATA, 100, false)]);
            driver.kick(TX);
            driver.wait_used(TX, 1);
        };
        assert!(ip("link set tap0 down"));
        send(&mut driver);
        assert_eq!(
            driver.seen.device.drops[Loss::TxRefused as usize].value(),
            1
        );
        assert!(ip("link set tap0 up"));
        send(&mut driver);
        let row = &driver.seen.device.operations[1];
        wait_for("the counters", || row.count.value() == 2);
        assert_eq!(row.errors.value(), 1);
    });
}

#[test]
fn taps_that_cannot_be_had_are_named_with_the_remedy() {
    with_tap(|| {
        let _programs = no_programs();
        let held = NetDevice::open(tap_spec(Some(1400))).unwrap();
        let busy = NetDevice::open(tap_spec(None)).err().unwrap().to_string();
        assert!(busy.contains("tap0 is in use"), "{busy}");
        drop(held);
        for mtu in [1401, 67] {
            let error = NetDevice::open(tap_spec(Some(mtu)))
                .err()
                .unwrap()
                .to_string();
            assert_eq!(
                error,
                format!("mtu {mtu} is not between 68 and the 1400 of the tap tap0")
            );
        }
        let lo = TapSpec {
            tap: "lo".into(),
            ..tap_spec(None)
        };
        let error = NetDevice::open(lo).err().unwrap().to_string();
        assert!(error.contains("lo is not a tap"), "{error}");
    });
}
