//! The operations on logits alone: `log_probs_from_logits` and its backward pass.

use crate::arguments::{Arguments, Tensors};
use crate::device::{self, Launch, Memory};
use crate::errors::{Failure, Result};
use crate::outputs::Output;
use crate::path::Path;
use crate::pool;
use crate::rows::{LogitsView, expect_token_ids};
use crate::shards;
use crate::tensor::{Dtype, TensorView};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use qae::params::{self, LogProbsGradients, LogitsBuffers, LogitsGradient, LogitsRows};
use qae::{Gradient, sys};

/// f32 values of a `qae_softmax_stats`.
pub(crate) const STATS_FIELDS: usize = 4;

/// What both passes read.
pub(crate) struct Inputs {
    pub(crate) logits: LogitsView,
    pub(crate) token_ids: TensorView,
    pub(crate) mask: Option<TensorView>,
    /// The token id of the first column of a shard; none: all columns.
    pub(crate) vocab_start: Option<usize>,
    pub(crate) temperature: f64,
}

impl Inputs {
    fn take(arguments: &mut Arguments<'_, '_>) -> Result<(Path, Self)> {
        let logits = arguments.needed("logits", "the scores of every token")?;
        let path = Path::of(logits.place)?;
        logits.expect_dtype(path.floats())?;
        let logits = LogitsView::of_rows(logits)?;
        let token_ids = arguments.needed("token_ids", "the token of each row")?;
        expect_token_ids(&token_ids)?;
        token_ids.expect_shape(logits.slots())?;
        token_ids.expect_contiguous()?;
        let mask = take_mask(arguments, logits.slots())?;
        let this = Self {
            logits,
            token_ids,
            mask,
            vocab_start: arguments.count("vocab_start")?,
            temperature: take_temperature(arguments)?,
        };
        Ok((path, this))
    }

    /// Rows as the kernels read them: in responses of `width` rows, if they are not evenly spaced.
    fn rows(&self, width: Option<usize>, memory: &dyn Memory) -> LogitsRows {
        let logits = device::logits(&self.logits, &self.token_ids, memory);
        LogitsRows {
            logits: LogitsBuffers {
                response_stride: logits.response_stride.filter(|_| width.is_some()),
                ..logits
            },
            num_rows: self.logits.num_rows(),
            width,
            shard_start: self.vocab_start,
            temperature: self.temperature,
        }
    }
}

/// A contiguous mask of this shape.
fn take_mask(arguments: &mut Arguments<'_, '_>, shape: &[usize]) -> Result<Option<TensorView>> {
    let mask = arguments.tensor("mask")?;
    if let Some(mask) = &mask {
        mask.expect_dtype(&[Dtype::Bool, Dtype::U8])?;
        mask.expect_shape(shape)?;
        mask.expect_contiguous()?;
    }
    Ok(mask)
}

fn take_temperature(arguments: &mut Arguments<'_, '_>) -> Result<f64> {
    let temperature = arguments.number("temperature")?.unwrap_or(1.0);
    if temperature.is_finite() && temperature > 0.0 {
        return Ok(temperature);
    }
    let expected = "a finite number above 0";
    Err(Failure::value("temperature", expected, temperature))
}

/// What the forward pass and the merge write.
pub(crate) struct Outputs {
    pub(crate) log_prob: Option<Output>,
    pub(crate) entropy: Option<Output>,
    pub(crate) log_sum_exp: Option<Output>,
    pub(crate) stats: Option<Output>,
}

impl Outputs {
    fn take(arguments: &mut Arguments<'_, '_>, path: Path, shape: &[usize]) -> Result<Self> {
        let mut take = |name, shape: &[usize]| -> Result<Option<Output>> {
            let view = arguments.tensor(name)?;
            if let Some(view) = &view {
                view.expect_dtype(path.results())?;
                view.expect_shape(shape)?;
                view.expect_contiguous()?;
            }
            Ok(view.map(Output))
        };
        let this = Self {
            log_prob: take("log_prob", shape)?,
            entropy: take("entropy", shape)?,
            log_sum_exp: take("log_sum_exp", shape)?,
            stats: take("stats", &[shape, &[STATS_FIELDS]].concat())?,
        };
        let outputs = [
            &this.log_prob,
            &this.entropy,
            &this.log_sum_exp,
            &this.stats,
        ];
        if outputs.iter().all(|output| output.is_none()) {
            let what = "log_prob, entropy, log_sum_exp or stats";
            return Err(qae::Error::missing("outputs", what).into());
        }
        Ok(this)
    }

