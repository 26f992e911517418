//! Log-probs and entropy from logits, their gradient, and both from shards of a vocabulary, against
//! the f64 reference.

use qae::batch::LogProbsInput;
use qae::params::RowPolicy;
use qae::{DType, Gradient, Logits, Tensor, reference};
use qae_emulator::{EmulatorBackend, LogitsPlacement, Options, Order};
use qae_test_support::Random;

use crate::case::Values;
use crate::compare::TOLERANCE;
use crate::logits_compare::{RowError, rounding};
use crate::random::vec_of;

const DTYPES: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];

/// Rows that own their tensors.
#[derive(Clone, Debug)]
pub struct LogProbRows {
    pub values: Values,
    pub vocab_size: usize,
    pub row_stride: usize,
    pub token_id: Vec<i32>,
    pub mask: Option<Vec<u8>>,
    pub temperature: f64,
    pub backend: EmulatorBackend,
}

/// Contiguous rows, all from `seed`.
pub fn rows(seed: u64, num_rows: usize, vocab_size: usize, dtype: DType) -> LogProbRows {
    let random = &mut Random(seed);
    let values = random.values(num_rows * vocab_size, -6.0, 6.0);
    LogProbRows {
        values: Values::new(dtype, &values),
        vocab_size,
        row_stride: vocab_size,
        token_id: vec_of(num_rows, |_| random.below(vocab_size) as i32),
        mask: None,
        temperature: 1.0,
        backend: EmulatorBackend::default(),
    }
}

impl LogProbRows {
    pub fn input(&self) -> LogProbsInput<'_> {
        LogProbsInput {
            logits: Logits {
                values: self.values.tensor(),
                vocab_size: self.vocab_size,
                row_stride: self.row_stride,
                response_stride: None,
            },
            token_id: &self.token_id,
            mask: self.mask.as_deref(),
            temperature: self.temperature,
        }
    }

    fn row(&self, row: usize) -> Vec<f64> {
        let tensor: Tensor<'_> = self.values.tensor();
        let columns = row * self.row_stride..row * self.row_stride + self.vocab_size;
        columns.map(|index| tensor.get(index)).collect()
    }

    fn is_masked(&self, row: usize) -> bool {
        self.mask.as_ref().is_some_and(|mask| mask[row] == 0)
    }

    fn error(&self, row: usize) -> RowError {
        let logits = self.row(row);
        let own = logits[self.token_id[row].max(0) as usize];
        RowError::of(&logits, own, self.temperature)
    }

    /// 0 for a row that is masked or of which nothing finite can be said, or that nothing acts on.
    fn gradient_error(&self, row: usize, g: f64, h: f64) -> f64 {
        if self.is_masked(row) {
            return 0.0;
        }
        let error = self.error(row).gradient(g, h) / self.temperature;
        if error.is_finite() { error } else { 0.0 }
    }

    /// The gradients with respect to each row's log-prob and entropy; some are 0.
    fn gradients(&self, seed: u64) -> (Vec<f32>, Vec<f32>) {
        let random = &mut Random(seed);
        let any = |random: &mut Random| match random.below(3) {
            0 => 0.0,
            _ => random.between(-2.0, 2.0),
        };
        let rows = self.token_id.len();
        (vec_of(rows, |_| any(random)), vec_of(rows, |_| any(random)))
    }

    /// Asserts that log-probs, entropies and log-sum-exps agree with the reference.
    fn check_forward(&self, found: &qae::LogProbsOutput, what: &str) {
        let expected = reference::log_probs_from_logits(&self.input()).unwrap();
        for row in 0..self.token_id.len() {
            let error = match self.is_masked(row) {
                true => RowError::default(),
                false => self.error(row),
            };
            let of_max = TOLERANCE * expected.log_sum_exp[row].abs();
            for (name, found, expected, bound) in [
                (
                    "log_prob",
                    &found.log_prob,
                    &expected.log_prob,
                    error.log_prob,
                ),
                ("entropy", &found.entropy, &expected.entropy, error.entropy),
                (
                    "log_sum_exp",
                    &found.log_sum_exp,
                    &expected.log_sum_exp,
                    error.log_prob + of_max,
                ),
            ] {
                let (found, expected) = (found[row], expected[row]);
                let same = found == expected || (found.is_nan() && expected.is_nan());
                let close = same || (found - expected).abs() <= bound;
                assert!(
                    close,
                    "{what}: {name}[{row}]: {found} instead of {expected}, {bound}"
                );
            }
        }
    }

    /// Asserts that a gradient agrees with the reference.
    fn check_backward(&self, found: &[f64], g: &[f32], h: Option<&[f32]>, what: &str) {
        let expected = reference::log_probs_from_logits_backward(&self.input(), g, h).unwrap();
        let (ulp, least) = rounding(self.values.tensor().dtype());
        assert_eq!(found.len(), expected.len(), "{what}");
        let columns = self.vocab_size;
        for (row, (found, expected)) in found
            .chunks(columns)
            .zip(expected.chunks(columns))
            .enumerate()
        {
            let (g, h) = (f64::from(g[row]), h.map_or(0.0, |h| f64::from(h[row])));
            let bound = self.gradient_error(row, g.abs(), h.abs());
            for (j, (&found, &expected)) in found.iter().zip(expected).enumerate() {
                let close = (found - expected).abs() <= bound + ulp * expected.abs() + least;
                let exact = bound > 0.0 || found.to_bits() == 0;
                assert!(
                    close && exact,
                    "{what}: d_logits[{row}][{j}]: {found} instead of {expected}, bound {bound}"
                );
            }
        }
    }

    /// Both passes, with and without an entropy's gradient, in and out of place.
    fn check(&mut self, what: &str) {
        let run = self.backend.run_log_probs_from_logits(&self.input());
        let run = run.unwrap_or_else(|error| panic!("{what}: {error}"));
        self.check_forward(&run.output, what);
        let (g, h) = self.gradients(17);
        for (h, in_place, gradient) in [
            (None, false, Gradient::ZeroFill),
            (Some(&h[..]), false, Gradient::Untouched),
            (Some(&h[..]), true, Gradient::ZeroFill),
        ] {
            self.backend.logits.in_place = in_place;
            let run =
                self.backend
                    .run_log_probs_from_logits_backward(&self.input(), &g, h, gradient);
            let run = run.unwrap_or_else(|error| panic!("{what}: {error}"));
            self.check_backward(&run.d_logits, &g, h, what);
            for (row, &written) in run.written.iter().enumerate() {
                let is_given = g[row] != 0.0 || h.is_some_and(|h| h[row] != 0.0);
                assert!(
                    written || (gradient == Gradient::Untouched && !is_given),
                    "{what}"
                );
                assert!(
                    !(written && gradient == Gradient::Untouched && !is_given),
                    "{what}"
                );
            }
        }
        self.backend.logits.in_place = false;
    }
}

