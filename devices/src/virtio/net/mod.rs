//! The network device (virtio 1.2, section 5.1): a tap of the host.
//!
//! Frames go straight between the guest's buffers and the tap, one system call each. The header
//! before each frame is passed through: the host's stack does checksums and segmentation.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

mod receive;
mod tap;
mod transmit;

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;

use event_manager::EventSet;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net as net;

use self::receive::Receiver;
pub use self::tap::{HEADER_BYTES, Tap};
use self::transmit::Sender;
use super::device::{ConfigSpace, DeviceProfile, TRANSPORT_FEATURES, VirtioDevice};
use super::queue::QueueRunner;

const QUEUE_SIZE: u16 = 256;
/// The receive queue.
const RX: usize = 0;
/// The transmit queue.
const TX: usize = 1;
/// The tap's token in the event loop.
const TAP: u32 = 0;
/// Where the status field is in the configuration space.
const STATUS_OFFSET: usize = 6;
/// The smallest MTU that the specification allows (virtio 1.2, 5.1.4.1).
const MIN_MTU: u16 = 68;

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
}

const DROP_CAUSES: &[&str] = &[
    "rx_too_long",
    "tx_malformed",
    "tx_oversize",
    "tx_refused",
    "tx_no_tap",
];

/// A network interface, as the machine's builder wants it.
#[derive(Clone, Debug)]
pub struct TapSpec {
    /// Its name in the machine; the guest does not see it.
    pub id: String,
    /// The host's tap device, which must exist.
    pub tap: String,
    /// The MAC address offered; the guest makes one up when there is none.
    pub mac: Option<[u8; 6]>,
    /// The MTU offered, at least 68 and at most the tap's.
    pub mtu: Option<u16>,
}

/// Why a network interface cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// There is no such interface.
    #[error(
        "the tap {tap} does not exist; make it: ip tuntap add {tap} mode tap && ip link set {tap} up"
    )]
    Missing {
        /// The interface.
        tap: String,
    },
    /// It is another kind of interface.
    #[error("{tap} is not a tap that takes one queue; make one: ip tuntap add NAME mode tap")]
    NoTap {
        /// The interface.
        tap: String,
    },
    /// Another process has it.
    #[error("the tap {tap} is in use by another process; end that or give another tap")]
    Busy {
        /// The interface.
        tap: String,
    },
    /// This process may not have it.
    #[error(
        "the tap {tap} belongs to another user; make it for this one: ip tuntap add {tap} mode tap user NAME"
    )]
    Denied {
        /// The interface.
        tap: String,
    },
    /// The host has no taps for this process.
    #[error(
        "/dev/net/tun cannot be opened: {source}; load the tun module and give this process access to it"
    )]
    NoTun {
        /// What the kernel said.
        source: io::Error,
    },
    /// The MTU is too small, or more than the tap's.
    #[error("mtu {asked} is not between {MIN_MTU} and the {limit} of the tap {tap}")]
    Mtu {
        /// The interface.
        tap: String,
        /// MTU asked.
        asked: u16,
        /// The tap's.
        limit: u16,
    },
    /// Something else failed.
    #[error("the tap {tap} cannot be opened: {source}")]
    Open {
        /// The interface.
        tap: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A network interface of the guest.
pub struct NetDevice {
    spec: TapSpec,
    tap: Tap,
    config: Arc<ConfigSpace>,
    receiver: Receiver,
    sender: Sender,
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
        Ok(Self::with_tap(spec, tap))
    }

    /// A device whose tap is a socket of datagrams.
    #[cfg(test)]
    pub(crate) fn with_stand_in(id: &str, fd: std::os::fd::OwnedFd) -> Self {
        let spec = TapSpec {
            id: id.to_owned(),
            tap: "stand-in".to_owned(),
            mac: Some([2, 0, 0, 0, 0, 1]),
            mtu: None,
        };
        Self::with_tap(spec, Tap::stand_in(fd))
    }

    fn with_tap(spec: TapSpec, tap: Tap) -> Self {
        let config = Arc::new(config(&spec));
        NetDevice {
            sender: Sender::new(spec.mtu),
            spec,
            tap,
            config,
            receiver: Receiver::default(),
            gone: false,
        }
    }

    fn receive(&mut self, queues: &mut [QueueRunner]) {
        let Some(queue) = queues.get_mut(RX).filter(|_| !self.gone) else {
            return;
        };
        let outcome = self.receiver.run(self.tap.as_fd(), queue);
        self.survive(outcome, queue, OPERATION_RX);
    }

    fn transmit(&mut self, queues: &mut [QueueRunner]) {
        let Some(queue) = queues.get_mut(TX) else {
            return;
        };
        let tap = (!self.gone).then_some(self.tap.as_fd());
        let outcome = self.sender.run(tap, queue);
        if self.survive(outcome, queue, OPERATION_TX) {
            // What is in the ring goes the way of all frames without a tap.
            let _ = self.sender.run(None, queue);
        }
    }

    /// A tap that is gone takes the link down: the guest sees a pulled cable, not a dead device.
    /// True when that happened now.
    fn survive(&mut self, outcome: io::Result<()>, queue: &QueueRunner, operation: u8) -> bool {
        let Err(error) = outcome else {
            return false;
        };
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
                if let Some(queue) = queues.get(RX) {
                    self.survive(Err(error), queue, OPERATION_RX);
                }
                Ok(())
            }
            other => other,
        }
    }

    fn backends(&self) -> Vec<(u32, RawFd)> {
        vec![(TAP, self.tap.as_fd().as_raw_fd())]
    }

    fn interest(&self, _token: u32) -> EventSet {
        let mut interest = EventSet::empty();
        if !self.gone {
            // Packets that wait while the guest gives no buffers are no reason to wake, but one who
            // deletes the tap is: the kernel tells it as if a packet had come, so once for each.
            interest |= EventSet::IN;
            interest.set(EventSet::EDGE_TRIGGERED, self.receiver.is_starved());
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

    fn backend_ready(&mut self, _token: u32, events: EventSet, queues: &mut [QueueRunner]) {
        let failed = events.intersects(EventSet::ERROR | EventSet::HANG_UP);
        if self.sender.is_stalled() && (failed || events.contains(EventSet::OUT)) {
            self.transmit(queues);
        }
        if failed || events.contains(EventSet::IN) {
            self.receive(queues);
        }
        // The kernel reports an error for a tap without an interface, even while nothing is read.
        if failed
            && !self.gone
            && let Some(queue) = queues.get(RX)
        {
            let error = io::Error::from_raw_os_error(libc::ENODEV);
            self.survive(Err(error), queue, OPERATION_RX);
        }
    }

    fn pause(&mut self, queues: &mut [QueueRunner]) {
        if let Some(queue) = queues.get_mut(RX) {
            self.receiver.give_back(queue);
        }
    }

    fn reset(&mut self) {
        self.receiver = Receiver::default();
        self.sender = Sender::new(self.spec.mtu);
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
mod tests;
