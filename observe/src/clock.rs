//! The clock of all observation: the time-stamp counter where it can be trusted.
//!
//! A TSC read costs about a third of `clock_gettime`, and a user exit needs two. The counter is
//! trusted when the kernel itself keeps time by it, or, where the kernel does not say, when the CPU
//! calls it invariant (CPUID 8000_0007h EDX bit 8, Intel SDM 19.17.1). Otherwise ticks are
//! `CLOCK_MONOTONIC` nanoseconds.

use std::sync::OnceLock;
use std::time::Duration;

/// A reading of [`Clock::ticks`]; only differences mean something.
pub type Ticks = u64;

/// How ticks become nanoseconds. Copy it to each thread: it never changes in a process.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    tsc: bool,
    /// Nanoseconds a tick, as a 1.63 fixed-point number: the high half of a product with doubled
    /// ticks is nanoseconds, and no shift waits for it.
    rate: u64,
    base_ticks: Ticks,
    base_monotonic_ns: u64,
}

/// The shortest time over which the counter is measured against the kernel's clock.
const CALIBRATION: Duration = Duration::from_millis(2);

/// Tries for a pair of readings that no interrupt came between.
const PAIR_TRIES: u32 = 5;

static CLOCK: OnceLock<Clock> = OnceLock::new();

impl Clock {
    /// The clock of this process. The first call measures the counter's frequency: it takes 2 ms
    /// of wall time (asleep, not busy). The rate is good to about 100 ppm: fine for durations; for
    /// dates far from the anchor use a fresh [`pair`](Clock::pair).
    pub fn process() -> Clock {
        *CLOCK.get_or_init(Clock::calibrate)
    }

    fn calibrate() -> Clock {
        if !tsc_is_trusted() {
            return Clock::of_the_kernel();
        }
        let (base_ticks, base_monotonic_ns) = tsc_pair();
        std::thread::sleep(CALIBRATION);
        let (ticks, ns) = tsc_pair();
        let ns = u128::from(ns.saturating_sub(base_monotonic_ns));
        let ticks = u128::from(ticks.saturating_sub(base_ticks)).max(1);
        // The 32.32 number that the black box tells, 31 bits further to the left.
        match u64::try_from(((ns << 32) / ticks).max(1) << 31) {
            Ok(rate) => Clock {
                tsc: true,
                rate,
                base_ticks,
                base_monotonic_ns,
            },
            // Slower than 500 MHz: no CPU that runs KVM, so no time-stamp counter that works.
            Err(_) => Clock::of_the_kernel(),
        }
    }

    fn of_the_kernel() -> Clock {
        let now = monotonic_ns();
        Clock {
            tsc: false,
            rate: 1 << 63,
            base_ticks: now,
            base_monotonic_ns: now,
        }
    }

    /// Ticks and `CLOCK_MONOTONIC` of one moment.
    pub fn pair(&self) -> (Ticks, u64) {
        if self.tsc {
            return tsc_pair();
        }
        let now = monotonic_ns();
        (now, now)
    }

    /// The counter now.
    #[inline]
    pub fn ticks(&self) -> Ticks {
        if self.tsc {
            read_tsc()
        } else {
            ticks_of_the_kernel()
        }
    }

    /// A difference of ticks, below 2^63, in nanoseconds.
    #[inline]
    pub fn ns(&self, ticks: Ticks) -> u64 {
        ((u128::from(ticks.wrapping_shl(1)) * u128::from(self.rate)) >> 64) as u64
    }

    /// Nanoseconds from `start` to `end`; 0 if the counter went backwards between two CPUs.
    #[inline]
    pub fn ns_between(&self, start: Ticks, end: Ticks) -> u64 {
        self.ns(end.saturating_sub(start))
    }

    /// The `CLOCK_MONOTONIC` time of a reading, in nanoseconds.
    pub fn monotonic_of(&self, ticks: Ticks) -> u64 {
        self.base_monotonic_ns
            .wrapping_add(self.ns_between(self.base_ticks, ticks))
    }

