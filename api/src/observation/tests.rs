//! A small black box, and what is made of it.

use std::mem::offset_of;

use vmm::observe::reader::Reader;
use vmm::observe::{BlackBox, End, Meta, Section};
use vmm::observe::{
    Column, Counter, Field, FlightEvent, FlightRing, Gauge, Heartbeat, Histogram, Series,
};

use super::*;

#[repr(C)]
struct Toy {
    heartbeat: Heartbeat,
    run: Counter,
    since: Gauge,
    never: Gauge,
    size: Gauge,
    exits: [Counter; 2],
    service: Histogram,
    flight: FlightRing,
    samples: Series<3, 4>,
}

const COLUMNS: [Column; 3] = [
    Column::level("at", Unit::Ticks, "."),
    Column::counter("run", Unit::Nanoseconds, "."),
    Column::level("size", Unit::Bytes, "."),
];

// SAFETY: repr(C), cells only.
#[allow(unsafe_code)]
unsafe impl Section for Toy {
    const KIND: &'static str = "vcpu";
    const INSTANCE: &'static [&'static str] = &["vcpu"];
    #[rustfmt::skip]
    const FIELDS: &'static [Field] = &[
        Field::lone("heartbeat", FieldKind::Heartbeat, Unit::Ticks, offset_of!(Toy, heartbeat), "."),
        Field::counter("run", Unit::Nanoseconds, offset_of!(Toy, run), "."),
        Field::gauge("since", Unit::Ticks, offset_of!(Toy, since), "."),
        Field::gauge("never", Unit::Ticks, offset_of!(Toy, never), "."),
        Field::gauge("size", Unit::Bytes, offset_of!(Toy, size), "."),
        Field::counter("exits", Unit::None, offset_of!(Toy, exits), ".").column(2, 8, "reason"),
        Field::histogram("service", Unit::Nanoseconds, offset_of!(Toy, service), "."),
        Field::lone("flight", FieldKind::FlightRing, Unit::None, offset_of!(Toy, flight), "."),
        Field::series::<3, 4>("samples", offset_of!(Toy, samples), &COLUMNS, "."),
    ];
}

#[repr(C)]
struct Unheard {
    pages: Counter,
}

// SAFETY: repr(C), cells only.
#[allow(unsafe_code)]
unsafe impl Section for Unheard {
    const KIND: &'static str = "unheard_of";
    const INSTANCE: &'static [&'static str] = &[];
    const FIELDS: &'static [Field] = &[Field::counter(
        "pages_lost",
        Unit::Pages,
        offset_of!(Unheard, pages),
        ".",
    )];
}

const SUBJECT: Subject<'static> = Subject {
    id: "x",
    state: "Running",
    black_box: Some("/b"),
};

fn detailed(all: bool) -> Details {
    Details {
        events: all,
        samples: all,
    }
}

fn observed(details: bool, end: Option<End>) -> Json {
    let meta = Meta {
        vm_id: "x".into(),
        version: "7".into(),
    };
    let mut black_box = BlackBox::anonymous(256 << 10, &meta).unwrap();
    let reasons = ["io_in".to_owned(), "hlt".to_owned()];
    let toy = black_box.section::<Toy>("vcpu/3", &[("reason", &reasons)]);
    let toy = toy.unwrap();
    let unheard = black_box.section::<Unheard>("unheard_of", &[]).unwrap();
    let now = vmm::observe::Clock::process().ticks();
    toy.heartbeat.set(Activity::InHandler, 1, 9, 0x3f8, now);
    toy.run.add(5);
    toy.since.set(now);
    toy.size.set(4096);
    toy.exits[0].add(2);
    (1..=100).for_each(|ns| toy.service.record(ns));
    toy.flight.push(FlightEvent {
        at: now,
        what: 1 | 2 << 8 | 3 << 16 | 4 << 32,
        address: 0x80,
        value: 6,
    });
    toy.samples.push([0, 5, 6]);
    toy.samples.push([now, 7, 8]);
    unheard.pages.add(8);
    let reader = Reader::from_file(black_box.file().unwrap(), "test".into()).unwrap();
    if let Some(end) = end {
        black_box.finish(end, "the guest powered off");
    }
    render(
        SUBJECT,
        Some(&reader.snapshot().unwrap()),
        detailed(details),
    )
}

