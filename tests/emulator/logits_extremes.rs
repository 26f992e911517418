//! Logits that are far apart, infinite or no numbers, and tokens that cannot be.

use qae::params::RowPolicy;
use qae::{DType, Gradient, MetricsScope, Objective};
use qae_emulator::{LogitsRun, Options};
use qae_test_support::Random;

use crate::case::{Rows, Source, Values};
use crate::logits_case::LogitsCase;
use crate::logits_compare::{bits, check, check_output};
use crate::random::vec_of;

const POLICIES: [RowPolicy; 2] = [RowPolicy::Cluster, RowPolicy::Block];

/// Values that no softmax may be made of.
const UNUSABLE: [f32; 2] = [f32::NAN, f32::INFINITY];

/// Runs the case under each policy; the results agree with the reference.
fn check_policies(case: &LogitsCase, what: &str) -> Vec<LogitsRun> {
    POLICIES
        .iter()
        .map(|&row_policy| {
            let mut case = case.clone();
            case.backend.logits.row_policy = row_policy;
            check(&case, &format!("{what}, {row_policy:?}"))
        })
        .collect()
}

fn set_row(case: &mut LogitsCase, row: usize, value: impl Fn(usize) -> f32) {
    for j in 0..case.vocab_size {
        case.logits.set(row * case.row_stride + j, value(j));
    }
}

#[test]
fn columns_of_probability_zero() {
    for dtype in [DType::F32, DType::Bf16] {
        for vocab_size in [9, 1000, 9000] {
            let mut case = LogitsCase::fill(1, Rows::padded(3, 2), vocab_size, dtype);
            case.config.entropy_coef = 0.01;
            for row in 0..6 {
                let own = case.token_id[row] as usize;
                // Scattered columns, the leading half, all but the token.
                let is_gone = |j: usize| match row % 3 {
                    0 => j.is_multiple_of(3),
                    1 => j < case.vocab_size / 2,
                    _ => true,
                };
                let gone = (0..case.vocab_size).filter(|&j| j != own && is_gone(j));
                for j in gone.collect::<Vec<_>>() {
                    case.logits
                        .set(row * case.row_stride + j, f32::NEG_INFINITY);
                }
            }
            case.set_log_ratios(|slot| 0.1 * slot as f32 - 0.35);
            for run in check_policies(&case, "-inf") {
                assert_eq!(run.output.loss.metrics.nonfinite_tokens, 0);
                let alone = &run.output.d_logits[2 * vocab_size..3 * vocab_size];
                let largest = alone.iter().fold(0.0_f64, |max, x| max.max(x.abs()));
                assert!(largest <= 1e-6, "the token is certain: {largest}");
            }
        }
    }
}

/// At ±1e4 and a temperature of 0.7 everything near the maximum is as exact as anywhere.
#[test]
fn logits_far_from_zero_lose_nothing() {
    for offset in [1e4_f32, -1e4] {
        for vocab_size in [64, 5000] {
            let mut case = LogitsCase::fill(2, Rows::padded(2, 3), vocab_size, DType::F32);
            let random = &mut Random(3);
            let logits = vec_of(6 * vocab_size, |_| offset + random.between(-8.0, 8.0));
            case.logits = Values::F32(logits);
            case.config.temperature = 0.7;
            case.config.entropy_coef = 0.01;
            case.set_log_ratios(|slot| 0.1 * slot as f32 - 0.35);
            let expected = case.expected();
            for run in check_policies(&case, "far from zero") {
                let pairs = [
                    (&run.output.log_prob, &expected.log_prob),
                    (&run.output.entropy, &expected.entropy),
                    (&run.output.d_logits, &expected.d_logits),
                ];
                for (found, expected) in pairs {
                    for (found, expected) in found.iter().zip(expected) {
                        let error = (found - expected).abs();
                        assert!(error <= 1e-5, "{found} instead of {expected}");
                    }
                }
            }
        }
    }
}

