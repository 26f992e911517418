//! The golden cases from logits (tests/data/logits) with every policy, and in the layouts that their
//! files do not use. `tests/golden` compares them as they are with the values that other people's
//! code gave.

use qae::batch::{Advantages, Layout, LogitsBatch, LogitsLayout, Tensor};
use qae::config_json::ConfigFile;
use qae::io::Case as File;
use qae::params::RowPolicy;
use qae::{Aggregation, Config, Objective, reference};
use qae_emulator::{EmulatorBackend, Options};
use std::path::PathBuf;

use crate::case::{Rows, Source, Values, Weight};
use crate::logits_case::{LogitsCase, Slots};
use crate::logits_compare::check;

/// `batch` with slot `order[i]` in place i of `layout`; `None`: no slot stands there.
fn gather(
    batch: &LogitsBatch<'_>,
    config: Config,
    layout: Slots,
    order: &[Option<usize>],
) -> LogitsCase {
    let logits = batch.logits;
    let tensor = |tensor: Tensor<'_>, elements: usize| {
        let slot = |slot: &Option<usize>| {
            let value = |j| slot.map_or(f64::NAN, |slot| tensor.get(slot * elements + j));
            (0..elements).map(value).collect::<Vec<f64>>()
        };
        let values = order.iter().flat_map(slot).map(|x| x as f32);
        Values::new(tensor.dtype(), &values.collect::<Vec<f32>>())
    };
    let of_slots = |values: &[u8], none: u8| -> Vec<u8> {
        order
            .iter()
            .map(|slot| slot.map_or(none, |slot| values[slot]))
            .collect()
    };
    let Advantages::FromRewards {
        rewards, groups, ..
    } = batch.advantages
    else {
        panic!("the golden cases have rewards");
    };
    LogitsCase {
        layout,
        mask: batch.mask.map(|mask| of_slots(mask, 0)),
        logits: tensor(logits.values, logits.vocab_size),
        vocab_size: logits.vocab_size,
        row_stride: logits.vocab_size,
        response_stride: None,
        token_id: order
            .iter()
            .map(|slot| slot.map_or(-100, |slot| batch.token_id[slot]))
            .collect(),
        old_log_prob: batch.old_log_prob.map(|values| tensor(values, 1)),
        ref_log_prob: batch.ref_log_prob.map(|values| tensor(values, 1)),
        weight: Weight::None,
        advantage: Source::Rewards {
            rewards: rewards.to_vec(),
            groups: groups.clone(),
            response_index: None,
        },
        config,
        backend: EmulatorBackend::default(),
    }
}

fn offsets<'a>(batch: &LogitsBatch<'a>) -> &'a [i64] {
    match batch.layout {
        LogitsLayout::Responses(Layout::Packed { offsets }) => offsets,
        _ => panic!("the golden cases are packed"),
    }
}

/// As in the file.
fn packed(batch: &LogitsBatch<'_>, config: Config) -> LogitsCase {
    let offsets = offsets(batch).to_vec();
    let order: Vec<_> = (0..batch.token_id.len()).map(Some).collect();
    let layout = Slots::Responses(Rows::Packed { offsets });
    gather(batch, config, layout, &order)
}

/// With lengths, and rows of the logits behind them that are no numbers.
fn padded(batch: &LogitsBatch<'_>, config: Config) -> LogitsCase {
    let offsets = offsets(batch);
    let lengths: Vec<i32> = offsets
        .windows(2)
        .map(|pair| (pair[1] - pair[0]) as i32)
        .collect();
    let width = lengths.iter().max().map_or(0, |&longest| longest as usize) + 1;
    let place = |(&length, &first): (&i32, &i64)| {
        (0..width as i64).map(move |t| (t < i64::from(length)).then_some((first + t) as usize))
    };
    let order: Vec<_> = lengths.iter().zip(offsets).flat_map(place).collect();
    let layout = Rows::Padded {
        num_rows: lengths.len(),
        width,
        row_stride: width,
        mask_row_stride: width,
        lengths: Some(lengths),
    };
    gather(batch, config, Slots::Responses(layout), &order)
}

/// Slots from last to first, which some configurations do not allow.
fn indexed(batch: &LogitsBatch<'_>, config: Config) -> Option<LogitsCase> {
    let is_gspo = matches!(config.objective, Objective::Gspo { .. });
    if is_gspo || config.aggregation == Aggregation::SeqMeanTokenMean {
        return None;
    }
    let offsets = offsets(batch);
    let order: Vec<_> = (0..batch.token_id.len()).rev().map(Some).collect();
    let response_of =
        |slot: usize| offsets.partition_point(|&begin| begin <= slot as i64) as i32 - 1;
    let layout = Slots::Indexed {
        response: order
            .iter()
            .flatten()
            .map(|&slot| response_of(slot))
            .collect(),
        num_responses: offsets.len() - 1,
    };
    Some(gather(batch, config, layout, &order))
}

fn files() -> Vec<File> {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/logits");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .collect();
    paths.sort();
    paths.iter().map(|path| File::read(path).unwrap()).collect()
}

#[test]
fn golden_cases_in_every_layout_and_policy() {
    let files = files();
    assert_eq!(files.len(), 8);
    for file in &files {
        let (config, batch) = file.prepare_logits(&ConfigFile::default()).unwrap();
        let as_given = reference::loss_from_logits(&batch, &config).unwrap();
        let mut cases = vec![packed(&batch, config), padded(&batch, config)];
        cases.extend(indexed(&batch, config));
        for mut case in cases {
            for (row_policy, options) in [
                (RowPolicy::Cluster, Options::default()),
                (RowPolicy::Auto, Options::sm80()),
            ] {
                case.backend.options = options;
                case.backend.logits.row_policy = row_policy;
                let what = format!("{}, {row_policy:?}", file.name());
                let run = check(&case, &what);
                let (found, expected) = (run.output.loss.metrics.loss, as_given.loss.metrics.loss);
                let error = (found - expected).abs();
                assert!(error <= 1e-5 * expected.abs() + 1e-7, "{what}: {error}");
            }
        }
    }
}
