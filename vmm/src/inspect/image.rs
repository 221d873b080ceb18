//! The guest kernel's image in its memory: one piece, physically and virtually, so that one
//! difference leads from the one to the other.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use super::walk::{Physical, Space, WalkError};

/// The kernel's half of the upper 2 GiB, where text, data and modules of every x86-64 kernel are.
pub const KERNEL_MAP: u64 = 0xFFFF_FFFF_8000_0000;
/// An image is at most this large (KERNEL_IMAGE_SIZE).
pub const IMAGE_BYTES: u64 = 1 << 30;

/// The image, by the addresses that the kernel uses.
#[derive(Debug)]
pub struct Image<'a, M> {
    memory: &'a M,
    delta: u64,
}

impl<'a, M: Physical> Image<'a, M> {
    /// The image in which `code` lies.
    ///
    /// # Errors
    /// [`WalkError`] when that is not mapped.
    pub fn around(space: &Space<'a, M>, code: u64) -> Result<Self, WalkError> {
        let mapped = space
            .translate(code)
            .or_else(|error| space.kernel_half().translate(code).map_err(|_| error))?;
        Ok(Image::at(
            space.memory(),
            code.wrapping_sub(mapped.physical),
        ))
    }

    /// The image whose virtual addresses are `delta` above the physical ones.
    pub fn at(memory: &'a M, delta: u64) -> Self {
        Image { memory, delta }
    }

    /// Virtual less physical address.
    pub fn delta(&self) -> u64 {
        self.delta
    }

    /// Fills `to` from `address` on; `None` if that is not all RAM.
    pub fn read(&self, address: u64, to: &mut [u8]) -> Option<()> {
        let physical = address.wrapping_sub(self.delta);
        self.memory.fill(physical, to).then_some(())
    }

    /// `bytes` bytes from `address` on; what is asked for has to be bounded.
    pub fn bytes(&self, address: u64, bytes: u64) -> Option<Vec<u8>> {
        let mut to = vec![0; usize::try_from(bytes).ok()?];
        self.read(address, &mut to)?;
        Some(to)
    }

    /// A little-endian number of `N` bytes.
    pub fn array<const N: usize>(&self, address: u64) -> Option<[u8; N]> {
        let mut to = [0; N];
        self.read(address, &mut to)?;
        Some(to)
    }

    /// The 32-bit number at `address`.
    pub fn u32(&self, address: u64) -> Option<u32> {
        self.array(address).map(u32::from_le_bytes)
    }

    /// The 64-bit number at `address`.
    pub fn u64(&self, address: u64) -> Option<u64> {
        self.array(address).map(u64::from_le_bytes)
    }
}

/// The 32-bit number at `at` of `bytes`.
pub fn u32_of(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
}
