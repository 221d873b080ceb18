//! Memory of the host and of the VMM's cgroup. All in the lab.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vmm::observe::verdict::{Code, Severity};

use crate::block::{Mapped, Swap};
use crate::harness::cgroup::Cgroup;
use crate::scenario::{Fault, Guest, Place, Scenario, Seen, USUAL, between};
use crate::stage::{PATIENCE, Stage};

/// Memory that the VMM may use where it is limited.
const LIMIT_BYTES: u64 = 128 << 20;

/// Takes a megabyte a second or so, without end.
const LEAKS: &str = "
echo ready
while :; do dd if=/dev/zero bs=256k count=1 2> /dev/null; sleep 0.2; done >> /run/more
";

/// Fills memory without end, more slowly than the watcher looks.
const FILLS: &str = "
dd if=/dev/zero of=/run/first bs=1M count=32 2> /dev/null
echo ready
while :; do dd if=/dev/zero bs=512k count=1 2> /dev/null; sleep 0.1; done >> /run/more
";

pub const ALL: &[Scenario] = &[
    Scenario {
        name: "host-swapping-guest",
        code: Code::HostSwappingGuest,
        subject: "memory",
        place: Place::Lab,
        guest: Guest::Linux(
            "6.12",
            "dd if=/dev/zero of=/run/held bs=1M count=96; echo ready; sleep 10000",
        ),
        setup: |stage| {
            stage.keep(Swap::new(256, 0));
            stage.cgroup();
        },
        fault: |stage| {
            // The kernel is asked to take memory back; there is no limit and no pressure.
            let cgroup = stage.cgroup();
            let from = Instant::now();
            let moved = cgroup.try_write("memory.reclaim", "64M");
            assert!(moved.is_ok() || swapped(cgroup) > 32 << 20, "{moved:?}");
            Fault {
                from,
                ..Fault::now()
            }
        },
        evidence: |found| {
            let told = found.number("swapped_bytes") / 1048576.0;
            let source = swapped(found.stage.cgroup()) as f64 / 1048576.0;
            let name = format!("memory.swap.current: {source:.0}");
            between(
                "swapped_mib",
                told,
                source * 0.7 - 1.0,
                source * 1.3 + 1.0,
                &name,
            )
        },
        also: &[Code::VcpuHostFault, Code::HostMemoryPressure],
        end: None,
        ..USUAL
    },
    Scenario {
        name: "vcpu-host-fault",
        code: Code::VcpuHostFault,
        or_worse: true,
        place: Place::Lab,
        // With interrupts off: else KVM lets the guest go on, or halt, while the page comes.
        guest: Guest::Zoo("memtouch=96M print=ready loop_memtouch=96M"),
        setup: |stage| {
            stage.keep(Swap::new(256, 20));
            stage.cgroup();
        },
        fault: |stage| Fault::held(Reclaims::of(stage)),
        evidence: |found| {
            let share = asleep(found.stage);
            let source = format!("not on a CPU, not waiting for one, by schedstat: {share:.0}");
            between(
                "fault_percent",
                found.number("fault_percent"),
                20.0,
                share * 1.5,
                &source,
            )
        },
        cause: Some(Code::HostSwappingGuest),
        also: &[
            Code::HostMemoryPressure,
            Code::VcpuSpin,
            Code::VcpuSpinIrqsOff,
        ],
        end: None,
        ..USUAL
    },
    Scenario {
        name: "host-memory-pressure",
        code: Code::HostMemoryPressure,
        subject: "host",
        place: Place::Lab,
        guest: Guest::Linux("6.12", FILLS),
        setup: |stage| {
            stage.memory(512);
            stage.cgroup();
        },
        fault: |stage| {
            stage
                .cgroup()
                .write("memory.high", &(32_u64 << 20).to_string());
            // From when it is met: before, nobody waits.
            let end = Instant::now() + PATIENCE;
            while pressure_us() == 0 {
                assert!(Instant::now() < end, "memory.high holds nobody up");
                std::thread::sleep(Duration::from_millis(2));
            }
            Fault::now()
        },
        // It grows by and by: some seconds go until it is a tenth of the time.
        threshold: Duration::from_secs(4),
        evidence: |found| {
            let (before, start) = (pressure_us(), Instant::now());
            std::thread::sleep(Duration::from_secs(2));
            let share =
                (pressure_us() - before) as f64 / start.elapsed().as_micros() as f64 * 100.0;
            let source = format!("/proc/pressure/memory: {share:.0}");
            between(
                "full_percent",
                found.number("full_percent"),
                10.0,
                101.0,
                &source,
            )
        },
        end: Some(|stage| stage.cgroup().write("memory.high", "max")),
        ..USUAL
    },
    Scenario {
        name: "vmm-oom-risk",
        code: Code::VmmOomRisk,
        subject: "vmm",
        or_worse: true,
        place: Place::Lab,
        guest: Guest::Linux("6.12", LEAKS),
        setup: |stage| {
            stage.memory(512);
            stage.cgroup().without_swap();
        },
        fault: |stage| {
            // A minute of samples without the boot in it is a trend.
            std::thread::sleep(Duration::from_secs(65));
            let cgroup = stage.cgroup();
            let limit = used(cgroup) + (60 << 20);
            cgroup.write("memory.max", &limit.to_string());
            Fault::now()
        },
        evidence: |found| {
            let cgroup = found.stage.cgroup();
            let (before, start) = (used(cgroup), Instant::now());
            std::thread::sleep(Duration::from_secs(6));
            let (after, seconds) = (used(cgroup), start.elapsed().as_secs_f64());
            let per_second = after.saturating_sub(before) as f64 / seconds;
            let left = (found.number("max_bytes") - before as f64) / per_second;
            let source = format!("memory.max and memory.current: {left:.0}");
            let told = found.number("seconds_left");
            between("seconds_left", told, left * 0.5, left * 2.0, &source)
        },
        end: Some(|stage| stage.cgroup().write("memory.max", "max")),
        ..USUAL
    },
    Scenario {
        name: "vmm-oom-limit",
        code: Code::VmmOomRisk,
        subject: "vmm",
        severity: Severity::Error,
        place: Place::Lab,
        guest: Guest::Linux(
            "6.12",
            "dd if=/dev/zero of=/run/held bs=1M count=96; echo ready; sleep 10000",
        ),
        setup: |stage| {
            let device = Mapped::new("vitrine-pages", 16, 0);
            stage.keep(device);
            stage.cgroup().without_swap();
        },
        fault: |stage| {
            let cgroup = stage.cgroup();
            let reader = CacheReader::of("/dev/mapper/vitrine-pages", cgroup);
            // What it needs itself is there by then.
            std::thread::sleep(Duration::from_secs(2));
            let needed = used(cgroup).saturating_sub(page_cache(cgroup));
            cgroup.write("memory.max", &(needed + needed / 50).to_string());
            Fault::held(reader)
        },
        evidence: |found| {
            let cgroup = found.stage.cgroup();
            assert_eq!(cgroup.number("memory.events", "oom_kill"), 0);
            let max: f64 = cgroup.read("memory.max").trim().parse().unwrap();
            assert_eq!(found.number("max_bytes"), max);
            // Until now it was met more often.
            let source = cgroup.number("memory.events", "max") as f64;
            let told = found.number("limit_met");
            between("limit_met", told, 1.0, source, "max in memory.events")
        },
        end: Some(|stage| stage.cgroup().write("memory.max", "max")),
        ..USUAL
    },
    Scenario {
        name: "vmm-oom-killed",
        code: Code::VmmOomKilled,
        subject: "vmm",
        severity: Severity::Error,
        place: Place::Lab,
        guest: Guest::Linux("6.12", FILLS),
        setup: |stage| {
            stage.memory(512);
            let cgroup = stage.cgroup();
            cgroup.without_swap();
            cgroup.write("memory.max", &LIMIT_BYTES.to_string());
        },
        fault: |stage| Fault::since(stage.ended()),
        threshold: Duration::ZERO,
        evidence: |found| {
            let kills = found.stage.cgroup().number("memory.events", "oom_kill");
            assert_eq!(kills, 1, "the kernel's count of kills");
            let told = found.number("max_bytes");
            let limit = LIMIT_BYTES as f64;
            between(
                "max_bytes",
                told,
                limit,
                limit,
                "memory.max, and one oom_kill in memory.events",
            )
        },
        end: None,
        seen: Seen::PostMortem,
        ..USUAL
    },
];

