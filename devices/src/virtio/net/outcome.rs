//! What an interface counts: kinds of operation, and why packets are lost.

#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::io;

/// The kinds of operation; control is of interfaces with a control queue alone.
pub const OPERATIONS: &[&str] = &["rx", "tx", "control"];
/// [`OPERATIONS`], by number.
pub const OPERATION_RX: u8 = 0;
/// See [`OPERATION_RX`].
pub const OPERATION_TX: u8 = 1;
/// See [`OPERATION_RX`].
pub const OPERATION_CONTROL: u8 = 2;
/// How many of them there are without a control queue.
pub const PLAIN_OPERATIONS: usize = 2;
/// A buffer that continues a packet: of no kind, for the packet was counted at its first.
pub const OPERATION_CONTINUED: u8 = u8::MAX;

/// Why packets are lost, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Loss {
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
    /// The guest sent a frame by a queue pair that it had said it does not use.
    TxUnusedPair = 6,
}

/// [`Loss`], in words.
pub const DROP_CAUSES: &[&str] = &[
    "rx_too_long",
    "tx_malformed",
    "tx_oversize",
    "tx_refused",
    "tx_no_tap",
    "tx_spoofed_mac",
    "tx_unused_pair",
];

/// Whether an error means that the tap itself is no more. The last three are those of a socket
/// that stands in for one.
pub fn is_gone(error: &io::Error) -> bool {
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
