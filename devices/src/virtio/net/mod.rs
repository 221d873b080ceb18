//! The network device (virtio 1.2, section 5.1): a tap of the host.
//!
//! Frames go straight between the guest's buffers and the tap, one system call each. The header
//! before each frame is passed through: the host's stack does checksums and segmentation.
//!
//! Each direction has a limiter. Frames that have to wait stay where they are: the guest's in its
//! ring, the host's in the tap, which drops what its own queue cannot hold.
//!
//! With several queue pairs, the tap has a file for each, and the driver says on the control queue how
//! many pairs are used. One thread serves all, and the limiters are for all together.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

pub mod control;
mod filter;
mod layout;
mod outcome;
mod pair;
mod receive;
mod spec;
mod tap;
mod transmit;

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;

use event_manager::EventSet;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net as net;

use self::layout::{Layout, Role, STATUS_OFFSET, rx, tx};
use self::outcome::{
    DROP_CAUSES, Loss, OPERATION_RX, OPERATION_TX, OPERATIONS, PLAIN_OPERATIONS, is_gone,
};
use self::pair::{Pair, use_first};
use self::receive::Receiver;
use self::spec::MIN_MTU;
pub use self::spec::{MAX_PAIRS, NetChange, NetError, TapSpec};
pub use self::tap::{HEADER_BYTES, Tap};
use self::transmit::Sender;
use super::device::{ConfigSpace, DeviceChange, DeviceProfile, VirtioDevice};
use super::limiter::Throttle;
use super::queue::QueueRunner;

/// The first receive queue.
#[cfg(test)]
const RX: usize = 0;
/// The first transmit queue.
#[cfg(test)]
const TX: usize = 1;
/// The token of the timer which ends a wait of the receive queues.
const RX_TIMER: u32 = 0;
/// The same of the transmit queues.
const TX_TIMER: u32 = 1;
/// That of the first pair's file of the tap; those of the others follow.
const TAPS: u32 = 2;

/// A network interface of the guest.
pub struct NetDevice {
    spec: TapSpec,
    pairs: Vec<Pair>,
    config: Arc<ConfigSpace>,
    /// What the queues are for, and the features by which the driver knows it.
    layout: Layout,
    features: u64,
    /// How many pairs are used, the first ones; at least one.
    used: usize,
    rx_throttle: Throttle,
    tx_throttle: Throttle,
    /// Whose turn is first when a wait by a limit is over: nobody's always.
    first: usize,
    /// The tap was deleted: nothing comes, and what is sent is dropped.
    gone: bool,
}

impl NetDevice {
    /// Opens the tap.
    ///
    /// # Errors
    /// [`NetError`]: what is wrong with the tap, and what to do.
    pub fn open(spec: TapSpec) -> Result<Self, NetError> {
        let taps = Tap::open(&spec.tap, spec.pairs())?;
        if let Some(asked) = spec.mtu {
            let limit = tap::mtu(&spec.tap).map_err(|source| NetError::Open {
                tap: spec.tap.clone(),
                source,
            })?;
            if asked < MIN_MTU || asked > limit {
                let tap = spec.tap;
                return Err(NetError::Mtu { tap, asked, limit });
            }
        }
        Self::with_taps(spec, taps)
    }

    /// A device whose tap is a socket of datagrams for each pair.
    #[cfg(test)]
    pub(crate) fn with_stand_ins(
        spec: TapSpec,
        fds: impl IntoIterator<Item = std::os::fd::OwnedFd>,
    ) -> Result<Self, NetError> {
        Self::with_taps(spec, fds.into_iter().map(Tap::stand_in).collect())
    }

    fn with_taps(spec: TapSpec, taps: Vec<Tap>) -> Result<Self, NetError> {
        let throttle = |limiter| {
            Throttle::new(limiter).map_err(|source| NetError::Timer {
                id: spec.id.clone(),
                source,
            })
        };
        let only_from = spec.only_from()?;
        let pairs: Vec<_> = taps
            .into_iter()
            .map(|tap| Pair {
                tap,
                receiver: Receiver::default(),
                sender: Sender::new(spec.mtu, only_from),
            })
            .collect();
        Ok(NetDevice {
            rx_throttle: throttle(spec.rx_limiter)?,
            tx_throttle: throttle(spec.tx_limiter)?,
            config: Arc::new(layout::config(&spec, pairs.len())),
            layout: Layout::new(pairs.len(), 0),
            features: 0,
            used: 1,
            first: 0,
            gone: false,
            spec,
            pairs,
        })
    }

