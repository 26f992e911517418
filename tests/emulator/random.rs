//! Random cases: every option of the operation, chosen independently, from a seed.

use qae::{
    AdvantageConfig, Aggregation, Baseline, Config, DType, Gate, Gradient, Groups, Interpolation,
    Kl, KlEstimator, MetricsScope, Normalizer, Objective, Scale, Singleton,
};
use qae_emulator::EmulatorBackend;
use qae_test_support::Random;

use crate::case::{Case, Rows, Source, Values, Weight};

/// Every objective, with and without each of its options.
pub fn objectives() -> Vec<Objective> {
    let (low, high) = (Some(0.2), Some(0.28));
    let clip = |low, high, dual_clip, ratio_cap| Objective::Clip {
        low,
        high,
        dual_clip,
        ratio_cap,
    };
    let gspo = |log_ratio_max| Objective::Gspo {
        low: Some(0.02),
        high: Some(0.03),
        log_ratio_max,
    };
    vec![
        clip(low, high, None, None),
        clip(low, high, Some(3.0), None),
        clip(low, high, Some(1.5), Some(2.0)),
        clip(None, None, None, None),
        gspo(None),
        gspo(Some(0.125)),
        Objective::Cispo { low, high },
        Objective::Cispo { low: None, high },
        Objective::Sapo {
            tau_positive: 1.0,
            tau_negative: 1.05,
        },
        Objective::Reinforce,
    ]
}

/// Every KL term, and none.
pub fn kls() -> Vec<Option<Kl>> {
    let kl = |estimator, clamp| {
        Some(Kl {
            estimator,
            coef: 0.375,
            clamp,
        })
    };
    vec![
        None,
        None,
        kl(KlEstimator::K1, false),
        kl(KlEstimator::K2, false),
        kl(KlEstimator::K3, false),
        kl(KlEstimator::K3, true),
    ]
}

/// Every way from rewards to advantages.
pub fn advantage_config(random: &mut Random) -> AdvantageConfig {
    let quantile = |k, interpolation| Baseline::Quantile { k, interpolation };
    let k = random.pick(&[0.1, 0.28, 0.4, 0.5, 0.8]);
    let baseline = random.pick(&[
        Baseline::Mean,
        Baseline::LeaveOneOut,
        quantile(k, Interpolation::InvertedCdf),
        quantile(k, Interpolation::Linear),
    ]);
    let gates = [
        Gate::Off,
        Gate::TwoRegime,
        Gate::PositiveMask,
        Gate::NegativeMask,
    ];
    let std = |unbiased, epsilon| Scale::Std { unbiased, epsilon };
    AdvantageConfig {
        baseline,
        scale: random.pick(&[
            Scale::None,
            std(true, 1e-6),
            std(true, 1e-4),
            std(false, 1e-6),
        ]),
        singleton: random.pick(&[Singleton::Reward, Singleton::Zero]),
        gate: match baseline {
            Baseline::Quantile { .. } => random.pick(&gates),
            _ => Gate::Off,
        },
        success_threshold: random.pick(&[0.5, 0.25]),
    }
}

pub fn config(random: &mut Random) -> Config {
    Config {
        advantage: advantage_config(random),
        objective: random.pick(&objectives()),
        log_ratio_clamp: random.pick(&[None, Some(20.0), Some(0.375)]),
        kl: random.pick(&kls()),
        aggregation: random.pick(&[
            Aggregation::TokenMean,
            Aggregation::SeqMeanTokenMean,
            Aggregation::SeqMeanTokenSum,
            Aggregation::SeqMeanTokenSumNorm { scale: 7.0 },
        ]),
        normalizer: random.pick(&[Normalizer::FromBatch, Normalizer::Value(37.0)]),
        loss_multiplier: random.pick(&[1.0, 4.0]),
        grad_scale: random.pick(&[1.0, 0.5]),
        metrics_scope: random.pick(&[MetricsScope::All, MetricsScope::Active]),
        temperature: 1.0,
        entropy_coef: 0.0,
        gradient: random.pick(&[Gradient::ZeroFill, Gradient::Untouched]),
    }
}

/// Rows and their mask.
pub fn rows(random: &mut Random) -> (Rows, Option<Vec<u8>>) {
    let num_rows = random.pick(&[1, 2, 3, 8, 9, 17]);
    let longest = random.pick(&[1, 5, 16, 33, 70, 150]);
    let masked = random.coin();
    if random.below(3) == 0 {
        let lengths: Vec<usize> = (0..num_rows).map(|_| random.below(longest + 1)).collect();
        let slots = lengths.iter().sum();
        let mask = masked.then(|| mask(random, slots));
        return (Rows::packed(&lengths), mask);
    }
    let gap = |random: &mut Random| random.pick(&[0, 0, 1, 3, 8]);
    let (row_stride, mask_row_stride) = (longest + gap(random), longest + gap(random));
    let lengths = random.coin().then(|| {
        let each = 0..num_rows;
        each.map(|_| random.below(longest + 1) as i32).collect()
    });
    let layout = Rows::Padded {
        num_rows,
        width: longest,
        row_stride,
        mask_row_stride,
        lengths,
    };
    let elements = layout.borrow().num_mask_elements();
    (layout, masked.then(|| mask(random, elements)))
}

