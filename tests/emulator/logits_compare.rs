//! A case of logits on the emulated kernels against the f64 reference.
//!
//! Tolerances follow from f32 arithmetic: a thread sums every 256th element of a row (every 32nd of
//! a short one) one after another, each exponential has an error that grows with its argument, and
//! whatever follows a log-prob carries the log-prob's error.

use qae::{Config, DType, EntropyMetrics, LogitsOutput, LossOutput, Metrics, Objective, reference};
use qae_emulator::LogitsRun;

use crate::case::{Case, Source, Weight};
use crate::compare::{self, TOLERANCE};
use crate::logits_case::{LogitsCase, Slot};

/// Half a unit in the last place of f32, relative.
const ROUNDING: f64 = 1.0 / 16_777_216.0;

/// Runs `case` and asserts that every output agrees with the reference.
pub fn check(case: &LogitsCase, what: &str) -> LogitsRun {
    let run = case
        .backend
        .run_loss_from_logits(&case.batch(), &case.config);
    let run = run.unwrap_or_else(|error| panic!("{what}: {error}"));
    check_output(case, &run.output, &case.expected(), what);
    run
}

/// Asserts that `found` is the reference's `expected`.
pub fn check_output(case: &LogitsCase, found: &LogitsOutput, expected: &LogitsOutput, what: &str) {
    let errors = Errors::new(case, expected);
    let placement = &case.backend.logits;
    if !placement.without_token_outputs {
        errors.check_token_tensor(&found.log_prob, &expected.log_prob, "log_prob", what);
        errors.check_token_tensor(&found.entropy, &expected.entropy, "entropy", what);
        if !placement.without_d_log_prob {
            errors.check_d_log_prob(&found.loss.d_log_prob, &expected.loss.d_log_prob, what);
        }
    }
    assert_eq!(found.active_slots, expected.active_slots, "{what}");
    errors.check_d_logits(found, expected, what);
    for (name, found, expected) in [
        ("baseline", &found.loss.baseline, &expected.loss.baseline),
        ("advantage", &found.loss.advantage, &expected.loss.advantage),
    ] {
        assert_eq!(found.is_some(), expected.is_some(), "{what}: {name}");
        if let (Some(found), Some(expected)) = (found, expected) {
            compare::check_values(found, expected, 1e-6, &format!("{what}: {name}"));
        }
    }
    assert_eq!(found.loss.active_rows, expected.loss.active_rows, "{what}");
    compare::check_counts(&found.loss.metrics, &expected.loss.metrics, what);
    errors.check_sums(&found.loss.metrics, &expected.loss.metrics, what);
}

/// What f32 may get wrong in one row, in nats, and what that depends on.
#[derive(Clone, Copy, Default)]
pub struct RowError {
    pub log_prob: f64,
    pub entropy: f64,
    /// Of a probability, relative to the largest element of the row's gradient.
    softmax: f64,
    /// The largest |p (z − Σ p z)|, roughly.
    entropy_gradient: f64,
    /// Whether the token has probability 1, so that log-prob and entropy are 0 if they are read.
    is_certain: bool,
}

impl RowError {
    /// Of a row of `logits` at `temperature` with the token's logit among them.
    pub fn of(logits: &[f64], own: f64, temperature: f64) -> Self {
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max) / temperature;
        let (mut sum, mut first, mut second) = (0.0, 0.0, 0.0);
        for logit in logits.iter().filter(|logit| logit.is_finite()) {
            let below = max - logit / temperature;
            let exp = (-below).exp();
            sum += exp;
            first += exp * below;
            second += exp * below * below;
        }
        let (first, second) = (first / sum, second / sum);
        let columns = logits.len() as f64;
        let depth = (columns / 256.0).max(columns.min(2048.0) / 32.0) + 24.0;
        // A token of probability 0 has no error; its row's entropy has one.
        let log_prob = match own.is_finite() {
            true => max - own / temperature + f64::ln(sum),
            false => 0.0,
        };
        let entropy = first + f64::ln(sum);
        let softmax = ROUNDING * (depth + 2.0 * (first + second));
        Self {
            log_prob: ROUNDING * (depth + 2.0 * first + 4.0 * log_prob.abs()),
            entropy: ROUNDING * (depth * (1.0 + first) + 4.0 * (second + f64::ln(sum))),
            softmax,
            entropy_gradient: 1.0 + first + second,
            is_certain: log_prob == 0.0 && entropy == 0.0,
        }
    }

    /// Of each element of the gradient, before the temperature, with |dL / d log_prob| = `g` and
    /// |dL / d entropy| = `h`.
    pub fn gradient(&self, g: f64, h: f64) -> f64 {
        self.softmax * (g + h * self.entropy_gradient) + TOLERANCE * h
    }
}

