//! How often the operator is told of what a guest can bring about as often as it likes: all of it is
//! counted, and what is told must not fill the log or push other events out.

#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use observe::Gauge;

/// What is told in a row.
const BURST: u64 = 30;
/// After that, one each time.
const EVERY_NS: u64 = 1_000_000_000;

/// The memory of what was told. Used by one thread alone.
#[derive(Default)]
pub(crate) struct Telling {
    /// How much of the burst is used up, as of that time.
    spent: Gauge,
    since_ns: Gauge,
    untold: Gauge,
}

impl Telling {
    /// Whether something that happens now is told, and then how much was not told before it.
    pub fn may(&self, now_ns: u64) -> Option<u64> {
        let passed_ns = now_ns.saturating_sub(self.since_ns.value());
        let regained = passed_ns.checked_div(EVERY_NS).unwrap_or(0);
        if regained > 0 {
            self.spent.set(self.spent.value().saturating_sub(regained));
            self.since_ns.set(now_ns);
        }
        let spent = self.spent.value();
        if spent >= BURST {
            self.untold.set(self.untold.value().saturating_add(1));
            return None;
        }
        self.spent.set(spent.saturating_add(1));
        let untold = self.untold.value();
        self.untold.set(0);
        Some(untold)
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    #[test]
    fn what_is_rare_is_told_each_time() {
        let telling = Telling::default();
        for second in 1..1000 {
            assert_eq!(telling.may(second * EVERY_NS), Some(0));
        }
    }

    #[test]
    fn of_a_flood_the_beginning_is_told_and_then_one_a_second() {
        let (telling, begin) = (Telling::default(), 77 * EVERY_NS);
        for _ in 0..BURST {
            assert_eq!(telling.may(begin), Some(0));
        }
        // 1000 a second, for 10 seconds.
        let told = (1..=10_000).filter_map(|ms| telling.may(begin + ms * 1_000_000));
        assert_eq!(told.collect::<Vec<_>>(), [999; 10]);
        // After a rest it is as at first, and says what was missed.
        let later = begin + 1000 * EVERY_NS;
        let told = (0..BURST + 1).map(|_| telling.may(later));
        let told: Vec<_> = told.collect();
        assert_eq!(told.first(), Some(&Some(0)));
        assert_eq!(told.last(), Some(&None));
        assert_eq!(
            told.iter().filter(|told| told.is_some()).count() as u64,
            BURST
        );
    }
}
