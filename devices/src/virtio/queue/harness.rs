//! A queue without its I/O thread, for tests and fuzz targets: whoever holds it takes the turns
//! itself.

use std::io;
use std::sync::Arc;

use memory::GuestRam;
use observe::{BlackBox, BlackBoxError, Block, Clock, Gauge, Meta, Ticks};

use super::{QueueError, QueueLayout, QueueRunner};
use crate::virtio::counters::{DeviceCounters, QueueBlock};
use crate::virtio::device::{ConfigSpace, DeviceProfile};
use crate::virtio::link::DeviceLink;
use crate::virtio::witness::Witness;

/// Why there is no queue to be had.
#[derive(Debug, thiserror::Error)]
pub enum HarnessError {
    /// No black box.
    #[error(transparent)]
    BlackBox(#[from] BlackBoxError),
    /// No eventfd.
    #[error(transparent)]
    Event(#[from] io::Error),
}

/// One queue and all that it counts in.
pub struct LoneQueue {
    /// What a device sees.
    pub runner: QueueRunner,
    /// What is counted.
    pub seen: Arc<Block<QueueBlock>>,
    clock: Clock,
    _black_box: BlackBox,
}

impl LoneQueue {
    /// A queue of at most `max_size` descriptors that no driver has set up.
    ///
    /// # Errors
    /// [`HarnessError`]: the host gives no memory or descriptors.
    pub fn new(ram: Arc<GuestRam>, max_size: u16) -> Result<Self, HarnessError> {
        let profile = DeviceProfile {
            device_type: 0,
            name: "fuzz".to_owned(),
            features: 0,
            queue_max_sizes: vec![max_size],
            config: Arc::new(ConfigSpace::new(&[])),
            operations: &["one"],
            drop_causes: &[],
            queue_names: Vec::new(),
        };
        let meta = Meta {
            vm_id: "fuzz".to_owned(),
            version: "0".to_owned(),
        };
        let mut black_box = BlackBox::anonymous(1 << 20, &meta)?;
        let counters = DeviceCounters::place(&mut black_box, &profile)?;
        let seen: Arc<Block<QueueBlock>> = Arc::new(black_box.section("queue/fuzz/lone", &[])?);
        let clock = Clock::process();
        let link = DeviceLink::new(profile.name, profile.config)?;
        let witness = Witness {
            device: counters.device,
            thread: Arc::new(black_box.section("thread/fuzz", &[])?),
            link: Arc::new(link),
            clock,
            number: 1,
            operations: profile.operations,
            events: None,
            told_at: Gauge::default(),
        };
        Ok(LoneQueue {
            runner: QueueRunner::new(0, max_size, ram, Arc::clone(&seen), Arc::new(witness)),
            seen,
            clock,
            _black_box: black_box,
        })
    }

    /// The driver sets the queue up.
    ///
    /// # Errors
    /// A layout that cannot be.
    pub fn activate(&mut self, layout: &QueueLayout, features: u64) -> Result<(), QueueError> {
        self.runner.activate(layout, features)
    }

    /// The driver resets the device.
    pub fn deactivate(&mut self) {
        self.runner.deactivate();
    }

    /// A turn begins.
    pub fn begin_turn(&mut self) {
        self.runner.begin_turn(self.clock.ticks());
    }

    /// The turn ends; true when the queue wants another.
    pub fn end_turn(&mut self) -> bool {
        self.runner.end_turn()
    }

    /// The driver kicked, and the thread notices now.
    pub fn kicked(&mut self, kicks: u64) {
        self.kicked_at(kicks, self.runner.now);
    }

    /// The driver kicked, and the thread noticed at `noticed`.
    pub fn kicked_at(&mut self, kicks: u64, noticed: Ticks) {
        self.runner.kicked(kicks, noticed);
    }

    /// The thread looks at a queue that may be idle; true when a kick never came.
    pub fn look_around(&mut self) -> bool {
        self.runner.look_around(self.clock.ticks())
    }

    /// The device goes on after a pause.
    pub fn resumed(&mut self) {
        self.runner.resumed();
    }

    /// Requests that the device works on.
    pub fn in_flight(&self) -> u16 {
        self.runner.in_flight.count()
    }
}
