//! Metrics that stay on the device until somebody asks for them.

use super::launch::driver_error;
use super::memory::DeviceSliceMut;
use super::stream::Stream;
use crate::config::MetricsScope;
use crate::error::{Error, Result};
use crate::metrics::{GroupMetrics, Metrics};
use crate::params;
use crate::sys;
use cudarc::driver::CudaSlice;

/// The metrics from logits begin with those from log-probs.
const LOSS_WORDS: usize = size_of::<sys::qae_logits_metrics>() / 8;
const GROUP_WORDS: usize = size_of::<sys::qae_group_metrics>() / 8;

/// Where `loss_from_log_probs` and `loss_from_logits` write their loss and metrics: launches only
/// enqueue, so that nothing waits until [`Self::read`].
#[derive(Debug)]
pub struct DeviceMetrics {
    words: CudaSlice<u64>,
    /// By the latest launch.
    written: Option<Written>,
}

/// Which operation wrote metrics, and of which tokens.
#[derive(Debug, Clone, Copy)]
pub(super) enum Written {
    FromLogProbs(MetricsScope),
    FromLogits(MetricsScope),
}

impl DeviceMetrics {
    /// Room on the stream's device.
    ///
    /// # Errors
    /// [`Error::Cuda`] where the device has no room.
    pub fn new(stream: &Stream) -> Result<Self> {
        Ok(Self {
            words: alloc(stream, LOSS_WORDS)?,
            written: None,
        })
    }

    /// Waits for `stream` and copies the metrics of the latest launch.
    ///
    /// # Errors
    /// - [`Error::Missing`] before any launch.
    /// - [`Error::Cuda`] where the driver fails or a launch failed while it ran.
    ///
    /// ```no_run
    /// # fn after_a_step(stream: &qae::cuda::Stream, metrics: &qae::cuda::DeviceMetrics) -> qae::Result<()> {
    /// let metrics = metrics.read(stream)?;
    /// metrics.check()?;
    /// println!("loss {}", metrics.loss);
    /// # Ok(())
    /// # }
    /// ```
    pub fn read(&self, stream: &Stream) -> Result<Metrics> {
        let written = self
            .written
            .ok_or_else(|| Error::missing("metrics", "those of a launch of a loss"))?;
        let words = download(stream, &self.words)?;
        // SAFETY: as many words as the struct has, whose fields are plain numbers.
        let metrics = unsafe { words.as_ptr().cast::<sys::qae_logits_metrics>().read() };
        Ok(match written {
            Written::FromLogProbs(scope) => params::loss_metrics(&metrics.loss, scope),
            Written::FromLogits(scope) => params::logits_metrics(&metrics, scope),
        })
    }

    /// The struct `qae_logits_metrics` of `kernels/qae.h` on the device, which begins with
    /// `qae_loss_metrics`, as 8-byte words: its first three are the f64 loss, policy-gradient term
    /// and KL term, for a trainer's own kernels.
    pub fn words(&self) -> &CudaSlice<u64> {
        &self.words
    }

    pub(super) fn lend(&mut self) -> DeviceSliceMut<'_, u64> {
        (&mut self.words).into()
    }

    /// After a launch.
    pub(super) fn set_written(&mut self, written: Written) {
        self.written = Some(written);
    }
}

/// Where `advantages` writes its counts.
#[derive(Debug)]
pub struct DeviceGroupMetrics {
    words: CudaSlice<u64>,
    is_written: bool,
}

impl DeviceGroupMetrics {
    /// Room on the stream's device.
    ///
    /// # Errors
    /// [`Error::Cuda`] where the device has no room.
    pub fn new(stream: &Stream) -> Result<Self> {
        Ok(Self {
            words: alloc(stream, GROUP_WORDS)?,
            is_written: false,
        })
    }

    /// Waits for `stream` and copies the counts of the latest launch.
    ///
    /// # Errors
    /// - [`Error::Missing`] before any launch.
    /// - [`Error::Cuda`] where the driver fails or a launch failed while it ran.
    pub fn read(&self, stream: &Stream) -> Result<GroupMetrics> {
        if !self.is_written {
            return Err(Error::missing("metrics", "those of a launch of advantages"));
        }
        let words = download(stream, &self.words)?;
        // SAFETY: as many words as the struct has, whose fields are plain numbers.
        let metrics = unsafe { words.as_ptr().cast::<sys::qae_group_metrics>().read() };
        Ok(params::group_metrics(&metrics))
    }

    pub(super) fn lend(&mut self) -> DeviceSliceMut<'_, u64> {
        (&mut self.words).into()
    }

    pub(super) fn set_written(&mut self) {
        self.is_written = true;
    }
}

fn alloc(stream: &Stream, words: usize) -> Result<CudaSlice<u64>> {
    let memory = stream.cudarc().alloc_zeros(words);
    memory.map_err(|error| driver_error("cuMemAllocAsync", error))
}

fn download(stream: &Stream, memory: &CudaSlice<u64>) -> Result<Vec<u64>> {
    let words = stream.cudarc().clone_dtoh(memory);
    let words = words.map_err(|error| driver_error("cuMemcpyDtoHAsync", error))?;
    stream.synchronize()?;
    Ok(words)
}
