//! vCPUs that do not go on: halted for good, or in an endless loop. From outside both look like
//! health, so each rule needs what a look into the vCPU found (`sight`).

use super::{Look, seconds};
use crate::sight::{Suspicion, mp_state};
use crate::verdict::link::WAITS_FOR;
use crate::verdict::observation::{SightSeen, VcpuSeen};
use crate::verdict::{Code, Severity, Subject, Verdict};

/// An endless loop is no longer than this.
const LOOP_BYTES: u64 = 512;
/// A loop that waits changes at most what it waits for. One that works changes its pointer and its
/// count, too.
const WAITING_REGISTERS: u64 = 1;
/// Looks that a finding needs.
const NAMELESS_LOOKS: u64 = 3;
const DEAF_LOOKS: u64 = 3;
const HELD_LOOKS: u64 = 5;
const SPIN_LOOKS: u64 = 5;
/// The second before the first look was like those after it: that is why there was a look.
const SECOND_BEFORE_NS: u64 = 1_100_000_000;
/// A look that is older says nothing of now.
const FRESH_NS: u64 = 30_000_000_000;

pub(super) fn judge(look: &Look<'_>, verdicts: &mut Vec<Verdict>) {
    let mut dead = Vec::new();
    for vcpu in &look.now.vcpus {
        dead.extend(dead_halt(look, vcpu));
        verdicts.extend(spin_irqs_off(look, vcpu));
        verdicts.extend(spin(look, vcpu));
    }
    // Without a name, one of several may have been switched off by its guest.
    let all_are = dead.len() == look.now.vcpus.len();
    for halt in dead {
        let severity = match halt.wakes {
            Wakes::Lock => Some(Severity::Warning),
            _ if all_are || !halt.sight.place.is_empty() => Some(Severity::Error),
            _ if halt.sight.alike.looks >= NAMELESS_LOOKS => Some(Severity::Warning),
            _ => None,
        };
        verdicts.extend(severity.map(|severity| halt.verdict(look).at(severity)));
    }
}

/// What was seen of a vCPU of which that is suspected, if it was seen since it is.
pub(super) fn seen<'a>(
    look: &Look<'_>,
    vcpu: &'a VcpuSeen,
    suspicions: &[Suspicion],
) -> Option<&'a SightSeen> {
    let sight = vcpu.sight.as_ref()?;
    let is_meant = suspicions.contains(&sight.suspicion);
    let is_of_it = sight.at_ns >= sight.suspected_since_ns;
    let is_fresh = look.age(sight.at_ns) < FRESH_NS;
    (is_meant && is_of_it && is_fresh).then_some(sight)
}

/// A vCPU that is halted with interrupts off.
struct DeadHalt<'a> {
    vcpu: &'a VcpuSeen,
    sight: &'a SightSeen,
    wakes: Wakes,
}

/// Who can wake it.
enum Wakes {
    /// Nobody: it is alone, or no other vCPU runs.
    Nobody,
    /// Another vCPU, by an NMI or KVM's kick, if it means to.
    OtherVcpu,
    /// Another vCPU, when it gives back the lock for which this one waits.
    Lock,
}

/// Halted with interrupts off. With interrupts on, any device may end the halt: that is idle.
fn dead_halt<'a>(look: &Look<'_>, vcpu: &'a VcpuSeen) -> Option<DeadHalt<'a>> {
    let sight = seen(look, vcpu, &[Suspicion::Halted])?;
    let is_blocking = vcpu.kvm.as_ref()?.value.is_blocking;
    let is_halted = is_blocking && sight.mp_state == mp_state::HALTED;
    let can_wake = sight.interrupts_on || sight.pending_nmi;
    // A CPU that Linux has switched off: a startup IPI wakes it.
    let is_off = sight.is_in("play_dead") || sight.is_in("arch_cpu_idle_dead");
    if !is_halted || can_wake || is_off {
        return None;
    }
    let others = || look.now.vcpus.iter().filter(|o| o.index != vcpu.index);
    let wakes = match others().any(|other| !rests(other)) {
        false => Wakes::Nobody,
        true if waits_for_lock(sight) => Wakes::Lock,
        true => Wakes::OtherVcpu,
    };
    let limits = look.limits;
    let limit_ns = match wakes {
        // A lock may be held for a while, by a vCPU that the host lets wait, too.
        Wakes::Lock => limits.dead_halt_ns.saturating_add(limits.spin_ns),
        Wakes::Nobody | Wakes::OtherVcpu => limits.dead_halt_ns,
    };
    let is_long = look.age(sight.suspected_since_ns) >= limit_ns;
    is_long.then_some(DeadHalt { vcpu, sight, wakes })
}

impl DeadHalt<'_> {
    fn verdict(&self, look: &Look<'_>) -> Verdict {
        let DeadHalt { vcpu, sight, wakes } = self;
        let since_ns = sight.suspected_since_ns;
        let age = look.age(since_ns);
        let says = match (wakes, waits_for_lock(sight)) {
            (Wakes::Lock, _) => "it waits for a lock which another vCPU holds",
            (Wakes::Nobody, true) => {
                "it waits for a lock, and no vCPU runs that could give it back"
            }
            (Wakes::Nobody, false) => "nothing can wake it",
            (Wakes::OtherVcpu, _) => "no device can wake it",
        };
        let summary = format!(
            "vCPU {} has been halted{} with interrupts off for {}: {says}",
            vcpu.index,
            sight.at_place(),
            seconds(age)
        );
        let subject = Subject::vcpu(vcpu.index);
        let verdict = Verdict::new(Code::VcpuDeadHalt, subject, since_ns, summary);
        let verdict = with_sight(verdict.number("halted_ns", age), sight);
        let verdict = verdict.number("timer_armed", u64::from(sight.timer_armed));
        match wakes {
            Wakes::Lock => verdict.text(WAITS_FOR, "a lock"),
            Wakes::Nobody | Wakes::OtherVcpu => verdict,
        }
    }
}

