//! Every kernel, format and number of vCPUs boots, and the guest sees what it was given.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use vmm::{Entry, Outcome, Unpack};

use crate::harness::{Guest, Scratch};
use crate::{PATIENCE, kernel, linux, told};

const LOOK: &str = "
echo CPUS=$(grep -c ^processor /proc/cpuinfo)
echo CORES=$(cat /sys/devices/system/cpu/cpu*/topology/core_id | sort -u | wc -l)
echo PACKAGES=$(cat /sys/devices/system/cpu/cpu*/topology/physical_package_id | sort -u | wc -l)
echo SOURCE=$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)
echo VERSION=$(uname -r)
grep 'System RAM' /proc/iomem
echo TOTAL=$(awk '/MemTotal/{print $2}' /proc/meminfo)
echo NOW=$(date +%s)
echo LOOKED
";

fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
        .cast_signed()
}

/// Bytes of the guest's own list of RAM ranges.
fn ram(console: &str) -> u64 {
    let ranges = console
        .lines()
        .filter(|line| line.contains("System RAM") && !line.starts_with("  "));
    let hex = |text: &str| u64::from_str_radix(text, 16).unwrap();
    ranges
        .filter_map(|line| line.split_once(" : ")?.0.trim().split_once('-'))
        .map(|(start, end)| hex(end) + 1 - hex(start))
        .sum()
}

fn boots(version: &str, form: &str, entry: Entry, vcpus: u8, mib: u64) {
    let mut spec = linux(version, "", LOOK);
    spec.boot.kernel = kernel(version, form);
    spec.boot.entry = entry;
    spec.vcpus = vcpus;
    spec.memory.size_mib = mib;
    let start = now();
    let guest = Guest::launch(spec);
    guest.await_words("LOOKED", PATIENCE);
    let told_then = told(&guest.said(), "NOW").parse::<i64>().unwrap();
    // The clock has whole seconds, and the guest's starts somewhere in one.
    let possible = start - 2..=now() + 2;
    assert!(
        possible.contains(&told_then),
        "the guest's clock said {told_then}, ours {possible:?}"
    );
    let done = guest.finish(PATIENCE);
    assert_eq!(done.outcome, Outcome::PowerOff);
    let console = &done.console;
    assert_eq!(told(console, "CPUS"), vcpus.to_string());
    assert_eq!(told(console, "CORES"), vcpus.to_string());
    assert_eq!(told(console, "PACKAGES"), "1");
    assert!(
        matches!(told(console, "SOURCE"), "kvm-clock" | "tsc"),
        "{console}"
    );
    assert!(told(console, "VERSION").starts_with(&format!("{version}.")));
    // All but the page at 0 and the area of the EBDA, the BIOS and the ACPI tables.
    let missing = (mib << 20) - ram(console);
    assert!(
        missing <= (0x10_0000 - 0x9_FC00) + 0x2000,
        "{missing} bytes missing:\n{console}"
    );
    assert!(!console.contains("Call Trace"), "{console}");
}

macro_rules! boots {
    ($($name:ident: $version:literal $form:literal $entry:ident $vcpus:literal;)*) => {
        $(#[test]
        fn $name() {
            boots($version, $form, Entry::$entry, $vcpus, 256);
        })*
    };
}

boots! {
    linux_6_1_bzimage_1_vcpu: "6.1" "bzImage" Auto 1;
    linux_6_1_bzimage_2_vcpus: "6.1" "bzImage" Auto 2;
    linux_6_1_bzimage_4_vcpus: "6.1" "bzImage" Auto 4;
    linux_6_1_elf64_1_vcpu: "6.1" "vmlinux" Linux64 1;
    linux_6_1_elf64_2_vcpus: "6.1" "vmlinux" Linux64 2;
    linux_6_1_elf64_4_vcpus: "6.1" "vmlinux" Linux64 4;
    linux_6_1_pvh_1_vcpu: "6.1" "vmlinux" Pvh 1;
    linux_6_1_pvh_2_vcpus: "6.1" "vmlinux" Pvh 2;
    linux_6_1_pvh_4_vcpus: "6.1" "vmlinux" Pvh 4;
    linux_6_12_bzimage_1_vcpu: "6.12" "bzImage" Auto 1;
    linux_6_12_bzimage_2_vcpus: "6.12" "bzImage" Auto 2;
    linux_6_12_bzimage_4_vcpus: "6.12" "bzImage" Auto 4;
    linux_6_12_elf64_1_vcpu: "6.12" "vmlinux" Linux64 1;
    linux_6_12_elf64_2_vcpus: "6.12" "vmlinux" Linux64 2;
    linux_6_12_elf64_4_vcpus: "6.12" "vmlinux" Linux64 4;
    linux_6_12_pvh_1_vcpu: "6.12" "vmlinux" Pvh 1;
    linux_6_12_pvh_2_vcpus: "6.12" "vmlinux" Pvh 2;
    linux_6_12_pvh_4_vcpus: "6.12" "vmlinux" Pvh 4;
}

