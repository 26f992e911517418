//! A gradient times a factor for tensors on the host.

use super::CudaBackend;
use crate::batch::{DType, Factor, GradientRows, Tensor};
use crate::cuda::scale_gradient::{
    DeviceFactor, FactorValue, scale_gradient, scale_gradient_in_place,
};
use crate::cuda::upload::{Owned, OwnedTensor};
use crate::error::Result;

impl CudaBackend {
    /// The tensor of `gradient` after it was scaled, placed as logits and their gradient are; apart
    /// from it, what was not written is NaN.
    ///
    /// # Errors
    /// Those of [`scale_gradient`], and [`crate::Error::Unsupported`] for f64.
    pub fn scale_gradient(
        &self,
        gradient: &GradientRows<Tensor<'_>>,
        factor: &Factor<'_>,
        dtype: DType,
    ) -> Result<Vec<f64>> {
        let (stream, placement) = (&self.stream, &self.logits);
        let values = gradient.values;
        let mut source =
            OwnedTensor::upload_behind(stream, "gradient", values, placement.misalignment)?;
        let value = Owned::upload(stream, &[factor.value as f32])?;
        let row_gradient = factor.row_gradient.map(|given| {
            let given: Vec<f32> = (0..given.len()).map(|row| given.get(row) as f32).collect();
            Owned::upload(stream, &given)
        });
        let row_gradient = row_gradient.transpose()?;
        let factor = DeviceFactor {
            value: FactorValue::F32(value.as_slice()),
            row_gradient: row_gradient.as_ref().map(Owned::as_slice),
        };
        if placement.in_place {
            let mut rows = gradient.with(source.as_tensor_mut());
            scale_gradient_in_place(stream, &mut rows, &factor)?;
            return source.download(stream);
        }
        let poison = vec![f32::NAN; values.len()];
        let skipped = placement.gradient_misalignment;
        let mut scaled = OwnedTensor::rounded(stream, "scaled", dtype, &poison, skipped)?;
        let mut target = gradient.with(scaled.as_tensor_mut());
        scale_gradient(
            stream,
            &gradient.with(source.as_tensor()),
            &factor,
            &mut target,
        )?;
        scaled.download(stream)
    }
}
