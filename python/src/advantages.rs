//! The operation `advantages`.

use crate::arguments::{Arguments, Tensors};
use crate::batch::Rewards;
use crate::config;
use crate::cpu;
use crate::device::{self, Launch, Memory};
use crate::errors::Result;
use crate::host::Host;
use crate::outputs::{Output, take_list, take_number, take_workspace};
use crate::path::Path;
use crate::pool;
use crate::tensor::Dtype;
use crate::words::{GROUP_WORDS, words};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use qae::params::AdvantageOutputs;
use qae::{AdvantageConfig, params, sys};

/// Its tensors.
pub(crate) struct Call {
    path: Path,
    rewards: Rewards,
    config: AdvantageConfig,
    outputs: Outputs,
    tensors: Tensors,
}

struct Outputs {
    advantage: Output,
    words: Output,
    baseline: Option<Output>,
    active: Option<Output>,
    active_count: Option<Output>,
    workspace: Option<Output>,
}

impl Call {
    pub(crate) fn new(
        inputs: &Bound<'_, PyDict>,
        json: &str,
        outputs: &Bound<'_, PyDict>,
    ) -> Result<Self> {
        let mut inputs = Arguments::new("inputs", inputs);
        let rewards = Rewards::take(&mut inputs)?;
        let rewards = rewards.ok_or_else(|| qae::Error::missing("rewards", "the rewards"))?;
        let len = rewards.num_responses();
        let mut outputs = Arguments::new("outputs", outputs).beside(&inputs);
        let advantage = outputs.needed("advantage", "the advantages")?;
        advantage.expect(Dtype::F32, &[len])?;
        let report = outputs.needed("words", "the metrics")?;
        report.expect(Dtype::I64, &[GROUP_WORDS])?;
        let targets = Outputs {
            advantage: Output(advantage),
            words: Output(report),
            baseline: take_list(&mut outputs, "baseline", Dtype::F32, len)?,
            active: take_list(&mut outputs, "active", Dtype::I32, len)?,
            active_count: take_number(&mut outputs, "active_count", &[Dtype::I32])?,
            workspace: take_workspace(&mut outputs)?,
        };
        Ok(Self {
            path: Path::of(rewards.rewards.place)?,
            rewards,
            config: config::resolve(json, None)?.advantage,
            outputs: targets,
            tensors: Tensors::of(inputs, outputs, None)?,
        })
    }

    fn params(&self, memory: &dyn Memory) -> Result<sys::qae_advantages_params> {
        let some = |output: &Option<Output>| output.as_ref().map(|o| device::buffer(&o.0, memory));
        let outputs = AdvantageOutputs {
            baseline: some(&self.outputs.baseline),
            advantage: device::buffer(&self.outputs.advantage.0, memory),
            active: some(&self.outputs.active),
            active_count: some(&self.outputs.active_count),
            metrics: device::buffer(&self.outputs.words.0, memory),
        };
        let rewards = device::buffer(&self.rewards.rewards, memory);
        let groups = device::groups(&self.rewards, memory);
        Ok(params::advantages(
            rewards,
            &groups,
            &outputs,
            &self.config,
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
                    workspace: self.outputs.workspace.as_ref(),
                    stream,
                })
            }),
        }
    }

    fn run_on_cpu(self) -> Result<()> {
        // SAFETY: the caller holds the tensors until this returns, and changes them meanwhile no
        // more than under any operation of torch; `Tensors::of` has seen all of them.
        let host = unsafe { Host::new() };
        let groups = cpu::groups(&self.rewards, &host)?;
        let rewards = host.read(&self.rewards.rewards);
        let result = qae::cpu::advantages(rewards, &groups, &self.config)?;
        let advantage = result.advantage;
        let active = (0..advantage.len()).filter(|&response| advantage[response] != 0.0);
        let active: Vec<i32> = active.map(|response| response as i32).collect();
        let outputs = self.outputs;
        host.set(outputs.active_count, active.len() as i32);
        host.fill(outputs.active, active.into_iter());
        let narrow = |values: Vec<f64>| values.into_iter().map(|value| value as f32);
        host.fill(outputs.baseline, narrow(result.baseline));
        host.fill(Some(outputs.advantage), narrow(advantage));
        let report = params::group_metrics_struct(&result.metrics);
        host.fill(Some(outputs.words), words(&report).iter().copied());
        Ok(())
    }
}
