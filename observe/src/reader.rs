//! Opens a black box, live or dead, and trusts nothing in it.
//!
//! A black box may be written to while it is read, cut short, torn by a crash, made by a newer
//! Vitrine or by somebody who means harm. So it is read with `pread` into memory of our own (a
//! mapping would die of SIGBUS when the file shrinks), every number in it is checked, whatever is
//! missing is absent from the [`Snapshot`] rather than an error, and [limits](MAX_SECTION_BYTES)
//! bound what is allocated. The format and its rules of compatibility are in `docs/blackbox.md`.
//!
//! Any thread may read: a [`Reader`] takes no lock and asks nothing of the writer.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

mod directory;
mod header;
mod section;
mod source;
mod value;

use std::fs::{File, OpenOptions};
use std::mem::offset_of;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::blackbox::{HEADER_BYTES, Header, MAGIC, MAJOR, is_held};
use crate::clock::{Ticks, monotonic_ns};
pub use directory::{ColumnView, FieldView};
pub use header::{ClockView, Ended, HeaderView};
pub use section::SectionView;
use source::{Source, read};
pub use value::{FlightView, HeartbeatView, HistogramView, SeriesView, TextView, Value};

/// Bytes of all sections together that a snapshot takes in; what lies beyond is left out.
pub const MAX_SECTION_BYTES: usize = 64 << 20;
/// Bytes of directory that are read.
pub const MAX_DIRECTORY_BYTES: usize = 8 << 20;
/// Sections that are read.
pub const MAX_SECTIONS: usize = 16 << 10;
/// Bytes of a text; a longer one is not read.
pub const MAX_WORDS_BYTES: usize = 4096;
/// Numbers in all sections together; a histogram, heartbeat or ring counts as many.
pub const MAX_ROWS: usize = 256 << 10;

/// Why a file cannot be read as a black box.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file cannot be opened.
    #[error(
        "the black box {path} cannot be opened; is this the VM's --blackbox, and are you its user?"
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The file is there, but its bytes cannot be had.
    #[error("the black box {path} cannot be read; copy what is left of it to another disk")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The file is something else.
    #[error(
        "{path} is not a black box: it does not begin with VITRBBOX; \
         give the file that the VM was started with as --blackbox"
    )]
    NotABlackBox {
        /// The file.
        path: PathBuf,
    },
    /// The format is another one.
    #[error(
        "the black box {path} has format {major}, and this program reads format {MAJOR}; \
         read it with the version of vitrine that wrote it"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its major version.
        major: u32,
    },
}

/// An open black box, from which any number of [`Snapshot`]s can be taken.
#[derive(Debug)]
pub struct Reader {
    file: File,
    path: PathBuf,
    /// Made from an open file, perhaps the writer's own, whose lock does not show to itself.
    given: bool,
}

impl Reader {
    /// Opens the black box at `path`.
    ///
    /// # Errors
    /// [`ReadError`]: not there, not allowed, not a black box, or one of another major version.
    pub fn open(path: &Path) -> Result<Self, ReadError> {
        // O_NONBLOCK: a FIFO at the path must not hang us.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(|source| ReadError::Open {
                path: path.to_owned(),
                source,
            })?;
        Self::checked(file, path.to_owned(), false)
    }

    /// Reads a file that is open already, such as [`crate::BlackBox::file`]; `path` is for
    /// messages.
    ///
    /// # Errors
    /// As [`Reader::open`].
    pub fn from_file(file: File, path: PathBuf) -> Result<Self, ReadError> {
        Self::checked(file, path, true)
    }

    fn checked(file: File, path: PathBuf, given: bool) -> Result<Self, ReadError> {
        if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
            return Err(ReadError::NotABlackBox { path });
        }
        read_header(&file, &path)?;
        Ok(Reader { file, path, given })
    }

    /// The file, as it was named.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The file's bytes now, for a copy of it. Nobody holds a lock on the copy: it says so, lest its
    /// readers take the writer for dead.
    ///
    /// # Errors
    /// [`ReadError`] when the file can no longer be read.
    pub fn copy(&self) -> Result<Vec<u8>, ReadError> {
        let length = MAX_SECTION_BYTES.saturating_add(MAX_DIRECTORY_BYTES);
        let mut bytes = read(&self.file, 0, length).map_err(|source| ReadError::Read {
            path: self.path.clone(),
            source,
        })?;
        let locked = bytes.iter_mut().skip(offset_of!(Header, locked));
        locked.take(8).for_each(|byte| *byte = 0);
        Ok(bytes)
    }

    /// Reads everything that the black box holds now.
    ///
    /// # Errors
    /// [`ReadError`] when the file can no longer be read; not when it is torn or cut short.
    pub fn snapshot(&self) -> Result<Snapshot, ReadError> {
        Ok(self.with_life(take(&self.file, &self.path)?))
    }

    /// Whether the writer lives, and so up to when the snapshot tells.
    fn with_life(&self, mut snapshot: Snapshot) -> Snapshot {
        let header = &snapshot.header;
        let ours = self.given && header.pid == u64::from(std::process::id());
        snapshot.writer_alive = match header.locked {
            _ if ours => Some(true),
            true => is_held(&self.file),
            false => None,
        };
        if snapshot.writer_alive == Some(true) {
            snapshot.now_monotonic_ns = monotonic_ns();
        }
        snapshot
    }
}

