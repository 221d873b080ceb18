//! vCPUs that do not go on: halted for good, in an endless loop, or never started.

use std::time::Duration;

use vmm::observe::verdict::{Code, Severity};

use crate::scenario::{Checked, Fault, Found, Guest, Place, Scenario, USUAL, between};
use crate::stage::Stage;

/// A guest of two CPUs whose first one gets stuck in the module, and whose second one then tells
/// where the kernel has its functions. The module is loaded twice: the first time from its file, so
/// that the second takes no time.
macro_rules! stuck_in {
    ($how:literal) => {
        concat!(
            "taskset -p 2 $$ > /dev/null\n",
            "insmod /vitrine_stuck.ko how=nowhere 2> /dev/null\n",
            "echo ready\n",
            "taskset 1 insmod /vitrine_stuck.ko how=",
            $how,
            " &\n",
            "while [ ! -d /sys/module/vitrine_stuck ]; do sleep 0.05; done\n",
            "echo loaded\n",
            // It takes long, and the host may have one CPU.
            "sleep 10\n",
            "grep -wE 'vitrine_spin|vitrine_spin_irqs_off' /proc/kallsyms\n",
            "echo told\n",
            "sleep 10000\n",
        )
    };
}

/// One of one CPU: of several, a CPU that waits for a lock halts. It tells where the functions are
/// before it gets stuck in one of them.
const LOCKED: &str = "
insmod /vitrine_stuck.ko how=nowhere 2> /dev/null
grep -wE '_raw_spin_lock|native_queued_spin_lock_slowpath' /proc/kallsyms
echo told
echo ready
echo loaded
insmod /vitrine_stuck.ko how=lock_irqs_off
";

pub const ALL: &[Scenario] = &[
    Scenario {
        name: "vcpu-dead-halt",
        code: Code::VcpuDeadHalt,
        severity: Severity::Error,
        guest: Guest::Zoo("print=ready dead_hlt"),
        fault: from_there,
        threshold: Duration::from_secs(2),
        // A halted CPU is at the next instruction, and a halt is one byte.
        evidence: |found| at(found, found.stage.address("at 0x") + 1),
        end: Some(paused),
        ..USUAL
    },
    Scenario {
        name: "vcpu-spin-irqs-off",
        code: Code::VcpuSpinIrqsOff,
        severity: Severity::Error,
        guest: Guest::Zoo("print=ready spin_held"),
        fault: from_there,
        threshold: Duration::from_secs(5),
        evidence: |found| {
            assert_eq!(found.number("interrupts_on"), 0.0);
            // The timer's, of the zoo.
            assert_eq!(found.number("pending_vector"), 40.0);
            at(found, found.stage.address("at 0x"))
        },
        end: Some(paused),
        ..USUAL
    },
    Scenario {
        name: "vcpu-spin",
        code: Code::VcpuSpin,
        guest: Guest::Zoo("print=ready spin_timer"),
        fault: from_there,
        threshold: Duration::from_secs(5),
        evidence: |found| {
            assert_eq!(found.number("interrupts_on"), 1.0);
            let here = found.stage.address("at 0x");
            // A look may find it in the timer's handler.
            let window = address(found, "rip_low")..=address(found, "rip_high");
            assert!(window.contains(&here), "{here:#x}: {:#}", found.verdict);
            Checked {
                told: format!("rip={:#x}..={:#x}", window.start(), window.end()),
                source: format!("{here:#x} (the guest's own word)"),
            }
        },
        end: Some(paused),
        ..USUAL
    },
    Scenario {
        name: "vcpu-spin-irqs-off-kernel",
        code: Code::VcpuSpinIrqsOff,
        severity: Severity::Error,
        place: Place::Lab,
        guest: Guest::Linux("6.12", LOCKED),
        fault: from_loaded,
        threshold: Duration::from_secs(5),
        evidence: |found| {
            assert!(found.words("stack").contains("[vitrine_stuck]"));
            let (name, _) = found.words("function").split_once('+').unwrap();
            let all = ["native_queued_spin_lock_slowpath", "_raw_spin_lock"];
            assert!(all.contains(&name), "{name}");
            in_function(found, name)
        },
        end: Some(paused),
        ..USUAL
    },
    Scenario {
        name: "vcpu-spin-irqs-off-module",
        code: Code::VcpuSpinIrqsOff,
        severity: Severity::Error,
        place: Place::Lab,
        guest: Guest::Linux("6.1", stuck_in!("spin_irqs_off")),
        setup: |stage| stage.vcpus(2),
        fault: from_loaded,
        threshold: Duration::from_secs(5),
        evidence: |found| in_function(found, "vitrine_spin_irqs_off"),
        end: Some(paused),
        ..USUAL
    },
    Scenario {
        name: "vcpu-spin-module",
        code: Code::VcpuSpin,
        place: Place::Lab,
        guest: Guest::Linux("6.12", stuck_in!("spin")),
        setup: |stage| stage.vcpus(2),
        fault: from_loaded,
        threshold: Duration::from_secs(5),
        evidence: |found| in_function(found, "vitrine_spin"),
        end: Some(paused),
        ..USUAL
    },
    Scenario {
        name: "vcpu-not-started",
        code: Code::VcpuNotStarted,
        subject: "vcpu/1",
        // The other one works.
        guest: Guest::Zoo("print=ready busy"),
        setup: |stage| stage.vcpus(2),
        fault: |stage| Fault::since(stage.heard("ready").0),
        threshold: Duration::from_secs(10),
        evidence: not_started,
        end: None,
        ..USUAL
    },
    Scenario {
        name: "guest-idle",
        code: Code::GuestIdle,
        subject: "vm",
        severity: Severity::Info,
        // A timer would wake it to a host CPU that it may have to wait for, and that is no idleness.
        guest: Guest::Zoo("print=ready hlt"),
        fault: |stage| Fault::since(stage.heard("ready").0),
        threshold: Duration::from_secs(10),
        evidence: idle,
        end: Some(paused),
        ..USUAL
    },
];

