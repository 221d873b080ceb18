//! Jobs in the background by io_uring: one ring, submitted to and reaped by one thread.
//!
//! What the kernel works on belongs to the ring. A [`Job`] is moved into a slot before the kernel
//! hears of it, and nobody can reach it there until the kernel has said that it is done with it. The
//! job owns the list of vectors, a share of the guest RAM that they lead to, and a share of the open
//! file. So all of that stays mapped and open as long as a request is in flight. Where the kernel
//! does not give a job back before the ring is dropped, the job is leaked, and its share of the
//! guest's memory with it.

#![allow(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, opcode, squeue};
use vmm_sys_util::eventfd::EventFd;

use super::job::{Background, Job, Op, zeros};
use super::link::{event, signal};

/// Jobs in flight at most.
pub(super) const MAX_JOBS: u16 = 128;
/// The mark of a cancellation's own answer.
const CANCEL: u64 = u64::MAX;
/// How long a dropped ring waits for the kernel.
const DROP_WAIT: Duration = Duration::from_secs(1);
/// Calls for one submission at most: each takes at least one job.
const SUBMIT_CALLS: u32 = 256;

/// Why a host gives no ring that is of use, with the remedy.
#[derive(Debug, thiserror::Error)]
pub enum UringError {
    /// The kernel has none.
    #[error("the host's kernel has no io_uring: use one of 5.11 or newer that was built with it")]
    Missing,
    /// The kernel's is too old.
    #[error("the host's kernel lacks {0} of io_uring: use 5.11 or newer")]
    Old(&'static str),
    /// This process may not have one.
    #[error(
        "this process may not use io_uring: set kernel.io_uring_disabled to 0, or allow it in the seccomp filter that this process runs under (those of containers often forbid it)"
    )]
    Forbidden,
    /// There is too little memory for it.
    #[error(
        "the host has no memory for an io_uring: raise the limit on locked memory (ulimit -l), or free some memory"
    )]
    Memory,
    /// Something else failed.
    #[error("the host gives no io_uring: {0}; raise the limit on open files if that is the cause")]
    Other(#[source] io::Error),
}

impl From<io::Error> for UringError {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOSYS) => UringError::Missing,
            Some(libc::EPERM | libc::EACCES) => UringError::Forbidden,
            Some(libc::ENOMEM) => UringError::Memory,
            _ => UringError::Other(error),
        }
    }
}

/// See the module.
pub(super) struct Uring<T: Send> {
    ring: IoUring,
    told: EventFd,
    /// The jobs in flight, each in the slot whose number the kernel was given.
    slots: Vec<Option<Job<T>>>,
    free: Vec<u16>,
    complained: bool,
}

impl<T: Send> Uring<T> {
    /// Asks the host for a ring that can do all of [`Op`].
    ///
    /// # Errors
    /// [`UringError`]: why there is none, and what to do.
    pub fn new() -> Result<Self, UringError> {
        let ring = IoUring::new(u32::from(MAX_JOBS))?;
        let features = ring.params();
        for (there, what) in [
            (features.is_feature_nodrop(), "the keeping of all answers"),
            (features.is_feature_ext_arg(), "waiting with a limit"),
        ] {
            if !there {
                return Err(UringError::Old(what));
            }
        }
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        for (code, what) in [
            (opcode::Readv::CODE, "reading"),
            (opcode::Writev::CODE, "writing"),
            (opcode::Write::CODE, "writing"),
            (opcode::Fsync::CODE, "flushing"),
            (opcode::Fallocate::CODE, "erasing"),
            (opcode::AsyncCancel::CODE, "cancelling"),
        ] {
            if !probe.is_supported(code) {
                return Err(UringError::Old(what));
            }
        }
        let told = event()?;
        ring.submitter().register_eventfd(told.as_raw_fd())?;
        Ok(Uring {
            ring,
            told,
            slots: (0..MAX_JOBS).map(|_| None).collect(),
            free: (0..MAX_JOBS).rev().collect(),
            complained: false,
        })
    }

    /// Puts an entry into the submission queue; false when it has no room.
    ///
    /// # Safety
    /// What the entry points to stays as it is until the kernel has answered.
    unsafe fn push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: the caller's promise is what `push` asks for.
        if unsafe { self.ring.submission().push(entry) }.is_ok() {
            return true;
        }
        self.submit();
        // SAFETY: as above.
        unsafe { self.ring.submission().push(entry) }.is_ok()
    }

    fn is_submitted(&mut self) -> bool {
        let queue = self.ring.submission();
        queue.is_empty() && !queue.cq_overflow()
    }

    /// The kernel takes no more just now: another attempt follows in the next turn.
    fn try_again(&mut self, error: &io::Error) {
        if !self.complained {
            tracing::warn!("io_uring takes no more requests: {error}; it is tried again");
        }
        self.complained = true;
        // What is in flight may need its answers read first, and those make the descriptor ready.
        std::thread::sleep(Duration::from_millis(1));
        self.wake();
    }
}

