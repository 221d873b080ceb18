//! All connections of a guest: which packet is whose, who may come, and what the guest is told.
//!
//! Programs of the host reach the guest through one listening socket, by Firecracker's handshake:
//! `CONNECT PORT\n`, answered by `OK HOSTPORT\n`. A guest reaches the program that listens at the
//! socket's path with `_PORT` behind it. All descriptors are watched by one epoll of our own, which
//! the device's thread waits for as for one.

#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use event_manager::EventSet;
use observe::Block;
use observe::clock::monotonic_ns;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent};

use super::connection::{Connection, Key, Over};
use super::counters::VsockBlock;
use super::header::{HOST_CID, Header, Operation, TYPE_STREAM};
use super::host;

/// Connections at most, and programs of the host that have not yet said where they want to go.
pub const MAX_CONNECTIONS: usize = 256;
/// Resets that wait for the guest's buffers; more are not told.
const MAX_RESETS: usize = 256;
/// Longest first line of a program of the host.
const MAX_LINE: usize = 32;
/// How long nobody is let in after the host had no descriptor left.
const DEAF_NS: u64 = 1_000_000_000;
/// Events read at once.
const EVENTS: usize = 64;
/// The port that stands for any port; nobody has it.
const ANY_PORT: u32 = u32::MAX;
/// Ports of the host for connections that it asks for: from here on.
const FIRST_HOST_PORT: u32 = 1 << 30;
/// Event data of the listener. Those of a program without a port have [`ANY_PORT`] below, too.
const LISTENER: u64 = u64::MAX;

/// What was wrong with a packet of the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Addresses that it may not use.
    Address,
    /// Not what may be sent about that connection.
    Connection,
}

/// A program of the host that has not yet said where it wants to go.
struct Caller {
    stream: UnixStream,
    line: Vec<u8>,
}

/// See the module.
pub struct Switch {
    path: PathBuf,
    guest_cid: u64,
    listener: UnixListener,
    epoll: Epoll,
    block: Block<VsockBlock>,
    connections: BTreeMap<Key, Connection>,
    callers: BTreeMap<u32, Caller>,
    resets: VecDeque<Header>,
    /// Connections about which a packet without data is due.
    due: BTreeSet<Key>,
    next_port: u32,
    next_caller: u32,
    /// Since when the listener is not watched.
    deaf_since_ns: Option<u64>,
}

fn data_of(key: Key) -> u64 {
    u64::from(key.host) << 32 | u64::from(key.guest)
}

fn key_of(data: u64) -> Key {
    Key {
        host: (data >> 32) as u32,
        guest: data as u32,
    }
}

impl Switch {
    /// Listens at `path`.
    ///
    /// # Errors
    /// What the host's kernel says.
    pub fn new(path: PathBuf, guest_cid: u64, block: Block<VsockBlock>) -> io::Result<Self> {
        let (listener, epoll) = (host::listen(&path)?, Epoll::new()?);
        let watched = EpollEvent::new(EventSet::IN, LISTENER);
        epoll.ctl(ControlOperation::Add, listener.as_raw_fd(), watched)?;
        Ok(Switch {
            path,
            guest_cid,
            listener,
            epoll,
            block,
            connections: BTreeMap::new(),
            callers: BTreeMap::new(),
            resets: VecDeque::new(),
            due: BTreeSet::new(),
            next_port: FIRST_HOST_PORT,
            next_caller: 0,
            deaf_since_ns: None,
        })
    }

    /// What there is to wait for.
    pub fn fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// Forgets all connections: the guest's driver is gone.
    pub fn clear(&mut self) {
        self.connections.clear();
        self.callers.clear();
        self.resets.clear();
        self.due.clear();
        self.show();
    }

    fn show(&self) {
        self.block.connections.set(self.connections.len() as u64);
        let waiting = self.connections.values().map(Connection::waiting);
        self.block.waiting.set(waiting.sum::<usize>() as u64);
    }

