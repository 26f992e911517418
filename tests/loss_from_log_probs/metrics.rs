//! Counts and sums besides the loss, and the bytes that the CPU declares.

use crate::case::{Case, plain_clip};
use crate::runners;
use qae::{Backend, Config, CpuBackend, Gradient, Metrics, MetricsScope, Normalizer};
use qae::{Objective, TokenBatch};
use qae_test_support::{Advantage, assert_close};

/// Row 0: A > 0, row 1: A = 0, row 2: A < 0; the last slot of each masked.
fn three_signs() -> Case {
    let log_ratios = [0.5, -0.5, 2.0, 9.0];
    let log_prob: Vec<f32> = log_ratios.iter().map(|delta| delta - 2.0).collect();
    Case {
        num_rows: 3,
        width: 4,
        mask: Some([1, 1, 1, 0].repeat(3)),
        log_prob: log_prob.repeat(3),
        old_log_prob: Some(vec![-2.0; 12]),
        advantage: Advantage::PerResponse(vec![1.0, 0.0, -1.0]),
        ..Case::row(&[0.0], 0.0)
    }
}

#[test]
fn counts_of_all_tokens_and_of_active_tokens() {
    let case = three_signs();
    for runner in runners() {
        for (metrics_scope, rows) in [(MetricsScope::All, 3.0), (MetricsScope::Active, 2.0)] {
            let config = Config {
                metrics_scope,
                ..Config::default()
            };
            let metrics = runner.run(&case.batch(), &config).metrics;
            assert_eq!(metrics.scope, metrics_scope);
            assert_eq!(
                (metrics.positive, metrics.zero, metrics.negative),
                (1, 1, 1)
            );
            assert_eq!((metrics.active, metrics.active_tokens), (2, 6));
            assert_eq!(metrics.tokens, 3 * rows as u64);
            // A > 0: both large ratios; A < 0: the small one, and e² is held by the dual clip.
            assert_eq!((metrics.clipped_above, metrics.clipped_below), (2, 1));
            assert_eq!(metrics.dual_clipped, 1);
            assert_close(&[metrics.clip_fraction()], &[1.0 / rows], 1e-15, "clipped");
            let dual = 1.0 / (3.0 * rows);
            assert_close(&[metrics.dual_clip_fraction()], &[dual], 1e-15, "dual");
            runner.assert_close(&[metrics.approx_kl()], &[-2.0 / 3.0], "approx_kl");
            let range = [metrics.min_ratio, metrics.max_ratio];
            runner.assert_close(&range, &[(-0.5_f64).exp(), 2_f64.exp()], "ratios");
            metrics.check().unwrap();
        }
    }
}

#[test]
fn cispo_counts_bounds_whatever_the_sign() {
    let config = Config {
        objective: Objective::Cispo {
            low: Some(0.2),
            high: Some(0.28),
        },
        ..Config::default()
    };
    for runner in runners() {
        let metrics = runner.run(&three_signs().batch(), &config).metrics;
        assert_eq!((metrics.clipped_above, metrics.clipped_below), (6, 3));
    }
}

#[test]
fn log_ratios_are_reported_after_their_clamp() {
    let case = Case::row(&[30.0, -40.0, 1.0], 1.0);
    let clamped = [-(20.0 - 20.0 + 1.0), (-20_f64).exp(), 20_f64.exp()];
    let raw = [-(30.0 - 40.0 + 1.0), (-40_f64).exp(), 30_f64.exp()];
    for (objective, expected) in [
        (plain_clip().objective, clamped),
        (Objective::Reinforce, raw),
    ] {
        let config = Config {
            objective,
            ..Config::default()
        };
        for runner in runners() {
            let metrics = runner.run(&case.batch(), &config).metrics;
            for (found, expected) in [
                metrics.neg_log_ratio_sum,
                metrics.min_ratio,
                metrics.max_ratio,
            ]
            .into_iter()
            .zip(expected)
            {
                runner.assert_close(&[found], &[expected], "log-ratio");
            }
        }
    }
}

#[test]
fn reinforce_needs_no_ratio() {
    let mut case = Case::row(&[0.0, 0.5], 2.0);
    case.old_log_prob = None;
    let config = Config {
        objective: Objective::Reinforce,
        ..Config::default()
    };
    for runner in runners() {
        let output = runner.run(&case.batch(), &config);
        assert_eq!(output.d_log_prob, [-1.0, -1.0]);
        assert_eq!(output.metrics.loss, 3.5);
        assert_eq!(output.metrics.approx_kl(), 0.0);
        assert_eq!(output.metrics.max_ratio, f64::NEG_INFINITY);
        case.log_prob[1] = f32::NAN;
        let output = runner.run(&case.batch(), &config);
        assert_eq!(output.d_log_prob, [-1.0, 0.0]);
        assert_eq!(output.metrics.nonfinite_tokens, 1);
        case.log_prob[1] = -1.5;
    }
}

#[test]
fn advantages_of_tokens_make_rows_active_but_give_them_no_sign() {
    let case = Case {
        advantage: Advantage::PerToken(
            [[1.0, 0.0, -1.0, 5.0], [0.0; 4], [0.0, 0.0, 0.0, 7.0]].concat(),
        ),
        ..three_signs()
    };
    for runner in runners() {
        let output = runner.run(&case.batch(), &Config::default());
        let metrics = output.metrics;
        // The third row's only advantage is at a masked slot.
        assert_eq!(
            (metrics.positive, metrics.zero, metrics.negative),
            (0, 2, 0)
        );
        assert_eq!((metrics.active, metrics.active_tokens), (1, 2));
        assert_eq!(output.active_rows, [0]);
    }
}

#[test]
fn check_accepts_an_empty_count() {
    let clean = Metrics::empty(MetricsScope::All);
    clean.check().unwrap();
    for (field, broken) in [
        (
            "log-ratios",
            Metrics {
                nonfinite_tokens: 2,
                ..clean
            },
        ),
        (
            "row indices",
            Metrics {
                out_of_range: 1,
                ..clean
            },
        ),
    ] {
        let error = broken.check().unwrap_err().to_string();
        assert!(error.starts_with(field), "{error}");
    }
}

fn bytes(batch: &TokenBatch<'_>, config: &Config) -> u64 {
    CpuBackend
        .loss_from_log_probs(batch, config)
        .unwrap()
        .bytes_moved
}

#[test]
fn the_cpu_declares_what_it_reads_and_writes() {
    let case = Case {
        mask: None,
        ..three_signs()
    };
    let all = Config {
        normalizer: Normalizer::Value(9.0),
        ..Config::default()
    };
    // Two f32 reads and one f64 write for each slot.
    assert_eq!(bytes(&case.batch(), &all), 12 * (4 + 4 + 8));
    let active = Config {
        metrics_scope: MetricsScope::Active,
        ..all
    };
    // The inactive row is only filled with 0, or not at all.
    assert_eq!(bytes(&case.batch(), &active), 8 * 16 + 4 * 8);
    let untouched = Config {
        gradient: Gradient::Untouched,
        ..active
    };
    assert_eq!(bytes(&case.batch(), &untouched), 8 * 16);
    // A mask is read with the rows, and once more to count them.
    let masked = three_signs();
    assert_eq!(bytes(&masked.batch(), &untouched), 8 * 17);
    let counted = Config {
        normalizer: Normalizer::FromBatch,
        ..untouched
    };
    assert_eq!(bytes(&masked.batch(), &counted), 8 * 17 + 12);
}
