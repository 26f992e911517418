//! The TRL capture (data/), which has log-probs and the logits that they come from.

use crate::{assert_within, backends, compute, largest_error, relative_error, root, written};
use qae::config_json::ConfigFile;
use qae::io::{Case, Level, TensorFile};
use qae_test_support::Reference;
use serde_json::Value;

fn capture() -> (TensorFile, Value) {
    let file = TensorFile::read(&root().join("data/trl-addition.safetensors")).unwrap();
    let description = serde_json::from_str(file.metadata("case").unwrap()).unwrap();
    (file, description)
}

/// The expected gradients start from the model's logits in float64. Where a run starts from the
/// log-probs, they were rounded to float32: the capture's README states an agreement of 5e-7 for
/// that. TRL's own advantages are float32.
fn tolerance(level: Level, prefix: &str, floor: f64) -> f64 {
    match (level, prefix) {
        (Level::LogProbs, _) => 1e-6,
        (Level::Logits, "f64") => f64::max(floor, 1e-7),
        (Level::Logits, _) => floor,
    }
}

fn check_capture(overrides: &ConfigFile, prefix: &str, loss: &Value) {
    let (file, _) = capture();
    for level in [Level::LogProbs, Level::Logits] {
        let case = Case::at_level(&file, Some(level)).unwrap();
        let (config, batch) = case.prepare_any(overrides).unwrap();
        for (backend, bound) in backends() {
            let what = format!("{prefix} from {level:?} on {}", backend.name());
            let computed = compute(backend.as_ref(), &case, &config, &batch);
            let output = computed.loss();
            let name = format!("{prefix}.grad_per_token_logps");
            let (error, _) = relative_error(&output.d_log_prob, &file.f64s(&name).unwrap());
            let tolerance = tolerance(level, prefix, bound.floor);
            assert_within(error, tolerance, &what);
            let difference = (output.metrics.loss - loss.as_f64().unwrap()).abs();
            assert_within(difference, tolerance, &what);
            for (name, values) in [
                ("baseline", &output.baseline),
                ("advantage", &output.advantage),
            ] {
                let name = format!("{prefix}.{name}");
                if file.has(&name) {
                    let expected = file.f64s(&name).unwrap();
                    let (error, _) = relative_error(values.as_ref().unwrap(), &expected);
                    assert_within(error, bound.floor, &name);
                }
            }
        }
    }
}

#[test]
fn the_capture_gives_trl_s_own_loss_and_gradient() {
    let (_, description) = capture();
    let loss = &description["values"]["f64_loss"];
    check_capture(&ConfigFile::default(), "f64", loss);
}

#[test]
fn the_capture_gives_the_quantile_losses_and_gradients() {
    let (_, description) = capture();
    for prefix in ["qae_cdf", "qae_linear"] {
        let entry = &description["qae"][prefix];
        let config = ConfigFile::from_value(&entry["config"]).unwrap();
        check_capture(&config, prefix, &entry["loss"]);
    }
}

/// Of the tensor `name`, at the tokens that count; elsewhere TRL writes 0.
fn at_tokens(case: &Case, values: Vec<f64>) -> Vec<f64> {
    let slots = case.valid_slots().concat();
    slots.into_iter().map(|slot| values[slot]).collect()
}

#[test]
fn the_capture_s_logits_give_trl_s_log_probs_entropy_and_gradient() {
    let (file, description) = capture();
    let case = Case::at_level(&file, Some(Level::Logits)).unwrap();
    let (config, batch) = case.prepare_any(&ConfigFile::default()).unwrap();
    assert_eq!(config.temperature, 0.9);
    for (backend, bound) in backends() {
        let computed = compute(backend.as_ref(), &case, &config, &batch);
        let out = written(&case, &config, &batch, &computed);
        let errors = &description["agreement"]["captured_vs_f64"];
        let captured = |key: &str| 2.0 * errors[key].as_f64().unwrap();
        for (name, expected, tolerance) in [
            ("logp", "f64.per_token_logps", 0.0),
            ("logp", "per_token_logps", captured("logp_max_abs")),
            ("entropy", "entropies", captured("entropy_max_abs")),
        ] {
            let found = at_tokens(&case, out.f64s(name).unwrap());
            let expected = at_tokens(&case, file.f64s(expected).unwrap());
            let scale = expected.iter().fold(0.0, |m: f64, e| m.max(e.abs()));
            let what = format!("{name} on {}", backend.name());
            let error = largest_error(&found, &expected);
            assert_within(error, tolerance + bound.floor * scale, &what);
        }
        let expected = file.f64s("grad_logits").unwrap();
        let (error, _) = relative_error(&out.f64s("dlogits").unwrap(), &expected);
        let tolerance = captured("dlogits_over_largest") + bound.floor;
        assert_within(error, tolerance, &format!("dlogits on {}", backend.name()));
        let logged = description["trl_metrics"]["entropy"].as_f64().unwrap();
        let found = out.f64s("metrics.entropy").unwrap()[0];
        assert_within((found - logged).abs(), 1e-6, "the mean entropy"); // over float32
    }
}

#[test]
fn the_capture_gives_trl_s_logged_clip_ratios() {
    let (file, description) = capture();
    for level in [Level::LogProbs, Level::Logits] {
        let case = Case::at_level(&file, Some(level)).unwrap();
        let (config, batch) = case.prepare_any(&ConfigFile::default()).unwrap();
        let computed = compute(&Reference, &case, &config, &batch);
        let out = written(&case, &config, &batch, &computed);
        for name in [
            "low_mean",
            "high_mean",
            "region_mean",
            "low_min",
            "high_max",
        ] {
            let logged = &description["trl_metrics"][format!("clip_ratio/{name}")];
            let logged = logged.as_f64().unwrap(); // a float32
            let found = out.f64s(&format!("metrics.clip_ratio_{name}")).unwrap()[0];
            assert_within((found - logged).abs(), 1e-7, name);
        }
    }
}
