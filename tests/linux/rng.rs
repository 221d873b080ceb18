//! virtio-rng under stock kernels.

use vmm::{EntropySpec, Outcome};

use crate::harness::Guest;
use crate::{PATIENCE, TRANSPORTS, on, told};

#[test]
fn the_guests_hardware_generator_is_the_device_and_what_it_gives_is_counted() {
    // The kernel's own thread, which feeds its pool from the device, has to be asleep by then.
    let script = "
echo CURRENT=$(cat /sys/class/misc/hw_random/rng_current)
sleep 1
dd if=/dev/hwrng of=/run/one bs=512 count=16 iflag=fullblock 2> /dev/null
dd if=/dev/hwrng of=/run/two bs=512 count=16 iflag=fullblock 2> /dev/null
echo READ=$(cat /run/one /run/two | wc -c)
cmp -s /run/one /run/two || echo DIFFERENT=yes
";
    for (version, pci) in TRANSPORTS {
        let mut spec = on(version, pci, "", script);
        spec.entropy = Some(EntropySpec::default());
        let done = Guest::launch(spec).finish(PATIENCE);
        assert_eq!(done.outcome, Outcome::PowerOff);
        let current = told(&done.console, "CURRENT");
        assert!(current.starts_with("virtio_rng"), "{current}");
        assert_eq!(told(&done.console, "READ"), "16384");
        assert_eq!(told(&done.console, "DIFFERENT"), "yes");
        let device = |field| done.seen.number("device/entropy", field, "entropy");
        let queue = |field| done.seen.number("queue/entropy/0", field, "");
        assert_eq!(device("operation"), queue("written"));
        assert_eq!(device("operations"), queue("completions"));
        assert_eq!(device("operation_errors"), 0);
        // One answer more may be there that nobody has read, and what the kernel took for itself.
        let given = device("operation");
        let own = given.checked_sub(16384).expect("more was read than given");
        println!("{version}: 16384 bytes read, {own} more for the kernel's pool");
        assert!(own <= 8192, "{given}");
    }
}
