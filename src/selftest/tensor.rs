//! Tensors on the host in any dtype.

use crate::batch::{DType, Tensor};
use half::{bf16, f16};

#[derive(Debug)]
pub(super) enum OwnedTensor {
    F64(Vec<f64>),
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
}

impl OwnedTensor {
    /// `values`, rounded.
    pub(super) fn new(dtype: DType, values: Vec<f32>) -> Self {
        match dtype {
            DType::F64 => Self::F64(values.into_iter().map(f64::from).collect()),
            DType::F32 => Self::F32(values),
            DType::Bf16 => Self::Bf16(values.into_iter().map(bf16::from_f32).collect()),
            DType::F16 => Self::F16(values.into_iter().map(f16::from_f32).collect()),
        }
    }

    pub(super) fn borrow(&self) -> Tensor<'_> {
        match self {
            Self::F64(values) => Tensor::F64(values),
            Self::F32(values) => Tensor::F32(values),
            Self::Bf16(values) => Tensor::Bf16(values),
            Self::F16(values) => Tensor::F16(values),
        }
    }
}
