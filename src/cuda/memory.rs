//! Tensors in device memory, borrowed for the time of a call.
//!
//! Views come from cudarc's types, or from [`ForeignSlice`] for memory that somebody else owns.
//! cudarc's traits are not accepted: any safe code may implement them, with any address.

use super::device::Device;
use super::stream::Stream;
use crate::batch::DType;
use crate::error::{Error, Result};
use crate::params::Buffer;
use cudarc::driver::{
    CudaSlice, CudaStream, CudaView, CudaViewMut, DevicePtr as _, DevicePtrMut as _,
    DeviceSlice as _, SyncOnDrop,
};
use half::{bf16, f16};
use std::marker::PhantomData;

/// Memory on a device that somebody else owns, such as a PyTorch tensor. It is never freed here.
#[derive(Debug)]
pub struct ForeignSlice<T> {
    ordinal: usize,
    address: u64,
    len: usize,
    element: PhantomData<T>,
}

impl<T> ForeignSlice<T> {
    /// `len` elements of type `T` (the dtype) from `address` on, in the memory of `device`.
    ///
    /// # Safety
    /// For as long as this value lives and launches that were given it run:
    /// - `address` must point to `len` initialized elements that `device` may read, and write where
    ///   [`Self::as_slice_mut`] is used; a pure output need not be initialized;
    /// - nobody else may write them meanwhile, nor read them while a launch writes them: order other
    ///   uses by the stream of the launches.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a null address with elements behind it, one that is not a multiple of
    /// the element's size, or a length that exceeds the address space.
    ///
    /// ```no_run
    /// use qae::cuda::{Device, ForeignSlice};
    ///
    /// fn rewards(data_ptr: u64, numel: usize) -> qae::Result<ForeignSlice<f32>> {
    ///     let device = Device::open(0)?;
    ///     // SAFETY: the tensor is contiguous float32 on this device and outlives the step.
    ///     unsafe { ForeignSlice::new(&device, data_ptr, numel) }
    /// }
    /// ```
    pub unsafe fn new(device: &Device, address: u64, len: usize) -> Result<Self> {
        check_range(address, len, size_of::<T>())?;
        Ok(Self {
            ordinal: device.context().ordinal(),
            address,
            len,
            element: PhantomData,
        })
    }

    /// For reading.
    pub fn as_slice(&self) -> DeviceSlice<'_, T> {
        DeviceSlice(Source::Foreign(self.view()))
    }

    /// For writing.
    pub fn as_slice_mut(&mut self) -> DeviceSliceMut<'_, T> {
        DeviceSliceMut(Source::Foreign(self.view()))
    }

    fn view(&self) -> ForeignView {
        ForeignView {
            ordinal: self.ordinal,
            buffer: Buffer {
                address: self.address,
                len: self.len,
            },
        }
    }
}

fn check_range(address: u64, len: usize, size: usize) -> Result<()> {
    let found = format!("{address:#x}");
    if address == 0 && len > 0 {
        return Err(Error::invalid("address", "that of device memory", "null"));
    }
    if !address.is_multiple_of(size as u64) {
        let expected = format!("a multiple of the element's {size} bytes");
        return Err(Error::invalid("address", expected, found));
    }
    let bytes = (len as u64).checked_mul(size as u64);
    if bytes.and_then(|bytes| address.checked_add(bytes)).is_none() {
        return Err(Error::invalid(
            "len",
            format!("elements that fit behind {found}"),
            len,
        ));
    }
    Ok(())
}

#[derive(Debug)]
struct ForeignView {
    ordinal: usize,
    buffer: Buffer,
}

#[derive(Debug)]
enum Source<V> {
    Cudarc(V),
    Foreign(ForeignView),
}

impl<V> Source<V> {
    fn expect_on(
        &self,
        field: &str,
        stream: &Stream,
        owner: impl Fn(&V) -> &CudaStream,
    ) -> Result<()> {
        let context = stream.cudarc().context();
        let (is_there, ordinal) = match self {
            Self::Cudarc(view) => {
                let owner = owner(view).context();
                (owner == context, owner.ordinal())
            }
            Self::Foreign(view) => (view.ordinal == context.ordinal(), view.ordinal),
        };
        if is_there {
            return Ok(());
        }
        Err(Error::invalid(
            field,
            format!(
                "memory of the stream's context, on device {}",
                context.ordinal()
            ),
            format!("memory of another, on device {ordinal}"),
        ))
    }
}

/// A tensor in device memory, borrowed for reading.
#[derive(Debug)]
pub struct DeviceSlice<'a, T>(Source<CudaView<'a, T>>);

impl<T> DeviceSlice<'_, T> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match &self.0 {
            Source::Cudarc(view) => view.len(),
            Source::Foreign(view) => view.buffer.len,
        }
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn expect_on(&self, field: &str, stream: &Stream) -> Result<()> {
        self.0.expect_on(field, stream, |view| view.stream())
    }

    pub(super) fn access<'s>(&'s self, stream: &'s CudaStream) -> (Buffer, Option<SyncOnDrop<'s>>) {
        match &self.0 {
            Source::Foreign(view) => (view.buffer, None),
            Source::Cudarc(view) => {
                let (address, guard) = view.device_ptr(stream);
                let len = view.len();
                (Buffer { address, len }, Some(guard))
            }
        }
    }
}

