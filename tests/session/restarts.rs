//! A VM that is started again, as the policy says, by the same process.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use vmm::observe::reader::{Ended, Reader};

use crate::daemon::{Daemon, program, zoo};
use crate::harness::Scratch;

fn daemon(policy: &Value) -> Daemon {
    let arguments = ["--api-sock", "SCRATCH/api.sock", "--id", "again"];
    let daemon = Daemon::with(Scratch::new(), &arguments);
    daemon.await_path("api.sock");
    daemon.put("/policy", policy);
    daemon
}

/// A kernel that jumps to where there is no memory, with which KVM cannot go on.
fn lost(path: &Path) {
    const AT: u64 = 1 << 20;
    let code = [
        &[0x48, 0xb8][..],
        &0x2000_0000u64.to_le_bytes(),
        &[0xff, 0xe0],
    ]
    .concat();
    let (header, table) = (64u64, 56u64);
    let offset = header + table;
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [AT, header, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend([0; 4]);
    for half in [64u16, 56, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    // One segment that is loaded, readable and executable.
    file.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    let bytes = code.len() as u64;
    for word in [offset, AT, AT, bytes, bytes, 4096] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    fs::write(path, file).unwrap();
}

fn events(daemon: &Daemon) -> Vec<Value> {
    let (status, text) = daemon.ask("GET", "/observe/events", &Value::Null);
    assert_eq!(status, 200);
    let lines = text.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn a_guest_that_reboots_boots_again_until_it_powers_off() {
    for reset in ["i8042", "acpi", "triple"] {
        let policy = json!({"on_reboot": "restart", "restart": {"first_wait_ms": 0}});
        let mut daemon = daemon(&policy);
        daemon.boot(&format!("quiet print=ready echo reset={reset}"));
        for run in 1..=2 {
            daemon.until("a run", || {
                daemon.text("stdout").matches("ready").count() == run
            });
            let number = daemon.metric(r#"vitrine_run{vm="again"}"#);
            assert_eq!(number, run as u64);
            // The second run is ended by a signal.
            if run == 1 {
                let input = daemon.child.stdin.as_mut().unwrap();
                input.write_all(b"q").unwrap();
            }
        }
        let reboots = r#"vitrine_restarts_total{vm="again",cause="reboot"}"#;
        assert_eq!(daemon.metric(reboots), 1);
        assert_eq!(daemon.state(), "Running");
        // The metrics of the newest run are those that are told, and one VM is behind the socket.
        let report = Command::new(program())
            .arg("report")
            .arg(daemon.scratch.path("api.sock"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&report.stdout).into_owned();
        assert!(said.contains("VM again: running"), "{said}");
        daemon.signal("TERM");
        assert_eq!(daemon.finish().code(), Some(0), "{}", daemon.text("stderr"));
        let boxes = daemon.scratch.path("vitrine");
        let left: Vec<_> = fs::read_dir(boxes).unwrap().collect();
        assert!(left.is_empty(), "a reboot leaves no black box: {left:?}");
    }
}

#[test]
fn a_vm_that_fails_is_started_three_times_and_then_left_failed_with_four_black_boxes() {
    let limit = json!({"at_most": 3, "first_wait_ms": 200, "longest_wait_ms": 10_000});
    let mut daemon = daemon(&json!({ "restart": limit }));
    let kernel = daemon.scratch.path("lost.elf");
    lost(&kernel);
    daemon.put("/boot-source", &json!({ "kernel_image_path": kernel }));
    let mut stream = UnixStream::connect(daemon.scratch.path("api.sock")).unwrap();
    let request = "GET /observe/events?follow=1 HTTP/1.1\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let follower = std::thread::spawn(move || {
        let mut told = String::new();
        stream.read_to_string(&mut told).unwrap();
        told
    });
    daemon.put("/actions", &json!({"action_type": "InstanceStart"}));
    assert_eq!(daemon.finish().code(), Some(1), "{}", daemon.text("stderr"));
    let told = follower.join().unwrap();
    let events = told.lines().filter(|line| line.starts_with('{'));
    let events: Vec<Value> = events
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let of = |kind: &str| -> Vec<&Value> {
        let all = events.iter();
        all.filter(|event| event["event"] == kind).collect()
    };
    let waits: Vec<u64> = of("restarting")
        .iter()
        .map(|event| event["wait_ms"].as_u64().unwrap())
        .collect();
    assert_eq!(waits, [200, 400, 800]);
    let at = |kind: &str| -> Vec<u64> {
        let all = of(kind).into_iter();
        all.map(|event| event["at_ms"].as_u64().unwrap()).collect()
    };
    for ((over, begun), wait) in at("restarting").iter().zip(at("run")).zip(&waits) {
        assert!(begun + 5 >= over + wait, "{over} + {wait}: {begun}");
    }
    let end = events.last().unwrap();
    assert_eq!(
        (&end["event"], &end["failed"]),
        (&json!("ended"), &json!(true))
    );
    assert!(
        end["detail"]
            .as_str()
            .unwrap()
            .contains("the policy allows 3 restarts"),
        "{end}"
    );
    let runs = end["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 4);
    let said = daemon.text("stderr");
    for (number, run) in (1..).zip(runs) {
        assert_eq!(run["run"], number);
        let name = match number {
            4 => "again.blackbox".to_owned(),
            number => format!("again.{number}.blackbox"),
        };
        let path = daemon.scratch.path("vitrine").join(name);
        assert_eq!(run["black_box"], path.to_str().unwrap());
        let snapshot = Reader::open(&path).unwrap().snapshot().unwrap();
        let Ended::Failed { detail, .. } = &snapshot.header.end else {
            panic!("{:?}", snapshot.header.end);
        };
        assert!(run["detail"].as_str().unwrap().starts_with(&detail[..20]));
        assert!(said.contains(&format!("run {number}: began ")), "{said}");
    }
    let left = fs::read_dir(daemon.scratch.path("vitrine"))
        .unwrap()
        .count();
    assert_eq!(left, 4);
    let list = Command::new(program())
        .arg("list")
        .env("XDG_RUNTIME_DIR", daemon.scratch.path(""))
        .output()
        .unwrap();
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    assert_eq!(list.matches(" failed ").count(), 4, "{list}");
    let report = Command::new(program())
        .args(["report", "again"])
        .env("XDG_RUNTIME_DIR", daemon.scratch.path(""))
        .output()
        .unwrap();
    let report = String::from_utf8_lossy(&report.stdout).into_owned();
    let (_, earlier) = report.split_once("Earlier runs of this VM").unwrap();
    for run in 1..=3 {
        let file = format!("again.{run}.blackbox");
        let mut lines = earlier.lines();
        let line = lines.find(|line| line.starts_with(&format!("  run {run}: ended ")));
        assert!(line.is_some_and(|line| line.ends_with(&file)), "{earlier}");
    }
}

#[test]
fn a_signal_while_the_vm_waits_for_its_restart_ends_it_at_once() {
    let limit = json!({"at_most": 1, "first_wait_ms": 3_600_000, "longest_wait_ms": 3_600_000});
    let mut daemon = daemon(&json!({ "restart": limit }));
    let kernel = daemon.scratch.path("lost.elf");
    lost(&kernel);
    daemon.put("/boot-source", &json!({ "kernel_image_path": kernel }));
    daemon.put("/actions", &json!({"action_type": "InstanceStart"}));
    daemon.until("the end of the run", || {
        events(&daemon)
            .iter()
            .any(|event| event["event"] == "restarting")
    });
    assert_eq!(daemon.state(), "Not started");
    let (status, body) = daemon.ask("PATCH", "/vm", &json!({"state": "Paused"}));
    assert!(
        status == 400 && body.contains("is started again in a while"),
        "{body}"
    );
    let (status, body) = daemon.ask("PUT", "/boot-source", &zoo("poweroff"));
    assert!(status == 400 && body.contains("after starting"), "{body}");
    let begun = std::time::Instant::now();
    daemon.signal("TERM");
    assert_eq!(daemon.finish().code(), Some(0), "{}", daemon.text("stderr"));
    assert!(begun.elapsed() < std::time::Duration::from_secs(10));
    assert!(daemon.scratch.path("vitrine/again.blackbox").exists());
}

#[test]
fn a_guest_on_the_terminal_is_started_again_by_a_policy_file() {
    let scratch = Scratch::new();
    lost(&scratch.path("lost.elf"));
    let policy = json!({"restart": {"at_most": 1, "first_wait_ms": 0}});
    fs::write(scratch.path("policy.json"), policy.to_string()).unwrap();
    let arguments = "run --id again --kernel SCRATCH/lost.elf --policy SCRATCH/policy.json";
    let arguments: Vec<&str> = arguments.split(' ').collect();
    let mut daemon = Daemon::with(scratch, &arguments);
    assert_eq!(daemon.finish().code(), Some(1));
    let said = daemon.text("stderr");
    let runs = said.lines().filter(|line| line.starts_with("  run "));
    assert_eq!(runs.count(), 2, "{said}");
    assert!(daemon.scratch.path("vitrine/again.1.blackbox").exists());
}

/// The size that the balloon is to have, and how often its guest is asked for statistics.
fn balloon_of(daemon: &Daemon) -> (u64, u64) {
    let sample = |name: &str| format!("vitrine_balloon_{name}{{vm=\"again\"}}");
    (
        daemon.metric(&sample("target_bytes")),
        daemon.metric(&sample("interval_seconds")),
    )
}

#[test]
fn a_balloon_that_was_changed_is_so_after_a_restart() {
    let policy = json!({"on_reboot": "restart", "restart": {"first_wait_ms": 0}});
    let mut daemon = daemon(&policy);
    let balloon = json!({"amount_mib": 1, "deflate_on_oom": false, "stats_polling_interval_s": 1});
    daemon.put("/balloon", &balloon);
    // It takes the balloon's device, so that there is a driver to be told.
    daemon.boot("quiet kick=0:0 print=ready echo reset");
    daemon.await_output("ready");
    let first = balloon_of(&daemon);
    assert_eq!(first, (1 << 20, 1));
    daemon.patch("/balloon", &json!({"amount_mib": 5}));
    daemon.patch(
        "/balloon/statistics",
        &json!({"stats_polling_interval_s": 3}),
    );
    let before = balloon_of(&daemon);
    assert_eq!(before, (5 << 20, 3));
    daemon
        .child
        .stdin
        .as_mut()
        .unwrap()
        .write_all(b"q")
        .unwrap();
    daemon.until("the second run", || {
        daemon.text("stdout").matches("ready").count() == 2
    });
    assert_eq!(daemon.metric(r#"vitrine_run{vm="again"}"#), 2);
    assert_eq!(balloon_of(&daemon), before);
    let (_, told) = daemon.ask("GET", "/balloon", &Value::Null);
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["amount_mib"], 5, "{told}");
    assert_eq!(told["stats_polling_interval_s"], 3, "{told}");
    daemon.signal("TERM");
    assert_eq!(daemon.finish().code(), Some(0), "{}", daemon.text("stderr"));
}
