//! Guest memory: its layout in the guest's physical address space and what backs it on the host.
//!
//! Depends on `observe` alone. Everybody else reaches vm-memory through this crate, so that the
//! name of its central trait (`GuestMemoryBackend` since 0.18) is spelled once.
//! Owner: the `vm` thread builds it; afterwards it is shared read-only (the map, not the bytes).

pub mod backing;
pub mod discard;
pub mod layout;

pub use backing::{Backing, MemoryError, MemorySpec, build};
pub use discard::{DiscardError, Discarder};
pub use vm_memory::{
    Address, ByteValued, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError,
    GuestMemoryRegion, VolatileMemoryError, VolatileSlice,
};

/// The guest's memory, cheap to clone (an `Arc` to each region).
pub type GuestRam = vm_memory::GuestMemoryMmap<()>;
