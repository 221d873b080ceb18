//! What `kill -9` at any moment leaves behind, and what is told of a VMM whose threads are stopped.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vmm::observe::clock::monotonic_ns;
use vmm::observe::reader::{Reader, Snapshot};

use crate::daemon::{Daemon, zoo};
use crate::harness::Scratch;
use crate::harness::remains::{
    self, chance, exits_are_plausible, has, rings_are_plausible, said, sum, within_one,
};
use crate::reports::{freeze, vitrine};

/// The guest writes, reads and compares sectors, and reads a port after each request.
const WORDS: &str = "quiet loop_blk=0:64:0x81";
const FILE: &str = "SCRATCH/vitrine/boxed.blackbox";
const KILLS: u64 = 50;
/// Requests of a guest that is in its loop.
const LOAD: u64 = 10;
/// Kills come until so long after the start, or later where starting takes long.
const SPAN: Duration = Duration::from_millis(300);
/// A VM that starts by itself, as its process does.
fn start() -> Daemon {
    let scratch = Scratch::new();
    let config = json!({
        "boot-source": zoo(WORDS),
        "machine-config": {"vcpu_count": 2, "mem_size_mib": 128},
        "drives": [{
            "drive_id": "d",
            "is_root_device": false,
            "path_on_host": scratch.disk("disk", 64 * 512, 3),
        }],
    });
    std::fs::write(scratch.path("vm.json"), config.to_string()).unwrap();
    let arguments = [
        "--config-file",
        "SCRATCH/vm.json",
        "--api-sock",
        "SCRATCH/api.sock",
        "--id",
        "boxed",
    ];
    Daemon::with(scratch, &arguments)
}

fn black_box(daemon: &Daemon) -> Option<Snapshot> {
    let path = daemon.scratch.path("vitrine/boxed.blackbox");
    path.exists().then(|| read(&path))
}

fn read(path: &Path) -> Snapshot {
    Reader::open(path).unwrap().snapshot().unwrap()
}

fn requests(seen: &Snapshot) -> u64 {
    let queue = seen.section("queue/d/0");
    queue.map_or(0, |queue| queue.counter("requests").unwrap())
}

/// How long it takes until the guest has done some requests.
fn time_to_load() -> Duration {
    let start_of_it = Instant::now();
    let daemon = start();
    daemon.until("the load", || {
        black_box(&daemon).is_some_and(|seen| requests(&seen) >= LOAD)
    });
    start_of_it.elapsed()
}

/// How far the VM was when it was killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// There was no black box yet.
    Nothing,
    /// The black box was there; the guest did not run.
    Built,
    /// The guest ran.
    Ran,
    /// The guest worked with its drive.
    Loaded,
}

#[test]
fn kill_9_at_any_moment_leaves_a_black_box_that_is_whole() {
    let seed = std::env::var("VITRINE_SEED").ok();
    let seed = seed.map_or_else(monotonic_ns, |seed| seed.parse().unwrap());
    let span = SPAN.max(time_to_load() * 3);
    println!("VITRINE_SEED={seed}; {KILLS} kills within {span:?}");
    let next = AtomicU64::new(0);
    let some = || {
        let mut stages = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= KILLS {
                return stages;
            }
            // Some at once: the black box is made within the first milliseconds.
            let within = match number % 5 {
                0 => span / 60,
                1 => span / 10,
                _ => span,
            };
            let after = within.mul_f64(chance(seed, number) as f64 / u64::MAX as f64);
            let stage = killed(after);
            println!("kill {number} after {after:?}: {stage:?}");
            stages.push(stage);
        }
    };
    let stages = std::thread::scope(|scope| {
        let both = [scope.spawn(some), scope.spawn(some)];
        both.map(|thread| thread.join().unwrap()).concat()
    });
    let count = |stage| stages.iter().filter(|other| **other == stage).count();
    let all = [Stage::Nothing, Stage::Built, Stage::Ran, Stage::Loaded];
    println!("{:?}", all.map(|stage| (stage, count(stage))));
    assert_eq!(stages.len() as u64, KILLS);
    // Else this has shown nothing of a VM under load.
    assert!(count(Stage::Loaded) >= 15, "too few VMs got to their load");
}