impl<'a, T> From<&'a CudaSlice<T>> for DeviceSlice<'a, T> {
    fn from(slice: &'a CudaSlice<T>) -> Self {
        Self(Source::Cudarc(slice.as_view()))
    }
}

impl<'a, T> From<CudaView<'a, T>> for DeviceSlice<'a, T> {
    fn from(view: CudaView<'a, T>) -> Self {
        Self(Source::Cudarc(view))
    }
}

/// A tensor in device memory, borrowed for writing.
#[derive(Debug)]
pub struct DeviceSliceMut<'a, T>(Source<CudaViewMut<'a, T>>);

impl<T> DeviceSliceMut<'_, T> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match &self.0 {
            Source::Cudarc(view) => view.len(),
            Source::Foreign(view) => view.buffer.len,
        }
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn expect_on(&self, field: &str, stream: &Stream) -> Result<()> {
        self.0.expect_on(field, stream, |view| view.stream())
    }

    /// The same view for a shorter time.
    pub(super) fn reborrow(&mut self) -> DeviceSliceMut<'_, T> {
        DeviceSliceMut(match &mut self.0 {
            Source::Cudarc(view) => Source::Cudarc(view.slice_mut(..)),
            Source::Foreign(view) => Source::Foreign(ForeignView {
                ordinal: view.ordinal,
                buffer: view.buffer,
            }),
        })
    }

    pub(super) fn access<'s>(
        &'s mut self,
        stream: &'s CudaStream,
    ) -> (Buffer, Option<SyncOnDrop<'s>>) {
        match &mut self.0 {
            Source::Foreign(view) => (view.buffer, None),
            Source::Cudarc(view) => {
                let len = view.len();
                let (address, guard) = view.device_ptr_mut(stream);
                (Buffer { address, len }, Some(guard))
            }
        }
    }
}

impl<'a, T> From<&'a mut CudaSlice<T>> for DeviceSliceMut<'a, T> {
    fn from(slice: &'a mut CudaSlice<T>) -> Self {
        Self(Source::Cudarc(slice.as_view_mut()))
    }
}

impl<'a, T> From<CudaViewMut<'a, T>> for DeviceSliceMut<'a, T> {
    fn from(view: CudaViewMut<'a, T>) -> Self {
        Self(Source::Cudarc(view))
    }
}

/// A tensor of log-probs in device memory, in one of the supported dtypes.
#[derive(Debug)]
pub enum DeviceTensor<'a> {
    /// f32 elements.
    F32(DeviceSlice<'a, f32>),
    /// bf16 elements.
    Bf16(DeviceSlice<'a, bf16>),
    /// f16 elements.
    F16(DeviceSlice<'a, f16>),
}

impl DeviceTensor<'_> {
    /// Its element type.
    pub fn dtype(&self) -> DType {
        match self {
            Self::F32(_) => DType::F32,
            Self::Bf16(_) => DType::Bf16,
            Self::F16(_) => DType::F16,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(slice) => slice.len(),
            Self::Bf16(slice) => slice.len(),
            Self::F16(slice) => slice.len(),
        }
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The same for writing: the gradient.
#[derive(Debug)]
pub enum DeviceTensorMut<'a> {
    /// f32 elements.
    F32(DeviceSliceMut<'a, f32>),
    /// bf16 elements.
    Bf16(DeviceSliceMut<'a, bf16>),
    /// f16 elements.
    F16(DeviceSliceMut<'a, f16>),
}

impl DeviceTensorMut<'_> {
    /// Its element type.
    pub fn dtype(&self) -> DType {
        match self {
            Self::F32(_) => DType::F32,
            Self::Bf16(_) => DType::Bf16,
            Self::F16(_) => DType::F16,
        }
    }
}

macro_rules! from_typed {
    ($($element:ty => $variant:ident),+) => {$(
        impl<'a> From<DeviceSlice<'a, $element>> for DeviceTensor<'a> {
            fn from(slice: DeviceSlice<'a, $element>) -> Self {
                Self::$variant(slice)
            }
        }

        impl<'a> From<DeviceSliceMut<'a, $element>> for DeviceTensorMut<'a> {
            fn from(slice: DeviceSliceMut<'a, $element>) -> Self {
                Self::$variant(slice)
            }
        }
    )+};
}

from_typed!(f32 => F32, bf16 => Bf16, f16 => F16);

#[cfg(test)]
mod tests {
    use super::check_range;

    #[test]
    fn addresses_are_checked() {
        assert!(check_range(0, 0, 4).is_ok());
        assert!(check_range(0x1002, 3, 2).is_ok());
        for (address, len, size, expected) in [
            (
                0,
                1,
                4,
                "address: expected that of device memory, found null",
            ),
            (
                0x1002,
                1,
                4,
                "address: expected a multiple of the element's 4 bytes",
            ),
            (
                0x1000,
                usize::MAX,
                4,
                "len: expected elements that fit behind 0x1000",
            ),
            (u64::MAX - 7, 2, 8, "len: expected elements that fit behind"),
        ] {
            let error = check_range(address, len, size).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
