//! What a loss reads besides log-probs or logits, wherever its memory is.

use crate::arguments::Arguments;
use crate::errors::{Failure, Result};
use crate::layout::Layout;
use crate::tensor::{Dtype, TensorView};

/// The rewards of the global batch and its groups.
pub(crate) struct Rewards {
    pub(crate) rewards: TensorView,
    pub(crate) num_groups: usize,
    /// 0: ragged.
    pub(crate) group_size: usize,
    pub(crate) max_group_size: usize,
    pub(crate) offsets: Option<TensorView>,
    pub(crate) order: Option<TensorView>,
    pub(crate) group_of_response: Option<TensorView>,
}

/// One f32 for each row, or for each slot.
pub(crate) enum Spread {
    Rows(TensorView),
    Slots(TensorView),
}

/// Where advantages come from.
pub(crate) enum Advantages {
    FromRewards {
        rewards: Box<Rewards>,
        response_index: Option<TensorView>,
    },
    Given(Spread),
}

/// The inputs of a loss that are neither log-probs of the policy nor logits.
pub(crate) struct Batch {
    pub(crate) layout: Layout,
    pub(crate) mask: Option<TensorView>,
    pub(crate) old_log_prob: Option<TensorView>,
    pub(crate) ref_log_prob: Option<TensorView>,
    pub(crate) weight: Option<Spread>,
    pub(crate) advantages: Advantages,
    /// In place of the configuration's.
    pub(crate) normalizer: Option<TensorView>,
}

impl Batch {
    /// Takes everything but `layout`, whose tokens were taken.
    pub(crate) fn take(mut layout: Layout, arguments: &mut Arguments<'_, '_>) -> Result<Self> {
        let mask = layout.take_mask(arguments)?;
        let old_log_prob = take_slots("old_log_prob", &layout, arguments)?;
        let ref_log_prob = take_slots("ref_log_prob", &layout, arguments)?;
        if let (Some(old), Some(reference)) = (&old_log_prob, &ref_log_prob) {
            reference.expect_dtype_of(old)?;
        }
        let weight = take_spread(
            ["importance_weight", "token_importance_weight"],
            &layout,
            arguments,
        )?;
        let advantages = take_advantages(&layout, arguments)?;
        let normalizer = arguments.tensor("normalizer")?;
        if let Some(normalizer) = &normalizer {
            normalizer.expect_number(&[Dtype::F64])?;
        }
        Ok(Self {
            layout,
            mask,
            old_log_prob,
            ref_log_prob,
            weight,
            advantages,
            normalizer,
        })
    }

    /// Responses of the global batch, where there are rewards.
    pub(crate) fn num_responses(&self) -> Option<usize> {
        match &self.advantages {
            Advantages::FromRewards { rewards, .. } => Some(rewards.num_responses()),
            Advantages::Given(_) => None,
        }
    }
}

fn take_slots(
    name: &'static str,
    layout: &Layout,
    arguments: &mut Arguments<'_, '_>,
) -> Result<Option<TensorView>> {
    let view = arguments.tensor(name)?;
    if let Some(view) = &view {
        layout.expect_slots(view)?;
    }
    Ok(view)
}

