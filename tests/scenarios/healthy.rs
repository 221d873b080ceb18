//! Healthy guests at work, of which nothing bad may be said. In the lab, one after another: it has
//! one CPU, and a second guest beside the first would starve it in truth.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::block::run;
use crate::harness::tap::Tap;
use crate::runner::{Row, caught};
use crate::scenario::Guest;
use crate::stage::Stage;

/// How long each is watched.
const WATCHED: Duration = Duration::from_secs(60);
/// From one question to the next.
const ASKED_EVERY: Duration = Duration::from_secs(1);
/// The kernels.
const VERSIONS: [&str; 2] = ["6.1", "6.12"];

/// What a guest does.
struct Load {
    name: &'static str,
    script: &'static str,
    setup: fn(&Stage),
    /// Done beside it, once a second, by the number of the second.
    beside: fn(&Stage, u64),
}

const USUAL: Load = Load {
    name: "",
    script: "",
    setup: |_| {},
    beside: |_, _| {},
};

/// Snapshotting is to be here, too, when there is such a thing.
const ALL: &[Load] = &[
    Load {
        name: "idle",
        script: "echo ready; sleep 10000",
        ..USUAL
    },
    Load {
        name: "cpu-bound",
        script: "echo ready; while :; do :; done",
        ..USUAL
    },
    Load {
        name: "disk-bound",
        script: "echo ready
while :; do
  dd if=/dev/zero of=/dev/vda bs=64k conv=fsync
  dd if=/dev/vda of=/dev/null bs=64k iflag=direct
done 2> /dev/null",
        setup: |stage| stage.drive("disk"),
        ..USUAL
    },
    Load {
        name: "net-bound",
        script: "ip addr add 10.111.8.2/24 dev eth0; ip link set eth0 up
echo ready
ping -q -A 10.111.8.1 > /dev/null",
        setup: |stage| {
            let tap = Tap::new("vthealthy", "10.111.8.1");
            stage.network("eth0", "vthealthy");
            stage.keep(tap);
            stage.keep(Pings::new());
        },
        ..USUAL
    },
    Load {
        name: "memory-heavy",
        script: "mount -o remount,size=80% /run
dd if=/dev/zero of=/run/held bs=1M count=150 2> /dev/null
echo ready
while :; do dd if=/run/held of=/dev/null bs=64k 2> /dev/null; done",
        ..USUAL
    },
    Load {
        name: "fork-heavy",
        script: "echo ready; while :; do /bin/busybox true; done",
        ..USUAL
    },
    Load {
        name: "pause-resume",
        script: "echo ready; while :; do cat /proc/stat > /dev/null; sleep 0.1; done",
        beside: |stage, second| match second % 6 {
            2 => stage.set_state("Paused"),
            5 => stage.set_state("Resumed"),
            _ => {}
        },
        ..USUAL
    },
    Load {
        name: "boot-reboot",
        script: "echo ready; sleep 1; reboot -f",
        ..USUAL
    },
];

/// The host's own pings, which end with this.
struct Pings(Child);

impl Pings {
    fn new() -> Pings {
        run(&["ip", "link", "show", "vthealthy"]);
        let child = Command::new("ping")
            .args(["-q", "-i", "0.02", "10.111.8.2"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Pings(child.unwrap())
    }
}

impl Drop for Pings {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Watches all whose name is among `names`, or all; tells each row as it comes.
pub fn watch(names: &[String], mut tell: impl FnMut(Row)) {
    for load in ALL {
        if !names.is_empty() && !names.iter().any(|name| name == load.name) {
            continue;
        }
        for version in VERSIONS {
            eprintln!("scenarios: healthy: {} on {version} ...", load.name);
            tell(one(load, version));
        }
    }
}

/// The names.
pub fn names() -> impl Iterator<Item = &'static str> {
    ALL.iter().map(|load| load.name)
}

fn one(load: &Load, version: &'static str) -> Row {
    let place = "lab".to_owned();
    let what = [load.name, "(none)", &format!("linux {version}")].map(str::to_owned);
    let [name, code, guest] = what;
    let mut row = Row::new([name, code, guest, place], Duration::ZERO);
    row.failure = caught(|| {
        let end = Instant::now() + WATCHED;
        let mut boots = 0;
        while Instant::now() < end {
            boots += 1;
            lives(load, version, end);
        }
        row.evidence = [
            format!("nothing bad, {boots} boots"),
            "asked each second".to_owned(),
        ];
    });
    row
}

/// One life of a guest: until `end`, or until it ends itself.
fn lives(load: &Load, version: &'static str, end: Instant) {
    let stage = Stage::new(ASKED_EVERY);
    (load.setup)(&stage);
    stage.boot(Guest::Linux(version, load.script));
    let mut second = 0;
    while Instant::now() < end && stage.is_alive() {
        // It may end between the two: then there is nobody to ask.
        if let Some(standing) = stage.asked() {
            fine(&standing, &stage);
        }
        (load.beside)(&stage, second);
        second += 1;
        std::thread::sleep(ASKED_EVERY);
    }
    let events = stage.events();
    let told = events.iter().map(|(_, event)| event["verdict"].clone());
    let told: Vec<Value> = told.filter(Value::is_object).collect();
    fine(&told, &stage);
    assert!(
        stage.daemon.text("stdout").contains("ready"),
        "the guest did not come up: {}",
        stage.daemon.text("stdout")
    );
}

#[track_caller]
fn fine(verdicts: &[Value], stage: &Stage) {
    let bad = verdicts
        .iter()
        .find(|verdict| verdict["severity"] != "info");
    if let Some(bad) = bad {
        panic!("{bad}; the guest said: {}", stage.daemon.text("stdout"));
    }
}
