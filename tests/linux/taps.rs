//! What the host does with a network interface while the guest uses it: limits, the address filter,
//! and a tap that is full, down or gone.

use std::fs;
use std::net::UdpSocket;
use std::process::Command;

use vmm::{BucketSpec, DeviceChange, LimiterSpec, NetChange, Outcome, VmCommand};

use crate::harness::Guest;
use crate::harness::tap::Tap;
use crate::net::{UP, with_tap};
use crate::{PATIENCE, TRANSPORTS, on, told};

/// One frame in an hour, or nothing that limits.
fn ops(size: u64) -> LimiterSpec {
    let ops = BucketSpec {
        size,
        one_time_burst: 0,
        refill_ms: 3_600_000,
    };
    LimiterSpec {
        bandwidth: None,
        ops: Some(ops),
    }
}

fn change(guest: &Guest, rx: LimiterSpec, tx: LimiterSpec) {
    let change = NetChange {
        rx_limiter: rx,
        tx_limiter: tx,
    };
    assert_eq!(guest.change("eth0", DeviceChange::Network(change)), Ok(()));
}

fn queue(guest: &Guest, queue: u32, field: &str) -> u64 {
    guest
        .seen()
        .number(&format!("queue/eth0/{queue}"), field, "")
}

fn drops(guest: &Guest, cause: &str) -> u64 {
    guest.seen().number("device/eth0", "drops", cause)
}

/// A guest that says whenever something else than before is so: whether the host answers, and
/// whether there is a link.
const LOOK: &str = "
say() {
  ping -c 1 -W 2 10.111.0.1 > /dev/null && up=yes || up=no
  [ $up,$(cat /sys/class/net/eth0/carrier) = \"$last\" ] && return
  last=$up,$(cat /sys/class/net/eth0/carrier)
  echo ANSWERS=$last
}
last= up=
";

/// Waits until the guest says so.
fn await_answer(guest: &Guest, answer: &str) {
    guest.until(answer, PATIENCE, |guest| {
        let said = guest.said();
        let last = said.lines().rev().find(|line| line.contains("ANSWERS="));
        last.is_some_and(|line| line.trim() == format!("ANSWERS={answer}"))
    });
}

#[test]
fn limits_hold_frames_back_both_ways_and_a_change_lets_them_go() {
    for (version, pci) in TRANSPORTS {
        let tap = Tap::new("vtlimit", "10.111.0.1");
        let script = format!("{UP}{LOOK}while :; do say; sleep 0.1; done");
        let mut spec = with_tap(on(version, pci, "", &script), &tap, None);
        spec.networks[0].tx_limiter = ops(1);
        let guest = Guest::launch(spec);
        await_answer(&guest, "no,1");
        assert!(queue(&guest, 1, "limited") > 0 && queue(&guest, 1, "limited_since") > 0);
        assert_eq!(queue(&guest, 1, "completions"), 1, "one frame in an hour");
        change(&guest, LimiterSpec::default(), ops(0));
        await_answer(&guest, "yes,1");
        assert_eq!(queue(&guest, 0, "limited"), 0);
        change(&guest, ops(1), LimiterSpec::default());
        await_answer(&guest, "no,1");
        assert!(queue(&guest, 0, "limited") > 0);
        change(&guest, ops(0), LimiterSpec::default());
        await_answer(&guest, "yes,1");
        let done = guest.stop();
        assert!(done.seen.number("queue/eth0/1", "limited_wait", "") > 0);
        assert!(done.seen.number("queue/eth0/0", "limited_wait", "") > 0);
    }
}

#[test]
fn a_guest_that_takes_another_address_is_not_heard() {
    for (version, pci) in TRANSPORTS {
        let tap = Tap::new("vtfilter", "10.111.0.1");
        let script = format!(
            "{UP}{LOOK}
look() {{ ip link set eth0 down; ip link set eth0 address $1; ip link set eth0 up; say; }}
while [ \"$up\" != yes ]; do say; done
look 06:00:ac:10:00:99
echo SPOOFED=$up
look 06:00:ac:10:00:02
while [ $up != yes ]; do say; done
echo BACK=$up"
        );
        let mut spec = with_tap(on(version, pci, "", &script), &tap, None);
        spec.networks[0].mac_filter = true;
        let done = Guest::launch(spec).finish(PATIENCE);
        assert_eq!(done.outcome, Outcome::PowerOff, "{}", done.console);
        let said = |key| told(&done.console, key);
        assert_eq!((said("SPOOFED"), said("BACK")), ("no", "yes"));
        let spoofed = done.seen.number("device/eth0", "drops", "tx_spoofed_mac");
        assert!(spoofed > 0, "{version}");
    }
}

/// Sends more than a tap keeps to a guest that does not run.
fn flood(tap: &Tap) {
    let socket = UdpSocket::bind("10.111.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    let send = |_: &u32| socket.send_to(&[7; 200], "10.111.0.2:9").is_err();
    let refused = (0..3000).filter(send).count();
    let path = format!("/sys/class/net/{}/statistics/tx_dropped", tap.name);
    let dropped = fs::read_to_string(path).unwrap();
    // Kernels differ in who tells that the tap is full: the tap, or the sender's socket.
    assert!(refused > 0 || dropped.trim() != "0", "the tap took all");
}

fn ip(words: &str) {
    let done = Command::new("ip").args(words.split(' ')).status().unwrap();
    assert!(done.success(), "ip {words}");
}

#[test]
fn a_tap_that_is_full_down_or_gone_is_seen_and_survived() {
    for (version, pci) in TRANSPORTS {
        let tap = Tap::new("vtgone", "10.111.0.1");
        let script = format!(
            "{UP}{LOOK}
while [ \"$last\" != no,0 ]; do say; sleep 0.1; done
echo TROUBLE=$(dmesg | grep -ciE 'lockup|stall|hung task|call trace' | head -1)"
        );
        let guest = Guest::launch(with_tap(on(version, pci, "", &script), &tap, None));
        await_answer(&guest, "yes,1");
        let before = queue(&guest, 0, "completions");
        guest.command(VmCommand::Pause);
        flood(&tap);
        guest.command(VmCommand::Resume);
        guest.until("what the tap kept", PATIENCE, |guest| {
            queue(guest, 0, "completions") >= before + 100
        });
        ip("link set vtgone down");
        await_answer(&guest, "no,1");
        assert!(drops(&guest, "tx_refused") > 0, "{version}");
        ip("link set vtgone up");
        await_answer(&guest, "yes,1");
        ip("link del vtgone");
        await_answer(&guest, "no,0");
        let done = guest.finish(PATIENCE);
        assert_eq!(done.outcome, Outcome::PowerOff, "{}", done.console);
        assert_eq!(told(&done.console, "TROUBLE"), "0");
        assert!(done.seen.number("device/eth0", "host_errors", "") > 0);
    }
}
