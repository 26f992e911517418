//! Tensors of this program on the device.

use crate::batch::{DType, Tensor};
use crate::cuda::launch::driver_error;
use crate::cuda::memory::{DeviceSlice, DeviceSliceMut, DeviceTensor, DeviceTensorMut};
use crate::cuda::stream::Stream;
use crate::error::Result;
use crate::params::no_f64;
use cudarc::driver::{CudaSlice, DeviceRepr, ValidAsZeroBits};
use half::{bf16, f16};

/// A tensor of this program on the device. An empty one has memory, too: CUDA allocates no 0 bytes.
#[derive(Debug)]
pub(in crate::cuda) struct Owned<T> {
    memory: CudaSlice<T>,
    /// Elements before the first one, which nobody looks at.
    skipped: usize,
    len: usize,
}

impl<T: DeviceRepr + ValidAsZeroBits> Owned<T> {
    pub(in crate::cuda) fn zeros(stream: &Stream, len: usize) -> Result<Self> {
        let memory = stream.cudarc().alloc_zeros(len.max(1));
        Ok(Self {
            memory: memory.map_err(|error| driver_error("cuMemAllocAsync", error))?,
            skipped: 0,
            len,
        })
    }

    pub(in crate::cuda) fn upload(stream: &Stream, values: &[T]) -> Result<Self> {
        Self::upload_behind(stream, values, 0)
    }

    /// Behind `skipped` elements that are 0.
    fn upload_behind(stream: &Stream, values: &[T], skipped: usize) -> Result<Self> {
        let mut owned = Self::zeros(stream, values.len() + skipped)?;
        owned.skipped = skipped;
        owned.len = values.len();
        if !values.is_empty() {
            let mut target = owned.memory.slice_mut(skipped..skipped + values.len());
            let copied = stream.cudarc().memcpy_htod(values, &mut target);
            copied.map_err(|error| driver_error("cuMemcpyHtoDAsync", error))?;
        }
        Ok(owned)
    }

    /// A copy in memory of its own, likewise aligned.
    fn try_clone(&self) -> Result<Self> {
        let memory = self.memory.try_clone();
        Ok(Self {
            memory: memory.map_err(|error| driver_error("cuMemcpyDtoDAsync", error))?,
            ..*self
        })
    }

    /// Waits for the stream.
    pub(in crate::cuda) fn download(&self, stream: &Stream) -> Result<Vec<T>> {
        let values = stream.cudarc().clone_dtoh(&self.memory);
        let mut values = values.map_err(|error| driver_error("cuMemcpyDtoHAsync", error))?;
        stream.synchronize()?;
        values.truncate(self.skipped + self.len);
        Ok(values.split_off(self.skipped))
    }

    pub(in crate::cuda) fn as_slice(&self) -> DeviceSlice<'_, T> {
        let elements = self.skipped..self.skipped + self.len;
        self.memory.slice(elements).into()
    }

    pub(in crate::cuda) fn as_slice_mut(&mut self) -> DeviceSliceMut<'_, T> {
        let elements = self.skipped..self.skipped + self.len;
        self.memory.slice_mut(elements).into()
    }
}

/// The same in any dtype.
#[derive(Debug)]
pub(in crate::cuda) enum OwnedTensor {
    F32(Owned<f32>),
    Bf16(Owned<bf16>),
    F16(Owned<f16>),
}

macro_rules! for_values {
    ($tensor:expr, $values:ident => $result:expr) => {
        match $tensor {
            OwnedTensor::F32($values) => $result,
            OwnedTensor::Bf16($values) => $result,
            OwnedTensor::F16($values) => $result,
        }
    };
}

impl OwnedTensor {
    pub(in crate::cuda) fn upload(
        stream: &Stream,
        field: &str,
        tensor: Tensor<'_>,
    ) -> Result<Self> {
        Self::upload_behind(stream, field, tensor, 0)
    }

    /// Behind `skipped` elements that are 0.
    ///
    /// # Errors
    /// Names `field` if it is f64.
    pub(in crate::cuda) fn upload_behind(
        stream: &Stream,
        field: &str,
        tensor: Tensor<'_>,
        skipped: usize,
    ) -> Result<Self> {
        Ok(match tensor {
            Tensor::F64(_) => return Err(no_f64(field)),
            Tensor::F32(values) => Self::F32(Owned::upload_behind(stream, values, skipped)?),
            Tensor::Bf16(values) => Self::Bf16(Owned::upload_behind(stream, values, skipped)?),
            Tensor::F16(values) => Self::F16(Owned::upload_behind(stream, values, skipped)?),
        })
    }

    /// `values` in another dtype, behind `skipped` elements that are 0.
    ///
    /// # Errors
    /// Names `field` if it is f64.
    pub(in crate::cuda) fn rounded(
        stream: &Stream,
        field: &str,
        dtype: DType,
        values: &[f32],
        skipped: usize,
    ) -> Result<Self> {
        let upload = |tensor: Tensor<'_>| Self::upload_behind(stream, field, tensor, skipped);
        let each = values.iter();
        match dtype {
            DType::F64 => Err(no_f64(field)),
            DType::F32 => upload(Tensor::F32(values)),
            DType::Bf16 => upload(Tensor::Bf16(
                &each.map(|&x| bf16::from_f32(x)).collect::<Vec<_>>(),
            )),
            DType::F16 => upload(Tensor::F16(
                &each.map(|&x| f16::from_f32(x)).collect::<Vec<_>>(),
            )),
        }
    }

    /// A copy in memory of its own, likewise aligned.
    pub(in crate::cuda) fn try_clone(&self) -> Result<Self> {
        Ok(match self {
            Self::F32(values) => Self::F32(values.try_clone()?),
            Self::Bf16(values) => Self::Bf16(values.try_clone()?),
            Self::F16(values) => Self::F16(values.try_clone()?),
        })
    }

    /// Waits for the stream; widened.
    pub(in crate::cuda) fn download(&self, stream: &Stream) -> Result<Vec<f64>> {
        for_values!(self, values => {
            let values = values.download(stream)?;
            Ok(values.iter().map(|&value| value.into()).collect())
        })
    }

    pub(in crate::cuda) fn as_tensor(&self) -> DeviceTensor<'_> {
        for_values!(self, values => values.as_slice().into())
    }

    pub(in crate::cuda) fn as_tensor_mut(&mut self) -> DeviceTensorMut<'_> {
        for_values!(self, values => values.as_slice_mut().into())
    }
}
