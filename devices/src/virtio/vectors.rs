//! Guest buffers as host I/O vectors, so that one request is one system call.
//!
//! This is the one file of the virtio code with unsafe blocks for guest memory. What it keeps:
//! every vector lies inside the guest's RAM (checked when it is added), and the RAM stays mapped
//! as long as the vectors live, because they own a share of it. The guest may change the bytes at
//! any moment, as with any DMA: nothing here makes a Rust reference to them.

#![allow(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use memory::{
    Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRam, VolatileSlice,
};

/// Vectors at most: the kernel takes 1024 (`UIO_MAXIOV`), one is kept for
/// [`GuestVectors::receive`] and [`GuestVectors::send_behind`].
pub const MAX_VECTORS: usize = 1023;

/// Why a buffer cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VectorError {
    /// It does not lie in RAM.
    OutsideRam,
    /// There are too many.
    TooMany,
}

/// What one packet came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Bytes written to the guest's buffers.
    pub bytes: usize,
    /// Whether the buffers were too small for it.
    pub truncated: bool,
}

/// A list of guest buffers.
pub struct GuestVectors {
    ram: Arc<GuestRam>,
    vectors: Vec<libc::iovec>,
    first: usize,
    bytes: usize,
}

// SAFETY: the pointers lead into guest RAM, which is mapped for the whole process and kept by
// `ram`; they are not tied to a thread.
unsafe impl Send for GuestVectors {}

impl GuestVectors {
    /// An empty list of buffers in `ram`.
    pub fn new(ram: Arc<GuestRam>) -> Self {
        GuestVectors {
            ram,
            vectors: Vec::with_capacity(16),
            first: 0,
            bytes: 0,
        }
    }

    /// Forgets all buffers.
    pub fn clear(&mut self) {
        self.vectors.clear();
        (self.first, self.bytes) = (0, 0);
    }

