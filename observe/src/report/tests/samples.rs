//! The last minutes in a report.

use std::mem::offset_of;

use super::*;
use crate::blackbox::{BlackBox, Meta};
use crate::schema::{Field, Section, Unit};
use crate::series::{Column, Series};

#[repr(C)]
struct Ring {
    samples: Series<5, 300>,
}

const COLUMNS: [Column; 5] = [
    Column::level("at", Unit::Ticks, "."),
    Column::counter("run", Unit::Nanoseconds, "."),
    Column::counter("kvm_exits", Unit::None, "."),
    Column::level("in_flight", Unit::None, "."),
    Column::level("memory", Unit::Bytes, "."),
];

// SAFETY: repr(C), a series only.
#[allow(unsafe_code)]
unsafe impl Section for Ring {
    const KIND: &'static str = "vcpu_samples";
    const INSTANCE: &'static [&'static str] = &["vcpu"];
    const FIELDS: &'static [Field] = &[Field::series::<5, 300>(
        "samples",
        offset_of!(Ring, samples),
        &COLUMNS,
        ".",
    )];
}

/// The lines under the heading, of a ring with `rows` rows, the last one now.
fn last_minutes(rows: u64) -> Vec<String> {
    let meta = Meta {
        vm_id: "vm".into(),
        version: "1".into(),
    };
    let mut black_box = BlackBox::anonymous(256 << 10, &meta).unwrap();
    let ring = black_box.section::<Ring>("vcpu_samples/3", &[]).unwrap();
    let clock = Clock::process();
    let second = (1_000_000_000u64 << 32) / clock.anchor().0;
    let now = clock.ticks();
    for n in 0..rows {
        let at = now - (rows - 1 - n) * second;
        // Half a second of each; 100 exits, and 1000 in the last second of all.
        let exits = n * 100 + if n + 1 == rows { 900 } else { 0 };
        ring.samples
            .push([at, n * 500_000_000, exits, 7, (rows - n) << 20]);
    }
    let text = squeezed(&render(&snapshot(&black_box), Options::default()));
    let part = text.split("The last minutes\n").nth(1);
    let lines = part.map_or("", |part| part).lines().skip(1);
    lines.map(ToOwned::to_owned).collect()
}

/// Whether a row is of about so many seconds ago: the tick rate was measured, and the end is a
/// moment after the last row.
fn is_near(row: &str, seconds: f64) -> bool {
    let age = row.strip_prefix('-').and_then(|row| row.split(' ').next());
    let age: f64 = age.unwrap().parse().unwrap();
    (age - seconds).abs() < 0.5 + seconds / 50.0
}

#[test]
fn the_last_minutes_are_rates_and_levels() {
    let lines = last_minutes(200);
    assert_eq!(lines[0], "vCPU 3 run kvm exits/s memory");
    assert_eq!(lines.len(), 1 + 12 + 10 + 1, "{lines:#?}");
    // The end is a moment after the last row.
    assert!(is_near(&lines[1], 120.0), "{lines:#?}");
    assert!(lines[1].ends_with(" s 50.0 % 100 121.0 MiB"), "{lines:#?}");
    assert!(is_near(&lines[12], 10.0), "{lines:#?}");
    assert!(is_near(&lines[13], 9.0), "{lines:#?}");
    assert!(is_near(&lines[22], 0.0), "{lines:#?}");
    assert!(lines[22].ends_with(" s 50.0 % 1000 1.0 MiB"), "{lines:#?}");
    assert_eq!(lines[23], "vCPU 3, all the time the same: in flight 7.");
}

#[test]
fn a_short_life_has_all_its_samples_and_one_sample_shows_no_trend() {
    let lines = last_minutes(4);
    assert_eq!(lines.len(), 1 + 3 + 1, "{lines:#?}");
    assert!(is_near(&lines[1], 2.0), "{lines:#?}");
    let lines = last_minutes(15);
    // The first of all, 10 before the newest, 9 before it, ...
    assert_eq!(lines.len(), 1 + 1 + 10 + 1, "{lines:#?}");
    for rows in [0, 1] {
        assert_eq!(last_minutes(rows), Vec::<String>::new(), "{rows}");
    }
}

#[repr(C)]
struct Memory {
    sampled_at: crate::Gauge,
    resident: [crate::Gauge; 2],
    hugetlb: [crate::Gauge; 2],
}

const fn column(name: &'static str, offset: usize) -> Field {
    Field::gauge(name, Unit::Bytes, offset, ".").column(2, 8, "region")
}

// SAFETY: repr(C), cells only.
#[allow(unsafe_code)]
unsafe impl Section for Memory {
    const KIND: &'static str = "memory";
    const INSTANCE: &'static [&'static str] = &[];
    #[rustfmt::skip]
    const FIELDS: &'static [Field] = &[
        Field::gauge("sampled_at", Unit::Ticks, offset_of!(Memory, sampled_at), "."),
        column("resident", offset_of!(Memory, resident)),
        column("hugetlb", offset_of!(Memory, hugetlb)),
    ];
}

#[test]
fn huge_pages_of_the_hosts_pools_are_counted_once() {
    let meta = Meta {
        vm_id: "vm".into(),
        version: "1".into(),
    };
    let mut black_box = BlackBox::anonymous(256 << 10, &meta).unwrap();
    let regions = ["0x0", "0x100000000"].map(String::from);
    let memory = black_box.section::<Memory>("memory", &[("region", &regions)]);
    let memory = memory.unwrap();
    assert_eq!(resident_bytes(&snapshot(&black_box)), None);
    memory.sampled_at.set(1);
    // As `MemorySampler` writes them: those in huge pages are resident, too.
    for (cells, bytes) in [(&memory.resident, [6, 3]), (&memory.hugetlb, [6, 2])] {
        cells[0].set(bytes[0] << 20);
        cells[1].set(bytes[1] << 20);
    }
    assert_eq!(resident_bytes(&snapshot(&black_box)), Some(9 << 20));
}
