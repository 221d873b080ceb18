//! Stock kernels whose CPU gets stuck in a module or in the kernel itself: what is said names the
//! function, wherever KASLR has put it. And stock kernels at work, of which nothing is said.

use std::time::{Duration, Instant};

use vmm::observe::verdict::{Code, Fact, Severity, Verdict};

use crate::harness::{Guest, Scratch, drive};
use crate::{PATIENCE, VERSIONS, linux, told};

fn rounds(guest: &Guest) -> u64 {
    guest.seen().number("thread/watcher", "loops", "")
}

fn text(verdict: &Verdict, name: &str) -> String {
    let fact = verdict.evidence.iter().find(|(there, _)| *there == name);
    match fact {
        Some((_, Fact::Text(text))) => text.clone(),
        other => panic!("{name}: {other:?} of {verdict:#?}"),
    }
}

fn number(verdict: &Verdict, name: &str) -> u64 {
    let fact = verdict.evidence.iter().find(|(there, _)| *there == name);
    match fact {
        Some((_, Fact::Number(number))) => *number,
        other => panic!("{name}: {other:?} of {verdict:#?}"),
    }
}

/// A guest that has told where the module's functions will not be: it is about to load it.
fn stuck(version: &str, how: &str) -> Guest {
    let script = format!(
        "
echo BASE=$(grep -w _stext /proc/kallsyms | cut -d' ' -f1)
echo STUCK=now
insmod /vitrine_stuck.ko how={how}
"
    );
    let guest = Guest::launch(linux(version, "", &script));
    guest.await_words("STUCK=now", PATIENCE);
    guest
}

