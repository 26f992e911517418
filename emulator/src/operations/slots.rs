//! Where the slots of a batch of logits stand in its tensors.

use qae::Logits;
use qae::batch::{Layout, LogitsLayout};

/// Places of slots in one tensor, by the index of the slot.
#[derive(Clone, Copy)]
pub(super) struct SlotPlaces {
    pub(super) num_slots: usize,
    /// Slots of a response; all of them where they are one after another.
    width: usize,
    slot_stride: usize,
    response_stride: usize,
}

impl SlotPlaces {
    /// Of slots one after another.
    pub(super) fn flat(num_slots: usize, slot_stride: usize) -> Self {
        Self {
            num_slots,
            width: num_slots.max(1),
            slot_stride,
            response_stride: 0,
        }
    }

    /// In a token tensor whose rows are `row_stride` apart, if padded; `None`: as the batch's.
    pub(super) fn in_tokens(layout: LogitsLayout<'_>, row_stride: Option<usize>) -> Self {
        match layout {
            LogitsLayout::Indexed { response, .. } => Self::flat(response.len(), 1),
            LogitsLayout::Responses(Layout::Packed { .. }) => Self::flat(num_slots(layout), 1),
            LogitsLayout::Responses(Layout::Padded {
                width,
                row_stride: given,
                ..
            }) => Self {
                num_slots: num_slots(layout),
                width: width.max(1),
                slot_stride: 1,
                response_stride: row_stride.unwrap_or(given),
            },
        }
    }

    /// In logits, or in their gradient, with these strides; `None`: as those of `logits`.
    pub(super) fn in_logits(
        layout: LogitsLayout<'_>,
        logits: &Logits<'_>,
        row_stride: Option<usize>,
        response_stride: Option<usize>,
    ) -> Self {
        let slot_stride = row_stride.unwrap_or(logits.row_stride);
        let LogitsLayout::Responses(Layout::Padded {
            width,
            row_stride: rows_apart,
            ..
        }) = layout
        else {
            return Self::flat(num_slots(layout), slot_stride);
        };
        let of_logits = logits
            .response_stride
            .filter(|_| slot_stride == logits.row_stride);
        let by_default = of_logits.unwrap_or(rows_apart * slot_stride);
        Self {
            num_slots: num_slots(layout),
            width: width.max(1),
            slot_stride,
            response_stride: response_stride.unwrap_or(by_default),
        }
    }

    /// Of the first `num_slots` slots.
    pub(super) fn first(self, num_slots: usize) -> Self {
        Self { num_slots, ..self }
    }

    /// The first element of a slot.
    pub(super) fn start(&self, slot: usize) -> usize {
        slot / self.width * self.response_stride + slot % self.width * self.slot_stride
    }

    /// Elements from the first of the first slot to the last of the last one.
    pub(super) fn num_elements(&self, slot_elements: usize) -> usize {
        match self.num_slots {
            0 => 0,
            num_slots => self.start(num_slots - 1) + slot_elements,
        }
    }
}

fn num_slots(layout: LogitsLayout<'_>) -> usize {
    match layout {
        LogitsLayout::Indexed { response, .. } => response.len(),
        LogitsLayout::Responses(Layout::Padded {
            num_rows, width, ..
        }) => num_rows * width,
        LogitsLayout::Responses(packed) => packed.num_elements(),
    }
}
