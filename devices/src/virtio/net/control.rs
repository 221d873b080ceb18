//! What a driver says on the control queue (virtio 1.2, section 5.1.6.5): pure, so that it can be
//! fuzzed. Of all commands there is one, which says how many queue pairs are used: no other belongs to
//! a feature that is offered.

#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use virtio_bindings::virtio_net as net;

/// Bytes of a command that are looked at: one more than the longest that is understood, so that a
/// longer one is seen to be longer.
pub const MAX_COMMAND_BYTES: usize = 5;
/// `VIRTIO_NET_OK`: what is answered to a command that was carried out.
pub const OK: u8 = net::VIRTIO_NET_OK as u8;
/// `VIRTIO_NET_ERR`: what is answered to any other.
pub const ERR: u8 = net::VIRTIO_NET_ERR as u8;

const MQ: u8 = net::VIRTIO_NET_CTRL_MQ as u8;
const VQ_PAIRS_SET: u8 = net::VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET as u8;
/// The fewest pairs that can be used.
const MIN_PAIRS: u16 = net::VIRTIO_NET_CTRL_MQ_VQ_PAIRS_MIN as u16;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// From now on so many queue pairs are used, the first ones: at least one, and no more than there
    /// are.
    UsePairs(u16),
}

/// Why a command is answered by [`ERR`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It has no class and no number, or not as many bytes as such a command has.
    #[error("it has {0} bytes, or more")]
    Length(usize),
    /// Nobody knows it, or it belongs to a feature that the driver does not have.
    #[error("there is no command {1} of class {0}")]
    Unknown(u8, u8),
    /// Fewer pairs than one, or more than there are.
    #[error("{0} queue pairs cannot be used")]
    Pairs(u16),
}

/// Reads a command: its first [`MAX_COMMAND_BYTES`] bytes or all. The driver may use `pairs` queue
/// pairs, and has `VIRTIO_NET_F_MQ` if that is more than one.
///
/// # Errors
/// [`Refusal`]; the answer is [`ERR`] then, and nothing has changed.
pub fn parse(command: &[u8], pairs: u16) -> Result<Command, Refusal> {
    let [class, number, data @ ..] = command else {
        return Err(Refusal::Length(command.len()));
    };
    match (*class, *number) {
        (MQ, VQ_PAIRS_SET) if pairs > MIN_PAIRS => {
            let wanted = <[u8; 2]>::try_from(data).map_err(|_| Refusal::Length(command.len()))?;
            let wanted = u16::from_le_bytes(wanted);
            match (MIN_PAIRS..=pairs).contains(&wanted) {
                true => Ok(Command::UsePairs(wanted)),
                false => Err(Refusal::Pairs(wanted)),
            }
        }
        (class, number) => Err(Refusal::Unknown(class, number)),
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_number_of_pairs_is_set_within_what_there_are() {
        for wanted in 1..=4 {
            let command = Ok(Command::UsePairs(wanted));
            assert_eq!(parse(&[4, 0, wanted as u8, 0], 4), command);
        }
        for wanted in [0, 5, 0x100, u16::MAX] {
            let [low, high] = wanted.to_le_bytes();
            let refused = Err(Refusal::Pairs(wanted));
            assert_eq!(parse(&[4, 0, low, high], 4), refused);
        }
        // A driver without the feature has one pair, and nothing to set.
        assert_eq!(parse(&[4, 0, 1, 0], 1), Err(Refusal::Unknown(4, 0)));
    }

    #[test]
    fn other_commands_are_unknown() {
        for (class, number) in [
            (4, 1),
            (4, 2),
            (0, 0),
            (1, 1),
            (2, 0),
            (3, 0),
            (5, 0),
            (255, 0),
        ] {
            let refused = Err(Refusal::Unknown(class, number));
            assert_eq!(parse(&[class, number, 1, 0], 2), refused);
        }
    }

    #[test]
    fn a_command_has_the_length_that_it_has() {
        let whole = [4, 0, 1, 0, 0];
        for length in [0, 1, 2, 3, 5] {
            let refused = Err(Refusal::Length(length));
            assert_eq!(parse(whole.get(..length).unwrap_or_default(), 2), refused);
        }
        const { assert!(MAX_COMMAND_BYTES > 4) };
    }

    proptest! {
        #[test]
        fn what_is_accepted_can_be_done(command in prop::collection::vec(any::<u8>(), 0..8), pairs in 0u16..10) {
            if let Ok(Command::UsePairs(wanted)) = parse(&command, pairs) {
                prop_assert!((1..=pairs).contains(&wanted));
                prop_assert_eq!(command, [vec![4, 0], wanted.to_le_bytes().to_vec()].concat());
            }
        }

        #[test]
        fn what_can_be_done_is_accepted(pairs in 2u16..=u16::MAX, chance in any::<u16>()) {
            let wanted = 1 + chance % pairs;
            let command = [vec![4, 0], wanted.to_le_bytes().to_vec()].concat();
            prop_assert_eq!(parse(&command, pairs), Ok(Command::UsePairs(wanted)));
        }
    }
}
