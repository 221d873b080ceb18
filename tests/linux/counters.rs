//! Counters only go up, whatever a stock kernel and the VM's owner do.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use vmm::{Outcome, VmCommand};

use crate::harness::{Guest, Scratch, assert_none_went_down, drive};
use crate::{PATIENCE, linux};

#[test]
fn counters_go_up_alone_while_a_driver_leaves_its_device_and_takes_it_again() {
    let script = "
driver=/sys/bus/virtio/drivers/virtio_blk
device=$(basename $driver/virtio*)
for turn in 1 2 3; do
  dd if=/dev/vda of=/dev/null bs=64k 2> /run/said && echo TURN$turn=$(grep -c '^64+0 records in' /run/said)
  echo $device > $driver/unbind
  [ -e /dev/vda ] || echo GONE$turn=yes
  echo $device > $driver/bind
done
echo ALL=done
";
    let scratch = Scratch::new();
    let disk = scratch.disk("disk", 4 << 20, 0);
    let mut spec = linux("6.12", "", script);
    spec.drives.push(drive("disk", &disk));
    let guest = Guest::launch(spec);
    let (mut last, mut looks) = (BTreeMap::new(), 0);
    let mut look = |when: &str, guest: &Guest| {
        let now = guest.seen().counts();
        assert_none_went_down(when, &last, &now);
        last = now;
        looks += 1;
    };
    let end = Instant::now() + PATIENCE;
    while !guest.said().contains("ALL=done") {
        assert!(Instant::now() < end, "the guest said:\n{}", guest.said());
        look("running", &guest);
        if guest.said().contains("TURN1") && !guest.said().contains("TURN3") {
            // Pauses come in the middle of whatever the guest does with its device.
            guest.command(VmCommand::Pause);
            look("paused", &guest);
            guest.command(VmCommand::Resume);
            look("resumed", &guest);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let done = guest.finish(PATIENCE);
    assert_eq!(done.outcome, Outcome::PowerOff);
    assert_none_went_down("ended", &last, &done.seen.counts());
    for turn in 1..=3 {
        for said in [format!("TURN{turn}=1"), format!("GONE{turn}=yes")] {
            assert!(done.console.contains(&said), "{said}: {}", done.console);
        }
    }
    let device = |field| done.seen.number("device/disk", field, "");
    let (taken, reset) = (device("activations"), device("resets"));
    println!("{looks} looks; the driver took the device {taken} times and reset it {reset} times");
    assert_eq!(taken, 4, "at the boot and after each unbind");
    assert!(reset >= 3, "at each unbind: {reset}");
    assert!(last.len() > 1000, "{} counts were compared", last.len());
    assert!(done.seen.number("device/disk", "operations", "read") >= 3 * 4);
}
