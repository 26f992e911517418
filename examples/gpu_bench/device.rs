//! The same batch several times in device memory, so that launches in turn find cold caches.

use super::inputs::{Arrangement, Element, GROUP_SIZE, HostInputs, WIDTH};
use super::{Result, timing::Rotation};
use cudarc::driver::CudaSlice;
use qae::cuda::{
    self, DeviceAdvantages, DeviceBatch, DeviceGroups, DeviceLayout, DeviceMetrics,
    DeviceNormalizer, LossOutputs, Stream, Workspace,
};
use qae::{Config, Groups, Metrics};

/// One copy of all tensors.
struct Set<T> {
    rewards: CudaSlice<f32>,
    offsets: Option<CudaSlice<i64>>,
    mask: Option<CudaSlice<u8>>,
    log_prob: CudaSlice<T>,
    old_log_prob: CudaSlice<T>,
    gradient: CudaSlice<T>,
}

impl<T: Element> Set<T> {
    fn upload(stream: &Stream, host: &HostInputs<T>) -> Result<Self> {
        let memory = stream.cudarc();
        let is_packed = host.arrangement == Arrangement::Packed;
        let offsets = is_packed.then(|| memory.clone_htod(&host.offsets));
        let mask = (!is_packed).then(|| memory.clone_htod(&host.mask));
        Ok(Self {
            rewards: memory.clone_htod(&host.rewards)?,
            offsets: offsets.transpose()?,
            mask: mask.transpose()?,
            log_prob: memory.clone_htod(&host.log_prob)?,
            old_log_prob: memory.clone_htod(&host.old_log_prob)?,
            // A launch overwrites it; until then every read finds NaN.
            gradient: memory.clone_htod(&vec![T::poison(); host.log_prob.len()])?,
        })
    }

    fn try_clone(&self) -> Result<Self> {
        let offsets = self.offsets.as_ref().map(CudaSlice::try_clone);
        let mask = self.mask.as_ref().map(CudaSlice::try_clone);
        Ok(Self {
            rewards: self.rewards.try_clone()?,
            offsets: offsets.transpose()?,
            mask: mask.transpose()?,
            log_prob: self.log_prob.try_clone()?,
            old_log_prob: self.old_log_prob.try_clone()?,
            gradient: self.gradient.try_clone()?,
        })
    }

    fn batch<'a>(&'a self, groups: &'a DeviceGroups) -> DeviceBatch<'a> {
        batch(
            &self.rewards,
            self.offsets.as_ref(),
            self.mask.as_ref(),
            &self.log_prob,
            &self.old_log_prob,
            groups,
        )
    }
}

/// Of the parts, as the gradient of the same set is borrowed for writing.
fn batch<'a, T: Element>(
    rewards: &'a CudaSlice<f32>,
    offsets: Option<&'a CudaSlice<i64>>,
    mask: Option<&'a CudaSlice<u8>>,
    log_prob: &'a CudaSlice<T>,
    old_log_prob: &'a CudaSlice<T>,
    groups: &'a DeviceGroups,
) -> DeviceBatch<'a> {
    DeviceBatch {
        layout: match offsets {
            Some(offsets) => DeviceLayout::Packed {
                offsets: offsets.into(),
                num_slots: log_prob.len(),
            },
            None => DeviceLayout::padded(rewards.len(), WIDTH),
        },
        mask: mask.map(Into::into),
        log_prob: T::input(log_prob.into()),
        old_log_prob: Some(T::input(old_log_prob.into())),
        ref_log_prob: None,
        importance_weight: None,
        advantages: DeviceAdvantages::FromRewards {
            rewards: rewards.into(),
            groups,
            response_index: None,
        },
    }
}

/// All sets of one batch, and what its launches write.
pub struct DeviceInputs<T> {
    sets: Vec<Set<T>>,
    groups: DeviceGroups,
    metrics: DeviceMetrics,
    workspace: Workspace<'static>,
    config: Config,
}

impl<T: Element> DeviceInputs<T> {
    /// Bytes of one set in device memory.
    pub fn set_bytes(host: &HostInputs<T>) -> usize {
        let slots = host.log_prob.len();
        slots * (3 * size_of::<T>() + usize::from(!host.mask.is_empty()))
    }

    pub fn upload(
        stream: &Stream,
        host: &HostInputs<T>,
        num_sets: usize,
        config: Config,
    ) -> Result<Self> {
        let groups = DeviceGroups::upload(stream, Groups::uniform(host.num_rows(), GROUP_SIZE)?)?;
        let first = Set::upload(stream, host)?;
        let bytes =
            cuda::loss_from_log_probs_workspace_bytes(stream, &first.batch(&groups), &config)?;
        let mut sets = vec![first];
        while sets.len() < num_sets {
            sets.push(sets[0].try_clone()?);
        }
        Ok(Self {
            sets,
            groups,
            metrics: DeviceMetrics::new(stream)?,
            workspace: Workspace::new(stream, bytes)?,
            config,
        })
    }

    /// Changes what the next launches compute.
    pub fn set_config(&mut self, stream: &Stream, config: Config) -> Result<()> {
        let batch = self.sets[0].batch(&self.groups);
        let bytes = cuda::loss_from_log_probs_workspace_bytes(stream, &batch, &config)?;
        self.workspace = Workspace::new(stream, bytes)?;
        self.config = config;
        Ok(())
    }

    /// Overwrites the gradient of the first set, so that what a launch does not write is seen.
    pub fn poison(&mut self, stream: &Stream, poison: &CudaSlice<T>) -> Result<()> {
        Ok(stream
            .cudarc()
            .memcpy_dtod(poison, &mut self.sets[0].gradient)?)
    }

    /// The gradient of the first set.
    pub fn gradient(&self, stream: &Stream) -> Result<Vec<T>> {
        let gradient = stream.cudarc().clone_dtoh(&self.sets[0].gradient)?;
        stream.synchronize()?;
        Ok(gradient)
    }

    /// Those of the latest launch.
    pub fn metrics(&self, stream: &Stream) -> Result<Metrics> {
        Ok(self.metrics.read(stream)?)
    }

    /// The same, to the bit.
    pub fn metric_words(&self, stream: &Stream) -> Result<Vec<u64>> {
        let words = stream.cudarc().clone_dtoh(self.metrics.words())?;
        stream.synchronize()?;
        Ok(words)
    }
}

impl<T: Element> Rotation for DeviceInputs<T> {
    fn len(&self) -> usize {
        self.sets.len()
    }

    fn launch(&mut self, stream: &Stream, index: usize) -> qae::Result<()> {
        let set = &mut self.sets[index];
        let batch = batch(
            &set.rewards,
            set.offsets.as_ref(),
            set.mask.as_ref(),
            &set.log_prob,
            &set.old_log_prob,
            &self.groups,
        );
        let mut outputs = LossOutputs {
            d_log_prob: T::output((&mut set.gradient).into()),
            gradient_row_stride: None,
            baseline: None,
            advantage: None,
            active_rows: None,
            active_count: None,
            metrics: &mut self.metrics,
        };
        let normalizer = DeviceNormalizer::Config;
        let workspace = &mut self.workspace;
        cuda::loss_from_log_probs(
            stream,
            &batch,
            &self.config,
            &normalizer,
            &mut outputs,
            workspace,
        )
    }
}
