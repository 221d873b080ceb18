//! Sessions over the API socket: the whole program with small guests on /dev/kvm, as its clients
//! see it. Run by `cargo xtask test`.

#[path = "../harness/mod.rs"]
mod harness;

mod console;
mod daemon;
mod doctor;
mod dump;
mod health;
mod kills;
mod observation;
mod policy;
mod refusals;
mod reports;
mod restarts;
mod scrape;
mod trace;

use std::fs;
use std::io::Write;

use serde_json::{Value, json};

use daemon::{Daemon, zoo};
use harness::Scratch;

const PORT_READS: &str =
    r#"vitrine_vcpu_device_reads_total{vm="anonymous-instance",vcpu="0",device="unclaimed-port"}"#;
const POST_WRITES: &str =
    r#"vitrine_vcpu_device_writes_total{vm="anonymous-instance",vcpu="0",device="post"}"#;

#[test]
fn a_guest_is_configured_booted_and_ends_with_0() {
    let mut daemon = Daemon::new();
    daemon.put(
        "/machine-config",
        &json!({"vcpu_count": 2, "mem_size_mib": 64}),
    );
    let disk = daemon.scratch.disk("disk", 64 * 512, 3);
    let drive = json!({"drive_id": "d", "is_root_device": false, "path_on_host": disk});
    daemon.put("/drives/d", &drive);
    assert_eq!(daemon.state(), "Not started");
    daemon.boot("mem blk_read=0:64 poweroff");
    assert_eq!(daemon.finish().code(), Some(0), "{}", daemon.text("stderr"));
    let sum: u64 = (0..64 * 64).map(|i| 3 + i).sum();
    let console = daemon.text("stdout");
    assert!(
        console.contains(&format!("blk_read ok 64 sum={sum:#x}")),
        "{console}"
    );
    assert!(console.contains("mem 0x4000000"), "{console}");
    assert!(
        daemon.scratch.path("api.sock").exists(),
        "clients expect the socket to stay"
    );
}

#[test]
fn every_way_in_which_a_guest_ends_itself_is_status_0() {
    for end in ["reset=i8042", "reset=acpi", "reset=triple", "poweroff"] {
        let mut daemon = Daemon::new();
        daemon.boot(end);
        assert_eq!(
            daemon.finish().code(),
            Some(0),
            "{end}: {}",
            daemon.text("stderr")
        );
    }
}

