//! Which rows of the gradient are written, by the gradient's mode, the layout and what acts.

use qae::params::RowPolicy;
use qae::{Aggregation, Config, Gradient, Kl, KlEstimator, MetricsScope, Objective};
use qae_emulator::{LogitsPlacement, LogitsRun};

use crate::case::{Rows, Source, Values};
use crate::logits_case::{LogitsCase, Slots};
use crate::logits_compare::check;
use crate::random::vec_of;

/// Six padded responses of up to four tokens, of which the second and the fifth do not act; some
/// slots are masked.
fn padded() -> LogitsCase {
    let layout = Rows::Padded {
        num_rows: 6,
        width: 4,
        row_stride: 5,
        mask_row_stride: 4,
        lengths: Some(vec![4, 4, 3, 0, 2, 4]),
    };
    let mut case = LogitsCase::fill(3, layout, 37, qae::DType::F32);
    case.mask = Some(vec_of(24, |slot| u8::from(slot % 5 != 2)));
    case.poison_invalid();
    case
}

fn indexed() -> LogitsCase {
    let slots = Slots::Indexed {
        response: vec![2, 0, -1, 1, 1, 0, 2, -7, 3, 0],
        num_responses: 6,
    };
    let mut case = LogitsCase::fill_slots(4, slots, 37, qae::DType::F32);
    case.mask = Some(vec![1, 1, 1, 1, 1, 0, 1, 1, 1, 1]);
    case.poison_invalid();
    case
}

/// The case under each policy and, where that can be, in place.
fn runs(mut case: LogitsCase, what: &str) -> Vec<LogitsRun> {
    let mut runs = vec![];
    for row_policy in [RowPolicy::Cluster, RowPolicy::Block] {
        for in_place in [false, true] {
            if in_place && case.config.gradient == Gradient::Compact {
                continue;
            }
            case.backend.logits = LogitsPlacement {
                row_policy,
                in_place,
                ..LogitsPlacement::default()
            };
            runs.push(check(
                &case,
                &format!("{what}, {row_policy:?}, in place {in_place}"),
            ));
        }
    }
    runs
}

/// By slot, whether the response that it stands in acts.
fn stands_in_acting_response(case: &LogitsCase) -> Vec<bool> {
    let Source::PerResponse(advantages) = &case.advantage else {
        return vec![true; case.slots().len()];
    };
    let acts = |response: usize| advantages[response] != 0.0;
    match &case.layout {
        Slots::Indexed { response, .. } => response
            .iter()
            .map(|&response| usize::try_from(response).is_ok_and(acts))
            .collect(),
        Slots::Responses(rows) => rows
            .rows()
            .enumerate()
            .flat_map(|(response, row)| vec![acts(response); row.num_slots])
            .collect(),
    }
}

#[test]
fn zero_fill_writes_every_row() {
    for case in [padded(), indexed()] {
        for run in runs(case, "zero fill") {
            assert!(run.written.iter().all(|&written| written));
        }
    }
}

#[test]
fn untouched_leaves_the_rows_of_inactive_responses() {
    for mut case in [padded(), indexed()] {
        case.config.gradient = Gradient::Untouched;
        let expected = stands_in_acting_response(&case);
        for run in runs(case, "untouched") {
            assert_eq!(run.written, expected);
        }
    }
}

/// Where each token has an advantage of its own no response is known to be inactive.
#[test]
fn untouched_writes_every_response_with_advantages_by_token() {
    let mut case = padded();
    case.config.gradient = Gradient::Untouched;
    let elements = case.layout.num_elements();
    case.advantage = Source::PerToken(vec_of(elements, |i| [0.0, 1.0, -0.5, 0.0][i % 4]));
    case.poison_invalid();
    for run in runs(case, "untouched by token") {
        assert!(run.written.iter().all(|&written| written));
    }
}

