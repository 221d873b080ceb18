//! The flight rings of a black box as slices: user exits of vCPUs, and what I/O threads did.
//!
//! Names come from the black box itself, so that one of another version is told right.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};

use devices::virtio::counters::Flight;
use observe::FlightEvent;
use observe::reader::{SectionView, Snapshot};
use observe::trace::{Event, FlightFollower, Json, Track};

use super::sheet::Sheet;

/// Linux's thread ids are lower; what lies above is free for tracks that are no thread.
pub const TID_LIMIT: u64 = 1 << 22;
/// Requests of a thread that overlap lie on tracks of their own, up to so many.
const LANES: usize = 8;

/// Follows all flight rings of a VM.
#[derive(Default)]
pub struct Flights {
    follower: FlightFollower,
    lanes: HashMap<String, Lanes>,
    /// Events that were overwritten unseen, by thread.
    pub lost: BTreeMap<String, u64>,
}

/// The tracks of one thread. A viewer shows events of one track right only if none of them begins
/// within another and ends after it.
struct Lanes {
    thread: String,
    order: u64,
    base: Track,
    /// When the last event of each ended.
    ends: Vec<u64>,
}

/// One ring in one snapshot.
struct Ring<'a> {
    snapshot: &'a Snapshot,
    section: &'a SectionView,
}

impl Flights {
    /// Writes all events of `snapshot` that were not in the snapshots before; says how many the
    /// busiest thread had.
    ///
    /// # Errors
    /// The file does not take them.
    pub fn take<W: Write>(&mut self, snapshot: &Snapshot, sheet: &mut Sheet<W>) -> io::Result<u64> {
        let mut busiest = 0;
        for section in in_use(snapshot) {
            let Some(view) = section.flight("flight") else {
                continue;
            };
            let news = self.follower.news(&section.name, &view);
            let events = news.events.len() as u64;
            busiest = busiest.max(events.saturating_add(news.lost));
            let thread = thread_of(section);
            let lost = self.lost.entry(thread.clone()).or_default();
            *lost = lost.saturating_add(news.lost);
            if news.events.is_empty() {
                continue;
            }
            let count = self.lanes.len() as u64;
            let lanes = self.lanes.entry(section.name.clone()).or_insert_with(|| {
                let base = track(section, sheet.pid, count);
                let order = order(section);
                Lanes {
                    thread,
                    order,
                    base,
                    ends: Vec::new(),
                }
            });
            let ring = Ring { snapshot, section };
            for event in news.events {
                match section.kind() {
                    "vcpu" => ring.user_exit(event, lanes, sheet)?,
                    "thread" => ring.deed(event, lanes, sheet)?,
                    _ => {}
                }
            }
        }
        Ok(busiest)
    }
}

/// Of two sections with one name, the later one.
fn in_use(snapshot: &Snapshot) -> impl Iterator<Item = &SectionView> {
    let sections = snapshot.sections.iter().enumerate();
    let last: HashMap<&str, usize> = sections.map(|(at, s)| (s.name.as_str(), at)).collect();
    let sections = snapshot.sections.iter().enumerate();
    sections
        .filter(move |(at, section)| last.get(section.name.as_str()) == Some(at))
        .map(|(_, section)| section)
}

/// The name of the thread that writes a section: `vcpu-0`, `io-rootfs`.
pub fn thread_of(section: &SectionView) -> String {
    let instance = section.instance.first().map_or("", |(_, name)| name);
    match section.kind() {
        "vcpu" => format!("vcpu-{instance}"),
        _ => instance.to_owned(),
    }
}

/// Where viewers show a thread: vCPUs first, each with a place for its kernel track behind it.
pub fn order(section: &SectionView) -> u64 {
    let instance = section.instance.first().map_or("", |(_, name)| name);
    match (section.kind(), instance.parse::<u16>()) {
        ("vcpu", Ok(number)) => u64::from(number).saturating_mul(2),
        _ => 1 << 20,
    }
}

/// The track of the thread that writes a section; `number` tells those apart that are not known.
pub fn track(section: &SectionView, pid: u64, number: u64) -> Track {
    let tid = section.heartbeat("heartbeat").map_or(0, |beat| beat.tid);
    let known = (1..TID_LIMIT).contains(&tid);
    let invented = TID_LIMIT.saturating_sub(1).saturating_sub(number);
    Track {
        pid,
        tid: if known { tid } else { invented },
    }
}

impl Lanes {
    /// A track for an event, named at its first use, and when it may begin there: where all are
    /// taken, events are cut short at their beginning.
    fn place<W: Write>(
        &mut self,
        start_ns: u64,
        end_ns: u64,
        most: usize,
        sheet: &mut Sheet<W>,
    ) -> io::Result<(Track, u64)> {
        let free = self.ends.iter().position(|end| *end <= start_ns);
        let lane = match free {
            Some(lane) => lane,
            None if self.ends.len() < most => {
                let lane = self.ends.len();
                self.ends.push(0);
                let name = match (lane, self.thread.starts_with("vcpu-")) {
                    (_, true) => format!("{} vmm", self.thread),
                    (0, false) => self.thread.clone(),
                    (_, false) => format!("{} ({})", self.thread, lane.saturating_add(1)),
                };
                let order = self.order.saturating_add(lane as u64);
                sheet.name_track(self.track(lane), &name, order)?;
                lane
            }
            None => {
                let earliest = self.ends.iter().enumerate().min_by_key(|(_, end)| **end);
                earliest.map_or(0, |(lane, _)| lane)
            }
        };
        let track = self.track(lane);
        let Some(end) = self.ends.get_mut(lane) else {
            return Ok((track, start_ns));
        };
        let start_ns = start_ns.max(*end);
        *end = end_ns.max(*end);
        Ok((track, start_ns))
    }

