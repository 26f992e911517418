//! Logits: the same bits in any order of threads and blocks, and from launch to launch in one
//! workspace.

use qae::params::RowPolicy;
use qae::{Aggregation, DType, Gradient, Groups, MetricsScope, Objective};
use qae_emulator::{EmulatorBackend, Options, Order};
use qae_test_support::Random;

use crate::case::{Rows, Source};
use crate::logits_case::{LogitsCase, Slots};
use crate::logits_compare::bits;
use crate::logits_random::case as random_case;
use crate::random::{rewards, vec_of};

const ORDERS: [Order; 3] = [Order::Sequential, Order::Random(1), Order::Random(2)];

fn with_policy(mut case: LogitsCase, row_policy: RowPolicy) -> LogitsCase {
    case.backend.logits.row_policy = row_policy;
    case
}

/// With every policy: a compact gradient, GSPO's two passes, rewards in groups, slots in any order,
/// rows of several chunks and of two blocks.
pub fn small_cases() -> Vec<LogitsCase> {
    let mut compact = LogitsCase::fill(4, Rows::packed(&vec_of(40, |i| i % 4)), 300, DType::F32);
    compact.config.gradient = Gradient::Compact;
    compact.mask = Some(vec_of(compact.layout.num_elements(), |i| {
        u8::from(i % 5 > 0)
    }));
    let mut gspo = LogitsCase::fill(5, Rows::padded(7, 5), 700, DType::F32);
    gspo.config.aggregation = Aggregation::SeqMeanTokenMean;
    gspo.config.objective = Objective::Gspo {
        low: Some(0.02),
        high: Some(0.03),
        log_ratio_max: None,
    };
    gspo.keep_clear_of_bounds();
    let mut grouped = LogitsCase::fill(6, Rows::padded(30, 1), 64, DType::Bf16);
    grouped.advantage = Source::Rewards {
        rewards: rewards(&mut Random(37), 60),
        groups: Groups::uniform(60, 5).unwrap(),
        response_index: Some(vec_of(30, |row| row as i32 * 2)),
    };
    // More slots than the teams describe at once, first of responses that do not act.
    let mut many = LogitsCase::fill(8, Rows::padded(1100, 1), 9, DType::F32);
    many.config.metrics_scope = MetricsScope::Active;
    let advantage = |row| if row > 1050 { 0.5 } else { 0.0 };
    many.advantage = Source::PerResponse(vec_of(1100, advantage));
    let indexed = Slots::Indexed {
        response: vec_of(50, |slot| (slot * 7 % 12) as i32 - 1),
        num_responses: 11,
    };
    let indexed = LogitsCase::fill_slots(7, indexed, 200, DType::F32);
    // Several chunks of a ring, which goes round; gradients that no vectors of the row fit.
    let mut ring = LogitsCase::fill(3, Rows::padded(7, 2), 18_001, DType::F16);
    ring.backend.logits.gradient_misalignment = 1;
    // A cluster of two blocks.
    let mut pair = LogitsCase::fill(9, Rows::padded(2, 2), 60_000, DType::F32);
    pair.config.entropy_coef = 0.01;
    [compact, gspo, grouped, many, indexed, ring, pair]
        .into_iter()
        .flat_map(|case| {
            [RowPolicy::Cluster, RowPolicy::Block].map(|policy| with_policy(case.clone(), policy))
        })
        .collect()
}

/// And with clusters of four blocks and of two.
fn cases() -> Vec<LogitsCase> {
    let mut large = LogitsCase::fill(1, Rows::padded(1, 2), 151_936, DType::F32);
    large.config.entropy_coef = 0.01;
    let mut medium = LogitsCase::fill(2, Rows::packed(&[2, 0, 3]), 120_003, DType::Bf16);
    medium.backend.logits.in_place = true;
    let mut cases = vec![
        with_policy(large, RowPolicy::Cluster),
        with_policy(medium, RowPolicy::Cluster),
    ];
    cases.extend(small_cases());
    cases
}

pub fn with_options(case: &LogitsCase, options: Options) -> EmulatorBackend {
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
            let run = backend.run_loss_from_logits(&case.batch(), &case.config);
            bits(&run.unwrap().output)
        });
        for result in &results {
            assert!(result == &results[0], "case {number}");
        }
    }
}

/// The number of multiprocessors decides who computes a row, not its gradient: only the order of
/// sums over rows may differ.
#[test]
fn any_number_of_multiprocessors_gives_the_same_gradient() {
    for (number, case) in small_cases().iter().enumerate() {
        let gradients = [1, 3, 8].map(|num_sms| {
            let options = Options {
                num_sms,
                ..Options::default()
            };
            let backend = with_options(case, options);
            let run = backend
                .run_loss_from_logits(&case.batch(), &case.config)
                .unwrap();
            (
                run.output.d_logits,
                run.output.loss.d_log_prob,
                run.output.active_slots,
            )
        });
        for gradient in &gradients {
            assert!(gradient == &gradients[0], "case {number}");
        }
    }
}

/// Every launch leaves its tickets and counters at 0, whatever shape comes next.
#[test]
fn one_workspace_serves_batches_of_any_shape() {
    let mut all = small_cases();
    all.extend((0..8).map(random_case));
    all.extend(small_cases().into_iter().rev());
    let placement = |row_policy| qae_emulator::LogitsPlacement {
        row_policy,
        ..qae_emulator::LogitsPlacement::default()
    };
    for (order, row_policy) in [
        (Order::Sequential, RowPolicy::Cluster),
        (Order::Random(7), RowPolicy::Block),
    ] {
        let backend = EmulatorBackend {
            options: Options {
                order,
                ..Options::default()
            },
            logits: placement(row_policy),
            ..EmulatorBackend::default()
        };
        let calls: Vec<_> = all.iter().map(|case| (case.batch(), case.config)).collect();
        let runs = backend.run_losses_from_logits(&calls).unwrap();
        for ((batch, config), run) in calls.iter().zip(&runs) {
            let alone = backend.run_loss_from_logits(batch, config).unwrap();
            assert_eq!(bits(&run.output), bits(&alone.output));
        }
    }
}
