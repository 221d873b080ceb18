use proptest::prelude::*;

use super::*;

const SIZE: u16 = 8;

fn event(avail: u16, used_event: u16) -> Reach {
    Reach {
        avail,
        used_event: Some(used_event),
    }
}

fn flags(avail: u16) -> Reach {
    Reach {
        avail,
        used_event: None,
    }
}

#[test]
fn what_a_kick_announced_is_told_from_what_came_after_it() {
    let mut stages = Stages::default();
    stages.known(1);
    let came = |stages: &mut Stages, position| stages.came(position, SIZE, |at| 100 - at);
    assert_eq!(came(&mut stages, 0), Came::Otherwise);
    stages.kicked(3, 40);
    stages.kicked(4, 70);
    for position in 1..4 {
        assert_eq!(came(&mut stages, position), Came::Kicked(60));
    }
    assert_eq!(came(&mut stages, 4), Came::Unasked);
    // Given back and taken again, it is no new request.
    assert_eq!(came(&mut stages, 4), Came::Kicked(60));
    stages.kicked(7, 90);
    stages.turns_are_over();
    assert_eq!(came(&mut stages, 5), Came::Otherwise);
    assert_eq!(came(&mut stages, 6), Came::Otherwise);
}

#[test]
fn positions_count_round_the_end_of_the_index() {
    let mut stages = Stages::default();
    stages.known(u16::MAX);
    for round in 0..3u32 {
        for position in 0..=u16::MAX {
            let came = stages.came(position.wrapping_sub(1), SIZE, |_| 0);
            assert_eq!(came, Came::Unasked, "{round}: {position}");
        }
    }
}

#[test]
fn used_event_tells_what_was_taken_back() {
    let mut stages = Stages::default();
    stages.reached(event(5, 0), 5, SIZE);
    assert_eq!(stages.unread(5), 5);
    stages.reached(event(5, 3), 5, SIZE);
    assert_eq!(stages.unread(5), 2);
    // Linux writes 0 to say that it wants no interrupts: nothing is forgotten.
    stages.reached(event(5, 0), 5, SIZE);
    assert_eq!(stages.unread(5), 2);
    stages.reached(event(5, 5), 5, SIZE);
    assert_eq!(stages.unread(5), 0);
    // A mark ahead leaves completions in the ring of the driver's own will.
    stages.reached(event(10, 8), 7, SIZE);
    assert_eq!(stages.unread(7), 0);
}

#[test]
fn more_buffers_than_there_are_came_from_the_used_ring() {
    let mut stages = Stages::default();
    stages.reached(flags(8), 6, SIZE);
    assert_eq!(stages.unread(6), 6);
    stages.reached(flags(12), 6, SIZE);
    assert_eq!(stages.unread(6), 2);
    stages.given(20, SIZE);
    assert_eq!(stages.unread(20), SIZE);
}

#[test]
fn one_interrupt_at_a_time_is_followed() {
    let mut stages = Stages::default();
    assert_eq!(stages.reacted(Some(event(1, 0))), None);
    stages.interrupted(11, 1, 1);
    stages.interrupted(22, 2, 2);
    assert_eq!(stages.reacted(Some(event(3, 0))), None);
    stages.reached(event(3, 1), 2, SIZE);
    assert_eq!(stages.reacted(None), Some(11));
    assert_eq!(stages.reacted(None), None);
    stages.interrupted(33, 3, 3);
    stages.resumed(3);
    stages.reached(event(4, 3), 3, SIZE);
    assert_eq!(stages.reacted(None), None);
}

#[test]
fn without_event_idx_new_buffers_are_the_reaction() {
    let mut stages = Stages::default();
    stages.interrupted(11, 1, 4);
    assert_eq!(stages.reacted(Some(flags(4))), None);
    assert_eq!(stages.reacted(Some(flags(5))), Some(11));
}

#[test]
fn what_the_first_look_finds_done_has_no_time() {
    let mut stages = Stages::default();
    stages.interrupted(11, 1, 1);
    stages.reached(event(1, 1), 1, SIZE);
    assert_eq!(stages.reacted_at_look(event(1, 1)), None);
    // It is over nevertheless.
    stages.interrupted(22, 2, 2);
    for _ in 0..3 {
        assert_eq!(stages.reacted_at_look(event(2, 1)), None);
    }
    stages.reached(event(2, 2), 2, SIZE);
    assert_eq!(stages.reacted_at_look(event(2, 2)), Some(22));
    assert_eq!(stages.reacted_at_look(event(2, 2)), None);
}

proptest! {
    /// Whatever the guest writes, no more than a queue's size is unread, and what was taken back
    /// stays so until more is given.
    #[test]
    fn a_hostile_index_claims_nothing(
        steps in prop::collection::vec((any::<u16>(), any::<u16>(), 0u16..200), 1..100),
        event_idx: bool,
    ) {
        let (mut stages, mut used) = (Stages::default(), 0u16);
        for (avail, used_event, more) in steps {
            used = used.wrapping_add(more);
            stages.given(used, SIZE);
            let before = stages.unread(used);
            prop_assert!(before <= SIZE);
            let used_event = event_idx.then_some(used_event);
            stages.reached(Reach { avail, used_event }, used, SIZE);
            prop_assert!(stages.unread(used) <= before);
            stages.came(avail, SIZE, |_| 0);
        }
    }
}
