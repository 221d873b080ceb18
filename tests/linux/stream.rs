//! Many bytes each way over a network interface, each of them known: `guests/stream` sends and
//! compares in the guest, this file on the host.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::tap::Tap;
use crate::harness::{Guest, Scratch};
use crate::net::{UP, with_tap};
use crate::{PATIENCE, on_root_drive, told};

const BUFFER: usize = 65536;
/// Streams each way, all at once.
const STREAMS: u16 = 4;
/// The ports of those to the guest begin here, and of those from it.
const TO: u16 = 5000;
const FROM: u16 = 6000;

/// The generator of guests/stream, and the sum of what it gave.
struct Words {
    state: u64,
    sum: u64,
}

impl Words {
    fn fill(&mut self, buffer: &mut [u8]) {
        for word in buffer.chunks_exact_mut(8) {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            self.sum = self.sum.wrapping_add(self.state);
            word.copy_from_slice(&self.state.to_le_bytes());
        }
    }
}

fn accept(listener: &TcpListener) -> TcpStream {
    let stream = listener.accept().unwrap().0;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// The other end of the guest's stream at this port, whose number is its seed; the sum of its words.
fn other_end(port: u16, bytes: usize) -> impl FnOnce() -> u64 {
    let listener = TcpListener::bind(("10.111.0.1", port)).unwrap();
    move || {
        let mut words = Words {
            state: u64::from(port),
            sum: 0,
        };
        let (mut buffer, mut expected) = (vec![0; BUFFER], vec![0; BUFFER]);
        let mut stream = accept(&listener);
        for at in 0..bytes / BUFFER {
            words.fill(&mut expected);
            if port < FROM {
                stream.write_all(&expected).unwrap();
            } else {
                stream.read_exact(&mut buffer).unwrap();
                assert!(buffer == expected, "buffer {at} at {port} is another");
            }
        }
        if port >= FROM {
            assert_eq!(stream.read(&mut buffer).unwrap(), 0, "more than was sent");
        }
        words.sum
    }
}

fn switch_off(tap: &Tap) {
    let off = "tx off rx off tso off gso off gro off";
    let mut ethtool = Command::new("ethtool");
    let done = ethtool.args(["-K", tap.name]).args(off.split(' ')).output();
    // Without ethtool on the host the test would test nothing.
    let done = done.expect("ethtool");
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{errors}");
}

/// How a stream goes.
struct Way {
    version: &'static str,
    pci: bool,
    mib: usize,
    mtu: u16,
    offloads: bool,
}

fn both_ways(tap: &'static str, way: &Way) {
    let tap = Tap::new(tap, "10.111.0.1");
    let mtu = format!("link set {} mtu {}", tap.name, way.mtu);
    let done = Command::new("ip").args(mtu.split(' ')).status().unwrap();
    assert!(done.success(), "ip {mtu}");
    let each = way.mib / usize::from(STREAMS);
    let ports: Vec<u16> = [TO, FROM]
        .into_iter()
        .flat_map(|first| first..first + STREAMS)
        .collect();
    let ends: Vec<_> = ports
        .iter()
        .map(|port| thread::spawn(other_end(*port, each << 20)))
        .collect();
    let off = match way.offloads {
        true => "",
        false => "ethtool -K eth0 tx off rx off tso off gso off gro off",
    };
    let script = format!(
        "{UP}{off}
echo TSO=$(ethtool -k eth0 | awk '/^tcp-segmentation-offload/{{print $2}}')
echo SUMS=$(ethtool -k eth0 | awk '/^tx-checksumming/{{print $2}}')
echo MTU=$(cat /sys/class/net/eth0/mtu)
for port in {ports}; do
  [ $port -lt {FROM} ] && way=receive || way=send
  vitrine-stream $way 10.111.0.1 $port $port {each} > /run/$port &
done
wait
for port in {ports}; do echo AT$port=$(cat /run/$port); done
echo SOCKETS=$(ss -Htan state established | wc -l)
echo ERRORS=$(awk '/Tcp:/ && $2 ~ /[0-9]/{{print $15}}' /proc/net/snmp)",
        ports = ports
            .iter()
            .map(u16::to_string)
            .collect::<Vec<_>>()
            .join(" "),
    );
    let scratch = Scratch::new();
    let spec = on_root_drive(&scratch, way.version, way.pci, &script);
    if !way.offloads {
        switch_off(&tap);
    }
    let begun = Instant::now();
    let guest = Guest::launch(with_tap(spec, &tap, Some(way.mtu)));
    let done = guest.finish(PATIENCE + Duration::from_secs(900));
    let said = |key: &str| told(&done.console, key).to_owned();
    let switched = if way.offloads { "on" } else { "off" };
    assert_eq!([said("TSO"), said("SUMS")], [switched; 2]);
    assert_eq!(said("MTU"), way.mtu.to_string());
    for (port, end) in ports.iter().zip(ends) {
        // Without a sum the guest may never have called, and the other end waits for it still.
        let own = said(&format!("AT{port}"));
        assert!(own.starts_with("SUM="), "{port}: {}", done.console);
        assert_eq!(own, format!("SUM={}", end.join().unwrap()), "{port}");
    }
    assert_eq!(said("SOCKETS"), "0");
    assert_eq!(said("ERRORS"), "0", "bad TCP checksums in the guest");
    let bytes = (way.mib as u64) << 20;
    let queue = |queue, field| done.seen.number(&format!("queue/eth0/{queue}"), field, "");
    assert!(queue(0, "written") > bytes && queue(1, "read") > bytes);
    println!(
        "{} MiB each way, offloads {switched}, in {:?}: {} buffers in, {} out",
        way.mib,
        begun.elapsed(),
        queue(0, "completions"),
        queue(1, "completions")
    );
}

#[test]
fn a_gib_goes_both_ways_unchanged_on_6_12_over_pci() {
    both_ways(
        "vtgib1",
        &Way {
            version: "6.12",
            pci: true,
            mib: 1024,
            mtu: 1500,
            offloads: true,
        },
    );
}

#[test]
fn a_gib_goes_both_ways_unchanged_without_offloads_on_6_12_over_mmio() {
    both_ways(
        "vtgib2",
        &Way {
            version: "6.12",
            pci: false,
            mib: 1024,
            // Each frame is a packet of its own, and an emulated machine takes minutes for those of
            // 1500 bytes: they are in the test below.
            mtu: 9000,
            offloads: false,
        },
    );
}

#[test]
fn a_stream_goes_both_ways_unchanged_on_6_1_with_and_without_offloads() {
    for (offloads, pci) in [(true, false), (false, true)] {
        let way = Way {
            version: "6.1",
            pci,
            mib: 32,
            mtu: 1500,
            offloads,
        };
        both_ways("vtgib3", &way);
    }
}
