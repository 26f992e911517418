//! The groups of the global batch, uploaded once.

use super::launch::{Accesses, driver_error};
use super::memory::DeviceSlice;
use super::stream::Stream;
use crate::error::Result;
use crate::groups::Groups;
use crate::params::GroupBuffers;
use cudarc::driver::CudaSlice;

/// [`Groups`] whose index tensors are in device memory, where they have any.
#[derive(Debug)]
pub struct DeviceGroups {
    groups: Groups,
    offsets: Option<CudaSlice<i32>>,
    order: Option<CudaSlice<i32>>,
    group_of_response: Option<CudaSlice<i32>>,
}

/// Views of a [`DeviceGroups`], to be borrowed by a launch.
#[derive(Debug)]
pub(super) struct GroupViews<'a> {
    groups: &'a Groups,
    offsets: Option<DeviceSlice<'a, i32>>,
    order: Option<DeviceSlice<'a, i32>>,
    group_of_response: Option<DeviceSlice<'a, i32>>,
}

impl DeviceGroups {
    /// Copies the index tensors to the stream's device; uniform groups have none.
    ///
    /// # Errors
    /// [`crate::Error::Cuda`] where the device has no room.
    ///
    /// ```no_run
    /// use qae::{Groups, cuda::{Device, DeviceGroups, Stream}};
    ///
    /// let stream = Stream::new(&Device::open(0)?)?;
    /// let groups = DeviceGroups::upload(&stream, Groups::from_ids(&[7, 7, 3, 7])?)?;
    /// # Ok::<(), qae::Error>(())
    /// ```
    pub fn upload(stream: &Stream, groups: Groups) -> Result<Self> {
        let upload = |values: Option<&[i32]>| {
            let values = values.filter(|values| !values.is_empty());
            let memory = values.map(|values| stream.cudarc().clone_htod(values));
            let memory = memory.transpose();
            memory.map_err(|error| driver_error("cuMemcpyHtoDAsync", error))
        };
        Ok(Self {
            offsets: upload(groups.offsets())?,
            order: upload(groups.order())?,
            group_of_response: upload(groups.group_of_response())?,
            groups,
        })
    }

    /// What was uploaded.
    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    pub(super) fn views(&self) -> GroupViews<'_> {
        GroupViews {
            groups: &self.groups,
            offsets: self.offsets.as_ref().map(Into::into),
            order: self.order.as_ref().map(Into::into),
            group_of_response: self.group_of_response.as_ref().map(Into::into),
        }
    }
}

impl GroupViews<'_> {
    pub(super) fn read<'s>(&'s self, accesses: &mut Accesses<'s>) -> Result<GroupBuffers> {
        Ok(GroupBuffers {
            offsets: accesses.read_some("groups", self.offsets.as_ref())?,
            order: accesses.read_some("groups", self.order.as_ref())?,
            group_of_response: accesses.read_some("groups", self.group_of_response.as_ref())?,
            ..GroupBuffers::counts(self.groups)
        })
    }
}
