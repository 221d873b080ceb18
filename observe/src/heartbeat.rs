//! What a thread does now, and since when: readable while the thread is stuck.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::cell::Gauge;
use crate::clock::Ticks;

/// What a thread does. Its number is the low byte of the heartbeat's state word and part of the
/// black box format: add at the end, never renumber.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    any(test, feature = "recording"),
    derive(serde::Serialize, serde::Deserialize)
)]
#[repr(u8)]
pub enum Activity {
    /// The thread has not started.
    NotStarted = 0,
    /// A vCPU is in KVM_RUN.
    InGuest = 1,
    /// A vCPU handles a user exit: `reason`, `device` and the address say which.
    InHandler = 2,
    /// An I/O thread works for `device`.
    InDevice = 3,
    /// Waiting for work.
    Idle = 4,
    /// A vCPU is paused by command.
    Paused = 5,
    /// Blocked in an operation of the VMM (`reason` is the operation's number).
    Blocked = 6,
    /// The thread has ended.
    Ended = 7,
}

impl Activity {
    /// All activities, by number.
    pub const ALL: [(Activity, &'static str); 8] = [
        (Activity::NotStarted, "not started"),
        (Activity::InGuest, "in guest"),
        (Activity::InHandler, "in handler"),
        (Activity::InDevice, "in device"),
        (Activity::Idle, "idle"),
        (Activity::Paused, "paused"),
        (Activity::Blocked, "blocked"),
        (Activity::Ended, "ended"),
    ];
}

/// The heartbeat of one thread, written by it alone.
///
/// Four words. The state word is `activity | reason << 8 | device << 16 | tag << 32`; `address` is
/// the port or guest physical address that a handler serves; `since` is in ticks of the writer's
/// [`crate::Clock`]; `tid` is the kernel's thread id. `tag` is the low half of `since`, which is
/// stored first, then `address`, then the state: a reader whose tag does not match looks between
/// two stores.
#[derive(Default, Debug)]
#[repr(C)]
pub struct Heartbeat {
    state: AtomicU64,
    address: AtomicU64,
    since: Gauge,
    tid: Gauge,
}

impl Heartbeat {
    /// Says what the thread does from `now` on.
    #[inline]
    pub fn set(&self, activity: Activity, reason: u8, device: u16, address: u64, now: Ticks) {
        let what = activity as u64 | u64::from(reason) << 8 | u64::from(device) << 16;
        // Release is a plain `mov` on x86-64; it keeps the compiler from changing the order.
        self.since.set(now);
        self.address.store(address, Ordering::Release);
        self.state.store(what | now << 32, Ordering::Release);
    }

    /// The short form for activities without an address.
    #[inline]
    pub fn enter(&self, activity: Activity, now: Ticks) {
        self.set(activity, 0, 0, 0, now);
    }

    /// Names the kernel's thread id: the calling thread's.
    #[allow(unsafe_code)]
    pub fn claim(&self) {
        // SAFETY: gettid has no arguments and cannot fail.
        self.tid.set(unsafe { libc::gettid() } as u64);
    }

    /// The state word without its tag: `activity | reason << 8 | device << 16`.
    pub fn state(&self) -> u64 {
        self.state.load(Ordering::Acquire) & 0xffff_ffff
    }

    /// When the state was entered.
    pub fn since(&self) -> Ticks {
        self.since.value()
    }

    /// The address that is served.
    pub fn address(&self) -> u64 {
        self.address.load(Ordering::Acquire)
    }
}
