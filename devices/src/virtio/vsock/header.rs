//! The header of a vsock packet (virtio 1.2, section 5.10.6), in front of its data.

#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

/// Bytes of a header.
pub const HEADER_BYTES: usize = 44;
/// The host's address.
pub const HOST_CID: u64 = 2;
/// `VIRTIO_VSOCK_TYPE_STREAM`.
pub const TYPE_STREAM: u16 = 1;
/// The sender of a SHUTDOWN takes nothing more.
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// The sender of a SHUTDOWN sends nothing more.
pub const SHUTDOWN_SEND: u32 = 2;

/// What a packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Asks for a connection.
    Request,
    /// Grants it.
    Response,
    /// Ends or refuses it.
    Reset,
    /// One side sends or takes nothing more.
    Shutdown,
    /// Data.
    Data,
    /// Tells the sender's room.
    CreditUpdate,
    /// Asks for the receiver's room.
    CreditRequest,
    /// A number that nobody knows.
    Unknown(u16),
}

impl Operation {
    /// By its number.
    pub fn of(number: u16) -> Operation {
        match number {
            1 => Operation::Request,
            2 => Operation::Response,
            3 => Operation::Reset,
            4 => Operation::Shutdown,
            5 => Operation::Data,
            6 => Operation::CreditUpdate,
            7 => Operation::CreditRequest,
            other => Operation::Unknown(other),
        }
    }

    /// Its number.
    pub fn number(self) -> u16 {
        match self {
            Operation::Request => 1,
            Operation::Response => 2,
            Operation::Reset => 3,
            Operation::Shutdown => 4,
            Operation::Data => 5,
            Operation::CreditUpdate => 6,
            Operation::CreditRequest => 7,
            Operation::Unknown(number) => number,
        }
    }
}

/// A header, as the sender says it: none of it can be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// From which machine.
    pub from_cid: u64,
    /// To which.
    pub to_cid: u64,
    /// From which port.
    pub from_port: u32,
    /// To which.
    pub to_port: u32,
    /// Bytes of data behind the header.
    pub bytes: u32,
    /// The kind of socket.
    pub socket_type: u16,
    /// What it is for.
    pub operation: Operation,
    /// Of a SHUTDOWN.
    pub flags: u32,
    /// The sender's room for data, in all.
    pub room: u32,
    /// Bytes that the sender has taken out of that room since the beginning, modulo 2^32.
    pub taken: u32,
}

fn field<const N: usize>(bytes: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    let part = bytes.get(at..).and_then(|rest| rest.first_chunk::<N>());
    part.copied().unwrap_or([0; N])
}

impl Header {
    /// Reads a header; every 44 bytes are one.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Header {
        let (u16_at, u32_at) = (
            |at| u16::from_le_bytes(field(bytes, at)),
            |at| u32::from_le_bytes(field(bytes, at)),
        );
        Header {
            from_cid: u64::from_le_bytes(field(bytes, 0)),
            to_cid: u64::from_le_bytes(field(bytes, 8)),
            from_port: u32_at(16),
            to_port: u32_at(20),
            bytes: u32_at(24),
            socket_type: u16_at(28),
            operation: Operation::of(u16_at(30)),
            flags: u32_at(32),
            room: u32_at(36),
            taken: u32_at(40),
        }
    }

    /// As the guest reads it.
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let fields = [
            &self.from_cid.to_le_bytes()[..],
            &self.to_cid.to_le_bytes(),
            &self.from_port.to_le_bytes(),
            &self.to_port.to_le_bytes(),
            &self.bytes.to_le_bytes(),
            &self.socket_type.to_le_bytes(),
            &self.operation.number().to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.room.to_le_bytes(),
            &self.taken.to_le_bytes(),
        ];
        let mut bytes = [0; HEADER_BYTES];
        for (to, from) in bytes.iter_mut().zip(fields.into_iter().flatten()) {
            *to = *from;
        }
        bytes
    }
}
