//! Unpacked kernels, kept between VMs: unpacking is most of what Vitrine itself does before the
//! first instruction of a guest.
//!
//! A kept kernel is a file of its own in a folder that belongs to this user alone, named after the
//! kernel file's device, inode, size and times of change, so that another kernel at the same path
//! is another file here. It is the image as the segments lie in memory, before anything of it is
//! relocated; what is zero is left out. It is written by a thread of low priority, complete before
//! it gets its name, and never changed. Nothing depends on it: whatever is wrong with one, the
//! kernel is unpacked again.
//!
//! ```text
//! 0     magic, format, then IDENTITY words of the kernel file, then bytes, entry, kernel_bytes,
//!       extents; each a little-endian word of 8 bytes
//!       extents times: offset in the image, bytes
//! 4096  the extents' bytes, one after the other
//! ```

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::elf::Kernel;
use super::{MOST_BYTES, UnpackError};

const MAGIC: u64 = u64::from_le_bytes(*b"VITRKRNL");
const FORMAT: u64 = 1;
const HEAD_BYTES: usize = 4096;
const IDENTITY: usize = 5;
/// Words before the extents.
const FIXED: usize = 2 + IDENTITY + 4;
const MOST_EXTENTS: usize = (HEAD_BYTES / 8 - FIXED) / 2;
/// Zeros of this length and more are left out.
const GAP: usize = 256 << 10;
/// Kernels that are kept; the one that was not used for longest goes first.
const MOST_KERNELS: usize = 8;
const SUFFIX: &str = "kernel";
/// A half-written file of this age was left behind by a process that was killed.
const STALE: Duration = Duration::from_secs(3600);

/// Which kernel file, in which state: device, inode, bytes, times of change in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity([u64; IDENTITY]);

impl Identity {
    /// Of an open file.
    ///
    /// # Errors
    /// What the kernel says of the file.
    pub fn of(file: &File) -> io::Result<Identity> {
        let of = file.metadata()?;
        let time = |seconds: i64, ns: i64| {
            let ns = seconds.wrapping_mul(1_000_000_000).wrapping_add(ns);
            ns.cast_unsigned()
        };
        Ok(Identity([
            of.dev(),
            of.ino(),
            of.size(),
            time(of.mtime(), of.mtime_nsec()),
            time(of.ctime(), of.ctime_nsec()),
        ]))
    }

    fn file_name(&self) -> String {
        let words = self.0.map(|word| format!("{word:x}"));
        format!("{}.{SUFFIX}", words.join("-"))
    }
}

/// The folder of kept kernels.
#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
}

impl Store {
    /// The store in `folder`, which is made if it is missing.
    ///
    /// # Errors
    /// It cannot be made, or others may write to it.
    pub fn open(folder: &Path) -> io::Result<Store> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700).create(folder)?;
        let metadata = fs::symlink_metadata(folder)?;
        if metadata.is_dir() && is_ours_alone(&metadata) {
            return Ok(Store {
                folder: folder.to_owned(),
            });
        }
        let text = "it is not a folder to which this user alone may write";
        Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
    }

    /// The kept form of a kernel, if it is there and whole.
    pub fn find(&self, identity: &Identity) -> Option<Kept> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK)
            .open(self.folder.join(identity.file_name()))
            .ok()?;
        let metadata = file.metadata().ok()?;
        if !metadata.is_file() || !is_ours_alone(&metadata) {
            return None;
        }
        let kept = Kept::read(file, metadata.len(), identity)?;
        // When it was used last, for who is to go.
        let _ = kept.file.set_modified(SystemTime::now());
        Some(kept)
    }

    /// Keeps `image`, in which `kernel` was settled and not yet relocated.
    ///
    /// # Errors
    /// What the file system says; nothing is left then.
    pub fn keep(&self, identity: &Identity, image: &[u8], kernel: &Kernel) -> io::Result<()> {
        let new = self.folder.join(format!(".new-{}", std::process::id()));
        let made = write(&new, identity, image, kernel)
            .and_then(|()| fs::rename(&new, self.folder.join(identity.file_name())));
        if made.is_err() {
            let _ = fs::remove_file(&new);
        }
        self.prune();
        made
    }

    /// Removes what is too much and what was left behind.
    fn prune(&self) {
        let Ok(entries) = fs::read_dir(&self.folder) else {
            return;
        };
        let mut kernels = Vec::new();
        for path in entries.flatten().map(|entry| entry.path()) {
            let Ok(used) = fs::symlink_metadata(&path).and_then(|of| of.modified()) else {
                continue;
            };
            if path.extension().is_some_and(|suffix| suffix == SUFFIX) {
                kernels.push((used, path));
            } else if used.elapsed().is_ok_and(|age| age > STALE) {
                let _ = fs::remove_file(&path);
            }
        }
        kernels.sort();
        let too_many = kernels.len().saturating_sub(MOST_KERNELS);
        for (_, path) in kernels.into_iter().take(too_many) {
            let _ = fs::remove_file(path);
        }
    }
}

