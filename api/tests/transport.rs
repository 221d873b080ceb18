//! The bytes on the socket: what published clients count on, and what bad ones may not do.

mod support;

use std::io::Read;
use std::time::{Duration, Instant};

use api::http::{MAX_CONNECTIONS, Options, Timing};
use api::session::Deadlines;
use support::{FakeLauncher, TestServer, request};

#[test]
fn http_1_0_without_a_connection_header_stays_open() {
    let server = TestServer::new();
    let mut client = server.connect();
    for _ in 0..3 {
        client.send(b"GET /machine-config HTTP/1.0\r\n\r\n");
        let answer = client.answer();
        answer.json();
        assert!(
            answer.head.contains("Connection: keep-alive\r\n"),
            "{}",
            answer.head
        );
    }
}

#[test]
fn connection_close_is_honoured() {
    let server = TestServer::new();
    for version in ["1.0", "1.1"] {
        let mut client = server.connect();
        client.send(format!("GET / HTTP/{version}\r\nConnection: close\r\n\r\n").as_bytes());
        let answer = client.answer();
        assert!(answer.head.contains("Connection: close\r\n"));
        assert!(client.is_closed());
    }
}

#[test]
fn a_204_is_firecrackers_to_the_byte_and_comes_in_one_piece() {
    let server = TestServer::new();
    let mut client = server.connect();
    let body = r#"{"vcpu_count":2,"mem_size_mib":64}"#;
    client.send(request("PUT", "/machine-config", body).as_bytes());
    let mut piece = [0; 4096];
    let count = client.stream.read(&mut piece).unwrap();
    let expected = "HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n";
    assert_eq!(std::str::from_utf8(&piece[..count]).unwrap(), expected);
}

/// One published client reads 64 bytes at a time and stops at the first short read.
#[test]
fn a_client_that_reads_64_bytes_at_a_time_never_hangs() {
    let server = TestServer::new();
    server.start();
    let mut client = server.connect();
    let mut paths: Vec<String> = ["/", "/version", "/machine-config", "/vm/config"]
        .map(str::to_owned)
        .into();
    paths.extend((1..80).map(|length| format!("/{}", "x".repeat(length))));
    for path in paths {
        client.send(request("GET", &path, "").as_bytes());
        let mut text = Vec::new();
        loop {
            let mut piece = [0; 64];
            let count = client.stream.read(&mut piece).unwrap();
            text.extend_from_slice(&piece[..count]);
            if count < 64 {
                break;
            }
        }
        assert!(text.ends_with(b"}") || text.ends_with(b"}\n"), "{path}");
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let server = TestServer::new();
    let mut client = server.connect();
    let mut all = request(
        "PUT",
        "/machine-config",
        r#"{"vcpu_count":3,"mem_size_mib":64}"#,
    );
    all += &request("GET", "/machine-config", "");
    all += &request("GET", "/nothing", "");
    all += &request("GET", "/version", "");
    client.send(all.as_bytes());
    client.answer().is_204();
    assert_eq!(client.answer().json()["vcpu_count"], 3);
    client.answer().refuses(&["GET nothing"]);
    assert_eq!(client.answer().json()["firecracker_version"], "1.17.0");
}

#[test]
fn chunked_bodies_and_expectations_are_understood() {
    let server = TestServer::new();
    let mut client = server.connect();
    client.send(b"PUT /machine-config HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send(b"10\r\n{\"vcpu_count\":4,\r\n14\r\n\"mem_size_mib\": 256}\r\n0\r\n\r\n");
    client.answer().is_204();

    let body = r#"{"vcpu_count":5,"mem_size_mib":64}"#;
    let length = body.len();
    let head = format!(
        "PUT /machine-config HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
    );
    client.send(head.as_bytes());
    assert_eq!(client.answer().status, 100);
    client.send(body.as_bytes());
    client.answer().is_204();
    assert_eq!(
        server.ask("GET", "/machine-config", "").json()["vcpu_count"],
        5
    );
}

#[test]
fn bodies_above_the_limit_are_refused_with_limit_and_flag() {
    let server = TestServer::new();
    let at_limit = format!(
        "{}{}",
        r#"{"vcpu_count":1,"mem_size_mib":64}"#,
        " ".repeat(51_200 - 34)
    );
    server.ask("PUT", "/machine-config", &at_limit).is_204();
    let answer = server.ask("PUT", "/machine-config", &format!("{at_limit} "));
    answer.refuses(&["51201", "51200", "--http-api-max-payload-size"]);

    let options = Options {
        max_body_bytes: 20,
        ..Options::default()
    };
    let small = TestServer::with(FakeLauncher::default(), options, Deadlines::default());
    small
        .ask("PUT", "/vm", &"x".repeat(21))
        .refuses(&["20", "--http-api-max-payload-size"]);
    // Far above it, the answer still arrives before the connection ends.
    let mut client = small.connect();
    client.send(request("PUT", "/vm", &"x".repeat(100_000)).as_bytes());
    client.answer().refuses(&["100000"]);
}

#[test]
fn what_is_not_http_is_refused_and_closed() {
    let server = TestServer::new();
    for bytes in [
        &b"\x16\x03\x01\x02\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"PUT / HTTP/2.0\r\n\r\n",
    ] {
        let mut client = server.connect();
        client.send(bytes);
        client.answer().refuses(&["malformed HTTP"]);
        assert!(client.is_closed());
    }
    server.ask("GET", "/", "").json();
}

#[test]
fn slow_and_silent_clients_hold_up_nobody() {
    let server = TestServer::new();
    let mut slow = server.connect();
    slow.send(b"PUT /machine-config HTTP/1.1\r\nContent-Le");
    let _silent = server.connect();
    let begin = Instant::now();
    let mut clients: Vec<_> = (0..20).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.ask("GET", "/machine-config", "").json();
    }
    assert!(begin.elapsed() < Duration::from_secs(5));
    slow.send(b"ngth: 34\r\n\r\n{\"vcpu_count\":6,");
    slow.send(b"\"mem_size_mib\":64}");
    slow.answer().is_204();
}

#[test]
fn a_request_that_does_not_end_is_refused() {
    let timing = Timing {
        request: Duration::from_millis(100),
        ..Timing::default()
    };
    let options = Options {
        timing,
        ..Options::default()
    };
    let server = TestServer::with(FakeLauncher::default(), options, Deadlines::default());
    let mut client = server.connect();
    client.send(b"GET / HT");
    client.answer().refuses(&["not complete after 0.1 seconds"]);
    assert!(client.is_closed());
    // Silence between requests is no fault.
    let mut patient = server.connect();
    patient.ask("GET", "/", "").json();
    std::thread::sleep(Duration::from_millis(200));
    patient.ask("GET", "/", "").json();
}

#[test]
fn the_oldest_silent_client_makes_room_for_a_new_one() {
    let server = TestServer::new();
    let mut clients: Vec<_> = (0..MAX_CONNECTIONS).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.ask("GET", "/", "").json();
    }
    server.ask("GET", "/", "").json();
    assert!(clients[0].is_closed());
    for client in &mut clients[1..] {
        client.ask("GET", "/", "").json();
    }
}

#[test]
fn the_socket_is_left_behind_and_never_taken_over() {
    let server = TestServer::new();
    let path = server.directory.join("api.sock");
    let error = api::server::Socket::bind(&path).unwrap_err().to_string();
    assert!(
        error.contains("already exists: another VMM may be using it"),
        "{error}"
    );
    assert!(error.contains("--api-sock"), "{error}");
}
