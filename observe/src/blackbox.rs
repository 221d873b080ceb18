//! The black box: a memory-mapped file, made once at start, that outlives the process.
//!
//! Layout (little-endian): a header of [`HEADER_BYTES`], the directory (UTF-8 text that describes
//! every section, see [`crate::reader`]), then the sections, each aligned to a cache line. The
//! directory only grows, and its published length is stored last, so a reader at any moment sees
//! whole lines. The file's blocks are allocated when it is made: writing to it cannot fail for
//! lack of space later (a store to a full tmpfs would be SIGBUS).
//!
//! Directory lines, tab-separated; readers pass over lines and columns that they do not know:
//! ```text
//! kind     KIND  INSTANCE-LABELS(,)
//! field    KIND  NAME  FIELDKIND  UNIT  OFFSET  COUNT  STRIDE  LABEL  HELP
//! column   KIND  SERIES  NAME  FIELDKIND  UNIT  HELP
//! section  NAME  KIND  OFFSET  BYTES
//! labels   SECTION  LABEL  VALUE(,)
//! ```

mod describe;
mod layout;
mod mapping;
mod place;
mod probe;

use std::any::TypeId;
use std::fs::File;
use std::marker::PhantomData;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::clock::{Clock, monotonic_ns, realtime_ns};
use crate::schema::Section;
pub use layout::{HEADER_BYTES, MAGIC, MAJOR, MINOR};
pub(crate) use layout::{Header, PULSE_CHECK, SECTION_ALIGN};
use mapping::Mapping;
pub(crate) use place::is_held;
use probe::Placed;
pub use probe::Probe;

/// Who the black box belongs to.
#[derive(Clone, Debug)]
pub struct Meta {
    /// The VM's id; cut at 64 bytes.
    pub vm_id: String,
    /// The VMM's version; cut at 64 bytes.
    pub version: String,
}

/// How the VM ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum End {
    /// As somebody asked: guest or operator.
    Clean = 1,
    /// The VM failed.
    Failed = 2,
}

/// Why a black box could not be made or extended.
#[derive(Debug, thiserror::Error)]
pub enum BlackBoxError {
    /// The file could not be made.
    #[error("the black box {path} cannot be made; give another place with --blackbox")]
    Create {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The capacity given at creation is used up.
    #[error("the black box is full: section {section} needs {need} bytes, {free} are left")]
    Full {
        /// The section that did not fit.
        section: String,
        /// Bytes asked.
        need: usize,
        /// Bytes left.
        free: usize,
    },
}

/// A section in the black box, written by the one thread that holds it.
pub struct Block<T: Section> {
    value: NonNull<T>,
    _map: Arc<Mapping>,
    _type: PhantomData<T>,
}

// SAFETY: T is Sync (a Section), and the mapping that it lives in is kept by the Arc.
#[allow(unsafe_code)]
unsafe impl<T: Section> Send for Block<T> {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl<T: Section> Sync for Block<T> {}

impl<T: Section> Deref for Block<T> {
    type Target = T;
    #[inline]
    #[allow(unsafe_code)]
    fn deref(&self) -> &T {
        // SAFETY: `value` points to a zero-initialised, aligned T inside the mapping (checked in
        // `BlackBox::section`), all-zero is valid for a Section, and the Arc keeps it mapped.
        unsafe { self.value.as_ref() }
    }
}

/// Says that the VMM as a whole lives, and ties its ticks to the kernel's clock. One thread beats
/// it, about once a second: the last beat is the time of death after `kill -9`, and a reader dates
/// ticks by the newest one, so that an error in the measured tick rate does not add up over days.
pub struct Pulse {
    map: Arc<Mapping>,
    clock: Clock,
}

impl Pulse {
    /// Writes a fresh pair of ticks and `CLOCK_MONOTONIC`.
    pub fn beat(&self) {
        let (ticks, ns) = self.clock.pair();
        let header = header(&self.map);
        header.pulse_ticks.store(ticks, Ordering::Relaxed);
        header.pulse_monotonic_ns.store(ns, Ordering::Relaxed);
        let check = ticks ^ ns ^ PULSE_CHECK;
        header.pulse_check.store(check, Ordering::Release);
    }
}

/// The writer's side of a black box. Owned by the thread that builds the VM.
pub struct BlackBox {
    map: Arc<Mapping>,
    file: File,
    path: Option<PathBuf>,
    next_section: usize,
    // Kept here and not read back from the file: what others do to it must not move our stores.
    directory_capacity: usize,
    directory_used: usize,
    described: Vec<(&'static str, TypeId)>,
    placed: Vec<Placed>,
}

impl BlackBox {
    /// Makes a black box of `bytes` (rounded up to a page) at `path`, mode 0600, replacing a black
    /// box, an empty file or a symbolic link of that name, and nothing else; its blocks are
    /// allocated now. Missing folders are made. The old file stays until the new one is whole.
    ///
    /// # Errors
    /// [`BlackBoxError::Create`] when the file or its space cannot be had.
    pub fn create(path: &Path, bytes: usize, meta: &Meta) -> Result<Self, BlackBoxError> {
        let fail = |source| BlackBoxError::Create {
            path: path.to_owned(),
            source,
        };
        let (newborn, file) = place::Newborn::of(path).map_err(fail)?;
        let locked = place::hold(&file);
        let path = Some(path.to_owned());
        let black_box = Self::in_file(file, path, bytes, meta, locked).map_err(fail)?;
        if let Some(path) = &black_box.path {
            newborn.settle(&black_box.file, path).map_err(fail)?;
        }
        Ok(black_box)
    }

