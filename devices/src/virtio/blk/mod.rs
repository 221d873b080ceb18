//! The block device (virtio 1.2, section 5.2): a regular file or block device of the host.
//!
//! Data go straight between the guest's buffers and the file, by one of two engines: one request
//! after another on the I/O thread, or many at a time by io_uring ([`IoEngine`]).

#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

mod config;
mod engine;
mod erase;
mod image;
pub mod request;
mod work;

use std::fs::File;
use std::io;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use event_manager::EventSet;
use virtio_bindings::virtio_blk as blk;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use self::config::config;
use self::engine::Async;
pub use self::engine::{IoEngine, try_async};
pub use self::image::BlockError;
use self::image::open;
use self::request::{Disk, HEADER_BYTES};
use self::work::{Begun, Drive};
use super::device::{ConfigSpace, DeviceChange, DeviceProfile, TRANSPORT_FEATURES, VirtioDevice};
use super::limiter::{LimiterSpec, Throttle};
use super::queue::{Chain, QueueRunner};
use super::uring::Uring;

const QUEUE_SIZE: u16 = 256;

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
    /// How requests are carried out.
    pub engine: IoEngine,
}

impl BlockSpec {
    fn queue_count(&self) -> usize {
        usize::from(self.queues.clamp(1, MAX_QUEUES))
    }
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
/// The token of the background.
const BACKGROUND: u32 = 1;

/// How long a reset, the machine's end and a change of the image wait for requests in the background.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long the first two wait for those that were cancelled then.
const CANCEL_PATIENCE: Duration = Duration::from_secs(1);

/// A disk of the guest.
pub struct BlockDevice {
    spec: BlockSpec,
    /// In the machine; the id, unless something else there has that name.
    name: String,
    file: Arc<File>,
    disk: Disk,
    /// With [`IoEngine::Async`], where the host can.
    background: Option<Async>,
    /// Why it cannot, for the owner.
    fall_back: Option<String>,
    config: Arc<ConfigSpace>,
    throttle: Throttle,
}

impl BlockDevice {
    /// Opens the drive's file and locks it: only readers share a file. Its size is taken now; a rest of less than a sector is left out.
    ///
    /// # Errors
    /// [`BlockError`]: what is wrong with the path, and what to do.
    pub fn open(spec: BlockSpec) -> Result<Self, BlockError> {
        let (file, bytes) = open(&spec)?;
        let sectors = image::sectors(&spec, bytes)?;
        let throttle = Throttle::new(spec.limiter).map_err(|source| BlockError::Timer {
            id: spec.id.clone(),
            source,
        })?;
        let disk = Disk {
            sectors,
            read_only: spec.read_only,
            flush: spec.flush,
            discard: !spec.read_only && erase::can_discard(&file, bytes),
        };
        let (background, fall_back) = engine::chosen(spec.engine, spec.queue_count(), Uring::new);
        Ok(BlockDevice {
            name: spec.id.clone(),
            config: Arc::new(config(&disk, spec.queue_count())),
            throttle,
            spec,
            file: Arc::new(file),
            disk,
            background,
            fall_back,
        })
    }

    /// Has the machine call the drive `name`, which is its id otherwise. The guest sees the id.
    #[must_use]
    pub fn named(mut self, name: String) -> Self {
        self.name = name;
        self
    }

    /// Takes the next request, unless it has to wait by the limit.
    fn next(&mut self, queue: &mut QueueRunner) -> Option<Chain> {
        queue.request_if(|chain| {
            let all = chain
                .readable
                .bytes()
                .saturating_add(chain.writable.bytes());
            // Without the header and the status.
            let payload = all.saturating_sub(HEADER_BYTES).saturating_sub(1);
            self.throttle.take(payload as u64)
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
            self.file = Arc::new(file);
        }
        (self.spec, self.disk.sectors) = (spec, sectors);
        self.config.write(0, &sectors.to_le_bytes());
        Ok(())
    }

    /// Waits for what is in the background, not longer than [`PATIENCE`].
    fn drain(&mut self, queues: &mut [QueueRunner]) -> bool {
        let background = self.background.as_mut();
        background.is_none_or(|background| background.drain(PATIENCE, queues))
    }

    /// Whether a request can begin. If not, the queue is held until one can.
    fn has_room(&mut self, index: usize, queues: &mut [QueueRunner]) -> bool {
        let background = self.background.as_mut();
        let has_room = background.is_none_or(|background| background.has_room(index));
        if let Some(queue) = queues.get_mut(index).filter(|_| !has_room) {
            queue.hold();
        }
        has_room
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
            queue_max_sizes: vec![QUEUE_SIZE; self.spec.queue_count()],
            config: Arc::clone(&self.config),
            operations: request::OPERATIONS,
            drop_causes: &[],
            queue_names: Vec::new(),
        }
    }

