//! The rank of the k-quantile and the quantile itself (arXiv 2509.22611, Eq. 4).

use crate::config::Interpolation;

/// How far a product k·n in f64 may lie from a whole number, per unit of n, and still be taken for
/// it. k is within 2⁻⁵⁴ of the decimal that was written, so every product that is whole is found; a
/// decimal of three digits whose product is not whole is not mistaken for n up to 10⁹.
const WHOLE: f64 = 1.0 / (1_u64 << 40) as f64;

/// `value`, or the whole number that exact arithmetic on the decimal k would have given.
fn snap_to_whole(value: f64, n: usize) -> f64 {
    let whole = value.round();
    if (value - whole).abs() <= n as f64 * WHOLE {
        whole
    } else {
        value
    }
}

/// The rank of the k-quantile among n values, counted from 1: ⌈k·n⌉ of the decimal k, clamped to
/// 1..=n.
///
/// ⌈k·n⌉ of the floating-point product would be one too high wherever the product lands a hair
/// above a whole number, such as 0.28 · 25.
///
/// ```
/// assert_eq!(qae::reference::rank(0.28, 25), 7);
/// assert_eq!((0.28_f64 * 25.0).ceil(), 8.0);
/// ```
pub fn rank(k: f64, n: usize) -> usize {
    let rank = snap_to_whole(k * n as f64, n).ceil() as usize;
    rank.clamp(1, n.max(1))
}

/// The k-quantile of `values`, which are left in another order.
///
/// Linear time, so that one group may hold a whole batch.
///
/// # Panics
/// If `values` is empty or holds a NaN.
pub fn quantile(values: &mut [f64], k: f64, interpolation: Interpolation) -> f64 {
    match interpolation {
        // inf{x : F(x) ≥ k}
        Interpolation::InvertedCdf => order_statistic(values, rank(k, values.len())),
        Interpolation::Linear => linear(values, k),
    }
}

/// The `rank`-th smallest value, counted from 1.
pub(super) fn order_statistic(values: &mut [f64], rank: usize) -> f64 {
    *values.select_nth_unstable_by(rank - 1, order).1
}

/// x₍⌊p⌋₎ + (p − ⌊p⌋)·(x₍⌊p⌋+1₎ − x₍⌊p⌋₎) at p = k·(n − 1), positions counted from 0
/// (`torch.quantile`). p is the decimal k's, so that a whole position yields one of the values.
fn linear(values: &mut [f64], k: f64) -> f64 {
    let last = values.len() - 1;
    let position = snap_to_whole(k * last as f64, last);
    let below = (position as usize).min(last);
    let fraction = position - below as f64;
    let (_, &mut low, above) = values.select_nth_unstable_by(below, order);
    match above.iter().copied().min_by(order) {
        Some(high) if fraction > 0.0 => interpolate(low, high, fraction),
        _ => low,
    }
}

/// From the nearer end, as `torch.lerp`: exact at both ends.
fn interpolate(low: f64, high: f64, fraction: f64) -> f64 {
    if fraction < 0.5 {
        low + fraction * (high - low)
    } else {
        high - (high - low) * (1.0 - fraction)
    }
}

fn order(a: &f64, b: &f64) -> std::cmp::Ordering {
    a.partial_cmp(b)
        .expect("callers leave non-finite rewards out")
}
