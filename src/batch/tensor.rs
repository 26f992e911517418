//! Tensors in any of the supported dtypes.

use super::Element;
use half::{bf16, f16};
use std::ops::Range;

/// Element type of a tensor of log-probs or logits, or of its gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DType {
    /// IEEE 754 double precision; on the CPU only.
    F64,
    /// IEEE 754 single precision.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE 754 half precision.
    F16,
}

impl DType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }
}

/// A tensor of log-probs in nats or of logits, in one of the supported dtypes.
#[derive(Debug, Clone, Copy)]
pub enum Tensor<'a> {
    /// f64 elements; on the CPU only.
    F64(&'a [f64]),
    /// f32 elements.
    F32(&'a [f32]),
    /// bf16 elements.
    Bf16(&'a [bf16]),
    /// f16 elements.
    F16(&'a [f16]),
}

/// The same for writing: what is computed in f64 is rounded once, to the nearest, ties to even.
#[derive(Debug)]
pub enum TensorMut<'a> {
    /// f64 elements, which are not rounded.
    F64(&'a mut [f64]),
    /// f32 elements.
    F32(&'a mut [f32]),
    /// bf16 elements.
    Bf16(&'a mut [bf16]),
    /// f16 elements.
    F16(&'a mut [f16]),
}

/// `$result` with the elements of a [`Tensor`] or a [`TensorMut`] (the `$kind`) as `$values`.
macro_rules! for_elements {
    ($kind:ident: $tensor:expr, $values:ident => $result:expr) => {
        match $tensor {
            $crate::batch::$kind::F64($values) => $result,
            $crate::batch::$kind::F32($values) => $result,
            $crate::batch::$kind::Bf16($values) => $result,
            $crate::batch::$kind::F16($values) => $result,
        }
    };
}
pub(crate) use for_elements;

impl<'a> Tensor<'a> {
    /// Its element type.
    pub fn dtype(&self) -> DType {
        match self {
            Self::F64(_) => DType::F64,
            Self::F32(_) => DType::F32,
            Self::Bf16(_) => DType::Bf16,
            Self::F16(_) => DType::F16,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        for_elements!(Tensor: self, values => values.len())
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Element `index`, widened.
    ///
    /// # Panics
    /// If `index` is out of range.
    pub fn get(&self, index: usize) -> f64 {
        for_elements!(Tensor: self, values => values[index].widen())
    }

    /// The elements of `range`, which must be in range.
    pub(crate) fn slice(&self, range: Range<usize>) -> Tensor<'a> {
        match *self {
            Self::F64(values) => Tensor::F64(&values[range]),
            Self::F32(values) => Tensor::F32(&values[range]),
            Self::Bf16(values) => Tensor::Bf16(&values[range]),
            Self::F16(values) => Tensor::F16(&values[range]),
        }
    }
}

impl TensorMut<'_> {
    /// Its element type.
    pub fn dtype(&self) -> DType {
        match self {
            Self::F64(_) => DType::F64,
            Self::F32(_) => DType::F32,
            Self::Bf16(_) => DType::Bf16,
            Self::F16(_) => DType::F16,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        for_elements!(TensorMut: self, values => values.len())
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

macro_rules! from_elements {
    ($($element:ty => $variant:ident),+) => {$(
        impl<'a> From<&'a [$element]> for Tensor<'a> {
            fn from(values: &'a [$element]) -> Self {
                Self::$variant(values)
            }
        }

        impl<'a> From<&'a mut [$element]> for TensorMut<'a> {
            fn from(values: &'a mut [$element]) -> Self {
                Self::$variant(values)
            }
        }
    )+};
}

from_elements!(f64 => F64, f32 => F32, bf16 => Bf16, f16 => F16);
