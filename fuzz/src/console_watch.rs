//! The watch on the serial output: lines, messages and their facts.

use devices::legacy::console::watch::fuzz_entry;

/// Runs the target.
pub fn run(bytes: &[u8]) {
    fuzz_entry(bytes);
}
