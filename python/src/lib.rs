//! The native module `qae._qae`: what it does is documented in `qae/_qae.pyi`.
//!
//! A call reads two dicts of torch tensors as addresses, shapes and strides (`arguments`, `tensor`),
//! checks them (`layout`, `batch`, `rows`, `outputs`), lets the interpreter go and runs: on the CPU
//! (`cpu`, `host`, `shards`) or as kernels (`device`). `path` says where. `auto_k` has no tensors.

mod advantages;
mod arguments;
mod auto_k;
mod batch;
mod config;
mod cpu;
mod device;
mod errors;
mod host;
mod layout;
mod log_probs;
mod loss_from_log_probs;
mod loss_from_logits;
mod outputs;
mod path;
mod pool;
mod rows;
mod scale_gradient;
mod shards;
mod tensor;
mod token_counts;
mod words;

use pyo3::prelude::*;

/// See `qae/_qae.pyi`.
#[pymodule]
mod _qae {
    use crate::arguments::Arguments;
    use crate::errors::guarded;
    use crate::host::Host;
    use crate::tensor::Dtype;
    use crate::{advantages as advantage, config, device, log_probs, loss_from_log_probs as loss};
    use crate::{loss_from_logits as logits_loss, scale_gradient as scale};
    use crate::{token_counts as counts, words};
    use pyo3::prelude::*;
    use pyo3::types::{PyBytes, PyDict};

    #[pymodule_export]
    use crate::auto_k::{AutoK, KSchedule};

    #[pymodule_export]
    const LOSS_WORDS: usize = words::LOSS_WORDS;
    #[pymodule_export]
    const LOGITS_WORDS: usize = words::LOGITS_WORDS;
    #[pymodule_export]
    const GROUP_WORDS: usize = words::GROUP_WORDS;

