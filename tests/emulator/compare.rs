//! A case on the emulated kernels against the f64 reference.

use qae::{
    Advantages, Config, DType, KlEstimator, LossOutput, Metrics, MetricsScope, Objective, Tensor,
    TokenBatch, reference,
};
use qae_emulator::LossRun;

use crate::case::{Case, Source, Weight};

/// Of f32 arithmetic on one token and its place in a sum, relative to the largest value (gradient)
/// or to the sum of the terms' magnitudes (losses). A ratio e^δ carries the rounding of δ, which is
/// |δ|·2⁻²⁴, and some ulps of expf.
pub const TOLERANCE: f64 = 2e-6;

/// What the smallest f32 lose: a ratio is a multiple of 2⁻¹⁴⁹, times a log-prob of up to 1,001.
const SUBNORMAL: f64 = 1.5e-42;

/// Runs `case` and asserts that every output agrees with the reference.
pub fn check(case: &Case, what: &str) -> LossRun {
    let run = case.backend.run_loss(&case.batch(), &case.config);
    let run = run.unwrap_or_else(|error| panic!("{what}: {error}"));
    let expected = reference::loss_from_log_probs(&case.batch(), &case.config).unwrap();
    check_output(case, &run.output, &expected, what);
    run
}

/// Asserts that `found` is the reference's `expected`.
pub fn check_output(case: &Case, found: &LossOutput, expected: &LossOutput, what: &str) {
    check_gradient(case, &found.d_log_prob, &expected.d_log_prob, what);
    for (name, found, expected) in [
        ("baseline", &found.baseline, &expected.baseline),
        ("advantage", &found.advantage, &expected.advantage),
    ] {
        assert_eq!(found.is_some(), expected.is_some(), "{what}: {name}");
        if let (Some(found), Some(expected)) = (found, expected) {
            check_values(found, expected, 1e-6, &format!("{what}: {name}"));
        }
    }
    assert_eq!(found.active_rows, expected.active_rows, "{what}");
    check_counts(&found.metrics, &expected.metrics, what);
    check_sums(case, found, expected, what);
}

/// Within `tolerance` of the largest; an exact 0 is exactly +0.
pub fn check_values(found: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0_f64, |max, x| max.max(x.abs()));
    for (i, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let close = (found - expected).abs() <= tolerance * largest + SUBNORMAL;
        let zero = expected != 0.0 || found.to_bits() == 0;
        assert!(close && zero, "{what}[{i}]: {found} instead of {expected}");
    }
}

fn check_gradient(case: &Case, found: &[f64], expected: &[f64], what: &str) {
    let narrow = case.backend.narrow_gradient;
    // Half a unit in the last place of the gradient's dtype, and the smallest f16.
    let (ulp, least) = match (narrow, case.log_prob.tensor().dtype()) {
        (true, DType::Bf16) => (1.0 / 256.0, 0.0),
        (true, DType::F16) => (1.0 / 2048.0, 6e-8),
        _ => (0.0, SUBNORMAL),
    };
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0_f64, |max, x| max.max(x.abs()));
    for (i, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let bound = TOLERANCE * largest + ulp * expected.abs() + least;
        let close = (found - expected).abs() <= bound;
        let zero = expected != 0.0 || found.to_bits() == 0;
        assert!(
            close && zero,
            "{what}: gradient[{i}]: {found} instead of {expected}"
        );
    }
}

pub fn check_counts(found: &Metrics, expected: &Metrics, what: &str) {
    let counts = |m: &Metrics| {
        [
            ("positive", m.positive),
            ("zero", m.zero),
            ("negative", m.negative),
            ("active", m.active),
            ("tokens", m.tokens),
            ("active_tokens", m.active_tokens),
            ("clipped_above", m.clipped_above),
            ("clipped_below", m.clipped_below),
            ("dual_clipped", m.dual_clipped),
            ("nonfinite_tokens", m.nonfinite_tokens),
            ("out_of_range", m.out_of_range),
        ]
    };
    assert_eq!(counts(found), counts(expected), "{what}");
    assert_eq!(found.groups, expected.groups, "{what}");
}

fn check_sums(case: &Case, found: &LossOutput, expected: &LossOutput, what: &str) {
    let policy = policy_magnitude(case, expected);
    let kl = kl_magnitude(case, &expected.metrics);
    let coef = case.config.kl.map_or(0.0, |kl| kl.coef);
    let ratios = if counts_parts_of_responses(case) {
        f64::INFINITY
    } else {
        log_ratio_magnitude(case)
    };
    // A thread adds up every 256th token of a row in f32, each time rounded to 2⁻²⁴.
    let longest = case.layout.rows().map(|row| row.length).max().unwrap_or(0);
    let tolerance = TOLERANCE + (longest / 256) as f64 * 2.0_f64.powi(-24);
    // Beyond the range of f32 the kernels see what f32 sees.
    let as_f32 = |value: f64| f64::from(value as f32);
    let (found, expected) = (&found.metrics, &expected.metrics);
    let sums = |m: &Metrics| {
        [
            ("pg_loss", m.pg_loss, policy),
            ("kl_loss", m.kl_loss, kl),
            ("loss", m.loss, policy + coef * kl),
            ("neg_log_ratio_sum", m.neg_log_ratio_sum, ratios),
            ("min_ratio", as_f32(m.min_ratio), m.min_ratio),
            ("max_ratio", as_f32(m.max_ratio), m.max_ratio),
        ]
    };
    for ((name, found, _), (_, expected, magnitude)) in sums(found).into_iter().zip(sums(expected))
    {
        let error = (found - expected).abs();
        let close = found == expected || error <= tolerance * magnitude + SUBNORMAL;
        let what = format!("{what}: {name}: {found} instead of {expected}");
        assert!(close, "{what}, magnitude {magnitude}");
    }
}

