//! What both losses write, and what they divide by.

use crate::batch::Advantages;
use crate::config::{Aggregation, Config, Normalizer};
use crate::cuda::batch::DeviceLayout;
use crate::cuda::loss_from_log_probs::DeviceNormalizer;
use crate::cuda::memory::DeviceSlice;
use crate::cuda::stream::Stream;
use crate::cuda::token_counts::{token_counts, token_counts_workspace_bytes};
use crate::cuda::upload::Owned;
use crate::cuda::workspace::Workspace;
use crate::error::{Error, Result};
use cudarc::driver::{DeviceRepr, ValidAsZeroBits};

/// What there is one of for each response. What has to be written starts as NaN, so that what a
/// kernel forgot shows.
pub(super) struct ResponseMemory {
    pub baseline: Option<Owned<f32>>,
    pub advantage: Option<Owned<f32>>,
    pub active_rows: Owned<i32>,
    pub active_count: Owned<i32>,
}

impl ResponseMemory {
    pub fn new(stream: &Stream, advantages: Advantages<'_>, num_rows: usize) -> Result<Self> {
        let num_responses = match advantages {
            Advantages::FromRewards { rewards, .. } => Some(rewards.len()),
            _ => None,
        };
        let per_response = || {
            let upload = |len| Owned::upload(stream, &vec![f32::NAN; len]);
            num_responses.map(upload).transpose()
        };
        Ok(Self {
            baseline: per_response()?,
            advantage: per_response()?,
            active_rows: Owned::zeros(stream, num_rows)?,
            active_count: Owned::upload(stream, &[-1])?,
        })
    }

    pub fn active_rows(&self, stream: &Stream) -> Result<Vec<u32>> {
        let rows = listed(stream, &self.active_rows, &self.active_count)?;
        Ok(rows.into_iter().map(|row| row as u32).collect())
    }
}

/// Values of each response, if there are any.
pub(super) fn per_response(
    stream: &Stream,
    memory: &Option<Owned<f32>>,
) -> Result<Option<Vec<f64>>> {
    let values = memory.as_ref().map(|memory| memory.download(stream));
    Ok(values.transpose()?.map(|values| widened(&values)))
}

/// Where `token_counts` writes, for a batch that is its own normalizer.
pub(super) struct Counts {
    num_tokens: Owned<f64>,
    num_rows: Owned<f64>,
    workspace: Workspace<'static>,
}

impl Counts {
    pub fn new(stream: &Stream) -> Result<Self> {
        Ok(Self {
            num_tokens: Owned::upload(stream, &[f64::NAN])?,
            num_rows: Owned::upload(stream, &[f64::NAN])?,
            workspace: Workspace::new(stream, token_counts_workspace_bytes())?,
        })
    }

    /// Counted before, such as on the host.
    pub fn of(stream: &Stream, num_tokens: usize, num_rows: usize) -> Result<Self> {
        Ok(Self {
            num_tokens: Owned::upload(stream, &[num_tokens as f64])?,
            num_rows: Owned::upload(stream, &[num_rows as f64])?,
            ..Self::new(stream)?
        })
    }

    /// Launches `token_counts` where `config` has the batch counted.
    pub fn count(
        &mut self,
        stream: &Stream,
        layout: &DeviceLayout<'_>,
        mask: Option<&DeviceSlice<'_, u8>>,
        config: &Config,
    ) -> Result<()> {
        if config.normalizer != Normalizer::FromBatch {
            return Ok(());
        }
        token_counts(
            stream,
            layout,
            mask,
            &mut self.num_tokens.as_slice_mut(),
            &mut self.num_rows.as_slice_mut(),
            &mut self.workspace,
        )
    }

    pub fn normalizer(&self, config: &Config) -> DeviceNormalizer<'_> {
        match (config.normalizer, config.aggregation) {
            (Normalizer::Value(_), _) => DeviceNormalizer::Config,
            (Normalizer::FromBatch, Aggregation::TokenMean) => {
                DeviceNormalizer::Scalar(self.num_tokens.as_slice())
            }
            (Normalizer::FromBatch, _) => DeviceNormalizer::Scalar(self.num_rows.as_slice()),
        }
    }
}

/// The part of a list that the device filled.
pub(super) fn listed<T>(stream: &Stream, list: &Owned<T>, count: &Owned<T>) -> Result<Vec<T>>
where
    T: DeviceRepr + ValidAsZeroBits + Copy + Into<i64>,
{
    let count: i64 = count.download(stream)?[0].into();
    let mut list = list.download(stream)?;
    match usize::try_from(count) {
        Ok(filled) if filled <= list.len() => {
            list.truncate(filled);
            Ok(list)
        }
        _ => Err(Error::Backend {
            backend: "cuda",
            message: format!(
                "a list's count: expected at most {}, found {count}",
                list.len()
            ),
        }),
    }
}

pub(super) fn widened<T: Copy + Into<f64>>(values: &[T]) -> Vec<f64> {
    values.iter().map(|&value| value.into()).collect()
}
