//! GET and PUT /policy.

mod support;

use serde_json::json;
use support::TestServer;

#[test]
fn the_policy_is_told_with_its_defaults_and_can_be_put_at_any_time() {
    let server = TestServer::new();
    let told = server.ask("GET", "/policy", "").json();
    assert_eq!(told["thresholds"]["storm_exits"], 50_000.0);
    assert_eq!(told["thresholds"]["raise_ms"], 1_000);
    let put = |storm_exits: u64| {
        let body = json!({"thresholds": {"storm_exits": storm_exits}});
        server.ask("PUT", "/policy", &body.to_string()).is_204();
        assert_eq!(
            server.rulebook.limits().read().thresholds.storm_exits,
            storm_exits as f64
        );
    };
    put(7);
    server.start();
    put(8);
    let told = server.ask("GET", "/policy", "").json();
    assert_eq!(told["thresholds"]["storm_exits"], 8.0);
    server.ask("PUT", "/policy", &told.to_string()).is_204();
    assert_eq!(server.ask("GET", "/policy", "").json(), told);
    let events = server.events.after(0, 99);
    let paths = events.events.iter().filter(
        |told| matches!(&told.event, api::events::Event::Request { path, .. } if path == "/policy"),
    );
    assert_eq!(paths.count(), 3);
}

#[test]
fn a_policy_that_is_refused_changes_nothing() {
    let server = TestServer::new();
    let before = server.ask("GET", "/policy", "").json();
    for (body, words) in [
        ("{", "json body"),
        (
            "{\"thresholds\":{\"spin_ms\":0}}",
            "`thresholds.spin_ms` cannot be 0",
        ),
        ("{\"threshold\":{}}", "`threshold` is not known"),
        (
            "{\"thresholds\":{\"spin_ms\":9,\"handler_ns\":1}}",
            "`thresholds.handler_ns` is not known",
        ),
    ] {
        server.ask("PUT", "/policy", body).refuses(&[words]);
    }
    assert_eq!(server.ask("GET", "/policy", "").json(), before);
}
