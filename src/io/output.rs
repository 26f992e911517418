//! Results written to a safetensors file.

use super::case::Case;
use super::trl_metrics::{clip_ratios, token_mean_kl};
use crate::backend::LossOutput;
use crate::batch::TokenBatch;
use crate::config::{Config, Objective};
use crate::config_json::ConfigFile;
use crate::error::{Error, Result};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

/// An advantage this small counts as zero (the golden cases' rule).
const ZERO_ADVANTAGE: f64 = 1e-9;

/// The dtype of the results: that in which the backend computed them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// The CPU path.
    F64,
    /// The kernels.
    F32,
}

struct Entry {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// Writes `output` to `path`, all of it or nothing.
///
/// The tensors have the names of the golden cases without `expected.`: `baseline`, `advantage`,
/// `loss`, `pg_loss`, `dlogp`, `metrics.*`, and `active_rows` (I32). The metadata entry `case`
/// holds the configuration, the backend and the version. What [`crate::Metrics`] does not hold
/// (TRL's `clip_ratio_*` and `kl`, and `zero_advantage_share`) is computed here.
///
/// # Errors
/// [`Error::File`] when the file cannot be written; nothing is left behind then.
pub fn write_output(
    path: &Path,
    case: &Case,
    config: &Config,
    batch: &TokenBatch<'_>,
    output: &LossOutput,
    precision: Precision,
    backend: &str,
) -> Result<()> {
    let mut entries = vec![];
    let mut floats = |name: &str, shape: Vec<usize>, values: &[f64]| {
        entries.push(Entry::floats(name, shape, values, precision));
    };
    for (name, values) in [
        ("baseline", &output.baseline),
        ("advantage", &output.advantage),
    ] {
        if let Some(values) = values {
            floats(name, vec![values.len()], values);
        }
    }
    floats("dlogp", case.shape(), &output.d_log_prob);
    floats("loss", vec![1], &[output.metrics.loss]);
    floats("pg_loss", vec![1], &[output.metrics.pg_loss]);
    for (name, value) in metrics(config, batch, output) {
        floats(&format!("metrics.{name}"), vec![1], &[value]);
    }
    entries.push(Entry::rows("active_rows", &output.active_rows));
    let description = serde_json::json!({
        "name": case.name(),
        "config": ConfigFile::from(config),
        "backend": backend,
        "version": env!("CARGO_PKG_VERSION"),
    });
    let bytes = serialize(&entries, description.to_string())
        .map_err(|error| Error::file(path.display(), error))?;
    write_whole(path, &bytes).map_err(|error| Error::file(path.display(), error))
}

fn metrics(
    config: &Config,
    batch: &TokenBatch<'_>,
    output: &LossOutput,
) -> Vec<(&'static str, f64)> {
    let metrics = &output.metrics;
    let of_tokens = |count: u64| count as f64 / metrics.tokens.max(1) as f64;
    let mut values = vec![
        ("pg_clipfrac", metrics.clip_fraction()),
        ("pg_clipfrac_lower", metrics.dual_clip_fraction()),
        ("ppo_kl", metrics.approx_kl()),
    ];
    if config.kl.is_some() {
        values.push(("kl_loss", metrics.kl_loss));
    }
    if matches!(config.objective, Objective::Clip { .. }) {
        values.push(("trl_clip_ratio_low_mean", of_tokens(metrics.clipped_below)));
        values.push(("trl_clip_ratio_high_mean", of_tokens(metrics.clipped_above)));
    }
    if let Some(kl) = token_mean_kl(batch, config) {
        values.push(("kl", kl));
    }
    let Some(advantage) = output.advantage.as_deref() else {
        return values;
    };
    let zeros = advantage.iter().filter(|a| a.abs() <= ZERO_ADVANTAGE);
    let share = zeros.count() as f64 / advantage.len().max(1) as f64;
    values.push(("zero_advantage_share", share));
    if let Some(ratios) = clip_ratios(batch, config, advantage) {
        values.extend([
            ("clip_ratio_low_mean", ratios.low_mean),
            ("clip_ratio_high_mean", ratios.high_mean),
            ("clip_ratio_region_mean", ratios.low_mean + ratios.high_mean),
            ("clip_ratio_low_min", ratios.low_min),
            ("clip_ratio_high_max", ratios.high_max),
        ]);
    }
    values
}

impl Entry {
    fn floats(name: &str, shape: Vec<usize>, values: &[f64], precision: Precision) -> Self {
        let (dtype, bytes) = match precision {
            Precision::F64 => (Dtype::F64, to_bytes(values, |value| value.to_le_bytes())),
            Precision::F32 => (
                Dtype::F32,
                to_bytes(values, |value| (value as f32).to_le_bytes()),
            ),
        };
        Self {
            name: name.to_string(),
            dtype,
            shape,
            bytes,
        }
    }

    fn rows(name: &str, rows: &[u32]) -> Self {
        Self {
            name: name.to_string(),
            dtype: Dtype::I32,
            shape: vec![rows.len()],
            bytes: to_bytes(rows, |row| row.to_le_bytes()),
        }
    }
}

fn to_bytes<T: Copy, const SIZE: usize>(values: &[T], to_le: impl Fn(T) -> [u8; SIZE]) -> Vec<u8> {
    values.iter().flat_map(|&value| to_le(value)).collect()
}

fn serialize(
    entries: &[Entry],
    description: String,
) -> Result<Vec<u8>, safetensors::SafeTensorError> {
    let views = entries
        .iter()
        .map(|entry| {
            let view = TensorView::new(entry.dtype, entry.shape.clone(), &entry.bytes)?;
            Ok((entry.name.as_str(), view))
        })
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
    let metadata = HashMap::from([("case".to_string(), description)]);
    safetensors::serialize(views, Some(metadata))
}

/// The file that `path` names, through symbolic links, with its permissions if it is there already.
/// Renaming onto a device, a pipe or a link would replace it, so only an ordinary file that may be
/// written is one to replace.
fn target_of(path: &Path) -> std::io::Result<(PathBuf, Option<std::fs::Permissions>)> {
    let refuse = |found: &str| {
        let message = format!("expected a new name or a file that may be replaced, found {found}");
        Err(std::io::Error::other(message))
    };
    match std::fs::symlink_metadata(path) {
        Err(_) => return Ok((path.to_path_buf(), None)),
        Ok(entry) if entry.is_symlink() && !path.exists() => return refuse("a link to nothing"),
        Ok(_) => {}
    }
    let target = path.canonicalize()?;
    let metadata = std::fs::metadata(&target)?;
    if metadata.is_dir() {
        return refuse("a directory");
    }
    if !metadata.is_file() {
        return refuse("a device or a pipe");
    }
    if metadata.permissions().readonly() {
        return refuse("a read-only file");
    }
    Ok((target, Some(metadata.permissions())))
}

/// A reader never sees a part of the file: it appears under its name once it is complete.
fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let (path, permissions) = target_of(path)?;
    let path = path.as_path();
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    if !directory.is_dir() {
        let message = format!("expected a directory {}, found none", directory.display());
        return Err(std::io::Error::other(message));
    }
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // A temporary file is private by default; this one becomes an ordinary file (less umask).
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let mut file = builder.tempfile_in(directory)?;
    file.write_all(bytes)?;
    if let Some(permissions) = permissions {
        file.as_file().set_permissions(permissions)?;
    }
    file.persist(path)?;
    Ok(())
}
