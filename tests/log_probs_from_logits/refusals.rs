//! What does not fit is refused by name, before anything is computed.

use crate::backends;
use crate::case::Rows;
use qae::{Backend, Config, Error, LogProbsInput, Logits, Run, Tensor, TokenBatch};

fn rows() -> Rows {
    Rows::random(61, 3, 4)
}

/// Asserts that every backend refuses the input, forward and backward, with this message.
fn assert_refused(input: &LogProbsInput<'_>, message: &str) {
    let derivatives = vec![1.0; input.token_id.len()];
    for backend in backends() {
        let error = backend.log_probs_from_logits(input).unwrap_err();
        assert_eq!(error.to_string(), message);
        let run = backend.log_probs_from_logits_backward(input, &derivatives, None);
        assert_eq!(run.unwrap_err().to_string(), message);
    }
}

#[test]
fn wrong_shapes_and_strides() {
    let rows = rows();
    let with = |values: &'static [f32], vocab_size, row_stride, response_stride| LogProbsInput {
        logits: Logits {
            values: Tensor::F32(values),
            vocab_size,
            row_stride,
            response_stride,
        },
        ..rows.input()
    };
    static VALUES: [f32; 16] = [0.0; 16];
    let none = "none, since only the responses of a padded layout have one";
    for (input, message) in [
        (
            with(&VALUES[..11], 4, 4, None),
            "logits: expected 12 elements, found 11",
        ),
        (
            with(&VALUES[..13], 4, 5, None),
            "logits: expected 14 to 15 elements, found 13",
        ),
        (
            with(&VALUES, 4, 5, None),
            "logits: expected 14 to 15 elements, found 16",
        ),
        (
            with(&VALUES[..12], 4, 3, None),
            "logits.row_stride: expected at least the vocabulary of 4, found 3",
        ),
        (
            with(&VALUES[..12], 4, 4, Some(4)),
            &format!("logits.response_stride: expected {none}, found 4"),
        ),
        (
            with(&VALUES, 0, 4, None),
            "vocab_size: expected at least 1 and at most 2147483647, found 0",
        ),
        (
            with(&VALUES, 1 << 31, 1 << 31, None),
            "vocab_size: expected at least 1 and at most 2147483647, found 2147483648",
        ),
    ] {
        assert_refused(&input, message);
    }
    for stride in [usize::MAX, usize::MAX / 2, i64::MAX as usize / 3, 1 << 60] {
        let found = format!("found {stride} and 0");
        let message = format!("logits strides: expected offsets below 2^63 bytes, {found}");
        assert_refused(&with(&VALUES, 4, stride, None), &message);
    }
}

#[test]
fn wrong_masks_and_temperatures() {
    let rows = rows();
    let masked = LogProbsInput {
        mask: Some(&[1; 4]),
        ..rows.input()
    };
    assert_refused(&masked, "mask: expected 3 elements, found 4");
    for (temperature, found) in [
        (0.0, "0"),
        (-1.0, "-1"),
        (f64::NAN, "NaN"),
        (f64::INFINITY, "inf"),
    ] {
        let input = LogProbsInput {
            temperature,
            ..rows.input()
        };
        let message = format!("temperature: expected a finite number above 0, found {found}");
        assert_refused(&input, &message);
    }
}

#[test]
fn token_ids_outside_the_vocabulary() {
    let mut rows = rows();
    for bad in [4, -1, i32::MIN, i32::MAX] {
        rows.token_id[1] = bad;
        let message = format!("token_id[1]: expected at least 0 and less than 4, found {bad}");
        assert_refused(&rows.input(), &message);
    }
}

#[test]
fn derivatives_that_are_not_one_for_each_row() {
    let rows = rows();
    for backend in backends() {
        for (g, h, message) in [
            (
                &[1.0; 2][..],
                None,
                "d_log_prob: expected shape [3], one for each row, found [2]",
            ),
            (
                &[1.0; 3],
                Some(&[1.0; 4][..]),
                "d_entropy: expected shape [3], one for each row, found [4]",
            ),
        ] {
            let run = backend.log_probs_from_logits_backward(&rows.input(), g, h);
            assert_eq!(run.unwrap_err().to_string(), message);
        }
    }
}

/// Has the one operation that every backend must have.
struct LogProbsOnly;

impl Backend for LogProbsOnly {
    fn name(&self) -> String {
        "log-probs only".to_owned()
    }

    fn loss_from_log_probs(&self, _: &TokenBatch<'_>, _: &Config) -> qae::Result<Run> {
        unreachable!("not called here")
    }
}

#[test]
fn a_backend_without_the_operations_says_so() {
    let rows = rows();
    let error = LogProbsOnly
        .log_probs_from_logits(&rows.input())
        .unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }));
    let message =
        "log-probs only: log_probs_from_logits is not supported (supported: loss_from_log_probs)";
    assert_eq!(error.to_string(), message);
    let run = LogProbsOnly.log_probs_from_logits_backward(&rows.input(), &[1.0; 3], None);
    assert!(matches!(run, Err(Error::Unsupported { .. })));
}
