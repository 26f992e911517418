//! Memory that a launch needs besides its tensors, owned by the caller.

use super::launch::{Accesses, driver_error};
use super::memory::DeviceSliceMut;
use super::stream::Stream;
use crate::error::{Error, Result};
use crate::params::Buffer;
use cudarc::driver::CudaSlice;

/// What the kernels need; cudarc's allocations have it.
const ALIGNMENT: u64 = 256;

/// Scratch memory of one operation, zeroed once.
///
/// Every launch leaves it fit for the next one, of the same operation and of any shape that fits;
/// it serves one launch at a time. The operation's `workspace_bytes` says how much it takes.
#[derive(Debug)]
pub struct Workspace<'a> {
    memory: Memory<'a>,
    /// The operation that it served first: another one would not find zeros where it needs them.
    operation: Option<&'static str>,
}

#[derive(Debug)]
enum Memory<'a> {
    Owned(CudaSlice<u8>),
    Borrowed(DeviceSliceMut<'a, u8>),
}

impl<'a> Workspace<'a> {
    /// `bytes` of new memory on the stream's device.
    ///
    /// # Errors
    /// [`Error::Cuda`] where the device has no room.
    ///
    /// ```no_run
    /// use qae::cuda::{Device, Stream, Workspace};
    ///
    /// let stream = Stream::new(&Device::open(0)?)?;
    /// let workspace = Workspace::new(&stream, qae::cuda::advantages_workspace_bytes())?;
    /// # Ok::<(), qae::Error>(())
    /// ```
    pub fn new(stream: &Stream, bytes: usize) -> Result<Self> {
        let memory = stream.cudarc().alloc_zeros(bytes.max(1));
        let memory = memory.map_err(|error| driver_error("cuMemAllocAsync", error))?;
        Ok(Self {
            memory: Memory::Owned(memory),
            operation: None,
        })
    }

    /// The caller's memory, 256-byte aligned, which is zeroed on `stream` here and now.
    ///
    /// # Errors
    /// - [`Error::Invalid`] for memory that is not aligned or is on another device.
    /// - [`Error::Cuda`] where the driver fails.
    pub fn zeroed(stream: &Stream, mut memory: DeviceSliceMut<'a, u8>) -> Result<Self> {
        let mut accesses = Accesses::new(stream)?;
        let buffer = accesses.write("workspace", &mut memory)?;
        expect_aligned(buffer)?;
        accesses.zero(buffer)?;
        Ok(Self {
            memory: Memory::Borrowed(memory),
            operation: None,
        })
    }

    /// Its size in bytes.
    pub fn len(&self) -> usize {
        match &self.memory {
            Memory::Owned(memory) => memory.len(),
            Memory::Borrowed(memory) => memory.len(),
        }
    }

    /// Whether it holds no byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A view for a launch of `operation`.
    pub(super) fn lend(&mut self, operation: &'static str) -> Result<DeviceSliceMut<'_, u8>> {
        let served = *self.operation.get_or_insert(operation);
        if served != operation {
            return Err(Error::invalid(
                "workspace",
                format!("one of {operation} alone"),
                format!("one that served {served}"),
            ));
        }
        Ok(match &mut self.memory {
            Memory::Owned(memory) => memory.into(),
            Memory::Borrowed(memory) => memory.reborrow(),
        })
    }
}

fn expect_aligned(buffer: Buffer) -> Result<()> {
    if buffer.address.is_multiple_of(ALIGNMENT) {
        return Ok(());
    }
    Err(Error::invalid(
        "workspace",
        format!("an address that is a multiple of {ALIGNMENT}"),
        format!("{:#x}", buffer.address),
    ))
}

#[cfg(test)]
mod tests {
    use super::{Buffer, expect_aligned};

    #[test]
    fn alignment_is_checked() {
        let at = |address| expect_aligned(Buffer { address, len: 1 });
        assert!(at(0x1200).is_ok());
        let error = at(0x1280).unwrap_err().to_string();
        assert!(error.contains("found 0x1280"), "{error}");
    }
}
