//! The parser of the records in the ring of a perf event.

use observe::trace::fuzz_records;

/// Runs the target.
pub fn run(bytes: &[u8]) {
    fuzz_records(bytes);
}
