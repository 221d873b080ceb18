//! A limiter with the clock and the timer of the device that it belongs to.

#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use event_manager::EventSet;
use vmm_sys_util::timerfd::TimerFd;

use super::{Limiter, LimiterSpec};

/// See the module. The device waits for [`Throttle::fd`] as [`Throttle::interest`] says, calls
/// [`Throttle::ended`] when it is ready, and then serves the queue that had to wait.
pub struct Throttle {
    limiter: Limiter,
    timer: TimerFd,
    began: Instant,
}

impl Throttle {
    /// One whose buckets are full.
    ///
    /// # Errors
    /// The host gives no timer.
    pub fn new(spec: LimiterSpec) -> io::Result<Throttle> {
        Ok(Throttle {
            limiter: Limiter::new(spec, 0),
            timer: TimerFd::new()?,
            began: Instant::now(),
        })
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// One operation of so many bytes. False when it has to wait; the timer is set then.
    pub fn take(&mut self, bytes: u64) -> bool {
        self.ask(|limiter, now_ns| limiter.take(bytes, now_ns))
    }

    /// Whether an operation whose bytes are not known yet may go on: it is paid for by
    /// [`Throttle::charge`] when they are. False as in [`Throttle::take`].
    pub fn is_open(&mut self) -> bool {
        self.ask(|limiter, now_ns| limiter.wait(1, now_ns))
    }

    /// Pays for one operation of so many bytes that [`Throttle::is_open`] let pass.
    pub fn charge(&mut self, bytes: u64) {
        self.limiter.charge(bytes);
    }

    fn ask(&mut self, ask: impl FnOnce(&mut Limiter, u64) -> Result<(), Duration>) -> bool {
        if !self.limiter.limits() {
            return true;
        }
        let now_ns = self.now_ns();
        match ask(&mut self.limiter, now_ns) {
            Ok(()) => true,
            // Without a timer nothing would end the wait.
            Err(wait) => self.timer.reset(wait, None).is_err(),
        }
    }

    /// As [`Limiter::change`]. The queue is to be served afterwards.
    pub fn change(&mut self, change: LimiterSpec) {
        let now_ns = self.now_ns();
        self.limiter.change(change, now_ns);
    }

    /// The timer's descriptor, for the event loop.
    pub fn fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    /// What the timer is waited for with.
    pub fn interest(&self) -> EventSet {
        match self.limiter.limits() {
            true => EventSet::IN,
            false => EventSet::empty(),
        }
    }

    /// The timer is ready: a wait is over.
    pub fn ended(&mut self) {
        // Never read: it may have been set anew in this round, and a read would wait for it.
        if let Err(error) = self.timer.clear() {
            tracing::warn!("the timer of a rate limiter cannot be cleared: {error}");
        }
    }
}
