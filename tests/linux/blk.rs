//! What stock kernels are told of a drive, and what they do with it beside reading and writing.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use vmm::{Outcome, VmEvent};

use crate::harness::{ENGINES, Guest, Scratch, drive};
use crate::{PATIENCE, TRANSPORTS, on, on_root_drive, told};

/// `/sys/block/vdb/queue`: what lsblk --topology and --discard show.
const QUEUE: [(&str, &str); 9] = [
    ("logical_block_size", "512"),
    ("physical_block_size", "4096"),
    ("minimum_io_size", "4096"),
    ("max_segments", "254"),
    ("max_segment_size", "4194304"),
    ("discard_max_bytes", "1073741824"),
    ("discard_granularity", "4096"),
    ("write_zeroes_max_bytes", "16777216"),
    ("write_cache", "write back"),
];

#[test]
fn a_guest_discards_makes_file_systems_and_sees_the_limits() {
    let names = QUEUE.map(|(name, _)| name).join(" ");
    let script = format!(
        "
for name in {names}; do echo $name=$(cat /sys/block/vdb/queue/$name); done
blkdiscard -o 1048576 -l 1048576 /dev/vdb && echo DISCARD=done
mke2fs -q -F -t ext4 -E discard,lazy_itable_init=0 /dev/vdc && echo MADE=done
blkdiscard /dev/vdd 2>/dev/null && echo REFUSED=no || echo REFUSED=yes
echo NODISCARD=$(cat /sys/block/vdd/queue/discard_max_bytes)
echo UNSAFE=$(cat /sys/block/vdd/queue/write_cache)
echo LSBLK=$(lsblk -bndo PHY-SEC,LOG-SEC,DISC-GRAN,DISC-MAX /dev/vdb)
echo READONLY=$(blockdev --getro /dev/vdb),$(blockdev --getro /dev/vdd)
for drive in vdb vde; do dd if=/dev/zero of=/dev/$drive bs=4k count=1 conv=fsync 2>/dev/null; done
dd if=/dev/zero of=/freed bs=1M count=8 2>/dev/null; sync; rm /freed; sync
fstrim / && echo TRIMMED=yes
"
    );
    for (version, pci) in TRANSPORTS {
        let scratch = Scratch::new();
        let [data, made, fixed, loose] = ["data", "made", "fixed", "loose"].map(|name| {
            // No word of it is zero.
            scratch.disk(name, 4 << 20, 1)
        });
        let before = fs::read(&data).unwrap();
        let space = fs::metadata(&data).unwrap().blocks();
        let mut spec = on_root_drive(&scratch, version, pci, &script);
        spec.drives.push(drive("data", &data));
        spec.drives.push(drive("made", &made));
        spec.drives.push(drive("fixed", &fixed));
        spec.drives[2].engine = vmm::IoEngine::Async;
        spec.drives[3].read_only = true;
        spec.drives[3].cache = vmm::Cache::Unsafe;
        spec.drives.push(drive("loose", &loose));
        spec.drives[4].cache = vmm::Cache::Unsafe;
        let done = Guest::launch(spec).finish(PATIENCE);
        assert_eq!(done.outcome, Outcome::PowerOff, "{}", done.console);
        for (name, value) in QUEUE {
            assert_eq!(told(&done.console, name), value, "{version}: {name}");
        }
        assert_eq!(told(&done.console, "DISCARD"), "done");
        let mut expected = before;
        expected[1 << 20..2 << 20].fill(0);
        expected[..4096].fill(0);
        assert!(fs::read(&data).unwrap() == expected, "{version}");
        let given_back = space - fs::metadata(&data).unwrap().blocks();
        assert_eq!(given_back * 512, 1 << 20, "{version}");

        assert_eq!(told(&done.console, "MADE"), "done");
        let checked = Command::new("e2fsck").args(["-fn"]).arg(&made).output();
        assert!(checked.unwrap().status.success(), "{version}");
        let count = |operation| done.seen.number("device/made", "operations", operation);
        assert!(
            count("discard") > 0 && count("write_zeroes") > 0,
            "{version}"
        );
        assert_eq!(done.seen.number("device/made", "host_errors", ""), 0);
        assert_eq!(done.seen.number("device/made", "io_engine", ""), 2);
        assert_eq!(done.seen.number("device/data", "io_engine", ""), 1);

        assert_eq!(told(&done.console, "REFUSED"), "yes");
        assert_eq!(told(&done.console, "NODISCARD"), "0");
        assert_eq!(told(&done.console, "UNSAFE"), "write through");
        assert_eq!(told(&done.console, "LSBLK"), "4096 512 4096 1073741824");
        assert_eq!(told(&done.console, "READONLY"), "0,1");
        let flushes = |device| done.seen.number(device, "operations", "flush");
        assert!(flushes("device/data") > 0, "{version}");
        assert_eq!(flushes("device/loose"), 0, "{version}");
        assert_eq!(told(&done.console, "TRIMMED"), "yes");
        let trimmed = done.seen.number("device/rootfs", "operations", "discard");
        assert!(trimmed > 0, "{version}");
    }
}

