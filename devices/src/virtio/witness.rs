//! Where a device's deeds meet the black box, so that neither the queue runner nor the devices
//! spend their lines on it.

use std::sync::Arc;

use observe::{Activity, Block, Clock, FlightEvent, Gauge, Ticks};

use super::counters::{DeviceBlock, Flight, ThreadBlock};
use super::link::{DeviceEvent, DeviceEventKind, DeviceLink, OnEvent};
use super::queue::QueueError;
use super::telling::Telling;

/// Host errors of one device are told at most once in this time; all are counted.
const TELL_EVERY_NS: u64 = 1_000_000_000;

/// What came of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// The kind: its place in [`super::DeviceProfile::operations`].
    pub operation: u8,
    /// Bytes that the device wrote to the guest's buffers, from their start.
    pub written: u32,
    /// Payload, for the operator's eyes.
    pub payload: u64,
    /// Whether the operation failed.
    pub failed: bool,
}

/// One device's pen. Used by its I/O thread alone.
pub(crate) struct Witness {
    pub device: Arc<Block<DeviceBlock>>,
    pub thread: Arc<Block<ThreadBlock>>,
    pub link: Arc<DeviceLink>,
    pub clock: Clock,
    /// The device's number in the heartbeat and in flight events.
    pub number: u16,
    pub operations: &'static [&'static str],
    pub events: Option<OnEvent>,
    pub told_at: Gauge,
}

impl Witness {
    fn flight(&self, kind: Flight, detail: u8, address: u64, value: u64, at: Ticks) {
        let device = u64::from(self.number) << 16;
        self.thread.flight.push(FlightEvent {
            at,
            what: kind as u64 | u64::from(detail) << 8 | device,
            address,
            value,
        });
    }

    /// The thread works for this device from now on.
    pub fn enter(&self) -> Ticks {
        let now = self.clock.ticks();
        let heartbeat = &self.thread.heartbeat;
        heartbeat.set(Activity::InDevice, 0, self.number, 0, now);
        now
    }

    /// Kicks were read.
    pub fn kicked(&self, queue: u16, kicks: u64, now: Ticks) {
        self.flight(Flight::Kick, 0, u64::from(queue), kicks, now);
    }

    /// A request was given back after `ns`.
    #[inline]
    pub fn done(&self, done: &Done, ns: u64, now: Ticks) {
        if let Some(row) = self.device.operations.get(usize::from(done.operation)) {
            row.count.inc();
            row.errors.add(u64::from(done.failed));
            row.bytes.add(done.payload);
            row.service_ns.add(ns);
        }
        if let Some(latency) = self.device.latency.get(usize::from(done.operation)) {
            latency.record(ns);
        }
        self.flight(Flight::Done, done.operation, done.payload, ns, now);
    }

    /// Work was lost.
    pub fn dropped(&self, cause: usize) {
        if let Some(row) = self.device.drops.get(cause) {
            row.inc();
        }
    }

    /// The host's kernel refused an operation.
    pub fn host_error(&self, operation: u8, sector: Option<u64>, errno: i32) {
        let now = self.clock.ticks();
        self.device.host_errors.inc();
        self.device.last_errno.set(u64::from(errno.unsigned_abs()));
        self.device.last_error_at.set(now);
        self.device.last_error_operation.set(u64::from(operation));
        self.device.last_error_sector.set(sector.unwrap_or(0));
        self.flight(
            Flight::HostError,
            operation,
            sector.unwrap_or(0),
            u64::from(errno.unsigned_abs()),
            now,
        );
        let told = self.told_at.value();
        if told != 0 && self.clock.ns_between(told, now) < TELL_EVERY_NS {
            return;
        }
        self.told_at.set(now);
        let operation = self.operations.get(usize::from(operation)).copied();
        let operation = operation.unwrap_or("operation");
        self.tell(DeviceEventKind::HostError {
            operation,
            sector,
            errno,
        });
    }

    /// The guest broke a ring, at `now`. A guest that does nothing else is told of now and then.
    pub fn broken(&self, queue: u16, error: &QueueError, telling: &Telling, now: Ticks) {
        self.flight(Flight::Broken, 0, u64::from(queue), error.number(), now);
        self.need_reset();
        let Some(untold) = telling.may(self.clock.ns_between(0, now)) else {
            return;
        };
        let mut reason = error.to_string();
        if untold > 0 {
            reason = format!("{reason} (it broke {untold} times before that were not told)");
        }
        self.tell(DeviceEventKind::QueueBroken { queue, reason });
    }

    /// The device can do no more until its driver resets it.
    pub fn ask_for_reset(&self, why: DeviceEventKind) {
        self.need_reset();
        self.tell(why);
    }

    fn need_reset(&self) {
        if self.link.ask_for_reset() {
            self.device.needs_reset.inc();
        }
    }

    /// A turn in the device's life.
    pub fn life(&self, kind: Flight, value: u64) {
        match kind {
            Flight::Activate => self.device.activations.inc(),
            Flight::Reset => self.device.resets.inc(),
            _ => {}
        }
        self.flight(kind, 0, 0, value, self.clock.ticks());
    }

    /// Tells the operator. Never waits: an operator who does not listen misses events, not counts.
    pub fn tell(&self, kind: DeviceEventKind) {
        let device = self.link.name.clone();
        if let Some(tell) = &self.events {
            tell(DeviceEvent { device, kind });
        }
    }
}
