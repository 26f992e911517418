//! GPUs and their driver: what there is, or why there is none, without a panic.

use super::launch::driver_error;
use crate::error::{Error, Result};
use cudarc::driver::{CudaContext, DriverError, result, sys};
use std::fmt::{Display, Formatter};
use std::sync::Arc;

/// The oldest driver API that the launch API was written against (driver 580).
const OLDEST_DRIVER: DriverVersion = DriverVersion {
    major: 13,
    minor: 0,
};

/// The newest release of CUDA that a driver supports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DriverVersion {
    /// 13 of 13.0.
    pub major: i32,
    /// 0 of 13.0.
    pub minor: i32,
}

impl Display for DriverVersion {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A GPU, as its driver describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its index among the visible devices.
    pub ordinal: usize,
    /// Its name, such as `NVIDIA H200`.
    pub name: String,
    /// Major and minor compute capability.
    pub compute_capability: (i32, i32),
    /// Its memory in bytes.
    pub memory_bytes: usize,
    /// Whether this build holds machine code or PTX for it.
    pub is_supported: bool,
}

unsafe extern "C" {
    /// Of the CUDA runtime, which the kernels are linked with.
    fn cudaDriverGetVersion(version: *mut i32) -> i32;
}

/// The version of the installed driver, in terms of CUDA.
///
/// # Errors
/// - [`Error::NoDevice`] where no driver is installed.
/// - [`Error::Cuda`] where the driver does not answer.
pub fn driver_version() -> Result<DriverVersion> {
    let mut version = 0;
    // SAFETY: writes one int; the runtime looks for libcuda and answers 0 where there is none.
    match unsafe { cudaDriverGetVersion(&mut version) } {
        0 if version == 0 => {
            let reason = "libcuda is not installed (no NVIDIA driver)";
            return Err(Error::NoDevice(reason.to_string()));
        }
        0 => {}
        code => {
            return Err(Error::Cuda {
                call: "cudaDriverGetVersion",
                code,
                name: "of the CUDA runtime".to_string(),
            });
        }
    }
    Ok(DriverVersion {
        major: version / 1000,
        minor: version % 1000 / 10,
    })
}

/// Every visible GPU.
///
/// # Errors
/// - [`Error::NoDevice`] with the reason: no driver, a driver that is too old, no GPU.
/// - [`Error::Cuda`] where the driver fails to describe a GPU.
///
/// ```no_run
/// for device in qae::cuda::devices()? {
///     println!("{}: {}", device.ordinal, device.name);
/// }
/// # Ok::<(), qae::Error>(())
/// ```
pub fn devices() -> Result<Vec<DeviceInfo>> {
    let count = initialize()?;
    (0..count).map(describe).collect()
}

/// Starts the driver; the number of GPUs, at least 1. Every other use of libcuda comes after this:
/// cudarc panics where the library is absent.
fn initialize() -> Result<i32> {
    let version = driver_version()?;
    if version < OLDEST_DRIVER {
        return Err(Error::NoDevice(format!(
            "the driver supports CUDA {version}, but {OLDEST_DRIVER} or newer is needed (driver 580)"
        )));
    }
    let unusable = |error: DriverError| Error::NoDevice(driver_error("cuInit", error).to_string());
    result::init().map_err(unusable)?;
    match result::device::get_count() {
        Ok(count) if count > 0 => Ok(count),
        Ok(_) => Err(Error::NoDevice("the driver sees no GPU".to_string())),
        Err(error) => Err(driver_error("cuDeviceGetCount", error)),
    }
}

