//! The launchers of the C ABI, each with its params struct.

use qae::sys;
use std::ffi::c_void;

/// The launchers of an operation in one build of the kernels.
pub(crate) struct Launchers<P> {
    /// Of the workspace, where the operation has one.
    pub(crate) workspace_bytes: Option<unsafe extern "C" fn(*const P) -> u64>,
    pub(crate) launch: unsafe extern "C" fn(*const P, *mut c_void) -> sys::qae_result,
}

/// A params struct.
pub(crate) trait Operation: Sized {
    const NAME: &str;

    /// The fields of the workspace: its address and its bytes.
    fn workspace(&mut self) -> Option<(&mut *mut c_void, &mut u64)>;

    #[cfg(feature = "cuda")]
    const CUDA: Launchers<Self>;

    #[cfg(feature = "emulator")]
    const EMULATED: Launchers<Self>;
}

macro_rules! operation {
    (
        $params:ident $(($($at:ident).+))?: $name:literal,
        $launch:ident, $emulated:ident $(, $bytes:ident, $emulated_bytes:ident)?
    ) => {
        impl Operation for sys::$params {
            const NAME: &str = $name;

            fn workspace(&mut self) -> Option<(&mut *mut c_void, &mut u64)> {
                operation!(@workspace self $($($at).+)?)
            }

            #[cfg(feature = "cuda")]
            const CUDA: Launchers<Self> = Launchers {
                workspace_bytes: operation!(@some sys $($bytes)?),
                launch: sys::$launch,
            };

            #[cfg(feature = "emulator")]
            const EMULATED: Launchers<Self> = Launchers {
                workspace_bytes: operation!(@some launchers $($emulated_bytes)?),
                launch: launchers::$emulated,
            };
        }
    };
    (@workspace $self:ident) => { None };
    (@workspace $self:ident params) => {
        Some((&mut $self.workspace, &mut $self.workspace_bytes))
    };
    (@workspace $self:ident loss) => {
        Some((&mut $self.loss.workspace, &mut $self.loss.workspace_bytes))
    };
    (@some $module:ident) => { None };
    (@some $module:ident $function:ident) => { Some($module::$function) };
}

#[cfg(feature = "emulator")]
use qae_emulator::launchers;

operation!(
    qae_advantages_params (params): "advantages",
    qae_advantages, qae_emu_advantages,
    qae_advantages_workspace_bytes, qae_emu_advantages_workspace_bytes
);
operation!(
    qae_token_counts_params (params): "token_counts",
    qae_token_counts, qae_emu_token_counts,
    qae_token_counts_workspace_bytes, qae_emu_token_counts_workspace_bytes
);
operation!(
    qae_loss_from_log_probs_params (params): "loss_from_log_probs",
    qae_loss_from_log_probs, qae_emu_loss_from_log_probs,
    qae_loss_from_log_probs_workspace_bytes, qae_emu_loss_from_log_probs_workspace_bytes
);
operation!(
    qae_loss_from_logits_params (loss): "loss_from_logits",
    qae_loss_from_logits, qae_emu_loss_from_logits,
    qae_loss_from_logits_workspace_bytes, qae_emu_loss_from_logits_workspace_bytes
);
operation!(
    qae_log_probs_from_logits_params: "log_probs_from_logits",
    qae_log_probs_from_logits, qae_emu_log_probs_from_logits
);
operation!(
    qae_merge_softmax_stats_params: "merge_softmax_stats",
    qae_merge_softmax_stats, qae_emu_merge_softmax_stats
);
operation!(
    qae_log_probs_from_logits_backward_params: "log_probs_from_logits_backward",
    qae_log_probs_from_logits_backward, qae_emu_log_probs_from_logits_backward
);
operation!(
    qae_scale_gradient_params: "scale_gradient",
    qae_scale_gradient, qae_emu_scale_gradient
);
