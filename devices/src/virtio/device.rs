//! What a virtio device is to the code around it.

use std::io;
use std::ops::Range;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use event_manager::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::link::signal;
use super::queue::QueueRunner;

/// `VIRTIO_F_VERSION_1`: every device here offers it, every driver must take it.
pub const F_VERSION_1: u64 = 1 << virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
/// `VIRTIO_F_INDIRECT_DESC`.
pub const F_INDIRECT_DESC: u64 = 1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
/// `VIRTIO_F_EVENT_IDX`.
pub const F_EVENT_IDX: u64 = 1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
/// What the transport and the queue runner give to every device.
pub const TRANSPORT_FEATURES: u64 = F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX;

/// What stays the same in a device's life.
#[derive(Clone, Debug)]
pub struct DeviceProfile {
    /// The virtio device type (virtio 1.2, section 5).
    pub device_type: u32,
    /// The device's name, unique in the machine: in messages, sections and thread names.
    pub name: String,
    /// The features offered.
    pub features: u64,
    /// The largest size of each queue, powers of two.
    pub queue_max_sizes: Vec<u16>,
    /// The configuration space.
    pub config: Arc<ConfigSpace>,
    /// Names of the kinds of operation, at most [`super::counters::MAX_OPERATIONS`].
    pub operations: &'static [&'static str],
    /// Names of the causes of drops, at most [`super::counters::MAX_DROP_CAUSES`].
    pub drop_causes: &'static [&'static str],
    /// What each queue is called by people, where its number says little; empty where there are no
    /// names.
    pub queue_names: Vec<String>,
}

/// What can be changed of a device while its driver has it.
#[derive(Clone, Debug)]
pub enum DeviceChange {
    /// Of a drive.
    Drive(super::blk::DriveChange),
    /// Of a network interface.
    Network(super::net::NetChange),
}

/// A device behind a transport. It lives on its I/O thread from [`super::IoThread::attach`] on,
/// and all methods but `profile` are called there.
///
/// A device parses, submits and completes. It counts nothing: what it takes from and gives to a
/// [`QueueRunner`] is counted there, by the operation that it names.
pub trait VirtioDevice: Send {
    /// Asked once, before the device is attached.
    fn profile(&self) -> DeviceProfile;

    /// The device has come to its I/O thread; nothing else is called before.
    fn attached(&mut self, queues: &mut [QueueRunner]) {
        let _ = queues;
    }

    /// The driver set DRIVER_OK, having accepted `features`. The queues are set up; those that
    /// the driver left out give nothing.
    ///
    /// # Errors
    /// What the host refused; the driver then sees DEVICE_NEEDS_RESET.
    fn activate(&mut self, features: u64, queues: &mut [QueueRunner]) -> io::Result<()>;

    /// The host descriptors that the device waits for, each with a token below 4096. They stay
    /// open as long as the device lives.
    fn backends(&self) -> Vec<(u32, RawFd)> {
        Vec::new()
    }

    /// What the device waits for on the descriptor with `token`; nothing, if empty. Asked after
    /// each call of another method.
    fn interest(&self, token: u32) -> EventSet {
        let _ = token;
        EventSet::empty()
    }

    /// The guest kicked queue `index`, or the queue has more to do than fitted into one turn.
    fn queue_ready(&mut self, index: usize, queues: &mut [QueueRunner]);

    /// A host descriptor is ready.
    fn backend_ready(&mut self, token: u32, events: EventSet, queues: &mut [QueueRunner]) {
        let _ = (token, events, queues);
    }

    /// Whether queue `index` is to have a turn now that the device itself makes room for; told once.
    /// Asked when descriptors have been served.
    fn wants_turn(&mut self, index: usize) -> bool {
        let _ = index;
        false
    }

    /// The turn is over, but for the interrupts: what was gathered in it goes to the host at once.
    fn turn_ends(&mut self, queues: &mut [QueueRunner]) {
        let _ = queues;
    }

    /// While the host works on something that the device has begun: the token of the descriptor that
    /// tells of its end. Until there is nothing, a pause or a reset is not confirmed, and
    /// [`VirtioDevice::backend_ready`] is called for that descriptor in a pause and after a reset, too.
    fn unfinished(&self) -> Option<u32> {
        None
    }

    /// Waits until all that is begun has been given back, for some seconds at most; what takes longer
    /// is cancelled. Comes before a reset and before the thread's end.
    fn finish(&mut self, queues: &mut [QueueRunner]) {
        let _ = queues;
    }

