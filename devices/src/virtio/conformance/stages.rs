//! That what is counted at each stage of a request fits together, on every device.

use std::time::Instant;

use super::*;

/// What was counted so far that may never go back.
fn counted(subject: &Subject) -> Vec<u64> {
    let seen = subject.seen();
    let device = &subject.driver.seen.device;
    let mut all = vec![
        seen.kicks.value(),
        seen.requests.value(),
        seen.completions.value(),
        seen.interrupts.value(),
        seen.kicks_suppressed.value(),
        seen.last_interrupt_at.value(),
    ];
    let stages = [
        &seen.kick_to_pop,
        &seen.service,
        &seen.done_to_interrupt,
        &seen.interrupt_to_reclaim,
    ];
    for histogram in stages.into_iter().chain(&device.latency) {
        all.extend([histogram.count(), histogram.sum(), histogram.max()]);
    }
    all
}

/// Serves some requests in batches.
fn work(machine: &Machine, subject: &mut Subject, batches: &[u16]) {
    for batch in batches {
        subject.send(usize::from(*batch));
        subject.driver.kick(subject.queue);
        let used = subject.driver.wait_used(subject.queue, *batch);
        assert_eq!(used.len(), usize::from(*batch));
        subject.drain();
    }
    subject.driver.settle(&machine.thread);
}

/// Rounds of the I/O thread's loop, as the black box tells.
fn loops(machine: &Machine) -> u64 {
    let file = machine.black_box.file().unwrap();
    let reader = observe::reader::Reader::from_file(file, "anonymous".into()).unwrap();
    let snapshot = reader.snapshot().unwrap();
    let mut sections = snapshot.sections.iter();
    let thread = sections.find(|section| section.name == "thread/io-test");
    thread.unwrap().counter("loops").unwrap()
}

#[test]
fn every_request_is_counted_once_at_each_stage() {
    for features in [0, F_EVENT_IDX] {
        each(|machine, mut subject| {
            subject.driver.start_plain(features);
            subject.driver.settle(&machine.thread);
            work(machine, &mut subject, &[1, 3, 4]);
            let seen = subject.seen();
            assert_eq!((seen.requests.value(), seen.completions.value()), (8, 8));
            assert_eq!(seen.service.count(), 8);
            let kicked = seen.kick_to_pop.count();
            assert!(kicked >= 1);
            assert_eq!(kicked + seen.kicks_suppressed.value(), 8);
            assert_eq!(seen.done_to_interrupt.count(), seen.interrupts.value());
            assert!(seen.interrupts.value() >= 1);
            assert!(seen.interrupt_to_reclaim.count() <= seen.interrupts.value());
            assert_ne!(seen.last_interrupt_at.value(), 0);
            let device = &subject.driver.seen.device;
            let rows = device.operations.iter().zip(&device.latency);
            for (row, latency) in rows {
                assert_eq!(latency.count(), row.count.value());
                assert_eq!(latency.sum(), row.service_ns.value());
            }
            let latencies = device.latency.iter().map(observe::Histogram::count);
            assert_eq!(latencies.sum::<u64>(), 8);
        });
    }
}

#[test]
fn a_guest_that_goes_on_is_seen_to_reclaim() {
    each(|machine, mut subject| {
        subject.driver.start_plain(0);
        // Not by way of a pause, after which interrupts before it are not followed.
        for _ in 0..4 {
            subject.send(1);
            subject.driver.kick(subject.queue);
            subject.driver.wait_used(subject.queue, 1);
            subject.drain();
            let before = subject.seen().interrupts.value();
            wait_for("the interrupt", || {
                subject.seen().interrupts.value() >= before.max(1)
            });
        }
        subject.driver.settle(&machine.thread);
        let seen = subject.seen();
        let reclaimed = seen.interrupt_to_reclaim.count();
        assert!((1..seen.interrupts.value()).contains(&reclaimed));
    });
}

#[test]
fn a_reset_ends_what_is_so_and_nothing_that_was_counted_goes_back() {
    each(|machine, mut subject| {
        let mut before = counted(&subject);
        for round in 1..=3u64 {
            subject.driver.start_plain(F_EVENT_IDX * (round % 2));
            work(machine, &mut subject, &[2, 1]);
            subject.driver.write(0x70, 0);
            assert_eq!(subject.driver.read(0x70), 0);
            let seen = subject.seen();
            assert_eq!(
                (seen.in_flight.value(), seen.in_flight_since.value()),
                (0, 0)
            );
            assert_eq!(seen.oldest_since.value(), 0);
            assert_eq!(seen.unread_completions.value(), 0);
            assert_eq!(seen.service.count(), 3 * round);
            let after = counted(&subject);
            assert!(before.iter().zip(&after).all(|(old, new)| old <= new));
            before = after;
        }
    });
}

#[test]
fn an_idle_device_is_looked_at_once_a_second_and_no_more_often() {
    let mut machine = Machine::new();
    let mut subject = disk(&mut machine, "idle", 0x1_0000);
    subject.driver.start_plain(F_EVENT_IDX);
    subject.send(2);
    subject.driver.kick(subject.queue);
    subject.driver.wait_used(subject.queue, 2);
    // The guest sleeps on two completions, of which it asked to be told of the first.
    let unread = || subject.seen().unread_completions.value();
    wait_for("unread completions", || unread() == 2);
    let (from, before) = (Instant::now(), loops(&machine));
    let ring = &subject.driver.queues[subject.queue];
    let used_event = GuestAddress(ring.avail + 4 + 2 * u64::from(QUEUE_SIZE));
    subject
        .driver
        .ram
        .write_obj(2u16.to_le(), used_event)
        .unwrap();
    wait_for("a guest that wakes", || unread() == 0);
    let most = from.elapsed().as_secs() + 2;
    assert!(loops(&machine) - before <= most);
    // Seen unread at a look before, so it was at least the time between two.
    let seen = subject.seen();
    assert_eq!(
        seen.interrupt_to_reclaim.count(),
        seen.interrupts.value().min(1)
    );
    assert!(seen.interrupt_to_reclaim.max() >= 900_000_000);
}
