//! Tracepoints of one thread, read from a ring that the kernel fills: perf_event_open(2).
//!
//! All tracepoints of a thread are one group with one ring, so that they start and stop together
//! and their records are in order. The ring is bounded; what finds no place in it is counted by
//! the kernel and told.
#![allow(unsafe_code)] // perf_event_open, ioctl, mmap and the ring, which std does not offer.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use super::record::SAMPLE_TYPE;

/// Bytes of records that a ring holds, if the host allows it.
pub const RING_BYTES: usize = 1 << 20;
/// With less it is not tried.
const LEAST_RING_BYTES: usize = 1 << 14;

const TYPE_TRACEPOINT: u32 = 2;
const FLAG_DISABLED: u64 = 1;
const FLAG_USE_CLOCKID: u64 = 1 << 25;
const FORMAT_LOST: u64 = 1 << 4;
const OPEN_CLOEXEC: libc::c_ulong = 8;
const IOCTL_ENABLE: libc::c_ulong = 0x2400;
const IOCTL_DISABLE: libc::c_ulong = 0x2401;
const IOCTL_SET_OUTPUT: libc::c_ulong = 0x2405;
const WHOLE_GROUP: libc::c_ulong = 1;
/// Offsets in `perf_event_mmap_page`.
const DATA_HEAD: usize = 1024;
const DATA_TAIL: usize = 1032;

/// `perf_event_attr` as of `PERF_ATTR_SIZE_VER5` (Linux 4.1), which later kernels take.
#[derive(Default)]
#[repr(C)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    config1: u64,
    config2: u64,
    branch_sample_type: u64,
    sample_regs_user: u64,
    sample_stack_user: u32,
    clockid: i32,
    sample_regs_intr: u64,
    aux_watermark: u32,
    sample_max_stack: u16,
    reserved: u16,
}

const _: () = assert!(size_of::<Attributes>() == 112);

/// Which step was refused.
#[derive(Debug, thiserror::Error)]
pub enum PerfError {
    /// perf_event_open(2).
    #[error("perf_event_open of tracepoint {tracepoint} on thread {tid}: {source}")]
    Open {
        /// The tracepoint's number.
        tracepoint: u64,
        /// The thread.
        tid: i32,
        /// What the kernel said.
        source: io::Error,
    },
    /// mmap(2).
    #[error("the ring of {LEAST_RING_BYTES} bytes: {source}")]
    Ring {
        /// What the kernel said.
        source: io::Error,
    },
    /// ioctl(2).
    #[error("{what} the events: {source}")]
    Control {
        /// What was asked.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl PerfError {
    /// What the kernel said.
    pub fn errno(&self) -> Option<i32> {
        let (PerfError::Open { source, .. }
        | PerfError::Ring { source }
        | PerfError::Control { source, .. }) = self;
        source.raw_os_error()
    }
}

/// How often a tracepoint was hit while its event was enabled, as the kernel counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// The tracepoint's number.
    pub tracepoint: u64,
    /// Hits, those whose records were lost included.
    pub hits: u64,
    /// Records that were lost; `None` before Linux 6.0, which does not tell.
    pub lost: Option<u64>,
}

struct OneEvent {
    tracepoint: u64,
    file: File,
    tells_lost: bool,
}

/// The tracepoints of one thread. Dropped, they are gone.
pub struct ThreadEvents {
    /// The first one leads the group and owns the ring.
    events: Vec<OneEvent>,
    ring: Ring,
}

