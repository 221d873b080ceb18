use super::ring::interrupt_is_wanted;
use super::*;
use memory::{Bytes, GuestAddress};
use proptest::prelude::*;

const RAM: usize = 1 << 20;

fn ram() -> GuestRam {
    GuestRam::from_ranges(&[(GuestAddress(0), RAM)]).unwrap()
}

fn layout() -> QueueLayout {
    QueueLayout {
        size: 8,
        ready: true,
        descriptors: 0x1000,
        driver: 0x2000,
        device: 0x3000,
    }
}

fn ring(ram: &GuestRam, event_idx: bool) -> Queue {
    let mut ring = validated(&layout(), 256, ram).unwrap();
    ring.set_event_idx(event_idx);
    ring.set_ready(true);
    ring
}

#[test]
fn layouts_are_judged() {
    let good = layout();
    let last = RAM as u64;
    for (layout, error) in [
        (QueueLayout { size: 0, ..good }, QueueError::Size(0)),
        (QueueLayout { size: 7, ..good }, QueueError::Size(7)),
        (QueueLayout { size: 512, ..good }, QueueError::Size(512)),
        (
            QueueLayout {
                descriptors: 0x1008,
                ..good
            },
            QueueError::Alignment("the descriptor table"),
        ),
        (
            QueueLayout { driver: 1, ..good },
            QueueError::Alignment("the available ring"),
        ),
        (
            QueueLayout { device: 2, ..good },
            QueueError::Alignment("the used ring"),
        ),
        (
            QueueLayout {
                descriptors: last - 127,
                ..good
            },
            QueueError::RingOutsideRam("the descriptor table"),
        ),
        (
            QueueLayout {
                driver: last - 20,
                ..good
            },
            QueueError::RingOutsideRam("the available ring"),
        ),
        (
            QueueLayout {
                device: u64::MAX - 3,
                ..good
            },
            QueueError::RingOutsideRam("the used ring"),
        ),
    ] {
        assert_eq!(validated(&layout, 256, &ram()).unwrap_err(), error);
    }
    let edge = QueueLayout {
        device: last - 72,
        ..good
    };
    assert!(validated(&edge, 256, &ram()).is_ok());
}

#[test]
fn what_is_wrong_with_a_chain_is_named() {
    const INDIRECT: u64 = 4 << 32;
    const TABLE: u64 = 0x4000;
    let nested = [TABLE, INDIRECT | 16];
    for (first, head, table, error) in [
        ([TABLE, INDIRECT | 16], 0, nested, QueueError::BrokenOff(0)),
        (
            [TABLE, INDIRECT | 17],
            3,
            [TABLE, 16],
            QueueError::BrokenOff(3),
        ),
        (
            [!0xFFF, INDIRECT | 16],
            7,
            [TABLE, 16],
            QueueError::BrokenOff(7),
        ),
        ([TABLE, 0], 0, [0; 2], QueueError::ZeroLength(0)),
        ([!0xFFF, 16], 0, [0; 2], QueueError::BufferOutsideRam(0)),
        ([TABLE, 16], 8, [0; 2], QueueError::Head(8)),
    ] {
        let ram = ram();
        let place = GuestAddress(0x1000 + 16 * u64::from(head));
        ram.write_obj(first, place).unwrap();
        ram.write_obj(table, GuestAddress(TABLE)).unwrap();
        // Flags, index, and the first place of the ring.
        let avail = [0u16, 1, head];
        ram.write_obj(avail, GuestAddress(0x2000)).unwrap();
        let ram = Arc::new(ram);
        let mut chain = Chain::new(&ram);
        let popped = pop(&mut ring(&ram, false), &ram, 0, &mut chain);
        assert_eq!(popped, Err(error), "{first:x?} {head}");
    }
}

#[test]
fn reasons_have_numbers_of_their_own() {
    let all = [
        QueueError::Size(0),
        QueueError::Alignment(""),
        QueueError::RingOutsideRam(""),
        QueueError::AvailIndex,
        QueueError::Head(0),
        QueueError::Endless(0),
        QueueError::BrokenOff(0),
        QueueError::ZeroLength(0),
        QueueError::BufferOutsideRam(0),
        QueueError::Order(0),
        QueueError::TooManyInFlight,
        QueueError::TooSmall(0),
        QueueError::UsedRing,
    ];
    let numbers: Vec<u64> = all.iter().map(QueueError::number).collect();
    assert_eq!(numbers, (1..=all.len() as u64).collect::<Vec<_>>());
}

#[test]
fn the_flag_of_drivers_without_event_idx_is_heeded() {
    let ram = ram();
    let ring = ring(&ram, false);
    assert_eq!(interrupt_is_wanted(&ring, &ram, 0), Ok(true));
    ram.write_obj(1u16, GuestAddress(0x2000)).unwrap();
    assert_eq!(interrupt_is_wanted(&ring, &ram, 0), Ok(false));
}

#[test]
fn elements_before_the_last_are_not_seen_until_it_is() {
    let ram = ram();
    let mut ring = ring(&ram, false);
    ring.set_next_used(u16::MAX);
    assert!(put_unseen(&mut ring, &ram, 3, 77));
    let index = GuestAddress(0x3002);
    assert_eq!(ram.read_obj::<u16>(index).unwrap(), 0);
    ring.add_used(&ram, 4, 88).unwrap();
    assert_eq!(ram.read_obj::<u16>(index).unwrap(), 1);
    // Slot 7, then slot 0.
    let element = |slot: u64| {
        ram.read_obj::<[u32; 2]>(GuestAddress(0x3004 + slot * 8))
            .unwrap()
    };
    assert_eq!((element(7), element(0)), ([3, 77], [4, 88]));
}

proptest! {
    /// The interrupt is due when the driver's mark was passed since the last decision.
    #[test]
    fn event_idx_asks_for_the_completion_after_its_mark(old: u16, count in 0u16..9, mark: u16) {
        let ram = ram();
        let mut ring = ring(&ram, true);
        ring.set_next_used(old.wrapping_add(count));
        ram.write_obj(mark.to_le(), GuestAddress(0x2000 + 4 + 16)).unwrap();
        let passed = (0..count).any(|place| old.wrapping_add(place) == mark);
        prop_assert_eq!(interrupt_is_wanted(&ring, &ram, old), Ok(passed));
    }
}
