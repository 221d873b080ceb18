//! The balloon (virtio 1.2, section 5.5): the guest gives memory back, and says how its own fares.
//!
//! Memory that the guest puts into the balloon, reports as free or names in a hinting run goes back
//! to the host at once; what it takes out comes again when it is touched. The guest's addresses are
//! judged in [`request`]. Statistics come in a buffer that the device keeps until it wants new ones.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

pub mod counters;
mod handle;
pub mod request;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use event_manager::EventSet;
use memory::{DiscardError, Discarder};
use observe::{Block, Clock};
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use vmm_sys_util::timerfd::TimerFd;

use self::counters::BalloonBlock;
use self::handle::Shared;
pub use self::handle::{
    BalloonHandle, BalloonOrder, BalloonRefusal, COMMAND_DONE, COMMAND_STOP, Hinting,
};
use self::request::{MAX_PFNS, MAX_STATISTICS_BYTES, PAGE_BYTES, Run, merged, pages, statistics};
use super::device::{DeviceProfile, TRANSPORT_FEATURES, VirtioDevice};
use super::queue::{Chain, QueueRunner};
use super::witness::Done;

const QUEUE_SIZE: u16 = 256;
const OPERATIONS: &[&str] = &["inflate", "deflate", "statistics", "hint", "report"];

/// `VIRTIO_BALLOON_F_STATS_VQ`.
pub const F_STATISTICS: u64 = 1 << 1;
/// `VIRTIO_BALLOON_F_DEFLATE_ON_OOM`.
pub const F_DEFLATE_ON_OOM: u64 = 1 << 2;
/// `VIRTIO_BALLOON_F_FREE_PAGE_HINT`.
pub const F_HINTING: u64 = 1 << 3;
/// `VIRTIO_BALLOON_F_REPORTING`.
pub const F_REPORTING: u64 = 1 << 5;

/// `struct virtio_balloon_config`: num_pages, actual, free_page_hint_cmd_id, poison_val.
const CONFIG_BYTES: usize = 16;
const TARGET_OFFSET: usize = 0;
const ACTUAL_OFFSET: usize = 4;
const COMMAND_OFFSET: usize = 8;

/// Tokens of the descriptors waited for.
const BELL: u32 = 0;
const TIMER: u32 = 1;

/// A balloon, as the machine's builder wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BalloonSpec {
    /// Its name.
    pub id: String,
    /// How large it is to be at first.
    pub pages: u32,
    /// Whether the guest may take memory out of it before it kills a process.
    pub deflate_on_oom: bool,
    /// How often the guest is asked for statistics; with 0 there are none.
    pub statistics_s: u16,
    /// Whether the guest can be asked to name its free memory.
    pub hinting: bool,
    /// Whether the guest reports free memory by itself.
    pub reporting: bool,
}

/// What a queue is for; by number, the operation that its requests are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Role {
    Inflate = 0,
    Deflate = 1,
    Statistics = 2,
    Hinting = 3,
    Reporting = 4,
}

/// The queues that there are with these features, in order: those of features that are missing
/// take no number.
fn roles(features: u64) -> Vec<Role> {
    let optional = [
        (F_STATISTICS, Role::Statistics),
        (F_HINTING, Role::Hinting),
        (F_REPORTING, Role::Reporting),
    ];
    let optional = optional
        .iter()
        .filter(|(feature, _)| features & feature != 0)
        .map(|(_, role)| *role);
    [Role::Inflate, Role::Deflate]
        .into_iter()
        .chain(optional)
        .collect()
}

/// See the module.
pub struct BalloonDevice {
    spec: BalloonSpec,
    shared: Arc<Shared>,
    memory: Discarder,
    ranges: Vec<(u64, u64)>,
    timer: TimerFd,
    /// What the timer is set to.
    interval_s: u16,
    roles: Vec<Role>,
    /// The buffer of the last statistics.
    held: Option<Chain>,
    /// The run that the guest names memory for.
    run: Option<u32>,
    list: Vec<u8>,
    clock: Clock,
}

impl BalloonDevice {
    /// A balloon that gives memory back through `memory` and writes to `block`.
    ///
    /// # Errors
    /// The host gives no eventfd or timer.
    pub fn new(
        spec: BalloonSpec,
        memory: Discarder,
        block: Block<BalloonBlock>,
    ) -> io::Result<(Self, BalloonHandle)> {
        let shared = Arc::new(Shared::new(block)?);
        shared.resize(spec.pages);
        shared.poll(spec.statistics_s);
        // The driver reads all of it when it comes.
        shared.changed.store(false, Ordering::Release);
        let handle = BalloonHandle {
            shared: Arc::clone(&shared),
            has_hinting: spec.hinting,
            memory_mib: memory_mib(&memory),
        };
        let device = BalloonDevice {
            spec,
            shared,
            ranges: memory.ranges(),
            memory,
            timer: TimerFd::new().map_err(io::Error::from)?,
            interval_s: 0,
            roles: Vec::new(),
            held: None,
            run: None,
            list: vec![0; MAX_PFNS.saturating_mul(4)],
            clock: Clock::process(),
        };
        Ok((device, handle))
    }

