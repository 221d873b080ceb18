//! A guest that tells of its memory through a balloon.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vmm::observe::verdict::Code;

use crate::scenario::{Checked, Fault, Found, Guest, Place, Scenario, USUAL, between};
use crate::stage::Stage;

/// Has a balloon, and lives on.
const RESTS: &str = "
echo ready
sleep 10000
";

/// Uses 4 MiB more each second, and stops before the end.
const LEAKS: &str = "
mount -o remount,size=95% /run
echo ready
i=0
while [ $(awk '/^MemAvailable/{print int($2/1024)}' /proc/meminfo) -gt 24 ]; do
  dd if=/dev/zero of=/run/leak$i bs=1M count=4 2> /dev/null
  i=$((i+1))
  sleep 1
done
sleep 10000
";

pub const ALL: &[Scenario] = &[
    Scenario {
        name: "balloon-stuck",
        code: Code::BalloonStuck,
        subject: "device/balloon",
        place: Place::Lab,
        guest: Guest::Linux("6.12", RESTS),
        setup: |stage| put(stage, 0),
        fault: |stage| {
            // More than the guest can give.
            let all = json!({"amount_mib": 256});
            stage.daemon.patch("/balloon", &all);
            Fault::since(still(stage))
        },
        threshold: Duration::from_secs(10),
        evidence: |found| {
            let actual = found.number("actual_bytes");
            let told = statistics(found.stage)["actual_mib"]
                .as_f64()
                .unwrap_or(0.0);
            let mib = f64::from(1 << 20);
            let source = "GET /balloon/statistics, in bytes";
            between(
                "actual_bytes",
                actual,
                (told - 4.0) * mib,
                (told + 4.0) * mib,
                source,
            )
        },
        end: Some(|stage| stage.daemon.patch("/balloon", &json!({"amount_mib": 0}))),
        // The guest's kernel looks for memory that is not there, again and again.
        cause: Some(Code::GuestMemoryPressure),
        also: &[Code::GuestMemoryPressure, Code::GuestOomSoon],
        ..USUAL
    },
    Scenario {
        name: "guest-memory-pressure",
        code: Code::GuestMemoryPressure,
        subject: "vm",
        place: Place::Lab,
        guest: Guest::Linux("6.12", RESTS),
        setup: |stage| put(stage, 0),
        fault: |stage| {
            let all = json!({"amount_mib": 256});
            stage.daemon.patch("/balloon", &all);
            Fault::since(last_above(stage, 0.1))
        },
        evidence: |found| {
            let told = found.number("total_bytes");
            let all = statistics(found.stage)["total_memory"]
                .as_f64()
                .unwrap_or(0.0);
            between("total_bytes", told, all, all, "GET /balloon/statistics")
        },
        end: Some(|stage| stage.daemon.patch("/balloon", &json!({"amount_mib": 0}))),
        also: &[Code::GuestOomSoon, Code::GuestOom, Code::BalloonStuck],
        ..USUAL
    },
    Scenario {
        name: "guest-oom-soon",
        code: Code::GuestOomSoon,
        subject: "vm",
        place: Place::Lab,
        guest: Guest::Linux("6.12", LEAKS),
        setup: |stage| put(stage, 0),
        fault: |stage| {
            // Half of the memory is gone, and the samples before it are a trend.
            Fault::since(last_above(stage, 0.5))
        },
        threshold: Duration::from_secs(5),
        evidence: leaks,
        end: None,
        also: &[Code::GuestMemoryPressure],
        ..USUAL
    },
];

fn put(stage: &Stage, amount_mib: u32) {
    let balloon = json!({
        "amount_mib": amount_mib,
        "deflate_on_oom": false,
        "stats_polling_interval_s": 1,
    });
    stage.daemon.put("/balloon", &balloon);
}

fn statistics(stage: &Stage) -> Value {
    let (status, text) = stage.daemon.ask("GET", "/balloon/statistics", &Value::Null);
    assert_eq!(status, 200, "{text}");
    serde_json::from_str(&text).unwrap()
}

/// What the guest says that it has left, in bytes; without bounds while it has not said it.
fn available(stage: &Stage) -> f64 {
    let told = statistics(stage)["available_memory"].as_f64();
    told.unwrap_or(f64::MAX)
}

/// The last moment at which the guest had more than such a share of its memory left.
fn last_above(stage: &Stage, share: f64) -> Instant {
    let end = Instant::now() + Duration::from_secs(170);
    loop {
        let before = Instant::now();
        std::thread::sleep(Duration::from_millis(100));
        let told = statistics(stage);
        let of = |key: &str| told[key].as_f64();
        let known = of("available_memory").zip(of("total_memory"));
        if known.is_some_and(|(available, total)| available <= total * share) {
            return before;
        }
        assert!(before < end, "the guest keeps its memory: {told}");
    }
}

/// When the balloon had not moved for a while: the last moment at which it did.
fn still(stage: &Stage) -> Instant {
    let (mut last, mut moved) = (Value::Null, Instant::now());
    while moved.elapsed() < Duration::from_secs(5) {
        let now = statistics(stage)["actual_pages"].clone();
        if now != last {
            (last, moved) = (now, Instant::now());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    moved
}

fn leaks(found: &Found<'_>) -> Checked {
    let (before, start) = (available(found.stage), Instant::now());
    std::thread::sleep(Duration::from_secs(6));
    let (after, seconds) = (available(found.stage), start.elapsed().as_secs_f64());
    let left = before / ((before - after).max(1.0) / seconds);
    let source = format!("GET /balloon/statistics, twice: {left:.0}");
    let told = found.number("seconds_left");
    between("seconds_left", told, left * 0.5, left * 2.0, &source)
}