    /// Serves what happened on the host. Gives the connections that may be read from, with whether
    /// their program is gone.
    ///
    /// # Errors
    /// What the host's kernel says.
    pub fn poll(&mut self) -> io::Result<Vec<(Key, bool)>> {
        let mut events = [EpollEvent::default(); EVENTS];
        let count = match self.epoll.wait(0, &mut events) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            other => other?,
        };
        let mut readable = Vec::new();
        for event in events.iter().take(count) {
            let (data, set) = (event.data(), event.event_set());
            let key = key_of(data);
            if data == LISTENER {
                self.accept();
            } else if key.guest == ANY_PORT {
                self.hear(key.host);
            } else if let Some(connection) = self.connections.get_mut(&key) {
                if connection.settle().is_err() {
                    self.end(key);
                    continue;
                }
                let gone = set.contains(EventSet::HANG_UP);
                if gone || set.contains(EventSet::IN) {
                    readable.push((key, gone));
                }
                self.note(key);
            }
        }
        Ok(readable)
    }

    fn accept(&mut self) {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) => {
                // Out of descriptors, say: the caller stays and would wake us without end.
                tracing::warn!(
                    "{}: nobody can be let in for a second: {error}",
                    self.path.display()
                );
                self.block.refused.inc();
                let (fd, none) = (self.listener.as_raw_fd(), EpollEvent::default());
                if self.epoll.ctl(ControlOperation::Delete, fd, none).is_ok() {
                    self.deaf_since_ns = Some(monotonic_ns());
                }
                return;
            }
        };
        let there = self.connections.len().saturating_add(self.callers.len());
        let number = self.next_caller;
        let watched = EpollEvent::new(
            EventSet::IN,
            data_of(Key {
                host: number,
                guest: ANY_PORT,
            }),
        );
        let add = ControlOperation::Add;
        if there >= MAX_CONNECTIONS
            || stream.set_nonblocking(true).is_err()
            || self.epoll.ctl(add, stream.as_raw_fd(), watched).is_err()
        {
            return self.block.refused.inc();
        }
        // Below the listener's number.
        self.next_caller = number.wrapping_add(1) % ANY_PORT;
        let line = Vec::with_capacity(MAX_LINE);
        self.callers.insert(number, Caller { stream, line });
    }

    /// Reads a caller's line, byte by byte: what follows it is the guest's.
    fn hear(&mut self, number: u32) {
        let Some(mut caller) = self.callers.remove(&number) else {
            return;
        };
        let port = loop {
            let mut byte = [0];
            match caller.stream.read(&mut byte) {
                Ok(1) if byte == *b"\n" => break port_of(&caller.line),
                Ok(1) if caller.line.len() < MAX_LINE => caller.line.extend(byte),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.callers.insert(number, caller);
                    return;
                }
                _ => break None,
            }
        };
        let fd = caller.stream.as_raw_fd();
        let forgotten = self
            .epoll
            .ctl(ControlOperation::Delete, fd, EpollEvent::default());
        match (port, forgotten) {
            (Some(guest), Ok(())) => {
                let key = self.free_key(guest);
                let connection = Connection::new(key, self.guest_cid, caller.stream, None);
                self.connections.insert(key, connection);
                self.note(key);
                self.show();
            }
            _ => self.block.refused.inc(),
        }
    }

    fn free_key(&mut self, guest: u32) -> Key {
        loop {
            let host = self.next_port;
            let next = host.wrapping_add(1);
            self.next_port = match next {
                ANY_PORT => FIRST_HOST_PORT,
                next => next,
            };
            let key = Key { host, guest };
            // There are more ports than connections.
            if !self.connections.contains_key(&key) {
                return key;
            }
        }
    }

    /// A packet of the guest's.
    ///
    /// # Errors
    /// What is wrong with it; the guest is told by a reset where it can be.
    pub fn packet(&mut self, header: &Header, data: &[u8]) -> Result<(), Fault> {
        if header.from_cid != self.guest_cid || header.to_cid != HOST_CID {
            return Err(Fault::Address);
        }
        let key = Key {
            host: header.to_port,
            guest: header.from_port,
        };
        let is_reset = header.operation == Operation::Reset;
        if header.socket_type != TYPE_STREAM || key.guest == ANY_PORT {
            if !is_reset {
                self.reset(key, header.socket_type);
            }
            return Err(Fault::Address);
        }
        let outcome = match (self.connections.get_mut(&key), header.operation) {
            (Some(connection), Operation::Reset) => {
                self.block.refused.add(u64::from(connection.is_asked));
                self.forget(key);
                return Ok(());
            }
            (None, Operation::Reset) => return Ok(()),
            (None, Operation::Request) => return self.request(key, header),
            (None, _) => Err(Over),
            (Some(connection), _) => connection.packet(header, data),
        };
        match outcome {
            Ok(granted) => {
                self.block.by_host.add(u64::from(granted));
                self.note(key);
                Ok(())
            }
            Err(Over) => {
                self.end(key);
                // The orderly end of a connection that both sides have shut down is no fault.
                match header.operation {
                    Operation::Shutdown => Ok(()),
                    _ => Err(Fault::Connection),
                }
            }
        }
    }

    /// The guest asks for a program of the host. That nobody listens there is no fault of its.
    fn request(&mut self, key: Key, header: &Header) -> Result<(), Fault> {
        let there = self.connections.len().saturating_add(self.callers.len());
        let stream = match there < MAX_CONNECTIONS {
            true => host::connect(&host::path_of(&self.path, key.host)).ok(),
            false => None,
        };
        let Some(stream) = stream else {
            self.block.refused.inc();
            self.reset(key, TYPE_STREAM);
            return Ok(());
        };
        self.block.by_guest.inc();
        let connection = Connection::new(key, self.guest_cid, stream, Some(header));
        self.connections.insert(key, connection);
        self.note(key);
        Ok(())
    }

    fn forget(&mut self, key: Key) {
        // Its descriptor leaves the epoll by being closed.
        self.connections.remove(&key);
        self.due.remove(&key);
    }

    /// Forgets it and tells the guest.
    fn end(&mut self, key: Key) {
        self.forget(key);
        self.reset(key, TYPE_STREAM);
    }

    fn reset(&mut self, key: Key, socket_type: u16) {
        if self.resets.len() >= MAX_RESETS {
            return;
        }
        self.block.resets.inc();
        self.resets.push_back(Header {
            from_cid: HOST_CID,
            to_cid: self.guest_cid,
            from_port: key.host,
            to_port: key.guest,
            bytes: 0,
            socket_type,
            operation: Operation::Reset,
            flags: 0,
            room: 0,
            taken: 0,
        });
    }

    /// Remembers that packets are due.
    fn note(&mut self, key: Key) {
        if self.connections.get(&key).is_some_and(Connection::has_due) {
            self.due.insert(key);
        }
    }

    /// Whether a packet without data waits for a buffer of the guest's.
    pub fn has_next(&self) -> bool {
        !self.resets.is_empty() || !self.due.is_empty()
    }

    /// That packet. Resets come first: the guest may ask for the same connection again, and the
    /// answer to that is not to be followed by the end of the one before.
    pub fn next(&mut self) -> Option<Header> {
        if let Some(header) = self.resets.pop_front() {
            return Some(header);
        }
        while let Some(key) = self.due.first().copied() {
            let connection = self.connections.get_mut(&key);
            if let Some(header) = connection.and_then(Connection::next_due) {
                return Some(header);
            }
            self.due.remove(&key);
        }
        None
    }

    /// Reads what the host sends on a connection: the packet's header, of as many bytes as were
    /// read into `room`. `None` when there is nothing to send now.
    pub fn read(&mut self, (key, gone): (Key, bool), room: &mut [u8]) -> Option<Header> {
        let connection = self.connections.get_mut(&key)?;
        let outcome = connection.read(room);
        let header = match outcome {
            Ok(Some(0)) => {
                connection.host_ends(gone);
                None
            }
            Ok(Some(bytes)) => {
                let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
                Some(connection.header(Operation::Data, 0, bytes))
            }
            Ok(None) => None,
            Err(Over) => {
                self.end(key);
                return None;
            }
        };
        self.block.credit_stalls.add(u64::from(connection.stalls()));
        self.note(key);
        header
    }

    /// Has each connection watched for what it waits for. One without interest is not watched at
    /// all: an error on it would wake the thread without end.
    pub fn arm(&mut self, has_buffers: bool) {
        let mut lost = Vec::new();
        for (key, connection) in &mut self.connections {
            let wanted = connection.wanted(has_buffers);
            if wanted == connection.armed {
                continue;
            }
            let operation = match (connection.armed.is_empty(), wanted.is_empty()) {
                (true, _) => ControlOperation::Add,
                (false, true) => ControlOperation::Delete,
                (false, false) => ControlOperation::Modify,
            };
            let watched = EpollEvent::new(wanted, data_of(*key));
            let fd = connection.stream().as_raw_fd();
            connection.armed = wanted;
            if self.epoll.ctl(operation, fd, watched).is_err() {
                lost.push(*key);
            }
        }
        for key in lost {
            self.end(key);
        }
        self.listen_again();
        self.show();
    }

    fn listen_again(&mut self) {
        let now = monotonic_ns();
        let Some(since) = self.deaf_since_ns else {
            return;
        };
        let watched = EpollEvent::new(EventSet::IN, LISTENER);
        let fd = self.listener.as_raw_fd();
        if now.saturating_sub(since) >= DEAF_NS
            && self.epoll.ctl(ControlOperation::Add, fd, watched).is_ok()
        {
            self.deaf_since_ns = None;
        }
    }
}

/// The port in `CONNECT PORT`.
fn port_of(line: &[u8]) -> Option<u32> {
    let line = std::str::from_utf8(line).ok()?;
    let (word, port) = line.trim_end_matches('\r').split_once(' ')?;
    let port = port.parse().ok().filter(|port| *port != ANY_PORT)?;
    word.eq_ignore_ascii_case("connect").then_some(port)
}