#[test]
fn every_kind_of_field_has_its_shape() {
    let all = observed(false, None);
    assert_eq!(all["vcpus"].as_array().unwrap().len(), 1);
    let vcpu = &all["vcpus"][0];
    assert_eq!(vcpu["vcpu"], "3");
    assert_eq!(vcpu["run_ns"], 5);
    assert_eq!(vcpu["size_bytes"], 4096);
    assert_eq!(vcpu["exits"], json!({"io_in": 2}));
    assert_eq!(vcpu["never_ns_ago"], Json::Null);
    assert!(vcpu["since_ns_ago"].as_u64().unwrap() < 60_000_000_000);
    let service = vcpu["service_ns"].as_object().unwrap();
    assert_eq!(
        (&service["count"], &service["sum"]),
        (&json!(100), &json!(5050))
    );
    let ranked = ["p50", "p90", "p99", "max"].map(|name| service[name].as_u64().unwrap());
    assert!(ranked.is_sorted() && ranked[3] == 100, "{ranked:?}");
    let heartbeat = &vcpu["heartbeat"];
    assert_eq!(heartbeat["activity"], "in handler");
    assert_eq!(heartbeat["reason"], "hlt", "named by the table");
    assert_eq!(heartbeat["device"], 9, "no table names it");
    assert_eq!(heartbeat["address"], "0x3f8");
    assert!(heartbeat["since_ns_ago"].is_u64());
    assert_eq!(vcpu["flight"], json!({"written": 1}));
    assert_eq!(all["unheard_of"], json!([{"pages_lost_pages": 8}]));
}

#[test]
fn flight_events_come_when_they_are_asked_for() {
    let flight = observed(true, None)["vcpus"][0]["flight"].clone();
    let event = &flight["events"][0];
    let numbers = ["kind", "detail", "device", "length", "value"].map(|name| event[name].clone());
    assert_eq!(numbers, [1, 2, 3, 4, 6].map(|number| json!(number)));
    assert_eq!(event["address"], "0x80");
}

#[test]
fn samples_come_when_they_are_asked_for() {
    let plain = observed(false, None)["vcpus"][0]["samples"].clone();
    assert_eq!(plain, json!({"written": 2}));
    let samples = observed(true, None)["vcpus"][0]["samples"].clone();
    let columns = json!([
        {"name": "at_ns_ago", "counter": false},
        {"name": "run_ns", "counter": true},
        {"name": "size_bytes", "counter": false},
    ]);
    assert_eq!(
        (&samples["written"], &samples["columns"]),
        (&json!(2), &columns)
    );
    let rows = samples["rows"].as_array().unwrap();
    assert_eq!(rows[0], json!([null, 5, 6]));
    assert!(rows[1][0].as_u64().unwrap() < 60_000_000_000);
    assert_eq!(
        (rows.len(), &rows[1][1], &rows[1][2]),
        (2, &json!(7), &json!(8))
    );
}

#[test]
fn the_end_is_told() {
    assert_eq!(observed(false, None)["ended"], Json::Null);
    let ended = observed(false, Some(End::Clean))["ended"].clone();
    assert_eq!(ended["failed"], false);
    assert_eq!(ended["detail"], "the guest powered off");
}

#[test]
fn before_the_start_the_lists_are_there_and_empty() {
    let subject = Subject {
        state: "Not started",
        black_box: None,
        ..SUBJECT
    };
    let all = render(subject, None, detailed(true));
    for (_, list) in LISTS {
        assert_eq!(all[list], json!([]), "{list}");
    }
    assert_eq!(all["created_ms"], Json::Null);
    assert_eq!(all["truncated"], false);
}
