//! vCPUs: starved, throttled, stuck in a handler, storms.

use std::collections::HashMap;

use super::{Look, percent, seconds};
use crate::heartbeat::Activity;
use crate::ledger::{Account, between};
use crate::verdict::observation::VcpuSeen;
use crate::verdict::{Code, Severity, Subject, Verdict};

pub(super) fn judge(look: &Look<'_>, verdicts: &mut Vec<Verdict>) {
    for vcpu in &look.now.vcpus {
        in_handler(look, vcpu, verdicts);
        paused(look, vcpu, verdicts);
        let earlier = look.earlier.and_then(|earlier| {
            let mut vcpus = earlier.vcpus.iter();
            vcpus.find(|there| there.index == vcpu.index)
        });
        if let Some(earlier) = earlier {
            let pair = Pair::new(look, earlier, vcpu);
            pair.starved(verdicts);
            pair.throttled(verdicts);
            pair.faulting(verdicts);
            pair.exit_storm(verdicts);
            pair.wake_storm(verdicts);
        }
    }
}

/// The handler of an exit does not come back.
fn in_handler(look: &Look<'_>, vcpu: &VcpuSeen, verdicts: &mut Vec<Verdict>) {
    let doing = &vcpu.doing;
    let age = look.age(doing.since_ns);
    if doing.activity != Some(Activity::InHandler) || age < look.limits.handler_ns {
        return;
    }
    let summary = format!(
        "vCPU {} has been in the handler of {} at {:#x} ({}) for {}",
        vcpu.index,
        doing.reason,
        doing.address,
        doing.device,
        seconds(age)
    );
    let verdict = Verdict::new(
        Code::VcpuInHandler,
        Subject::vcpu(vcpu.index),
        doing.since_ns,
        summary,
    );
    verdicts.push(
        verdict
            .text("reason", &*doing.reason)
            .text("device", &*doing.device)
            .number("address", doing.address)
            .number("handler_ns", age)
            .number("tid", doing.tid),
    );
}

/// By command; one verdict for the VM, by its first vCPU.
fn paused(look: &Look<'_>, vcpu: &VcpuSeen, verdicts: &mut Vec<Verdict>) {
    let doing = &vcpu.doing;
    if vcpu.index != 0 || doing.activity != Some(Activity::Paused) {
        return;
    }
    let age = look.age(doing.since_ns);
    let summary = format!("the VM has been paused for {}", seconds(age));
    let verdict = Verdict::new(Code::Paused, Subject::whole("vm"), doing.since_ns, summary);
    verdicts.push(verdict.number("paused_ns", age));
}

/// A vCPU between two looks.
struct Pair<'a> {
    look: &'a Look<'a>,
    earlier: &'a VcpuSeen,
    now: &'a VcpuSeen,
    account: Account,
    since_ns: u64,
}

impl<'a> Pair<'a> {
    fn new(look: &'a Look<'a>, earlier: &'a VcpuSeen, now: &'a VcpuSeen) -> Self {
        let account = between(&earlier.moment, &now.moment, now.index);
        Pair {
            look,
            earlier,
            now,
            since_ns: look.now.at_ns.saturating_sub(account.wall_ns),
            account,
        }
    }

    fn share(&self, ns: Option<u64>) -> Option<f64> {
        let wall = self.account.wall_ns;
        (wall > 0).then(|| ns.map(|ns| ns as f64 / wall as f64))?
    }

    fn verdict(&self, code: Code, summary: String) -> Verdict {
        let subject = Subject::vcpu(self.now.index);
        let verdict = Verdict::new(code, subject, self.since_ns, summary);
        verdict.number("wall_ns", self.account.wall_ns)
    }

    /// CPU time of the VMM's other threads in between, as it would be of the wall time.
    fn own_ns(&self) -> u64 {
        let earlier = self.look.earlier.and_then(|earlier| earlier.own_cpu_ns);
        let (Some(earlier), Some(now)) = (earlier, self.look.now.own_cpu_ns) else {
            return 0;
        };
        let span = now.at_ns.saturating_sub(earlier.at_ns);
        let used = now.value.saturating_sub(earlier.value);
        if span == 0 {
            return 0;
        }
        (used as f64 / span as f64 * self.account.wall_ns as f64) as u64
    }

    fn starved(&self, verdicts: &mut Vec<Verdict>) {
        let Some(waiting_ns) = self.account.waiting_ns else {
            return;
        };
        // What it waited for Vitrine's own threads, which work for it, is no fault of others. Where
        // they ran nobody knows, so what is told is what it waited in all.
        let own_ns = self.own_ns();
        let others_ns = waiting_ns.saturating_sub(own_ns);
        let (Some(share), Some(others)) =
            (self.share(Some(waiting_ns)), self.share(Some(others_ns)))
        else {
            return;
        };
        if others < self.look.limits.starved_share {
            return;
        }
        let summary = format!(
            "vCPU {} could run and had no host CPU for {} of the time",
            self.now.index,
            percent(share)
        );
        let verdict = self.verdict(Code::VcpuStarved, summary);
        verdicts.push(
            verdict
                .real("waiting_percent", share * 100.0)
                .number("waiting_ns", waiting_ns)
                .number("own_threads_ns", own_ns)
                .number("tid", self.now.doing.tid),
        );
    }

