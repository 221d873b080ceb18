use super::*;
use crate::blackbox::{BlackBox, Block, End, Meta};
use crate::cell::{BUCKETS, Counter, Gauge, Histogram, bucket_low};
use crate::clock::Clock;
use crate::flight::{FLIGHT_EVENTS, FlightEvent, FlightRing};
use crate::heartbeat::{Activity, Heartbeat};
use crate::schema::{Field, FieldKind, Section, Unit};
use proptest::prelude::*;
use std::mem::offset_of;
use std::sync::atomic::{AtomicBool, Ordering};

#[repr(C)]
pub(crate) struct Row {
    pub count: Counter,
    pub time: Histogram,
}

/// One of everything.
#[repr(C)]
pub(crate) struct Zoo {
    pub beat: Heartbeat,
    pub made: Counter,
    pub depth: Gauge,
    pub took: Histogram,
    pub rows: [Row; 4],
    pub events: FlightRing,
}

// SAFETY: repr(C), cells only.
#[allow(unsafe_code)]
unsafe impl Section for Zoo {
    const KIND: &'static str = "zoo";
    const INSTANCE: &'static [&'static str] = &["device", "queue"];
    const FIELDS: &'static [Field] = &[
        Field::lone(
            "beat",
            FieldKind::Heartbeat,
            Unit::None,
            offset_of!(Zoo, beat),
            "Now.",
        ),
        Field::counter(
            "made",
            Unit::None,
            offset_of!(Zoo, made),
            "Made \"so\" far.",
        ),
        Field::gauge("depth", Unit::Bytes, offset_of!(Zoo, depth), "Depth."),
        Field::histogram("took", Unit::Nanoseconds, offset_of!(Zoo, took), "Took."),
        Field::counter("exits", Unit::None, offset_of!(Zoo, rows), "Exits.").column(
            4,
            size_of::<Row>(),
            "reason",
        ),
        Field::histogram(
            "exit_time",
            Unit::Nanoseconds,
            offset_of!(Zoo, rows) + offset_of!(Row, time),
            "Exit times.",
        )
        .column(4, size_of::<Row>(), "reason"),
        Field::lone(
            "events",
            FieldKind::FlightRing,
            Unit::None,
            offset_of!(Zoo, events),
            "Last.",
        ),
    ];
}

pub(crate) fn zoo(name: &str, vm_id: &str) -> (BlackBox, Block<Zoo>) {
    let meta = Meta {
        vm_id: vm_id.into(),
        version: "1.2.3".into(),
    };
    let mut black_box = BlackBox::anonymous(128 << 10, &meta).unwrap();
    let rows = ["io", "", "mmio, odd\n", "halt"].map(String::from);
    let block = black_box
        .section::<Zoo>(name, &[("reason", &rows)])
        .unwrap();
    (black_box, block)
}

pub(crate) fn snapshot(black_box: &BlackBox) -> Snapshot {
    let file = black_box.file().unwrap();
    Reader::from_file(file, "test".into())
        .unwrap()
        .snapshot()
        .unwrap()
}

fn event(n: u64) -> FlightEvent {
    FlightEvent {
        at: n,
        what: n ^ 1,
        address: n.wrapping_mul(3),
        value: !n,
    }
}

fn filled(block: &Block<Zoo>) {
    block.made.add(41);
    block.made.inc();
    block.depth.set(4096);
    block.took.record(1000);
    block.took.record(3_000_000);
    block.rows[0].count.add(5);
    block.rows[0].time.record(70);
    block.rows[1].count.add(6);
    block.rows[2].count.add(7);
    block.beat.claim();
    block
        .beat
        .set(Activity::InHandler, 3, 9, 0xfee0_0000, 1 << 40);
    (0..700).for_each(|n| block.events.push(event(n)));
}

