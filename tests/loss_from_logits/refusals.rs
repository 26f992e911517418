//! What does not fit is refused by name, before anything is computed.

use crate::backends;
use crate::case::Case;
use qae::{
    Advantages, Backend, Config, CpuBackend, Error, Gradient, Groups, Layout, Logits, LogitsBatch,
    LogitsLayout, Tensor, TokenBatch,
};
use qae_test_support::kls;

fn case() -> Case {
    Case {
        ref_log_prob: None,
        ..Case::random(91, 3, 4, 5)
    }
}

/// Asserts that every backend refuses the batch with this message.
fn assert_refused(batch: &LogitsBatch<'_>, config: &Config, message: &str) {
    for backend in backends() {
        let result = backend.loss_from_logits(batch, config);
        assert_eq!(result.map(|_| ()).unwrap_err().to_string(), message);
    }
}

#[test]
fn missing_tensors() {
    let case = case();
    let config = Config {
        kl: kls()[3],
        ..Config::default()
    };
    let expected = "the log-probs of the reference policy, for the KL term";
    let message = format!("ref_log_prob: expected {expected}, found nothing");
    assert_refused(&case.batch(), &config, &message);
    let without_old = LogitsBatch {
        old_log_prob: None,
        ..case.batch()
    };
    let expected = "the log-probs of the policy that sampled";
    let message = format!("old_log_prob: expected {expected}, found nothing");
    assert_refused(&without_old, &Config::default(), &message);
    let error = without_old.check(&Config::default()).unwrap_err();
    assert!(matches!(error, Error::Missing { .. }));
}

#[test]
fn wrong_shapes_of_tokens() {
    let case = case();
    let base = case.batch();
    let short = &[0.0; 11];
    for (batch, message) in [
        (
            LogitsBatch {
                token_id: &[0; 11],
                ..base
            },
            "token_id: expected 12 elements, found 11",
        ),
        (
            LogitsBatch {
                old_log_prob: Some(Tensor::F32(short)),
                ..base
            },
            "old_log_prob: expected 12 elements, found 11",
        ),
        (
            LogitsBatch {
                ref_log_prob: Some(Tensor::F32(short)),
                ..base
            },
            "ref_log_prob: expected 12 elements, found 11",
        ),
        (
            LogitsBatch {
                mask: Some(&[1; 13]),
                ..base
            },
            "mask: expected 12 elements, found 13",
        ),
        (
            LogitsBatch {
                advantages: Advantages::PerToken(short),
                ..base
            },
            "advantages: expected 12 elements, found 11",
        ),
        (
            LogitsBatch {
                advantages: Advantages::PerResponse(&[1.0; 2]),
                ..base
            },
            "advantages: expected shape [3], one for each row, found [2]",
        ),
    ] {
        assert_refused(&batch, &Config::default(), message);
    }
}

#[test]
fn wrong_shapes_and_strides_of_logits() {
    let case = case();
    let values = [0.0; 80];
    let with = |len: usize, row_stride, response_stride| LogitsBatch {
        logits: Logits {
            values: Tensor::F32(&values[..len]),
            vocab_size: 5,
            row_stride,
            response_stride,
        },
        ..case.batch()
    };
    for (batch, message) in [
        (with(59, 5, None), "logits: expected 60 elements, found 59"),
        (with(61, 5, None), "logits: expected 60 elements, found 61"),
        (
            with(70, 6, None),
            "logits: expected 71 to 72 elements, found 70",
        ),
        (
            with(69, 5, Some(25)),
            "logits: expected 70 to 75 elements, found 69",
        ),
        (
            with(60, 4, None),
            "logits.row_stride: expected at least the vocabulary of 5, found 4",
        ),
        (
            with(60, 5, Some(19)),
            "logits.response_stride: expected at least the 20 elements of a response, found 19",
        ),
    ] {
        assert_refused(&batch, &Config::default(), message);
    }
}

#[test]
fn sizes_near_the_end_of_the_address_space() {
    let case = case();
    let with = |vocab_size, row_stride, response_stride| LogitsBatch {
        logits: Logits {
            vocab_size,
            row_stride,
            response_stride,
            ..case.batch().logits
        },
        ..case.batch()
    };
    let far = "logits strides: expected offsets below 2^63 bytes, found";
    for (batch, message) in [
        (
            with(5, usize::MAX, None),
            format!("{far} 4 x {}", usize::MAX),
        ),
        (
            with(5, usize::MAX, Some(usize::MAX)),
            format!("{far} {0} and {0}", usize::MAX),
        ),
        (
            with(5, 5, Some(usize::MAX / 2 + 1)),
            format!("{far} 5 and {}", usize::MAX / 2 + 1),
        ),
        (
            with(5, 5, Some(1 << 60)),
            format!("{far} 5 and {}", 1_u64 << 60),
        ),
        (
            with(5, 1 << 59, None),
            format!("{far} {} and {}", 1_u64 << 59, 1_u64 << 61),
        ),
        (
            with(usize::MAX, usize::MAX, Some(0)),
            format!(
                "vocab_size: expected at least 1 and at most 2147483647, found {}",
                usize::MAX
            ),
        ),
        (
            with(0, 5, None),
            "vocab_size: expected at least 1 and at most 2147483647, found 0".to_owned(),
        ),
    ] {
        assert_refused(&batch, &Config::default(), &message);
    }
    let layout = Layout::padded(usize::MAX, 4).into();
    let batch = LogitsBatch {
        layout,
        ..case.batch()
    };
    let message = format!(
        "num_rows: expected at most 2147483647, found {}",
        usize::MAX
    );
    assert_refused(&batch, &Config::default(), &message);
}

