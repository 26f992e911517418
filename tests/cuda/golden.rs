//! The golden cases (tests/data), whose results were computed with other people's code.

use crate::device;
use qae::config_json::ConfigFile;
use qae::cuda::{CudaBackend, LogitsPlacement, RowPolicy};
use qae::io::{Case, TensorFile};
use qae::{Backend, DType, Error, LogitsOutput};
use serde_json::Value;
use std::path::PathBuf;

/// The entries of the manifest of `level`, each with its file.
fn cases(level: &str) -> Vec<(Value, TensorFile)> {
    // The bundle for GPU machines carries the data, and says where it is unpacked.
    let root =
        std::env::var_os("QAE_DATA_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let directory = PathBuf::from(root).join("tests/data").join(level);
    let manifest = std::fs::read_to_string(directory.join("manifest.json")).unwrap();
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    let read = |entry: &Value| {
        let path = directory.join(entry["file"].as_str().unwrap());
        (entry.clone(), TensorFile::read(&path).unwrap())
    };
    manifest["cases"]
        .as_array()
        .unwrap()
        .iter()
        .map(read)
        .collect()
}

/// What the reference packages lose in float32 on the same inputs.
fn float32_error(entry: &Value, name: &str) -> f64 {
    let errors = &entry["float32_error_of_the_reference"];
    errors[name].as_f64().unwrap()
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(f64::MIN_POSITIVE, |m, e| m.max(e.abs()))
}

/// NaN where there is one.
fn largest_error(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let worse = |m: f64, d: f64| if d.is_nan() || d > m { d } else { m };
    let differences = found.iter().zip(expected).map(|(f, e)| (f - e).abs());
    differences.fold(0.0, worse)
}

#[test]
fn the_golden_cases_agree_with_verl_trl_and_the_paper() {
    if device("the_golden_cases_agree_with_verl_trl_and_the_paper").is_none() {
        return;
    }
    let backend = CudaBackend::open(0).unwrap();
    let mut supported = 0;
    for (entry, file) in cases("token") {
        let case = Case::from_file(&file).unwrap();
        let (config, batch) = match case.prepare(&ConfigFile::default()) {
            Err(Error::Unsupported { .. }) => continue,
            prepared => prepared.unwrap(),
        };
        supported += 1;
        let output = backend.loss_from_log_probs(&batch, &config).unwrap().output;
        let expected = file.f64s("expected.dlogp").unwrap();
        let error = largest_error(&output.d_log_prob, &expected) / largest(&expected);
        // Twenty times the error of the reference packages in float32, as their README says.
        let float32 = float32_error(&entry, "dlogp_max_over_largest");
        let tolerance = (20.0 * float32).max(2e-6);
        assert!(
            error <= tolerance,
            "{}: {error:e} > {tolerance:e}",
            case.name()
        );
    }
    assert_eq!(supported, 49);
}

/// Where rows stay between their two uses, with the gradient apart and in place.
const PLACEMENTS: [(RowPolicy, bool); 4] = [
    (RowPolicy::Auto, false),
    (RowPolicy::Auto, true),
    (RowPolicy::Block, false),
    (RowPolicy::Block, true),
];

#[test]
fn the_golden_logits_agree_with_verl_and_torch() {
    if device("the_golden_logits_agree_with_verl_and_torch").is_none() {
        return;
    }
    let mut backend = CudaBackend::open(0).unwrap();
    let cases = cases("logits");
    assert_eq!(cases.len(), 8);
    for (entry, file) in cases {
        let case = Case::from_file(&file).unwrap();
        let (config, batch) = case.prepare_logits(&ConfigFile::default()).unwrap();
        for (row_policy, in_place) in PLACEMENTS {
            backend.logits = LogitsPlacement {
                row_policy,
                in_place,
                ..LogitsPlacement::default()
            };
            let output = backend.loss_from_logits(&batch, &config).unwrap().output;
            output.loss.metrics.check().unwrap();
            let what = format!("{} {row_policy:?} in place: {in_place}", case.name());
            check_logits(&output, &entry, &file, case.dtype(), &what);
        }
    }
}

fn check_logits(output: &LogitsOutput, entry: &Value, file: &TensorFile, dtype: DType, what: &str) {
    let rounding = match dtype {
        DType::F64 => panic!("the kernels take no f64"),
        DType::F32 => 0.0,
        DType::F16 => 1.0 / 2048.0,
        DType::Bf16 => 1.0 / 256.0,
    };
    let expected = |name: &str| file.f64s(&format!("expected.{name}")).unwrap();
    let (name, found, gradient) = if file.has("expected.dlogits") {
        ("dlogits", output.d_logits.clone(), expected("dlogits"))
    } else {
        let columns = columns(output, file);
        ("dlogits_columns", columns, expected("dlogits_columns"))
    };
    let scale = largest(&gradient);
    let of_gradient = 20.0 * float32_error(entry, "dlogits_max_abs") + (2e-6 + rounding) * scale;
    let nats = |name| 20.0 * float32_error(entry, name) + 2e-6;
    for (name, found, expected, tolerance) in [
        (name, &found, gradient, of_gradient),
        (
            "logp",
            &output.log_prob,
            expected("logp"),
            nats("logp_max_abs"),
        ),
        (
            "entropy",
            &output.entropy,
            expected("entropy"),
            nats("entropy_max_abs"),
        ),
    ] {
        let error = largest_error(found, &expected);
        assert!(
            error <= tolerance,
            "{what}: {name}: {error:e} > {tolerance:e}"
        );
    }
}

/// The columns of the gradient that a file with a large vocabulary lists for each row.
fn columns(output: &LogitsOutput, file: &TensorFile) -> Vec<f64> {
    let index = file.i64s("dlogits_column_index").unwrap();
    let num_rows = output.log_prob.len();
    let (listed, vocab_size) = (index.len() / num_rows, output.d_logits.len() / num_rows);
    let element =
        |(i, column): (usize, &i64)| output.d_logits[i / listed * vocab_size + *column as usize];
    index.iter().enumerate().map(element).collect()
}
