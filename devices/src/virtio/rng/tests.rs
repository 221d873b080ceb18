//! The entropy device under a mock driver.

use memory::{Bytes, GuestAddress};
use proptest::prelude::*;

use super::*;
use crate::virtio::BucketSpec;
use crate::virtio::mock_driver::{Buffer, DATA, Driver, Machine, wait_for};

/// A source whose bytes are known: none is zero.
fn ones(buffer: &mut [u8]) -> io::Result<()> {
    buffer.fill(1);
    Ok(())
}

fn dry(_: &mut [u8]) -> io::Result<()> {
    Err(io::Error::from_raw_os_error(libc::EAGAIN))
}

fn started(source: Source) -> (Machine, Driver) {
    limited(source, LimiterSpec::default())
}

fn limited(source: Source, limiter: LimiterSpec) -> (Machine, Driver) {
    let mut machine = Machine::new();
    let mut device = EntropyDevice::new("entropy", limiter).unwrap();
    device.source = source;
    let mut driver = machine.attach(device, 0x1_0000);
    driver.start_plain(0);
    (machine, driver)
}

/// What one request of these buffers got: the length told, and guest memory after it.
fn ask(driver: &mut Driver, buffers: &[Buffer]) -> u32 {
    driver.add(0, buffers);
    driver.kick(0);
    driver.wait_used(0, 1)[0].1
}

fn memory(driver: &Driver, at: u64, bytes: usize) -> Vec<u8> {
    let mut data = vec![0; bytes];
    driver.ram.read_slice(&mut data, GuestAddress(at)).unwrap();
    data
}

#[test]
fn the_hosts_bytes_are_random_and_fill_the_whole_buffer() {
    let (_machine, mut driver) = started(source::fill);
    let mut last = vec![0; 512];
    for _ in 0..3 {
        assert_eq!(ask(&mut driver, &[(DATA, 512, true)]), 512);
        let bytes = memory(&driver, DATA, 512);
        let different = bytes.iter().zip(&last).filter(|(new, old)| new != old);
        assert!(
            different.count() > 400,
            "512 random bytes differ nearly all"
        );
        last = bytes;
    }
    let row = &driver.seen.device.operations[0];
    assert_eq!((row.count.value(), row.bytes.value()), (3, 1536));
    assert_eq!(driver.seen.queues[0].bytes_written.value(), 1536);
}

#[test]
fn a_large_request_gets_a_part_and_several_buffers_are_filled_in_order() {
    let (_machine, mut driver) = started(ones);
    assert_eq!(ask(&mut driver, &[(DATA, 100_000, true)]), 65536);
    assert_eq!(memory(&driver, DATA + 65535, 2), [1, 0]);
    let at = DATA + 0x4_0000;
    let buffers = [(at, 3, true), (at + 0x100, 4100, true)];
    assert_eq!(ask(&mut driver, &buffers), 4103);
    assert_eq!(memory(&driver, at, 4), [1, 1, 1, 0]);
    assert_eq!(memory(&driver, at + 0x100 + 4099, 2), [1, 0]);
}

#[test]
fn a_host_without_entropy_is_an_error_that_is_counted_and_no_silent_zeros() {
    let (machine, mut driver) = started(dry);
    assert_eq!(ask(&mut driver, &[(DATA, 64, true)]), 0);
    driver.settle(&machine.thread);
    let device = &driver.seen.device;
    assert_eq!(device.operations[0].errors.value(), 1);
    assert_eq!(device.host_errors.value(), 1);
    assert_eq!(device.last_errno.value(), libc::EAGAIN as u64);
    assert_eq!(device.needs_reset.value(), 0);
}

#[test]
fn a_request_with_nothing_to_fill_breaks_the_ring() {
    let (machine, mut driver) = started(ones);
    driver.add(0, &[(DATA, 64, false)]);
    driver.kick(0);
    driver.settle(&machine.thread);
    assert_eq!(driver.seen.queues[0].broken.value(), 1);
    assert_eq!(driver.read(0x70) & 64, 64, "DEVICE_NEEDS_RESET");
    driver.start_plain(0);
    assert_eq!(ask(&mut driver, &[(DATA, 64, true)]), 64);
}

fn bucket(size: u64, refill_ms: u64) -> Option<BucketSpec> {
    Some(BucketSpec {
        size,
        one_time_burst: 0,
        refill_ms,
    })
}

#[test]
fn requests_over_the_limit_wait_in_the_ring() {
    const HOUR_MS: u64 = 3_600_000;
    let bytes = LimiterSpec {
        bandwidth: bucket(3 * 65536, HOUR_MS),
        ops: None,
    };
    let ops = LimiterSpec {
        bandwidth: None,
        ops: bucket(2, HOUR_MS),
    };
    // A request pays for what it gets, which is 64 KiB at most, and not for what it asks.
    for (limiter, through) in [(bytes, 3), (ops, 2)] {
        let (machine, mut driver) = limited(ones, limiter);
        for _ in 0..5 {
            driver.add(0, &[(DATA, 100_000, true)]);
        }
        driver.kick(0);
        let used = driver.wait_used(0, through);
        assert!(used.iter().all(|(_, told)| *told == 65536), "{used:?}");
        driver.settle(&machine.thread);
        assert_eq!(driver.wait_used(0, 0), []);
        let seen = &driver.seen.queues[0];
        assert_eq!(seen.limited.value(), 1);
        assert_ne!(seen.limited_since.value(), 0);
        assert_eq!(seen.requests.value(), u64::from(through));
        assert_eq!(seen.in_flight.value(), 0);
        // A driver that begins anew gets no more.
        driver.start_plain(0);
        assert_eq!(driver.seen.queues[0].limited_since.value(), 0);
        driver.add(0, &[(DATA, 8, true)]);
        driver.kick(0);
        let seen = &driver.seen.queues[0];
        wait_for("the wait", || seen.limited_since.value() != 0);
        assert_eq!(driver.wait_used(0, 0), []);
    }
}

#[test]
fn a_wait_ends_by_itself() {
    let limiter = LimiterSpec {
        bandwidth: bucket(10, 5),
        ops: bucket(1, 5),
    };
    let (_machine, mut driver) = limited(ones, limiter);
    for place in 0..5 {
        driver.add(0, &[(DATA + place * 64, 10, true)]);
    }
    driver.kick(0);
    assert_eq!(driver.wait_used(0, 5).len(), 5);
    let seen = &driver.seen.queues[0];
    assert!(seen.limited.value() > 0);
    wait_for("the end", || seen.limited_since.value() == 0);
    assert_eq!(memory(&driver, DATA + 4 * 64, 10), [1; 10]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the buffers, each byte that is told is filled and none beside them.
    #[test]
    fn what_is_told_is_what_is_filled(sizes in proptest::collection::vec(1u32..9000, 1..8)) {
        let (_machine, mut driver) = started(ones);
        let places = (0u64..).map(|place| DATA + place * 0x4000);
        let buffers: Vec<Buffer> =
            places.zip(&sizes).map(|(at, size)| (at, *size, true)).collect();
        let told = ask(&mut driver, &buffers);
        let all: u32 = sizes.iter().sum();
        prop_assert_eq!(told, all.min(MAX_REQUEST_BYTES as u32));
        let mut left = told as usize;
        for (at, size, _) in buffers {
            let bytes = memory(&driver, at, 0x4000);
            let filled = left.min(size as usize);
            prop_assert!(bytes[..filled].iter().all(|byte| *byte == 1));
            prop_assert!(bytes[filled..].iter().all(|byte| *byte == 0));
            left -= filled;
        }
    }
}
