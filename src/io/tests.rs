use super::{Case, Precision, Provenance, Results, TensorFile, write_output};
use crate::batch::{DType, ImportanceWeight, Layout};
use crate::config::Normalizer;
use crate::config_json::ConfigFile;
use crate::reference::loss_from_log_probs;
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use std::collections::BTreeMap;
use std::path::PathBuf;
use tempfile::TempDir;

const NUM_ROWS: usize = 4;
const WIDTH: usize = 3;
const LENGTHS: [usize; NUM_ROWS] = [3, 1, 0, 2];

/// Two groups of two responses, with a value in every slot that bf16 and f16 hold exactly.
fn log_probs(offset: f32) -> Vec<f32> {
    let value = |slot: usize| -0.25 * (slot % 5) as f32 - offset;
    (0..NUM_ROWS * WIDTH).map(value).collect()
}

fn le_bytes<T: Copy, const SIZE: usize>(values: &[T], to_le: fn(T) -> [u8; SIZE]) -> Vec<u8> {
    values.iter().flat_map(|&value| to_le(value)).collect()
}

/// The slots that are tokens, back to back.
fn pack<T: Copy>(values: &[T]) -> Vec<T> {
    let rows = LENGTHS.iter().enumerate();
    rows.flat_map(|(row, &length)| values[row * WIDTH..][..length].to_vec())
        .collect()
}