impl ThreadEvents {
    /// Opens `tracepoints`, disabled, on the thread `tid`; their samples' times are
    /// `CLOCK_MONOTONIC`.
    ///
    /// # Errors
    /// [`PerfError`]. `EACCES` and `EPERM`: not allowed; `ESRCH`: no such thread.
    pub fn open(tid: i32, tracepoints: &[u64]) -> Result<Self, PerfError> {
        let Some((first, others)) = tracepoints.split_first() else {
            let source = io::Error::from_raw_os_error(libc::EINVAL);
            return Err(PerfError::Ring { source });
        };
        let leader = open(*first, tid, None)?;
        // The others can be given the ring only when it is there.
        let ring = Ring::map(&leader.file)?;
        let mut events = vec![leader];
        for tracepoint in others {
            let leader = events.first();
            let event = open(*tracepoint, tid, leader)?;
            if let Some(leader) = leader {
                let argument = leader.file.as_raw_fd().cast_unsigned().into();
                control(&event.file, IOCTL_SET_OUTPUT, argument, "giving a ring to")?;
            }
            events.push(event);
        }
        Ok(ThreadEvents { events, ring })
    }

    /// Starts all of them at once.
    ///
    /// # Errors
    /// [`PerfError::Control`].
    pub fn enable(&self) -> Result<(), PerfError> {
        self.control(IOCTL_ENABLE, "starting")
    }

    /// Stops all of them at once. What was recorded can still be read.
    ///
    /// # Errors
    /// [`PerfError::Control`].
    pub fn disable(&self) -> Result<(), PerfError> {
        self.control(IOCTL_DISABLE, "stopping")
    }

    fn control(&self, request: libc::c_ulong, what: &'static str) -> Result<(), PerfError> {
        match self.events.first() {
            Some(leader) => control(&leader.file, request, WHOLE_GROUP, what),
            None => Ok(()),
        }
    }

    /// Moves all records that are there into `into`, which is cleared first: at most
    /// [`RING_BYTES`].
    pub fn drain(&mut self, into: &mut Vec<u8>) {
        into.clear();
        self.ring.drain(into);
    }

    /// How often each tracepoint was hit.
    pub fn counts(&self) -> Vec<Count> {
        let counts = self.events.iter().filter_map(|event| {
            let mut words = [0u8; 16];
            let size = if event.tells_lost { 16 } else { 8 };
            let read = (&event.file).read(words.get_mut(..size)?).ok()?;
            let (hits, lost) = words.split_first_chunk::<8>()?;
            let lost = u64::from_le_bytes(lost.try_into().ok()?);
            (read == size).then_some(Count {
                tracepoint: event.tracepoint,
                hits: u64::from_le_bytes(*hits),
                lost: event.tells_lost.then_some(lost),
            })
        });
        counts.collect()
    }
}

fn open(tracepoint: u64, tid: i32, leader: Option<&OneEvent>) -> Result<OneEvent, PerfError> {
    let mut attributes = Attributes {
        kind: TYPE_TRACEPOINT,
        size: size_of::<Attributes>() as u32,
        config: tracepoint,
        sample_period: 1,
        sample_type: SAMPLE_TYPE,
        read_format: FORMAT_LOST,
        // Members of a group run when their leader does.
        flags: FLAG_USE_CLOCKID | if leader.is_none() { FLAG_DISABLED } else { 0 },
        clockid: libc::CLOCK_MONOTONIC,
        ..Attributes::default()
    };
    let leader = leader.map_or(-1, |leader| leader.file.as_raw_fd());
    let mut opened = perf_event_open(&attributes, tid, leader);
    if let Err(error) = &opened
        && error.raw_os_error() == Some(libc::EINVAL)
    {
        attributes.read_format = 0;
        opened = perf_event_open(&attributes, tid, leader);
    }
    match opened {
        Ok(fd) => Ok(OneEvent {
            tracepoint,
            file: File::from(fd),
            tells_lost: attributes.read_format == FORMAT_LOST,
        }),
        Err(source) => Err(PerfError::Open {
            tracepoint,
            tid,
            source,
        }),
    }
}

