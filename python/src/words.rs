//! The kernels' reports as 8-byte words, and as dicts.

use crate::errors::{Failure, Result};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use qae::metrics::{GroupMetrics, Metrics};
use qae::{MetricsScope, params, sys};

pub(crate) const LOSS_WORDS: usize = size_of::<sys::qae_loss_metrics>() / 8;
pub(crate) const LOGITS_WORDS: usize = size_of::<sys::qae_logits_metrics>() / 8;
pub(crate) const GROUP_WORDS: usize = size_of::<sys::qae_group_metrics>() / 8;

/// A struct whose fields are f64 and u64 alone: any words are one, and it is all words.
///
/// # Safety
/// It must be.
pub(crate) unsafe trait Report: Copy {}

// SAFETY: 17 numbers of 8 bytes and the counts below.
unsafe impl Report for sys::qae_loss_metrics {}
// SAFETY: the struct above and 7 numbers of 8 bytes.
unsafe impl Report for sys::qae_logits_metrics {}
// SAFETY: 8 numbers of 8 bytes.
unsafe impl Report for sys::qae_group_metrics {}

/// The words of a report.
pub(crate) fn words<R: Report>(report: &R) -> &[i64] {
    // SAFETY: as `Report` says, the struct is that many words, without padding.
    unsafe { std::slice::from_raw_parts((&raw const *report).cast(), size_of::<R>() / 8) }
}

fn read<R: Report>(bytes: &[u8]) -> Result<R> {
    if bytes.len() == size_of::<R>() {
        // SAFETY: as many bytes as the struct has, and any bytes are one.
        return Ok(unsafe { bytes.as_ptr().cast::<R>().read_unaligned() });
    }
    let expected = format!("{} bytes", size_of::<R>());
    Err(Failure::value("words", expected, bytes.len()))
}

/// i32 values as they stand in memory.
pub(crate) fn bytes_of(values: &[i32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_ne_bytes())
        .collect()
}

/// The report of a loss.
pub(crate) fn loss_metrics(bytes: &[u8], from_logits: bool, scope: &str) -> Result<Metrics> {
    let scope = match scope {
        "all" => MetricsScope::All,
        "active" => MetricsScope::Active,
        _ => return Err(Failure::value("scope", "all or active", scope)),
    };
    Ok(if from_logits {
        params::logits_metrics(&read(bytes)?, scope)
    } else {
        params::loss_metrics(&read(bytes)?, scope)
    })
}

/// The report of `advantages`.
pub(crate) fn group_metrics(bytes: &[u8]) -> Result<GroupMetrics> {
    Ok(params::group_metrics(&read(bytes)?))
}

/// By name, shares and means in place of what they are made of.
pub(crate) fn loss_dict<'py>(py: Python<'py>, metrics: &Metrics) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    let share = |part: u64| match metrics.tokens {
        0 => 0.0,
        tokens => part as f64 / tokens as f64,
    };
    for (name, value) in [
        ("loss", metrics.loss),
        ("pg_loss", metrics.pg_loss),
        ("kl_loss", metrics.kl_loss),
        ("clip_fraction", metrics.clip_fraction()),
        ("clip_fraction_above", share(metrics.clipped_above)),
        ("clip_fraction_below", share(metrics.clipped_below)),
        ("dual_clip_fraction", metrics.dual_clip_fraction()),
        ("approx_kl", metrics.approx_kl()),
        ("min_ratio", metrics.min_ratio),
        ("max_ratio", metrics.max_ratio),
    ] {
        dict.set_item(name, value)?;
    }
    for (name, count) in [
        ("positive", metrics.positive),
        ("zero", metrics.zero),
        ("negative", metrics.negative),
        ("active", metrics.active),
        ("tokens", metrics.tokens),
        ("active_tokens", metrics.active_tokens),
        ("nonfinite_tokens", metrics.nonfinite_tokens),
        ("out_of_range", metrics.out_of_range),
        ("num_groups", metrics.groups.num_groups),
        ("hard_groups", metrics.groups.hard_groups),
        ("easy_groups", metrics.groups.easy_groups),
        ("zero_variance_groups", metrics.groups.zero_variance_groups),
        ("global_positive", metrics.groups.positive),
        ("global_zero", metrics.groups.zero),
        ("global_negative", metrics.groups.negative),
        ("nonfinite_rewards", metrics.groups.nonfinite_rewards),
    ] {
        dict.set_item(name, count)?;
    }
    if let Some(entropy) = &metrics.entropy {
        for (name, value) in [
            ("entropy_loss", entropy.loss),
            ("entropy", entropy.mean()),
            ("entropy_positive", entropy.mean_positive()),
            ("entropy_zero", entropy.mean_zero()),
            ("entropy_negative", entropy.mean_negative()),
        ] {
            dict.set_item(name, value)?;
        }
        for (name, count) in [
            ("entropy_positive_tokens", entropy.positive_tokens),
            ("entropy_zero_tokens", entropy.zero_tokens),
            ("entropy_negative_tokens", entropy.negative_tokens),
        ] {
            dict.set_item(name, count)?;
        }
    }
    Ok(dict)
}

/// By name.
pub(crate) fn group_dict<'py>(
    py: Python<'py>,
    metrics: &GroupMetrics,
) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (name, count) in [
        ("num_groups", metrics.num_groups),
        ("hard_groups", metrics.hard_groups),
        ("easy_groups", metrics.easy_groups),
        ("zero_variance_groups", metrics.zero_variance_groups),
        ("positive", metrics.positive),
        ("zero", metrics.zero),
        ("negative", metrics.negative),
        ("nonfinite_rewards", metrics.nonfinite_rewards),
    ] {
        dict.set_item(name, count)?;
    }
    Ok(dict)
}