/// Interior spans: runs of the same value.
pub fn mask(random: &mut Random, len: usize) -> Vec<u8> {
    let mut mask = Vec::with_capacity(len);
    while mask.len() < len {
        let (run, value) = (1 + random.below(9), u8::from(random.below(3) > 0));
        mask.resize((mask.len() + run).min(len), value);
    }
    mask
}

/// Rewards on a grid that f32 sums exactly, so that both sides agree which advantages are 0.
pub fn rewards(random: &mut Random, len: usize) -> Vec<f32> {
    let binary = random.coin();
    let any = |random: &mut Random| random.below(9) as f32 / 8.0;
    (0..len)
        .map(|_| match random.below(24) {
            0 => random.pick(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]),
            _ if binary => random.below(2) as f32,
            _ => any(random),
        })
        .collect()
}

/// Groups of each form over at least `least` responses.
pub fn groups(random: &mut Random, least: usize) -> Groups {
    let size = random.pick(&[1, 2, 4, 7, 16, 40]);
    let form = random.below(3);
    if form == 0 {
        return Groups::uniform(least.div_ceil(size) * size, size).unwrap();
    }
    if form == 1 {
        let mut offsets = vec![0];
        while offsets[offsets.len() - 1] < least as i32 {
            offsets.push(offsets[offsets.len() - 1] + 1 + random.below(size) as i32);
        }
        return Groups::from_offsets(&offsets).unwrap();
    }
    let num_labels = least.div_ceil(size);
    let labels = (0..least).map(|_| random.below(num_labels) as i64 - 3);
    Groups::from_ids(&labels.collect::<Vec<_>>()).unwrap()
}

pub fn source(random: &mut Random, num_rows: usize, slots: usize) -> Source {
    // Powers of two: every third row or token has none.
    let advantage = |random: &mut Random| random.pick(&[0.0, 0.5, -1.0, 2.0, -0.25, 0.0]);
    match random.below(4) {
        0 => Source::PerResponse((0..num_rows).map(|_| advantage(random)).collect()),
        1 => Source::PerToken((0..slots).map(|_| advantage(random)).collect()),
        _ => {
            let global = random.coin();
            let groups = if global {
                groups(random, 2 * num_rows)
            } else {
                Groups::from_ids(&vec_of(num_rows, |_| random.below(4) as i64)).unwrap()
            };
            let rewards = rewards(random, groups.num_responses());
            let index = |random: &mut Random| random.below(groups.num_responses()) as i32;
            Source::Rewards {
                response_index: global.then(|| vec_of(num_rows, |_| index(random))),
                rewards,
                groups,
            }
        }
    }
}

pub fn vec_of<T>(len: usize, mut element: impl FnMut(usize) -> T) -> Vec<T> {
    (0..len).map(&mut element).collect()
}

/// A case of `seed`; what is not a valid token holds NaN and infinities.
pub fn case(seed: u64) -> Case {
    let random = &mut Random(seed);
    let config = config(random);
    let (layout, mask) = rows(random);
    let num_rows = layout.borrow().num_rows();
    let slots = layout.borrow().num_elements();
    let dtype = random.pick(&[DType::F32, DType::F32, DType::Bf16, DType::F16]);
    let old = random.values(slots, -4.0, -0.5);
    let near: [(f32, f32); 3] = [(-0.5, 0.5), (-3.0, 3.0), (0.0, 0.0625)];
    let (low, high) = random.pick(&near);
    let log_prob = vec_of(slots, |i| old[i] + random.between(low, high));
    let reference = vec_of(slots, |i| log_prob[i] + random.between(-1.0, 1.0));
    let without_old = config.objective == Objective::Reinforce && random.coin();
    let gradient_gap = random.pick(&[0, 2, 8]);
    let gradient_row_stride = match &layout {
        Rows::Padded { width, .. } if random.coin() => Some(width + gradient_gap),
        _ => None,
    };
    let weight = match random.below(3) {
        0 => Weight::PerToken(random.values(slots, 0.25, 2.0)),
        1 => Weight::PerResponse(random.values(num_rows, 0.25, 2.0)),
        _ => Weight::None,
    };
    let mut case = Case {
        mask,
        log_prob: Values::new(dtype, &log_prob),
        old_log_prob: (!without_old).then(|| Values::new(dtype, &old)),
        ref_log_prob: config.kl.map(|_| Values::new(dtype, &reference)),
        weight,
        advantage: source(random, num_rows, slots),
        backend: EmulatorBackend {
            narrow_gradient: random.coin(),
            misalignment: random.pick(&[0, 0, 1, 3]),
            gradient_row_stride,
            ..EmulatorBackend::default()
        },
        layout,
        config,
    };
    case.poison_invalid();
    case
}

/// Rows with advantages of both signs and 0, in `dtype`, with the default configuration.
pub fn fill(seed: u64, layout: Rows, dtype: DType) -> Case {
    let random = &mut Random(seed);
    let num_rows = layout.borrow().num_rows();
    let slots = layout.borrow().num_elements();
    let old = random.values(slots, -4.0, -0.5);
    let log_prob = vec_of(slots, |i| old[i] + random.between(-0.5, 0.5));
    let advantages = vec_of(num_rows, |row| [1.0, 0.0, -0.5, 0.25, 0.0, -2.0][row % 6]);
    let mut case = Case::on_policy(layout, advantages);
    case.log_prob = Values::new(dtype, &log_prob);
    case.old_log_prob = Some(Values::new(dtype, &old));
    case
}
