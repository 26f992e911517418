//! Memory of the host that kernels see as memory of a device.
//!
//! A buffer of the device takes the place of every stretch of host memory, so that a kernel can
//! harm nothing, and every check holds: what lies between and around the tensors is out of bounds,
//! outputs are poison until they are written.

use std::ops::Range;
use std::{ptr, slice};

use crate::{Buffer, Device, Error};

/// A tensor in host memory, of which a call says where its elements are.
#[derive(Clone, Debug)]
pub struct HostTensor<'a> {
    /// What findings call it.
    pub label: &'a str,
    /// Of its first element.
    pub address: u64,
    /// Bytes of an element.
    pub element_bytes: usize,
    /// Its dimensions.
    pub shape: &'a [usize],
    /// Elements from one index of each dimension to the next.
    pub strides: &'a [usize],
    /// Kernels write it: what they have written goes back to the host, and without another tensor
    /// in the same place nothing of it can be read before.
    pub is_output: bool,
}

impl HostTensor<'_> {
    /// The addresses of stretches of elements without gaps.
    fn stretches(&self) -> Vec<Range<u64>> {
        if self.shape.contains(&0) {
            return vec![];
        }
        // The trailing dimensions that are one stretch, and what is left of the others.
        let mut len = self.element_bytes as u64;
        let mut outer = self.shape.len();
        while outer > 0 {
            let dim = outer - 1;
            let step = self.strides[dim] as u64 * self.element_bytes as u64;
            if self.shape[dim] > 1 && step != len {
                break;
            }
            len *= self.shape[dim] as u64;
            outer = dim;
        }
        let mut starts = vec![self.address];
        for dim in 0..outer {
            let step = self.strides[dim] as u64 * self.element_bytes as u64;
            let indices = 0..self.shape[dim] as u64;
            starts = (starts.iter())
                .flat_map(|start| indices.clone().map(move |index| start + index * step))
                .collect();
        }
        starts.into_iter().map(|start| start..start + len).collect()
    }
}

/// The tensors of one call on a device.
#[derive(Debug)]
pub struct Adopted {
    regions: Vec<Region>,
    /// Stretches of the outputs.
    written: Vec<Range<u64>>,
}

/// Host memory from the first to the last byte of tensors that overlap.
#[derive(Debug)]
struct Region {
    host: Range<u64>,
    buffer: Buffer<u8>,
}

impl Device {
    /// Takes these tensors over. Where they overlap, they do so on the device.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where the device has no room.
    ///
    /// # Safety
    /// The elements of every tensor are in memory that is alive and that nobody writes meanwhile.
    pub unsafe fn adopt(&self, tensors: &[HostTensor<'_>]) -> Result<Adopted, Error> {
        let stretches: Vec<_> = tensors.iter().map(HostTensor::stretches).collect();
        let mut regions = self.regions(tensors, &stretches)?;
        let mut used: Vec<_> = stretches.iter().flatten().cloned().collect();
        used.sort_by_key(|stretch| stretch.start);
        for region in &mut regions {
            region.forbid_all_but(&used);
        }
        let mut written = vec![];
        for (tensor, stretches) in tensors.iter().zip(stretches) {
            if tensor.is_output {
                written.extend(stretches);
                continue;
            }
            for stretch in stretches {
                let len = (stretch.end - stretch.start) as usize;
                // SAFETY: the caller says that the elements are there and do not change.
                let bytes = unsafe { slice::from_raw_parts(stretch.start as *const u8, len) };
                if let Some((region, first)) = find(&mut regions, stretch.start) {
                    region.buffer.write_at(first, bytes);
                }
            }
        }
        Ok(Adopted { regions, written })
    }

    /// A buffer for each set of tensors that overlap, ascending, as far from a 256-byte boundary as
    /// the host's memory.
    fn regions(
        &self,
        tensors: &[HostTensor<'_>],
        stretches: &[Vec<Range<u64>>],
    ) -> Result<Vec<Region>, Error> {
        let extent = |stretches: &Vec<Range<u64>>| {
            let start = stretches.iter().map(|stretch| stretch.start).min()?;
            let end = stretches.iter().map(|stretch| stretch.end).max()?;
            Some(start..end)
        };
        let mut extents: Vec<_> = (tensors.iter().zip(stretches))
            .filter_map(|(tensor, stretches)| Some((extent(stretches)?, tensor.label)))
            .collect();
        extents.sort_by_key(|(host, _)| host.start);
        let mut merged: Vec<(Range<u64>, Vec<&str>)> = vec![];
        for (host, label) in extents {
            match merged.last_mut() {
                Some((last, labels)) if host.start < last.end => {
                    last.end = last.end.max(host.end);
                    labels.push(label);
                }
                _ => merged.push((host, vec![label])),
            }
        }
        let region = |(host, labels): (Range<u64>, Vec<&str>)| {
            let bytes = (host.end - host.start) as usize;
            let misalignment = (host.start % 256) as usize;
            let buffer = self.alloc_bytes(bytes, misalignment, &labels.join(" and "))?;
            Ok(Region { host, buffer })
        };
        merged.into_iter().map(region).collect()
    }
}

impl Region {
    /// `used`: stretches of any regions, ascending.
    fn forbid_all_but(&mut self, used: &[Range<u64>]) {
        let host = self.host.clone();
        let mut next = host.start;
        for stretch in used.iter().filter(|stretch| host.contains(&stretch.start)) {
            if stretch.start > next {
                let gap = (next - host.start) as usize..(stretch.start - host.start) as usize;
                self.buffer.forbid(gap);
            }
            next = next.max(stretch.end);
        }
    }
}

/// The region of a host address, and the byte's place in it.
fn find(regions: &mut [Region], address: u64) -> Option<(&mut Region, usize)> {
    let index = regions.partition_point(|region| region.host.end <= address);
    let region = regions.get_mut(index)?;
    let first = address.checked_sub(region.host.start)?;
    Some((region, first as usize))
}

impl Adopted {
    /// The address by which kernels know the host's `address`; none outside of all tensors.
    #[must_use]
    pub fn address(&self, address: u64) -> Option<u64> {
        let is_before = |region: &Region| region.host.end <= address;
        let region = self.regions.get(self.regions.partition_point(is_before))?;
        let byte = address.checked_sub(region.host.start)?;
        Some(region.buffer.address() + byte)
    }

    /// Copies what the kernels have written of the outputs to the host. The rest is left as it was.
    ///
    /// # Safety
    /// The elements of every output are in memory that is alive and that nobody uses meanwhile.
    pub unsafe fn write_back(self) {
        for region in &self.regions {
            let bytes = region.buffer.download_raw();
            let here = |stretch: &&Range<u64>| region.host.contains(&stretch.start);
            for address in self.written.iter().filter(here).cloned().flatten() {
                let index = (address - region.host.start) as usize;
                if region.buffer.is_initialized(index) {
                    // SAFETY: the byte is one of an output's, which the caller says is alive.
                    unsafe { ptr::write(address as *mut u8, bytes[index]) };
                }
            }
        }
    }
}
