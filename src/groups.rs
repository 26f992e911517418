//! Which responses belong to the same prompt.

use crate::error::{Error, Result};

/// The partition of a batch's responses into groups, one group a prompt.
///
/// Describes the *global* batch: advantages never depend on how it was cut into micro-batches.
/// Built once on the host; [`crate::cuda`](crate) uploads it once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Groups {
    num_responses: usize,
    max_size: usize,
    form: Form,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Form {
    Uniform {
        size: usize,
    },
    Ragged {
        offsets: Vec<i32>,
        order: Option<Vec<i32>>,
        group_of_response: Vec<i32>,
    },
}

impl Groups {
    /// `num_responses / group_size` groups of neighbors.
    ///
    /// # Errors
    /// [`Error::Invalid`] when `group_size` is 0 or does not divide `num_responses`, or when there
    /// are more than 2³¹ − 1 responses.
    pub fn uniform(num_responses: usize, group_size: usize) -> Result<Self> {
        indexable(num_responses)?;
        if group_size == 0 || !num_responses.is_multiple_of(group_size) {
            return Err(Error::invalid(
                "group_size",
                format!("a divisor of the {num_responses} responses"),
                group_size,
            ));
        }
        let max_size = group_size.min(num_responses);
        Ok(Self {
            num_responses,
            max_size,
            form: Form::Uniform { size: group_size },
        })
    }

    /// Group g is the responses `offsets[g]..offsets[g + 1]`.
    ///
    /// # Errors
    /// [`Error::Invalid`] unless `offsets` starts at 0 and increases (an empty group is an error).
    pub fn from_offsets(offsets: &[i32]) -> Result<Self> {
        let Some((&first, rest)) = offsets.split_first() else {
            return Err(Error::invalid(
                "group_offsets",
                "at least one offset",
                "none",
            ));
        };
        if first != 0 {
            return Err(Error::invalid("group_offsets[0]", 0, first));
        }
        let num_responses = rest
            .last()
            .map_or(0, |&end| usize::try_from(end).unwrap_or(0));
        let mut group_of_response = Vec::with_capacity(num_responses);
        let mut max_size = 0;
        for (group, pair) in offsets.windows(2).enumerate() {
            if pair[1] <= pair[0] {
                return Err(Error::invalid(
                    format!("group_offsets[{}]", group + 1),
                    format!(
                        "more than {} (a group holds at least one response)",
                        pair[0]
                    ),
                    pair[1],
                ));
            }
            max_size = max_size.max((pair[1] - pair[0]) as usize);
            group_of_response.resize(pair[1] as usize, group as i32);
        }
        let form = Form::Ragged {
            offsets: offsets.to_vec(),
            order: None,
            group_of_response,
        };
        Ok(Self {
            num_responses,
            max_size,
            form,
        })
    }

    /// Responses with the same label form a group, wherever they stand. Groups are numbered by
    /// ascending label; within a group responses keep their order.
    ///
    /// # Errors
    /// [`Error::Invalid`] for more than 2³¹ − 1 responses.
    pub fn from_ids(ids: &[i64]) -> Result<Self> {
        indexable(ids.len())?;
        let mut order: Vec<i32> = (0..ids.len() as i32).collect();
        order.sort_by_key(|&response| ids[response as usize]);
        let mut offsets = vec![];
        let mut group_of_response = vec![0; ids.len()];
        let mut last = None;
        for (position, &response) in order.iter().enumerate() {
            let id = ids[response as usize];
            if last != Some(id) {
                offsets.push(position as i32);
                last = Some(id);
            }
            group_of_response[response as usize] = offsets.len() as i32 - 1;
        }
        offsets.push(ids.len() as i32);
        let max_size = offsets
            .windows(2)
            .map(|pair| (pair[1] - pair[0]) as usize)
            .max()
            .unwrap_or(0);
        let in_order = order.windows(2).all(|pair| pair[0] < pair[1]);
        let order = (!in_order).then_some(order);
        let form = Form::Ragged {
            offsets,
            order,
            group_of_response,
        };
        Ok(Self {
            num_responses: ids.len(),
            max_size,
            form,
        })
    }

    /// Number of responses in all groups.
    pub fn num_responses(&self) -> usize {
        self.num_responses
    }

