//! All faults again and again, as fast as the guest can: Vitrine answers meanwhile, and takes no more
//! memory and no more room in the log than at the beginning.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{DEVICES, MEMORY, Transport, Victim};

/// First so many.
const WARM: u64 = 1000;
const ROUNDS: u64 = 10_000;
/// Memory that may come to it for other reasons: 52 bytes a round would be more.
const MARGIN_KIB: u64 = 512;
/// And for each event, until the oldest make room.
const EVENT_KIB: u64 = 1;
/// Of each queue, told in a row, and then one a second.
const BURST: u64 = 30;
/// For a machine that emulates another one.
const LONG: Duration = Duration::from_secs(600);

#[test]
fn ten_thousand_broken_rings_behind_mmio_leave_memory_and_log_as_they_were() {
    storm(Transport::Mmio);
}

#[test]
fn ten_thousand_broken_rings_behind_pci_leave_memory_and_log_as_they_were() {
    storm(Transport::Pci);
}

fn storm(transport: Transport) {
    let words = format!("quiet hostile_storm={WARM} key hostile_storm={ROUNDS} key poweroff");
    let mut victim = Victim::boot(transport, &json!({}), &words);
    let begun = Instant::now();
    await_storm(&victim, WARM);
    let (before, events) = (resident_kib(&victim), events(&victim));
    victim.press();
    await_storm(&victim, ROUNDS);
    let (after, broken) = (resident_kib(&victim), broken(&victim));
    println!(
        "{}: {before} KiB before, {after} KiB after",
        transport.name()
    );
    // Two of the 22 ways leave some devices whole. All others were counted, and not all were told.
    assert!(broken >= (WARM + ROUNDS) * 7 / 8, "{broken}");
    let queues: u64 = DEVICES.iter().map(|(_, queues)| u64::from(*queues)).sum();
    let told = self::events(&victim);
    let margin = MARGIN_KIB + (told - events) * EVENT_KIB;
    assert!(after < before + margin, "{before} KiB, then {after} KiB");
    let most = queues * (BURST + begun.elapsed().as_secs() + 1);
    assert!(
        told <= most && told < broken,
        "{told} of {broken} events, {most}"
    );
    assert!(told > events, "the guest is told of to the end");
    victim.press();
    let status = victim.daemon.finish();
    assert_eq!(status.code(), Some(0), "{}", victim.daemon.text("stderr"));
}

/// Waits for its end, and asks meanwhile.
fn await_storm(victim: &Victim, rounds: u64) {
    let words = format!("hostile_storm ok {rounds}\n");
    let end = Instant::now() + LONG;
    while !victim.said().contains(&words) {
        assert_eq!(victim.get("/")["state"], "Running");
        let seen = victim.get("/observe");
        assert!(seen["queues"].as_array().is_some());
        let said = victim.said();
        assert!(!said.contains("failed\n") && Instant::now() < end, "{said}");
        std::thread::sleep(Duration::from_millis(200));
    }
    let seen = victim.get("/observe");
    for queue in seen["queues"].as_array().unwrap() {
        assert_eq!(queue["in_flight"], 0, "{queue}");
    }
}

/// Times that a ring was broken.
fn broken(victim: &Victim) -> u64 {
    let seen = victim.get("/observe");
    let queues = seen["queues"].as_array().unwrap().iter();
    queues.map(|queue| queue["broken"].as_u64().unwrap()).sum()
}

/// Lines of the log that tell of a broken ring: one for each event.
fn events(victim: &Victim) -> u64 {
    let log = victim.daemon.text("stderr");
    log.matches("the guest broke queue").count() as u64
}

/// Memory of the process in the host's, without the guest's.
fn resident_kib(victim: &Victim) -> u64 {
    let path = format!("/proc/{}/smaps", victim.daemon.child.id());
    let text = fs::read_to_string(path).unwrap();
    let (mut resident, mut guest, mut size) = (0, 0, 0);
    for line in text.lines() {
        let number = || line.split_whitespace().nth(1)?.parse::<u64>().ok();
        match line.split(':').next() {
            Some("Size") => size = number().unwrap(),
            Some("Rss") if size == MEMORY << 10 => guest += number().unwrap(),
            Some("Rss") => resident += number().unwrap(),
            _ => {}
        }
    }
    assert!(guest > 0 && resident > 0, "the guest's memory is not found");
    resident
}
