//! Groups of every size, through the fused launch and through the kernel `advantages`.

use qae::{
    AdvantageConfig, Aggregation, Baseline, DType, Groups, Interpolation, Objective, reference,
};
use qae_emulator::{AdvantageRun, EmulatorBackend};
use qae_test_support::Random;

use crate::case::{Case, Rows, Source};
use crate::compare::{check, check_values};
use crate::random::{advantage_config, fill, groups, rewards, vec_of};

/// Around a warp and the 1,024 up to which a group is computed in the fused launch.
const SIZES: [usize; 12] = [1, 2, 31, 32, 33, 64, 255, 257, 1000, 1023, 1024, 1025];

/// Runs the kernel `advantages` and asserts that every output agrees with the reference.
fn check_advantages(
    rewards: &[f32],
    groups: &Groups,
    config: &AdvantageConfig,
    what: &str,
) -> AdvantageRun {
    let run = EmulatorBackend::default().run_advantages(rewards, groups, config);
    let run = run.unwrap_or_else(|error| panic!("{what}: {error}"));
    let expected = reference::advantages(rewards, groups, config).unwrap();
    let what = format!("{what}, {config:?}");
    check_values(&run.output.baseline, &expected.baseline, 1e-6, &what);
    check_values(&run.output.advantage, &expected.advantage, 1e-6, &what);
    assert_eq!(run.output.metrics, expected.metrics, "{what}");
    let active = expected.advantage.iter().enumerate();
    let active = active.filter(|(_, advantage)| **advantage != 0.0);
    let active: Vec<i32> = active.map(|(response, _)| response as i32).collect();
    assert_eq!(run.active, active, "{what}");
    run
}

/// The fused launch on `groups`, with as many local rows as there are lengths.
fn check_fused(rewards: Vec<f32>, groups: Groups, config: AdvantageConfig, what: &str) -> Case {
    let random = &mut Random(rewards.len() as u64);
    let lengths = vec_of(9, |_| random.below(20));
    let mut case = fill(23, Rows::packed(&lengths), DType::F32);
    let index = vec_of(9, |_| random.below(rewards.len()) as i32);
    case.advantage = Source::Rewards {
        rewards,
        groups,
        response_index: Some(index),
    };
    case.config.advantage = config;
    check(&case, what);
    case
}

#[test]
fn groups_of_every_size_in_every_configuration() {
    for size in SIZES {
        for seed in 0..12 {
            let random = &mut Random(1000 * seed + size as u64);
            let config = advantage_config(random);
            let num_responses = if size < 100 { 3 * size } else { size };
            let groups = Groups::uniform(num_responses, size).unwrap();
            let rewards = rewards(random, num_responses);
            let what = format!("groups of {size}, seed {seed}");
            check_advantages(&rewards, &groups, &config, &what);
            check_fused(rewards, groups, config, &what);
        }
    }
}

#[test]
fn groups_of_every_form() {
    for seed in 0..150 {
        let random = &mut Random(seed);
        let config = advantage_config(random);
        let least = random.below(90) + 1;
        let groups = groups(random, least);
        let rewards = rewards(random, groups.num_responses());
        check_advantages(&rewards, &groups, &config, &format!("seed {seed}"));
    }
}

#[test]
fn no_groups() {
    let groups = Groups::uniform(0, 4).unwrap();
    check_advantages(&[], &groups, &AdvantageConfig::default(), "no groups");
}

/// Rewards that f32 does not add exactly, ties among them.
#[test]
fn a_group_of_65536() {
    const SIZE: usize = 65_536;
    let random = &mut Random(29);
    let rewards = vec_of(SIZE, |_| random.between(-3.0, 5.0));
    let groups = Groups::uniform(SIZE, SIZE).unwrap();
    for interpolation in [Interpolation::InvertedCdf, Interpolation::Linear] {
        let config = AdvantageConfig {
            baseline: Baseline::Quantile {
                k: 0.4,
                interpolation,
            },
            ..AdvantageConfig::default()
        };
        check_advantages(&rewards, &groups, &config, "advantages");
        let case = check_fused(rewards.clone(), groups.clone(), config, "fused");
        let run = case.backend.run_loss(&case.batch(), &case.config).unwrap();
        assert_eq!(run.loss_trace.launches.len(), 2);
    }
}

