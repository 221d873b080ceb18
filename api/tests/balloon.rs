//! The balloon's routes, field by field as Firecracker has them.

mod support;

use api::machine::Command;
use serde_json::json;
use support::TestServer;
use vmm::BalloonOrder;

const WHOLE: &str = r#"{"amount_mib":64,"deflate_on_oom":true,"stats_polling_interval_s":1,"free_page_hinting":true,"free_page_reporting":true}"#;

#[test]
fn a_balloon_is_put_before_the_start_and_shown_whole() {
    let server = TestServer::new();
    let none = server.ask("GET", "/balloon", "");
    none.refuses(&["No balloon device found"]);
    let short = r#"{"amount_mib":0,"deflate_on_oom":false}"#;
    server.ask("PUT", "/balloon", short).is_204();
    let filled = json!({"amount_mib": 0, "deflate_on_oom": false, "stats_polling_interval_s": 0,
        "free_page_hinting": false, "free_page_reporting": false});
    assert_eq!(server.ask("GET", "/balloon", "").json(), filled);
    server.ask("PUT", "/balloon", WHOLE).is_204();
    let config = server.ask("GET", "/vm/config", "").json();
    assert_eq!(
        config["balloon"],
        serde_json::from_str::<serde_json::Value>(WHOLE).unwrap()
    );
    for (body, words) in [
        (r#"{"amount_mib":64}"#, "deflate_on_oom"),
        (r#"{"amount_mib":129,"deflate_on_oom":true}"#, "at most 128"),
        (
            r#"{"amount_mib":1,"deflate_on_oom":true,"size":1}"#,
            "unknown field",
        ),
    ] {
        server.ask("PUT", "/balloon", body).refuses(&[words]);
    }
    // The memory cannot become smaller than the balloon either.
    let small = r#"{"vcpu_count":1,"mem_size_mib":32}"#;
    let refused = server.ask("PUT", "/machine-config", small);
    refused.refuses(&["amount_mib 64", "at most 32"]);
}

#[test]
fn what_needs_a_guest_is_refused_before_the_start() {
    let server = TestServer::new();
    server.ask("PUT", "/balloon", WHOLE).is_204();
    let before = "not supported before starting";
    for (method, path, body) in [
        ("PATCH", "/balloon", r#"{"amount_mib":1}"#),
        (
            "PATCH",
            "/balloon/statistics",
            r#"{"stats_polling_interval_s":1}"#,
        ),
        ("GET", "/balloon/statistics", ""),
        ("GET", "/balloon/hinting/status", ""),
        ("PATCH", "/balloon/hinting/start", ""),
        ("PATCH", "/balloon/hinting/stop", ""),
    ] {
        server.ask(method, path, body).refuses(&[before]);
    }
}

#[test]
fn a_started_vm_gets_the_orders_and_the_configuration_follows() {
    let server = TestServer::new();
    server.ask("PUT", "/balloon", WHOLE).is_204();
    let machine = server.start();
    server
        .ask("PUT", "/balloon", WHOLE)
        .refuses(&["after starting"]);
    server
        .ask("PATCH", "/balloon", r#"{"amount_mib":32}"#)
        .is_204();
    let every = r#"{"stats_polling_interval_s":5}"#;
    server.ask("PATCH", "/balloon/statistics", every).is_204();
    server.ask("PATCH", "/balloon/hinting/start", "").is_204();
    let keep = r#"{"acknowledge_on_stop":false}"#;
    server.ask("PATCH", "/balloon/hinting/start", keep).is_204();
    server.ask("PATCH", "/balloon/hinting/stop", "").is_204();
    let orders = [
        BalloonOrder::Resize { mib: 32 },
        BalloonOrder::Poll { seconds: 5 },
        BalloonOrder::StartHinting { acknowledge: true },
        BalloonOrder::StartHinting { acknowledge: false },
        BalloonOrder::StopHinting,
    ];
    assert_eq!(*machine.told.lock().unwrap(), orders.map(Command::Balloon));
    let now = server.ask("GET", "/balloon", "").json();
    assert_eq!(now["amount_mib"], 32);
    assert_eq!(now["stats_polling_interval_s"], 5);
}

#[test]
fn what_was_not_asked_for_is_refused_by_name() {
    let server = TestServer::new();
    let plain = r#"{"amount_mib":1,"deflate_on_oom":true}"#;
    server.ask("PUT", "/balloon", plain).is_204();
    server.start();
    let disabled = ["Statistics for the balloon device are not enabled"];
    server
        .ask("GET", "/balloon/statistics", "")
        .refuses(&disabled);
    let hinting = ["Free page hinting is not enabled"];
    server
        .ask("GET", "/balloon/hinting/status", "")
        .refuses(&hinting);
    let bare = TestServer::new();
    bare.start();
    let none = ["No balloon device found"];
    bare.ask("GET", "/balloon/statistics", "").refuses(&none);
}