#[test]
fn every_kind_of_field_is_read_back() {
    let (black_box, block) = zoo("zoo/rootfs/0", "vm-1");
    filled(&block);
    let snapshot = snapshot(&black_box);
    assert!(!snapshot.truncated);
    assert_eq!(snapshot.header.vm_id, "vm-1");
    assert_eq!(snapshot.header.version, "1.2.3");
    assert_eq!(snapshot.header.pid, u64::from(std::process::id()));
    assert_eq!(snapshot.header.boot_id.len(), 36);
    assert_eq!(snapshot.writer_alive, Some(true));
    let zoo = snapshot.section("zoo/rootfs/0").unwrap();
    let label = |label: &str, value: &str| (label.to_owned(), value.to_owned());
    assert_eq!(
        zoo.instance,
        [label("device", "rootfs"), label("queue", "0")]
    );
    assert_eq!(zoo.counter("made"), Some(42));
    assert_eq!(zoo.gauge("made"), None);
    assert_eq!(zoo.gauge("depth"), Some(4096));
    let took = zoo.histogram("took").unwrap();
    assert_eq!(
        (took.sum, took.max, took.count()),
        (3_001_000, 3_000_000, 2)
    );
    assert_eq!(took.quantile(1.0), 3_000_000);
    assert!((1000..1250).contains(&took.quantile(0.5)));
    let rows: Vec<&str> = zoo.row_names("exits").collect();
    assert_eq!(rows, ["io", "mmio_ odd_", "halt"]);
    assert_eq!(zoo.table("exits", "io").unwrap().as_u64(), Some(5));
    assert_eq!(zoo.table("exits", "nothing").map(|_| ()), None);
    let time = zoo.table("exit_time", "io").unwrap();
    assert_eq!(time.as_histogram().unwrap().sum, 70);
    let beat = zoo.heartbeat("beat").unwrap();
    assert_eq!(beat.activity, Some(Activity::InHandler));
    assert_eq!(
        (beat.reason, beat.device, beat.address),
        (3, 9, 0xfee0_0000)
    );
    assert_eq!((beat.since_ticks, beat.settled), (1 << 40, true));
    assert_ne!(beat.tid, 0);
    let flight = zoo.flight("events").unwrap();
    assert_eq!(flight.written, 700);
    let kept: Vec<_> = (700 - FLIGHT_EVENTS as u64 + 1..700).map(event).collect();
    assert_eq!(flight.events, kept);
}

#[test]
fn a_comma_cannot_move_rows() {
    let (black_box, block) = zoo("zoo/a/0", "vm");
    block.rows[3].count.add(9);
    let snapshot = snapshot(&black_box);
    let zoo = snapshot.section("zoo/a/0").unwrap();
    assert_eq!(zoo.table("exits", "halt").unwrap().as_u64(), Some(9));
}

#[test]
fn a_file_of_another_kind_or_format_is_refused() {
    let no = |bytes: &[u8]| Snapshot::from_bytes(bytes).unwrap_err().to_string();
    assert!(no(b"").contains("not a black box"));
    assert!(no(b"VITRBBO").contains("not a black box"));
    let mut other = b"VITRBBOX".to_vec();
    other.extend([2, 0, 0, 0, 0, 0, 0, 0]);
    assert!(no(&other).contains("format 2"), "{}", no(&other));
    let missing = Reader::open(Path::new("/nonexistent/x")).unwrap_err();
    assert!(missing.to_string().contains("/nonexistent/x"));
    let folder = Reader::open(&std::env::temp_dir()).unwrap_err();
    assert!(matches!(folder, ReadError::NotABlackBox { .. }));
}

pub(crate) fn bytes_of(black_box: &BlackBox) -> Vec<u8> {
    let file = black_box.file().unwrap();
    let bytes = source::read(&file, 0, usize::MAX).unwrap();
    assert!(bytes.len() > HEADER_BYTES);
    bytes
}

pub(crate) fn genuine() -> Vec<u8> {
    let (black_box, block) = zoo("zoo/rootfs/0", "vm");
    filled(&block);
    black_box.finish(End::Failed, "detail");
    bytes_of(&black_box)
}

#[test]
fn a_cut_file_gives_what_is_left_and_says_so() {
    let bytes = genuine();
    for keep in [16, 100, 1000, 4096, 5000] {
        let snapshot = Snapshot::from_bytes(&bytes[..keep]).unwrap();
        assert!(snapshot.truncated, "{keep}");
    }
    let whole = Snapshot::from_bytes(&bytes).unwrap();
    assert!(!whole.truncated);
    let start = HEADER_BYTES + (32 << 10);
    let cut = Snapshot::from_bytes(&bytes[..start + 64]).unwrap();
    let zoo = cut.section("zoo/rootfs/0").unwrap();
    assert!(zoo.truncated && cut.truncated);
    assert_eq!(zoo.counter("made"), Some(42));
    assert!(zoo.heartbeat("beat").is_some());
    assert_eq!(zoo.histogram("took"), None);
    assert_eq!(zoo.flight("events"), None);
}

/// A black box with a directory of our own words, and 64 KiB of sections after it.
pub(crate) fn with_directory(text: &str) -> Vec<u8> {
    let mut bytes = genuine();
    let used = offset_of!(crate::blackbox::Header, directory_used);
    bytes[used..used + 8].copy_from_slice(&(text.len() as u64).to_le_bytes());
    bytes[HEADER_BYTES..HEADER_BYTES + text.len()].copy_from_slice(text.as_bytes());
    bytes
}

