//! The tensors that a call writes.

use crate::arguments::Arguments;
use crate::errors::{Failure, Result};
use crate::host::Host;
use crate::layout::Layout;
use crate::tensor::{Dtype, TensorView};
use qae::cpu::LossResults;

/// A tensor to be written. Its call holds it once and shares its memory with nothing.
pub(crate) struct Output(pub(crate) TensorView);

/// A token tensor to be written.
pub(crate) struct TokenOutput {
    pub(crate) tensor: Output,
    /// Elements from row to row, if padded.
    pub(crate) row_stride: Option<usize>,
}

/// What every loss writes for each response, and its report.
pub(crate) struct ResponseOutputs {
    /// The metrics struct of the kernels.
    pub(crate) words: Output,
    pub(crate) loss: Option<Output>,
    pub(crate) baseline: Option<Output>,
    pub(crate) advantage: Option<Output>,
    pub(crate) active_rows: Option<Output>,
    pub(crate) active_count: Option<Output>,
    pub(crate) workspace: Option<Output>,
}

impl ResponseOutputs {
    /// Takes the outputs of a loss with a report of `num_words` words.
    pub(crate) fn take(
        arguments: &mut Arguments<'_, '_>,
        num_words: usize,
        num_rows: usize,
        num_responses: Option<usize>,
    ) -> Result<Self> {
        let words = arguments.needed("words", "the metrics")?;
        words.expect(Dtype::I64, &[num_words])?;
        let per_response = |name, arguments: &mut Arguments<'_, '_>| {
            let view = arguments.tensor(name)?;
            match (&view, num_responses) {
                (Some(view), Some(len)) => view.expect(Dtype::F32, &[len])?,
                (Some(_), None) => {
                    let expected = "none, as there are no rewards";
                    return Err(Failure::value(name, expected, "a tensor"));
                }
                (None, _) => {}
            }
            Ok(view.map(Output))
        };
        Ok(Self {
            words: Output(words),
            loss: take_number(arguments, "loss", &[Dtype::F32, Dtype::F64])?,
            baseline: per_response("baseline", arguments)?,
            advantage: per_response("advantage", arguments)?,
            active_rows: take_list(arguments, "active_rows", Dtype::I32, num_rows)?,
            active_count: take_number(arguments, "active_count", &[Dtype::I32])?,
            workspace: take_workspace(arguments)?,
        })
    }
}

impl ResponseOutputs {
    /// Writes a report and what goes with it.
    pub(crate) fn write(self, host: &Host<'_>, words: &[i64], result: LossResults) {
        host.fill(Some(self.words), words.iter().copied());
        match self.loss {
            Some(loss) if loss.0.dtype == Dtype::F64 => host.set(Some(loss), result.metrics.loss),
            loss => host.set(loss, result.metrics.loss as f32),
        }
        let narrow = |values: Vec<f64>| values.into_iter().map(|value| value as f32);
        host.fill(self.baseline, narrow(result.baseline.unwrap_or_default()));
        host.fill(self.advantage, narrow(result.advantage.unwrap_or_default()));
        host.set(self.active_count, result.active_rows.len() as i32);
        let active_rows = result.active_rows.into_iter();
        host.fill(self.active_rows, active_rows.map(|row| row as i32));
    }
}

/// A contiguous tensor of this dtype and length.
pub(crate) fn take_list(
    arguments: &mut Arguments<'_, '_>,
    name: &'static str,
    dtype: Dtype,
    len: usize,
) -> Result<Option<Output>> {
    let view = arguments.tensor(name)?;
    if let Some(view) = &view {
        view.expect(dtype, &[len])?;
    }
    Ok(view.map(Output))
}

/// A tensor of one element.
pub(crate) fn take_number(
    arguments: &mut Arguments<'_, '_>,
    name: &'static str,
    dtypes: &[Dtype],
) -> Result<Option<Output>> {
    let view = arguments.tensor(name)?;
    if let Some(view) = &view {
        view.expect_number(dtypes)?;
    }
    Ok(view.map(Output))
}

/// The kernels' workspace.
pub(crate) fn take_workspace(arguments: &mut Arguments<'_, '_>) -> Result<Option<Output>> {
    let view = arguments.tensor("workspace")?;
    if let Some(view) = &view {
        view.expect_dtype(&[Dtype::U8])?;
        view.expect_contiguous()?;
    }
    Ok(view.map(Output))
}

/// A token tensor with one of these dtypes.
pub(crate) fn take_tokens(
    arguments: &mut Arguments<'_, '_>,
    name: &'static str,
    layout: &Layout,
    dtypes: &[Dtype],
) -> Result<Option<TokenOutput>> {
    let Some(view) = arguments.tensor(name)? else {
        return Ok(None);
    };
    view.expect_dtype(dtypes)?;
    Ok(Some(TokenOutput {
        row_stride: layout.rows_of(&view)?,
        tensor: Output(view),
    }))
}
