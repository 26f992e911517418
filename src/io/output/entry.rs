//! One tensor of the output file.

use super::Precision;
use safetensors::tensor::View;
use safetensors::{Dtype, SafeTensorError};
use std::borrow::Cow;
use std::collections::HashMap;

/// A named tensor, turned into bytes only when its turn comes: a gradient of logits is large.
pub(super) struct Entry<'a> {
    name: String,
    shape: Vec<usize>,
    values: Values<'a>,
}

enum Values<'a> {
    Floats(Cow<'a, [f64]>, Precision),
    I32(Vec<u32>),
    I64(Vec<u64>),
}

impl<'a> Entry<'a> {
    pub(super) fn floats(
        name: impl Into<String>,
        shape: Vec<usize>,
        values: impl Into<Cow<'a, [f64]>>,
        precision: Precision,
    ) -> Self {
        Self {
            name: name.into(),
            shape,
            values: Values::Floats(values.into(), precision),
        }
    }

    pub(super) fn rows(name: &str, rows: &[u32]) -> Self {
        Self {
            name: name.to_string(),
            shape: vec![rows.len()],
            values: Values::I32(rows.to_vec()),
        }
    }

    pub(super) fn slots(name: &str, slots: &[u64]) -> Self {
        Self {
            name: name.to_string(),
            shape: vec![slots.len()],
            values: Values::I64(slots.to_vec()),
        }
    }
}

impl View for &Entry<'_> {
    fn dtype(&self) -> Dtype {
        match self.values {
            Values::Floats(_, Precision::F64) => Dtype::F64,
            Values::Floats(_, Precision::F32) => Dtype::F32,
            Values::I32(_) => Dtype::I32,
            Values::I64(_) => Dtype::I64,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(match &self.values {
            Values::Floats(values, Precision::F64) => to_bytes(values, f64::to_le_bytes),
            Values::Floats(values, Precision::F32) => {
                to_bytes(values, |value| (value as f32).to_le_bytes())
            }
            Values::I32(values) => to_bytes(values, u32::to_le_bytes),
            Values::I64(values) => to_bytes(values, u64::to_le_bytes),
        })
    }

    fn data_len(&self) -> usize {
        match &self.values {
            Values::Floats(values, Precision::F64) => 8 * values.len(),
            Values::Floats(values, Precision::F32) => 4 * values.len(),
            Values::I32(values) => 4 * values.len(),
            Values::I64(values) => 8 * values.len(),
        }
    }
}

/// The bytes of a file with these tensors and the metadata entry `case`.
pub(super) fn serialize(
    entries: &[Entry<'_>],
    description: String,
) -> Result<Vec<u8>, SafeTensorError> {
    let metadata = HashMap::from([("case".to_string(), description)]);
    let named = entries.iter().map(|entry| (entry.name.as_str(), entry));
    safetensors::serialize(named, Some(metadata))
}

fn to_bytes<T: Copy, const SIZE: usize>(values: &[T], to_le: impl Fn(T) -> [u8; SIZE]) -> Vec<u8> {
    values.iter().flat_map(|&value| to_le(value)).collect()
}
