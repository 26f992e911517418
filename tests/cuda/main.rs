//! The launch API on the GPU at hand. Where there is none, every test that needs one says on stderr
//! that it was skipped, past the test harness's capture: its silence is no pass.

mod golden;
mod log_probs;
mod logits;
mod tokens;

use qae::cuda::{self, CudaBackend, Device};
use qae::{Error, selftest};
use std::cell::RefCell;
use std::io::Write;

/// The first GPU; `None`, said aloud, where there is none.
fn device(test: &str) -> Option<Device> {
    match Device::open(0) {
        Ok(device) => Some(device),
        Err(Error::NoDevice(why)) => {
            let line = format!("no GPU: {test} not run, skipped ({why})\n");
            std::io::stderr().write_all(line.as_bytes()).unwrap();
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn probing_gives_devices_or_the_reason_why_there_are_none() {
    match (cuda::devices(), CudaBackend::open(0)) {
        (Ok(devices), _) => assert!(!devices.is_empty()),
        (Err(Error::NoDevice(probe)), Err(Error::NoDevice(open))) => {
            assert!(!probe.is_empty() && probe == open, "{probe}; {open}");
        }
        (probe, open) => panic!("{probe:?}; {open:?}"),
    }
}

#[test]
fn an_ordinal_without_a_gpu_is_refused() {
    if device("an_ordinal_without_a_gpu_is_refused").is_none() {
        return;
    }
    let error = Device::open(4096).unwrap_err().to_string();
    assert!(
        error.starts_with("device ordinal: expected less than"),
        "{error}"
    );
}

#[test]
fn the_cases_of_the_selftest_agree_with_the_reference() {
    if device("the_cases_of_the_selftest_agree_with_the_reference").is_none() {
        return;
    }
    let backend = RefCell::new(CudaBackend::open(0).unwrap());
    let report = selftest::run(&backend).unwrap();
    assert_eq!(report.num_mismatches(), 0, "\n{report}");
}
