//! What a call needs to know of a torch tensor: where it is, not whose it is.

use crate::errors::{Failure, Result};
use pyo3::exceptions::PyAttributeError;
use pyo3::intern;
use pyo3::prelude::*;
use std::fmt;
use std::ops::Range;

/// The element types that any argument has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dtype {
    F64,
    F32,
    Bf16,
    F16,
    I64,
    I32,
    U8,
    Bool,
}

impl Dtype {
    const ALL: [(Self, &'static str); 8] = [
        (Self::F64, "torch.float64"),
        (Self::F32, "torch.float32"),
        (Self::Bf16, "torch.bfloat16"),
        (Self::F16, "torch.float16"),
        (Self::I64, "torch.int64"),
        (Self::I32, "torch.int32"),
        (Self::U8, "torch.uint8"),
        (Self::Bool, "torch.bool"),
    ];

    /// Bytes of an element.
    pub(crate) fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::Bf16 | Self::F16 => 2,
            Self::U8 | Self::Bool => 1,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        let named = Self::ALL.iter().find(|(dtype, _)| *dtype == self);
        named.map_or("", |(_, name)| name)
    }
}

/// Whose memory an address is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Cpu,
    Cuda(usize),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => write!(f, "cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

/// A tensor with elements in memory of its own or a view of another's.
#[derive(Clone, Debug)]
pub(crate) struct TensorView {
    /// The argument that it is.
    pub(crate) name: &'static str,
    /// Of the first element; unspecified where there is none.
    pub(crate) address: u64,
    pub(crate) dtype: Dtype,
    pub(crate) place: Place,
    pub(crate) shape: Vec<usize>,
    /// Elements from one index to the next in each dimension, where there is more than one.
    pub(crate) strides: Vec<usize>,
}

impl TensorView {
    /// The torch tensor `object`.
    ///
    /// # Errors
    /// `TypeError` for what is no tensor or has another dtype, `ValueError` for a tensor without
    /// memory, of another kind of device, or whose elements are not what its memory holds.
    pub(crate) fn of(name: &'static str, object: &Bound<'_, PyAny>) -> Result<Self> {
        let py = object.py();
        let no_tensor = |error: PyErr| {
            if error.is_instance_of::<PyAttributeError>(py) {
                Failure::of_type(name, "a torch.Tensor", type_name(object))
            } else {
                Failure::Python(error)
            }
        };
        let address = object.call_method0(intern!(py, "data_ptr"));
        let address: u64 = address.map_err(no_tensor)?.extract()?;
        let strides = object.call_method0(intern!(py, "stride"))?;
        let view = Self {
            name,
            address,
            dtype: dtype_of(name, object)?,
            place: place_of(name, object)?,
            shape: object.getattr(intern!(py, "shape"))?.extract()?,
            strides: strides.extract()?,
        };
        if view.numel() > 0 {
            let is_lazy = object.call_method0(intern!(py, "is_neg"))?;
            view.check_memory(is_lazy.is_truthy()?)?;
        }
        Ok(view)
    }

    fn check_memory(&self, is_negated: bool) -> Result<()> {
        let found = if self.address == 0 {
            "one without (a fake or a wrapped tensor)"
        } else if is_negated {
            "a lazily negated view (call resolve_neg() on it)"
        } else if !self.address.is_multiple_of(self.dtype.size() as u64) {
            "memory that is not aligned to its elements"
        } else {
            return Ok(());
        };
        Err(Failure::value(
            self.name,
            "a tensor that memory holds",
            found,
        ))
    }

    /// Number of elements.
    pub(crate) fn numel(&self) -> usize {
        self.shape.iter().product()
    }

    /// Elements from the first to behind the last in memory.
    pub(crate) fn span(&self) -> usize {
        if self.numel() == 0 {
            return 0;
        }
        let steps = self.shape.iter().zip(&self.strides);
        1 + steps.map(|(len, stride)| (len - 1) * stride).sum::<usize>()
    }

    /// Addresses of its bytes, gaps included.
    fn bytes(&self) -> Range<u64> {
        let bytes = self.span() as u64 * self.dtype.size() as u64;
        self.address..self.address.saturating_add(bytes)
    }

    /// Whether the stretches of memory from first to last element share a byte.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        let (bytes, others) = (self.bytes(), other.bytes());
        bytes.start.max(others.start) < bytes.end.min(others.end)
    }

    /// Elements from one index of dimension `dim` to the next; `packed` where there are fewer than
    /// two, or no elements, whose stride torch leaves open.
    pub(crate) fn stride(&self, dim: usize, packed: usize) -> usize {
        if self.shape[dim] > 1 && self.numel() > 0 {
            self.strides[dim]
        } else {
            packed
        }
    }

    /// Whether it is in host memory.
    pub(crate) fn expect_on_cpu(&self) -> Result<()> {
        if self.place == Place::Cpu {
            return Ok(());
        }
        Err(Failure::value(self.name, "a tensor on cpu", self.place))
    }

    /// Whether it has one of these dtypes.
    pub(crate) fn expect_dtype(&self, accepted: &[Dtype]) -> Result<()> {
        if accepted.contains(&self.dtype) {
            return Ok(());
        }
        let names: Vec<_> = accepted.iter().map(|dtype| dtype.name()).collect();
        Err(Failure::of_type(
            self.name,
            format!("dtype {}", names.join(" or ")),
            self.dtype.name(),
        ))
    }

    /// Whether it has the dtype of `other`.
    pub(crate) fn expect_dtype_of(&self, other: &Self) -> Result<()> {
        if self.dtype == other.dtype {
            return Ok(());
        }
        Err(Failure::of_type(
            self.name,
            format!("dtype {} as {}", other.dtype.name(), other.name),
            self.dtype.name(),
        ))
    }

    /// Whether it has this shape.
    pub(crate) fn expect_shape(&self, shape: &[usize]) -> Result<()> {
        if self.shape == shape {
            return Ok(());
        }
        Err(Failure::value(
            self.name,
            format!("shape {shape:?}"),
            format!("{:?}", self.shape),
        ))
    }

    /// Whether elements stand back to back in the order of the indices.
    pub(crate) fn expect_contiguous(&self) -> Result<()> {
        let mut packed = 1;
        for dim in (0..self.shape.len()).rev() {
            if self.stride(dim, packed) != packed {
                return Err(Failure::value(
                    self.name,
                    "a contiguous tensor",
                    format!("strides {:?}", self.strides),
                ));
            }
            packed *= self.shape[dim];
        }
        Ok(())
    }

    /// Whether elements of the last dimension stand back to back.
    pub(crate) fn expect_dense_rows(&self) -> Result<()> {
        let dims = self.shape.len();
        if dims > 0 && self.stride(dims - 1, 1) != 1 {
            return Err(Failure::value(
                self.name,
                "stride 1 in the last dimension",
                self.strides[dims - 1],
            ));
        }
        Ok(())
    }

    /// A contiguous tensor of this dtype and shape.
    pub(crate) fn expect(&self, dtype: Dtype, shape: &[usize]) -> Result<()> {
        self.expect_dtype(&[dtype])?;
        self.expect_shape(shape)?;
        self.expect_contiguous()
    }

    /// A single number of this dtype, of shape `[]` or `[1]`.
    pub(crate) fn expect_number(&self, dtypes: &[Dtype]) -> Result<()> {
        self.expect_dtype(dtypes)?;
        if self.numel() == 1 {
            return Ok(());
        }
        Err(Failure::value(
            self.name,
            "one element",
            format!("shape {:?}", self.shape),
        ))
    }
}

