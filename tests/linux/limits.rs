//! Rate limits of a drive, the entropy device and the serial console under stock kernels.

use vmm::{BucketSpec, DeviceChange, DriveChange, EntropySpec, LimiterSpec, Outcome};

use crate::harness::{ENGINES, Guest, Scratch, drive};
use crate::{PATIENCE, TRANSPORTS, on, told};

/// So much at once, and for as long as a test lasts next to nothing more.
fn once(size: u64, one_time_burst: u64) -> Option<BucketSpec> {
    Some(BucketSpec {
        size,
        one_time_burst,
        refill_ms: 3_600_000_000,
    })
}

fn drive_limit(guest: &Guest, bandwidth: Option<BucketSpec>, ops: Option<BucketSpec>) {
    let limiter = LimiterSpec { bandwidth, ops };
    let change = DriveChange {
        path: None,
        limiter,
    };
    assert_eq!(guest.change("disk", DeviceChange::Drive(change)), Ok(()));
}

#[test]
fn a_drives_limits_and_its_burst_bind_and_are_changed_while_the_guest_waits() {
    let script = "
take() { dd if=/dev/vda of=/dev/null bs=64k count=$1 iflag=direct 2>/dev/null; }
take 32; echo BURST=done
take 64; echo REST=done
";
    for ((version, pci), engine) in TRANSPORTS.into_iter().zip(ENGINES) {
        let scratch = Scratch::new();
        let disk = scratch.disk("disk", 4 << 20, 1);
        let mut spec = on(version, pci, "", script);
        spec.drives.push(drive("disk", &disk));
        spec.drives[0].engine = engine;
        spec.drives[0].limiter.bandwidth = once(64 << 10, 4 << 20);
        let guest = Guest::launch(spec);
        let queue = |field| guest.seen().number("queue/disk/0", field, "");
        // Without the burst this took a day.
        guest.await_words("BURST=done", PATIENCE);
        guest.until("a wait for bytes", PATIENCE, |_| queue("limited_since") > 0);
        let taken = queue("written");
        let most = (4 << 20) + (64 << 10) + 4096;
        assert!((4 << 20..most).contains(&taken), "{version}: {taken}");

        let before = queue("requests");
        drive_limit(&guest, once(0, 0), once(10, 0));
        guest.until("ten requests", PATIENCE, |_| {
            queue("requests") >= before + 10
        });
        std::thread::sleep(std::time::Duration::from_millis(200));
        assert_eq!(queue("requests"), before + 10, "{version}");
        assert!(!guest.said().contains("REST=done"));

        drive_limit(&guest, None, once(0, 0));
        let done = guest.finish(PATIENCE);
        assert_eq!(done.outcome, Outcome::PowerOff, "{}", done.console);
        assert_eq!(told(&done.console, "REST"), "done");
        let waits = done.seen.number("queue/disk/0", "limited", "");
        assert!((1..10).contains(&waits), "{version}: {waits}");
        assert!(done.seen.number("queue/disk/0", "limited_wait", "") > 0);
    }
}

/// Bytes of random numbers that the guest reads, and how many it is given in three seconds.
const RANDOM: u64 = 4096;
const IN_THREE_SECONDS: u64 = 2048;
/// Bytes of the serial console's output.
const LINES: u64 = 4000;

#[test]
fn random_bytes_come_as_fast_as_allowed_and_console_output_ends_where_it_must() {
    let script = format!(
        "
begun=$(cut -d' ' -f1 /proc/uptime)
dd if=/dev/hwrng bs=64 count={} 2>/dev/null | wc -c > /run/read
echo READ=$(cat /run/read),$begun,$(cut -d' ' -f1 /proc/uptime)
i=0
while [ $i -lt 200 ]; do
  echo \"line $i of many that nobody needs\"
  i=$((i+1))
done
",
        RANDOM / 64
    );
    for (version, pci) in TRANSPORTS {
        let mut spec = on(version, pci, "", &script);
        let bandwidth = BucketSpec {
            size: IN_THREE_SECONDS,
            one_time_burst: 0,
            refill_ms: 3000,
        };
        spec.entropy = Some(EntropySpec {
            limiter: LimiterSpec {
                bandwidth: Some(bandwidth),
                ops: None,
            },
        });
        spec.serial.limit = once(LINES / 2, LINES / 2);
        let done = Guest::launch(spec).finish(PATIENCE);
        assert_eq!(done.outcome, Outcome::PowerOff, "{}", done.console);
        let read: Vec<f64> = told(&done.console, "READ")
            .split(',')
            .map(|number| number.parse().unwrap())
            .collect();
        assert_eq!(read[0], RANDOM as f64);
        // What was in the bucket at first came at once.
        let took = read[2] - read[1];
        assert!(took > 2.5, "{version}: {took} s");
        let queue = |field| done.seen.number("queue/entropy/0", field, "");
        assert!(queue("limited") > 0 && queue("limited_wait") > 0);

        let console = |field| done.seen.number("console/serial", field, "");
        assert_eq!(done.console.len() as u64, LINES, "{version}");
        assert_eq!(console("output"), LINES, "{version}");
        assert!(console("limit_dropped") > 2000, "{version}");
        assert!(!done.console.contains("line 199"));
    }
}
