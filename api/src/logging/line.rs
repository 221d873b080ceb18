//! An event as one line of text.

use std::fmt::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::Event;
use tracing::field::{Field, Visit};

/// Longest line: a pipe takes so much in one piece or not at all.
pub const MAX_LINE_BYTES: usize = 4096;

/// What a line tells beside its text.
#[derive(Clone, Copy, Debug)]
pub struct Shows {
    /// The level.
    pub level: bool,
    /// The source file and line.
    pub origin: bool,
}

/// The line of `event`, its newline included.
pub fn format(id: &str, event: &Event<'_>, shows: Shows) -> Vec<u8> {
    let metadata = event.metadata();
    let mut text = head(id);
    // Writing to a String cannot fail.
    if shows.level {
        let _ = write!(text, ":{}", metadata.level());
    }
    if shows.origin {
        let (file, line) = (metadata.file().unwrap_or("?"), metadata.line().unwrap_or(0));
        let _ = write!(text, ":{file}:{line}");
    }
    text.push_str("] ");
    event.record(&mut Fields(&mut text));
    finish(text)
}

/// A line of the logger's own.
pub fn note(id: &str, message: &str) -> Vec<u8> {
    finish(format!("{}] {message}", head(id)))
}

fn head(id: &str) -> String {
    let thread = std::thread::current();
    format!(
        "{} [{id}:{}",
        timestamp(SystemTime::now()),
        thread.name().unwrap_or("?")
    )
}

/// One line whatever the text holds, and none too long.
fn finish(text: String) -> Vec<u8> {
    let mut bytes = text.into_bytes();
    for byte in &mut bytes {
        if byte.is_ascii_control() {
            *byte = b' ';
        }
    }
    bytes.truncate(MAX_LINE_BYTES - 1);
    bytes.push(b'\n');
    bytes
}

/// UTC, to the nanosecond.
fn timestamp(now: SystemTime) -> String {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs();
    let (year, month, day) = civil(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let nanos = since.subsec_nanos();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}")
}

/// Year, month and day of a day counted from 1970-01-01; years begin in March here, so that the
/// leap day is a year's last.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

struct Fields<'a>(&'a mut String);

impl Visit for Fields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // The macros give the message first.
        let _ = match field.name() {
            "message" => write!(self.0, "{value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn days_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000000000"),
            (951_782_400, "2000-02-29T00:00:00.000000000"),
            (1_735_689_599, "2024-12-31T23:59:59.000000000"),
            (4_107_542_400, "2100-03-01T00:00:00.000000000"),
        ] {
            assert_eq!(
                timestamp(UNIX_EPOCH + Duration::from_secs(seconds)),
                expected
            );
        }
    }

    #[test]
    fn a_note_is_one_line_of_bounded_length() {
        let line = note("vm", &format!("a\nb{}", "x".repeat(5000)));
        assert_eq!(line.len(), MAX_LINE_BYTES);
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
    }
}
