//! The entropy device (virtio 1.2, section 5.4): random bytes of the host's kernel.
//!
//! A request takes what fits into its buffers, 64 KiB at most; the specification allows less than
//! was asked for.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

mod source;

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use event_manager::EventSet;
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::device::{ConfigSpace, DeviceProfile, TRANSPORT_FEATURES, VirtioDevice};
use super::limiter::{LimiterSpec, Throttle};
use super::queue::{Chain, QueueRunner};
use super::witness::Done;

const QUEUE_SIZE: u16 = 256;
/// Bytes that one request gets at most, as in Firecracker: no request holds the thread for long.
pub const MAX_REQUEST_BYTES: usize = 64 << 10;
/// Bytes that are asked of the kernel at once.
const CHUNK_BYTES: usize = 4096;

const OPERATIONS: &[&str] = &["entropy"];
/// [`OPERATIONS`], by number.
const OPERATION_ENTROPY: u8 = 0;

/// The token of the limiter's timer.
const TIMER: u32 = 0;

/// Fills a buffer with random bytes.
type Source = fn(&mut [u8]) -> io::Result<()>;

/// The guest's source of entropy.
pub struct EntropyDevice {
    name: String,
    source: Source,
    chunk: Box<[u8]>,
    throttle: Throttle,
}

impl EntropyDevice {
    /// A device of that name, which draws on the host's `getrandom` as much as `limiter` allows: an
    /// operation is a request, and its bytes are those that it gets.
    ///
    /// # Errors
    /// The host gives no timer.
    pub fn new(name: &str, limiter: LimiterSpec) -> io::Result<Self> {
        Ok(EntropyDevice {
            name: name.to_owned(),
            source: source::fill,
            chunk: vec![0; CHUNK_BYTES].into_boxed_slice(),
            throttle: Throttle::new(limiter)?,
        })
    }

    /// Takes the next request, unless it has to wait.
    fn next(&mut self, queue: &mut QueueRunner) -> Option<Chain> {
        queue.request_if(|chain| self.throttle.take(wanted(chain) as u64))
    }

    /// Fills the buffers from their start; gives the bytes, and the host's error if it ended so.
    fn fill(&mut self, chain: &Chain) -> (usize, io::Result<()>) {
        let wanted = wanted(chain);
        let mut filled = 0usize;
        while filled < wanted {
            let left = wanted.saturating_sub(filled);
            let chunk = self.chunk.get_mut(..left.min(CHUNK_BYTES));
            let chunk = chunk.unwrap_or_default();
            if let Err(error) = (self.source)(chunk) {
                return (filled, Err(error));
            }
            let copied = chain.writable.copy_from(filled, chunk);
            if copied == 0 {
                break;
            }
            filled = filled.saturating_add(copied);
        }
        (filled, Ok(()))
    }
}

/// Bytes that a request gets.
fn wanted(chain: &Chain) -> usize {
    chain.writable.bytes().min(MAX_REQUEST_BYTES)
}

impl VirtioDevice for EntropyDevice {
    fn profile(&self) -> DeviceProfile {
        DeviceProfile {
            device_type: VIRTIO_ID_RNG,
            name: self.name.clone(),
            features: TRANSPORT_FEATURES,
            queue_max_sizes: vec![QUEUE_SIZE],
            config: Arc::new(ConfigSpace::new(&[])),
            operations: OPERATIONS,
            drop_causes: &[],
            queue_names: Vec::new(),
        }
    }

    fn activate(&mut self, _features: u64, _queues: &mut [QueueRunner]) -> io::Result<()> {
        Ok(())
    }

    fn backends(&self) -> Vec<(u32, RawFd)> {
        vec![(TIMER, self.throttle.fd())]
    }

    fn interest(&self, _token: u32) -> EventSet {
        self.throttle.interest()
    }

    fn backend_ready(&mut self, _token: u32, _events: EventSet, queues: &mut [QueueRunner]) {
        self.throttle.ended();
        self.queue_ready(0, queues);
    }

    fn queue_ready(&mut self, index: usize, queues: &mut [QueueRunner]) {
        let Some(queue) = queues.get_mut(index) else {
            return;
        };
        while let Some(chain) = self.next(queue) {
            if chain.writable.is_empty() {
                queue.reject(chain);
                continue;
            }
            let (filled, outcome) = self.fill(&chain);
            if let Err(error) = &outcome {
                queue.host_error(OPERATION_ENTROPY, None, error);
            }
            let done = Done {
                operation: OPERATION_ENTROPY,
                written: u32::try_from(filled).unwrap_or(u32::MAX),
                payload: filled as u64,
                failed: outcome.is_err(),
            };
            queue.complete(chain, done);
        }
    }

    fn reset(&mut self) {
        // What the guest was given stays nowhere else.
        self.chunk.fill(0);
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