    /// Whether ticks are time-stamp counter readings.
    pub fn is_tsc(&self) -> bool {
        self.tsc
    }

    /// Nanoseconds a tick (32.32 fixed point), the first reading and its `CLOCK_MONOTONIC` time:
    /// what a reader in another process needs to understand our ticks.
    pub fn anchor(&self) -> (u64, Ticks, u64) {
        (self.rate >> 31, self.base_ticks, self.base_monotonic_ns)
    }
}

fn tsc_is_trusted() -> bool {
    let source =
        std::fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource");
    match source.as_deref().map(str::trim) {
        Ok("tsc" | "kvm-clock") => return true,
        // The kernel left the counter for these: it saw it drift or differ between CPUs, whatever
        // CPUID claims.
        Ok("hpet" | "acpi_pm" | "refined-jiffies" | "jiffies") => return false,
        _ => {}
    }
    let highest = std::arch::x86_64::__cpuid(0x8000_0000).eax;
    highest >= 0x8000_0007 && std::arch::x86_64::__cpuid(0x8000_0007).edx & (1 << 8) != 0
}

/// Ticks and `CLOCK_MONOTONIC` of one moment: of a few tries the tightest, since a thread that is
/// preempted between the two reads would put the whole pause into the measured frequency.
fn tsc_pair() -> (Ticks, u64) {
    let mut best = (u64::MAX, 0, 0);
    for _ in 0..PAIR_TRIES {
        let before = read_tsc();
        let ns = monotonic_ns();
        let width = read_tsc().saturating_sub(before);
        if width < best.0 {
            best = (width, before.wrapping_add(width / 2), ns);
        }
    }
    (best.1, best.2)
}

#[inline]
#[allow(unsafe_code)]
fn read_tsc() -> u64 {
    // SAFETY: RDTSC has no memory operand and is not disabled for user space on any host that
    // passes `tsc_is_trusted` (prctl PR_SET_TSC is never used here).
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// Out of line, so that the path that trusts the counter is short.
#[cold]
#[inline(never)]
fn ticks_of_the_kernel() -> Ticks {
    monotonic_ns()
}

/// `CLOCK_MONOTONIC` in nanoseconds.
pub fn monotonic_ns() -> u64 {
    kernel_clock_ns(libc::CLOCK_MONOTONIC)
}

/// `CLOCK_REALTIME` in nanoseconds since 1970.
pub fn realtime_ns() -> u64 {
    kernel_clock_ns(libc::CLOCK_REALTIME)
}

/// CPU time of the calling thread, in nanoseconds.
pub fn thread_cpu_ns() -> u64 {
    kernel_clock_ns(libc::CLOCK_THREAD_CPUTIME_ID)
}

#[allow(unsafe_code)]
fn kernel_clock_ns(id: libc::clockid_t) -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is a valid, writable timespec for the duration of the call.
    unsafe { libc::clock_gettime(id, &raw mut now) };
    (now.tv_sec as u64)
        .wrapping_mul(1_000_000_000)
        .wrapping_add(now.tv_nsec as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_agree_with_the_kernels_clock() {
        let clock = Clock::process();
        let (ticks, kernel) = clock.pair();
        std::thread::sleep(Duration::from_millis(50));
        let (later_ticks, later) = clock.pair();
        let ns = clock.ns_between(ticks, later_ticks);
        let kernel = later - kernel;
        let ratio = ns as f64 / kernel as f64;
        assert!(
            (0.99..1.01).contains(&ratio),
            "{ns} ns by ticks, {kernel} ns by the kernel"
        );
    }

    #[test]
    fn a_pair_lies_between_the_readings_around_it() {
        let clock = Clock::process();
        let (ticks, ns) = (clock.ticks(), monotonic_ns());
        let pair = clock.pair();
        assert!(ticks <= pair.0 && pair.0 <= clock.ticks());
        assert!(ns <= pair.1 && pair.1 <= monotonic_ns());
    }

    #[test]
    fn a_counter_that_goes_back_gives_zero() {
        assert_eq!(Clock::process().ns_between(100, 50), 0);
    }
}
