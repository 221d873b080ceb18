//! Stock kernels with their devices on the PCI bus.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use vmm::{Outcome, VmCommand, VmSpec};

use crate::harness::tap::Tap;
use crate::harness::{Finished, Guest, Scratch, Seen, drive, image};
use crate::net::{UP, with_tap};
use crate::{PATIENCE, VERSIONS, on, told};

const LOOK: &str = "
for device in /sys/bus/pci/devices/*; do
  echo DEVICE=$(basename $device),$(cat $device/vendor),$(cat $device/device),$(cat $device/class)
done
grep PCI-MSI /proc/interrupts
echo MESSAGES=$(grep -c PCI-MSI /proc/interrupts)
echo LINES=$(grep virtio /proc/interrupts | grep -vc PCI-MSI)
echo ECAM=$(grep -ciE 'e0000000-e00fffff.*(ECAM|MMCONFIG)' /proc/iomem)
";

fn on_pci(version: &str, words: &str, script: &str) -> VmSpec {
    on(version, true, words, script)
}

fn transport(seen: &Seen, device: &str) -> [u64; 4] {
    ["kind", "trapped_kicks", "refused", "resets_missed"]
        .map(|field| seen.number(&format!("transport/{device}"), field, ""))
}

/// Our count of user exits is KVM's own.
fn exits_agree(done: &Finished) {
    let kvm = |stat| done.seen.number("kvm_vcpu/0", "total", stat);
    let ours = |a, b| done.seen.exits(a) + done.seen.exits(b);
    assert_eq!(ours("io_in", "io_out"), kvm("io_exits"));
    assert_eq!(ours("mmio_read", "mmio_write"), kvm("mmio_exits"));
}

#[test]
fn the_root_and_the_network_are_on_pci_and_interrupt_by_messages() {
    for version in VERSIONS {
        let (scratch, tap) = (Scratch::new(), Tap::new("vtpci", "10.111.0.1"));
        let root = scratch.path("root.ext4");
        fs::copy(image("root.ext4"), &root).unwrap();
        let script = format!(
            "{UP}dd if=/dev/urandom of=/written bs=1M count=4 2>/dev/null; sync
ping -c 3 -W 10 10.111.0.1 | grep received
echo ROOT=$(awk '$2==\"/\"{{print $1 \",\" $3}}' /proc/mounts | tail -1)
{LOOK}"
        );
        let mut spec = on_pci(version, "vitrine.root=/dev/vda", &script);
        let mut first = drive("rootfs", &root);
        first.root = true;
        spec.drives.push(first);
        let done = Guest::launch(with_tap(spec, &tap, None)).finish(PATIENCE);
        let console = &done.console;
        assert_eq!(done.outcome, Outcome::PowerOff, "{console}");
        assert!(told(console, "ROOT").ends_with("ext4"), "{console}");
        assert!(console.contains("3 packets received"), "{console}");
        for device in [
            "DEVICE=0000:00:00.0,0x1b36,0x0008,0x060000",
            "DEVICE=0000:00:01.0,0x1af4,0x1042,0x018000",
            "DEVICE=0000:00:02.0,0x1af4,0x1041,0x020000",
        ] {
            assert!(console.contains(device), "{device}:\n{console}");
        }
        // Each has its configuration's; the drive one more, the interface two.
        assert_eq!(told(console, "MESSAGES"), "5", "{console}");
        assert_eq!(told(console, "LINES"), "0", "{console}");
        assert_eq!(told(console, "ECAM"), "1", "{console}");
        for (device, queues) in [("rootfs", 1), ("eth0", 2)] {
            assert_eq!(transport(&done.seen, device), [1, 0, 0, 0], "{device}");
            for queue in 0..queues {
                let queue = format!("queue/{device}/{queue}");
                let number = |field| done.seen.number(&queue, field, "");
                assert!(number("kicks") > 0 && number("completions") > 0, "{queue}");
            }
            let (reads, writes) = done.seen.accesses(device);
            assert!(reads > 0 && writes > 0, "{device}");
        }
        assert!(done.seen.number("queue/rootfs/0", "interrupts", "") > 0);
        assert!(done.seen.accesses("pci").0 > 32, "the bus was looked at");
        exits_agree(&done);
    }
}

#[test]
fn a_drive_leaves_pci_and_comes_back_and_pauses_come_between() {
    let script = "
device=0000:00:01.0
driver=/sys/bus/pci/drivers/virtio-pci
for turn in 1 2 3; do
  dd if=/dev/vda of=/dev/null bs=64k 2> /run/said && echo TURN$turn=$(grep -c '^64+0 records in' /run/said)
  echo $device > $driver/unbind
  [ -e /dev/vda ] || echo GONE$turn=yes
  echo $device > $driver/bind
done
echo TROUBLE=$(dmesg | grep -ciE 'lockup|stall|hung task|I/O error|call trace|BAR .*error' | head -1)
reboot -f
";
    let scratch = Scratch::new();
    let mut spec = on_pci("6.12", "", script);
    spec.drives
        .push(drive("disk", &scratch.disk("disk", 4 << 20, 0)));
    spec.vcpus = 2;
    let guest = Guest::launch(spec);
    guest.await_words("TURN1", PATIENCE);
    for _ in 0..5 {
        guest.command(VmCommand::Pause);
        let done = |seen: Seen| seen.number("queue/disk/0", "completions", "");
        let before = done(guest.seen());
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(done(guest.seen()), before);
        guest.command(VmCommand::Resume);
        std::thread::sleep(Duration::from_millis(50));
    }
    let done = guest.finish(PATIENCE);
    assert!(
        matches!(done.outcome, Outcome::Reset(_)),
        "{:?}",
        done.outcome
    );
    for turn in 1..=3 {
        for said in [format!("TURN{turn}=1"), format!("GONE{turn}=yes")] {
            assert!(done.console.contains(&said), "{said}: {}", done.console);
        }
    }
    assert_eq!(told(&done.console, "TROUBLE"), "0", "{}", done.console);
    let device = |field| done.seen.number("device/disk", field, "");
    assert_eq!(
        device("activations"),
        4,
        "at the boot and after each unbind"
    );
    assert_eq!(device("needs_reset"), 0);
    assert_eq!(transport(&done.seen, "disk"), [1, 0, 0, 0]);
}

/// What a guest did between two words of its console, in which it read 1000 times 4 KiB.
struct Work {
    sections: BTreeSet<String>,
    /// Requests, kicks, interrupts, and user exits of MMIO.
    counts: [u64; 4],
}

fn work(pci: bool) -> Work {
    let script = "
echo BEGIN; sleep 3
dd if=/dev/vda of=/dev/null bs=4k count=1000 iflag=direct 2>/dev/null
echo END; sleep 3
";
    let scratch = Scratch::new();
    let mut spec = on_pci("6.12", "", script);
    spec.pci = pci;
    spec.drives
        .push(drive("disk", &scratch.disk("disk", 8 << 20, 0)));
    let guest = Guest::launch(spec);
    let look = |words| {
        guest.await_words(words, PATIENCE);
        let seen = guest.seen();
        let queue = |field| seen.number("queue/disk/0", field, "");
        let exits = seen.exits("mmio_read") + seen.exits("mmio_write");
        [
            queue("requests"),
            queue("kicks"),
            queue("interrupts"),
            exits,
        ]
    };
    let (before, after) = (look("BEGIN"), look("END"));
    let done = guest.finish(PATIENCE);
    exits_agree(&done);
    assert_eq!(transport(&done.seen, "disk"), [u64::from(pci), 0, 0, 0]);
    let names = done.seen.0.sections.iter().map(|view| view.name.clone());
    Work {
        sections: names.collect(),
        counts: std::array::from_fn(|at| after[at] - before[at]),
    }
}

#[test]
fn a_request_costs_no_register_access_on_pci_and_all_is_seen_as_without() {
    let [mmio, pci] = [work(false), work(true)];
    println!("{:<12} {:>8} {:>8}", "", "MMIO", "PCI");
    let names = ["requests", "kicks", "interrupts", "mmio exits"];
    for (at, name) in names.iter().enumerate() {
        println!("{name:<12} {:>8} {:>8}", mmio.counts[at], pci.counts[at]);
    }
    assert_eq!(mmio.sections, pci.sections);
    for work in [&mmio, &pci] {
        assert!(work.counts[0] >= 1000, "{:?}", work.counts);
    }
    // Each interrupt of virtio-mmio is read and acknowledged; a message says it all.
    assert!(mmio.counts[3] >= mmio.counts[2], "{:?}", mmio.counts);
    assert!(pci.counts[3] <= 10, "{:?}", pci.counts);
}
