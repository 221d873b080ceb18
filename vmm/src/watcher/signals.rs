//! What the watcher sees of a vCPU from outside, second by second, and whether it may be stuck.
//!
//! Nothing is asked of anybody: each number is one load from a section of the black box.

use observe::host::TaskSampler;
use observe::sight::Suspicion;
use observe::{BlackBox, Clock, Probe, Ticks};

use super::kvm_table::{KvmSampler, KvmVcpuBlock};
use crate::vcpu::counters::EXIT_NAMES;

/// A vCPU that ran, or could have run, for this share of the time did not halt.
const BUSY_PERCENT: u64 = 90;
/// User exits a second of one that makes no progress: a spinning guest may still be asked something.
const FEW_EXITS: u64 = 10;
/// From one reading to the next at least: less tells nothing.
pub const SHORTEST_NS: u64 = 900_000_000;

/// A vCPU at one moment. All but the moment and the level only go up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signals {
    /// The moment.
    pub at: Ticks,
    /// Time on a CPU, and time that it could have been on one.
    pub busy_ns: u64,
    /// User exits, kicks left out.
    pub user_exits: u64,
    /// All exits that KVM counts.
    pub exits: u64,
    /// Halts.
    pub halts: u64,
    /// Interrupts given to the guest.
    pub interrupts: u64,
    /// It is halted, or waits for its start.
    pub is_blocking: bool,
}

/// Where they are read.
pub struct SignalProbes {
    cpu: Probe,
    run_delay: Probe,
    thread: usize,
    user_exits: Probe,
    kicks: usize,
    totals: Probe,
    exits: usize,
    halts: usize,
    interrupts: usize,
    levels: Probe,
    blocking: usize,
}

impl SignalProbes {
    /// The probes of vCPU `index`; `None` where the host does not tell one of them.
    pub fn new(
        black_box: &BlackBox,
        index: usize,
        tasks: &TaskSampler,
        kvm: Option<&KvmSampler<KvmVcpuBlock>>,
    ) -> Option<Self> {
        let name = format!("vcpu-{index}");
        let thread = tasks.row(&name);
        // Names that found no row share the last one.
        if thread == tasks.row("(no thread)") {
            return None;
        }
        let kvm_section = format!("kvm_vcpu/{index}");
        Some(SignalProbes {
            cpu: black_box.probe("task", "cpu")?,
            run_delay: black_box.probe("task", "run_delay")?,
            thread,
            user_exits: black_box.probe(&format!("vcpu/{index}"), "exits")?,
            kicks: EXIT_NAMES.iter().position(|name| *name == "interrupted")?,
            totals: black_box.probe(&kvm_section, "total")?,
            exits: kvm?.row("exits")?,
            halts: kvm?.row("halt_exits")?,
            interrupts: kvm?.row("irq_injections")?,
            levels: black_box.probe(&kvm_section, "level")?,
            blocking: kvm?.level_row("blocking")?,
        })
    }

    /// What they say now.
    pub fn read(&self, clock: Clock) -> Signals {
        let (cpu, delay) = (self.cpu.row(self.thread), self.run_delay.row(self.thread));
        let exits = self.user_exits.sum();
        Signals {
            at: clock.ticks(),
            busy_ns: cpu.wrapping_add(delay),
            user_exits: exits.wrapping_sub(self.user_exits.row(self.kicks)),
            exits: self.totals.row(self.exits),
            halts: self.totals.row(self.halts),
            interrupts: self.totals.row(self.interrupts),
            is_blocking: self.levels.row(self.blocking) != 0,
        }
    }
}

/// What is to be suspected of a vCPU that was so `before` and is so `now`, `span_ns` later.
pub fn suspect(before: &Signals, now: &Signals, span_ns: u64) -> Suspicion {
    let rose = |of: fn(&Signals) -> u64| of(now).saturating_sub(of(before));
    let (halts, interrupts) = (rose(|s| s.halts), rose(|s| s.interrupts));
    if before.is_blocking && now.is_blocking {
        return match (now.exits, halts, interrupts) {
            (0, ..) => Suspicion::NotStarted,
            (_, 0, 0) => Suspicion::Halted,
            _ => Suspicion::None,
        };
    }
    let seconds = span_ns.div_ceil(1_000_000_000);
    let ran = rose(|s| s.busy_ns) >= span_ns / 100 * BUSY_PERCENT;
    let is_silent = rose(|s| s.user_exits) <= FEW_EXITS.saturating_mul(seconds);
    match interrupts {
        _ if !ran || !is_silent || halts > 0 => Suspicion::None,
        0 => Suspicion::Deaf,
        _ => Suspicion::Busy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn is(change: impl Fn(&mut Signals, &mut Signals)) -> Suspicion {
        let mut before = Signals {
            exits: 100,
            halts: 50,
            interrupts: 60,
            user_exits: 7,
            ..Signals::default()
        };
        let mut now = before;
        change(&mut before, &mut now);
        suspect(&before, &now, S)
    }

    #[test]
    fn only_who_does_nothing_at_all_or_one_thing_alone_is_suspected() {
        let halted = |before: &mut Signals, now: &mut Signals| {
            (before.is_blocking, now.is_blocking) = (true, true);
        };
        assert_eq!(is(|_, _| ()), Suspicion::None);
        assert_eq!(is(halted), Suspicion::Halted);
        assert_eq!(is(|_, now| now.is_blocking = true), Suspicion::None);
        for wakes in [
            |now: &mut Signals| now.halts += 1,
            |now: &mut Signals| {
                now.interrupts += 1;
            },
        ] {
            let woken = is(|before, now| {
                halted(before, now);
                wakes(now);
            });
            assert_eq!(woken, Suspicion::None);
        }
        let never_ran = is(|before, now| {
            halted(before, now);
            (before.exits, now.exits) = (0, 0);
        });
        assert_eq!(never_ran, Suspicion::NotStarted);
    }

    #[test]
    fn who_runs_is_suspected_unless_it_halts_or_leaves_the_guest() {
        let with = |change: fn(&mut Signals)| {
            is(|_, now| {
                now.busy_ns = S * 95 / 100;
                change(now);
            })
        };
        assert_eq!(with(|_| ()), Suspicion::Deaf);
        assert_eq!(with(|now| now.interrupts += 250), Suspicion::Busy);
        assert_eq!(with(|now| now.halts += 1), Suspicion::None);
        assert_eq!(with(|now| now.user_exits += 11), Suspicion::None);
        assert_eq!(with(|now| now.user_exits += 9), Suspicion::Deaf);
        assert_eq!(with(|now| now.busy_ns = S / 2), Suspicion::None);
    }
}
