//! One connection between a port of the guest and a Unix stream of the host.
//!
//! What the guest sends and the host does not take is kept, up to [`ROOM`]; the guest is told of
//! that room, and one that sends more is cut off. What the host sends is read only when the guest
//! has room for it.

#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use event_manager::EventSet;

use super::header::{HOST_CID, Header, Operation, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM};

/// Bytes of the guest's that are kept for a host that does not take them.
pub const ROOM: u32 = 64 << 10;
/// So much is taken before the guest is told without being asked.
const TELL_AFTER: u32 = ROOM / 4;

/// A connection's two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// The host's port.
    pub host: u32,
    /// The guest's port.
    pub guest: u32,
}

/// Why a connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Over;

/// What is to be said to the guest about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Due {
    request: bool,
    response: bool,
    credit_update: bool,
    credit_request: bool,
    /// Flags of a SHUTDOWN; 0 is none.
    shutdown: u32,
}

/// See the module.
pub struct Connection {
    key: Key,
    guest_cid: u64,
    stream: UnixStream,
    /// The host asked for it and the guest has not answered.
    pub is_asked: bool,
    waiting: VecDeque<u8>,
    guest_room: u32,
    guest_taken: u32,
    sent: u32,
    taken: u32,
    told_taken: u32,
    guest_sends: bool,
    guest_receives: bool,
    host_ended: bool,
    write_ended: bool,
    is_stalled: bool,
    due: Due,
    /// What the stream is watched for.
    pub armed: EventSet,
}

impl Connection {
    /// One that the guest asked for and gets, by `header`; or that the host asks for.
    pub fn new(key: Key, guest_cid: u64, stream: UnixStream, header: Option<&Header>) -> Self {
        Connection {
            key,
            guest_cid,
            stream,
            is_asked: header.is_none(),
            waiting: VecDeque::new(),
            guest_room: header.map_or(0, |header| header.room),
            guest_taken: header.map_or(0, |header| header.taken),
            sent: 0,
            taken: 0,
            told_taken: 0,
            guest_sends: true,
            guest_receives: true,
            host_ended: false,
            write_ended: false,
            is_stalled: false,
            due: Due {
                request: header.is_none(),
                response: header.is_some(),
                ..Due::default()
            },
            armed: EventSet::empty(),
        }
    }

    /// The host's stream.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Bytes of the guest's that the host has not taken.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Bytes that the guest has room for; none if what it says of it cannot be.
    fn credit(&self) -> u32 {
        let under_way = self.sent.wrapping_sub(self.guest_taken);
        self.guest_room.saturating_sub(under_way)
    }

    fn may_read(&self) -> bool {
        !self.is_asked && !self.host_ended && self.guest_receives
    }

    /// What the stream has to be watched for; reading only while the guest has buffers.
    pub fn wanted(&self, has_buffers: bool) -> EventSet {
        let mut wanted = EventSet::empty();
        wanted.set(
            EventSet::IN,
            has_buffers && self.may_read() && self.credit() > 0,
        );
        wanted.set(EventSet::OUT, !self.waiting.is_empty());
        wanted
    }

    /// A packet of the guest's about it, `data` behind the header. True if it was granted now.
    ///
    /// # Errors
    /// It is over, and the guest is to be told.
    pub fn packet(&mut self, header: &Header, data: &[u8]) -> Result<bool, Over> {
        (self.guest_room, self.guest_taken) = (header.room, header.taken);
        match header.operation {
            Operation::Response if self.is_asked => {
                self.is_asked = false;
                let line = format!("OK {}\n", self.key.host);
                self.stream.write_all(line.as_bytes()).map_err(|_| Over)?;
                return Ok(true);
            }
            _ if self.is_asked => return Err(Over),
            Operation::Data if self.guest_sends => self.feed(data)?,
            Operation::Shutdown => {
                self.guest_receives &= header.flags & SHUTDOWN_RECEIVE == 0;
                self.guest_sends &= header.flags & SHUTDOWN_SEND == 0;
                if !self.guest_receives {
                    // The host's programs learn it by an error.
                    let _ = self.stream.shutdown(Shutdown::Read);
                }
            }
            Operation::CreditUpdate => {}
            Operation::CreditRequest => self.due.credit_update = true,
            _ => return Err(Over),
        }
        self.is_stalled &= self.credit() == 0;
        self.settle().map(|()| false)
    }