#[test]
fn every_size_in_every_dtype() {
    for dtype in DTYPES {
        for vocab_size in [
            1, 2, 3, 7, 8, 31, 64, 1000, 1001, 1024, 1025, 2048, 2049, 4097, 8193,
        ] {
            let mut rows = rows(vocab_size as u64, 5, vocab_size, dtype);
            rows.temperature = 0.7;
            rows.check(&format!("{vocab_size} columns, {dtype:?}"));
        }
    }
}

#[test]
fn vocabularies_of_models() {
    for (vocab_size, dtype) in [
        (32_000, DType::F16),
        (128_256, DType::Bf16),
        (151_936, DType::F32),
        (262_144, DType::Bf16),
    ] {
        rows(5, 2, vocab_size, dtype).check(&format!("{vocab_size} columns, {dtype:?}"));
    }
}

#[test]
fn strides_masks_and_placements() {
    for seed in 0..60 {
        let random = &mut Random(seed);
        let dtype = random.pick(&DTYPES);
        let vocab_size = random.pick(&[3, 37, 500, 2100]);
        let mut rows = rows(seed, 1 + random.below(20), vocab_size, dtype);
        let num_rows = rows.token_id.len();
        rows.row_stride += random.pick(&[0, 1, 8]);
        let values = vec_of(num_rows * rows.row_stride, |i| {
            let in_row = i % rows.row_stride < vocab_size;
            if in_row {
                random.between(-6.0, 6.0)
            } else {
                f32::NAN
            }
        });
        rows.values = Values::new(dtype, &values);
        rows.temperature = random.pick(&[1.0, 0.5, 3.0]);
        rows.mask = random
            .coin()
            .then(|| vec_of(num_rows, |row| u8::from(row % 3 > 0)));
        rows.backend = EmulatorBackend {
            misalignment: random.below(3),
            logits: LogitsPlacement {
                misalignment: random.below(9),
                gradient_misalignment: random.below(9),
                gradient_row_stride: random.coin().then_some(vocab_size + random.below(9)),
                wide_token_ids: random.coin(),
                ..LogitsPlacement::default()
            },
            ..EmulatorBackend::default()
        };
        if rows.mask.is_some() {
            // A masked row's token and logits may be anything.
            for row in (0..num_rows).filter(|row| row % 3 == 0) {
                rows.token_id[row] = -100;
                rows.values.set(row * rows.row_stride, f32::INFINITY);
            }
        }
        rows.check(&format!("seed {seed}"));
    }
}

