//! The balloon under stock kernels, judged by what the host's kernel says of this process.

use std::fs;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use vmm::{BalloonOrder, BalloonSpec, Outcome, VmSpec};

use crate::daemon::Daemon;
use crate::harness::{Guest, Scratch, image};
use crate::{PATIENCE, TRANSPORTS, kernel, on};

const MIB: u64 = 1 << 20;

/// Uses up most of the guest's memory and gives it back to the guest's kernel, so that the host has
/// it; then tells what /proc/meminfo says, again and again.
const FILL: &str = "
mount -o remount,size=90% /run
dd if=/dev/zero of=/run/fill bs=1M count=330 2>/dev/null
rm /run/fill
echo FILLED=yes
while :; do
  echo FREE=$(awk '/^MemFree/{print $2}' /proc/meminfo),$(awk '/^MemTotal/{print $2}' /proc/meminfo)
  sleep 1
done
";

fn guest(
    (version, pci): (&str, bool),
    memory_mib: u64,
    balloon: BalloonSpec,
    script: &str,
) -> Guest {
    let mut spec: VmSpec = on(version, pci, "", script);
    spec.memory.size_mib = memory_mib;
    spec.balloon = Some(balloon);
    Guest::launch(spec)
}

/// What this process has in the host's memory.
fn resident_mib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    kib.unwrap().parse::<u64>().unwrap() / 1024
}

fn order(guest: &Guest, order: BalloonOrder) {
    let (sender, answer) = channel();
    let reply = Box::new(move |done| drop(sender.send(done)));
    guest.vm.balloon(order, reply);
    assert_eq!(answer.recv_timeout(PATIENCE).unwrap(), Ok(()));
}