    /// The capacity to give at creation for sections of `bytes` together, each counted with
    /// [`BlackBox::section_bytes`], and a directory in proportion.
    pub const fn capacity_for(bytes: usize) -> usize {
        // An eighth is directory; whole pages, and the header, come on top.
        let sections = bytes.saturating_add(HEADER_BYTES + 2 * 4096);
        sections
            .saturating_add(sections / 7)
            .saturating_add(32 << 10)
    }

    /// The capacity that one section of type `T` takes.
    pub const fn section_bytes<T: Section>() -> usize {
        size_of::<T>().next_multiple_of(SECTION_ALIGN)
    }

    /// Makes a black box that no path leads to, for embedders that want none: a memfd.
    ///
    /// # Errors
    /// [`BlackBoxError::Create`] when the memory cannot be had.
    pub fn anonymous(bytes: usize, meta: &Meta) -> Result<Self, BlackBoxError> {
        let fail = |source| BlackBoxError::Create {
            path: PathBuf::from("(memfd)"),
            source,
        };
        let file = place::unnamed().map_err(fail)?;
        let black_box = Self::in_file(file, None, bytes, meta, false).map_err(fail)?;
        place::seal(&black_box.file).map_err(fail)?;
        Ok(black_box)
    }

    #[allow(unsafe_code)]
    fn in_file(
        file: File,
        path: Option<PathBuf>,
        bytes: usize,
        meta: &Meta,
        locked: bool,
    ) -> Result<Self, std::io::Error> {
        let bytes = bytes
            .checked_next_multiple_of(4096)
            .filter(|bytes| libc::off_t::try_from(*bytes).is_ok())
            .ok_or_else(|| std::io::Error::from_raw_os_error(libc::EFBIG))?;
        let directory = directory_bytes(bytes);
        let bytes = bytes.max(HEADER_BYTES + directory + 4096);
        let map = Arc::new(Mapping::new(&file, bytes)?);
        let header = new_header(bytes, directory, meta, locked);
        // SAFETY: the mapping is at least HEADER_BYTES long, page-aligned, and not yet shared.
        unsafe { map.start().cast::<Header>().as_ptr().write(header) };
        Ok(BlackBox {
            map,
            file,
            path,
            next_section: (HEADER_BYTES + directory).next_multiple_of(SECTION_ALIGN),
            directory_capacity: directory,
            directory_used: 0,
            described: Vec::new(),
            placed: Vec::new(),
        })
    }

    /// Places a section named `name` (`KIND` and instance parts, joined by `/`). `labels` gives
    /// for each table label of the section the row names, in row order; a comma or control
    /// character in them becomes `_`, an empty name hides its row. A section of a name that was
    /// used before takes that one's place for readers of the name; both stay in the file.
    ///
    /// # Errors
    /// [`BlackBoxError::Full`] when the capacity given at creation is used up.
    #[allow(unsafe_code)]
    pub fn section<T: Section>(
        &mut self,
        name: &str,
        labels: &[(&str, &[String])],
    ) -> Result<Block<T>, BlackBoxError> {
        const { describe::check::<T>() };
        let bytes = size_of::<T>();
        let offset = self.next_section.next_multiple_of(align_of::<T>());
        let end = offset.saturating_add(bytes);
        let full = |need, free| BlackBoxError::Full {
            section: name.to_owned(),
            need,
            free,
        };
        if end > self.map.bytes() {
            return Err(full(bytes, self.map.bytes().saturating_sub(offset)));
        }
        let mut text = String::new();
        let described = self.described.iter().find(|(kind, _)| *kind == T::KIND);
        debug_assert!(
            described.is_none_or(|(_, id)| *id == TypeId::of::<T>()),
            "two types call themselves {}",
            T::KIND
        );
        let is_new = described.is_none();
        if is_new {
            describe::kind::<T>(&mut text);
        }
        describe::section::<T>(&mut text, name, offset, labels);
        self.append_directory(&text)
            .map_err(|free| full(text.len(), free))?;
        if is_new {
            self.described.push((T::KIND, TypeId::of::<T>()));
        }
        self.next_section = end.next_multiple_of(SECTION_ALIGN);
        self.placed.push(Placed::of::<T>(name, offset));
        // SAFETY: offset + bytes lies inside the mapping, offset is aligned for T (`check`), the
        // bytes are zero (fresh file) and belong to no other section: next_section only grows.
        let value = unsafe { self.map.start().add(offset).cast::<T>() };
        Ok(Block {
            value,
            _map: Arc::clone(&self.map),
            _type: PhantomData,
        })
    }

