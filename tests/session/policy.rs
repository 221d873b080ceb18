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

/// The events of this kind.
fn events(daemon: &Daemon, kind: &str) -> Vec<Value> {
    let (status, text) = daemon.ask("GET", "/observe/events", &Value::Null);
    assert_eq!(status, 200, "{text}");
    let all = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    all.filter(|event| event["event"] == kind).collect()
}

/// A guest whose verdict `exit-storm` is raised at once.
fn storm(actions: &Value, restart: &Value) -> Daemon {
    let daemon = Daemon::new();
    let policy = json!({
        "thresholds": {"storm_exits": 1, "raise_ms": 0},
        "verdicts": {"exit-storm": actions},
        "restart": restart,
    });
    daemon.put("/policy", &policy);
    daemon.boot("quiet print=ready loop_pio=0x81");
    daemon
}

#[test]
fn a_verdict_sends_an_nmi_writes_a_dump_and_pauses_the_guest() {
    let scratch = Scratch::new();
    let folder = scratch.path("dumps");
    fs::create_dir(&folder).unwrap();
    let actions = json!(["nmi", {"wait_ms": 1000}, {"dump": "registers", "path": folder}, "pause"]);
    let daemon = storm(&actions, &Value::Null);
    daemon.until("the pause", || daemon.state() == "Paused");
    daemon.until("the events", || events(&daemon, "action").len() == 4);
    let told = events(&daemon, "action");
    let names: Vec<&str> = told
        .iter()
        .map(|event| event["action"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["nmi", "wait", "dump", "pause"]);
    for event in &told {
        assert_eq!(
            (&event["code"], &event["error"]),
            (&json!("exit-storm"), &Value::Null),
            "{event}"
        );
        assert_eq!(event["subject"], "vcpu/0");
    }
    let dump = folder.join("anonymous-instance-exit-storm.registers");
    assert_eq!(told[2]["path"], dump.to_str().unwrap());
    let dump: Value = serde_json::from_str(&fs::read_to_string(dump).unwrap()).unwrap();
    assert!(dump.is_object() || dump.is_array(), "{dump}");
    assert!(daemon.text("stdout").contains("zoo: nmi"));
    assert!(
        daemon
            .text("stderr")
            .contains("exit-storm vcpu/0: the policy's pause is done")
    );
    daemon.put("/vm", &json!({"state": "Resumed"}));
    assert_eq!(daemon.state(), "Running");
}

#[test]
fn a_verdict_resets_and_then_ends_a_guest_that_does_not_get_better() {
    let mut daemon = storm(&json!(["reset"]), &json!({"at_most": 1}));
    assert_eq!(daemon.finish().code(), Some(1));
    let said = daemon.text("stderr");
    let reason = "the policy says reset";
    for run in 1..=2 {
        let line = format!("  run {run}: began ");
        let account = said.lines().find(|said| said.starts_with(&line));
        let account = account.unwrap_or_else(|| panic!("no {line:?} in {said}"));
        assert!(
            account.contains("exit-storm vcpu/0: ") && account.contains(reason),
            "{account}"
        );
    }
    assert!(said.contains("restart 1 of 1 within 600s now"), "{said}");
    assert_eq!(daemon.text("stdout").matches("ready").count(), 2);
}

/// It tells pvpanic alone, and that in its second run too.
#[test]
fn a_panic_told_by_pvpanic_resets_or_restarts_the_guest() {
    for (action, wait_ms, when) in [("reset", 3_600_000, "now"), ("restart", 10, "in 10ms")] {
        let mut daemon = Daemon::new();
        let policy = json!({
            "verdicts": {"guest-panic": [action]},
            "restart": {"at_most": 1, "first_wait_ms": wait_ms, "longest_wait_ms": wait_ms},
        });
        daemon.put("/policy", &policy);
        daemon.boot("quiet print=ready pio_write=0x505:1:1 spin_sti");
        assert_eq!(daemon.finish().code(), Some(1), "{action}");
        let said = daemon.text("stderr");
        for run in 1..=2 {
            let line = format!("  run {run}: began ");
            let account = said.lines().find(|said| said.starts_with(&line));
            let account = account.unwrap_or_else(|| panic!("no {line:?} in {said}"));
            let reason = format!("the policy says {action}");
            assert!(
                account.contains("guest-panic") && account.contains(&reason),
                "{account}"
            );
        }
        let cause = format!("restart 1 of 1 within 600s {when}");
        assert!(said.contains(&cause), "{action}: {said}");
        let console = daemon.text("stdout");
        assert_eq!(console.matches("ready").count(), 2, "{console}");
    }
}

#[test]
fn a_crash_kernel_that_takes_over_is_left_alone_by_the_policy() {
    let daemon = Daemon::new();
    let policy = json!({
        "verdicts": {"guest-panic": ["reset"]},
        "restart": {"at_most": 1},
    });
    daemon.put("/policy", &policy);
    daemon.boot("quiet print=ready pio_write=0x505:1:2 spin_sti");
    daemon.until("the verdict", || has_verdict(&daemon, "guest-panic"));
    let rounds = "vitrine_thread_loops_total{vm=\"anonymous-instance\",thread=\"watcher\"}";
    let before = daemon.metric(rounds);
    daemon.until("some judgements", || daemon.metric(rounds) > before + 3);
    assert!(events(&daemon, "action").is_empty(), "it is a warning");
    assert_eq!(daemon.metric("vitrine_run{vm=\"anonymous-instance\"}"), 1);
}