fn describe(ordinal: i32) -> Result<DeviceInfo> {
    let failed = |error| driver_error("cuDeviceGet", error);
    let device = result::device::get(ordinal).map_err(failed)?;
    let capability = |attribute| {
        // SAFETY: the device came from `get`.
        unsafe { result::device::get_attribute(device, attribute) }.map_err(failed)
    };
    use sys::CUdevice_attribute_enum as Attribute;
    let compute_capability = (
        capability(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        capability(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
    );
    Ok(DeviceInfo {
        ordinal: ordinal as usize,
        name: result::device::get_name(device).map_err(failed)?,
        compute_capability,
        // SAFETY: the device came from `get`.
        memory_bytes: unsafe { result::device::total_mem(device) }.map_err(failed)?,
        is_supported: is_compiled_for(super::ARCHITECTURES.unwrap_or(""), compute_capability),
    })
}

/// Whether kernels that were compiled for `architectures` run on a GPU: machine code runs on the
/// same major version and a minor version that is no older, with suffix `a` on exactly its own; the
/// last of the list is there as PTX too, which any newer GPU takes.
fn is_compiled_for(architectures: &str, (major, minor): (i32, i32)) -> bool {
    let found = major * 10 + minor;
    let as_number = |digits: &str| digits.parse::<i32>().ok();
    let is_machine_code = |name: &str| match (name.strip_suffix('a'), name.strip_suffix('f')) {
        (Some(digits), _) => as_number(digits) == Some(found),
        (None, family) => as_number(family.unwrap_or(name))
            .is_some_and(|compiled| compiled / 10 == major && compiled <= found),
    };
    let newest = architectures.split_whitespace().last();
    let is_ptx = newest
        .and_then(as_number)
        .is_some_and(|compiled| compiled <= found);
    is_ptx || architectures.split_whitespace().any(is_machine_code)
}

/// A GPU that is in use: its primary context, which the CUDA runtime and PyTorch share.
#[derive(Debug, Clone)]
pub struct Device {
    context: Arc<CudaContext>,
}

impl Device {
    /// The GPU number `ordinal`.
    ///
    /// # Errors
    /// - [`Error::NoDevice`] with the reason: no driver, a driver that is too old, no GPU, or one
    ///   that the kernels were not compiled for.
    /// - [`Error::Invalid`] for an ordinal that no GPU has.
    /// - [`Error::Cuda`] where the driver fails.
    ///
    /// ```no_run
    /// let device = qae::cuda::Device::open(0)?;
    /// println!("{}", device.info()?.name);
    /// # Ok::<(), qae::Error>(())
    /// ```
    pub fn open(ordinal: usize) -> Result<Self> {
        let devices = devices()?;
        let Some(info) = devices.get(ordinal) else {
            let expected = format!("less than the {} visible GPUs", devices.len());
            return Err(Error::invalid("device ordinal", expected, ordinal));
        };
        if !info.is_supported {
            let (major, minor) = info.compute_capability;
            return Err(Error::NoDevice(format!(
                "{} has compute capability {major}.{minor}, and the kernels were compiled for {}",
                info.name,
                super::ARCHITECTURES.unwrap_or("none")
            )));
        }
        let context = CudaContext::new(ordinal);
        Ok(Self {
            context: context.map_err(|error| driver_error("cuDevicePrimaryCtxRetain", error))?,
        })
    }

    /// What the driver says about it.
    ///
    /// # Errors
    /// [`Error::Cuda`] where the driver fails.
    pub fn info(&self) -> Result<DeviceInfo> {
        describe(self.context.ordinal() as i32)
    }

    /// Its context in cudarc, for memory and events.
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }
}

/// A context that a program opened with cudarc itself.
impl From<Arc<CudaContext>> for Device {
    fn from(context: Arc<CudaContext>) -> Self {
        Self { context }
    }
}

#[cfg(test)]
mod tests {
    use super::{DriverVersion, is_compiled_for};

    #[test]
    fn machine_code_runs_within_its_major_version_and_ptx_on_newer_ones() {
        let all = "80 90a 100 120";
        for (capability, expected) in [
            ((7, 5), false),
            ((8, 0), true),
            ((8, 9), true),
            ((9, 0), true),
            ((10, 0), true),
            ((10, 3), true),
            ((11, 0), false),
            ((12, 0), true),
            ((13, 0), true),
        ] {
            assert_eq!(is_compiled_for(all, capability), expected, "{capability:?}");
        }
        assert!(!is_compiled_for("90a", (10, 0)));
        assert!(is_compiled_for("90a 100f", (10, 3)));
        assert!(!is_compiled_for("90a 100f", (12, 0)));
        assert!(!is_compiled_for("", (9, 0)));
    }

    #[test]
    fn versions_are_ordered_and_readable() {
        let version = |major, minor| DriverVersion { major, minor };
        assert!(version(12, 9) < version(13, 0));
        assert_eq!(version(13, 1).to_string(), "13.1");
    }
}
