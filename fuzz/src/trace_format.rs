//! The parser of tracefs' format files, and values read by what it gives.
//!
//! The text ends at the first NUL; what follows is a record.

use observe::trace::fuzz_format;

/// Runs the target.
pub fn run(bytes: &[u8]) {
    let end = bytes.iter().position(|byte| *byte == 0);
    let (text, raw) = bytes.split_at(end.unwrap_or(bytes.len()));
    fuzz_format(
        &String::from_utf8_lossy(text),
        raw.get(1..).unwrap_or_default(),
    );
}
