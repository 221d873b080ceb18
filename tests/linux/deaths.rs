//! What is left of a stock guest's VMM that the host's kernel ended: for want of memory, or by
//! `kill -9` in the middle of its drive's work.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;
use vmm::observe::clock::monotonic_ns;
use vmm::observe::reader::{Reader, Snapshot};
use vmm::observe::verdict::{Code, Observation, Thresholds, diagnose};

use crate::daemon::{Daemon, program};
use crate::harness::cgroup::Cgroup;
use crate::harness::remains::{
    self, chance, exits_are_plausible, has, requests_are_plausible, rings_are_plausible, said,
};
use crate::harness::{Scratch, image};
use crate::{PATIENCE, VERSIONS, kernel};

/// Bytes of the guest's drive.
const DISK: usize = 4 << 20;
/// Memory that the guest believes to have, and what its VMM may use beyond what it has by then.
const GUEST_MIB: u64 = 512;
const MORE_MIB: u64 = 20;

/// While it lives, memory is given in small pages; then as before.
struct SmallPages(Option<String>);

impl SmallPages {
    const SETTING: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

    fn new() -> SmallPages {
        // A kernel without huge pages has no such file.
        let Ok(before) = fs::read_to_string(Self::SETTING) else {
            return SmallPages(None);
        };
        fs::write(Self::SETTING, "never").unwrap();
        let chosen = before.split(['[', ']']).nth(1).unwrap();
        SmallPages(Some(chosen.to_owned()))
    }
}

impl Drop for SmallPages {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            fs::write(Self::SETTING, before).unwrap();
        }
    }
}

/// A process that waits for its configuration.
fn daemon() -> Daemon {
    let arguments = ["--api-sock", "SCRATCH/api.sock", "--id", "mortal"];
    let daemon = Daemon::with(Scratch::new(), &arguments);
    daemon.await_path("api.sock");
    daemon
}