/// What a black box held at one moment. Numbers of one section were read within microseconds of
/// each other, those of several a little later each: sums over them are exact only at rest.
#[derive(Debug)]
pub struct Snapshot {
    /// Whose black box it is, and how the VM ended.
    pub header: HeaderView,
    /// All sections, in the order in which they were made. When two have the same name (a device
    /// was removed and added again), the later one is in use.
    pub sections: Vec<SectionView>,
    /// The file, or what it says, is longer than what could be read.
    pub truncated: bool,
    /// Whether the process that writes this black box lives; `None` where nothing tells.
    pub writer_alive: Option<bool>,
    /// The `CLOCK_MONOTONIC` time up to which this is known, in nanoseconds: now if the writer
    /// lives, else the end that it recorded, else its last sign of life.
    pub now_monotonic_ns: u64,
}

impl Snapshot {
    /// Reads a black box that is in memory, such as one from a core dump or a bug report.
    ///
    /// # Errors
    /// [`ReadError`] when it is not one.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ReadError> {
        take(&source::Bytes(bytes), Path::new("(memory)"))
    }

    /// The section of that name that is in use.
    pub fn section(&self, name: &str) -> Option<&SectionView> {
        self.sections.iter().rev().find(|s| s.name == name)
    }

    /// All sections of a kind.
    pub fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a SectionView> {
        self.sections.iter().filter(move |s| s.kind() == kind)
    }

    /// How long ago `ticks` was, in nanoseconds, as seen from [`Snapshot::now_monotonic_ns`]; 0
    /// if it was later than that.
    pub fn age_ns(&self, ticks: Ticks) -> u64 {
        self.now_monotonic_ns
            .saturating_sub(self.header.clock.monotonic_of(ticks))
    }
}

/// Feeds arbitrary bytes to every part of the reader, for fuzz targets: must return.
pub fn fuzz_entry(bytes: &[u8]) {
    if let Ok(snapshot) = Snapshot::from_bytes(bytes) {
        for section in &snapshot.sections {
            for (_, _, value) in section.values() {
                match value {
                    Value::Histogram(histogram) => {
                        let _ = (histogram.count(), histogram.quantile(0.99));
                    }
                    Value::Series(series) => {
                        for column in 0..series.columns.len() {
                            let _ = series.column(column).count();
                        }
                    }
                    _ => {}
                }
            }
        }
        let mut text = String::new();
        crate::openmetrics::render(&snapshot, &mut text);
    }
}

fn read_header<S: Source>(source: &S, path: &Path) -> Result<Vec<u8>, ReadError> {
    let bytes = read(source, 0, HEADER_BYTES).map_err(|source| ReadError::Read {
        path: path.to_owned(),
        source,
    })?;
    if !bytes.starts_with(&MAGIC) {
        return Err(ReadError::NotABlackBox {
            path: path.to_owned(),
        });
    }
    match header::major(&bytes) {
        Some(MAJOR) | None => Ok(bytes),
        Some(major) => Err(ReadError::Version {
            path: path.to_owned(),
            major,
        }),
    }
}

fn take<S: Source>(source: &S, path: &Path) -> Result<Snapshot, ReadError> {
    let mut known = Known::default();
    known.take(source, path, &|_| true)
}

/// The directory as it was last read.
#[derive(Debug, Default)]
struct Known {
    used: usize,
    directory: directory::Directory,
}

impl Known {
    /// Reads the header, the directory if it has grown, and the sections whose names are `wanted`.
    fn take<S: Source>(
        &mut self,
        source: &S,
        path: &Path,
        wanted: &dyn Fn(&str) -> bool,
    ) -> Result<Snapshot, ReadError> {
        let fail = |source| ReadError::Read {
            path: path.to_owned(),
            source,
        };
        let bytes = read_header(source, path)?;
        let header = HeaderView::parse(&bytes);
        let (offset, used, whole) = header::directory(&bytes);
        let mut truncated = !whole
            || bytes.len() < HEADER_BYTES
            || source.length().map_err(fail)? < header.file_bytes;
        if used != self.used {
            let text = read(source, offset, used).map_err(fail)?;
            truncated |= text.len() < used;
            self.directory = directory::parse(&text);
            let sections = &mut self.directory.sections;
            sections.retain(|entry| wanted(&entry.name));
            self.used = if truncated { 0 } else { used };
        }
        truncated |= self.directory.truncated;
        let mut budget = section::Budget::default();
        let mut sections = Vec::new();
        for entry in &self.directory.sections {
            match section::load(source, entry, &mut budget).map_err(fail)? {
                Some(section) => {
                    truncated |= section.truncated;
                    sections.push(section);
                }
                None => truncated = true,
            }
        }
        Ok(Snapshot {
            now_monotonic_ns: header.last_known_ns(),
            header,
            sections,
            truncated,
            writer_alive: None,
        })
    }
}

/// Reads some sections of a black box again and again, such as the watcher its own: the directory,
/// which only grows, is read once.
pub struct Follower {
    reader: Reader,
    wanted: Box<dyn Fn(&str) -> bool + Send>,
    known: Known,
}

impl Follower {
    /// Follows the sections whose names are `wanted`.
    pub fn new(reader: Reader, wanted: impl Fn(&str) -> bool + Send + 'static) -> Self {
        Follower {
            reader,
            wanted: Box::new(wanted),
            known: Known::default(),
        }
    }

    /// As [`Reader::snapshot`], of the sections that are wanted.
    ///
    /// # Errors
    /// As there.
    pub fn snapshot(&mut self) -> Result<Snapshot, ReadError> {
        let Reader { file, path, .. } = &self.reader;
        let snapshot = self.known.take(file, path, &self.wanted)?;
        Ok(self.reader.with_life(snapshot))
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
pub(crate) mod tests;
