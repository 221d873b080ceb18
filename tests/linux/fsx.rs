//! Random work on a drive of which each byte is known: `guests/fsx` does it in the guest and compares
//! what it reads; here the image is compared with the same sequence, sector by sector.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use vmm::{BucketSpec, DeviceChange, DriveChange, IoEngine, LimiterSpec, Outcome, VmCommand};

use crate::harness::remains::chance;
use crate::harness::{Guest, Scratch, drive};
use crate::{PATIENCE, on, told};

const SECTOR: usize = 512;
/// Sectors of the drive: 2 GiB.
const SECTORS: u64 = 1 << 22;
/// Sectors of a place where much happens.
const HOT: u64 = 8192;
const OPERATIONS: u64 = 4000;
/// What a word of a sector is more than the word before it.
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// What the guest does: see guests/fsx/fsx.c, which knows more of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A read or a flush.
    Keeps,
    Writes,
    Erases,
}

/// The operation of this number: what it does, from which sector on, to how many.
fn operation(seed: u64, index: u64) -> (Kind, u64, u64) {
    let (a, b) = (chance(seed, 2 * index), chance(seed, 2 * index + 1));
    let kind = match a & 15 {
        0..6 | 15 => Kind::Keeps,
        6..12 => Kind::Writes,
        _ => Kind::Erases,
    };
    let mut count = 1 + ((a >> 16) & 0xFFFF) % (1 << (((a >> 8) & 255) % 12));
    let mut sector = match b & 1 {
        1 => (b >> 8) % (SECTORS - count + 1),
        _ => {
            let first = match (b >> 1) & 15 {
                15 => SECTORS - HOT,
                place => place * (SECTORS / 16),
            };
            first + (b >> 8) % (HOT - count + 1)
        }
    };
    if (b >> 5) & 3 == 0 && count >= 8 {
        sector &= !7;
        count &= !7;
    }
    (kind, sector, count)
}

/// The operation that wrote each sector, from 1 on; 0 where it holds zeros.
fn writers(seed: u64) -> Vec<u32> {
    let mut writers = vec![0; SECTORS as usize];
    for index in 0..OPERATIONS {
        let (kind, sector, count) = operation(seed, index);
        let place = sector as usize..(sector + count) as usize;
        match kind {
            Kind::Keeps => {}
            Kind::Writes => writers[place].fill(index as u32 + 1),
            Kind::Erases => writers[place].fill(0),
        }
    }
    writers
}

/// Whether a sector holds what the operation `by` has written there.
fn is_right(seed: u64, sector: u64, by: u32, content: &[u8]) -> bool {
    let mut words = content
        .chunks_exact(8)
        .map(|word| u64::from_le_bytes(word.try_into().unwrap()));
    if by == 0 {
        return words.all(|word| word == 0);
    }
    let head = sector | u64::from(by) << 32;
    let mut expected = chance(seed, head);
    words.next() == Some(head)
        && words.all(|word| {
            expected = expected.wrapping_add(STEP);
            word == expected
        })
}

/// Where the next data or the next hole from `from` on is.
fn seek(image: &File, from: u64, whence: libc::c_int) -> Option<u64> {
    // SAFETY: the descriptor is open as long as `image` is; nothing else is passed.
    #[allow(unsafe_code)]
    let at = unsafe { libc::lseek(image.as_raw_fd(), from.cast_signed(), whence) };
    u64::try_from(at).ok()
}

/// Compares all of an image. Holes are not read: they must be where zeros are expected.
fn compare(image: &Path, seed: u64, writers: &[u32]) {
    let image = File::open(image).unwrap();
    assert_eq!(image.metadata().unwrap().len(), SECTORS * SECTOR as u64);
    let mut content = vec![0; 2048 * SECTOR];
    let mut at = 0;
    while at < SECTORS {
        // From the page that has it on: holes and data change at pages.
        let data = seek(&image, at * SECTOR as u64, libc::SEEK_DATA);
        let data = data.map_or(SECTORS, |bytes| bytes / SECTOR as u64);
        for sector in at..data {
            assert_eq!(writers[sector as usize], 0, "sector {sector} is a hole");
        }
        let hole = seek(&image, data * SECTOR as u64, libc::SEEK_HOLE);
        at = hole.map_or(SECTORS, |bytes| bytes / SECTOR as u64);
        let mut sector = data;
        while sector < at {
            let count = (at - sector).min(2048) as usize;
            let part = &mut content[..count * SECTOR];
            image.read_exact_at(part, sector * SECTOR as u64).unwrap();
            for one in part.chunks_exact(SECTOR) {
                let by = writers[sector as usize];
                let right = is_right(seed, sector, by, one);
                assert!(
                    right,
                    "sector {sector}, which operation {by} wrote: {one:x?}"
                );
                sector += 1;
            }
        }
    }
}

fn digest(writers: &[u32]) -> u64 {
    writers.iter().fold(0xcbf2_9ce4_8422_2325, |digest, by| {
        (digest ^ u64::from(*by)).wrapping_mul(0x100_0000_01b3)
    })
}

fn bucket(size: u64) -> Option<BucketSpec> {
    Some(BucketSpec {
        size,
        one_time_burst: 0,
        refill_ms: 100,
    })
}

/// Limits by turns, once of requests and once of bytes: some 50 requests a second.
fn limit(round: usize) -> LimiterSpec {
    let (ops, bytes) = [(5, 8 << 20), (50, 1 << 18)][round % 2];
    LimiterSpec {
        bandwidth: bucket(bytes),
        ops: bucket(ops),
    }
}

