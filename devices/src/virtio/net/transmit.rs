//! From the guest to the tap.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::BorrowedFd;

use virtio_bindings::virtio_net::VIRTIO_NET_HDR_GSO_NONE;

use super::filter::{ETHERNET_BYTES, Head, SourceFilter};
use super::outcome::{Loss, OPERATION_TX, is_gone};
use super::tap::HEADER_BYTES;
use crate::virtio::limiter::Throttle;
use crate::virtio::queue::{Chain, QueueRunner};
use crate::virtio::witness::Done;

/// An Ethernet header with a VLAN tag, which the MTU does not count.
const LINK_BYTES: usize = 18;
/// The largest frame, segmented by the host or not.
const MAX_FRAME_BYTES: usize = 65535 + LINK_BYTES;

/// The sending half of a device.
pub struct Sender {
    /// Bytes of a frame that the host does not segment.
    limit: usize,
    /// A frame that the tap did not take yet.
    stalled: Option<Chain>,
    filter: Option<SourceFilter>,
}

impl Sender {
    /// A sender for guests that were told this MTU and may send from this address alone, if there is
    /// one.
    pub fn new(mtu: Option<u16>, only_from: Option<[u8; 6]>) -> Self {
        let limit = mtu.map_or(MAX_FRAME_BYTES, |mtu| {
            usize::from(mtu).saturating_add(LINK_BYTES)
        });
        Sender {
            limit,
            stalled: None,
            filter: only_from.map(SourceFilter::new),
        }
    }

    /// A new driver has the device: forgets the frame that the tap did not take.
    pub fn forget(&mut self) {
        self.stalled = None;
    }

    /// Whether the tap is full: then it is waited for.
    pub fn is_stalled(&self) -> bool {
        self.stalled.is_some()
    }

    /// Sends until the ring is empty, the limit is reached, the turn is over, or the tap is full.
    /// Where there is no tap to send by, frames are dropped for that cause.
    ///
    /// # Errors
    /// The tap is gone; the frame is kept for a call without one.
    pub fn run(
        &mut self,
        tap: Result<BorrowedFd, Loss>,
        throttle: &mut Throttle,
        queue: &mut QueueRunner,
    ) -> io::Result<()> {
        // What is stalled has been paid for.
        while let Some(chain) = self.stalled.take().or_else(|| next(throttle, queue)) {
            let head = Head::of(&chain);
            let judged = self.judge(&head, &chain).and(tap);
            let lost = match judged {
                Err(lost) => Some(lost),
                Ok(tap) => match self.send(&head, &chain, tap, queue) {
                    Ok(_) => None,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.stalled = Some(chain);
                        return Ok(());
                    }
                    Err(error) if is_gone(&error) => {
                        self.stalled = Some(chain);
                        return Err(error);
                    }
                    Err(error) => Some(refused(&error, queue)),
                },
            };
            finish(chain, lost, queue);
        }
        Ok(())
    }

    fn judge(&self, head: &Head, chain: &Chain) -> Result<(), Loss> {
        let whole = u32::from(head.segmentation()) == VIRTIO_NET_HDR_GSO_NONE;
        let limit = if whole { self.limit } else { MAX_FRAME_BYTES };
        let is_own = self
            .filter
            .as_ref()
            .is_none_or(|filter| filter.passes(head));
        match chain.readable.bytes().checked_sub(HEADER_BYTES) {
            None | Some(..ETHERNET_BYTES) => Err(Loss::TxMalformed),
            Some(frame) if frame > limit => Err(Loss::TxOversize),
            Some(_) if !is_own => Err(Loss::TxSpoofed),
            Some(_) => Ok(()),
        }
    }

    fn send(
        &mut self,
        head: &Head,
        chain: &Chain,
        tap: BorrowedFd,
        queue: &QueueRunner,
    ) -> io::Result<usize> {
        match &mut self.filter {
            Some(filter) => filter.send(head, chain, tap, queue),
            None => chain.readable.send(tap),
        }
    }
}

/// Takes the next frame from the ring, unless it has to wait. What is then dropped counts, too: it
/// is work as well.
fn next(throttle: &mut Throttle, queue: &mut QueueRunner) -> Option<Chain> {
    queue.request_if(|chain| {
        let frame = chain.readable.bytes().saturating_sub(HEADER_BYTES);
        throttle.take(frame as u64)
    })
}

/// The host understood the frame and did not take it, or did not understand it.
fn refused(error: &io::Error, queue: &QueueRunner) -> Loss {
    if error.raw_os_error() == Some(libc::EINVAL) {
        return Loss::TxMalformed;
    }
    queue.host_error(OPERATION_TX, None, error);
    Loss::TxRefused
}

fn finish(chain: Chain, lost: Option<Loss>, queue: &mut QueueRunner) {
    if let Some(cause) = lost {
        queue.dropped(cause as usize);
    }
    let payload = match lost {
        None => chain.readable.bytes().saturating_sub(HEADER_BYTES) as u64,
        Some(_) => 0,
    };
    let done = Done {
        operation: OPERATION_TX,
        written: 0,
        payload,
        failed: lost.is_some(),
    };
    queue.complete(chain, done);
}
