//! What can run the operation here, and the choice among them.

use super::args::BackendChoice;
use crate::backend::Backend;
use crate::cpu::CpuBackend;
use crate::error::{Error, Result};
use crate::io::Precision;
use crate::params::RowPolicy;
use clap::ValueEnum;

/// A backend that may or may not be usable on this machine.
#[derive(Debug, Clone, Copy)]
pub struct Candidate {
    /// Its name in `--backend` and in reasons.
    pub name: &'static str,
    /// In what it computes. F32 results are compared with the f64 reference.
    pub precision: Precision,
    /// Starts it, or says why it cannot be used.
    pub open: fn(RowPolicy) -> Result<Box<dyn Backend>>,
}

/// The backends of the command line, in the order in which `auto` tries them.
pub fn candidates() -> [Candidate; 2] {
    [
        Candidate {
            name: "cuda",
            precision: Precision::F32,
            open: open_cuda,
        },
        Candidate {
            name: "cpu",
            precision: Precision::F64,
            open: |_| Ok(Box::new(CpuBackend)),
        },
    ]
}

/// The CUDA kernels on the first GPU.
#[cfg(feature = "cuda")]
fn open_cuda(row_policy: RowPolicy) -> Result<Box<dyn Backend>> {
    let mut backend = crate::cuda::CudaBackend::open(0)?;
    backend.logits.row_policy = row_policy;
    Ok(Box::new(backend))
}

/// No kernels were built.
#[cfg(not(feature = "cuda"))]
fn open_cuda(_: RowPolicy) -> Result<Box<dyn Backend>> {
    Err(Error::NoDevice(super::info::NOT_BUILT.to_string()))
}

/// The backend that runs.
pub(super) struct Chosen {
    pub(super) backend: Box<dyn Backend>,
    pub(super) precision: Precision,
    /// Why this one.
    pub(super) reason: String,
}

pub(super) fn choose(
    choice: BackendChoice,
    row_policy: RowPolicy,
    candidates: &[Candidate],
) -> Result<Chosen> {
    let wanted = choice.to_possible_value();
    let wanted = wanted.as_ref().map_or("auto", |value| value.get_name());
    if wanted != "auto" {
        let candidate = candidates.iter().find(|candidate| candidate.name == wanted);
        let candidate = candidate.ok_or_else(|| {
            let names: Vec<_> = candidates.iter().map(|candidate| candidate.name).collect();
            Error::invalid("--backend", format!("auto or {}", names.join(", ")), wanted)
        })?;
        return Ok(Chosen {
            backend: (candidate.open)(row_policy)?,
            precision: candidate.precision,
            reason: "asked for".to_string(),
        });
    }
    let mut refusals = vec![];
    for candidate in candidates {
        match (candidate.open)(row_policy) {
            Ok(backend) => {
                return Ok(Chosen {
                    backend,
                    precision: candidate.precision,
                    reason: if refusals.is_empty() {
                        "the first choice".to_string()
                    } else {
                        refusals.join("; ")
                    },
                });
            }
            Err(Error::NoDevice(why)) => refusals.push(format!("no {}: {why}", candidate.name)),
            Err(error) => refusals.push(format!("no {}: {error}", candidate.name)),
        }
    }
    Err(Error::NoDevice(refusals.join("; ")))
}
