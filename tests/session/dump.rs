//! POST /observe/dump of guests that run and that are paused, and what gdb and readelf make of it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::{Value, json};

use crate::daemon::{Daemon, program};

fn booted() -> Daemon {
    let daemon = Daemon::new();
    let machine = json!({"vcpu_count": 2, "mem_size_mib": 64});
    daemon.put("/machine-config", &machine);
    daemon.boot("memtouch=64K print=ready cli_hlt");
    daemon.await_output("ready");
    daemon
}

fn dump(daemon: &Daemon, kind: &str, name: &str) -> (u16, String) {
    let path = daemon.scratch.path(name);
    let body = json!({"kind": kind, "path": path});
    daemon.ask("POST", "/observe/dump", &body)
}

/// The events after the boot, without requests.
fn events(daemon: &Daemon) -> Vec<String> {
    let (_, text) = daemon.ask("GET", "/observe/events", &Value::Null);
    let lines = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let named = lines.map(|event| match event["stage"].as_str() {
        Some(stage) => format!("dump {stage}"),
        None => event["event"].as_str().unwrap_or_default().to_owned(),
    });
    let named = named.filter(|event| !matches!(event.as_str(), "request" | "started" | ""));
    named.collect()
}

#[test]
fn a_core_has_memory_and_registers_and_the_guest_goes_on() {
    let daemon = booted();
    assert_eq!(dump(&daemon, "core", "core"), (204, String::new()));
    assert_eq!(
        events(&daemon),
        ["dump begun", "paused", "resumed", "dump done"]
    );
    assert_eq!(daemon.state(), "Running");
    let path = daemon.scratch.path("core");
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    assert_eq!(metadata.len() - (64 << 20), 4096);
    let spent = std::os::unix::fs::MetadataExt::blocks(&metadata) * 512;
    assert!(spent < 8 << 20, "{spent} bytes of disk");
    let bytes = fs::read(&path).unwrap();
    assert_eq!(&bytes[..4], b"\x7fELF");
    // The command line lies where the kernel was told.
    let line = String::from_utf8_lossy(&bytes[4096 + 0x2_0000..][..2048]);
    assert!(line.contains("memtouch=64K"), "{line}");
    if let Ok(told) = Command::new("readelf").arg("-Wln").arg(&path).output() {
        let told = String::from_utf8(told.stdout).unwrap();
        let count = |words: &str| told.lines().filter(|line| line.contains(words)).count();
        assert_eq!(
            (count("NT_PRSTATUS"), count("QEMU"), count("LOAD")),
            (2, 2, 1),
            "{told}"
        );
    }
    let gdb = [
        "-batch",
        "-nx",
        "-ex",
        "info threads",
        "-ex",
        "x/s 0x20000",
        "-c",
    ];
    if let Ok(told) = Command::new("gdb").args(gdb).arg(&path).output() {
        let told = String::from_utf8_lossy(&told.stdout).into_owned();
        assert!(told.contains("LWP 1") && told.contains("LWP 2"), "{told}");
        assert!(told.contains("memtouch=64K"), "{told}");
    }
}

#[test]
fn a_vm_that_was_paused_stays_so_and_its_registers_are_exact() {
    let daemon = booted();
    daemon.put("/vm", &json!({"state": "Paused"}));
    for (kind, name) in [
        ("registers", "registers"),
        ("core", "core"),
        ("blackbox", "copy"),
    ] {
        assert_eq!(dump(&daemon, kind, name), (204, String::new()), "{kind}");
    }
    assert_eq!(daemon.state(), "Paused");
    let told: Value = serde_json::from_str(&daemon.text("registers")).unwrap();
    let vcpus = told["vcpus"].as_array().unwrap();
    assert_eq!(vcpus.len(), 2);
    let number = |value: &Value| {
        let text = value.as_str().unwrap().trim_start_matches("0x");
        u64::from_str_radix(text, 16).unwrap()
    };
    assert_eq!(
        number(&vcpus[0]["cr0"]) & 0x8000_0001,
        0x8000_0001,
        "no paging"
    );
    assert_eq!(
        number(&vcpus[0]["cs"]["attributes"]) & 1 << 21,
        1 << 21,
        "no long mode"
    );
    assert_eq!(vcpus[1]["state"], "not started");
    // What gdb is told is what the JSON has.
    let core = fs::read(daemon.scratch.path("core")).unwrap();
    let notes = 64 + 2 * 56;
    let rip = notes + 20 + 112 + 16 * 8;
    let rip = u64::from_le_bytes(core[rip..rip + 8].try_into().unwrap());
    assert_eq!(rip, number(&vcpus[0]["rip"]));
    let path = daemon.scratch.path("copy");
    let report = Command::new(program())
        .arg("report")
        .arg(&path)
        .output()
        .unwrap();
    let report = String::from_utf8(report.stdout).unwrap();
    assert!(
        report.contains("2 vCPUs") && report.contains("unknown"),
        "{report}"
    );
    daemon.put("/vm", &json!({"state": "Resumed"}));
}

#[test]
fn what_is_no_place_for_a_dump_is_refused_and_harms_nothing() {
    let daemon = Daemon::new();
    let (status, told) = dump(&daemon, "core", "core");
    assert_eq!(status, 400);
    assert!(told.contains("before starting"), "{told}");
    daemon.boot("print=ready cli_hlt");
    daemon.await_output("ready");
    fs::create_dir(daemon.scratch.path("folder")).unwrap();
    std::os::unix::fs::symlink("stdout", daemon.scratch.path("link")).unwrap();
    let black_box = fs::read_dir(daemon.scratch.path("vitrine")).unwrap();
    let black_box = black_box.map(|entry| entry.unwrap().path()).next().unwrap();
    let black_box = black_box.to_str().unwrap();
    for (name, expected) in [
        ("folder", "not a regular file"),
        ("link", "not a regular file"),
        ("api.sock", "not a regular file"),
        ("/dev/full", "not a regular file"),
        ("no/core", "cannot be made"),
        (black_box, "black box itself"),
    ] {
        for kind in ["blackbox", "core", "registers"] {
            let (status, told) = dump(&daemon, kind, name);
            assert_eq!(status, 400);
            assert!(told.contains(expected), "{name}: {told}");
        }
    }
    let left = fs::read_dir(daemon.scratch.path("")).unwrap();
    let left = left.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(left.filter(|name| name.contains("part")).count(), 0);
    assert_eq!(daemon.state(), "Running");
    assert_eq!(daemon.text("link"), daemon.text("stdout"));
}