#[test]
fn a_response_stride_without_padded_responses() {
    let case = case();
    let logits = Logits {
        response_stride: Some(20),
        ..case.batch().logits
    };
    let response = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2];
    let offsets = [0, 4, 8, 12];
    for layout in [
        Layout::Packed { offsets: &offsets }.into(),
        LogitsLayout::Indexed {
            response: &response,
            num_responses: 3,
        },
    ] {
        let batch = LogitsBatch {
            layout,
            logits,
            ..case.batch()
        };
        let expected = "none, since only the responses of a padded layout have one";
        let message = format!("logits.response_stride: expected {expected}, found 20");
        assert_refused(&batch, &Config::default(), &message);
    }
}

#[test]
fn indices_out_of_range() {
    let case = case();
    let base = case.batch();
    let response = [0, 1, 2, 0, 1, 3, -1, 0, 0, 0, 0, 0];
    let groups = Groups::uniform(4, 2).unwrap();
    for (batch, message) in [
        (
            LogitsBatch {
                layout: LogitsLayout::Indexed {
                    response: &response,
                    num_responses: 3,
                },
                ..base
            },
            "response[5]: expected less than 3, the number of responses, found 3",
        ),
        (
            LogitsBatch {
                layout: LogitsLayout::Indexed {
                    response: &response[..5],
                    num_responses: 3,
                },
                ..base
            },
            "token_id: expected 5 elements, found 12",
        ),
        (
            LogitsBatch {
                layout: Layout::Packed {
                    offsets: &[0, 5, 4, 12],
                }
                .into(),
                ..base
            },
            "offsets[2]: expected at least 5, found 4",
        ),
        (
            LogitsBatch {
                advantages: Advantages::FromRewards {
                    rewards: &[1.0; 4],
                    groups: &groups,
                    response_index: Some(&[0, 4, 1]),
                },
                ..base
            },
            "response_index[1]: expected at least 0 and less than 4, found 4",
        ),
    ] {
        assert_refused(&batch, &Config::default(), message);
    }
}

#[test]
fn token_ids_outside_the_vocabulary() {
    let mut case = case();
    case.mask = None;
    for bad in [5, -1, i32::MIN, i32::MAX] {
        case.token_id[7] = bad;
        let message = format!("token_id[7]: expected at least 0 and less than 5, found {bad}");
        assert_refused(&case.batch(), &Config::default(), &message);
    }
}

#[test]
fn log_probs_of_two_dtypes() {
    let case = case();
    let narrow = [half::bf16::ZERO; 12];
    let batch = LogitsBatch {
        ref_log_prob: Some(Tensor::Bf16(&narrow)),
        ..case.batch()
    };
    let message = "ref_log_prob: expected dtype F32 as old_log_prob, found Bf16";
    assert_refused(&batch, &Config::default(), message);
}

#[test]
fn configurations_out_of_range() {
    let case = case();
    let with_temperature = |temperature| Config {
        temperature,
        ..Config::default()
    };
    for (config, message) in [
        (
            with_temperature(0.0),
            "temperature: expected a finite number above 0, found 0",
        ),
        (
            with_temperature(f64::INFINITY),
            "temperature: expected a finite number above 0, found inf",
        ),
        (
            Config {
                entropy_coef: f64::NAN,
                ..Config::default()
            },
            "entropy_coef: expected a finite number, found NaN",
        ),
    ] {
        assert_refused(&case.batch(), &config, message);
    }
}

#[test]
fn log_probs_take_neither_an_entropy_term_nor_compact_rows() {
    let log_prob = [-1.0];
    let batch = TokenBatch {
        layout: Layout::padded(1, 1),
        mask: None,
        log_prob: Tensor::F32(&log_prob),
        old_log_prob: Some(Tensor::F32(&log_prob)),
        ref_log_prob: None,
        importance_weight: None,
        advantages: Advantages::PerResponse(&[1.0]),
    };
    for (config, message) in [
        (
            Config {
                entropy_coef: 0.5,
                ..Config::default()
            },
            "entropy_coef: expected 0, since log-probs carry no entropy, found 0.5",
        ),
        (
            Config {
                gradient: Gradient::Compact,
                ..Config::default()
            },
            "gradient: expected zero fill or untouched, since compact rows are rows of logits, \
             found compact",
        ),
    ] {
        for backend in backends() {
            let result = backend.loss_from_log_probs(&batch, &config);
            assert_eq!(result.map(|_| ()).unwrap_err().to_string(), message);
        }
    }
    let warm = Config {
        temperature: 0.5,
        ..Config::default()
    };
    let run = |config: &Config| {
        CpuBackend
            .loss_from_log_probs(&batch, config)
            .unwrap()
            .output
    };
    assert_eq!(run(&warm).metrics, run(&Config::default()).metrics);
}
