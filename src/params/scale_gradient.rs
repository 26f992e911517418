//! Arguments of the kernel `scale_gradient`.

use super::{Buffer, dtype_code, expect_len, optional};
use crate::batch::{DType, GradientRows};
use crate::error::{Error, Result};
use crate::sys;

/// A tensor of a dtype that the kernels have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TypedBuffer {
    /// Its memory.
    pub buffer: Buffer,
    /// Of its elements.
    pub dtype: DType,
}

/// What a gradient is multiplied by.
#[derive(Debug, Clone, Copy)]
pub struct FactorBuffers {
    /// \[1\] f32 or f64.
    pub value: Buffer,
    /// 4 or 8.
    pub value_bytes: usize,
    /// \[num_rows\] f32: 0 where a row is 0, which stays so.
    pub row_gradient: Option<Buffer>,
}

/// The params of `qae_scale_gradient`. `scaled` is the gradient itself, or apart from it.
///
/// # Errors
/// [`Error::Invalid`] for shapes and strides that do not fit, a dtype of `scaled` other than the
/// gradient's (but f16 of f32), or memory that both share in part.
pub fn scale_gradient(
    gradient: &GradientRows<TypedBuffer>,
    factor: &FactorBuffers,
    scaled: &GradientRows<TypedBuffer>,
) -> Result<sys::qae_scale_gradient_params> {
    let (source, target) = (gradient.values, scaled.values);
    gradient.expect_alike(scaled)?;
    let from = gradient.grid("gradient", source.buffer.len)?;
    let to = scaled.grid("scaled", target.buffer.len)?;
    expect_len("factor", factor.value, 1)?;
    if let Some(row_gradient) = factor.row_gradient {
        expect_len("row_gradient", row_gradient, gradient.num_rows)?;
    }
    let narrows = (source.dtype, target.dtype) == (DType::F32, DType::F16);
    if source.dtype != target.dtype && !narrows {
        return Err(Error::invalid(
            "scaled",
            format!("dtype {:?} as the gradient, or F16 of F32", source.dtype),
            format!("{:?}", target.dtype),
        ));
    }
    if source.overlaps(target)
        && (source.buffer.address != target.buffer.address || from != to || narrows)
    {
        return Err(Error::invalid(
            "scaled",
            "the gradient's own memory with its strides, or memory apart from it",
            "memory that overlaps the gradient",
        ));
    }
    Ok(sys::qae_scale_gradient_params {
        gradient: source.buffer.as_ptr(),
        scaled: target.buffer.as_mut_ptr(),
        factor: factor.value.as_ptr(),
        row_gradient: optional(factor.row_gradient),
        num_rows: gradient.num_rows as i64,
        num_columns: gradient.num_columns as i64,
        width: gradient.width.unwrap_or(0) as i64,
        row_stride: from.row_stride as i64,
        response_stride: from.response_stride as i64,
        scaled_row_stride: to.row_stride as i64,
        scaled_response_stride: to.response_stride as i64,
        dtype: dtype_code("gradient", source.dtype)?,
        scaled_dtype: dtype_code("scaled", target.dtype)?,
        factor_bytes: factor.value_bytes as i32,
        ..Default::default()
    })
}

impl TypedBuffer {
    fn overlaps(self, other: Self) -> bool {
        let end = |of: Self| {
            let bytes = of.buffer.len.saturating_mul(of.dtype.size()) as u64;
            of.buffer.address.saturating_add(bytes)
        };
        let start = self.buffer.address.max(other.buffer.address);
        start < end(self).min(end(other))
    }
}
