//! The same on the memory, the stream and the context of candle's CUDA tensors: no tensor
//! is copied, and nothing waits. candle's cudarc is the crate's own, so its slices are qae's.

use candle_core::cuda::CudaDType;
use candle_core::op::BackpropOp;
use candle_core::{
    CudaStorage, Error, Layout, Result, Storage, Tensor, backend::BackendStorage, bail,
};
use qae::cuda::{
    self, DeviceAdvantages, DeviceBatch, DeviceGroups, DeviceLayout, DeviceMetrics,
    DeviceNormalizer, DeviceSlice, DeviceTensor, DeviceTensorMut, LossOutputs, Stream, Workspace,
};

use crate::PolicyLoss;

/// The loss, f64, and the gradient, shaped like the log-probs.
pub(crate) fn loss_and_gradient(
    operation: &PolicyLoss,
    [log_prob, old_log_prob, mask]: [(&CudaStorage, &Layout); 3],
) -> Result<(CudaStorage, Tensor)> {
    let (rows, width) = log_prob.1.shape().dims2()?;
    let device = log_prob.0.device().clone();
    let stream = Stream::from(device.cuda_stream());
    let groups = DeviceGroups::upload(&stream, operation.groups.clone()).map_err(Error::wrap)?;
    let rewards = device.clone_htod(&operation.rewards)?;
    let batch = DeviceBatch {
        layout: DeviceLayout::padded(rows, width),
        mask: Some(elements("mask", mask)?),
        log_prob: DeviceTensor::F32(elements("log_prob", log_prob)?),
        old_log_prob: Some(DeviceTensor::F32(elements("old_log_prob", old_log_prob)?)),
        ref_log_prob: None,
        importance_weight: None,
        advantages: DeviceAdvantages::FromRewards {
            rewards: (&rewards).into(),
            groups: &groups,
            response_index: None,
        },
    };
    let config = &operation.config;
    let bytes = cuda::loss_from_log_probs_workspace_bytes(&stream, &batch, config);
    let mut workspace =
        Workspace::new(&stream, bytes.map_err(Error::wrap)?).map_err(Error::wrap)?;
    let mut gradient = device.alloc_zeros::<f32>(rows * width)?;
    let mut metrics = DeviceMetrics::new(&stream).map_err(Error::wrap)?;
    let mut outputs = LossOutputs {
        d_log_prob: DeviceTensorMut::F32((&mut gradient).into()),
        gradient_row_stride: None,
        baseline: None,
        advantage: None,
        active_rows: None,
        active_count: None,
        metrics: &mut metrics,
    };
    let normalizer = DeviceNormalizer::Config;
    cuda::loss_from_log_probs(
        &stream,
        &batch,
        config,
        &normalizer,
        &mut outputs,
        &mut workspace,
    )
    .map_err(Error::wrap)?;
    let mut loss = device.alloc_zeros::<f64>(1)?;
    // SAFETY: the first word of the metrics is the loss, a f64.
    let word = unsafe { metrics.words().transmute::<f64>(1) }.expect("metrics have a word");
    device.memcpy_dtod(&word, &mut loss)?;
    let loss = CudaStorage::wrap_cuda_slice(loss, device.clone());
    let gradient = Storage::Cuda(CudaStorage::wrap_cuda_slice(gradient, device));
    let gradient = Tensor::from_storage(gradient, log_prob.1.shape(), BackpropOp::none(), false);
    Ok((loss, gradient))
}

/// The elements of a contiguous tensor where candle keeps them.
fn elements<'s, T: CudaDType>(
    name: &str,
    (storage, layout): (&'s CudaStorage, &Layout),
) -> Result<DeviceSlice<'s, T>> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!(
            "{name}: expected a contiguous tensor, found strides {:?}",
            layout.stride()
        );
    };
    Ok(storage.as_cuda_slice::<T>()?.slice(start..end).into())
}
