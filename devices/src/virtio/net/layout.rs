//! Which queue is for what, and what the guest is offered (virtio 1.2, sections 5.1.2 to 5.1.4).

#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use virtio_bindings::virtio_net as net;

use super::TapSpec;
use crate::virtio::device::{ConfigSpace, TRANSPORT_FEATURES};

/// Where the status field is in the configuration space.
pub const STATUS_OFFSET: usize = 6;
const QUEUE_SIZE: u16 = 256;
/// The control queue's: a driver has one command under way.
const CONTROL_QUEUE_SIZE: u16 = 64;

/// The receive queue of a pair.
pub fn rx(pair: usize) -> usize {
    pair.saturating_mul(2)
}

/// The transmit queue of a pair.
pub fn tx(pair: usize) -> usize {
    rx(pair).saturating_add(1)
}

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Receiving, by this pair.
    Receive(usize),
    /// Sending, by this pair.
    Transmit(usize),
    /// Commands of the driver.
    Control,
}

/// What the queues are for, as a driver with these features sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Queue pairs that the driver may use.
    pub pairs: usize,
    control: Option<usize>,
}

impl Layout {
    /// The layout of a device of so many pairs, whose driver took `features`. Without a control queue
    /// there is one pair: no driver could ask for more.
    pub fn new(pairs: usize, features: u64) -> Self {
        let has = |feature: u32| features & (1 << feature) != 0;
        let commands = has(net::VIRTIO_NET_F_CTRL_VQ);
        let pairs = match commands && has(net::VIRTIO_NET_F_MQ) {
            true => pairs,
            false => 1,
        };
        Layout {
            pairs,
            // Behind all pairs that the driver knows.
            control: commands.then_some(rx(pairs)),
        }
    }

    /// What the queue `index` is for; nothing, if the driver cannot know it.
    pub fn role(&self, index: usize) -> Option<Role> {
        let pair = index / 2;
        match index {
            _ if self.control == Some(index) => Some(Role::Control),
            _ if pair >= self.pairs => None,
            _ if index == rx(pair) => Some(Role::Receive(pair)),
            _ => Some(Role::Transmit(pair)),
        }
    }
}

/// The largest size of each queue of a device of so many pairs. One with a single pair has no control
/// queue, for there would be nothing to say on it.
pub fn queue_sizes(pairs: usize) -> Vec<u16> {
    let mut sizes = vec![QUEUE_SIZE; rx(pairs)];
    if pairs > 1 {
        sizes.push(CONTROL_QUEUE_SIZE);
    }
    sizes
}

/// What the queues of a device of so many pairs are called, as a driver sees them that knows all.
pub fn queue_names(pairs: usize) -> Vec<String> {
    let of_pair = |pair| [format!("rx{pair}"), format!("tx{pair}")];
    let control = (pairs > 1).then(|| "ctrl".to_owned());
    (0..pairs).flat_map(of_pair).chain(control).collect()
}

/// The features that an interface of so many pairs offers.
pub fn features(spec: &TapSpec, pairs: usize) -> u64 {
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
    features |= u64::from(spec.mac.is_some()) << net::VIRTIO_NET_F_MAC;
    features |= u64::from(spec.mtu.is_some()) << net::VIRTIO_NET_F_MTU;
    features |= u64::from(pairs > 1) << net::VIRTIO_NET_F_CTRL_VQ;
    features |= u64::from(pairs > 1) << net::VIRTIO_NET_F_MQ;
    features
}

/// `struct virtio_net_config` as far as the features offered reach: mac, status,
/// max_virtqueue_pairs, mtu.
pub fn config(spec: &TapSpec, pairs: usize) -> ConfigSpace {
    let config = ConfigSpace::new(&[0; 12]);
    config.write(0, &spec.mac.unwrap_or_default());
    config.write(
        STATUS_OFFSET,
        &(net::VIRTIO_NET_S_LINK_UP as u16).to_le_bytes(),
    );
    let pairs = u16::try_from(pairs).unwrap_or(u16::MAX);
    config.write(8, &pairs.to_le_bytes());
    config.write(10, &spec.mtu.unwrap_or_default().to_le_bytes());
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMANDS: u64 = 1 << net::VIRTIO_NET_F_CTRL_VQ;
    const MQ: u64 = 1 << net::VIRTIO_NET_F_MQ;

    #[test]
    fn each_queue_has_a_name() {
        for (pairs, names) in [
            (1, &["rx0", "tx0"][..]),
            (2, &["rx0", "tx0", "rx1", "tx1", "ctrl"]),
        ] {
            assert_eq!(queue_names(pairs), names);
            assert_eq!(queue_sizes(pairs).len(), names.len());
        }
    }

    #[test]
    fn the_control_queue_is_behind_the_pairs_that_the_driver_knows() {
        let roles = |pairs, features| {
            let layout = Layout::new(pairs, features);
            (0..6).map(|index| layout.role(index)).collect::<Vec<_>>()
        };
        let first = [Some(Role::Receive(0)), Some(Role::Transmit(0))];
        let second = [Some(Role::Receive(1)), Some(Role::Transmit(1))];
        let control = Some(Role::Control);
        let all = [&first[..], &second, &[control, None]].concat();
        assert_eq!(roles(2, COMMANDS | MQ), all);
        let one = [&first[..], &[control, None, None, None]].concat();
        assert_eq!(roles(2, COMMANDS), one);
        // Who cannot say how many has one.
        let plain = [&first[..], &[None; 4]].concat();
        assert_eq!(roles(2, MQ), plain);
        assert_eq!(roles(2, 0), plain);
        assert_eq!(roles(1, 0), plain);
    }
}
