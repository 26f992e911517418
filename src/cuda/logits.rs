//! Rows of logits in device memory, and where their gradient goes.

use super::launch::Accesses;
use super::memory::{DeviceSlice, DeviceTensor, DeviceTensorMut};
use crate::batch::DType;
use crate::error::{Error, Result};
use crate::params::{Buffer, LogitsBuffers, LogitsGradient as GradientBuffer};

/// Rows of logits: each is one token's scores over the vocabulary, or over a shard of it.
///
/// `V` is a [`DeviceTensor`] where they are only read, a [`LogitsGradient`] where their gradient is
/// written. Rows may start anywhere: those whose logits and gradient are aligned to 16 bytes alike
/// are moved in vectors, the others element by element.
#[derive(Debug)]
pub struct DeviceLogits<V> {
    /// The scores before the temperature, dimensionless.
    pub values: V,
    /// Columns (V), at least 1.
    pub vocab_size: usize,
    /// Elements from one row (token) to the next, at least `vocab_size`.
    pub row_stride: usize,
    /// Rows of responses of one width only: elements from one response to the next; `None`: as many
    /// rows as from one response to the next in the token tensors.
    pub response_stride: Option<usize>,
}

/// Logits and the memory of their gradient, in one dtype.
///
/// The kind of the borrow says whether the logits survive: nobody else can hold logits that their
/// gradient overwrites.
#[derive(Debug)]
pub enum LogitsGradient<'a> {
    /// Each row's gradient takes the row's place, without memory beyond the logits. A row whose
    /// gradient is not written ([`crate::Gradient::Untouched`]) still holds its logits.
    InPlace(DeviceTensorMut<'a>),
    /// The logits stay as they are.
    Apart {
        /// The scores before the temperature.
        logits: DeviceTensor<'a>,
        /// A row for each row of logits, or, with [`crate::Gradient::Compact`], as many as there is
        /// room for.
        d_logits: DeviceTensorMut<'a>,
        /// Elements from one row to the next in `d_logits`; `None`: as the logits.
        row_stride: Option<usize>,
        /// Elements from one response to the next in `d_logits`; `None`: as the logits where the
        /// row stride is theirs, else as many rows as in the token tensors. None if compact.
        response_stride: Option<usize>,
    },
}

impl<'a> LogitsGradient<'a> {
    /// To memory apart from the logits, with their strides.
    pub fn apart(logits: DeviceTensor<'a>, d_logits: DeviceTensorMut<'a>) -> Self {
        Self::Apart {
            logits,
            d_logits,
            row_stride: None,
            response_stride: None,
        }
    }
}

/// The token of each row, as an index of the whole vocabulary.
///
/// The host cannot see the values: an id outside the vocabulary makes its row unusable, and a loss
/// counts it in [`crate::Metrics::out_of_range`].
#[derive(Debug)]
pub enum DeviceTokenIds<'a> {
    /// 32 bits.
    I32(DeviceSlice<'a, i32>),
    /// 64 bits, as PyTorch's labels.
    I64(DeviceSlice<'a, i64>),
}

impl DeviceTokenIds<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::I32(ids) => ids.len(),
            Self::I64(ids) => ids.len(),
        }
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// With the bytes of an element.
    pub(super) fn read<'s>(&'s self, accesses: &mut Accesses<'s>) -> Result<(Buffer, usize)> {
        Ok(match self {
            Self::I32(ids) => (accesses.read("token_id", ids)?, 4),
            Self::I64(ids) => (accesses.read("token_id", ids)?, 8),
        })
    }
}

impl<'a> From<DeviceSlice<'a, i32>> for DeviceTokenIds<'a> {
    fn from(ids: DeviceSlice<'a, i32>) -> Self {
        Self::I32(ids)
    }
}

impl<'a> From<DeviceSlice<'a, i64>> for DeviceTokenIds<'a> {
    fn from(ids: DeviceSlice<'a, i64>) -> Self {
        Self::I64(ids)
    }
}

impl<V> DeviceLogits<V> {
    /// Rows of `vocab_size` elements back to back.
    pub fn contiguous(values: V, vocab_size: usize) -> Self {
        Self {
            values,
            vocab_size,
            row_stride: vocab_size,
            response_stride: None,
        }
    }
}

impl DeviceLogits<DeviceTensor<'_>> {
    pub(super) fn read<'s>(
        &'s self,
        token_id: &'s DeviceTokenIds<'_>,
        accesses: &mut Accesses<'s>,
    ) -> Result<LogitsBuffers> {
        let (token_ids, token_id_bytes) = token_id.read(accesses)?;
        Ok(LogitsBuffers {
            values: accesses.read_tensor("logits", &self.values)?,
            dtype: self.values.dtype(),
            vocab_size: self.vocab_size,
            row_stride: self.row_stride,
            response_stride: self.response_stride,
            token_ids,
            token_id_bytes,
        })
    }
}

impl DeviceLogits<LogitsGradient<'_>> {
    pub(super) fn write<'s>(
        &'s mut self,
        token_id: &'s DeviceTokenIds<'_>,
        accesses: &mut Accesses<'s>,
    ) -> Result<(LogitsBuffers, GradientBuffer)> {
        let (token_ids, token_id_bytes) = token_id.read(accesses)?;
        let (values, dtype, gradient) = self.values.write(accesses)?;
        let logits = LogitsBuffers {
            values,
            dtype,
            vocab_size: self.vocab_size,
            row_stride: self.row_stride,
            response_stride: self.response_stride,
            token_ids,
            token_id_bytes,
        };
        Ok((logits, gradient))
    }
}

impl LogitsGradient<'_> {
    /// The logits, their dtype, and the gradient.
    fn write<'s>(
        &'s mut self,
        accesses: &mut Accesses<'s>,
    ) -> Result<(Buffer, DType, GradientBuffer)> {
        match self {
            Self::InPlace(values) => {
                let dtype = values.dtype();
                let logits = accesses.write_tensor("logits", values)?;
                let gradient = GradientBuffer {
                    d_logits: logits,
                    row_stride: None,
                    response_stride: None,
                };
                Ok((logits, dtype, gradient))
            }
            Self::Apart {
                logits,
                d_logits,
                row_stride,
                response_stride,
            } => {
                let dtype = logits.dtype();
                if d_logits.dtype() != dtype {
                    return Err(Error::invalid(
                        "d_logits",
                        format!("dtype {dtype:?} as the logits"),
                        format!("{:?}", d_logits.dtype()),
                    ));
                }
                let gradient = GradientBuffer {
                    d_logits: accesses.write_tensor("d_logits", d_logits)?,
                    row_stride: *row_stride,
                    response_stride: *response_stride,
                };
                Ok((accesses.read_tensor("logits", logits)?, dtype, gradient))
            }
        }
    }
}
