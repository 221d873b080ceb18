//! The socket device (virtio 1.2, section 5.10): streams between programs of the guest and Unix
//! sockets of the host, without a network. For people: `docs/vsock.md`.
//!
//! The device's thread waits for one descriptor, the [`switch`]'s own epoll. Data of the host are
//! read only when the guest has a buffer and room for them, so nothing is kept in this direction.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

mod connection;
mod counters;
mod header;
mod host;
mod switch;

use std::io;
use std::iter;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::Arc;

use event_manager::EventSet;
use observe::Block;
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;

use self::connection::{Key, ROOM};
pub use self::counters::VsockBlock;
use self::header::{HEADER_BYTES, Header};
pub use self::host::MAX_PATH;
use self::switch::{Fault, Switch};
use super::device::{ConfigSpace, DeviceProfile, TRANSPORT_FEATURES, VirtioDevice};
use super::queue::{Chain, QueueRunner};
use super::witness::Done;

const QUEUE_SIZE: u16 = 256;
/// Packets to the guest.
const RX: usize = 0;
/// Packets from the guest.
const TX: usize = 1;
/// The switch's token in the event loop.
const SWITCH: u32 = 0;
/// Packets of one connection in one round; then others have their turn.
const ROUND: usize = 16;
/// Data of one packet at most.
const PACKET_BYTES: usize = ROOM as usize;

const OPERATIONS: &[&str] = &["rx", "tx"];
/// [`OPERATIONS`], by number.
const OPERATION_RX: u8 = 0;
const OPERATION_TX: u8 = 1;

const DROP_CAUSES: &[&str] = &["malformed", "address", "connection"];
/// [`DROP_CAUSES`], by number.
const DROP_MALFORMED: usize = 0;
const DROP_ADDRESS: usize = 1;
const DROP_CONNECTION: usize = 2;

/// A socket device, as the machine's builder wants it.
#[derive(Clone, Debug)]
pub struct VsockSpec {
    /// Its name in the machine.
    pub name: String,
    /// The guest's address, at least 3.
    pub guest_cid: u32,
    /// The Unix socket at which programs of the host reach the guest; at most [`MAX_PATH`] bytes.
    pub path: PathBuf,
}

