//! What a run that succeeds prints and writes.

use crate::{CASE, Draft, command, json, succeed, text};
use qae::io::TensorFile;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use tempfile::TempDir;

const CAPTURE: &str = "data/trl-addition.safetensors";

#[test]
fn the_main_job_reports_what_a_researcher_asks() {
    let report = succeed(&["step", CAPTURE, "--k", "0.4"]);
    assert!(report.lines().count() <= 30, "{report}");
    for part in [
        "trl-addition: 256 responses x 54 slots, padded, F32",
        "reward - quantile 0.4 (inverted_cdf), over std_unbiased + 1e-4",
        "16: 11 hard, 5 easy; 2 with all rewards equal",
        "256: 38 positive, 204 zero, 14 negative advantage; 52 active (20.31 %)",
        "7438 valid: 1761 active; 76.32 % of the work skipped",
        "0.78 % of 7438 tokens: 0.48 % above, 0.30 % below; 0.00 % held by dual clip",
        "approximate KL from the old policy 0.030156 nats",
        "GB/s",
    ] {
        assert!(report.contains(part), "no {part:?} in\n{report}");
    }
}

#[test]
fn the_json_report_has_the_same_figures() {
    let report = json(&[CAPTURE, "--k", "0.4", "--backend", "cpu"]);
    assert_eq!(report["groups"]["hard"], 11);
    assert_eq!(report["responses"]["active"], 52);
    assert_eq!(report["tokens"]["active"], 1761);
    assert_eq!(report["backend"]["reason"], "asked for");
    assert!(report["backend"]["gigabytes_per_second"].as_f64().unwrap() > 0.0);
    assert_eq!(report["difference"], Value::Null); // the CPU path is the reference
    assert_eq!(report["config"]["baseline"]["k"], 0.4);
}

#[test]
fn a_mean_baseline_has_no_regimes_and_a_kl_term_skips_nothing() {
    let case = "tests/data/token/p033-kl-k3.safetensors";
    let report = json(&[case, "--baseline", "mean"]);
    assert_eq!(report["groups"]["hard"], Value::Null);
    assert_eq!(report["tokens"]["skipped_share"], 0.0);
    let (loss, pg) = (
        report["loss"].as_f64().unwrap(),
        report["pg_loss"].as_f64().unwrap(),
    );
    let kl = report["kl_loss"].as_f64().unwrap();
    assert!((loss - pg - 0.001 * kl).abs() < 1e-15, "{report}");
    assert!(succeed(&["step", case]).contains("x 0.001)"));
}

