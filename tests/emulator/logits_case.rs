//! Batches of logits that own their tensors, with a configuration and a placement in device memory.

use half::{bf16, f16};
use qae::batch::{LogitsBatch, LogitsLayout};
use qae::{Advantages, Config, DType, ImportanceWeight, Logits, reference};
use qae_emulator::EmulatorBackend;
use qae_test_support::Random;

use crate::case::{Case, Rows, Source, Values, Weight};
use crate::random::vec_of;

/// Everything of one call.
#[derive(Clone, Debug)]
pub struct LogitsCase {
    pub layout: Slots,
    pub mask: Option<Vec<u8>>,
    pub logits: Values,
    pub vocab_size: usize,
    pub row_stride: usize,
    pub response_stride: Option<usize>,
    pub token_id: Vec<i32>,
    pub old_log_prob: Option<Values>,
    pub ref_log_prob: Option<Values>,
    pub weight: Weight,
    pub advantage: Source,
    pub config: Config,
    pub backend: EmulatorBackend,
}

#[derive(Clone, Debug)]
pub enum Slots {
    Responses(Rows),
    Indexed {
        response: Vec<i32>,
        num_responses: usize,
    },
}

/// Where a slot stands.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// In the token tensors.
    pub token: usize,
    /// First element of its row of logits.
    pub logits: usize,
    /// In the mask.
    pub mask: usize,
    /// Its response; none: it is no token.
    pub response: Option<usize>,
}

impl Slots {
    pub fn borrow(&self) -> LogitsLayout<'_> {
        match self {
            Self::Responses(rows) => LogitsLayout::Responses(rows.borrow()),
            Self::Indexed {
                response,
                num_responses,
            } => LogitsLayout::Indexed {
                response,
                num_responses: *num_responses,
            },
        }
    }

    pub fn num_responses(&self) -> usize {
        match self {
            Self::Responses(rows) => rows.borrow().num_rows(),
            Self::Indexed { num_responses, .. } => *num_responses,
        }
    }

    /// Elements of a token tensor.
    pub fn num_elements(&self) -> usize {
        match self {
            Self::Responses(rows) => rows.borrow().num_elements(),
            Self::Indexed { response, .. } => response.len(),
        }
    }
}

impl LogitsCase {
    /// Logits in [−4, 4) with a few that stand out, tokens anywhere, log-ratios in [−0.5, 0.5),
    /// advantages of both signs and 0, all from `seed`, with the default configuration.
    pub fn fill(seed: u64, layout: Rows, vocab_size: usize, dtype: DType) -> Self {
        Self::fill_slots(seed, Slots::Responses(layout), vocab_size, dtype)
    }

    pub fn fill_slots(seed: u64, layout: Slots, vocab_size: usize, dtype: DType) -> Self {
        let random = &mut Random(seed);
        let num_responses = layout.num_responses();
        let elements = layout.num_elements();
        let mut case = Self {
            logits: Values::F32(vec![]),
            vocab_size,
            row_stride: vocab_size,
            response_stride: None,
            token_id: vec_of(elements, |_| random.below(vocab_size) as i32),
            mask: None,
            old_log_prob: None,
            ref_log_prob: None,
            weight: Weight::None,
            advantage: Source::PerResponse(vec_of(num_responses, |response| {
                [1.0, 0.0, -0.5, 0.25, 0.0, -2.0][response % 6]
            })),
            config: Config::default(),
            backend: EmulatorBackend::default(),
            layout,
        };
        let len = case.logits_len();
        let mut logits = random.values(len, -4.0, 4.0);
        for _ in 0..len / 64 {
            logits[random.below(len)] = random.between(4.0, 16.0);
        }
        case.logits = Values::new(dtype, &logits);
        case.set_log_ratios(|_| random.between(-0.5, 0.5));
        case.keep_clear_of_bounds();
        case
    }

    /// Elements of the logits up to the end of the last row.
    pub fn logits_len(&self) -> usize {
        let last = self.slots().into_iter().map(|slot| slot.logits).max();
        last.map_or(0, |last| last + self.vocab_size)
    }

