//! The network device (virtio 1.2, section 5.1): a tap of the host.
//!
//! Frames go straight between the guest's buffers and the tap, one system call each. The header
//! before each frame is passed through: the host's stack does checksums and segmentation.
//!
//! Each direction has a limiter. Frames that have to wait stay where they are: the guest's in its
//! ring, the host's in the tap, which drops what its own queue cannot hold.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

pub mod control;
mod filter;
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

use self::receive::Receiver;
use self::spec::MIN_MTU;
pub use self::spec::{NetChange, NetError, TapSpec};
pub use self::tap::{HEADER_BYTES, Tap};
use self::transmit::Sender;
use super::device::{ConfigSpace, DeviceChange, DeviceProfile, TRANSPORT_FEATURES, VirtioDevice};
use super::limiter::Throttle;
use super::queue::QueueRunner;

const QUEUE_SIZE: u16 = 256;
/// The receive queue.
const RX: usize = 0;
/// The transmit queue.
const TX: usize = 1;
/// The tap's token in the event loop.
const TAP: u32 = 0;
/// That of the timer which ends a wait of the receive queue.
const RX_TIMER: u32 = 1;
/// The same of the transmit queue.
const TX_TIMER: u32 = 2;
/// Where the status field is in the configuration space.
const STATUS_OFFSET: usize = 6;

const OPERATIONS: &[&str] = &["rx", "tx"];
/// [`OPERATIONS`], by number.
const OPERATION_RX: u8 = 0;
const OPERATION_TX: u8 = 1;
/// A buffer that continues a packet: of no kind, for the packet was counted at its first.
const OPERATION_CONTINUED: u8 = u8::MAX;

/// Why packets are lost, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
enum Loss {
    /// The guest's receive buffers were too small.
    RxTooLong = 0,
    /// The guest sent no whole header and frame, or one that the host does not understand.
    TxMalformed = 1,
    /// The guest sent a frame beyond the MTU that it was told.
    TxOversize = 2,
    /// The host did not take the frame (the tap is down, no memory).
    TxRefused = 3,
    /// The tap is gone.
    TxNoTap = 4,
    /// The guest sent a frame from an address that is not its own, and is not to do so.
    TxSpoofed = 5,
}

const DROP_CAUSES: &[&str] = &[
    "rx_too_long",
    "tx_malformed",
    "tx_oversize",
    "tx_refused",
    "tx_no_tap",
    "tx_spoofed_mac",
];

/// A network interface of the guest.
pub struct NetDevice {
    spec: TapSpec,
    tap: Tap,
    config: Arc<ConfigSpace>,
    receiver: Receiver,
    sender: Sender,
    rx_throttle: Throttle,
    tx_throttle: Throttle,
    /// The tap was deleted: nothing comes, and what is sent is dropped.
    gone: bool,
}

impl NetDevice {
    /// Opens the tap.
    ///
    /// # Errors
    /// [`NetError`]: what is wrong with the tap, and what to do.
    pub fn open(spec: TapSpec) -> Result<Self, NetError> {
        let tap = Tap::open(&spec.tap)?;
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
        Self::with_tap(spec, tap)
    }

    /// A device whose tap is a socket of datagrams.
    #[cfg(test)]
    pub(crate) fn with_stand_in(spec: TapSpec, fd: std::os::fd::OwnedFd) -> Result<Self, NetError> {
        Self::with_tap(spec, Tap::stand_in(fd))
    }

    fn with_tap(spec: TapSpec, tap: Tap) -> Result<Self, NetError> {
        let config = Arc::new(config(&spec));
        let throttle = |limiter| {
            Throttle::new(limiter).map_err(|source| NetError::Timer {
                id: spec.id.clone(),
                source,
            })
        };
        Ok(NetDevice {
            sender: Sender::new(spec.mtu, spec.only_from()?),
            rx_throttle: throttle(spec.rx_limiter)?,
            tx_throttle: throttle(spec.tx_limiter)?,
            spec,
            tap,
            config,
            receiver: Receiver::default(),
            gone: false,
        })
    }

    fn receive(&mut self, queues: &mut [QueueRunner]) {
        let Some(queue) = queues.get_mut(RX).filter(|_| !self.gone) else {
            return;
        };
        let outcome = self.receiver.run(&self.tap, &mut self.rx_throttle, queue);
        self.survive(outcome, queues, OPERATION_RX);
    }

    fn transmit(&mut self, queues: &mut [QueueRunner]) {
        let Some(queue) = queues.get_mut(TX) else {
            return;
        };
        let tap = (!self.gone).then_some(self.tap.as_fd());
        let outcome = self.sender.run(tap, &mut self.tx_throttle, queue);
        if self.survive(outcome, queues, OPERATION_TX)
            && let Some(queue) = queues.get_mut(TX)
        {
            // What is in the ring goes the way of all frames without a tap.
            let _ = self.sender.run(None, &mut self.tx_throttle, queue);
        }
    }

    /// A tap that is gone takes the link down: the guest sees a pulled cable, not a dead device.
    /// True when that happened now.
    fn survive(&mut self, done: io::Result<()>, queues: &[QueueRunner], operation: u8) -> bool {
        let (Err(error), Some(queue)) = (done, queues.get(RX)) else {
            return false;
        };
        // What waited in the tap is lost with it.
        queue.limit(false);
        queue.host_error(operation, None, &error);
        queue.backend_gone(&error);
        self.gone = true;
        self.config.write(STATUS_OFFSET, &0u16.to_le_bytes());
        queue.config_changed();
        true
    }
}

