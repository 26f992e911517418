//! The golden cases (tests/data/token) and the TRL capture (data/) on every backend.
//!
//! Inputs and float64 outputs were computed with other people's code (verl, TRL, torch, numpy).
//! Results are compared as `qae step --out` writes them, so that the names and shapes of the output
//! are tested along.

use qae::config_json::ConfigFile;
use qae::io::{Case, Precision, TensorFile, write_output};
use qae::{Aggregation, Backend, Config, CpuBackend, Error, Run, TokenBatch};
use qae_emulator::EmulatorBackend;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// What a backend may differ from expected values, relative to the largest value of a tensor.
#[derive(Debug, Clone, Copy)]
struct Tolerance {
    /// At least this.
    floor: f64,
    /// And this many times the error of the reference packages when they ran in float32.
    float32_errors: f64,
    /// And this, in nats, for a mean of log-ratios.
    log_ratio: f64,
}

impl Tolerance {
    /// f64 against f64: most cases agree to 1e-15, sums with cancellation to 1e-13.
    const DOUBLE: Self = Self {
        floor: 1e-12,
        float32_errors: 0.0,
        log_ratio: 0.0,
    };

    /// f32 kernels against f64: twenty times what the packages themselves lose in float32, whose
    /// sums are in another order, and some ulps of expf. For metrics the packages' loss is unknown:
    /// fractions of tokens are exact counts over f64, for which the floor is ample; a mean of
    /// log-ratios of both signs cancels, and each term is rounded to 2⁻²⁴ of up to 1 nat.
    const SINGLE: Self = Self {
        floor: 2e-6,
        float32_errors: 20.0,
        log_ratio: 6e-8,
    };

    fn of(self, name: &str, largest: f64, case: &Value, config: &Config) -> f64 {
        let error = |key: &str| {
            case["float32_error_of_the_reference"][key]
                .as_f64()
                .unwrap()
        };
        let float32_error = match name {
            "advantage" | "baseline" => error("advantage_max_abs") / largest,
            "loss" | "pg_loss" | "metrics.kl_loss" => error("loss_abs") / largest,
            "dlogp" => error("dlogp_max_over_largest"),
            "metrics.ppo_kl" => {
                return (self.floor + self.log_ratio / largest).max(verl_epsilon(name, config));
            }
            _ => 0.0, // counts of tokens, which float32 gets right away from the clip bounds
        };
        let float32_error = if float32_error.is_nan() {
            0.0
        } else {
            float32_error
        };
        let relative = self.floor + self.float32_errors * float32_error;
        relative.max(verl_epsilon(name, config))
    }
}

/// verl adds 1e-8 to the token counts of masked means; this crate does not.
fn verl_epsilon(name: &str, config: &Config) -> f64 {
    let mean_over_batch = [
        "metrics.pg_clipfrac",
        "metrics.pg_clipfrac_lower",
        "metrics.ppo_kl",
    ];
    let loss = ["loss", "pg_loss", "dlogp", "metrics.kl_loss"];
    if mean_over_batch.contains(&name) {
        1e-10 // at least 100 tokens
    } else if loss.contains(&name) && config.aggregation == Aggregation::SeqMeanTokenMean {
        1e-8 // at least one token
    } else {
        0.0
    }
}

struct Reference;

impl Backend for Reference {
    fn name(&self) -> String {
        "reference".to_string()
    }

    fn loss_from_log_probs(&self, batch: &TokenBatch<'_>, config: &Config) -> qae::Result<Run> {
        Ok(Run {
            output: qae::reference::loss_from_log_probs(batch, config)?,
            bytes_moved: 0,
            seconds: None,
        })
    }
}