    fn expect_statistics_only(&self) -> Result<()> {
        let others = [&self.log_prob, &self.entropy, &self.log_sum_exp];
        match others.into_iter().flatten().next() {
            None => Ok(()),
            Some(output) => Err(Failure::value(
                output.0.name,
                "none, as a shard of the vocabulary has statistics only",
                "a tensor",
            )),
        }
    }
}

/// `log_probs_from_logits`.
pub(crate) struct Forward {
    path: Path,
    pub(crate) inputs: Inputs,
    pub(crate) outputs: Outputs,
    tensors: Tensors,
}

impl Forward {
    pub(crate) fn new(inputs: &Bound<'_, PyDict>, outputs: &Bound<'_, PyDict>) -> Result<Self> {
        let mut arguments = Arguments::new("inputs", inputs);
        let (path, inputs) = Inputs::take(&mut arguments)?;
        let mut outputs = Arguments::new("outputs", outputs).beside(&arguments);
        let targets = Outputs::take(&mut outputs, path, inputs.logits.slots())?;
        if inputs.vocab_start.is_some() {
            targets.expect_statistics_only()?;
        }
        Ok(Self {
            path,
            inputs,
            outputs: targets,
            tensors: Tensors::of(arguments, outputs, None)?,
        })
    }

    fn params(&self, memory: &dyn Memory) -> Result<sys::qae_log_probs_from_logits_params> {
        let rows = self.inputs.rows(self.inputs.logits.width(), memory);
        let mask = self
            .inputs
            .mask
            .as_ref()
            .map(|mask| device::buffer(mask, memory));
        let outputs = device::log_probs_outputs(&self.outputs, memory);
        Ok(params::log_probs_from_logits(&rows, mask, &outputs)?)
    }

    pub(crate) fn run(self, py: Python<'_>, stream: usize) -> Result<()> {
        match self.path {
            Path::Cpu => pool::run(py, || shards::forward(self)),
            Path::Kernels(kernels) => py.detach(|| {
                kernels.launch(Launch {
                    tensors: &self.tensors,
                    params: &|memory| self.params(memory),
                    workspace: None,
                    stream,
                })
            }),
        }
    }
}

/// `log_probs_from_logits_backward`.
pub(crate) struct Backward {
    path: Path,
    pub(crate) inputs: Inputs,
    pub(crate) stats: Option<TensorView>,
    pub(crate) d_log_prob: TensorView,
    pub(crate) d_entropy: Option<TensorView>,
    pub(crate) d_logits: LogitsView,
    pub(crate) is_in_place: bool,
    tensors: Tensors,
}

impl Backward {
    pub(crate) fn new(inputs: &Bound<'_, PyDict>, outputs: &Bound<'_, PyDict>) -> Result<Self> {
        let mut arguments = Arguments::new("inputs", inputs);
        let (path, inputs) = Inputs::take(&mut arguments)?;
        let shape = inputs.logits.slots();
        let with_fields = [shape, &[STATS_FIELDS]].concat();
        let mut take = |name, shape: &[usize]| -> Result<Option<TensorView>> {
            let view = arguments.tensor(name)?;
            if let Some(view) = &view {
                view.expect_dtype(path.results())?;
                view.expect_shape(shape)?;
                view.expect_contiguous()?;
            }
            Ok(view)
        };
        let stats = take("stats", &with_fields)?;
        let d_log_prob = take("d_log_prob", shape)?;
        let d_log_prob = d_log_prob
            .ok_or_else(|| qae::Error::missing("d_log_prob", "one number for each row"))?;
        let d_entropy = take("d_entropy", shape)?;
        if stats.is_none() && inputs.vocab_start.is_some() {
            let what = "the statistics of the whole vocabulary, with a shard";
            return Err(qae::Error::missing("stats", what).into());
        }
        let mut outputs = Arguments::new("outputs", outputs).beside(&arguments);
        let d_logits = outputs.needed("d_logits", "the gradient")?;
        inputs.logits.expect_gradient(&d_logits)?;
        let d_logits = LogitsView::of_rows(d_logits)?.expect_rows_apart()?;
        let is_in_place = inputs.logits.is_same(&d_logits);
        let in_place = is_in_place.then_some(("d_logits", "logits"));
        Ok(Self {
            path,
            inputs,
            stats,
            d_log_prob,
            d_entropy,
            d_logits,
            is_in_place,
            tensors: Tensors::of(arguments, outputs, in_place)?,
        })
    }

