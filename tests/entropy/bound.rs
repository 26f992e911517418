//! T1: |ΔH + Cov_π(log π, δ)| ≤ ½ R² (¼ + 2 ln n), for any change δ of n logits with range R.

use crate::assert_close;
use crate::policy::{Policy, of_crate};
use qae_test_support::Random;

/// A change that keeps the logits exact in f32.
fn change(random: &mut Random, actions: usize) -> Vec<f64> {
    let scale = random.pick(&[0.0078125_f32, 0.0625, 0.5, 2.0, 8.0]);
    (0..actions)
        .map(|_| f64::from(scale * random.between(-1.0, 1.0)))
        .collect()
}

#[test]
fn the_first_order_change_of_entropy_is_a_covariance() {
    let mut random = Random(2);
    for _ in 0..500 {
        let policy = Policy::random(&mut random);
        let change = change(&mut random, policy.len());
        let (.., gradient) = of_crate(&policy.logits);
        let first_order: f64 = gradient.iter().zip(&change).map(|(g, d)| g * d).sum();
        let covariance = policy.covariance_with_log(&change);
        assert_close(first_order, -covariance, 1e-12, "dH · δ");
    }
}

#[test]
fn the_rest_is_bounded_by_the_square_of_the_range() {
    let mut random = Random(3);
    let mut tightest: f64 = 0.0;
    for _ in 0..5000 {
        let policy = Policy::random(&mut random);
        let change = change(&mut random, policy.len());
        let bound = policy.remainder_bound(&change);
        let (after, ..) = of_crate(&policy.moved_by(&change).logits);
        let (before, ..) = of_crate(&policy.logits);
        let rest = after - before + policy.covariance_with_log(&change);
        assert!(rest.abs() <= bound + 1e-12, "{rest} beyond {bound}");
        if bound > 1e-6 {
            tightest = tightest.max(rest.abs() / bound);
        }
    }
    // A bound that nothing comes near would hold for the wrong covariance, too.
    assert!(tightest > 0.1, "{tightest}");
}