#[test]
fn rows_of_which_nothing_finite_can_be_said() {
    for vocab_size in [10, 3000] {
        let mut rows = rows(7, 6, vocab_size, DType::F32);
        for (row, value) in [(0, f32::NAN), (1, f32::INFINITY), (2, f32::NEG_INFINITY)] {
            for j in 0..vocab_size {
                rows.values.set(row * vocab_size + j, value);
            }
        }
        rows.values.set(3 * vocab_size, f32::NAN);
        // A token of probability 0: no log-prob, but an entropy.
        let own = 4 * vocab_size + rows.token_id[4] as usize;
        rows.values.set(own, f32::NEG_INFINITY);
        let run = rows
            .backend
            .run_log_probs_from_logits(&rows.input())
            .unwrap();
        rows.check_forward(&run.output, "unusable");
        assert_eq!(run.output.log_prob[4], f64::NEG_INFINITY);
        let g = [1.0, 1.0, 1.0, 1.0, 1.0, f32::NAN];
        let h = [0.5, 0.5, 0.5, 0.5, 0.5, f32::INFINITY];
        let input = rows.input();
        let run = rows
            .backend
            .run_log_probs_from_logits_backward(&input, &g, Some(&h), Gradient::ZeroFill)
            .unwrap();
        rows.check_backward(&run.d_logits, &g, Some(&h), "unusable");
    }
}

/// A token id outside the vocabulary that only the device sees: nothing finite can be said of its
/// row, and its log-prob has no gradient.
#[test]
fn token_ids_that_only_the_device_sees() {
    for bad in [50, -1, i64::from(i32::MIN)] {
        let mut rows = rows(21, 3, 50, DType::F32);
        let mut ids: Vec<i64> = rows.token_id.iter().map(|&id| i64::from(id)).collect();
        ids[1] = bad;
        rows.backend.device_indices.token_id = Some(ids);
        let run = rows
            .backend
            .run_log_probs_from_logits(&rows.input())
            .unwrap();
        assert!(run.output.log_prob[1].is_nan() && run.output.entropy[1].is_nan());
        let (input, mode) = (rows.input(), Gradient::ZeroFill);
        let backend = &rows.backend;
        let run = backend.run_log_probs_from_logits_backward(&input, &[0.5; 3], None, mode);
        let found = run.unwrap().d_logits;
        rows.check_backward(&found, &[0.5, 0.0, 0.5], None, "bad id");
    }
}

/// A parallel vocabulary: equal and unequal shards, some of which hold nothing finite.
#[test]
fn shards_of_a_vocabulary() {
    for (vocab_size, shards) in [
        (64, vec![64]),
        (64, vec![16; 4]),
        (1000, vec![1, 998, 1]),
        (4097, vec![1024, 1, 3072]),
        (32_000, vec![8000; 4]),
    ] {
        for dtype in [DType::F32, DType::Bf16] {
            let mut rows = rows(9, 7, vocab_size, dtype);
            rows.temperature = 0.7;
            rows.mask = Some(vec![1, 1, 0, 1, 1, 1, 1]);
            rows.token_id[2] = -100;
            // The first shard of row 1 is gone, its maximum of row 3 far away.
            for j in 0..shards[0].min(vocab_size - 1) {
                rows.values.set(vocab_size + j, f32::NEG_INFINITY);
            }
            rows.token_id[1] = vocab_size as i32 - 1;
            rows.values.set(3 * vocab_size, 90.0);
            let (g, h) = rows.gradients(19);
            let run = rows
                .backend
                .run_softmax_shards(&rows.input(), &shards, &g, Some(&h));
            let what = format!("{vocab_size} columns in {} shards, {dtype:?}", shards.len());
            let run = run.unwrap_or_else(|error| panic!("{what}: {error}"));
            rows.check_forward(&run.output, &what);
            rows.check_backward(&run.d_logits, &g, Some(&h), &what);
        }
    }
}

/// More rows than the 65,535 of a grid's other dimensions.
#[test]
fn more_than_65536_rows() {
    rows(11, 66_000, 3, DType::F32).check("66,000 rows");
}

#[test]
fn any_order_of_threads_and_blocks_gives_the_same_bits() {
    for vocab_size in [300, 5000] {
        let mut rows = rows(13, 9, vocab_size, DType::Bf16);
        let (g, h) = rows.gradients(23);
        let results = [Order::Sequential, Order::Random(1), Order::Random(2)].map(|order| {
            rows.backend.options = Options {
                order,
                ..Options::default()
            };
            let input = rows.input();
            let forward = rows
                .backend
                .run_log_probs_from_logits(&input)
                .unwrap()
                .output;
            let shards = [100, vocab_size - 100];
            let backward = rows
                .backend
                .run_softmax_shards(&input, &shards, &g, Some(&h))
                .unwrap();
            (forward, backward.output, backward.d_logits)
        });
        assert!(results[1] == results[0] && results[2] == results[0]);
    }
}

#[test]
fn a_row_policy_has_no_say_here() {
    let mut rows = rows(15, 3, 5000, DType::F32);
    let plain = rows
        .backend
        .run_log_probs_from_logits(&rows.input())
        .unwrap();
    rows.backend.logits.row_policy = RowPolicy::Block;
    rows.backend.options = Options::sm80();
    let other = rows
        .backend
        .run_log_probs_from_logits(&rows.input())
        .unwrap();
    assert_eq!(plain.output, other.output);
}