/// What f32 may get wrong in a case.
struct Errors<'a> {
    case: &'a LogitsCase,
    slots: Vec<Slot>,
    /// By element of the token tensors; the default where there is no usable row.
    rows: Vec<RowError>,
    /// The largest of them.
    of_log_prob: f64,
    of_entropy: f64,
    /// Share of each element in the loss, with the gradient's scale.
    shares: Vec<f64>,
    /// The same batch from log-probs.
    tokens: Case,
}

impl<'a> Errors<'a> {
    fn new(case: &'a LogitsCase, expected: &LogitsOutput) -> Self {
        let elements = case.layout.num_elements();
        let slots = case.slots();
        let mut rows = vec![RowError::default(); elements];
        for slot in slots.iter().filter(|slot| case.is_valid(slot)) {
            let row = case.row(slot);
            let own = row[case.token_id[slot.token] as usize];
            let error = RowError::of(&row, own, case.config.temperature);
            let numbers = [expected.log_prob[slot.token], expected.entropy[slot.token]];
            let is_read = numbers.iter().any(|&x| x != 0.0) || error.is_certain;
            if is_read && numbers[1].is_finite() {
                rows[slot.token] = error;
            }
        }
        let largest = |of: fn(&RowError) -> f64| rows.iter().map(of).fold(0.0, f64::max);
        Self {
            of_log_prob: largest(|row| row.log_prob),
            of_entropy: largest(|row| row.entropy),
            shares: shares(case),
            tokens: case.as_log_probs(&expected.log_prob),
            case,
            slots,
            rows,
        }
    }

    /// Log-probs or entropies: NaN and infinities are the same, an exact 0 is exactly +0.
    fn check_token_tensor(&self, found: &[f64], expected: &[f64], name: &str, what: &str) {
        assert_eq!(found.len(), expected.len(), "{what}: {name}");
        for slot in &self.slots {
            let i = slot.token;
            let (found, expected) = (found[i], expected[i]);
            let error = match name {
                "log_prob" => self.rows[i].log_prob,
                _ => self.rows[i].entropy,
            };
            let same = found == expected || (found.is_nan() && expected.is_nan());
            let close = same || (found - expected).abs() <= error;
            let was_read = expected != 0.0 || self.rows[i].log_prob > 0.0;
            let zero = was_read || found.to_bits() == 0;
            assert!(
                close && zero,
                "{what}: {name}[{i}]: {found} instead of {expected}, bound {error}"
            );
        }
    }

    /// Of dL / d log_prob = `g` at element `i` of the token tensors. What depends on the log-prob
    /// does so no more than a ratio times its advantage and weight, or a KL term's gradient.
    fn gradient_error(&self, i: usize, g: f64) -> f64 {
        let of_response = matches!(self.case.config.objective, Objective::Gspo { .. });
        let of_log_prob = match of_response {
            true => self.of_log_prob,
            false => self.rows[i].log_prob,
        };
        (TOLERANCE + 3.0 * of_log_prob) * (g.abs() + self.shares[i])
    }

