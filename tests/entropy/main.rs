//! What K does to the entropy of a softmax policy (docs/entropy-study.md, "What is proven"): the
//! statements as properties of random policies, rewards and groups.

mod baselines;
mod bound;
mod policy;
mod regimes;
mod weights;

/// A stream of pseudo-random numbers (splitmix64), the same on every platform.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In 0..end.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// In [0, 1).
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// In [−1, 1), a multiple of 2⁻⁸.
    fn grid(&mut self) -> f32 {
        self.below(512) as f32 / 256.0 - 1.0
    }

    fn pick<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())]
    }

    /// Of `len` binary rewards, at least one of each outcome.
    fn both_outcomes(&mut self, len: usize) -> Vec<f32> {
        let share = self.unit();
        let mut rewards: Vec<f32> = (0..len)
            .map(|_| f32::from(u8::from(self.unit() < share)))
            .collect();
        let first = self.below(len);
        rewards[first] = 1.0;
        rewards[(first + 1 + self.below(len - 1)) % len] = 0.0;
        rewards
    }
}

fn assert_close(found: f64, expected: f64, tolerance: f64, what: &str) {
    let error = (found - expected).abs();
    assert!(error <= tolerance, "{what}: {found} instead of {expected}");
}
