//! virtio-net under stock kernels, on taps that the test makes.

use std::net::UdpSocket;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use vmm::{NetSpec, VmSpec};

use crate::harness::Guest;
use crate::harness::tap::Tap;
use crate::{PATIENCE, VERSIONS, kernel, linux, told};

const MAC: [u8; 6] = [0x06, 0, 0xAC, 0x10, 0, 2];
pub const UP: &str = "ip link set lo up; ip addr add 10.111.0.2/24 dev eth0; ip link set eth0 up\n";

pub fn with_tap(mut spec: VmSpec, tap: &Tap, mtu: Option<u16>) -> VmSpec {
    let id = "eth0".to_owned();
    spec.networks.push(NetSpec {
        id,
        tap: tap.name.to_owned(),
        mac: Some(MAC),
        mtu,
        rx_limiter: vmm::LimiterSpec::default(),
        tx_limiter: vmm::LimiterSpec::default(),
        mac_filter: false,
        queues: 1,
    });
    spec
}

#[test]
fn the_guest_has_the_address_and_the_mtu_that_it_was_given_and_pings_both_ways() {
    for version in VERSIONS {
        let tap = Tap::new("vtping", "10.111.0.1");
        let script = format!(
            "{UP}echo MAC=$(cat /sys/class/net/eth0/address)
echo MTU=$(cat /sys/class/net/eth0/mtu)
ping -c 3 -W 10 10.111.0.1 | grep received
echo WAITING; read answer; echo ANSWER=$answer"
        );
        // Waits for its console, which says nothing: the host pings, then stops it.
        let script = script.replace("read answer; echo ANSWER=$answer", "sleep 1000");
        let guest = Guest::launch(with_tap(linux(version, "", &script), &tap, Some(1400)));
        guest.await_words("WAITING", PATIENCE);
        let ping = Command::new("ping")
            .args(["-c", "3", "-W", "10", "10.111.0.2"])
            .output();
        let ping = String::from_utf8_lossy(&ping.unwrap().stdout).into_owned();
        assert!(ping.contains(" 0% packet loss"), "{ping}");
        let done = guest.stop();
        assert_eq!(told(&done.console, "MAC"), "06:00:ac:10:00:02");
        assert_eq!(told(&done.console, "MTU"), "1400");
        assert!(
            done.console.contains("3 packets received"),
            "{}",
            done.console
        );
        assert!(done.seen.number("queue/eth0/0", "completions", "") >= 6);
        assert!(done.seen.number("queue/eth0/1", "completions", "") >= 6);
    }
}

/// What a guest with two queue pairs does: sends by each, gives the interface up, takes it again, and
/// does the same.
const PAIRS: &str = "
ways() {
  echo QUEUES$1=$(echo $(ls /sys/class/net/eth0/queues))
  for mask in 1 2; do
    taskset $mask ping -c 3 -W 10 10.111.0.1 | grep -q ' 3 packets received' && echo SENT$1$mask=yes
  done
}
ways first
device=$(basename $(readlink -f /sys/class/net/eth0/device))
driver=/sys/bus/virtio/drivers/virtio_net
echo $device > $driver/unbind
[ -e /sys/class/net/eth0 ] || echo GONE=yes
echo $device > $driver/bind
";

/// A guest with two vCPUs and two queue pairs uses both, and again after a reset of its interface.
fn uses_two_pairs(version: &str, tap: &'static str, pci: bool) {
    let tap = Tap::wide(tap, "10.111.0.1");
    let script = format!(
        "{UP}{PAIRS}{UP}ways again
echo MESSAGES=$(grep -c PCI-MSI /proc/interrupts)
echo WAITING
sleep 1000"
    );
    let mut spec = with_tap(linux(version, "", &script), &tap, None);
    spec.networks[0].queues = 2;
    spec.vcpus = 2;
    if pci {
        spec.boot.kernel = kernel(version, "vmlinux");
        spec.pci = true;
    }
    let guest = Guest::launch(spec);
    guest.await_words("WAITING", PATIENCE);
    // By many flows, of which the host's kernel gives each to one of the pairs.
    let received = |pair: u32| {
        let queue = format!("queue/eth0/{}", 2 * pair);
        guest.seen().number(&queue, "completions", "")
    };
    let before = [received(0), received(1)];
    let until = Instant::now() + PATIENCE;
    while received(0) == before[0] || received(1) == before[1] {
        assert!(Instant::now() < until, "{version}: a pair gets nothing");
        for _ in 0..64 {
            let flow = UdpSocket::bind("10.111.0.1:0").unwrap();
            flow.send_to(&[7; 100], "10.111.0.2:9").unwrap();
        }
        thread::sleep(Duration::from_millis(100));
    }
    let done = guest.stop();
    let (console, seen) = (&done.console, &done.seen);
    for time in ["first", "again"] {
        let queues = told(console, &format!("QUEUES{time}"));
        assert_eq!(queues, "rx-0 rx-1 tx-0 tx-1", "{version}: {console}");
        for mask in [1, 2] {
            assert_eq!(told(console, &format!("SENT{time}{mask}")), "yes");
        }
    }
    assert_eq!(told(console, "GONE"), "yes");
    // On PCI, the configuration's and one for each queue but the last, whose answers Linux polls for.
    assert_eq!(told(console, "MESSAGES"), if pci { "5" } else { "0" });
    let queue = |index: u32, field: &str| seen.number(&format!("queue/eth0/{index}"), field, "");
    for index in 0..4 {
        assert!(queue(index, "completions") >= 1, "{version}: queue {index}");
    }
    for sent in [1, 3] {
        assert!(queue(sent, "completions") >= 6, "{version}: queue {sent}");
    }
    // Each time, the driver said how many pairs it uses.
    assert!(queue(4, "completions") >= 2, "{version}");
    let of = |field, row| seen.number("device/eth0", field, row);
    assert_eq!(of("operation_errors", "control"), 0, "{version}");
    assert_eq!(of("drops", "tx_unused_pair"), 0, "{version}");
    assert_eq!(of("host_errors", ""), 0, "{version}");
}

#[test]
fn a_guest_uses_a_queue_pair_for_each_vcpu() {
    for version in VERSIONS {
        uses_two_pairs(version, "vtpairs", false);
    }
}

#[test]
fn a_guest_uses_a_queue_pair_for_each_vcpu_on_pci() {
    for version in VERSIONS {
        uses_two_pairs(version, "vtpairspci", true);
    }
}
