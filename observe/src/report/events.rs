//! The last events of all flight rings, in the order in which they happened.
//!
//! What an event means is said by its section's `labels` line `event`, one template for each kind
//! of event; `docs/blackbox.md` describes them. A ring without templates is one of user exits (its
//! kinds are the rows of `reason`), or is shown as numbers.

use std::collections::HashSet;

use super::MAX_EVENTS;
use super::format::{bytes, clean, date, errno, relative, span};
use super::page::{Page, Table};
use super::scene::{MAX_SHOWN, Scene, instance, is_access, named};
use crate::flight::FlightEvent;
use crate::reader::{SectionView, Value};

struct Seen<'a> {
    event: FlightEvent,
    thread: &'a str,
    section: &'a SectionView,
}

pub(super) fn show(scene: &Scene<'_>, limit: usize, page: &mut Page) {
    let limit = limit.min(MAX_EVENTS);
    let mut rings: Vec<(String, &SectionView, Vec<FlightEvent>)> = Vec::new();
    let mut written = 0u64;
    for section in &scene.sections {
        for (_, _, value) in section.values() {
            if let Value::Flight(flight) = value {
                written = written.saturating_add(flight.written);
                rings.push((thread(section), section, flight.events));
            }
        }
    }
    if limit == 0 || written == 0 {
        return;
    }
    let mut seen: Vec<Seen<'_>> = rings
        .iter()
        .flat_map(|(thread, section, events)| {
            // A ring is in order: what may be shown is at its end.
            events.iter().rev().take(limit).rev().map(|event| Seen {
                event: *event,
                thread,
                section,
            })
        })
        .collect();
    seen.sort_by_key(|seen| seen.event.at);
    let skipped = seen.len().saturating_sub(limit);
    let shown = seen.len().saturating_sub(skipped);
    page.heading(&format!("The last {shown} events of {written}"));
    let mut table = Table::new(&["UTC", "before the end", "thread", "event"]);
    let (older, newer) = seen.split_at_checked(skipped).unwrap_or_default();
    let mut told: HashSet<&str> = newer.iter().map(|seen| seen.thread).collect();
    // A busy thread must not hide what a silent one did last.
    let last = older.iter().rev().filter(|seen| told.insert(seen.thread));
    let mut last: Vec<&Seen<'_>> = last.take(MAX_SHOWN).collect();
    last.reverse();
    for seen in last.iter().copied().chain(newer) {
        let clock = &scene.snapshot.header.clock;
        table.row([
            date(clock.realtime_of(seen.event.at)),
            relative(scene.monotonic(seen.event.at), scene.end_ns),
            seen.thread.to_owned(),
            words(seen.section, &seen.event),
        ]);
    }
    page.table(table);
    if !last.is_empty() {
        page.line("First the last event of each thread that has none among the others.");
    }
}

fn thread(section: &SectionView) -> String {
    match section.kind() {
        "vcpu" => format!("vcpu-{}", instance(section)),
        "thread" => instance(section),
        _ => section.name.clone(),
    }
}

/// The parts of an event's second word.
struct Parts {
    kind: u64,
    detail: u64,
    device: u64,
    length: u64,
}

impl Parts {
    fn of(event: &FlightEvent) -> Self {
        Parts {
            kind: event.what & 0xff,
            detail: event.what >> 8 & 0xff,
            device: event.what >> 16 & 0xffff,
            length: event.what >> 32,
        }
    }
}

/// One event as a line of words.
pub(super) fn words(section: &SectionView, event: &FlightEvent) -> String {
    let parts = Parts::of(event);
    let kind = usize::try_from(parts.kind).unwrap_or(usize::MAX);
    if let Some(template) = section.row_name("event", kind) {
        return filled(template, section, event, &parts);
    }
    if let Some(reason) = section.row_name("reason", kind) {
        return exit(reason, section, event, &parts);
    }
    let Parts {
        kind,
        detail,
        device,
        length,
    } = parts;
    format!(
        "event {kind}, detail {detail}, device {}, length {length}, address {:#x}, value {}",
        named(section, "device", device),
        event.address,
        event.value
    )
}

/// A user exit, and how long it took.
fn exit(reason: &str, section: &SectionView, event: &FlightEvent, parts: &Parts) -> String {
    let took = span(event.value);
    if !is_access(reason) && event.address == 0 && parts.length == 0 {
        return format!("{reason}, {took}");
    }
    let device = named(section, "device", parts.device);
    let unit = if parts.length == 1 { "byte" } else { "bytes" };
    format!(
        "{reason} of {} {unit} at {device} {:#x}, {took}",
        parts.length, event.address
    )
}

/// A template with its places filled: `{value:ns}`. One that is not understood stays as it is.
fn filled(template: &str, section: &SectionView, event: &FlightEvent, parts: &Parts) -> String {
    let mut out = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        out.push_str(before);
        let Some((place, after)) = after.split_once('}') else {
            out.push('{');
            rest = after;
            continue;
        };
        match filling(place, section, event, parts) {
            Some(text) => out.push_str(&text),
            None => out.extend(["{", place, "}"]),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

fn filling(
    place: &str,
    section: &SectionView,
    event: &FlightEvent,
    parts: &Parts,
) -> Option<String> {
    let (name, form) = place.split_once(':').unwrap_or((place, ""));
    let number = match name {
        "detail" => parts.detail,
        "device" => parts.device,
        "length" => parts.length,
        "address" => event.address,
        "value" => event.value,
        _ => return None,
    };
    Some(match form {
        "" => number.to_string(),
        "hex" => format!("{number:#x}"),
        "ns" => span(number),
        "bytes" => bytes(number),
        "errno" => errno(number),
        label => clean(&named(section, label, number)),
    })
}