/// Logits of both signs: a log-prob of −28,571 is as exact as f32 holds it.
#[test]
fn logits_far_from_each_other() {
    for dtype in [DType::F32, DType::Bf16] {
        let mut case = LogitsCase::fill(4, Rows::padded(2, 3), 300, dtype);
        let logits = vec_of(6 * 300, |i| {
            if i % 7 == 0 {
                1e4
            } else {
                -1e4 + (i % 5) as f32
            }
        });
        case.logits = Values::new(dtype, &logits);
        case.config.temperature = 0.7;
        case.config.objective = Objective::Reinforce;
        case.config.entropy_coef = 0.5;
        case.old_log_prob = None;
        let expected = case.expected();
        for run in check_policies(&case, "far apart") {
            for (found, expected) in run.output.log_prob.iter().zip(&expected.log_prob) {
                let error = (found - expected).abs();
                assert!(
                    error <= 1e-5 * expected.abs().max(1.0),
                    "{found}, {expected}"
                );
            }
        }
    }
}

/// Equal logits, and one that outweighs all: entropies of ln V and 0.
#[test]
fn uniform_and_certain_rows() {
    for vocab_size in [1, 2, 100, 5000] {
        let mut case = LogitsCase::fill(5, Rows::padded(1, 2), vocab_size, DType::F32);
        set_row(&mut case, 0, |_| 3.25);
        let own = case.token_id[1] as usize;
        set_row(&mut case, 1, |j| if j == own { 500.0 } else { -500.0 });
        case.set_log_ratios(|_| 0.0);
        for run in check_policies(&case, "uniform and certain") {
            let entropy = &run.output.entropy;
            let error = (entropy[0] - (vocab_size as f64).ln()).abs();
            assert!(error <= 1e-5, "{}", entropy[0]);
            let log_prob = run.output.log_prob[1];
            assert!((-1e-7..=0.0).contains(&log_prob), "{log_prob}");
            assert!(entropy[1] >= 0.0 && entropy[1] <= 1e-6, "{}", entropy[1]);
            assert!(run.output.d_logits[vocab_size..].iter().all(|&x| x == 0.0));
        }
    }
}

/// Such a token has a log-prob of −∞ and an entropy, and is left out of the loss.
#[test]
fn tokens_of_probability_zero_are_left_out_and_counted() {
    for scope in [MetricsScope::All, MetricsScope::Active] {
        let mut case = LogitsCase::fill(6, Rows::padded(3, 2), 700, DType::F32);
        case.config.metrics_scope = scope;
        case.config.entropy_coef = 0.25;
        for slot in [1, 2, 4] {
            case.logits
                .set(slot * 700 + case.token_id[slot] as usize, f32::NEG_INFINITY);
        }
        for run in check_policies(&case, "own -inf") {
            assert_eq!(run.output.log_prob[1], f64::NEG_INFINITY);
            assert!(run.output.entropy[1] > 0.0);
            assert_eq!(run.output.loss.metrics.nonfinite_tokens, 3);
        }
    }
}

#[test]
fn rows_that_are_unusable_are_left_out_and_counted() {
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        for vocab_size in [40, 3000] {
            for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut case = LogitsCase::fill(7, Rows::padded(4, 2), vocab_size, dtype);
                case.config.entropy_coef = 0.25;
                // One value anywhere, or the whole row.
                for (row, column) in [(0, 0), (3, vocab_size / 2), (6, vocab_size - 1)] {
                    case.logits.set(row * vocab_size + column, value);
                }
                set_row(&mut case, 5, |_| value);
                for run in check_policies(&case, &format!("{value} among {vocab_size}")) {
                    assert!(run.output.log_prob[5].is_nan() && run.output.entropy[5].is_nan());
                    let gradient = &run.output.d_logits[5 * vocab_size..6 * vocab_size];
                    assert!(gradient.iter().all(|x| x.to_bits() == 0));
                }
            }
        }
    }
}

/// Whatever stands in rows that do not act or are masked, not a bit of the results depends on it.
#[test]
fn rows_that_are_not_read_leave_no_trace() {
    for gradient in [Gradient::ZeroFill, Gradient::Untouched, Gradient::Compact] {
        let mut case = LogitsCase::fill(8, Rows::padded(6, 3), 90, DType::F32);
        case.config.gradient = gradient;
        case.config.metrics_scope = MetricsScope::Active;
        case.mask = Some(vec_of(18, |slot| u8::from(slot % 4 != 1)));
        let plain = check_policies(&case, "plain");
        let Source::PerResponse(advantages) = case.advantage.clone() else {
            unreachable!("the case has an advantage for each response")
        };
        for value in UNUSABLE {
            for slot in case.slots() {
                let acts = advantages[slot.token / 3] != 0.0;
                if !acts || !case.is_valid(&slot) {
                    set_row(&mut case, slot.token, |_| value);
                }
            }
            let poisoned = check_policies(&case, "poisoned");
            for (plain, poisoned) in plain.iter().zip(&poisoned) {
                assert_eq!(bits(&plain.output), bits(&poisoned.output));
            }
        }
    }
}

