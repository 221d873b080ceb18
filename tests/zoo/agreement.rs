//! What we count and what KVM counts are the same, where both count the same thing.

use vmm::Outcome;

use crate::harness::{Finished, Scratch, drive};
use crate::{run, zoo};

/// KVM's number, as the watcher last sampled it.
fn kvm(done: &Finished, stat: &str) -> u64 {
    done.seen.number("kvm_vcpu/0", "total", stat)
}

#[test]
fn user_exits_agree_with_kvms_own_statistics() {
    const WRITES: u64 = 1234;
    const READS: u64 = 777;
    const LOADS: u64 = 321;
    const STORES: u64 = 123;
    let scratch = Scratch::new();
    let mut spec = zoo(&format!(
        "quiet pio_write=0x80:{WRITES} pio_read=0x71:{READS} \
         mmio_read=0xd0000000:{LOADS} mmio_write=0xd0000014:{STORES}:0 poweroff"
    ));
    spec.drives
        .push(drive("disk", &scratch.disk("disk", 4096, 0)));
    let done = run(spec);
    assert_eq!(done.outcome, Outcome::PowerOff);
    let ours = |reason| done.seen.exits(reason);
    let (io, mmio) = (
        ours("io_in") + ours("io_out"),
        ours("mmio_read") + ours("mmio_write"),
    );
    println!("{:<28} {:>8} {:>8} {:>8}", "", "the guest", "ours", "KVM's");
    // Power off is the one more.
    let rows = [
        (
            "port accesses (io_exits)",
            WRITES + READS + 1,
            io,
            kvm(&done, "io_exits"),
        ),
        (
            "MMIO accesses (mmio_exits)",
            LOADS + STORES,
            mmio,
            kvm(&done, "mmio_exits"),
        ),
    ];
    for (what, made, ours, kvms) in rows {
        println!("{what:<28} {made:>8} {ours:>8} {kvms:>8}");
    }
    for (what, made, ours, kvms) in rows {
        // Where KVM emulates every instruction, for want of hardware, it counts no port accesses.
        let expected = if what.contains("io_exits") && !on_hardware() && kvms == 0 {
            println!("{what}: this KVM runs without hardware and counts none; Linux guests tell");
            0
        } else {
            made
        };
        assert_eq!((ours, kvms), (made, expected), "{what}");
    }
    let exits = kvm(&done, "exits");
    assert!(exits >= io + mmio, "KVM counts {exits} exits in all");
}

/// Whether KVM has hardware virtualisation to run guests with.
fn on_hardware() -> bool {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let flags = info.lines().find(|line| line.starts_with("flags")).unwrap();
    flags
        .split_whitespace()
        .any(|flag| flag == "vmx" || flag == "svm")
}

#[test]
fn every_thread_is_seen_by_the_watcher() {
    let done = run(zoo("quiet poweroff"));
    for thread in ["vm", "vcpu-0", "watcher", "console"] {
        assert!(done.seen.number("task", "cpu", thread) > 0, "{thread}");
    }
    assert!(done.seen.number("memory", "resident", "0x0") > 0);
    assert!(done.seen.number("thread/watcher", "loops", "") >= 2);
}
