//! Queues: kicks that are lost or not taken, rings that are broken, answers that nobody reads.

use std::time::Duration;

use serde_json::json;
use vmm::observe::verdict::{Code, Severity};

use crate::block::{Mapped, Small, Suspended, run};
use crate::harness::tap::Tap;
use crate::hold::Stopped;
use crate::scenario::{Checked, Fault, Found, Guest, Place, Scenario, USUAL, between};
use crate::stage::Stage;

const DISK: &str = "device/disk/queue/0";

pub const ALL: &[Scenario] = &[
    Scenario {
        name: "queue-device-stall",
        code: Code::QueueDeviceStall,
        subject: DISK,
        severity: Severity::Error,
        guest: Guest::Zoo("print=ready late_kick=0:1000 rest=1000000"),
        setup: |stage| stage.drive("disk"),
        fault: |stage| {
            // It has set the device up by then.
            std::thread::sleep(Duration::from_millis(300));
            let held = Stopped::thread(stage.thread("io-disk"));
            let (from, _) = stage.heard("late_kick kicks");
            Fault {
                from,
                ..Fault::held(held)
            }
        },
        evidence: |found| {
            let tid = found.stage.thread("io-disk");
            assert_eq!(found.number("tid"), f64::from(tid));
            assert_eq!(found.words("thread_state"), found.stage.kernel_state(tid));
            let told = found.number("not_taken_ns") / 1e6;
            since(found, "not_taken_ms", told, 1300.0)
        },
        cause: Some(Code::VmmThreadStuck),
        ..USUAL
    },
    Scenario {
        name: "queue-lost-kick",
        code: Code::QueueLostKick,
        subject: DISK,
        severity: Severity::Error,
        guest: Guest::Zoo("print=ready rest=1000 lost_kick=0:3 rest=1000000"),
        setup: |stage| stage.drive("disk"),
        fault: |stage| Fault::since(stage.heard("lost_kick begins").0),
        // The device's thread looks around once a second and believes it at a second look, 250 ms
        // later, so that a vCPU that lost its CPU between ring and kick is not blamed.
        threshold: Duration::from_millis(1250),
        evidence: |found| {
            let (_, line) = found.stage.heard("lost_kick ok");
            assert!(line.ends_with(" 3"), "all were served: {line}");
            // The guest knows how many it did not send.
            let told = found.number("lost_kicks_ever");
            between("lost_kicks_ever", told, 1.0, 3.0, "the guest's count")
        },
        ..USUAL
    },
    Scenario {
        name: "queue-guest-not-reaping",
        code: Code::QueueGuestNotReaping,
        subject: DISK,
        guest: Guest::Zoo("print=ready rest=1000 not_reaping=0:3:8000 rest=1000000"),
        setup: |stage| stage.drive("disk"),
        fault: |stage| Fault::since(stage.heard("not_reaping interrupted").0),
        threshold: Duration::from_secs(2),
        evidence: |found| {
            assert_eq!(found.number("unread"), 3.0, "the guest asked for three");
            let told = found.number("since_interrupt_ns") / 1e6;
            since(found, "since_interrupt_ms", told, 300.0)
        },
        end: Some(|stage| drop(stage.heard("not_reaping ends"))),
        ..USUAL
    },
    Scenario {
        name: "queue-broken",
        code: Code::QueueBroken,
        subject: DISK,
        severity: Severity::Error,
        guest: Guest::Zoo(
            "print=ready print=breaks bad_ring=0:loop rest=5000 print=resets blk_read=0:1 rest=1000000",
        ),
        setup: |stage| stage.drive("disk"),
        fault: |stage| Fault::since(stage.heard("breaks").0),
        evidence: |found| {
            assert_eq!(found.words("reason"), "a chain never ends");
            let (_, line) = found.stage.heard("bad_ring loop");
            assert!(
                line.contains("needs_reset"),
                "the guest saw it, too: {line}"
            );
            let told = found.number("broken_ns") / 1e6;
            since(found, "broken_ms", told, 300.0)
        },
        end: Some(|stage| drop(stage.heard("resets"))),
        ..USUAL
    },
    Scenario {
        name: "queue-backend-stall",
        code: Code::QueueBackendStall,
        subject: DISK,
        severity: Severity::Error,
        place: Place::Lab,
        guest: Guest::Linux(
            "6.12",
            "echo ready; while :; do dd if=/dev/vda of=/dev/null bs=64k iflag=direct; done 2> /dev/null",
        ),
        setup: |stage| {
            let device = Mapped::new("vitrine-disk", 8, 0);
            stage.drive_at("disk", &device.path());
            stage.keep(device);
        },
        fault: |_| {
            // It reads by then.
            std::thread::sleep(Duration::from_secs(1));
            let from = std::time::Instant::now();
            let held = Suspended::device("vitrine-disk");
            // The host knows what it has read before.
            std::fs::write("/proc/sys/vm/drop_caches", "1").unwrap();
            Fault {
                from,
                ..Fault::held(held)
            }
        },
        threshold: Duration::from_secs(5),
        evidence: |found| {
            assert_eq!(
                found.number("in_flight"),
                1.0,
                "dd has one request at a time"
            );
            let tid = found.stage.thread("io-disk");
            assert_eq!(found.number("tid"), f64::from(tid));
            assert_eq!(
                found.stage.kernel_state(tid),
                "D",
                "the host's kernel has it"
            );
            let told = found.number("oldest_ns") / 1e6;
            since(found, "oldest_ms", told, 500.0)
        },
        ..USUAL
    },
    Scenario {
        name: "queue-rate-limited",
        code: Code::QueueRateLimited,
        subject: DISK,
        severity: Severity::Info,
        place: Place::Lab,
        guest: Guest::Linux(
            "6.12",
            "echo ready; while :; do dd if=/dev/vda of=/dev/null bs=64k iflag=direct; done 2> /dev/null",
        ),
        setup: |stage| stage.drive("disk"),
        fault: |stage| {
            limit(stage, RATE, 1000);
            Fault::now()
        },
        threshold: Duration::from_secs(2),
        evidence: |found| {
            // What the guest was given by then is no more than the limit allows.
            let told = found.number("limited_percent");
            let requests = || {
                found.stage.metric(
                    "vitrine_queue_requests_total{vm=\"scenario\",device=\"disk\",queue=\"0\"}",
                )
            };
            let (from, before) = (std::time::Instant::now(), requests());
            std::thread::sleep(Duration::from_secs(2));
            let (passed, after) = (from.elapsed().as_secs_f64(), requests());
            let most = f64::from(RATE) * (passed + 1.0) + 1.0;
            let given = after - before;
            assert!(given <= most, "{given} requests in {passed:.1} s");
            between(
                "limited_percent",
                told,
                20.0,
                100.0,
                "requests counted meanwhile",
            )
        },
        end: Some(|stage| limit(stage, 0, 0)),
        ..USUAL
    },
    Scenario {
        name: "drive-error",
        code: Code::DriveError,
        subject: "device/disk",
        severity: Severity::Error,
        place: Place::Lab,
        guest: Guest::Linux(
            "6.12",
            "echo ready; sleep 2; echo writing; while :; do dd if=/dev/zero of=/dev/vda bs=64k oflag=direct; sleep 0.3; done 2> /dev/null",
        ),
        setup: |stage| {
            let small = Small::new(1024);
            let path = small.0.join("disk");
            std::fs::File::create(&path)
                .unwrap()
                .set_len(8 << 20)
                .unwrap();
            stage.drive_at("disk", &path);
            stage.keep(small);
        },
        fault: |stage| Fault::since(stage.heard("writing").0),
        // First a MiB is written.
        threshold: Duration::from_secs(2),
        evidence: |found| {
            // ENOSPC, as whoever else writes there is told.
            let told = found.number("errno");
            assert_eq!(found.words("operation"), "write");
            assert!(found.number("sector") < 16384.0, "it is on the disk");
            let beside = found.stage.drive_path().with_file_name("beside");
            let own = std::fs::write(beside, [0; 65536]);
            let own = own.unwrap_err().raw_os_error().unwrap();
            between(
                "errno",
                told,
                own.into(),
                own.into(),
                "a write of our own to the file system",
            )
        },
        end: None,
        ..USUAL
    },
    Scenario {
        name: "queue-rx-starved",
        code: Code::QueueRxStarved,
        subject: "device/eth0/queue/0",
        place: Place::Lab,
        guest: Guest::Linux(
            "6.12",
            "ip link set eth0 up; sleep 1; ip link set eth0 down; echo ready; sleep 10000",
        ),
        setup: |stage| {
            let tap = Tap::new("vtscen", "10.111.7.1");
            stage.network("eth0", "vtscen");
            stage.keep(tap);
        },
        fault: |_| {
            let from = std::time::Instant::now();
            flood();
            Fault {
                from,
                ..Fault::now()
            }
        },
        // Its buffers are filled first.
        threshold: Duration::from_secs(3),
        evidence: |found| {
            let told = found.number("starved_ns") / 1e6;
            since(found, "starved_ms", told, 1500.0)
        },
        also: &[Code::QueueGuestNotReaping],
        end: None,
        ..USUAL
    },
];

