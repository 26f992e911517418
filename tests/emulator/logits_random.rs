//! Random cases of logits: every option of the operation and every placement, chosen independently,
//! from a seed.

use qae::params::RowPolicy;
use qae::{Aggregation, Config, DType, Gradient, Objective};
use qae_emulator::{EmulatorBackend, LogitsPlacement, Options};
use qae_test_support::Random;

use crate::case::{Rows, Values, Weight};
use crate::logits_case::{LogitsCase, Slots};
use crate::logits_compare::check;
use crate::random::{self, vec_of};

const DTYPES: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];

fn config(random: &mut Random, is_indexed: bool) -> Config {
    let mut config = Config {
        temperature: random.pick(&[1.0, 0.7, 2.5]),
        entropy_coef: random.pick(&[0.0, 0.0, 0.01, -0.25]),
        gradient: random.pick(&[Gradient::ZeroFill, Gradient::Untouched, Gradient::Compact]),
        ..random::config(random)
    };
    // What needs whole responses.
    if is_indexed {
        while matches!(config.objective, Objective::Gspo { .. }) {
            config.objective = random.pick(&random::objectives());
        }
        if config.aggregation == Aggregation::SeqMeanTokenMean {
            config.aggregation = Aggregation::SeqMeanTokenSum;
        }
        if config.gradient == Gradient::Compact {
            config.gradient = Gradient::ZeroFill;
        }
    }
    config
}

/// Slots and their mask: few, as each has a row of logits.
fn slots(random: &mut Random) -> (Slots, Option<Vec<u8>>) {
    if random.below(4) == 0 {
        let num_responses = random.pick(&[1, 3, 9]);
        let len = random.below(40);
        let response = vec_of(len, |_| random.below(num_responses + 1) as i32 - 1);
        let mask = random.coin().then(|| random::mask(random, len));
        let slots = Slots::Indexed {
            response,
            num_responses,
        };
        return (slots, mask);
    }
    loop {
        let (rows, mask) = random::rows(random);
        if rows.borrow().num_elements() <= 150 {
            return (Slots::Responses(rows), mask);
        }
    }
}

fn placement(random: &mut Random, case: &LogitsCase) -> LogitsPlacement {
    let row_policy = random.pick(&[RowPolicy::Auto, RowPolicy::Cluster, RowPolicy::Block]);
    let gap = random.pick(&[0, 0, 1, 8]);
    let compact = case.config.gradient == Gradient::Compact;
    let tail = random.pick(&[0, 3]);
    let gradient_row_stride = random.coin().then_some(case.vocab_size + gap);
    let padded = match &case.layout {
        Slots::Responses(Rows::Padded { width, .. }) if !compact => Some(width),
        _ => None,
    };
    LogitsPlacement {
        row_policy,
        in_place: !compact && random.below(3) == 0,
        misalignment: random.pick(&[0, 0, 1, 3, 4, 8]),
        gradient_misalignment: random.pick(&[0, 0, 1, 3, 4, 8]),
        gradient_row_stride,
        gradient_response_stride: padded
            .filter(|_| random.coin())
            .map(|width| width * gradient_row_stride.unwrap_or(case.row_stride) + tail),
        wide_token_ids: random.coin(),
        without_d_log_prob: random.below(4) == 0,
        without_token_outputs: random.below(6) == 0,
        ..LogitsPlacement::default()
    }
}

/// Strides between rows and responses, with gaps.
fn spread(random: &mut Random, case: &mut LogitsCase) {
    case.row_stride = case.vocab_size + random.pick(&[0, 0, 1, 5, 8]);
    if let Slots::Responses(Rows::Padded { width, .. }) = &case.layout
        && random.coin()
    {
        let tail = random.pick(&[0, 2, 16]);
        case.response_stride = Some(width * case.row_stride + tail);
    }
}

/// A case of `seed`; what is not a valid token holds NaN and infinities.
pub fn case(seed: u64) -> LogitsCase {
    let random = &mut Random(seed);
    let (layout, mask) = slots(random);
    let vocab_size = random.pick(&[2, 3, 7, 8, 31, 64, 65, 257, 1000, 2053]);
    let dtype = random.pick(&DTYPES);
    let config = config(random, matches!(layout, Slots::Indexed { .. }));
    let (num_responses, elements) = (layout.num_responses(), layout.num_elements());
    let mut case = LogitsCase::fill_slots(seed, layout, vocab_size, dtype);
    case.mask = mask;
    case.config = config;
    spread(random, &mut case);
    let logits = random.values(case.logits_len(), -6.0, 6.0);
    case.logits = Values::new(dtype, &logits);
    let log_prob_dtype = random.pick(&DTYPES);
    let (low, high) = random.pick(&[(-0.5, 0.5), (-3.0, 3.0), (0.0, 0.0625)]);
    let log_probs = case.log_probs();
    let near = |random: &mut Random, low, high| {
        let values = log_probs
            .iter()
            .map(|&x| x as f32 - random.between(low, high));
        Values::new(log_prob_dtype, &values.collect::<Vec<f32>>())
    };
    let without_old = config.objective == Objective::Reinforce && random.coin();
    case.old_log_prob = (!without_old).then(|| near(random, low, high));
    case.ref_log_prob = config.kl.map(|_| near(random, -1.0, 1.0));
    case.keep_clear_of_bounds();
    case.weight = match random.below(3) {
        0 => Weight::PerToken(random.values(elements, 0.25, 2.0)),
        1 => Weight::PerResponse(random.values(num_responses, 0.25, 2.0)),
        _ => Weight::None,
    };
    case.advantage = random::source(random, num_responses, elements);
    case.backend = EmulatorBackend {
        options: random.pick(&[Options::default(), Options::sm80()]),
        narrow_gradient: random.coin(),
        misalignment: random.pick(&[0, 0, 1, 3]),
        gradient_row_stride: match &case.layout {
            Slots::Responses(Rows::Padded { width, .. }) if random.coin() => {
                Some(width + random.pick(&[0, 2, 8]))
            }
            _ => None,
        },
        logits: placement(random, &case),
        ..EmulatorBackend::default()
    };
    if case.backend.options.capability_major < 9 {
        // A policy that this device cannot follow is refused.
        case.backend.logits.row_policy = random.pick(&[RowPolicy::Auto, RowPolicy::Block]);
    }
    case.poison_invalid();
    case
}

/// Each seed is a case of its own, so that a failure names the case that fails.
fn check_seeds(seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let case = case(seed);
        let what = format!("seed {seed}, {:?}, {:?}", case.config, case.backend.logits);
        check(&case, &what);
    }
}

#[test]
fn random_cases_agree_with_the_reference_first_part() {
    check_seeds(0..200);
}

#[test]
fn random_cases_agree_with_the_reference_second_part() {
    check_seeds(200..400);
}