    /// Bytes in all buffers together.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether there is no buffer.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Adds the guest's buffer at `address`.
    ///
    /// # Errors
    /// [`VectorError`]; the list is then to be cleared.
    pub fn push(&mut self, address: GuestAddress, bytes: usize) -> Result<(), VectorError> {
        for slice in self.ram.get_slices(address, bytes) {
            let slice = slice.map_err(|_| VectorError::OutsideRam)?;
            if self.vectors.len() >= MAX_VECTORS {
                return Err(VectorError::TooMany);
            }
            self.vectors.push(libc::iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: slice.len(),
            });
            self.bytes = self.bytes.saturating_add(slice.len());
        }
        Ok(())
    }

    /// Adds all buffers of `other`, which must be in the same RAM. False when they are too many
    /// or of another RAM; nothing is added then.
    pub fn append(&mut self, other: &GuestVectors) -> bool {
        let more = other.active();
        let fits = self.vectors.len().saturating_add(more.len()) <= MAX_VECTORS;
        if !fits || !Arc::ptr_eq(&self.ram, &other.ram) {
            return false;
        }
        self.vectors.extend_from_slice(more);
        self.bytes = self.bytes.saturating_add(other.bytes);
        true
    }

    /// Where the buffers are in the guest: first byte and bytes.
    pub fn guest_ranges(&self) -> impl Iterator<Item = (u64, u64)> {
        self.active().iter().filter_map(|vector| {
            let at = vector.iov_base as u64;
            self.ram.iter().find_map(|region| {
                let offset = at.checked_sub(region.as_ptr() as u64)?;
                let inside = offset < region.len() && vector.iov_len > 0;
                let start = region.start_addr().raw_value().checked_add(offset)?;
                inside.then_some((start, vector.iov_len as u64))
            })
        })
    }

    fn active(&self) -> &[libc::iovec] {
        self.vectors.get(self.first..).unwrap_or_default()
    }

    /// Passes over the first `count` bytes.
    pub fn advance(&mut self, mut count: usize) {
        self.bytes = self.bytes.saturating_sub(count);
        while let Some(vector) = self.vectors.get_mut(self.first) {
            if count < vector.iov_len {
                vector.iov_base = vector.iov_base.wrapping_byte_add(count);
                vector.iov_len = vector.iov_len.saturating_sub(count);
                return;
            }
            count = count.saturating_sub(vector.iov_len);
            self.first = self.first.saturating_add(1);
        }
    }

    /// Takes the last byte away and gives it as a list of its own; `None` when there is none.
    pub fn split_last_byte(&mut self) -> Option<GuestByte> {
        let last = self.vectors.get_mut(self.first..)?.last_mut()?;
        last.iov_len = last.iov_len.checked_sub(1)?;
        self.bytes = self.bytes.saturating_sub(1);
        let at = last.iov_base.wrapping_byte_add(last.iov_len);
        if last.iov_len == 0 {
            self.vectors.pop();
        }
        Some(GuestByte {
            _ram: Arc::clone(&self.ram),
            at: at.cast(),
        })
    }

    /// Calls `each` with the slices that cover `offset..offset + length` and each one's place in
    /// that range; gives the bytes covered.
    fn cover(
        &self,
        offset: usize,
        length: usize,
        mut each: impl FnMut(VolatileSlice, usize),
    ) -> usize {
        let (mut skip, mut done) = (offset, 0usize);
        for vector in self.active() {
            if done == length {
                break;
            }
            if skip >= vector.iov_len {
                skip = skip.saturating_sub(vector.iov_len);
                continue;
            }
            let room = vector.iov_len.saturating_sub(skip);
            let count = room.min(length.saturating_sub(done));
            let at = vector.iov_base.wrapping_byte_add(skip).cast::<u8>();
            // SAFETY: at..at + count lies inside the vector, hence in guest RAM that `self.ram`
            // keeps mapped while the slice lives; all accesses to it are volatile.
            each(unsafe { VolatileSlice::new(at, count) }, done);
            (skip, done) = (0, done.saturating_add(count));
        }
        done
    }

    /// Copies from the buffers, beginning at `offset`; gives the bytes copied.
    pub fn copy_to(&self, offset: usize, to: &mut [u8]) -> usize {
        self.cover(offset, to.len(), |slice, place| {
            if let Some(part) = to.get_mut(place..) {
                slice.copy_to(part);
            }
        })
    }

    /// Copies into the buffers, beginning at `offset`; gives the bytes copied.
    pub fn copy_from(&self, offset: usize, from: &[u8]) -> usize {
        self.cover(offset, from.len(), |slice, place| {
            // Writes as much as fits into the slice, and the slice covers no more than `from`.
            let _ = slice.write(from.get(place..).unwrap_or_default(), 0);
        })
    }

    /// Fills the buffers from `file` at `offset`, by one call; gives the bytes, which may be fewer.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn fill_from(&self, file: BorrowedFd, offset: u64) -> io::Result<usize> {
        self.transfer(file, offset, libc::preadv)
    }

    /// Writes the buffers to `file` at `offset`, by one call; gives the bytes, which may be fewer.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn drain_to(&self, file: BorrowedFd, offset: u64) -> io::Result<usize> {
        self.transfer(file, offset, libc::pwritev)
    }

    fn transfer(
        &self,
        file: BorrowedFd,
        offset: u64,
        call: unsafe extern "C" fn(i32, *const libc::iovec, i32, libc::off_t) -> isize,
    ) -> io::Result<usize> {
        let at = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        let (start, count) = parts(self.active())?;
        // SAFETY: `start` and `count` describe a live slice of vectors, each inside guest RAM
        // that `self.ram` keeps mapped.
        let done = unsafe { call(file.as_raw_fd(), start, count, at) };
        usize::try_from(done).map_err(|_| io::Error::last_os_error())
    }

    /// The vectors, for a system call that goes on after it has returned. They stay where they are
    /// when `self` is moved, until it is changed or dropped; and until it is dropped, the buffers
    /// that they name stay mapped.
    pub fn pointer(&self) -> (*const libc::iovec, u32) {
        let active = self.active();
        // There are at most MAX_VECTORS.
        (active.as_ptr(), u32::try_from(active.len()).unwrap_or(0))
    }

    /// Sends all buffers as one packet.
    ///
    /// # Errors
    /// What the kernel says; `WouldBlock` when the other side takes no more now.
    pub fn send(&self, socket: BorrowedFd) -> io::Result<usize> {
        let (start, count) = parts(self.active())?;
        // SAFETY: as in `transfer`; in `send_behind` one vector is a slice that lives as long.
        let done = unsafe { libc::writev(socket.as_raw_fd(), start, count) };
        usize::try_from(done).map_err(|_| io::Error::last_os_error())
    }

    /// Sends `head` and then all buffers as one packet.
    ///
    /// # Errors
    /// As [`GuestVectors::send`].
    pub fn send_behind(&mut self, head: &[u8], socket: BorrowedFd) -> io::Result<usize> {
        let at = self.first.min(self.vectors.len());
        let head = libc::iovec {
            iov_base: head.as_ptr().cast_mut().cast(),
            iov_len: head.len(),
        };
        self.vectors.insert(at, head);
        // `head` is only read: `writev` writes to no vector. It outlives the call, and is taken off
        // the list right after it.
        let sent = self.send(socket);
        self.vectors.remove(at);
        sent
    }

    /// Receives one packet into the buffers.
    ///
    /// # Errors
    /// What the kernel says; `WouldBlock` when there is no packet.
    pub fn receive(&mut self, socket: BorrowedFd) -> io::Result<Received> {
        // One byte beyond the guest's buffers tells whether the packet was longer than they are.
        let mut beyond = 0u8;
        self.vectors.push(libc::iovec {
            iov_base: (&raw mut beyond).cast(),
            iov_len: 1,
        });
        let (start, count) = parts(self.active())?;
        // SAFETY: as in `transfer`; the last vector is `beyond`, which outlives the call and is
        // taken off the list right after it.
        let done = unsafe { libc::readv(socket.as_raw_fd(), start, count) };
        let error = io::Error::last_os_error();
        self.vectors.pop();
        let done = usize::try_from(done).map_err(|_| error)?;
        Ok(Received {
            bytes: done.min(self.bytes),
            truncated: done > self.bytes,
        })
    }
}

fn parts(vectors: &[libc::iovec]) -> io::Result<(*const libc::iovec, libc::c_int)> {
    let count = libc::c_int::try_from(vectors.len()).map_err(io::Error::other)?;
    Ok((vectors.as_ptr(), count))
}

/// One byte of guest memory: where a block request's status goes.
pub struct GuestByte {
    _ram: Arc<GuestRam>,
    at: *mut u8,
}

// SAFETY: as for `GuestVectors`.
unsafe impl Send for GuestByte {}

impl GuestByte {
    /// Writes it.
    pub fn set(&self, value: u8) {
        // SAFETY: `at` is one byte inside guest RAM, which `_ram` keeps mapped.
        unsafe { self.at.write_volatile(value) };
    }
}