    fn features(&self) -> u64 {
        let offered = [
            (self.spec.statistics_s > 0, F_STATISTICS),
            (self.spec.deflate_on_oom, F_DEFLATE_ON_OOM),
            (self.spec.hinting, F_HINTING),
            (self.spec.reporting, F_REPORTING),
        ];
        let offered = offered.iter().filter(|(wanted, _)| *wanted);
        offered.fold(TRANSPORT_FEATURES, |all, (_, feature)| all | feature)
    }

    /// Requests of page numbers.
    fn listed(&mut self, role: Role, queue: &mut QueueRunner) {
        while let Some(chain) = queue.request() {
            let bytes = chain.readable.copy_to(0, &mut self.list);
            let list = self.list.get(..bytes).unwrap_or_default();
            let judged = pages(list, &self.ranges);
            let block = &self.shared.block;
            let beyond = chain.readable.bytes().saturating_sub(bytes) / 4;
            block.refused_outside.add(judged.outside);
            block.refused_repeated.add(judged.repeated);
            block.refused_excess.add(beyond as u64);
            let payload = judged.accepted.saturating_mul(PAGE_BYTES);
            let whole = if role == Role::Inflate {
                block.inflated.add(payload);
                self.give_back(role, &judged.runs, queue)
            } else {
                block.deflated.add(payload);
                true
            };
            let failed = !whole || judged.outside > 0 || beyond > 0;
            queue.complete(chain, done(role, payload, failed));
        }
        self.note_size();
    }

    /// Buffers that are free memory themselves.
    fn named(&mut self, role: Role, queue: &mut QueueRunner) {
        while let Some(chain) = queue.request() {
            let mut payload = 0;
            let mut whole = true;
            if role == Role::Hinting && chain.readable.bytes() > 0 {
                self.hinting_command(&chain);
            }
            let wanted = role == Role::Reporting || self.run.is_some_and(|run| self.is_asked(run));
            if wanted && chain.writable.bytes() > 0 {
                let ranges = chain.writable.guest_ranges();
                let runs = ranges.map(|(start, bytes)| Run { start, bytes });
                let runs = merged(runs.collect());
                payload = sum(&runs);
                match role {
                    Role::Reporting => self.shared.block.reported.add(payload),
                    _ => self.shared.block.hinted.add(payload),
                }
                whole = self.give_back(role, &runs, queue);
            }
            queue.complete(chain, done(role, payload, !whole));
        }
    }

    fn is_asked(&self, run: u32) -> bool {
        run != COMMAND_STOP && run != COMMAND_DONE && self.shared.number(COMMAND_OFFSET) == run
    }

    /// The driver begins a run, or ends it.
    fn hinting_command(&mut self, chain: &Chain) {
        let mut bytes = [0; 4];
        if chain.readable.copy_to(0, &mut bytes) < bytes.len() {
            return;
        }
        let command = u32::from_le_bytes(bytes);
        let ended = self.run.filter(|_| command == COMMAND_STOP);
        self.run = (command != COMMAND_STOP).then_some(command);
        let block = &self.shared.block;
        block
            .guest_command
            .set(u64::from(command).saturating_add(1));
        if let Some(run) = ended {
            block.hinting_runs.inc();
            if self.is_asked(run) && self.shared.acknowledge.load(Ordering::Acquire) {
                self.shared.command(COMMAND_DONE);
            }
        }
    }

    /// Takes the buffer with the guest's statistics and keeps it.
    fn statistics(&mut self, queue: &mut QueueRunner) {
        // The driver has one buffer. Each more than that ends the one before, and counts as a turn.
        // Asked until there is none: only then the driver kicks again.
        while let Some(chain) = queue.take() {
            let list = self
                .list
                .get_mut(..MAX_STATISTICS_BYTES)
                .unwrap_or_default();
            let bytes = chain.readable.copy_to(0, list);
            let read = statistics(list.get(..bytes).unwrap_or_default());
            self.shared.block.take(&read, self.clock.ticks());
            if let Some(before) = self.held.replace(chain) {
                queue.complete(before, done(Role::Statistics, bytes as u64, false));
            }
        }
    }

    /// Gives the buffer back: the driver then sends new statistics.
    fn ask_for_statistics(&mut self, queues: &mut [QueueRunner]) {
        let place = self.roles.iter().position(|role| *role == Role::Statistics);
        let queue = place.and_then(|place| queues.get_mut(place));
        if let Some((queue, chain)) = queue.zip(self.held.take()) {
            let bytes = chain.readable.bytes() as u64;
            queue.complete(chain, done(Role::Statistics, bytes, false));
        }
    }

