//! Guests whose vCPUs do not go on, and guests that only look so: what is said of them, and when.
//! Time is told in the watcher's rounds, of which there is one a second.

use std::time::{Duration, Instant};

use vmm::observe::verdict::{Code, Fact, Severity, Verdict};
use vmm::{Judging, VmCommand, VmSpec};

use crate::harness::Guest;
use crate::inspect::code;
use crate::{PATIENCE, zoo};

const S: u64 = 1_000_000_000;
const HLT: u8 = 0xF4;

fn verdicts(guest: &Guest) -> Vec<Verdict> {
    guest.vm.standing().verdicts.clone()
}

fn rounds(guest: &Guest) -> u64 {
    guest.seen().number("thread/watcher", "loops", "")
}

fn number(verdict: &Verdict, name: &str) -> u64 {
    let fact = verdict.evidence.iter().find(|(there, _)| *there == name);
    match fact {
        Some((_, Fact::Number(number))) => *number,
        other => panic!("{name}: {other:?} of {verdict:#?}"),
    }
}

/// Waits for the verdict; gives it and how many rounds it took from now on.
fn await_verdict(guest: &Guest, wanted: Code) -> (Verdict, u64) {
    let (first, end) = (rounds(guest), Instant::now() + PATIENCE);
    loop {
        let all = verdicts(guest);
        if let Some(found) = all.iter().find(|verdict| verdict.code == wanted) {
            return (found.clone(), rounds(guest) - first);
        }
        assert!(Instant::now() < end, "no {wanted:?} but {all:#?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What is said of the guest in so many rounds, but for what a busy machine does to it.
fn said_in(guest: &Guest, count: u64) -> Vec<Code> {
    let last = rounds(guest) + count;
    let mut said = Vec::new();
    while rounds(guest) < last {
        for verdict in verdicts(guest) {
            if verdict.code != Code::VcpuStarved && !said.contains(&verdict.code) {
                said.push(verdict.code);
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    said
}

/// The address that the guest says it is at.
fn told(guest: &Guest) -> u64 {
    guest.await_words("at 0x", PATIENCE);
    // The line may be half said.
    std::thread::sleep(Duration::from_millis(100));
    let said = guest.said();
    let at = said.lines().find_map(|line| line.strip_prefix("at 0x"));
    u64::from_str_radix(at.unwrap().trim(), 16).unwrap()
}

#[test]
fn a_halt_with_interrupts_off_is_found_within_two_seconds_of_its_threshold() {
    let guest = Guest::launch(zoo("print=ready cli_hlt"));
    guest.await_words("ready", PATIENCE);
    let (verdict, took) = await_verdict(&guest, Code::VcpuDeadHalt);
    println!("{took} rounds: {verdict:#?}");
    assert_eq!(verdict.severity, Severity::Error);
    assert_eq!(verdict.subject.as_str(), "vcpu/0");
    assert_eq!(code(number(&verdict, "rip"))[0], HLT);
    assert_eq!(number(&verdict, "interrupts_on"), 0);
    assert_eq!(number(&verdict, "timer_armed"), 0);
    assert!(number(&verdict, "halted_ns") >= 2 * S);
    // The threshold of two seconds, and two.
    assert!(took <= 5, "{took} rounds");
    // It is the same as long as it lasts, and looked into seldom.
    assert_eq!(said_in(&guest, 12), [Code::VcpuDeadHalt]);
    let looks = guest.seen().number("sight/0", "looks", "");
    assert!((2..=16).contains(&looks), "{looks}");
    guest.stop();
}

#[test]
fn a_loop_with_interrupts_off_is_found_with_its_place_and_what_waits() {
    for (words, pending) in [("spin_held", 40), ("print=at spin", 0)] {
        let guest = Guest::launch(zoo(words));
        guest.await_words("at", PATIENCE);
        let (verdict, took) = await_verdict(&guest, Code::VcpuSpinIrqsOff);
        println!("{took} rounds: {verdict:#?}");
        assert_eq!(verdict.severity, Severity::Error);
        let rip = number(&verdict, "rip");
        if pending != 0 {
            assert_eq!(rip, told(&guest));
        }
        assert_eq!(code(rip)[1..], [0xEB, 0xFE]);
        assert_eq!(
            (number(&verdict, "rip_low"), number(&verdict, "rip_high")),
            (rip, rip)
        );
        assert_eq!(number(&verdict, "pending_vector"), pending);
        assert_eq!(number(&verdict, "interrupts_on"), 0);
        assert_eq!(number(&verdict, "changed_registers"), 0);
        assert!(number(&verdict, "looks_alike") >= 3);
        // The threshold of five seconds, and two.
        assert!(took <= 8, "{took} rounds");
        guest.stop();
    }
}

#[test]
fn a_loop_that_takes_interrupts_is_a_warning_with_its_place() {
    let guest = Guest::launch(zoo("spin_timer"));
    let at = told(&guest);
    let (verdict, took) = await_verdict(&guest, Code::VcpuSpin);
    println!("{took} rounds: {verdict:#?}");
    assert_eq!(verdict.severity, Severity::Warning);
    let window = number(&verdict, "rip_low")..=number(&verdict, "rip_high");
    assert!(window.contains(&at), "{at:#x} {window:x?}");
    assert_eq!(number(&verdict, "interrupts_on"), 1);
    assert!(number(&verdict, "looks_alike") >= 5);
    assert!(guest.seen().number("kvm_vcpu/0", "total", "irq_injections") > 1000);
    guest.stop();
}

#[test]
fn a_paused_guest_is_not_stuck_and_is_found_again_when_it_goes_on() {
    let guest = Guest::launch(zoo("print=ready cli_hlt"));
    guest.await_words("ready", PATIENCE);
    await_verdict(&guest, Code::VcpuDeadHalt);
    guest.command(VmCommand::Pause);
    await_verdict(&guest, Code::Paused);
    // Until what is gone is cleared.
    said_in(&guest, 5);
    assert_eq!(said_in(&guest, 3), [Code::Paused]);
    guest.command(VmCommand::Resume);
    await_verdict(&guest, Code::VcpuDeadHalt);
    guest.stop();
}

#[test]
fn guests_that_wait_or_work_are_not_stuck() {
    // Halts longer than the thresholds, a timer or nothing at all armed; work with interrupts off
    // in one instruction.
    for words in ["naps=3500", "naps=400", "hlt", "busy"] {
        let guest = Guest::launch(zoo(words));
        let said = said_in(&guest, 13);
        println!("{words}: {said:?}");
        assert!(
            said.iter().all(|code| *code == Code::GuestIdle),
            "{words}: {said:?}"
        );
        if words == "naps=3500" || words == "hlt" {
            let armed = guest.seen().number("sight/0", "timer_armed", "");
            assert_eq!(armed, u64::from(words == "naps=3500"));
            let looks = guest.seen().number("sight/0", "looks", "");
            assert!((1..=5).contains(&looks), "{words}: {looks}");
            // At once, if no other guest was in the way meanwhile.
            await_verdict(&guest, Code::GuestIdle);
        }
        guest.stop();
    }
}

fn of_two(words: &str) -> VmSpec {
    let mut spec = zoo(words);
    spec.vcpus = 2;
    spec
}

#[test]
fn a_vcpu_that_is_never_started_is_told_after_ten_seconds() {
    for (words, severity) in [("", Severity::Warning), ("maxcpus=1", Severity::Info)] {
        let mut spec = of_two("naps=300");
        let cmdline = spec.boot.cmdline.unwrap();
        spec.boot.cmdline = Some(format!("{words} {cmdline}"));
        let guest = Guest::launch(spec);
        let (verdict, took) = await_verdict(&guest, Code::VcpuNotStarted);
        println!("{took} rounds: {verdict:#?}");
        assert_eq!(
            (verdict.severity, verdict.subject.as_str()),
            (severity, "vcpu/1")
        );
        assert_eq!(number(&verdict, "not_started"), 1);
        assert!(number(&verdict, "ran_ns") >= 10 * S);
        assert!((8..=13).contains(&took), "{took} rounds");
        guest.stop();
    }
}

#[test]
fn a_guest_that_may_not_be_looked_into_is_not() {
    let spec = zoo("print=ready cli_hlt");
    spec.limits.set(Judging {
        look_into_vcpus: false,
        ..Judging::default()
    });
    let guest = Guest::launch(spec);
    guest.await_words("ready", PATIENCE);
    assert_eq!(said_in(&guest, 6), []);
    let seen = guest.seen();
    assert_eq!(seen.number("sight/0", "looks", ""), 0);
    assert_eq!(seen.number("sight/0", "suspicion", ""), 1);
    assert_eq!(seen.number("vcpu/0", "inspections", ""), 0);
    guest.stop();
}