/// Operations a second that the disk is limited to.
const RATE: u32 = 5;

/// Limits the disk's operations while the guest runs.
fn limit(stage: &Stage, size: u32, refill_ms: u32) {
    let ops = json!({"size": size, "refill_time": refill_ms});
    let change = json!({"drive_id": "disk", "rate_limiter": {"ops": ops}});
    let (status, text) = stage.daemon.ask("PATCH", "/drives/disk", &change);
    assert_eq!(status, 204, "{text}");
}

/// More packets than a queue has buffers, to a neighbour that is not there.
fn flood() {
    let mac = "06:00:ac:10:00:02";
    run(&[
        "ip",
        "neigh",
        "replace",
        "10.111.7.2",
        "lladdr",
        mac,
        "dev",
        "vtscen",
    ]);
    let socket = std::net::UdpSocket::bind("10.111.7.1:0").unwrap();
    for _ in 0..1000 {
        // What the tap cannot hold is lost.
        let _ = socket.send_to(&[0; 64], "10.111.7.2:9");
    }
}

/// The evidence says for how long, and by this clock it is that, or as much less.
fn since(found: &Found<'_>, name: &str, told: f64, less: f64) -> Checked {
    let since = found.at.duration_since(found.fault.from).as_secs_f64() * 1e3;
    // What the guest says takes a moment to this clock.
    between(name, told, since - less, since + 50.0, "this clock")
}
