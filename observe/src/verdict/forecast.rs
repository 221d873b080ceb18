//! When a resource ends, if it goes on as it did: from its last samples, one a second.
//!
//! The amount in use is taken for a random walk with a drift: each step from one sample to the next
//! is `drift + noise`. The drift is the mean step. It is believed only when it stands out of the
//! noise, in the whole and in each half of the samples, and when no single step makes up much of
//! the way: so that neither a program that has just taken all it needs nor one that takes and gives
//! back is said to end. What is left is passed after `left / drift` in the mean, with a variance of
//! `left * noise^2 / drift^3` for the walk (the first passage time of Brownian motion with drift,
//! an inverse Gaussian distribution), and the drift itself is known to `noise / sqrt(steps)`.
//!
//! A rise that began in the middle of the samples shows no trend in all of them. It is looked for in
//! the latest ones too: soon enough to be of use, and over long enough that a program which starts is
//! none.

/// Fewest samples that make a trend.
const FEWEST: usize = 12;
/// The samples that are taken by themselves where all of them show no trend.
const LATEST: usize = 31;
/// How far the drift has to stand out of its own uncertainty: in all, and in each half.
const CERTAIN: f64 = 5.0;
const CERTAIN_IN_A_HALF: f64 = 2.5;
/// The largest part of the whole rise that one step may be.
const LARGEST_STEP: f64 = 0.34;

/// When a resource ends, in seconds from the last sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Forecast {
    /// In the mean.
    pub seconds: f64,
    /// Hardly sooner: two standard deviations before the mean.
    pub soonest: f64,
    /// Hardly later: two after it.
    pub latest: f64,
    /// What is used more with each second.
    pub per_second: f64,
    /// How many samples say so.
    pub samples: usize,
}

/// Steps from one sample to the next: how many seconds, and how much more.
struct Steps(Vec<(f64, f64)>);

impl Steps {
    fn seconds(&self, part: std::ops::Range<usize>) -> f64 {
        let steps = self.0.get(part).unwrap_or_default();
        steps.iter().map(|(seconds, _)| seconds).sum()
    }

    /// Drift a second, and noise as the standard deviation of a second's step.
    fn drift(&self, part: std::ops::Range<usize>) -> Option<(f64, f64)> {
        let steps = self.0.get(part.clone())?;
        let seconds = self.seconds(part);
        if steps.len() < 2 || seconds <= 0.0 {
            return None;
        }
        let rise: f64 = steps.iter().map(|(_, more)| more).sum();
        let drift = rise / seconds;
        // A longer step has the larger variance.
        let squares = steps
            .iter()
            .filter(|(seconds, _)| *seconds > 0.0)
            .map(|(seconds, more)| (more - drift * seconds).powi(2) / seconds);
        let variance = squares.sum::<f64>() / (steps.len() as f64 - 1.0);
        Some((drift, variance.sqrt()))
    }

    /// Whether it rises by more than chance would have it.
    fn rises(&self, part: std::ops::Range<usize>, certain: f64) -> bool {
        let seconds = self.seconds(part.clone());
        self.drift(part)
            .is_some_and(|(drift, noise)| drift > 0.0 && drift * seconds.sqrt() > certain * noise)
    }
}

/// Foretells when `used` reaches `limit`. `samples` are moments in nanoseconds and amounts, in order
/// of time. `None` where there is no trend, or none that ends there.
pub fn exhaustion(samples: &[(u64, u64)], limit: u64) -> Option<Forecast> {
    let latest = samples.len().checked_sub(LATEST).filter(|begin| *begin > 0);
    trend(samples, limit).or_else(|| trend(samples.get(latest?..)?, limit))
}