#[test]
fn out_holds_what_the_golden_file_expects_under_the_same_names() {
    let directory = TempDir::new().unwrap();
    let out = directory.path().join("out.safetensors");
    let report = succeed(&["step", CASE, "--out", text(&out)]);
    assert!(report.contains(text(&out)), "{report}");
    let (case, out) = (
        TensorFile::read(Path::new(CASE)).unwrap(),
        TensorFile::read(&out).unwrap(),
    );
    let expected = case.names();
    for name in expected
        .iter()
        .filter_map(|name| name.strip_prefix("expected."))
    {
        let expected = case.f64s(&format!("expected.{name}")).unwrap();
        let found = out.f64s(name).unwrap();
        assert_eq!(found.len(), expected.len(), "{name}");
    }
    let description: Value = serde_json::from_str(out.metadata("case").unwrap()).unwrap();
    assert_eq!(description["config"]["loss"], "ppo_clip");
    assert_eq!(description["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn flags_override_the_config_file_which_overrides_the_metadata() {
    let directory = TempDir::new().unwrap();
    let config = directory.path().join("config.json");
    fs::write(
        &config,
        r#"{"epsilon": 0.5, "gate": "two_regime", "clip_low": null}"#,
    )
    .unwrap();
    let report = json(&[
        CASE,
        "--config",
        text(&config),
        "--epsilon",
        "0.25",
        "--dual-clip",
        "none",
    ]);
    let config = &report["config"];
    assert_eq!(config["epsilon"], 0.25);
    assert_eq!(config["gate"], "two_regime");
    assert_eq!(
        (&config["clip_low"], &config["clip_high"]),
        (&Value::Null, &Value::from(0.28))
    );
    assert_eq!(config["dual_clip"], Value::Null);
}

/// Flags, where the report shows them, and what it shows.
const FLAGS: &[(&str, &str, &str)] = &[
    ("--k 0.25", "/baseline/k", "0.25"),
    (
        "--baseline leave_one_out",
        "/baseline/kind",
        r#""leave_one_out""#,
    ),
    (
        "--interpolation linear",
        "/baseline/interpolation",
        r#""linear""#,
    ),
    ("--scale none", "/scale", r#""none""#),
    ("--singleton zero", "/singleton", r#""zero""#),
    ("--gate positive_mask", "/gate", r#""positive_mask""#),
    ("--success-threshold -0.5", "/success_threshold", "-0.5"),
    (
        "--objective sapo --tau-pos 2",
        "/loss_params/tau_pos",
        "2.0",
    ),
    ("--loss sapo --tau-neg 3", "/loss_params/tau_neg", "3.0"),
    (
        "--loss gspo --seq-log-ratio-max 5",
        "/loss_params/seq_log_ratio_max",
        "5.0",
    ),
    ("--loss cispo --clip-high 4", "/clip_high", "4.0"),
    ("--ratio-cap 4", "/ratio_cap", "4.0"),
    ("--log-ratio-clamp none", "/log_ratio_clamp", "null"),
    (
        "--normalizer-tokens 99",
        "/normalizer/batch_num_tokens",
        "99.0",
    ),
    (
        "--aggregation seq-mean-token-sum --normalizer-sequences 9",
        "/normalizer/global_batch_size",
        "9.0",
    ),
    (
        "--aggregation seq-mean-token-sum-norm --loss-scale-factor none",
        "/normalizer/loss_scale_factor",
        "40.0",
    ),
    ("--dp-size 8", "/normalizer/dp_size", "8.0"),
    ("--grad-scale 0.5", "/grad_scale", "0.5"),
    ("--kl none", "/kl/kind", r#""none""#),
    ("--metrics-scope active", "/metrics_scope", r#""active""#),
    (
        "--inactive-gradient untouched",
        "/inactive_gradient",
        r#""untouched""#,
    ),
];

#[test]
fn every_flag_reaches_its_field() {
    let case = "tests/data/token/p037-rollout-is-weights.safetensors";
    for (flags, pointer, value) in FLAGS {
        let value: Value = serde_json::from_str(value).unwrap();
        let args: Vec<_> = std::iter::once(case).chain(flags.split(' ')).collect();
        let report = json(&args);
        assert_eq!(report["config"].pointer(pointer), Some(&value), "{flags}");
    }
    let loss = |flag| json(&[case, "--rollout-is-weights", flag])["loss"].clone();
    assert_ne!(loss("true"), loss("false"));
    let kl = "tests/data/token/p034-kl-k3-far.safetensors";
    let report = json(&[kl, "--kl-coef", "0.5", "--kl-clamp", "false"]);
    assert_eq!(report["config"]["kl"]["coef"], 0.5);
    assert_eq!(report["config"]["kl"]["clamp"], false);
}

#[test]
fn metadata_is_optional() {
    let directory = TempDir::new().unwrap();
    let mut draft = Draft::of(CASE);
    draft.metadata.clear();
    let report = json(&[text(&draft.write(&directory))]);
    assert_eq!(report["name"], "batch");
    assert_eq!(report["config"]["baseline"]["k"], 0.4); // the default
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let mut child = command(&["step", CASE]);
    let child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn info_tells_version_build_and_device() {
    let info = succeed(&["info"]);
    assert!(info.contains(env!("CARGO_PKG_VERSION")), "{info}");
    for label in ["kernels", "device", "GPU record"] {
        assert!(info.lines().any(|line| line.starts_with(label)), "{info}");
    }
}
