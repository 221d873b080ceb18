//! A black box with one of each that a report knows, and something that it does not.

use std::mem::offset_of;

use crate::blackbox::{BlackBox, Block, Meta};
use crate::cell::{Counter, Gauge, Histogram};
use crate::clock::Clock;
use crate::flight::{FlightEvent, FlightRing};
use crate::heartbeat::{Activity, Heartbeat};
use crate::host::HostSampler;
use crate::schema::{Field, FieldKind, Section, Unit};

#[repr(C)]
pub(super) struct Vcpu {
    pub heartbeat: Heartbeat,
    pub run: Counter,
    pub pauses: Counter,
    pub paused: Counter,
    pub stay: Histogram,
    pub exits: [Counter; 3],
    pub handler: [Histogram; 3],
    pub reads: [Counter; 2],
    pub novelty: Counter,
    pub flight: FlightRing,
}

const fn lone(name: &'static str, kind: FieldKind, offset: usize) -> Field {
    Field::lone(name, kind, Unit::None, offset, ".")
}

// SAFETY: repr(C), cells only.
#[allow(unsafe_code)]
unsafe impl Section for Vcpu {
    const KIND: &'static str = "vcpu";
    const INSTANCE: &'static [&'static str] = &["vcpu"];
    #[rustfmt::skip]
    const FIELDS: &'static [Field] = &[
        lone("heartbeat", FieldKind::Heartbeat, offset_of!(Vcpu, heartbeat)),
        Field::counter("run", Unit::Nanoseconds, offset_of!(Vcpu, run), "."),
        Field::counter("pauses", Unit::None, offset_of!(Vcpu, pauses), "."),
        Field::counter("paused", Unit::Nanoseconds, offset_of!(Vcpu, paused), "."),
        Field::histogram("stay", Unit::Nanoseconds, offset_of!(Vcpu, stay), "."),
        Field::counter("exits", Unit::None, offset_of!(Vcpu, exits), ".").column(3, 8, "reason"),
        Field::histogram("exit_handler", Unit::Nanoseconds, offset_of!(Vcpu, handler), ".")
            .column(3, size_of::<Histogram>(), "reason"),
        Field::counter("device_reads", Unit::None, offset_of!(Vcpu, reads), ".").column(2, 8, "device"),
        Field::counter("novelty", Unit::Bytes, offset_of!(Vcpu, novelty), "."),
        lone("flight", FieldKind::FlightRing, offset_of!(Vcpu, flight)),
    ];
}

#[repr(C)]
pub(super) struct Thread {
    pub heartbeat: Heartbeat,
    pub flight: FlightRing,
}

// SAFETY: repr(C), cells only.
#[allow(unsafe_code)]
unsafe impl Section for Thread {
    const KIND: &'static str = "thread";
    const INSTANCE: &'static [&'static str] = &["thread"];
    const FIELDS: &'static [Field] = &[
        lone(
            "heartbeat",
            FieldKind::Heartbeat,
            offset_of!(Thread, heartbeat),
        ),
        lone("flight", FieldKind::FlightRing, offset_of!(Thread, flight)),
    ];
}

#[repr(C)]
pub(super) struct Queue {
    pub requests: Counter,
    pub broken: Counter,
    pub in_flight: Gauge,
    pub in_flight_since: Gauge,
    pub broken_reason: Gauge,
    pub service: Histogram,
}

// SAFETY: repr(C), cells only.
#[allow(unsafe_code)]
unsafe impl Section for Queue {
    const KIND: &'static str = "queue";
    const INSTANCE: &'static [&'static str] = &["device", "queue"];
    #[rustfmt::skip]
    const FIELDS: &'static [Field] = &[
        Field::counter("requests", Unit::None, offset_of!(Queue, requests), "."),
        Field::counter("broken", Unit::None, offset_of!(Queue, broken), "."),
        Field::gauge("in_flight", Unit::None, offset_of!(Queue, in_flight), "."),
        Field::gauge("in_flight_since", Unit::Ticks, offset_of!(Queue, in_flight_since), "."),
        Field::gauge("broken_reason", Unit::None, offset_of!(Queue, broken_reason), "."),
        Field::histogram("service", Unit::Nanoseconds, offset_of!(Queue, service), "."),
    ];
}