/// As [`exhaustion`], from all of the samples.
fn trend(samples: &[(u64, u64)], limit: u64) -> Option<Forecast> {
    let (_, last) = *samples.last()?;
    let left = limit.checked_sub(last).filter(|left| *left > 0)? as f64;
    let steps = samples.windows(2).filter_map(|pair| match pair {
        [(at, used), (then, more)] => {
            let seconds = then.checked_sub(*at)? as f64 / 1e9;
            (seconds > 0.0).then_some((seconds, *more as f64 - *used as f64))
        }
        _ => None,
    });
    let steps = Steps(steps.collect());
    let count = steps.0.len();
    if count < FEWEST {
        return None;
    }
    let half = count / 2;
    let believed = steps.rises(0..count, CERTAIN)
        && steps.rises(0..half, CERTAIN_IN_A_HALF)
        && steps.rises(half..count, CERTAIN_IN_A_HALF);
    if !believed {
        return None;
    }
    let rise: f64 = steps.0.iter().map(|(_, more)| more).sum();
    let largest = steps.0.iter().map(|(_, more)| *more).fold(0.0, f64::max);
    if largest > rise * LARGEST_STEP {
        return None;
    }
    let (drift, noise) = steps.drift(0..count)?;
    let seconds = left / drift;
    let of_the_walk = left * noise.powi(2) / drift.powi(3);
    let of_the_drift = (seconds * noise / (drift * steps.seconds(0..count).sqrt())).powi(2);
    let deviation = (of_the_walk + of_the_drift).sqrt();
    Some(Forecast {
        seconds,
        soonest: (seconds - 2.0 * deviation).max(0.0),
        latest: seconds + 2.0 * deviation,
        per_second: drift,
        samples: count.saturating_add(1),
    })
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

    const S: u64 = 1_000_000_000;
    const MIB: u64 = 1 << 20;

    /// A sample a second.
    fn each_second(used: impl IntoIterator<Item = u64>) -> Vec<(u64, u64)> {
        (0..).map(|at| at * S).zip(used).collect()
    }

    #[test]
    fn a_steady_leak_ends_when_it_should() {
        let samples = each_second((0..30).map(|at| 500 * MIB + at * 4 * MIB));
        let forecast = exhaustion(&samples, 816 * MIB).unwrap();
        assert!((forecast.seconds - 50.0).abs() < 1e-6, "{forecast:?}");
        assert!((forecast.per_second - 4.0 * MIB as f64).abs() < 1e-3);
        assert!(forecast.latest - forecast.soonest < 1e-3, "{forecast:?}");
        assert_eq!(forecast.samples, 30);
    }

    #[test]
    fn a_leak_that_began_in_the_middle_is_told_of_while_there_is_time() {
        let used = |at: u64| 300 * MIB + at.saturating_sub(27) * 4 * MIB;
        let samples = each_second((0..60).map(used));
        let forecast = exhaustion(&samples, 600 * MIB).unwrap();
        assert!((forecast.seconds - 43.0).abs() < 2.0, "{forecast:?}");
        assert_eq!(forecast.samples, LATEST);
        // And not when it has hardly begun.
        assert_eq!(exhaustion(&samples[..44], 600 * MIB), None);
    }

    #[test]
    fn what_has_no_trend_has_no_end() {
        let none = |used: Vec<u64>| assert_eq!(exhaustion(&each_second(used), 1 << 30), None);
        // Too few; level; falling; taken at once; taken at first, and level now.
        none((0..8).map(|at| at * MIB).collect());
        none(vec![500 * MIB; 60]);
        none((0..60).map(|at| (600 - at) * MIB).collect());
        none(
            (0..60)
                .map(|at| if at < 30 { 0 } else { 700 * MIB })
                .collect(),
        );
        none((0..60).map(|at: u64| at.min(20) * 30 * MIB).collect());
        // Given back again and again, as by a collector of garbage.
        none((0..60).map(|at| at % 20 * 30 * MIB).collect());
        // Already there, or nothing at all.
        none(vec![1 << 30; 60]);
        none(Vec::new());
    }

    #[test]
    fn times_that_do_not_go_on_are_left_out() {
        let mut samples = each_second((0..30).map(|at| at * MIB));
        samples.extend([(29 * S, 40 * MIB), (3, 10 * MIB)]);
        let forecast = exhaustion(&samples, 100 * MIB);
        assert!(forecast.is_none_or(|forecast| forecast.seconds.is_finite()));
    }

    /// Numbers between -1 and 1 that are the same each time.
    fn noise(seed: u64) -> impl Iterator<Item = f64> {
        let mut state = seed | 1;
        std::iter::repeat_with(move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        })
    }

    #[test]
    fn noise_alone_is_not_foretold_from() {
        // Walks and jitter, looked at as the watcher looks: each second the last minute.
        let (mut looks, mut wrong) = (0, 0);
        for seed in 1..200 {
            let (mut walk, mut used) = (600.0, Vec::new());
            for (step, jitter) in noise(seed).zip(noise(seed + 7000)).take(180) {
                walk = (walk + 8.0 * step).clamp(0.0, 1000.0);
                used.push(((walk + 20.0 * jitter).max(0.0) * MIB as f64) as u64);
            }
            let samples = each_second(used);
            for end in 20..samples.len() {
                looks += 1;
                let seen = &samples[end.saturating_sub(60)..end];
                wrong += u32::from(exhaustion(seen, 1 << 30).is_some());
            }
        }
        assert!(wrong * 10_000 <= looks, "{wrong} of {looks}");
    }

    #[test]
    fn the_end_of_a_noisy_leak_lies_in_what_was_foretold() {
        let (mut right, mut told) = (0, 0);
        for seed in 1..300 {
            let mut steps = noise(seed).map(|step| (5.0 + 4.0 * step) * MIB as f64);
            let mut used = vec![300.0 * MIB as f64];
            let mut grow =
                |used: &mut Vec<f64>| used.push(used[used.len() - 1] + steps.next().unwrap());
            (0..40).for_each(|_| grow(&mut used));
            let samples = each_second(used.iter().map(|used| *used as u64));
            let Some(forecast) = exhaustion(&samples, 1 << 30) else {
                continue;
            };
            told += 1;
            while used[used.len() - 1] < (1u64 << 30) as f64 {
                grow(&mut used);
            }
            let end = (used.len() - 41) as f64;
            right += i32::from((forecast.soonest - 1.0..=forecast.latest + 1.0).contains(&end));
        }
        assert!(told > 250, "{told}");
        assert!(right * 100 >= told * 90, "{right} of {told}");
    }

    proptest! {
        #[test]
        fn any_samples_are_taken(samples in proptest::collection::vec((any::<u64>(), any::<u64>()), 0..80), limit: u64) {
            if let Some(forecast) = exhaustion(&samples, limit) {
                prop_assert!(forecast.seconds >= 0.0 && forecast.soonest <= forecast.seconds);
                prop_assert!(forecast.latest >= forecast.seconds);
            }
        }
    }
}
