//! The block device (virtio 1.2, section 5.2): a regular file or block device of the host.
//!
//! Requests are carried out on the I/O thread, one system call each, straight between the guest's
//! buffers and the file.

#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

mod erase;
mod image;
pub mod request;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use event_manager::EventSet;
use virtio_bindings::virtio_blk as blk;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vmm_sys_util::timerfd::TimerFd;

pub use self::image::BlockError;
use self::image::open;
use self::request::{Disk, HEADER_BYTES, Operation, Refusal, Request, SECTOR_BYTES};
use super::device::{ConfigSpace, DeviceChange, DeviceProfile, TRANSPORT_FEATURES, VirtioDevice};
use super::limiter::{Limiter, LimiterSpec};
use super::queue::{Chain, QueueRunner};
use super::witness::Done;

const QUEUE_SIZE: u16 = 256;
/// Data segments of a request: the queue without header and status.
const SEG_MAX: u32 = 254;
/// Bytes of a segment at most.
const SIZE_MAX: u32 = 4 << 20;
/// What the guest is told that the disk writes at once, as a power of two of sectors: 4 KiB, the block of the
/// host's file systems.
const PHYSICAL_BLOCK_EXPONENT: u8 = 3;

/// A drive, as the machine's builder wants it.
#[derive(Clone, Debug)]
pub struct BlockSpec {
    /// Its id, which the guest reads as the disk's serial (20 bytes of it).
    pub id: String,
    /// The file or host block device.
    pub path: PathBuf,
    /// Whether the guest may only read.
    pub read_only: bool,
    /// Whether flushes are offered; they are `fdatasync` then.
    pub flush: bool,
    /// How much the guest may ask, by all queues together.
    pub limiter: LimiterSpec,
    /// Queues, 1 to [`MAX_QUEUES`], all served by the drive's one thread.
    pub queues: u8,
}

/// Queues of a drive at most.
pub const MAX_QUEUES: u8 = 8;

/// What can be changed of a drive that the guest has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DriveChange {
    /// Another file, or the same one if its size has changed.
    pub path: Option<PathBuf>,
    /// As [`LimiterSpec::changed`] takes it.
    pub limiter: LimiterSpec,
}

/// The token of the limiter's timer.
const TIMER: u32 = 0;

/// A disk of the guest.
pub struct BlockDevice {
    spec: BlockSpec,
    /// In the machine; the id, unless something else there has that name.
    name: String,
    file: File,
    disk: Disk,
    config: Arc<ConfigSpace>,
    limiter: Limiter,
    /// Ends a wait by the limiter.
    timer: TimerFd,
    began: Instant,
}

impl BlockDevice {
    /// Opens the drive's file and locks it: only readers share a file. Its size is taken now; a rest of less than a sector is left out.
    ///
    /// # Errors
    /// [`BlockError`]: what is wrong with the path, and what to do.
    pub fn open(spec: BlockSpec) -> Result<Self, BlockError> {
        let (file, bytes) = open(&spec)?;
        let sectors = image::sectors(&spec, bytes)?;
        let timer = TimerFd::new().map_err(|error| BlockError::Timer {
            id: spec.id.clone(),
            source: error.into(),
        })?;
        let disk = Disk {
            sectors,
            read_only: spec.read_only,
            flush: spec.flush,
            discard: !spec.read_only && erase::can_discard(&file, bytes),
        };
        Ok(BlockDevice {
            name: spec.id.clone(),
            config: Arc::new(config(&disk, spec.queues)),
            limiter: Limiter::new(spec.limiter, 0),
            spec,
            file,
            disk,
            timer,
            began: Instant::now(),
        })
    }

    /// Has the machine call the drive `name`, which is its id otherwise. The guest sees the id.
    #[must_use]
    pub fn named(mut self, name: String) -> Self {
        self.name = name;
        self
    }