/// Whether an error means that the tap itself is no more. The last three are those of a socket
/// that stands in for one.
fn is_gone(error: &io::Error) -> bool {
    use libc::{EBADF, EBADFD, ECONNREFUSED, ECONNRESET, ENODEV, ENOTCONN, ENXIO};
    let code = error.raw_os_error().unwrap_or(0);
    [
        EBADFD,
        EBADF,
        ENODEV,
        ENXIO,
        ECONNREFUSED,
        ECONNRESET,
        ENOTCONN,
    ]
    .contains(&code)
}

impl VirtioDevice for NetDevice {
    fn profile(&self) -> DeviceProfile {
        let offered = [
            net::VIRTIO_NET_F_CSUM,
            net::VIRTIO_NET_F_GUEST_CSUM,
            net::VIRTIO_NET_F_GUEST_TSO4,
            net::VIRTIO_NET_F_GUEST_TSO6,
            net::VIRTIO_NET_F_GUEST_ECN,
            net::VIRTIO_NET_F_HOST_TSO4,
            net::VIRTIO_NET_F_HOST_TSO6,
            net::VIRTIO_NET_F_HOST_ECN,
            net::VIRTIO_NET_F_MRG_RXBUF,
            net::VIRTIO_NET_F_STATUS,
        ];
        let mut features = offered
            .iter()
            .fold(TRANSPORT_FEATURES, |all, feature| all | 1 << feature);
        features |= u64::from(self.spec.mac.is_some()) << net::VIRTIO_NET_F_MAC;
        features |= u64::from(self.spec.mtu.is_some()) << net::VIRTIO_NET_F_MTU;
        DeviceProfile {
            device_type: VIRTIO_ID_NET,
            name: self.spec.id.clone(),
            features,
            queue_max_sizes: vec![QUEUE_SIZE; 2],
            config: Arc::clone(&self.config),
            operations: OPERATIONS,
            drop_causes: DROP_CAUSES,
        }
    }

    fn activate(&mut self, features: u64, queues: &mut [QueueRunner]) -> io::Result<()> {
        let merge = features & (1 << net::VIRTIO_NET_F_MRG_RXBUF) != 0;
        if let Some(queue) = queues.get(RX) {
            self.receiver = Receiver::new(merge, queue.vectors());
        }
        match self.tap.set_offload(features) {
            Err(error) if is_gone(&error) => {
                self.survive(Err(error), queues, OPERATION_RX);
                Ok(())
            }
            other => other,
        }
    }

    fn backends(&self) -> Vec<(u32, RawFd)> {
        vec![
            (TAP, self.tap.as_fd().as_raw_fd()),
            (RX_TIMER, self.rx_throttle.fd()),
            (TX_TIMER, self.tx_throttle.fd()),
        ]
    }

    fn interest(&self, token: u32) -> EventSet {
        match token {
            RX_TIMER => return self.rx_throttle.interest(),
            TX_TIMER => return self.tx_throttle.interest(),
            _ => {}
        }
        let mut interest = EventSet::empty();
        if !self.gone {
            // Packets that have to wait are no reason to wake, but one who deletes the tap is: the
            // kernel tells it as if a packet had come, so once for each.
            interest |= EventSet::IN;
            interest.set(EventSet::EDGE_TRIGGERED, self.receiver.waits());
            interest.set(EventSet::OUT, self.sender.is_stalled());
        }
        interest
    }

    fn queue_ready(&mut self, index: usize, queues: &mut [QueueRunner]) {
        match index {
            RX => self.receive(queues),
            _ => self.transmit(queues),
        }
    }

    fn backend_ready(&mut self, token: u32, events: EventSet, queues: &mut [QueueRunner]) {
        match token {
            RX_TIMER => {
                self.rx_throttle.ended();
                return self.receive(queues);
            }
            TX_TIMER => {
                self.tx_throttle.ended();
                return self.transmit(queues);
            }
            _ => {}
        }
        let failed = events.intersects(EventSet::ERROR | EventSet::HANG_UP);
        if self.sender.is_stalled() && (failed || events.contains(EventSet::OUT)) {
            self.transmit(queues);
        }
        if failed || events.contains(EventSet::IN) {
            self.receive(queues);
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
        if let Some(queue) = queues.get_mut(RX) {
            self.receiver.give_back(queue);
        }
    }

    fn reset(&mut self) {
        self.receiver = Receiver::default();
        self.sender.forget();
        // A driver that did not ask for offloads must not get them; activation sets them anew.
        if let Err(error) = self.tap.set_offload(0) {
            tracing::debug!("{}: offloads stay: {error}", self.spec.tap);
        }
    }
}

/// `struct virtio_net_config` as far as the features offered reach: mac, status,
/// max_virtqueue_pairs, mtu.
fn config(spec: &TapSpec) -> ConfigSpace {
    let config = ConfigSpace::new(&[0; 12]);
    config.write(0, &spec.mac.unwrap_or_default());
    config.write(
        STATUS_OFFSET,
        &(net::VIRTIO_NET_S_LINK_UP as u16).to_le_bytes(),
    );
    config.write(8, &1u16.to_le_bytes());
    config.write(10, &spec.mtu.unwrap_or_default().to_le_bytes());
    config
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
