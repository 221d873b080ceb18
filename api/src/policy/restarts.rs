//! How often a VM that died is started again, and after which wait. Pure: the caller has the clock.

use std::collections::VecDeque;
use std::time::Duration;

/// The limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestartLimit {
    /// Restarts after a death, at most, within that time. 0: a VM that died stays so.
    pub at_most: u32,
    /// That time.
    pub within: Duration,
    /// From a death to the restart. It doubles with each restart within the time.
    pub first_wait: Duration,
    /// And it never is longer than this.
    pub longest_wait: Duration,
}

impl Default for RestartLimit {
    fn default() -> Self {
        RestartLimit {
            at_most: 0,
            within: Duration::from_secs(600),
            first_wait: Duration::from_secs(1),
            longest_wait: Duration::from_secs(60),
        }
    }
}

impl RestartLimit {
    /// The wait before a reboot that the policy allows, of a guest that ran for so long. Reboots are
    /// not limited, but one that reboots all the time does so at this pace.
    pub fn before_reboot(&self, ran: Duration) -> Duration {
        self.first_wait.saturating_sub(ran)
    }
}

/// What follows a death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// A restart, the so-and-so-manieth within the time, after this wait.
    Restart {
        /// Its number, from 1.
        number: u32,
        /// The wait.
        wait: Duration,
    },
    /// Nothing: all that is allowed was used up, or nothing is allowed.
    GiveUp,
}

/// The restarts so far.
#[derive(Debug, Default)]
pub struct Restarts {
    /// When they were decided on, oldest first; as many as a limit allows.
    at: VecDeque<Duration>,
}

impl Restarts {
    /// Decides on a death at `now`, which is counted from any fixed moment.
    pub fn after_death(&mut self, now: Duration, limit: &RestartLimit) -> Next {
        self.at.retain(|at| now.saturating_sub(*at) < limit.within);
        let before = u32::try_from(self.at.len()).unwrap_or(u32::MAX);
        if before >= limit.at_most {
            return Next::GiveUp;
        }
        self.at.push_back(now);
        let factor = 1u32.checked_shl(before).unwrap_or(u32::MAX);
        let wait = limit.first_wait.saturating_mul(factor);
        Next::Restart {
            number: before.saturating_add(1),
            wait: wait.min(limit.longest_wait),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: Duration = Duration::from_secs(1);

    fn limit(at_most: u32) -> RestartLimit {
        RestartLimit {
            at_most,
            ..RestartLimit::default()
        }
    }

    #[test]
    fn three_restarts_with_growing_waits_and_then_none() {
        let mut restarts = Restarts::default();
        let mut at = |second| restarts.after_death(S * second, &limit(3));
        for (number, second, wait) in [(1, 100, 1), (2, 101, 2), (3, 105, 4)] {
            let wait = S * wait;
            assert_eq!(at(second), Next::Restart { number, wait });
        }
        assert_eq!(at(110), Next::GiveUp);
        assert_eq!(at(699), Next::GiveUp);
        // The first is forgotten.
        let (number, wait) = (3, S * 4);
        assert_eq!(at(700), Next::Restart { number, wait });
    }

    #[test]
    fn nothing_is_restarted_unless_that_is_asked_for() {
        let mut restarts = Restarts::default();
        assert_eq!(restarts.after_death(S, &limit(0)), Next::GiveUp);
        let default = RestartLimit::default();
        assert_eq!(default, limit(0));
        assert_eq!(default.before_reboot(S / 4), S * 3 / 4);
        assert_eq!(default.before_reboot(S * 9), Duration::ZERO);
    }

    proptest! {
        #[test]
        fn no_window_has_more_restarts_than_allowed_and_waits_keep_their_bounds(
            at_most in 0u32..80,
            within in 1u64..1000,
            first in 0u64..100,
            more in 0u64..1000,
            steps in prop::collection::vec(0u64..300, 1..200),
        ) {
            let limit = RestartLimit {
                at_most,
                within: Duration::from_secs(within),
                first_wait: Duration::from_secs(first),
                longest_wait: Duration::from_secs(first + more),
            };
            let mut restarts = Restarts::default();
            let (mut now, mut done, mut last) = (Duration::ZERO, Vec::new(), None);
            for step in steps {
                now += Duration::from_secs(step);
                let within = |at: &&Duration| now - **at < limit.within;
                let before = done.iter().filter(within).count();
                match restarts.after_death(now, &limit) {
                    Next::GiveUp => prop_assert!(before >= at_most as usize),
                    Next::Restart { number, wait } => {
                        prop_assert!(before < at_most as usize);
                        prop_assert_eq!(number as usize, before + 1);
                        prop_assert!(wait >= limit.first_wait && wait <= limit.longest_wait);
                        if let Some((earlier, shorter)) = last && number > earlier {
                            prop_assert!(wait >= shorter);
                        }
                        last = Some((number, wait));
                        done.push(now);
                    }
                }
            }
        }
    }
}