/// Why there is no socket device to be had.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// Somebody else listens there, or something else is there.
    #[error("{path} is in use; give uds_path a name that nothing has, or remove what is there")]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// Something else failed.
    #[error(
        "{path} cannot be listened at: {source}; give uds_path a folder that this process may write to"
    )]
    Listen {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The guest's sockets.
pub struct VsockDevice {
    name: String,
    config: Arc<ConfigSpace>,
    switch: Switch,
    /// The guest has no buffer for packets.
    is_starved: bool,
    data: Box<[u8]>,
}

impl VsockDevice {
    /// Listens at the device's socket, which stays when the device is gone. One that was left
    /// there is replaced.
    ///
    /// # Errors
    /// [`VsockError`]: what is wrong with the path, and what to do.
    pub fn open(spec: VsockSpec, block: Block<VsockBlock>) -> Result<Self, VsockError> {
        let guest_cid = u64::from(spec.guest_cid);
        let path = spec.path;
        let switch =
            Switch::new(path.clone(), guest_cid, block).map_err(|source| match source.kind() {
                io::ErrorKind::AddrInUse => VsockError::InUse { path },
                _ => VsockError::Listen { path, source },
            })?;
        Ok(VsockDevice {
            name: spec.name,
            config: Arc::new(ConfigSpace::new(&guest_cid.to_le_bytes())),
            switch,
            is_starved: true,
            data: vec![0; PACKET_BYTES].into_boxed_slice(),
        })
    }

    /// Takes all packets of the guest's that a turn allows.
    fn transmit(&mut self, queue: &mut QueueRunner) {
        while let Some(chain) = queue.request() {
            let (payload, outcome) = self.take_packet(&chain);
            if let Err(cause) = outcome {
                queue.dropped(cause);
            }
            let done = Done {
                operation: OPERATION_TX,
                written: 0,
                payload: payload as u64,
                failed: outcome.is_err(),
            };
            queue.complete(chain, done);
        }
    }

    /// The bytes of data, and why the packet was dropped if it was.
    fn take_packet(&mut self, chain: &Chain) -> (usize, Result<(), usize>) {
        let mut header = [0; HEADER_BYTES];
        if chain.readable.copy_to(0, &mut header) < HEADER_BYTES {
            return (0, Err(DROP_MALFORMED));
        }
        let header = Header::parse(&header);
        let bytes = usize::try_from(header.bytes).unwrap_or(usize::MAX);
        let Some(data) = self.data.get_mut(..bytes) else {
            return (0, Err(DROP_MALFORMED));
        };
        if chain.readable.copy_to(HEADER_BYTES, data) < bytes {
            return (0, Err(DROP_MALFORMED));
        }
        let outcome = self.switch.packet(&header, data);
        let outcome = outcome.map_err(|fault| match fault {
            Fault::Address => DROP_ADDRESS,
            Fault::Connection => DROP_CONNECTION,
        });
        (bytes, outcome)
    }

    /// A buffer of the guest's with room for a header and data.
    fn buffer(&mut self, queue: &mut QueueRunner) -> Option<Chain> {
        let chain = queue.take();
        self.is_starved = chain.is_none();
        match chain {
            Some(chain) if chain.writable.bytes() <= HEADER_BYTES => {
                queue.reject(chain);
                None
            }
            chain => chain,
        }
    }

    /// Sends what is due, then data of these connections.
    fn receive(&mut self, readable: &[(Key, bool)], queue: &mut QueueRunner) {
        self.send_due(queue);
        for connection in readable {
            for _ in 0..ROUND {
                if !self.send_data(*connection, queue) {
                    break;
                }
            }
        }
        self.send_due(queue);
    }

    fn send_due(&mut self, queue: &mut QueueRunner) {
        while self.switch.has_next() {
            let Some(chain) = self.buffer(queue) else {
                return;
            };
            match self.switch.next() {
                Some(header) => send(chain, &header, &[], queue),
                None => queue.give_back(iter::once(chain)),
            }
        }
    }

    /// Sends one packet of data; false when there is none, or no buffer for it.
    fn send_data(&mut self, connection: (Key, bool), queue: &mut QueueRunner) -> bool {
        let Some(chain) = self.buffer(queue) else {
            return false;
        };
        let most = chain.writable.bytes().saturating_sub(HEADER_BYTES);
        let room = self.data.get_mut(..most.min(PACKET_BYTES));
        let room = room.unwrap_or_default();
        let Some(header) = self.switch.read(connection, room) else {
            queue.give_back(iter::once(chain));
            return false;
        };
        let bytes = usize::try_from(header.bytes).unwrap_or(0);
        send(chain, &header, room.get(..bytes).unwrap_or_default(), queue);
        true
    }

    /// Has the queue know that its buffers are seen: they lie there until there is a packet.
    fn look(&mut self, queue: &mut QueueRunner) {
        if let Some(chain) = self.buffer(queue) {
            queue.give_back(iter::once(chain));
        }
    }
}

fn send(chain: Chain, header: &Header, data: &[u8], queue: &mut QueueRunner) {
    let head = chain.writable.copy_from(0, &header.to_bytes());
    let written = head.saturating_add(chain.writable.copy_from(HEADER_BYTES, data));
    let done = Done {
        operation: OPERATION_RX,
        written: u32::try_from(written).unwrap_or(u32::MAX),
        payload: data.len() as u64,
        failed: false,
    };
    queue.complete(chain, done);
}

impl VirtioDevice for VsockDevice {
    fn profile(&self) -> DeviceProfile {
        DeviceProfile {
            device_type: VIRTIO_ID_VSOCK,
            name: self.name.clone(),
            features: TRANSPORT_FEATURES,
            queue_max_sizes: vec![QUEUE_SIZE; 3],
            config: Arc::clone(&self.config),
            operations: OPERATIONS,
            drop_causes: DROP_CAUSES,
            queue_names: Vec::new(),
        }
    }

    fn activate(&mut self, _features: u64, _queues: &mut [QueueRunner]) -> io::Result<()> {
        Ok(())
    }

    fn backends(&self) -> Vec<(u32, RawFd)> {
        vec![(SWITCH, self.switch.fd())]
    }

    fn interest(&self, _token: u32) -> EventSet {
        EventSet::IN
    }

    fn queue_ready(&mut self, index: usize, queues: &mut [QueueRunner]) {
        if index == TX
            && let Some(queue) = queues.get_mut(TX)
        {
            self.transmit(queue);
        }
        if index <= TX
            && let Some(queue) = queues.get_mut(RX)
        {
            self.receive(&[], queue);
            self.look(queue);
        } else if let Some(queue) = queues.get_mut(index)
            // The event queue: nothing ever happens that it tells.
            && let Some(chain) = queue.take()
        {
            queue.give_back(iter::once(chain));
        }
        self.switch.arm(!self.is_starved);
    }

    fn backend_ready(&mut self, _token: u32, _events: EventSet, queues: &mut [QueueRunner]) {
        let Some(queue) = queues.get_mut(RX) else {
            return;
        };
        match self.switch.poll() {
            Ok(readable) => self.receive(&readable, queue),
            Err(error) => queue.host_error(OPERATION_RX, None, &error),
        }
        self.switch.arm(!self.is_starved);
    }

    fn reset(&mut self) {
        self.switch.clear();
        self.is_starved = true;
        self.data.fill(0);
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
mod tests;
