//! Each fault while somebody looks: what is told of it, and that the rest goes on.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::faults::{Fault, Told, all};
use super::{DEVICES, Transport, Victim};
use crate::daemon::program;

/// In which any question is answered, on a machine that is busy with something else, too.
const ANSWER: Duration = Duration::from_secs(30);

#[test]
fn every_device_behind_mmio_is_broken_in_every_way_and_works_again() {
    look_at_all(Transport::Mmio);
}

#[test]
fn every_device_behind_pci_is_broken_in_every_way_and_works_again() {
    look_at_all(Transport::Pci);
}

fn look_at_all(transport: Transport) {
    let faults = all(transport);
    let words: Vec<String> = faults
        .iter()
        .map(|fault| format!("hostile={} key", fault.name))
        .collect();
    let words = format!("quiet {} poweroff", words.join(" "));
    // What is broken is told with the next look, and no longer once it is mended.
    let policy = json!({"thresholds": {"raise_ms": 0, "clear_ms": 1}});
    let mut victim = Victim::boot(transport, &policy, &words);
    let mut told = 0;
    for fault in &faults {
        victim.await_words(&format!("hostile {} held\n", fault.name));
        told = one(&mut victim, transport, fault, told);
        if fault.name == faults[faults.len() - 1].name {
            is_quiet(&victim);
            is_logged_once(&victim);
        }
        victim.press();
    }
    let status = victim.daemon.finish();
    assert_eq!(status.code(), Some(0), "{}", victim.daemon.text("stderr"));
}

/// Looks at one fault, has it mended, and prints its lines. Gives the number of the last event.
fn one(victim: &mut Victim, transport: Transport, fault: &Fault, told: u64) -> u64 {
    let broken = fault.broken();
    let served = requests_of_the_good(victim);
    if broken.is_empty() {
        is_mended(victim);
    } else {
        is_told_as_broken(victim, fault, &broken);
    }
    let last = is_an_event(victim, fault, &broken, told);
    if fault.name == "loop" {
        is_known_to_the_doctor(victim, &broken);
    }
    // The drive beside them goes on.
    victim.until("the good drive's next request", || {
        requests_of_the_good(victim) > served
    });
    victim.press();
    victim.await_words(&format!("hostile {} works\n", fault.name));
    is_mended(victim);
    for (device, queues) in DEVICES {
        let count = broken.iter().filter(|(name, _)| *name == device).count();
        let told = fault.told.map_or("nothing", |told| told.verdict);
        let told = if count > 0 { told } else { "nothing" };
        println!(
            "{device:8} {:4} {:17} broken {count} of {queues}: {told}; works again",
            transport.name(),
            fault.name
        );
    }
    last
}

/// Asks, and the answer is in time.
fn timely(victim: &Victim, path: &str) -> Value {
    let begun = Instant::now();
    let answer = victim.get(path);
    let took = begun.elapsed();
    assert!(took < ANSWER, "{path} took {took:?}");
    answer
}

fn requests_of_the_good(victim: &Victim) -> u64 {
    assert_eq!(timely(victim, "/")["state"], "Running");
    let seen = timely(victim, "/observe");
    let mut queues = seen["queues"].as_array().unwrap().iter();
    let good = queues.find(|queue| queue["device"] == "good").unwrap();
    assert_eq!(good["broken"], 0, "{good}");
    good["completions"].as_u64().unwrap()
}

type Broken = BTreeMap<(String, u16), String>;

/// What health says of broken queues: the reason by device and queue.
fn verdicts(health: &Value) -> Broken {
    let verdicts = health["verdicts"].as_array().unwrap().iter();
    let broken = verdicts.filter(|verdict| verdict["code"] == "queue-broken");
    broken
        .map(|verdict| {
            let subject = verdict["subject"].as_str().unwrap();
            let parts: Vec<&str> = subject.split('/').collect();
            assert_eq!((parts[0], parts[2]), ("device", "queue"), "{verdict}");
            let reason = verdict["evidence"]["reason"].as_str().unwrap();
            let key = (parts[1].to_owned(), parts[3].parse().unwrap());
            (key, reason.to_owned())
        })
        .collect()
}

