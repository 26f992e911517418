//! The normalizer of a batch that is the whole batch, counted on the device.

use super::batch::DeviceLayout;
use super::launch::{Accesses, expect_scalar};
use super::memory::{DeviceSlice, DeviceSliceMut};
use super::range::Range;
use super::stream::Stream;
use super::workspace::Workspace;
use crate::error::Result;
use crate::params;
use crate::sys;

/// Bytes of workspace that [`token_counts`] takes, for any batch.
pub fn token_counts_workspace_bytes() -> usize {
    let params = sys::qae_token_counts_params::default();
    // SAFETY: the query reads the params only.
    unsafe { sys::qae_token_counts_workspace_bytes(&params) as usize }
}

/// Counts valid tokens and rows with at least one valid token, as normalizers for
/// [`super::loss_from_log_probs`] (docs/math.md §3) that never visit the host.
///
/// | argument | shape | dtype | unit |
/// |---|---|---|---|
/// | `mask` | one for each slot | u8 | 0 or not |
/// | `num_tokens` | \[1\] | f64 | tokens, for [`crate::Aggregation::TokenMean`] |
/// | `num_rows` | \[1\] | f64 | responses, for every other aggregation |
///
/// A token is valid where the mask is not 0 and its slot is within the row's length. Nothing valid:
/// both are 0, which makes loss and gradient 0. Counts are integers: the same on every run.
///
/// # Errors
/// - [`crate::Error::Invalid`] for a mask or lengths of another shape than the layout's, outputs
///   that are no scalars, memory of another device, or a workspace that is too small or another
///   operation's.
/// - [`crate::Error::Cuda`] where the launch fails.
///
/// # Stream ordering
/// One launch on `stream`, after the work that is already on it; returns at once. See
/// [the module](super).
///
/// ```no_run
/// use qae::cuda::{self, Device, DeviceLayout, Stream, Workspace};
///
/// let stream = Stream::new(&Device::open(0)?)?;
/// let offsets = stream.cudarc().clone_htod(&[0_i64, 3, 3, 8]).unwrap();
/// let mut num_tokens = stream.cudarc().alloc_zeros::<f64>(1).unwrap();
/// let mut num_rows = stream.cudarc().alloc_zeros::<f64>(1).unwrap();
/// let mut workspace = Workspace::new(&stream, cuda::token_counts_workspace_bytes())?;
/// let layout = DeviceLayout::Packed { offsets: (&offsets).into(), num_slots: 8 };
/// cuda::token_counts(
///     &stream, &layout, None, &mut (&mut num_tokens).into(), &mut (&mut num_rows).into(),
///     &mut workspace,
/// )?;
/// # Ok::<(), qae::Error>(())
/// ```
pub fn token_counts(
    stream: &Stream,
    layout: &DeviceLayout<'_>,
    mask: Option<&DeviceSlice<'_, u8>>,
    num_tokens: &mut DeviceSliceMut<'_, f64>,
    num_rows: &mut DeviceSliceMut<'_, f64>,
    workspace: &mut Workspace<'_>,
) -> Result<()> {
    let _range = Range::new(c"qae::token_counts");
    expect_scalar("num_tokens", num_tokens.len())?;
    expect_scalar("num_rows", num_rows.len())?;
    let mut scratch = workspace.lend("token_counts")?;
    let mut accesses = Accesses::new(stream)?;
    let mask = accesses.read_some("mask", mask)?;
    let layout = layout.read(&mut accesses)?;
    let num_tokens = accesses.write("num_tokens", num_tokens)?;
    let num_rows = accesses.write("num_rows", num_rows)?;
    let mut params = params::token_counts(&layout, mask, num_tokens, num_rows)?;
    let scratch = accesses.scratch(&mut scratch, token_counts_workspace_bytes() as u64)?;
    params.workspace = scratch.address as *mut _;
    params.workspace_bytes = scratch.len as u64;
    accesses.launch("qae_token_counts", |stream| {
        // SAFETY: every pointer is borrowed memory of the stream's device with the length that was
        // checked, and `accesses` orders the launch with its other users.
        unsafe { sys::qae_token_counts(&params, stream) }
    })
}
