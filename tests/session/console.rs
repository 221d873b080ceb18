//! What a guest's kernel says on its console becomes an event, a count, and a part of the report.

use std::process::Command;

use serde_json::Value;

use crate::daemon::{Daemon, program};

#[test]
fn a_kernel_message_is_told_counted_and_reported_also_when_nobody_reads_the_console() {
    for serial in ["out", "/dev/full"] {
        let daemon = Daemon::new();
        let path = match serial {
            "out" => daemon.scratch.path("out"),
            other => other.into(),
        };
        daemon.put("/serial", &serde_json::json!({"serial_out_path": path}));
        daemon.boot("quiet print=first print=Oops:_a_toy print=last pio_write=0x80:9 cli_hlt");
        let count = r#"vitrine_console_watch_messages_total{vm="anonymous-instance",console="serial",message="oops"}"#;
        daemon.until(serial, || {
            let (_, metrics) = daemon.ask("GET", "/metrics", &Value::Null);
            metrics.contains(&format!("{count} 1\n"))
        });
        let events = daemon.ask("GET", "/observe/events", &Value::Null).1;
        let events = events
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let told: Vec<Value> = events
            .filter(|event| event["event"] == "guest_message")
            .collect();
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(
            (&told[0]["kind"], &told[0]["line"]),
            (&"oops".into(), &"Oops:_a_toy".into())
        );
        assert_eq!(told[0]["facts"], serde_json::json!({}));
        let before = told[0]["before"].as_array().unwrap();
        assert_eq!(before.last().unwrap(), "first");
        daemon.until("the verdict", || is_judged(&daemon));
        let black_box = std::fs::read_dir(daemon.scratch.path("vitrine")).unwrap();
        let black_box = black_box.map(|entry| entry.unwrap().path()).next().unwrap();
        let report = Command::new(program())
            .arg("report")
            .arg(black_box)
            .output()
            .unwrap();
        let report = String::from_utf8(report.stdout).unwrap();
        assert!(
            report.contains("The end of the guest's console"),
            "{report}"
        );
        let line = |words: &str| report.lines().any(|line| line == format!("  | {words}"));
        assert!(line("first") && line("Oops:_a_toy"), "{report}");
        assert_eq!(daemon.state(), "Running");
    }
}

/// Whether the oops is a verdict, with the guest's own words.
fn is_judged(daemon: &Daemon) -> bool {
    let (_, text) = daemon.ask("GET", "/observe/health", &Value::Null);
    let health: Value = serde_json::from_str(&text).unwrap();
    let mut verdicts = health["verdicts"].as_array().unwrap().iter();
    let panic = verdicts.find(|verdict| verdict["code"] == "guest-panic");
    panic.is_some_and(|panic| {
        (&panic["severity"], &panic["evidence"]["line"])
            == (&"warning".into(), &"Oops:_a_toy".into())
    })
}

#[test]
fn an_nmi_reaches_a_guest_that_takes_no_interrupts_and_is_counted_for_each_vcpu() {
    let daemon = Daemon::new();
    let nmi = || daemon.ask("POST", "/observe/nmi", &Value::Null);
    let (status, refused) = nmi();
    assert_eq!(status, 400);
    assert!(refused.contains("before starting"), "{refused}");
    let machine = serde_json::json!({"vcpu_count": 2, "mem_size_mib": 64});
    daemon.put("/machine-config", &machine);
    daemon.boot("quiet print=ready cli_hlt");
    daemon.await_output("ready");
    for number in 1..4 {
        assert_eq!(nmi(), (204, String::new()), "{}", daemon.text("stderr"));
        let heard = || daemon.text("stdout").matches("zoo: nmi").count();
        daemon.until("an NMI", || heard() == number);
    }
    daemon.put("/vm", &serde_json::json!({"state": "Paused"}));
    let (status, refused) = nmi();
    assert_eq!(status, 400);
    assert!(refused.contains("paused; resume it"), "{refused}");
    for vcpu in 0..2 {
        let count = format!(r#"vitrine_vcpu_nmis_total{{vm="anonymous-instance",vcpu="{vcpu}"}}"#);
        assert_eq!(daemon.metric(&count), 3);
    }
    let (_, events) = daemon.ask("GET", "/observe/events", &Value::Null);
    assert_eq!(events.matches(r#""event":"nmi_sent""#).count(), 3);
}
