//! The watch on the serial output: what a guest's kernel says when something is wrong becomes a
//! typed [`GuestMessage`] with the lines around it, and the last output is kept in the black box.
//!
//! It sees what is taken from the serial port, whether it is then written or discarded, on the
//! thread `console`. A guest may say anything, as much as it likes: lines are bounded, escape codes
//! do not get through, and of messages that come too fast only the count is told.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

mod block;
mod lines;
mod message;

use observe::clock::monotonic_ns;
use observe::{Block, Clock};

pub use block::{EXCERPT_BYTES, MessageRow, OUTPUT_BYTES, WatchBlock};
use lines::{LastLines, LineSplitter, REMEMBERED};
use message::MESSAGE_KINDS;
pub use message::{Facts, MessageKind};

/// Messages of one kind that are told in a [`WINDOW_NS`]; the others are only counted.
const TOLD: u32 = 5;
const WINDOW_NS: u64 = 10_000_000_000;

/// Something that the guest's kernel said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestMessage {
    /// What it is about.
    pub kind: MessageKind,
    /// The message, without time stamp and escape codes; [`lines::LINE_BYTES`] at most.
    pub line: String,
    /// What it says.
    pub facts: Facts,
    /// The lines before it, oldest first, 8 at most.
    pub before: Vec<String>,
}

/// Is told of messages, on the console thread: it must not wait.
pub type OnMessage = Box<dyn FnMut(GuestMessage) + Send>;

/// How many were told of a kind, and since when.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    since_ns: u64,
    told: u32,
}

impl Window {
    /// Whether one more is told.
    fn admits(&mut self, now_ns: u64) -> bool {
        if self.told == 0 || now_ns.saturating_sub(self.since_ns) >= WINDOW_NS {
            *self = Window {
                since_ns: now_ns,
                told: 0,
            };
        }
        self.told = self.told.saturating_add(1);
        self.told <= TOLD
    }
}

/// The watch on one console.
pub struct ConsoleWatch {
    splitter: LineSplitter,
    judge: Judge,
}

/// What is made of lines.
struct Judge {
    block: Block<WatchBlock>,
    on_message: OnMessage,
    clock: Clock,
    last: LastLines,
    /// How many of the last lines are in no excerpt.
    unkept: usize,
    /// How many lines of the excerpt are still to come.
    to_keep: usize,
    /// The message that the excerpt is about, of which another line may tell more.
    open: Option<(MessageKind, Option<u32>)>,
    windows: [Window; MESSAGE_KINDS],
}

impl ConsoleWatch {
    /// A watch that has seen nothing yet.
    pub fn new(block: Block<WatchBlock>, on_message: OnMessage) -> Self {
        ConsoleWatch {
            splitter: LineSplitter::default(),
            judge: Judge {
                block,
                on_message,
                clock: Clock::process(),
                last: LastLines::default(),
                unkept: 0,
                to_keep: 0,
                open: None,
                windows: [Window::default(); MESSAGE_KINDS],
            },
        }
    }

    /// Looks at output.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.judge.block.output.push(bytes);
        for byte in bytes {
            if self.splitter.push(*byte) {
                self.judge.line(self.splitter.line());
                self.splitter.clear();
            }
        }
    }

    /// No more output comes: what was said last is a line, too.
    pub(super) fn end(&mut self) {
        if !self.splitter.line().is_empty() {
            self.judge.line(self.splitter.line());
            self.splitter.clear();
        }
    }
}

impl Judge {
    /// Judges a line that has ended.
    fn line(&mut self, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        let message = message::message(&text);
        if let Some(kind) = message::kind_of(message) {
            self.found(kind, message);
            self.keep_before();
            self.to_keep = REMEMBERED;
            self.keep(line);
        } else if self.to_keep > 0 {
            self.to_keep = self.to_keep.saturating_sub(1);
            self.keep(line);
        } else {
            self.open = None;
            self.unkept = self.unkept.saturating_add(1);
        }
        self.last.push(line);
    }

    fn found(&mut self, kind: MessageKind, text: &str) {
        let facts = Facts::of(kind, text);
        if self.belongs(kind, facts.pid) {
            return;
        }
        self.open = Some((kind, facts.pid));
        let now = monotonic_ns();
        let told = self.windows.get_mut(kind as usize);
        let told = told.is_some_and(|window| window.admits(now));
        if let Some(row) = self.block.rows.get(kind as usize) {
            row.messages.inc();
            row.last_at.set(self.clock.ticks());
            if !told {
                row.untold.inc();
            }
        }
        if told {
            let before = self.last.last(REMEMBERED).map(lossy).collect();
            (self.on_message)(GuestMessage {
                kind,
                line: text.to_owned(),
                facts,
                before,
            });
        }
    }

    /// Whether the line tells more of the message before it: an oops and an OOM kill begin with two
    /// or three that are messages each.
    fn belongs(&self, kind: MessageKind, pid: Option<u32>) -> bool {
        let joins = matches!(kind, MessageKind::Oops | MessageKind::OomKill);
        joins && self.to_keep > 0 && self.open == Some((kind, pid))
    }

    /// Begins an excerpt with the lines before the message that are in none.
    fn keep_before(&mut self) {
        if self.unkept > 0 && self.block.excerpts.written() > 0 {
            self.block.excerpts.push(b"\n");
        }
        for line in self.last.last(self.unkept) {
            self.block.excerpts.push(line);
            self.block.excerpts.push(b"\n");
        }
        self.unkept = 0;
    }

    fn keep(&mut self, line: &[u8]) {
        self.block.excerpts.push(line);
        self.block.excerpts.push(b"\n");
    }
}

fn lossy(line: &[u8]) -> String {
    String::from_utf8_lossy(line).into_owned()
}

/// Feeds arbitrary bytes to the splitter and the matcher, for fuzz targets: must return.
pub fn fuzz_entry(bytes: &[u8]) {
    let mut splitter = LineSplitter::default();
    let mut last = LastLines::default();
    for byte in bytes.iter().chain(b"\n") {
        if !splitter.push(*byte) {
            continue;
        }
        let text = lossy(splitter.line());
        assert!(splitter.line().len() <= lines::LINE_BYTES && !text.contains('\x1b'));
        let message = message::message(&text);
        if let Some(kind) = message::kind_of(message) {
            let facts = Facts::of(kind, message);
            assert!(facts.comm.is_none_or(|comm| message.contains(&comm)));
            assert!(last.last(REMEMBERED).count() <= REMEMBERED);
        }
        last.push(splitter.line());
        splitter.clear();
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
mod tests;
