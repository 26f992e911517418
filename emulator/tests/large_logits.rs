//! Offsets of logits beyond 2³¹ and 2³² elements, without allocating them: the base addresses point
//! far before the one row that a launch may touch, so an offset that is cut to 32 bits lands outside
//! every allocation and is found.

use std::ffi::c_void;
use std::ptr;

use qae::params::{
    self, AdvantageBuffers, Buffer, LayoutBuffers, LogProbsGradients, LogProbsOutputs,
    LogitsBuffers, LogitsGradient, LogitsInputs, LogitsLayoutBuffers, LogitsOutputs, LogitsRows,
    NormalizerSource, RowPolicy,
};
use qae::sys::{
    qae_log_probs_from_logits_backward_params, qae_log_probs_from_logits_params,
    qae_logits_metrics, qae_loss_from_logits_params, qae_result,
};
use qae::{Config, DType, Gradient, MetricsScope, Normalizer, Objective};
use qae_emulator::{Device, Options};

unsafe extern "C" {
    fn qae_emu_log_probs_from_logits(
        params: *const qae_log_probs_from_logits_params,
        stream: *mut c_void,
    ) -> qae_result;
    fn qae_emu_log_probs_from_logits_backward(
        params: *const qae_log_probs_from_logits_backward_params,
        stream: *mut c_void,
    ) -> qae_result;
    fn qae_emu_loss_from_logits_workspace_bytes(params: *const qae_loss_from_logits_params) -> u64;
    fn qae_emu_loss_from_logits(
        params: *const qae_loss_from_logits_params,
        stream: *mut c_void,
    ) -> qae_result;
}

/// Three rows this many elements apart, of which only the last exists; p = ½ for its token.
const STRIDE: usize = (1 << 32) + 4;
const LOGITS: [f32; 2] = [0.75, 0.75];
const TOKENS: [i32; 3] = [0, 0, 1];

fn whole<T: bytemuck::Pod>(buffer: &qae_emulator::Buffer<T>) -> Buffer {
    Buffer {
        address: buffer.address(),
        len: buffer.len(),
    }
}

/// A tensor of which only the last row exists.
fn far(row: &qae_emulator::Buffer<f32>) -> Buffer {
    Buffer {
        address: row.address().wrapping_sub(2 * STRIDE as u64 * 4),
        len: 2 * STRIDE + LOGITS.len(),
    }
}

fn logits(row: &qae_emulator::Buffer<f32>, tokens: &qae_emulator::Buffer<i32>) -> LogitsBuffers {
    LogitsBuffers {
        values: far(row),
        dtype: DType::F32,
        vocab_size: LOGITS.len(),
        row_stride: STRIDE,
        response_stride: None,
        token_ids: whole(tokens),
        token_id_bytes: 4,
    }
}