/// A folder in memory of so many KiB, while this lives.
struct Small(Scratch);

impl Small {
    fn new(kib: u32) -> Small {
        let small = Small(Scratch::new());
        small.mount(&["-t", "tmpfs", "-o", &format!("size={kib}k"), "tmpfs"]);
        small
    }

    fn grow(&self, kib: u32) {
        self.mount(&["-o", &format!("remount,size={kib}k")]);
    }

    fn mount(&self, words: &[&str]) {
        let mut mount = Command::new("mount");
        let done = mount.args(words).arg(self.0.path("")).status().unwrap();
        assert!(done.success(), "mount {words:?}");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("-l")
            .arg(self.0.path(""))
            .status();
    }
}

#[test]
fn a_full_host_is_an_io_error_and_the_guest_goes_on_when_there_is_space() {
    let script = "
write() { dd if=/dev/urandom of=/dev/vda bs=64k count=64 oflag=direct 2>/dev/null; }
write && echo FULL=no || echo FULL=yes
until write; do sleep 0.2; done
echo SUM=$(md5sum < /dev/vda | cut -d' ' -f1)
";
    for ((version, pci), engine) in TRANSPORTS.into_iter().zip(ENGINES) {
        let small = Small::new(1024);
        let disk = small.0.path("disk");
        fs::File::create(&disk).unwrap().set_len(4 << 20).unwrap();
        let mut spec = on(version, pci, "", script);
        spec.drives.push(drive("disk", &disk));
        spec.drives[0].engine = engine;
        let guest = Guest::launch(spec);
        guest.await_words("FULL=yes", PATIENCE);
        let mut told = guest.events.try_iter();
        let is_told = told.any(|event| {
            matches!(event, VmEvent::Device { device, detail } if device == "disk"
                && detail.contains("refused write at sector") && detail.contains("No space left"))
        });
        assert!(is_told, "{version}");
        let seen = guest.seen();
        let of = |field, row| seen.number("device/disk", field, row);
        assert!(of("operation_errors", "write") > 0, "{version}");
        assert_eq!(of("last_errno", ""), libc::ENOSPC as u64);
        assert_eq!(of("last_error_operation", ""), 1);
        assert!((1..8192).contains(&of("last_error_sector", "")));
        small.grow(16 << 10);
        let done = guest.finish(PATIENCE);
        assert_eq!(done.outcome, Outcome::PowerOff, "{}", done.console);
        let sum = Command::new("md5sum").arg(&disk).output().unwrap().stdout;
        let sum = String::from_utf8(sum).unwrap();
        let own = crate::told(&done.console, "SUM");
        assert!(sum.starts_with(own), "{version}: {own} and {sum}");
    }
}

#[test]
fn a_guest_uses_a_queue_for_each_vcpu() {
    let script = "
echo QUEUES=$(ls /sys/block/vda/mq | wc -l)
for mask in 1 2; do taskset $mask dd if=/dev/vda of=/dev/null bs=4k count=50 iflag=direct 2>/dev/null; done
echo SUM=$(md5sum < /dev/vda | cut -d' ' -f1)
";
    for (version, pci) in TRANSPORTS {
        let scratch = Scratch::new();
        let disk = scratch.disk("disk", 1 << 20, 5);
        let mut spec = on(version, pci, "", script);
        spec.vcpus = 2;
        spec.drives.push(drive("disk", &disk));
        spec.drives[0].queues = 2;
        spec.drives[0].engine = vmm::IoEngine::Async;
        let done = Guest::launch(spec).finish(PATIENCE);
        assert_eq!(told(&done.console, "QUEUES"), "2", "{version}");
        for queue in ["queue/disk/0", "queue/disk/1"] {
            let of = |field| done.seen.number(queue, field, "");
            assert!(of("requests") >= 50, "{version}: {queue}");
            assert_eq!(of("requests"), of("completions"), "{version}: {queue}");
        }
        let sum = Command::new("md5sum").arg(&disk).output().unwrap().stdout;
        let sum = String::from_utf8(sum).unwrap();
        assert!(sum.starts_with(told(&done.console, "SUM")), "{version}");
    }
}