/// Waits for the verdict with a function; gives it and how many rounds it took from now on.
fn await_verdict(guest: &Guest, wanted: Code) -> (Verdict, u64) {
    let (first, end) = (rounds(guest), Instant::now() + PATIENCE);
    loop {
        let standing = guest.vm.standing();
        let is_it = |one: &&Verdict| {
            let names = |(name, _): &(&str, Fact)| *name == "function";
            one.code == wanted && one.evidence.iter().any(names)
        };
        if let Some(found) = standing.verdicts.iter().find(is_it) {
            return (found.clone(), rounds(guest) - first);
        }
        let late = Instant::now() > end;
        assert!(!late, "{standing:#?}\n{}", guest.said());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_loop_with_interrupts_off_is_named_in_a_module_and_in_the_kernel() {
    for version in VERSIONS {
        for (how, functions) in [
            ("spin_irqs_off", &["vitrine_spin_irqs_off"][..]),
            (
                "lock_irqs_off",
                &["native_queued_spin_lock_slowpath", "_raw_spin_lock"],
            ),
            (
                "delay_irqs_off",
                &[
                    "delay_",
                    "__const_udelay",
                    "__delay",
                    "vitrine_delay",
                    "_udelay",
                ],
            ),
        ] {
            let guest = stuck(version, how);
            let (verdict, took) = await_verdict(&guest, Code::VcpuSpinIrqsOff);
            println!("{version} {how}: {took} rounds: {verdict:#?}");
            assert_eq!(verdict.severity, Severity::Error);
            assert_eq!(verdict.subject.as_str(), "vcpu/0");
            let function = text(&verdict, "function");
            assert!(
                functions.iter().any(|name| function.contains(name)),
                "{function}"
            );
            let stack = text(&verdict, "stack");
            if how == "spin_irqs_off" {
                assert!(function.ends_with("[vitrine_stuck]"), "{function}");
            } else {
                assert!(stack.contains("[vitrine_stuck]"), "{function}: {stack}");
            }
            assert!(stack.contains("init_module"), "{stack}");
            assert_eq!(number(&verdict, "interrupts_on"), 0);
            // A timer's interrupt waits.
            assert!(number(&verdict, "pending_vector") > 0);
            assert!(number(&verdict, "rip") > 0xFFFF_FFFF_8000_0000);
            // The threshold of five seconds, two, and the time of the module's loading.
            assert!(took <= 20, "{took} rounds");
            assert!(!told(&guest.said(), "BASE").starts_with("ffffffff81000000"));
            guest.stop();
        }
    }
}

#[test]
fn a_loop_that_takes_interrupts_is_named_in_a_module() {
    for version in VERSIONS {
        let guest = stuck(version, "spin");
        let (verdict, took) = await_verdict(&guest, Code::VcpuSpin);
        println!("{version}: {took} rounds: {verdict:#?}");
        assert_eq!(verdict.severity, Severity::Warning);
        let function = text(&verdict, "function");
        assert!(function.starts_with("vitrine_spin+"), "{function}");
        assert!(function.ends_with("[vitrine_stuck]"), "{function}");
        assert_eq!(number(&verdict, "interrupts_on"), 1);
        assert!(number(&verdict, "looks_alike") >= 5);
        guest.stop();
    }
}

const STUCK: [Code; 4] = [
    Code::VcpuDeadHalt,
    Code::VcpuSpinIrqsOff,
    Code::VcpuSpin,
    Code::VcpuNotStarted,
];

/// Fails when for so many rounds from now on one is said to be stuck.
fn assert_well(guest: &Guest, count: u64, what: &str) {
    let last = rounds(guest) + count;
    while rounds(guest) < last {
        let standing = guest.vm.standing();
        let wrong = standing.verdicts.iter().find(|v| STUCK.contains(&v.code));
        assert!(wrong.is_none(), "{what}: {wrong:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_cpu_that_linux_has_switched_off_is_not_dead() {
    for version in VERSIONS {
        let script = "
echo 0 > /sys/devices/system/cpu/cpu1/online
echo ONLINE=$(cat /sys/devices/system/cpu/online)
sleep 8
echo 1 > /sys/devices/system/cpu/cpu1/online
echo AGAIN=$(cat /sys/devices/system/cpu/online)
sleep 1000
";
        let mut spec = linux(version, "", script);
        spec.vcpus = 2;
        let guest = Guest::launch(spec);
        guest.await_words("ONLINE=", PATIENCE);
        assert_well(&guest, 7, version);
        let seen = guest.seen();
        let view = seen.0.section("sight/1").unwrap();
        println!(
            "{version}: {:?} {:?}",
            view.words("place"),
            view.words("stack")
        );
        let looks = seen.number("sight/1", "looks", "");
        guest.await_words("AGAIN=0-1", PATIENCE);
        assert_eq!(told(&guest.said(), "ONLINE"), "0");
        assert!(looks >= 2, "{looks}");
        guest.stop();
    }
}

#[test]
fn a_guest_at_work_or_idle_is_never_stuck() {
    // User space that computes, the kernel that zeroes memory, forks, a disk, and nothing at all.
    for (version, work) in [
        ("6.1", "while :; do :; done"),
        ("6.12", "dd if=/dev/zero of=/dev/null bs=64M"),
        ("6.1", "while :; do (true); done"),
        (
            "6.12",
            "while :; do dd if=/dev/vda of=/dev/null bs=1M; done",
        ),
        ("6.12", "sleep 1000"),
    ] {
        let scratch = Scratch::new();
        let mut spec = linux(version, "", &format!("echo WORKS\n{work}\n"));
        spec.drives
            .push(drive("disk", &scratch.disk("disk", 8 << 20, 1)));
        let guest = Guest::launch(spec);
        guest.await_words("WORKS", PATIENCE);
        assert_well(&guest, 15, work);
        let seen = guest.seen();
        let looks = seen.number("sight/0", "looks", "");
        let late = seen.number("sight/0", "late", "");
        println!("{version} {work}: {looks} looks, {late} late");
        // Every other round, and up to three of those that meet interrupts.
        assert!(looks <= 24, "{looks}");
        guest.stop();
    }
}
