//! A safetensors file in memory, whose every failure names the file and the tensor.

use crate::batch::Tensor;
use crate::error::{Error, Result};
use half::{bf16, f16};
use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use std::fmt::Display;
use std::path::Path;

/// The bytes of a header's length, before the header.
const LENGTH_BYTES: usize = 8;

/// A safetensors file, read whole.
#[derive(Debug)]
pub struct TensorFile {
    path: String,
    bytes: Vec<u8>,
    data_start: usize,
    header: Metadata,
}

/// A tensor of log-probs that owns its elements.
#[derive(Debug, Clone)]
pub(super) enum OwnedTensor {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
}

impl OwnedTensor {
    pub(super) fn view(&self) -> Tensor<'_> {
        match self {
            Self::F32(values) => Tensor::F32(values),
            Self::Bf16(values) => Tensor::Bf16(values),
            Self::F16(values) => Tensor::F16(values),
        }
    }
}

impl TensorFile {
    /// Reads `path`.
    ///
    /// # Errors
    /// [`Error::File`] when it cannot be read, is truncated or is not a safetensors file.
    pub fn read(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let bytes = std::fs::read(path).map_err(|error| {
            let message = format!("expected a file that can be read, found {error}");
            Error::file(&name, message)
        })?;
        match SafeTensors::read_metadata(&bytes) {
            Ok((header_bytes, header)) => Ok(Self {
                path: name,
                data_start: LENGTH_BYTES + header_bytes,
                bytes,
                header,
            }),
            Err(error) => Err(Error::file(name, not_safetensors(&bytes, error))),
        }
    }

    /// The path as given.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The entry `key` of the file's metadata.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        let metadata = self.header.metadata().as_ref()?;
        metadata.get(key).map(String::as_str)
    }

    /// Names of the tensors, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names = self.header.offset_keys();
        names.sort();
        names
    }

    /// Whether there is a tensor `name`.
    pub fn has(&self, name: &str) -> bool {
        self.header.info(name).is_some()
    }

    /// The elements of the F64 or F32 tensor `name`, of any shape.
    ///
    /// # Errors
    /// [`Error::File`] when it is absent or of another dtype.
    pub fn f64s(&self, name: &str) -> Result<Vec<f64>> {
        let expected = "F64 or F32";
        let (info, data) = self.tensor(name, expected)?;
        match info.dtype {
            Dtype::F64 => Ok(elements(data, f64::from_le_bytes)),
            Dtype::F32 => Ok(elements(data, |bytes| f64::from(f32::from_le_bytes(bytes)))),
            _ => Err(self.mismatch(name, expected, info)),
        }
    }

    /// The elements of the I32 or I64 tensor `name`, of any shape.
    ///
    /// # Errors
    /// [`Error::File`] when it is absent or of another dtype.
    pub fn i64s(&self, name: &str) -> Result<Vec<i64>> {
        self.integers(name, self.shape(name, "I32 or I64")?)
    }

    pub(super) fn error(&self, message: impl Display) -> Error {
        Error::file(&self.path, message)
    }

    /// The shape of `name`; `expected` describes the tensor should it be absent.
    pub(super) fn shape(&self, name: &str, expected: &str) -> Result<&[usize]> {
        Ok(&self.tensor(name, expected)?.0.shape)
    }

    pub(super) fn log_probs(&self, name: &str, shape: &[usize]) -> Result<OwnedTensor> {
        let expected = format!("F32, BF16 or F16 {shape:?}");
        let (info, data) = self.shaped(name, &expected, shape)?;
        match info.dtype {
            Dtype::F32 => Ok(OwnedTensor::F32(elements(data, f32::from_le_bytes))),
            Dtype::BF16 => Ok(OwnedTensor::Bf16(elements(data, bf16::from_le_bytes))),
            Dtype::F16 => Ok(OwnedTensor::F16(elements(data, f16::from_le_bytes))),
            _ => Err(self.mismatch(name, &expected, info)),
        }
    }

    pub(super) fn f32s(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let expected = format!("F32 {shape:?}");
        let (info, data) = self.shaped(name, &expected, shape)?;
        match info.dtype {
            Dtype::F32 => Ok(elements(data, f32::from_le_bytes)),
            _ => Err(self.mismatch(name, &expected, info)),
        }
    }

    pub(super) fn flags(&self, name: &str, shape: &[usize]) -> Result<Vec<u8>> {
        let expected = format!("U8 or BOOL {shape:?}");
        let (info, data) = self.shaped(name, &expected, shape)?;
        match info.dtype {
            Dtype::U8 | Dtype::BOOL => Ok(data.to_vec()),
            _ => Err(self.mismatch(name, &expected, info)),
        }
    }

    pub(super) fn integers(&self, name: &str, shape: &[usize]) -> Result<Vec<i64>> {
        let expected = format!("I32 or I64 {shape:?}");
        let (info, data) = self.shaped(name, &expected, shape)?;
        match info.dtype {
            Dtype::I32 => Ok(elements(data, |bytes| i64::from(i32::from_le_bytes(bytes)))),
            Dtype::I64 => Ok(elements(data, i64::from_le_bytes)),
            _ => Err(self.mismatch(name, &expected, info)),
        }
    }

    fn shaped(&self, name: &str, expected: &str, shape: &[usize]) -> Result<(&TensorInfo, &[u8])> {
        let (info, data) = self.tensor(name, expected)?;
        if info.shape == shape {
            Ok((info, data))
        } else {
            Err(self.mismatch(name, expected, info))
        }
    }

    fn tensor(&self, name: &str, expected: &str) -> Result<(&TensorInfo, &[u8])> {
        let info = self.header.info(name).ok_or_else(|| {
            self.error(format!(
                "tensor `{name}`: expected {expected}, found no such tensor"
            ))
        })?;
        let (start, end) = info.data_offsets;
        Ok((
            info,
            &self.bytes[self.data_start + start..self.data_start + end],
        ))
    }

    fn mismatch(&self, name: &str, expected: &str, found: &TensorInfo) -> Error {
        let (dtype, shape) = (found.dtype, &found.shape);
        self.error(format!(
            "tensor `{name}`: expected {expected}, found {dtype:?} {shape:?}"
        ))
    }
}

fn elements<T, const SIZE: usize>(data: &[u8], from_le: impl Fn([u8; SIZE]) -> T) -> Vec<T> {
    let (chunks, _) = data.as_chunks::<SIZE>();
    chunks.iter().map(|&bytes| from_le(bytes)).collect()
}

fn not_safetensors(bytes: &[u8], error: SafeTensorError) -> String {
    let size = bytes.len();
    let header_bytes = bytes
        .first_chunk()
        .map(|&length| u64::from_le_bytes(length));
    match (error, header_bytes) {
        (SafeTensorError::HeaderTooSmall, _) | (_, None) => {
            format!("expected a safetensors file, found {size} bytes (truncated or another format)")
        }
        (SafeTensorError::HeaderTooLarge | SafeTensorError::InvalidHeaderLength, Some(header)) => {
            format!(
                "expected a safetensors file, found {size} bytes that announce a header of \
                 {header} bytes (truncated or another format)"
            )
        }
        (SafeTensorError::MetadataIncompleteBuffer, Some(_)) => {
            format!(
                "expected the tensors that the header lists, found a file of {size} bytes \
                     (truncated, or longer than its tensors)"
            )
        }
        (error, Some(_)) => format!("expected a safetensors file, found a broken header ({error})"),
    }
}