    fn activate(&mut self, _features: u64, _queues: &mut [QueueRunner]) -> io::Result<()> {
        Ok(())
    }

    fn attached(&mut self, queues: &mut [QueueRunner]) {
        let engine = match self.background {
            Some(_) => IoEngine::Async,
            None => IoEngine::Sync,
        };
        if let Some(queue) = queues.first() {
            queue.io_engine(engine, self.fall_back.take());
        }
    }

    fn queue_ready(&mut self, index: usize, queues: &mut [QueueRunner]) {
        while self.has_room(index, queues)
            && let Some(queue) = queues.get_mut(index)
            && let Some(chain) = self.next(queue)
        {
            let drive = Drive {
                id: &self.spec.id,
                file: &self.file,
                disk: self.disk,
            };
            match work::begin(index, chain, &drive) {
                Begun::Answered(chain, done) => queue.complete(chain, done),
                Begun::Broken(chain) => queue.reject(chain),
                Begun::Task(task) => match &mut self.background {
                    Some(background) => background.begin(task, queues),
                    None => {
                        let (chain, done) = task.carry_out(queue);
                        queue.complete(chain, done);
                    }
                },
            }
        }
    }

    fn backends(&self) -> Vec<(u32, RawFd)> {
        let background = self.background.as_ref().map(Async::descriptor);
        let background = background.map(|descriptor| (BACKGROUND, descriptor));
        let timer = (TIMER, self.throttle.fd());
        std::iter::once(timer).chain(background).collect()
    }

    fn interest(&self, token: u32) -> EventSet {
        match token {
            BACKGROUND => EventSet::IN,
            _ => self.throttle.interest(),
        }
    }

    fn backend_ready(&mut self, token: u32, _events: EventSet, queues: &mut [QueueRunner]) {
        if token == BACKGROUND {
            // What has ended is given back at the turn's end.
            if let Some(background) = &mut self.background {
                background.ring().acknowledge();
                background.turn(queues);
            }
            return;
        }
        self.throttle.ended();
        for index in 0..queues.len() {
            self.queue_ready(index, queues);
        }
    }

    fn wants_turn(&mut self, index: usize) -> bool {
        let background = self.background.as_mut();
        background.is_some_and(|background| background.goes_on(index))
    }

    fn turn_ends(&mut self, queues: &mut [QueueRunner]) {
        if let Some(background) = &mut self.background {
            background.turn(queues);
        }
    }

    fn unfinished(&self) -> Option<u32> {
        let background = self.background.as_ref()?;
        (background.in_flight() > 0).then_some(BACKGROUND)
    }

    fn finish(&mut self, queues: &mut [QueueRunner]) {
        if self.drain(queues) {
            return;
        }
        if let Some(background) = &mut self.background {
            let (id, count) = (&self.spec.id, background.in_flight());
            let seconds = PATIENCE.as_secs();
            tracing::warn!(
                "drive {id}: {count} requests took longer than {seconds} s at a reset or the machine's end, and are cancelled: look at the host's disk"
            );
            background.cancel();
            background.drain(CANCEL_PATIENCE, queues);
        }
    }

    fn change(&mut self, change: DeviceChange, queues: &mut [QueueRunner]) -> Result<(), String> {
        let DeviceChange::Drive(DriveChange { path, limiter }) = change else {
            return Err("what is changed is not of a drive".to_owned());
        };
        if let Some(path) = path {
            if !self.drain(queues) {
                return Err(format!(
                    "drive {}: requests of the guest are under way for more than {} s, so the image stays: look at the host's disk, and try again",
                    self.spec.id,
                    PATIENCE.as_secs()
                ));
            }
            self.swap(path).map_err(|error| error.to_string())?;
            if let Some(queue) = queues.first() {
                queue.config_changed();
            }
        }
        self.throttle.change(limiter);
        Ok(())
    }

    fn reset(&mut self) {
        if let Some(background) = &mut self.background {
            background.discard();
        }
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

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
mod change_tests;

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
mod engine_tests;