    /// Takes data of the guest's.
    fn feed(&mut self, data: &[u8]) -> Result<(), Over> {
        let room = (ROOM as usize).saturating_sub(self.waiting.len());
        if data.len() > room {
            return Err(Over);
        }
        self.waiting.extend(data);
        Ok(())
    }

    /// Writes what waits, and ends what is over.
    ///
    /// # Errors
    /// Nothing goes on.
    pub fn settle(&mut self) -> Result<(), Over> {
        while !self.waiting.is_empty() {
            let (first, _) = self.waiting.as_slices();
            let wrote = match self.stream.write(first) {
                Ok(0) => return Err(Over),
                Ok(wrote) => wrote,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return Err(Over),
            };
            self.waiting.drain(..wrote.min(self.waiting.len()));
            self.taken = self
                .taken
                .wrapping_add(u32::try_from(wrote).unwrap_or(ROOM));
        }
        let untold = self.taken.wrapping_sub(self.told_taken);
        self.due.credit_update |= untold >= TELL_AFTER;
        if self.guest_sends || !self.waiting.is_empty() {
            return Ok(());
        }
        if !self.write_ended {
            self.write_ended = true;
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        match self.guest_receives {
            true => Ok(()),
            false => Err(Over),
        }
    }

    /// Reads what the host sends, as much as fits into `room` and the guest's credit. `None` when
    /// there is nothing to read now; otherwise the bytes, which may be none at the end.
    ///
    /// # Errors
    /// The stream has failed.
    pub fn read(&mut self, room: &mut [u8]) -> Result<Option<usize>, Over> {
        let credit = usize::try_from(self.credit()).unwrap_or(usize::MAX);
        let most = room.len().min(credit);
        if !self.may_read() || most == 0 {
            return Ok(None);
        }
        let got = match self.stream.read(room.get_mut(..most).unwrap_or_default()) {
            Ok(got) => got,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(None),
            Err(_) => return Err(Over),
        };
        self.host_ended = got == 0;
        self.sent = self
            .sent
            .wrapping_add(u32::try_from(got).unwrap_or(u32::MAX));
        Ok(Some(got))
    }

    /// The host's program sends nothing more; `closed` says that it takes nothing more either.
    pub fn host_ends(&mut self, closed: bool) {
        let receive = if closed { SHUTDOWN_RECEIVE } else { 0 };
        self.due.shutdown |= SHUTDOWN_SEND | receive;
    }

    /// True when it has to wait for room in the guest and did not a moment ago.
    pub fn stalls(&mut self) -> bool {
        let is_new = self.may_read() && self.credit() == 0 && !self.is_stalled;
        self.is_stalled |= is_new;
        self.due.credit_request |= is_new;
        is_new
    }

    /// The next packet without data that is due.
    pub fn next_due(&mut self) -> Option<Header> {
        let due = &mut self.due;
        let (operation, flags) = if std::mem::take(&mut due.request) {
            (Operation::Request, 0)
        } else if std::mem::take(&mut due.response) {
            (Operation::Response, 0)
        } else if std::mem::take(&mut due.credit_update) {
            (Operation::CreditUpdate, 0)
        } else if std::mem::take(&mut due.credit_request) {
            (Operation::CreditRequest, 0)
        } else if due.shutdown != 0 {
            (Operation::Shutdown, std::mem::take(&mut due.shutdown))
        } else {
            return None;
        };
        Some(self.header(operation, flags, 0))
    }

    /// Whether a packet without data is due.
    pub fn has_due(&self) -> bool {
        self.due != Due::default()
    }

    /// A packet's header; it tells the guest our room.
    pub fn header(&mut self, operation: Operation, flags: u32, bytes: u32) -> Header {
        self.told_taken = self.taken;
        self.due.credit_update = false;
        Header {
            from_cid: HOST_CID,
            to_cid: self.guest_cid,
            from_port: self.key.host,
            to_port: self.key.guest,
            bytes,
            socket_type: TYPE_STREAM,
            operation,
            flags,
            room: ROOM,
            taken: self.taken,
        }
    }
}
