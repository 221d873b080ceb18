//! What each request does, when it is taken, and how it is refused.

mod support;

use std::time::{Duration, Instant};

use api::http::Options;
use api::machine::{Command, MachineState};
use api::session::Deadlines;
use serde_json::{Value, json};
use support::{FakeLauncher, TestServer};
use vmm::DeviceChange;

const AFTER: &str = "The requested operation is not supported after starting the microVM.";
const BEFORE: &str = "The requested operation is not supported before starting the microVM.";

#[test]
fn a_fresh_server_tells_its_defaults() {
    let server = TestServer::new();
    let info = server.ask("GET", "/", "").json();
    assert_eq!(info["id"], "vm1");
    assert_eq!(info["state"], "Not started");
    assert!(info["app_name"].is_string() && info["vmm_version"].is_string());
    assert_eq!(
        server.ask("GET", "/version", "").json(),
        json!({"firecracker_version": "1.17.0"})
    );
    let machine = json!({"vcpu_count": 1, "mem_size_mib": 128, "smt": false,
        "track_dirty_pages": false, "huge_pages": "None"});
    assert_eq!(server.ask("GET", "/machine-config", "").json(), machine);
    let config = json!({"drives": [], "machine-config": machine, "network-interfaces": []});
    assert_eq!(server.ask("GET", "/vm/config", "").json(), config);
}

#[test]
fn the_whole_configuration_is_told_as_firecracker_does() {
    let server = TestServer::new();
    let (kernel, disk) = (server.file("vmlinux"), server.file("disk"));
    let boot =
        json!({"kernel_image_path": kernel, "boot_args": "console=ttyS0", "initrd_path": null});
    server
        .ask("PUT", "/boot-source", &boot.to_string())
        .is_204();
    let drive = json!({"drive_id": "rootfs", "is_root_device": true, "path_on_host": disk,
        "cache_type": null, "io_engine": null, "rate_limiter": {"bandwidth": null}});
    server
        .ask("PUT", "/drives/rootfs", &drive.to_string())
        .is_204();
    let config = server.ask("GET", "/vm/config", "").json();
    assert_eq!(config["boot-source"], boot);
    let filled = json!({"drive_id": "rootfs", "partuuid": null, "is_root_device": true,
        "cache_type": "Unsafe", "is_read_only": false, "path_on_host": disk,
        "rate_limiter": null, "io_engine": "Sync", "socket": null});
    assert_eq!(config["drives"], json!([filled]));
    for absent in [
        "balloon",
        "vsock",
        "metrics",
        "mmds-config",
        "entropy",
        "logger",
    ] {
        assert!(config.get(absent).is_none(), "{absent}");
    }
}