    /// Gives memory back to the host; false when the host refused some of it.
    fn give_back(&self, role: Role, runs: &[Run], queue: &QueueRunner) -> bool {
        let mut whole = true;
        for run in runs {
            let given = match self.memory.discard(run.start, run.bytes) {
                Ok(given) => given,
                Err(error) => {
                    whole = false;
                    if let DiscardError::Host(error) = &error {
                        queue.host_error(role as u8, None, error);
                    }
                    0
                }
            };
            let block = &self.shared.block;
            block.discarded.add(given);
            block.kept.add(run.bytes.saturating_sub(given));
        }
        whole
    }

    /// The driver writes its size into the configuration space, which nothing else tells of.
    fn note_size(&self) {
        let pages = u64::from(self.shared.number(ACTUAL_OFFSET));
        let bytes = pages.saturating_mul(PAGE_BYTES);
        self.shared.block.resized(bytes, self.clock.ticks());
    }

    fn set_timer(&mut self) -> io::Result<()> {
        let wanted = match self.roles.contains(&Role::Statistics) {
            true => self.shared.interval_s.load(Ordering::Acquire),
            false => 0,
        };
        if wanted != self.interval_s {
            let every = Duration::from_secs(u64::from(wanted));
            match wanted {
                0 => self.timer.clear()?,
                _ => self.timer.reset(every, Some(every))?,
            }
            self.interval_s = wanted;
        }
        Ok(())
    }

    fn obey(&mut self, queues: &mut [QueueRunner]) {
        // Only the ringing matters.
        let _ = self.shared.bell.read();
        self.note_size();
        let Some(queue) = queues.first() else {
            return;
        };
        if self.shared.changed.swap(false, Ordering::AcqRel) {
            queue.config_changed();
        }
        if let Err(error) = self.set_timer() {
            queue.host_error(Role::Statistics as u8, None, &error);
        }
    }
}

fn memory_mib(memory: &Discarder) -> u32 {
    let ranges = memory.ranges();
    let bytes = ranges.iter().map(|(_, bytes)| *bytes);
    let bytes = bytes.fold(0, u64::saturating_add);
    u32::try_from(bytes >> 20).unwrap_or(u32::MAX)
}

fn sum(runs: &[Run]) -> u64 {
    let bytes = runs.iter().map(|run| run.bytes);
    bytes.fold(0, u64::saturating_add)
}

fn done(role: Role, payload: u64, failed: bool) -> Done {
    Done {
        operation: role as u8,
        written: 0,
        payload,
        failed,
    }
}

impl VirtioDevice for BalloonDevice {
    fn profile(&self) -> DeviceProfile {
        let features = self.features();
        DeviceProfile {
            device_type: VIRTIO_ID_BALLOON,
            name: self.spec.id.clone(),
            features,
            queue_max_sizes: vec![QUEUE_SIZE; roles(features).len()],
            config: Arc::clone(&self.shared.config),
            operations: OPERATIONS,
            drop_causes: &[],
            queue_names: Vec::new(),
        }
    }

    fn activate(&mut self, features: u64, _queues: &mut [QueueRunner]) -> io::Result<()> {
        self.roles = roles(features);
        self.shared.block.features.set(features);
        self.note_size();
        self.set_timer()
    }

    fn backends(&self) -> Vec<(u32, RawFd)> {
        vec![
            (BELL, self.shared.bell.as_raw_fd()),
            (TIMER, self.timer.as_raw_fd()),
        ]
    }

    fn interest(&self, token: u32) -> EventSet {
        match token == BELL || self.interval_s > 0 {
            true => EventSet::IN,
            false => EventSet::empty(),
        }
    }

    fn queue_ready(&mut self, index: usize, queues: &mut [QueueRunner]) {
        let role = self.roles.get(index).copied();
        let Some((role, queue)) = role.zip(queues.get_mut(index)) else {
            return;
        };
        match role {
            Role::Inflate | Role::Deflate => self.listed(role, queue),
            Role::Statistics => self.statistics(queue),
            Role::Hinting | Role::Reporting => self.named(role, queue),
        }
    }

    fn backend_ready(&mut self, token: u32, _events: EventSet, queues: &mut [QueueRunner]) {
        if token == BELL {
            return self.obey(queues);
        }
        // It is readable: the wait is over at once.
        let _ = self.timer.wait();
        self.ask_for_statistics(queues);
    }

    fn pause(&mut self, queues: &mut [QueueRunner]) {
        let place = self.roles.iter().position(|role| *role == Role::Statistics);
        if let Some(queue) = place.and_then(|place| queues.get_mut(place)) {
            queue.give_back(self.held.take().into_iter());
        }
    }

    fn reset(&mut self) {
        (self.held, self.run) = (None, None);
        self.roles.clear();
        // A timer that stays costs a wake-up.
        let _ = self.set_timer();
        self.shared.config.write(ACTUAL_OFFSET, &[0; 4]);
        self.shared.block.forget(self.clock.ticks());
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
