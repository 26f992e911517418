//! Arguments of the kernel `token_counts`.

use super::{Buffer, LayoutBuffers, expect_len};
use crate::error::Result;
use crate::sys;

/// The params of `qae_token_counts`, without workspace: `num_tokens` and `num_rows` are \[1\] f64.
///
/// # Errors
/// [`crate::Error::Invalid`] for a mask or lengths of another shape than the layout's.
pub fn token_counts(
    layout: &LayoutBuffers,
    mask: Option<Buffer>,
    num_tokens: Buffer,
    num_rows: Buffer,
) -> Result<sys::qae_token_counts_params> {
    let shape = layout.shape();
    shape.check()?;
    if let Some(mask) = mask {
        shape.expect_slots("mask", mask.len, shape.mask_row_stride())?;
    }
    expect_len("num_tokens", num_tokens, 1)?;
    expect_len("num_rows", num_rows, 1)?;
    Ok(sys::qae_token_counts_params {
        layout: layout.params(mask, 0),
        num_tokens: num_tokens.as_mut_ptr(),
        num_rows: num_rows.as_mut_ptr(),
        ..Default::default()
    })
}
