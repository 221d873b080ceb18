//! A request on its way: begun from a chain, carried out step by step by either engine, and ended
//! with a status. The steps are the same for both, so what the guest sees is, too.

#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::fs::File;
use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_blk as blk;

use super::erase::Erasing;
use super::request::{self, Disk, HEADER_BYTES, Operation, Refusal, SECTOR_BYTES};
use crate::virtio::job::{Job, Op};
use crate::virtio::queue::{Chain, QueueRunner};
use crate::virtio::vectors::GuestByte;
use crate::virtio::witness::Done;

/// Why a request fails.
#[derive(Debug)]
pub(super) enum Failure {
    /// The host's kernel says so, at this sector.
    Host(io::Error, Option<u64>),
    /// A reset or the machine's end waits for it no longer.
    Cancelled,
}

impl Failure {
    pub fn at(error: io::Error, offset: u64) -> Failure {
        Failure::Host(error, offset.checked_div(SECTOR_BYTES))
    }
}

/// What is done for a request.
enum Work {
    /// Data between the chain and the file, from `from` on; `at` is where it goes on.
    Read {
        from: u64,
        at: u64,
    },
    Write {
        from: u64,
        at: u64,
    },
    Flush,
    Erase(Box<Erasing>),
}

/// A request at work: its side of a [`Job`].
pub(super) struct Pending {
    /// The queue that it came by.
    pub queue: usize,
    status: GuestByte,
    operation: Operation,
    /// Bytes of the guest's buffers that the device may write, the status with them.
    room: usize,
    payload: usize,
    work: Work,
}

/// A request that either engine can carry out.
pub(super) type Task = Job<Pending>;

/// What came of looking at a chain.
pub(super) enum Begun {
    /// It is to be carried out.
    Task(Task),
    /// It is answered already.
    Answered(Chain, Done),
    /// It has no header, or no place for the status.
    Broken(Chain),
}

/// What a request is judged and carried out by.
pub(super) struct Drive<'a> {
    pub id: &'a str,
    pub file: &'a Arc<File>,
    pub disk: Disk,
}

/// Looks at a chain of the queue `queue`.
pub(super) fn begin(queue: usize, mut chain: Chain, drive: &Drive) -> Begun {
    let mut header = [0; HEADER_BYTES];
    if chain.readable.copy_to(0, &mut header) < HEADER_BYTES {
        return Begun::Broken(chain);
    }
    chain.readable.advance(HEADER_BYTES);
    let (from_guest, room) = (chain.readable.bytes(), chain.writable.bytes());
    let Some(status) = chain.writable.split_last_byte() else {
        return Begun::Broken(chain);
    };
    let to_guest = room.saturating_sub(1);
    let request = request::parse(header, from_guest as u64, to_guest as u64, drive.disk);
    let operation = request.operation;
    let work = request.offset.and_then(|at| match operation {
        Operation::Read => Ok(Some((to_guest, Work::Read { from: at, at }))),
        Operation::Write => Ok(Some((from_guest, Work::Write { from: at, at }))),
        Operation::Flush => Ok(Some((0, Work::Flush))),
        Operation::Discard | Operation::WriteZeroes => {
            let erasing = Erasing::of(operation, &chain.readable, drive.disk)?;
            Ok(Some((0, Work::Erase(Box::new(erasing)))))
        }
        Operation::GetId => Ok(None),
        Operation::Unsupported => Err(Refusal::Unsupported),
    });
    let answer = match work {
        Ok(Some((payload, work))) => {
            let pending = Pending {
                queue,
                status,
                operation,
                room,
                payload,
                work,
            };
            return Begun::Task(Job {
                file: Arc::clone(drive.file),
                chain,
                op: pending.work.op(),
                of: pending,
            });
        }
        Ok(None) => Ok(chain.writable.copy_from(0, &request::serial(drive.id)) as u64),
        Err(refusal) => Err(refusal),
    };
    let done = answered(&status, operation, room, answer);
    Begun::Answered(chain, done)
}

/// Writes the status; gives what is counted.
fn answered(
    status: &GuestByte,
    operation: Operation,
    room: usize,
    answer: Result<u64, Refusal>,
) -> Done {
    status.set(answer.map_or_else(Refusal::status, |_| blk::VIRTIO_BLK_S_OK as u8));
    Done {
        operation: operation as u8,
        written: u32::try_from(room).unwrap_or(u32::MAX),
        payload: answer.unwrap_or(0),
        failed: answer.is_err(),
    }
}

impl Work {
    fn op(&self) -> Op {
        match self {
            Work::Read { at, .. } => Op::Read(*at),
            Work::Write { at, .. } => Op::Write(*at),
            Work::Flush => Op::Flush,
            Work::Erase(erasing) => erasing.op(),
        }
    }
}

impl Task {
    /// What came of its operation. `None` when there is another one to do, else the payload.
    pub fn came(&mut self, result: io::Result<usize>) -> Option<Result<u64, Failure>> {
        let end = match result {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => None,
            result => self.went_on(result),
        };
        self.op = self.of.work.op();
        end
    }

    fn went_on(&mut self, result: io::Result<usize>) -> Option<Result<u64, Failure>> {
        let (list, from, at, nothing) = match &mut self.of.work {
            Work::Read { from, at } => {
                let end = io::ErrorKind::UnexpectedEof;
                (&mut self.chain.writable, *from, at, end)
            }
            Work::Write { from, at } => {
                let full = io::ErrorKind::WriteZero;
                (&mut self.chain.readable, *from, at, full)
            }
            Work::Flush => {
                let flushed = result.map(|_| 0);
                return Some(flushed.map_err(|error| Failure::Host(error, None)));
            }
            Work::Erase(erasing) => return erasing.came(result),
        };
        match result {
            Ok(0) => Some(Err(Failure::at(nothing.into(), from))),
            Ok(bytes) => {
                list.advance(bytes);
                *at = at.saturating_add(bytes as u64);
                list.is_empty().then_some(Ok(self.of.payload as u64))
            }
            Err(error) => Some(Err(Failure::at(error, from))),
        }
    }

    /// Carries it out on this thread.
    pub fn carry_out(mut self, queue: &QueueRunner) -> (Chain, Done) {
        loop {
            let result = self.step();
            if let Some(outcome) = self.came(result) {
                return self.end(outcome, queue);
            }
        }
    }

    /// Tells the guest, and the operator of a failure of the host's.
    pub fn end(self, outcome: Result<u64, Failure>, queue: &QueueRunner) -> (Chain, Done) {
        let Pending {
            status,
            operation,
            room,
            ..
        } = self.of;
        let answer = outcome.map_err(|failure| match failure {
            Failure::Host(error, sector) => {
                queue.host_error(operation as u8, sector, &error);
                Refusal::Host
            }
            Failure::Cancelled => Refusal::Host,
        });
        (self.chain, answered(&status, operation, room, answer))
    }
}
