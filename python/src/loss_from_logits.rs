//! The operation `loss_from_logits`.

use crate::arguments::{Arguments, Tensors};
use crate::batch::Batch;
use crate::device::{self, Launch, Memory};
use crate::errors::{Failure, Result};
use crate::host::Host;
use crate::layout::Layout;
use crate::outputs::{Output, ResponseOutputs, TokenOutput, take_list, take_number, take_tokens};
use crate::path::Path;
use crate::rows::{LogitsView, expect_token_ids, token_ids};
use crate::tensor::{Dtype, TensorView};
use crate::words::{LOGITS_WORDS, words};
use crate::{config, cpu, pool};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use qae::cpu::LogitsTargets;
use qae::params::{self, LogitsGradient, LogitsInputs, LogitsOutputs, RowPolicy};
use qae::{Config, DType, Gradient, Logits, LogitsBatch, LogitsLayout, LogitsMut, sys};

/// Its tensors.
pub(crate) struct Call {
    path: Path,
    logits: LogitsView,
    token_ids: TensorView,
    batch: Batch,
    config: Config,
    outputs: Outputs,
    tensors: Tensors,
}

struct Outputs {
    d_logits: Option<LogitsView>,
    /// The gradient takes the logits' memory.
    is_in_place: bool,
    d_log_prob: Option<TokenOutput>,
    log_prob: Option<TokenOutput>,
    entropy: Option<TokenOutput>,
    active_slots: Option<Output>,
    active_slot_count: Option<Output>,
    responses: ResponseOutputs,
}

impl Call {
    pub(crate) fn new(
        inputs: &Bound<'_, PyDict>,
        json: &str,
        outputs: &Bound<'_, PyDict>,
    ) -> Result<Self> {
        let mut inputs = Arguments::new("inputs", inputs);
        let logits = inputs.needed("logits", "the scores of every slot")?;
        let path = Path::of(logits.place)?;
        logits.expect_dtype(path.floats())?;
        let token_ids = inputs.needed("token_ids", "the token of each slot")?;
        expect_token_ids(&token_ids)?;
        let layout = Layout::of_indexed(&token_ids, &mut inputs)?;
        let logits = LogitsView::of(logits, &layout)?;
        let batch = Batch::take(layout, &mut inputs)?;
        if let Some(old_log_prob) = &batch.old_log_prob {
            old_log_prob.expect_dtype(path.floats())?;
        }
        let config = config::resolve(json, batch.layout.width())?;
        let mut outputs = Arguments::new("outputs", outputs).beside(&inputs);
        let targets = Outputs::take(&mut outputs, path, &logits, &batch, &config)?;
        let in_place = targets.is_in_place.then_some(("d_logits", "logits"));
        Ok(Self {
            path,
            logits,
            token_ids,
            batch,
            config,
            outputs: targets,
            tensors: Tensors::of(inputs, outputs, in_place)?,
        })
    }

    fn params(
        &self,
        memory: &dyn Memory,
        row_policy: RowPolicy,
    ) -> Result<sys::qae_loss_from_logits_params> {
        let some = |view: &Option<TensorView>| view.as_ref().map(|v| device::buffer(v, memory));
        let batch = &self.batch;
        let log_probs = batch.old_log_prob.as_ref().or(batch.ref_log_prob.as_ref());
        let inputs = LogitsInputs {
            layout: device::layout(&batch.layout, memory),
            mask: some(&batch.mask),
            logits: device::logits(&self.logits, &self.token_ids, memory),
            dtype: log_probs.map_or(DType::F32, device::dtype),
            old_log_prob: some(&batch.old_log_prob),
            ref_log_prob: some(&batch.ref_log_prob),
            importance_weight: device::weight(batch, memory),
            advantages: device::advantages(batch, memory),
        };
        let outputs = self.outputs.buffers(memory);
        let mut config = self.config;
        if self.outputs.d_logits.is_none() {
            // A compact gradient is written as far as there is room, and there is none.
            config.gradient = Gradient::Compact;
        }
        let normalizer = device::normalizer(batch, memory);
        device::expect_no_loss(self.outputs.responses.loss.as_ref())?;
        let params = params::loss_from_logits(&inputs, &outputs, &config, normalizer, row_policy);
        Ok(params?)
    }

