//! What the cases can be run on.

#[cfg(feature = "cuda")]
use super::F32_TOLERANCE;
use crate::backend::{Backend, LogProbsOutput, LogitsOutput, LossOutput};
use crate::batch::{
    DType, Factor, GradientRows, LogProbsInput, LogitsBatch, Tensor, TensorMut, TokenBatch,
};
use crate::config::{AdvantageConfig, Config};
use crate::cpu::{self, CpuBackend};
use crate::error::Result;
use crate::groups::Groups;
use crate::params::RowPolicy;
use crate::reference::AdvantageOutput;

/// What runs the operations.
pub trait Subject {
    /// What runs, for a report.
    fn name(&self) -> String;

    /// What its results may differ by, relative to the largest value of a tensor; 0: nothing.
    fn tolerance(&self) -> f64;

    /// Baselines and advantages, and the responses whose advantage is not 0.
    ///
    /// # Errors
    /// Whatever keeps it from running.
    fn advantages(
        &self,
        rewards: &[f32],
        groups: &Groups,
        config: &AdvantageConfig,
    ) -> Result<(AdvantageOutput, Vec<u32>)>;

    /// Loss and gradient; the latter in the dtype of the log-probs where `narrow_gradient` says so
    /// and the subject can do it.
    ///
    /// # Errors
    /// Whatever keeps it from running.
    fn loss_from_log_probs(
        &self,
        batch: &TokenBatch<'_>,
        config: &Config,
        narrow_gradient: bool,
    ) -> Result<LossOutput>;

    /// Log-probs, entropy and log-sum-exp, and the gradient of the backward pass.
    ///
    /// # Errors
    /// Whatever keeps it from running.
    fn log_probs_from_logits(
        &self,
        call: &LogProbsCall<'_>,
        placement: &Placement,
    ) -> Result<(LogProbsOutput, Vec<f64>)>;

    /// Loss, log-probs, entropy and gradient.
    ///
    /// # Errors
    /// Whatever keeps it from running.
    fn loss_from_logits(
        &self,
        batch: &LogitsBatch<'_>,
        config: &Config,
        placement: &Placement,
    ) -> Result<LogitsOutput>;

    /// A gradient without gaps times a factor, in the dtype that `placement` says, if the subject has a
    /// choice.
    ///
    /// # Errors
    /// Whatever keeps it from running.
    fn scale_gradient(
        &self,
        gradient: &GradientRows<Tensor<'_>>,
        factor: &Factor<'_>,
        placement: &Placement,
    ) -> Result<Vec<f64>>;
}

/// Arguments of a forward and a backward pass.
#[derive(Debug, Clone, Copy)]
pub struct LogProbsCall<'a> {
    /// The rows.
    pub input: LogProbsInput<'a>,
    /// \[num_rows\]
    pub d_log_prob: &'a [f32],
    /// \[num_rows\]
    pub d_entropy: Option<&'a [f32]>,
    /// Columns of the shards that the vocabulary is to be computed in; `None`: as a whole.
    pub shards: Option<&'a [usize]>,
}

/// Where logits and their gradient stand and how they are computed, if the subject has a choice.
#[derive(Debug, Clone, Copy, Default)]
pub struct Placement {
    /// Where a row stays between its two uses; clusters only where there are any.
    pub row_policy: RowPolicy,
    /// The gradient takes the logits' place.
    pub in_place: bool,
    /// Logits start this many elements behind a boundary of 256 bytes.
    pub misalignment: usize,
    /// The same of their gradient.
    pub gradient_misalignment: usize,
    /// Token ids have 64 bits.
    pub wide_token_ids: bool,
    /// The gradient with respect to the log-probs has their dtype.
    pub narrow_gradient: bool,
}

impl Subject for CpuBackend {
    fn name(&self) -> String {
        Backend::name(self)
    }

    fn tolerance(&self) -> f64 {
        0.0
    }

    fn advantages(
        &self,
        rewards: &[f32],
        groups: &Groups,
        config: &AdvantageConfig,
    ) -> Result<(AdvantageOutput, Vec<u32>)> {
        let output = cpu::advantages(rewards, groups, config)?;
        let active = super::non_zero(&output.advantage);
        Ok((output, active))
    }

    fn loss_from_log_probs(
        &self,
        batch: &TokenBatch<'_>,
        config: &Config,
        _narrow_gradient: bool,
    ) -> Result<LossOutput> {
        cpu::loss_from_log_probs(batch, config)
    }

