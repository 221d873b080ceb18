//! Queues: kicks that are lost or not taken, rings that are broken, answers that nobody reads.

use std::time::Duration;

use vmm::observe::verdict::{Code, Severity};

use crate::hold::Stopped;
use crate::scenario::{Checked, Fault, Found, Guest, Scenario, USUAL, between};

const DISK: &str = "device/disk/queue/0";

pub const ALL: &[Scenario] = &[
    Scenario {
        name: "queue-device-stall",
        code: Code::QueueDeviceStall,
        subject: DISK,
        severity: Severity::Error,
        guest: Guest::Zoo("print=ready late_kick=0:1000 rest=1000000"),
        setup: |stage| stage.drive("disk"),
        fault: |stage| {
            // It has set the device up by then.
            std::thread::sleep(Duration::from_millis(300));
            let held = Stopped::thread(stage.thread("io-disk"));
            let (from, _) = stage.heard("late_kick kicks");
            Fault {
                from,
                ..Fault::held(held)
            }
        },
        evidence: |found| {
            let tid = found.stage.thread("io-disk");
            assert_eq!(found.number("tid"), f64::from(tid));
            assert_eq!(found.words("thread_state"), found.stage.kernel_state(tid));
            let told = found.number("not_taken_ns") / 1e6;
            since(found, "not_taken_ms", told, 1300.0)
        },
        cause: Some(Code::VmmThreadStuck),
        ..USUAL
    },
    Scenario {
        name: "queue-lost-kick",
        code: Code::QueueLostKick,
        subject: DISK,
        severity: Severity::Error,
        guest: Guest::Zoo("print=ready rest=1000 lost_kick=0:3 rest=1000000"),
        setup: |stage| stage.drive("disk"),
        fault: |stage| Fault::since(stage.heard("lost_kick begins").0),
        // The device's thread looks around once a second and believes it at the second look, so
        // that a vCPU that lost its CPU between ring and kick is not blamed.
        threshold: Duration::from_secs(2),
        evidence: |found| {
            let (_, line) = found.stage.heard("lost_kick ok");
            assert!(line.ends_with(" 3"), "all were served: {line}");
            // The guest knows how many it did not send.
            let told = found.number("lost_kicks_ever");
            between("lost_kicks_ever", told, 1.0, 3.0, "the guest's count")
        },
        ..USUAL
    },
    Scenario {
        name: "queue-guest-not-reaping",
        code: Code::QueueGuestNotReaping,
        subject: DISK,
        guest: Guest::Zoo("print=ready rest=1000 not_reaping=0:3:8000 rest=1000000"),
        setup: |stage| stage.drive("disk"),
        fault: |stage| Fault::since(stage.heard("not_reaping interrupted").0),
        threshold: Duration::from_secs(2),
        evidence: |found| {
            assert_eq!(found.number("unread"), 3.0, "the guest asked for three");
            let told = found.number("since_interrupt_ns") / 1e6;
            since(found, "since_interrupt_ms", told, 300.0)
        },
        end: Some(|stage| drop(stage.heard("not_reaping ends"))),
        ..USUAL
    },
    Scenario {
        name: "queue-broken",
        code: Code::QueueBroken,
        subject: DISK,
        severity: Severity::Error,
        guest: Guest::Zoo(
            "print=ready print=breaks bad_ring=0:loop rest=5000 print=resets blk_read=0:1 rest=1000000",
        ),
        setup: |stage| stage.drive("disk"),
        fault: |stage| Fault::since(stage.heard("breaks").0),
        evidence: |found| {
            assert_eq!(found.words("reason"), "a chain never ends");
            let (_, line) = found.stage.heard("bad_ring loop");
            assert!(
                line.contains("needs_reset"),
                "the guest saw it, too: {line}"
            );
            let told = found.number("broken_ns") / 1e6;
            since(found, "broken_ms", told, 300.0)
        },
        end: Some(|stage| drop(stage.heard("resets"))),
        ..USUAL
    },
];

/// The evidence says for how long, and by this clock it is that, or as much less.
fn since(found: &Found<'_>, name: &str, told: f64, less: f64) -> Checked {
    let since = found.at.duration_since(found.fault.from).as_secs_f64() * 1e3;
    // What the guest says takes a moment to this clock.
    between(name, told, since - less, since + 50.0, "this clock")
}
