//! A guest that tells the pvpanic device of its end.

use std::time::Instant;

use vmm::observe::verdict::{Change, Code, Severity};
use vmm::{Outcome, PanicKind, VmEvent};

use crate::harness::Guest;
use crate::{PATIENCE, run, zoo};

#[test]
fn a_panic_told_by_a_port_alone_is_an_event_a_counter_and_a_verdict() {
    let guest = Guest::launch(zoo("quiet pio_read=0x505:3 pio_write=0x505:5:1 cli_hlt"));
    let end = Instant::now() + PATIENCE;
    let (mut told, mut verdict) = (Vec::new(), None);
    while verdict.is_none() {
        let left = end.saturating_duration_since(Instant::now());
        match guest.events.recv_timeout(left) {
            Ok(VmEvent::GuestPanic(kind)) => told.push(kind),
            Ok(VmEvent::Verdict(Change::Raised(raised), _)) => {
                verdict = Some(raised).filter(|raised| raised.code == Code::GuestPanic);
            }
            Ok(VmEvent::Verdict(..)) => {}
            Ok(other) => panic!("{other:?}"),
            Err(error) => panic!("no verdict: {error}"),
        }
    }
    assert_eq!(told, [PanicKind::Panicked], "each kind is told once");
    let verdict = verdict.unwrap();
    assert_eq!(verdict.severity, Severity::Error);
    assert_eq!(verdict.evidence[0].0, "pvpanic", "{verdict:?}");
    let done = guest.stop();
    // Somebody stopped it: that it had panicked is no cause of its end.
    assert_eq!(done.outcome, Outcome::Stopped);
    assert_eq!(done.seen.accesses("pvpanic"), (3, 5));
    assert_eq!(done.seen.number("pvpanic", "told", "panicked"), 5);
    assert_eq!(done.seen.number("pvpanic", "told", "crash_loaded"), 0);
}

#[test]
fn a_reset_after_a_panic_that_was_told_is_no_reboot() {
    for (value, says) in [(1, "it told pvpanic"), (2, "crash kernel")] {
        let done = run(zoo(&format!("quiet pio_write=0x505:1:{value} reset")));
        let Outcome::Panicked { line, then } = done.outcome else {
            panic!("{:?}", done.outcome);
        };
        assert!(line.contains(says), "{line}");
        assert_eq!(then, "the guest reset the machine");
    }
    let done = run(zoo("quiet pio_write=0x505:9:4 poweroff"));
    assert_eq!(done.outcome, Outcome::PowerOff, "4 tells nothing");
    assert_eq!(done.seen.number("vcpu/0", "device_misuse", "pvpanic"), 9);
}
