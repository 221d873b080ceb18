use proptest::prelude::*;

use super::*;

const MS: u64 = 1_000_000;

fn bucket(size: u64, one_time_burst: u64, refill_ms: u64) -> Option<BucketSpec> {
    Some(BucketSpec {
        size,
        one_time_burst,
        refill_ms,
    })
}

fn of_bytes(size: u64, burst: u64, refill_ms: u64) -> Limiter {
    let bandwidth = bucket(size, burst, refill_ms);
    let spec = LimiterSpec {
        bandwidth,
        ops: None,
    };
    Limiter::new(spec, 0)
}

fn wait(ms: u64) -> Result<(), Duration> {
    Err(Duration::from_millis(ms))
}

#[test]
fn a_full_bucket_gives_all_and_then_as_fast_as_it_fills() {
    let mut limiter = of_bytes(1000, 0, 100);
    assert_eq!(limiter.take(600, 0), Ok(()));
    assert_eq!(limiter.take(400, 0), Ok(()));
    assert_eq!(limiter.take(10, 0), wait(1));
    // Asking takes nothing.
    assert_eq!(limiter.take(10, 0), wait(1));
    assert_eq!(limiter.take(10, MS), Ok(()));
    assert_eq!(limiter.take(1000, MS), wait(100));
    // However long nothing is asked, it holds no more than its size.
    assert_eq!(limiter.take(1000, 10_000 * MS), Ok(()));
    assert_eq!(
        limiter.take(1, 10_000 * MS),
        Err(Duration::from_micros(100))
    );
}

#[test]
fn a_burst_is_used_once() {
    let mut limiter = of_bytes(1000, 500, 100);
    assert_eq!(limiter.take(1500, 0), Ok(()));
    assert_eq!(limiter.take(1000, 0), wait(100));
    assert_eq!(limiter.take(1000, 100 * MS), Ok(()));
    assert_eq!(limiter.take(1500, 1000 * MS), Ok(()), "larger than it is");
}

#[test]
fn what_is_larger_than_the_bucket_is_paid_for_afterwards() {
    let mut limiter = of_bytes(1000, 0, 100);
    assert_eq!(limiter.take(5000, 0), Ok(()));
    // 4000 are owed, and one is needed.
    assert_eq!(limiter.take(10, 0), wait(401));
    assert_eq!(limiter.take(5000, 0), wait(500));
    assert_eq!(limiter.take(5000, 500 * MS), Ok(()));
}

#[test]
fn what_is_charged_unseen_is_owed() {
    let mut limiter = of_bytes(1000, 0, 100);
    assert_eq!(limiter.wait(1, 0), Ok(()));
    assert_eq!(limiter.wait(1000, 0), Ok(()), "asking takes nothing");
    limiter.charge(1400);
    assert_eq!(limiter.wait(1, 0), Err(Duration::from_micros(40_100)));
    assert_eq!(limiter.wait(1, 41 * MS), Ok(()));
    let mut burst = of_bytes(1000, 500, 100);
    burst.charge(1400);
    assert_eq!(burst.take(100, 0), Ok(()), "the burst pays first");
    assert_eq!(burst.take(1, 0), Err(Duration::from_micros(100)));
}

#[test]
fn a_part_is_what_there_is() {
    let mut limiter = of_bytes(1000, 500, 100);
    assert_eq!(limiter.take_part(1200, 0), 1200);
    assert_eq!(limiter.take_part(1000, 0), 300);
    assert_eq!(limiter.take_part(1000, 0), 0);
    // Nothing is lost between two tokens.
    assert_eq!(limiter.take_part(9, MS / 20), 0);
    assert_eq!(limiter.take_part(9, MS / 10), 1);
    assert_eq!(limiter.take_part(9, MS), 9);
    limiter.charge(100);
    assert_eq!(limiter.take_part(9, 2 * MS), 0, "what is owed comes first");
    assert_eq!(limiter.take_part(u64::MAX, 1000 * MS), 1000);
    let mut free = Limiter::new(LimiterSpec::default(), 0);
    assert_eq!(free.take_part(u64::MAX, 0), u64::MAX);
}

#[test]
fn both_buckets_have_to_agree_and_neither_pays_alone() {
    let spec = LimiterSpec {
        bandwidth: bucket(1000, 0, 100),
        ops: bucket(2, 0, 10),
    };
    let mut limiter = Limiter::new(spec, 0);
    assert_eq!(limiter.take(1, 0), Ok(()));
    assert_eq!(limiter.take(1, 0), Ok(()));
    assert_eq!(limiter.take(998, 0), wait(5), "operations");
    assert_eq!(limiter.take(998, 5 * MS), Ok(()));
    assert_eq!(limiter.take(302, 5 * MS), wait(30), "bytes: two were left");
    assert_eq!(limiter.take(302, 35 * MS), Ok(()));
}

