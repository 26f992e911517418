use super::step;
use crate::backend::{Backend, LogProbsOutput, LogitsOutput, Run};
use crate::batch::{LogProbsInput, LogitsBatch, TokenBatch};
use crate::cli::{Candidate, Cli, Command};
use crate::config::Config;
use crate::cpu::CpuBackend;
use crate::error::{Error, Result};
use crate::io::{Precision, TensorFile};
use clap::Parser;

const CASE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/data/token/p033-kl-k3.safetensors"
);

const LOGITS: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/data/logits/l001-v64-f32.safetensors"
);

/// Stands for the kernels: the right result in float32, without a duration.
struct Rounded;

impl Backend for Rounded {
    fn name(&self) -> String {
        "rounded".to_string()
    }

    fn loss_from_log_probs(&self, batch: &TokenBatch<'_>, config: &Config) -> Result<Run> {
        let mut run = CpuBackend.loss_from_log_probs(batch, config)?;
        round(&mut run.output.d_log_prob);
        run.seconds = None;
        Ok(run)
    }

    fn loss_from_logits(
        &self,
        batch: &LogitsBatch<'_>,
        config: &Config,
    ) -> Result<Run<LogitsOutput>> {
        let mut run = CpuBackend.loss_from_logits(batch, config)?;
        for values in [
            &mut run.output.d_logits,
            &mut run.output.log_prob,
            &mut run.output.entropy,
        ] {
            round(values);
        }
        Ok(run)
    }

    fn log_probs_from_logits(&self, input: &LogProbsInput<'_>) -> Result<Run<LogProbsOutput>> {
        let mut run = CpuBackend.log_probs_from_logits(input)?;
        round(&mut run.output.log_prob);
        Ok(run)
    }
}

fn round(values: &mut [f64]) {
    for value in values {
        *value = f64::from(*value as f32);
    }
}

const ABSENT: Candidate = Candidate {
    name: "cuda",
    precision: Precision::F32,
    open: |_| Err(Error::NoDevice("no driver".to_string())),
};

const ROUNDED: Candidate = Candidate {
    name: "rounded",
    precision: Precision::F32,
    open: |_| Ok(Box::new(Rounded)),
};

fn run(args: &[&str], candidates: &[Candidate]) -> Result<String> {
    run_case(CASE, args, candidates)
}

fn run_case(case: &str, args: &[&str], candidates: &[Candidate]) -> Result<String> {
    let cli = Cli::parse_from([&["qae", "step", case], args].concat());
    let Command::Step(args) = cli.command else {
        panic!("the command is step")
    };
    step(&args, candidates)
}

#[test]
fn float32_results_are_compared_with_the_reference_and_written_as_float32() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out.safetensors");
    let out = out.to_str().unwrap();
    let report = run(&["--out", out, "--format", "json"], &[ABSENT, ROUNDED]).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    let gradient = &report["difference"]["gradient_over_largest"];
    let gradient = gradient.as_f64().unwrap();
    assert!(gradient > 0.0 && gradient < 1e-7, "{gradient}");
    assert_eq!(report["difference"]["advantage"], 0.0);
    assert_eq!(report["backend"]["reason"], "no cuda: no driver");
    assert_eq!(report["backend"]["seconds"], serde_json::Value::Null);
    let loss = TensorFile::read(out.as_ref())
        .unwrap()
        .f64s("loss")
        .unwrap()[0];
    assert_eq!(loss, f64::from(loss as f32));

    let text = run(&[], &[ROUNDED]).unwrap();
    assert!(text.contains("rounded; the first choice"), "{text}");
    assert!(
        text.contains("largest difference from the reference"),
        "{text}"
    );
}

#[test]
fn from_logits_log_probs_and_entropy_are_compared_too() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out.safetensors");
    let out = out.to_str().unwrap();
    let args = ["--out", out, "--format", "json"];
    let report = run_case(LOGITS, &args, &[ROUNDED]).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    for (name, most) in [
        ("logits_gradient_over_largest", 1e-7),
        ("log_prob", 1e-6),
        ("entropy", 1e-6),
    ] {
        let difference = report["difference"][name].as_f64().unwrap();
        assert!(
            difference > 0.0 && difference < most,
            "{name}: {difference}"
        );
    }
    let gradient = TensorFile::read(out.as_ref()).unwrap().f64s("dlogits");
    let gradient = gradient.unwrap();
    assert!(
        gradient
            .iter()
            .all(|&value| value == f64::from(value as f32))
    );
    let text = run_case(LOGITS, &[], &[ROUNDED]).unwrap();
    assert!(text.contains(" of its largest value, log-probs "), "{text}");
}

#[test]
fn a_backend_that_is_absent_is_an_error_with_the_reason() {
    for (args, candidates, expected) in [
        (
            &["--backend", "cuda"][..],
            &[ABSENT, ROUNDED][..],
            "CUDA device: no driver",
        ),
        (
            &["--backend", "cpu"],
            &[ABSENT],
            "--backend: expected auto or cuda, found cpu",
        ),
        (&[], &[ABSENT], "no cuda: no driver"),
    ] {
        let message = run(args, candidates).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
}
