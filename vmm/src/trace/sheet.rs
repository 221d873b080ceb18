//! The trace that is being written, and what is counted of it.

use std::collections::BTreeMap;
use std::io::{self, Write};

use observe::trace::{ChromeWriter, Event, Json, Track};

/// Events that a trace has at most: some 300 MB of JSON.
pub const MAX_EVENTS: u64 = 2_000_000;

/// Something that a trace does not tell, and why: the cause and the remedy in a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// What is not there.
    pub what: String,
    /// Why not, and what to do about it.
    pub reason: String,
}

/// The trace of one process.
pub struct Sheet<W: Write> {
    writer: ChromeWriter<W>,
    /// The process.
    pub pid: u64,
    counts: BTreeMap<&'static str, u64>,
    written: u64,
    left_out: u64,
    /// What is not told.
    pub missing: Vec<Missing>,
}

impl<W: Write> Sheet<W> {
    /// Begins the trace of the process `pid`.
    ///
    /// # Errors
    /// `out` does not take it.
    pub fn begin(out: W, pid: u64, name: &str) -> io::Result<Self> {
        let mut writer = ChromeWriter::begin(out)?;
        writer.name_process(pid, name)?;
        Ok(Sheet {
            writer,
            pid,
            counts: BTreeMap::new(),
            written: 0,
            left_out: 0,
            missing: Vec::new(),
        })
    }

    /// Names a track.
    ///
    /// # Errors
    /// The file does not take it.
    pub fn name_track(&mut self, track: Track, name: &str, order: u64) -> io::Result<()> {
        self.writer.name_track(track, name, order)
    }

    /// Writes an event, unless there are too many.
    ///
    /// # Errors
    /// The file does not take it.
    pub fn event(&mut self, event: &Event<'_>) -> io::Result<()> {
        if self.written >= MAX_EVENTS {
            self.left_out = self.left_out.saturating_add(1);
            return Ok(());
        }
        self.written = self.written.saturating_add(1);
        let count = self.counts.entry(event.category).or_default();
        *count = count.saturating_add(1);
        self.writer.event(event)
    }

    /// Notes what the trace does not tell.
    pub fn lacks(&mut self, what: impl Into<String>, reason: impl Into<String>) {
        let (what, reason) = (what.into(), reason.into());
        self.missing.push(Missing { what, reason });
    }

    /// Ends the trace; `facts` are told with it.
    ///
    /// # Errors
    /// The file does not take it.
    pub fn finish(mut self, mut facts: Vec<(String, Json)>) -> io::Result<W> {
        if self.left_out > 0 {
            let events = self.left_out;
            let reason = format!("a trace has {MAX_EVENTS} at most; trace for a shorter time");
            self.lacks(format!("{events} events"), reason);
        }
        let counts = self.counts.iter();
        let counts = counts.map(|(kind, count)| (*kind, Json::Number(*count)));
        facts.push(("events".to_owned(), Json::object(counts)));
        let missing = self.missing.into_iter().map(|missing| {
            let what = ("what", Json::Text(missing.what));
            Json::object([what, ("reason", Json::Text(missing.reason))])
        });
        facts.push(("missing".to_owned(), Json::List(missing.collect())));
        self.writer.finish(&Json::Object(facts))
    }
}
