use std::mem::offset_of;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::*;
use crate::blackbox::{BlackBox, Block, HEADER_BYTES, Meta};
use crate::openmetrics;
use crate::reader::tests::{bytes_of, genuine, snapshot, with_directory};
use crate::reader::{Reader, SeriesView, Snapshot, fuzz_entry};
use crate::schema::{Field, Section};

const ROWS: usize = 8;

#[repr(C)]
struct Toy {
    made: crate::Counter,
    exits: [crate::Counter; 3],
    took: crate::Histogram,
    samples: Series<3, ROWS>,
}

const COLUMNS: [Column; 3] = [
    Column::level("at", Unit::Ticks, "When."),
    Column::counter("exits", Unit::None, "Exits."),
    Column::level("memory", Unit::Bytes, "Memory."),
];

// SAFETY: repr(C), cells, arrays of cells and a series only.
#[allow(unsafe_code)]
unsafe impl Section for Toy {
    const KIND: &'static str = "toy";
    const INSTANCE: &'static [&'static str] = &["toy"];
    const FIELDS: &'static [Field] = &[
        Field::counter("made", Unit::None, offset_of!(Toy, made), "Made."),
        Field::counter("exits", Unit::None, offset_of!(Toy, exits), "Exits.").column(3, 8, "kind"),
        Field::histogram("took", Unit::None, offset_of!(Toy, took), "Took."),
        Field::series::<3, ROWS>("samples", offset_of!(Toy, samples), &COLUMNS, "Last."),
    ];
}

fn toy() -> (BlackBox, Block<Toy>) {
    let meta = Meta {
        vm_id: "vm".into(),
        version: "1".into(),
    };
    let mut black_box = BlackBox::anonymous(128 << 10, &meta).unwrap();
    let block = black_box.section::<Toy>("toy/1", &[]).unwrap();
    (black_box, block)
}

fn row(n: u64) -> [u64; 3] {
    [n, n.wrapping_mul(3), !n]
}

fn series(snapshot: &Snapshot) -> SeriesView {
    let section = snapshot.section("toy/1").unwrap();
    section.series("samples").unwrap()
}

#[test]
fn rows_are_read_back_oldest_first_with_what_their_numbers_are() {
    let (black_box, block) = toy();
    assert_eq!(series(&snapshot(&black_box)).rows, Vec::<Vec<u64>>::new());
    (0..5).for_each(|n| block.samples.push(row(n)));
    let seen = series(&snapshot(&black_box));
    assert_eq!(seen.written, 5);
    assert_eq!(
        seen.rows,
        (0..5).map(|n| row(n).to_vec()).collect::<Vec<_>>()
    );
    let names: Vec<_> = seen
        .columns
        .iter()
        .map(|c| (&c.name[..], c.is_counter))
        .collect();
    assert_eq!(names, [("at", false), ("exits", true), ("memory", false)]);
    assert_eq!(seen.columns[2].unit, Unit::Bytes);
    assert_eq!((seen.last("exits"), seen.last("none")), (Some(12), None));
    assert_eq!(seen.column(0).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    // A series is no metric.
    let mut text = String::new();
    openmetrics::render(&snapshot(&black_box), &mut text);
    assert!(!text.contains("samples"), "{text}");
}

#[test]
fn the_oldest_rows_are_overwritten_and_the_one_that_may_be_torn_is_left_out() {
    let (black_box, block) = toy();
    (0..100).for_each(|n| block.samples.push(row(n)));
    let seen = series(&snapshot(&black_box));
    assert_eq!(seen.written, 100);
    let kept: Vec<_> = (93..100).map(|n| row(n).to_vec()).collect();
    assert_eq!(seen.rows, kept, "one less than there are places for");
}

#[test]
fn a_row_that_is_being_written_is_never_seen() {
    let (black_box, block) = toy();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let numbers = 0u64..;
            let mut numbers = numbers.take_while(|_| !stop.load(Ordering::Relaxed));
            // Slow enough for a reader to see more than the row that is being written.
            let pause = std::time::Duration::from_micros(10);
            numbers.by_ref().for_each(|n| {
                block.samples.push(row(n));
                std::thread::sleep(pause);
            });
        });
        let reader = Reader::from_file(black_box.file().unwrap(), "test".into()).unwrap();
        let mut rows = 0;
        let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while rows < 1000 && std::time::Instant::now() < end {
            let seen = series(&reader.snapshot().unwrap());
            for found in &seen.rows {
                if *found != row(found[0]) {
                    stop.store(true, Ordering::Relaxed);
                    panic!("torn: {found:?}");
                }
            }
            rows += seen.rows.len();
        }
        stop.store(true, Ordering::Relaxed);
        assert!(rows > 0, "no snapshot held a row");
    });
    let seen = series(&snapshot(&black_box));
    assert_eq!(seen.rows.len() as u64, seen.written.min(ROWS as u64 - 1));
}

