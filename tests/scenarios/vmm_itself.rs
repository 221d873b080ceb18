//! The VMM itself: paused, stuck, dead.

use std::time::{Duration, Instant};

use vmm::observe::verdict::{Code, Severity};

use crate::hold::{Ahead, Stopped};
use crate::scenario::{Checked, Fault, Guest, Place, Scenario, Seen, USUAL, between};

pub const ALL: &[Scenario] = &[
    Scenario {
        name: "paused",
        code: Code::Paused,
        subject: "vm",
        severity: Severity::Info,
        guest: Guest::Zoo("print=ready rest=1000000"),
        fault: |stage| {
            stage.set_state("Paused");
            Fault::now()
        },
        evidence: |found| {
            let since = found.at.duration_since(found.fault.from).as_secs_f64() * 1e3;
            let told = found.number("paused_ns") / 1e6;
            // The command takes a moment, and so does the way here.
            let source = "this clock, since the answer";
            between("paused_ms", told, since - 300.0, since + 300.0, source)
        },
        end: Some(|stage| stage.set_state("Resumed")),
        ..USUAL
    },
    Scenario {
        name: "vmm-thread-stuck",
        code: Code::VmmThreadStuck,
        subject: "thread/io-disk",
        severity: Severity::Error,
        guest: Guest::Zoo("print=ready rest=1000000"),
        setup: |stage| stage.drive("disk"),
        fault: |stage| Fault::held(Stopped::thread(stage.thread("io-disk"))),
        evidence: |found| {
            let stage = found.stage;
            let tid = stage.thread("io-disk");
            assert_eq!(found.number("tid"), f64::from(tid));
            assert_eq!(found.words("state"), stage.kernel_state(tid));
            let since = found.at.duration_since(found.fault.from).as_secs_f64() * 1e3;
            // It counts from the first look that found it so.
            let source = "this clock; its state is that of /proc";
            let told = found.number("stuck_ns") / 1e6;
            between("stuck_ms", told, since - 1300.0, since, source)
        },
        ..USUAL
    },
    Scenario {
        name: "clock-jump",
        code: Code::ClockJump,
        subject: "host",
        place: Place::Lab,
        guest: Guest::Zoo("print=ready rest=1000000"),
        fault: |_| {
            // Two looks must have seen the clock as it was.
            std::thread::sleep(Duration::from_millis(2500));
            Fault::held(Ahead::by(30))
        },
        evidence: |found| {
            assert_eq!(found.words("direction"), "forward");
            let told = found.number("jump_ns") / 1e6;
            between(
                "jump_ms",
                told,
                29_900.0,
                30_500.0,
                "the test set it by 30 s",
            )
        },
        ..USUAL
    },
    Scenario {
        name: "vmm-died",
        code: Code::VmmDied,
        subject: "vmm",
        severity: Severity::Error,
        guest: Guest::Zoo("print=ready rest=1000000"),
        fault: |stage| {
            // Long enough for a few signs of life.
            std::thread::sleep(Duration::from_secs(2));
            stage.daemon.signal("KILL");
            Fault::now()
        },
        threshold: Duration::ZERO,
        evidence: |found| {
            let stage = found.stage;
            let (ready, _) = stage.heard("ready");
            let ms = |from: Instant| found.fault.from.duration_since(from).as_secs_f64() * 1e3;
            // A sign of life comes once a second.
            let source = "this clock, from start and from ready to the kill";
            let told = found.number("lived_ns") / 1e6;
            between(
                "lived_ms",
                told,
                ms(ready) - 1200.0,
                ms(stage.started),
                source,
            )
        },
        end: None,
        seen: Seen::PostMortem,
        ..USUAL
    },
    Scenario {
        name: "vm-failed",
        code: Code::VmFailed,
        subject: "vm",
        severity: Severity::Error,
        guest: Guest::Zoo("print=ready rest=1000000"),
        setup: |stage| stage.drive("disk"),
        fault: |stage| {
            // The machine's stop waits for the thread, and not for ever.
            let held = Stopped::thread(stage.thread("io-disk"));
            stage.daemon.signal("TERM");
            Fault {
                from: stage.ended(),
                ..Fault::held(held)
            }
        },
        threshold: Duration::ZERO,
        evidence: |found| {
            let words = found.words("failure");
            assert!(words.contains("io-disk"), "{words}");
            let log = found.stage.daemon.text("stderr");
            assert!(log.contains("io-disk"), "{log}");
            Checked {
                told: words.to_owned(),
                source: "io-disk is the thread that the test stopped".to_owned(),
            }
        },
        end: None,
        seen: Seen::PostMortem,
        ..USUAL
    },
];