    fn log_probs_from_logits(
        &self,
        call: &LogProbsCall<'_>,
        _placement: &Placement,
    ) -> Result<(LogProbsOutput, Vec<f64>)> {
        let (input, d_log_prob, d_entropy) = (&call.input, call.d_log_prob, call.d_entropy);
        let output = cpu::log_probs_from_logits(input)?;
        let d_logits = cpu::log_probs_from_logits_backward(input, d_log_prob, d_entropy)?;
        Ok((output, d_logits))
    }

    fn loss_from_logits(
        &self,
        batch: &LogitsBatch<'_>,
        config: &Config,
        _placement: &Placement,
    ) -> Result<LogitsOutput> {
        cpu::loss_from_logits(batch, config)
    }

    fn scale_gradient(
        &self,
        gradient: &GradientRows<Tensor<'_>>,
        factor: &Factor<'_>,
        _placement: &Placement,
    ) -> Result<Vec<f64>> {
        let mut scaled = vec![f64::NAN; gradient.values.len()];
        let (num_rows, num_columns) = (gradient.num_rows, gradient.num_columns);
        let values = TensorMut::F64(&mut scaled);
        let target = GradientRows::contiguous(values, num_rows, num_columns);
        cpu::scale_gradient_into(gradient, factor, target)?;
        Ok(scaled)
    }
}

impl Placement {
    /// Of a scaled gradient.
    pub fn scaled_dtype(&self, gradient: DType) -> DType {
        match gradient {
            DType::F32 if self.narrow_gradient => DType::F16,
            dtype => dtype,
        }
    }
}

#[cfg(feature = "cuda")]
impl Subject for std::cell::RefCell<crate::cuda::CudaBackend> {
    fn name(&self) -> String {
        self.borrow().name()
    }

    fn tolerance(&self) -> f64 {
        F32_TOLERANCE
    }

    fn advantages(
        &self,
        rewards: &[f32],
        groups: &Groups,
        config: &AdvantageConfig,
    ) -> Result<(AdvantageOutput, Vec<u32>)> {
        self.borrow().advantages(rewards, groups, config)
    }

    fn loss_from_log_probs(
        &self,
        batch: &TokenBatch<'_>,
        config: &Config,
        narrow_gradient: bool,
    ) -> Result<LossOutput> {
        self.borrow_mut().narrow_gradient = narrow_gradient;
        let run = self.borrow().loss_from_log_probs(batch, config)?;
        Ok(run.output)
    }

    fn log_probs_from_logits(
        &self,
        call: &LogProbsCall<'_>,
        placement: &Placement,
    ) -> Result<(LogProbsOutput, Vec<f64>)> {
        let (input, d_log_prob, d_entropy) = (&call.input, call.d_log_prob, call.d_entropy);
        place(&mut self.borrow_mut(), placement);
        let backend = self.borrow();
        if let Some(shards) = call.shards {
            return backend.log_probs_from_shards(input, shards, d_log_prob, d_entropy);
        }
        let output = backend.log_probs_from_logits(input)?.output;
        let run = backend.log_probs_from_logits_backward(input, d_log_prob, d_entropy)?;
        Ok((output, run.output))
    }

    fn loss_from_logits(
        &self,
        batch: &LogitsBatch<'_>,
        config: &Config,
        placement: &Placement,
    ) -> Result<LogitsOutput> {
        place(&mut self.borrow_mut(), placement);
        Ok(self.borrow().loss_from_logits(batch, config)?.output)
    }

    fn scale_gradient(
        &self,
        gradient: &GradientRows<Tensor<'_>>,
        factor: &Factor<'_>,
        placement: &Placement,
    ) -> Result<Vec<f64>> {
        place(&mut self.borrow_mut(), placement);
        let dtype = placement.scaled_dtype(gradient.values.dtype());
        self.borrow().scale_gradient(gradient, factor, dtype)
    }
}

#[cfg(feature = "cuda")]
fn place(backend: &mut crate::cuda::CudaBackend, placement: &Placement) {
    let context = backend.stream().cudarc().context();
    let has_clusters = (context.compute_capability()).is_ok_and(|(major, _)| major >= 9);
    backend.narrow_gradient = placement.narrow_gradient;
    backend.logits = crate::cuda::LogitsPlacement {
        row_policy: match placement.row_policy {
            RowPolicy::Cluster if !has_clusters => RowPolicy::Auto,
            policy => policy,
        },
        in_place: placement.in_place,
        misalignment: placement.misalignment,
        gradient_misalignment: placement.gradient_misalignment,
        wide_token_ids: placement.wide_token_ids,
    };
}