fn expected(broken: &[(&str, u16)], told: Option<Told>) -> Broken {
    let reason = |told: Told| told.verdict.to_owned();
    let reason = told.map_or_else(String::new, reason);
    let keys = broken
        .iter()
        .map(|(device, queue)| ((*device).to_owned(), *queue));
    keys.map(|key| (key, reason.clone())).collect()
}

/// Health names all that is broken, and why, and nothing else.
fn is_told_as_broken(victim: &Victim, fault: &Fault, broken: &[(&str, u16)]) {
    let expected = expected(broken, fault.told);
    let what = format!("the verdicts of {}: {expected:?}", fault.name);
    victim.until(&what, || {
        verdicts(&timely(victim, "/observe/health")) == expected
    });
}

/// There is an event for each of the queues, and none for others.
fn is_an_event(victim: &Victim, fault: &Fault, broken: &[(&str, u16)], since: u64) -> u64 {
    let mut last = since;
    let mut left: Vec<(String, String)> = broken
        .iter()
        .map(|(device, queue)| {
            let begin = format!("the guest broke queue {queue}: ");
            ((*device).to_owned(), begin)
        })
        .collect();
    let end = Instant::now() + crate::PATIENCE;
    loop {
        let path = format!("/observe/events?since={last}");
        let (status, text) = victim.daemon.ask("GET", &path, &Value::Null);
        assert_eq!(status, 200, "{text}");
        for line in text.lines() {
            let event: Value = serde_json::from_str(line).unwrap();
            last = event["number"]
                .as_u64()
                .unwrap_or_else(|| panic!("{event}"));
            let (device, detail) = (event["device"].as_str(), event["detail"].as_str());
            let Some((device, detail)) = device.zip(detail) else {
                continue;
            };
            let known = |(name, begin): &(String, String)| {
                name == device && detail.starts_with(begin.as_str())
            };
            let place = left.iter().position(known);
            let place = place.unwrap_or_else(|| panic!("during {}: {event}", fault.name));
            left.remove(place);
            let words = fault.told.map_or("", |told| told.event);
            assert!(detail.contains(words), "{words:?}: {event}");
        }
        if left.is_empty() {
            return last;
        }
        assert!(
            Instant::now() < end,
            "{}: no event for {left:?}",
            fault.name
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// `vitrine doctor` says the same.
fn is_known_to_the_doctor(victim: &Victim, broken: &[(&str, u16)]) {
    let output = Command::new(program())
        .args(["doctor", "victim"])
        .env("XDG_RUNTIME_DIR", victim.daemon.scratch.path(""))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(4), "{said}");
    for (device, queue) in broken {
        let words = format!("the guest broke the ring of {device} queue {queue}");
        // Behind the number an interface's queue has its name, as in `eth0 queue 1 (tx0)`.
        let is_told = said
            .split(&words)
            .skip(1)
            .any(|rest| rest.starts_with(": ") || rest.starts_with(" ("));
        assert!(is_told, "{words:?} is not in {said}");
    }
}

fn is_mended(victim: &Victim) {
    let seen = timely(victim, "/observe");
    for queue in seen["queues"].as_array().unwrap() {
        assert!(queue["broken_since_ns_ago"].is_null(), "{queue}");
    }
}

/// Each event of a device is one line of the log.
fn is_logged_once(victim: &Victim) {
    let (_, events) = victim.daemon.ask("GET", "/observe/events", &Value::Null);
    let words = "the guest broke queue";
    let events = events.matches(words).count();
    let lines = || victim.daemon.text("stderr").matches(words).count();
    victim.until("a line for each event", || lines() >= events);
    assert_eq!(lines(), events);
}

/// Nothing is left of what was begun or broken.
fn is_quiet(victim: &Victim) {
    victim.until("no verdict of a broken queue", || {
        verdicts(&timely(victim, "/observe/health")).is_empty()
    });
    victim.until("the end of all requests", || {
        let seen = timely(victim, "/observe");
        let mut queues = seen["queues"].as_array().unwrap().iter();
        queues.all(|queue| queue["in_flight"] == 0 && queue["in_flight_since_ns_ago"].is_null())
    });
}