/// Whether it is this process's user's, and no other may write to it.
fn is_ours_alone(metadata: &Metadata) -> bool {
    let us = fs::metadata("/proc/self").map(|us| us.uid());
    us.is_ok_and(|us| us == metadata.uid()) && metadata.mode() & 0o022 == 0
}

fn write(path: &Path, identity: &Identity, image: &[u8], kernel: &Kernel) -> io::Result<()> {
    let extents = extents(image);
    let mut words = vec![MAGIC, FORMAT];
    words.extend(identity.0);
    words.extend([image.len() as u64, kernel.entry, kernel.file_bytes as u64]);
    words.push(extents.len() as u64);
    words.extend(
        extents
            .iter()
            .flat_map(|&(at, bytes)| [at as u64, bytes as u64]),
    );
    let mut head: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    head.resize(HEAD_BYTES, 0);
    // One of our name can only be what a process of the same number left behind.
    let _ = fs::remove_file(path);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(&head)?;
    for (at, bytes) in extents {
        file.write_all(image.get(at..at + bytes).unwrap_or_default())?;
    }
    // A file that has its name and not its content would be a guest that does not boot.
    file.sync_all()
}

/// What of `image` is not zeros, in order, as offset and bytes.
fn extents(image: &[u8]) -> Vec<(usize, usize)> {
    let mut gap = GAP;
    loop {
        let mut extents: Vec<(usize, usize)> = Vec::new();
        for (index, block) in image.chunks(gap).enumerate() {
            if block.iter().all(|byte| *byte == 0) {
                continue;
            }
            let at = index * gap;
            match extents.last_mut() {
                Some((start, bytes)) if *start + *bytes == at => *bytes += block.len(),
                _ => extents.push((at, block.len())),
            }
        }
        if extents.len() <= MOST_EXTENTS {
            return extents;
        }
        gap *= 2;
    }
}

/// An unpacked kernel that was kept.
#[derive(Debug)]
pub struct Kept {
    file: File,
    /// Bytes of the image.
    pub bytes: usize,
    kernel: Kernel,
    extents: Vec<(usize, usize)>,
}

impl Kept {
    fn read(mut file: File, length: u64, identity: &Identity) -> Option<Kept> {
        let mut head = [0u8; HEAD_BYTES];
        file.read_exact(&mut head).ok()?;
        let mut words = head
            .chunks_exact(8)
            .map(|word| word.try_into().map_or(0, u64::from_le_bytes));
        if words.next()? != MAGIC || words.next()? != FORMAT {
            return None;
        }
        if identity.0.iter().any(|word| words.next() != Some(*word)) {
            return None;
        }
        let bytes = usize::try_from(words.next()?).ok()?;
        let entry = words.next()?;
        let file_bytes = usize::try_from(words.next()?).ok()?;
        let count = usize::try_from(words.next()?).ok()?;
        let mut extents = Vec::new();
        let (mut end, mut data) = (0usize, HEAD_BYTES);
        for _ in 0..count.min(MOST_EXTENTS) {
            let at = usize::try_from(words.next()?).ok()?;
            let length = usize::try_from(words.next()?).ok()?;
            if at < end {
                return None;
            }
            end = at.checked_add(length)?;
            data = data.checked_add(length)?;
            extents.push((at, length));
        }
        let fits = bytes <= MOST_BYTES && end <= bytes && file_bytes <= bytes;
        let whole = extents.len() == count && data as u64 == length;
        (fits && whole).then_some(Kept {
            file,
            bytes,
            kernel: Kernel { entry, file_bytes },
            extents,
        })
    }

    /// Puts the image into `image`, of [`Kept::bytes`] zeros.
    ///
    /// # Errors
    /// [`UnpackError::Kept`] when the file cannot be read.
    pub fn put(mut self, image: &mut [u8]) -> Result<Kernel, UnpackError> {
        for (at, bytes) in self.extents {
            let part = image.get_mut(at..at + bytes).ok_or(UnpackError::Header)?;
            self.file
                .read_exact(part)
                .map_err(|error| UnpackError::Kept(error.to_string()))?;
        }
        Ok(self.kernel)
    }
}