    fn check_d_log_prob(&self, found: &[f64], expected: &[f64], what: &str) {
        let narrow = self.case.backend.narrow_gradient;
        let old = self.case.old_log_prob.as_ref().filter(|_| narrow);
        let (ulp, least) = rounding(old.map_or(DType::F32, |old| old.tensor().dtype()));
        assert_eq!(found.len(), expected.len(), "{what}");
        for slot in &self.slots {
            let i = slot.token;
            let (found, expected) = (found[i], expected[i]);
            let bound = self.gradient_error(i, expected) + ulp * expected.abs() + least;
            let close = (found - expected).abs() <= bound;
            let zero = expected != 0.0 || found.to_bits() == 0;
            assert!(
                close && zero,
                "{what}: d_log_prob[{i}]: {found} instead of {expected}, bound {bound}"
            );
        }
    }

    fn check_d_logits(&self, found: &LogitsOutput, expected: &LogitsOutput, what: &str) {
        let columns = self.case.vocab_size;
        let (ulp, least) = rounding(self.case.logits.tensor().dtype());
        assert_eq!(found.d_logits.len(), expected.d_logits.len(), "{what}");
        let rows = found
            .d_logits
            .chunks(columns)
            .zip(expected.d_logits.chunks(columns));
        for (row, (found, expected_row)) in rows.enumerate() {
            let slot = match expected.active_slots.get(row) {
                Some(&slot) => self.slots[slot as usize],
                None => self.slots[row],
            };
            let g = expected.loss.d_log_prob[slot.token];
            let bound = self.row_bound(&slot, g) + least;
            // Rows that nothing acts on are written as +0; others may round to either zero.
            let is_acting = g != 0.0 || self.entropy_gradient(&slot) != 0.0;
            for (j, (&found, &expected)) in found.iter().zip(expected_row).enumerate() {
                let close = (found - expected).abs() <= bound + ulp * expected.abs();
                let zero = is_acting || found.to_bits() == 0;
                let is_impossible =
                    self.case.logits.tensor().get(slot.logits + j) == f64::NEG_INFINITY;
                let exact = !is_impossible || found == 0.0;
                assert!(
                    close && zero && exact,
                    "{what}: d_logits[{row}][{j}]: {found} instead of {expected}, bound {bound}"
                );
            }
        }
    }

    /// |dL / d entropy| of a slot that is not left out.
    fn entropy_gradient(&self, slot: &Slot) -> f64 {
        (self.case.config.entropy_coef * self.shares[slot.token]).abs()
    }

    /// Of each element of a row of the gradient with dL / d log_prob = `g`.
    fn row_bound(&self, slot: &Slot, g: f64) -> f64 {
        let h = self.entropy_gradient(slot);
        let of_softmax = self.rows[slot.token].gradient(g.abs(), h);
        (self.gradient_error(slot.token, g) + of_softmax) / self.case.config.temperature
    }

    fn check_sums(&self, found: &Metrics, expected: &Metrics, what: &str) {
        let config = &self.case.config;
        let (of_log_prob, of_entropy) = (self.of_log_prob, self.of_entropy);
        // Σ of the shares, of which each token's loss has one.
        let weight = self.shares.iter().sum::<f64>() / config.grad_scale.abs();
        let from_log_probs =
            reference::loss_from_log_probs(&self.tokens.batch(), &self.tokens.config).unwrap();
        let policy = compare::policy_magnitude(&self.tokens, &from_log_probs);
        let kl = compare::kl_magnitude(&self.tokens, &from_log_probs.metrics);
        let relative = TOLERANCE + of_log_prob;
        let policy_error = relative * policy + 8.0 * weight * of_log_prob;
        let kl_error = relative * kl + 8.0 * weight * of_log_prob;
        let entropy = expected.entropy.unwrap();
        let entropy_error = weight * of_entropy + TOLERANCE * entropy.loss.abs();
        let coefs = (
            config.kl.map_or(0.0, |kl| kl.coef),
            config.entropy_coef.abs(),
        );
        let ratios = match compare::counts_parts_of_responses(&self.tokens) {
            true => f64::INFINITY,
            false => {
                TOLERANCE * compare::log_ratio_magnitude(&self.tokens)
                    + expected.tokens as f64 * of_log_prob
            }
        };
        let bounds = [
            ("pg_loss", found.pg_loss, expected.pg_loss, policy_error),
            ("kl_loss", found.kl_loss, expected.kl_loss, kl_error),
            (
                "loss",
                found.loss,
                expected.loss,
                policy_error + coefs.0 * kl_error + coefs.1 * entropy_error,
            ),
            (
                "neg_log_ratio_sum",
                found.neg_log_ratio_sum,
                expected.neg_log_ratio_sum,
                ratios,
            ),
            (
                "min_ratio",
                found.min_ratio,
                expected.min_ratio,
                relative * expected.min_ratio,
            ),
            (
                "max_ratio",
                found.max_ratio,
                expected.max_ratio,
                relative * expected.max_ratio,
            ),
        ];
        for (name, found, expected, bound) in bounds {
            check_number(name, found, expected, bound, what);
        }
        check_entropy(
            &found.entropy.unwrap(),
            &entropy,
            entropy_error,
            of_entropy,
            what,
        );
    }
}

