//! A guest kernel's stack, by unwind tables and without, its list of modules, and its symbols.

/// Runs the target.
pub fn run(bytes: &[u8]) {
    vmm::inspect::fuzz::stack(bytes);
    vmm::inspect::fuzz::kallsyms(bytes);
}
