//! What the issue of every operator begins with: a request that cannot be. Each is sent by curl, as
//! an operator would, is a 400 whose message names the thing and the remedy, and changes nothing:
//! the VM that was configured before boots afterwards.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::daemon::{Daemon, zoo};

/// Sends a request with curl; its status and body.
fn curl(daemon: &Daemon, method: &str, path: &str, body: &str) -> (u16, String) {
    let output = Command::new("curl")
        .args([
            "--silent",
            "--show-error",
            "--max-time",
            "30",
            "--unix-socket",
        ])
        .arg(daemon.scratch.path("api.sock"))
        .args(["-X", method, "-H", "Content-Type: application/json"])
        .args(["--data-binary", body, "--write-out", "\n%{http_code}"])
        .arg(format!("http://localhost{path}"))
        .output()
        .expect("curl is installed");
    let answer = String::from_utf8(output.stdout).unwrap();
    let (body, status) = answer.rsplit_once('\n').unwrap();
    (status.parse().unwrap(), body.to_owned())
}

fn config(daemon: &Daemon) -> (u16, String) {
    daemon.ask("GET", "/vm/config", &Value::Null)
}

/// A configured daemon refuses the request with a message that has all `words`, stays as it was,
/// and boots.
fn refused(method: &str, path: &str, body: &str, words: &[&str]) {
    let mut daemon = Daemon::new();
    daemon.put(
        "/machine-config",
        &json!({"vcpu_count": 1, "mem_size_mib": 64}),
    );
    let before = config(&daemon);
    let body = body.replace("SCRATCH", daemon.scratch.path("").to_str().unwrap());
    let (status, answer) = curl(&daemon, method, path, &body);
    assert_eq!(status, 400, "{answer}");
    let message = serde_json::from_str::<Value>(&answer).unwrap();
    let message = message["fault_message"]
        .as_str()
        .unwrap_or_else(|| panic!("{answer}"));
    for word in words {
        let word = word.replace("SCRATCH", daemon.scratch.path("").to_str().unwrap());
        assert!(message.contains(&word), "{word:?} is not in: {message}");
    }
    assert_eq!(config(&daemon), before);
    daemon.boot("poweroff");
    assert_eq!(daemon.finish().code(), Some(0), "{}", daemon.text("stderr"));
}

#[test]
fn a_missing_kernel_file() {
    let body = r#"{"kernel_image_path": "/no/such/kernel"}"#;
    refused(
        "PUT",
        "/boot-source",
        body,
        &["/no/such/kernel", "No such file", "give the path"],
    );
}

#[test]
fn a_directory_as_kernel() {
    let body = r#"{"kernel_image_path": "SCRATCH"}"#;
    refused(
        "PUT",
        "/boot-source",
        body,
        &["SCRATCH", "is a directory", "give the path"],
    );
}

#[test]
fn zero_vcpus() {
    let body = r#"{"vcpu_count": 0, "mem_size_mib": 128}"#;
    refused(
        "PUT",
        "/machine-config",
        body,
        &["vcpu_count 0", "give 1 to 32"],
    );
}

#[test]
fn thirty_three_vcpus() {
    let body = r#"{"vcpu_count": 33, "mem_size_mib": 128}"#;
    refused(
        "PUT",
        "/machine-config",
        body,
        &["vcpu_count 33", "give 1 to 32"],
    );
}

#[test]
fn zero_memory() {
    let body = r#"{"vcpu_count": 1, "mem_size_mib": 0}"#;
    refused(
        "PUT",
        "/machine-config",
        body,
        &["mem_size_mib", "0", "give at least 1"],
    );
}

#[test]
fn memory_beyond_the_host() {
    let body = r#"{"vcpu_count": 1, "mem_size_mib": 99999999}"#;
    refused(
        "PUT",
        "/machine-config",
        body,
        &["mem_size_mib 99999999", "give at most"],
    );
}

#[test]
fn an_absent_tap() {
    let body = r#"{"iface_id": "eth0", "host_dev_name": "nosuchtap0"}"#;
    let words = ["nosuchtap0", "no such network interface", "ip tuntap add"];
    refused("PUT", "/network-interfaces/eth0", body, &words);
}

#[test]
fn an_absent_drive() {
    let body = r#"{"drive_id": "d", "is_root_device": false, "path_on_host": "/no/such/disk"}"#;
    refused(
        "PUT",
        "/drives/d",
        body,
        &["/no/such/disk", "No such file", "give a disk image"],
    );
}

#[test]
fn an_unknown_field() {
    let body = r#"{"vcpu_count": 1, "mem_size_mib": 128, "colour": "red"}"#;
    refused("PUT", "/machine-config", body, &["colour", "expected"]);
}

#[test]
fn the_wrong_time_before_the_start() {
    let words = ["The requested operation is not supported before starting the microVM."];
    refused("PATCH", "/vm", r#"{"state": "Paused"}"#, &words);
}

#[test]
fn the_wrong_time_after_the_start() {
    let mut daemon = Daemon::new();
    daemon.boot("print=here echo poweroff");
    daemon.await_output("here");
    let before = config(&daemon);
    let body = r#"{"vcpu_count": 2, "mem_size_mib": 128}"#;
    let (status, answer) = curl(&daemon, "PUT", "/machine-config", body);
    assert_eq!(status, 400);
    let words = "The requested operation is not supported after starting the microVM.";
    assert!(answer.contains(words), "{answer}");
    assert_eq!(
        (config(&daemon), daemon.state()),
        (before, "Running".to_owned())
    );
    std::io::Write::write_all(daemon.child.stdin.as_mut().unwrap(), b"q").unwrap();
    assert_eq!(daemon.finish().code(), Some(0), "{}", daemon.text("stderr"));
}

#[test]
fn malformed_json() {
    refused(
        "PUT",
        "/machine-config",
        r#"{"vcpu_count": 1,"#,
        &["json body", "line 1"],
    );
}

#[test]
fn an_oversized_body() {
    let body = format!(r#"{{"boot_args": "{}"}}"#, "x".repeat(60_000));
    let words = ["51200", "--http-api-max-payload-size"];
    refused("PUT", "/boot-source", &body, &words);
}

#[test]
fn a_path_that_is_none() {
    refused("GET", "/no-such-path", "", &["no-such-path"]);
}

#[test]
fn what_this_build_does_not_do_yet() {
    let words = ["not supported by this build"];
    refused(
        "PUT",
        "/pmem/p",
        r#"{"id": "p", "path_on_host": "SCRATCHp"}"#,
        &words,
    );
}

#[test]
fn a_whole_session_by_curl() {
    let mut daemon = Daemon::new();
    let disk = daemon.scratch.disk("disk", 4096, 0);
    let requests = [
        (
            "/machine-config",
            json!({"vcpu_count": 1, "mem_size_mib": 64}),
        ),
        ("/boot-source", zoo("blk_read=0:8")),
        (
            "/drives/d",
            json!({"drive_id": "d", "is_root_device": false, "path_on_host": disk}),
        ),
        ("/actions", json!({"action_type": "InstanceStart"})),
    ];
    for (path, body) in requests {
        assert_eq!(
            curl(&daemon, "PUT", path, &body.to_string()),
            (204, String::new()),
            "{path}"
        );
    }
    assert_eq!(daemon.finish().code(), Some(0), "{}", daemon.text("stderr"));
    assert!(daemon.text("stdout").contains("blk_read ok 8"));
    assert!(fs::metadata(disk).unwrap().len() == 4096);
}
