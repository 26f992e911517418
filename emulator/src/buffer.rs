//! Buffers in the global memory of a device.

use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::NonNull;
use std::rc::Rc;
use std::slice;

use bytemuck::Pod;

use crate::device::{self, Handle};
use crate::{Error, sys};

/// Elements in the memory of a [`Device`](crate::Device), from a 256-byte-aligned address on and
/// with at least a page that belongs to no buffer on either side.
#[derive(Debug)]
pub struct Buffer<T> {
    handle: Rc<Handle>,
    start: NonNull<u8>,
    len: usize,
    label: String,
    element: PhantomData<T>,
}

impl<T: Pod> Buffer<T> {
    pub(crate) fn new(
        handle: Rc<Handle>,
        len: usize,
        misalignment: usize,
        label: &str,
    ) -> Result<Self, Error> {
        let out_of_memory = |bytes| Error::OutOfMemory {
            label: label.to_owned(),
            bytes,
        };
        let bytes = len
            .checked_mul(size_of::<T>())
            .ok_or_else(|| out_of_memory(usize::MAX))?;
        let start = device::allocate(&handle, bytes, misalignment, label)
            .ok_or_else(|| out_of_memory(bytes))?;
        Ok(Self {
            handle,
            start,
            len,
            label: label.to_owned(),
            element: PhantomData,
        })
    }

    /// The number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address that kernels know the first element by.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    /// The address of an element, or of the end: where a view starts that is aligned to elements
    /// only.
    ///
    /// # Panics
    /// Where `index` is beyond the end.
    #[must_use]
    pub fn address_of(&self, index: usize) -> u64 {
        assert!(
            index <= self.len,
            "element {index} of `{}`, which has {}",
            self.label,
            self.len
        );
        self.address() + (index * size_of::<T>()) as u64
    }

    /// The first element, for the argument of a launcher.
    #[must_use]
    pub fn as_ptr(&self) -> *const T {
        self.start.as_ptr().cast()
    }

    /// The first element, for an output argument of a launcher.
    #[must_use]
    pub fn as_mut_ptr(&mut self) -> *mut T {
        self.start.as_ptr().cast()
    }

    /// Overwrites the leading elements.
    ///
    /// # Panics
    /// Where there are more `values` than elements.
    pub fn write(&mut self, values: &[T]) {
        self.write_at(0, values);
    }

    /// Overwrites the elements from `first` on.
    pub(crate) fn write_at(&mut self, first: usize, values: &[T]) {
        let end = first.saturating_add(values.len());
        assert!(end <= self.len, "values for `{}`", self.label);
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let start = first * size_of::<T>();
        // SAFETY: the buffer and its shadow have as many bytes there, and no kernel runs while the
        // device, which stays on this OS thread, is here.
        unsafe {
            self.start
                .as_ptr()
                .add(start)
                .copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            self.shadow_start()
                .add(start)
                .write_bytes(sys::qae_emulator_initialized(), bytes.len());
        }
    }

    /// From now on these elements are out of bounds.
    pub(crate) fn forbid(&mut self, elements: Range<usize>) {
        let Range { start, end } = elements;
        assert!(start <= end && end <= self.len, "part of `{}`", self.label);
        let bytes = (end - start) * size_of::<T>();
        // SAFETY: the shadow has as many bytes there, and no kernel runs, as above.
        unsafe {
            self.shadow_start()
                .add(start * size_of::<T>())
                .write_bytes(sys::qae_emulator_outside(), bytes);
        }
    }

    /// The elements.
    ///
    /// # Errors
    /// [`Error::Uninitialized`] where a byte was never written.
    pub fn download(&self) -> Result<Vec<T>, Error> {
        let missing = |state: &&u8| **state != sys::qae_emulator_initialized();
        let bytes = self.shadow().iter().filter(missing).count();
        if bytes == 0 {
            return Ok(self.download_raw());
        }
        let first = (0..self.len)
            .find(|&index| !self.is_initialized(index))
            .unwrap_or(self.len);
        Err(Error::Uninitialized {
            label: self.label.clone(),
            bytes,
            first,
            len: self.len,
        })
    }

    /// The elements, with poison where nothing has written.
    #[must_use]
    pub fn download_raw(&self) -> Vec<T> {
        let mut values = vec![T::zeroed(); self.len];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut values);
        // SAFETY: the buffer has as many bytes, and no kernel runs meanwhile.
        unsafe {
            self.start
                .as_ptr()
                .copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len())
        }
        values
    }

    /// Whether all bytes of an element were written.
    ///
    /// # Panics
    /// Where `index` is not below the length.
    #[must_use]
    pub fn is_initialized(&self, index: usize) -> bool {
        let size = size_of::<T>();
        self.shadow()[index * size..(index + 1) * size]
            .iter()
            .all(|&state| state == sys::qae_emulator_initialized())
    }

    fn shadow(&self) -> &[u8] {
        // SAFETY: the shadow is as long as the buffer, and only kernels and `write` change it,
        // neither of which can run while this borrow lives.
        unsafe { slice::from_raw_parts(self.shadow_start(), self.len * size_of::<T>()) }
    }

    fn shadow_start(&self) -> *mut u8 {
        // SAFETY: the address is that of a live buffer of the device.
        unsafe { sys::qae_emulator_shadow(self.handle.0, self.start.as_ptr()) }
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        // SAFETY: the allocation is this buffer's own and is released once.
        unsafe { sys::qae_emulator_release(self.handle.0, self.start.as_ptr()) }
    }
}