#[derive(Clone, Default)]
struct Draft(BTreeMap<&'static str, (Dtype, Vec<usize>, Vec<u8>)>);

impl Draft {
    fn f32s(mut self, name: &'static str, shape: &[usize], values: &[f32]) -> Self {
        let bytes = le_bytes(values, f32::to_le_bytes);
        self.0.insert(name, (Dtype::F32, shape.to_vec(), bytes));
        self
    }

    fn i64s(mut self, name: &'static str, values: &[i64]) -> Self {
        let bytes = le_bytes(values, i64::to_le_bytes);
        self.0.insert(name, (Dtype::I64, vec![values.len()], bytes));
        self
    }

    fn mask(mut self, name: &'static str, dtype: Dtype) -> Self {
        let valid = |slot: usize| u8::from(slot % WIDTH < LENGTHS[slot / WIDTH]);
        let bytes = (0..NUM_ROWS * WIDTH).map(valid).collect();
        self.0.insert(name, (dtype, vec![NUM_ROWS, WIDTH], bytes));
        self
    }

    fn padded() -> Self {
        let shape = [NUM_ROWS, WIDTH];
        Self::default()
            .f32s("logp", &shape, &log_probs(0.0))
            .f32s("old_logp", &shape, &log_probs(0.125))
            .f32s("rewards", &[NUM_ROWS], &[1.0, 0.0, 0.0, 1.0])
            .i64s("group_id", &[7, 7, -2, -2])
    }

    fn packed() -> Self {
        let tokens: usize = LENGTHS.iter().sum();
        Self::padded()
            .f32s("logp", &[tokens], &pack(&log_probs(0.0)))
            .f32s("old_logp", &[tokens], &pack(&log_probs(0.125)))
            .i64s("cu_seqlens", &[0, 3, 4, 4, 6])
    }

    fn write(&self, directory: &TempDir) -> PathBuf {
        let path = directory.path().join("batch.safetensors");
        let views = self.0.iter().map(|(name, (dtype, shape, bytes))| {
            (
                *name,
                TensorView::new(*dtype, shape.clone(), bytes).unwrap(),
            )
        });
        std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        path
    }

    fn read(&self) -> crate::Result<Case> {
        Case::read(&self.write(&TempDir::new().unwrap()))
    }

    fn refusal(&self) -> String {
        self.read().unwrap_err().to_string()
    }
}

/// Loss and the gradient of the tokens, in order.
fn result(draft: &Draft) -> (f64, Vec<f64>) {
    let case = draft.read().unwrap();
    let (config, batch) = case.prepare(&ConfigFile::default()).unwrap();
    assert_eq!(case.valid_slots().concat().len(), 6);
    let output = loss_from_log_probs(&batch, &config).unwrap();
    let gradient = match batch.layout {
        Layout::Padded { .. } => pack(&output.d_log_prob),
        Layout::Packed { .. } => output.d_log_prob,
    };
    (output.metrics.loss, gradient)
}

#[test]
fn every_layout_and_dtype_of_the_same_batch_gives_the_same_result() {
    let expected = result(&Draft::padded().mask("mask", Dtype::U8));
    assert!(expected.1.iter().any(|&gradient| gradient != 0.0));
    let as_dtype = |dtype, bytes: fn(f32) -> [u8; 2]| {
        let mut draft = Draft::padded().mask("mask", Dtype::BOOL);
        for (name, offset) in [("logp", 0.0), ("old_logp", 0.125)] {
            let data = le_bytes(&log_probs(offset), bytes);
            draft.0.insert(name, (dtype, vec![NUM_ROWS, WIDTH], data));
        }
        draft
    };
    let lengths = LENGTHS.map(|length| length as i64);
    for (name, draft) in [
        ("lengths", Draft::padded().i64s("lengths", &lengths)),
        ("packed", Draft::packed()),
        (
            "bf16",
            as_dtype(Dtype::BF16, |x| bf16::from_f32(x).to_le_bytes()),
        ),
        (
            "f16",
            as_dtype(Dtype::F16, |x| f16::from_f32(x).to_le_bytes()),
        ),
    ] {
        assert_eq!(result(&draft), expected, "{name}");
    }
    let half = as_dtype(Dtype::F16, |x| f16::from_f32(x).to_le_bytes())
        .read()
        .unwrap();
    let (_, batch) = half.prepare(&ConfigFile::default()).unwrap();
    assert_eq!(batch.log_prob.dtype(), DType::F16);
}

#[test]
fn rollout_weights_may_be_per_response() {
    let draft = Draft::padded().mask("mask", Dtype::U8).f32s(
        "rollout_is_weights",
        &[NUM_ROWS],
        &[0.5; NUM_ROWS],
    );
    let case = draft.read().unwrap();
    let (_, batch) = case.prepare(&ConfigFile::default()).unwrap();
    let weight = batch.importance_weight;
    assert!(
        matches!(weight, Some(ImportanceWeight::PerResponse(_))),
        "{weight:?}"
    );
    let off = ConfigFile::from_json(r#"{"rollout_is_weights": false}"#).unwrap();
    assert!(case.prepare(&off).unwrap().1.importance_weight.is_none());
}

#[test]
fn a_capture_without_config_still_divides_by_its_number_of_items() {
    let shape = [NUM_ROWS, WIDTH];
    let draft = Draft::default()
        .f32s("per_token_logps", &shape, &log_probs(0.0))
        .f32s("old_per_token_logps", &shape, &log_probs(0.125))
        .f32s("rewards", &[NUM_ROWS], &[1.0, 0.0, 0.0, 1.0])
        .f32s("num_items_in_batch", &[1], &[700.0])
        .i64s("group_index", &[0, 0, 1, 1])
        .mask("completion_mask", Dtype::U8);
    let case = draft.read().unwrap();
    assert_eq!(case.name(), "batch");
    let (config, _) = case.prepare(&ConfigFile::default()).unwrap();
    assert_eq!(config.normalizer, Normalizer::Value(700.0));
}

#[test]
fn reinforce_needs_no_old_log_probs() {
    let mut draft = Draft::padded().mask("mask", Dtype::U8);
    draft.0.remove("old_logp");
    let case = draft.read().unwrap();
    assert!(case.prepare(&ConfigFile::default()).is_err());
    let gpg = ConfigFile::from_json(r#"{"loss": "gpg"}"#).unwrap();
    assert!(case.prepare(&gpg).unwrap().1.old_log_prob.is_none());
}

#[test]
fn lengths_and_offsets_are_checked_by_element() {
    for (draft, expected) in [
        (
            Draft::padded().i64s("lengths", &[3, 4, 0, 2]),
            "lengths[1]: expected 0..=3, found 4",
        ),
        (
            Draft::padded().i64s("lengths", &[3, -1, 0, 2]),
            "lengths[1]: expected 0..=3, found -1",
        ),
        (
            Draft::packed().i64s("cu_seqlens", &[1, 3, 4, 4, 6]),
            "cu_seqlens[0]: expected 0",
        ),
        (
            Draft::packed().i64s("cu_seqlens", &[0, 3, 2, 4, 6]),
            "cu_seqlens[2]: expected at least 3",
        ),
        (
            Draft::packed().i64s("cu_seqlens", &[0, 3, 4, 4, 5]),
            "cu_seqlens[4]: expected 6",
        ),
        (
            Draft::packed().i64s("cu_seqlens", &[]),
            "tensor `cu_seqlens`: expected I32 or I64 [N + 1]",
        ),
        (
            Draft::packed().i64s("cu_seqlens", &[0, 6]),
            "tensor `rewards`: expected F32 [1]",
        ),
        (
            Draft::padded().f32s("logp", &[2, 2, 3], &log_probs(0.0)),
            "tensor `logp`: expected [N, T]",
        ),
    ] {
        let message = draft.refusal();
        assert!(
            message.contains(expected),
            "expected {expected:?} in {message}"
        );
    }
    let mut packed = Draft::packed();
    packed.0.remove("cu_seqlens");
    assert!(
        packed
            .refusal()
            .contains("tensor `cu_seqlens`: expected I32 or I64 [N + 1], since")
    );
}

#[test]
fn results_are_written_in_the_precision_they_have() {
    let case = Draft::packed().read().unwrap();
    let (config, batch) = case.prepare(&ConfigFile::default()).unwrap();
    let output = loss_from_log_probs(&batch, &config).unwrap();
    let directory = TempDir::new().unwrap();
    for precision in [Precision::F64, Precision::F32] {
        let path = directory.path().join("out.safetensors");
        let of = Provenance {
            case: &case,
            config: &config,
            backend: "test",
            precision,
        };
        write_output(&path, &of, &Results::LogProbs(batch, &output)).unwrap();
        let file = TensorFile::read(&path).unwrap();
        assert_eq!(file.shape("dlogp", "").unwrap(), [6]);
        let loss = file.f64s("loss").unwrap()[0];
        let exact = output.metrics.loss;
        let expected = match precision {
            Precision::F64 => exact,
            Precision::F32 => f64::from(exact as f32),
        };
        assert_eq!(loss, expected);
        let rows: Vec<i64> = output.active_rows.iter().map(|&row| row.into()).collect();
        assert_eq!(file.integers("active_rows", &[rows.len()]).unwrap(), rows);
    }
}
