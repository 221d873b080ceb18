//! virtio-blk under stock kernels.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use vmm::Outcome;

use crate::harness::{Guest, Scratch, Seen, drive, image};
use crate::{PATIENCE, TRANSPORTS, VERSIONS, linux, on, told};

/// All that a drive can be asked.
const OPERATIONS: [&str; 7] = [
    "read",
    "write",
    "flush",
    "get_id",
    "unsupported",
    "discard",
    "write_zeroes",
];

fn md5(path: &Path) -> String {
    let output = Command::new("md5sum").arg(path).output().unwrap();
    String::from_utf8(output.stdout)
        .unwrap()
        .split_whitespace()
        .next()
        .unwrap()
        .to_owned()
}

#[test]
fn the_root_is_on_a_drive_clean_afterwards_and_holds_what_was_written() {
    let script = "
dd if=/dev/urandom of=/written bs=1M count=20 2>/dev/null
echo SUM=$(md5sum < /written | cut -d' ' -f1)
echo ROOT=$(awk '$2==\"/\"{print $1 \",\" $3}' /proc/mounts | tail -1)
";
    for version in VERSIONS {
        let scratch = Scratch::new();
        let root = scratch.path("root.ext4");
        fs::copy(image("root.ext4"), &root).unwrap();
        let mut spec = linux(version, "vitrine.root=/dev/vda", script);
        let mut first = drive("rootfs", &root);
        first.root = true;
        spec.drives.push(first);
        let done = Guest::launch(spec).finish(PATIENCE);
        assert_eq!(done.outcome, Outcome::PowerOff, "{}", done.console);
        assert!(
            told(&done.console, "ROOT").ends_with("ext4"),
            "{}",
            done.console
        );
        let checked = Command::new("e2fsck")
            .args(["-fn"])
            .arg(&root)
            .output()
            .unwrap();
        assert!(
            checked.status.success(),
            "{}",
            String::from_utf8_lossy(&checked.stdout)
        );
        let copy = scratch.path("written");
        let dump = format!("dump /written {}", copy.display());
        Command::new("debugfs")
            .args(["-R", &dump])
            .arg(&root)
            .output()
            .unwrap();
        assert_eq!(md5(&copy), told(&done.console, "SUM"), "{version}");
        let queue = |field| done.seen.number("queue/rootfs/0", field, "");
        assert_eq!(queue("requests"), queue("completions"));
        assert_eq!(queue("in_flight"), 0);
        assert!(done.seen.number("device/rootfs", "operations", "flush") > 0);
        stages_fit_together(&done.seen, version);
    }
}

/// That each stage of the requests of the drive `rootfs` was counted, and none too often.
fn stages_fit_together(seen: &Seen, version: &str) {
    let queue = |field| seen.number("queue/rootfs/0", field, "");
    let device = |field, row| seen.number("device/rootfs", field, row);
    assert_eq!(queue("service"), queue("completions"), "{version}");
    // What lay in the ring at activation, or when a kick was lost, came without one.
    let (kicked, unasked) = (queue("kick_to_pop"), queue("kicks_suppressed"));
    let otherwise = queue("requests").checked_sub(kicked + unasked);
    let most = 1 + 256 * queue("lost_kicks");
    assert!(
        otherwise.is_some_and(|count| count <= most),
        "{version}: {otherwise:?}"
    );
    assert!(kicked > 0, "{version}");
    assert!(queue("interrupts") > 0, "{version}");
    assert_eq!(queue("done_to_interrupt"), queue("interrupts"), "{version}");
    let reclaimed = queue("interrupt_to_reclaim");
    assert!(
        (1..=queue("interrupts")).contains(&reclaimed),
        "{version}: {reclaimed}"
    );
    assert_eq!(queue("oldest_since"), 0);
    assert_ne!(queue("last_interrupt_at"), 0);
    assert!(queue("unread_completions") <= 256);
    let mut operations = 0;
    for row in OPERATIONS {
        let count = device("operation_latency", row);
        assert_eq!(count, device("operations", row), "{version}: {row}");
        operations += count;
    }
    assert_eq!(operations, queue("completions"), "{version}");
}