#[test]
fn words_of_others_are_read_in_the_process() {
    let (mut black_box, block) = toy();
    block.made.add(7);
    block.exits[0].add(1);
    block.exits[2].add(4);
    block.took.record(30);
    block.took.record(12);
    let probe = |field: &str| black_box.probe("toy/1", field);
    assert_eq!(probe("made").unwrap().value(), 7);
    let exits = probe("exits").unwrap();
    assert_eq!((exits.row(2), exits.row(3), exits.sum()), (4, 0, 5));
    assert_eq!(probe("took").unwrap().value(), 42, "the sum");
    assert!(probe("samples").is_none() && probe("unheard_of").is_none());
    assert!(black_box.probe("toy/2", "made").is_none());
    let second = black_box.section::<Toy>("toy/1", &[]).unwrap();
    second.made.inc();
    assert_eq!(black_box.probe("toy/1", "made").unwrap().value(), 1);
    assert_eq!(black_box.names_of("toy").collect::<Vec<_>>(), ["toy/1"; 2]);
    assert_eq!(black_box.names_of("none").count(), 0);
}

/// A black box with one section that has one series: its field line's numbers and columns.
fn hostile(numbers: &str, columns: usize) -> Vec<u8> {
    let mut text = format!("kind\tk\t\nfield\tk\ts\t6\t0\t{numbers}\tHelp.\n");
    for column in 0..columns {
        text.push_str(&format!("column\tk\ts\tc{column}\t1\t0\tHelp.\n"));
    }
    text.push_str("section\tk\tk\t36864\t4096\n");
    with_directory(&text)
}

fn rows_of(bytes: &[u8]) -> Option<(usize, usize)> {
    let snapshot = Snapshot::from_bytes(bytes).unwrap();
    let seen = snapshot.section("k").unwrap().series("s")?;
    Some((seen.rows.len(), seen.columns.len()))
}

#[test]
fn a_series_that_cannot_be_is_absent_and_a_large_one_is_bounded() {
    let mut plain = hostile("0\t4\t16\t", 2);
    plain[36864..36872].copy_from_slice(&3u64.to_le_bytes());
    assert_eq!(rows_of(&plain), Some((3, 2)));
    // Rows that overlap, none at all, no columns, a label, beyond the section.
    for (numbers, columns) in [
        ("0\t4\t8\t", 2),
        ("0\t4\t16\t", 0),
        ("0\t4\t16\tlabel", 2),
        ("4096\t4\t16\t", 2),
        ("18446744073709551615\t4\t16\t", 2),
    ] {
        assert_eq!(rows_of(&hostile(numbers, columns)), None, "{numbers:?}");
    }
    let mut endless = hostile("0\t18446744073709551615\t2048\t", 200);
    endless[36864..36872].copy_from_slice(&u64::MAX.to_le_bytes());
    let snapshot = Snapshot::from_bytes(&endless).unwrap();
    assert!(snapshot.truncated);
    let (rows, columns) = rows_of(&endless).unwrap();
    assert!(rows <= 4096 && columns == 64, "{rows} {columns}");
    let zero = hostile("0\t0\t16\t", 2);
    assert!(rows_of(&zero).is_none_or(|(rows, _)| rows == 0));
}

proptest! {
    #[test]
    fn hostile_series_never_panic(
        offset in prop_oneof![0u64..5000, any::<u64>()],
        count in prop_oneof![0u64..5000, any::<u64>()],
        stride in prop_oneof![0u64..1000, any::<u64>()],
        written in any::<u64>(),
        columns in 0usize..70,
    ) {
        let mut bytes = hostile(&format!("{offset}\t{count}\t{stride}\t"), columns);
        if let Some(place) = usize::try_from(offset).ok().and_then(|at| at.checked_add(36864)) {
            let end = place.saturating_add(8);
            if let Some(word) = bytes.get_mut(place..end) {
                word.copy_from_slice(&written.to_le_bytes());
            }
        }
        fuzz_entry(&bytes);
        if let Some((rows, columns)) = rows_of(&bytes) {
            prop_assert!(rows <= 4096 && columns <= 64);
        }
    }

    #[test]
    fn random_series_in_directories_never_panic(
        lines in proptest::collection::vec(
            "(kind|field|column|section)\t[ab](\t([0-9]{1,20}|[ab]{0,2}|6)){0,9}\n", 0..60)
    ) {
        fuzz_entry(&with_directory(&lines.concat()));
    }

    #[test]
    fn a_damaged_series_never_panics(
        spots in proptest::collection::vec((0usize..2000, any::<u8>()), 0..20),
    ) {
        let (black_box, block) = toy();
        (0..20).for_each(|n| block.samples.push(row(n)));
        let mut bytes = bytes_of(&black_box);
        for (at, value) in spots {
            bytes[HEADER_BYTES + at] = value;
        }
        fuzz_entry(&bytes);
    }
}

#[test]
fn an_older_writers_file_has_no_series() {
    let snapshot = Snapshot::from_bytes(&genuine()).unwrap();
    let section = snapshot.section("zoo/rootfs/0").unwrap();
    assert_eq!(section.series("events"), None);
}
