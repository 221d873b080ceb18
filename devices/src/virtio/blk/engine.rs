//! How a drive's requests are carried out: one after another on its thread, or many at a time in
//! the background.

#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::io;
use std::time::{Duration, Instant};

use super::work::{Failure, Pending, Task};
use crate::virtio::job::Background;
use crate::virtio::queue::{Chain, QueueRunner};
use crate::virtio::uring::{Uring, UringError};
use crate::virtio::witness::Done;

/// How a drive's requests are carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoEngine {
    /// One after another, by ordinary reads and writes.
    #[default]
    Sync,
    /// Many at a time, by io_uring; as `Sync` where the host has none.
    Async,
}

impl IoEngine {
    /// The number in [`crate::virtio::DeviceBlock::io_engine`].
    pub fn number(self) -> u64 {
        match self {
            IoEngine::Sync => 1,
            IoEngine::Async => 2,
        }
    }
}

/// Asks the host for what [`IoEngine::Async`] needs, and gives it back at once.
///
/// # Errors
/// Why the host does not give it, and what to do.
pub fn try_async() -> Result<(), UringError> {
    Uring::<()>::new().map(drop)
}

/// The background for `engine` with so many queues, if it has one; and why it has none although it should.
pub(super) fn chosen(
    engine: IoEngine,
    queues: usize,
    ring: impl FnOnce() -> Result<Uring<Pending>, UringError>,
) -> (Option<Async>, Option<String>) {
    match engine {
        IoEngine::Sync => (None, None),
        IoEngine::Async => match ring() {
            Ok(ring) => (Some(Async::new(Box::new(ring), queues)), None),
            Err(error) => (None, Some(error.to_string())),
        },
    }
}

/// Submissions in one turn at most: requests of many steps go on in the next.
const ROUNDS: u32 = 8;

/// The background, and what is known of the requests there.
pub(super) struct Async {
    ring: Box<dyn Background<Pending>>,
    /// What has ended and is to be given back, by queue.
    ended: Vec<Vec<(Chain, Done)>>,
    /// Queues that had more requests than there was room for.
    held: Vec<bool>,
    /// No request begins another step.
    cancelling: bool,
    /// The driver has reset the device: its requests are of no more use.
    discarding: bool,
}

impl Async {
    pub fn new(ring: Box<dyn Background<Pending>>, queues: usize) -> Self {
        Async {
            ring,
            ended: (0..queues).map(|_| Vec::new()).collect(),
            held: vec![false; queues],
            cancelling: false,
            discarding: false,
        }
    }

    pub fn ring(&mut self) -> &mut dyn Background<Pending> {
        &mut *self.ring
    }

    pub fn descriptor(&self) -> std::os::fd::RawFd {
        self.ring.descriptor()
    }

    pub fn in_flight(&self) -> usize {
        self.ring.in_flight()
    }

    /// Whether a request of this queue can begin. If not, the queue wants a turn when it can.
    pub fn has_room(&mut self, queue: usize) -> bool {
        let has_room = self.ring.has_room();
        if let Some(held) = self.held.get_mut(queue).filter(|_| !has_room) {
            *held = true;
        }
        has_room
    }

    /// Whether this queue was held up and can go on; told once.
    pub fn goes_on(&mut self, queue: usize) -> bool {
        let has_room = self.ring.has_room();
        let held = self.held.get_mut(queue).filter(|_| has_room);
        held.is_some_and(std::mem::take)
    }

    /// Begins a request, at the next submission.
    pub fn begin(&mut self, task: Task, queues: &mut [QueueRunner]) {
        if let Some(task) = self.ring.start(task) {
            let full = io::Error::from_raw_os_error(libc::EAGAIN);
            self.end(task, Err(Failure::Host(full, None)), queues);
        }
    }

    /// Submits what has begun and gives back what has ended.
    pub fn turn(&mut self, queues: &mut [QueueRunner]) {
        for _ in 0..ROUNDS {
            self.ring.submit();
            if !self.reap(queues) {
                return;
            }
        }
        self.ring.wake();
    }

    /// Gives back what has ended. True when some of it has another step, to be submitted.
    fn reap(&mut self, queues: &mut [QueueRunner]) -> bool {
        let mut more = false;
        while let Some((mut task, result)) = self.ring.ended() {
            let said = result.as_ref().err().and_then(io::Error::raw_os_error);
            let outcome = match task.came(result) {
                // An answer to the cancellation.
                Some(Err(_)) if self.cancelling && said == Some(libc::ECANCELED) => {
                    Err(Failure::Cancelled)
                }
                Some(outcome) => outcome,
                None if self.cancelling => Err(Failure::Cancelled),
                None => {
                    self.begin(task, queues);
                    more = true;
                    continue;
                }
            };
            self.end(task, outcome, queues);
        }
        for (queue, ended) in queues.iter_mut().zip(&mut self.ended) {
            if !ended.is_empty() {
                queue.complete_all(ended.drain(..));
            }
        }
        if self.ring.in_flight() == 0 {
            (self.cancelling, self.discarding) = (false, false);
        }
        more
    }

    fn end(&mut self, task: Task, outcome: Result<u64, Failure>, queues: &[QueueRunner]) {
        let index = task.of.queue;
        let place = queues.get(index).zip(self.ended.get_mut(index));
        if let Some((queue, ended)) = place.filter(|_| !self.discarding) {
            ended.push(task.end(outcome, queue));
        }
    }

    /// Waits until nothing is in flight, not longer than `limit`. False if something still is.
    pub fn drain(&mut self, limit: Duration, queues: &mut [QueueRunner]) -> bool {
        let began = Instant::now();
        loop {
            self.turn(queues);
            let left = limit.saturating_sub(began.elapsed());
            if self.ring.in_flight() == 0 || left.is_zero() {
                return self.ring.in_flight() == 0;
            }
            self.ring.wait(left);
        }
    }

    /// Asks the host to end all requests; those that it ends undone fail.
    pub fn cancel(&mut self) {
        self.cancelling = true;
        self.ring.cancel();
    }

    /// What still comes is not given back to the guest.
    pub fn discard(&mut self) {
        self.held.fill(false);
        self.discarding = self.ring.in_flight() > 0;
        self.cancelling = self.discarding;
    }
}
