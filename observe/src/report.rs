//! Renders what a reader sees for people: a report of one moment, and the screens of `top`.
//!
//! Pure functions over [`Snapshot`]s, live or dead. Nothing in a black box is trusted: each text
//! from it is [cleaned](format::clean), so that no control character reaches a terminal, and what
//! a page holds is bounded, whatever the file says. Numbers are named by the black box itself (the
//! rows of its tables and its `labels` lines); this module knows no device and no exit. What it
//! does not know, of newer writers, it shows in a table of its own at the end.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

mod balloon;
mod console;
mod devices;
mod diagnosis;
mod events;
pub mod format;
mod host;
mod page;
mod rest;
mod samples;
mod scene;
mod statistics;
mod summary;
mod threads;
mod top;
mod vcpus;

use crate::reader::{Ended, Snapshot};
pub use balloon::STATISTICS as BALLOON_STATISTICS;
pub use diagnosis::{is_certain, render_diagnosis};
use page::Page;
pub use rest::SHOWN as SHOWN_FIELDS;
use scene::Scene;
pub use top::render_top;

/// Most events that a report shows.
pub const MAX_EVENTS: usize = 20_000;

/// What a report holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How many of the last events, of all flight rings together; at most [`MAX_EVENTS`].
    pub events: usize,
    /// All of KVM's statistics, and what is 0, too.
    pub all: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            events: 40,
            all: false,
        }
    }
}

/// What a black box says of its VM's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The writer lives.
    Running,
    /// It ended as somebody asked.
    Ended,
    /// It failed, and said so.
    Failed,
    /// The writer is gone and recorded no end: it was killed, or crashed.
    Dead,
    /// No end is recorded, and nothing tells whether the writer lives.
    Unknown,
}

impl State {
    /// Of the VM whose black box this is.
    pub fn of(snapshot: &Snapshot) -> State {
        match (&snapshot.header.end, snapshot.writer_alive) {
            (Ended::Clean { .. }, _) => State::Ended,
            (Ended::Failed { .. }, _) => State::Failed,
            (Ended::Running, Some(true)) => State::Running,
            (Ended::Running, Some(false)) => State::Dead,
            (Ended::Running, None) => State::Unknown,
        }
    }

    /// One word for people.
    pub fn word(self) -> &'static str {
        match self {
            State::Running => "running",
            State::Ended => "ended",
            State::Failed => "failed",
            State::Dead => "dead",
            State::Unknown => "unknown",
        }
    }

    /// The VM failed, or died without a clean end.
    pub fn is_bad(self) -> bool {
        matches!(self, State::Failed | State::Dead)
    }

    /// Nothing more will be written.
    pub fn is_over(self) -> bool {
        matches!(self, State::Ended | State::Failed | State::Dead)
    }
}

/// A sentence on how the VM ended, or that it lives.
pub fn ending(snapshot: &Snapshot) -> String {
    summary::ending(&Scene::new(snapshot))
}

/// Since when the VM is in its [`State`], in nanoseconds since 1970: made, ended, or last alive.
pub fn since_realtime_ns(snapshot: &Snapshot) -> u64 {
    let header = &snapshot.header;
    match (&header.end, State::of(snapshot)) {
        (Ended::Clean { at_realtime_ns, .. } | Ended::Failed { at_realtime_ns, .. }, _) => {
            *at_realtime_ns
        }
        (Ended::Running, State::Dead | State::Unknown) => {
            let end_ns = Scene::new(snapshot).end_ns;
            header.clock.realtime_of_monotonic(end_ns)
        }
        (Ended::Running, _) => header.created_realtime_ns,
    }
}

/// Guest memory that the host holds, in bytes; `None` where it was never looked at.
pub fn resident_bytes(snapshot: &Snapshot) -> Option<u64> {
    host::resident(&Scene::new(snapshot)).map(|(_, bytes)| bytes)
}

/// Guest memory as it was configured, in bytes; `None` where nothing tells.
pub fn memory_bytes(snapshot: &Snapshot) -> Option<u64> {
    snapshot.section("machine")?.gauge("memory")
}

/// vCPUs as they were configured, or else those that have a section.
pub fn vcpus(snapshot: &Snapshot) -> u64 {
    let told = snapshot.section("machine").and_then(|m| m.gauge("vcpus"));
    told.unwrap_or_else(|| Scene::new(snapshot).of_kind("vcpu").count() as u64)
}

/// The report as plain text. Never fails: what the black box does not hold is left out.
pub fn render(snapshot: &Snapshot, options: Options) -> String {
    page(snapshot, options).text()
}

/// The report as one HTML page that needs nothing else.
pub fn render_html(snapshot: &Snapshot, options: Options) -> String {
    page(snapshot, options).html()
}

fn page(snapshot: &Snapshot, options: Options) -> Page {
    let scene = Scene::new(snapshot);
    let mut page = Page::default();
    summary::show(&scene, &mut page);
    vcpus::show(&scene, &mut page);
    devices::show(&scene, &mut page);
    balloon::show(&scene, &mut page);
    threads::show(&scene, &mut page);
    console::show(&scene, &mut page);
    host::show(&scene, &mut page);
    samples::show(&scene, &mut page);
    statistics::show(&scene, options.all, &mut page);
    rest::show(&scene, options.all, &mut page);
    events::show(&scene, options.events, &mut page);
    page
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
mod tests;
