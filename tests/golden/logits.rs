//! The cases that start from logits (tests/data/logits).

use crate::tolerance::Tolerance;
use crate::{
    Computed, assert_within, backends, compute, expectations, largest_error, manifest,
    relative_error, written,
};
use qae::config_json::ConfigFile;
use qae::io::{Batch, Case, TensorFile};
use qae::{Backend, Config, Gradient, LogitsOutput};
use serde_json::Value;
use std::path::Path;

fn check_case(path: &Path, description: &Value, backend: &dyn Backend, tolerance: Tolerance) {
    let file = TensorFile::read(path).unwrap();
    let case = Case::from_file(&file).unwrap();
    let (config, batch) = case.prepare_any(&ConfigFile::default()).unwrap();
    let computed = compute(backend, &case, &config, &batch);
    computed.loss().metrics.check().unwrap();
    let out = written(&case, &config, &batch, &computed);
    let expected = expectations(&file);
    assert!(expected.iter().any(|(name, _)| name == "dlogits_row_l1"));
    for (name, values) in &expected {
        let found = out.f64s(name).unwrap();
        let (error, largest) = match name.as_str() {
            // A row sums to 0, of terms as large as this.
            "dlogits_row_sum" => {
                let terms = file.f64s("expected.dlogits_row_l1").unwrap();
                let largest = terms.iter().fold(0.0, |m: f64, e| m.max(*e));
                (largest_error(&found, values) / largest, largest)
            }
            _ => relative_error(&found, values),
        };
        let rounding = tolerance.rounding(name, case.dtype());
        let tolerance = tolerance.of(name, largest, description, &config) + rounding;
        let what = format!("{} on {}: {name} of {largest}", case.name(), backend.name());
        assert_within(error, tolerance, &what);
    }
    if let Computed::Logits(output, _) = &computed {
        check_zeros(&case, &config, output);
    }
}

/// Rows of slots that do not act are +0.0 throughout: not small numbers.
fn check_zeros(case: &Case, config: &Config, output: &LogitsOutput) {
    let advantage = output.loss.advantage.as_ref().unwrap();
    let mut acts = vec![false; output.log_prob.len()];
    for (response, slots) in case.valid_slots().iter().enumerate() {
        for &slot in slots {
            acts[slot] = advantage[response] != 0.0 || config.kl.is_some();
        }
    }
    let rows = output.d_logits.chunks_exact(case.vocab_size().unwrap());
    for (slot, row) in rows.enumerate().filter(|(slot, _)| !acts[*slot]) {
        let zero = row.iter().all(|gradient| gradient.to_bits() == 0);
        assert!(zero, "{}: slot {slot}", case.name());
        assert_eq!(output.loss.d_log_prob[slot].to_bits(), 0);
    }
}

#[test]
fn all_cases_agree_with_torch_and_verl() {
    let cases = manifest("logits");
    assert_eq!(cases.len(), 8);
    for (description, path) in cases {
        for (backend, tolerance) in backends() {
            check_case(&path, &description, backend.as_ref(), tolerance);
        }
    }
}

/// The compact gradient, where each row stands without it.
fn spread(output: &LogitsOutput, vocab_size: usize) -> Vec<f64> {
    let mut d_logits = vec![0.0; output.log_prob.len() * vocab_size];
    for (row, &slot) in output.active_slots.iter().enumerate() {
        let start = slot as usize * vocab_size;
        let row = &output.d_logits[row * vocab_size..][..vocab_size];
        d_logits[start..][..vocab_size].copy_from_slice(row);
    }
    d_logits
}

#[test]
fn a_compact_gradient_has_the_same_rows() {
    for (_, path) in manifest("logits") {
        let case = Case::read(&path).unwrap();
        let (config, batch) = case.prepare_logits(&ConfigFile::default()).unwrap();
        let compact = Config {
            gradient: Gradient::Compact,
            ..config
        };
        for (backend, _) in backends() {
            let backend = backend.as_ref();
            let run = |config| backend.loss_from_logits(&batch, config).unwrap().output;
            let (whole, dense) = (run(&config), run(&compact));
            assert_eq!(spread(&dense, batch.logits.vocab_size), whole.d_logits);
            let computed = |config| compute(backend, &case, config, &Batch::Logits(batch));
            let out = |config| written(&case, config, &Batch::Logits(batch), &computed(config));
            let (whole, dense) = (out(&config), out(&compact));
            for name in ["dlogits_row_l1", "dlogits_row_l2", "dlogp", "logp"] {
                let name_of = case.name();
                let values = |file: &TensorFile| file.f64s(name).unwrap();
                assert_eq!(values(&dense), values(&whole), "{name_of}: {name}");
            }
        }
    }
}
