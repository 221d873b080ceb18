//! The guest makes N of a thing, and N of it are counted: not one more, not one less.

use vmm::Outcome;

use crate::harness::{ENGINES, Scratch, drive};
use crate::{run, zoo};

#[test]
fn port_writes_are_counted_one_by_one() {
    let done = run(zoo("quiet pio_write=0x80:1234 poweroff"));
    assert_eq!(done.outcome, Outcome::PowerOff);
    assert_eq!(done.seen.accesses("post"), (0, 1234));
    // Power off is the one more.
    assert_eq!(done.seen.exits("io_out"), 1235);
    assert_eq!(done.seen.exits("io_in"), 0);
    assert_eq!(done.seen.number("vcpu/0", "exit_handler", "io_out"), 1235);
}

#[test]
fn port_reads_are_counted_one_by_one() {
    let done = run(zoo("quiet pio_read=0x71:777 poweroff"));
    assert_eq!(done.seen.accesses("cmos"), (777, 0));
    assert_eq!(done.seen.exits("io_in"), 777);
}

#[test]
fn mmio_reads_and_writes_are_counted_one_by_one() {
    let scratch = Scratch::new();
    let mut spec = zoo(
        "quiet mmio_read=0xd0000000:321 mmio_write=0xd0000014:123:0 mmio_read=0xd0009000:11 poweroff",
    );
    spec.drives
        .push(drive("disk", &scratch.disk("disk", 4096, 0)));
    let done = run(spec);
    assert_eq!(done.seen.accesses("disk"), (321, 123));
    assert_eq!(done.seen.accesses("unclaimed-mmio"), (11, 0));
    assert_eq!(
        done.seen
            .number("vcpu/0", "device_misuse", "unclaimed-mmio"),
        11
    );
    assert_eq!(done.seen.exits("mmio_read"), 332);
    assert_eq!(done.seen.exits("mmio_write"), 123);
}

#[test]
fn exits_are_counted_by_reason_and_address_one_by_one() {
    let done = run(zoo(
        "quiet pio_write=0x80:1234 pio_write=0x81:55 pio_read=0x80:7 mmio_read=0xd0009000:11 poweroff",
    ));
    let place = |name| done.seen.number("vcpu/0", "place_exits", name);
    assert_eq!(place("io_out 0x80"), 1234);
    assert_eq!(place("io_out 0x81"), 55);
    assert_eq!(place("io_in 0x80"), 7);
    assert_eq!(place("mmio_read 0xd0009000"), 11);
    assert!(done.seen.number("vcpu/0", "place_handler", "io_out 0x80") > 0);
    assert_eq!(
        done.seen.total("vcpu/0", "place_exits"),
        done.seen.total("vcpu/0", "exits")
    );
}

#[test]
fn accesses_that_no_device_claims_are_counted_as_misuse() {
    let done = run(zoo("quiet pio_write=0x9990:17 pio_read=0x9990:19 poweroff"));
    assert_eq!(done.seen.accesses("unclaimed-port"), (19, 17));
    assert_eq!(
        done.seen
            .number("vcpu/0", "device_misuse", "unclaimed-port"),
        36
    );
}

#[test]
fn kicks_are_counted_though_they_make_no_user_exit() {
    let kicked = |count: u32| {
        let scratch = Scratch::new();
        let mut spec = zoo(&format!("quiet kick=0:{count} poweroff"));
        spec.drives
            .push(drive("disk", &scratch.disk("disk", 4096, 0)));
        run(spec)
    };
    let (none, many) = (kicked(0), kicked(500));
    assert_eq!(none.seen.number("queue/disk/0", "kicks", ""), 0);
    assert_eq!(many.seen.number("queue/disk/0", "kicks", ""), 500);
    // The set-up is the same, so the 500 kicks came by ioeventfd.
    assert_eq!(none.seen.exits("mmio_write"), many.seen.exits("mmio_write"));
}

#[test]
fn requests_completions_and_their_kicks_are_counted_one_by_one() {
    ENGINES.into_iter().for_each(requests_are_counted);
}

fn requests_are_counted(engine: vmm::IoEngine) {
    let scratch = Scratch::new();
    let mut spec = zoo("quiet blk_read=0:64 poweroff");
    let disk = scratch.disk("disk", 64 * 512, 5);
    spec.drives.push(drive("disk", &disk));
    spec.drives[0].engine = engine;
    let done = run(spec);
    let queue = |field| done.seen.number("queue/disk/0", field, "");
    assert_eq!(
        (queue("kicks"), queue("requests"), queue("completions")),
        (64, 64, 64)
    );
    assert_eq!((queue("in_flight"), queue("oldest_since")), (0, 0));
    assert_eq!(queue("service"), 64);
    // The first may have been there at activation already.
    let announced = queue("kick_to_pop") + queue("kicks_suppressed");
    assert!((63..=64).contains(&announced), "{announced}");
    assert_eq!(queue("done_to_interrupt"), queue("interrupts"));
    let latency = |row| done.seen.number("device/disk", "operation_latency", row);
    assert_eq!((latency("read"), latency("write")), (64, 0));
    let words = 64 * 512 / 8u64;
    let sum: u64 = (0..words).map(|i| 5 + i).sum();
    assert!(
        done.console
            .contains(&format!("blk_read ok 64 sum={sum:#x}")),
        "{}",
        done.console
    );
}

#[test]
fn what_the_guest_writes_is_on_the_disk() {
    ENGINES.into_iter().for_each(writes_are_on_the_disk);
}

fn writes_are_on_the_disk(engine: vmm::IoEngine) {
    let scratch = Scratch::new();
    let disk = scratch.disk("disk", 16 * 512, 0);
    let mut spec = zoo("quiet blk_write=0:3:2 poweroff");
    spec.drives.push(drive("disk", &disk));
    spec.drives[0].engine = engine;
    let done = run(spec);
    assert!(done.console.contains("blk_write ok 2"), "{}", done.console);
    let bytes = std::fs::read(&disk).unwrap();
    let word = |sector: usize, i: usize| {
        let at = sector * 512 + i * 8;
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    };
    assert_eq!((word(3, 0), word(4, 63)), (3 << 32, 4 << 32 | 63));
    assert_eq!(word(5, 0), 5 * 64, "the sector behind is as it was");
}

#[test]
fn the_serial_console_counts_its_bytes() {
    let done = run(zoo("quiet print=0123456789 poweroff"));
    assert!(done.console.starts_with("0123456789"));
    let bytes = done.console.len() as u64;
    assert_eq!(done.seen.number("console/serial", "output", ""), bytes);
    assert_eq!(done.seen.accesses("serial").1, bytes);
}