    /// The clock of the limiter.
    fn now_ns(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Takes the next request, unless it has to wait; then the timer is set.
    fn next(&mut self, queue: &mut QueueRunner) -> Option<Chain> {
        if !self.limiter.limits() {
            return queue.request();
        }
        let now_ns = self.now_ns();
        let (limiter, timer) = (&mut self.limiter, &mut self.timer);
        queue.request_if(|chain| {
            let all = chain
                .readable
                .bytes()
                .saturating_add(chain.writable.bytes());
            // Without the header and the status.
            let payload = all.saturating_sub(HEADER_BYTES).saturating_sub(1);
            match limiter.take(payload as u64, now_ns) {
                Ok(()) => true,
                // Without a timer nothing would end the wait.
                Err(wait) => timer.reset(wait, None).is_err(),
            }
        })
    }

    /// Takes another file, or the same one at its new size.
    fn swap(&mut self, path: PathBuf) -> Result<(), BlockError> {
        let spec = BlockSpec {
            path,
            ..self.spec.clone()
        };
        let (file, bytes) = image::open_instead(&spec, &self.file)?;
        let sectors = image::sectors(&spec, bytes)?;
        if let Some(file) = file {
            self.file = file;
        }
        (self.spec, self.disk.sectors) = (spec, sectors);
        self.config.write(0, &sectors.to_le_bytes());
        Ok(())
    }

    /// Carries a request out. `None` when the chain has no header or no place for the status.
    fn serve(&self, chain: &mut Chain, queue: &QueueRunner) -> Option<Done> {
        let mut header = [0; HEADER_BYTES];
        if chain.readable.copy_to(0, &mut header) < HEADER_BYTES {
            return None;
        }
        chain.readable.advance(HEADER_BYTES);
        let (from_guest, room) = (chain.readable.bytes(), chain.writable.bytes());
        let status = chain.writable.split_last_byte()?;
        let to_guest = room.saturating_sub(1);
        let request = request::parse(header, from_guest as u64, to_guest as u64, self.disk);
        let outcome = self.carry_out(request, chain).map_err(|error| match error {
            Failure::Refused(refusal) => refusal,
            Failure::Host(error, sector) => {
                queue.host_error(request.operation as u8, sector, &error);
                Refusal::Host
            }
        });
        status.set(outcome.map_or_else(Refusal::status, |_| blk::VIRTIO_BLK_S_OK as u8));
        Some(Done {
            operation: request.operation as u8,
            written: u32::try_from(room).unwrap_or(u32::MAX),
            payload: outcome.unwrap_or(0) as u64,
            failed: outcome.is_err(),
        })
    }

    /// Gives the payload's bytes.
    fn carry_out(&self, request: Request, chain: &mut Chain) -> Result<usize, Failure> {
        let offset = request.offset.map_err(Failure::Refused)?;
        let file = self.file.as_fd();
        let (from_guest, to_guest) = (chain.readable.bytes(), chain.writable.bytes());
        match request.operation {
            Operation::Read => {
                let done = chain.writable.fill_from(file, offset);
                done.map_err(|error| Failure::at(error, offset))?;
                Ok(to_guest)
            }
            Operation::Write => {
                let done = chain.readable.drain_to(file, offset);
                done.map_err(|error| Failure::at(error, offset))?;
                Ok(from_guest)
            }
            Operation::Flush => {
                self.file.sync_data()?;
                Ok(0)
            }
            Operation::Discard | Operation::WriteZeroes => {
                let (count, ranges) = erase::ranges(request.operation, &chain.readable, self.disk)?;
                let ranges = ranges.get(..count).unwrap_or_default();
                let bytes = erase::carry_out(&self.file, request.operation, ranges)?;
                Ok(usize::try_from(bytes).unwrap_or(usize::MAX))
            }
            Operation::GetId => {
                let serial = request::serial(&self.spec.id);
                Ok(chain.writable.copy_from(0, &serial))
            }
            Operation::Unsupported => Err(Failure::Refused(Refusal::Unsupported)),
        }
    }
}

enum Failure {
    Refused(Refusal),
    /// With the sector at which it did.
    Host(io::Error, Option<u64>),
}

impl Failure {
    fn at(error: io::Error, offset: u64) -> Failure {
        Failure::Host(error, offset.checked_div(SECTOR_BYTES))
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Host(error, None)
    }
}

impl VirtioDevice for BlockDevice {
    fn profile(&self) -> DeviceProfile {
        let mut features = TRANSPORT_FEATURES;
        features |= 1 << blk::VIRTIO_BLK_F_SEG_MAX | 1 << blk::VIRTIO_BLK_F_BLK_SIZE;
        features |= 1 << blk::VIRTIO_BLK_F_SIZE_MAX | 1 << blk::VIRTIO_BLK_F_TOPOLOGY;
        features |= u64::from(self.spec.queues > 1) << blk::VIRTIO_BLK_F_MQ;
        features |= u64::from(self.disk.discard) << blk::VIRTIO_BLK_F_DISCARD;
        features |= u64::from(!self.spec.read_only) << blk::VIRTIO_BLK_F_WRITE_ZEROES;
        features |= u64::from(self.spec.read_only) << blk::VIRTIO_BLK_F_RO;
        features |= u64::from(self.spec.flush) << blk::VIRTIO_BLK_F_FLUSH;
        DeviceProfile {
            device_type: VIRTIO_ID_BLOCK,
            name: self.name.clone(),
            features,
            queue_max_sizes: vec![QUEUE_SIZE; usize::from(self.spec.queues.clamp(1, MAX_QUEUES))],
            config: Arc::clone(&self.config),
            operations: request::OPERATIONS,
            drop_causes: &[],
        }
    }

