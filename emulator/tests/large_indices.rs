//! Index arithmetic beyond 2³¹ elements, without allocating them: the tensors' base addresses point
//! far before the few elements that a launch may touch, so an offset that is cut to 32 bits lands
//! outside every allocation and is found.

use std::ffi::c_void;

use qae::params::{
    AdvantageBuffers, Buffer, LayoutBuffers, LossOutputs, NormalizerSource, TokenBuffers,
    loss_from_log_probs,
};
use qae::sys::{qae_loss_from_log_probs_params, qae_loss_metrics, qae_result};
use qae::{Aggregation, Config, DType, Gradient, MetricsScope, Normalizer, Objective};
use qae_emulator::{Device, Options};

unsafe extern "C" {
    fn qae_emu_loss_from_log_probs_workspace_bytes(
        params: *const qae_loss_from_log_probs_params,
    ) -> u64;
    fn qae_emu_loss_from_log_probs(
        params: *const qae_loss_from_log_probs_params,
        stream: *mut c_void,
    ) -> qae_result;
}

/// Log-ratios of 0, so that the gradient is −A / normalizer in each of the five tokens.
const LOG_PROB: [f32; 5] = [-1.0, -2.0, -0.5, -3.0, -1.5];

/// A layout whose last row is active, and holds the five tokens from slot `first` on.
struct Far {
    first: u64,
    len: usize,
}

impl Far {
    /// A tensor of which only the elements from `first` on exist.
    fn view(&self, address: u64, element_size: u64) -> Buffer {
        Buffer {
            address: address.wrapping_sub(self.first * element_size),
            len: self.len,
        }
    }
}

fn config(objective: Objective) -> Config {
    Config {
        objective,
        aggregation: Aggregation::TokenMean,
        normalizer: Normalizer::Value(5.0),
        metrics_scope: MetricsScope::Active,
        gradient: Gradient::Untouched,
        ..Config::default()
    }
}

/// Runs one launch and returns the gradient of the five tokens and the active rows.
fn run(
    device: &Device,
    layout: LayoutBuffers,
    far: &Far,
    advantages: &[f32],
    config: &Config,
) -> (Vec<f32>, Vec<i32>) {
    let log_prob = device.upload(&LOG_PROB, "log_prob").unwrap();
    let old_log_prob = device.upload(&LOG_PROB, "old_log_prob").unwrap();
    let advantages = device.upload(advantages, "advantages").unwrap();
    let gradient = device.alloc::<f32>(LOG_PROB.len(), "d_log_prob").unwrap();
    let active_rows = device
        .alloc::<i32>(advantages.len(), "active_rows")
        .unwrap();
    let active_count = device.alloc::<i32>(1, "active_count").unwrap();
    let metrics = device
        .alloc::<u64>(size_of::<qae_loss_metrics>() / 8, "metrics")
        .unwrap();
    let whole = |address, len| Buffer { address, len };
    let inputs = TokenBuffers {
        layout,
        mask: None,
        dtype: DType::F32,
        log_prob: far.view(log_prob.address(), 4),
        old_log_prob: Some(far.view(old_log_prob.address(), 4)),
        ref_log_prob: None,
        importance_weight: None,
        advantages: AdvantageBuffers::PerResponse(whole(advantages.address(), advantages.len())),
    };
    let outputs = LossOutputs {
        gradient_dtype: DType::F32,
        d_log_prob: far.view(gradient.address(), 4),
        gradient_row_stride: None,
        baseline: None,
        advantage: None,
        active_rows: Some(whole(active_rows.address(), active_rows.len())),
        active_count: Some(whole(active_count.address(), 1)),
        metrics: whole(metrics.address(), metrics.len()),
    };
    let mut params =
        loss_from_log_probs(&inputs, &outputs, config, NormalizerSource::Config).unwrap();
    // SAFETY: the query reads the params only.
    params.workspace_bytes = unsafe { qae_emu_loss_from_log_probs_workspace_bytes(&params) };
    let zeros = vec![0_u8; params.workspace_bytes as usize];
    let workspace = device.upload(&zeros, "workspace").unwrap();
    params.workspace = workspace.address() as *mut _;
    device
        .launch(|| {
            // SAFETY: the elements that the layout lets the kernel touch are in the buffers; the
            // emulator checks every access and makes none outside.
            unsafe { qae_emu_loss_from_log_probs(&params, std::ptr::null_mut()) }
        })
        .unwrap();
    let count = active_count.download().unwrap()[0] as usize;
    (
        gradient.download().unwrap(),
        active_rows.download_raw()[..count].to_vec(),
    )
}

#[test]
fn rows_far_apart() {
    let row_stride = (1_usize << 32) + 4;
    let far = Far {
        first: 2 * row_stride as u64,
        len: 2 * row_stride + LOG_PROB.len(),
    };
    for objective in [
        Config::default().objective,
        Objective::Gspo {
            low: Some(0.2),
            high: Some(0.2),
            log_ratio_max: None,
        },
    ] {
        let device = Device::new(Options::default());
        let layout = LayoutBuffers::Padded {
            num_rows: 3,
            width: LOG_PROB.len(),
            row_stride,
            mask_row_stride: row_stride,
            lengths: None,
        };
        let (gradient, active) = run(&device, layout, &far, &[0.0, 0.0, 1.0], &config(objective));
        assert_eq!(gradient, [-0.2; 5]);
        assert_eq!(active, [2]);
    }
}

#[test]
fn a_packed_batch_of_more_than_two_to_the_31_slots() {
    let before = (1_i64 << 31) + 12;
    let num_slots = before as usize + LOG_PROB.len();
    let device = Device::new(Options::default());
    let offsets = device
        .upload(&[0, before, num_slots as i64], "offsets")
        .unwrap();
    let layout = LayoutBuffers::Packed {
        offsets: Buffer {
            address: offsets.address(),
            len: 3,
        },
        num_slots,
    };
    let far = Far {
        first: before as u64,
        len: num_slots,
    };
    let objective = Config::default().objective;
    let (gradient, active) = run(&device, layout, &far, &[0.0, 1.0], &config(objective));
    assert_eq!(gradient, [-0.2; 5]);
    assert_eq!(active, [1]);
}

/// A workspace for the largest batch serves every smaller one, though larger batches have larger and
/// so fewer tiles.
#[test]
fn the_workspace_grows_with_the_batch() {
    let bytes = |num_slots: i64, num_rows: i64, whole_rows: bool| {
        let mut params = qae_loss_from_log_probs_params::default();
        params.layout.num_slots = num_slots;
        params.layout.num_rows = num_rows;
        params.layout.offsets = std::ptr::dangling();
        if whole_rows {
            params.objective = qae::sys::QAE_OBJECTIVE_GSPO as i32;
        }
        // SAFETY: the query reads the params only, and follows none of their pointers.
        unsafe { qae_emu_loss_from_log_probs_workspace_bytes(&params) }
    };
    for whole_rows in [false, true] {
        for num_rows in [1, 7, 256, 4096, 100_000] {
            let mut last = 0;
            for exponent in 0..34 {
                for num_slots in [(1 << exponent) - 1, 1 << exponent, (1 << exponent) + 1] {
                    let found = bytes(num_slots, num_rows, whole_rows);
                    assert!(found >= last, "{num_slots} slots, {num_rows} rows");
                    last = found;
                    assert!(bytes(num_slots, num_rows + 1, whole_rows) >= found);
                }
            }
        }
    }
}
