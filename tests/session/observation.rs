//! What clients are told of a real guest: the observation, the events, Firecracker's metrics.

use std::io::{BufRead, BufReader, Read};

use serde_json::{Value, json};

use crate::daemon::Daemon;
use crate::harness::Scratch;

fn lines(text: &str) -> Vec<Value> {
    let parse = |line| serde_json::from_str(line).unwrap();
    text.lines().map(parse).collect()
}

fn observe(daemon: &Daemon) -> Value {
    let (status, text) = daemon.ask("GET", "/observe?events=1", &Value::Null);
    assert_eq!(status, 200, "{text}");
    serde_json::from_str(&text).unwrap()
}

/// The section of the API's own thread.
fn api_thread(observation: &Value) -> Option<&Value> {
    let threads = observation["threads"].as_array().unwrap();
    threads.iter().find(|thread| thread["thread"] == "api")
}

#[test]
fn the_apis_thread_tells_of_its_requests() {
    let daemon = Daemon::new();
    assert_eq!(api_thread(&observe(&daemon)), None, "no black box yet");
    daemon.boot("quiet print=ready cli_hlt");
    daemon.await_output("ready");
    let (status, _) = daemon.ask("GET", "/nowhere", &Value::Null);
    assert_eq!(status, 400);
    let first = observe(&daemon);
    let api = api_thread(&first).unwrap();
    let heartbeat = &api["heartbeat"];
    assert_eq!(heartbeat["activity"], "in handler", "this request");
    assert_eq!(heartbeat["reason"], "GET /observe");
    assert!(heartbeat["tid"].as_u64().unwrap() > 0);
    // The observation before the start, the boot's two, the stray one and this.
    let requests = api["loops"].as_u64().unwrap();
    assert!(requests >= 5, "{requests}");
    let events = api["flight"]["events"].as_array().unwrap();
    let answered: Vec<_> = events.iter().map(|event| &event["length"]).collect();
    assert_eq!(answered, [204, 400], "since the black box is there");
    let again = observe(&daemon);
    let later = api_thread(&again).unwrap()["loops"].as_u64().unwrap();
    assert_eq!(later, requests + 1);
}

#[test]
fn samples_are_given_when_they_are_asked_for() {
    let daemon = Daemon::new();
    daemon.boot("quiet print=ready loop_pio=0x81");
    daemon.await_output("ready");
    let rows = |all: &Value| -> Vec<Value> {
        let rows = all["vcpu_samples"][0]["samples"]["rows"].as_array();
        rows.cloned().unwrap_or_default()
    };
    assert_eq!(rows(&observe(&daemon)), Vec::<Value>::new());
    daemon.until("two samples", || {
        let (_, text) = daemon.ask("GET", "/observe?samples=1", &Value::Null);
        let all: Value = serde_json::from_str(&text).unwrap();
        let machine = &all["samples"][0]["samples"];
        let columns = machine["columns"].as_array().unwrap();
        assert_eq!(columns[0]["name"], "at_ns_ago");
        assert_eq!(columns[1]["name"], "guest_resident_bytes");
        assert_eq!(all["machine"][0]["vcpus"], 1);
        rows(&all).len() >= 2
    });
    let (status, text) = daemon.ask("GET", "/observe?samples=2", &Value::Null);
    assert_eq!(status, 400, "{text}");
}