fn perf_event_open(attributes: &Attributes, tid: i32, leader: i32) -> io::Result<OwnedFd> {
    const ANY_CPU: libc::c_int = -1;
    // SAFETY: `attributes` is a perf_event_attr of the size that it says, and lives across the call.
    let fd = unsafe {
        let attributes = std::ptr::from_ref(attributes);
        libc::syscall(
            libc::SYS_perf_event_open,
            attributes,
            tid,
            ANY_CPU,
            leader,
            OPEN_CLOEXEC,
        )
    };
    match i32::try_from(fd) {
        // SAFETY: the call gave us this descriptor, and nobody else has it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn control(
    file: &File,
    request: libc::c_ulong,
    argument: libc::c_ulong,
    what: &'static str,
) -> Result<(), PerfError> {
    // SAFETY: these requests take a number, and no memory of ours.
    if unsafe { libc::ioctl(file.as_raw_fd(), request, argument) } == 0 {
        return Ok(());
    }
    let source = io::Error::last_os_error();
    Err(PerfError::Control { what, source })
}

/// A mapping that the kernel shares: a page of its own, then the records, in a circle.
struct Ring {
    base: NonNull<u8>,
    page_bytes: usize,
    data_bytes: usize,
}

// SAFETY: the mapping belongs to this value alone, and no thread's identity is part of it.
unsafe impl Send for Ring {}

impl Ring {
    /// Maps the ring of the event `file`: the largest that the host allows.
    fn map(file: &File) -> Result<Ring, PerfError> {
        // SAFETY: sysconf has no memory of ours to touch.
        let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let page_bytes = usize::try_from(page_bytes).unwrap_or(4096);
        let mut data_bytes = RING_BYTES;
        loop {
            // SAFETY: a new mapping at a place that the kernel chooses touches no other.
            let base = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    page_bytes + data_bytes,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_SHARED,
                    file.as_raw_fd(),
                    0,
                )
            };
            if base != libc::MAP_FAILED
                && let Some(base) = NonNull::new(base.cast())
            {
                return Ok(Ring {
                    base,
                    page_bytes,
                    data_bytes,
                });
            }
            let source = io::Error::last_os_error();
            data_bytes /= 2;
            if data_bytes < LEAST_RING_BYTES {
                return Err(PerfError::Ring { source });
            }
        }
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: both offsets that are asked for lie in the first page of the mapping, aligned to
        // eight bytes; the kernel, too, accesses these words as a whole only.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }

    fn drain(&mut self, into: &mut Vec<u8>) {
        // Acquire: the records before the head are whole. Release: we are done with them.
        let head = self.word(DATA_HEAD).load(Ordering::Acquire);
        let tail = self.word(DATA_TAIL).load(Ordering::Relaxed);
        let length = head.wrapping_sub(tail).min(self.data_bytes as u64) as usize;
        // The ring's size is a power of two.
        let begin = tail as usize & (self.data_bytes - 1);
        let first = length.min(self.data_bytes - begin);
        for (offset, bytes) in [(begin, first), (0, length - first)] {
            // SAFETY: `offset + bytes` is at most `data_bytes`, which are mapped behind the first
            // page; the kernel does not write between tail and head, and a read of bytes that it
            // did write to would give bytes all the same.
            let part = unsafe {
                let start = self.base.as_ptr().add(self.page_bytes + offset);
                std::slice::from_raw_parts(start, bytes)
            };
            into.extend_from_slice(part);
        }
        self.word(DATA_TAIL).store(head, Ordering::Release);
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let bytes = self.page_bytes + self.data_bytes;
        // SAFETY: this is the whole mapping, and nothing borrows from it.
        unsafe { libc::munmap(self.base.as_ptr().cast(), bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_is_not_there_is_refused_with_a_reason() {
        let error = ThreadEvents::open(i32::MAX, &[1])
            .err()
            .expect("no such thread");
        // ESRCH, or what keeps us from asking at all.
        let errno = error.errno().unwrap();
        let known = [
            libc::ESRCH,
            libc::EACCES,
            libc::EPERM,
            libc::ENOENT,
            libc::ENOSYS,
        ];
        assert!(known.contains(&errno), "{error}");
        assert!(error.to_string().contains("tracepoint 1"), "{error}");
    }

    #[test]
    fn no_tracepoint_is_refused() {
        assert!(ThreadEvents::open(0, &[]).is_err());
    }
}
