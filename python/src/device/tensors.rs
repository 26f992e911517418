//! From tensors to the arguments of `qae::params`.

use super::Memory;
use crate::batch::{Advantages, Batch, Rewards, Spread};
use crate::layout::Layout;
use crate::log_probs::{Outputs, STATS_FIELDS};
use crate::outputs::Output;
use crate::rows::LogitsView;
use crate::tensor::{Dtype, TensorView};
use qae::DType;
use qae::params::{
    AdvantageBuffers, Buffer, GroupBuffers, LayoutBuffers, LogProbsOutputs, LogitsBuffers,
    LogitsLayoutBuffers, NormalizerSource, WeightBuffer,
};

/// A tensor without elements, for which torch has no address: nothing is read there, but null would
/// mean that there is no tensor.
const NO_ELEMENTS: Buffer = Buffer {
    address: 256,
    len: 0,
};

/// A gradient without elements, elsewhere than logits without elements: a compact gradient must not
/// take their place.
pub(crate) const NO_GRADIENT: Buffer = Buffer {
    address: 512,
    len: 0,
};

/// From the first element to the last, gaps included.
pub(crate) fn buffer(view: &TensorView, memory: &dyn Memory) -> Buffer {
    match view.span() {
        0 => NO_ELEMENTS,
        len => Buffer {
            address: memory.address(view),
            len,
        },
    }
}

/// The same of a gradient with respect to logits.
pub(crate) fn gradient(view: &TensorView, memory: &dyn Memory) -> Buffer {
    match view.span() {
        0 => NO_GRADIENT,
        _ => buffer(view, memory),
    }
}

fn some(view: &Option<TensorView>, memory: &dyn Memory) -> Option<Buffer> {
    view.as_ref().map(|view| buffer(view, memory))
}

/// Of log-probs, logits and their gradients, whose dtypes were checked.
pub(crate) fn dtype(view: &TensorView) -> DType {
    match view.dtype {
        Dtype::Bf16 => DType::Bf16,
        Dtype::F16 => DType::F16,
        _ => DType::F32,
    }
}

pub(crate) fn groups(rewards: &Rewards, memory: &dyn Memory) -> GroupBuffers {
    GroupBuffers {
        num_responses: rewards.num_responses(),
        num_groups: rewards.num_groups,
        group_size: rewards.group_size,
        max_group_size: rewards.max_group_size,
        offsets: some(&rewards.offsets, memory),
        order: some(&rewards.order, memory),
        group_of_response: some(&rewards.group_of_response, memory),
    }
}

pub(crate) fn advantages(batch: &Batch, memory: &dyn Memory) -> AdvantageBuffers {
    match &batch.advantages {
        Advantages::FromRewards {
            rewards,
            response_index,
        } => AdvantageBuffers::FromRewards {
            rewards: buffer(&rewards.rewards, memory),
            groups: groups(rewards, memory),
            response_index: some(response_index, memory),
        },
        Advantages::Given(Spread::Rows(rows)) => {
            AdvantageBuffers::PerResponse(buffer(rows, memory))
        }
        Advantages::Given(Spread::Slots(slots)) => {
            AdvantageBuffers::PerToken(buffer(slots, memory))
        }
    }
}

pub(crate) fn weight(batch: &Batch, memory: &dyn Memory) -> Option<WeightBuffer> {
    Some(match batch.weight.as_ref()? {
        Spread::Rows(rows) => WeightBuffer::PerResponse(buffer(rows, memory)),
        Spread::Slots(slots) => WeightBuffer::PerToken(buffer(slots, memory)),
    })
}

pub(crate) fn normalizer(batch: &Batch, memory: &dyn Memory) -> NormalizerSource {
    match &batch.normalizer {
        Some(normalizer) => NormalizerSource::Scalar(buffer(normalizer, memory)),
        None => NormalizerSource::Config,
    }
}

pub(crate) fn layout(layout: &Layout, memory: &dyn Memory) -> LogitsLayoutBuffers {
    match layout {
        Layout::Padded {
            num_rows,
            width,
            row_stride,
            mask_row_stride,
            lengths,
        } => LogitsLayoutBuffers::Responses(LayoutBuffers::Padded {
            num_rows: *num_rows,
            width: *width,
            row_stride: *row_stride,
            mask_row_stride: *mask_row_stride,
            lengths: some(lengths, memory),
        }),
        Layout::Packed { offsets, num_slots } => {
            LogitsLayoutBuffers::Responses(LayoutBuffers::Packed {
                offsets: buffer(offsets, memory),
                num_slots: *num_slots,
            })
        }
        Layout::Indexed { response, num_rows } => LogitsLayoutBuffers::Indexed {
            response: buffer(response, memory),
            num_responses: *num_rows,
        },
    }
}

pub(crate) fn logits(
    logits: &LogitsView,
    token_ids: &TensorView,
    memory: &dyn Memory,
) -> LogitsBuffers {
    LogitsBuffers {
        values: buffer(&logits.tensor, memory),
        dtype: dtype(&logits.tensor),
        vocab_size: logits.vocab_size,
        row_stride: logits.row_stride,
        response_stride: logits.response_stride,
        token_ids: buffer(token_ids, memory),
        token_id_bytes: token_ids.dtype.size(),
    }
}

/// Statistics are counted by rows, not by their f32.
pub(crate) fn stats(view: &TensorView, memory: &dyn Memory) -> Buffer {
    let buffer = buffer(view, memory);
    Buffer {
        len: buffer.len / STATS_FIELDS,
        ..buffer
    }
}

pub(crate) fn log_probs_outputs(outputs: &Outputs, memory: &dyn Memory) -> LogProbsOutputs {
    let some = |output: &Option<Output>| output.as_ref().map(|o| buffer(&o.0, memory));
    LogProbsOutputs {
        log_prob: some(&outputs.log_prob),
        entropy: some(&outputs.entropy),
        log_sum_exp: some(&outputs.log_sum_exp),
        stats: outputs
            .stats
            .as_ref()
            .map(|output| stats(&output.0, memory)),
    }
}