#[test]
fn a_drive_has_its_size_its_name_and_its_read_only_flag() {
    let script = "
for d in vda vdb; do
  echo $d=$(cat /sys/block/$d/size),$(cat /sys/block/$d/ro),$(cat /sys/block/$d/serial)
done
dd if=/dev/zero of=/dev/vdb bs=512 count=1 2>/dev/null && echo WRITTEN=yes || echo WRITTEN=no
echo SUM=$(md5sum < /dev/vda | cut -d' ' -f1)
";
    for (version, pci) in TRANSPORTS {
        let scratch = Scratch::new();
        let first = scratch.disk("first", 3 << 20, 1);
        let second = scratch.disk("second", 1 << 20, 2);
        let mut spec = on(version, pci, "", script);
        spec.drives.push(drive("first_one", &first));
        spec.drives.push(drive("second", &second));
        spec.drives[1].read_only = true;
        let before = fs::read(&second).unwrap();
        let console = Guest::launch(spec).finish(PATIENCE).console;
        assert_eq!(told(&console, "vda"), "6144,0,first_one");
        assert_eq!(told(&console, "vdb"), "2048,1,second");
        assert_eq!(told(&console, "WRITTEN"), "no");
        assert_eq!(told(&console, "SUM"), md5(&first));
        assert_eq!(fs::read(&second).unwrap(), before);
    }
}

/// Where the partition begins, in sectors, and the disk's signature, which its UUID is made of.
const PARTITION: u32 = 2048;
const SIGNATURE: u32 = 0x2F6A_91C4;

/// A disk with a table of one partition, which holds this file system.
fn partitioned(file_system: &Path, disk: &Path) {
    let content = fs::read(file_system).unwrap();
    let sectors = (content.len() / 512) as u32;
    let mut table = [0; 512];
    table[440..444].copy_from_slice(&SIGNATURE.to_le_bytes());
    table[450] = 0x83;
    table[454..458].copy_from_slice(&PARTITION.to_le_bytes());
    table[458..462].copy_from_slice(&sectors.to_le_bytes());
    table[510..].copy_from_slice(&[0x55, 0xAA]);
    let file = fs::File::create(disk).unwrap();
    file.write_all_at(&table, 0).unwrap();
    file.write_all_at(&content, u64::from(PARTITION) * 512)
        .unwrap();
}

#[test]
fn the_root_is_the_partition_of_the_given_uuid() {
    let script = "
echo UUID=$(grep -o 'root=PARTUUID=[^ ]* [a-z]*' /proc/cmdline)
echo ROOT=$(awk '$2==\"/\"{print $1}' /proc/mounts | tail -1)
echo written > /written; sync
";
    for (version, pci) in TRANSPORTS {
        let scratch = Scratch::new();
        let disk = scratch.path("disk");
        partitioned(&image("root.ext4"), &disk);
        let mut spec = on(version, pci, "vitrine.root=given", script);
        // Not the first that is configured, and yet the guest's vda.
        let other = scratch.disk("other", 1 << 20, 1);
        spec.drives.push(drive("other", &other));
        spec.drives.push(drive("rootfs", &disk));
        spec.drives[1].root = true;
        let uuid = format!("{SIGNATURE:08x}-01");
        spec.drives[1].partuuid = Some(uuid.clone());
        let done = Guest::launch(spec).finish(PATIENCE);
        assert_eq!(done.outcome, Outcome::PowerOff, "{}", done.console);
        assert_eq!(
            told(&done.console, "UUID"),
            format!("root=PARTUUID={uuid} rw")
        );
        assert_eq!(told(&done.console, "ROOT"), "/dev/vda1");
    }
}
