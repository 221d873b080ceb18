//! What is seen of a Linux guest from different sides agrees.

use vmm::Outcome;
use vmm::observe::ledger;

use crate::harness::{Guest, Scratch, drive};
use crate::{PATIENCE, linux};

#[test]
fn user_exits_of_a_whole_boot_agree_with_kvms_own_statistics() {
    let scratch = Scratch::new();
    let mut spec = linux("6.12", "", "dd if=/dev/vda of=/dev/null bs=64k count=64");
    spec.drives
        .push(drive("disk", &scratch.disk("disk", 8 << 20, 0)));
    let done = Guest::launch(spec).finish(PATIENCE);
    assert_eq!(done.outcome, Outcome::PowerOff);
    let kvm = |stat| done.seen.number("kvm_vcpu/0", "total", stat);
    let ours = |a, b| done.seen.exits(a) + done.seen.exits(b);
    let rows = [
        ("io_exits", ours("io_in", "io_out"), kvm("io_exits")),
        (
            "mmio_exits",
            ours("mmio_read", "mmio_write"),
            kvm("mmio_exits"),
        ),
    ];
    println!("{:<12} {:>8} {:>8}", "", "ours", "KVM's");
    for (what, ours, kvms) in rows {
        println!("{what:<12} {ours:>8} {kvms:>8}");
    }
    println!("{:<12} {:>8} {:>8}", "exits", "", kvm("exits"));
    println!("{:<12} {:>8} {:>8}", "halt_exits", "", kvm("halt_exits"));
    for (what, ours, kvms) in rows {
        assert_eq!(ours, kvms, "{what}");
        assert!(ours > 50, "{what}");
    }
    assert!(kvm("exits") > rows[0].1 + rows[1].1);
    let account = ledger::account(None, &done.seen.0, 0);
    println!("{account:#?}");
}
