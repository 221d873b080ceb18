//! The entropy device on a queue whose rings and descriptors are the input.

use std::slice;
use std::sync::Arc;

use devices::virtio::queue::QueueLayout;
use devices::virtio::queue::harness::LoneQueue;
use devices::virtio::rng::MAX_REQUEST_BYTES;
use devices::virtio::{EntropyDevice, LimiterSpec, VirtioDevice};
use memory::{Bytes, GuestAddress, GuestRam};

const RAM_BYTES: usize = 64 << 10;
/// Where the rings begin. Not at 0, where virtio-queue takes a ring for one that is not set up.
const RINGS: usize = 0x100;
const SIZE: u16 = 16;

/// Runs the target: guest memory from [`RINGS`] on, where the table comes first.
pub fn run(bytes: &[u8]) {
    let ranges = [(GuestAddress(0), RAM_BYTES)];
    let ram = Arc::new(GuestRam::from_ranges(&ranges).expect("guest memory"));
    let bytes = &bytes[..bytes.len().min(RAM_BYTES - RINGS)];
    let put = ram.write_slice(bytes, GuestAddress(RINGS as u64));
    put.expect("room for the input");
    let mut queue = LoneQueue::new(ram, SIZE).expect("a queue");
    let descriptors = RINGS as u64;
    let driver = descriptors + 16 * u64::from(SIZE);
    let layout = QueueLayout {
        size: SIZE,
        ready: true,
        descriptors,
        driver,
        device: (driver + 6 + 2 * u64::from(SIZE)).next_multiple_of(4),
    };
    queue.activate(&layout, 0).expect("a layout that can be");
    let mut device = EntropyDevice::new("fuzz", LimiterSpec::default()).expect("a timer");
    // The driver may make its buffers overlap the rings: what is random then is the next turn's.
    for _ in 0..3 {
        queue.begin_turn();
        device.queue_ready(0, slice::from_mut(&mut queue.runner));
        queue.end_turn();
        assert_eq!(
            queue.in_flight(),
            0,
            "a request is neither given back nor refused"
        );
    }
    let (requests, given) = (
        queue.seen.requests.value(),
        queue.seen.bytes_written.value(),
    );
    assert!(given <= requests * MAX_REQUEST_BYTES as u64);
    device.reset();
}
