//! How stock guests end, and that nothing is left.

use std::time::Duration;

use vmm::{Outcome, ResetCause, VmCommand, VmState};

use crate::harness::{Guest, Scratch, alone, drive, leftovers};
use crate::{PATIENCE, VERSIONS, linux};

#[test]
fn reboots_by_each_way_reset_the_machine() {
    let ways = [
        ("reboot=k", ResetCause::Device),
        ("reboot=a", ResetCause::Device),
        ("reboot=t", ResetCause::TripleFault),
    ];
    for version in VERSIONS {
        for (way, cause) in ways {
            let done = Guest::launch(linux(version, way, "reboot -f")).finish(PATIENCE);
            assert_eq!(
                done.outcome,
                Outcome::Reset(cause),
                "{version} {way}: {}",
                done.console
            );
        }
    }
}

#[test]
fn a_halted_guest_stays_until_it_is_stopped() {
    let guest = Guest::launch(linux("6.12", "", "echo HALTING; halt -f"));
    guest.await_words("HALTING", PATIENCE);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(guest.vm.state(), VmState::Running);
    assert_eq!(guest.stop().outcome, Outcome::Stopped);
}

#[test]
fn ctrl_alt_del_reboots_the_guest() {
    for version in VERSIONS {
        let guest = Guest::launch(linux(version, "", "echo WAITING; sleep 1000"));
        guest.await_words("WAITING", PATIENCE);
        guest.command(VmCommand::CtrlAltDel);
        let done = guest.finish(PATIENCE);
        assert_eq!(
            done.outcome,
            Outcome::Reset(ResetCause::Device),
            "{version}: {}",
            done.console
        );
    }
}

#[test]
fn a_panic_with_reboot_ends_the_vm() {
    let guest = Guest::launch(linux("6.12", "", "echo c > /proc/sysrq-trigger"));
    let done = guest.finish(PATIENCE);
    let Outcome::Panicked { line, then } = &done.outcome else {
        panic!("{:?}: {}", done.outcome, done.console);
    };
    assert!(line.contains("Kernel panic - not syncing: sysrq"), "{line}");
    assert_eq!(then, "the guest reset the machine");
    assert!(done.console.contains("Kernel panic"), "{}", done.console);
}

#[test]
fn twenty_boots_and_power_offs_leave_no_thread_no_fd_and_no_file() {
    if !alone("ends::twenty_boots_and_power_offs_leave_no_thread_no_fd_and_no_file") {
        return;
    }
    let scratch = Scratch::new();
    let disk = scratch.disk("disk", 1 << 20, 0);
    let files = || std::fs::read_dir(scratch.path("")).unwrap().count();
    let boot = || {
        let mut spec = linux("6.12", "", "cat /dev/vda > /dev/null");
        spec.drives.push(drive("disk", &disk));
        spec.black_box.path = Some(scratch.path("vm.blackbox"));
        let done = Guest::launch(spec).finish(PATIENCE);
        assert_eq!(done.outcome, Outcome::PowerOff, "{}", done.console);
    };
    boot();
    let before = (leftovers(), files());
    for _ in 0..20 {
        boot();
    }
    assert_eq!((leftovers(), files()), before);
}