#[test]
fn a_kernel_that_was_kept_unpacked_boots_and_is_placed_anew() {
    let scratch = Scratch::new();
    let folder = scratch.path("kernels");
    let script = "echo TEXT=$(grep -m1 ' _text$' /proc/kallsyms | cut -d' ' -f1)";
    let boot = || {
        let mut spec = linux("6.12", "", script);
        spec.boot.kernel_cache = Some(folder.clone());
        let done = Guest::launch(spec).finish(PATIENCE);
        assert_eq!(done.outcome, Outcome::PowerOff);
        told(&done.console, "TEXT").to_owned()
    };
    let is_kept = || {
        let entries = std::fs::read_dir(&folder).unwrap();
        let mut paths = entries.map(|entry| entry.unwrap().path());
        paths.any(|path| path.extension().is_some_and(|suffix| suffix == "kernel"))
    };
    let mut places = vec![boot()];
    let until = Instant::now() + PATIENCE;
    while !is_kept() {
        assert!(
            Instant::now() < until,
            "nothing is kept in {}",
            folder.display()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    places.extend([boot(), boot()]);
    assert!(places.iter().all(|place| place.len() == 16), "{places:?}");
    // One of some 500 places each time.
    places.dedup();
    assert!(places.len() > 1, "{places:?}");
}

#[test]
fn memory_of_128_mib_is_seen_by_the_guest() {
    boots("6.12", "bzImage", Entry::Auto, 1, 128);
}

#[test]
fn memory_of_5_gib_is_seen_by_the_guest() {
    boots("6.1", "bzImage", Entry::Auto, 1, 5 * 1024);
    boots("6.12", "vmlinux", Entry::Pvh, 1, 5 * 1024);
}

#[test]
fn threads_of_a_core_are_seen_as_such() {
    let mut spec = linux("6.12", "", LOOK);
    (spec.vcpus, spec.smt) = (4, true);
    let console = Guest::launch(spec).finish(PATIENCE).console;
    assert_eq!(
        (told(&console, "CPUS"), told(&console, "CORES")),
        ("4", "2")
    );
}

#[test]
fn the_guest_hears_of_no_device_that_is_not_there() {
    // What the CPU's own errata make a kernel say is not ours.
    let script = "dmesg | grep -iE 'error|fail|warn|bug' | grep -v -e 'Correctable Errors' \
                  -e 'PCI: ' -e 'AMD Zen' -e Speculative -e 'report a bug' | sed 's/^/BAD: /'
echo DONE=1";
    for version in crate::VERSIONS {
        let console = Guest::launch(linux(version, "", script))
            .finish(PATIENCE)
            .console;
        assert_eq!(told(&console, "DONE"), "1");
        assert!(!console.contains("BAD:"), "{version}:\n{console}");
    }
}

/// Where the guest's kernel runs: the address of its `_text`.
fn text_address(words: &str, unpack: Unpack, version: &str) -> String {
    let script = "echo TEXT=$(grep ' _text$' /proc/kallsyms | cut -d' ' -f1)";
    let mut spec = linux(version, words, script);
    spec.boot.unpack = unpack;
    let console = Guest::launch(spec).finish(PATIENCE).console;
    told(&console, "TEXT").to_owned()
}

#[test]
fn a_kernel_is_placed_at_random_whoever_unpacks_it_unless_it_asks_not_to_be() {
    const LINKED: &str = "ffffffff81000000";
    for version in crate::VERSIONS {
        let text = |words, unpack| text_address(words, unpack, version);
        let random = [text("", Unpack::Host), text("", Unpack::Host)];
        // One in some 480 places is the linked one: that both are is no chance.
        assert!(
            random.iter().any(|at| at != LINKED),
            "{version}: {random:?}"
        );
        assert_eq!(text("nokaslr", Unpack::Host), LINKED);
        assert_eq!(text("nokaslr", Unpack::Guest), LINKED);
    }
}
