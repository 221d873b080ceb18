//! What is said of a guest that misbehaves: GET /observe/health and the events.

use serde_json::{Value, json};

use crate::daemon::Daemon;

fn health(daemon: &Daemon) -> Value {
    let (status, text) = daemon.ask("GET", "/observe/health", &Value::Null);
    assert_eq!(status, 200, "{text}");
    serde_json::from_str(&text).unwrap()
}

fn codes(health: &Value) -> Vec<String> {
    let verdicts = health["verdicts"].as_array().unwrap();
    let codes = verdicts.iter().map(|verdict| verdict["code"].as_str());
    codes.map(|code| code.unwrap().to_owned()).collect()
}

#[test]
fn a_guest_that_leaves_for_one_port_all_the_time_is_named_with_the_port() {
    let daemon = Daemon::new();
    assert_eq!(health(&daemon), json!({ "health": 100, "verdicts": [] }));
    daemon.boot("quiet print=ready loop_pio=0x81");
    daemon.await_output("ready");
    let is_storm = |code: &String| code == "exit-storm";
    daemon.until("a verdict", || codes(&health(&daemon)).iter().any(is_storm));
    // The machine may be busy with something else: then the vCPU is starved, too, and rightly so.
    let told = health(&daemon);
    let mut verdicts = told["verdicts"].as_array().unwrap().iter();
    let storm = verdicts
        .find(|verdict| verdict["code"] == "exit-storm")
        .unwrap();
    assert!(told["health"].as_u64().unwrap() <= 85, "{told:#}");
    assert_eq!(storm["severity"], "warning");
    assert_eq!(storm["subject"], "vcpu/0");
    assert_eq!(storm["evidence"]["place"], "io_in 0x81");
    assert!(storm["evidence"]["exits_per_second"].as_f64().unwrap() >= 50_000.0);
    assert!(storm["since_ms"].as_u64().unwrap() > 1_700_000_000_000);

    // It comes by way of the VM's own thread, a moment later.
    daemon.until("the event", || {
        let (_, text) = daemon.ask("GET", "/observe/events", &Value::Null);
        let events = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        let mut storms = events.filter(|event| event["verdict"]["code"] == "exit-storm");
        storms
            .next()
            .is_some_and(|event| event["change"] == "raised")
    });

    // A paused guest leaves nowhere.
    let paused = json!({ "state": "Paused" });
    assert_eq!(daemon.ask("PATCH", "/vm", &paused).0, 204);
    daemon.until("the end of the storm", || {
        codes(&health(&daemon)) == ["paused"]
    });
    assert_eq!(health(&daemon)["health"], 100);
}
