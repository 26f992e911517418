//! The launchers of the emulated kernels, as `kernels/qae.h` declares them under names of their own.
#![allow(missing_docs)] // they are documented there

use std::ffi::c_void;

use qae::sys::{
    qae_advantages_params, qae_log_probs_from_logits_backward_params,
    qae_log_probs_from_logits_params, qae_loss_from_log_probs_params, qae_loss_from_logits_params,
    qae_merge_softmax_stats_params, qae_result, qae_scale_gradient_params, qae_token_counts_params,
};

unsafe extern "C" {
    pub fn qae_emu_advantages_workspace_bytes(params: *const qae_advantages_params) -> u64;
    pub fn qae_emu_advantages(
        params: *const qae_advantages_params,
        stream: *mut c_void,
    ) -> qae_result;
    pub fn qae_emu_token_counts_workspace_bytes(params: *const qae_token_counts_params) -> u64;
    pub fn qae_emu_token_counts(
        params: *const qae_token_counts_params,
        stream: *mut c_void,
    ) -> qae_result;
    pub fn qae_emu_loss_from_log_probs_workspace_bytes(
        params: *const qae_loss_from_log_probs_params,
    ) -> u64;
    pub fn qae_emu_loss_from_log_probs(
        params: *const qae_loss_from_log_probs_params,
        stream: *mut c_void,
    ) -> qae_result;
    pub fn qae_emu_log_probs_from_logits(
        params: *const qae_log_probs_from_logits_params,
        stream: *mut c_void,
    ) -> qae_result;
    pub fn qae_emu_merge_softmax_stats(
        params: *const qae_merge_softmax_stats_params,
        stream: *mut c_void,
    ) -> qae_result;
    pub fn qae_emu_log_probs_from_logits_backward(
        params: *const qae_log_probs_from_logits_backward_params,
        stream: *mut c_void,
    ) -> qae_result;
    pub fn qae_emu_scale_gradient(
        params: *const qae_scale_gradient_params,
        stream: *mut c_void,
    ) -> qae_result;
    pub fn qae_emu_loss_from_logits_workspace_bytes(
        params: *const qae_loss_from_logits_params,
    ) -> u64;
    pub fn qae_emu_loss_from_logits(
        params: *const qae_loss_from_logits_params,
        stream: *mut c_void,
    ) -> qae_result;
}
