//! What a trace is made of: [`flight`] events as they come, records of the kernel's [`perf`]
//! events, and the file that [ui.perfetto.dev](https://ui.perfetto.dev) opens ([`chrome`]).
//!
//! Knows no KVM: which tracepoints there are and what their numbers mean is the caller's affair.
//! Any thread may use any of it.

pub mod chrome;
pub mod flight;
pub mod format;
pub mod json;
pub mod perf;
pub mod record;
pub mod tracefs;

pub use chrome::{ChromeWriter, Event, Track};
pub use flight::FlightFollower;
pub use format::{EventFormat, FormatError};
pub use json::Json;
pub use perf::{Count, PerfError, ThreadEvents};
pub use record::{Record, Records, Sample};
pub use tracefs::{Tracefs, TracefsError};

/// Feeds arbitrary text to the parser of format files, and arbitrary bytes to what it gives.
pub fn fuzz_format(text: &str, raw: &[u8]) {
    if let Ok(format) = EventFormat::parse(text) {
        assert!(format.fields().len() <= format::MAX_FIELDS);
        for field in format.fields() {
            let _ = format.value(raw, &field.name);
        }
    }
}

/// Feeds arbitrary bytes to the parser of perf records: must end after work that their length
/// bounds.
pub fn fuzz_records(bytes: &[u8]) {
    let mut records = Records::new(bytes);
    let mut seen = 0usize;
    for record in records.by_ref() {
        seen = seen.saturating_add(1);
        if let Record::Sample(sample) = record {
            assert!(sample.raw.len() <= bytes.len());
        }
    }
    assert!(seen <= bytes.len() / 8);
    assert!(!records.is_broken() || !bytes.is_empty());
}
