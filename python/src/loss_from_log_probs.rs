//! The operation `loss_from_log_probs`.

use crate::arguments::{Arguments, Tensors};
use crate::batch::Batch;
use crate::device::{self, Launch, Memory};
use crate::errors::Result;
use crate::host::Host;
use crate::layout::Layout;
use crate::outputs::{Output, ResponseOutputs, TokenOutput, take_tokens};
use crate::path::Path;
use crate::tensor::{Dtype, TensorView};
use crate::words::{LOSS_WORDS, words};
use crate::{config, cpu, pool};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use qae::params::{self, LogitsLayoutBuffers, LossOutputs, TokenBuffers};
use qae::{Config, Error, RowsMut, TokenBatch, sys};

/// Its tensors.
pub(crate) struct Call {
    path: Path,
    log_prob: TensorView,
    batch: Batch,
    config: Config,
    d_log_prob: TokenOutput,
    responses: ResponseOutputs,
    tensors: Tensors,
}

impl Call {
    pub(crate) fn new(
        inputs: &Bound<'_, PyDict>,
        json: &str,
        outputs: &Bound<'_, PyDict>,
    ) -> Result<Self> {
        let mut inputs = Arguments::new("inputs", inputs);
        let log_prob = inputs.needed("log_prob", "the log-probs of the policy")?;
        let path = Path::of(log_prob.place)?;
        log_prob.expect_dtype(path.floats())?;
        let layout = Layout::of(&log_prob, &mut inputs)?;
        let batch = Batch::take(layout, &mut inputs)?;
        for tensor in [&batch.old_log_prob, &batch.ref_log_prob]
            .into_iter()
            .flatten()
        {
            tensor.expect_dtype_of(&log_prob)?;
        }
        let mut outputs = Arguments::new("outputs", outputs).beside(&inputs);
        let dtypes = [Dtype::F32, log_prob.dtype];
        let d_log_prob = take_tokens(&mut outputs, "d_log_prob", &batch.layout, &dtypes)?;
        let d_log_prob = d_log_prob.ok_or_else(|| Error::missing("d_log_prob", "the gradient"))?;
        let num_rows = batch.layout.num_rows();
        let num_responses = batch.num_responses();
        let responses = ResponseOutputs::take(&mut outputs, LOSS_WORDS, num_rows, num_responses)?;
        Ok(Self {
            path,
            config: config::resolve(json, batch.layout.width())?,
            log_prob,
            batch,
            d_log_prob,
            responses,
            tensors: Tensors::of(inputs, outputs, None)?,
        })
    }

    fn params(&self, memory: &dyn Memory) -> Result<sys::qae_loss_from_log_probs_params> {
        let LogitsLayoutBuffers::Responses(layout) = device::layout(&self.batch.layout, memory)
        else {
            return Err(Error::missing("layout", "rows").into());
        };
        let some = |view: &Option<TensorView>| view.as_ref().map(|v| device::buffer(v, memory));
        let written = |output: &Option<Output>| {
            let view = output.as_ref().map(|output| &output.0);
            view.map(|view| device::buffer(view, memory))
        };
        let inputs = TokenBuffers {
            layout,
            mask: some(&self.batch.mask),
            dtype: device::dtype(&self.log_prob),
            log_prob: device::buffer(&self.log_prob, memory),
            old_log_prob: some(&self.batch.old_log_prob),
            ref_log_prob: some(&self.batch.ref_log_prob),
            importance_weight: device::weight(&self.batch, memory),
            advantages: device::advantages(&self.batch, memory),
        };
        let gradient = &self.d_log_prob.tensor.0;
        let outputs = LossOutputs {
            gradient_dtype: device::dtype(gradient),
            d_log_prob: device::buffer(gradient, memory),
            gradient_row_stride: self.d_log_prob.row_stride,
            baseline: written(&self.responses.baseline),
            advantage: written(&self.responses.advantage),
            active_rows: written(&self.responses.active_rows),
            active_count: written(&self.responses.active_count),
            metrics: device::buffer(&self.responses.words.0, memory),
        };
        let normalizer = device::normalizer(&self.batch, memory);
        device::expect_no_loss(self.responses.loss.as_ref())?;
        Ok(params::loss_from_log_probs(
            &inputs,
            &outputs,
            &self.config,
            normalizer,
        )?)
    }

    pub(crate) fn workspace(&self) -> Result<u64> {
        self.path.workspace(|memory| self.params(memory))
    }

    pub(crate) fn run(self, py: Python<'_>, stream: usize) -> Result<()> {
        match self.path {
            Path::Cpu => pool::run(py, || self.run_on_cpu()),
            Path::Kernels(kernels) => py.detach(|| {
                kernels.launch(Launch {
                    tensors: &self.tensors,
                    params: &|memory| self.params(memory),
                    workspace: self.responses.workspace.as_ref(),
                    stream,
                })
            }),
        }
    }

    fn run_on_cpu(self) -> Result<()> {
        // SAFETY: the caller holds the tensors until this returns, and changes them meanwhile no
        // more than under any operation of torch; `Tensors::of` has seen all of them.
        let host = unsafe { Host::new() };
        let owned = cpu::Owned::of(&self.batch, self.config, &host)?;
        let layout = cpu::layout(&self.batch.layout, &host)?;
        let some = |view: &Option<TensorView>| view.as_ref().map(|view| host.tensor(view));
        let batch = TokenBatch {
            layout,
            mask: host.read_some(&self.batch.mask),
            log_prob: host.tensor(&self.log_prob),
            old_log_prob: some(&self.batch.old_log_prob),
            ref_log_prob: some(&self.batch.ref_log_prob),
            importance_weight: cpu::weight(&self.batch.weight, &host),
            advantages: owned.advantages(&self.batch, &host)?,
        };
        let d_log_prob = RowsMut {
            values: host.tensor_mut(self.d_log_prob.tensor),
            row_stride: self.d_log_prob.row_stride,
        };
        let result = qae::cpu::loss_from_log_probs_into(&batch, &owned.config, d_log_prob)?;
        let report = params::loss_metrics_struct(&result.metrics);
        self.responses.write(&host, words(&report), result);
        Ok(())
    }
}
