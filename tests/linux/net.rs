//! virtio-net under stock kernels, on taps that the test makes.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::Duration;

use vmm::{NetSpec, VmSpec};

use crate::harness::Guest;
use crate::harness::tap::Tap;
use crate::{PATIENCE, VERSIONS, linux, told};

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

const COPY_BYTES: usize = 50 << 20;

/// Bytes that no compression or zero page helps.
fn noise() -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next)
        .take(COPY_BYTES / 8)
        .flatten()
        .collect()
}

fn accept(listener: &TcpListener) -> TcpStream {
    let stream = listener.accept().unwrap().0;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends 50 MB to the guest, which sends them back, with checksum offloads on or off.
fn copies(version: &str, tap: &'static str, offloads: bool) {
    let tap = Tap::new(tap, "10.111.0.1");
    let listener = TcpListener::bind("10.111.0.1:5000").unwrap();
    let sent = noise();
    let expected = sent.clone();
    let host = thread::spawn(move || {
        accept(&listener).write_all(&sent).unwrap();
        let mut back = Vec::new();
        accept(&listener).read_to_end(&mut back).unwrap();
        back
    });
    let script = format!(
        "{UP}mount -t tmpfs -o size=200m none /mnt 2>/dev/null || mount -t tmpfs -o size=200m none /run
nc 10.111.0.1 5000 < /dev/null > /run/copy
echo SIZE=$(wc -c < /run/copy)
nc 10.111.0.1 5000 < /run/copy > /dev/null
echo CHECKSUMS=$(awk '/Tcp:/ && $2 ~ /[0-9]/{{print $15}}' /proc/net/snmp)"
    );
    let mut spec = with_tap(linux(version, "", &script), &tap, None);
    spec.memory.size_mib = 512;
    if !offloads {
        let off = [
            "-K", tap.name, "tx", "off", "rx", "off", "tso", "off", "gso", "off",
        ];
        // Without ethtool on the host the test would test nothing.
        let output = Command::new("ethtool").args(off).output().expect("ethtool");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let done = Guest::launch(spec).finish(PATIENCE + Duration::from_secs(180));
    assert_eq!(told(&done.console, "SIZE"), COPY_BYTES.to_string());
    assert_eq!(
        told(&done.console, "CHECKSUMS"),
        "0",
        "bad TCP checksums in the guest"
    );
    assert!(
        host.join().unwrap() == expected,
        "what came back is not what was sent"
    );
    for queue in ["queue/eth0/0", "queue/eth0/1"] {
        let number = |field| done.seen.number(queue, field, "");
        assert!(number("completions") > 100, "{queue}");
    }
}

#[test]
fn fifty_megabytes_go_both_ways_unchanged_on_6_1() {
    copies("6.1", "vtcopy1", true);
}

#[test]
fn fifty_megabytes_go_both_ways_unchanged_on_6_12() {
    copies("6.12", "vtcopy2", true);
}

#[test]
fn fifty_megabytes_go_both_ways_unchanged_without_offloads() {
    copies("6.12", "vtcopy3", false);
}