    /// The operator changes the device; all queues are served afterwards.
    ///
    /// # Errors
    /// What is wrong, and what to do; the device is as it was.
    fn change(&mut self, change: DeviceChange, queues: &mut [QueueRunner]) -> Result<(), String> {
        let _ = (change, queues);
        Err("nothing of this device can be changed".to_owned())
    }

    /// Work stops until all queues are ready again: gives back to the rings what is not begun. What is
    /// begun goes on, see [`VirtioDevice::unfinished`].
    fn pause(&mut self, queues: &mut [QueueRunner]) {
        let _ = queues;
    }

    /// The driver reset the device: forgets everything since `activate`. What is unfinished is given back
    /// to no queue: the queues go when that is over.
    fn reset(&mut self);
}

/// A device's configuration space: read by vCPU threads without a lock, written by whoever changes
/// the device. A driver that sees the same generation before and after reading has read whole
/// fields (virtio 1.2, 2.5.1), so the generation moves before and after a change.
#[derive(Debug)]
pub struct ConfigSpace {
    bytes: Box<[AtomicU8]>,
    generation: AtomicU32,
    /// What the driver may write, and who hears of it.
    writable: Option<(Range<usize>, Arc<EventFd>)>,
}

impl ConfigSpace {
    /// A space of these bytes.
    pub fn new(bytes: &[u8]) -> Self {
        ConfigSpace {
            bytes: bytes.iter().map(|byte| AtomicU8::new(*byte)).collect(),
            generation: AtomicU32::new(0),
            writable: None,
        }
    }

    /// Lets the driver write `range`; each write signals `told`. The host writes other bytes only.
    #[must_use]
    pub fn writable(mut self, range: Range<usize>, told: Arc<EventFd>) -> Self {
        self.writable = Some((range, told));
        self
    }

    /// The driver writes, on a vCPU thread. False when it may not, and nothing has changed then.
    pub fn driver_write(&self, offset: u64, data: &[u8]) -> bool {
        let place = usize::try_from(offset).ok();
        let range = place.and_then(|first| Some(first..first.checked_add(data.len())?));
        let Some((range, (allowed, told))) = range.zip(self.writable.as_ref()) else {
            return false;
        };
        if range.start < allowed.start || range.end > allowed.end {
            return false;
        }
        for (to, from) in self.bytes.iter().skip(range.start).zip(data) {
            to.store(*from, Ordering::Release);
        }
        signal(told);
        true
    }

    /// Reads at `offset`; bytes past the end are zero.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        for (place, to) in data.iter_mut().enumerate() {
            let at = offset.checked_add(place).and_then(|at| self.bytes.get(at));
            *to = at.map_or(0, |byte| byte.load(Ordering::Acquire));
        }
    }

    /// Replaces bytes at `offset`; what lies past the end is passed over. One thread at a time.
    pub fn write(&self, offset: usize, data: &[u8]) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        for (to, from) in self.bytes.iter().skip(offset).zip(data) {
            to.store(*from, Ordering::Release);
        }
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    /// The ConfigGeneration register.
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_past_the_end_reads_zero() {
        let config = ConfigSpace::new(&[1, 2, 3]);
        let mut data = [0xFF; 4];
        config.read(1, &mut data);
        assert_eq!(data, [2, 3, 0, 0]);
        config.read(u64::MAX, &mut data);
        assert_eq!(data, [0; 4]);
    }

    #[test]
    fn a_driver_writes_what_it_may_and_somebody_hears_of_it() {
        let told = Arc::new(super::super::link::event().unwrap());
        let config = ConfigSpace::new(&[0; 12]).writable(4..8, Arc::clone(&told));
        assert!(!ConfigSpace::new(&[0; 12]).driver_write(4, &[1]));
        let refused = [(0, 4), (3, 2), (6, 4), (8, 1), (u64::MAX, 1)];
        for (offset, bytes) in refused {
            assert!(!config.driver_write(offset, &vec![1; bytes]), "{offset}");
        }
        assert!(told.read().is_err());
        assert!(config.driver_write(5, &[7, 8]));
        assert_eq!(told.read().unwrap(), 1);
        let mut data = [0; 12];
        config.read(0, &mut data);
        assert_eq!(data, [0, 0, 0, 0, 0, 7, 8, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_change_moves_the_generation_and_stays_inside() {
        let config = ConfigSpace::new(&[0; 4]);
        let before = config.generation();
        config.write(2, &[7, 8, 9]);
        let mut data = [0; 4];
        config.read(0, &mut data);
        assert_eq!(data, [0, 0, 7, 8]);
        assert_ne!(config.generation(), before);
    }
}
