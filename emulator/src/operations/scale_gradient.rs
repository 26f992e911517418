//! `scale_gradient` on the emulated kernel.

use qae::batch::{DType, Tensor};
use qae::params::{self, FactorBuffers, TypedBuffer};
use qae::{Factor, GradientRows};

use super::memory::Memory;
use super::tensor::TensorMemory;
use super::{EmulatorBackend, Result, failed};
use crate::{Trace, launchers};

/// A gradient after a launch.
#[derive(Debug)]
pub struct ScaleRun {
    /// The tensor that was written, from its first element to its last; NaN where nothing was.
    pub scaled: Vec<f64>,
    /// Whether each of its elements was written or, in place, was there already.
    pub written: Vec<bool>,
    /// Of the launch.
    pub trace: Trace,
}

/// Where the product of a gradient and a factor goes.
#[derive(Clone, Copy, Debug)]
pub enum ScaledPlace {
    /// It takes the gradient's.
    InPlace,
    /// Elsewhere.
    Apart {
        /// Of its elements.
        dtype: DType,
        /// Elements from row to row.
        row_stride: usize,
        /// Elements from response to response, if they have a width.
        response_stride: Option<usize>,
    },
}

impl EmulatorBackend {
    /// Runs the kernel `scale_gradient`, placed as logits and their gradient are. The factor is an
    /// f64 where `wide_factor` says so, else an f32.
    ///
    /// # Errors
    /// Those of the checks, and a detector's findings.
    pub fn run_scale_gradient(
        &self,
        gradient: &GradientRows<Tensor<'_>>,
        factor: &Factor<'_>,
        place: ScaledPlace,
        wide_factor: bool,
    ) -> Result<ScaleRun> {
        let memory = Memory::new(self);
        let skipped = self.logits.misalignment;
        let source = TensorMemory::upload(&memory, gradient.values, "gradient", skipped)?;
        let (apart, strides) = match place {
            ScaledPlace::InPlace => (None, (gradient.row_stride, gradient.response_stride)),
            ScaledPlace::Apart {
                dtype,
                row_stride,
                response_stride,
            } => {
                let width = gradient.width.unwrap_or(gradient.num_rows).max(1);
                let before = (gradient.num_rows / width).saturating_sub(1)
                    * response_stride.unwrap_or(width * row_stride);
                let len = match gradient.num_rows {
                    0 => 0,
                    _ => before + (width - 1) * row_stride + gradient.num_columns,
                };
                let skipped = self.logits.gradient_misalignment;
                let tensor = TensorMemory::alloc(&memory, dtype, len, "scaled", skipped)?;
                (Some(tensor), (row_stride, response_stride))
            }
        };
        let target = apart.as_ref().unwrap_or(&source);
        let row_gradient = match factor.row_gradient {
            None => None,
            Some(tensor) => Some(memory.upload_tensor(tensor, "row_gradient")?),
        };
        let (value, value_bytes) = match wide_factor {
            true => (memory.upload(&[factor.value], "factor", 0)?, 8),
            false => (memory.upload(&[factor.value as f32], "factor", 0)?, 4),
        };
        let factor = FactorBuffers {
            value,
            value_bytes,
            row_gradient,
        };
        let scaled = GradientRows {
            values: typed(target),
            num_rows: gradient.num_rows,
            num_columns: gradient.num_columns,
            row_stride: strides.0,
            width: gradient.width,
            response_stride: strides.1,
        };
        let from = GradientRows {
            values: typed(&source),
            row_stride: gradient.row_stride,
            response_stride: gradient.response_stride,
            ..scaled
        };
        let params = params::scale_gradient(&from, &factor, &scaled)?;
        let trace = memory.device.launch(|| {
            // SAFETY: every pointer is a buffer of this device with the length that was checked.
            unsafe { launchers::qae_emu_scale_gradient(&params, std::ptr::null_mut()) }
        });
        let len = target.view().len;
        Ok(ScaleRun {
            scaled: target.download_raw(),
            written: (0..len).map(|i| target.count_written(i, 1) == 1).collect(),
            trace: trace.map_err(failed)?,
        })
    }
}

fn typed(tensor: &TensorMemory) -> TypedBuffer {
    TypedBuffer {
        buffer: tensor.view(),
        dtype: tensor.dtype(),
    }
}
