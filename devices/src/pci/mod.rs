//! PCI: a root with one bus, reached by memory-mapped configuration (ECAM) alone.
//!
//! ```text
//! vCPU -> bus -> root::PciRoot (ECAM)  -> function 0 of each device: its configuration space
//!             -> a function's BAR      -> the function itself, a range of its own on the bus
//! ```
//! Device 0 is the host bridge. The others have one function each, and one BAR, whose place the
//! machine chooses when it is built. A BAR can be sized, and it cannot be moved: what lies at its
//! address (kicks by ioeventfd, the bus) is fixed while the machine lives, so another address is
//! refused and the register goes on to show the right one. There are no bridges, no I/O windows,
//! no extended capabilities and no INTx pins: interrupts are MSI-X messages.
//!
//! Owner threads: the vCPUs. A function keeps its registers behind a lock of its own.

pub mod config;
pub mod msix;
pub mod root;

pub use config::{Bar, ConfigRegisters, Identity};
pub use msix::{MsixTable, VectorState};
pub use root::{PciFunction, PciRoot};

/// Bytes of a function's part of the ECAM.
pub const FUNCTION_BYTES: u64 = 4096;
/// Functions that a device may have; only the first is there.
const FUNCTIONS: u64 = 8;
/// Devices of a bus.
pub const DEVICES: u64 = 32;
/// Bytes of the ECAM: one bus.
pub const ECAM_BYTES: u64 = FUNCTION_BYTES * FUNCTIONS * DEVICES;