    pub(crate) fn workspace(&self) -> Result<u64> {
        let policy = self.path.row_policy();
        self.path.workspace(|memory| self.params(memory, policy))
    }

    pub(crate) fn run(self, py: Python<'_>, stream: usize) -> Result<()> {
        match self.path {
            Path::Cpu => pool::run(py, || self.run_on_cpu()),
            Path::Kernels(kernels) => py.detach(|| {
                kernels.launch(Launch {
                    tensors: &self.tensors,
                    params: &|memory| self.params(memory, self.path.row_policy()),
                    workspace: self.outputs.responses.workspace.as_ref(),
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
        let copy = self
            .outputs
            .is_in_place
            .then(|| host.copy(&self.logits.tensor));
        let layout = match &self.batch.layout {
            Layout::Indexed { response, num_rows } => LogitsLayout::Indexed {
                response: host.read(response),
                num_responses: *num_rows,
            },
            layout => LogitsLayout::Responses(cpu::layout(layout, &host)?),
        };
        let some = |view: &Option<TensorView>| view.as_ref().map(|view| host.tensor(view));
        let token_id = token_ids(&self.token_ids, &host);
        let batch = LogitsBatch {
            layout,
            mask: host.read_some(&self.batch.mask),
            logits: Logits {
                values: match &copy {
                    Some(copy) => copy.tensor(),
                    None => host.tensor(&self.logits.tensor),
                },
                vocab_size: self.logits.vocab_size,
                row_stride: self.logits.row_stride,
                response_stride: match &self.batch.layout {
                    Layout::Padded { .. } => self.logits.response_stride,
                    _ => None,
                },
            },
            token_id: &token_id,
            old_log_prob: some(&self.batch.old_log_prob),
            ref_log_prob: some(&self.batch.ref_log_prob),
            importance_weight: cpu::weight(&self.batch.weight, &host),
            advantages: owned.advantages(&self.batch, &host)?,
        };
        self.outputs.compute(&host, &batch, &owned.config)
    }
}

impl Outputs {
    fn take(
        arguments: &mut Arguments<'_, '_>,
        path: Path,
        logits: &LogitsView,
        batch: &Batch,
        config: &Config,
    ) -> Result<Self> {
        let layout = &batch.layout;
        let is_compact = config.gradient == Gradient::Compact;
        let d_logits = arguments.tensor("d_logits")?;
        let d_logits = d_logits.map(|view| take_gradient(view, logits, is_compact));
        let d_logits = d_logits.transpose()?;
        let is_in_place = d_logits
            .as_ref()
            .is_some_and(|d_logits| logits.is_same(d_logits));
        let log_probs = batch.old_log_prob.as_ref().map_or(Dtype::F32, |t| t.dtype);
        let d_log_prob = [path.results(), &[log_probs]].concat();
        let this = Self {
            is_in_place: is_in_place && !is_compact,
            d_logits,
            d_log_prob: take_tokens(arguments, "d_log_prob", layout, &d_log_prob)?,
            log_prob: take_tokens(arguments, "log_prob", layout, path.results())?,
            entropy: take_tokens(arguments, "entropy", layout, path.results())?,
            active_slots: take_list(arguments, "active_slots", Dtype::I64, layout.num_slots())?,
            active_slot_count: take_number(arguments, "active_slot_count", &[Dtype::I64])?,
            responses: ResponseOutputs::take(
                arguments,
                LOGITS_WORDS,
                layout.num_rows(),
                batch.num_responses(),
            )?,
        };
        let lists = [&this.active_slots, &this.active_slot_count];
        if let (false, Some(list)) = (is_compact, lists.into_iter().flatten().next()) {
            let expected = "none, as only a compact gradient has a list of its rows";
            return Err(Failure::value(list.0.name, expected, "a tensor"));
        }
        this.check_strides()?;
        Ok(this)
    }

    /// Where kernels write.
    fn buffers(&self, memory: &dyn Memory) -> LogitsOutputs {
        let written = |output: &Option<Output>| {
            let view = output.as_ref().map(|output| &output.0);
            view.map(|view| device::buffer(view, memory))
        };
        let tokens = |output: &Option<TokenOutput>| {
            let view = output.as_ref().map(|output| &output.tensor.0);
            view.map(|view| device::buffer(view, memory))
        };
        let d_log_prob = self.d_log_prob.as_ref();
        let all_tokens = [&self.d_log_prob, &self.log_prob, &self.entropy];
        let mut all_tokens = all_tokens.into_iter().flatten();
        LogitsOutputs {
            gradient: match &self.d_logits {
                Some(d_logits) => LogitsGradient {
                    d_logits: device::gradient(&d_logits.tensor, memory),
                    row_stride: Some(d_logits.row_stride),
                    response_stride: d_logits.response_stride,
                },
                None => LogitsGradient {
                    d_logits: device::NO_GRADIENT,
                    row_stride: None,
                    response_stride: None,
                },
            },
            gradient_dtype: d_log_prob.map_or(DType::F32, |d| device::dtype(&d.tensor.0)),
            d_log_prob: tokens(&self.d_log_prob),
            log_prob: tokens(&self.log_prob),
            entropy: tokens(&self.entropy),
            token_row_stride: all_tokens.find_map(|tokens| tokens.row_stride),
            active_slots: written(&self.active_slots),
            active_slot_count: written(&self.active_slot_count),
            baseline: written(&self.responses.baseline),
            advantage: written(&self.responses.advantage),
            active_rows: written(&self.responses.active_rows),
            active_count: written(&self.responses.active_count),
            metrics: device::buffer(&self.responses.words.0, memory),
        }
    }

    /// The kernels have one row stride for all token tensors that they write.
    fn check_strides(&self) -> Result<()> {
        let tokens = [&self.d_log_prob, &self.log_prob, &self.entropy];
        let mut tokens = tokens.into_iter().flatten();
        let Some(first) = tokens.next() else {
            return Ok(());
        };
        match tokens.find(|tokens| tokens.row_stride != first.row_stride) {
            None => Ok(()),
            Some(other) => Err(Failure::value(
                other.tensor.0.name,
                format!("the row stride of {}", first.tensor.0.name),
                "another",
            )),
        }
    }

    /// Computes on the CPU.
    fn compute(self, host: &Host<'_>, batch: &LogitsBatch<'_>, config: &Config) -> Result<()> {
        let d_logits = self.d_logits.map(|view| LogitsMut {
            row_stride: Some(view.row_stride),
            response_stride: view.response_stride,
            values: host.tensor_mut(Output(view.tensor)),
        });
        let targets = LogitsTargets {
            d_logits,
            d_log_prob: host.rows_mut(self.d_log_prob),
            log_prob: host.rows_mut(self.log_prob),
            entropy: host.rows_mut(self.entropy),
        };
        let result = qae::cpu::loss_from_logits_into(batch, config, targets)?;
        host.set(self.active_slot_count, result.active_slots.len() as i64);
        let slots = result.active_slots.iter().map(|&slot| slot as i64);
        host.fill(self.active_slots, slots);
        let report = params::logits_metrics_struct(&result.loss.metrics);
        self.responses.write(host, words(&report), result.loss);
        Ok(())
    }
}

/// The gradient, which has the logits' shape or, if compact, as many rows as there is room for.
fn take_gradient(view: TensorView, logits: &LogitsView, is_compact: bool) -> Result<LogitsView> {
    if !is_compact {
        logits.expect_gradient(&view)?;
        return LogitsView::of_rows(view)?.expect_rows_apart();
    }
    view.expect_dtype_of(&logits.tensor)?;
    if let [_, columns] = view.shape[..]
        && columns == logits.vocab_size
    {
        return LogitsView::of_rows(view)?.expect_rows_apart();
    }
    let expected = format!("shape [room, {}], as compact", logits.vocab_size);
    let found = format!("{:?}", view.shape);
    Err(Failure::value(view.name, expected, found))
}
