//! GET /metrics in every state of a VM: Prometheus' own checker takes it, and counters only grow.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::daemon::Daemon;
use crate::harness::Scratch;

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

/// What was scraped last, and that no count has gone down since.
struct Looks<'a> {
    daemon: &'a Daemon,
    last: BTreeMap<String, f64>,
}

impl Looks<'_> {
    /// Scrapes twice, for a scrape may not change what it reads. How many samples there were.
    fn look(&mut self, state: &str) -> usize {
        for _ in 0..2 {
            let counts = counts(&scrape(self.daemon, state));
            for (sample, before) in &self.last {
                let now = counts.get(sample);
                assert!(
                    now >= Some(before),
                    "{state}: {sample}: {before} -> {now:?}"
                );
            }
            self.last = counts;
        }
        self.last.len()
    }

    /// A counter of the drive `d`.
    fn of_device(&self, counter: &str) -> f64 {
        let sample =
            format!("vitrine_device_{counter}_total{{vm=\"anonymous-instance\",device=\"d\"}}");
        self.last[&sample]
    }
}

#[test]
fn metrics_are_valid_in_every_state_and_counters_never_go_down() {
    let path = "SCRATCH/metrics";
    let arguments = ["--api-sock", "SCRATCH/api.sock", "--metrics-path", path];
    let mut daemon = Daemon::with(Scratch::new(), &arguments);
    daemon.await_path("api.sock");
    let mut input = daemon.child.stdin.take().unwrap();
    let disk = daemon.scratch.disk("disk", 64 * 512, 3);
    let drive = json!({"drive_id": "d", "is_root_device": false, "path_on_host": disk});
    daemon.put("/drives/d", &drive);
    let last = BTreeMap::new();
    let mut looks = Looks {
        daemon: &daemon,
        last,
    };
    let before = looks.look("not started");
    // The guest resets the drive and takes it anew for each word that uses it, and waits for input.
    daemon.boot(
        "pio_write=0x80:100 blk_read=0:8 print=first echo blk_read=0:8 print=second echo \
         bad_ring=0:loop print=third echo blk_read=0:8 print=fourth loop_pio=0x81",
    );
    looks.look("started");
    let words = ["first", "second", "third", "fourth"];
    for (word, activations) in words.into_iter().zip(1u8..) {
        daemon.await_output(word);
        let running = looks.look(word);
        assert!(running > before + 20, "{word}: {before} -> {running}");
        assert_eq!(looks.of_device("activations"), f64::from(activations));
        assert!(
            looks.of_device("resets") + 1.0 >= f64::from(activations),
            "{word}"
        );
        daemon.put("/vm", &json!({"state": "Paused"}));
        looks.look("paused");
        daemon.put("/actions", &json!({"action_type": "FlushMetrics"}));
        looks.look("flushed while paused");
        daemon.put("/vm", &json!({"state": "Resumed"}));
        looks.look("resumed");
        daemon.put("/actions", &json!({"action_type": "FlushMetrics"}));
        looks.look("flushed");
        input.write_all(b"q").unwrap();
    }
    assert_eq!(looks.of_device("needs_reset"), 1.0);
    assert_eq!(daemon.text("metrics").lines().count(), 1 + 2 * words.len());
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
