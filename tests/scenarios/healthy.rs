//! Healthy guests at work, of which nothing bad may be said. In the lab, one after another: it has
//! one CPU, and a second guest beside the first would starve it in truth.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::block::run;
use crate::harness::tap::Tap;
use crate::runner::caught;
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
            .args(["-q", "-i", "0.1", "10.111.8.2"])
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

/// What became of one guest.
pub struct Watched {
    load: &'static str,
    version: &'static str,
    took: Duration,
    boots: u32,
    /// Boots after which the script ran.
    ready: u32,
    /// Answers to the question for its health.
    looks: u32,
    /// The worst verdict, by the rank of its severity, and its code.
    worst: Option<(usize, String)>,
    /// Each verdict that is an error or a warning, once, with the second when it was seen.
    bad: Vec<(u64, Value)>,
    failure: Option<String>,
}

/// From harmless to bad.
const SEVERITIES: [&str; 3] = ["info", "warning", "error"];

impl Watched {
    /// Whether nothing bad was said and the guest did what it should.
    pub fn is_well(&self) -> bool {
        self.failure.is_none() && self.bad.is_empty()
    }

    /// A line of tabs, for programs.
    pub fn line(&self) -> String {
        let mut wrong: Vec<String> = self.failure.iter().cloned().collect();
        let bad = self.bad.iter();
        wrong.extend(bad.map(|(second, verdict)| format!("in second {second}: {verdict}")));
        let result = if wrong.is_empty() {
            format!("pass, {} boots", self.boots)
        } else {
            format!("FAIL: {}", wrong.join("; ").replace(['\n', '\t'], " "))
        };
        let worst = self.worst.as_ref().map_or_else(
            || "none".to_owned(),
            |(rank, code)| format!("{code} ({})", SEVERITIES[*rank]),
        );
        let columns = [
            self.load.to_owned(),
            self.version.to_owned(),
            format!("{:.0}", self.took.as_secs_f64()),
            self.looks.to_string(),
            worst,
            result,
        ];
        format!("row\t{}", columns.join("\t"))
    }

    /// Writes down what is said of the guest.
    fn note(&mut self, verdicts: &[Value], second: u64) {
        for verdict in verdicts {
            let severity = verdict["severity"].as_str();
            let rank = SEVERITIES.iter().position(|name| Some(*name) == severity);
            let rank = rank.unwrap_or_else(|| panic!("a severity of no known name: {verdict}"));
            if self.worst.as_ref().is_none_or(|(worst, _)| *worst < rank) {
                let code = verdict["code"].as_str().unwrap_or_default();
                self.worst = Some((rank, code.to_owned()));
            }
            let is_same = |other: &Value| {
                let names = ["code", "subject", "severity"];
                names.iter().all(|name| other[name] == verdict[name])
            };
            if rank > 0 && !self.bad.iter().any(|(_, other)| is_same(other)) {
                eprintln!("scenarios: healthy: second {second}: {verdict}");
                self.bad.push((second, verdict.clone()));
            }
        }
    }
}

/// Watches all whose name is among `names`, or all; tells each as it is done.
pub fn watch(names: &[String], mut tell: impl FnMut(&Watched)) {
    let wanted = |load: &&Load| names.is_empty() || names.iter().any(|name| name == load.name);
    let loads: Vec<&Load> = ALL.iter().filter(wanted).collect();
    let count = loads.len() * VERSIONS.len();
    let pairs = loads
        .iter()
        .flat_map(|load| VERSIONS.map(|version| (load, version)));
    for (number, (load, version)) in (1..).zip(pairs) {
        eprintln!(
            "scenarios: healthy: {number} of {count}: {} on {version} ...",
            load.name
        );
        tell(&one(load, version));
    }
}

/// The names.
pub fn names() -> impl Iterator<Item = &'static str> {
    ALL.iter().map(|load| load.name)
}

fn one(load: &Load, version: &'static str) -> Watched {
    let mut watched = Watched {
        load: load.name,
        version,
        took: Duration::ZERO,
        boots: 0,
        ready: 0,
        looks: 0,
        worst: None,
        bad: Vec::new(),
        failure: None,
    };
    let from = Instant::now();
    watched.failure = caught(|| {
        while from.elapsed() < WATCHED {
            watched.boots += 1;
            lives(load, &mut watched, from);
        }
        assert!(watched.ready > 0, "no boot was done within {WATCHED:?}");
    });
    watched.took = from.elapsed();
    watched
}

/// One life of a guest: until the time is over, or until it ends itself.
fn lives(load: &Load, watched: &mut Watched, from: Instant) {
    let stage = Stage::new(ASKED_EVERY);
    (load.setup)(&stage);
    stage.boot(Guest::Linux(watched.version, load.script));
    let mut second = 0;
    while from.elapsed() < WATCHED && stage.is_alive() {
        let asked_at = Instant::now();
        if let Some(standing) = stage.asked() {
            watched.looks += 1;
            watched.note(&standing, from.elapsed().as_secs());
        } else {
            // It may end between the two: then there is nobody to ask.
            let took = asked_at.elapsed();
            assert!(
                !stage.is_alive() || took < ASKED_EVERY,
                "nobody told the health for {took:?}"
            );
        }
        (load.beside)(&stage, second);
        second += 1;
        std::thread::sleep(ASKED_EVERY);
    }
    let ended_itself = !stage.is_alive();
    let events = stage.events();
    let told = events.iter().map(|(_, event)| event["verdict"].clone());
    let told: Vec<Value> = told.filter(Value::is_object).collect();
    watched.note(&told, from.elapsed().as_secs());
    let said = stage.daemon.text("stdout");
    let is_ready = said.contains("ready");
    watched.ready += u32::from(is_ready);
    // One that the end of the time cut short may not have come so far.
    assert!(
        is_ready || !ended_itself,
        "the guest ended before its script ran; it said: {said}"
    );
    if !watched.bad.is_empty() {
        eprintln!("scenarios: healthy: the guest said: {said}");
    }
}
