//! `list`, `report` and `top` of real guests: running, stopped with all their threads, killed.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::daemon::{Daemon, PATIENCE, program};
use crate::harness::Scratch;
use crate::harness::remains::{has, said};

const WORDS: &str = "blk_read=0:64 quiet pio_write=0x80:100 print=ready loop_pio=0x81";

/// A guest with two vCPUs and a drive that leaves for a port all the time.
fn guest(extra: &[&str]) -> Daemon {
    let arguments = ["--api-sock", "SCRATCH/api.sock", "--id", "boxed"];
    let daemon = Daemon::with(Scratch::new(), &[&arguments[..], extra].concat());
    daemon.await_path("api.sock");
    let machine = json!({"vcpu_count": 2, "mem_size_mib": 128});
    daemon.put("/machine-config", &machine);
    let disk = daemon.scratch.disk("disk", 64 * 512, 3);
    let drive = json!({"drive_id": "d", "is_root_device": false, "path_on_host": disk});
    daemon.put("/drives/d", &drive);
    daemon.boot(WORDS);
    daemon.await_output("ready");
    // The last word is said before the loop begins.
    let loops = r#"device_reads_total{vm="boxed",vcpu="0",device="unclaimed-port"}"#;
    daemon.until("the loop", || {
        let (_, metrics) = daemon.ask("GET", "/metrics", &Value::Null);
        metrics.contains(loops)
    });
    daemon
}

fn command(daemon: &Daemon, arguments: &[&str]) -> Command {
    let folder = daemon.scratch.path("");
    let mut command = Command::new(program());
    let arguments = arguments.iter();
    let folder = folder.to_str().unwrap().trim_end_matches('/').to_owned();
    command.args(arguments.map(|argument| argument.replace("SCRATCH", &folder)));
    command.env("XDG_RUNTIME_DIR", folder).stdin(Stdio::null());
    command
}

pub fn vitrine(daemon: &Daemon, arguments: &[&str]) -> Output {
    command(daemon, arguments).output().unwrap()
}

/// Stops every thread of the process.
pub fn freeze(daemon: &Daemon) {
    daemon.signal("STOP");
    let tasks = format!("/proc/{}/task", daemon.child.id());
    let is_stopped = || {
        fs::read_dir(&tasks).unwrap().all(|task| {
            let stat = fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
            stat.rsplit(") ").next().unwrap().starts_with('T')
        })
    };
    let end = Instant::now() + PATIENCE;
    while !is_stopped() {
        assert!(Instant::now() < end, "the process does not stop");
        std::thread::sleep(Duration::from_millis(2));
    }
}

const ALL_OF_IT: [&str; 16] = [
    "vCPU 0: in ",
    "vCPU 1: ",
    "io_in ",
    "unclaimed-port ",
    "post 0 100 0 ",
    "guest ",
    "d/0 16 0 64 64 64 ",
    "d read 64 0 32.0 KiB ",
    "d virtio-mmio at work ",
    "vcpu-0 in ",
    "vm idle ",
    "io-d idle ",
    "api idle ",
    "Console serial: output ",
    "vcpu-0 io_in of 1 byte at unclaimed-port 0x81, ",
    "io-d d: queue 0 was kicked ",
];

#[test]
fn a_stopped_vmm_and_a_killed_one_are_reported_in_full() {
    let mut daemon = guest(&[]);
    freeze(&daemon);
    let file = "SCRATCH/vitrine/boxed.blackbox";
    for target in ["SCRATCH/api.sock", file, "boxed"] {
        let start = Instant::now();
        let text = said(&vitrine(&daemon, &["report", target]), 0);
        assert!(start.elapsed() < Duration::from_secs(30));
        has(&text, &["VM boxed: running\nIts process lives as of "]);
        has(&text, &["2 vCPUs, 128.0 MiB of guest memory, "]);
        has(&text, &[", 1 drive, 0 network interfaces; started 20"]);
        has(&text, &ALL_OF_IT[..14]);
    }
    let list = said(&vitrine(&daemon, &["list"]), 0);
    let pid = daemon.child.id();
    has(&list, &[&format!("boxed {pid} running 20")]);
    has(&list, &[" 2 128.0 MiB "]);

    daemon.signal("KILL");
    daemon.finish();
    let list = said(&vitrine(&daemon, &["list"]), 0);
    has(
        &list,
        &[&format!("boxed {pid} dead 20"), "died without a clean end"],
    );
    let text = said(&vitrine(&daemon, &["report", "boxed"]), 1);
    has(&text, &["VM boxed: dead\nIt died without a clean end: "]);
    has(&text, &ALL_OF_IT[..15]);
    has(
        &text,
        &[
            "watcher ",
            "console ",
            "vcpu-1 ",
            "Host memory: ",
            "The last 40 events of ",
        ],
    );
    let events = text.split("The last 40 events of ").nth(1).unwrap();
    // Its thread is silent since the reads.
    has(events, &["io-d d: read of 512 B was given back after "]);
    let error = vitrine(&daemon, &["report", "SCRATCH/api.sock"]);
    assert_eq!(
        error.status.code(),
        Some(2),
        "nobody listens there any more"
    );
}

