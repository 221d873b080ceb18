//! The rules, a file for each family. A rule sees two observations and says what is wrong; it is
//! silent where one of its signals is missing.

mod balloon;
mod console;
mod death;
mod idle;
mod memory;
mod process;
mod queue;
mod stuck;
mod vcpu;

use super::observation::Sampled;
use super::{Observation, Thresholds, Verdict};

/// What every rule is given.
pub(super) struct Look<'a> {
    /// About a second before.
    pub earlier: Option<&'a Observation>,
    pub now: &'a Observation,
    pub limits: &'a Thresholds,
}

impl Look<'_> {
    /// How long ago that was.
    pub fn age(&self, since_ns: u64) -> u64 {
        self.now.at_ns.saturating_sub(since_ns)
    }

    /// Whether the VM still runs, or ran when the black box was last written to.
    pub fn is_running(&self) -> bool {
        !self.now.has_ended
    }
}

/// What all rules say.
pub(super) fn all(
    earlier: Option<&Observation>,
    now: &Observation,
    limits: &Thresholds,
) -> Vec<Verdict> {
    let look = Look {
        earlier,
        now,
        limits,
    };
    let mut verdicts = Vec::new();
    if look.is_running() {
        vcpu::judge(&look, &mut verdicts);
        stuck::judge(&look, &mut verdicts);
        idle::judge(&look, &mut verdicts);
        queue::judge(&look, &mut verdicts);
        memory::judge(&look, &mut verdicts);
        balloon::judge(&look, &mut verdicts);
    }
    process::judge(&look, &mut verdicts);
    console::judge(&look, &mut verdicts);
    verdicts
}

/// Whether the kernel has stopped a thread: by a signal, or for a tracer.
pub(super) fn is_stopped(state: Option<Sampled<char>>) -> bool {
    state.is_some_and(|state| matches!(state.value, 'T' | 't'))
}

/// A time for people.
pub(super) fn seconds(ns: u64) -> String {
    format!("{:.1} s", ns as f64 / 1e9)
}

/// A share for people.
pub(super) fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}
