//! Where a loss from logits is written.

use super::super::rows::grid_rows;
use super::plan::{Losses, Plan};
use crate::batch::{Element, LogitsMut, RowsMut, TensorMut, for_elements};
use crate::config::Gradient;
use crate::error::Result;
use half::{bf16, f16};

/// Where [`super::loss_from_logits_into`] writes, each in a dtype of its own; `None`: nowhere.
#[derive(Debug, Default)]
pub struct LogitsTargets<'a> {
    /// d loss / d logits: a row for each slot or, compact, for each slot that acts.
    pub d_logits: Option<LogitsMut<'a>>,
    /// One for each slot: d loss / d log_prob, in 1 / nats.
    pub d_log_prob: Option<RowsMut<'a>>,
    /// One for each slot: log π(token) in nats; 0 where a row of logits is not read.
    pub log_prob: Option<RowsMut<'a>>,
    /// One for each slot: the entropy of softmax(logits / temperature) in nats; likewise.
    pub entropy: Option<RowsMut<'a>>,
}

/// Targets that fit a planned batch.
pub(super) struct Checked<'a> {
    pub d_logits: Option<DLogits<'a>>,
    pub tokens: TokenTargets<'a>,
}

/// The rows of a gradient.
pub(super) enum DLogits<'a> {
    F64(Vec<&'a mut [f64]>),
    F32(Vec<&'a mut [f32]>),
    Bf16(Vec<&'a mut [bf16]>),
    F16(Vec<&'a mut [f16]>),
}

/// Token tensors with their row strides.
pub(super) struct TokenTargets<'a> {
    d_log_prob: Option<(RowsMut<'a>, usize)>,
    log_prob: Option<(RowsMut<'a>, usize)>,
    entropy: Option<(RowsMut<'a>, usize)>,
}

impl<'a> Checked<'a> {
    pub fn new(targets: LogitsTargets<'a>, plan: &Plan<'_>) -> Result<Self> {
        let layout = plan.batch.layout.shape();
        let rows = |field, target: Option<RowsMut<'a>>| {
            let check = |target: RowsMut<'a>| {
                let stride = target.check(field, &layout)?;
                Ok((target, stride))
            };
            target.map(check).transpose()
        };
        Ok(Self {
            tokens: TokenTargets {
                d_log_prob: rows("d_log_prob", targets.d_log_prob)?,
                log_prob: rows("log_prob", targets.log_prob)?,
                entropy: rows("entropy", targets.entropy)?,
            },
            d_logits: targets
                .d_logits
                .map(|target| DLogits::new(target, plan))
                .transpose()?,
        })
    }
}

impl<'a> DLogits<'a> {
    fn new(target: LogitsMut<'a>, plan: &Plan<'_>) -> Result<Self> {
        let vocab_size = plan.batch.logits.vocab_size;
        let grid = match plan.config.gradient {
            Gradient::Compact => target.compact_grid(plan.rows_acting(), vocab_size)?,
            Gradient::ZeroFill | Gradient::Untouched => {
                target.grid(&plan.batch.layout.shape(), vocab_size)?
            }
        };
        Ok(match target.values {
            TensorMut::F64(values) => Self::F64(grid_rows(&grid, vocab_size, values)),
            TensorMut::F32(values) => Self::F32(grid_rows(&grid, vocab_size, values)),
            TensorMut::Bf16(values) => Self::Bf16(grid_rows(&grid, vocab_size, values)),
            TensorMut::F16(values) => Self::F16(grid_rows(&grid, vocab_size, values)),
        })
    }
}

impl TokenTargets<'_> {
    pub fn write(self, plan: &Plan<'_>, losses: &Losses) {
        let all = plan.config.gradient != Gradient::Untouched;
        for (target, values, all) in [
            (self.d_log_prob, &losses.d_log_prob, all),
            (self.log_prob, &losses.log_prob, true),
            (self.entropy, &losses.entropy, true),
        ] {
            if let Some((target, stride)) = target {
                for_elements!(TensorMut: target.values, target => {
                    store(plan, values, all, stride, target);
                });
            }
        }
    }
}

/// Writes values by position to the slots of all responses, or of those that act; without a
/// response, 0.
fn store<D: Element>(
    plan: &Plan<'_>,
    values: &[f64],
    all: bool,
    row_stride: usize,
    target: &mut [D],
) {
    if all {
        for index in 0..plan.batch.layout.num_slots() {
            target[plan.place(index, row_stride)] = D::round(0.0);
        }
    }
    for (acts, positions) in plan.responses() {
        if acts || all {
            for position in positions {
                let index = plan.gathered.slots[position].index;
                target[plan.place(index, row_stride)] = D::round(values[position]);
            }
        }
    }
}
