//! Guests that break things: the VM stays up, names what was broken, and the rest goes on.

use vmm::Outcome;

use crate::harness::{Guest, Scratch, drive};
use crate::{PATIENCE, run, zoo};

fn broken(kind: &str) -> String {
    let scratch = Scratch::new();
    let mut spec = zoo(&format!("bad_ring=0:{kind} blk_read=1:4 poweroff"));
    spec.drives
        .push(drive("bad", &scratch.disk("bad", 8192, 0)));
    spec.drives
        .push(drive("good", &scratch.disk("good", 8192, 1)));
    let done = run(spec);
    assert_eq!(done.outcome, Outcome::PowerOff);
    assert!(
        done.console.contains("blk_read ok 4"),
        "the other disk goes on: {}",
        done.console
    );
    assert_eq!(done.seen.number("queue/good/0", "broken", ""), 0);
    let needs_reset = done.console.contains("needs_reset");
    assert_eq!(
        needs_reset,
        done.seen.number("queue/bad/0", "broken", "") == 1,
        "{kind}"
    );
    done.console
}

#[test]
fn a_broken_ring_asks_for_a_reset_and_the_other_disk_goes_on() {
    for kind in ["loop", "oob", "availjump", "head"] {
        let console = broken(kind);
        assert!(console.contains(&format!("bad_ring {kind}")), "{console}");
        assert!(console.contains("needs_reset"), "{kind}: {console}");
    }
}

#[test]
fn malformed_requests_break_nothing_but_themselves() {
    for kind in ["zero", "indirect2"] {
        let console = broken(kind);
        assert!(console.contains(&format!("bad_ring {kind}")), "{console}");
    }
}

#[test]
fn a_halted_guest_that_nothing_can_wake_is_stopped_by_its_owner() {
    for words in ["cli_hlt", "spin", "spin_sti", "loop_pio=0x80"] {
        let guest = Guest::launch(zoo(&format!("print=here {words}")));
        guest.await_words("here", PATIENCE);
        assert_eq!(guest.stop().outcome, Outcome::Stopped, "{words}");
    }
}

#[test]
fn a_console_that_nobody_reads_does_not_hold_up_the_guest() {
    let scratch = Scratch::new();
    let fifo = scratch.path("fifo");
    let name = std::ffi::CString::new(fifo.to_str().unwrap()).unwrap();
    // SAFETY: a NUL-terminated path; the call makes a file and touches no memory of ours.
    #[allow(unsafe_code)]
    let made = unsafe { libc::mkfifo(name.as_ptr(), 0o600) };
    assert_eq!(made, 0);
    // More than the pipe (64 KiB) and our ring (64 KiB) hold together.
    let line = "x".repeat(1500);
    let mut spec = zoo(&format!("print={line} pio_write=0x80:1 loop_pio=0x80"));
    spec.serial.output = vmm::SerialOutput::File(fifo);
    let guest = Guest::launch(spec);
    let end = std::time::Instant::now() + PATIENCE;
    while guest.seen().accesses("post").1 == 0 {
        assert!(std::time::Instant::now() < end, "the guest is held up");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert_eq!(guest.stop().outcome, Outcome::Stopped);
}
