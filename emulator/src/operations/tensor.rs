//! Tensors of any of the supported dtypes in the memory of a device.

use bytemuck::Pod;
use half::{bf16, f16};
use qae::batch::{DType, Tensor};
use qae::params;

use super::memory::Memory;
use super::{Result, failed};
use crate::Buffer;

/// A tensor that starts some elements behind the start of its buffer.
pub(super) struct TensorMemory {
    elements: Elements,
    skipped: usize,
}

enum Elements {
    F32(Buffer<f32>),
    Bf16(Buffer<bf16>),
    F16(Buffer<f16>),
}

macro_rules! for_elements {
    ($elements:expr, $buffer:ident => $result:expr) => {
        match $elements {
            Elements::F32($buffer) => $result,
            Elements::Bf16($buffer) => $result,
            Elements::F16($buffer) => $result,
        }
    };
}

impl TensorMemory {
    /// `len` elements that nothing has written.
    pub(super) fn alloc(
        memory: &Memory,
        dtype: DType,
        len: usize,
        label: &str,
        skipped: usize,
    ) -> Result<Self> {
        let elements = match dtype {
            DType::F64 => return Err(params::no_f64(label)),
            DType::F32 => Elements::F32(memory.alloc(len + skipped, label)?),
            DType::Bf16 => Elements::Bf16(memory.alloc(len + skipped, label)?),
            DType::F16 => Elements::F16(memory.alloc(len + skipped, label)?),
        };
        Ok(Self { elements, skipped })
    }

    /// `tensor`, behind NaN.
    pub(super) fn upload(
        memory: &Memory,
        tensor: Tensor<'_>,
        label: &str,
        skipped: usize,
    ) -> Result<Self> {
        let elements = match tensor {
            Tensor::F64(_) => return Err(params::no_f64(label)),
            Tensor::F32(values) => Elements::F32(upload(memory, values, label, skipped)?),
            Tensor::Bf16(values) => Elements::Bf16(upload(memory, values, label, skipped)?),
            Tensor::F16(values) => Elements::F16(upload(memory, values, label, skipped)?),
        };
        Ok(Self { elements, skipped })
    }

    pub(super) fn dtype(&self) -> DType {
        match self.elements {
            Elements::F32(_) => DType::F32,
            Elements::Bf16(_) => DType::Bf16,
            Elements::F16(_) => DType::F16,
        }
    }

    pub(super) fn view(&self) -> params::Buffer {
        for_elements!(&self.elements, buffer => params::Buffer {
            address: buffer.address_of(self.skipped),
            len: buffer.len() - self.skipped,
        })
    }

    /// The elements, with poison where nothing has written.
    pub(super) fn download_raw(&self) -> Vec<f64> {
        for_elements!(&self.elements, buffer => widened(&buffer.download_raw()[self.skipped..]))
    }

    /// How many of `len` elements from `start` on were written.
    pub(super) fn count_written(&self, start: usize, len: usize) -> usize {
        let first = self.skipped + start;
        for_elements!(&self.elements, buffer => {
            (first..first + len).filter(|&index| buffer.is_initialized(index)).count()
        })
    }
}

/// Uploads behind `skipped` elements that are NaN, as all bits of a byte set are in any dtype.
fn upload<T: Pod>(memory: &Memory, values: &[T], label: &str, skipped: usize) -> Result<Buffer<T>> {
    let mut padded = vec![T::zeroed(); skipped];
    bytemuck::cast_slice_mut::<T, u8>(&mut padded).fill(0xff);
    padded.extend_from_slice(values);
    memory.device.upload(&padded, label).map_err(failed)
}

fn widened<T: Copy + Into<f64>>(values: &[T]) -> Vec<f64> {
    values.iter().map(|&value| value.into()).collect()
}