/// Starts a VM, kills it, and looks at what is left of it.
fn killed(after: Duration) -> Stage {
    let mut daemon = start();
    std::thread::sleep(after);
    daemon.child.kill().unwrap();
    let at_ns = monotonic_ns();
    daemon.finish();
    let Some(seen) = black_box(&daemon) else {
        let folder = std::fs::read_dir(daemon.scratch.path("vitrine"));
        let left: Vec<_> = folder.into_iter().flatten().collect();
        assert!(left.is_empty(), "half a black box is left: {left:?}");
        return Stage::Nothing;
    };
    remains::are_whole(&seen, "boxed", daemon.child.id());
    rings_are_plausible(&seen, at_ns);
    let text = said(&vitrine(&daemon, &["report", FILE]), 1);
    remains::are_told_as_dead(&text, "boxed");
    let exits = |name: &str| seen.section(name).map_or(0, |vcpu| sum(vcpu, "exits"));
    if exits("vcpu/0") == 0 {
        return Stage::Built;
    }
    names_everything(&text);
    for vcpu in seen.of_kind("vcpu") {
        exits_are_plausible(vcpu);
    }
    requests_are_plausible(&seen);
    if requests(&seen) < LOAD {
        return Stage::Ran;
    }
    let events = text.split("\nThe last ").nth(1).unwrap();
    has(events, &[" vcpu-0 io_in of 1 byte at ", " io-d d: "]);
    Stage::Loaded
}

fn names_everything(text: &str) {
    let parts = text.split("\nThreads\n").collect::<Vec<_>>();
    let [before, threads] = parts[..] else {
        panic!("no threads in:\n{text}");
    };
    has(
        before,
        &["2 vCPUs", "vCPU 0: ", "vCPU 1: ", "Queues\n", "\nd/0 "],
    );
    let threads = threads.split("\n\n").next().unwrap();
    for name in ["vcpu-0", "vcpu-1", "vm", "io-d", "watcher", "console"] {
        has(threads, &[&format!("\n{name} ")]);
    }
    has(
        text,
        &["Console serial: output ", "Host memory: ", "\nThe last "],
    );
}

/// The drive's counters agree with the port that is read after each request, too.
fn requests_are_plausible(seen: &Snapshot) {
    remains::requests_are_plausible(seen, "d");
    let completions = seen.section("queue/d/0").unwrap().counter("completions");
    let vcpu = seen.section("vcpu/0").unwrap();
    let reads = vcpu.table("device_reads", "unclaimed-port").unwrap();
    within_one(reads.as_u64().unwrap(), completions.unwrap());
}

/// The words of a page without those that count from now: dates, spans, shares of a time.
fn timeless(page: &str) -> String {
    const UNITS: [&str; 10] = ["ns", "us", "ms", "s", "min", "h", "d", "%", "UTC", "ago"];
    let bare = |word: &str| word.trim_matches(|c| "(),;.:".contains(c)).to_owned();
    let is_number = |word: &str| bare(word).parse::<f64>().is_ok();
    let line = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let kept = words.iter().enumerate().filter(|(index, word)| {
            let before = index.checked_sub(1).and_then(|index| words.get(index));
            let after = words.get(index + 1).map(|word| bare(word));
            let is_unit = |word: &str| UNITS.contains(&word);
            let is_measured = is_number(word) && after.is_some_and(|word| is_unit(&word));
            let is_its_unit = is_unit(&bare(word)) && before.is_some_and(|word| is_number(word));
            !is_measured && !is_its_unit && word.matches(':').count() != 2
        });
        kept.map(|(_, word)| *word).collect::<Vec<_>>().join(" ")
    };
    page.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn of_a_stopped_vmm_every_way_tells_the_same_and_then_it_goes_on() {
    let mut daemon = start();
    daemon.until("the load", || {
        black_box(&daemon).is_some_and(|seen| requests(&seen) > 1000)
    });
    daemon.await_path("api.sock");
    freeze(&daemon);
    let before = black_box(&daemon).unwrap();
    assert_eq!(before.writer_alive, Some(true));
    let ways = ["SCRATCH/api.sock", FILE, "boxed"].map(|target| {
        let text = said(&vitrine(&daemon, &["report", target, "--all"]), 0);
        has(&text, &["VM boxed: running\nIts process lives as of "]);
        names_everything(&text);
        timeless(&text)
    });
    has(
        &ways[0],
        &["unclaimed-port ", "d read ", " vcpu-0 io_in of 1 byte at "],
    );
    for way in &ways[1..] {
        for (first, other) in ways[0].lines().zip(way.lines()) {
            assert_eq!(first, other);
        }
        assert_eq!(way.lines().count(), ways[0].lines().count());
    }
    let after = black_box(&daemon).unwrap();
    assert_eq!(requests(&after), requests(&before), "it was stopped");

    daemon.signal("CONT");
    daemon.until("what comes next", || {
        requests(&black_box(&daemon).unwrap()) > requests(&before) + 100
    });
    assert_eq!(daemon.state(), "Running");
    let (status, _) = daemon.ask("GET", "/observe", &Value::Null);
    assert_eq!(status, 200);
    daemon.signal("TERM");
    assert_eq!(daemon.finish().code(), Some(0), "{}", daemon.text("stderr"));
    assert!(black_box(&daemon).is_none(), "a clean end leaves nothing");
}
