//! `--config-file`: what it takes, what it refuses, and that GET /vm/config can be given back.

mod support;

use api::config_file::load;
use api::logging::LogControl;
use api::policy::Rulebook;
use serde_json::{Value, json};

/// The outcome of loading `value`, and the configuration as GET /vm/config tells it.
fn outcome(value: &str) -> (Result<(), String>, Value) {
    let directory = support::scratch();
    let path = directory.join("vm.json");
    std::fs::write(&path, value).unwrap();
    let mut config = support::config();
    let rulebook = Rulebook::default();
    let loaded = load(&path, &mut config, &LogControl::new("vm1"), &rulebook);
    let full = serde_json::to_value(config.full(&rulebook.read())).unwrap();
    std::fs::remove_dir_all(&directory).unwrap();
    (
        loaded.map_err(|error| api::machine::MachineError::new(&error).to_string()),
        full,
    )
}

fn this_file() -> String {
    std::env::current_exe()
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned()
}

fn whole() -> Value {
    json!({
        "boot-source": {"kernel_image_path": this_file(), "boot_args": "reboot=k", "initrd_path": null},
        "drives": [{"drive_id": "rootfs", "is_root_device": true, "is_read_only": true,
            "path_on_host": this_file(), "cache_type": "Writeback", "partuuid": null}],
        "machine-config": {"vcpu_count": 2, "mem_size_mib": 64, "cpu_template": null},
        "network-interfaces": [], "logger": {"level": "Warn"}, "serial": {},
        "vsock": null, "balloon": null, "cpu-config": null, "metrics": null, "mmds-config": null,
        "entropy": null, "pmem": [], "memory-hotplug": null, "policy": null,
    })
}

#[test]
fn a_whole_vm_is_read_and_what_is_told_can_be_read_again() {
    let (loaded, told) = outcome(&whole().to_string());
    loaded.unwrap();
    assert_eq!(told["machine-config"]["vcpu_count"], 2);
    assert_eq!(told["drives"][0]["cache_type"], "Writeback");
    let (again, told_again) = outcome(&told.to_string());
    again.unwrap();
    assert_eq!(told, told_again);
    // Clients that know Firecracker's keys alone see no other where nothing was set.
    assert_eq!(told.get("policy"), None);
}

#[test]
fn a_policy_is_told_with_the_configuration_and_can_be_read_again() {
    let mut given = whole();
    given["policy"] = json!({
        "thresholds": {"spin_ms": 1500, "starved_share": 0.5},
        "look_into_vcpus": false,
        "restart": {"at_most": 2},
        "on_reboot": "restart",
        "verdicts": {"guest-panic": ["nmi", {"wait_ms": 10}, "restart"]},
    });
    let (loaded, told) = outcome(&given.to_string());
    loaded.unwrap();
    let policy = &told["policy"];
    assert_eq!(policy["thresholds"]["spin_ms"], 1500);
    assert_eq!(policy["look_into_vcpus"], false);
    assert_eq!(policy["verdicts"], given["policy"]["verdicts"]);
    let (again, told_again) = outcome(&told.to_string());
    again.unwrap();
    assert_eq!(told, told_again);
}

#[test]
fn what_is_wrong_is_named() {
    for (key, value, texts) in [
        (
            "policy",
            json!({"limits": {}}),
            ["policy in the configuration file", "`limits` is not known"],
        ),
        ("bootsource", json!({}), ["unknown field", "bootsource"]),
        (
            "vsock",
            json!({"guest_cid": 2, "uds_path": "/v"}),
            ["vsock", "guest_cid 2 is reserved"],
        ),
        (
            "balloon",
            json!({"amount_mib": 1, "deflate_on_oom": true, "pages": 3}),
            ["unknown field", "pages"],
        ),
        (
            "balloon",
            json!({"amount_mib": 9999, "deflate_on_oom": true}),
            ["balloon in the configuration file", "amount_mib 9999"],
        ),
        ("pmem", json!([{}]), ["pmem", "not supported by this build"]),
        (
            "machine-config",
            json!({"vcpu_count": 0, "mem_size_mib": 64}),
            ["machine-config", "1 to 32"],
        ),
        (
            "boot-source",
            json!({"kernel_image_path": "/no/kernel"}),
            ["boot-source", "/no/kernel"],
        ),
        (
            "drives",
            json!([{"drive_id": "a-b", "is_root_device": false}]),
            ["a-b", "alphanumeric"],
        ),
        (
            "logger",
            json!({"log_path": "/no/dir/log"}),
            ["logger", "/no/dir/log"],
        ),
        (
            "network-interfaces",
            json!([{"iface_id": "e", "host_dev_name": "nosuchtap9"}]),
            ["\"e\"", "nosuchtap9"],
        ),
    ] {
        let mut file = whole();
        file[key] = value;
        let error = outcome(&file.to_string()).0.unwrap_err();
        for text in texts {
            assert!(error.contains(text), "{key}: {text:?} is not in {error:?}");
        }
    }
    assert!(outcome("{").0.unwrap_err().contains("not valid"));
    assert!(outcome("{}").0.unwrap_err().contains("boot-source"));
    let mut config = support::config();
    let absent = load(
        "/no/file".as_ref(),
        &mut config,
        &LogControl::new("x"),
        &Rulebook::default(),
    )
    .unwrap_err();
    assert!(absent.to_string().contains("/no/file"));
}

#[test]
fn a_policy_in_the_file_holds_and_one_that_is_refused_does_not() {
    let directory = support::scratch();
    let path = directory.join("vm.json");
    let rulebook = Rulebook::default();
    let read = |policy: Value| {
        let mut file = whole();
        file["policy"] = policy;
        std::fs::write(&path, file.to_string()).unwrap();
        load(
            &path,
            &mut support::config(),
            &LogControl::new("vm1"),
            &rulebook,
        )
        .is_ok()
    };
    assert!(read(json!({"thresholds": {"storm_exits": 9}})));
    assert!(!read(json!({"thresholds": {"storm_exits": -9}})));
    std::fs::remove_dir_all(&directory).unwrap();
    assert_eq!(rulebook.read().thresholds.storm_exits, 9.0);
    assert_eq!(rulebook.limits().read().thresholds.storm_exits, 9.0);
}
