//! Rewards to advantages on the device.

use super::groups::DeviceGroups;
use super::launch::Accesses;
use super::memory::{DeviceSlice, DeviceSliceMut};
use super::metrics::DeviceGroupMetrics;
use super::range::Range;
use super::stream::Stream;
use super::workspace::Workspace;
use crate::config::AdvantageConfig;
use crate::error::Result;
use crate::params::{self, AdvantageOutputs as OutputBuffers};
use crate::sys;

/// Where [`advantages`] writes.
#[derive(Debug)]
pub struct AdvantageOutputs<'a> {
    /// \[num_responses\]: the baseline of each response, in units of reward.
    pub baseline: Option<DeviceSliceMut<'a, f32>>,
    /// \[num_responses\].
    pub advantage: DeviceSliceMut<'a, f32>,
    /// \[num_responses\]: the responses whose advantage is not 0, ascending.
    pub active: Option<DeviceSliceMut<'a, i32>>,
    /// \[1\]: how many of `active` are written.
    pub active_count: Option<DeviceSliceMut<'a, i32>>,
    /// Counts over groups and responses.
    pub metrics: &'a mut DeviceGroupMetrics,
}

/// Bytes of workspace that [`advantages`] takes, for any batch.
pub fn advantages_workspace_bytes() -> usize {
    let params = sys::qae_advantages_params::default();
    // SAFETY: the query reads the params only.
    unsafe { sys::qae_advantages_workspace_bytes(&params) as usize }
}

/// Baselines and advantages of grouped rewards, and the list of responses to work on.
///
/// A = (r − b) / (σ + ε), with b the group's k-quantile, inf{x : F(x) ≥ k} (arXiv 2509.22611,
/// Eq. 4), or another baseline of [`crate::Baseline`]; then the gate. As [`crate::reference::advantages`].
///
/// | argument | shape | dtype | unit |
/// |---|---|---|---|
/// | `rewards` | \[num_responses\] | f32 | reward |
/// | `outputs.baseline` | \[num_responses\] | f32 | reward |
/// | `outputs.advantage` | \[num_responses\] | f32 | dimensionless, or reward without a scale |
/// | `outputs.active`, `outputs.active_count` | \[num_responses\], \[1\] | i32 | indices |
///
/// Rewards that are not finite are left out of their group, get advantage 0 and are counted. A
/// group whose rewards are all equal has advantages of exactly 0. No responses: only the counts are
/// written, all 0.
///
/// The same bits on every run: the quantile is an exact selection, sums run in a fixed order.
///
/// # Errors
/// - [`crate::Error::Invalid`] for a configuration out of range, a tensor of another length than
///   the groups', memory of another device, or a workspace that is too small or another operation's.
/// - [`crate::Error::Cuda`] where the launch fails.
///
/// # Stream ordering
/// One launch on `stream`, after the work that is already on it; returns at once. See
/// [the module](super).
///
/// ```no_run
/// use qae::cuda::{self, AdvantageOutputs, Device, DeviceGroupMetrics, DeviceGroups, Stream, Workspace};
/// use qae::{AdvantageConfig, Groups};
///
/// let stream = Stream::new(&Device::open(0)?)?;
/// let groups = DeviceGroups::upload(&stream, Groups::uniform(4, 4)?)?;
/// let rewards = stream.cudarc().clone_htod(&[0.0_f32, 0.0, 0.0, 1.0]).unwrap();
/// let mut advantage = stream.cudarc().alloc_zeros::<f32>(4).unwrap();
/// let mut metrics = DeviceGroupMetrics::new(&stream)?;
/// let mut workspace = Workspace::new(&stream, cuda::advantages_workspace_bytes())?;
/// let mut outputs = AdvantageOutputs {
///     baseline: None,
///     advantage: (&mut advantage).into(),
///     active: None,
///     active_count: None,
///     metrics: &mut metrics,
/// };
/// let config = AdvantageConfig::default();
/// cuda::advantages(&stream, &(&rewards).into(), &groups, &config, &mut outputs, &mut workspace)?;
/// assert_eq!(metrics.read(&stream)?.hard_groups, 1);
/// # Ok::<(), qae::Error>(())
/// ```
pub fn advantages(
    stream: &Stream,
    rewards: &DeviceSlice<'_, f32>,
    groups: &DeviceGroups,
    config: &AdvantageConfig,
    outputs: &mut AdvantageOutputs<'_>,
    workspace: &mut Workspace<'_>,
) -> Result<()> {
    let _range = Range::new(c"qae::advantages");
    let views = groups.views();
    let mut metrics = outputs.metrics.lend();
    let mut scratch = workspace.lend("advantages")?;
    let mut accesses = Accesses::new(stream)?;
    let buffers = OutputBuffers {
        baseline: accesses.write_some("baseline", outputs.baseline.as_mut())?,
        advantage: accesses.write("advantage", &mut outputs.advantage)?,
        active: accesses.write_some("active", outputs.active.as_mut())?,
        active_count: accesses.write_scalar("active_count", outputs.active_count.as_mut())?,
        metrics: accesses.write("metrics", &mut metrics)?,
    };
    let rewards = accesses.read("rewards", rewards)?;
    let mut params = params::advantages(rewards, &views.read(&mut accesses)?, &buffers, config)?;
    let scratch = accesses.scratch(&mut scratch, advantages_workspace_bytes() as u64)?;
    params.workspace = scratch.address as *mut _;
    params.workspace_bytes = scratch.len as u64;
    accesses.launch("qae_advantages", |stream| {
        // SAFETY: every pointer is borrowed memory of the stream's device with the length that was
        // checked, and `accesses` orders the launch with its other users.
        unsafe { sys::qae_advantages(&params, stream) }
    })?;
    outputs.metrics.set_written();
    Ok(())
}