    #[pyfunction]
    fn version() -> &'static str {
        env!("CARGO_PKG_VERSION")
    }

    #[pyfunction]
    fn features() -> Vec<&'static str> {
        let built = [
            ("cuda", cfg!(feature = "cuda")),
            ("emulator", cfg!(feature = "emulator")),
        ];
        let on = built.iter().filter(|(_, is_on)| *is_on);
        on.map(|(name, _)| *name).collect()
    }

    #[pyfunction]
    fn cuda_architectures() -> Option<&'static str> {
        device::cuda_architectures()
    }

    #[pyfunction]
    fn resolve_config(json: &str) -> PyResult<String> {
        guarded(|| config::canonical(json))
    }

    #[pyfunction]
    fn read_loss_metrics<'py>(
        py: Python<'py>,
        words: &[u8],
        from_logits: bool,
        scope: &str,
    ) -> PyResult<Bound<'py, PyDict>> {
        guarded(|| {
            let metrics = words::loss_metrics(words, from_logits, scope)?;
            Ok(words::loss_dict(py, &metrics)?)
        })
    }

    #[pyfunction]
    fn check_loss_metrics(words: &[u8], from_logits: bool, scope: &str) -> PyResult<()> {
        guarded(|| Ok(words::loss_metrics(words, from_logits, scope)?.check()?))
    }

    #[pyfunction]
    fn read_group_metrics<'py>(py: Python<'py>, words: &[u8]) -> PyResult<Bound<'py, PyDict>> {
        guarded(|| Ok(words::group_dict(py, &words::group_metrics(words)?)?))
    }

    type Index<'py> = (
        Bound<'py, PyBytes>,
        Option<Bound<'py, PyBytes>>,
        Bound<'py, PyBytes>,
    );

    #[pyfunction]
    fn group_index<'py>(ids: &Bound<'py, PyAny>) -> PyResult<Index<'py>> {
        let py = ids.py();
        guarded(|| {
            let dict = PyDict::new(py);
            dict.set_item("ids", ids)?;
            let mut arguments = Arguments::new("arguments", &dict);
            let view = arguments.needed("ids", "an int64 tensor")?;
            view.expect_on_cpu()?;
            view.expect(Dtype::I64, &[view.numel()])?;
            // SAFETY: the caller holds the tensor until this returns, and changes it meanwhile no
            // more than under any operation of torch.
            let host = unsafe { Host::new() };
            let groups = qae::Groups::from_ids(host.read(&view))?;
            let bytes = |values: &[i32]| PyBytes::new(py, &words::bytes_of(values));
            Ok((
                bytes(groups.offsets().unwrap_or_default()),
                groups.order().map(bytes),
                bytes(groups.group_of_response().unwrap_or_default()),
            ))
        })
    }

    #[pyfunction]
    #[pyo3(signature = (inputs, config, outputs, stream = 0))]
    fn advantages(
        py: Python<'_>,
        inputs: &Bound<'_, PyDict>,
        config: &str,
        outputs: &Bound<'_, PyDict>,
        stream: usize,
    ) -> PyResult<()> {
        guarded(|| advantage::Call::new(inputs, config, outputs)?.run(py, stream))
    }

    #[pyfunction]
    fn advantages_workspace(
        inputs: &Bound<'_, PyDict>,
        config: &str,
        outputs: &Bound<'_, PyDict>,
    ) -> PyResult<u64> {
        guarded(|| advantage::Call::new(inputs, config, outputs)?.workspace())
    }

    #[pyfunction]
    #[pyo3(signature = (inputs, config, outputs, stream = 0))]
    fn loss_from_log_probs(
        py: Python<'_>,
        inputs: &Bound<'_, PyDict>,
        config: &str,
        outputs: &Bound<'_, PyDict>,
        stream: usize,
    ) -> PyResult<()> {
        guarded(|| loss::Call::new(inputs, config, outputs)?.run(py, stream))
    }

    #[pyfunction]
    fn loss_from_log_probs_workspace(
        inputs: &Bound<'_, PyDict>,
        config: &str,
        outputs: &Bound<'_, PyDict>,
    ) -> PyResult<u64> {
        guarded(|| loss::Call::new(inputs, config, outputs)?.workspace())
    }

    #[pyfunction]
    #[pyo3(signature = (inputs, config, outputs, stream = 0))]
    fn loss_from_logits(
        py: Python<'_>,
        inputs: &Bound<'_, PyDict>,
        config: &str,
        outputs: &Bound<'_, PyDict>,
        stream: usize,
    ) -> PyResult<()> {
        guarded(|| logits_loss::Call::new(inputs, config, outputs)?.run(py, stream))
    }

    #[pyfunction]
    fn loss_from_logits_workspace(
        inputs: &Bound<'_, PyDict>,
        config: &str,
        outputs: &Bound<'_, PyDict>,
    ) -> PyResult<u64> {
        guarded(|| logits_loss::Call::new(inputs, config, outputs)?.workspace())
    }

    #[pyfunction]
    #[pyo3(signature = (inputs, outputs, stream = 0))]
    fn token_counts(
        py: Python<'_>,
        inputs: &Bound<'_, PyDict>,
        outputs: &Bound<'_, PyDict>,
        stream: usize,
    ) -> PyResult<()> {
        guarded(|| counts::Call::new(inputs, outputs)?.run(py, stream))
    }

    #[pyfunction]
    fn token_counts_workspace(
        inputs: &Bound<'_, PyDict>,
        outputs: &Bound<'_, PyDict>,
    ) -> PyResult<u64> {
        guarded(|| counts::Call::new(inputs, outputs)?.workspace())
    }

    #[pyfunction]
    #[pyo3(signature = (inputs, outputs, stream = 0))]
    fn log_probs_from_logits(
        py: Python<'_>,
        inputs: &Bound<'_, PyDict>,
        outputs: &Bound<'_, PyDict>,
        stream: usize,
    ) -> PyResult<()> {
        guarded(|| log_probs::Forward::new(inputs, outputs)?.run(py, stream))
    }

    #[pyfunction]
    #[pyo3(signature = (inputs, outputs, stream = 0))]
    fn log_probs_from_logits_backward(
        py: Python<'_>,
        inputs: &Bound<'_, PyDict>,
        outputs: &Bound<'_, PyDict>,
        stream: usize,
    ) -> PyResult<()> {
        guarded(|| log_probs::Backward::new(inputs, outputs)?.run(py, stream))
    }

    #[pyfunction]
    #[pyo3(signature = (inputs, outputs, stream = 0))]
    fn merge_softmax_stats(
        py: Python<'_>,
        inputs: &Bound<'_, PyDict>,
        outputs: &Bound<'_, PyDict>,
        stream: usize,
    ) -> PyResult<()> {
        guarded(|| log_probs::Merge::new(inputs, outputs)?.run(py, stream))
    }

    #[pyfunction]
    #[pyo3(signature = (inputs, outputs, stream = 0))]
    fn scale_gradient(
        py: Python<'_>,
        inputs: &Bound<'_, PyDict>,
        outputs: &Bound<'_, PyDict>,
        stream: usize,
    ) -> PyResult<()> {
        guarded(|| scale::Call::new(inputs, outputs)?.run(py, stream))
    }

    #[pyfunction]
    fn set_emulation(options: Option<&Bound<'_, PyDict>>) -> PyResult<()> {
        guarded(|| device::set_emulation(options))
    }
}
