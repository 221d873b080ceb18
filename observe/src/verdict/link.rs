//! Which verdict is the consequence of which: a stalled disk that makes a guest idle is one fault.

use super::{Code, Subject, Verdict};

/// The evidence of a VMM that does not beat.
pub(super) const SILENCE: &str = "silent_ns";

/// The evidence of a vCPU that waits for another one.
pub(super) const WAITS_FOR: &str = "waits_for";

/// Whether `cause` explains `effect`, where both hold at once.
fn explains(cause: &Verdict, effect: &Verdict) -> bool {
    use Code::{
        BalloonStuck, DriveError, GuestIdle, GuestMemoryPressure, GuestOom, GuestOomSoon,
        GuestPanic, HostMemoryPressure, HostSwappingGuest, KvmError, Paused, QueueBackendStall,
        QueueBroken, QueueDeviceStall, QueueGuestNotReaping, QueueLostKick, QueueRateLimited,
        QueueRxStarved, VcpuDeadHalt, VcpuHostFault, VcpuInHandler, VcpuSpin, VcpuSpinIrqsOff,
        VcpuStarved, VcpuThrottled, VmFailed, VmmOomKilled, VmmOomRisk, VmmThreadStuck,
    };
    let guest_stands = matches!(
        effect.code,
        VcpuDeadHalt | GuestIdle | QueueGuestNotReaping | QueueLostKick | BalloonStuck
    );
    let waits = matches!(
        effect.code,
        QueueBackendStall
            | QueueDeviceStall
            | QueueGuestNotReaping
            | QueueRxStarved
            | VmmThreadStuck
    );
    // What it waits for is held by another one, which does not go on.
    if effect.code == VcpuDeadHalt && has(effect, WAITS_FOR) {
        let holds_up = matches!(
            cause.code,
            VcpuSpinIrqsOff
                | VcpuSpin
                | VcpuStarved
                | VcpuThrottled
                | VcpuInHandler
                | VcpuHostFault
                | VcpuDeadHalt
        );
        if holds_up && !has(cause, WAITS_FOR) && cause.subject != effect.subject {
            return true;
        }
    }
    match cause.code {
        // It has no memory to give, and waits for some.
        GuestOom => matches!(
            effect.code,
            GuestMemoryPressure | GuestOomSoon | BalloonStuck
        ),
        GuestMemoryPressure | GuestOomSoon if effect.code == BalloonStuck => true,
        // Nothing else matters of a guest that is paused or gone.
        Paused => guest_stands,
        GuestPanic => guest_stands || matches!(effect.code, VcpuSpin | VcpuSpinIrqsOff),
        KvmError => guest_stands || matches!(effect.code, VcpuSpin | VcpuSpinIrqsOff | VmFailed),
        VmmOomRisk | VmmOomKilled => matches!(
            effect.code,
            HostMemoryPressure | HostSwappingGuest | VcpuHostFault | Code::VmmDied
        ),
        HostMemoryPressure | HostSwappingGuest => matches!(effect.code, VcpuHostFault),
        VmmThreadStuck => {
            matches!(effect.code, QueueDeviceStall) && same_device(cause, effect)
                || matches!(effect.code, VcpuInHandler)
                || is_stopped(cause, effect) && waits
        }
        // A thread that reads from a disk that does not answer is not stuck by itself.
        QueueBackendStall => {
            matches!(effect.code, VmmThreadStuck | QueueDeviceStall) && same_device(cause, effect)
                || matches!(effect.code, GuestIdle)
        }
        QueueDeviceStall | DriveError | QueueBroken | QueueRateLimited => {
            matches!(effect.code, GuestIdle)
        }
        // What waits for an answer of a vCPU that gives none spins, and the guest's kernel says so.
        // Of the same vCPU it is its kernel's word for the same: a look finds one or the other.
        VcpuSpinIrqsOff if matches!(effect.code, VcpuSpin) => true,
        VcpuDeadHalt if matches!(effect.code, VcpuSpin) && !has(cause, WAITS_FOR) => true,
        VcpuDeadHalt => matches!(
            effect.code,
            QueueGuestNotReaping | QueueLostKick | GuestIdle
        ),
        VcpuSpinIrqsOff | VcpuSpin | VcpuStarved | VcpuThrottled | VcpuInHandler
        | VcpuHostFault => {
            matches!(effect.code, QueueGuestNotReaping | QueueLostKick)
        }
        _ => false,
    }
}

/// Whether `cause` is that the VMM no longer beats, and `effect` began with it: what was on its way
/// when a process is stopped waits from then on. The beat comes every second.
fn is_stopped(cause: &Verdict, effect: &Verdict) -> bool {
    const NEAR_NS: u64 = 2_000_000_000;
    has(cause, SILENCE) && cause.since_ns.abs_diff(effect.since_ns) <= NEAR_NS
}

fn has(verdict: &Verdict, evidence: &str) -> bool {
    let mut all = verdict.evidence.iter();
    all.any(|(name, _)| *name == evidence)
}

/// The name of the device in `device/NAME/queue/0` and in `thread/io-NAME`.
fn device(subject: &Subject) -> Option<&str> {
    let text = subject.as_str();
    let name = text.strip_prefix("device/").map(|rest| {
        let (name, _) = rest.split_once('/').unwrap_or((rest, ""));
        name
    });
    name.or_else(|| text.strip_prefix("thread/io-"))
}

fn same_device(one: &Verdict, other: &Verdict) -> bool {
    let (one, other) = (device(&one.subject), device(&other.subject));
    one.is_some() && one == other
}

/// Links each verdict to its cause, among them and what still stands from before, and brings them
/// in order.
pub(super) fn link(verdicts: &mut [Verdict], standing: &[Verdict]) {
    let causes = [verdicts as &[Verdict], standing].concat();
    for effect in verdicts.iter_mut() {
        let is_cause = |cause: &&Verdict| cause.key() != effect.key() && explains(cause, effect);
        // The worst of several.
        let cause = causes
            .iter()
            .filter(is_cause)
            .max_by_key(|cause| cause.severity);
        effect.consequence_of = cause.map(Verdict::key);
    }
    sort(verdicts);
}

/// Causes before consequences, worst first, then by code and subject.
pub(super) fn sort(verdicts: &mut [Verdict]) {
    verdicts.sort_by(|one, other| {
        let rank = |verdict: &Verdict| {
            (
                verdict.consequence_of.is_some(),
                std::cmp::Reverse(verdict.severity),
            )
        };
        rank(one)
            .cmp(&rank(other))
            .then_with(|| one.key().cmp(&other.key()))
    });
}