fn check_entropy(
    found: &EntropyMetrics,
    expected: &EntropyMetrics,
    loss_error: f64,
    token_error: f64,
    what: &str,
) {
    let counts = |m: &EntropyMetrics| [m.positive_tokens, m.zero_tokens, m.negative_tokens];
    assert_eq!(counts(found), counts(expected), "{what}: tokens by sign");
    check_number("entropy loss", found.loss, expected.loss, loss_error, what);
    let sums = |m: &EntropyMetrics| [m.positive, m.zero, m.negative];
    let names = ["positive entropy", "zero entropy", "negative entropy"];
    for (i, name) in names.into_iter().enumerate() {
        let bound = counts(expected)[i] as f64 * token_error;
        check_number(name, sums(found)[i], sums(expected)[i], bound, what);
    }
}

fn check_number(name: &str, found: f64, expected: f64, bound: f64, what: &str) {
    let close = found == expected || (found - expected).abs() <= bound;
    assert!(
        close,
        "{what}: {name}: {found} instead of {expected}, bound {bound}"
    );
}

/// The place of each element of the token tensors in the loss: w_i, times what multiplies loss and
/// gradient; the policy gradient of REINFORCE with advantages of 1.
fn shares(case: &LogitsCase) -> Vec<f64> {
    let elements = case.layout.num_elements();
    let mut tokens = case.as_log_probs(&vec![-1.0; elements]);
    tokens.weight = Weight::None;
    tokens.advantage = Source::PerResponse(vec![1.0; case.layout.num_responses()]);
    tokens.config = Config {
        objective: Objective::Reinforce,
        kl: None,
        ..tokens.config
    };
    tokens.old_log_prob = None;
    tokens.ref_log_prob = None;
    let out: LossOutput = reference::loss_from_log_probs(&tokens.batch(), &tokens.config).unwrap();
    let mut shares = vec![0.0; elements];
    for (share, i) in out.d_log_prob.iter().zip(case.order_of_tokens()) {
        shares[i] = share.abs();
    }
    shares
}

/// Half a unit in the last place, relative, and half the least number above 0.
pub fn rounding(dtype: DType) -> (f64, f64) {
    match dtype {
        DType::F64 => panic!("the kernels take no f64"),
        DType::F32 => (0.0, 1.5e-42),
        DType::Bf16 => (1.0 / 256.0, 0.0),
        DType::F16 => (1.0 / 2048.0, 6e-8),
    }
}

/// Everything that a run leaves, as bits.
pub fn bits(output: &LogitsOutput) -> (Vec<u64>, Vec<u64>, String) {
    let (mut values, active_rows, metrics) = compare::bits(&output.loss);
    for tensor in [&output.log_prob, &output.entropy, &output.d_logits] {
        values.extend(tensor.iter().map(|value| value.to_bits()));
    }
    let lists = active_rows.into_iter().map(u64::from);
    (
        values,
        lists.chain(output.active_slots.iter().copied()).collect(),
        metrics,
    )
}