#[test]
fn all_events_of_an_idle_guest_have_words() {
    let daemon = guest(&[]);
    daemon.put("/vm", &json!({"state": "Paused"}));
    let text = said(
        &vitrine(&daemon, &["report", "boxed", "--events", "2000"]),
        0,
    );
    has(&text, &ALL_OF_IT[14..]);
    has(
        &text,
        &[
            "io-d d: a driver took the device with features 0x",
            "io-d d: stopped for a pause",
            "api PUT /actions was answered 204 after ",
            "api PATCH /vm was answered 204 after ",
            "vCPU 0: paused",
        ],
    );
    let events = text.split("events of ").nth(1).unwrap();
    for unknown in ["event ", "{", "detail "] {
        assert!(!events.contains(unknown), "{unknown:?} is in:\n{events}");
    }
}

#[test]
fn a_black_box_that_lies_elsewhere_is_found_though_nobody_answers() {
    let daemon = guest(&["--blackbox", "SCRATCH/here/and.there"]);
    freeze(&daemon);
    let text = said(&vitrine(&daemon, &["report", "SCRATCH/api.sock"]), 0);
    has(&text, &["VM boxed: running", "vCPU 0: in "]);
    let unknown = vitrine(&daemon, &["report", "boxed"]);
    assert_eq!(unknown.status.code(), Some(2));
}

#[test]
fn top_shows_blocks_until_it_is_told_to_stop_or_the_vm_ends() {
    for (end, status, words) in [
        ("TERM", 0, "It ended cleanly on 20"),
        ("KILL", 1, "It died without a clean end"),
    ] {
        let mut daemon = guest(&[]);
        let twice = [
            "top",
            "SCRATCH/api.sock",
            "--interval",
            "1.5",
            "--count",
            "2",
        ];
        let text = said(&vitrine(&daemon, &twice), 0);
        assert_eq!(text.matches("VM boxed: running, 20").count(), 2, "{text}");
        has(
            &text,
            &[
                "vCPU guest kernel handler",
                "io_in ",
                "d/0 0.0 0 ",
                "vcpu-0 ",
                "Guest memory: ",
            ],
        );
        let mut follow = command(&daemon, &["top", "boxed", "--interval", "0.2"]);
        let start = |follow: &mut Command| follow.stdout(Stdio::piped()).spawn().unwrap();
        let (mut interrupted, mut following) = (start(&mut follow), start(&mut follow));
        let mut outputs = [&mut interrupted, &mut following].map(|child| {
            let mut output = BufReader::new(child.stdout.take().unwrap());
            let mut line = String::new();
            output.read_line(&mut line).unwrap();
            assert!(line.starts_with("VM boxed: running, 20"), "{line:?}");
            output
        });
        let id = interrupted.id().to_string();
        let signalled = Command::new("kill").args(["-s", "INT", &id]).status();
        assert!(signalled.unwrap().success());
        assert_eq!(interrupted.wait().unwrap().code(), Some(0));
        let mut unread = start(&mut follow);
        drop(unread.stdout.take());
        assert!(unread.wait().unwrap().success(), "nobody reads any more");
        daemon.signal(end);
        daemon.finish();
        let mut text = String::new();
        outputs[1].read_to_string(&mut text).unwrap();
        assert_eq!(following.wait().unwrap().code(), Some(status), "{text}");
        let last = text.trim_end().rsplit("\n\n").next().unwrap();
        has(last, &[words]);
    }
}