    fn activate(&mut self, _features: u64, _queues: &mut [QueueRunner]) -> io::Result<()> {
        Ok(())
    }

    fn queue_ready(&mut self, index: usize, queues: &mut [QueueRunner]) {
        let Some(queue) = queues.get_mut(index) else {
            return;
        };
        while let Some(mut chain) = self.next(queue) {
            match self.serve(&mut chain, queue) {
                Some(done) => queue.complete(chain, done),
                None => queue.reject(chain),
            }
        }
    }

    fn backends(&self) -> Vec<(u32, RawFd)> {
        vec![(TIMER, self.timer.as_raw_fd())]
    }

    fn interest(&self, _token: u32) -> EventSet {
        match self.limiter.limits() {
            true => EventSet::IN,
            false => EventSet::empty(),
        }
    }

    fn backend_ready(&mut self, _token: u32, _events: EventSet, queues: &mut [QueueRunner]) {
        // Never read: it may have been set anew in this round, and a read would wait for it.
        if let Err(error) = self.timer.clear() {
            tracing::warn!(
                "drive {}: its timer cannot be cleared: {error}",
                self.spec.id
            );
        }
        for index in 0..queues.len() {
            self.queue_ready(index, queues);
        }
    }

    fn change(&mut self, change: DeviceChange, queues: &mut [QueueRunner]) -> Result<(), String> {
        let DeviceChange::Drive(DriveChange { path, limiter }) = change;
        if let Some(path) = path {
            self.swap(path).map_err(|error| error.to_string())?;
            if let Some(queue) = queues.first() {
                queue.config_changed();
            }
        }
        let now_ns = self.now_ns();
        self.limiter.change(limiter, now_ns);
        self.spec.limiter = self.limiter.spec();
        Ok(())
    }

    fn reset(&mut self) {}
}

/// `struct virtio_blk_config` (virtio 1.2, 5.2.4) as far as the features offered reach.
fn config(disk: &Disk, queues: u8) -> ConfigSpace {
    let config = ConfigSpace::new(&[0; 60]);
    config.write(0, &disk.sectors.to_le_bytes());
    let block = 1u16 << PHYSICAL_BLOCK_EXPONENT;
    config.write(24, &[PHYSICAL_BLOCK_EXPONENT]);
    config.write(26, &block.to_le_bytes());
    config.write(34, &u16::from(queues.clamp(1, MAX_QUEUES)).to_le_bytes());
    let ranges = request::MAX_RANGES as u32;
    let discard = u32::from(disk.discard);
    let zeroes = u32::from(!disk.read_only);
    for (offset, value) in [
        (8, SIZE_MAX),
        (12, SEG_MAX),
        (20, SECTOR_BYTES as u32),
        (36, discard.saturating_mul(request::MAX_DISCARD_SECTORS)),
        (40, discard.saturating_mul(ranges)),
        (44, discard.saturating_mul(u32::from(block))),
        (48, zeroes.saturating_mul(request::MAX_ZEROES_SECTORS)),
        (52, zeroes.saturating_mul(ranges)),
    ] {
        config.write(offset, &value.to_le_bytes());
    }
    // write_zeroes_may_unmap.
    config.write(56, &[u8::from(!disk.read_only)]);
    config
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
mod tests;

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
mod change_tests;
