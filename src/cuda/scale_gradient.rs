//! A gradient times the factor of a backward pass on the device.

use super::launch::Accesses;
use super::memory::{DeviceSlice, DeviceTensor, DeviceTensorMut};
use super::range::Range;
use super::stream::Stream;
use crate::batch::GradientRows;
use crate::error::Result;
use crate::params::{self, FactorBuffers, TypedBuffer};
use crate::sys;

/// What a gradient is multiplied by, known to the device alone.
#[derive(Debug)]
pub struct DeviceFactor<'a> {
    /// d (what is differentiated) / d loss.
    pub value: FactorValue<'a>,
    /// \[num_rows\]: 0 where a row of the gradient is 0, which stays 0 whatever the factor. The
    /// `d_log_prob` of [`super::loss_from_logits`] says so of its `d_logits`, unless there is an
    /// entropy term. `None`: nothing is known.
    pub row_gradient: Option<DeviceSlice<'a, f32>>,
}

/// \[1\], rounded to f32.
#[derive(Debug)]
pub enum FactorValue<'a> {
    /// 32 bits.
    F32(DeviceSlice<'a, f32>),
    /// 64 bits.
    F64(DeviceSlice<'a, f64>),
}

impl DeviceFactor<'_> {
    fn read<'s>(&'s self, accesses: &mut Accesses<'s>) -> Result<FactorBuffers> {
        let (value, value_bytes) = match &self.value {
            FactorValue::F32(value) => (accesses.read("factor", value)?, 4),
            FactorValue::F64(value) => (accesses.read("factor", value)?, 8),
        };
        let row_gradient = self.row_gradient.as_ref();
        Ok(FactorBuffers {
            value,
            value_bytes,
            row_gradient: accesses.read_some("row_gradient", row_gradient)?,
        })
    }
}

/// scaled = gradient · factor: the backward pass of a loss whose gradient is there already.
///
/// As [`crate::reference::scale_gradient`], multiplied in f32 and rounded once. Rows that act are
/// read and written once; rows that are known to be 0 are not read, and written as 0.
///
/// | argument | shape | dtype | unit |
/// |---|---|---|---|
/// | `gradient.values` | \[num_rows, num_columns\] | f32, bf16, f16 | loss |
/// | `factor.value` | \[1\] | f32, f64 | dimensionless |
/// | `factor.row_gradient` | \[num_rows\] | f32 | any |
/// | `scaled.values` | as the gradient, with strides of its own | the gradient's, or f16 of f32 | loss |
///
/// No rows: nothing is launched. The same bits on every run.
///
/// # Errors
/// - [`crate::Error::Invalid`] for a shape, a stride or a dtype that does not fit, tensors that
///   share memory, or memory of another device.
/// - [`crate::Error::Cuda`] where the launch fails.
///
/// # Stream ordering
/// One launch on `stream`, after the work that is already on it; returns at once. See
/// [the module](super).
pub fn scale_gradient(
    stream: &Stream,
    gradient: &GradientRows<DeviceTensor<'_>>,
    factor: &DeviceFactor<'_>,
    scaled: &mut GradientRows<DeviceTensorMut<'_>>,
) -> Result<()> {
    let mut accesses = Accesses::new(stream)?;
    let source = gradient.with(TypedBuffer {
        buffer: accesses.read_tensor("gradient", &gradient.values)?,
        dtype: gradient.values.dtype(),
    });
    let dtype = scaled.values.dtype();
    let target = scaled.with(());
    let buffer = accesses.write_tensor("scaled", &mut scaled.values)?;
    let target = target.with(TypedBuffer { buffer, dtype });
    launch(accesses, &source, factor, &target)
}

/// The same in the gradient's own memory: rows that are known to be 0 are not touched, and with a
/// factor of 1 nothing is read but the factor.
///
/// # Errors
/// Those of [`scale_gradient`].
///
/// # Stream ordering
/// As [`scale_gradient`].
///
/// ```no_run
/// use qae::GradientRows;
/// use qae::cuda::{self, Device, DeviceFactor, DeviceTensorMut, FactorValue, Stream};
///
/// let stream = Stream::new(&Device::open(0)?)?;
/// let mut values = stream.cudarc().clone_htod(&[1.0_f32, -2.0, 0.0, 0.0]).unwrap();
/// let value = stream.cudarc().clone_htod(&[0.5_f32]).unwrap();
/// let d_log_prob = stream.cudarc().clone_htod(&[-1.0_f32, 0.0]).unwrap();
/// let values = DeviceTensorMut::F32((&mut values).into());
/// let factor = DeviceFactor {
///     value: FactorValue::F32((&value).into()),
///     row_gradient: Some((&d_log_prob).into()),
/// };
/// let mut gradient = GradientRows::contiguous(values, 2, 2);
/// cuda::scale_gradient_in_place(&stream, &mut gradient, &factor)?;
/// # Ok::<(), qae::Error>(())
/// ```
pub fn scale_gradient_in_place(
    stream: &Stream,
    gradient: &mut GradientRows<DeviceTensorMut<'_>>,
    factor: &DeviceFactor<'_>,
) -> Result<()> {
    let mut accesses = Accesses::new(stream)?;
    let dtype = gradient.values.dtype();
    let rows = gradient.with(());
    let buffer = accesses.write_tensor("gradient", &mut gradient.values)?;
    let rows = rows.with(TypedBuffer { buffer, dtype });
    launch(accesses, &rows, factor, &rows)
}

fn launch<'s>(
    mut accesses: Accesses<'s>,
    gradient: &GradientRows<TypedBuffer>,
    factor: &'s DeviceFactor<'_>,
    scaled: &GradientRows<TypedBuffer>,
) -> Result<()> {
    let _range = Range::new(c"qae::scale_gradient");
    let factor = factor.read(&mut accesses)?;
    let params = params::scale_gradient(gradient, &factor, scaled)?;
    accesses.launch("qae_scale_gradient", |stream| {
        // SAFETY: every pointer is borrowed memory of the stream's device with the length that was
        // checked, and `accesses` orders the launch with its other users. A product that shares the
        // gradient's memory has its strides, which the kernel allows.
        unsafe { sys::qae_scale_gradient(&params, stream) }
    })
}