    fn throttled(&self, verdicts: &mut Vec<Verdict>) {
        let Some(share) = self.share(self.account.throttled_ns) else {
            return;
        };
        if share < self.look.limits.throttled_share {
            return;
        }
        let summary = format!(
            "vCPU {} could run and its cgroup's CPU limit forbade it for {} of the time",
            self.now.index,
            percent(share)
        );
        let verdict = self.verdict(Code::VcpuThrottled, summary);
        verdicts.push(
            verdict
                .real("throttled_percent", share * 100.0)
                .number("throttled_ns", self.account.throttled_ns.unwrap_or(0)),
        );
    }

    /// Major faults, and the sleep that came with them.
    fn faulting(&self, verdicts: &mut Vec<Verdict>) {
        let Some(share) = self.share(self.account.fault_ns) else {
            return;
        };
        if share < self.look.limits.fault_share {
            return;
        }
        let summary = format!(
            "vCPU {} waited for the host to bring in pages of its memory for {} of the time",
            self.now.index,
            percent(share)
        );
        let verdict = self.verdict(Code::VcpuHostFault, summary);
        let severity = if share > 0.9 {
            Severity::Error
        } else {
            Severity::Warning
        };
        verdicts.push(
            verdict
                .at(severity)
                .real("fault_percent", share * 100.0)
                .number("fault_ns", self.account.fault_ns.unwrap_or(0)),
        );
    }

    /// One kind of exit at one address: by rate, or by its share of the time.
    fn exit_storm(&self, verdicts: &mut Vec<Verdict>) {
        let wall = self.account.wall_ns as f64 / 1e9;
        if wall <= 0.0 {
            return;
        }
        let limits = self.look.limits;
        let places = self.earlier.places.iter();
        let earlier: HashMap<&str, (u64, u64)> = places
            .map(|(place, count, ns)| (place.as_str(), (*count, *ns)))
            .collect();
        let rates = self.now.places.iter().map(|(place, count, ns)| {
            let earlier = earlier.get(place.as_str());
            let (before, before_ns) = earlier.copied().unwrap_or_default();
            let exits = count.saturating_sub(before) as f64 / wall;
            let share = ns.saturating_sub(before_ns) as f64 / 1e9 / wall;
            (place, exits, share)
        });
        // A share of the time by few exits is a slow handler and no storm.
        let storms = rates.filter(|(_, exits, share)| {
            *exits >= limits.storm_exits
                || *share >= limits.storm_share && *exits >= limits.storm_exits / 10.0
        });
        let Some((place, exits, share)) = storms.max_by(|one, other| one.1.total_cmp(&other.1))
        else {
            return;
        };
        let summary = format!(
            "vCPU {} leaves the guest {exits:.0} times a second for {place}",
            self.now.index
        );
        let verdict = self.verdict(Code::ExitStorm, summary);
        verdicts.push(
            verdict
                .text("place", place.as_str())
                .real("exits_per_second", exits)
                .real("handler_percent", share * 100.0),
        );
    }

    /// Halts again and again, and is busy with that alone.
    fn wake_storm(&self, verdicts: &mut Vec<Verdict>) {
        let (Some(before), Some(after)) = (self.earlier.kvm, self.now.kvm) else {
            return;
        };
        let span = after.at_ns.saturating_sub(before.at_ns) as f64 / 1e9;
        if span <= 0.0 {
            return;
        }
        let rate = |after: u64, before: u64| after.saturating_sub(before) as f64 / span;
        let halts = rate(after.value.halts, before.value.halts);
        let interrupts = rate(after.value.interrupts, before.value.interrupts);
        let (Some(kernel), Some(guest), Some(halted)) = (
            self.share(self.account.kernel_ns),
            self.share(self.account.guest_ns),
            self.share(self.account.halted_ns),
        ) else {
            return;
        };
        let limits = self.look.limits;
        // Where the kernel accounts by ticks, what a wake-up costs shows as guest or as kernel.
        let busy = kernel + guest;
        if halts < limits.wake_halts || busy < limits.wake_kernel_share || halted < 0.05 {
            return;
        }
        let summary = format!(
            "vCPU {} halts and wakes {halts:.0} times a second, and uses {} of a host CPU for that",
            self.now.index,
            percent(busy)
        );
        let verdict = self.verdict(Code::WakeStorm, summary);
        verdicts.push(
            verdict
                .real("halts_per_second", halts)
                .real("interrupts_per_second", interrupts)
                .real("kernel_percent", kernel * 100.0)
                .real("halted_percent", halted * 100.0),
        );
    }
}