#[test]
fn nothing_is_limited_without_size_or_time() {
    for spec in [bucket(0, 9, 10), bucket(10, 9, 0), None] {
        let spec = LimiterSpec {
            bandwidth: spec,
            ops: spec,
        };
        let mut limiter = Limiter::new(spec, 0);
        assert!(!limiter.limits());
        assert_eq!(limiter.take(u64::MAX, 0), Ok(()));
    }
}

#[test]
fn a_change_leaves_what_it_does_not_name() {
    let mut limiter = of_bytes(1000, 0, 100);
    assert_eq!(limiter.take(1000, 0), Ok(()));
    let ops = LimiterSpec {
        bandwidth: None,
        ops: bucket(1, 0, 1000),
    };
    limiter.change(ops, 0);
    assert_eq!(limiter.take(10, 0), wait(1), "the bytes are still gone");
    assert_eq!(limiter.take(10, MS), Ok(()));
    let none = LimiterSpec {
        bandwidth: None,
        ops: bucket(0, 0, 0),
    };
    limiter.change(none, MS);
    assert_eq!(limiter.spec().ops, None);
    assert_eq!(
        limiter.take(10, 2 * MS),
        Ok(()),
        "operations are free again"
    );
    limiter.change(
        LimiterSpec {
            bandwidth: bucket(5, 0, 1),
            ops: None,
        },
        2 * MS,
    );
    assert_eq!(limiter.take(5, 2 * MS), Ok(()), "a new bucket is full");
    assert!(limiter.limits());
}

proptest! {
    /// However it is asked, no more goes through than the bucket, the burst, the time and one
    /// request allow; and who waits as long as told gets what was asked.
    #[test]
    fn the_rate_holds(
        size in 1u64..100_000, burst in 0u64..1000, refill_ms in 1u64..5000,
        asked in prop::collection::vec((1u64..200_000, 0u64..50), 1..100),
    ) {
        let mut limiter = of_bytes(size, burst, refill_ms);
        let (mut now, mut through, mut largest) = (0, 0u128, 0u128);
        for (bytes, pause_ms) in asked {
            now += pause_ms * MS;
            if let Err(wait) = limiter.take(bytes, now) {
                prop_assert!(wait > Duration::ZERO);
                now += wait.as_nanos() as u64;
                prop_assert_eq!(limiter.take(bytes, now), Ok(()));
            }
            (through, largest) = (through + u128::from(bytes), largest.max(u128::from(bytes)));
            let filled = u128::from(now) * u128::from(size) / u128::from(refill_ms * MS);
            prop_assert!(through <= u128::from(size + burst) + filled + largest + 1);
        }
    }

    /// The same where the bytes are known only afterwards.
    #[test]
    fn the_rate_holds_for_what_is_charged_afterwards(
        size in 1u64..100_000, burst in 0u64..1000, refill_ms in 1u64..5000,
        asked in prop::collection::vec((1u64..200_000, 0u64..50), 1..100),
    ) {
        let mut limiter = of_bytes(size, burst, refill_ms);
        let (mut now, mut through, mut largest) = (0, 0u128, 0u128);
        for (bytes, pause_ms) in asked {
            now += pause_ms * MS;
            if let Err(wait) = limiter.wait(1, now) {
                prop_assert!(wait > Duration::ZERO);
                now += wait.as_nanos() as u64;
                prop_assert_eq!(limiter.wait(1, now), Ok(()));
            }
            limiter.charge(bytes);
            (through, largest) = (through + u128::from(bytes), largest.max(u128::from(bytes)));
            let filled = u128::from(now) * u128::from(size) / u128::from(refill_ms * MS);
            prop_assert!(through <= u128::from(size + burst) + filled + largest + 1);
        }
    }

    #[test]
    fn no_numbers_are_too_large(size: u64, burst: u64, refill: u64, bytes: u64, now: u64) {
        let mut limiter = of_bytes(size, burst, refill);
        let _ = limiter.take(bytes, 0);
        let _ = limiter.take(bytes, now);
        let _ = limiter.take(u64::MAX, u64::MAX);
        let _ = limiter.take_part(bytes, now);
        limiter.charge(u64::MAX);
        limiter.charge(bytes);
        let _ = limiter.take(u64::MAX, u64::MAX);
    }
}
