//! A stock kernel that panics and has no console to say so.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use vmm::{Outcome, PanicKind, VmEvent};

use crate::harness::{Guest, image, spec};
use crate::{PATIENCE, VERSIONS, kernel};

/// The module is not loaded by the guests' init, which no other guest has to wait for.
const SCRIPT: &str = "
modprobe pvpanic_mmio
device=$(ls /sys/bus/platform/drivers/pvpanic-mmio | grep QEMU0001)
[ -n \"$device\" ] && echo c > /proc/sysrq-trigger
";

#[test]
fn a_stock_kernel_without_a_console_tells_of_its_panic() {
    for version in VERSIONS {
        // Whoever panics resets the machine at once, and has said nothing to anybody.
        let script = BASE64_STANDARD.encode(SCRIPT);
        let cmdline = format!("console=null reboot=k panic=-1 vitrine.script={script}");
        let mut spec = spec(kernel(version, "bzImage"), &cmdline);
        spec.boot.initrd = Some(image(&format!("initrd-{version}.img")));
        spec.memory.size_mib = 256;
        let guest = Guest::launch(spec);
        let first = loop {
            match guest.events.recv_timeout(PATIENCE) {
                Ok(VmEvent::Verdict(..)) => {}
                other => break other,
            }
        };
        assert_eq!(first, Ok(VmEvent::GuestPanic(PanicKind::Panicked)));
        let done = guest.finish(PATIENCE);
        let Outcome::Panicked { line, .. } = done.outcome else {
            panic!("{:?}", done.outcome);
        };
        assert_eq!(line, "it told pvpanic");
        assert_eq!(done.console, "");
        assert_eq!(done.seen.number("pvpanic", "told", "panicked"), 1);
        // Linux asks once what it may tell.
        assert_eq!(done.seen.accesses("pvpanic").1, 1);
        println!("{version}: {:?} console bytes, {line}", done.console.len());
    }
}