    fn receive(&mut self, pair: usize, queues: &mut [QueueRunner]) {
        let is_used = pair < self.used && !self.gone;
        let queue = queues.get_mut(rx(pair));
        let Some((Pair { tap, receiver, .. }, queue)) = self.pairs.get_mut(pair).zip(queue) else {
            return;
        };
        if !is_used {
            // Its buffers are for later, if ever.
            return queue.hold();
        }
        let outcome = receiver.run(tap, &mut self.rx_throttle, queue);
        self.survive(outcome, queues, OPERATION_RX);
    }

    fn transmit(&mut self, pair: usize, queues: &mut [QueueRunner]) {
        let (gone, is_used) = (self.gone, pair < self.used);
        let queue = queues.get_mut(tx(pair));
        let Some((Pair { tap, sender, .. }, queue)) = self.pairs.get_mut(pair).zip(queue) else {
            return;
        };
        let way = match (gone, is_used) {
            (true, _) => Err(Loss::TxNoTap),
            (false, false) => Err(Loss::TxUnusedPair),
            (false, true) => Ok(tap.as_fd()),
        };
        let outcome = sender.run(way, &mut self.tx_throttle, queue);
        self.survive(outcome, queues, OPERATION_TX);
    }

    /// A tap that is gone takes the link down: the guest sees a pulled cable, not a dead device. What
    /// is in the rings goes the way of all frames without a tap.
    fn survive(&mut self, done: io::Result<()>, queues: &mut [QueueRunner], operation: u8) {
        let (Err(error), Some(queue)) = (done, queues.first()) else {
            return;
        };
        queue.host_error(operation, None, &error);
        queue.backend_gone(&error);
        self.gone = true;
        self.config.write(STATUS_OFFSET, &0u16.to_le_bytes());
        queue.config_changed();
        for pair in 0..self.layout.pairs {
            if let Some(queue) = queues.get_mut(rx(pair)) {
                // What waited in the tap is lost with it.
                queue.limit(false);
            }
            self.transmit(pair, queues);
        }
    }
}

impl VirtioDevice for NetDevice {
    fn profile(&self) -> DeviceProfile {
        let pairs = self.pairs.len();
        DeviceProfile {
            device_type: VIRTIO_ID_NET,
            name: self.spec.id.clone(),
            features: layout::features(&self.spec, pairs),
            queue_max_sizes: layout::queue_sizes(pairs),
            config: Arc::clone(&self.config),
            operations: match pairs {
                0 | 1 => OPERATIONS.get(..PLAIN_OPERATIONS).unwrap_or(OPERATIONS),
                _ => OPERATIONS,
            },
            drop_causes: DROP_CAUSES,
            queue_names: layout::queue_names(pairs),
        }
    }

    fn activate(&mut self, features: u64, queues: &mut [QueueRunner]) -> io::Result<()> {
        self.layout = Layout::new(self.pairs.len(), features);
        self.features = features;
        let merge = features & (1 << net::VIRTIO_NET_F_MRG_RXBUF) != 0;
        for (place, pair) in self.pairs.iter_mut().enumerate() {
            if let Some(queue) = queues.get(rx(place)) {
                pair.receiver = Receiver::new(merge, queue.vectors());
            }
        }
        // The first pair is the one that is used; others have it set when they are.
        let first = self.pairs.first();
        match first.map_or(Ok(()), |pair| pair.tap.set_offload(features)) {
            Err(error) if is_gone(&error) => {
                self.survive(Err(error), queues, OPERATION_RX);
                Ok(())
            }
            other => other,
        }
    }