#[test]
fn kl_and_entropy_terms_make_every_response_act() {
    for (kl, entropy_coef) in [(true, 0.0), (false, 0.01), (true, -0.5)] {
        for gradient in [Gradient::Untouched, Gradient::Compact] {
            let mut case = padded();
            case.config.gradient = gradient;
            case.config.entropy_coef = entropy_coef;
            case.config.kl = kl.then_some(Kl {
                estimator: KlEstimator::K3,
                coef: 0.25,
                clamp: false,
            });
            let log_probs = case.log_probs();
            let near = log_probs.iter().map(|&x| x as f32 + 0.25);
            case.ref_log_prob = kl.then(|| Values::F32(near.collect()));
            case.poison_invalid();
            for run in runs(case.clone(), &format!("{kl} {entropy_coef} {gradient:?}")) {
                assert!(run.written.iter().all(|&written| written));
                if gradient == Gradient::Compact {
                    let slots = case.slots();
                    let valid = slots.iter().filter(|slot| case.is_valid(slot)).count();
                    assert_eq!(run.output.active_slots.len(), valid);
                }
            }
        }
    }
}

#[test]
fn compact_lists_the_slots_that_act() {
    let mut case = padded();
    case.config.gradient = Gradient::Compact;
    let slots = case.slots();
    let acting = stands_in_acting_response(&case);
    let expected: Vec<u64> = (0..slots.len())
        .filter(|&slot| acting[slot] && case.is_valid(&slots[slot]))
        .map(|slot| slot as u64)
        .collect();
    for run in runs(case, "compact") {
        assert_eq!(run.output.active_slots, expected);
    }
}

/// Rows for which there is no room are counted and not written.
#[test]
fn compact_never_writes_beyond_its_room() {
    let mut case = padded();
    case.config.gradient = Gradient::Compact;
    let whole = case.expected();
    for room in [0, 1, 5, whole.active_slots.len(), 24] {
        for row_policy in [RowPolicy::Cluster, RowPolicy::Block] {
            case.backend.logits = LogitsPlacement {
                row_policy,
                compact_room: Some(room),
                ..LogitsPlacement::default()
            };
            let run = case
                .backend
                .run_loss_from_logits(&case.batch(), &case.config)
                .unwrap();
            assert_eq!(run.output.active_slots, whole.active_slots);
            assert_eq!(run.written.len(), room.min(whole.active_slots.len()));
        }
    }
}

/// The results are those of the rows themselves, whatever else is asked for.
#[test]
fn outputs_that_are_not_asked_for_change_nothing() {
    for scope in [MetricsScope::All, MetricsScope::Active] {
        let mut case = padded();
        case.config.metrics_scope = scope;
        let all = check(&case, "all").output;
        for (without_d_log_prob, without_token_outputs) in [(true, false), (true, true)] {
            case.backend.logits.without_d_log_prob = without_d_log_prob;
            case.backend.logits.without_token_outputs = without_token_outputs;
            let some = check(&case, "some").output;
            assert_eq!(some.d_logits, all.d_logits);
            assert_eq!(some.loss.metrics, all.loss.metrics);
        }
    }
}

/// Responses so long that their masks and advantages are walked in several steps.
#[test]
fn long_responses() {
    let gspo = Objective::Gspo {
        low: Some(0.02),
        high: Some(0.03),
        log_ratio_max: None,
    };
    let clip = Config::default().objective;
    for (objective, aggregation) in [
        (clip, Aggregation::TokenMean),
        (clip, Aggregation::SeqMeanTokenMean),
        (gspo, Aggregation::SeqMeanTokenMean),
    ] {
        for by_token in [false, true] {
            let layout = Rows::Padded {
                num_rows: 2,
                width: 1100,
                row_stride: 1103,
                mask_row_stride: 1101,
                lengths: Some(vec![1097, 530]),
            };
            let mut case = LogitsCase::fill(5, layout, 5, qae::DType::F32);
            case.mask = Some(vec_of(1101 + 1100, |slot| u8::from(slot * 7 % 11 > 2)));
            case.config = Config {
                objective,
                aggregation,
                gradient: Gradient::Compact,
                metrics_scope: MetricsScope::Active,
                ..case.config
            };
            case.advantage = match by_token {
                true => Source::PerToken(vec_of(2203, |i| [0.0, 0.0, 1.0, -0.5][i % 4])),
                false => Source::PerResponse(vec![-0.5, 1.0]),
            };
            case.keep_clear_of_bounds();
            case.poison_invalid();
            for row_policy in [RowPolicy::Cluster, RowPolicy::Block] {
                case.backend.logits.row_policy = row_policy;
                check(&case, &format!("{:?}, by token {by_token}", case.config));
            }
        }
    }
}
