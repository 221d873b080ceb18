//! What is done about a stock guest that dies or hangs.

use std::fs;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use vmm::observe::reader::{Ended, Reader};

use crate::daemon::Daemon;
use crate::harness::{Scratch, image};
use crate::{PATIENCE, kernel};

/// A process with this policy.
fn daemon(policy: &Value) -> Daemon {
    let arguments = ["--api-sock", "SCRATCH/api.sock", "--id", "stock"];
    let daemon = Daemon::with(Scratch::new(), &arguments);
    daemon.await_path("api.sock");
    daemon.put("/policy", policy);
    daemon
}

/// Boots a guest that runs `script`.
fn boot(daemon: &Daemon, version: &str, words: &str, script: &str) {
    let memory = json!({"vcpu_count": 1, "mem_size_mib": 256});
    daemon.put("/machine-config", &memory);
    let script = BASE64_STANDARD.encode(script);
    let boot = json!({
        "kernel_image_path": kernel(version, "bzImage"),
        "initrd_path": image(&format!("initrd-{version}.img")),
        "boot_args": format!("console=ttyS0 reboot=k panic=1 {words} vitrine.script={script}"),
    });
    daemon.put("/boot-source", &boot);
    daemon.put("/actions", &json!({"action_type": "InstanceStart"}));
}

#[test]
fn a_guest_that_panics_is_started_three_times_and_then_left_failed_with_four_black_boxes() {
    let limit = json!({"at_most": 3, "first_wait_ms": 100, "within_ms": 3_600_000});
    let mut daemon = daemon(&json!({ "restart": limit }));
    boot(&daemon, "6.12", "quiet", "echo c > /proc/sysrq-trigger");
    let end = Instant::now() + 4 * PATIENCE;
    let status = loop {
        if let Some(status) = daemon.child.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < end, "{}", daemon.text("stderr"));
        std::thread::sleep(Duration::from_millis(50));
    };
    let said = daemon.text("stderr");
    assert_eq!(status.code(), Some(1), "{said}");
    let waits: Vec<bool> = ["100ms", "200ms", "400ms"]
        .iter()
        .map(|wait| said.contains(&format!("of 3 within 3600s in {wait}")))
        .collect();
    assert_eq!(waits, [true; 3], "{said}");
    let panics = daemon.text("stdout").matches("Kernel panic - not").count();
    assert_eq!(panics, 4);
    for run in 1..=4 {
        let name = match run {
            4 => "stock.blackbox".to_owned(),
            run => format!("stock.{run}.blackbox"),
        };
        let path = daemon.scratch.path("vitrine").join(name);
        let snapshot = Reader::open(&path).unwrap().snapshot().unwrap();
        let Ended::Failed { detail, .. } = &snapshot.header.end else {
            panic!("{run}: {:?}", snapshot.header.end);
        };
        assert!(
            detail.contains("Kernel panic - not syncing: sysrq")
                && detail.ends_with("and then the guest reset the machine"),
            "{detail}"
        );
        let line = format!("  run {run}: began ");
        let account = said.lines().find(|said| said.starts_with(&line));
        let account = account.unwrap_or_else(|| panic!("no {line:?} in {said}"));
        assert!(account.contains("sysrq") && account.ends_with(path.to_str().unwrap()));
        println!("{account}");
    }
    let left = fs::read_dir(daemon.scratch.path("vitrine")).unwrap();
    assert_eq!(left.count(), 4);
}

#[test]
fn an_nmi_for_a_verdict_makes_a_guest_print_its_stacks() {
    let policy = |exits: f64, actions: Value| {
        json!({
            "thresholds": {"storm_exits": exits, "storm_share": 1, "raise_ms": 0},
            "verdicts": {"exit-storm": actions},
        })
    };
    // What is raised already is not acted on.
    let mut daemon = daemon(&policy(1e12, json!([])));
    let script = "
echo 1 > /proc/sys/kernel/unknown_nmi_panic
echo READY
while :; do echo busy; done
";
    boot(&daemon, "6.12", "quiet", script);
    let end = Instant::now() + PATIENCE;
    while !daemon.text("stdout").contains("READY") {
        assert!(Instant::now() < end, "{}", daemon.text("stdout"));
        std::thread::sleep(Duration::from_millis(20));
    }
    daemon.put("/policy", &policy(1.0, json!(["nmi"])));
    // It panics for the NMI, after its stacks, and resets the machine.
    let end = Instant::now() + PATIENCE;
    while daemon.child.try_wait().unwrap().is_none() {
        assert!(
            Instant::now() < end,
            "{}{}",
            daemon.text("stdout"),
            daemon.text("stderr")
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let console = daemon.text("stdout");
    let (_, told) = console
        .split_once("NMI: Not continuing")
        .unwrap_or_else(|| panic!("{console}\n{}", daemon.text("stderr")));
    assert!(told.contains("Call Trace:"), "{told}");
    for line in told.lines().take(12) {
        println!("{line}");
    }
    let said = daemon.text("stderr");
    assert!(said.contains("exit-storm vcpu/0: the policy's nmi is done"));
    assert_eq!(daemon.finish().code(), Some(0), "{said}");
}
