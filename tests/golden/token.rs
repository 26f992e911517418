//! The cases that start from log-probs (tests/data/token).

use crate::tolerance::Tolerance;
use crate::{
    assert_within, backends, compute, expectations, manifest, relative_error, root, written,
};
use qae::config_json::ConfigFile;
use qae::io::{Batch, Case, TensorFile};
use qae::{Backend, Config, Error, LossOutput, TokenBatch};
use serde_json::Value;
use std::path::Path;

fn check_case(path: &Path, description: &Value, backend: &dyn Backend, tolerance: Tolerance) {
    let file = TensorFile::read(path).unwrap();
    let case = Case::from_file(&file).unwrap();
    let (config, batch) = case.prepare(&ConfigFile::default()).unwrap();
    let any = Batch::LogProbs(batch);
    let computed = compute(backend, &case, &config, &any);
    computed.loss().metrics.check().unwrap();
    let out = written(&case, &config, &any, &computed);
    for (name, values) in expectations(&file) {
        let (error, largest) = relative_error(&out.f64s(&name).unwrap(), &values);
        let tolerance = tolerance.of(&name, largest, description, &config);
        let what = format!("{} on {}: {name} of {largest}", case.name(), backend.name());
        assert_within(error, tolerance, &what);
    }
    check_zeros(&batch, &config, computed.loss(), case.name());
}

/// Masked slots, and all slots of inactive responses, have gradient +0.0: not a small number.
fn check_zeros(batch: &TokenBatch<'_>, config: &Config, output: &LossOutput, name: &str) {
    let advantage = output.advantage.as_ref().unwrap();
    for (row, &advantage) in advantage.iter().enumerate() {
        let slots = batch.layout.row(row);
        for slot in 0..slots.num_slots {
            let masked = batch
                .mask
                .is_some_and(|mask| mask[slots.mask_start + slot] == 0);
            if masked || (advantage == 0.0 && config.kl.is_none()) {
                let gradient = output.d_log_prob[slots.start + slot];
                assert_eq!(gradient.to_bits(), 0, "{name}: response {row}, slot {slot}");
            }
        }
    }
}

#[test]
fn supported_cases_agree_with_verl_trl_and_the_paper() {
    let cases = manifest("token");
    assert_eq!(cases.len(), 52);
    let mut supported = 0;
    for (description, path) in cases {
        let loss = description["config"]["loss"].as_str().unwrap();
        if ["clip_cov", "kl_cov", "geo_mean"].contains(&loss) {
            continue;
        }
        supported += 1;
        for (backend, tolerance) in backends() {
            check_case(&path, &description, backend.as_ref(), tolerance);
        }
    }
    assert_eq!(supported, 49);
}

#[test]
fn cases_of_other_losses_are_refused_as_unsupported() {
    for name in ["p042-clip-cov", "p043-kl-cov", "p044-geo-mean"] {
        let path = root().join(format!("tests/data/token/{name}.safetensors"));
        let error = Case::read(&path)
            .unwrap()
            .prepare(&ConfigFile::default())
            .unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    }
}
