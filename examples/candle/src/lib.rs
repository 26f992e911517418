//! The loss of `qae` as an operation of candle: it borrows the memory of candle's tensors, computes
//! the gradient in the forward pass, and candle's backward pass scales it.

#[cfg(feature = "cuda")]
mod cuda;

use std::sync::OnceLock;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, DType, Error, Layout, Result, Shape, Tensor, bail};
use qae::{Advantages, Config, Groups, TokenBatch, cpu};

/// The clipped policy-gradient loss of a batch; differentiable in `log_prob`.
///
/// | argument | shape | dtype | unit |
/// |---|---|---|---|
/// | `log_prob`, `old_log_prob` | \[rows, width\], contiguous | f32 | nats |
/// | `mask` | \[rows, width\], contiguous | u8 | 0: not a token |
/// | `rewards` | \[rows\] | f32 | reward |
/// | returned | \[\] | f32 | that of the advantages |
///
/// # Errors
/// Tensors that are not as in the table, and what [`cpu::loss_from_log_probs`] refuses.
pub fn policy_loss(
    log_prob: &Tensor,
    old_log_prob: &Tensor,
    mask: &Tensor,
    rewards: &[f32],
    groups: &Groups,
    config: &Config,
) -> Result<Tensor> {
    let operation = PolicyLoss {
        rewards: rewards.to_vec(),
        groups: groups.clone(),
        config: *config,
        gradient: OnceLock::new(),
    };
    log_prob
        .apply_op3(old_log_prob, mask, operation)?
        .to_dtype(DType::F32)
}

struct PolicyLoss {
    rewards: Vec<f32>,
    groups: Groups,
    config: Config,
    /// Shaped like the log-probs. An operation is applied once, so it is set once.
    gradient: OnceLock<Tensor>,
}

impl CustomOp3 for PolicyLoss {
    fn name(&self) -> &'static str {
        "qae-policy-loss"
    }

    fn cpu_fwd(
        &self,
        log_prob: &CpuStorage,
        layout: &Layout,
        old_log_prob: &CpuStorage,
        old_layout: &Layout,
        mask: &CpuStorage,
        mask_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, width) = layout.shape().dims2()?;
        let batch = TokenBatch {
            layout: qae::Layout::padded(rows, width),
            mask: Some(elements("mask", mask, mask_layout)?),
            log_prob: qae::Tensor::F32(elements("log_prob", log_prob, layout)?),
            old_log_prob: Some(qae::Tensor::F32(elements(
                "old_log_prob",
                old_log_prob,
                old_layout,
            )?)),
            ref_log_prob: None,
            importance_weight: None,
            advantages: Advantages::FromRewards {
                rewards: &self.rewards,
                groups: &self.groups,
                response_index: None,
            },
        };
        let out = cpu::loss_from_log_probs(&batch, &self.config).map_err(Error::wrap)?;
        let gradient: Vec<f32> = out.d_log_prob.iter().map(|&value| value as f32).collect();
        let gradient = Tensor::from_vec(gradient, layout.shape(), &candle_core::Device::Cpu)?;
        self.gradient.set(gradient).expect("applied once");
        let loss = CpuStorage::F64(vec![out.metrics.loss]);
        Ok((loss, Shape::from(())))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        log_prob: &candle_core::CudaStorage,
        layout: &Layout,
        old_log_prob: &candle_core::CudaStorage,
        old_layout: &Layout,
        mask: &candle_core::CudaStorage,
        mask_layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let tensors = [
            (log_prob, layout),
            (old_log_prob, old_layout),
            (mask, mask_layout),
        ];
        let (loss, gradient) = cuda::loss_and_gradient(self, tensors)?;
        self.gradient.set(gradient).expect("applied once");
        Ok((loss, Shape::from(())))
    }

    fn bwd(
        &self,
        _log_prob: &Tensor,
        _old_log_prob: &Tensor,
        _mask: &Tensor,
        _loss: &Tensor,
        d_loss: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gradient = self.gradient.get().expect("forward comes first");
        let scale = d_loss.to_dtype(gradient.dtype())?;
        Ok((Some(gradient.broadcast_mul(&scale)?), None, None))
    }
}

/// The elements of a contiguous tensor where candle keeps them.
fn elements<'s, T: candle_core::WithDType>(
    name: &str,
    storage: &'s CpuStorage,
    layout: &Layout,
) -> Result<&'s [T]> {
    if storage.dtype() != T::DTYPE {
        bail!(
            "{name}: expected {:?}, found {:?}",
            T::DTYPE,
            storage.dtype()
        );
    }
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!(
            "{name}: expected a contiguous tensor, found strides {:?}",
            layout.stride()
        );
    };
    Ok(&storage.as_slice::<T>()?[start..end])
}
