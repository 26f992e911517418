//! Tensors of a call as slices of host memory.

use crate::outputs::{Output, TokenOutput};
use crate::rows::LogitsView;
use crate::tensor::{Dtype, Place, TensorView};
use half::{bf16, f16};
use qae::{RowsMut, Tensor, TensorMut};
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
    F64(Vec<f64>),
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
}

impl Copied {
    pub(crate) fn tensor(&self) -> Tensor<'_> {
        match self {
            Self::F64(values) => Tensor::F64(values),
            Self::F32(values) => Tensor::F32(values),
            Self::Bf16(values) => Tensor::Bf16(values),
            Self::F16(values) => Tensor::F16(values),
        }
    }
}

/// A dtype of gradients.
trait Float: Element + Send {
    /// By way of f32, as the kernels round.
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
        Self::from_f32(value as f32)
    }
}

impl Float for f16 {
    fn nearest(value: f64) -> Self {
        Self::from_f32(value as f32)
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
        for_floats!(view.dtype, Real => { self.read::<Real>(view).into() })
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
            Tensor::F64(values) => Copied::F64(values.to_vec()),
            Tensor::F32(values) => Copied::F32(values.to_vec()),
            Tensor::Bf16(values) => Copied::Bf16(values.to_vec()),
            Tensor::F16(values) => Copied::F16(values.to_vec()),
        }
    }

    /// Log-probs, entropies or a gradient, to be written.
    pub(crate) fn tensor_mut(&self, output: Output) -> TensorMut<'a> {
        for_floats!(output.0.dtype, Real => { self.write::<Real>(output).into() })
    }

    /// A token tensor to be written.
    pub(crate) fn rows_mut(&self, output: Option<TokenOutput>) -> Option<RowsMut<'a>> {
        output.map(|output| RowsMut {
            values: self.tensor_mut(output.tensor),
            row_stride: output.row_stride,
        })
    }

    /// A gradient in parts of `width` rows each.
    pub(crate) fn responses_mut(&self, d_logits: LogitsView, width: usize) -> Vec<TensorMut<'a>> {
        if width == 0 || d_logits.tensor.numel() == 0 {
            return vec![];
        }
        let firsts = (0..d_logits.num_rows()).step_by(width);
        let starts: Vec<usize> = firsts.map(|row| d_logits.start(row)).collect();
        let len = (width - 1) * d_logits.row_stride + d_logits.vocab_size;
        for_floats!(d_logits.tensor.dtype, Real => {
            let target = self.write::<Real>(Output(d_logits.tensor));
            rows_of(target, &starts, len).into_iter().map(TensorMut::from).collect()
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
