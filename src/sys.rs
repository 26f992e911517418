// Generated from kernels/qae.h by scripts/bindings.sh; do not edit.

#![allow(missing_docs, dead_code)]
#![allow(non_camel_case_types, non_upper_case_globals, non_snake_case)]
#![allow(clippy::all, clippy::undocumented_unsafe_blocks)]

pub type qae_result = i32;
pub const QAE_OK: qae_status = 0;
pub const QAE_INVALID_ARGUMENT: qae_status = 1;
pub const QAE_WORKSPACE_TOO_SMALL: qae_status = 2;
pub type qae_status = ::core::ffi::c_uint;
pub const QAE_F32: qae_dtype = 0;
pub const QAE_BF16: qae_dtype = 1;
pub const QAE_F16: qae_dtype = 2;
pub type qae_dtype = ::core::ffi::c_uint;
pub const QAE_BASELINE_MEAN: qae_baseline = 0;
pub const QAE_BASELINE_LEAVE_ONE_OUT: qae_baseline = 1;
pub const QAE_BASELINE_QUANTILE_INVERTED_CDF: qae_baseline = 2;
pub const QAE_BASELINE_QUANTILE_LINEAR: qae_baseline = 3;
pub type qae_baseline = ::core::ffi::c_uint;
pub const QAE_SCALE_NONE: qae_scale = 0;
pub const QAE_SCALE_STD_UNBIASED: qae_scale = 1;
pub const QAE_SCALE_STD_POPULATION: qae_scale = 2;
pub type qae_scale = ::core::ffi::c_uint;
pub const QAE_SINGLETON_REWARD: qae_singleton = 0;
pub const QAE_SINGLETON_ZERO: qae_singleton = 1;
pub type qae_singleton = ::core::ffi::c_uint;
pub const QAE_GATE_OFF: qae_gate = 0;
pub const QAE_GATE_TWO_REGIME: qae_gate = 1;
pub const QAE_GATE_POSITIVE_MASK: qae_gate = 2;
pub const QAE_GATE_NEGATIVE_MASK: qae_gate = 3;
pub type qae_gate = ::core::ffi::c_uint;
pub const QAE_OBJECTIVE_CLIP: qae_objective = 0;
pub const QAE_OBJECTIVE_GSPO: qae_objective = 1;
pub const QAE_OBJECTIVE_CISPO: qae_objective = 2;
pub const QAE_OBJECTIVE_SAPO: qae_objective = 3;
pub const QAE_OBJECTIVE_REINFORCE: qae_objective = 4;
pub type qae_objective = ::core::ffi::c_uint;
pub const QAE_KL_NONE: qae_kl = 0;
pub const QAE_KL_K1: qae_kl = 1;
pub const QAE_KL_K2: qae_kl = 2;
pub const QAE_KL_K3: qae_kl = 3;
pub type qae_kl = ::core::ffi::c_uint;
pub const QAE_TOKEN_MEAN: qae_aggregation = 0;
pub const QAE_SEQ_MEAN_TOKEN_MEAN: qae_aggregation = 1;
pub const QAE_SEQ_MEAN_TOKEN_SUM: qae_aggregation = 2;
pub type qae_aggregation = ::core::ffi::c_uint;
pub const QAE_ADVANTAGE_FROM_REWARDS: qae_advantage_source = 0;
pub const QAE_ADVANTAGE_PER_RESPONSE: qae_advantage_source = 1;
pub const QAE_ADVANTAGE_PER_TOKEN: qae_advantage_source = 2;
pub type qae_advantage_source = ::core::ffi::c_uint;
pub const QAE_METRICS_ACTIVE: qae_metrics_scope = 0;
pub const QAE_METRICS_ALL: qae_metrics_scope = 1;
pub type qae_metrics_scope = ::core::ffi::c_uint;
pub const QAE_INACTIVE_ZERO_FILL: qae_inactive_gradient = 0;
pub const QAE_INACTIVE_UNTOUCHED: qae_inactive_gradient = 1;
pub const QAE_INACTIVE_COMPACT: qae_inactive_gradient = 2;
pub type qae_inactive_gradient = ::core::ffi::c_uint;
pub const QAE_ROW_AUTO: qae_row_policy = 0;
pub const QAE_ROW_CLUSTER: qae_row_policy = 1;
pub const QAE_ROW_BLOCK: qae_row_policy = 2;
pub type qae_row_policy = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct qae_groups {
    pub rewards: *const f32,
    pub num_responses: i32,
    pub num_groups: i32,
    pub group_size: i32,
    pub max_group_size: i32,
    pub offsets: *const i32,
    pub order: *const i32,
    pub group_of_response: *const i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qae_groups"][::core::mem::size_of::<qae_groups>() - 48usize];
    ["Alignment of qae_groups"][::core::mem::align_of::<qae_groups>() - 8usize];
    ["Offset of field: qae_groups::rewards"][::core::mem::offset_of!(qae_groups, rewards) - 0usize];
    ["Offset of field: qae_groups::num_responses"]
        [::core::mem::offset_of!(qae_groups, num_responses) - 8usize];
    ["Offset of field: qae_groups::num_groups"]
        [::core::mem::offset_of!(qae_groups, num_groups) - 12usize];
    ["Offset of field: qae_groups::group_size"]
        [::core::mem::offset_of!(qae_groups, group_size) - 16usize];
    ["Offset of field: qae_groups::max_group_size"]
        [::core::mem::offset_of!(qae_groups, max_group_size) - 20usize];
    ["Offset of field: qae_groups::offsets"]
        [::core::mem::offset_of!(qae_groups, offsets) - 24usize];
    ["Offset of field: qae_groups::order"][::core::mem::offset_of!(qae_groups, order) - 32usize];
    ["Offset of field: qae_groups::group_of_response"]
        [::core::mem::offset_of!(qae_groups, group_of_response) - 40usize];
};
impl Default for qae_groups {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct qae_advantage_options {
    pub k: f64,
    pub epsilon: f64,
    pub success_threshold: f64,
    pub baseline: i32,
    pub scale: i32,
    pub singleton: i32,
    pub gate: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qae_advantage_options"][::core::mem::size_of::<qae_advantage_options>() - 40usize];
    ["Alignment of qae_advantage_options"]
        [::core::mem::align_of::<qae_advantage_options>() - 8usize];
    ["Offset of field: qae_advantage_options::k"]
        [::core::mem::offset_of!(qae_advantage_options, k) - 0usize];
    ["Offset of field: qae_advantage_options::epsilon"]
        [::core::mem::offset_of!(qae_advantage_options, epsilon) - 8usize];
    ["Offset of field: qae_advantage_options::success_threshold"]
        [::core::mem::offset_of!(qae_advantage_options, success_threshold) - 16usize];
    ["Offset of field: qae_advantage_options::baseline"]
        [::core::mem::offset_of!(qae_advantage_options, baseline) - 24usize];
    ["Offset of field: qae_advantage_options::scale"]
        [::core::mem::offset_of!(qae_advantage_options, scale) - 28usize];
    ["Offset of field: qae_advantage_options::singleton"]
        [::core::mem::offset_of!(qae_advantage_options, singleton) - 32usize];
    ["Offset of field: qae_advantage_options::gate"]
        [::core::mem::offset_of!(qae_advantage_options, gate) - 36usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct qae_group_metrics {
    pub num_groups: u64,
    pub hard_groups: u64,
    pub easy_groups: u64,
    pub zero_variance_groups: u64,
    pub positive: u64,
    pub zero: u64,
    pub negative: u64,
    pub nonfinite_rewards: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qae_group_metrics"][::core::mem::size_of::<qae_group_metrics>() - 64usize];
    ["Alignment of qae_group_metrics"][::core::mem::align_of::<qae_group_metrics>() - 8usize];
    ["Offset of field: qae_group_metrics::num_groups"]
        [::core::mem::offset_of!(qae_group_metrics, num_groups) - 0usize];
    ["Offset of field: qae_group_metrics::hard_groups"]
        [::core::mem::offset_of!(qae_group_metrics, hard_groups) - 8usize];
    ["Offset of field: qae_group_metrics::easy_groups"]
        [::core::mem::offset_of!(qae_group_metrics, easy_groups) - 16usize];
    ["Offset of field: qae_group_metrics::zero_variance_groups"]
        [::core::mem::offset_of!(qae_group_metrics, zero_variance_groups) - 24usize];
    ["Offset of field: qae_group_metrics::positive"]
        [::core::mem::offset_of!(qae_group_metrics, positive) - 32usize];
    ["Offset of field: qae_group_metrics::zero"]
        [::core::mem::offset_of!(qae_group_metrics, zero) - 40usize];
    ["Offset of field: qae_group_metrics::negative"]
        [::core::mem::offset_of!(qae_group_metrics, negative) - 48usize];
    ["Offset of field: qae_group_metrics::nonfinite_rewards"]
        [::core::mem::offset_of!(qae_group_metrics, nonfinite_rewards) - 56usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct qae_advantages_params {
    pub groups: qae_groups,
    pub options: qae_advantage_options,
    pub baseline: *mut f32,
    pub advantage: *mut f32,
    pub active: *mut i32,
    pub active_count: *mut i32,
    pub metrics: *mut qae_group_metrics,
    pub workspace: *mut ::core::ffi::c_void,
    pub workspace_bytes: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qae_advantages_params"][::core::mem::size_of::<qae_advantages_params>() - 144usize];
    ["Alignment of qae_advantages_params"]
        [::core::mem::align_of::<qae_advantages_params>() - 8usize];
    ["Offset of field: qae_advantages_params::groups"]
        [::core::mem::offset_of!(qae_advantages_params, groups) - 0usize];
    ["Offset of field: qae_advantages_params::options"]
        [::core::mem::offset_of!(qae_advantages_params, options) - 48usize];
    ["Offset of field: qae_advantages_params::baseline"]
        [::core::mem::offset_of!(qae_advantages_params, baseline) - 88usize];
    ["Offset of field: qae_advantages_params::advantage"]
        [::core::mem::offset_of!(qae_advantages_params, advantage) - 96usize];
    ["Offset of field: qae_advantages_params::active"]
        [::core::mem::offset_of!(qae_advantages_params, active) - 104usize];
    ["Offset of field: qae_advantages_params::active_count"]
        [::core::mem::offset_of!(qae_advantages_params, active_count) - 112usize];
    ["Offset of field: qae_advantages_params::metrics"]
        [::core::mem::offset_of!(qae_advantages_params, metrics) - 120usize];
    ["Offset of field: qae_advantages_params::workspace"]
        [::core::mem::offset_of!(qae_advantages_params, workspace) - 128usize];
    ["Offset of field: qae_advantages_params::workspace_bytes"]
        [::core::mem::offset_of!(qae_advantages_params, workspace_bytes) - 136usize];
};
impl Default for qae_advantages_params {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct qae_layout {
    pub num_rows: i64,
    pub width: i64,
    pub num_slots: i64,
    pub row_stride: i64,
    pub mask_row_stride: i64,
    pub gradient_row_stride: i64,
    pub offsets: *const i64,
    pub lengths: *const i32,
    pub mask: *const u8,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qae_layout"][::core::mem::size_of::<qae_layout>() - 72usize];
    ["Alignment of qae_layout"][::core::mem::align_of::<qae_layout>() - 8usize];
    ["Offset of field: qae_layout::num_rows"]
        [::core::mem::offset_of!(qae_layout, num_rows) - 0usize];
    ["Offset of field: qae_layout::width"][::core::mem::offset_of!(qae_layout, width) - 8usize];
    ["Offset of field: qae_layout::num_slots"]
        [::core::mem::offset_of!(qae_layout, num_slots) - 16usize];
    ["Offset of field: qae_layout::row_stride"]
        [::core::mem::offset_of!(qae_layout, row_stride) - 24usize];
    ["Offset of field: qae_layout::mask_row_stride"]
        [::core::mem::offset_of!(qae_layout, mask_row_stride) - 32usize];
    ["Offset of field: qae_layout::gradient_row_stride"]
        [::core::mem::offset_of!(qae_layout, gradient_row_stride) - 40usize];
    ["Offset of field: qae_layout::offsets"]
        [::core::mem::offset_of!(qae_layout, offsets) - 48usize];
    ["Offset of field: qae_layout::lengths"]
        [::core::mem::offset_of!(qae_layout, lengths) - 56usize];
    ["Offset of field: qae_layout::mask"][::core::mem::offset_of!(qae_layout, mask) - 64usize];
};
impl Default for qae_layout {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct qae_token_counts_params {
    pub layout: qae_layout,
    pub num_tokens: *mut f64,
    pub num_rows: *mut f64,
    pub workspace: *mut ::core::ffi::c_void,
    pub workspace_bytes: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qae_token_counts_params"]
        [::core::mem::size_of::<qae_token_counts_params>() - 104usize];
    ["Alignment of qae_token_counts_params"]
        [::core::mem::align_of::<qae_token_counts_params>() - 8usize];
    ["Offset of field: qae_token_counts_params::layout"]
        [::core::mem::offset_of!(qae_token_counts_params, layout) - 0usize];
    ["Offset of field: qae_token_counts_params::num_tokens"]
        [::core::mem::offset_of!(qae_token_counts_params, num_tokens) - 72usize];
    ["Offset of field: qae_token_counts_params::num_rows"]
        [::core::mem::offset_of!(qae_token_counts_params, num_rows) - 80usize];
    ["Offset of field: qae_token_counts_params::workspace"]
        [::core::mem::offset_of!(qae_token_counts_params, workspace) - 88usize];
    ["Offset of field: qae_token_counts_params::workspace_bytes"]
        [::core::mem::offset_of!(qae_token_counts_params, workspace_bytes) - 96usize];
};
impl Default for qae_token_counts_params {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct qae_loss_metrics {
    pub loss: f64,
    pub pg_loss: f64,
    pub kl_loss: f64,
    pub neg_log_ratio_sum: f64,
    pub min_ratio: f64,
    pub max_ratio: f64,
    pub positive: u64,
    pub zero: u64,
    pub negative: u64,
    pub active: u64,
    pub tokens: u64,
    pub active_tokens: u64,
    pub clipped_above: u64,
    pub clipped_below: u64,
    pub dual_clipped: u64,
    pub nonfinite_tokens: u64,
    pub out_of_range: u64,
    pub groups: qae_group_metrics,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qae_loss_metrics"][::core::mem::size_of::<qae_loss_metrics>() - 200usize];
    ["Alignment of qae_loss_metrics"][::core::mem::align_of::<qae_loss_metrics>() - 8usize];
    ["Offset of field: qae_loss_metrics::loss"]
        [::core::mem::offset_of!(qae_loss_metrics, loss) - 0usize];
    ["Offset of field: qae_loss_metrics::pg_loss"]
        [::core::mem::offset_of!(qae_loss_metrics, pg_loss) - 8usize];
    ["Offset of field: qae_loss_metrics::kl_loss"]
        [::core::mem::offset_of!(qae_loss_metrics, kl_loss) - 16usize];
    ["Offset of field: qae_loss_metrics::neg_log_ratio_sum"]
        [::core::mem::offset_of!(qae_loss_metrics, neg_log_ratio_sum) - 24usize];
    ["Offset of field: qae_loss_metrics::min_ratio"]
        [::core::mem::offset_of!(qae_loss_metrics, min_ratio) - 32usize];
    ["Offset of field: qae_loss_metrics::max_ratio"]
        [::core::mem::offset_of!(qae_loss_metrics, max_ratio) - 40usize];
    ["Offset of field: qae_loss_metrics::positive"]
        [::core::mem::offset_of!(qae_loss_metrics, positive) - 48usize];
    ["Offset of field: qae_loss_metrics::zero"]
        [::core::mem::offset_of!(qae_loss_metrics, zero) - 56usize];
    ["Offset of field: qae_loss_metrics::negative"]
        [::core::mem::offset_of!(qae_loss_metrics, negative) - 64usize];
    ["Offset of field: qae_loss_metrics::active"]
        [::core::mem::offset_of!(qae_loss_metrics, active) - 72usize];
    ["Offset of field: qae_loss_metrics::tokens"]
        [::core::mem::offset_of!(qae_loss_metrics, tokens) - 80usize];
    ["Offset of field: qae_loss_metrics::active_tokens"]
        [::core::mem::offset_of!(qae_loss_metrics, active_tokens) - 88usize];
    ["Offset of field: qae_loss_metrics::clipped_above"]
        [::core::mem::offset_of!(qae_loss_metrics, clipped_above) - 96usize];
    ["Offset of field: qae_loss_metrics::clipped_below"]
        [::core::mem::offset_of!(qae_loss_metrics, clipped_below) - 104usize];
    ["Offset of field: qae_loss_metrics::dual_clipped"]
        [::core::mem::offset_of!(qae_loss_metrics, dual_clipped) - 112usize];
    ["Offset of field: qae_loss_metrics::nonfinite_tokens"]
        [::core::mem::offset_of!(qae_loss_metrics, nonfinite_tokens) - 120usize];
    ["Offset of field: qae_loss_metrics::out_of_range"]
        [::core::mem::offset_of!(qae_loss_metrics, out_of_range) - 128usize];
    ["Offset of field: qae_loss_metrics::groups"]
        [::core::mem::offset_of!(qae_loss_metrics, groups) - 136usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct qae_loss_from_log_probs_params {
    pub groups: qae_groups,
    pub advantage_options: qae_advantage_options,
    pub advantage_source: i32,
    pub dtype: i32,
    pub gradient_dtype: i32,
    pub weight_per_response: i32,
    pub response_index: *const i32,
    pub advantages: *const f32,
    pub layout: qae_layout,
    pub log_prob: *const ::core::ffi::c_void,
    pub old_log_prob: *const ::core::ffi::c_void,
    pub ref_log_prob: *const ::core::ffi::c_void,
    pub importance_weight: *const f32,
    pub objective: i32,
    pub kl: i32,
    pub kl_clamp: i32,
    pub aggregation: i32,
    pub clip_min: f32,
    pub clip_max: f32,
    pub dual_clip: f32,
    pub ratio_cap: f32,
    pub log_ratio_clamp: f32,
    pub seq_log_ratio_max: f32,
    pub tau_positive: f32,
    pub tau_negative: f32,
    pub kl_coef: f32,
    pub metrics_scope: i32,
    pub inactive_gradient: i32,
    pub reserved: i32,
    pub normalizer: f64,
    pub device_normalizer: *const f64,
    pub loss_multiplier: f64,
    pub grad_scale: f64,
    pub d_log_prob: *mut ::core::ffi::c_void,
    pub baseline: *mut f32,
    pub advantage: *mut f32,
    pub active_rows: *mut i32,
    pub active_count: *mut i32,
    pub metrics: *mut qae_loss_metrics,
    pub workspace: *mut ::core::ffi::c_void,
    pub workspace_bytes: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qae_loss_from_log_probs_params"]
        [::core::mem::size_of::<qae_loss_from_log_probs_params>() - 384usize];
    ["Alignment of qae_loss_from_log_probs_params"]
        [::core::mem::align_of::<qae_loss_from_log_probs_params>() - 8usize];
    ["Offset of field: qae_loss_from_log_probs_params::groups"]
        [::core::mem::offset_of!(qae_loss_from_log_probs_params, groups) - 0usize];
    ["Offset of field: qae_loss_from_log_probs_params::advantage_options"]
        [::core::mem::offset_of!(qae_loss_from_log_probs_params, advantage_options) - 48usize];
    ["Offset of field: qae_loss_from_log_probs_params::advantage_source"]
        [::core::mem::offset_of!(qae_loss_from_log_probs_params, advantage_source) - 88usize];
    ["Offset of field: qae_loss_from_log_probs_params::dtype"]
        [::core::mem::offset_of!(qae_loss_from_log_probs_params, dtype) - 92usize];
    ["Offset of field: qae_loss_from_log_probs_params::gradient_dtype"]
        [::core::mem::offset_of!(qae_loss_from_log_probs_params, gradient_dtype) - 96usize];
    ["Offset of field: qae_loss_from_log_probs_params::weight_per_response"]
        [::core::mem::offset_of!(qae_loss_from_log_probs_params, weight_per_response) - 100usize];
    ["Offset of field: qae_loss_from_log_probs_params::response_index"]
        [::core::mem::offset_of!(qae_loss_from_log_probs_params, response_index) - 104usize];
    ["Offset of field: qae_loss_from_log_probs_params::advantages"]
        [::core::mem::offset_of!(qae_loss_from_log_probs_params, advantages) - 112usize];
    ["Offset of field: qae_loss_from_log_probs_params::layout"]
        [::core::mem::offset_of!(qae_loss_from_log_probs_params, layout) - 120usize];
    ["Offset of field: qae_loss_from_log_probs_params::log_prob"]
        [::core::mem::offset_of!(qae_loss_from_log_probs_params, log_prob) - 192usize];
    ["Offset of field: qae_loss_from_log_probs_params::old_log_prob"]
        [::core::mem::offset_of!(qae_loss_from_log_probs_params, old_log_prob) - 200usize];
    ["Offset of field: qae_loss_from_log_probs_params::ref_log_prob"]
        [::core::mem::offset_of!(qae_loss_from_log_probs_params, ref_log_prob) - 208usize];
    ["Offset of field: qae_loss_from_log_probs_params::importance_weight"]
        [::core::mem::offset_of!(qae_loss_from_log_probs_params, importance_weight) - 216usize];
    ["Offset of field: qae_loss_from_log_probs_params::objective"]
        [::core::mem::offset_of!(qae_loss_from_log_probs_params, objective) - 224usize];
    ["Offset of field: qae_loss_from_log_probs_params::kl"]
        [::core::mem::offset_of!(qae_loss_from_log_probs_params, kl) - 228usize];
    ["Offset of field: qae_loss_from_log_probs_params::kl_clamp"]
        [::core::mem::offset_of!(qae_loss_from_log_probs_params, kl_clamp) - 232usize];
    ["Offset of field: qae_loss_from_log_probs_params::aggregation"]
        [::core::mem::offset_of!(qae_loss_from_log_probs_params, aggregation) - 236usize];
    ["Offset of field: qae_loss_from_log_probs_params::clip_min"]
        [::core::mem::offset_of!(qae_loss_from_log_probs_params, clip_min) - 240usize];
    ["Offset of field: qae_loss_from_log_probs_params::clip_max"]
        [::core::mem::offset_of!(qae_loss_from_log_probs_params, clip_max) - 244usize];
    ["Offset of field: qae_loss_from_log_probs_params::dual_clip"]
        [::core::mem::offset_of!(qae_loss_from_log_probs_params, dual_clip) - 248usize];
    ["Offset of field: qae_loss_from_log_probs_params::ratio_cap"]
        [::core::mem::offset_of!(qae_loss_from_log_probs_params, ratio_cap) - 252usize];
    ["Offset of field: qae_loss_from_log_probs_params::log_ratio_clamp"]
        [::core::mem::offset_of!(qae_loss_from_log_probs_params, log_ratio_clamp) - 256usize];
    ["Offset of field: qae_loss_from_log_probs_params::seq_log_ratio_max"]
        [::core::mem::offset_of!(qae_loss_from_log_probs_params, seq_log_ratio_max) - 260usize];
    ["Offset of field: qae_loss_from_log_probs_params::tau_positive"]
        [::core::mem::offset_of!(qae_loss_from_log_probs_params, tau_positive) - 264usize];
    ["Offset of field: qae_loss_from_log_probs_params::tau_negative"]
        [::core::mem::offset_of!(qae_loss_from_log_probs_params, tau_negative) - 268usize];
    ["Offset of field: qae_loss_from_log_probs_params::kl_coef"]
        [::core::mem::offset_of!(qae_loss_from_log_probs_params, kl_coef) - 272usize];
    ["Offset of field: qae_loss_from_log_probs_params::metrics_scope"]
        [::core::mem::offset_of!(qae_loss_from_log_probs_params, metrics_scope) - 276usize];
    ["Offset of field: qae_loss_from_log_probs_params::inactive_gradient"]
        [::core::mem::offset_of!(qae_loss_from_log_probs_params, inactive_gradient) - 280usize];
    ["Offset of field: qae_loss_from_log_probs_params::reserved"]
        [::core::mem::offset_of!(qae_loss_from_log_probs_params, reserved) - 284usize];
    ["Offset of field: qae_loss_from_log_probs_params::normalizer"]
        [::core::mem::offset_of!(qae_loss_from_log_probs_params, normalizer) - 288usize];
    ["Offset of field: qae_loss_from_log_probs_params::device_normalizer"]
        [::core::mem::offset_of!(qae_loss_from_log_probs_params, device_normalizer) - 296usize];
    ["Offset of field: qae_loss_from_log_probs_params::loss_multiplier"]
        [::core::mem::offset_of!(qae_loss_from_log_probs_params, loss_multiplier) - 304usize];
    ["Offset of field: qae_loss_from_log_probs_params::grad_scale"]
        [::core::mem::offset_of!(qae_loss_from_log_probs_params, grad_scale) - 312usize];
    ["Offset of field: qae_loss_from_log_probs_params::d_log_prob"]
        [::core::mem::offset_of!(qae_loss_from_log_probs_params, d_log_prob) - 320usize];
    ["Offset of field: qae_loss_from_log_probs_params::baseline"]
        [::core::mem::offset_of!(qae_loss_from_log_probs_params, baseline) - 328usize];
    ["Offset of field: qae_loss_from_log_probs_params::advantage"]
        [::core::mem::offset_of!(qae_loss_from_log_probs_params, advantage) - 336usize];
    ["Offset of field: qae_loss_from_log_probs_params::active_rows"]
        [::core::mem::offset_of!(qae_loss_from_log_probs_params, active_rows) - 344usize];
    ["Offset of field: qae_loss_from_log_probs_params::active_count"]
        [::core::mem::offset_of!(qae_loss_from_log_probs_params, active_count) - 352usize];
    ["Offset of field: qae_loss_from_log_probs_params::metrics"]
        [::core::mem::offset_of!(qae_loss_from_log_probs_params, metrics) - 360usize];
    ["Offset of field: qae_loss_from_log_probs_params::workspace"]
        [::core::mem::offset_of!(qae_loss_from_log_probs_params, workspace) - 368usize];
    ["Offset of field: qae_loss_from_log_probs_params::workspace_bytes"]
        [::core::mem::offset_of!(qae_loss_from_log_probs_params, workspace_bytes) - 376usize];
};
impl Default for qae_loss_from_log_probs_params {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct qae_logits {
    pub values: *const ::core::ffi::c_void,
    pub token_ids: *const ::core::ffi::c_void,
    pub num_rows: i64,
    pub width: i64,
    pub row_stride: i64,
    pub response_stride: i64,
    pub vocab_size: i64,
    pub vocab_start: i64,
    pub dtype: i32,
    pub token_id_bytes: i32,
    pub temperature: f32,
    pub reserved: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qae_logits"][::core::mem::size_of::<qae_logits>() - 80usize];
    ["Alignment of qae_logits"][::core::mem::align_of::<qae_logits>() - 8usize];
    ["Offset of field: qae_logits::values"][::core::mem::offset_of!(qae_logits, values) - 0usize];
    ["Offset of field: qae_logits::token_ids"]
        [::core::mem::offset_of!(qae_logits, token_ids) - 8usize];
    ["Offset of field: qae_logits::num_rows"]
        [::core::mem::offset_of!(qae_logits, num_rows) - 16usize];
    ["Offset of field: qae_logits::width"][::core::mem::offset_of!(qae_logits, width) - 24usize];
    ["Offset of field: qae_logits::row_stride"]
        [::core::mem::offset_of!(qae_logits, row_stride) - 32usize];
    ["Offset of field: qae_logits::response_stride"]
        [::core::mem::offset_of!(qae_logits, response_stride) - 40usize];
    ["Offset of field: qae_logits::vocab_size"]
        [::core::mem::offset_of!(qae_logits, vocab_size) - 48usize];
    ["Offset of field: qae_logits::vocab_start"]
        [::core::mem::offset_of!(qae_logits, vocab_start) - 56usize];
    ["Offset of field: qae_logits::dtype"][::core::mem::offset_of!(qae_logits, dtype) - 64usize];
    ["Offset of field: qae_logits::token_id_bytes"]
        [::core::mem::offset_of!(qae_logits, token_id_bytes) - 68usize];
    ["Offset of field: qae_logits::temperature"]
        [::core::mem::offset_of!(qae_logits, temperature) - 72usize];
    ["Offset of field: qae_logits::reserved"]
        [::core::mem::offset_of!(qae_logits, reserved) - 76usize];
};
impl Default for qae_logits {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct qae_softmax_stats {
    pub max_logit: f32,
    pub sum_exp: f32,
    pub sum_exp_z: f32,
    pub own_logit: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qae_softmax_stats"][::core::mem::size_of::<qae_softmax_stats>() - 16usize];
    ["Alignment of qae_softmax_stats"][::core::mem::align_of::<qae_softmax_stats>() - 4usize];
    ["Offset of field: qae_softmax_stats::max_logit"]
        [::core::mem::offset_of!(qae_softmax_stats, max_logit) - 0usize];
    ["Offset of field: qae_softmax_stats::sum_exp"]
        [::core::mem::offset_of!(qae_softmax_stats, sum_exp) - 4usize];
    ["Offset of field: qae_softmax_stats::sum_exp_z"]
        [::core::mem::offset_of!(qae_softmax_stats, sum_exp_z) - 8usize];
    ["Offset of field: qae_softmax_stats::own_logit"]
        [::core::mem::offset_of!(qae_softmax_stats, own_logit) - 12usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct qae_log_probs_from_logits_params {
    pub logits: qae_logits,
    pub mask: *const u8,
    pub log_prob: *mut f32,
    pub entropy: *mut f32,
    pub log_sum_exp: *mut f32,
    pub stats: *mut qae_softmax_stats,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qae_log_probs_from_logits_params"]
        [::core::mem::size_of::<qae_log_probs_from_logits_params>() - 120usize];
    ["Alignment of qae_log_probs_from_logits_params"]
        [::core::mem::align_of::<qae_log_probs_from_logits_params>() - 8usize];
    ["Offset of field: qae_log_probs_from_logits_params::logits"]
        [::core::mem::offset_of!(qae_log_probs_from_logits_params, logits) - 0usize];
    ["Offset of field: qae_log_probs_from_logits_params::mask"]
        [::core::mem::offset_of!(qae_log_probs_from_logits_params, mask) - 80usize];
    ["Offset of field: qae_log_probs_from_logits_params::log_prob"]
        [::core::mem::offset_of!(qae_log_probs_from_logits_params, log_prob) - 88usize];
    ["Offset of field: qae_log_probs_from_logits_params::entropy"]
        [::core::mem::offset_of!(qae_log_probs_from_logits_params, entropy) - 96usize];
    ["Offset of field: qae_log_probs_from_logits_params::log_sum_exp"]
        [::core::mem::offset_of!(qae_log_probs_from_logits_params, log_sum_exp) - 104usize];
    ["Offset of field: qae_log_probs_from_logits_params::stats"]
        [::core::mem::offset_of!(qae_log_probs_from_logits_params, stats) - 112usize];
};
impl Default for qae_log_probs_from_logits_params {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct qae_merge_softmax_stats_params {
    pub shards: *const qae_softmax_stats,
    pub mask: *const u8,
    pub num_rows: i64,
    pub num_shards: i32,
    pub temperature: f32,
    pub log_prob: *mut f32,
    pub entropy: *mut f32,
    pub log_sum_exp: *mut f32,
    pub stats: *mut qae_softmax_stats,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qae_merge_softmax_stats_params"]
        [::core::mem::size_of::<qae_merge_softmax_stats_params>() - 64usize];
    ["Alignment of qae_merge_softmax_stats_params"]
        [::core::mem::align_of::<qae_merge_softmax_stats_params>() - 8usize];
    ["Offset of field: qae_merge_softmax_stats_params::shards"]
        [::core::mem::offset_of!(qae_merge_softmax_stats_params, shards) - 0usize];
    ["Offset of field: qae_merge_softmax_stats_params::mask"]
        [::core::mem::offset_of!(qae_merge_softmax_stats_params, mask) - 8usize];
    ["Offset of field: qae_merge_softmax_stats_params::num_rows"]
        [::core::mem::offset_of!(qae_merge_softmax_stats_params, num_rows) - 16usize];
    ["Offset of field: qae_merge_softmax_stats_params::num_shards"]
        [::core::mem::offset_of!(qae_merge_softmax_stats_params, num_shards) - 24usize];
    ["Offset of field: qae_merge_softmax_stats_params::temperature"]
        [::core::mem::offset_of!(qae_merge_softmax_stats_params, temperature) - 28usize];
    ["Offset of field: qae_merge_softmax_stats_params::log_prob"]
        [::core::mem::offset_of!(qae_merge_softmax_stats_params, log_prob) - 32usize];
    ["Offset of field: qae_merge_softmax_stats_params::entropy"]
        [::core::mem::offset_of!(qae_merge_softmax_stats_params, entropy) - 40usize];
    ["Offset of field: qae_merge_softmax_stats_params::log_sum_exp"]
        [::core::mem::offset_of!(qae_merge_softmax_stats_params, log_sum_exp) - 48usize];
    ["Offset of field: qae_merge_softmax_stats_params::stats"]
        [::core::mem::offset_of!(qae_merge_softmax_stats_params, stats) - 56usize];
};
impl Default for qae_merge_softmax_stats_params {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct qae_log_probs_from_logits_backward_params {
    pub logits: qae_logits,
    pub stats: *const qae_softmax_stats,
    pub d_log_prob: *const f32,
    pub d_entropy: *const f32,
    pub d_logits: *mut ::core::ffi::c_void,
    pub d_row_stride: i64,
    pub d_response_stride: i64,
    pub inactive_gradient: i32,
    pub reserved: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qae_log_probs_from_logits_backward_params"]
        [::core::mem::size_of::<qae_log_probs_from_logits_backward_params>() - 136usize];
    ["Alignment of qae_log_probs_from_logits_backward_params"]
        [::core::mem::align_of::<qae_log_probs_from_logits_backward_params>() - 8usize];
    ["Offset of field: qae_log_probs_from_logits_backward_params::logits"]
        [::core::mem::offset_of!(qae_log_probs_from_logits_backward_params, logits) - 0usize];
    ["Offset of field: qae_log_probs_from_logits_backward_params::stats"]
        [::core::mem::offset_of!(qae_log_probs_from_logits_backward_params, stats) - 80usize];
    ["Offset of field: qae_log_probs_from_logits_backward_params::d_log_prob"]
        [::core::mem::offset_of!(qae_log_probs_from_logits_backward_params, d_log_prob) - 88usize];
    ["Offset of field: qae_log_probs_from_logits_backward_params::d_entropy"]
        [::core::mem::offset_of!(qae_log_probs_from_logits_backward_params, d_entropy) - 96usize];
    ["Offset of field: qae_log_probs_from_logits_backward_params::d_logits"]
        [::core::mem::offset_of!(qae_log_probs_from_logits_backward_params, d_logits) - 104usize];
    ["Offset of field: qae_log_probs_from_logits_backward_params::d_row_stride"][::core::mem::offset_of!(
        qae_log_probs_from_logits_backward_params,
        d_row_stride
    ) - 112usize];
    ["Offset of field: qae_log_probs_from_logits_backward_params::d_response_stride"][::core::mem::offset_of!(
        qae_log_probs_from_logits_backward_params,
        d_response_stride
    ) - 120usize];
    ["Offset of field: qae_log_probs_from_logits_backward_params::inactive_gradient"][::core::mem::offset_of!(
        qae_log_probs_from_logits_backward_params,
        inactive_gradient
    ) - 128usize];
    ["Offset of field: qae_log_probs_from_logits_backward_params::reserved"]
        [::core::mem::offset_of!(qae_log_probs_from_logits_backward_params, reserved) - 132usize];
};
impl Default for qae_log_probs_from_logits_backward_params {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct qae_scale_gradient_params {
    pub gradient: *const ::core::ffi::c_void,
    pub scaled: *mut ::core::ffi::c_void,
    pub factor: *const ::core::ffi::c_void,
    pub row_gradient: *const f32,
    pub num_rows: i64,
    pub num_columns: i64,
    pub width: i64,
    pub row_stride: i64,
    pub response_stride: i64,
    pub scaled_row_stride: i64,
    pub scaled_response_stride: i64,
    pub dtype: i32,
    pub scaled_dtype: i32,
    pub factor_bytes: i32,
    pub reserved: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qae_scale_gradient_params"]
        [::core::mem::size_of::<qae_scale_gradient_params>() - 104usize];
    ["Alignment of qae_scale_gradient_params"]
        [::core::mem::align_of::<qae_scale_gradient_params>() - 8usize];
    ["Offset of field: qae_scale_gradient_params::gradient"]
        [::core::mem::offset_of!(qae_scale_gradient_params, gradient) - 0usize];
    ["Offset of field: qae_scale_gradient_params::scaled"]
        [::core::mem::offset_of!(qae_scale_gradient_params, scaled) - 8usize];
    ["Offset of field: qae_scale_gradient_params::factor"]
        [::core::mem::offset_of!(qae_scale_gradient_params, factor) - 16usize];
    ["Offset of field: qae_scale_gradient_params::row_gradient"]
        [::core::mem::offset_of!(qae_scale_gradient_params, row_gradient) - 24usize];
    ["Offset of field: qae_scale_gradient_params::num_rows"]
        [::core::mem::offset_of!(qae_scale_gradient_params, num_rows) - 32usize];
    ["Offset of field: qae_scale_gradient_params::num_columns"]
        [::core::mem::offset_of!(qae_scale_gradient_params, num_columns) - 40usize];
    ["Offset of field: qae_scale_gradient_params::width"]
        [::core::mem::offset_of!(qae_scale_gradient_params, width) - 48usize];
    ["Offset of field: qae_scale_gradient_params::row_stride"]
        [::core::mem::offset_of!(qae_scale_gradient_params, row_stride) - 56usize];
    ["Offset of field: qae_scale_gradient_params::response_stride"]
        [::core::mem::offset_of!(qae_scale_gradient_params, response_stride) - 64usize];
    ["Offset of field: qae_scale_gradient_params::scaled_row_stride"]
        [::core::mem::offset_of!(qae_scale_gradient_params, scaled_row_stride) - 72usize];
    ["Offset of field: qae_scale_gradient_params::scaled_response_stride"]
        [::core::mem::offset_of!(qae_scale_gradient_params, scaled_response_stride) - 80usize];
    ["Offset of field: qae_scale_gradient_params::dtype"]
        [::core::mem::offset_of!(qae_scale_gradient_params, dtype) - 88usize];
    ["Offset of field: qae_scale_gradient_params::scaled_dtype"]
        [::core::mem::offset_of!(qae_scale_gradient_params, scaled_dtype) - 92usize];
    ["Offset of field: qae_scale_gradient_params::factor_bytes"]
        [::core::mem::offset_of!(qae_scale_gradient_params, factor_bytes) - 96usize];
    ["Offset of field: qae_scale_gradient_params::reserved"]
        [::core::mem::offset_of!(qae_scale_gradient_params, reserved) - 100usize];
};
impl Default for qae_scale_gradient_params {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct qae_logits_metrics {
    pub loss: qae_loss_metrics,
    pub entropy_loss: f64,
    pub entropy_positive: f64,
    pub entropy_zero: f64,
    pub entropy_negative: f64,
    pub positive_tokens: u64,
    pub zero_tokens: u64,
    pub negative_tokens: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qae_logits_metrics"][::core::mem::size_of::<qae_logits_metrics>() - 256usize];
    ["Alignment of qae_logits_metrics"][::core::mem::align_of::<qae_logits_metrics>() - 8usize];
    ["Offset of field: qae_logits_metrics::loss"]
        [::core::mem::offset_of!(qae_logits_metrics, loss) - 0usize];
    ["Offset of field: qae_logits_metrics::entropy_loss"]
        [::core::mem::offset_of!(qae_logits_metrics, entropy_loss) - 200usize];
    ["Offset of field: qae_logits_metrics::entropy_positive"]
        [::core::mem::offset_of!(qae_logits_metrics, entropy_positive) - 208usize];
    ["Offset of field: qae_logits_metrics::entropy_zero"]
        [::core::mem::offset_of!(qae_logits_metrics, entropy_zero) - 216usize];
    ["Offset of field: qae_logits_metrics::entropy_negative"]
        [::core::mem::offset_of!(qae_logits_metrics, entropy_negative) - 224usize];
    ["Offset of field: qae_logits_metrics::positive_tokens"]
        [::core::mem::offset_of!(qae_logits_metrics, positive_tokens) - 232usize];
    ["Offset of field: qae_logits_metrics::zero_tokens"]
        [::core::mem::offset_of!(qae_logits_metrics, zero_tokens) - 240usize];
    ["Offset of field: qae_logits_metrics::negative_tokens"]
        [::core::mem::offset_of!(qae_logits_metrics, negative_tokens) - 248usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct qae_loss_from_logits_params {
    pub loss: qae_loss_from_log_probs_params,
    pub logits: qae_logits,
    pub slot_response: *const i32,
    pub d_logits: *mut ::core::ffi::c_void,
    pub d_row_stride: i64,
    pub d_response_stride: i64,
    pub compact_rows: i64,
    pub active_slots: *mut i64,
    pub active_slot_count: *mut i64,
    pub log_prob: *mut f32,
    pub entropy: *mut f32,
    pub metrics: *mut qae_logits_metrics,
    pub entropy_coef: f32,
    pub row_policy: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of qae_loss_from_logits_params"]
        [::core::mem::size_of::<qae_loss_from_logits_params>() - 552usize];
    ["Alignment of qae_loss_from_logits_params"]
        [::core::mem::align_of::<qae_loss_from_logits_params>() - 8usize];
    ["Offset of field: qae_loss_from_logits_params::loss"]
        [::core::mem::offset_of!(qae_loss_from_logits_params, loss) - 0usize];
    ["Offset of field: qae_loss_from_logits_params::logits"]
        [::core::mem::offset_of!(qae_loss_from_logits_params, logits) - 384usize];
    ["Offset of field: qae_loss_from_logits_params::slot_response"]
        [::core::mem::offset_of!(qae_loss_from_logits_params, slot_response) - 464usize];
    ["Offset of field: qae_loss_from_logits_params::d_logits"]
        [::core::mem::offset_of!(qae_loss_from_logits_params, d_logits) - 472usize];
    ["Offset of field: qae_loss_from_logits_params::d_row_stride"]
        [::core::mem::offset_of!(qae_loss_from_logits_params, d_row_stride) - 480usize];
    ["Offset of field: qae_loss_from_logits_params::d_response_stride"]
        [::core::mem::offset_of!(qae_loss_from_logits_params, d_response_stride) - 488usize];
    ["Offset of field: qae_loss_from_logits_params::compact_rows"]
        [::core::mem::offset_of!(qae_loss_from_logits_params, compact_rows) - 496usize];
    ["Offset of field: qae_loss_from_logits_params::active_slots"]
        [::core::mem::offset_of!(qae_loss_from_logits_params, active_slots) - 504usize];
    ["Offset of field: qae_loss_from_logits_params::active_slot_count"]
        [::core::mem::offset_of!(qae_loss_from_logits_params, active_slot_count) - 512usize];
    ["Offset of field: qae_loss_from_logits_params::log_prob"]
        [::core::mem::offset_of!(qae_loss_from_logits_params, log_prob) - 520usize];
    ["Offset of field: qae_loss_from_logits_params::entropy"]
        [::core::mem::offset_of!(qae_loss_from_logits_params, entropy) - 528usize];
    ["Offset of field: qae_loss_from_logits_params::metrics"]
        [::core::mem::offset_of!(qae_loss_from_logits_params, metrics) - 536usize];
    ["Offset of field: qae_loss_from_logits_params::entropy_coef"]
        [::core::mem::offset_of!(qae_loss_from_logits_params, entropy_coef) - 544usize];
    ["Offset of field: qae_loss_from_logits_params::row_policy"]
        [::core::mem::offset_of!(qae_loss_from_logits_params, row_policy) - 548usize];
};
impl Default for qae_loss_from_logits_params {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
unsafe extern "C" {
    pub fn qae_advantages_workspace_bytes(params: *const qae_advantages_params) -> u64;
}
unsafe extern "C" {
    pub fn qae_advantages(
        params: *const qae_advantages_params,
        stream: *mut ::core::ffi::c_void,
    ) -> qae_result;
}
unsafe extern "C" {
    pub fn qae_token_counts_workspace_bytes(params: *const qae_token_counts_params) -> u64;
}
unsafe extern "C" {
    pub fn qae_token_counts(
        params: *const qae_token_counts_params,
        stream: *mut ::core::ffi::c_void,
    ) -> qae_result;
}
unsafe extern "C" {
    pub fn qae_loss_from_log_probs_workspace_bytes(
        params: *const qae_loss_from_log_probs_params,
    ) -> u64;
}
unsafe extern "C" {
    pub fn qae_loss_from_log_probs(
        params: *const qae_loss_from_log_probs_params,
        stream: *mut ::core::ffi::c_void,
    ) -> qae_result;
}
unsafe extern "C" {
    pub fn qae_log_probs_from_logits(
        params: *const qae_log_probs_from_logits_params,
        stream: *mut ::core::ffi::c_void,
    ) -> qae_result;
}
unsafe extern "C" {
    pub fn qae_merge_softmax_stats(
        params: *const qae_merge_softmax_stats_params,
        stream: *mut ::core::ffi::c_void,
    ) -> qae_result;
}
unsafe extern "C" {
    pub fn qae_log_probs_from_logits_backward(
        params: *const qae_log_probs_from_logits_backward_params,
        stream: *mut ::core::ffi::c_void,
    ) -> qae_result;
}
unsafe extern "C" {
    pub fn qae_scale_gradient(
        params: *const qae_scale_gradient_params,
        stream: *mut ::core::ffi::c_void,
    ) -> qae_result;
}
unsafe extern "C" {
    pub fn qae_loss_from_logits_workspace_bytes(params: *const qae_loss_from_logits_params) -> u64;
}
unsafe extern "C" {
    pub fn qae_loss_from_logits(
        params: *const qae_loss_from_logits_params,
        stream: *mut ::core::ffi::c_void,
    ) -> qae_result;
}