/// What limits nothing.
fn free() -> LimiterSpec {
    LimiterSpec {
        bandwidth: bucket(0),
        ops: bucket(0),
    }
}

/// One round: a pause in which nothing ends, new limits, and on.
fn disturb(guest: &Guest, path: Option<&Path>, limiter: LimiterSpec) {
    let completions = || guest.seen().number("queue/disk/0", "completions", "");
    guest.command(VmCommand::Pause);
    let before = completions();
    let path = path.map(Path::to_owned);
    let change = DriveChange { path, limiter };
    assert_eq!(guest.change("disk", DeviceChange::Drive(change)), Ok(()));
    std::thread::sleep(Duration::from_millis(10));
    assert_eq!(completions(), before, "a paused drive works");
    guest.command(VmCommand::Resume);
    std::thread::sleep(Duration::from_millis(40));
}

/// Rounds in which the limits hold the guest back: it has work for longer, however fast it is.
const LIMITED_ROUNDS: usize = 24;

fn holds_what_was_written(version: &str, pci: bool, engine: IoEngine) {
    let seed = u64::from(std::process::id()) << 8 | u64::from(pci);
    println!("{version}, pci {pci}, {engine:?}: seed {seed}");
    let scratch = Scratch::new();
    let path = scratch.path("disk");
    let image = File::create(&path).unwrap();
    image.set_len(SECTORS * SECTOR as u64).unwrap();
    let script = format!(
        "echo BEGUN
vitrine-fsx /dev/vda {seed} {OPERATIONS}
echo STATUS=$?
echo TROUBLE=$(dmesg | grep -ciE 'lockup|stall|hung task|I/O error|call trace' | head -1)"
    );
    let mut spec = on(version, pci, "", &script);
    spec.drives.push(drive("disk", &path));
    spec.drives[0].engine = engine;
    spec.drives[0].limiter = limit(0);
    let guest = Guest::launch(spec);
    guest.await_words("BEGUN", PATIENCE);
    for round in 0..LIMITED_ROUNDS {
        disturb(&guest, None, limit(round));
    }
    assert!(!guest.said().contains("STATUS="), "{}", guest.said());
    let waits = guest.seen().number("queue/disk/0", "limited", "");
    assert!(waits > 0, "no limit was felt");
    // The file itself is opened anew, too.
    disturb(&guest, Some(&path), free());
    let mut pauses = LIMITED_ROUNDS + 1;
    while !guest.said().contains("STATUS=") && pauses < 100 {
        disturb(&guest, None, LimiterSpec::default());
        std::thread::sleep(Duration::from_millis(100));
        pauses += 1;
    }
    let done = guest.finish(PATIENCE);
    assert_eq!(done.outcome, Outcome::PowerOff, "{}", done.console);
    assert_eq!(told(&done.console, "STATUS"), "0", "{}", done.console);
    assert_eq!(told(&done.console, "TROUBLE"), "0", "{}", done.console);
    let writers = writers(seed);
    assert_eq!(told(&done.console, "DIGEST"), digest(&writers).to_string());
    compare(&path, seed, &writers);

    let queue = |field| done.seen.number("queue/disk/0", field, "");
    assert_eq!(queue("requests"), queue("completions"));
    let device = |field, row| done.seen.number("device/disk", field, row);
    for row in ["read", "write", "flush", "discard", "write_zeroes"] {
        assert!(device("operations", row) > 50, "{row}");
        assert_eq!(device("operation_errors", row), 0, "{row}");
    }
    assert_eq!(device("host_errors", ""), 0);
    let number = 1 + u64::from(engine == IoEngine::Async);
    assert_eq!(device("io_engine", ""), number, "{engine:?}");
    println!(
        "{} requests, {pauses} pauses, {waits} waits by limits",
        queue("requests")
    );
}

#[test]
fn two_gib_hold_what_was_written_on_6_1_over_mmio_with_sync() {
    holds_what_was_written("6.1", false, IoEngine::Sync);
}

#[test]
fn two_gib_hold_what_was_written_on_6_12_over_mmio_with_async() {
    holds_what_was_written("6.12", false, IoEngine::Async);
}

#[test]
fn two_gib_hold_what_was_written_on_6_1_over_pci_with_async() {
    holds_what_was_written("6.1", true, IoEngine::Async);
}

#[test]
fn two_gib_hold_what_was_written_on_6_12_over_pci_with_sync() {
    holds_what_was_written("6.12", true, IoEngine::Sync);
}

#[test]
fn a_changed_byte_a_lost_write_and_one_at_another_place_are_found() {
    let (seed, by) = (77, 5);
    let sector_of = |sector: u64| {
        let head = sector | u64::from(by) << 32;
        let first = chance(seed, head);
        let words = (1..64).map(|i: u64| first.wrapping_add(STEP.wrapping_mul(i)));
        let words = std::iter::once(head).chain(words);
        words.flat_map(u64::to_le_bytes).collect::<Vec<u8>>()
    };
    let mut content = sector_of(9);
    assert!(is_right(seed, 9, by, &content));
    assert!(!is_right(seed, 9, by, &sector_of(10)), "another place");
    assert!(!is_right(seed, 9, by + 1, &content), "an older write");
    assert!(!is_right(seed, 9, 0, &content), "a lost discard");
    assert!(!is_right(seed, 9, by, &[0; SECTOR]), "a lost write");
    content[511] ^= 1;
    assert!(!is_right(seed, 9, by, &content));
}