#[test]
fn observation_events_and_metrics_tell_of_the_same_guest() {
    let path = "SCRATCH/metrics";
    let arguments = ["--api-sock", "SCRATCH/api.sock", "--metrics-path", path];
    let mut daemon = Daemon::with(Scratch::new(), &arguments);
    daemon.await_path("api.sock");
    assert_eq!(observe(&daemon)["vcpus"], json!([]));
    let disk = daemon.scratch.disk("disk", 64 * 512, 3);
    let drive = json!({"drive_id": "d", "is_root_device": false, "path_on_host": disk});
    daemon.put("/drives/d", &drive);
    daemon.boot("blk_read=0:64 quiet pio_write=0x80:100 print=ready cli_hlt");
    daemon.await_output("ready");
    daemon.put("/vm", &json!({"state": "Paused"}));

    let all = observe(&daemon);
    assert_eq!(all["state"], "Paused");
    let vcpu = &all["vcpus"][0];
    assert_eq!(vcpu["heartbeat"]["activity"], "paused");
    assert_eq!(vcpu["device_writes"]["post"], 100);
    assert!(!vcpu["flight"]["events"].as_array().unwrap().is_empty());
    let device = &all["devices"][0];
    assert_eq!(device["device"], "d");
    let read = device["operations"]["read"].as_u64().unwrap();
    assert_eq!(device["operation_bytes"]["read"], 64 * 512);
    assert_eq!(
        all["queues"][0]["service_ns"]["count"],
        all["queues"][0]["completions"]
    );

    daemon.put("/actions", &json!({"action_type": "FlushMetrics"}));
    let (_, events) = daemon.ask("GET", "/observe/events", &Value::Null);
    daemon.signal("TERM");
    assert_eq!(daemon.finish().code(), Some(0), "{}", daemon.text("stderr"));
    let told = lines(&daemon.text("metrics"));
    assert_eq!(told.len(), 3, "the start, the flush, the end");
    let sum = |group: &str, key: &str| -> u64 {
        told.iter()
            .map(|line| line[group][key].as_u64().unwrap())
            .sum()
    };
    assert_eq!(sum("block", "read_count"), read);
    assert_eq!(sum("block_d", "read_bytes"), 64 * 512);
    let exits = vcpu["exits"]["io_out"].as_u64().unwrap();
    assert_eq!(sum("vcpu", "exit_io_out"), exits);
    assert!(events.contains("\"event\":\"paused\""), "{events}");
}

#[test]
fn an_async_drive_serves_and_says_which_engine_it_has() {
    let mut daemon = Daemon::new();
    let disk = daemon.scratch.disk("disk", 64 * 512, 3);
    let drive = json!({
        "drive_id": "d", "is_root_device": false, "path_on_host": disk, "io_engine": "Async",
    });
    daemon.put("/drives/d", &drive);
    daemon.boot("blk_read=0:64 quiet print=ready cli_hlt");
    daemon.await_output("ready");
    let (_, events) = daemon.ask("GET", "/observe/events", &Value::Null);
    let number = match events.contains("io_engine Async cannot be had") {
        true => 1,
        false => 2,
    };
    let all = observe(&daemon);
    let device = &all["devices"][0];
    assert_eq!(device["io_engine"], number, "{events}");
    assert_eq!(device["operation_bytes"]["read"], 64 * 512);
    assert_eq!(all["queues"][0]["in_flight"], 0);
    let metric = r#"vitrine_device_io_engine{vm="anonymous-instance",device="d"}"#;
    assert_eq!(daemon.metric(metric), number);
    daemon.signal("TERM");
    assert_eq!(daemon.finish().code(), Some(0), "{}", daemon.text("stderr"));
}

#[test]
fn a_follower_hears_all_until_the_end() {
    let mut daemon = Daemon::new();
    let socket = daemon.scratch.path("api.sock");
    let mut follower = std::process::Command::new("curl")
        .args([
            "--silent",
            "--no-buffer",
            "--max-time",
            "60",
            "--unix-socket",
        ])
        .arg(socket)
        .arg("http://localhost/observe/events?follow=1")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // A guest is gone in milliseconds: it starts when the follower has heard of something.
    let machine = json!({"vcpu_count": 1, "mem_size_mib": 128});
    daemon.put("/machine-config", &machine);
    let mut stream = BufReader::new(follower.stdout.take().unwrap());
    let mut heard = String::new();
    stream.read_line(&mut heard).unwrap();
    daemon.boot("print=ready poweroff");
    assert_eq!(daemon.finish().code(), Some(0), "{}", daemon.text("stderr"));
    stream.read_to_string(&mut heard).unwrap();
    let status = follower.wait().unwrap();
    assert!(status.success(), "the stream ends in order: {status}");
    let told = lines(&heard);
    let numbers: Vec<_> = told
        .iter()
        .map(|event| event["number"].as_u64().unwrap())
        .collect();
    assert_eq!(numbers, (1..=told.len() as u64).collect::<Vec<_>>());
    assert_eq!(
        told.iter()
            .filter(|event| event["event"] == "started")
            .count(),
        1
    );
    let last = told.last().unwrap();
    assert_eq!(
        (&last["event"], &last["failed"]),
        (&json!("ended"), &json!(false))
    );
    assert_eq!(last["detail"], "the guest powered off");
}
