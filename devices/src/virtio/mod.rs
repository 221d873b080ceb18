//! Virtio: devices on I/O threads, the queues between them and the guest, and the transport.
//!
//! ```text
//! vCPU threads                 |  I/O thread `io-NAME`
//! bus -> mmio or pci: Front  --mailbox--> device_loop -> blk, net, balloon, ...
//!        kicks (eventfds) ----------------^   |  ^
//!        interrupt (eventfds) <-- queue::QueueRunner, the only user of the rings
//! ```
//! Owner threads: a device, its queues and their counters belong to its I/O thread; the register
//! file belongs to the vCPUs, under one lock; they share atomics and eventfds ([`link`]) and talk
//! by messages. Order of calls: [`IoThread::spawn`], [`DeviceCounters::place`],
//! [`IoThread::attach`], which gives a [`Front`]; a transport made of it ([`MmioTransport`],
//! [`PciTransport`]) goes on the bus and its events to KVM. A device does not know which.

pub mod balloon;
pub mod blk;
#[cfg(test)]
mod conformance;
pub mod counters;
pub mod device;
mod device_loop;
pub mod front;
mod host_file;
pub mod io_thread;
mod job;
pub mod limiter;
pub mod link;
mod messages;
pub mod mmio;
#[cfg(test)]
mod mock_driver;
#[cfg(test)]
mod mock_transport;
pub mod net;
pub mod pci;
pub mod queue;
pub mod rng;
mod telling;
mod uring;
pub mod vectors;
pub mod vsock;
mod witness;

pub use balloon::counters::BalloonBlock;
pub use balloon::{BalloonDevice, BalloonHandle, BalloonOrder, BalloonRefusal, BalloonSpec};
pub use blk::{BlockDevice, BlockError, BlockSpec, DriveChange, IoEngine, try_async};
pub use counters::{
    DeviceBlock, DeviceCounters, QueueBlock, ThreadBlock, TransportBlock, TransportKind,
};
pub use device::{ConfigSpace, DeviceChange, DeviceProfile, VirtioDevice};
pub use front::{Front, RESET_DEADLINE};
pub use io_thread::{IoThread, IoThreadError, IoThreadSpec};
pub use limiter::{BucketSpec, Limiter, LimiterSpec, Throttle};
pub use link::{DeviceEvent, DeviceEventKind, DeviceLink, OnEvent};
pub use mmio::MmioTransport;
pub use net::{NetChange, NetDevice, NetError, TapSpec};
pub use pci::{MessageRouter, PciTransport};
pub use queue::{Chain, QueueError, QueueLayout, QueueRunner};
pub use rng::EntropyDevice;
pub use uring::UringError;
pub use vsock::{VsockBlock, VsockDevice, VsockError, VsockSpec};
pub use witness::Done;
