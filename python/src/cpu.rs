//! Tensors of the CPU, through `qae::cpu`.

use crate::batch::{Advantages, Batch, Rewards, Spread};
use crate::errors::{Failure, Result};
use crate::host::Host;
use crate::layout::Layout;
use qae::{Config, Groups, ImportanceWeight, Normalizer};

/// What a batch borrows that is not a tensor of the call.
pub(crate) struct Owned {
    groups: Option<Groups>,
    pub(crate) config: Config,
}

impl Owned {
    pub(crate) fn of(batch: &Batch, mut config: Config, host: &Host<'_>) -> Result<Self> {
        if let Some(normalizer) = &batch.normalizer {
            let value = host.read::<f64>(normalizer)[0];
            if value > 0.0 {
                config.normalizer = Normalizer::Value(value);
            } else {
                // As the kernels: without a positive denominator there is no loss.
                config.normalizer = Normalizer::Value(1.0);
                config.loss_multiplier = 0.0;
            }
        }
        let groups = match &batch.advantages {
            Advantages::FromRewards { rewards, .. } => Some(groups(rewards, host)?),
            Advantages::Given(_) => None,
        };
        Ok(Self { groups, config })
    }

    pub(crate) fn advantages<'a>(
        &'a self,
        batch: &Batch,
        host: &Host<'a>,
    ) -> Result<qae::Advantages<'a>> {
        Ok(match (&batch.advantages, &self.groups) {
            (
                Advantages::FromRewards {
                    rewards,
                    response_index,
                },
                Some(groups),
            ) => qae::Advantages::FromRewards {
                rewards: host.read(&rewards.rewards),
                groups,
                response_index: host.read_some(response_index),
            },
            (Advantages::Given(Spread::Rows(rows)), _) => {
                qae::Advantages::PerResponse(host.read(rows))
            }
            (Advantages::Given(Spread::Slots(slots)), _) => {
                qae::Advantages::PerToken(host.read(slots))
            }
            (Advantages::FromRewards { .. }, None) => {
                return Err(qae::Error::missing("groups", "groups, with rewards").into());
            }
        })
    }
}

pub(crate) fn weight<'a>(weight: &Option<Spread>, host: &Host<'a>) -> Option<ImportanceWeight<'a>> {
    Some(match weight.as_ref()? {
        Spread::Rows(rows) => ImportanceWeight::PerResponse(host.read(rows)),
        Spread::Slots(slots) => ImportanceWeight::PerToken(host.read(slots)),
    })
}

/// The layout of responses.
pub(crate) fn layout<'a>(layout: &Layout, host: &Host<'a>) -> Result<qae::Layout<'a>> {
    match layout {
        Layout::Padded {
            num_rows,
            width,
            row_stride,
            mask_row_stride,
            lengths,
        } => Ok(qae::Layout::Padded {
            num_rows: *num_rows,
            width: *width,
            row_stride: *row_stride,
            mask_row_stride: *mask_row_stride,
            lengths: host.read_some(lengths),
        }),
        Layout::Packed { offsets, .. } => Ok(qae::Layout::Packed {
            offsets: host.read(offsets),
        }),
        Layout::Indexed { .. } => {
            let found = "slots in any order";
            Err(Failure::value("slot_response", "none here", found))
        }
    }
}

/// The groups that the index tensors describe.
pub(crate) fn groups(rewards: &Rewards, host: &Host<'_>) -> Result<Groups> {
    let num_responses = rewards.num_responses();
    let groups = match host.read_some::<i32>(&rewards.group_of_response) {
        None => Groups::uniform(num_responses, rewards.group_size)?,
        Some(ids) => {
            let ids: Vec<i64> = ids.iter().map(|&id| id.into()).collect();
            Groups::from_ids(&ids)?
        }
    };
    let offsets = host.read_some(&rewards.offsets);
    if groups.offsets() != offsets || groups.order() != host.read_some(&rewards.order) {
        let expected = "the groups that group_of_response has";
        return Err(Failure::value(
            "group_offsets, group_order",
            expected,
            "others",
        ));
    }
    let counts = (groups.num_groups(), groups.max_size());
    let found = (rewards.num_groups, rewards.max_group_size);
    if counts == found {
        return Ok(groups);
    }
    Err(Failure::value(
        "num_groups, max_group_size",
        format!("{counts:?}"),
        format!("{found:?}"),
    ))
}
