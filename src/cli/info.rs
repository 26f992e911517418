//! `qae info`: what this build and this machine have.

#[cfg(feature = "cuda")]
use crate::cuda;
#[cfg(feature = "cuda")]
use crate::error::Error;

/// Why nothing runs on a GPU, whatever the machine has.
#[cfg(not(feature = "cuda"))]
pub(super) const NOT_BUILT: &str = "built without the `cuda` feature";

/// What the kernels were compiled for, and with what.
#[cfg(feature = "cuda")]
fn kernels() -> String {
    match (cuda::ARCHITECTURES, cuda::CUDA_VERSION) {
        (Some(architectures), Some(version)) => {
            format!("compiled for {architectures} with CUDA {version}")
        }
        _ => "not compiled".to_string(),
    }
}

#[cfg(not(feature = "cuda"))]
fn kernels() -> String {
    "not compiled".to_string()
}

/// The driver and the devices, or why there are none: one line each.
#[cfg(feature = "cuda")]
fn devices() -> Vec<(&'static str, String)> {
    let driver = match cuda::driver_version() {
        Ok(version) => format!("supports CUDA {version}"),
        Err(error) => format!("none: {}", reason(&error)),
    };
    let mut lines = vec![("driver", driver)];
    match cuda::devices() {
        Ok(devices) => lines.extend(devices.iter().map(|info| ("device", describe(info)))),
        Err(error) => lines.push(("device", format!("none: {}", reason(&error)))),
    }
    lines
}

/// Without the label that the line has already.
#[cfg(feature = "cuda")]
fn reason(error: &Error) -> String {
    match error {
        Error::NoDevice(why) => why.clone(),
        error => error.to_string(),
    }
}

#[cfg(feature = "cuda")]
fn describe(info: &cuda::DeviceInfo) -> String {
    let (major, minor) = info.compute_capability;
    format!(
        "{}: {}, compute capability {major}.{minor}, {:.1} GiB{}",
        info.ordinal,
        info.name,
        info.memory_bytes as f64 / f64::from(1 << 30),
        if info.is_supported {
            ""
        } else {
            "; the kernels were not compiled for it"
        }
    )
}

#[cfg(not(feature = "cuda"))]
fn devices() -> Vec<(&'static str, String)> {
    vec![("device", format!("none: {NOT_BUILT}"))]
}

pub(super) fn info() -> String {
    let mut lines = vec![
        ("qae", env!("CARGO_PKG_VERSION").to_string()),
        ("kernels", kernels()),
    ];
    lines.extend(devices());
    lines.push((
        "GPU record",
        "none yet, for any kernel; from logits, `step --row-policy block` takes the simpler of the \
         two ways to hold a row (cluster, block)"
            .to_string(),
    ));
    let line = |(label, text): (&str, String)| format!("{label:<12}{text}\n");
    lines.into_iter().map(line).collect()
}
