//! What is done about verdicts: GET and PUT /policy, and `--policy FILE`.

use std::fs;

use serde_json::{Value, json};

use crate::daemon::Daemon;
use crate::harness::Scratch;

fn has_verdict(daemon: &Daemon, code: &str) -> bool {
    let (status, text) = daemon.ask("GET", "/observe/health", &Value::Null);
    assert_eq!(status, 200, "{text}");
    let health: Value = serde_json::from_str(&text).unwrap();
    let mut verdicts = health["verdicts"].as_array().unwrap().iter();
    verdicts.any(|verdict| verdict["code"] == code)
}

#[test]
fn a_lower_threshold_raises_a_verdict_that_the_default_would_not() {
    let thresholds = |exits: f64| json!({"storm_exits": exits, "storm_share": 1, "raise_ms": 0});
    let scratch = Scratch::new();
    let high = json!({ "thresholds": thresholds(1e12) });
    fs::write(scratch.path("policy.json"), high.to_string()).unwrap();
    let arguments = [
        "--api-sock",
        "SCRATCH/api.sock",
        "--policy",
        "SCRATCH/policy.json",
    ];
    let daemon = Daemon::with(scratch, &arguments);
    daemon.await_path("api.sock");
    daemon.boot("quiet print=ready loop_pio=0x81");
    daemon.await_output("ready");
    let rounds = "vitrine_thread_loops_total{vm=\"anonymous-instance\",thread=\"watcher\"}";
    let before = daemon.metric(rounds);
    daemon.until("some judgements", || daemon.metric(rounds) > before + 3);
    assert!(!has_verdict(&daemon, "exit-storm"));
    daemon.put("/policy", &json!({ "thresholds": thresholds(1.0) }));
    daemon.until("the verdict", || has_verdict(&daemon, "exit-storm"));
}

#[test]
fn a_policy_file_that_is_refused_is_bad_usage() {
    let scratch = Scratch::new();
    fs::write(
        scratch.path("policy.json"),
        "{\"thresholds\": {\"spin\": 1}}",
    )
    .unwrap();
    let arguments = [
        "--api-sock",
        "SCRATCH/api.sock",
        "--policy",
        "SCRATCH/policy.json",
    ];
    let mut daemon = Daemon::with(scratch, &arguments);
    assert_eq!(daemon.finish().code(), Some(2));
    let said = daemon.text("stderr");
    assert!(
        said.contains("policy.json is refused: `thresholds.spin` is not known"),
        "{said}"
    );
}
