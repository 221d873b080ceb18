//! The bodies of the fuzz targets, one module each. They are run by libFuzzer (`fuzz_targets/`)
//! and, with the corpus and a little randomness, by the ordinary test `tests/corpus.rs`.
//!
//! A body takes any bytes, ends after work that its length bounds, and panics on a fault.

pub mod api_bodies;
pub mod balloon_request;
pub mod blackbox_reader;
pub mod blk_request;
pub mod console_watch;
pub mod entropy;
pub mod http_request;
mod input;
pub mod legacy_ports;
pub mod mmio_registers;
pub mod net_control;
pub mod pci_function;
pub mod stack;
pub mod trace_format;
pub mod trace_records;
pub mod virtqueue;
pub mod vsock;
pub mod walk;

/// The body of a target.
pub type Body = fn(&[u8]);

/// All targets by name.
pub const TARGETS: [(&str, Body); 17] = [
    ("api_bodies", api_bodies::run),
    ("balloon_request", balloon_request::run),
    ("blackbox_reader", blackbox_reader::run),
    ("blk_request", blk_request::run),
    ("console_watch", console_watch::run),
    ("entropy", entropy::run),
    ("http_request", http_request::run),
    ("legacy_ports", legacy_ports::run),
    ("mmio_registers", mmio_registers::run),
    ("net_control", net_control::run),
    ("pci_function", pci_function::run),
    ("stack", stack::run),
    ("trace_format", trace_format::run),
    ("trace_records", trace_records::run),
    ("virtqueue", virtqueue::run),
    ("vsock", vsock::run),
    ("walk", walk::run),
];