/// Boots a guest with a drive that runs `script`, and waits until it has said `words`.
fn boot(daemon: &Daemon, version: &str, script: &str, words: &str) {
    let memory = json!({"vcpu_count": 1, "mem_size_mib": GUEST_MIB});
    daemon.put("/machine-config", &memory);
    let disk = daemon.scratch.disk("disk", DISK, 3);
    let drive = json!({"drive_id": "disk", "is_root_device": false, "path_on_host": disk});
    daemon.put("/drives/disk", &drive);
    let script = BASE64_STANDARD.encode(script);
    let boot = json!({
        "kernel_image_path": kernel(version, "bzImage"),
        "initrd_path": image(&format!("initrd-{version}.img")),
        "boot_args": format!("console=ttyS0 reboot=k panic=1 quiet vitrine.script={script}"),
    });
    daemon.put("/boot-source", &boot);
    daemon.put("/actions", &json!({"action_type": "InstanceStart"}));
    let end = Instant::now() + PATIENCE;
    while !daemon.text("stdout").contains(words) {
        let said = daemon.text("stdout");
        assert!(Instant::now() < end, "no {words:?} in:\n{said}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What is left of a VM whose process has ended: its black box, and the report of it.
fn remains(daemon: &Daemon, ended_ns: u64) -> (Snapshot, String) {
    let path = daemon.scratch.path("vitrine/mortal.blackbox");
    let seen = Reader::open(&path).unwrap().snapshot().unwrap();
    remains::are_whole(&seen, "mortal", daemon.child.id());
    rings_are_plausible(&seen, ended_ns);
    exits_are_plausible(seen.section("vcpu/0").unwrap());
    requests_are_plausible(&seen, "disk");
    let output = Command::new(program()).arg("report").arg(&path).output();
    let text = said(&output.unwrap(), 1);
    remains::are_told_as_dead(&text, "mortal");
    has(
        &text,
        &[
            "\n1 vCPU, ",
            "\nvCPU 0: ",
            "\nio_out ",
            "\ndisk/0 ",
            "\ndisk read ",
            "\ndisk virtio-mmio at work ",
            "\nvcpu-0 ",
            "\nvm ",
            "\nio-disk ",
            "\nwatcher ",
            "\nconsole ",
            "\nConsole serial: output ",
            "\nThe last ",
            " s vcpu-0 ",
            " s io-disk disk: ",
        ],
    );
    (seen, text)
}

#[test]
fn a_vmm_that_the_host_ended_for_want_of_memory_tells_of_its_limit() {
    // First the drive, then memory, so slowly (2 MiB a second) that some samples are taken of its
    // last tenth. With huge pages each first touch would take 2 MiB; and a guest that has just
    // booted touches 20 MiB in its first commands, so those come before.
    let _pages = SmallPages::new();
    let script = "
cat /dev/vda > /dev/null
fill() {
  dd if=/dev/zero bs=512k count=1 2> /dev/null
  sleep 0.2
}
for round in 1 2 3 4 5 6 7 8 9 10; do
  fill > /run/first
done
echo FILLING
while :; do
  fill
done >> /run/more
";
    let cgroup = Cgroup::new();
    cgroup.without_swap();
    let mut daemon = daemon();
    cgroup.enter(daemon.child.id());
    boot(&daemon, "6.12", script, "FILLING");
    let used: u64 = cgroup.read("memory.current").trim().parse().unwrap();
    let limit_mib = (used >> 20) + MORE_MIB;
    let limit_bytes = limit_mib << 20;
    cgroup.write("memory.max", &limit_bytes.to_string());
    let end = Instant::now() + PATIENCE;
    while daemon.child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < end, "the VMM outlives its memory");
        std::thread::sleep(Duration::from_millis(20));
    }
    let ended_ns = monotonic_ns();
    assert_eq!(
        cgroup.number("memory.events", "oom_kill"),
        1,
        "it did not end so:\n{}",
        daemon.text("stdout")
    );
    let (seen, text) = remains(&daemon, ended_ns);
    let of = |field| seen.section("cgroup").unwrap().gauge(field).unwrap();
    assert_eq!(
        (of("memory_limited"), of("memory_max")),
        (1, limit_bytes),
        "{used} used, then {}\n{text}",
        cgroup.read("memory.stat")
    );
    let used = of("memory_current");
    assert!(
        (limit_bytes / 10 * 9..=limit_bytes).contains(&used),
        "{used}\n{text}\n{}",
        daemon.text("stdout")
    );
    let limit = format!("limit {limit_mib}.0 MiB");
    has(&text, &["\nCgroup memory: ", &limit]);
    // What killed it is found, and stands before that it died.
    let verdicts = diagnose(None, &Observation::of(&seen), &Thresholds::default());
    let codes: Vec<Code> = verdicts.iter().map(|verdict| verdict.code).collect();
    assert_eq!(codes, [Code::VmmOomKilled, Code::VmmDied], "{verdicts:#?}");
    let cause = verdicts[1].consequence_of.as_ref().map(|(code, _)| *code);
    assert_eq!(cause, Some(Code::VmmOomKilled));
    println!("{}", verdicts[0].summary);
    for line in text
        .lines()
        .take(4)
        .chain(text.lines().filter(|line| line.starts_with("Cgroup")))
    {
        println!("{line}");
    }
}

#[test]
fn kill_9_in_the_middle_of_disk_work_leaves_a_black_box_that_is_whole() {
    let script = "
echo LOADING
while :; do
  dd if=/dev/zero of=/dev/vda bs=64k count=64 conv=fsync
  dd if=/dev/vda of=/dev/null bs=64k iflag=direct
done 2> /dev/null
";
    let seed = std::env::var("VITRINE_SEED").ok();
    let seed = seed.map_or_else(monotonic_ns, |seed| seed.parse().unwrap());
    println!("VITRINE_SEED={seed}");
    for number in 0..5 {
        let version = VERSIONS[usize::from(number % 2 == 1)];
        let mut daemon = daemon();
        boot(&daemon, version, script, "LOADING");
        let after = Duration::from_millis(500 + chance(seed, number) % 2500);
        std::thread::sleep(after);
        daemon.child.kill().unwrap();
        let ended_ns = monotonic_ns();
        daemon.finish();
        let (seen, text) = remains(&daemon, ended_ns);
        let device = seen.section("device/disk").unwrap();
        let written = device.table("operations", "write").unwrap().as_u64();
        assert!(written > Some(0), "it did no work:\n{text}");
        has(&text, &["\ndisk write "]);
        let last = text.lines().rev().find(|line| line.contains(" io-disk "));
        println!("{version}, killed after {after:?}: {}", last.unwrap());
    }
}