fn backends() -> Vec<(Box<dyn Backend>, Tolerance)> {
    vec![
        (Box::new(Reference), Tolerance::DOUBLE),
        (Box::new(CpuBackend), Tolerance::DOUBLE),
        (Box::new(EmulatorBackend::default()), Tolerance::SINGLE),
    ]
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The entries of the manifest, each with the file it describes.
fn manifest() -> Vec<(Value, PathBuf)> {
    let directory = root().join("tests/data/token");
    let text = std::fs::read_to_string(directory.join("manifest.json")).unwrap();
    let manifest: Value = serde_json::from_str(&text).unwrap();
    let cases = manifest["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 52);
    let entry = |case: &Value| (case.clone(), directory.join(case["file"].as_str().unwrap()));
    cases.iter().map(entry).collect()
}

/// What `run` writes for `case`, read back.
fn written(case: &Case, config: &Config, batch: &TokenBatch<'_>, run: &Run) -> TensorFile {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("out.safetensors");
    let precision = Precision::F64;
    write_output(&path, case, config, batch, &run.output, precision, "test").unwrap();
    TensorFile::read(&path).unwrap()
}

/// The largest difference over the largest expected value, and that value.
fn relative_error(found: &[f64], expected: &[f64]) -> (f64, f64) {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0, |m: f64, e| m.max(e.abs()));
    let worst = found.iter().zip(expected).map(|(f, e)| (f - e).abs());
    let worst = worst.fold(0.0, |m: f64, d| if m.is_nan() || d <= m { m } else { d });
    (if worst == 0.0 { 0.0 } else { worst / largest }, largest)
}

fn check_case(path: &Path, description: &Value, backend: &dyn Backend, tolerance: Tolerance) {
    let file = TensorFile::read(path).unwrap();
    let case = Case::from_file(&file).unwrap();
    let (config, batch) = case.prepare(&ConfigFile::default()).unwrap();
    let run = backend.loss_from_log_probs(&batch, &config).unwrap();
    run.output.metrics.check().unwrap();
    let out = written(&case, &config, &batch, &run);
    let expected = file.names();
    let expected = expected
        .iter()
        .filter_map(|name| name.strip_prefix("expected."));
    for name in expected {
        let values = file.f64s(&format!("expected.{name}")).unwrap();
        let (error, largest) = relative_error(&out.f64s(name).unwrap(), &values);
        let tolerance = tolerance.of(name, largest, description, &config);
        // Negated, so that NaN fails.
        assert!(
            !(error > tolerance || error.is_nan()),
            "{} on {}: {name} is off by {error:e} of {largest}, more than {tolerance:e}",
            case.name(),
            backend.name(),
        );
    }
    check_zeros(&batch, &config, &run, case.name());
}

/// Masked slots, and all slots of inactive responses, have gradient +0.0: not a small number.
fn check_zeros(batch: &TokenBatch<'_>, config: &Config, run: &Run, name: &str) {
    let advantage = run.output.advantage.as_ref().unwrap();
    for (row, &advantage) in advantage.iter().enumerate() {
        let slots = batch.layout.row(row);
        for slot in 0..slots.num_slots {
            let masked = batch
                .mask
                .is_some_and(|mask| mask[slots.mask_start + slot] == 0);
            if masked || (advantage == 0.0 && config.kl.is_none()) {
                let gradient = run.output.d_log_prob[slots.start + slot];
                assert_eq!(gradient.to_bits(), 0, "{name}: response {row}, slot {slot}");
            }
        }
    }
}

#[test]
fn supported_cases_agree_with_verl_trl_and_the_paper() {
    let mut supported = 0;
    for (description, path) in manifest() {
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

fn capture() -> (TensorFile, Value) {
    let file = TensorFile::read(&root().join("data/trl-addition.safetensors")).unwrap();
    let description = serde_json::from_str(file.metadata("case").unwrap()).unwrap();
    (file, description)
}

/// The expected gradients start from the model's logits in float64, the inputs here are log-probs
/// that were rounded to float32: the capture's README states an agreement of 5e-7 for that.
const CAPTURE: f64 = 1e-6;

fn check_capture(overrides: &ConfigFile, prefix: &str, loss: &Value) {
    let (file, _) = capture();
    let case = Case::from_file(&file).unwrap();
    let (config, batch) = case.prepare(overrides).unwrap();
    for (backend, tolerance) in backends() {
        let run = backend.loss_from_log_probs(&batch, &config).unwrap();
        let output = &run.output;
        let gradient = file
            .f64s(&format!("{prefix}.grad_per_token_logps"))
            .unwrap();
        let (error, _) = relative_error(&output.d_log_prob, &gradient);
        assert!(
            error <= CAPTURE,
            "{prefix} on {}: {error:e}",
            backend.name()
        );
        let difference = (output.metrics.loss - loss.as_f64().unwrap()).abs();
        assert!(difference <= CAPTURE, "{prefix}: {difference:e}");
        for (name, values) in [
            ("baseline", &output.baseline),
            ("advantage", &output.advantage),
        ] {
            let name = format!("{prefix}.{name}");
            if file.has(&name) {
                let expected = file.f64s(&name).unwrap();
                let (error, _) = relative_error(values.as_ref().unwrap(), &expected);
                assert!(error <= tolerance.floor, "{name}: {error:e}");
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

#[test]
fn the_capture_gives_trl_s_logged_clip_ratios() {
    let (file, description) = capture();
    let case = Case::from_file(&file).unwrap();
    let (config, batch) = case.prepare(&ConfigFile::default()).unwrap();
    let run = Reference.loss_from_log_probs(&batch, &config).unwrap();
    let out = written(&case, &config, &batch, &run);
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
        assert!(
            (found - logged).abs() <= 1e-7,
            "{name}: {found}, logged {logged}"
        );
    }
}