/// The gradient of the last row, in its place, by a loss on three responses of one token, packed or
/// padded, of which the last alone has an advantage.
fn loss_gradient(is_packed: bool, row_policy: RowPolicy) -> Vec<f32> {
    let device = Device::new(Options::default());
    let offsets = device.upload(&[0_i64, 1, 2, 3], "offsets").unwrap();
    let layout = match is_packed {
        true => LayoutBuffers::Packed {
            offsets: whole(&offsets),
            num_slots: 3,
        },
        false => LayoutBuffers::Padded {
            num_rows: 3,
            width: 1,
            row_stride: 1,
            mask_row_stride: 1,
            lengths: None,
        },
    };
    let row = device.upload(&LOGITS, "logits").unwrap();
    let tokens = device.upload(&TOKENS, "token_id").unwrap();
    let advantages = device.upload(&[0.0_f32, 0.0, 1.0], "advantages").unwrap();
    let words = size_of::<qae_logits_metrics>() / 8;
    let metrics = device.alloc::<u64>(words, "metrics").unwrap();
    let inputs = LogitsInputs {
        layout: LogitsLayoutBuffers::Responses(layout),
        mask: None,
        logits: logits(&row, &tokens),
        dtype: DType::F32,
        old_log_prob: None,
        ref_log_prob: None,
        importance_weight: None,
        advantages: AdvantageBuffers::PerResponse(whole(&advantages)),
    };
    let outputs = LogitsOutputs {
        gradient: LogitsGradient {
            d_logits: inputs.logits.values,
            row_stride: None,
            response_stride: None,
        },
        gradient_dtype: DType::F32,
        d_log_prob: None,
        log_prob: None,
        entropy: None,
        token_row_stride: None,
        active_slots: None,
        active_slot_count: None,
        baseline: None,
        advantage: None,
        active_rows: None,
        active_count: None,
        metrics: whole(&metrics),
    };
    let config = Config {
        objective: Objective::Reinforce,
        normalizer: Normalizer::Value(1.0),
        metrics_scope: MetricsScope::Active,
        gradient: Gradient::Untouched,
        ..Config::default()
    };
    let source = NormalizerSource::Config;
    let mut params =
        params::loss_from_logits(&inputs, &outputs, &config, source, row_policy).unwrap();
    // SAFETY: the query reads the params only.
    params.loss.workspace_bytes = unsafe { qae_emu_loss_from_logits_workspace_bytes(&params) };
    let zeros = vec![0_u8; params.loss.workspace_bytes as usize];
    let workspace = device.upload(&zeros, "workspace").unwrap();
    params.loss.workspace = workspace.address() as *mut _;
    let launch = || {
        // SAFETY: the elements that the layout lets the kernel touch are in the buffers; the
        // emulator checks every access and makes none outside.
        unsafe { qae_emu_loss_from_logits(&params, ptr::null_mut()) }
    };
    device.launch(launch).unwrap();
    row.download().unwrap()
}

#[test]
fn rows_of_a_loss_far_apart() {
    for row_policy in [RowPolicy::Cluster, RowPolicy::Block] {
        for is_packed in [false, true] {
            assert_eq!(loss_gradient(is_packed, row_policy), [0.5, -0.5]);
        }
    }
}

#[test]
fn rows_of_log_probs_far_apart() {
    let device = Device::new(Options::default());
    let row = device.upload(&LOGITS, "logits").unwrap();
    let tokens = device.upload(&TOKENS, "token_id").unwrap();
    let mask = device.upload(&[0_u8, 0, 1], "mask").unwrap();
    let log_prob = device.alloc::<f32>(3, "log_prob").unwrap();
    let stats = device.alloc::<f32>(3 * 4, "stats").unwrap();
    let in_stats = Buffer {
        address: stats.address(),
        len: 3,
    };
    let rows = LogitsRows {
        logits: logits(&row, &tokens),
        num_rows: 3,
        width: None,
        shard_start: None,
        temperature: 1.0,
    };
    let outputs = LogProbsOutputs {
        log_prob: Some(whole(&log_prob)),
        stats: Some(in_stats),
        ..LogProbsOutputs::default()
    };
    let forward = params::log_probs_from_logits(&rows, Some(whole(&mask)), &outputs).unwrap();
    device
        // SAFETY: as above, of the rows that are not masked.
        .launch(|| unsafe { qae_emu_log_probs_from_logits(&forward, ptr::null_mut()) })
        .unwrap();
    let found = log_prob.download().unwrap();
    assert!((found[2] - 0.5_f32.ln()).abs() < 1e-6 && found[..2] == [0.0, 0.0]);

    let d_log_prob = device.upload(&[0.0_f32, 0.0, 1.0], "d_log_prob").unwrap();
    let gradients = LogProbsGradients {
        stats: in_stats,
        d_log_prob: whole(&d_log_prob),
        d_entropy: None,
    };
    let target = LogitsGradient {
        d_logits: rows.logits.values,
        row_stride: None,
        response_stride: None,
    };
    let mode = Gradient::Untouched;
    let backward =
        params::log_probs_from_logits_backward(&rows, &gradients, &target, mode).unwrap();
    device
        // SAFETY: as above, of the row whose gradient is not 0.
        .launch(|| unsafe { qae_emu_log_probs_from_logits_backward(&backward, ptr::null_mut()) })
        .unwrap();
    assert_eq!(row.download().unwrap(), [-0.5, 0.5]);
}
