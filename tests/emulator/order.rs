//! The same bits in any order of threads and blocks, and from launch to launch in one workspace.

use qae::{AdvantageConfig, Aggregation, Config, DType, Groups, Objective};
use qae_emulator::{EmulatorBackend, Options, Order};
use qae_test_support::Random;

use crate::case::{Case, Rows, Source, Values};
use crate::compare::bits;
use crate::random::{case, fill, kls, rewards, vec_of};

const ORDERS: [Order; 6] = [
    Order::Sequential,
    Order::Random(1),
    Order::Random(2),
    Order::Random(3),
    Order::Random(4),
    Order::Random(5),
];

/// A case of each kernel and of several blocks, with everything that blocks hand to each other.
pub fn cases() -> Vec<Case> {
    let gspo = Objective::Gspo {
        low: Some(0.02),
        high: Some(0.03),
        log_ratio_max: None,
    };
    let from_rewards = |mut case: Case, group_size: usize| {
        let num_rows = case.layout.borrow().num_rows();
        let random = &mut Random(37);
        let num_responses = num_rows.div_ceil(group_size) * group_size;
        case.advantage = Source::Rewards {
            rewards: rewards(random, num_responses),
            groups: Groups::uniform(num_responses, group_size).unwrap(),
            response_index: Some(vec_of(num_rows, |row| row as i32)),
        };
        case
    };
    let lengths = vec_of(200, |row| row * 13 % 40);
    let tiles = from_rewards(fill(1, Rows::packed(&lengths), DType::F32), 4);
    let large_group = from_rewards(fill(2, Rows::packed(&lengths), DType::F32), 1030);
    let wide = from_rewards(fill(3, Rows::padded(5, 14_000), DType::Bf16), 5);
    let mut rows = from_rewards(fill(4, Rows::padded(30, 50), DType::F32), 3);
    rows.config.aggregation = Aggregation::SeqMeanTokenMean;
    rows.mask = Some(vec_of(1500, |slot| u8::from(slot % 5 > 1)));
    let mut long_rows = fill(5, Rows::padded(3, 1500), DType::F32);
    long_rows.config.objective = gspo;
    let mut with_kl = rows.clone();
    with_kl.config.objective = gspo;
    with_kl.config.kl = kls()[4];
    with_kl.ref_log_prob = Some(Values::F32(vec![-1.0; 1500]));
    // More rows than a block lists at once, and rows that a later tile finds active.
    let many_rows = from_rewards(fill(6, Rows::packed(&[3; 700]), DType::F32), 7);
    let mut late = fill(7, Rows::padded(30, 3000), DType::F32);
    late.mask = Some(vec_of(90_000, |slot| u8::from(slot % 3000 == 2500)));
    vec![
        tiles,
        large_group,
        wide,
        rows,
        long_rows,
        with_kl,
        many_rows,
        late,
    ]
}

fn with_options(case: &Case, options: Options) -> EmulatorBackend {
    EmulatorBackend {
        options,
        ..case.backend.clone()
    }
}

#[test]
fn any_order_of_threads_and_blocks_gives_the_same_bits() {
    for (number, case) in cases().iter().enumerate() {
        let results = ORDERS.map(|order| {
            let options = Options {
                order,
                ..Options::default()
            };
            let backend = with_options(case, options);
            bits(
                &backend
                    .run_loss(&case.batch(), &case.config)
                    .unwrap()
                    .output,
            )
        });
        for result in &results {
            assert_eq!(result, &results[0], "case {number}");
        }
    }
}

#[test]
fn any_order_gives_the_same_advantages() {
    for size in [3, 1030] {
        let groups = Groups::uniform(3 * size, size).unwrap();
        let rewards = rewards(&mut Random(41), 3 * size);
        let results = ORDERS.map(|order| {
            let options = Options {
                order,
                ..Options::default()
            };
            let backend = EmulatorBackend {
                options,
                ..EmulatorBackend::default()
            };
            let config = AdvantageConfig::default();
            let run = backend.run_advantages(&rewards, &groups, &config).unwrap();
            (format!("{:?}", run.output), run.active)
        });
        for result in &results {
            assert_eq!(result, &results[0], "groups of {size}");
        }
    }
}

/// Every launch leaves its tickets and counters at 0, whatever shape comes next.
#[test]
fn one_workspace_serves_batches_of_any_shape() {
    let mut all = cases();
    all.extend((0..12).map(case));
    all.extend(cases().into_iter().rev());
    for order in [Order::Sequential, Order::Random(7)] {
        let options = Options {
            order,
            ..Options::default()
        };
        let backend = EmulatorBackend {
            options,
            ..EmulatorBackend::default()
        };
        let calls: Vec<_> = all.iter().map(|case| (case.batch(), case.config)).collect();
        let runs = backend.run_losses(&calls).unwrap();
        for ((batch, config), run) in calls.iter().zip(&runs) {
            let alone = backend.run_loss(batch, config).unwrap();
            assert_eq!(bits(&run.output), bits(&alone.output));
        }
    }
}

#[test]
fn two_launches_in_a_row_give_the_same() {
    for case in cases() {
        let call: (_, Config) = (case.batch(), case.config);
        let runs = case.backend.run_losses(&[call, call]).unwrap();
        assert_eq!(bits(&runs[0].output), bits(&runs[1].output));
    }
}
