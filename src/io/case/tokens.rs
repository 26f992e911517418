//! The tensors with a value for each token, and which tokens count.

use super::layout::shape;
use super::names::{Names, WEIGHTS};
use crate::batch::{ImportanceWeight, Layout, LogitsLayout};
use crate::error::Result;
use crate::io::TensorFile;
use crate::io::tensor_file::OwnedTensor;

/// Weights that the file owns.
#[derive(Debug)]
pub(super) enum OwnedWeight {
    PerToken(Vec<f32>),
    PerResponse(Vec<f32>),
}

impl OwnedWeight {
    pub(super) fn view(&self) -> ImportanceWeight<'_> {
        match self {
            Self::PerToken(weights) => ImportanceWeight::PerToken(weights),
            Self::PerResponse(weights) => ImportanceWeight::PerResponse(weights),
        }
    }
}

/// Only a padded batch without lengths cannot do without a mask.
pub(super) fn read_mask(
    file: &TensorFile,
    names: &Names,
    layout: &LogitsLayout<'_>,
) -> Result<Option<Vec<u8>>> {
    let needed = matches!(
        layout,
        LogitsLayout::Responses(Layout::Padded { lengths: None, .. })
    );
    if !needed && !file.has(names.mask) {
        return Ok(None);
    }
    file.flags(names.mask, &shape(layout)).map(Some)
}

/// The log-probs `name`, if there are any, in the dtype of those that were read before.
pub(super) fn read_log_probs(
    file: &TensorFile,
    name: &str,
    shape: &[usize],
    like: Option<(&str, &OwnedTensor)>,
) -> Result<Option<OwnedTensor>> {
    if !file.has(name) {
        return Ok(None);
    }
    let tensor = file.log_probs(name, shape)?;
    let found = tensor.view().dtype();
    match like {
        Some((other, like)) if like.view().dtype() != found => {
            let expected = like.view().dtype();
            Err(file.error(format!(
                "tensor `{name}`: expected {expected:?} as `{other}`, found {found:?}"
            )))
        }
        _ => Ok(Some(tensor)),
    }
}

pub(super) fn read_weights(
    file: &TensorFile,
    shape: &[usize],
    num_responses: usize,
) -> Result<Option<OwnedWeight>> {
    if !file.has(WEIGHTS) {
        return Ok(None);
    }
    let given = file.shape(WEIGHTS, "F32")?;
    let per_response = given.len() == 1 && given != shape;
    Ok(Some(if per_response {
        OwnedWeight::PerResponse(file.f32s(WEIGHTS, &[num_responses])?)
    } else {
        OwnedWeight::PerToken(file.f32s(WEIGHTS, shape)?)
    }))
}

/// The slots of each response that hold tokens that count. Rows have no gaps between them, so that
/// the mask is laid out as the tokens.
pub(super) fn valid_slots(layout: &LogitsLayout<'_>, mask: Option<&[u8]>) -> Vec<Vec<usize>> {
    let counts = |slot: &usize| mask.is_none_or(|mask| mask[*slot] != 0);
    match layout {
        LogitsLayout::Responses(layout) => (0..layout.num_rows())
            .map(|row| {
                let row = layout.row(row);
                let slots = row.start..row.start + row.length;
                slots.filter(counts).collect()
            })
            .collect(),
        LogitsLayout::Indexed {
            response,
            num_responses,
        } => {
            let mut slots = vec![vec![]; *num_responses];
            for slot in (0..response.len()).filter(counts) {
                if let Ok(response) = usize::try_from(response[slot]) {
                    slots[response].push(slot);
                }
            }
            slots
        }
    }
}
