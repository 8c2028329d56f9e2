//! How many sandboxes an autosized pool keeps warm.
//!
//! The pool looks at the claims of the last [`WINDOW_S`] seconds and remembers the most that it saw
//! in such a window; the memory halves every [`HALF_LIFE_MS`]. That peak is what may be asked for at
//! once. A template whose refill takes longer than a window needs as many times more:
//!
//! ```text
//! target = clamp(ceil(peak · max(1, refill time / window)), min, max)
//! ```
//!
//! So a pool grows with the first claims of a rush and shrinks slowly after the last.

use pinfold_types::api::PoolSize;

/// Seconds that claims are counted over: longer than a sandbox takes to start, so that what is
/// claimed in it is what has to be there before the refill helps.
const WINDOW_S: usize = 10;

/// Time in which the memory of a peak halves: the pause between two rushes of people at work.
const HALF_LIFE_MS: f64 = 300_000.0;

/// What a fading peak may be above a whole number and still count as that.
const ROUNDING: f64 = 0.001;

/// A peak of less than this is none: one claim is forgotten after about an hour and a half.
const PEAK_MIN: f64 = 0.000_01;

/// What was claimed of late.
#[derive(Debug, Clone, Default)]
pub(super) struct Demand {
    /// Claims of each of the last seconds; the entry of a second is at its number modulo the window.
    seconds: [u32; WINDOW_S],
    /// The last second that was counted.
    second: i64,
    peak: f64,
    peak_ms: i64,
}

impl Demand {
    /// Counts one claim.
    pub(super) fn note(&mut self, now_ms: i64) {
        self.turn(now_ms);
        let slot = slot(self.second);
        if let Some(count) = self.seconds.get_mut(slot) {
            *count = count.saturating_add(1);
        }
        self.remember(now_ms);
    }

    /// Returns how many sandboxes should be warm now.
    pub(super) fn target(&mut self, size: PoolSize, refill_ms: Option<f64>, now_ms: i64) -> u32 {
        let (min, max) = match size {
            PoolSize::Fixed(size) => return size,
            PoolSize::Auto { min, max } => (min, max),
        };
        self.turn(now_ms);
        self.remember(now_ms);
        #[expect(clippy::cast_precision_loss, reason = "a window has ten seconds")]
        let window_ms = (WINDOW_S * 1000) as f64;
        let longer = (refill_ms.unwrap_or(0.0) / window_ms).max(1.0);
        let wanted = (self.peak * longer - ROUNDING).ceil();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the number is whole, not negative, and cut to the type's range by the cast"
        )]
        let wanted = wanted.max(0.0) as u32;
        wanted.max(min).min(max)
    }

    /// Forgets the seconds that have left the window. A clock that was set back stands still.
    fn turn(&mut self, now_ms: i64) {
        let second = now_ms.div_euclid(1000);
        let passed = second.saturating_sub(self.second);
        if passed <= 0 {
            return;
        }
        let left = usize::try_from(passed).unwrap_or(WINDOW_S).min(WINDOW_S);
        for back in 0..left {
            let stale = second.saturating_sub(i64::try_from(back).unwrap_or(0));
            if let Some(count) = self.seconds.get_mut(slot(stale)) {
                *count = 0;
            }
        }
        self.second = second;
    }

    fn remember(&mut self, now_ms: i64) {
        let sum: u64 = self.seconds.iter().map(|count| u64::from(*count)).sum();
        let age_ms = now_ms.saturating_sub(self.peak_ms).max(0);
        #[expect(
            clippy::cast_precision_loss,
            reason = "an age and a count need no more digits than a double has"
        )]
        let (age, seen) = (age_ms as f64, sum as f64);
        let faded = self.peak * (-age / HALF_LIFE_MS).exp2();
        self.peak = if faded < PEAK_MIN {
            seen
        } else {
            faded.max(seen)
        };
        self.peak_ms = self.peak_ms.max(now_ms);
    }
}

fn slot(second: i64) -> usize {
    let window = i64::try_from(WINDOW_S).unwrap_or(1);
    usize::try_from(second.rem_euclid(window)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WIDE: PoolSize = PoolSize::Auto {
        min: 0,
        max: 10_000,
    };
    const START: i64 = 1_700_000_000_000;
    const HOUR: i64 = 3_600_000;

    #[test]
    fn a_pool_grows_with_a_rush_and_shrinks_slowly() {
        let mut demand = Demand::default();
        assert_eq!(demand.target(WIDE, None, START), 0);
        for _ in 0..100 {
            demand.note(START + 1);
        }
        let at = |demand: &mut Demand, ms| demand.target(WIDE, Some(5.0), START + ms);
        assert_eq!(at(&mut demand, 2), 100);
        assert_eq!(at(&mut demand, 300_001), 50);
        assert_eq!(at(&mut demand, 600_001), 25);
        assert_eq!(at(&mut demand, 3 * HOUR), 0);
    }

    #[test]
    fn a_steady_rate_needs_what_is_claimed_in_a_window() {
        let mut demand = Demand::default();
        for step in 0..600 {
            demand.note(START + step * 500);
        }
        assert_eq!(demand.target(WIDE, None, START + 300_000), 20);
        // What takes three windows to refill needs three times as many.
        let slow = demand.target(WIDE, Some(30_000.0), START + 300_000);
        assert_eq!(slow, 60);
        let fixed = demand.target(PoolSize::Fixed(7), None, START + 300_000);
        assert_eq!(fixed, 7);
    }

    proptest! {
        #[test]
        fn a_target_is_within_its_bounds(
            claims in proptest::collection::vec((-50_000i64..50_000, 0u8..20), 0..60),
            min in 0u32..50,
            more in 0u32..50,
            refill in proptest::option::of(-1.0f64..1e12),
        ) {
            let mut demand = Demand::default();
            let size = PoolSize::Auto { min, max: min + more };
            let mut now = START;
            for (step, count) in claims {
                // The clock goes back as well.
                now += step;
                for _ in 0..count {
                    demand.note(now);
                }
                let target = demand.target(size, refill, now);
                prop_assert!((min..=min + more).contains(&target));
            }
        }

        #[test]
        fn more_claims_never_need_fewer(
            times in proptest::collection::vec(0i64..600_000, 1..80),
            extra in 0usize..80,
        ) {
            let mut times = times;
            times.sort_unstable();
            let twice = times[extra % times.len()];
            let (mut less, mut more) = (Demand::default(), Demand::default());
            for time in times {
                less.note(START + time);
                more.note(START + time);
                if time == twice {
                    more.note(START + time);
                }
                let now = START + time;
                prop_assert!(less.target(WIDE, None, now) <= more.target(WIDE, None, now));
            }
        }

        #[test]
        fn what_was_just_claimed_can_be_claimed_again(count in 1u32..500, back in 0i64..9_000) {
            let mut demand = Demand::default();
            for _ in 0..count {
                demand.note(START);
            }
            prop_assert!(demand.target(WIDE, None, START + back) >= count);
        }

        #[test]
        fn without_claims_a_pool_falls_to_its_least(count in 1u32..500, min in 0u32..5) {
            let mut demand = Demand::default();
            for _ in 0..count {
                demand.note(START);
            }
            let size = PoolSize::Auto { min, max: 1000 };
            prop_assert_eq!(demand.target(size, None, START + 4 * HOUR), min);
        }
    }
}
