//! The rank against exact rational arithmetic; quantiles against sorting.

use crate::assert_close;
use qae::Interpolation;
use qae::reference::{quantile, rank};
use qae_test_support::Random;

#[test]
fn rank_is_that_of_exact_arithmetic_on_the_decimal() {
    for j in 1..1000_u64 {
        let k: f64 = format!("0.{j:03}").parse().unwrap();
        for n in 1..=4096_u64 {
            let exact = (j * n).div_ceil(1000);
            assert_eq!(rank(k, n as usize) as u64, exact, "k = {k}, n = {n}");
        }
    }
}

#[test]
fn rank_keeps_to_the_group_at_the_ends() {
    assert_eq!(rank(f64::MIN_POSITIVE, 8), 1);
    assert_eq!(rank(1.0 - f64::EPSILON, 8), 8);
    assert_eq!(rank(0.5, 1), 1);
    // Decimals that are not whole, however near, are rounded up.
    assert_eq!(rank(0.500_000_001, 8), 5);
    assert_eq!(rank(0.499_999_999, 8), 4);
}

#[test]
fn rank_is_exact_for_large_groups() {
    for j in 1..1000_u64 {
        for n in [65_535_u64, 65_536, 1_000_000, 16_777_217, 999_999_937] {
            let exact = (j * n).div_ceil(1000);
            assert_eq!(rank(j as f64 / 1000.0, n as usize) as u64, exact, "{j} {n}");
        }
    }
}

/// numpy's and torch's definitions, on sorted values.
fn naive(values: &[f64], k: f64, interpolation: Interpolation) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match interpolation {
        // inf{x : F(x) ≥ k} by its definition, for k of three decimals.
        Interpolation::InvertedCdf => {
            let thousandths = (k * 1000.0).round() as usize;
            let at_most = |x: f64| sorted.iter().filter(|&&y| y <= x).count();
            *sorted
                .iter()
                .find(|&&x| at_most(x) * 1000 >= thousandths * sorted.len())
                .unwrap()
        }
        Interpolation::Linear => {
            let position = k * (sorted.len() - 1) as f64;
            let low = position.floor() as usize;
            let high = position.ceil() as usize;
            sorted[low] + (position - low as f64) * (sorted[high] - sorted[low])
        }
    }
}

#[test]
fn quantiles_are_those_of_sorting() {
    let mut random = Random(1);
    for n in (1..=40).chain([127, 128, 129]) {
        // Few distinct values make ties, many make none.
        for distinct in [2, 3, 1 << 20] {
            let values: Vec<f64> = (0..n).map(|_| random.below(distinct) as f64).collect();
            for k in [0.001, 0.1, 0.28, 0.4, 0.5, 0.6, 0.8, 0.999] {
                let exact = quantile(&mut values.clone(), k, Interpolation::InvertedCdf);
                assert_eq!(exact, naive(&values, k, Interpolation::InvertedCdf));
                let linear = quantile(&mut values.clone(), k, Interpolation::Linear);
                let expected = naive(&values, k, Interpolation::Linear);
                assert_close(&[linear], &[expected], 1e-13, "linear");
            }
        }
    }
}

#[test]
fn linear_quantiles_are_torch_s() {
    // torch.quantile(torch.tensor(values, dtype=torch.float64), k)
    let with_successes = |n: usize, successes: usize| -> Vec<f64> {
        (0..n).map(|i| f64::from(u8::from(i < successes))).collect()
    };
    for (n, successes, expected) in [(8, 5, 0.8), (32, 19, 0.4), (16, 9, 0.0), (16, 10, 1.0)] {
        let mut rewards = with_successes(n, successes);
        let found = quantile(&mut rewards, 0.4, Interpolation::Linear);
        assert_close(&[found], &[expected], 1e-14, "quantile");
    }
    // torch counts the fraction from the nearer end, which the last bit shows.
    let found = quantile(&mut [0.09, 0.03, 0.84, 0.43], 0.6, Interpolation::Linear);
    assert_eq!(found, 0.361_999_999_999_999_93);
    let found = quantile(&mut [3.0, 1.0, 4.0, 1.5], 0.7, Interpolation::Linear);
    assert_close(&[found], &[3.1], 1e-14, "quantile");
}

#[test]
fn linear_at_a_whole_position_is_exactly_one_of_the_values() {
    // 0.28 · 25 and 0.4 · 5 as decimals; the f64 product 0.28 · 25 is a hair above 7.
    let mut ramp: Vec<f64> = (0..26).map(f64::from).collect();
    assert_eq!(quantile(&mut ramp, 0.28, Interpolation::Linear), 7.0);
    let mut binary = [1.0, 0.0, 0.0, 1.0, 0.0, 1.0];
    let found = quantile(&mut binary, 0.4, Interpolation::Linear);
    assert_eq!(found.to_bits(), 0.0_f64.to_bits());
}
