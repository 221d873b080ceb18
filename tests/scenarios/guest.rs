//! What becomes of a guest by itself: its kernel dies, its memory ends, KVM gives it up.

use std::time::Duration;

use vmm::observe::verdict::{Code, Severity};

use crate::scenario::{Checked, Fault, Found, Guest, Place, Scenario, Seen, USUAL};
use crate::stage::Stage;

/// Its kernel dies, and does not reset the machine a second later.
const PANICS: &str = "
echo 0 > /proc/sys/kernel/panic
echo ready
sleep 1
echo c > /proc/sysrq-trigger
";

/// Three programs that together want more than there is.
const HOGS: &str = "
echo ready
sleep 1
for hog in 1 2 3; do
  dd if=/dev/zero of=/dev/null bs=48M 2> /dev/null &
done
sleep 10000
";

pub const ALL: &[Scenario] = &[
    Scenario {
        name: "guest-panic",
        code: Code::GuestPanic,
        subject: "vm",
        severity: Severity::Error,
        place: Place::Lab,
        guest: Guest::Linux("6.12", PANICS),
        fault: |stage| Fault::since(stage.heard("Kernel panic").0),
        evidence: |found| said(found, "Kernel panic - not syncing: sysrq triggered crash"),
        end: None,
        ..USUAL
    },
    Scenario {
        name: "guest-panic-triple-fault",
        code: Code::GuestPanic,
        subject: "vm",
        guest: Guest::Zoo("print=ready rest=3000 reset=triple"),
        fault: from_end,
        threshold: Duration::ZERO,
        evidence: |found| {
            assert_eq!(found.number("triple_faults"), 1.0);
            let log = found.stage.daemon.text("stderr");
            assert!(log.contains("triple"), "{log}");
            Checked {
                told: "triple_faults=1".to_owned(),
                source: "the guest was told to do it once, and the log has its end".to_owned(),
            }
        },
        end: None,
        seen: Seen::PostMortem,
        ..USUAL
    },
    Scenario {
        name: "kvm-error",
        code: Code::KvmError,
        severity: Severity::Error,
        // Nothing is there.
        guest: Guest::Zoo("print=ready rest=3000 jump=0xd0800000"),
        fault: from_end,
        threshold: Duration::ZERO,
        evidence: |found| {
            assert_eq!(found.words("reason"), "internal_error");
            assert_eq!(found.number("exits"), 1.0);
            let words = found.words("failure");
            assert!(words.contains("; rip 0xd0800000 "), "{words}");
            Checked {
                told: "rip 0xd0800000".to_owned(),
                source: "where the guest was told to go".to_owned(),
            }
        },
        end: None,
        seen: Seen::PostMortem,
        ..USUAL
    },
    Scenario {
        name: "guest-oom",
        code: Code::GuestOom,
        subject: "vm",
        severity: Severity::Error,
        place: Place::Lab,
        guest: Guest::Linux("6.12", HOGS),
        setup: |stage| stage.memory(128),
        fault: |stage| Fault::since(stage.heard("Killed process").0),
        evidence: |found| said(found, "Killed process"),
        end: None,
        ..USUAL
    },
];

fn from_end(stage: &Stage) -> Fault {
    Fault::since(stage.ended())
}

/// That the words of the evidence are a line of the guest's console with `words`.
#[track_caller]
fn said(found: &Found<'_>, words: &str) -> Checked {
    let told = found.words("line");
    assert!(told.contains(words), "{told}");
    let all = found.stage.said();
    let line = all.iter().find(|line| line.contains(told));
    let line = line.unwrap_or_else(|| panic!("{told:?} is not on the console: {all:?}"));
    Checked {
        told: told.to_owned(),
        source: format!("the guest's console: {}", line.trim()),
    }
}