#[test]
fn what_a_newer_writer_adds_is_passed_over() {
    let bytes = with_directory(
        "news\tx\t1\nkind\tk\ti\tnew column\nfield\tk\tplain\t1\t0\t0\t1\t0\t\tHelp.\tnew\n\
         field\tk\tstrange\t99\t0\t0\t1\t0\t\tHelp.\nfield\tk\tparsecs\t1\t77\t8\t1\t0\t\tHelp.\n\
         field\tk\tshort\t1\nsection\tk/1/2\tk\t40960\t64\tnew\nsection\tunknown/1\tno\t0\t64\n\
         section\tlast line is cut",
    );
    let snapshot = Snapshot::from_bytes(&bytes).unwrap();
    assert!(snapshot.truncated, "a line was cut");
    assert_eq!(snapshot.sections.len(), 1);
    let section = &snapshot.sections[0];
    let names: Vec<_> = section.fields().iter().map(|f| f.name.as_str()).collect();
    assert_eq!(names, ["plain", "parsecs"]);
    assert_eq!(section.fields()[1].unit, Unit::None);
    assert_eq!(section.instance, [("i".to_owned(), "1/2".to_owned())]);
}

#[test]
fn a_hostile_directory_is_bounded() {
    let mut text = String::from("kind\tk\t\n");
    for field in 0..300 {
        text.push_str(&format!(
            "field\tk\tf{field}\t3\t0\t0\t18446744073709551615\t8\tl\th\n"
        ));
    }
    for _ in 0..100 {
        text.push_str("section\ts\tk\t0\t18446744073709551615\nsection\ts\tk\t0\t60000\n");
    }
    text.push_str(&format!("labels\ts\tl\t{}\n", "a,".repeat(5000)));
    let snapshot = Snapshot::from_bytes(&with_directory(&text)).unwrap();
    assert!(snapshot.truncated);
    let rows: usize = snapshot.sections.iter().map(|s| s.values().count()).sum();
    assert!(rows <= MAX_ROWS);
}

#[test]
fn of_two_sections_with_one_name_the_newer_is_in_use() {
    let (mut black_box, first) = zoo("zoo/hot/0", "vm");
    first.made.add(100);
    let second = black_box.section::<Zoo>("zoo/hot/0", &[]).unwrap();
    second.made.inc();
    let snapshot = snapshot(&black_box);
    assert_eq!(
        snapshot.section("zoo/hot/0").unwrap().counter("made"),
        Some(1)
    );
    assert_eq!(snapshot.of_kind("zoo").count(), 2);
}

#[test]
fn a_torn_heartbeat_is_told_from_a_settled_one() {
    let (black_box, block) = zoo("zoo/a/0", "vm");
    block.beat.enter(Activity::Idle, 5);
    let mut bytes = bytes_of(&black_box);
    let start = HEADER_BYTES + (32 << 10);
    bytes[start + 16] = 6;
    let snapshot = Snapshot::from_bytes(&bytes).unwrap();
    let beat = snapshot
        .section("zoo/a/0")
        .unwrap()
        .heartbeat("beat")
        .unwrap();
    assert_eq!((beat.activity, beat.settled), (Some(Activity::Idle), false));
}

#[test]
fn ages_count_from_the_last_sign_of_life() {
    let (black_box, block) = zoo("zoo/a/0", "vm");
    let clock = Clock::process();
    block.beat.enter(Activity::InGuest, clock.ticks());
    std::thread::sleep(std::time::Duration::from_millis(30));
    let live = snapshot(&black_box);
    let since = |s: &Snapshot| s.sections[0].heartbeat("beat").unwrap().since_ticks;
    assert!(live.age_ns(since(&live)) >= 29_000_000);
    black_box.pulse().beat();
    std::thread::sleep(std::time::Duration::from_millis(30));
    let dead = Snapshot::from_bytes(&bytes_of(&black_box)).unwrap();
    assert!(dead.age_ns(since(&dead)) >= 29_000_000);
    assert!(dead.now_monotonic_ns <= monotonic_ns() - 30_000_000);
    let at = dead.header.clock.realtime_of(since(&dead));
    assert!(at.abs_diff(crate::clock::realtime_ns()) < 10_000_000_000);
}

