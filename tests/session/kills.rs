//! What `kill -9` at any moment leaves behind, and what is told of a VMM whose threads are stopped.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vmm::observe::clock::monotonic_ns;
use vmm::observe::reader::{Ended, Reader, SectionView, Snapshot, Value as Seen};

use crate::daemon::{Daemon, zoo};
use crate::harness::Scratch;
use crate::reports::{freeze, has, said, vitrine};

/// The guest writes, reads and compares sectors, and reads a port after each request.
const WORDS: &str = "quiet loop_blk=0:64:0x81";
const FILE: &str = "SCRATCH/vitrine/boxed.blackbox";
const KILLS: u64 = 50;
/// Requests of a guest that is in its loop.
const LOAD: u64 = 10;
/// Kills come until so long after the start, or later where starting takes long.
const SPAN: Duration = Duration::from_millis(300);
/// The pulse comes every second; beyond that a thread may have lived for so long.
const BEAT_NS: u64 = 1_500_000_000;
/// What two clocks may differ by that were compared at the VM's start.
const DRIFT_NS: u64 = 20_000_000;

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

/// A number by chance: splitmix64.
fn chance(seed: u64, number: u64) -> u64 {
    let mut z = seed.wrapping_add((number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
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
        return Stage::Nothing;
    };
    assert!(!seen.truncated);
    assert!(seen.sections.iter().all(|section| !section.truncated));
    assert_eq!(seen.writer_alive, Some(false));
    assert_eq!(seen.header.end, Ended::Running);
    assert_eq!(seen.header.vm_id, "boxed");
    assert_eq!(seen.header.pid, u64::from(daemon.child.id()));
    rings_are_plausible(&seen, at_ns);
    let text = said(&vitrine(&daemon, &["report", FILE]), 1);
    has(&text, &["VM boxed: dead\nIt died without a clean end: "]);
    assert!(!text.contains("cut short or damaged"), "{text}");
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

/// All rows of a table together.
fn sum(section: &SectionView, field: &str) -> u64 {
    let rows = section.row_names(field);
    let number = |row| match section.table(field, row) {
        Some(Seen::Histogram(histogram)) => histogram.count(),
        other => other.unwrap().as_u64().unwrap(),
    };
    rows.map(number).sum()
}

/// That `number` is `other`, or what it was one event before or after.
#[track_caller]
fn within_one(number: u64, other: u64) {
    assert!(number.abs_diff(other) <= 1, "{number} and {other}");
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
        &["Console serial: output ", "Cgroup memory: ", "\nThe last "],
    );
}

/// The flight rings: in order, and no event after the end or long after the last beat.
fn rings_are_plausible(seen: &Snapshot, killed_ns: u64) {
    let clock = &seen.header.clock;
    let pulse_ns = seen.header.pulse_monotonic_ns.unwrap_or(u64::MAX);
    assert!(seen.now_monotonic_ns <= killed_ns + DRIFT_NS);
    for section in &seen.sections {
        let Some(flight) = section.flight("flight") else {
            continue;
        };
        assert_eq!(flight.events.len() as u64, flight.written.min(511));
        assert!(flight.events.is_sorted_by_key(|event| event.at));
        for event in &flight.events {
            let at_ns = clock.monotonic_of(event.at);
            assert!(at_ns >= seen.header.created_monotonic_ns - DRIFT_NS);
            assert!(at_ns <= killed_ns + DRIFT_NS, "{}", section.name);
            assert!(
                at_ns <= pulse_ns.saturating_add(BEAT_NS),
                "{}",
                section.name
            );
        }
        let heartbeat = section.heartbeat("heartbeat").unwrap();
        if let Some(last) = flight.events.last().filter(|_| section.kind() == "vcpu") {
            assert!(heartbeat.since_ticks >= last.at);
            assert_ne!(heartbeat.tid, 0);
        }
    }
}

/// The counters of one vCPU: each exit is in all of them, but for one that was being served.
fn exits_are_plausible(vcpu: &SectionView) {
    let exits = sum(vcpu, "exits");
    let written = vcpu.flight("flight").unwrap().written;
    assert!(
        (written..=written + 1).contains(&exits),
        "{exits} {written}"
    );
    within_one(vcpu.histogram("stay").unwrap().count(), exits);
    within_one(sum(vcpu, "exit_handler"), exits);
    within_one(sum(vcpu, "place_exits"), exits);
    let row = |name| vcpu.table("exits", name).unwrap().as_u64().unwrap();
    let accesses: u64 = ["io_in", "io_out", "mmio_read", "mmio_write"]
        .map(row)
        .iter()
        .sum();
    within_one(
        sum(vcpu, "device_reads") + sum(vcpu, "device_writes"),
        accesses,
    );
}

/// The drive's counters agree with each other, and with the port that is read after each request.
fn requests_are_plausible(seen: &Snapshot) {
    let queue = seen.section("queue/d/0").unwrap();
    let device = seen.section("device/d").unwrap();
    let of = |field| queue.value(field).unwrap().as_u64().unwrap();
    let completions = of("completions");
    assert!((completions..=completions + 1).contains(&requests(seen)));
    within_one(of("in_flight"), requests(seen) - completions);
    within_one(of("used_index"), completions & 0xffff);
    assert!(of("kicks") <= requests(seen) + of("spurious_kicks") + 1);
    within_one(queue.histogram("service").unwrap().count(), completions);
    within_one(sum(device, "operations"), completions);
    assert_eq!(sum(device, "operation_errors"), 0);
    let vcpu = seen.section("vcpu/0").unwrap();
    let reads = vcpu.table("device_reads", "unclaimed-port").unwrap();
    within_one(reads.as_u64().unwrap(), completions);
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
