//! Where the tokens of a file stand.

use super::names::{LENGTHS, LOGITS, OFFSETS, RESPONSE, REWARDS};
use crate::batch::{Layout, LogitsLayout};
use crate::error::Result;
use crate::io::TensorFile;

/// A [`Layout`] that owns its tensors, without gaps between rows.
#[derive(Debug)]
pub(super) enum Responses {
    Padded {
        num_rows: usize,
        width: usize,
        lengths: Option<Vec<i32>>,
    },
    Packed {
        offsets: Vec<i64>,
    },
}

/// A [`LogitsLayout`] that owns its tensors.
#[derive(Debug)]
pub(super) enum Slots {
    Responses(Responses),
    Indexed {
        response: Vec<i32>,
        num_responses: usize,
    },
}

impl Responses {
    pub(super) fn view(&self) -> Layout<'_> {
        match self {
            Self::Padded {
                num_rows,
                width,
                lengths,
            } => Layout::Padded {
                num_rows: *num_rows,
                width: *width,
                row_stride: *width,
                mask_row_stride: *width,
                lengths: lengths.as_deref(),
            },
            Self::Packed { offsets } => Layout::Packed { offsets },
        }
    }
}

impl Slots {
    pub(super) fn view(&self) -> LogitsLayout<'_> {
        match self {
            Self::Responses(responses) => responses.view().into(),
            Self::Indexed {
                response,
                num_responses,
            } => LogitsLayout::Indexed {
                response,
                num_responses: *num_responses,
            },
        }
    }
}

pub(super) fn num_responses(layout: &LogitsLayout<'_>) -> usize {
    match layout {
        LogitsLayout::Responses(layout) => layout.num_rows(),
        LogitsLayout::Indexed { num_responses, .. } => *num_responses,
    }
}

/// The padded width, if there is one.
pub(super) fn width(layout: &LogitsLayout<'_>) -> Option<usize> {
    match layout {
        LogitsLayout::Responses(Layout::Padded { width, .. }) => Some(*width),
        _ => None,
    }
}

/// The shape of the tensors with a value for each slot.
pub(super) fn shape(layout: &LogitsLayout<'_>) -> Vec<usize> {
    match layout {
        LogitsLayout::Responses(Layout::Padded {
            num_rows, width, ..
        }) => vec![*num_rows, *width],
        LogitsLayout::Responses(layout) => vec![layout.num_elements()],
        LogitsLayout::Indexed { response, .. } => vec![response.len()],
    }
}

/// Of log-probs `name`, which have the shape `shape`.
pub(super) fn of_log_probs(file: &TensorFile, name: &str, shape: &[usize]) -> Result<Responses> {
    refuse(file, RESPONSE, "log-probs, whose responses are whole")?;
    match *shape {
        [num_rows, width] => read_padded(file, num_rows, width),
        [num_slots] => read_packed(file, num_slots),
        _ => Err(file.error(format!(
            "tensor `{name}`: expected [N, T] or packed [tokens], found {shape:?}"
        ))),
    }
}

/// Of logits whose shape without the vocabulary is `shape`.
pub(super) fn of_logits(file: &TensorFile, shape: &[usize]) -> Result<Slots> {
    match *shape {
        [num_rows, width] => {
            refuse(file, RESPONSE, "padded tensors")?;
            read_padded(file, num_rows, width).map(Slots::Responses)
        }
        [num_slots] if file.has(RESPONSE) => read_indexed(file, num_slots),
        [num_slots] => read_packed(file, num_slots).map(Slots::Responses),
        _ => Err(file.error(format!(
            "tensor `{LOGITS}`: expected [N, T, V] or packed [tokens, V], found {} dimensions",
            shape.len() + 1
        ))),
    }
}

fn read_padded(file: &TensorFile, num_rows: usize, width: usize) -> Result<Responses> {
    refuse(file, OFFSETS, "padded tensors")?;
    Ok(Responses::Padded {
        num_rows,
        width,
        lengths: read_lengths(file, num_rows, width)?,
    })
}

fn read_packed(file: &TensorFile, num_slots: usize) -> Result<Responses> {
    refuse(file, LENGTHS, "packed tensors")?;
    let offsets = read_offsets(file, num_slots)?;
    Ok(Responses::Packed { offsets })
}

/// Two descriptions of one layout could contradict each other.
fn refuse(file: &TensorFile, name: &str, beside: &str) -> Result<()> {
    if !file.has(name) {
        return Ok(());
    }
    let shape = file.shape(name, "")?;
    Err(file.error(format!(
        "tensor `{name}`: expected none beside {beside}, found {shape:?}"
    )))
}

fn read_lengths(file: &TensorFile, num_rows: usize, width: usize) -> Result<Option<Vec<i32>>> {
    if !file.has(LENGTHS) {
        return Ok(None);
    }
    let lengths = file.integers(LENGTHS, &[num_rows])?;
    let narrow = |(row, &length): (usize, &i64)| {
        let in_range = usize::try_from(length).is_ok_and(|length| length <= width);
        let narrowed = i32::try_from(length).ok().filter(|_| in_range);
        narrowed.ok_or_else(|| {
            file.error(format!(
                "{LENGTHS}[{row}]: expected 0..={width}, found {length}"
            ))
        })
    };
    lengths
        .iter()
        .enumerate()
        .map(narrow)
        .collect::<Result<_>>()
        .map(Some)
}

fn read_offsets(file: &TensorFile, num_slots: usize) -> Result<Vec<i64>> {
    let expected = "I32 or I64 [N + 1], since the tokens are packed";
    let offsets = file.integers(OFFSETS, &[file.shape(OFFSETS, expected)?.iter().product()])?;
    let refuse = |index: usize, expected: String| {
        let found = offsets[index];
        Err(file.error(format!(
            "{OFFSETS}[{index}]: expected {expected}, found {found}"
        )))
    };
    let Some(last) = offsets.len().checked_sub(1) else {
        return Err(file.error(format!(
            "tensor `{OFFSETS}`: expected {expected}, found [0]"
        )));
    };
    if offsets[0] != 0 {
        return refuse(0, "0".to_string());
    }
    if let Some(row) = offsets.windows(2).position(|pair| pair[1] < pair[0]) {
        return refuse(row + 1, format!("at least {}", offsets[row]));
    }
    if offsets[last] != num_slots as i64 {
        return refuse(last, format!("{num_slots}, the number of tokens"));
    }
    Ok(offsets)
}

fn read_indexed(file: &TensorFile, num_slots: usize) -> Result<Slots> {
    for other in [OFFSETS, LENGTHS] {
        refuse(file, other, "`slot_response`")?;
    }
    let num_responses = file.shape(REWARDS, "F32 [N]")?.iter().product();
    let narrow = |(slot, response): (usize, i64)| {
        let in_range = usize::try_from(response).map_or(true, |index| index < num_responses);
        let narrowed = i32::try_from(response.max(-1)).ok().filter(|_| in_range);
        narrowed.ok_or_else(|| {
            file.error(format!(
                "{RESPONSE}[{slot}]: expected less than {num_responses}, the number of rewards, \
                 found {response}"
            ))
        })
    };
    let response = file.integers(RESPONSE, &[num_slots])?;
    let response = response.into_iter().enumerate().map(narrow);
    Ok(Slots::Indexed {
        response: response.collect::<Result<_>>()?,
        num_responses,
    })
}