    fn backends(&self) -> Vec<(u32, RawFd)> {
        let taps = self.pairs.iter().map(|pair| pair.tap.as_fd().as_raw_fd());
        let timers = [
            (RX_TIMER, self.rx_throttle.fd()),
            (TX_TIMER, self.tx_throttle.fd()),
        ];
        timers.into_iter().chain((TAPS..).zip(taps)).collect()
    }

    fn interest(&self, token: u32) -> EventSet {
        match token {
            RX_TIMER => return self.rx_throttle.interest(),
            TX_TIMER => return self.tx_throttle.interest(),
            _ => {}
        }
        let mut interest = EventSet::empty();
        // One that the host does not use says nothing but that.
        if let Some(pair) = self.pair_of(token).and_then(|pair| self.pairs.get(pair)) {
            // Packets that have to wait are no reason to wake, but one who deletes the tap is: the
            // kernel tells it as if a packet had come, so once for each.
            interest |= EventSet::IN;
            interest.set(EventSet::EDGE_TRIGGERED, pair.receiver.waits());
            interest.set(EventSet::OUT, pair.sender.is_stalled());
        }
        interest
    }

    fn queue_ready(&mut self, index: usize, queues: &mut [QueueRunner]) {
        match self.layout.role(index) {
            Some(Role::Receive(pair)) => self.receive(pair, queues),
            Some(Role::Transmit(pair)) => self.transmit(pair, queues),
            Some(Role::Control) => self.command(index, queues),
            None => {
                if let Some(queue) = queues.get_mut(index) {
                    queue.hold();
                }
            }
        }
    }

    fn backend_ready(&mut self, token: u32, events: EventSet, queues: &mut [QueueRunner]) {
        match token {
            RX_TIMER => {
                self.rx_throttle.ended();
                return self.in_turn(queues, Self::receive);
            }
            TX_TIMER => {
                self.tx_throttle.ended();
                return self.in_turn(queues, Self::transmit);
            }
            _ => {}
        }
        // It may have been told before the pair was no longer used.
        let Some(pair) = self.pair_of(token) else {
            return;
        };
        let failed = events.intersects(EventSet::ERROR | EventSet::HANG_UP);
        let there = self.pairs.get(pair);
        let is_stalled = there.is_some_and(|pair| pair.sender.is_stalled());
        if is_stalled && (failed || events.contains(EventSet::OUT)) {
            self.transmit(pair, queues);
        }
        if failed || events.contains(EventSet::IN) {
            self.receive(pair, queues);
        }
        // The kernel reports an error for a tap without an interface, even while nothing is read.
        if failed && !self.gone {
            let error = io::Error::from_raw_os_error(libc::ENODEV);
            self.survive(Err(error), queues, OPERATION_RX);
        }
    }

    fn change(&mut self, change: DeviceChange, _queues: &mut [QueueRunner]) -> Result<(), String> {
        let DeviceChange::Network(change) = change else {
            return Err("what is changed is not of a network interface".to_owned());
        };
        self.rx_throttle.change(change.rx_limiter);
        self.tx_throttle.change(change.tx_limiter);
        Ok(())
    }

    fn pause(&mut self, queues: &mut [QueueRunner]) {
        for (place, pair) in self.pairs.iter_mut().enumerate() {
            if let Some(queue) = queues.get_mut(rx(place)) {
                pair.receiver.give_back(queue);
            }
        }
    }

    fn reset(&mut self) {
        for pair in &mut self.pairs {
            pair.receiver = Receiver::default();
            pair.sender.forget();
        }
        // A driver that did not ask for offloads or pairs must not get them; activation sets them anew.
        let back = use_first(&mut self.pairs, self.used, 1, 0);
        let first = self.pairs.first();
        let back = back.and_then(|()| first.map_or(Ok(()), |pair| pair.tap.set_offload(0)));
        if let Err(error) = back {
            tracing::debug!("{}: offloads or queues stay: {error}", self.spec.tap);
        }
        (self.used, self.first, self.features) = (1, 0, 0);
        self.layout = Layout::new(self.pairs.len(), 0);
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
pub(crate) mod tests;

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
mod limit_tests;

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
mod pair_tests;
