//! Queue pairs: each is one file of the tap and the two halves that use it; and how the driver says
//! which are used.

#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::io;

use super::control::{self, Command, MAX_COMMAND_BYTES};
use super::layout::rx;
use super::outcome::OPERATION_CONTROL;
use super::receive::Receiver;
use super::tap::Tap;
use super::transmit::Sender;
use super::{NetDevice, TAPS};
use crate::virtio::queue::QueueRunner;
use crate::virtio::witness::Done;

/// One of them.
pub struct Pair {
    pub tap: Tap,
    pub receiver: Receiver,
    pub sender: Sender,
}

/// Has the host use the first `wanted` files of the tap, of which it uses the first `used`; all or
/// nothing changes. Those that join offer what the driver's `features` say.
///
/// # Errors
/// What the kernel said.
pub fn use_first(pairs: &mut [Pair], used: usize, wanted: usize, features: u64) -> io::Result<()> {
    let joins = wanted > used;
    let (from, to) = (used.min(wanted), used.max(wanted));
    let changed = pairs.get_mut(from..to).unwrap_or_default();
    let mut failed = None;
    for pair in changed.iter_mut() {
        let done = pair.tap.attach(joins);
        let done = done.and_then(|()| match joins {
            true => pair.tap.set_offload(features),
            false => Ok(()),
        });
        if let Err(error) = done {
            failed = Some(error);
            break;
        }
    }
    let Some(error) = failed else {
        return Ok(());
    };
    for pair in changed {
        if let Err(error) = pair.tap.attach(!joins) {
            tracing::debug!("a queue of a tap stays as it was not to be: {error}");
        }
    }
    Err(error)
}

impl NetDevice {
    /// The pair whose file of the tap has this token, if the host uses it.
    pub(super) fn pair_of(&self, token: u32) -> Option<usize> {
        let pair = usize::try_from(token.checked_sub(TAPS)?).ok()?;
        (pair < self.used && !self.gone).then_some(pair)
    }

    /// Each pair has a turn, and each time another one the first: what a limit lets through would
    /// else be the first pair's alone.
    pub(super) fn in_turn(
        &mut self,
        queues: &mut [QueueRunner],
        serve: impl Fn(&mut Self, usize, &mut [QueueRunner]),
    ) {
        let (first, pairs) = (self.first, self.layout.pairs);
        for pair in (first..pairs).chain(0..first.min(pairs)) {
            serve(self, pair, queues);
        }
        let next = first.saturating_add(1);
        self.first = if next < pairs { next } else { 0 };
    }

    /// Carries out what the driver says on the control queue, which is the queue `index`.
    pub(super) fn command(&mut self, index: usize, queues: &mut [QueueRunner]) {
        while let Some(queue) = queues.get_mut(index)
            && let Some(chain) = queue.request()
        {
            if chain.writable.is_empty() {
                // It could not be answered.
                return queue.reject(chain);
            }
            let mut command = [0; MAX_COMMAND_BYTES];
            let bytes = chain.readable.copy_to(0, &mut command);
            let command = command.get(..bytes).unwrap_or_default();
            let pairs = u16::try_from(self.layout.pairs).unwrap_or(u16::MAX);
            let is_done = match control::parse(command, pairs) {
                Ok(Command::UsePairs(wanted)) => self.use_pairs(usize::from(wanted), queues),
                Err(refusal) => {
                    tracing::debug!("{}: a command is refused: {refusal}", self.spec.id);
                    false
                }
            };
            let answer = if is_done { control::OK } else { control::ERR };
            chain.writable.copy_from(0, &[answer]);
            let done = Done {
                operation: OPERATION_CONTROL,
                written: 1,
                payload: chain.readable.bytes() as u64,
                failed: !is_done,
            };
            if let Some(queue) = queues.get_mut(index) {
                queue.complete(chain, done);
            }
        }
    }

    /// From now on the first `wanted` pairs are used. False if the host does not do it; then all is
    /// as it was.
    fn use_pairs(&mut self, wanted: usize, queues: &mut [QueueRunner]) -> bool {
        let (before, all) = (self.used, self.layout.pairs);
        // What came before the command still goes its way, as much as one turn takes.
        for pair in wanted..before {
            self.receive(pair, queues);
            self.transmit(pair, queues);
        }
        if !self.gone
            && let Err(error) = use_first(&mut self.pairs, before, wanted, self.features)
        {
            if let Some(queue) = queues.first() {
                queue.host_error(OPERATION_CONTROL, None, &error);
            }
            return false;
        }
        self.used = wanted;
        for pair in wanted..before {
            let queue = queues.get_mut(rx(pair));
            if let Some((pair, queue)) = self.pairs.get_mut(pair).zip(queue) {
                pair.receiver.stop(queue);
            }
        }
        // A frame that a full tap held is dropped, or buffers are taken at last.
        for pair in before.min(wanted)..all {
            self.receive(pair, queues);
            self.transmit(pair, queues);
        }
        true
    }
}