#[repr(C)]
pub(super) struct Unheard {
    pub pages: Counter,
    pub since: Gauge,
}

// SAFETY: repr(C), cells only.
#[allow(unsafe_code)]
unsafe impl Section for Unheard {
    const KIND: &'static str = "unheard_of";
    const INSTANCE: &'static [&'static str] = &[];
    #[rustfmt::skip]
    const FIELDS: &'static [Field] = &[
        Field::counter("lost", Unit::Pages, offset_of!(Unheard, pages), "."),
        Field::gauge("since", Unit::Ticks, offset_of!(Unheard, since), "."),
    ];
}

/// A VM with one of each.
pub(super) struct Toys {
    pub black_box: BlackBox,
    pub vcpu: Block<Vcpu>,
    pub io: Block<Thread>,
    pub queue: Block<Queue>,
    pub unheard: Block<Unheard>,
    host: HostSampler,
}

fn names<const N: usize>(names: [&str; N]) -> [String; N] {
    names.map(ToOwned::to_owned)
}

impl Toys {
    pub fn new() -> Toys {
        let meta = Meta {
            vm_id: "web-1".into(),
            version: "9.8.7".into(),
        };
        let mut black_box = BlackBox::anonymous(1 << 20, &meta).unwrap();
        let reasons = names(["io_in", "hlt", "mmio_write"]);
        let devices = names(["nobody", "rootfs"]);
        let labels = [("reason", &reasons[..]), ("device", &devices[..])];
        let vcpu = black_box.section("vcpu/0", &labels).unwrap();
        let events = names([
            "",
            "{device:device} was kicked {value} times",
            "{detail:operation} took {value:ns} for {address:bytes}",
            "{device:device}: {value:errno} {length:hex}",
            "{nothing} {value:ns",
        ]);
        let labels = [
            ("event", &events[..]),
            ("device", &devices),
            ("operation", &names(["read"])),
        ];
        let io = black_box.section("thread/io-rootfs", &labels).unwrap();
        let broken = names(["", "a chain never ends"]);
        let queue = black_box.section("queue/rootfs/0", &[("broken", &broken)]);
        Toys {
            vcpu,
            io,
            queue: queue.unwrap(),
            unheard: black_box.section("unheard_of", &[]).unwrap(),
            host: HostSampler::new(&mut black_box).unwrap(),
            black_box,
        }
    }

    pub fn live(&mut self) {
        let now = Clock::process().ticks();
        let vcpu = &self.vcpu;
        vcpu.heartbeat.set(Activity::InHandler, 2, 1, 0xd000, now);
        vcpu.run.add(5_000_000);
        vcpu.exits[2].add(1);
        vcpu.handler[2].record(70_000);
        vcpu.reads[1].add(3);
        vcpu.novelty.add(2048);
        vcpu.flight.push(FlightEvent {
            at: now,
            what: 2 | 1 << 16 | 4 << 32,
            address: 0xd000,
            value: 70_000,
        });
        self.io.heartbeat.enter(Activity::Idle, now);
        self.queue.requests.add(3);
        self.queue.broken.inc();
        self.queue.broken_reason.set(1);
        self.queue.in_flight.set(1);
        self.queue.in_flight_since.set(now);
        self.queue.service.record(30_000);
        self.unheard.pages.add(2);
        self.host.sample();
    }

    pub fn io_event(&self, what: u64, address: u64, value: u64) {
        let at = Clock::process().ticks();
        self.io.flight.push(FlightEvent {
            at,
            what,
            address,
            value,
        });
    }
}
