//! vCPUs: storms, and CPU time that the host does not give.

use std::time::Duration;

use vmm::observe::verdict::{Code, Severity};

use crate::hold::{Burners, Stopped};
use crate::scenario::{Checked, Fault, Found, Guest, Place, Scenario, USUAL, between};
use crate::stage::Stage;

pub const ALL: &[Scenario] = &[
    Scenario {
        name: "exit-storm",
        code: Code::ExitStorm,
        // How fast it is, the guest tells by a number of reads that is known.
        guest: Guest::Zoo("print=ready pio_read=0x81:300000 print=counted loop_pio=0x81"),
        fault: from_ready,
        evidence: |found| {
            assert_eq!(found.words("place"), "io_in 0x81");
            rate(found, "exits_per_second", 300_000.0)
        },
        end: Some(paused),
        ..USUAL
    },
    Scenario {
        name: "wake-storm",
        code: Code::WakeStorm,
        guest: Guest::Zoo("print=ready timer_hlt=20000 print=counted timer_hlt=1000000000"),
        fault: from_ready,
        takes_cpu: true,
        evidence: |found| {
            let (_, line) = found.stage.heard("halts=");
            let halts = line.rsplit('=').next().unwrap().trim().parse().unwrap();
            rate(found, "halts_per_second", halts)
        },
        end: Some(paused),
        ..USUAL
    },
    Scenario {
        name: "vcpu-starved",
        code: Code::VcpuStarved,
        // Busy in the guest alone.
        guest: Guest::Zoo("print=ready wait=1000000000"),
        fault: |stage| Fault::held(Burners::beside(stage.thread("vcpu-0"), 2)),
        // It takes two looks in a row: it has to hold half as long again as others.
        threshold: Duration::from_millis(1500),
        evidence: starved,
        also: &[Code::VcpuSpin, Code::VcpuSpinIrqsOff],
        ..USUAL
    },
    Scenario {
        name: "vcpu-in-handler",
        code: Code::VcpuInHandler,
        severity: Severity::Error,
        // The second read begins with a reset of the device, and its thread has to confirm that.
        guest: Guest::Zoo(
            "blk_read=0:1 print=ready rest=1000 print=resetting blk_read=0:1 rest=1000000",
        ),
        setup: |stage| stage.drive("disk"),
        fault: |stage| {
            let held = Stopped::thread(stage.thread("io-disk"));
            let (from, _) = stage.heard("resetting");
            Fault {
                from,
                ..Fault::held(held)
            }
        },
        evidence: |found| {
            assert_eq!(found.words("device"), "disk");
            assert_eq!(found.words("reason"), "mmio_write");
            // The status register of the first window.
            assert_eq!(found.number("address"), f64::from(0xD000_0070_u32));
            let tid = found.stage.thread("vcpu-0");
            assert_eq!(found.number("tid"), f64::from(tid));
            let since = found.at.duration_since(found.fault.from).as_secs_f64() * 1e3;
            let told = found.number("handler_ns") / 1e6;
            between(
                "handler_ms",
                told,
                since - 300.0,
                since + 50.0,
                "this clock",
            )
        },
        cause: Some(Code::VmmThreadStuck),
        ..USUAL
    },
    Scenario {
        name: "vcpu-throttled",
        code: Code::VcpuThrottled,
        place: Place::Lab,
        guest: Guest::Linux("6.12", "echo ready; while :; do :; done"),
        fault: |stage| {
            let cgroup = stage.cgroup();
            cgroup.write("cpu.max", "30000 100000");
            Fault::now()
        },
        evidence: throttled,
        end: Some(|stage| stage.cgroup().write("cpu.max", "max")),
        ..USUAL
    },
];

/// What the guest does since it has said that it is ready.
fn from_ready(stage: &Stage) -> Fault {
    Fault::since(stage.heard("ready").0)
}

/// A paused guest does nothing.
fn paused(stage: &Stage) {
    stage.set_state("Paused");
}

/// `count` things took the guest from `ready` to `counted`; by the test's own clock.
fn rate(found: &Found<'_>, name: &str, count: f64) -> Checked {
    let (ready, _) = found.stage.heard("ready");
    let (counted, _) = found.stage.heard("counted");
    let measured = count / counted.duration_since(ready).as_secs_f64();
    let source = format!("the guest's count by this clock: {measured:.0}");
    // Others use this machine, too.
    between(
        name,
        found.number(name),
        measured * 0.5,
        measured * 2.0,
        &source,
    )
}

/// The share that the scheduler's own account says, from the fault to now.
fn starved(found: &Found<'_>) -> Checked {
    let [_, before] = found.stage.schedstat("vcpu-0");
    let start = std::time::Instant::now();
    std::thread::sleep(Duration::from_secs(1));
    let [_, after] = found.stage.schedstat("vcpu-0");
    let share = (after - before) as f64 / start.elapsed().as_nanos() as f64 * 100.0;
    let tid = f64::from(found.stage.thread("vcpu-0"));
    assert_eq!(found.number("tid"), tid);
    assert_eq!(found.verdict["severity"], Severity::Warning.name());
    let source = format!("schedstat: {share:.0}");
    let told = found.number("waiting_percent");
    // The first look may hold a part of the time before the fault.
    between(
        "waiting_percent",
        told,
        (share * 0.4).max(20.0),
        101.0,
        &source,
    )
}

/// The share that the cgroup's own file says, from now on.
fn throttled(found: &Found<'_>) -> Checked {
    let spent = || found.stage.cgroup().number("cpu.stat", "throttled_usec") as f64;
    let (before, start) = (spent(), std::time::Instant::now());
    std::thread::sleep(Duration::from_secs(3));
    let share = (spent() - before) / start.elapsed().as_micros() as f64 * 100.0;
    let told = found.number("throttled_percent");
    let source = format!("cpu.stat: {share:.0}");
    // The first look may hold a part of the time before the fault.
    between(
        "throttled_percent",
        told,
        (share * 0.3).max(10.0),
        share * 1.4,
        &source,
    )
}
