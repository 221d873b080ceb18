//! A guest that is hostile to every device behind either transport: each ring is broken in each way
//! while somebody looks, and then all of it again ten thousand times.
//!
//! In each of these VMs the first drive is left in peace: it has to serve all the time.

mod faults;
mod look;
mod storm;

use serde_json::{Value, json};

use crate::daemon::Daemon;
use crate::harness::tap::Tap;
use crate::harness::{Scratch, image};

/// Sectors of each drive.
const SECTORS: usize = 64;
/// MiB of the guest.
const MEMORY: u64 = 64;

/// What the guest attacks, in its order, and how many queues each has.
const DEVICES: [(&str, u16); 6] = [
    ("sync", 1),
    ("async", 1),
    ("net", 2),
    ("balloon", 5),
    ("entropy", 1),
    ("vsock", 3),
];

/// How the guest reaches its devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transport {
    Mmio,
    Pci,
}

impl Transport {
    fn name(self) -> &'static str {
        match self {
            Transport::Mmio => "mmio",
            Transport::Pci => "pci",
        }
    }
}

/// A VM with every device, and what it needs of the host.
struct Victim {
    daemon: Daemon,
    _tap: Tap,
}

impl Victim {
    /// Boots a zoo guest that does `words`, under this policy.
    fn boot(transport: Transport, policy: &Value, words: &str) -> Victim {
        let scratch = Scratch::new();
        // Of this process alone: another suite may be run beside it.
        let name: &'static str = format!("vz{}", std::process::id()).leak();
        let tap = Tap::new(name, "10.233.77.1");
        let mut arguments = vec!["--api-sock", "SCRATCH/api.sock", "--id", "victim"];
        if transport == Transport::Pci {
            arguments.push("--enable-pci");
        }
        let daemon = Daemon::with(scratch, &arguments);
        daemon.await_path("api.sock");
        let machine = json!({"vcpu_count": 1, "mem_size_mib": MEMORY});
        daemon.put("/machine-config", &machine);
        for (id, engine) in [("good", "Sync"), ("sync", "Sync"), ("async", "Async")] {
            // The first word of a sector tells the guest which one it is.
            let disk = daemon.scratch.disk(id, SECTORS * 512, 0);
            let drive = json!({"drive_id": id, "is_root_device": false, "path_on_host": disk,
                "io_engine": engine});
            daemon.put(&format!("/drives/{id}"), &drive);
        }
        let network = json!({"iface_id": "net", "host_dev_name": name});
        daemon.put("/network-interfaces/net", &network);
        let balloon = json!({"amount_mib": 0, "deflate_on_oom": true,
            "stats_polling_interval_s": 1, "free_page_hinting": true, "free_page_reporting": true});
        daemon.put("/balloon", &balloon);
        daemon.put("/entropy", &json!({}));
        let vsock = json!({"guest_cid": 3, "uds_path": daemon.scratch.path("vsock")});
        daemon.put("/vsock", &vsock);
        daemon.put("/policy", policy);
        let boot = json!({
            "kernel_image_path": image("zoo.elf"),
            "boot_args": format!("console=ttyS0 zoo: {words}"),
        });
        daemon.put("/boot-source", &boot);
        daemon.put("/actions", &json!({"action_type": "InstanceStart"}));
        Victim { daemon, _tap: tap }
    }

    /// Presses a key, for which the guest waits.
    fn press(&mut self) {
        use std::io::Write;
        let input = self.daemon.child.stdin.as_mut().unwrap();
        input.write_all(b"q").unwrap();
        input.flush().unwrap();
    }

    fn said(&self) -> String {
        self.daemon.text("stdout")
    }

    /// What the guest says has to be so before it ends or fails.
    fn await_words(&self, words: &str) {
        self.daemon.until(words, || {
            let said = self.said();
            let has_failed = said.contains("failed\n") || said.contains("exception");
            assert!(said.contains(words) || !has_failed, "{said}");
            said.contains(words)
        });
    }

    fn get(&self, path: &str) -> Value {
        let (status, body) = self.daemon.ask("GET", path, &Value::Null);
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}"))
    }

    /// What is so for a moment has to come.
    fn until(&self, what: &str, holds: impl Fn() -> bool) {
        self.daemon.until(what, holds);
    }
}
