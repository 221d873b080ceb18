//! What a guest puts into the balloon's queues: only its own memory is taken, each page once.

use devices::virtio::balloon::request::{PAGE_BYTES, Run, merged, pages, statistics};

use super::input::Input;

/// Runs the target: the pages of two ranges of RAM, then the list.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let low = u64::from(input.u8()) * PAGE_BYTES;
    let high = u64::from(input.u8()) * PAGE_BYTES;
    let ram = [(0, low), (1 << 32, high)];
    let list = input.slice(1 << 14);
    let judged = pages(list, &ram);
    let named = (list.len() / 4) as u64;
    assert_eq!(judged.accepted + judged.outside + judged.repeated, named);
    assert!(judged.accepted * PAGE_BYTES <= low + high);
    let mut end = None;
    for run in &judged.runs {
        assert!(run.bytes > 0 && end.is_none_or(|end| run.start > end));
        let inside = |(first, bytes): &(u64, u64)| {
            run.start >= *first && run.start + run.bytes <= first + bytes
        };
        assert!(ram.iter().any(inside), "{run:?} is not RAM");
        end = Some(run.start + run.bytes);
    }
    // Reported ranges have any start and length.
    let (parts, _) = list.as_chunks::<16>();
    let number = |bytes: &[u8]| {
        bytes
            .iter()
            .fold(0u64, |all, byte| all << 8 | u64::from(*byte))
    };
    let runs = parts.iter().map(|part| Run {
        start: number(&part[..8]),
        bytes: number(&part[8..]).max(1),
    });
    let together = merged(runs.collect());
    assert!(together.len() <= parts.len());
    assert!(
        together
            .windows(2)
            .all(|pair| pair[0].start + pair[0].bytes < pair[1].start)
    );
    let read = statistics(list);
    assert!(read.unknown <= (list.len() / 10) as u64);
}
