//! The automatic K and its schedules as classes over the library's types.

use crate::errors::{Result, guarded};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use qae::{AutoKConfig, EntropyTarget, KBound};
use serde::de::DeserializeOwned;

/// The fields of `qae.AutoKStep`, in its order.
type Step = (u64, f64, f64, f64, f64, f64, Option<&'static str>, String);

/// See `qae/_qae.pyi`.
#[pyclass(module = "qae._qae")]
pub(crate) struct AutoK(qae::AutoK);

#[pymethods]
impl AutoK {
    #[new]
    fn new(
        initial_k: f64,
        gain: f64,
        min_k: f64,
        max_k: f64,
        target_share: f64,
        target_entropy: Option<f64>,
    ) -> PyResult<Self> {
        guarded(|| {
            let share = EntropyTarget::InitialShare(target_share);
            let config = AutoKConfig {
                initial_k,
                gain,
                min_k,
                max_k,
                target: target_entropy.map_or(share, EntropyTarget::Nats),
            };
            Ok(Self(qae::AutoK::new(config)?))
        })
    }

    #[staticmethod]
    fn from_json(json: &str) -> PyResult<Self> {
        guarded(|| Ok(Self(read("state", json)?)))
    }

    fn to_json(&self) -> PyResult<String> {
        written(&self.0)
    }

    fn step(&mut self, entropy: f64) -> PyResult<Step> {
        guarded(|| {
            let step = self.0.step(entropy)?;
            let held_at = step.held_at.map(|bound| match bound {
                KBound::Min => "min",
                KBound::Max => "max",
            });
            Ok((
                step.step,
                step.previous_k,
                step.entropy,
                step.target_entropy,
                step.gain,
                step.k,
                held_at,
                step.to_string(),
            ))
        })
    }

    #[getter]
    fn k(&self) -> f64 {
        self.0.k()
    }

    #[getter]
    fn target_entropy(&self) -> Option<f64> {
        self.0.target_entropy()
    }

    #[getter]
    fn steps(&self) -> u64 {
        self.0.steps()
    }
}

/// See `qae/_qae.pyi`.
#[pyclass(module = "qae._qae", frozen)]
pub(crate) struct KSchedule(qae::KSchedule);

#[pymethods]
impl KSchedule {
    #[staticmethod]
    fn from_json(json: &str) -> PyResult<Self> {
        guarded(|| {
            let schedule: qae::KSchedule = read("schedule", json)?;
            schedule.check()?;
            Ok(Self(schedule))
        })
    }

    fn to_json(&self) -> PyResult<String> {
        written(&self.0)
    }

    fn k(&self, step: u64) -> f64 {
        self.0.k(step)
    }
}

/// Reads a value that anyone may have written; what is wrong with it is named after `what`.
fn read<T: DeserializeOwned>(what: &str, json: &str) -> Result<T> {
    // By way of a Value: its errors name no place in a text that the caller has not seen.
    let value = serde_json::from_str(json).and_then(serde_json::from_value::<T>);
    Ok(value.map_err(|error| PyValueError::new_err(format!("{what}: {error}")))?)
}

fn written(value: &impl serde::Serialize) -> PyResult<String> {
    serde_json::to_string(value).map_err(|error| PyValueError::new_err(error.to_string()))
}