#[test]
fn large_groups_in_every_kernel_and_form() {
    let random = &mut Random(31);
    let labels = vec_of(2600, |_| i64::from(random.below(5) < 4));
    let groups = Groups::from_ids(&labels).unwrap();
    let rewards = rewards(random, 2600);
    for seed in 0..6 {
        let config = advantage_config(&mut Random(seed));
        check_advantages(&rewards, &groups, &config, "advantages");
        let mut case = check_fused(rewards.clone(), groups.clone(), config, "tiles");
        case.config.aggregation = Aggregation::SeqMeanTokenMean;
        case.config.objective = Objective::Gspo {
            low: Some(0.02),
            high: Some(0.03),
            log_ratio_max: None,
        };
        check(&case, "rows");
    }
}

/// The rank ⌈k·n⌉ is that of exact arithmetic on the decimal k: with the rewards 1 to n in any
/// order, the baseline is the rank.
#[test]
fn ranks_are_those_of_exact_arithmetic() {
    let offsets: Vec<i32> = (0..=64).map(|n| n * (n + 1) / 2).collect();
    let groups = Groups::from_offsets(&offsets).unwrap();
    let mut rewards = vec![];
    for n in 1..=64_usize {
        // 67 has no factor in common with any n: a permutation.
        rewards.extend((0..n).map(|i| (1 + i * 67 % n) as f32));
    }
    for j in (1..1000_usize)
        .step_by(3)
        .chain([70, 140, 280, 290, 560, 570, 580])
    {
        let config = AdvantageConfig {
            baseline: Baseline::Quantile {
                k: j as f64 / 1000.0,
                interpolation: Interpolation::InvertedCdf,
            },
            ..AdvantageConfig::default()
        };
        let run = EmulatorBackend::default().run_advantages(&rewards, &groups, &config);
        let baseline = run.unwrap().output.baseline;
        // A group of one has baseline 0.
        for n in 2..=64 {
            let rank = (j * n).div_ceil(1000);
            assert_eq!(baseline[n * (n - 1) / 2], rank as f64, "{j}/1000 of {n}");
        }
    }
}

#[test]
fn rewards_that_are_equal_extreme_or_not_finite() {
    let inexact = 0.7_f32;
    for rewards in [
        vec![inexact; 7],
        // Their squares are beyond f32.
        vec![1e30, -1e30, 5e29, 0.0],
        vec![0.0, -0.0, 0.0, -0.0],
        vec![f32::MIN_POSITIVE, 0.0, 1e-45, -1e-45],
        vec![f32::NAN; 4],
        vec![f32::INFINITY, 1.0, f32::NEG_INFINITY, 0.0],
        vec![f32::NAN, 1.0, f32::NAN, f32::INFINITY],
        vec![1.0, 1.0, f32::NAN, 1.0],
    ] {
        for seed in 0..20 {
            let config = advantage_config(&mut Random(seed));
            let groups = Groups::uniform(rewards.len(), rewards.len()).unwrap();
            let what = format!("{rewards:?}");
            let run = check_advantages(&rewards, &groups, &config, &what);
            check_fused(rewards.clone(), groups, config, &what);
            if rewards == vec![inexact; 7] {
                assert_eq!(run.output.metrics.zero, 7, "σ of equal rewards is rounding");
            }
        }
    }
}

#[test]
fn rewards_next_to_the_threshold() {
    for threshold in [0.1, 0.3, 0.7, 0.8] {
        let reward = threshold as f32;
        let rewards = [0.0, reward, reward.next_up(), reward.next_down()].repeat(5);
        for seed in 0..20 {
            let config = AdvantageConfig {
                success_threshold: threshold,
                ..advantage_config(&mut Random(seed))
            };
            let groups = Groups::uniform(rewards.len(), 4).unwrap();
            let what = format!("threshold {threshold}");
            check_advantages(&rewards, &groups, &config, &what);
            check_fused(rewards.clone(), groups, config, &what);
        }
    }
}
