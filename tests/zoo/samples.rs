//! The samples of the last minutes are what was counted at their time.

use std::time::Duration;

use vmm::observe::reader::{SeriesView, Snapshot};

use crate::harness::{Finished, Guest, Scratch, Seen, drive};
use crate::{PATIENCE, run, zoo};

fn series(snapshot: &Snapshot, section: &str) -> SeriesView {
    let found = snapshot.section(section);
    let found = found.unwrap_or_else(|| panic!("no section {section}"));
    found.series("samples").unwrap()
}

/// The first and the last number of a column, which never fell between them.
fn ends(series: &SeriesView, column: &str) -> (u64, u64) {
    let place = series.place(column).unwrap();
    let numbers: Vec<u64> = series.column(place).collect();
    assert!(numbers.is_sorted(), "{column}: {numbers:?}");
    (*numbers.first().unwrap(), *numbers.last().unwrap())
}

#[test]
fn the_last_sample_has_all_that_was_counted() {
    let scratch = Scratch::new();
    let mut spec = zoo("quiet pio_write=0x80:1234 blk_read=0:64 poweroff");
    let disk = scratch.disk("disk", 64 * 512, 5);
    spec.drives.push(drive("disk", &disk));
    let Finished { seen, .. } = run(spec);
    let vcpu = series(&seen.0, "vcpu_samples/0");
    assert!(vcpu.written >= 2, "one at the start and one at the end");
    assert_eq!(vcpu.rows.len() as u64, vcpu.written);
    let exits = seen.total("vcpu/0", "exits");
    assert!(exits > 1234);
    let (first, last) = ends(&vcpu, "exits");
    assert_eq!(last - first, exits - first);
    assert_eq!(ends(&vcpu, "run").1, seen.number("vcpu/0", "run", ""));
    let kvm = |stat| seen.number("kvm_vcpu/0", "total", stat);
    assert_eq!(ends(&vcpu, "kvm_exits").1, kvm("exits"));
    let task = |field| seen.number("task", field, "vcpu-0");
    assert_eq!(ends(&vcpu, "cpu").1, task("cpu"));
    assert_eq!(ends(&vcpu, "run_delay").1, task("run_delay"));
    let queue = series(&seen.0, "queue_samples/disk/0");
    assert_eq!(ends(&queue, "requests").1, 64);
    assert_eq!(ends(&queue, "completions").1, 64);
    let last = |name| queue.last(name).unwrap();
    assert_eq!((last("in_flight"), last("oldest")), (0, 0));
    let machine = series(&seen.0, "samples");
    let last = |name| machine.last(name).unwrap();
    assert_eq!(last("host_swap_free"), seen.number("host", "swap_free", ""));
    assert_eq!(last("cpu_some"), seen.number("psi", "some", "cpu"));
    assert!(last("vmm_resident") > 1 << 20, "{}", last("vmm_resident"));
}

#[test]
fn samples_between_two_readings_lie_between_their_counters() {
    let guest = Guest::launch(zoo("quiet print=ready loop_pio=0x81"));
    guest.await_words("ready", PATIENCE);
    let counted = |seen: &Seen| seen.total("vcpu/0", "exits");
    let moment = |seen: &Seen| seen.0.now_monotonic_ns;
    let before = guest.seen();
    let mut after = guest.seen();
    while series(&after.0, "vcpu_samples/0").written
        < series(&before.0, "vcpu_samples/0").written + 3
    {
        std::thread::sleep(Duration::from_millis(50));
        after = guest.seen();
    }
    let vcpu = series(&after.0, "vcpu_samples/0");
    let (at, exits) = (vcpu.place("at").unwrap(), vcpu.place("exits").unwrap());
    let clock = &after.0.header.clock;
    let mut between = 0;
    for row in &vcpu.rows {
        // The sections were read before the moment that their snapshot bears.
        if clock.monotonic_of(row[at]) > moment(&before) {
            between += 1;
            assert!(row[exits] >= counted(&before), "{row:?}");
        }
    }
    assert!(between >= 2, "{between} samples between the readings");
    let times: Vec<u64> = vcpu.column(at).collect();
    assert!(times.windows(2).all(|pair| pair[0] < pair[1]), "{times:?}");
    let done = guest.stop();
    let (_, last) = ends(&series(&done.seen.0, "vcpu_samples/0"), "exits");
    assert_eq!(last, done.seen.total("vcpu/0", "exits"));
    assert!(last >= counted(&after));
}