    /// Masked rows need no mask: their statistics are 0, which no gradient comes from.
    fn params(
        &self,
        memory: &dyn Memory,
    ) -> Result<sys::qae_log_probs_from_logits_backward_params> {
        let width = self.inputs.logits.width().or(self.d_logits.width());
        let stats = self.stats.as_ref();
        let stats =
            stats.ok_or_else(|| qae::Error::missing("stats", "those of the forward pass"))?;
        let gradients = LogProbsGradients {
            stats: device::stats(stats, memory),
            d_log_prob: device::buffer(&self.d_log_prob, memory),
            d_entropy: self
                .d_entropy
                .as_ref()
                .map(|view| device::buffer(view, memory)),
        };
        let output = LogitsGradient {
            d_logits: device::buffer(&self.d_logits.tensor, memory),
            row_stride: Some(self.d_logits.row_stride),
            response_stride: self.d_logits.response_stride.filter(|_| width.is_some()),
        };
        let rows = self.inputs.rows(width, memory);
        let zero_fill = Gradient::ZeroFill;
        Ok(params::log_probs_from_logits_backward(
            &rows, &gradients, &output, zero_fill,
        )?)
    }

    pub(crate) fn run(self, py: Python<'_>, stream: usize) -> Result<()> {
        match self.path {
            Path::Cpu => pool::run(py, || shards::backward(self)),
            Path::Kernels(kernels) => py.detach(|| {
                kernels.launch(Launch {
                    tensors: &self.tensors,
                    params: &|memory| self.params(memory),
                    workspace: None,
                    stream,
                })
            }),
        }
    }
}

/// `merge_softmax_stats`.
pub(crate) struct Merge {
    path: Path,
    /// `[shards, ..., 4]`.
    pub(crate) shards: TensorView,
    pub(crate) mask: Option<TensorView>,
    pub(crate) temperature: f64,
    pub(crate) outputs: Outputs,
    tensors: Tensors,
}

impl Merge {
    pub(crate) fn new(inputs: &Bound<'_, PyDict>, outputs: &Bound<'_, PyDict>) -> Result<Self> {
        let mut arguments = Arguments::new("inputs", inputs);
        let shards = arguments.needed("shards", "the statistics of every shard")?;
        let path = Path::of(shards.place)?;
        shards.expect_dtype(path.results())?;
        shards.expect_contiguous()?;
        let slots = match shards.shape[..] {
            [count, ref slots @ .., STATS_FIELDS] if count > 0 => slots.to_vec(),
            _ => {
                let expected = format!("shape [shards, ..., {STATS_FIELDS}]");
                let found = format!("{:?}", shards.shape);
                return Err(Failure::value("shards", expected, found));
            }
        };
        let mask = take_mask(&mut arguments, &slots)?;
        let temperature = take_temperature(&mut arguments)?;
        let mut outputs = Arguments::new("outputs", outputs).beside(&arguments);
        let targets = Outputs::take(&mut outputs, path, &slots)?;
        Ok(Self {
            path,
            shards,
            mask,
            temperature,
            outputs: targets,
            tensors: Tensors::of(arguments, outputs, None)?,
        })
    }

    /// Rows of one shard.
    pub(crate) fn num_rows(&self) -> usize {
        let [_, slots @ .., _] = &self.shards.shape[..] else {
            return 0;
        };
        slots.iter().product()
    }

    fn params(&self, memory: &dyn Memory) -> Result<sys::qae_merge_softmax_stats_params> {
        let params = params::merge_softmax_stats(
            device::stats(&self.shards, memory),
            self.shards.shape[0],
            self.num_rows(),
            self.mask.as_ref().map(|mask| device::buffer(mask, memory)),
            self.temperature,
            &device::log_probs_outputs(&self.outputs, memory),
        );
        Ok(params?)
    }

    pub(crate) fn run(self, py: Python<'_>, stream: usize) -> Result<()> {
        match self.path {
            Path::Cpu => pool::run(py, || shards::merge(self)),
            Path::Kernels(kernels) => py.detach(|| {
                kernels.launch(Launch {
                    tensors: &self.tensors,
                    params: &|memory| self.params(memory),
                    workspace: None,
                    stream,
                })
            }),
        }
    }
}