fn swapped(cgroup: &Cgroup) -> u64 {
    cgroup.read("memory.swap.current").trim().parse().unwrap()
}

fn used(cgroup: &Cgroup) -> u64 {
    cgroup.read("memory.current").trim().parse().unwrap()
}

/// Page cache of files in it, which the kernel takes back when it has to.
fn page_cache(cgroup: &Cgroup) -> u64 {
    let files = ["inactive_file", "active_file"];
    let of = |name| cgroup.number("memory.stat", name);
    files.into_iter().map(of).sum()
}

/// Reads a device again and again, in the VMM's cgroup: page cache that meets the cgroup's limit and
/// makes room for itself, so that nobody is killed.
struct CacheReader(Child);

impl CacheReader {
    fn of(device: &str, cgroup: &Cgroup) -> CacheReader {
        let script = format!("while :; do cat {device} > /dev/null; done");
        let mut command = Command::new("sh");
        let command = command.args(["-c", &script]).stdin(Stdio::null());
        let child = command.spawn().unwrap();
        cgroup.enter(child.id());
        CacheReader(child)
    }
}

impl Drop for CacheReader {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Time in which all tasks of the host waited for memory.
fn pressure_us() -> u64 {
    let text = std::fs::read_to_string("/proc/pressure/memory").unwrap();
    let line = text.lines().find(|line| line.starts_with("full")).unwrap();
    let (_, total) = line.rsplit_once("total=").unwrap();
    total.parse().unwrap()
}

/// The share of two seconds in which the vCPU neither had a CPU nor waited for one.
fn asleep(stage: &Stage) -> f64 {
    let ([cpu, delay], start) = (stage.schedstat("vcpu-0"), Instant::now());
    std::thread::sleep(Duration::from_secs(2));
    let [cpu_now, delay_now] = stage.schedstat("vcpu-0");
    let awake = (cpu_now - cpu + delay_now - delay) as f64;
    100.0 - awake / start.elapsed().as_nanos() as f64 * 100.0
}

/// Has the kernel take the VMM's memory back, again and again.
struct Reclaims {
    goes_on: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Reclaims {
    fn of(stage: &Stage) -> Reclaims {
        let path = stage.cgroup().path("memory.reclaim");
        let goes_on = Arc::new(AtomicBool::new(true));
        let own = Arc::clone(&goes_on);
        let thread = std::thread::spawn(move || {
            while own.load(Ordering::Relaxed) {
                // It takes what it can, and says when that is less.
                let _ = std::fs::write(&path, "24M");
                std::thread::sleep(Duration::from_millis(500));
            }
        });
        Reclaims {
            goes_on,
            thread: Some(thread),
        }
    }
}

impl Drop for Reclaims {
    fn drop(&mut self) {
        self.goes_on.store(false, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
