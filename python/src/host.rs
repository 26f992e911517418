//! Tensors of a call as slices of host memory.

use crate::outputs::{Output, TokenOutput};
use crate::rows::LogitsView;
use crate::tensor::{Dtype, Place, TensorView};
use half::{bf16, f16};
use qae::Tensor;
use rayon::prelude::*;
use std::marker::PhantomData;
use std::slice;

/// A type whose every bit pattern is a value.
///
/// # Safety
/// It must be one, of the size of the dtypes' elements.
pub(crate) unsafe trait Element: Copy {
    const DTYPES: &[Dtype];
}

macro_rules! elements {
    ($($element:ty => $($dtype:ident)|+),+) => {$(
        // SAFETY: a number without padding, as large as an element of the dtype; booleans are
        // read as the bytes that they are.
        unsafe impl Element for $element {
            const DTYPES: &[Dtype] = &[$(Dtype::$dtype),+];
        }
    )+};
}

elements!(f64 => F64, f32 => F32, bf16 => Bf16, f16 => F16, i64 => I64, i32 => I32, u8 => U8 | Bool);

/// Tensors that nobody writes meanwhile.
pub(crate) enum Copied {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
}

impl Copied {
    pub(crate) fn tensor(&self) -> Tensor<'_> {
        match self {
            Self::F32(values) => Tensor::F32(values),
            Self::Bf16(values) => Tensor::Bf16(values),
            Self::F16(values) => Tensor::F16(values),
        }
    }
}

/// A dtype of gradients.
trait Float: Element + Send {
    /// The nearest, rounded once.
    fn nearest(value: f64) -> Self;
}

impl Float for f64 {
    fn nearest(value: f64) -> Self {
        value
    }
}

impl Float for f32 {
    fn nearest(value: f64) -> Self {
        value as f32
    }
}

impl Float for bf16 {
    fn nearest(value: f64) -> Self {
        Self::from_f64(value)
    }
}

impl Float for f16 {
    fn nearest(value: f64) -> Self {
        Self::from_f64(value)
    }
}

/// `$body` with the type of the dtype's elements as `$element`.
macro_rules! for_floats {
    ($dtype:expr, $element:ident => $body:block) => {
        match $dtype {
            Dtype::F64 => {
                type $element = f64;
                $body
            }
            Dtype::Bf16 => {
                type $element = bf16;
                $body
            }
            Dtype::F16 => {
                type $element = f16;
                $body
            }
            _ => {
                type $element = f32;
                $body
            }
        }
    };
}

/// Slices of `len` elements from `starts` on, which ascend and lie at least `len` apart.
fn rows_of<'t, T>(mut tensor: &'t mut [T], starts: &[usize], len: usize) -> Vec<&'t mut [T]> {
    let mut next = 0;
    let mut rows = Vec::with_capacity(starts.len());
    for &start in starts {
        let (_, rest) = tensor.split_at_mut(start - next);
        let (row, rest) = rest.split_at_mut(len);
        rows.push(row);
        next = start + len;
        tensor = rest;
    }
    rows
}

/// The memory of the tensors of one call, for its duration.
pub(crate) struct Host<'a>(PhantomData<&'a mut ()>);

impl<'a> Host<'a> {
    /// # Safety
    /// For all of `'a`: the memory of every view that is given to [`Self::read`] and
    /// [`Self::write`] is alive, nobody else writes what is read, and nobody else reads or writes
    /// what is written. An [`Output`] shares no memory with another view of the call.
    pub(crate) unsafe fn new() -> Self {
        Self(PhantomData)
    }

