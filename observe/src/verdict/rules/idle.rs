//! vCPUs that have nothing to do: never started, or halted nearly all the time.

use super::stuck::seen;
use super::{Look, percent, seconds};
use crate::heartbeat::Activity;
use crate::ledger::between;
use crate::sight::{Suspicion, mp_state};
use crate::verdict::observation::VcpuSeen;
use crate::verdict::{Code, Severity, Subject, Verdict};

pub(super) fn judge(look: &Look<'_>, verdicts: &mut Vec<Verdict>) {
    verdicts.extend(not_started(look));
    let is_dead = verdicts
        .iter()
        .any(|verdict| verdict.code == Code::VcpuDeadHalt);
    if !is_dead {
        verdicts.extend(idle(look));
    }
}

/// Whether a vCPU waits for its start and has never run.
fn waits_for_start(look: &Look<'_>, vcpu: &VcpuSeen) -> bool {
    const WAITING: [u64; 2] = [mp_state::UNINITIALIZED, mp_state::INIT_RECEIVED];
    let never_ran = vcpu.kvm.as_ref().is_some_and(|kvm| kvm.value.exits == 0);
    let sight = seen(look, vcpu, &[Suspicion::NotStarted]);
    never_ran && sight.is_some_and(|sight| WAITING.contains(&sight.mp_state))
}

/// The guest was given vCPUs that it does not use: one verdict for all of them.
fn not_started(look: &Look<'_>) -> Option<Verdict> {
    let (first, others) = look.now.vcpus.split_first()?;
    let is_paused = first.doing.activity == Some(Activity::Paused);
    // How long it ran: the time before the start is among its pauses.
    let age = look
        .age(look.now.created_ns)
        .saturating_sub(first.paused_ns?);
    let has_run = first.kvm.as_ref().is_some_and(|kvm| kvm.value.exits > 0);
    if is_paused || !has_run || age < look.limits.not_started_ns {
        return None;
    }
    let waiting: Vec<&VcpuSeen> = others
        .iter()
        .filter(|vcpu| waits_for_start(look, vcpu))
        .collect();
    let vcpu = waiting.first()?;
    let given = look.now.vcpus.len();
    let started = given.saturating_sub(waiting.len());
    // A guest that starts some has chosen how many, and so has one that was told how many.
    let limit = look.now.vcpus_allowed.filter(|limit| *limit > 0);
    let was_told = limit.is_some_and(|limit| limit <= started as u64);
    let severity = if started > 1 || was_told {
        Severity::Info
    } else {
        Severity::Warning
    };
    let summary = format!(
        "the guest has run for {} with {started} of its {given} vCPUs: vCPU {} was never started",
        seconds(age),
        vcpu.index
    );
    let subject = Subject::vcpu(vcpu.index);
    let since_ns = look.now.at_ns.saturating_sub(age);
    let verdict = Verdict::new(Code::VcpuNotStarted, subject, since_ns, summary).at(severity);
    let verdict = verdict
        .number("not_started", waiting.len() as u64)
        .number("vcpus", given as u64)
        .number("ran_ns", age);
    Some(match limit {
        Some(limit) => verdict.number("vcpus_allowed", limit),
        None => verdict,
    })
}

/// All vCPUs are halted nearly all the time.
fn idle(look: &Look<'_>) -> Option<Verdict> {
    let earlier = look.earlier?;
    let mut shares: Vec<f64> = Vec::new();
    let mut wall_ns = 0;
    for vcpu in &look.now.vcpus {
        if waits_for_start(look, vcpu) {
            continue;
        }
        let before = earlier.vcpus.iter().find(|old| old.index == vcpu.index)?;
        let account = between(&before.moment, &vcpu.moment, vcpu.index);
        wall_ns = account.wall_ns;
        if wall_ns == 0 {
            return None;
        }
        // A halt that goes on is told by nobody's clock.
        let sight = vcpu.sight.as_ref();
        if sight.is_some_and(|sight| sight.suspicion == Suspicion::Halted) {
            shares.push(1.0);
            continue;
        }
        shares.push(account.halted_ns? as f64 / wall_ns as f64);
    }
    let least = shares.into_iter().min_by(f64::total_cmp)?;
    if least < look.limits.idle_share {
        return None;
    }
    let mut sights = look.now.vcpus.iter().filter_map(|vcpu| vcpu.sight.as_ref());
    let armed = sights.clone().filter(|sight| sight.timer_armed).count();
    // Looked into, and no timer armed: what is to come is from a device.
    let was_seen = sights.any(|sight| sight.suspicion == Suspicion::Halted && sight.at_ns > 0);
    let waits_for = match (was_seen, armed) {
        (false, _) => "work",
        (true, 0) => "an event from outside: no timer is armed",
        (true, _) => "its timers",
    };
    let summary = format!(
        "the guest is idle: all vCPUs are halted for {} of the time or more, and wait for {waits_for}",
        percent(least)
    );
    let since_ns = look.now.at_ns.saturating_sub(wall_ns);
    let verdict = Verdict::new(Code::GuestIdle, Subject::whole("vm"), since_ns, summary);
    Some(
        verdict
            .real("halted_percent", least * 100.0)
            .number("timers_armed", armed as u64),
    )
}
