use super::*;

fn numbers(batch: &Batch) -> Vec<u64> {
    batch.events.iter().map(|event| event.number).collect()
}

#[test]
fn numbers_have_no_gaps_and_since_is_exclusive() {
    let log = EventLog::default();
    assert_eq!(log.after(0, 9), Batch::default());
    for event in [Event::Started, Event::Paused, Event::Resumed] {
        log.push(event);
    }
    assert_eq!(numbers(&log.after(0, 9)), [1, 2, 3]);
    assert_eq!(numbers(&log.after(1, 1)), [2]);
    assert!(log.after(3, 9).events.is_empty());
    for since in [4, u64::MAX] {
        assert_eq!(log.after(since, 9), Batch::default(), "{since}");
    }
}

#[test]
fn who_is_late_is_told_how_many_are_lost() {
    let log = EventLog::default();
    for _ in 0..KEPT + 10 {
        log.push(Event::Paused);
    }
    let batch = log.after(0, 2);
    assert_eq!((batch.lost, numbers(&batch)), (10, vec![11, 12]));
    let batch = log.after(4, 1);
    assert_eq!((batch.lost, numbers(&batch)), (6, vec![11]));
    assert_eq!(log.after(10, 1).lost, 0);
    assert_eq!(log.after(0, KEPT + 20).events.len(), KEPT);
}

#[test]
fn the_end_is_the_last_event() {
    let log = EventLog::default();
    log.push(Event::Started);
    assert!(!log.after(0, 9).is_last);
    let detail = "é".repeat(MAX_TEXT_BYTES);
    log.push(Event::Ended {
        runs: Vec::new(),
        failed: true,
        detail,
    });
    log.push(Event::Resumed);
    let batch = log.after(0, 9);
    assert!(batch.is_last);
    assert_eq!(numbers(&batch), [1, 2]);
    assert!(!log.after(0, 1).is_last);
    let Event::Ended { detail, .. } = &batch.events[1].event else {
        panic!("{batch:?}");
    };
    assert!(detail.len() <= MAX_TEXT_BYTES && detail.len() > MAX_TEXT_BYTES - 2);
}

#[test]
fn events_are_flat_objects() {
    let log = EventLog::default();
    log.push(Event::Device {
        device: "rootfs".to_owned(),
        detail: "EIO".to_owned(),
    });
    let event = serde_json::to_value(&log.after(0, 1).events[0]).unwrap();
    assert!(event["at_ms"].as_u64().unwrap() > 1_600_000_000_000);
    assert_eq!(
        (&event["number"], &event["event"]),
        (&1.into(), &"device".into())
    );
    assert_eq!(event["detail"], "EIO");
    assert!(event.get("action").is_none());
}
