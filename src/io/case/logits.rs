//! The tensors of a case that starts from logits.

use super::layout::{self, Slots};
use super::names::{COLUMNS, LOGITS, Names};
use super::tokens::{read_mask, valid_slots};
use crate::batch::{Logits, LogitsLayout};
use crate::error::Result;
use crate::io::TensorFile;
use crate::io::tensor_file::OwnedTensor;

/// Logits, without gaps between rows, and what is known of each.
#[derive(Debug)]
pub(in crate::io) struct OwnedLogits {
    values: OwnedTensor,
    pub(super) vocab_size: usize,
    /// Of every slot, inside the vocabulary.
    pub(super) token_id: Vec<i32>,
    /// The slots that are not valid and whose id was outside the vocabulary: 0 stands for it.
    pub(in crate::io) without_token: Vec<usize>,
    pub(in crate::io) columns: Option<Columns>,
}

/// Columns of the gradient that the file asks for, as those of a vocabulary too large to keep.
#[derive(Debug)]
pub(in crate::io) struct Columns {
    pub(in crate::io) per_slot: usize,
    /// \[num_slots, per_slot\].
    pub(in crate::io) index: Vec<usize>,
}

impl OwnedLogits {
    pub(in crate::io) fn view(&self) -> Logits<'_> {
        Logits::contiguous(self.values.view(), self.vocab_size)
    }
}

/// The layout, the mask and the logits of `file`.
pub(super) fn read(
    file: &TensorFile,
    names: &Names,
) -> Result<(Slots, Option<Vec<u8>>, OwnedLogits)> {
    let expected = "F32, BF16 or F16 [N, T, V] or packed [tokens, V]";
    let shape = file.shape(LOGITS, expected)?;
    let (slots, vocab_size) = match shape.split_last() {
        Some((&vocab_size, slots)) if (1..=i32::MAX as usize).contains(&vocab_size) => {
            (slots, vocab_size)
        }
        _ => {
            return Err(file.error(format!(
                "tensor `{LOGITS}`: expected {expected} with V at least 1, found {shape:?}"
            )));
        }
    };
    let layout = layout::of_logits(file, slots)?;
    let mask = read_mask(file, names, &layout.view())?;
    let (token_id, without_token) =
        read_tokens(file, names, &layout.view(), mask.as_deref(), vocab_size)?;
    let logits = OwnedLogits {
        values: file.log_probs(LOGITS, shape)?,
        vocab_size,
        token_id,
        without_token,
        columns: read_columns(file, slots, vocab_size)?,
    };
    Ok((layout, mask, logits))
}

/// Ids of slots that do not count may be anything: trainers fill them with -100 and the like.
fn read_tokens(
    file: &TensorFile,
    names: &Names,
    layout: &LogitsLayout<'_>,
    mask: Option<&[u8]>,
    vocab_size: usize,
) -> Result<(Vec<i32>, Vec<usize>)> {
    let ids = file.integers(names.token_id, &layout::shape(layout))?;
    let mut valid = vec![false; ids.len()];
    for slot in valid_slots(layout, mask).into_iter().flatten() {
        valid[slot] = true;
    }
    let mut without_token = vec![];
    let mut narrow = |(slot, id): (usize, i64)| match i32::try_from(id) {
        Ok(narrowed) if (0..vocab_size as i64).contains(&id) => Ok(narrowed),
        _ if valid[slot] => Err(file.error(format!(
            "{}[{slot}]: expected at least 0 and less than {vocab_size}, the vocabulary of \
             `{LOGITS}`, found {id}",
            names.token_id
        ))),
        _ => {
            without_token.push(slot);
            Ok(0)
        }
    };
    let ids = ids.into_iter().enumerate().map(&mut narrow);
    Ok((ids.collect::<Result<_>>()?, without_token))
}

fn read_columns(file: &TensorFile, slots: &[usize], vocab_size: usize) -> Result<Option<Columns>> {
    if !file.has(COLUMNS) {
        return Ok(None);
    }
    let shape = file.shape(COLUMNS, "")?;
    let expected = format!("I32 or I64 {slots:?} and the columns of each");
    let Some((&per_slot, true)) = shape.split_last().map(|(last, rest)| (last, rest == slots))
    else {
        return Err(file.error(format!(
            "tensor `{COLUMNS}`: expected {expected}, found {shape:?}"
        )));
    };
    let narrow = |(place, column): (usize, i64)| {
        let index = usize::try_from(column).ok();
        index.filter(|&index| index < vocab_size).ok_or_else(|| {
            file.error(format!(
                "{COLUMNS}[{}, {}]: expected at least 0 and less than {vocab_size}, found {column}",
                place / per_slot,
                place % per_slot
            ))
        })
    };
    let index = file.integers(COLUMNS, shape)?.into_iter().enumerate();
    Ok(Some(Columns {
        per_slot,
        index: index.map(narrow).collect::<Result<_>>()?,
    }))
}