    /// From the first element to the last, gaps included.
    pub(crate) fn read<T: Element>(&self, view: &TensorView) -> &'a [T] {
        check::<T>(view);
        match view.span() {
            0 => &[],
            // SAFETY: torch's shape and strides stay inside of its memory, which is aligned to the
            // elements (`TensorView::of`), alive and unchanged (`Self::new`); any bits are a `T`.
            span => unsafe { slice::from_raw_parts(view.address as *const T, span) },
        }
    }

    /// The same, for writing.
    pub(crate) fn write<T: Element>(&self, output: Output) -> &'a mut [T] {
        let view = output.0;
        check::<T>(&view);
        match view.span() {
            0 => &mut [],
            // SAFETY: as above; an output is taken once, and nobody else uses its memory.
            span => unsafe { slice::from_raw_parts_mut(view.address as *mut T, span) },
        }
    }

    /// Log-probs, logits or their gradients.
    pub(crate) fn tensor(&self, view: &TensorView) -> Tensor<'a> {
        match view.dtype {
            Dtype::Bf16 => Tensor::Bf16(self.read(view)),
            Dtype::F16 => Tensor::F16(self.read(view)),
            _ => Tensor::F32(self.read(view)),
        }
    }

    /// [`Self::read`] of a tensor that may be absent.
    pub(crate) fn read_some<T: Element>(&self, view: &Option<TensorView>) -> Option<&'a [T]> {
        view.as_ref().map(|view| self.read(view))
    }

    /// All elements, widened.
    pub(crate) fn widened(&self, view: &TensorView) -> Vec<f64> {
        match view.dtype {
            Dtype::F64 => self.read::<f64>(view).to_vec(),
            _ => self.read::<f32>(view).iter().map(|&x| x.into()).collect(),
        }
    }

    /// The elements of a tensor of log-probs or logits.
    pub(crate) fn copy(&self, view: &TensorView) -> Copied {
        match self.tensor(view) {
            Tensor::F32(values) => Copied::F32(values.to_vec()),
            Tensor::Bf16(values) => Copied::Bf16(values.to_vec()),
            Tensor::F16(values) => Copied::F16(values.to_vec()),
        }
    }

    /// Writes a token tensor from values whose rows are `rows`.
    pub(crate) fn write_rows(
        &self,
        output: TokenOutput,
        rows: impl Iterator<Item = qae::batch::Row>,
        values: &[f64],
    ) {
        let row_stride = output.row_stride;
        let target = |row: usize, start: usize| row_stride.map_or(start, |stride| row * stride);
        for_floats!(output.tensor.0.dtype, Real => {
            let slots = self.write::<Real>(output.tensor);
            for (row, source) in rows.enumerate() {
                let start = target(row, source.start);
                for slot in 0..source.num_slots {
                    slots[start + slot] = Real::nearest(values[source.start + slot]);
                }
            }
        })
    }

    /// Writes rows of a gradient from as many dense rows as there are.
    pub(crate) fn write_logits(&self, d_logits: LogitsView, values: &[f64]) {
        let vocab_size = d_logits.vocab_size;
        let rows = (values.len() / vocab_size.max(1)).min(d_logits.num_rows());
        let starts: Vec<usize> = (0..rows).map(|row| d_logits.start(row)).collect();
        for_floats!(d_logits.tensor.dtype, Real => {
            let target = self.write::<Real>(Output(d_logits.tensor));
            for (row, start) in starts.into_iter().enumerate() {
                let source = &values[row * vocab_size..][..vocab_size];
                for (slot, &value) in target[start..].iter_mut().zip(source) {
                    *slot = Real::nearest(value);
                }
            }
        })
    }

    /// Has `write` fill each row of a gradient, in f64, on all threads.
    pub(crate) fn write_each_row(
        &self,
        d_logits: LogitsView,
        write: impl Fn(usize, &mut [f64]) + Sync,
    ) {
        let vocab_size = d_logits.vocab_size;
        let starts: Vec<usize> = (0..d_logits.num_rows())
            .map(|row| d_logits.start(row))
            .collect();
        for_floats!(d_logits.tensor.dtype, Real => {
            let target = self.write::<Real>(Output(d_logits.tensor));
            let rows = rows_of(target, &starts, vocab_size);
            rows.into_par_iter().enumerate().for_each_init(
                || vec![0.0; vocab_size],
                |gradient, (row, target)| {
                    write(row, gradient);
                    for (slot, &value) in target.iter_mut().zip(&*gradient) {
                        *slot = Real::nearest(value);
                    }
                },
            );
        })
    }

    /// Writes f32 or f64.
    pub(crate) fn round(&self, output: Option<Output>, values: impl Iterator<Item = f64>) {
        let Some(output) = output else { return };
        match output.0.dtype {
            Dtype::F64 => {
                let slots = self.write::<f64>(output);
                slots
                    .iter_mut()
                    .zip(values)
                    .for_each(|(slot, value)| *slot = value);
            }
            _ => {
                let slots = self.write::<f32>(output);
                slots
                    .iter_mut()
                    .zip(values)
                    .for_each(|(slot, value)| *slot = value as f32);
            }
        }
    }

    /// Writes the only element.
    pub(crate) fn set<T: Element>(&self, output: Option<Output>, value: T) {
        if let Some(output) = output {
            self.write(output)[0] = value;
        }
    }

    /// Writes the leading elements.
    pub(crate) fn fill<T: Element>(
        &self,
        output: Option<Output>,
        values: impl ExactSizeIterator<Item = T>,
    ) {
        if let Some(output) = output {
            for (slot, value) in self.write(output).iter_mut().zip(values) {
                *slot = value;
            }
        }
    }
}

fn check<T: Element>(view: &TensorView) {
    assert!(view.place == Place::Cpu, "{}: not host memory", view.name);
    assert!(T::DTYPES.contains(&view.dtype), "{}: its dtype", view.name);
}