fn until(what: &str, guest: &Guest, patience: Duration, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + patience;
    while !holds() {
        let said = guest.said();
        let last = said.lines().rev().take(5).collect::<Vec<_>>();
        assert!(
            Instant::now() < end,
            "{what} did not come; {} MiB are resident; {last:?}",
            resident_mib()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn number(guest: &Guest, field: &str) -> u64 {
    guest.seen().number("balloon", field, "")
}

/// Free and all memory, as the guest said last.
fn said(guest: &Guest) -> (u64, u64) {
    let said = guest.said();
    // Not of a line that the guest has not ended yet.
    let (whole, _) = said.rsplit_once('\n').unwrap_or_default();
    let lines: Vec<&str> = whole.lines().collect();
    let told = lines.iter().rev().find_map(|line| {
        let (free, total) = line.trim().strip_prefix("FREE=")?.split_once(',')?;
        Some((free.parse::<u64>().ok()?, total.parse::<u64>().ok()?))
    });
    told.map_or((0, 0), |(free, total)| (free * 1024, total * 1024))
}

/// What the guest says from now on.
fn said_anew(guest: &Guest) -> (u64, u64) {
    let count = || guest.said().matches("FREE=").count();
    let before = count();
    until("the guest's word", guest, PATIENCE, || {
        count() >= before + 3
    });
    said(guest)
}

#[test]
fn an_inflated_balloon_gives_memory_to_the_host_and_a_deflated_one_takes_it_back() {
    for (version, pci) in TRANSPORTS {
        let spec = BalloonSpec {
            statistics_s: 1,
            ..BalloonSpec::default()
        };
        let guest = guest((version, pci), 512, spec, FILL);
        guest.await_words("FILLED=yes", PATIENCE);
        let (free, total) = said_anew(&guest);
        let before = resident_mib();
        order(&guest, BalloonOrder::Resize { mib: 256 });
        let full = || number(&guest, "actual") == 256 * MIB;
        until("a full balloon", &guest, PATIENCE, full);
        let inflated = resident_mib();
        assert_eq!(number(&guest, "discarded"), 256 * MIB, "{version}");
        assert_eq!(number(&guest, "refused_outside"), 0);
        assert!(
            inflated + 250 <= before,
            "{version}: {before} -> {inflated}"
        );
        let (left, _) = said_anew(&guest);
        assert!(left + 240 * MIB <= free, "{version}: {free} -> {left}");

        // The statistics are of the same second, more or less.
        until("statistics", &guest, PATIENCE, || {
            number(&guest, "statistics") > 2
        });
        let (told, (left, _)) = (number(&guest, "free_memory"), said(&guest));
        assert!(told.abs_diff(left) < 8 * MIB, "{version}: {told}, {left}");
        // The kernel takes the balloon's pages out of its total, unless it may take them back.
        let (all, said_now) = (number(&guest, "total_memory"), said(&guest).1);
        assert!(all.abs_diff(said_now) < MIB, "{version}: {all}, {said_now}");
        let present = number(&guest, "statistics_present").count_ones();
        assert!(
            present >= if version == "6.12" { 16 } else { 10 },
            "{version}: {present}"
        );

        order(&guest, BalloonOrder::Resize { mib: 0 });
        until("an empty balloon", &guest, PATIENCE, || {
            number(&guest, "actual") == 0
        });
        let (back, total_back) = said_anew(&guest);
        // Some of it lies in lists of the CPU, or is cache again.
        assert!(back + 32 * MIB >= free, "{version}: {free} -> {back}");
        assert_eq!((total_back, number(&guest, "deflated")), (total, 256 * MIB));
        println!("{version}: {before} MiB resident, {inflated} MiB with a full balloon");
        guest.stop();
    }
}

#[test]
fn a_guest_out_of_memory_takes_it_out_of_the_balloon_if_it_may() {
    let script = "
while [ ! -e /run/go ]; do
  [ $(awk '/^MemFree/{print $2}' /proc/meminfo) -lt 90000 ] && touch /run/go
  sleep 1
done
dd if=/dev/zero of=/dev/null bs=120M count=1 2>/dev/null && echo HOG=fine || echo HOG=killed
";
    for (version, pci) in TRANSPORTS {
        for (deflate_on_oom, end) in [(true, "HOG=fine"), (false, "HOG=killed")] {
            let spec = BalloonSpec {
                target_mib: 120,
                deflate_on_oom,
                statistics_s: 1,
                ..BalloonSpec::default()
            };
            let done = guest((version, pci), 256, spec, script).finish(PATIENCE);
            assert_eq!(done.outcome, Outcome::PowerOff, "{}", done.console);
            assert!(done.console.contains(end), "{version}: {}", done.console);
            let deflated = done.seen.number("balloon", "deflated", "");
            assert_eq!(deflated > 0, deflate_on_oom, "{version}");
            println!(
                "{version}: deflate_on_oom {deflate_on_oom}: {} MiB taken back",
                deflated / MIB
            );
        }
    }
}

#[test]
fn freed_memory_is_reported_and_back_at_the_host_within_seconds() {
    for (version, pci) in TRANSPORTS {
        let spec = BalloonSpec {
            reporting: true,
            ..BalloonSpec::default()
        };
        let guest = guest((version, pci), 512, spec, FILL);
        // The guest may report at once, so the most that was resident is what counts.
        let mut start = 0;
        until("a file that was removed", &guest, PATIENCE, || {
            start = start.max(resident_mib());
            guest.said().contains("FILLED=yes")
        });
        let freed = Instant::now();
        // The guest's kernel reports a part of what is free every two seconds of its own. It may have
        // reported all that was free before the file, so only the host's side tells.
        let returned = || resident_mib() + 200 <= start;
        until("reported memory", &guest, PATIENCE, returned);
        let (after, took) = (resident_mib(), freed.elapsed());
        let reported = number(&guest, "reported") / MIB;
        assert!(reported >= 200, "{version}: {start} -> {after}, {reported}");
        // More may be reported now, and the two are not read at one instant.
        until("all that was reported", &guest, PATIENCE, || {
            number(&guest, "discarded") == number(&guest, "reported")
        });
        println!("{version}: {after} MiB resident {took:?} after 330 MiB were freed");
        guest.stop();
    }
}

#[test]
fn a_hinting_run_gives_free_memory_to_the_host_and_the_guest_goes_on() {
    for (version, pci) in TRANSPORTS {
        let spec = BalloonSpec {
            hinting: true,
            ..BalloonSpec::default()
        };
        let guest = guest((version, pci), 512, spec, FILL);
        guest.await_words("FILLED=yes", PATIENCE);
        let (free, _) = said_anew(&guest);
        let before = resident_mib();
        for run in 1..=2 {
            order(&guest, BalloonOrder::StartHinting { acknowledge: true });
            let ended = || number(&guest, "hinting_runs") == run;
            until("the run's end", &guest, PATIENCE, ended);
            assert_eq!(number(&guest, "host_command"), 1, "{version}: acknowledged");
        }
        let after = resident_mib();
        assert!(after + 200 <= before, "{version}: {before} -> {after}");
        assert!(number(&guest, "hinted") >= 200 * MIB);
        let (back, _) = said_anew(&guest);
        assert!(back + 16 * MIB >= free, "{version}: {free} -> {back}");
        println!("{version}: {before} MiB resident, {after} MiB after hinting");
        guest.stop();
    }
}

/// Waits for the balloon, and then uses 4 MiB more each second: more than the balloon leaves.
const LEAK: &str = "
mount -o remount,size=95% /run
while [ $(awk '/^MemFree/{print int($2/1024)}' /proc/meminfo) -gt 330 ]; do sleep 1; done
echo BALLOONED=yes
i=0
while [ $i -lt 75 ]; do
  dd if=/dev/zero of=/run/leak$i bs=1M count=4 2>/dev/null
  i=$((i+1))
  sleep 1
done
echo LEAKED=$i
";

#[test]
fn the_policys_deflate_saves_a_guest_that_leaks() {
    let arguments = ["--api-sock", "SCRATCH/api.sock", "--id", "leak"];
    let mut daemon = Daemon::with(Scratch::new(), &arguments);
    daemon.await_path("api.sock");
    let policy = json!({"verdicts": {"guest-oom-soon": ["deflate"]}});
    daemon.put("/policy", &policy);
    let memory = json!({"vcpu_count": 1, "mem_size_mib": 512});
    daemon.put("/machine-config", &memory);
    let balloon =
        json!({"amount_mib": 200, "deflate_on_oom": false, "stats_polling_interval_s": 1});
    daemon.put("/balloon", &balloon);
    let script = BASE64_STANDARD.encode(LEAK);
    let boot = json!({
        "kernel_image_path": kernel("6.12", "bzImage"),
        "initrd_path": image("initrd-6.12.img"),
        "boot_args": format!("console=ttyS0 reboot=k panic=1 quiet vitrine.script={script}"),
    });
    daemon.put("/boot-source", &boot);
    daemon.put("/actions", &json!({"action_type": "InstanceStart"}));
    let end = Instant::now() + 2 * PATIENCE;
    while !daemon.text("stdout").contains("LEAKED=75") {
        let (console, log) = (daemon.text("stdout"), daemon.text("stderr"));
        assert!(Instant::now() < end, "{console}\n{log}");
        assert!(!console.contains("Killed process"), "{console}\n{log}");
        std::thread::sleep(Duration::from_millis(100));
    }
    let log = daemon.text("stderr");
    assert!(
        log.contains("guest-oom-soon vm: the policy's deflate is done"),
        "{log}"
    );
    // What the guest told is kept, so that the black box alone shows the trend.
    let (_, seen) = daemon.ask("GET", "/observe?samples=1", &json!(null));
    let seen: Value = serde_json::from_str(&seen).unwrap();
    let samples = &seen["balloon_samples"][0]["samples"];
    let rows = samples["rows"].as_array().map_or(0, Vec::len);
    assert!(rows >= 60, "{rows} rows of {samples}");
    let told = log.lines().find(|line| line.contains("guest-oom-soon"));
    println!("{}", told.unwrap_or_default());
    assert_eq!(daemon.finish().code(), Some(0), "{log}");
}
