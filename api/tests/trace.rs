//! GET /observe/trace: what is refused, and that one trace holds nobody else up.

mod support;

use std::io::Read;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{TestServer, request};

/// The whole answer to a request by HTTP/1.0.
fn traced(server: &TestServer, path: &str) -> String {
    let mut client = server.connect();
    client.send(format!("GET {path} HTTP/1.0\r\nConnection: close\r\n\r\n").as_bytes());
    let mut text = String::new();
    client.stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_trace_is_refused_before_the_start_and_for_other_times() {
    let server = TestServer::new();
    let ask = |path: &str| server.ask("GET", path, "");
    ask("/observe/trace").refuses(&["not supported before starting"]);
    server.start();
    for ms in ["0", "60001", "18446744073709551615"] {
        let path = format!("/observe/trace?ms={ms}");
        ask(&path).refuses(&["`ms`", ms, "1 to 60000"]);
    }
    ask("/observe/trace?ms=-1").refuses(&["`ms`", "-1", "whole number"]);
    ask("/observe/trace?seconds=1").refuses(&["`seconds`", "give ms"]);
    server.ask("GET", "/observe/trace", "{}").refuses(&["body"]);
    server
        .ask("PUT", "/observe/trace", "{}")
        .refuses(&["method"]);
}

#[test]
fn a_trace_is_json_and_says_what_is_missing() {
    let server = TestServer::new();
    server.start();
    let answer = traced(&server, "/observe/trace?ms=1");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(head.contains("Content-Type: application/json"), "{head}");
    let trace: Value = serde_json::from_str(body).unwrap();
    assert_eq!(trace["otherData"]["vm"], "vm1");
    assert_eq!(trace["otherData"]["missing"][0]["what"], "kernel exits");
    assert!(trace["traceEvents"].is_array());
}

#[test]
fn one_trace_at_a_time_and_all_else_is_answered_meanwhile() {
    let server = TestServer::new();
    server.start();
    let mut first = server.connect();
    first.send(request("GET", "/observe/trace?ms=60000", "").as_bytes());
    // Its head: the trace has begun.
    let mut head = [0; 12];
    first.stream.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    let begun = Instant::now();
    server.ask("GET", "/observe", "").json();
    let second = server.ask("GET", "/observe/trace?ms=1", "");
    second.refuses(&["another client"]);
    assert!(begun.elapsed() < Duration::from_secs(10));
    // A client that is gone ends its trace and makes room.
    drop(first);
    let end = Instant::now() + Duration::from_secs(20);
    while !traced(&server, "/observe/trace?ms=1").starts_with("HTTP/1.1 200") {
        assert!(
            Instant::now() < end,
            "the trace of a client that is gone goes on"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}
