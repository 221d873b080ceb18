//! The virtio-mmio transport, version 2 (virtio 1.2, section 4.2).

pub mod registers;
mod transport;

pub use transport::MmioTransport;
