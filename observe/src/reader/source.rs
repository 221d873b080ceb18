//! Where bytes come from: a file that others write to, or a copy in memory.

use std::fs::File;
use std::io::{ErrorKind, Result};
use std::os::unix::fs::FileExt;

pub(super) trait Source {
    /// The length now.
    fn length(&self) -> Result<u64>;
    /// Fills `buffer` from `offset` as far as there is something; gives back how far.
    fn fill(&self, buffer: &mut [u8], offset: u64) -> Result<usize>;
}

impl Source for File {
    fn length(&self) -> Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn fill(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        let mut done = 0usize;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let Some(at) = offset.checked_add(done as u64) else {
                break;
            };
            if i64::try_from(at).is_err() {
                break;
            }
            match self.read_at(rest, at) {
                Ok(0) => break,
                Ok(n) => done = done.saturating_add(n),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }
}

pub(super) struct Bytes<'a>(pub &'a [u8]);

impl Source for Bytes<'_> {
    fn length(&self) -> Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn fill(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        let from = usize::try_from(offset).ok().and_then(|at| self.0.get(at..));
        let from = from.unwrap_or_default();
        for (to, from) in buffer.iter_mut().zip(from) {
            *to = *from;
        }
        Ok(buffer.len().min(from.len()))
    }
}

/// Up to `length` bytes from `offset`: fewer where the source ends. Never allocates more than the
/// source has.
pub(super) fn read<S: Source>(source: &S, offset: u64, length: usize) -> Result<Vec<u8>> {
    let there = source.length()?.saturating_sub(offset);
    let length = length.min(usize::try_from(there).unwrap_or(usize::MAX));
    let mut bytes = vec![0; length];
    let done = source.fill(&mut bytes, offset)?;
    bytes.truncate(done);
    Ok(bytes)
}

/// The little-endian word at `offset`.
pub(super) fn word(bytes: &[u8], offset: usize) -> Option<u64> {
    let end = offset.checked_add(8)?;
    let word = bytes.get(offset..end)?.try_into().ok()?;
    Some(u64::from_le_bytes(word))
}
