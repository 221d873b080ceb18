//! The socket device under packets that are the input, from a guest that gives it few buffers.

use std::path::PathBuf;
use std::sync::Arc;

use devices::virtio::queue::QueueLayout;
use devices::virtio::queue::harness::LoneQueue;
use devices::virtio::{VirtioDevice, VsockBlock, VsockDevice, VsockSpec};
use memory::{Bytes, GuestAddress, GuestRam};
use observe::{BlackBox, Meta};

use super::input::Input;

const RAM_BYTES: usize = 64 << 10;
const SIZE: u16 = 16;
const HEADER_BYTES: usize = 44;
/// Where the rings of a queue begin, its packets, and how far these are apart.
const RINGS: [u64; 2] = [0x1000, 0x2000];
const PACKETS: [u64; 2] = [0x4000, 0x8000];
const STEP: u64 = 0x400;

/// A queue with these buffers, each a chain of its own; `write` if they are the device's to write.
fn queue(ram: &Arc<GuestRam>, rings: u64, buffers: &[(u64, u32)], write: bool) -> LoneQueue {
    let mut queue = LoneQueue::new(Arc::clone(ram), SIZE).expect("a queue");
    let driver = rings + 16 * u64::from(SIZE);
    let put = |at: u64, bytes: &[u8]| {
        let put = ram.write_slice(bytes, GuestAddress(at));
        put.expect("room for the rings");
    };
    for (place, (at, bytes)) in (0u16..).zip(buffers) {
        let descriptor = rings + 16 * u64::from(place);
        put(descriptor, &at.to_le_bytes());
        put(descriptor + 8, &bytes.to_le_bytes());
        put(descriptor + 12, &(u16::from(write) * 2).to_le_bytes());
        put(driver + 4 + 2 * u64::from(place), &place.to_le_bytes());
    }
    put(driver + 2, &(buffers.len() as u16).to_le_bytes());
    let layout = QueueLayout {
        size: SIZE,
        ready: true,
        descriptors: rings,
        driver,
        device: (driver + 6 + 2 * u64::from(SIZE)).next_multiple_of(4),
    };
    queue.activate(&layout, 0).expect("a layout that can be");
    queue.begin_turn();
    queue
}

/// Where the device listens; no program of the host does.
fn path() -> PathBuf {
    let name = format!(
        "vitrine-fuzz-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    );
    std::env::temp_dir().join(name)
}

/// Runs the target: bytes of data and whether the addresses are right, then a header, each.
pub fn run(bytes: &[u8]) {
    let ranges = [(GuestAddress(0), RAM_BYTES)];
    let ram = Arc::new(GuestRam::from_ranges(&ranges).expect("guest memory"));
    let mut input = Input(bytes);
    let mut packets = Vec::new();
    while !input.is_empty() && packets.len() < usize::from(SIZE) {
        let (data, right) = (u32::from(input.u8()), input.u8() % 4 != 0);
        let mut header = input.array::<HEADER_BYTES>();
        if right {
            header[..16].fill(0);
            (header[0], header[8], header[28], header[29]) = (3, 2, 1, 0);
        }
        let at = PACKETS[1] + STEP * packets.len() as u64;
        ram.write_slice(&header, GuestAddress(at)).expect("room");
        packets.push((at, HEADER_BYTES as u32 + data));
    }
    let buffers: Vec<(u64, u32)> = (0..8).map(|n| (PACKETS[0] + STEP * n, 0x400)).collect();
    let rx = queue(&ram, RINGS[0], &buffers, true);
    let tx = queue(&ram, RINGS[1], &packets, false);
    let meta = Meta {
        vm_id: "fuzz".to_owned(),
        version: "0".to_owned(),
    };
    let mut black_box = BlackBox::anonymous(1 << 20, &meta).expect("a black box");
    let block = VsockBlock::place(&mut black_box, "fuzz").expect("room in the black box");
    let path = path();
    let spec = VsockSpec {
        name: "fuzz".to_owned(),
        guest_cid: 3,
        path: path.clone(),
    };
    let mut device = VsockDevice::open(spec, block).expect("a socket");
    let _ = std::fs::remove_file(&path);
    let (received, sent) = (Arc::clone(&rx.seen), Arc::clone(&tx.seen));
    let mut queues = [rx.runner, tx.runner];
    for index in [0, 1, 0] {
        device.queue_ready(index, &mut queues);
    }
    // On a machine that is busy elsewhere, the turn's time may be over before all are taken.
    assert!(sent.requests.value() <= packets.len() as u64);
    assert!(sent.requests.value() > 0 || packets.is_empty());
    assert_eq!(sent.completions.value(), sent.requests.value());
    // Nobody is there to talk to: an answer is a reset, one a packet at most.
    let answers = received.completions.value();
    assert!(answers <= packets.len() as u64);
    assert_eq!(
        received.bytes_written.value(),
        answers * HEADER_BYTES as u64
    );
    device.reset();
}
