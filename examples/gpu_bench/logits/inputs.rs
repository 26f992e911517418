//! Logits as a policy has them, made on the host from a fixed seed, and what is computed of them.

use crate::inputs::{Element, QUANTILE, random, reward};
use qae::cuda::RowPolicy;
use qae::{AdvantageConfig, Baseline, Config, Gradient, MetricsScope, Normalizer};
use rayon::prelude::*;

/// Log-ratios that keep away from the clip bounds, so that f32 decides as f64 does; two of five are
/// clipped for one sign of the advantage.
const LOG_RATIOS: [f32; 5] = [-0.45, -0.1, 0.02, 0.15, 0.4];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Loss,
    /// Log-prob, entropy and log-sum-exp of each row.
    Forward,
    /// From a derivative for each row's log-prob.
    Backward,
}

impl Operation {
    pub fn name(self) -> &'static str {
        match self {
            Self::Loss => "loss_from_logits",
            Self::Forward => "log_probs_from_logits",
            Self::Backward => "log_probs_from_logits_backward",
        }
    }
}

/// One way of computing a batch.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    pub operation: Operation,
    pub baseline: Baseline,
    pub gradient: Gradient,
    pub in_place: bool,
    pub row_policy: RowPolicy,
}

const DENSE: Case = Case {
    name: "dense/in-place",
    operation: Operation::Loss,
    baseline: Baseline::Mean,
    gradient: Gradient::ZeroFill,
    in_place: true,
    row_policy: RowPolicy::Auto,
};

/// What matters most first, should time run out.
pub const CASES: [Case; 8] = [
    DENSE,
    Case {
        name: "inactive-80/zero-fill",
        baseline: QUANTILE,
        ..DENSE
    },
    Case {
        name: "inactive-80/untouched",
        baseline: QUANTILE,
        gradient: Gradient::Untouched,
        ..DENSE
    },
    Case {
        name: "inactive-80/compact",
        baseline: QUANTILE,
        gradient: Gradient::Compact,
        in_place: false,
        ..DENSE
    },
    Case {
        name: "forward",
        operation: Operation::Forward,
        in_place: false,
        ..DENSE
    },
    Case {
        name: "dense/apart",
        in_place: false,
        ..DENSE
    },
    Case {
        name: "backward/in-place",
        operation: Operation::Backward,
        ..DENSE
    },
    Case {
        name: "dense/in-place/block",
        row_policy: RowPolicy::Block,
        ..DENSE
    },
];

impl Case {
    pub fn config(&self, shape: &Shape) -> Config {
        Config {
            advantage: AdvantageConfig {
                baseline: self.baseline,
                ..AdvantageConfig::default()
            },
            normalizer: Normalizer::Value(shape.num_rows() as f64),
            metrics_scope: MetricsScope::Active,
            gradient: self.gradient,
            ..Config::default()
        }
    }

    /// Whether anything of the gradient is written.
    pub fn has_gradient(&self) -> bool {
        self.operation != Operation::Forward
    }
}

/// Responses of `width` tokens, each a row of `vocab` logits.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub num_responses: usize,
    pub width: usize,
    pub vocab: usize,
}

impl Shape {
    pub fn num_rows(&self) -> usize {
        self.num_responses * self.width
    }

    pub fn num_logits(&self) -> usize {
        self.num_rows() * self.vocab
    }

    /// The rows of a response.
    pub fn rows_of(&self, response: usize) -> std::ops::Range<usize> {
        response * self.width..(response + 1) * self.width
    }

    /// The logits of the rows of a response.
    pub fn logits_of(&self, response: usize) -> std::ops::Range<usize> {
        let rows = self.rows_of(response);
        rows.start * self.vocab..rows.end * self.vocab
    }
}

/// One batch on the host, but for the old log-probs, which follow from those of the logits.
pub struct HostLogits<T> {
    pub shape: Shape,
    /// [num_responses]
    pub rewards: Vec<f32>,
    pub values: Vec<T>,
    /// [num_rows]
    pub token_id: Vec<i64>,
    /// [num_rows]: log_prob − old_log_prob.
    pub log_ratio: Vec<f32>,
    /// [num_rows]: of the backward pass.
    pub d_log_prob: Vec<f32>,
}

impl<T: Element> HostLogits<T> {
    pub fn new(shape: Shape) -> Self {
        let num_rows = shape.num_rows();
        let rows = || 0..num_rows as u64;
        let of_vocab = |row: u64| random(!row) % shape.vocab as u64;
        let sign = |row: u64| [1.0, -1.0][(random(row) % 2) as usize];
        Self {
            shape,
            rewards: (0..shape.num_responses).map(reward).collect(),
            values: (0..shape.num_logits() as u64)
                .into_par_iter()
                .map(|i| T::from_f32(logit(i)))
                .collect(),
            token_id: rows().map(|row| of_vocab(row) as i64).collect(),
            log_ratio: rows()
                .map(|row| LOG_RATIOS[(random(row) % 5) as usize])
                .collect(),
            d_log_prob: rows().map(|row| sign(row) / num_rows as f32).collect(),
        }
    }

    /// The fewest bytes that a launch can move: every element that the result depends on is read
    /// once (by GSPO's two launches twice, which is not among the cases), every element of the
    /// result written once.
    pub fn bytes(&self, case: &Case, is_active: &[bool]) -> u64 {
        let Shape { width, vocab, .. } = self.shape;
        let num_rows = self.shape.num_rows();
        let row = vocab * size_of::<T>();
        let active = width * is_active.iter().filter(|&&is_active| is_active).count();
        let bytes = match case.operation {
            Operation::Forward => num_rows * (row + 8 + 3 * 4 + 16),
            Operation::Backward => num_rows * (2 * row + 8 + 4 + 16),
            Operation::Loss => {
                let written = match case.gradient {
                    Gradient::ZeroFill => num_rows,
                    Gradient::Untouched | Gradient::Compact => active,
                };
                let list = match case.gradient {
                    Gradient::Compact => 8 * active,
                    _ => 0,
                };
                // Token, old log-prob; log-prob and entropy of every slot.
                let tokens = active * (8 + 4) + num_rows * (4 + 4);
                (active + written) * row + tokens + list + 4 * self.rewards.len()
            }
        };
        bytes as u64
    }
}

/// Close to normal with a standard deviation of 2: the sum of three uniform numbers.
fn logit(index: u64) -> f32 {
    let bits = random(index);
    let sum = (bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff);
    (sum as f32 / 65_536.0 - 1.5) * 4.0
}
