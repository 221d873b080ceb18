//! What an interface is to be, what can be changed of it, and why it cannot be had.

#![forbid(unsafe_code)]

use std::io;

use crate::virtio::limiter::LimiterSpec;

/// The smallest MTU that the specification allows (virtio 1.2, 5.1.4.1).
pub(super) const MIN_MTU: u16 = 68;

/// Queue pairs of an interface at most, as a drive has queues. They part the guest's CPUs from each
/// other; the host's side is one thread, which more would not make faster. A pair costs a file of the
/// tap, and two queues and two interrupts in all that has a place for each.
pub const MAX_PAIRS: u8 = 8;

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
    /// How much the guest may receive. An operation is a frame, its bytes are those of the frame.
    pub rx_limiter: LimiterSpec,
    /// How much it may send.
    pub tx_limiter: LimiterSpec,
    /// Whether frames that it sends from another address than `mac` are dropped.
    pub mac_filter: bool,
    /// Queue pairs that the guest may use, 1 to [`MAX_PAIRS`], all served by the interface's one
    /// thread. More than one needs a tap made for several queues.
    pub queues: u8,
}

impl TapSpec {
    /// How many queue pairs there are.
    pub(super) fn pairs(&self) -> usize {
        usize::from(self.queues.clamp(1, MAX_PAIRS))
    }

    /// The one address that the guest may send from, if it is held to one.
    pub(super) fn only_from(&self) -> Result<Option<[u8; 6]>, NetError> {
        match (self.mac_filter, self.mac) {
            (false, _) => Ok(None),
            (true, Some(mac)) => Ok(Some(mac)),
            (true, None) => Err(NetError::NoMac {
                id: self.id.clone(),
            }),
        }
    }
}

/// What can be changed of an interface that the guest has: its limits, as [`LimiterSpec::changed`]
/// takes them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetChange {
    /// How much the guest may receive.
    pub rx_limiter: LimiterSpec,
    /// How much it may send.
    pub tx_limiter: LimiterSpec,
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
    /// It was not made for several queues, or is another kind of interface.
    #[error(
        "{tap} is not a tap that takes {queues} queues; make one: ip tuntap add NAME mode tap multi_queue"
    )]
    OneQueue {
        /// The interface.
        tap: String,
        /// Queue pairs asked.
        queues: usize,
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
    /// A filter of addresses, and none that is the guest's.
    #[error(
        "mac_filter of {id} needs guest_mac: else the guest makes its address up; give guest_mac or leave mac_filter out"
    )]
    NoMac {
        /// The interface.
        id: String,
    },
    /// The host gives no timer.
    #[error("no timer for the rate limiter of {id}: {source}; raise RLIMIT_NOFILE")]
    Timer {
        /// The interface.
        id: String,
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
