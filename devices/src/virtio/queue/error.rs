//! How a guest can break a ring.

#![forbid(unsafe_code)]

/// How a guest can break a ring. The number of each is part of the black box format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// The size is zero, no power of two, or beyond the maximum.
    #[error("queue size {0} is not a power of two within the device's maximum")]
    Size(u16),
    /// A ring's address breaks its alignment.
    #[error("{0} is not aligned")]
    Alignment(&'static str),
    /// A ring does not lie in RAM.
    #[error("{0} is outside RAM")]
    RingOutsideRam(&'static str),
    /// The available index ran more than a queue's size ahead.
    #[error("the available index is more than the queue's size ahead")]
    AvailIndex,
    /// The head is no descriptor of the queue.
    #[error("head {0} leads to no descriptor")]
    Head(u16),
    /// The chain never ends.
    #[error("the chain at {0} is a loop or longer than the queue")]
    Endless(u16),
    /// The chain leaves its table, has an indirect table that is none, or goes beyond 4 GiB.
    #[error(
        "the chain at {0} breaks off: a descriptor outside its table, an indirect table that is nested, misshapen or outside RAM, or 4 GiB in total"
    )]
    BrokenOff(u16),
    /// A descriptor of no bytes.
    #[error("the chain at {0} has a buffer of no bytes")]
    ZeroLength(u16),
    /// A buffer that is not RAM.
    #[error("the chain at {0} has a buffer outside RAM")]
    BufferOutsideRam(u16),
    /// A readable buffer after a writable one.
    #[error("the chain at {0} has a readable buffer after a writable one")]
    Order(u16),
    /// More requests in flight than descriptors.
    #[error("more requests are in flight than the queue has descriptors")]
    TooManyInFlight,
    /// The device cannot make anything of the buffers.
    #[error("the chain at {0} is too small for its device")]
    TooSmall(u16),
    /// The rings cannot be written although they were validated.
    #[error("the used ring cannot be written")]
    UsedRing,
}

impl QueueError {
    /// What the numbers mean, in words.
    pub const REASONS: [&str; 14] = [
        "",
        "the queue's size is none that it may have",
        "a ring is not aligned",
        "a ring is outside RAM",
        "the available index is too far ahead",
        "a head leads to no descriptor",
        "a chain never ends",
        "a chain breaks off",
        "a buffer has no bytes",
        "a buffer is outside RAM",
        "a readable buffer comes after a writable one",
        "too many requests are in flight",
        "the buffers are too small",
        "the used ring cannot be written",
    ];

    /// The number in [`crate::virtio::QueueBlock::broken_reason`].
    pub fn number(&self) -> u64 {
        match self {
            QueueError::Size(_) => 1,
            QueueError::Alignment(_) => 2,
            QueueError::RingOutsideRam(_) => 3,
            QueueError::AvailIndex => 4,
            QueueError::Head(_) => 5,
            QueueError::Endless(_) => 6,
            QueueError::BrokenOff(_) => 7,
            QueueError::ZeroLength(_) => 8,
            QueueError::BufferOutsideRam(_) => 9,
            QueueError::Order(_) => 10,
            QueueError::TooManyInFlight => 11,
            QueueError::TooSmall(_) => 12,
            QueueError::UsedRing => 13,
        }
    }
}
