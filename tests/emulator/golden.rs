//! The golden cases (tests/data/token) in the layouts that their files do not use. `tests/golden.rs`
//! runs them as they are, against the values that other people's code gave.

use qae::config_json::ConfigFile;
use qae::io::Case as File;
use qae::{
    Advantages, Config, ImportanceWeight, Layout, Tensor, TokenBatch, batch::Row, reference,
};
use qae_emulator::EmulatorBackend;
use std::path::PathBuf;

use crate::case::{Case, Rows, Source, Values, Weight};
use crate::compare::check;

/// `batch` with the slots of each row up to its last valid token, gathered by `gather`.
struct Gather {
    rows: Vec<Row>,
    mask: Option<Vec<u8>>,
    layout: Rows,
}

impl Gather {
    fn ends(batch: &TokenBatch<'_>) -> (Vec<Row>, Vec<usize>) {
        let rows: Vec<Row> = (0..batch.layout.num_rows())
            .map(|row| batch.layout.row(row))
            .collect();
        let end = |row: &Row| match batch.mask {
            None => row.length,
            Some(mask) => mask[row.mask_start..][..row.length]
                .iter()
                .rposition(|&valid| valid != 0)
                .map_or(0, |last| last + 1),
        };
        let ends = rows.iter().map(end).collect();
        (rows, ends)
    }

    /// No padding.
    fn packed(batch: &TokenBatch<'_>) -> Self {
        let (mut rows, ends) = Self::ends(batch);
        for (row, &end) in rows.iter_mut().zip(&ends) {
            row.num_slots = end;
        }
        let mut gather = Self {
            rows,
            mask: None,
            layout: Rows::packed(&ends),
        };
        gather.keep_interior_mask(batch);
        gather
    }

    /// The padding behind lengths rather than a mask.
    fn lengths(batch: &TokenBatch<'_>) -> Self {
        let (rows, ends) = Self::ends(batch);
        let width = rows.first().map_or(0, |row| row.num_slots);
        let mut gather = Self {
            layout: Rows::Padded {
                num_rows: rows.len(),
                width,
                row_stride: width,
                mask_row_stride: width,
                lengths: Some(ends.iter().map(|&end| end as i32).collect()),
            },
            rows,
            mask: None,
        };
        gather.keep_interior_mask(batch);
        gather
    }

    /// A mask that says no more than the layout does is dropped.
    fn keep_interior_mask(&mut self, batch: &TokenBatch<'_>) {
        let Some(mask) = batch.mask else { return };
        let gathered: Vec<u8> = self
            .rows
            .iter()
            .flat_map(|row| &mask[row.mask_start..][..row.num_slots])
            .copied()
            .collect();
        let says_more = self
            .layout
            .rows()
            .any(|row| gathered[row.mask_start..][..row.length].contains(&0));
        self.mask = says_more.then_some(gathered);
    }

    fn slots<T: Copy>(&self, values: &[T]) -> Vec<T> {
        let of_row = |row: &Row| row.start..row.start + row.num_slots;
        self.rows
            .iter()
            .flat_map(|row| &values[of_row(row)])
            .copied()
            .collect()
    }

    fn tensor(&self, tensor: Tensor<'_>) -> Values {
        match tensor {
            Tensor::F64(_) => panic!("the kernels take no f64"),
            Tensor::F32(values) => Values::F32(self.slots(values)),
            Tensor::Bf16(values) => Values::Bf16(self.slots(values)),
            Tensor::F16(values) => Values::F16(self.slots(values)),
        }
    }

    fn case(self, batch: &TokenBatch<'_>, config: Config) -> Case {
        Case {
            log_prob: self.tensor(batch.log_prob),
            old_log_prob: batch.old_log_prob.map(|tensor| self.tensor(tensor)),
            ref_log_prob: batch.ref_log_prob.map(|tensor| self.tensor(tensor)),
            weight: match batch.importance_weight {
                None => Weight::None,
                Some(ImportanceWeight::PerToken(weights)) => Weight::PerToken(self.slots(weights)),
                Some(ImportanceWeight::PerResponse(weights)) => {
                    Weight::PerResponse(weights.to_vec())
                }
            },
            advantage: match batch.advantages {
                Advantages::FromRewards {
                    rewards,
                    groups,
                    response_index,
                } => Source::Rewards {
                    rewards: rewards.to_vec(),
                    groups: groups.clone(),
                    response_index: response_index.map(<[i32]>::to_vec),
                },
                Advantages::PerResponse(values) => Source::PerResponse(values.to_vec()),
                Advantages::PerToken(values) => Source::PerToken(self.slots(values)),
            },
            mask: self.mask,
            layout: self.layout,
            config,
            backend: EmulatorBackend::default(),
        }
    }
}

/// The golden cases that start from log-probs and that this crate computes.
fn files() -> Vec<File> {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/token");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .collect();
    paths.sort();
    paths.iter().map(|path| File::read(path).unwrap()).collect()
}

#[test]
fn golden_cases_packed_and_with_lengths() {
    let mut num_checked = 0;
    for file in files() {
        // Losses that are not supported are tests/golden.rs's matter.
        let Ok((config, batch)) = file.prepare(&ConfigFile::default()) else {
            continue;
        };
        let as_given = reference::loss_from_log_probs(&batch, &config).unwrap();
        let mut gathered = vec![Gather::packed(&batch)];
        if matches!(batch.layout, Layout::Padded { .. }) {
            gathered.push(Gather::lengths(&batch));
        }
        for gather in gathered {
            let case = gather.case(&batch, config);
            let what = format!("{} {:?}", file.name(), case.layout);
            let run = check(&case, &what);
            let error = (run.output.metrics.loss - as_given.metrics.loss).abs();
            assert!(
                error <= 1e-5 * as_given.metrics.loss.abs() + 1e-7,
                "{what}: {error}"
            );
        }
        num_checked += 1;
    }
    assert_eq!(num_checked, 49);
}
