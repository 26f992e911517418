//! What K does to the entropy of a softmax policy (docs/entropy-study.md, "What is proven"): the
//! statements as properties of random policies, rewards and groups.

mod baselines;
mod bound;
mod policy;
mod regimes;
mod weights;

/// Of `len` binary rewards, at least one of each outcome.
fn both_outcomes(random: &mut Random, len: usize) -> Vec<f32> {
    let share = random.unit();
    let mut rewards: Vec<f32> = (0..len)
        .map(|_| f32::from(u8::from(random.unit() < share)))
        .collect();
    let first = random.below(len);
    rewards[first] = 1.0;
    rewards[(first + 1 + random.below(len - 1)) % len] = 0.0;
    rewards
}

fn assert_close(found: f64, expected: f64, tolerance: f64, what: &str) {
    let error = (found - expected).abs();
    assert!(error <= tolerance, "{what}: {found} instead of {expected}");
}
use qae_test_support::Random;