/// Stops the writer when the reader is done, also when it fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_reader_sees_only_whole_things_while_a_writer_hammers() {
    let (black_box, block) = zoo("zoo/a/0", "vm");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0u64.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                block.events.push(event(n));
                let (reason, device) = (n as u8, n as u16);
                block.beat.set(Activity::InHandler, reason, device, n, n);
                block.took.record(1000);
                block.made.inc();
            }
        });
        let _stop = Stop(&stop);
        let reader = Reader::from_file(black_box.file().unwrap(), "test".into()).unwrap();
        let mut last = 0;
        let mut events = 0;
        let mut settled = 0;
        for _ in 0..3000 {
            let snapshot = reader.snapshot().unwrap();
            let zoo = &snapshot.sections[0];
            let flight = zoo.flight("events").unwrap();
            for pair in flight.events.windows(2) {
                assert_eq!(pair[1].at, pair[0].at + 1);
            }
            for seen in &flight.events {
                assert_eq!(*seen, event(seen.at));
            }
            events += flight.events.len();
            let beat = zoo.heartbeat("beat").unwrap();
            if beat.settled && beat.activity == Some(Activity::InHandler) {
                settled += 1;
                let n = beat.since_ticks;
                assert_eq!(
                    (beat.reason, beat.device, beat.address),
                    (n as u8, n as u16, n)
                );
            }
            let took = zoo.histogram("took").unwrap();
            let lag = took.sum.abs_diff(took.count() * 1000);
            assert!(
                took.sum.is_multiple_of(1000) && lag < 1_000_000_000,
                "{lag}"
            );
            let made = zoo.counter("made").unwrap();
            assert!(made >= last);
            last = made;
        }
        assert!(events > 0, "no snapshot held an event");
        println!("{events} events, {settled} settled heartbeats");
    });
    let snapshot = snapshot(&black_box);
    let zoo = &snapshot.sections[0];
    assert!(zoo.heartbeat("beat").unwrap().settled);
    let written = zoo.flight("events").unwrap().written;
    assert_eq!(zoo.counter("made"), Some(written));
    assert_eq!(zoo.histogram("took").unwrap().count(), written);
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        fuzz_entry(&bytes);
        let mut black_box = b"VITRBBOX\x01\0\0\0\0\0\0\0".to_vec();
        black_box.extend(bytes);
        fuzz_entry(&black_box);
    }

    #[test]
    fn random_directories_never_panic(
        lines in proptest::collection::vec(
            "(kind|field|section|labels)(\t([0-9]{1,20}|[a-c,/]{0,4}|[1-5])){0,10}\n", 0..60)
    ) {
        fuzz_entry(&with_directory(&lines.concat()));
    }

    #[test]
    fn a_damaged_black_box_never_panics(
        spots in proptest::collection::vec((0usize..6000, any::<u8>()), 0..20),
        keep in 0usize..200_000,
    ) {
        let mut bytes = genuine();
        for (at, value) in spots {
            bytes[at] = value;
        }
        fuzz_entry(&bytes);
        bytes.truncate(keep);
        fuzz_entry(&bytes);
    }

    #[test]
    fn a_quantile_is_at_most_a_quarter_too_high(
        mut values in proptest::collection::vec(0u64..1 << 40, 1..100),
        q in 0.0f64..=1.0,
    ) {
        let histogram = Histogram::default();
        values.iter().for_each(|value| histogram.record(*value));
        values.sort_unstable();
        let mut buckets = vec![0u64; BUCKETS];
        values.iter().for_each(|value| buckets[crate::cell::bucket_of(*value)] += 1);
        let view = HistogramView {
            sum: histogram.sum(),
            max: histogram.max(),
            buckets,
            unit: Unit::None,
        };
        let rank = ((q * values.len() as f64).ceil() as usize).max(1);
        let exact = values[rank - 1];
        let got = view.quantile(q);
        prop_assert!(got >= exact && got <= exact + exact / 4 + 1, "{got} for {exact}");
        let bound = bucket_low(BUCKETS / 2);
        let below = values.iter().filter(|value| **value < bound).count();
        prop_assert_eq!(view.count_below(bound), below as u64);
    }
}

#[test]
fn the_documented_header_is_the_one_that_is_written() {
    use crate::blackbox::Header;
    let text = include_str!("../../../docs/blackbox.md");
    let documented: Vec<(usize, &str)> = text
        .lines()
        .filter_map(|line| {
            let mut columns = line.strip_prefix("| 0x")?.split(" | ");
            let offset = usize::from_str_radix(columns.next()?, 16).unwrap();
            Some((offset, columns.nth(1)?.trim_matches('`')))
        })
        .collect();
    macro_rules! offsets {
        ($($field:ident)*) => { vec![$((offset_of!(Header, $field), stringify!($field))),*] };
    }
    let written = offsets![
        magic major minor header_bytes file_bytes directory_offset directory_capacity
        directory_used pid created_realtime_ns created_monotonic_ns ns_per_tick base_ticks
        base_monotonic_ns end_state ended_realtime_ns vm_id version boot_id end_detail
        ended_monotonic_ns pulse_ticks pulse_monotonic_ns pulse_check locked
    ];
    assert_eq!(documented, written);
    let check = format!("{:#x}", crate::blackbox::PULSE_CHECK);
    assert!(text.contains(&check), "{check}");
    for limit in [
        (MAX_SECTIONS == 16384, "16384 sections"),
        (MAX_SECTION_BYTES == 64 << 20, "64 MiB of sections"),
        (MAX_DIRECTORY_BYTES == 8 << 20, "8 MiB of directory"),
    ] {
        assert!(limit.0 && text.contains(limit.1));
    }
}
