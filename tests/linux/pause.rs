//! Pausing stock guests that work hard.

use std::time::Duration;

use vmm::{Outcome, VmCommand, VmState};

use crate::harness::{Guest, Scratch, drive};
use crate::{PATIENCE, TRANSPORTS, on, told};

#[test]
fn a_busy_guest_is_paused_and_goes_on_without_a_scratch() {
    let script = "
( while :; do :; done ) & busy=$!
echo WORKING
for i in 1 2 3 4 5 6; do md5sum < /dev/vda; done | sort -u > /run/sums
kill $busy
echo SUMS=$(wc -l < /run/sums),$(cut -d' ' -f1 /run/sums)
echo TROUBLE=$(dmesg | grep -ciE 'lockup|stall|hung task|I/O error|call trace' | head -1)
";
    for (version, pci) in TRANSPORTS {
        let scratch = Scratch::new();
        let disk = scratch.disk("disk", 8 << 20, 77);
        let mut spec = on(version, pci, "", script);
        spec.vcpus = 2;
        spec.drives.push(drive("disk", &disk));
        let guest = Guest::launch(spec);
        guest.await_words("WORKING", PATIENCE);
        for _ in 0..20 {
            guest.command(VmCommand::Pause);
            assert_eq!(guest.vm.state(), VmState::Paused);
            let before = guest.seen();
            std::thread::sleep(Duration::from_millis(20));
            let after = guest.seen();
            for reason in ["io_in", "io_out", "mmio_read", "mmio_write"] {
                assert_eq!(after.exits(reason), before.exits(reason));
            }
            let done = |seen: &crate::harness::Seen| seen.number("queue/disk/0", "completions", "");
            assert_eq!(done(&after), done(&before));
            guest.command(VmCommand::Resume);
            std::thread::sleep(Duration::from_millis(20));
        }
        let done = guest.finish(PATIENCE);
        assert_eq!(done.outcome, Outcome::PowerOff);
        let sum = std::process::Command::new("md5sum")
            .arg(&disk)
            .output()
            .unwrap()
            .stdout;
        let sum = String::from_utf8(sum).unwrap();
        let sum = sum.split_whitespace().next().unwrap();
        assert_eq!(told(&done.console, "SUMS"), format!("1,{sum}"), "{version}");
        assert_eq!(told(&done.console, "TROUBLE"), "0", "{}", done.console);
    }
}