/// Σ |terms| of the policy loss: the losses of either sign of the advantage alone, in which no
/// objective has terms of two signs.
pub fn policy_magnitude(case: &Case, expected: &LossOutput) -> f64 {
    let config = Config {
        kl: None,
        ..case.config
    };
    let batch = case.batch();
    let of_sign = |positive: bool| {
        let keep = |a: f32| {
            if a.is_finite() && (a > 0.0) == positive {
                a
            } else {
                0.0
            }
        };
        let kept: Vec<f32> = local_advantages(case, expected)
            .into_iter()
            .map(keep)
            .collect();
        let advantages = match case.advantage {
            Source::PerToken(_) => Advantages::PerToken(&kept),
            _ => Advantages::PerResponse(&kept),
        };
        let batch = TokenBatch {
            advantages,
            ..batch
        };
        let out = reference::loss_from_log_probs(&batch, &config).unwrap();
        out.metrics.pg_loss.abs()
    };
    of_sign(true) + of_sign(false)
}

/// The advantages of local rows, or of slots.
fn local_advantages(case: &Case, expected: &LossOutput) -> Vec<f32> {
    match &case.advantage {
        Source::PerToken(values) | Source::PerResponse(values) => values.clone(),
        Source::Rewards { response_index, .. } => {
            let advantage = expected.advantage.as_ref().unwrap();
            let rows = 0..case.layout.borrow().num_rows();
            let response = |row: usize| response_index.as_ref().map_or(row, |i| i[row] as usize);
            rows.map(|row| advantage[response(row)] as f32).collect()
        }
    }
}

/// Σ |terms| of the KL loss; K1 is the one estimator with terms of both signs.
pub fn kl_magnitude(case: &Case, expected: &Metrics) -> f64 {
    let (Some(kl), Some(reference)) = (case.config.kl, &case.ref_log_prob) else {
        return 0.0;
    };
    if kl.estimator != KlEstimator::K1 {
        return expected.kl_loss.abs();
    }
    let log_prob = case.log_prob.widened();
    let below: Vec<f32> = log_prob
        .iter()
        .zip(reference.widened())
        .map(|(log_prob, reference)| log_prob - (log_prob - reference).abs())
        .collect();
    let old = case.old_log_prob.as_ref().map(|old| old.widened());
    let batch = TokenBatch {
        log_prob: Tensor::F32(&log_prob),
        old_log_prob: old.as_deref().map(Tensor::F32),
        ref_log_prob: Some(Tensor::F32(&below)),
        ..case.batch()
    };
    let out = reference::loss_from_log_probs(&batch, &case.config).unwrap();
    out.metrics.kl_loss.abs()
}

/// Σ |log-ratios| of the valid tokens.
pub fn log_ratio_magnitude(case: &Case) -> f64 {
    let Some(old) = &case.old_log_prob else {
        return 0.0;
    };
    let (log_prob, old) = (case.log_prob.tensor(), old.tensor());
    let valid = case
        .valid()
        .into_iter()
        .enumerate()
        .filter(|(_, valid)| *valid);
    let ratios = valid.map(|(slot, _)| (log_prob.get(slot) - old.get(slot)).abs());
    ratios.filter(|ratio| ratio.is_finite()).sum()
}

/// Under GSPO without a KL term the kernels do not read a token's log-ratio again: each counted
/// token adds the mean of its response. That is the sum of the tokens' own, unless only some of a
/// response are counted.
pub fn counts_parts_of_responses(case: &Case) -> bool {
    if case.config.kl.is_some() {
        return false;
    }
    let slots = || {
        case.valid()
            .into_iter()
            .enumerate()
            .filter(|(_, valid)| *valid)
    };
    let is_finite = |slot: usize| {
        let weight = match &case.weight {
            Weight::PerToken(weights) => weights[slot],
            _ => 1.0,
        };
        let reference = case.ref_log_prob.as_ref();
        weight.is_finite() && reference.is_none_or(|values| values.tensor().get(slot).is_finite())
    };
    let active_only = case.config.metrics_scope == MetricsScope::Active;
    let by_token = active_only && matches!(case.advantage, Source::PerToken(_));
    let is_gspo = matches!(case.config.objective, Objective::Gspo { .. });
    is_gspo && (by_token || slots().any(|(slot, _)| !is_finite(slot)))
}

/// Everything that a run leaves, as bits.
pub fn bits(output: &LossOutput) -> (Vec<u64>, Vec<u32>, String) {
    let mut values = output.d_log_prob.clone();
    values.extend(output.baseline.iter().flatten());
    values.extend(output.advantage.iter().flatten());
    let m = &output.metrics;
    values.extend([
        m.loss,
        m.pg_loss,
        m.kl_loss,
        m.neg_log_ratio_sum,
        m.min_ratio,
        m.max_ratio,
    ]);
    let bits = values.iter().map(|value| value.to_bits()).collect();
    // The text of a float is exact, so that the counts and floats of the metrics are compared whole.
    (bits, output.active_rows.clone(), format!("{m:?}"))
}
