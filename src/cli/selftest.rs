//! `qae selftest`: the kernels on the GPU at hand against the reference.

use crate::error::{Error, Result};
use crate::selftest::{Report, Subject, run};

/// The table of all cases, and whether they all agree.
///
/// # Errors
/// [`Error::NoDevice`] where there is no GPU to test.
pub(super) fn selftest() -> Result<Report> {
    run(open()?.as_ref())
}

#[cfg(feature = "cuda")]
fn open() -> Result<Box<dyn Subject>> {
    match crate::cuda::CudaBackend::open(0) {
        Ok(backend) => Ok(Box::new(std::cell::RefCell::new(backend))),
        Err(Error::NoDevice(why)) => Err(not_run(&why)),
        Err(error) => Err(error),
    }
}

#[cfg(not(feature = "cuda"))]
fn open() -> Result<Box<dyn Subject>> {
    Err(not_run(super::info::NOT_BUILT))
}

/// Whoever runs the self-test must not take its absence for a pass.
fn not_run(why: &str) -> Error {
    Error::NoDevice(format!("the self-test did not run: {why}"))
}
