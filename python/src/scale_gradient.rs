//! The operation `scale_gradient`.

use crate::arguments::{Arguments, Tensors};
use crate::device::{self, Launch, Memory};
use crate::errors::Result;
use crate::host::Host;
use crate::outputs::Output;
use crate::path::Path;
use crate::pool;
use crate::rows::LogitsView;
use crate::tensor::{Dtype, TensorView};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use qae::cpu::{scale_gradient_in_place, scale_gradient_into};
use qae::params::{self, FactorBuffers, TypedBuffer};
use qae::{Factor, GradientRows, sys};

/// Its tensors.
pub(crate) struct Call {
    path: Path,
    gradient: LogitsView,
    factor: TensorView,
    row_gradient: Option<TensorView>,
    scaled: LogitsView,
    is_in_place: bool,
    tensors: Tensors,
}

impl Call {
    pub(crate) fn new(inputs: &Bound<'_, PyDict>, outputs: &Bound<'_, PyDict>) -> Result<Self> {
        let mut inputs = Arguments::new("inputs", inputs);
        let gradient = inputs.needed("gradient", "what the forward pass wrote")?;
        let path = Path::of(gradient.place)?;
        gradient.expect_dtype(path.floats())?;
        let gradient = LogitsView::of_rows(gradient)?.expect_rows_apart()?;
        let factor = inputs.needed("factor", "the gradient from upstream")?;
        factor.expect_number(&[Dtype::F32, Dtype::F64])?;
        let row_gradient = inputs.tensor("row_gradient")?;
        if let Some(row_gradient) = &row_gradient {
            row_gradient.expect_dtype(path.results())?;
            row_gradient.expect_shape(gradient.slots())?;
            row_gradient.expect_contiguous()?;
        }
        let mut outputs = Arguments::new("outputs", outputs).beside(&inputs);
        let scaled = outputs.needed("scaled", "the gradient times the factor")?;
        scaled.expect_shape(&gradient.tensor.shape)?;
        if (gradient.tensor.dtype, scaled.dtype) != (Dtype::F32, Dtype::F16) {
            scaled.expect_dtype_of(&gradient.tensor)?;
        }
        let scaled = LogitsView::of_rows(scaled)?.expect_rows_apart()?;
        let is_in_place = gradient.is_same(&scaled) && gradient.tensor.dtype == scaled.tensor.dtype;
        let in_place = is_in_place.then_some(("scaled", "gradient"));
        Ok(Self {
            path,
            gradient,
            factor,
            row_gradient,
            scaled,
            is_in_place,
            tensors: Tensors::of(inputs, outputs, in_place)?,
        })
    }

    /// Rows in responses, if either tensor does not have them evenly spaced.
    fn rows<V>(&self, view: &LogitsView, values: V) -> GradientRows<V> {
        let width = self.gradient.width().or(self.scaled.width());
        GradientRows {
            values,
            num_rows: view.num_rows(),
            num_columns: view.vocab_size,
            row_stride: view.row_stride,
            width,
            response_stride: view.response_stride.filter(|_| width.is_some()),
        }
    }

    fn params(&self, memory: &dyn Memory) -> Result<sys::qae_scale_gradient_params> {
        let typed = |view: &LogitsView| TypedBuffer {
            buffer: device::buffer(&view.tensor, memory),
            dtype: device::dtype(&view.tensor),
        };
        let factor = FactorBuffers {
            value: device::buffer(&self.factor, memory),
            value_bytes: self.factor.dtype.size(),
            row_gradient: self
                .row_gradient
                .as_ref()
                .map(|view| device::buffer(view, memory)),
        };
        let [gradient, scaled] =
            [&self.gradient, &self.scaled].map(|view| self.rows(view, typed(view)));
        Ok(params::scale_gradient(&gradient, &factor, &scaled)?)
    }

    pub(crate) fn run(self, py: Python<'_>, stream: usize) -> Result<()> {
        match self.path {
            Path::Cpu => pool::run(py, || self.run_on_cpu()),
            Path::Kernels(kernels) => py.detach(|| {
                kernels.launch(Launch {
                    tensors: &self.tensors,
                    params: &|memory| self.params(memory),
                    workspace: None,
                    stream,
                })
            }),
        }
    }

    fn run_on_cpu(self) -> Result<()> {
        // SAFETY: the caller holds the tensors until this returns, and changes them meanwhile no
        // more than under any operation of torch; `Tensors::of` has seen all of them. In place,
        // the one memory is only taken as what is written.
        let host = unsafe { Host::new() };
        let factor = Factor {
            value: host.widened(&self.factor)[0],
            row_gradient: self.row_gradient.as_ref().map(|view| host.tensor(view)),
        };
        let target = host.tensor_mut(Output(self.scaled.tensor.clone()));
        let target = self.rows(&self.scaled, target);
        if self.is_in_place {
            return Ok(scale_gradient_in_place(target, &factor)?);
        }
        let source = self.rows(&self.gradient, host.tensor(&self.gradient.tensor));
        Ok(scale_gradient_into(&source, &factor, target)?)
    }
}
