//! Work on a file for a request of the guest, which is carried out at once or by the host's kernel
//! while the I/O thread does other things.

#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use super::host_file::{Erase, erase};
use super::queue::Chain;

/// Zeros that are written at once where the host has no other way.
pub(super) static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

/// What is to be done with the file: one system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    /// From the file at this offset into the chain's writable buffers.
    Read(u64),
    /// From the chain's readable buffers into the file at this offset.
    Write(u64),
    /// What was written to stable storage.
    Flush,
    /// A part of the file, by offset and length.
    Erase(Erase, u64, u64),
    /// Zeros to this offset, so many bytes: at most [`ZEROS`].
    Zeros(u64, usize),
}

/// A request with what it needs while it is carried out. `of` is the device's.
pub(super) struct Job<T> {
    /// Open as long as the job lives.
    pub file: Arc<File>,
    /// Its buffers stay mapped as long as the job lives.
    pub chain: Chain,
    pub op: Op,
    pub of: T,
}

impl<T> Job<T> {
    /// Does it now; gives the bytes moved, which may be fewer than asked.
    pub fn step(&self) -> io::Result<usize> {
        let file = self.file.as_fd();
        match self.op {
            Op::Read(at) => self.chain.writable.fill_from(file, at),
            Op::Write(at) => self.chain.readable.drain_to(file, at),
            Op::Flush => self.file.sync_data().map(|()| 0),
            Op::Erase(how, at, bytes) => erase(&self.file, how, at, bytes).map(|()| 0),
            Op::Zeros(at, bytes) => self.file.write_at(zeros(bytes), at),
        }
    }
}

/// So many zeros.
pub(super) fn zeros(bytes: usize) -> &'static [u8] {
    ZEROS.get(..bytes).unwrap_or(&ZEROS)
}

/// Who carries jobs out while the I/O thread does other things: `Uring`, or a stand-in in tests.
/// It owns a job from `start` until `ended` gives it back.
pub(super) trait Background<T>: Send {
    /// Is ready for reading when jobs have ended, until [`Background::acknowledge`].
    fn descriptor(&self) -> RawFd;

    /// Takes note that the descriptor was ready.
    fn acknowledge(&mut self);

    /// Makes the descriptor ready.
    fn wake(&mut self);

    /// Whether another job can be started.
    fn has_room(&self) -> bool;

    /// Jobs that were started and have not been given back.
    fn in_flight(&self) -> usize;

    /// Takes a job, to begin at the next [`Background::submit`]. Gives it back if there is no room.
    fn start(&mut self, job: Job<T>) -> Option<Job<T>>;

    /// Begins all jobs that were started.
    fn submit(&mut self);

    /// A job that has ended, with the bytes moved or what the kernel said.
    fn ended(&mut self) -> Option<(Job<T>, io::Result<usize>)>;

    /// Waits until a job has ended, but not longer than `limit`.
    fn wait(&mut self, limit: Duration);

    /// Asks that all jobs end soon, done or not. It may be in vain.
    fn cancel(&mut self);
}