fn type_name(object: &Bound<'_, PyAny>) -> String {
    let name = object.get_type().name();
    name.map_or_else(|_| "another type".to_owned(), |name| name.to_string())
}

fn dtype_of(name: &'static str, object: &Bound<'_, PyAny>) -> Result<Dtype> {
    let dtype = object.getattr(intern!(object.py(), "dtype"))?.str()?;
    let found = dtype.to_cow()?;
    let known = Dtype::ALL.iter().find(|(_, known)| *known == found);
    known.map(|&(dtype, _)| dtype).ok_or_else(|| {
        let known = Dtype::ALL.map(|(_, name)| name).join(", ");
        Failure::of_type(name, format!("a dtype among {known}"), found)
    })
}

fn place_of(name: &'static str, object: &Bound<'_, PyAny>) -> Result<Place> {
    let py = object.py();
    let device = object.getattr(intern!(py, "device"))?;
    let kind = device.getattr(intern!(py, "type"))?;
    let kind: String = kind.extract()?;
    match kind.as_str() {
        "cpu" => Ok(Place::Cpu),
        "cuda" => {
            let index: Option<usize> = device.getattr(intern!(py, "index"))?.extract()?;
            Ok(Place::Cuda(index.unwrap_or(0)))
        }
        _ => Err(Failure::value(name, "a tensor on cpu or cuda", kind)),
    }
}
