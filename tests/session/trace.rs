//! `vitrine trace` and GET /observe/trace: of a VM that runs, of one that was killed, and where
//! there is nothing to trace.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::daemon::{Daemon, program};
use crate::harness::Scratch;
use crate::harness::chrome::Trace;

const GUEST: &str = "blk_read=0:64 quiet pio_write=0x80:100 print=ready cli_hlt";

/// `vitrine trace` with these arguments, in which SCRATCH stands for the daemon's folder.
fn command(daemon: &Daemon, arguments: &[&str]) -> Command {
    let folder = daemon.scratch.path("");
    let folder = folder.to_str().unwrap().trim_end_matches('/');
    let arguments = arguments.iter().map(|word| word.replace("SCRATCH", folder));
    let mut command = Command::new(program());
    command
        .arg("trace")
        .args(arguments)
        .env("XDG_RUNTIME_DIR", folder)
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    command
}

fn traced(daemon: &Daemon, arguments: &[&str]) -> Output {
    command(daemon, arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn booted() -> Daemon {
    let arguments = ["--api-sock", "SCRATCH/api.sock", "--id", "traced"];
    let daemon = Daemon::with(Scratch::new(), &arguments);
    daemon.await_path("api.sock");
    let disk = daemon.scratch.disk("disk", 64 * 512, 3);
    let drive = json!({"drive_id": "d", "is_root_device": false, "path_on_host": disk});
    daemon.put("/drives/d", &drive);
    daemon.boot(GUEST);
    daemon.await_output("ready");
    daemon
}

/// What the guest did is there, by its names.
fn check(text: &str) -> Trace {
    let trace = Trace::check(text);
    let named = |category, name: &str| {
        let events = trace.of(category);
        events.filter(|event| event["name"] == name).count()
    };
    assert_eq!(named("user_exit", "io_out post"), 100);
    assert!(named("device", "read") > 0 && named("device", "activate") == 1);
    let threads = trace.0["traceEvents"].as_array().unwrap().iter();
    let threads: Vec<_> = threads
        .filter(|event| event["name"] == "thread_name")
        .map(|event| event["args"]["name"].as_str().unwrap())
        .collect();
    assert!(
        threads.contains(&"vcpu-0 vmm") && threads.contains(&"io-d"),
        "{threads:?}"
    );
    assert_eq!(trace.0["otherData"]["vm"], "traced");
    assert_eq!(
        trace.0["otherData"]["lost"],
        json!({"flight": {}, "kernel": {}})
    );
    trace
}

#[test]
fn a_vm_that_runs_is_traced_by_its_id_its_socket_and_over_http() {
    let daemon = booted();
    for target in [
        "traced",
        "SCRATCH/api.sock",
        "SCRATCH/vitrine/traced.blackbox",
    ] {
        let done = traced(&daemon, &[target, "-o", "SCRATCH/trace.json", "--ms", "50"]);
        assert_eq!(done.status.code(), Some(0), "{}", said(&done));
        let trace = check(&daemon.text("trace.json"));
        assert_eq!(trace.0["otherData"]["alive"], true);
        // What the kernel does is there, or it is said why not.
        let kernel = trace.of("kvm_exit").count() > 0 || trace.missing() == "[]";
        assert_ne!(kernel, trace.missing().contains("kernel exits"));
        let told = said(&done);
        assert!(told.starts_with("traced: events: "), "{told}");
        assert!(kernel || told.contains("missing: kernel exits: "), "{told}");
        let metadata = fs::metadata(daemon.scratch.path("trace.json")).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    }
    let (status, body) = daemon.ask("GET", "/observe/trace?ms=30", &Value::Null);
    assert_eq!(status, 200);
    // In chunks: each is preceded by a line with its length.
    let lines = body
        .lines()
        .filter(|line| u64::from_str_radix(line, 16).is_err());
    check(&lines.collect::<Vec<_>>().join("\n"));
    let done = traced(&daemon, &["traced", "-o", "-", "--ms", "1"]);
    check(&String::from_utf8(done.stdout).unwrap());
}

#[test]
fn a_trace_ends_with_its_vm_and_holds_up_nobody() {
    for target in ["traced", "SCRATCH/api.sock"] {
        let mut daemon = booted();
        let words = [target, "-o", "SCRATCH/trace.json", "--ms", "60000"];
        let tracer = command(&daemon, &words).spawn().unwrap();
        daemon.await_path("trace.json");
        std::thread::sleep(Duration::from_millis(100));
        let begun = Instant::now();
        daemon.signal("TERM");
        assert_eq!(daemon.finish().code(), Some(0), "{}", daemon.text("stderr"));
        let done = tracer.wait_with_output().unwrap();
        assert_eq!(done.status.code(), Some(0), "{}", said(&done));
        assert!(begun.elapsed() < Duration::from_secs(20), "{target}");
        check(&daemon.text("trace.json"));
        let log = daemon.text("stderr");
        assert!(!log.contains("did not end in time"), "{log}");
    }
}

#[test]
fn a_vm_that_was_killed_is_traced_from_what_it_left() {
    let mut daemon = booted();
    daemon.signal("KILL");
    daemon.finish();
    let words = ["traced", "--output", "SCRATCH/trace.json", "--ms", "60000"];
    let done = traced(&daemon, &words);
    assert_eq!(done.status.code(), Some(0), "{}", said(&done));
    let trace = check(&daemon.text("trace.json"));
    assert_eq!(trace.0["otherData"]["alive"], false);
    assert!(trace.missing().contains("the VM has ended"));
}

#[test]
fn what_cannot_be_traced_or_written_is_refused_and_nothing_is_harmed() {
    let daemon = Daemon::new();
    let folder = &daemon.scratch;
    fs::write(folder.path("target"), "precious").unwrap();
    symlink(folder.path("target"), folder.path("link")).unwrap();
    let fifo = Command::new("mkfifo").arg(folder.path("fifo")).status();
    assert!(fifo.unwrap().success());
    let not_started = traced(&daemon, &["SCRATCH/api.sock", "-o", "SCRATCH/none.json"]);
    assert_eq!(not_started.status.code(), Some(1));
    let told = said(&not_started);
    assert!(told.contains("before starting"), "{told}");
    assert!(!folder.path("none.json").exists());
    daemon.boot("print=ready cli_hlt");
    daemon.await_output("ready");
    let entries = fs::read_dir(folder.path("vitrine")).unwrap();
    let mut boxes = entries.map(|entry| entry.unwrap().path());
    let black_box = boxes.next().unwrap().to_str().unwrap().to_owned();
    let fine = "SCRATCH/out.json";
    let cases: [(&[&str], &str); 8] = [
        (&["nobody", "-o", fine], "no VM has that id"),
        (&["SCRATCH/target", "-o", fine], "not a black box"),
        (&[&black_box, "-o", &black_box], "is the black box itself"),
        (&[&black_box, "-o", "SCRATCH/link"], "not a regular file"),
        (&[&black_box, "-o", "SCRATCH/fifo"], "not a regular file"),
        (&[&black_box, "-o", "SCRATCH"], "not a regular file"),
        (&[&black_box, "-o", "SCRATCH/no/out"], "cannot be written"),
        (&[&black_box, "-o", fine, "--ms", "0"], "--ms"),
    ];
    for (words, expected) in cases {
        let done = traced(&daemon, words);
        let told = said(&done);
        assert_eq!(done.status.code(), Some(2), "{words:?}: {told}");
        assert!(told.contains(expected), "{words:?}: {told}");
    }
    assert_eq!(daemon.text("target"), "precious");
    assert_eq!(daemon.state(), "Running");
}
