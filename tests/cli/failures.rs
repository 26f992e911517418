//! What a run that fails says, and that it leaves nothing behind.

use crate::{CASE, Draft, fail, qae, text};
use safetensors::Dtype;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

type Change = fn(&mut Draft);

/// What is wrong with the file, and what the message says of it.
const CHANGES: &[(Change, &str)] = &[
    (
        |d| drop(d.tensors.remove("logp")),
        "tensor `logp`: expected F32, BF16 or F16 [N, T]",
    ),
    (
        |d| drop(d.tensors.remove("old_logp")),
        "tensor `old_logp`: expected [40, 24]",
    ),
    (
        |d| drop(d.tensors.remove("mask")),
        "tensor `mask`: expected U8 or BOOL [40, 24], found no",
    ),
    (
        |d| drop(d.tensors.remove("rewards")),
        "tensor `rewards`: expected F32 [40], found no such",
    ),
    (
        |d| d.tensors.get_mut("old_logp").unwrap().1 = vec![24, 40],
        "tensor `old_logp`: expected F32, BF16 or F16 [40, 24], found F32 [24, 40]",
    ),
    (
        |d| d.tensors.get_mut("rewards").unwrap().0 = Dtype::I32,
        "tensor `rewards`: expected F32 [40], found I32 [40]",
    ),
    (
        |d| d.tensors.get_mut("group_id").unwrap().0 = Dtype::F32,
        "tensor `group_id`: expected I32 or I64 [40], found F32 [40]",
    ),
    (
        |d| {
            d.tensors.get_mut("rewards").unwrap().2[12..16].copy_from_slice(&f32::NAN.to_le_bytes())
        },
        "rewards[3]: expected a finite number, found NaN",
    ),
    (
        |d| drop(d.metadata.insert("case".into(), "{\"config\":".into())),
        "metadata `case`: expected a JSON object, found EOF",
    ),
    (
        |d| d.set_config("clip", 1.into()),
        "metadata `case`.config: clip: expected one of",
    ),
    (
        |d| d.set_config("loss", "ppo".into()),
        "loss: expected one of ppo_clip, gspo",
    ),
    (
        |d| d.set_config("loss", "geo_mean".into()),
        "loss: geo_mean is not supported",
    ),
    (
        |d| d.set_config("rollout_is_weights", true.into()),
        "tensor `rollout_is_weights`: expected [40, 24], since the config",
    ),
    (
        |d| d.set_config("kl", serde_json::json!({"kind": "k3"})),
        "tensor `ref_logp`: expected [40, 24], which the KL term needs, found no such tensor",
    ),
    (
        |d| d.i32s("cu_seqlens", &[41], &[0; 41]),
        "tensor `cu_seqlens`: expected none beside padded tensors, found [41]",
    ),
    (
        |d| d.i32s("slot_response", &[40], &[0; 40]),
        "tensor `slot_response`: expected none beside log-probs, whose responses are whole",
    ),
    (
        |d| d.tensors.get_mut("old_logp").unwrap().0 = Dtype::I32,
        "tensor `old_logp`: expected F32, BF16 or F16 [40, 24], found I32",
    ),
    (
        |d| {
            let half = vec![0; 2 * 40 * 24];
            drop(
                d.tensors
                    .insert("old_logp".into(), (Dtype::BF16, vec![40, 24], half)),
            )
        },
        "tensor `old_logp`: expected F32 as `logp`, found Bf16",
    ),
    (
        |d| {
            drop(
                d.metadata
                    .insert("case".into(), r#"{"config": {}, "config": {}}"#.into()),
            )
        },
        "metadata `case`: expected a JSON object, found a second `config`",
    ),
    (
        |d| drop(d.metadata.insert("case".into(), r#"{"config": []}"#.into())),
        "metadata `case`.config: config: expected an object, found an array",
    ),
    (
        |d| d.set_config("epsilon", (-1.0).into()),
        "epsilon: expected a finite number, at least 0, found -1",
    ),
];

#[test]
fn wrong_files_are_named_with_tensor_expectation_and_finding() {
    for (change, expected) in CHANGES {
        let directory = TempDir::new().unwrap();
        let mut draft = Draft::of(CASE);
        change(&mut draft);
        let path = draft.write(&directory);
        let out = directory.path().join("never-written.safetensors");
        let message = fail(&["step", text(&path), "--out", text(&out)]);
        assert!(!out.exists(), "{message}");
        assert!(message.contains(text(&path)), "{message}");
        assert!(
            message.contains(expected),
            "expected {expected:?} in {message}"
        );
    }
}

#[test]
fn truncated_files_and_other_formats_are_named() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("cut.safetensors");
    let bytes = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(CASE)).unwrap();
    let header = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    for length in [
        0,
        7,
        8,
        100,
        header - 1,
        header,
        header + 1,
        bytes.len() / 2,
        bytes.len() - 1,
    ] {
        fs::write(&path, &bytes[..length]).unwrap();
        let message = fail(&["step", text(&path)]);
        assert!(
            message.contains(text(&path)) && message.contains("expected"),
            "{message}"
        );
    }
    assert!(fail(&["step", "Cargo.toml"]).contains("expected a safetensors file"));
    let unreadable = "expected a file that can be read, found ";
    assert!(fail(&["step", "src"]).starts_with(&format!("qae: src: {unreadable}")));
    let message = fail(&["step", "no-such-file"]);
    assert!(
        message.contains(&format!("no-such-file: {unreadable}No such file")),
        "{message}"
    );
}

#[test]
fn wrong_usage_exits_with_2() {
    for args in [
        &["step"][..],
        &["step", CASE, "--k", "much"],
        &["step", CASE, "--clip-low", "little"],
        &["step", CASE, "--backend", "tpu"],
        &["step", CASE, "--from", "hidden"],
        &["step", CASE, "--temperature", "warm"],
        &["step", CASE, "--unknown"],
        &["unknown"],
        &[],
    ] {
        assert_eq!(qae(args).status.code(), Some(2), "{args:?}");
    }
}

#[cfg(not(feature = "cuda"))]
#[test]
fn without_the_feature_cuda_is_refused_with_the_reason() {
    assert!(
        fail(&["step", CASE, "--backend", "cuda"]).contains("built without the `cuda` feature")
    );
    assert!(crate::succeed(&["info"]).contains("built without the `cuda` feature"));
    let reason = &crate::json(&[CASE])["backend"]["reason"];
    assert!(
        reason
            .as_str()
            .unwrap()
            .contains("built without the `cuda` feature")
    );
}
