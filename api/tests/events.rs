//! GET /observe/events: what has happened, and what comes.

mod support;

use std::io::{BufRead, BufReader, Read};
use std::time::{Duration, Instant};

use api::events::stream::MAX_FOLLOWERS;
use api::events::{Event, KEPT};
use serde_json::{Value, json};
use support::{Client, TestServer, request};

const FOLLOW: &str = "/observe/events?follow=1";

fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// A client that follows by HTTP/1.0, so that lines come as they are; its head is read.
fn follower(server: &TestServer, path: &str) -> BufReader<std::os::unix::net::UnixStream> {
    let mut client = server.connect();
    client.send(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes());
    let mut reader = BufReader::new(client.stream);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if line == "\r\n" {
            return reader;
        }
    }
}

fn next(reader: &mut impl BufRead) -> Value {
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line:?}"))
}

#[test]
fn requests_that_change_something_are_events_and_others_are_not() {
    let server = TestServer::new();
    server.put_kernel();
    server.ask("GET", "/vm/config", "").json();
    server.ask("PUT", "/machine-config?x=1", "{}").fault();
    server.action("InstanceStart").is_204();
    server.ask("PATCH", "/vm", r#"{"state":"Paused"}"#).is_204();
    let answer = server.ask("GET", "/observe/events", "");
    assert_eq!(answer.status, 200);
    assert!(answer.head.contains("Content-Type: application/jsonl\r\n"));
    let told = lines(&answer.body);
    let facts: Vec<_> = told
        .iter()
        .map(|event| {
            json!([
                event["number"],
                event["event"],
                event["path"],
                event["action"]
            ])
        })
        .collect();
    let expected = json!([
        [1, "request", "/boot-source", null],
        [2, "request", "/actions", "InstanceStart"],
        [3, "request", "/vm", "Paused"],
    ]);
    assert_eq!(json!(facts), expected);
    let later = server.ask("GET", "/observe/events?since=2", "").body;
    assert_eq!(lines(&later), told[2..]);
    assert_eq!(
        server
            .ask("GET", "/observe/events?since=3&follow=0", "")
            .body,
        ""
    );
}

#[test]
fn bad_parameters_are_named() {
    let server = TestServer::new();
    let ask = |query: &str| server.ask("GET", &format!("/observe/events?{query}"), "");
    ask("since=x").refuses(&["`since`", "\"x\""]);
    ask("since=-1").refuses(&["`since`", "-1"]);
    ask("since=").refuses(&["`since`"]);
    ask("follow=2").refuses(&["`follow`", "0 or 1"]);
    ask("from=2").refuses(&["`from`", "since, follow"]);
}

#[test]
fn a_follower_gets_what_was_and_what_comes_until_the_end() {
    let server = TestServer::new();
    server.events.push(Event::Started);
    let mut reader = follower(&server, FOLLOW);
    assert_eq!(next(&mut reader)["event"], "started");
    server.events.push(Event::Device {
        device: "rootfs".to_owned(),
        detail: "EIO".to_owned(),
    });
    let event = next(&mut reader);
    assert_eq!(
        (&event["number"], &event["device"]),
        (&json!(2), &json!("rootfs"))
    );
    server.events.push(Event::Ended {
        runs: Vec::new(),
        failed: false,
        detail: "the guest powered off".to_owned(),
    });
    assert_eq!(next(&mut reader)["detail"], "the guest powered off");
    assert_eq!(
        reader.read(&mut [0]).unwrap(),
        0,
        "the stream ends with the VM"
    );
    // Who comes afterwards gets all of it, and the same end.
    let mut late = String::new();
    follower(&server, FOLLOW).read_to_string(&mut late).unwrap();
    assert_eq!(lines(&late).len(), 3);
}

#[test]
fn http_1_1_gets_chunks_and_goes_on_afterwards() {
    let server = TestServer::new();
    let mut client = server.connect();
    client.send(request("GET", FOLLOW, "").as_bytes());
    client.send(b"GET /version HTTP/1.1\r\nConnection: close\r\n\r\n");
    std::thread::sleep(Duration::from_millis(50));
    server.events.push(Event::Started);
    server.events.close();
    let mut text = String::new();
    client.stream.read_to_string(&mut text).unwrap();
    assert!(text.contains("Transfer-Encoding: chunked\r\n"), "{text}");
    assert!(
        text.contains("\"event\":\"started\"}\n\r\n0\r\n\r\nHTTP/1.1 200 "),
        "{text}"
    );
}

#[test]
fn a_late_reader_is_told_what_it_lost() {
    let server = TestServer::new();
    for _ in 0..KEPT + 5 {
        server.events.push(Event::Paused);
    }
    let told = lines(&server.ask("GET", "/observe/events", "").body);
    assert_eq!(told[0], json!({"lost": 5}));
    assert_eq!((told.len(), &told[1]["number"]), (KEPT + 1, &json!(6)));
}

#[test]
fn a_slow_reader_loses_events_and_holds_up_nobody() {
    let server = TestServer::new();
    let reader = follower(&server, FOLLOW);
    let total = 40_000;
    for number in 0..total {
        server.events.push(Event::Device {
            device: "d".to_owned(),
            detail: "x".repeat(200),
        });
        if number % 1000 == 0 {
            server.ask("GET", "/", "").json();
        }
    }
    server.events.close();
    let mut expected = 1;
    let mut lost = 0;
    for line in reader.lines() {
        let line: Value = serde_json::from_str(&line.unwrap()).unwrap();
        if let Some(gap) = line["lost"].as_u64() {
            lost += gap;
            expected += gap;
            continue;
        }
        assert_eq!(line["number"], expected);
        expected += 1;
    }
    assert_eq!(expected, total + 1);
    assert!(lost > 0);
}

#[test]
fn followers_are_bounded_and_those_who_hang_up_make_room() {
    let server = TestServer::new();
    let followers: Vec<_> = (0..MAX_FOLLOWERS)
        .map(|_| follower(&server, FOLLOW))
        .collect();
    let answer = server.ask("GET", FOLLOW, "");
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.body.contains("16 clients follow"), "{answer:?}");
    server.ask("GET", "/observe/events", "");
    drop(followers);
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut client: Client = server.connect();
    loop {
        client.send(request("GET", FOLLOW, "").as_bytes());
        let mut piece = [0; 12];
        client.stream.read_exact(&mut piece).unwrap();
        if &piece == b"HTTP/1.1 200" {
            break;
        }
        assert!(Instant::now() < deadline, "places are not given back");
        std::thread::sleep(Duration::from_millis(50));
        client = server.connect();
    }
}

#[test]
fn a_server_that_stops_lets_followers_go() {
    let server = TestServer::new();
    let mut reader = follower(&server, FOLLOW);
    let begin = Instant::now();
    drop(server);
    assert!(
        begin.elapsed() < Duration::from_millis(900),
        "{:?}",
        begin.elapsed()
    );
    assert_eq!(reader.read(&mut [0]).unwrap(), 0);
}
