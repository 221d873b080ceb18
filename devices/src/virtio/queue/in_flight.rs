//! The requests in flight, in the order in which they were taken.
//!
//! They may be given back in any order, and one that hangs may be overtaken by any number of
//! others, so each has a place of its own in a linked list of as many places as the queue can have
//! requests. Nothing here grows, and each step takes the same time.

#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use observe::Ticks;

/// No place: the end of a list, or a request that found none free.
pub(super) const NOWHERE: u16 = u16::MAX;

#[derive(Clone, Copy)]
struct Place {
    taken: Ticks,
    older: u16,
    /// The next in the list of free places, while it is free.
    newer: u16,
}

/// See the module.
pub(super) struct InFlight {
    places: Box<[Place]>,
    oldest: u16,
    newest: u16,
    free: u16,
    count: u16,
}

impl InFlight {
    /// Room for the requests of a queue of `size` descriptors.
    pub fn new(size: u16) -> Self {
        let place = Place {
            taken: 0,
            older: NOWHERE,
            newer: NOWHERE,
        };
        let mut in_flight = InFlight {
            places: vec![place; usize::from(size)].into_boxed_slice(),
            oldest: NOWHERE,
            newest: NOWHERE,
            free: NOWHERE,
            count: 0,
        };
        in_flight.clear();
        in_flight
    }

    /// Forgets all requests.
    pub fn clear(&mut self) {
        let last = self.places.len().saturating_sub(1);
        for (index, place) in (0u16..).zip(self.places.iter_mut()) {
            place.newer = match usize::from(index) < last {
                true => index.saturating_add(1),
                false => NOWHERE,
            };
        }
        self.free = if self.places.is_empty() { NOWHERE } else { 0 };
        (self.oldest, self.newest, self.count) = (NOWHERE, NOWHERE, 0);
    }

    /// Requests in flight.
    pub fn count(&self) -> u16 {
        self.count
    }

    /// When the oldest was taken; 0 if there is none.
    pub fn oldest(&self) -> Ticks {
        let oldest = self.places.get(usize::from(self.oldest));
        oldest.map_or(0, |place| place.taken)
    }

    /// A request was taken at `taken`. Gives its place, which [`InFlight::leave`] wants back.
    pub fn enter(&mut self, taken: Ticks) -> u16 {
        self.count = self.count.saturating_add(1);
        let (index, older) = (self.free, self.newest);
        let Some(place) = self.places.get_mut(usize::from(index)) else {
            return NOWHERE;
        };
        self.free = place.newer;
        *place = Place {
            taken,
            older,
            newer: NOWHERE,
        };
        match self.places.get_mut(usize::from(older)) {
            Some(older) => older.newer = index,
            None => self.oldest = index,
        }
        self.newest = index;
        index
    }

    /// The request at `index` is in flight no more.
    pub fn leave(&mut self, index: u16) {
        self.count = self.count.saturating_sub(1);
        let Some(place) = self.places.get_mut(usize::from(index)) else {
            return;
        };
        let (older, newer) = (place.older, place.newer);
        place.newer = self.free;
        self.free = index;
        match self.places.get_mut(usize::from(older)) {
            Some(older) => older.newer = newer,
            None => self.oldest = newer,
        }
        match self.places.get_mut(usize::from(newer)) {
            Some(newer) => newer.older = older,
            None => self.newest = older,
        }
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_that_hangs_stays_the_oldest_however_many_overtake_it() {
        let mut all = InFlight::new(4);
        let hangs = all.enter(7);
        for taken in 8..1000 {
            let (one, other) = (all.enter(taken), all.enter(taken));
            all.leave(one);
            assert_eq!((all.oldest(), all.count()), (7, 2));
            all.leave(other);
        }
        all.leave(hangs);
        assert_eq!((all.oldest(), all.count()), (0, 0));
    }

    #[test]
    fn more_than_there_is_room_for_are_counted_and_not_followed() {
        let mut all = InFlight::new(2);
        let places = [all.enter(1), all.enter(2), all.enter(3)];
        assert_eq!((places[2], all.count(), all.oldest()), (NOWHERE, 3, 1));
        for place in places {
            all.leave(place);
        }
        assert_eq!((all.count(), all.oldest()), (0, 0));
        assert_eq!((all.enter(9), all.oldest()), (1, 9));
        let mut none = InFlight::new(0);
        assert_eq!((none.enter(1), none.oldest()), (NOWHERE, 0));
    }

    proptest! {
        /// In any order of coming, going and resets, it agrees with a list that is searched.
        #[test]
        fn the_oldest_is_the_oldest(steps in prop::collection::vec((0u8..8, any::<u8>()), 0..400)) {
            let (mut all, mut model) = (InFlight::new(8), Vec::<(u16, Ticks)>::new());
            for (now, (what, which)) in (1..).zip(steps) {
                match what {
                    0..4 if model.len() < 8 => model.push((all.enter(now), now)),
                    7 if which == 0 => {
                        all.clear();
                        model.clear();
                    }
                    _ if !model.is_empty() => {
                        let (place, _) = model.remove(usize::from(which) % model.len());
                        all.leave(place);
                    }
                    _ => {}
                }
                let oldest = model.iter().map(|(_, taken)| *taken).min();
                prop_assert_eq!(all.oldest(), oldest.unwrap_or(0));
                prop_assert_eq!(usize::from(all.count()), model.len());
            }
        }
    }
}