/// A Linux that waits for a lock, halted: who gives the lock back kicks it.
fn waits_for_lock(sight: &SightSeen) -> bool {
    const WAITS: [&str; 4] = [
        "kvm_wait+",
        "pv_queued_spin_lock_slowpath",
        "pv_wait_head_or_lock",
        "pv_wait_node",
    ];
    WAITS.iter().any(|name| sight.is_in(name))
}

/// Whether a vCPU did nothing in the last second and is at rest now. Where nothing tells, it may
/// have run.
fn rests(vcpu: &VcpuSeen) -> bool {
    let is_blocking = vcpu.kvm.is_some_and(|kvm| kvm.value.is_blocking);
    let suspicion = vcpu.sight.as_ref().map(|sight| sight.suspicion);
    match suspicion {
        Some(Suspicion::Halted) => is_blocking,
        Some(Suspicion::NotStarted) => true,
        _ => false,
    }
}

/// In the kernel with interrupts off, for long, in a small loop or while an interrupt waits.
fn spin_irqs_off(look: &Look<'_>, vcpu: &VcpuSeen) -> Option<Verdict> {
    let sight = seen(look, vcpu, &[Suspicion::Deaf])?;
    if !runs_in_kernel(sight) || sight.interrupts_on {
        return None;
    }
    let (alike, held) = (&sight.alike, &sight.held);
    let is_held = held.looks >= DEAF_LOOKS;
    let is_small = alike.looks >= DEAF_LOOKS && sight.window_bytes() <= LOOP_BYTES;
    let is_loop = is_small && (is_held || sight.changed_registers <= WAITING_REGISTERS);
    let since_ns = if is_loop {
        alike.since_ns
    } else if held.looks >= HELD_LOOKS {
        // It may call functions, such as one that waits for a while.
        held.since_ns
    } else {
        return None;
    };
    let age = look.age(since_ns).saturating_add(SECOND_BEFORE_NS);
    if age < look.limits.spin_ns {
        return None;
    }
    let summary = format!(
        "vCPU {} has run{} with interrupts off for {} and does not leave it",
        vcpu.index,
        sight.at_place(),
        seconds(age)
    );
    let subject = Subject::vcpu(vcpu.index);
    let verdict = Verdict::new(Code::VcpuSpinIrqsOff, subject, since_ns, summary);
    let verdict = with_sight(verdict.number("spin_ns", age), sight);
    Some(verdict.number("pending_looks", held.looks))
}

/// In the kernel with interrupts on, for long, in a small loop that changes nothing.
fn spin(look: &Look<'_>, vcpu: &VcpuSeen) -> Option<Verdict> {
    let sight = seen(look, vcpu, &[Suspicion::Deaf, Suspicion::Busy])?;
    let is_loop = runs_in_kernel(sight)
        && sight.interrupts_on
        && sight.alike.looks >= SPIN_LOOKS
        && sight.window_bytes() <= LOOP_BYTES
        && sight.changed_registers <= WAITING_REGISTERS;
    let age = look
        .age(sight.alike.since_ns)
        .saturating_add(SECOND_BEFORE_NS);
    if !is_loop || age < look.limits.spin_ns || is_idle_loop(sight) {
        return None;
    }
    let summary = format!(
        "vCPU {} has run{} for {}: it takes interrupts and goes back to the same place",
        vcpu.index,
        sight.at_place(),
        seconds(age)
    );
    let subject = Subject::vcpu(vcpu.index);
    let verdict = Verdict::new(Code::VcpuSpin, subject, sight.alike.since_ns, summary);
    Some(with_sight(verdict.number("spin_ns", age), sight))
}

fn runs_in_kernel(sight: &SightSeen) -> bool {
    sight.ring == 0 && sight.mp_state == mp_state::RUNNABLE
}

/// A Linux that waits for work without a halt: idle=poll, or MWAIT. Not what interrupted that.
fn is_idle_loop(sight: &SightSeen) -> bool {
    const IDLE: [&str; 3] = ["do_idle", "cpu_idle_poll", "poll_idle"];
    IDLE.iter().any(|name| sight.is_in(name)) && !sight.is_in("asm_")
}

/// What the looks found.
fn with_sight(verdict: Verdict, sight: &SightSeen) -> Verdict {
    let verdict = verdict
        .number("rip", sight.rip)
        .number("rip_low", sight.rip_low)
        .number("rip_high", sight.rip_high)
        .number("looks_alike", sight.alike.looks)
        .number("interrupts_on", u64::from(sight.interrupts_on))
        .number("pending_vector", sight.pending_vector)
        .number("changed_registers", sight.changed_registers);
    let texts = [("function", &sight.place), ("stack", &sight.stack)];
    texts.into_iter().fold(verdict, |verdict, (name, text)| {
        if text.is_empty() {
            verdict
        } else {
            verdict.text(name, text.as_str())
        }
    })
}