    /// Number of groups.
    pub fn num_groups(&self) -> usize {
        match &self.form {
            Form::Uniform { size } => self.num_responses / size,
            Form::Ragged { offsets, .. } => offsets.len() - 1,
        }
    }

    /// Size of the largest group, in responses.
    pub fn max_size(&self) -> usize {
        self.max_size
    }

    /// The one size of all groups, where they were given as uniform.
    pub fn uniform_size(&self) -> Option<usize> {
        match self.form {
            Form::Uniform { size } => Some(size),
            Form::Ragged { .. } => None,
        }
    }

    /// Start of each group in [`Self::order`], and the number of responses; `None` if uniform.
    pub fn offsets(&self) -> Option<&[i32]> {
        match &self.form {
            Form::Uniform { .. } => None,
            Form::Ragged { offsets, .. } => Some(offsets),
        }
    }

    /// Responses sorted by group; `None` where they already are.
    pub fn order(&self) -> Option<&[i32]> {
        match &self.form {
            Form::Ragged { order, .. } => order.as_deref(),
            Form::Uniform { .. } => None,
        }
    }

    /// The group of each response; `None` if uniform.
    pub fn group_of_response(&self) -> Option<&[i32]> {
        match &self.form {
            Form::Uniform { .. } => None,
            Form::Ragged {
                group_of_response, ..
            } => Some(group_of_response),
        }
    }

    /// The responses of group `group`, in order.
    pub fn members(&self, group: usize) -> impl ExactSizeIterator<Item = usize> + Clone + '_ {
        let range = match &self.form {
            Form::Uniform { size } => group * size..(group + 1) * size,
            Form::Ragged { offsets, .. } => offsets[group] as usize..offsets[group + 1] as usize,
        };
        let order = self.order();
        range.map(move |position| order.map_or(position, |order| order[position] as usize))
    }
}

fn indexable(num_responses: usize) -> Result<()> {
    if i32::try_from(num_responses).is_ok() {
        Ok(())
    } else {
        Err(Error::invalid(
            "num_responses",
            "at most 2147483647",
            num_responses,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_members(groups: &Groups) -> Vec<Vec<usize>> {
        (0..groups.num_groups())
            .map(|group| groups.members(group).collect())
            .collect()
    }

    #[test]
    fn the_three_forms_agree() {
        let uniform = Groups::uniform(6, 3).unwrap();
        let offsets = Groups::from_offsets(&[0, 3, 6]).unwrap();
        let ids = Groups::from_ids(&[7, 7, 7, 9, 9, 9]).unwrap();
        for groups in [&uniform, &offsets, &ids] {
            assert_eq!(all_members(groups), [[0, 1, 2], [3, 4, 5]]);
            assert_eq!((groups.max_size(), groups.num_responses()), (3, 6));
        }
    }

    #[test]
    fn ids_in_any_order_keep_the_order_within_a_group() {
        let groups = Groups::from_ids(&[5, -1, 5, 3, -1]).unwrap();
        assert_eq!(all_members(&groups), [vec![1, 4], vec![3], vec![0, 2]]);
        assert_eq!(groups.group_of_response(), Some(&[2, 0, 2, 1, 0][..]));
        assert_eq!(groups.max_size(), 2);
    }

    #[test]
    fn empty_batches_have_no_groups() {
        assert_eq!(Groups::from_ids(&[]).unwrap().num_groups(), 0);
        assert_eq!(Groups::from_offsets(&[0]).unwrap().num_groups(), 0);
        assert_eq!(Groups::uniform(0, 4).unwrap().num_groups(), 0);
    }

    #[test]
    fn bad_groups_are_refused_by_name() {
        for (result, field) in [
            (Groups::uniform(7, 2), "group_size"),
            (Groups::uniform(4, 0), "group_size"),
            (Groups::from_offsets(&[]), "group_offsets"),
            (Groups::from_offsets(&[1, 2]), "group_offsets[0]"),
            (Groups::from_offsets(&[0, 2, 2]), "group_offsets[2]"),
        ] {
            let message = result.unwrap_err().to_string();
            assert!(message.starts_with(field), "{message}");
        }
    }
}
