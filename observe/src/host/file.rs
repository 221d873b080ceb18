//! A file of the kernel that is read again and again.

use std::borrow::Cow;
use std::fs::File;
use std::io::{ErrorKind, Result};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// A first buffer: most files fit.
const FIRST_BYTES: usize = 4096;
/// More of a file is not read.
const MAX_BYTES: usize = 1 << 20;

/// One file, opened when it is first read and kept open. One that is absent or fails is tried anew
/// at the next reading: it may have been recreated.
pub(super) struct ProcFile {
    path: PathBuf,
    file: Option<File>,
}

impl ProcFile {
    pub(super) fn new(path: impl Into<PathBuf>) -> Self {
        ProcFile {
            path: path.into(),
            file: None,
        }
    }

    /// The text now, from the beginning, in `buffer`; `None` if there is none to be had.
    pub(super) fn text<'b>(&mut self, buffer: &'b mut Vec<u8>) -> Option<Cow<'b, str>> {
        if self.file.is_none() {
            self.file = File::open(&self.path).ok();
        }
        let Ok(length) = fill(self.file.as_ref()?, buffer) else {
            self.file = None;
            return None;
        };
        Some(String::from_utf8_lossy(buffer.get(..length)?))
    }
}

/// Reads all of `file` to the start of `buffer`, which grows as needed; gives back how much.
fn fill(file: &File, buffer: &mut Vec<u8>) -> Result<usize> {
    let mut done = 0;
    loop {
        if done >= buffer.len() {
            if done >= MAX_BYTES {
                return Ok(done);
            }
            buffer.resize((done * 2).max(FIRST_BYTES), 0);
        }
        let Some(rest) = buffer.get_mut(done..) else {
            return Ok(done);
        };
        match file.read_at(rest, done as u64) {
            Ok(0) => return Ok(done),
            Ok(n) => done += n,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
