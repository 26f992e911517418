//! The binary as a user meets it: reports, files, messages, exit statuses.

#[cfg(feature = "analyze")]
mod analyze;
#[cfg(feature = "analyze")]
mod analyze_auto_k;
mod configuration;
mod failures;
mod logits;
mod logits_failures;
mod outputs;
mod reports;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

const CASE: &str = "tests/data/token/p002-qae-cdf-k0.4-g8.safetensors";

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qae"));
    command.args(args).current_dir(env!("CARGO_MANIFEST_DIR"));
    command
}

fn qae(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

/// Standard output of a run that must succeed in silence.
fn succeed(args: &[&str]) -> String {
    let output = qae(args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        (output.status.code(), stderr.as_str()),
        (Some(0), ""),
        "{args:?}"
    );
    String::from_utf8(output.stdout).unwrap()
}

/// The one line of a run that must fail.
fn fail(args: &[&str]) -> String {
    let output = qae(args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{args:?}");
    assert!(stderr.starts_with("qae: "), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    stderr
}

fn json(args: &[&str]) -> Value {
    let args = [&["step"], args, &["--format", "json"]].concat();
    serde_json::from_str(&succeed(&args)).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A safetensors file that can be changed.
struct Draft {
    tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
    metadata: HashMap<String, String>,
}

impl Draft {
    fn of(path: &str) -> Self {
        let bytes = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
        let owned = |(name, view): (String, TensorView<'_>)| {
            (
                name,
                (view.dtype(), view.shape().to_vec(), view.data().to_vec()),
            )
        };
        Self {
            tensors: tensors.into_iter().map(owned).collect(),
            metadata: header.metadata().clone().unwrap_or_default(),
        }
    }

    fn set_config(&mut self, field: &str, value: Value) {
        let mut case: Value = serde_json::from_str(&self.metadata["case"]).unwrap();
        case["config"][field] = value;
        self.metadata.insert("case".to_string(), case.to_string());
    }

    fn i32s(&mut self, name: &str, shape: &[usize], values: &[i32]) {
        let bytes = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let tensor = (Dtype::I32, shape.to_vec(), bytes);
        self.tensors.insert(name.to_string(), tensor);
    }

    fn ints(&self, name: &str) -> Vec<i32> {
        let (chunks, _) = self.tensors[name].2.as_chunks();
        chunks
            .iter()
            .map(|&bytes| i32::from_le_bytes(bytes))
            .collect()
    }

    fn set_int(&mut self, name: &str, place: usize, value: i32) {
        let bytes = &mut self.tensors.get_mut(name).unwrap().2;
        bytes[4 * place..][..4].copy_from_slice(&value.to_le_bytes());
    }

    /// Gives every tensor of packed tokens a padded shape, with zeros for padding.
    fn pad(&mut self, offsets: &[i32]) {
        let (rows, slots) = (offsets.len() - 1, offsets[offsets.len() - 1] as usize);
        let lengths = offsets.windows(2).map(|pair| (pair[1] - pair[0]) as usize);
        let width = lengths.clone().max().unwrap() + 2;
        let packed = self.tensors.values_mut();
        for (_, shape, data) in packed.filter(|(_, shape, _)| shape[0] == slots) {
            let size = data.len() / slots;
            let mut padded = vec![0; rows * width * size];
            for (row, length) in lengths.clone().enumerate() {
                let start = offsets[row] as usize * size;
                padded[row * width * size..][..length * size]
                    .copy_from_slice(&data[start..][..length * size]);
            }
            shape.splice(..1, [rows, width]);
            *data = padded;
        }
    }

    fn write(&self, directory: &TempDir) -> PathBuf {
        let path = directory.path().join("batch.safetensors");
        let views = self.tensors.iter().map(|(name, (dtype, shape, data))| {
            (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
        });
        let bytes = safetensors::serialize(views, Some(self.metadata.clone())).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }
}