    /// Every slot, in order.
    pub fn slots(&self) -> Vec<Slot> {
        match &self.layout {
            Slots::Indexed { response, .. } => {
                let slot = |(index, &response): (usize, &i32)| Slot {
                    token: index,
                    logits: index * self.row_stride,
                    mask: index,
                    response: usize::try_from(response).ok(),
                };
                response.iter().enumerate().map(slot).collect()
            }
            Slots::Responses(rows) => self.slots_of_responses(rows),
        }
    }

    fn slots_of_responses(&self, rows: &Rows) -> Vec<Slot> {
        let mut slots = vec![];
        for (response, row) in rows.rows().enumerate() {
            let first_row = match rows {
                Rows::Padded { row_stride, .. } => self
                    .response_stride
                    .map_or(response * row_stride * self.row_stride, |stride| {
                        response * stride
                    }),
                Rows::Packed { .. } => row.start * self.row_stride,
            };
            slots.extend((0..row.num_slots).map(|t| Slot {
                token: row.start + t,
                logits: first_row + t * self.row_stride,
                mask: row.mask_start + t,
                response: (t < row.length).then_some(response),
            }));
        }
        slots
    }

    pub fn is_valid(&self, slot: &Slot) -> bool {
        let counts = |mask: &Vec<u8>| mask[slot.mask] != 0;
        slot.response.is_some() && self.mask.as_ref().is_none_or(counts)
    }

    /// The logits of a row.
    pub fn row(&self, slot: &Slot) -> Vec<f64> {
        let tensor = self.logits.tensor();
        (0..self.vocab_size)
            .map(|j| tensor.get(slot.logits + j))
            .collect()
    }

    /// log π(token) of each element of a token tensor, 0 where there is no valid token.
    pub fn log_probs(&self) -> Vec<f64> {
        let mut log_probs = vec![0.0; self.layout.num_elements()];
        for slot in self.slots() {
            if self.is_valid(&slot) {
                log_probs[slot.token] = self.log_prob(&slot);
            }
        }
        log_probs
    }

    fn log_prob(&self, slot: &Slot) -> f64 {
        let z: Vec<f64> = self
            .row(slot)
            .iter()
            .map(|x| x / self.config.temperature)
            .collect();
        let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = z.iter().map(|z| (z - max).exp()).sum();
        z[self.token_id[slot.token] as usize] - max - sum.ln()
    }

    /// Sets `old_log_prob`, in f32, so that the log-ratio of element i is `log_ratio(i)`.
    pub fn set_log_ratios(&mut self, mut log_ratio: impl FnMut(usize) -> f32) {
        let old = self.log_probs().into_iter().enumerate();
        let old: Vec<f32> = old
            .map(|(i, log_prob)| log_prob as f32 - log_ratio(i))
            .collect();
        self.old_log_prob = Some(Values::F32(old));
    }

