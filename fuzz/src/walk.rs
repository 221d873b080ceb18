//! The walk through a guest's page tables.

/// Runs the target.
pub fn run(bytes: &[u8]) {
    vmm::inspect::fuzz::walk(bytes);
}
