//! The text ring: the last bytes of something that somebody says, overwritten in a circle.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering, fence};

/// Bytes that are stored, at most, before the ring says that they are.
pub const TEXT_STEP: usize = 256;

/// A ring of the last `N` bytes, written by one thread. `written` counts all bytes ever, and byte
/// `n` is at `n % N`. Of a copy made between two readings `w1` and `w2` of it, the bytes
/// `w2 + TEXT_STEP - N` to `w1 - 1` are whole: the writer may be at work on the [`TEXT_STEP`] bytes
/// that follow `w2`.
///
/// `N` is a multiple of 8 and more than [`TEXT_STEP`], at most [`MAX_TEXT_BYTES`].
#[derive(Debug)]
#[repr(C, align(8))]
pub struct TextRing<const N: usize> {
    written: AtomicU64,
    bytes: [AtomicU8; N],
}

/// Largest ring that readers take.
pub const MAX_TEXT_BYTES: usize = 64 << 10;

impl<const N: usize> TextRing<N> {
    const FITS: () = assert!(N.is_multiple_of(8) && N > TEXT_STEP && N <= MAX_TEXT_BYTES);

    /// Appends bytes.
    pub fn push(&self, text: &[u8]) {
        const { Self::FITS };
        for piece in text.chunks(TEXT_STEP) {
            let written = self.written.load(Ordering::Relaxed);
            // Whoever sees a byte of ours sees the `written` of the push before.
            fence(Ordering::Release);
            for (index, byte) in (written as usize..).zip(piece) {
                if let Some(cell) = self.bytes.get(index % N) {
                    cell.store(*byte, Ordering::Relaxed);
                }
            }
            let written = written.wrapping_add(piece.len() as u64);
            self.written.store(written, Ordering::Release);
        }
    }

    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }
}

impl<const N: usize> Default for TextRing<N> {
    fn default() -> Self {
        TextRing {
            written: AtomicU64::new(0),
            bytes: [const { AtomicU8::new(0) }; N],
        }
    }
}

#[cfg(test)]
mod tests;