/// From when on the guest is at the place that it tells.
fn from_there(stage: &Stage) -> Fault {
    Fault::since(stage.heard("at 0x").0)
}

fn from_loaded(stage: &Stage) -> Fault {
    Fault::since(stage.heard("loaded").0)
}

/// A paused guest does nothing.
fn paused(stage: &Stage) {
    stage.set_state("Paused");
}

/// An address of the evidence: too large for a float.
#[track_caller]
fn address(found: &Found<'_>, name: &str) -> u64 {
    let value = found.verdict["evidence"][name].as_u64();
    value.unwrap_or_else(|| panic!("the evidence has no address {name}: {:#}", found.verdict))
}

/// That the vCPU is where the guest says.
#[track_caller]
fn at(found: &Found<'_>, here: u64) -> Checked {
    let rip = address(found, "rip");
    assert_eq!(rip, here, "{:#}", found.verdict);
    Checked {
        told: format!("rip={rip:#x}"),
        source: format!("{here:#x} (the guest's own word)"),
    }
}

/// That the function is named, and that it begins where the guest's own list of symbols says.
#[track_caller]
fn in_function(found: &Found<'_>, name: &str) -> Checked {
    found.stage.heard("told");
    let words = found.words("function");
    let (named, rest) = words.split_once("+0x").unwrap();
    assert_eq!(named, name);
    let digits = rest.split(|c: char| !c.is_ascii_hexdigit()).next().unwrap();
    let start = address(found, "rip") - u64::from_str_radix(digits, 16).unwrap();
    let all = found.stage.said();
    let mut symbols = all.iter().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (address, _, symbol) = (words.next()?, words.next()?, words.next()?);
        (symbol == name).then(|| u64::from_str_radix(address, 16).unwrap_or(0))
    });
    assert!(symbols.any(|symbol| symbol == start), "{start:#x}: {all:?}");
    Checked {
        told: words.to_owned(),
        source: format!("{start:#x} {name} (the guest's /proc/kallsyms)"),
    }
}

/// What the host's scheduler says of a vCPU that has never run, and of one that has.
fn not_started(found: &Found<'_>) -> Checked {
    assert_eq!(found.number("vcpus"), 2.0);
    assert_eq!(found.number("not_started"), 1.0);
    let [first, _] = found.stage.schedstat("vcpu-0");
    let [second, _] = found.stage.schedstat("vcpu-1");
    assert!(second < first, "by schedstat: {second} and {first} ns");
    let since = found.at.duration_since(found.fault.from).as_secs_f64() * 1e3;
    let told = found.number("ran_ns") / 1e6;
    // It ran a moment before it said so.
    let source = "this clock; by schedstat its thread has run for less than the other";
    between("ran_ms", told, since - 300.0, since + 1500.0, source)
}

/// The share of two seconds in which the vCPU's thread had no CPU and wanted none.
fn idle(found: &Found<'_>) -> Checked {
    let ([cpu, delay], start) = (found.stage.schedstat("vcpu-0"), std::time::Instant::now());
    std::thread::sleep(Duration::from_secs(2));
    let [cpu_now, delay_now] = found.stage.schedstat("vcpu-0");
    let awake = (cpu_now - cpu + delay_now - delay) as f64;
    let share = 100.0 - awake / start.elapsed().as_nanos() as f64 * 100.0;
    let told = found.number("halted_percent");
    let source = format!("asleep by schedstat: {share:.1}");
    between("halted_percent", told, share - 5.0, 100.1, &source)
}