    pub fn batch(&self) -> LogitsBatch<'_> {
        LogitsBatch {
            layout: self.layout.borrow(),
            mask: self.mask.as_deref(),
            logits: Logits {
                values: self.logits.tensor(),
                vocab_size: self.vocab_size,
                row_stride: self.row_stride,
                response_stride: self.response_stride,
            },
            token_id: &self.token_id,
            old_log_prob: self.old_log_prob.as_ref().map(Values::tensor),
            ref_log_prob: self.ref_log_prob.as_ref().map(Values::tensor),
            importance_weight: match &self.weight {
                Weight::None => None,
                Weight::PerToken(values) => Some(ImportanceWeight::PerToken(values)),
                Weight::PerResponse(values) => Some(ImportanceWeight::PerResponse(values)),
            },
            advantages: match &self.advantage {
                Source::Rewards {
                    rewards,
                    groups,
                    response_index,
                } => Advantages::FromRewards {
                    rewards,
                    groups,
                    response_index: response_index.as_deref(),
                },
                Source::PerResponse(values) => Advantages::PerResponse(values),
                Source::PerToken(values) => Advantages::PerToken(values),
            },
        }
    }

    /// The same batch from log-probs, which are `log_prob`, without the entropy term. Slots in any
    /// order become those of packed responses (see [`Self::order_of_tokens`]).
    pub fn as_log_probs(&self, log_prob: &[f64]) -> Case {
        let order = self.order_of_tokens();
        let Slots::Responses(rows) = &self.layout else {
            let mut lengths = vec![0; self.layout.num_responses()];
            let slots = self.slots();
            for response in order.iter().filter_map(|&slot| slots[slot].response) {
                lengths[response] += 1;
            }
            return self.token_case(Rows::packed(&lengths), order, log_prob);
        };
        self.token_case(rows.clone(), order, log_prob)
    }

    /// The elements of the token tensors in the order of [`Self::as_log_probs`].
    pub fn order_of_tokens(&self) -> Vec<usize> {
        let elements = 0..self.layout.num_elements();
        let Slots::Indexed { response, .. } = &self.layout else {
            return elements.collect();
        };
        let mut order: Vec<usize> = elements.filter(|&slot| response[slot] >= 0).collect();
        order.sort_by_key(|&slot| response[slot]);
        order
    }

    /// Element i of whose token tensors is element `order[i]` of this batch's.
    fn token_case(&self, layout: Rows, order: Vec<usize>, log_prob: &[f64]) -> Case {
        fn pick<T: Copy>(order: &[usize], values: &[T]) -> Vec<T> {
            order.iter().map(|&i| values[i]).collect()
        }
        let is_indexed = matches!(self.layout, Slots::Indexed { .. });
        let tensor = |values: &Values| match values {
            Values::F32(values) => Values::F32(pick(&order, values)),
            Values::Bf16(values) => {
                Values::F32(pick(&order, values).into_iter().map(bf16::to_f32).collect())
            }
            Values::F16(values) => {
                Values::F32(pick(&order, values).into_iter().map(f16::to_f32).collect())
            }
        };
        let log_prob: Vec<f32> = pick(&order, log_prob)
            .into_iter()
            .map(|x| x as f32)
            .collect();
        Case {
            mask: match (&self.mask, is_indexed) {
                (Some(mask), true) => Some(pick(&order, mask)),
                (mask, _) => mask.clone(),
            },
            log_prob: Values::F32(log_prob),
            old_log_prob: self.old_log_prob.as_ref().map(tensor),
            ref_log_prob: self.ref_log_prob.as_ref().map(tensor),
            weight: match &self.weight {
                Weight::PerToken(values) => Weight::PerToken(pick(&order, values)),
                other => other.clone(),
            },
            advantage: match &self.advantage {
                Source::PerToken(values) => Source::PerToken(pick(&order, values)),
                other => other.clone(),
            },
            config: Config {
                entropy_coef: 0.0,
                gradient: qae::Gradient::ZeroFill,
                ..self.config
            },
            backend: EmulatorBackend::default(),
            layout,
        }
    }

    /// Fills the gaps behind rows, and the rows of slots that are no valid tokens, with NaN and
    /// infinities: none may leave a trace. So do all their token tensors.
    pub fn poison_invalid(&mut self) {
        let poisons = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
        let slots = self.slots();
        let mut is_used = vec![false; self.logits.tensor().len()];
        for slot in slots.iter().filter(|slot| self.is_valid(slot)) {
            is_used[slot.logits..][..self.vocab_size].fill(true);
        }
        for index in (0..is_used.len()).filter(|&index| !is_used[index]) {
            self.logits.set(index, poisons[index % poisons.len()]);
        }
        let mut is_token = vec![false; self.layout.num_elements()];
        for slot in slots.iter().filter(|slot| self.is_valid(slot)) {
            is_token[slot.token] = true;
        }
        for index in (0..is_token.len()).filter(|&index| !is_token[index]) {
            self.poison_token(index, poisons[index % poisons.len()]);
        }
    }

    /// Puts `value` into every tensor but the logits at element `index`, and −100 for the token.
    pub fn poison_token(&mut self, index: usize, value: f32) {
        self.token_id[index] = -100;
        for tensor in [&mut self.old_log_prob, &mut self.ref_log_prob]
            .into_iter()
            .flatten()
        {
            tensor.set(index, value);
        }
        if let Weight::PerToken(weights) = &mut self.weight {
            weights[index] = value;
        }
        if let Source::PerToken(advantages) = &mut self.advantage {
            advantages[index] = value;
        }
    }

    /// Asserts that the reference takes the case; a test's mistake would look like a kernel's.
    pub fn expected(&self) -> qae::LogitsOutput {
        reference::loss_from_logits(&self.batch(), &self.config).unwrap()
    }
}