    /// Appends whole lines and then publishes them. Gives back the free bytes when they do not fit.
    #[allow(unsafe_code)]
    fn append_directory(&mut self, text: &str) -> Result<(), usize> {
        let used = self.directory_used;
        let free = self.directory_capacity.saturating_sub(used);
        if text.len() > free {
            return Err(free);
        }
        // SAFETY: used + text.len() <= capacity, which lies inside the mapping; bytes beyond the
        // published length are read by nobody.
        unsafe {
            let to = self.map.start().add(HEADER_BYTES + used).as_ptr();
            std::ptr::copy_nonoverlapping(text.as_ptr(), to, text.len());
        }
        self.directory_used = used + text.len();
        header(&self.map)
            .directory_used
            .store(self.directory_used as u64, Ordering::Release);
        Ok(())
    }

    /// The pulse, for the one thread that beats it (the watcher).
    pub fn pulse(&self) -> Pulse {
        Pulse {
            map: Arc::clone(&self.map),
            clock: Clock::process(),
        }
    }

    /// Records how the VM ended, with a sentence (cut at 511 bytes).
    pub fn finish(&self, end: End, detail: &str) {
        let header = header(&self.map);
        // Only a whole account may be seen, also when an earlier one is replaced.
        header.end_state.store(0, Ordering::Relaxed);
        fence(Ordering::Release);
        let bytes: [u8; 511] = describe::fixed(detail);
        for (i, cell) in header.end_detail.iter().enumerate() {
            let mut word = [0u8; 8];
            for (to, from) in word.iter_mut().zip(bytes.iter().skip(i * 8)) {
                *to = *from;
            }
            cell.store(u64::from_le_bytes(word), Ordering::Relaxed);
        }
        let (realtime, monotonic) = (realtime_ns(), monotonic_ns());
        header.ended_realtime_ns.store(realtime, Ordering::Relaxed);
        header
            .ended_monotonic_ns
            .store(monotonic, Ordering::Relaxed);
        header.end_state.store(end as u64, Ordering::Release);
    }

    /// Where it lies; `None` for an anonymous one.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// A second handle on the file, for readers in this process.
    ///
    /// # Errors
    /// What the kernel says when no descriptor is left.
    pub fn file(&self) -> std::io::Result<File> {
        self.file.try_clone()
    }

    /// Removes the file: nothing is left of a clean end. What is mapped stays valid. A file that
    /// somebody else has put in its place stays.
    pub fn remove(&self) {
        if let Some(path) = &self.path
            && place::leads_to(path, &self.file)
        {
            // Gone already is as good as removed.
            let _ = std::fs::remove_file(path);
        }
    }
}

#[allow(unsafe_code)]
fn header(map: &Mapping) -> &Header {
    // SAFETY: a Header was written at the start of the mapping in `in_file`; it lives as long as
    // the mapping, and all its fields that change are atomics.
    unsafe { map.start().cast::<Header>().as_ref() }
}

fn new_header(bytes: usize, directory: usize, meta: &Meta, locked: bool) -> Header {
    let clock = Clock::process();
    let (ns_per_tick, base_ticks, base_monotonic_ns) = clock.anchor();
    let (pulse_ticks, pulse_ns) = clock.pair();
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    Header {
        magic: MAGIC,
        major: MAJOR,
        minor: MINOR,
        header_bytes: HEADER_BYTES as u64,
        file_bytes: bytes as u64,
        directory_offset: HEADER_BYTES as u64,
        directory_capacity: directory as u64,
        directory_used: AtomicU64::new(0),
        pid: u64::from(std::process::id()),
        created_realtime_ns: realtime_ns(),
        created_monotonic_ns: monotonic_ns(),
        ns_per_tick,
        base_ticks,
        base_monotonic_ns,
        end_state: AtomicU64::new(0),
        ended_realtime_ns: AtomicU64::new(0),
        vm_id: describe::fixed(&meta.vm_id),
        version: describe::fixed(&meta.version),
        boot_id: describe::fixed(boot_id.as_deref().map_or("", str::trim)),
        end_detail: std::array::from_fn(|_| AtomicU64::new(0)),
        ended_monotonic_ns: AtomicU64::new(0),
        pulse_ticks: AtomicU64::new(pulse_ticks),
        pulse_monotonic_ns: AtomicU64::new(pulse_ns),
        pulse_check: AtomicU64::new(pulse_ticks ^ pulse_ns ^ PULSE_CHECK),
        locked: u64::from(locked),
    }
}

/// Directory capacity for a file of `bytes`: an eighth, at least 32 KiB.
fn directory_bytes(bytes: usize) -> usize {
    (bytes / 8).next_multiple_of(4096).max(32 << 10)
}

#[cfg(test)]
mod tests;
