use std::time::Duration;

use super::tests::{DiskFile, ask, pattern, start, with_both_engines};
use super::*;
use crate::virtio::mock_driver::{DATA, Driver, Machine, wait_for};
use crate::virtio::{BucketSpec, IoThreadError};
use memory::{Bytes, GuestAddress};

with_both_engines! {
    what_is_over_the_limit_waits_until_the_operator_lifts_it
    a_wait_ends_by_itself
    a_drive_gets_another_file_and_the_guest_its_size
}

const HOUR_MS: u64 = 3_600_000;

/// So many, and then none for an hour.
fn only(size: u64) -> Option<BucketSpec> {
    Some(BucketSpec {
        size,
        one_time_burst: 0,
        refill_ms: HOUR_MS,
    })
}

const NONE: Option<BucketSpec> = Some(BucketSpec {
    size: 0,
    one_time_burst: 0,
    refill_ms: 0,
});

fn change(machine: &Machine, change: DriveChange) -> Result<(), IoThreadError> {
    let change = DeviceChange::Drive(change);
    machine.thread.change(0, change, Duration::from_secs(5))
}

/// Reads of so many sectors each, all with one header, and their statuses in a row.
fn send(driver: &mut Driver, count: u64, sectors: u32) {
    driver
        .ram
        .write_slice(&[0; 16], GuestAddress(DATA))
        .unwrap();
    for place in 0..count {
        let (data, status) = (DATA + 0x1000, DATA + 0x9_0000 + place);
        driver.add(
            0,
            &[
                (DATA, 16, false),
                (data, sectors * 512, true),
                (status, 1, true),
            ],
        );
    }
    driver.kick(0);
}

fn what_is_over_the_limit_waits_until_the_operator_lifts_it() {
    for (limiter, through) in [
        (
            LimiterSpec {
                bandwidth: None,
                ops: only(2),
            },
            2,
        ),
        (
            LimiterSpec {
                bandwidth: only(3 * 1024),
                ops: only(9),
            },
            3,
        ),
    ] {
        let file = DiskFile::new(&pattern(64 * 512));
        let (machine, mut driver) = start(BlockSpec {
            limiter,
            ..file.spec()
        });
        send(&mut driver, 5, 2);
        assert_eq!(driver.wait_used(0, through).len(), usize::from(through));
        driver.settle(&machine.thread);
        assert_eq!(driver.wait_used(0, 0), []);
        let seen = &driver.seen.queues[0];
        assert_eq!(seen.limited.value(), 1);
        assert_ne!(seen.limited_since.value(), 0);
        assert_eq!(seen.requests.value(), u64::from(through));
        assert_eq!(seen.in_flight.value(), 0, "what waits is the guest's still");

        let limiter = LimiterSpec {
            bandwidth: NONE,
            ops: NONE,
        };
        let free = DriveChange {
            path: None,
            limiter,
        };
        change(&machine, free).unwrap();
        assert_eq!(
            driver.wait_used(0, 5 - through).len(),
            usize::from(5 - through)
        );
        let seen = &driver.seen.queues[0];
        wait_for("the end of the wait", || seen.limited_since.value() == 0);
        assert!(seen.limited_ns.value() > 0);
    }
}

fn a_wait_ends_by_itself() {
    let file = DiskFile::new(&pattern(64 * 512));
    let ops = Some(BucketSpec {
        size: 1,
        one_time_burst: 1,
        refill_ms: 5,
    });
    let (_machine, mut driver) = start(BlockSpec {
        limiter: LimiterSpec {
            bandwidth: None,
            ops,
        },
        ..file.spec()
    });
    send(&mut driver, 5, 1);
    assert_eq!(driver.wait_used(0, 5).len(), 5);
    assert!(driver.seen.queues[0].limited.value() > 0);
}

fn a_drive_gets_another_file_and_the_guest_its_size() {
    let (first, second) = (
        DiskFile::new(&[1; 2 * 512]),
        DiskFile::new(&[2; 5 * 512 + 9]),
    );
    let (machine, mut driver) = start(first.spec());
    let to = |path: &std::path::Path| DriveChange {
        path: Some(path.to_owned()),
        ..DriveChange::default()
    };
    let at = DATA + 0x1000;
    assert_eq!(ask(&mut driver, 0, 4, &[(at, 512, true)]).0, 1);
    let interrupts = driver.interrupt_count();
    change(&machine, to(&second.0)).unwrap();
    assert_eq!(driver.read(0x100), 5, "the capacity");
    assert_eq!(driver.read(0x60) & 2, 2, "a configuration interrupt");
    assert!(interrupts > 0 && driver.interrupt_count() > 0);
    assert_eq!(ask(&mut driver, 0, 4, &[(at, 512, true)]).0, 0);
    assert_eq!(driver.ram.read_obj::<u8>(GuestAddress(at)).unwrap(), 2);
    // The first is free, the second is not.
    BlockDevice::open(first.spec()).unwrap();
    assert!(BlockDevice::open(second.spec()).is_err());

    // What cannot be changes nothing.
    for (path, words) in [("/nonexistent", "does not exist"), ("/tmp", "a directory")] {
        let error = change(&machine, to(path.as_ref())).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    assert_eq!(ask(&mut driver, 0, 4, &[(at, 512, true)]).0, 0);

    // The same file, grown.
    std::fs::write(&second.0, [3; 7 * 512]).unwrap();
    change(&machine, to(&second.0)).unwrap();
    assert_eq!(driver.read(0x100), 7);
    assert!(
        BlockDevice::open(second.spec()).is_err(),
        "it is locked still"
    );
}