#[test]
fn a_paused_guest_stands_still_and_goes_on() {
    let mut daemon = Daemon::new();
    daemon.boot("quiet pio_write=0x80:100 print=ready loop_pio=0x81");
    daemon.await_output("ready");
    assert_eq!(daemon.state(), "Running");
    assert_eq!(daemon.metric(POST_WRITES), 100);
    daemon.put("/vm", &json!({"state": "Paused"}));
    assert_eq!(daemon.state(), "Paused");
    let reads = daemon.metric(PORT_READS);
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(daemon.metric(PORT_READS), reads);
    daemon.put("/vm", &json!({"state": "Resumed"}));
    assert_eq!(daemon.state(), "Running");
    while daemon.metric(PORT_READS) == reads {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    daemon.signal("TERM");
    assert_eq!(daemon.finish().code(), Some(0));
}

#[test]
fn guests_that_never_leave_are_stopped_by_a_signal() {
    for (words, signal) in [("spin", "TERM"), ("cli_hlt", "INT"), ("spin_sti", "HUP")] {
        let mut daemon = Daemon::new();
        daemon.boot(&format!("print=ready {words}"));
        daemon.await_output("ready");
        daemon.signal(signal);
        assert_eq!(
            daemon.finish().code(),
            Some(0),
            "{words}: {}",
            daemon.text("stderr")
        );
    }
}

#[test]
fn a_kernel_that_is_none_is_refused_and_another_may_follow() {
    let mut daemon = Daemon::new();
    let text = daemon.scratch.path("text");
    fs::write(&text, "this is no kernel".repeat(1000)).unwrap();
    daemon.put("/boot-source", &json!({"kernel_image_path": text}));
    let (status, body) = daemon.ask("PUT", "/actions", &json!({"action_type": "InstanceStart"}));
    assert!(
        status == 400 && body.contains("did not start"),
        "{status} {body}"
    );
    assert_eq!(daemon.state(), "Not started");
    daemon.boot("print=second poweroff");
    assert_eq!(daemon.finish().code(), Some(0));
    assert!(daemon.text("stdout").contains("second"));
}

#[test]
fn after_the_start_nothing_is_configured() {
    let daemon = Daemon::new();
    daemon.boot("print=ready loop_pio=0x80");
    let (status, body) = daemon.ask("PUT", "/boot-source", &zoo("poweroff"));
    assert_eq!(status, 400);
    assert!(
        body.contains("not supported after starting the microVM."),
        "{body}"
    );
    let (_, config) = daemon.ask("GET", "/vm/config", &Value::Null);
    let config: Value = serde_json::from_str(&config).unwrap();
    assert_eq!(
        config["boot-source"]["boot_args"],
        "console=ttyS0 zoo: print=ready loop_pio=0x80"
    );
}

#[test]
fn a_configuration_file_starts_a_guest_with_and_without_the_api() {
    for extra in [&["--no-api"][..], &["--api-sock", "SCRATCH/api.sock"]] {
        let scratch = Scratch::new();
        let file = json!({
            "boot-source": zoo("print=configured poweroff"),
            "serial": {"serial_out_path": scratch.path("console")},
        });
        fs::write(scratch.path("vm.json"), file.to_string()).unwrap();
        let mut arguments = vec!["--config-file", "SCRATCH/vm.json"];
        arguments.extend(extra);
        let mut daemon = Daemon::with(scratch, &arguments);
        assert_eq!(daemon.finish().code(), Some(0), "{}", daemon.text("stderr"));
        assert!(daemon.text("console").contains("configured"));
        assert_eq!(
            daemon.scratch.path("api.sock").exists(),
            extra[0] == "--api-sock"
        );
    }
}

#[test]
fn the_guest_reads_standard_input() {
    let mut daemon = Daemon::new();
    daemon.boot("print=ready echo poweroff");
    daemon.await_output("ready");
    daemon
        .child
        .stdin
        .take()
        .unwrap()
        .write_all(b"through the window\nq")
        .unwrap();
    assert_eq!(daemon.finish().code(), Some(0));
    let console = daemon.text("stdout");
    assert!(console.contains("through the window"), "{console}");
}

#[test]
fn a_guest_runs_without_a_terminal_too() {
    let scratch = Scratch::new();
    let kernel = harness::image("zoo.elf");
    let arguments = [
        "run",
        "--kernel",
        kernel.to_str().unwrap(),
        "--memory",
        "64",
    ];
    let words = ["--cmdline", "console=ttyS0 zoo: print=plainly poweroff"];
    let mut daemon = Daemon::with(scratch, &[&arguments[..], &words].concat());
    assert_eq!(daemon.finish().code(), Some(0), "{}", daemon.text("stderr"));
    assert!(daemon.text("stdout").contains("plainly"));
    assert_eq!(daemon.text("stderr"), "", "nothing is worth a warning");
}

#[test]
fn the_black_box_outlives_a_killed_process_and_not_a_clean_end() {
    let words = "quiet pio_write=0x80:77 print=ready loop_pio=0x81";
    let start = |end: &str| {
        let arguments = ["--api-sock", "SCRATCH/api.sock", "--id", "boxed"];
        let mut daemon = Daemon::with(Scratch::new(), &arguments);
        daemon.await_path("api.sock");
        daemon.boot(words);
        daemon.await_output("ready");
        daemon.signal(end);
        daemon.finish();
        daemon
    };
    let killed = start("KILL");
    let path = killed.scratch.path("vitrine/boxed.blackbox");
    let reader = vmm::observe::reader::Reader::open(&path).unwrap();
    let seen = harness::Seen(reader.snapshot().unwrap());
    assert_eq!(seen.accesses("post"), (0, 77));
    let ended = start("TERM");
    assert!(!ended.scratch.path("vitrine/boxed.blackbox").exists());
}