    fn track(&self, lane: usize) -> Track {
        let offset = (lane as u64).saturating_mul(TID_LIMIT).saturating_mul(2);
        Track {
            tid: self.base.tid.saturating_add(offset),
            ..self.base
        }
    }
}

impl Ring<'_> {
    fn at_ns(&self, event: &FlightEvent) -> u64 {
        self.snapshot.header.clock.monotonic_of(event.at)
    }

    /// An event of a vCPU: a user exit.
    fn user_exit<W: Write>(
        &self,
        event: &FlightEvent,
        lanes: &mut Lanes,
        sheet: &mut Sheet<W>,
    ) -> io::Result<()> {
        let row = |label, number: u64| {
            let number = usize::try_from(number).ok()?;
            self.section.row_name(label, number)
        };
        let (kind, device) = (event.what & 0xff, event.what >> 16 & 0xffff);
        let reason = row("reason", kind);
        let reason = reason.map_or_else(|| format!("exit {kind}"), ToOwned::to_owned);
        let device = if event.what >> 32 == 0 {
            None
        } else {
            row("device", device)
        };
        let name = device.map_or_else(|| reason.clone(), |device| format!("{reason} {device}"));
        let mut args = vec![("reason", Json::Text(reason))];
        if let Some(device) = device {
            args.push(("device", Json::text(device)));
            args.push(("address", Json::hex(event.address)));
            args.push(("bytes", Json::Number(event.what >> 32)));
        }
        let start_ns = self.at_ns(event);
        let end_ns = start_ns.saturating_add(event.value);
        let (track, start_ns) = lanes.place(start_ns, end_ns, 1, sheet)?;
        sheet.event(&Event {
            track,
            category: "user_exit",
            name: &name,
            start_ns,
            duration_ns: Some(end_ns.saturating_sub(start_ns)),
            args,
        })
    }

    /// An event of an I/O thread.
    fn deed<W: Write>(
        &self,
        event: &FlightEvent,
        lanes: &mut Lanes,
        sheet: &mut Sheet<W>,
    ) -> io::Result<()> {
        let kind = event.what & 0xff;
        let known = DEEDS.iter().find(|(deed, ..)| *deed as u64 == kind);
        let end_ns = self.at_ns(event);
        let operation = || self.operation(&lanes.thread, event.what >> 8 & 0xff);
        let (name, args) = match known {
            Some((Flight::Done, ..)) => {
                let bytes = ("bytes", Json::Number(event.address));
                (
                    operation(),
                    vec![bytes, ("service_ns", Json::Number(event.value))],
                )
            }
            Some((deed, name, address, value)) => {
                let mut args = Vec::new();
                if *deed == Flight::HostError {
                    args.push(("operation", Json::Text(operation())));
                }
                if !address.is_empty() {
                    args.push((*address, Json::Number(event.address)));
                }
                if !value.is_empty() {
                    args.push((*value, Json::Number(event.value)));
                }
                ((*name).to_owned(), args)
            }
            None => {
                let address = ("address", Json::Number(event.address));
                let args = vec![address, ("value", Json::Number(event.value))];
                (format!("event {kind}"), args)
            }
        };
        let done = matches!(known, Some((Flight::Done, ..)));
        let begin_ns = if done {
            end_ns.saturating_sub(event.value)
        } else {
            end_ns
        };
        let (track, start_ns) = if done {
            lanes.place(begin_ns, end_ns, LANES, sheet)?
        } else {
            // A moment hides nothing: it lies on the first track, at its time.
            let (track, _) = lanes.place(u64::MAX, 0, LANES, sheet)?;
            (track, end_ns)
        };
        sheet.event(&Event {
            track,
            category: "device",
            name: &name,
            start_ns,
            duration_ns: done.then(|| end_ns.saturating_sub(start_ns)),
            args,
        })
    }

    /// The name of an operation of the device that the thread serves.
    fn operation(&self, thread: &str, number: u64) -> String {
        let device = thread.strip_prefix("io-").unwrap_or(thread);
        let section = self.snapshot.section(&format!("device/{device}"));
        let row = usize::try_from(number).ok();
        let name = section
            .zip(row)
            .and_then(|(s, row)| s.row_name("operation", row));
        name.map_or_else(|| format!("operation {number}"), ToOwned::to_owned)
    }
}

/// Kinds of event, their names, and what their two numbers are.
const DEEDS: [(Flight, &str, &str, &str); 8] = [
    (Flight::Kick, "kick", "queue", "kicks"),
    (Flight::Done, "done", "bytes", "service_ns"),
    (Flight::Activate, "activate", "", "features"),
    (Flight::Reset, "reset", "", ""),
    (Flight::Broken, "ring broken", "queue", "error"),
    (Flight::HostError, "host error", "", "errno"),
    (Flight::Pause, "pause", "", ""),
    (Flight::Resume, "resume", "", ""),
];
