// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A token bucket: how often somebody may be heard. It is told the time and has no clock.
#![forbid(unsafe_code)]

/// Lets a burst through, then so much per tick; counts what it keeps back.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    burst: u32,
    ticks_per_token: u64,
    tokens: u32,
    /// When the last token came in.
    filled_at: u64,
    kept_back: u64,
}

/// What a bucket says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Admission {
    /// Go on. So many were kept back since the last that was let through: say so.
    Yes {
        /// How many were kept back.
        kept_back: u64,
    },
    /// Not now; it has been counted.
    No,
}

impl TokenBucket {
    /// Makes a full bucket of `burst` tokens that gains one every `ticks_per_token` ticks, or at
    /// each tick for 0.
    #[must_use]
    pub const fn new(burst: u32, ticks_per_token: u64) -> Self {
        let ticks_per_token = if ticks_per_token == 0 { 1 } else { ticks_per_token };
        Self { burst, ticks_per_token, tokens: burst, filled_at: 0, kept_back: 0 }
    }

    /// Takes a token at the time `now_ticks`. Time that goes back counts as standing still.
    pub fn admit(&mut self, now_ticks: u64) -> Admission {
        self.fill(now_ticks);
        match self.tokens.checked_sub(1) {
            Some(left) => {
                self.tokens = left;
                Admission::Yes { kept_back: core::mem::take(&mut self.kept_back) }
            }
            None => {
                self.kept_back = self.kept_back.saturating_add(1);
                Admission::No
            }
        }
    }

    fn fill(&mut self, now_ticks: u64) {
        let gained = now_ticks.saturating_sub(self.filled_at) / self.ticks_per_token;
        let wanted = self.burst - self.tokens;
        if gained >= wanted.into() {
            self.tokens = self.burst;
            self.filled_at = self.filled_at.max(now_ticks);
        } else {
            // Both fit: `gained` is below `wanted`, and its ticks have passed.
            self.tokens = self.burst - wanted.saturating_sub(u32::try_from(gained).unwrap_or(0));
            self.filled_at += gained * self.ticks_per_token;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn t114_burst_then_rate_and_a_count() {
        let mut bucket = TokenBucket::new(3, 10);
        let yes = |kept_back| Admission::Yes { kept_back };
        for _ in 0..3 {
            assert_eq!(bucket.admit(100), yes(0));
        }
        for _ in 0..5 {
            assert_eq!(bucket.admit(105), Admission::No);
        }
        assert_eq!(bucket.admit(110), yes(5));
        assert_eq!(bucket.admit(119), Admission::No);
        assert_eq!(bucket.admit(120), yes(1), "ticks below a token are not lost");
        // A long rest fills it to the burst, no further.
        for _ in 0..3 {
            assert_eq!(bucket.admit(u64::MAX), yes(0));
        }
        assert_eq!(bucket.admit(u64::MAX), Admission::No);
        assert_eq!(bucket.admit(0), Admission::No, "time that goes back brings nothing");
    }

    proptest! {
        #[test]
        fn t114_no_interval_sees_more_than_burst_and_rate(
            burst in 0u32..6,
            rate in 0u64..20,
            steps in proptest::collection::vec(0u64..15, 1..80),
        ) {
            let mut bucket = TokenBucket::new(burst, rate);
            let (mut now, mut times) = (1000u64, std::vec::Vec::new());
            let (mut offered, mut reported) = (0u64, 0u64);
            for step in steps {
                now += step;
                offered += 1;
                if let Admission::Yes { kept_back } = bucket.admit(now) {
                    times.push(now);
                    reported += kept_back;
                }
            }
            prop_assert!(reported <= offered - times.len() as u64);
            for (n, first) in times.iter().enumerate() {
                for (m, last) in times.iter().enumerate().skip(n) {
                    let most = u64::from(burst) + (last - first) / rate.max(1) + 1;
                    prop_assert!((m - n + 1) as u64 <= most);
                }
            }
        }
    }
}