#[test]
fn machine_config_is_put_whole_and_patched_in_part() {
    let server = TestServer::new();
    let put = |body: &str| server.ask("PUT", "/machine-config", body);
    put(r#"{"vcpu_count":4,"mem_size_mib":256,"smt":true,"cpu_template":"None"}"#).is_204();
    let patch = |body: &str| server.ask("PATCH", "/machine-config", body);
    patch(r#"{"vcpu_count":2,"smt":null}"#).is_204();
    let machine = server.ask("GET", "/machine-config", "").json();
    assert_eq!(
        (&machine["vcpu_count"], &machine["mem_size_mib"]),
        (&json!(2), &json!(256))
    );
    assert_eq!(machine["smt"], true);
    put(r#"{"vcpu_count":1,"mem_size_mib":128}"#).is_204();
    assert_eq!(
        server.ask("GET", "/machine-config", "").json()["smt"],
        false
    );
    patch("{}").refuses(&["Empty PATCH request."]);
    patch(r#"{"vcpu_count":null}"#).refuses(&["Empty PATCH request."]);
}

#[test]
fn machines_that_cannot_be_are_refused_and_nothing_changes() {
    let server = TestServer::new();
    let before = server.ask("GET", "/machine-config", "").json();
    for (body, texts) in [
        (
            r#"{"vcpu_count":0,"mem_size_mib":64}"#,
            &["vcpu_count 0", "1 to 32"][..],
        ),
        (
            r#"{"vcpu_count":33,"mem_size_mib":64}"#,
            &["vcpu_count 33", "1 to 32"],
        ),
        (
            r#"{"vcpu_count":300,"mem_size_mib":64}"#,
            &["vcpu_count 300"],
        ),
        (r#"{"vcpu_count":-1,"mem_size_mib":64}"#, &["-1"]),
        (
            r#"{"vcpu_count":3,"mem_size_mib":64,"smt":true}"#,
            &["vcpu_count 3", "smt"],
        ),
        (
            r#"{"vcpu_count":1,"mem_size_mib":0}"#,
            &["mem_size_mib is 0", "at least 1 MiB"],
        ),
        (
            r#"{"vcpu_count":1,"mem_size_mib":999999999}"#,
            &["mem_size_mib 999999999", "at most"],
        ),
        (r#"{"vcpu_count":1}"#, &["mem_size_mib", "missing"]),
        (
            r#"{"vcpu_count":1,"mem_size_mib":64,"ht":true}"#,
            &["unknown field `ht`"],
        ),
        (
            r#"{"vcpu_count":1,"#,
            &["deserializing the json body", "line 1"],
        ),
        (
            r#"{"vcpu_count":"one","mem_size_mib":64}"#,
            &["invalid type"],
        ),
        (
            r#"{"vcpu_count":1,"mem_size_mib":64,"huge_pages":"7M"}"#,
            &["7M", "2M"],
        ),
        (
            r#"{"vcpu_count":1,"mem_size_mib":65,"huge_pages":"2M"}"#,
            &["64 and 66"],
        ),
    ] {
        server.ask("PUT", "/machine-config", body).refuses(texts);
    }
    for field in [
        r#""huge_pages":"1G""#,
        r#""cpu_template":"T2""#,
        r#""track_dirty_pages":true"#,
        r#""numa_node":0"#,
        r#""memory_nodes":[0]"#,
        r#""prefault":true"#,
        r#""lock":true"#,
        r#""cpu_affinity":["0"]"#,
        r#""io_affinity":"0""#,
        r#""huge_pages_fallback":true"#,
    ] {
        let name = field.split('"').nth(1).unwrap();
        let body = format!(r#"{{"vcpu_count":1,"mem_size_mib":64,{field}}}"#);
        server
            .ask("PUT", "/machine-config", &body)
            .refuses(&[name, "not supported by this build"]);
    }
    assert_eq!(server.ask("GET", "/machine-config", "").json(), before);
}

#[test]
fn boot_sources_that_cannot_be_read_are_refused_and_the_old_one_stays() {
    let server = TestServer::new();
    server.put_kernel();
    let before = server.ask("GET", "/vm/config", "").json();
    let directory = server.directory.to_str().unwrap().to_owned();
    let kernel = server.file("vmlinux");
    let newline = "a\\nb";
    for (body, texts) in [
        (
            r#"{"kernel_image_path":"/no/kernel"}"#.to_owned(),
            ["/no/kernel", "No such file"],
        ),
        (
            format!(r#"{{"kernel_image_path":"{directory}"}}"#),
            [directory.as_str(), "a directory"],
        ),
        (
            format!(r#"{{"kernel_image_path":"{kernel}","initrd_path":"/no/initrd"}}"#),
            ["/no/initrd", "initrd_path"],
        ),
        (
            format!(r#"{{"kernel_image_path":"{kernel}","boot_args":"{newline}"}}"#),
            ["boot_args", "offset 1"],
        ),
        (
            r#"{"boot_args":"x"}"#.to_owned(),
            ["missing field", "kernel_image_path"],
        ),
        (
            r#"{"kernel_image_path":null}"#.to_owned(),
            ["invalid type: null", "string"],
        ),
    ] {
        server.ask("PUT", "/boot-source", &body).refuses(&texts);
    }
    assert_eq!(server.ask("GET", "/vm/config", "").json(), before);
}

#[test]
fn drives_are_replaced_by_id_and_the_root_comes_first() {
    let server = TestServer::new();
    let put = |id: &str, root: bool, file: &str| {
        let path = server.file(file);
        let body = json!({"drive_id": id, "is_root_device": root, "path_on_host": path});
        server.ask("PUT", &format!("/drives/{id}"), &body.to_string())
    };
    put("data", false, "disk").is_204();
    put("rootfs", true, "disk2").is_204();
    put("second", true, "disk").refuses(&["second", "rootfs", "is_root_device"]);
    put("data", true, "disk").refuses(&["data", "rootfs"]);
    put("data", false, "disk2").is_204();
    put("rootfs", false, "disk").is_204();
    put("data", true, "disk").is_204();
    put("absent", false, "nothing").refuses(&["nothing", "No such file"]);
    server.start();
    let specs = server.launcher.specs.lock().unwrap();
    let drives: Vec<_> = specs[0]
        .drives
        .iter()
        .map(|d| (d.id.as_str(), d.root))
        .collect();
    assert_eq!(drives, [("data", true), ("rootfs", false)]);
}

#[test]
fn drives_that_cannot_be_are_refused() {
    let server = TestServer::new();
    let disk = server.file("disk");
    let ask = |path: &str, extra: &str| {
        let body =
            format!(r#"{{"drive_id":"d","is_root_device":false,"path_on_host":"{disk}"{extra}}}"#);
        server.ask("PUT", path, &body)
    };
    ask(
        "/drives/d",
        r#","rate_limiter":{"ops":{"size":0,"refill_time":0}}"#,
    )
    .is_204();
    ask("/drives/d", r#","socket":"/x""#).refuses(&["socket", "not supported by this build"]);
    ask("/drives/d", r#","io_engine":"Fast""#).refuses(&["Fast", "Sync", "Async"]);
    for engine in ["Async", "Sync"] {
        ask("/drives/d", &format!(r#","io_engine":"{engine}""#)).is_204();
        let config = server.ask("GET", "/vm/config", "").json();
        assert_eq!(config["drives"][0]["io_engine"], engine);
    }
    ask(
        "/drives/d",
        r#","rate_limiter":{"ops":{"size":-1,"refill_time":1}}"#,
    )
    .refuses(&["-1"]);
    ask("/drives/d", r#","color":1"#).refuses(&["unknown field `color`"]);
    ask("/drives/other", "").refuses(&["other", "(d)", "drive_id"]);
    ask("/drives/a-b", "").refuses(&["alphanumeric", "a-b"]);
    ask("/drives/", "").refuses(&["The ID cannot be empty."]);
    let pathless = r#"{"drive_id":"d","is_root_device":false}"#;
    server
        .ask("PUT", "/drives/d", pathless)
        .refuses(&["path_on_host", "missing"]);
}

#[test]
fn networks_need_a_tap() {
    let server = TestServer::new();
    let ask = |extra: &str| {
        let body = format!(r#"{{"iface_id":"eth0","host_dev_name":"nosuchtap9"{extra}}}"#);
        server.ask("PUT", "/network-interfaces/eth0", &body)
    };
    ask("").refuses(&["nosuchtap9", "ip tuntap add"]);
    ask(r#","guest_mac":"06:00""#).refuses(&["06:00", "MAC"]);
    ask(r#","mtu":60"#).refuses(&["mtu 60", "68"]);
    ask(r#","mac_filter":true"#).refuses(&["mac_filter", "eth0", "give guest_mac"]);
    ask(r#","mac_filter":true,"guest_mac":"06:00:ac:10:00:02""#).refuses(&["nosuchtap9"]);
    ask(r#","queue_pairs":0"#).refuses(&["interface eth0", "0 queue pairs", "from 1 to 8"]);
    ask(r#","queue_pairs":9"#).refuses(&["interface eth0", "9 queue pairs", "from 1 to 8"]);
    ask(r#","queue_pairs":-1"#).refuses(&["-1"]);
    ask(r#","queue_pairs":2"#).refuses(&["nosuchtap9", "multi_queue"]);
    // A limit is taken, and then it is the tap that is wrong.
    let limiter = r#"{"bandwidth":{"size":1,"refill_time":1,"one_time_burst":2}}"#;
    for field in ["rx_rate_limiter", "tx_rate_limiter"] {
        ask(&format!(r#","{field}":{limiter}"#)).refuses(&["nosuchtap9"]);
        ask(&format!(r#","{field}":{{"bandwidth":{{"size":1}}}}"#)).refuses(&["refill_time"]);
        ask(&format!(
            r#","{field}":{{"ops":{{"size":-1,"refill_time":1}}}}"#
        ))
        .refuses(&["-1"]);
        ask(&format!(r#","{field}":{{"packets":null}}"#)).refuses(&["packets"]);
    }
}

#[test]
fn a_change_of_an_interface_names_what_is_wrong() {
    let server = TestServer::new();
    let patch = |id: &str, extra: &str| {
        let body = format!(r#"{{"iface_id":"eth0"{extra}}}"#);
        server.ask("PATCH", &format!("/network-interfaces/{id}"), &body)
    };
    patch("eth0", "").refuses(&[BEFORE]);
    let machine = server.start();
    patch("eth0", "").refuses(&["no network interface eth0", "GET /vm/config"]);
    patch("eth1", "").refuses(&["eth1", "(eth0)", "iface_id"]);
    patch("eth0", r#","host_dev_name":"tap1""#).refuses(&["unknown field `host_dev_name`"]);
    patch("eth0", r#","tx_rate_limiter":{"ops":{"size":1}}"#).refuses(&["refill_time"]);
    assert!(machine.changes.lock().unwrap().is_empty());
}

#[test]
fn an_entropy_device_is_taken_with_and_without_a_limit() {
    let server = TestServer::new();
    let put = |body: &str| server.ask("PUT", "/entropy", body);
    put(r#"{"rate_limiter":{"ops":{"size":1}}}"#).refuses(&["refill_time"]);
    put(r#"{"size":1}"#).refuses(&["size"]);
    let config = |server: &TestServer| server.ask("GET", "/vm/config", "").json();
    assert!(config(&server).get("entropy").is_none());
    put(r#"{"rate_limiter":{"bandwidth":null}}"#).is_204();
    put("{}").is_204();
    let given = json!({"rate_limiter": null});
    assert_eq!(config(&server)["entropy"], given);
    // A bucket that limits nothing is as good as none.
    put(r#"{"rate_limiter":{"ops":{"size":0,"refill_time":1},"bandwidth":{"size":9,"refill_time":8}}}"#)
        .is_204();
    let bucket = json!({"size": 9, "one_time_burst": null, "refill_time": 8});
    let given = json!({"rate_limiter": {"bandwidth": bucket, "ops": null}});
    assert_eq!(config(&server)["entropy"], given);
    server.start();
    let specs = server.launcher.specs.lock().unwrap();
    let limiter = specs[0].entropy.unwrap().limiter;
    let bytes = limiter
        .bandwidth
        .map(|bucket| (bucket.size, bucket.refill_ms));
    assert_eq!((bytes, limiter.ops), (Some((9, 8)), None));
}

#[test]
fn a_socket_device_needs_an_address_and_a_path() {
    let server = TestServer::new();
    let put = |body: &Value| server.ask("PUT", "/vsock", &body.to_string());
    put(&json!({"guest_cid": 2, "uds_path": "/tmp/v"})).refuses(&["guest_cid 2", "3 to"]);
    put(&json!({"guest_cid": 3})).refuses(&["uds_path"]);
    let long = "v".repeat(97);
    put(&json!({"guest_cid": 3, "uds_path": long})).refuses(&["uds_path is 97 bytes", "96"]);
    put(&json!({"guest_cid": 3, "uds_path": "/no/dir/v"})).refuses(&["/no/dir/v", "folder"]);
    let given = json!({"guest_cid": 3, "uds_path": "/tmp/v"});
    put(&given).is_204();
    assert_eq!(server.ask("GET", "/vm/config", "").json()["vsock"], given);
    server.start();
    let specs = server.launcher.specs.lock().unwrap();
    assert_eq!(
        specs[0].vsock.as_ref().map(|vsock| vsock.guest_cid),
        Some(3)
    );
}

#[test]
fn requests_of_the_wrong_time_are_refused_with_firecrackers_words() {
    let server = TestServer::new();
    assert_eq!(server.action("SendCtrlAltDel").fault(), BEFORE);
    assert_eq!(
        server.ask("PATCH", "/vm", r#"{"state":"Paused"}"#).fault(),
        BEFORE
    );
    server
        .action("InstanceStart")
        .refuses(&["kernel", "PUT /boot-source"]);

    server.start();
    let (kernel, disk) = (server.file("vmlinux"), server.file("disk"));
    for (method, path, body) in [
        (
            "PUT",
            "/machine-config",
            r#"{"vcpu_count":1,"mem_size_mib":64}"#.to_owned(),
        ),
        ("PATCH", "/machine-config", r#"{"vcpu_count":1}"#.to_owned()),
        (
            "PUT",
            "/boot-source",
            format!(r#"{{"kernel_image_path":"{kernel}"}}"#),
        ),
        (
            "PUT",
            "/drives/d",
            format!(r#"{{"drive_id":"d","is_root_device":false,"path_on_host":"{disk}"}}"#),
        ),
        (
            "PUT",
            "/network-interfaces/e",
            r#"{"iface_id":"e","host_dev_name":"t"}"#.to_owned(),
        ),
        ("PUT", "/logger", r#"{"level":"Info"}"#.to_owned()),
        ("PUT", "/serial", "{}".to_owned()),
        ("PUT", "/entropy", "{}".to_owned()),
        (
            "PUT",
            "/vsock",
            r#"{"guest_cid":3,"uds_path":"/tmp/v"}"#.to_owned(),
        ),
        (
            "PUT",
            "/actions",
            r#"{"action_type":"InstanceStart"}"#.to_owned(),
        ),
    ] {
        assert_eq!(
            server.ask(method, path, &body).fault(),
            AFTER,
            "{method} {path}"
        );
    }
    server.ask("GET", "/vm/config", "").json();
}

#[test]
fn a_started_vm_pauses_resumes_and_takes_keys() {
    let server = TestServer::new();
    let machine = server.start();
    let state = || server.ask("GET", "/", "").json()["state"].clone();
    let patch = |state: &str| server.ask("PATCH", "/vm", &format!(r#"{{"state":"{state}"}}"#));
    assert_eq!(state(), "Running");
    patch("Paused").is_204();
    assert_eq!(state(), "Paused");
    patch("Paused").is_204();
    server.action("SendCtrlAltDel").is_204();
    patch("Resumed").is_204();
    assert_eq!(state(), "Running");
    patch("Sleeping").refuses(&["Sleeping", "Paused"]);
    use Command::{CtrlAltDel, Pause, Resume};
    assert_eq!(
        *machine.told.lock().unwrap(),
        [Pause, Pause, CtrlAltDel, Resume]
    );
    server.action("FlushMetrics").is_204();
    machine.set(MachineState::Stopped);
    patch("Paused").refuses(&["has ended"]);
}

#[test]
fn a_started_vms_drive_gets_another_file_and_limit() {
    let server = TestServer::new();
    let [disk, other, taken] = ["disk", "other", "taken"].map(|name| {
        let path = server.file(name);
        std::fs::write(&path, [0; 512]).unwrap();
        path
    });
    let limiter = r#"{"bandwidth":{"size":9,"one_time_burst":5,"refill_time":100},"ops":{"size":0,"refill_time":0}}"#;
    let body = format!(
        r#"{{"drive_id":"d","is_root_device":false,"path_on_host":"{disk}","rate_limiter":{limiter}}}"#
    );
    server.ask("PUT", "/drives/d", &body).is_204();
    let patch = |extra: &str| {
        let body = format!(r#"{{"drive_id":"d"{extra}}}"#);
        server.ask("PATCH", "/drives/d", &body)
    };
    let shown = || server.ask("GET", "/vm/config", "").json()["drives"][0].clone();
    assert_eq!(shown()["rate_limiter"]["bandwidth"]["one_time_burst"], 5);
    assert!(shown()["rate_limiter"]["ops"].is_null());
    patch("").refuses(&["before starting"]);
    let machine = server.start();

    patch(r#","rate_limiter":{"ops":{"size":7,"refill_time":10}}"#).is_204();
    assert_eq!(shown()["rate_limiter"]["ops"]["size"], 7);
    assert_eq!(shown()["rate_limiter"]["bandwidth"]["size"], 9, "it stays");
    patch(&format!(r#","path_on_host":"{other}""#)).is_204();
    assert_eq!(shown()["path_on_host"], other);
    // What the VM refuses is not shown.
    patch(&format!(r#","path_on_host":"{taken}""#)).refuses(&["it is in use"]);
    patch(r#","path_on_host":"/nonexistent""#).refuses(&["/nonexistent", "path_on_host"]);
    patch(r#","is_read_only":true"#).refuses(&["unknown field `is_read_only`"]);
    assert_eq!(shown()["path_on_host"], other);
    let body = r#"{"drive_id":"e"}"#;
    let unknown = server.ask("PATCH", "/drives/e", body);
    unknown.refuses(&["no drive e", "GET /vm/config"]);

    let none = r#"{"size":0,"refill_time":0}"#;
    patch(&format!(
        r#","rate_limiter":{{"bandwidth":{none},"ops":{none}}}"#
    ))
    .is_204();
    assert!(shown()["rate_limiter"].is_null());
    let changes = machine.changes.lock().unwrap();
    assert_eq!(changes.len(), 4, "{changes:?}");
    let (id, DeviceChange::Drive(change)) = &changes[0] else {
        panic!("not of a drive: {:?}", changes[0]);
    };
    assert_eq!((id.as_str(), &change.path), ("d", &None));
    assert_eq!(change.limiter.bandwidth, None);
    assert_eq!(
        change.limiter.ops.map(|ops| (ops.size, ops.refill_ms)),
        Some((7, 10))
    );
}

#[test]
fn a_failed_start_leaves_everything_as_it_was() {
    let launcher = FakeLauncher::default();
    *launcher.fails.lock().unwrap() = Some("/dev/kvm: permission denied");
    let server = TestServer::with(launcher, Options::default(), Deadlines::default());
    server.put_kernel();
    server
        .action("InstanceStart")
        .refuses(&["did not start", "/dev/kvm"]);
    assert_eq!(server.ask("GET", "/", "").json()["state"], "Not started");
    server.start();
}

#[test]
fn reads_are_answered_while_a_vm_starts_and_changes_wait_their_turn() {
    let takes = Duration::from_millis(600);
    let launcher = FakeLauncher {
        takes,
        ..FakeLauncher::default()
    };
    let server = TestServer::with(launcher, Options::default(), Deadlines::default());
    server.put_kernel();
    let mut starter = server.connect();
    let begin = Instant::now();
    let body = r#"{"action_type":"InstanceStart"}"#;
    starter.send(support::request("PUT", "/actions", body).as_bytes());
    assert_eq!(server.ask("GET", "/", "").json()["state"], "Not started");
    assert!(begin.elapsed() < takes);
    let late = server.ask(
        "PUT",
        "/machine-config",
        r#"{"vcpu_count":1,"mem_size_mib":64}"#,
    );
    assert_eq!(late.fault(), AFTER);
    starter.answer().is_204();
}

#[test]
fn a_vm_that_does_not_answer_is_told_of_in_time() {
    let deadlines = Deadlines {
        command: Duration::from_millis(100),
        ..Deadlines::default()
    };
    let launcher = FakeLauncher {
        deaf: true,
        ..FakeLauncher::default()
    };
    let server = TestServer::with(launcher, Options::default(), deadlines);
    server.start();
    let answer = server.ask("PATCH", "/vm", r#"{"state":"Paused"}"#);
    answer.refuses(&["pausing the microVM did not end within 0.1 s"]);
    assert_eq!(server.ask("GET", "/", "").json()["state"], "Running");
}

#[test]
fn the_metrics_are_there_before_and_after_the_start() {
    let server = TestServer::new();
    let plain = || server.ask("GET", "/metrics", "");
    let asked = |accept: &str| {
        let mut client = server.connect();
        client.send(format!("GET /metrics HTTP/1.1\r\nAccept: {accept}\r\n\r\n").as_bytes());
        client.answer()
    };
    let openmetrics = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let text = "text/plain; version=0.0.4; charset=utf-8";
    let prometheus = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";
    for (answer, kind) in [
        (plain(), text),
        (asked("*/*"), text),
        (asked(prometheus), openmetrics),
    ] {
        assert!(
            answer.head.contains(&format!("Content-Type: {kind}\r\n")),
            "{answer:?}"
        );
        assert!(answer.body.ends_with("# EOF\n"));
        assert!(!answer.body.contains("fake_exits"));
    }
    server.start();
    let sample = "fake_exits_total{vm=\"vm1\"} 5\n";
    assert!(
        plain()
            .body
            .contains(&format!("# TYPE fake_exits_total counter\n{sample}"))
    );
    let answer = asked(prometheus);
    assert!(
        answer
            .body
            .contains(&format!("# TYPE fake_exits counter\n{sample}"))
    );
}

#[test]
fn the_observation_is_there_before_and_after_the_start() {
    let server = TestServer::new();
    let observe = || server.ask("GET", "/observe", "").json();
    let before = observe();
    assert_eq!(
        (&before["id"], &before["state"]),
        (&json!("vm1"), &json!("Not started"))
    );
    assert_eq!(before["vcpus"], json!([]));
    assert_eq!(before["black_box"], json!(null));
    let machine = server.start();
    let after = observe();
    assert_eq!(after["state"], "Running");
    assert_eq!(after["black_box"], "/run/vitrine/vm1.blackbox");
    assert_eq!(after["ended"], json!(null));
    for key in before.as_object().unwrap().keys() {
        assert!(after.get(key).is_some(), "{key}");
    }
    machine.set(MachineState::Paused);
    assert_eq!(observe()["state"], "Paused");
    let ask = |query: &str| server.ask("GET", &format!("/observe?{query}"), "");
    ask("events=1").json();
    ask("events=all").refuses(&["`events`", "all"]);
    ask("event=1").refuses(&["`event`", "events"]);
}

#[test]
fn firecrackers_metrics_go_to_a_path_that_is_given_once() {
    let server = TestServer::new();
    let put = |body: &str| server.ask("PUT", "/metrics", body);
    put(r#"{"metrics_path":"/no/dir/m"}"#).refuses(&["metrics_path /no/dir/m", "cannot be opened"]);
    put(r#"{"path":"/m"}"#).refuses(&["unknown field `path`"]);
    put("{}").refuses(&["metrics_path"]);
    let path = server.file("metrics");
    let body = json!({"metrics_path": path, "emit_id": true}).to_string();
    put(&body).is_204();
    assert_eq!(
        put(&body).fault(),
        "Reinitialization of metrics not allowed."
    );
    let config = server.ask("GET", "/vm/config", "").json();
    assert_eq!(
        config["metrics"],
        json!({"metrics_path": path, "emit_id": true})
    );
    assert_eq!(server.action("FlushMetrics").fault(), BEFORE);
    server.start();
    assert_eq!(put(&body).fault(), AFTER);
    server.action("FlushMetrics").is_204();
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 2, "the start and the flush");
    assert_eq!(lines[0]["id"], "vm1");
    let asked = |key: &str| -> u64 {
        let values = lines
            .iter()
            .map(|line| line["put_api_requests"][key].as_u64());
        values.map(Option::unwrap).sum()
    };
    assert_eq!((asked("metrics_count"), asked("metrics_fails")), (6, 5));
    assert_eq!(asked("boot_source_count"), 1);
}

#[test]
fn everything_to_come_is_refused_by_name() {
    let server = TestServer::new();
    for row in api::routes::ROUTES {
        let api::routes::Endpoint::NotSupported(what) = row.endpoint else {
            continue;
        };
        let path = row
            .path
            .replace("{drive_id}", "x")
            .replace("{iface_id}", "x")
            .replace("{id}", "x");
        let body = if row.method == "GET" { "" } else { "{}" };
        server.ask(row.method, &path, body).refuses(&[
            what,
            "not supported by this build",
            row.path,
        ]);
    }
}

#[test]
fn the_logger_and_the_serial_console_take_files_and_refuse_what_is_none() {
    let server = TestServer::new();
    let log = server.file("log");
    server
        .ask(
            "PUT",
            "/logger",
            &json!({"log_path": log, "level": "Debug"}).to_string(),
        )
        .is_204();
    server
        .ask("PUT", "/logger", r#"{"level":"loud"}"#)
        .refuses(&["loud", "Warning"]);
    server
        .ask("PUT", "/logger", r#"{"log_path":"/no/dir/log"}"#)
        .refuses(&["/no/dir/log"]);
    let out = server.file("serial");
    let put = |limiter: Value| {
        let body = json!({"serial_out_path": out, "rate_limiter": limiter}).to_string();
        server.ask("PUT", "/serial", &body)
    };
    let shown = || server.ask("GET", "/vm/config", "").json()["serial"].clone();
    put(json!({"size": 1})).refuses(&["refill_time"]);
    put(json!({"size": 0, "refill_time": 9})).is_204();
    assert_eq!(shown(), json!({"serial_out_path": out}));
    let limiter = json!({"size": 4096, "one_time_burst": 9, "refill_time": 100});
    put(limiter.clone()).is_204();
    assert_eq!(shown()["rate_limiter"], limiter);
    server
        .ask("PUT", "/serial", r#"{"serial_out_path":"/no/dir/s"}"#)
        .refuses(&["/no/dir/s"]);
    let directory = server.directory.to_str().unwrap();
    let body = json!({"serial_out_path": directory}).to_string();
    server
        .ask("PUT", "/serial", &body)
        .refuses(&["a directory"]);
    server.start();
    let specs = server.launcher.specs.lock().unwrap();
    let limit = specs[0].serial.limit.unwrap();
    let numbers = (limit.size, limit.one_time_burst, limit.refill_ms);
    assert_eq!(numbers, (4096, 9, 100));
    assert_eq!(specs[0].serial.output, vmm::SerialOutput::File(out.into()));
}
