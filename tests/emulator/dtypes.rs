//! Tensors in f64 are the CPU path's alone: the kernels refuse them by name before any launch.

use qae::params::{
    AdvantageBuffers, Buffer, LayoutBuffers, LossOutputs, NormalizerSource, TokenBuffers,
    loss_from_log_probs,
};
use qae::{
    Advantages, Backend, Config, DType, Kl, KlEstimator, Layout, LogProbsInput, Logits,
    LogitsBatch, Normalizer, Objective, Result, Tensor, TokenBatch,
};
use qae_emulator::EmulatorBackend;

fn config() -> Config {
    Config {
        normalizer: Normalizer::Value(1.0),
        ..Config::default()
    }
}

fn assert_refused<T>(result: Result<T>, field: &str) {
    let message = result.map(drop).expect_err(field).to_string();
    let expected = format!("{field}: F64 is not supported (supported: F32, Bf16, F16)");
    assert_eq!(message, expected);
}

#[test]
fn the_emulator_refuses_f64_log_probs() {
    let batch = TokenBatch {
        layout: Layout::padded(1, 1),
        mask: None,
        log_prob: Tensor::F64(&[-1.0]),
        old_log_prob: Some(Tensor::F64(&[-1.0])),
        ref_log_prob: None,
        importance_weight: None,
        advantages: Advantages::PerResponse(&[1.0]),
    };
    let backend = EmulatorBackend::default();
    assert_refused(backend.loss_from_log_probs(&batch, &config()), "log_prob");
}

#[test]
fn the_emulator_refuses_f64_logits() {
    let input = LogProbsInput {
        logits: Logits::contiguous(Tensor::F64(&[0.0; 4]), 4),
        token_id: &[1],
        mask: None,
        temperature: 1.0,
    };
    let backend = EmulatorBackend::default();
    assert_refused(backend.log_probs_from_logits(&input), "logits");
    let gradient = backend.log_probs_from_logits_backward(&input, &[1.0], None);
    assert_refused(gradient, "logits");
    let batch = LogitsBatch {
        layout: Layout::padded(1, 1).into(),
        mask: None,
        logits: input.logits,
        token_id: &[1],
        old_log_prob: Some(Tensor::F32(&[-1.0])),
        ref_log_prob: None,
        importance_weight: None,
        advantages: Advantages::PerResponse(&[1.0]),
    };
    assert_refused(backend.loss_from_logits(&batch, &config()), "logits");
    let wide_log_probs = LogitsBatch {
        logits: Logits::contiguous(Tensor::F32(&[0.0; 4]), 4),
        old_log_prob: Some(Tensor::F64(&[-1.0])),
        ..batch
    };
    let run = backend.loss_from_logits(&wide_log_probs, &config());
    assert_refused(run, "old_log_prob");
    let reference_only = LogitsBatch {
        old_log_prob: None,
        ref_log_prob: Some(Tensor::F64(&[-1.0])),
        ..wide_log_probs
    };
    let with_kl = Config {
        objective: Objective::Reinforce,
        kl: Some(Kl {
            estimator: KlEstimator::K3,
            coef: 0.1,
            clamp: true,
        }),
        ..config()
    };
    let run = backend.loss_from_logits(&reference_only, &with_kl);
    assert_refused(run, "ref_log_prob");
}

#[test]
fn the_params_refuse_f64() {
    let buffer = |address, len| Buffer { address, len };
    let run = |dtype, gradient_dtype| {
        let inputs = TokenBuffers {
            layout: LayoutBuffers::Padded {
                num_rows: 2,
                width: 3,
                row_stride: 3,
                mask_row_stride: 3,
                lengths: None,
            },
            mask: None,
            dtype,
            log_prob: buffer(1 << 12, 6),
            old_log_prob: Some(buffer(1 << 13, 6)),
            ref_log_prob: None,
            importance_weight: None,
            advantages: AdvantageBuffers::PerResponse(buffer(1 << 14, 2)),
        };
        let outputs = LossOutputs {
            gradient_dtype,
            d_log_prob: buffer(1 << 15, 6),
            gradient_row_stride: None,
            baseline: None,
            advantage: None,
            active_rows: None,
            active_count: None,
            metrics: buffer(1 << 16, 1),
        };
        loss_from_log_probs(&inputs, &outputs, &config(), NormalizerSource::Config)
    };
    run(DType::F32, DType::F32).unwrap();
    assert_refused(run(DType::F64, DType::F64), "log_prob");
    let message = run(DType::F32, DType::F64).unwrap_err().to_string();
    assert_eq!(message, "d_log_prob: expected dtype F32 or F32, found F64");
}
