//! The operation `token_counts`.

use crate::arguments::{Arguments, Tensors};
use crate::device::{self, Launch, Memory};
use crate::errors::{Failure, Result};
use crate::host::Host;
use crate::layout::Layout;
use crate::outputs::{Output, take_number, take_workspace};
use crate::path::Path;
use crate::tensor::{Dtype, TensorView};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use qae::params::{self, LogitsLayoutBuffers};
use qae::{Error, sys};

/// Its tensors.
pub(crate) struct Call {
    path: Path,
    layout: Layout,
    mask: Option<TensorView>,
    num_tokens: Output,
    num_rows: Output,
    workspace: Option<Output>,
    tensors: Tensors,
}

impl Call {
    pub(crate) fn new(inputs: &Bound<'_, PyDict>, outputs: &Bound<'_, PyDict>) -> Result<Self> {
        let mut inputs = Arguments::new("inputs", inputs);
        let mut layout = Layout::of_counts(&mut inputs)?;
        let mask = layout.take_mask(&mut inputs)?;
        let mut outputs = Arguments::new("outputs", outputs).beside(&inputs);
        let mut needed = |name| -> Result<Output> {
            let output = take_number(&mut outputs, name, &[Dtype::F64])?;
            Ok(output.ok_or_else(|| Error::missing(name, "one float64"))?)
        };
        let [num_tokens, num_rows] = [needed("num_tokens")?, needed("num_rows")?];
        let workspace = take_workspace(&mut outputs)?;
        Ok(Self {
            path: Path::of(num_tokens.0.place)?,
            layout,
            mask,
            num_tokens,
            num_rows,
            workspace,
            tensors: Tensors::of(inputs, outputs, None)?,
        })
    }

    fn params(&self, memory: &dyn Memory) -> Result<sys::qae_token_counts_params> {
        let LogitsLayoutBuffers::Responses(layout) = device::layout(&self.layout, memory) else {
            return Err(Error::missing("layout", "rows").into());
        };
        let mask = self.mask.as_ref().map(|mask| device::buffer(mask, memory));
        let [num_tokens, num_rows] =
            [&self.num_tokens, &self.num_rows].map(|output| device::buffer(&output.0, memory));
        Ok(params::token_counts(&layout, mask, num_tokens, num_rows)?)
    }

    pub(crate) fn workspace(&self) -> Result<u64> {
        self.path.workspace(|memory| self.params(memory))
    }

    pub(crate) fn run(self, py: Python<'_>, stream: usize) -> Result<()> {
        match self.path {
            Path::Cpu => py.detach(|| self.run_on_cpu()),
            Path::Kernels(kernels) => py.detach(|| {
                kernels.launch(Launch {
                    tensors: &self.tensors,
                    params: &|memory| self.params(memory),
                    workspace: self.workspace.as_ref(),
                    stream,
                })
            }),
        }
    }

    fn run_on_cpu(self) -> Result<()> {
        // SAFETY: the caller holds the tensors until this returns, and changes them meanwhile no
        // more than under any operation of torch; `Tensors::of` has seen all of them.
        let host = unsafe { Host::new() };
        let mask = host.read_some::<u8>(&self.mask);
        let count = |start: usize, length: usize| match mask {
            None => length,
            Some(mask) => mask[start..start + length]
                .iter()
                .filter(|&&m| m != 0)
                .count(),
        };
        let counts: Vec<usize> = match &self.layout {
            Layout::Padded {
                num_rows,
                width,
                mask_row_stride,
                lengths,
                ..
            } => {
                let lengths = host.read_some::<i32>(lengths);
                // As the kernels: a row whose length is out of range has no token.
                let length = |row: usize| match lengths {
                    None => *width,
                    Some(lengths) => usize::try_from(lengths[row])
                        .ok()
                        .filter(|length| length <= width)
                        .unwrap_or(0),
                };
                let rows = 0..*num_rows;
                rows.map(|row| count(row * mask_row_stride, length(row)))
                    .collect()
            }
            Layout::Packed { offsets, num_slots } => {
                let pairs = host.read::<i64>(offsets).windows(2);
                let row = |pair: &[i64]| {
                    let (start, end) = (pair[0].try_into().ok()?, pair[1].try_into().ok()?);
                    let is_inside = start <= end && end <= *num_slots;
                    is_inside.then(|| count(start, end - start))
                };
                pairs.map(|pair| row(pair).unwrap_or(0)).collect()
            }
            Layout::Indexed { .. } => return Err(Failure::value("layout", "rows", "slots")),
        };
        let tokens: usize = counts.iter().sum();
        let rows = counts.iter().filter(|&&count| count > 0).count();
        host.set(Some(self.num_tokens), tokens as f64);
        host.set(Some(self.num_rows), rows as f64);
        Ok(())
    }
}
