//! Which rows of the gradient there are, and that they are the same rows in every mode.

use crate::case::{Case, config, configs};
use crate::{assert_same_tensors, backends, run};
use qae::{Backend, Config, CpuBackend, Gradient, MetricsScope, Normalizer};
use qae_test_support::{Advantage, bits, kls};

const VOCAB: usize = 5;

fn with(gradient: Gradient, config: Config) -> Config {
    Config { gradient, ..config }
}

fn acts(case: &Case, config: &Config, slot: usize) -> bool {
    let everywhere = config.kl.is_some() || config.entropy_coef != 0.0;
    case.is_valid(slot) && (everywhere || case.advantage_of(slot) != 0.0)
}

fn assert_compact_rows_are_the_dense_ones(case: &Case, config: Config) {
    let expected: Vec<u64> = (0..case.num_slots())
        .filter(|&slot| acts(case, &config, slot))
        .map(|slot| slot as u64)
        .collect();
    for backend in backends() {
        let dense = run(&*backend, &case.batch(), &with(Gradient::ZeroFill, config));
        let compact = run(&*backend, &case.batch(), &with(Gradient::Compact, config));
        assert!(dense.active_slots.is_empty());
        assert_eq!(compact.active_slots, expected);
        assert_eq!(compact.d_logits.len(), expected.len() * VOCAB);
        for (row, &slot) in compact.d_logits.chunks(VOCAB).zip(&expected) {
            let of_slot = &dense.d_logits[slot as usize * VOCAB..][..VOCAB];
            assert_eq!(bits(row), bits(of_slot), "slot {slot}");
        }
        for slot in (0..case.num_slots()).filter(|&slot| !acts(case, &config, slot)) {
            let of_slot = &dense.d_logits[slot * VOCAB..][..VOCAB];
            assert_eq!(bits(of_slot), [0; VOCAB], "slot {slot}");
        }
        assert_eq!(compact.loss.metrics, dense.loss.metrics);
        assert_eq!(bits(&compact.loss.d_log_prob), bits(&dense.loss.d_log_prob));
        assert_eq!(bits(&compact.log_prob), bits(&dense.log_prob));
    }
}

#[test]
fn compact_rows_are_the_dense_ones() {
    let case = Case::random(31, 6, 4, VOCAB);
    for config in configs() {
        assert_compact_rows_are_the_dense_ones(&case, config);
    }
}

#[test]
fn compact_rows_are_those_of_the_tokens_with_an_advantage() {
    let base = Case::random(32, 6, 4, VOCAB);
    let advantage = |slot: usize| [1.0, 0.0, -1.0, f32::NAN][slot % 4];
    let case = Case {
        advantage: Advantage::PerToken((0..24).map(advantage).collect()),
        ..base
    };
    // An advantage that is not finite acts as 0.
    let finite = Case {
        advantage: Advantage::PerToken(
            (0..24)
                .map(advantage)
                .map(|a| if a.is_nan() { 0.0 } else { a })
                .collect(),
        ),
        ..case.clone()
    };
    assert_compact_rows_are_the_dense_ones(&finite, config());
    for backend in backends() {
        let config = with(Gradient::Compact, config());
        let found = run(&*backend, &case.batch(), &config);
        assert_same_tensors(&found, &run(&*backend, &finite.batch(), &config), "NaN");
        assert!(found.loss.metrics.groups.nonfinite_rewards > 0);
    }
}

#[test]
fn a_clipped_token_and_one_that_is_left_out_have_compact_rows_of_zero() {
    let mut case = Case::random(33, 1, 3, VOCAB);
    case.mask = None;
    case.advantage = Advantage::PerResponse(vec![1.0]);
    let old: Vec<f32> = case
        .log_probs(config().temperature)
        .iter()
        .map(|&x| x as f32)
        .collect();
    case.old_log_prob = Some(vec![old[0], old[1] - 1.0, old[2]]);
    case.row_mut(2).fill(f32::NAN);
    for backend in backends() {
        let output = run(&*backend, &case.batch(), &with(Gradient::Compact, config()));
        assert_eq!(output.active_slots, [0, 1, 2]);
        assert_eq!(bits(&output.d_logits[VOCAB..]), [0; 2 * VOCAB]);
        assert!(output.d_logits[..VOCAB].iter().all(|&g| g != 0.0));
        assert_eq!(output.loss.metrics.clipped_above, 1);
        assert_eq!(output.loss.metrics.nonfinite_tokens, 1);
    }
}

#[test]
fn nothing_acts_in_a_batch_without_advantages() {
    let mut case = Case::random(34, 4, 3, VOCAB);
    case.advantage = Advantage::PerResponse(vec![0.0; 4]);
    for backend in backends() {
        let output = run(&*backend, &case.batch(), &with(Gradient::Compact, config()));
        assert!(output.active_slots.is_empty() && output.d_logits.is_empty());
        assert_eq!(output.loss.metrics.loss.to_bits(), 0);
    }
}

#[test]
fn what_is_not_written_reads_as_zero_in_an_output() {
    let case = Case::random(35, 6, 4, VOCAB);
    for config in [
        config(),
        Config {
            kl: kls()[3],
            ..config()
        },
    ] {
        for backend in backends() {
            let filled = run(&*backend, &case.batch(), &with(Gradient::ZeroFill, config));
            let untouched = run(&*backend, &case.batch(), &with(Gradient::Untouched, config));
            assert_same_tensors(&untouched, &filled, "untouched");
        }
    }
}

#[test]
fn the_cpu_declares_what_it_reads_and_writes() {
    let mut case = Case::random(36, 3, 4, VOCAB);
    case.mask = None;
    case.ref_log_prob = None;
    case.advantage = Advantage::PerResponse(vec![1.0, 0.0, -1.0]);
    let base = Config {
        normalizer: Normalizer::Value(12.0),
        metrics_scope: MetricsScope::Active,
        ..config()
    };
    let bytes = |config: &Config| {
        let run = CpuBackend.loss_from_logits(&case.batch(), config);
        run.unwrap().bytes_moved as usize
    };
    // Token ids and old log-probs in, three f64 out, for each slot; rows that act are read once.
    let tokens = 12 * (4 + 4 + 3 * 8);
    let (read, written) = (4 * VOCAB, 8 * VOCAB);
    assert_eq!(bytes(&base), tokens + 8 * read + 12 * written);
    let compact = with(Gradient::Compact, base);
    assert_eq!(bytes(&compact), tokens + 8 * read + 8 * written);
    let all = Config {
        metrics_scope: MetricsScope::All,
        ..compact
    };
    assert_eq!(bytes(&all), tokens + (8 + 4) * read + 8 * written);
}
