//! From the tap to the guest.
//!
//! Buffers are taken from the ring ahead of packets and kept from one packet to the next: enough
//! for the largest frame, so that one `readv` takes any packet whole. A buffer counts as a request
//! only when a packet went into it.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;

use super::outcome::{Loss, OPERATION_CONTINUED, OPERATION_RX, is_gone};
use super::tap::{HEADER_BYTES, Tap};
use crate::virtio::limiter::Throttle;
use crate::virtio::queue::{Chain, QueueRunner};
use crate::virtio::vectors::GuestVectors;
use crate::virtio::witness::Done;

/// Packets in one turn at most; the tap stays readable and asks for another.
const TURN_PACKETS: usize = 64;
/// The largest frame a tap gives: 64 KiB of payload with Ethernet and VLAN headers.
const MAX_FRAME_BYTES: usize = HEADER_BYTES + 65535 + 18;
/// Where `num_buffers` is in the header.
const NUM_BUFFERS_OFFSET: usize = 10;

/// The receiving half of a device.
#[derive(Default)]
pub struct Receiver {
    merge: bool,
    buffers: VecDeque<Chain>,
    /// The buffers' vectors in a row; there is none before activation.
    joined: Option<GuestVectors>,
    starved: bool,
    /// The tap has packets, and the operator's limit holds them there.
    held: bool,
}

impl Receiver {
    /// A receiver for a driver that takes packets over several buffers, or does not.
    pub fn new(merge: bool, joined: GuestVectors) -> Self {
        Receiver {
            merge,
            joined: Some(joined),
            ..Receiver::default()
        }
    }

    /// Whether the tap has packets that have to wait: the guest has given no buffer, or the limit
    /// holds them. Then the tap is not waited for, but the guest's kick or the timer.
    pub fn waits(&self) -> bool {
        self.starved || self.held
    }

    /// Moves packets until there are none, no buffers, the limit is reached, or the turn is over.
    ///
    /// # Errors
    /// The tap is gone.
    pub fn run(
        &mut self,
        tap: &Tap,
        throttle: &mut Throttle,
        queue: &mut QueueRunner,
    ) -> io::Result<()> {
        for packets in 0..TURN_PACKETS {
            if !self.gather(queue) {
                // After a packet, whether there is another is for the tap to say.
                self.starved = packets == 0 && queue.broken().is_none();
                queue.starve(self.starved);
                self.hold(false, queue);
                return Ok(());
            }
            self.starved = false;
            queue.starve(false);
            if !throttle.is_open() {
                // An empty bucket is no wait as long as nothing comes.
                self.hold(tap.has_packet(), queue);
                return Ok(());
            }
            self.hold(false, queue);
            let Some(joined) = self.joined.as_mut() else {
                return Ok(());
            };
            let received = joined.receive(tap.as_fd());
            if let Ok(received) = &received {
                // The tap tells a packet's size only with the packet.
                throttle.charge(received.bytes.saturating_sub(HEADER_BYTES) as u64);
            }
            match received {
                Ok(received) if received.truncated => queue.dropped(Loss::RxTooLong as usize),
                Ok(received) => self.deliver(received.bytes, queue),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if is_gone(&error) => return Err(error),
                Err(error) => {
                    queue.host_error(OPERATION_RX, None, &error);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn hold(&mut self, held: bool, queue: &QueueRunner) {
        self.held = held;
        queue.limit(held);
    }

    /// Takes buffers until the largest frame fits, or one chain for a driver that does not merge.
    /// False when there is none.
    fn gather(&mut self, queue: &mut QueueRunner) -> bool {
        let Some(joined) = self.joined.as_mut() else {
            return false;
        };
        let wanted = if self.merge { MAX_FRAME_BYTES } else { 1 };
        while joined.bytes() < wanted {
            let Some(chain) = queue.take() else {
                break;
            };
            if chain.writable.bytes() < HEADER_BYTES {
                queue.reject(chain);
                break;
            }
            if !joined.append(&chain.writable) {
                queue.give_back(std::iter::once(chain));
                break;
            }
            self.buffers.push_back(chain);
        }
        !self.buffers.is_empty()
    }

    /// Gives the buffers that a packet of `bytes` filled to the guest, all at once.
    fn deliver(&mut self, bytes: usize, queue: &mut QueueRunner) {
        let mut left = bytes;
        let used = self.buffers.iter().position(|chain| {
            left = left.saturating_sub(chain.writable.bytes());
            left == 0
        });
        let used = used.map_or(self.buffers.len(), |last| last.saturating_add(1));
        if let Some(first) = self.buffers.front() {
            let count = u16::try_from(used).unwrap_or(u16::MAX).to_le_bytes();
            first.writable.copy_from(NUM_BUFFERS_OFFSET, &count);
        }
        let (mut left, mut operation) = (bytes, OPERATION_RX);
        queue.complete_all(self.buffers.drain(..used).map(|chain| {
            let part = left.min(chain.writable.bytes());
            left = left.saturating_sub(part);
            let done = Done {
                operation: std::mem::replace(&mut operation, OPERATION_CONTINUED),
                written: u32::try_from(part).unwrap_or(u32::MAX),
                payload: bytes.saturating_sub(HEADER_BYTES) as u64,
                failed: false,
            };
            (chain, done)
        }));
        self.join();
    }

    /// Puts the vectors of all buffers in a row.
    fn join(&mut self) {
        if let Some(joined) = self.joined.as_mut() {
            joined.clear();
            for chain in &self.buffers {
                joined.append(&chain.writable);
            }
        }
    }

    /// The pair is used no more: what waits in the tap is no longer the guest's, and its buffers go
    /// back.
    pub fn stop(&mut self, queue: &mut QueueRunner) {
        self.give_back(queue);
        self.hold(false, queue);
        queue.starve(false);
        queue.hold();
    }

    /// Puts all buffers back into the ring.
    pub fn give_back(&mut self, queue: &mut QueueRunner) {
        queue.give_back(self.buffers.drain(..));
        self.starved = false;
        self.join();
    }
}
