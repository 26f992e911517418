//! A parallel vocabulary: shards of a row merge to the whole, however it is split.

use crate::TOLERANCE;
use crate::case::Rows;
use qae::Tensor;
use qae::reference::{
    RowShard, SoftmaxStats, log_probs_from_logits, log_probs_from_logits_backward,
};
use qae_test_support::{Random, assert_close, bits};

const TEMPERATURE: f64 = 0.7;

fn shard(row: &[f32], vocab_start: usize, token_id: usize) -> RowShard<'_> {
    RowShard {
        logits: Tensor::F32(row),
        vocab_start,
        token_id,
        temperature: TEMPERATURE,
    }
}

/// Bounds of up to eight shards, some of them empty.
fn split(random: &mut Random, vocab_size: usize) -> Vec<usize> {
    let mut bounds: Vec<usize> = (0..random.below(8))
        .map(|_| random.below(vocab_size + 1))
        .collect();
    bounds.extend([0, vocab_size]);
    bounds.sort_unstable();
    bounds
}

fn shards<'a>(row: &'a [f32], bounds: &[usize], token_id: usize) -> Vec<RowShard<'a>> {
    let each = bounds.windows(2);
    each.map(|pair| shard(&row[pair[0]..pair[1]], pair[0], token_id))
        .collect()
}

/// Merged in the order given.
fn merged(shards: &[RowShard<'_>]) -> SoftmaxStats {
    let stats = shards.iter().map(SoftmaxStats::of_row);
    let merge = |a: SoftmaxStats, b| a.merge(b, TEMPERATURE);
    stats.reduce(merge).expect("there is a shard")
}

/// Rows of all magnitudes, with columns of −∞ and with shards of nothing else.
fn rows() -> Rows {
    let mut rows = Rows::random(41, 120, 29);
    rows.temperature = TEMPERATURE;
    for (i, logit) in rows.logits.iter_mut().enumerate() {
        let (row, column) = (i / 29, i % 29);
        *logit *= [1.0, 1e-3, 1e3][row % 3];
        let is_hole = match row % 4 {
            1 => column % 5 == 2,
            2 => column > 11,
            3 => column < 23,
            _ => false,
        };
        if is_hole {
            *logit = f32::NEG_INFINITY;
        }
    }
    rows
}

#[test]
fn any_split_merges_to_the_whole() {
    let rows = rows();
    let whole = log_probs_from_logits(&rows.input()).unwrap();
    let gradient =
        log_probs_from_logits_backward(&rows.input(), &[1.5; 120], Some(&[-0.5; 120])).unwrap();
    let mut random = Random(42);
    for row in 0..120 {
        let token_id = rows.token_id[row] as usize;
        let bounds = split(&mut random, 29);
        let mut shards = shards(rows.row(row), &bounds, token_id);
        if row % 2 == 1 {
            shards.reverse();
        }
        let stats = merged(&shards);
        let what = format!("row {row}, {bounds:?}");
        let found = [stats.entropy(), stats.log_sum_exp(TEMPERATURE)];
        let expected = [whole.entropy[row], whole.log_sum_exp[row]];
        assert_close(&found, &expected, TOLERANCE, &what);
        let log_prob = whole.log_prob[row];
        if log_prob.is_finite() {
            assert_close(
                &[stats.log_prob(TEMPERATURE)],
                &[log_prob],
                TOLERANCE,
                &what,
            );
        } else {
            assert_eq!(stats.log_prob(TEMPERATURE), log_prob);
        }
        let mut found = vec![f64::NAN; 29];
        for shard in &shards {
            let columns = &mut found[shard.vocab_start..][..shard.logits.len()];
            stats.backward(shard, 1.5, -0.5, columns);
        }
        assert_close(&found, &gradient[row * 29..][..29], TOLERANCE, &what);
    }
}

#[test]
fn shards_without_anything_finite_add_nothing() {
    let row = [1.0, 2.0, -3.0];
    let whole = SoftmaxStats::of_row(&shard(&row, 2, 3));
    for nothing in [&[][..], &[f32::NEG_INFINITY; 2]] {
        let nothing = SoftmaxStats::of_row(&shard(nothing, 0, 3));
        assert_eq!(nothing.max_logit, f64::from(f32::MIN));
        assert_eq!((nothing.sum_exp, nothing.sum_exp_z), (0.0, 0.0));
        assert_eq!(nothing.own_logit, f64::NEG_INFINITY);
        assert!(!nothing.is_usable());
        assert_eq!(whole.merge(nothing, TEMPERATURE), whole);
        assert_eq!(nothing.merge(whole, TEMPERATURE), whole);
        assert!(!nothing.merge(nothing, TEMPERATURE).is_usable());
    }
}

#[test]
fn one_unusable_shard_spoils_the_row() {
    let good = SoftmaxStats::of_row(&shard(&[1e4, 2.0], 0, 1));
    for bad in [[f32::NAN, 0.0], [f32::INFINITY, -1e9], [-1e9, f32::NAN]] {
        let bad = shard(&bad, 2, 1);
        let stats = SoftmaxStats::of_row(&bad);
        for merged in [
            good.merge(stats, TEMPERATURE),
            stats.merge(good, TEMPERATURE),
        ] {
            assert!(!merged.is_usable());
            assert!(merged.log_prob(TEMPERATURE).is_nan() && merged.entropy().is_nan());
            let mut d_logits = [7.0; 2];
            merged.backward(&bad, 1.0, 1.0, &mut d_logits);
            assert_eq!(bits(&d_logits), [0; 2]);
        }
    }
}

#[test]
fn shards_further_apart_than_any_exponential_reaches() {
    let (low, high) = ([-3e38, -3.1e38], [3e38, 2e38]);
    let [low, high] = [shard(&low, 0, 2), shard(&high, 2, 2)].map(|s| SoftmaxStats::of_row(&s));
    // At a temperature of 10⁻³⁰⁰ even the distance overflows.
    for temperature in [0.7, 1e-300] {
        for merged in [low.merge(high, temperature), high.merge(low, temperature)] {
            assert_eq!((merged.sum_exp, merged.sum_exp_z), (1.0, 0.0));
            assert_eq!(merged.log_prob(temperature), 0.0);
        }
    }
}