/// What the kernel is told of a job. The pointers are those of the job's own buffers.
fn entry<T>(job: &Job<T>) -> squeue::Entry {
    let file = Fd(job.file.as_raw_fd());
    match job.op {
        Op::Read(at) => {
            let (vectors, count) = job.chain.writable.pointer();
            let read = opcode::Readv::new(file, vectors, count);
            read.offset(at).build()
        }
        Op::Write(at) => {
            let (vectors, count) = job.chain.readable.pointer();
            let write = opcode::Writev::new(file, vectors, count);
            write.offset(at).build()
        }
        Op::Flush => {
            let flush = opcode::Fsync::new(file);
            flush.flags(FsyncFlags::DATASYNC).build()
        }
        Op::Erase(how, at, bytes) => {
            let erase = opcode::Fallocate::new(file, bytes);
            erase.offset(at).mode(how.mode()).build()
        }
        Op::Zeros(at, bytes) => {
            let zeros = zeros(bytes);
            let count = u32::try_from(zeros.len()).unwrap_or(0);
            let write = opcode::Write::new(file, zeros.as_ptr(), count);
            write.offset(at).build()
        }
    }
}

impl<T: Send> Background<T> for Uring<T> {
    fn descriptor(&self) -> RawFd {
        self.told.as_raw_fd()
    }

    fn acknowledge(&mut self) {
        // Nothing to read is fine.
        let _ = self.told.read();
    }

    fn wake(&mut self) {
        signal(&self.told);
    }

    fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    fn in_flight(&self) -> usize {
        self.slots.len().saturating_sub(self.free.len())
    }

    fn start(&mut self, job: Job<T>) -> Option<Job<T>> {
        let Some(number) = self.free.pop() else {
            return Some(job);
        };
        let Some(slot) = self.slots.get_mut(usize::from(number)) else {
            return Some(job);
        };
        let job = slot.insert(job);
        let entry = entry(job).user_data(u64::from(number));
        // SAFETY: the vectors, the guest's buffers and the open file belong to the job, zeros are
        // static. The job is in its slot, from which it is taken when the kernel has answered and
        // not before (`ended`), or when the kernel was not told of it (below), or never (`drop`).
        // Nothing changes it there; moving it moves neither vectors nor buffers.
        if unsafe { self.push(&entry) } {
            return None;
        }
        self.free.push(number);
        self.slots
            .get_mut(usize::from(number))
            .and_then(Option::take)
    }

    fn submit(&mut self) {
        for _ in 0..SUBMIT_CALLS {
            if self.is_submitted() {
                return;
            }
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.try_again(&error),
            }
        }
        self.wake();
    }

    fn ended(&mut self) -> Option<(Job<T>, io::Result<usize>)> {
        loop {
            let answer = self.ring.completion().next()?;
            let number = answer.user_data();
            let slot = usize::try_from(number).ok();
            // A cancellation's answer has no slot.
            let job = slot.and_then(|slot| self.slots.get_mut(slot)?.take());
            if let Some((job, number)) = job.zip(u16::try_from(number).ok()) {
                self.free.push(number);
                self.complained = false;
                let result = answer.result();
                let said = |_| io::Error::from_raw_os_error(result.saturating_neg());
                return Some((job, usize::try_from(result).map_err(said)));
            }
        }
    }

    fn wait(&mut self, limit: Duration) {
        let time = Timespec::from(limit);
        let limit = SubmitArgs::new().timespec(&time);
        // Interrupted, or over: the caller looks at the time.
        let _ = self.ring.submitter().submit_with_args(1, &limit);
    }

    fn cancel(&mut self) {
        self.submit();
        for number in 0..MAX_JOBS {
            let slot = self.slots.get(usize::from(number));
            if slot.is_some_and(Option::is_some) {
                let cancel = opcode::AsyncCancel::new(u64::from(number)).build();
                // SAFETY: the entry has no pointers.
                unsafe { self.push(&cancel.user_data(CANCEL)) };
            }
        }
        self.submit();
    }
}

impl<T: Send> Drop for Uring<T> {
    fn drop(&mut self) {
        let until = Instant::now().checked_add(DROP_WAIT);
        let left = || until.and_then(|until| until.checked_duration_since(Instant::now()));
        if self.in_flight() > 0 {
            self.cancel();
        }
        while self.in_flight() > 0
            && let Some(left) = left()
        {
            self.wait(left);
            while self.ended().is_some() {}
        }
        if self.in_flight() > 0 {
            // The kernel works on them still: what they own is never given back.
            std::mem::forget(std::mem::take(&mut self.slots));
        }
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
mod tests;
