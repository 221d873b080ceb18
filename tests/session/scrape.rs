//! GET /metrics in every state of a VM: Prometheus' own checker takes it, and counters only grow.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::daemon::Daemon;

/// Prometheus' checker: `$VITRINE_PROMTOOL`, else the installed one.
fn promtool() -> PathBuf {
    std::env::var_os("VITRINE_PROMTOOL").map_or_else(|| "promtool".into(), PathBuf::from)
}

/// The text, which promtool has found nothing to say about.
fn scrape(daemon: &Daemon, state: &str) -> String {
    let (status, text) = daemon.ask("GET", "/metrics", &Value::Null);
    assert_eq!(status, 200, "{state}");
    let child = Command::new(promtool())
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.unwrap_or_else(|error| {
        panic!(
            "promtool cannot be run: {error}; `cargo xtask test --only session` fetches it, or \
             install Debian's package prometheus, or name the program in VITRINE_PROMTOOL"
        )
    });
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(text.as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(
        output.status.success() && said.is_empty(),
        "{state}: {said}"
    );
    text
}

/// Samples that may never go down: of counters, and of histograms, whose buckets count, too.
fn counts(text: &str) -> BTreeMap<String, f64> {
    let family = |line: &str| {
        let (name, kind) = line.strip_prefix("# TYPE ")?.split_once(' ')?;
        matches!(kind, "counter" | "histogram").then(|| name.to_owned())
    };
    let families: Vec<String> = text.lines().filter_map(family).collect();
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples
        .filter(|line| {
            let name = line.split('{').next().unwrap();
            families.iter().any(|family| {
                let rest = name.strip_prefix(family.as_str());
                rest.is_some_and(|rest| ["", "_bucket", "_count", "_sum"].contains(&rest))
            })
        })
        .map(|line| {
            let (sample, value) = line.rsplit_once(' ').unwrap();
            (sample.to_owned(), value.parse().unwrap())
        })
        .collect()
}

#[test]
fn metrics_are_valid_in_every_state_and_counters_never_go_down() {
    let daemon = Daemon::new();
    let mut last = BTreeMap::new();
    let mut look = |state: &str| {
        let counts = counts(&scrape(&daemon, state));
        for (sample, before) in &last {
            let now = counts.get(sample);
            assert!(
                now >= Some(before),
                "{state}: {sample}: {before} -> {now:?}"
            );
        }
        last = counts;
        last.len()
    };
    let before = look("not started");
    daemon.boot("quiet pio_write=0x80:100 print=ready loop_pio=0x81");
    look("started");
    daemon.await_output("ready");
    let running = look("running");
    assert!(running > before + 20, "{before} -> {running}");
    for _ in 0..3 {
        daemon.put("/vm", &json!({"state": "Paused"}));
        look("paused");
        daemon.put("/vm", &json!({"state": "Resumed"}));
        look("resumed");
    }
}

#[test]
fn every_metric_of_a_running_vm_is_documented() {
    let daemon = Daemon::new();
    let disk = daemon.scratch.disk("disk", 64 * 512, 3);
    let drive = json!({"drive_id": "d", "is_root_device": false, "path_on_host": disk});
    daemon.put("/drives/d", &drive);
    daemon.boot("blk_read=0:64 print=ready loop_pio=0x81");
    daemon.await_output("ready");
    let (_, text) = daemon.ask("GET", "/metrics", &Value::Null);
    let page = include_str!("../../docs/metrics.md");
    for line in text.lines() {
        if let Some(family) = line.strip_prefix("# TYPE ") {
            let name = family.split(' ').next().unwrap();
            assert!(
                page.contains(&format!("`{name}`")),
                "{name} is not in docs/metrics.md"
            );
        }
    }
}