fn take_spread(
    [of_rows, of_slots]: [&'static str; 2],
    layout: &Layout,
    arguments: &mut Arguments<'_, '_>,
) -> Result<Option<Spread>> {
    let rows = arguments.tensor(of_rows)?;
    let slots = take_slots(of_slots, layout, arguments)?;
    match (rows, slots) {
        (Some(_), Some(_)) => {
            let expected = format!("none beside {of_rows}");
            Err(Failure::value(of_slots, expected, "a tensor"))
        }
        (Some(rows), None) => {
            rows.expect(Dtype::F32, &[layout.num_rows()])?;
            Ok(Some(Spread::Rows(rows)))
        }
        (None, Some(slots)) => {
            slots.expect_dtype(&[Dtype::F32])?;
            Ok(Some(Spread::Slots(slots)))
        }
        (None, None) => Ok(None),
    }
}

fn take_advantages(layout: &Layout, arguments: &mut Arguments<'_, '_>) -> Result<Advantages> {
    let given = take_spread(["advantages", "token_advantages"], layout, arguments)?;
    let rewards = Rewards::take(arguments)?;
    let response_index = arguments.tensor("response_index")?;
    match (given, rewards) {
        (None, Some(rewards)) => {
            match &response_index {
                Some(index) => index.expect(Dtype::I32, &[layout.num_rows()])?,
                None if rewards.num_responses() == layout.num_rows() => {}
                None => {
                    let expected = format!(
                        "shape [{}], one for each row, or a response_index",
                        layout.num_rows()
                    );
                    let found = format!("[{}]", rewards.num_responses());
                    return Err(Failure::value("rewards", expected, found));
                }
            }
            Ok(Advantages::FromRewards {
                rewards: Box::new(rewards),
                response_index,
            })
        }
        (Some(given), None) => match response_index {
            None => Ok(Advantages::Given(given)),
            Some(_) => Err(Failure::value(
                "response_index",
                "none without rewards",
                "a tensor",
            )),
        },
        (Some(_), Some(_)) => Err(Failure::value(
            "rewards",
            "none beside advantages",
            "a tensor",
        )),
        (None, None) => Err(qae::Error::missing("rewards", "rewards or advantages").into()),
    }
}

impl Rewards {
    /// Takes the rewards and what describes their groups, if there are any.
    pub(crate) fn take(arguments: &mut Arguments<'_, '_>) -> Result<Option<Self>> {
        let rewards = arguments.tensor("rewards")?;
        let mut count = |name| -> Result<_> { Ok((name, arguments.count(name)?)) };
        let counts = [
            count("num_responses")?,
            count("num_groups")?,
            count("group_size")?,
            count("max_group_size")?,
        ];
        let offsets = arguments.tensor("group_offsets")?;
        let order = arguments.tensor("group_order")?;
        let group_of_response = arguments.tensor("group_of_response")?;
        let Some(rewards) = rewards else {
            let indices = [&offsets, &order, &group_of_response];
            let index = indices.into_iter().flatten().map(|index| index.name);
            let count = counts.iter().filter(|(_, count)| count.is_some());
            return match count.map(|&(name, _)| name).chain(index).next() {
                None => Ok(None),
                Some(name) => Err(Failure::value(name, "none without rewards", "one")),
            };
        };
        let needed = |(name, count): (&str, Option<usize>)| {
            count.ok_or_else(|| qae::Error::missing(name, "an int, with rewards"))
        };
        let this = Self {
            num_groups: needed(counts[1])?,
            group_size: needed(counts[2])?,
            max_group_size: needed(counts[3])?,
            offsets,
            order,
            group_of_response,
            rewards,
        };
        this.check(needed(counts[0])?)?;
        Ok(Some(this))
    }

    /// Responses of the global batch.
    pub(crate) fn num_responses(&self) -> usize {
        self.rewards.numel()
    }

    fn check(&self, num_responses: usize) -> Result<()> {
        self.rewards.expect(Dtype::F32, &[num_responses])?;
        let indices = [&self.offsets, &self.order, &self.group_of_response];
        if self.group_size > 0 {
            return match indices.into_iter().flatten().next() {
                None => Ok(()),
                Some(index) => {
                    let expected = "none beside a group_size above 0";
                    Err(Failure::value(index.name, expected, "a tensor"))
                }
            };
        }
        let num_offsets = self.num_groups.saturating_add(1);
        expect_index("group_offsets", &self.offsets, num_offsets)?;
        expect_index("group_of_response", &self.group_of_response, num_responses)?;
        match &self.order {
            Some(order) => order.expect(Dtype::I32, &[num_responses]),
            None => Ok(()),
        }
    }
}

fn expect_index(name: &'static str, view: &Option<TensorView>, len: usize) -> Result<()> {
    match view {
        Some(view) => view.expect(Dtype::I32, &[len]),
        None => Err(qae::Error::missing(name, "an index tensor, as group_size is 0").into()),
    }
}
