//! Follows the flight rings of a black box through its snapshots: each event once, and what was
//! overwritten between two of them is counted.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::collections::HashMap;

use crate::flight::{FLIGHT_EVENTS, FlightEvent};
use crate::reader::FlightView;

/// Follows any number of rings.
#[derive(Debug, Default)]
pub struct FlightFollower {
    /// The number of the first event that was not seen yet, by ring.
    next: HashMap<String, u64>,
}

/// What a ring held that was not seen before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct News<'a> {
    /// The events, oldest first.
    pub events: &'a [FlightEvent],
    /// Events before those that were overwritten unseen.
    pub lost: u64,
}

impl FlightFollower {
    /// What is new in `ring` in a snapshot that was taken after all that were given before. What
    /// was overwritten before the first one is not lost: nobody followed then.
    pub fn news<'a>(&mut self, ring: &str, view: &'a FlightView) -> News<'a> {
        let kept = FLIGHT_EVENTS as u64;
        // The number of the view's first event, see [`FlightView`].
        let first = view.written.saturating_add(1).saturating_sub(kept);
        let end = first.saturating_add(view.events.len() as u64);
        let expected = match self.next.get(ring) {
            // A number that goes down is another ring's: it is followed from here.
            Some(next) if *next <= view.written => *next,
            _ => first,
        };
        let skipped = usize::try_from(expected.saturating_sub(first)).unwrap_or(usize::MAX);
        if end >= expected {
            self.next.insert(ring.to_owned(), end);
        }
        News {
            events: view.events.get(skipped..).unwrap_or_default(),
            lost: first.saturating_sub(expected),
        }
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A view of a ring of `written` events, each told by its number.
    fn view(written: u64) -> FlightView {
        let first = (written + 1).saturating_sub(FLIGHT_EVENTS as u64);
        let event = |at| FlightEvent {
            at,
            ..FlightEvent::default()
        };
        FlightView {
            written,
            events: (first..written).map(event).collect(),
        }
    }

    fn numbers(news: News<'_>) -> Vec<u64> {
        news.events.iter().map(|event| event.at).collect()
    }

    #[test]
    fn each_event_is_given_once_and_what_was_overwritten_is_counted() {
        let mut follower = FlightFollower::default();
        let mut news = |written| {
            let view = view(written);
            let news = follower.news("vcpu/0", &view);
            (numbers(news), news.lost)
        };
        assert_eq!(news(3), (vec![0, 1, 2], 0));
        assert_eq!(news(3), (vec![], 0));
        assert_eq!(news(5), (vec![3, 4], 0));
        assert_eq!(news(1000), ((489..1000).collect(), 484));
        // Another ring under the same name.
        assert_eq!(news(2), (vec![0, 1], 0));
    }

    #[test]
    fn what_was_overwritten_before_is_not_lost() {
        let view = view(10_000);
        let mut follower = FlightFollower::default();
        let news = follower.news("x", &view);
        assert_eq!((news.events.len(), news.lost), (511, 0));
    }

    #[test]
    fn a_view_without_whole_events_tells_what_is_gone() {
        let mut follower = FlightFollower::default();
        follower.news("x", &view(10));
        let torn = FlightView {
            written: 2000,
            events: Vec::new(),
        };
        let news = follower.news("x", &torn);
        assert_eq!((numbers(news), news.lost), (vec![], 1489 - 10));
        let later = view(2100);
        let news = follower.news("x", &later);
        assert_eq!(numbers(news).first(), Some(&1589));
        assert_eq!(news.lost, 1589 - 1489);
    }

    proptest! {
        #[test]
        fn seen_and_lost_are_all_that_was_written(steps in prop::collection::vec(0u64..2000, 1..40)) {
            let mut follower = FlightFollower::default();
            let (mut written, mut all) = (0, 0);
            follower.news("x", &view(0));
            for step in steps {
                written += step;
                let view = view(written);
                let news = follower.news("x", &view);
                all += news.lost + news.events.len() as u64;
                prop_assert_eq!(all, written);
            }
        }

        #[test]
        fn any_numbers_are_taken(written in any::<[u64; 4]>(), length in 0usize..520) {
            let mut follower = FlightFollower::default();
            for written in written {
                let events = vec![FlightEvent::default(); length];
                let view = FlightView { written, events };
                prop_assert!(follower.news("x", &view).events.len() <= length);
            }
        }
    }
}
