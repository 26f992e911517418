//! What the two formats call their tensors.

use crate::io::{Level, TensorFile};

/// Names that differ between the formats.
#[derive(Debug)]
pub(in crate::io) struct Names {
    pub(in crate::io) log_prob: &'static str,
    pub(in crate::io) token_id: &'static str,
    pub(in crate::io) old_log_prob: &'static str,
    pub(in crate::io) ref_log_prob: &'static str,
    pub(in crate::io) mask: &'static str,
    pub(in crate::io) group: &'static str,
    /// The config object in the metadata entry `case`.
    pub(in crate::io) config: &'static str,
}

const GOLDEN: Names = Names {
    log_prob: "logp",
    token_id: "token_id",
    old_log_prob: "old_logp",
    ref_log_prob: "ref_logp",
    mask: "mask",
    group: "group_id",
    config: "config",
};

const TRL: Names = Names {
    log_prob: "per_token_logps",
    token_id: "completion_ids",
    old_log_prob: "old_per_token_logps",
    ref_log_prob: "ref_per_token_logps",
    mask: "completion_mask",
    group: "group_index",
    config: "plain_config",
};

pub(in crate::io) const LOGITS: &str = "logits";
pub(in crate::io) const WEIGHTS: &str = "rollout_is_weights";
pub(in crate::io) const OFFSETS: &str = "cu_seqlens";
pub(in crate::io) const LENGTHS: &str = "lengths";
pub(in crate::io) const RESPONSE: &str = "slot_response";
pub(in crate::io) const REWARDS: &str = "rewards";
pub(in crate::io) const NUM_ITEMS: &str = "num_items_in_batch";
pub(in crate::io) const COLUMNS: &str = "dlogits_column_index";

/// The format of `file`: the first that has log-probs, else the first that has token ids.
pub(super) fn names_of(file: &TensorFile) -> &'static Names {
    let has = |name: fn(&Names) -> &'static str| {
        let formats = [&TRL, &GOLDEN];
        formats.into_iter().find(|names| file.has(name(names)))
    };
    has(|names| names.log_prob)
        .or_else(|| has(|names| names.token_id))
        .unwrap_or(&GOLDEN)
}

/// Log-probs where there are any, since a file that has both was captured with them.
pub(super) fn level_of(file: &TensorFile, names: &Names) -> Level {
    if !file.has(names.log_prob) && file.has(LOGITS) {
        Level::Logits
    } else {
        Level::LogProbs
    }
}