/// With the scope of all tokens they are read, and may be anything but counted.
#[test]
fn unusable_rows_of_inactive_responses_are_harmless() {
    for value in UNUSABLE {
        let mut case = LogitsCase::fill(9, Rows::padded(6, 1), 90, DType::F32);
        set_row(&mut case, 1, |_| value);
        for run in check_policies(&case, "inactive") {
            assert_eq!(run.output.loss.metrics.nonfinite_tokens, 0);
            assert!(run.output.loss.metrics.loss.is_finite());
        }
    }
}

#[test]
fn token_ids_outside_the_vocabulary_are_refused_by_name() {
    for (id, slot) in [(90, 3), (-1, 0), (i32::MAX, 5), (i32::MIN, 2)] {
        let mut case = LogitsCase::fill(10, Rows::padded(3, 2), 90, DType::F32);
        case.token_id[slot] = id;
        let error = case
            .backend
            .run_loss_from_logits(&case.batch(), &case.config)
            .unwrap_err();
        let message = error.to_string();
        assert!(message.contains(&format!("token_id[{slot}]")), "{message}");
        assert!(message.contains(&id.to_string()), "{message}");
    }
}

/// The device counts them, and takes the row for an unusable one.
#[test]
fn token_ids_that_only_the_device_sees_are_counted() {
    let narrow: [i64; 4] = [90, -1, i64::from(i32::MAX), i64::from(i32::MIN)];
    let wide: [i64; 4] = [90, -1, (1 << 32) + 5, i64::MIN];
    for (wide_token_ids, bad) in [(false, narrow), (true, wide)] {
        let mut case = LogitsCase::fill(11, Rows::padded(6, 2), 90, DType::F32);
        case.config.entropy_coef = 0.25;
        let mut ids: Vec<i64> = case.token_id.iter().map(|&id| i64::from(id)).collect();
        let mut same = case.clone();
        for (&slot, id) in [0, 5, 6, 11].iter().zip(bad) {
            ids[slot] = id;
            set_row(&mut same, slot, |_| f32::NAN);
        }
        let mut expected = same.expected();
        let metrics = &mut expected.loss.metrics;
        metrics.out_of_range = std::mem::take(&mut metrics.nonfinite_tokens);
        assert_eq!(metrics.out_of_range, 4);
        for row_policy in POLICIES {
            case.backend.options = Options::default();
            case.backend.logits.row_policy = row_policy;
            case.backend.logits.wide_token_ids = wide_token_ids;
            case.backend.device_indices.token_id = Some(ids.clone());
            let run = case
                .backend
                .run_loss_from_logits(&case.batch(), &case.config)
                .unwrap();
            check_output(&same, &run.output, &expected, &format!("{row_policy:?}"));
        }
    }
}

#[test]
fn nothing_valid_gives_zero_everywhere() {
    for gradient in [Gradient::ZeroFill, Gradient::Untouched, Gradient::Compact] {
        let mut case = LogitsCase::fill(12, Rows::padded(3, 2), 37, DType::F32);
        case.mask = Some(vec![0; 6]);
        case.config.gradient = gradient;
        case.config.entropy_coef = 0.25;
        case.poison_invalid();
        for run in check_policies(&case, "all masked") {
            assert_eq!(run.output.loss.metrics.loss.to_bits(), 0);
            assert!(run.output.d_logits.iter().all(|x| x.to_bits() == 0));
        }
    }
}

#[test]
fn batches_without_rows_or_slots() {
    for layout in [
        Rows::packed(&[]),
        Rows::packed(&[0, 0]),
        Rows::padded(0, 5),
        Rows::padded(3, 0),
    ] {
        for gradient in [Gradient::ZeroFill, Gradient::Compact] {
            let mut case = LogitsCase::fill(13, layout.clone(), 37, DType::F32);
            case.config.gradient = gradient;
            for run in check_policies(&case, &format!("{layout:?}")) {
                assert_eq!(run.output.loss.metrics.loss, 0.0);
            }
        }
    }
}
