//! What is wrong with a case that starts from logits, and what is said of it.

use crate::logits::LOGITS;
use crate::{CASE, Draft, fail, text};
use safetensors::Dtype;
use tempfile::TempDir;

type Change = fn(&mut Draft);

const CHANGES: &[(Change, &str)] = &[
    (
        |d| drop(d.tensors.remove("token_id")),
        "tensor `token_id`: expected I32 or I64 [96], found no such tensor",
    ),
    (
        |d| drop(d.tensors.remove("cu_seqlens")),
        "tensor `cu_seqlens`: expected I32 or I64 [N + 1], since the tokens are packed, found no",
    ),
    (
        |d| drop(d.tensors.remove("old_logp")),
        "tensor `old_logp`: expected [96], which the importance ratio needs, found no such tensor",
    ),
    (
        |d| drop(d.tensors.remove("rewards")),
        "tensor `rewards`: expected F32 [16], found no such tensor",
    ),
    (
        |d| d.tensors.get_mut("logits").unwrap().1 = vec![96 * 64],
        "tensor `logits`: expected [N, T, V] or packed [tokens, V], found 1 dimensions",
    ),
    (
        |d| d.tensors.get_mut("logits").unwrap().1 = vec![2, 3, 16, 64],
        "tensor `logits`: expected [N, T, V] or packed [tokens, V], found 4 dimensions",
    ),
    (
        |d| d.tensors.get_mut("logits").unwrap().1 = vec![96, 64, 1],
        "tensor `cu_seqlens`: expected none beside padded tensors, found [17]",
    ),
    (
        |d| {
            drop(
                d.tensors
                    .insert("logits".into(), (Dtype::F32, vec![96, 0], vec![])),
            )
        },
        "with V at least 1, found [96, 0]",
    ),
    (
        |d| {
            drop(d.tensors.insert(
                "logits".into(),
                (Dtype::I16, vec![96, 64], vec![0; 96 * 128]),
            ))
        },
        "tensor `logits`: expected F32, BF16 or F16 [96, 64], found I16 [96, 64]",
    ),
    (
        |d| d.set_int("token_id", 5, 64),
        "token_id[5]: expected at least 0 and less than 64, the vocabulary of `logits`, found 64",
    ),
    (
        |d| d.set_int("token_id", 0, -1),
        "token_id[0]: expected at least 0 and less than 64, the vocabulary of `logits`, found -1",
    ),
    (
        |d| d.tensors.get_mut("token_id").unwrap().0 = Dtype::F32,
        "tensor `token_id`: expected I32 or I64 [96], found F32 [96]",
    ),
    (
        |d| d.i32s("token_id", &[95], &[0; 95]),
        "tensor `token_id`: expected I32 or I64 [96], found I32 [95]",
    ),
    (
        |d| d.set_int("cu_seqlens", 16, 95),
        "cu_seqlens[16]: expected 96, the number of tokens, found 95",
    ),
    (
        |d| d.i32s("lengths", &[16], &[6; 16]),
        "tensor `lengths`: expected none beside packed tensors, found [16]",
    ),
    (
        |d| d.i32s("slot_response", &[96], &[0; 96]),
        "tensor `cu_seqlens`: expected none beside `slot_response`, found [17]",
    ),
    (
        |d| {
            d.tensors.remove("cu_seqlens");
            d.i32s("slot_response", &[96], &[16; 96]);
        },
        "slot_response[0]: expected less than 16, the number of rewards, found 16",
    ),
    (
        |d| d.i32s("dlogits_column_index", &[96, 2], &[64; 192]),
        "dlogits_column_index[0, 0]: expected at least 0 and less than 64, found 64",
    ),
    (
        |d| d.i32s("dlogits_column_index", &[2, 96], &[0; 192]),
        "tensor `dlogits_column_index`: expected I32 or I64 [96] and the columns of each, found",
    ),
    (
        |d| {
            let halves = (Dtype::F16, vec![96], vec![0; 192]);
            d.tensors.insert("ref_logp".into(), halves);
        },
        "tensor `ref_logp`: expected F32 as `old_logp`, found F16",
    ),
    (
        |d| d.set_config("temperature", 0.into()),
        "temperature: expected a finite number above 0, found 0",
    ),
    (
        |d| d.set_config("kl", serde_json::json!({"kind": "k3"})),
        "tensor `ref_logp`: expected [96], which the KL term needs, found no such tensor",
    ),
    (
        |d| d.set_config("aggregation", "seq-mean-token-sum-norm".into()),
        "normalizer.loss_scale_factor: expected a number, since a packed batch has no padded width",
    ),
];

#[test]
fn wrong_files_are_named_with_tensor_expectation_and_finding() {
    for (change, expected) in CHANGES {
        let directory = TempDir::new().unwrap();
        let mut draft = Draft::of(LOGITS);
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
fn a_level_that_the_file_lacks_is_named() {
    let message = fail(&["step", CASE, "--from", "logits"]);
    assert!(
        message.contains("tensor `logits`: expected F32, BF16 or F16 [N, T, V]"),
        "{message}"
    );
    let message = fail(&["step", LOGITS, "--from", "log-probs"]);
    assert!(
        message.contains("tensor `logp`: expected F32, BF16 or F16 [N, T]"),
        "{message}"
    );
}

#[test]
fn bad_flags_are_blamed_by_name() {
    for (flags, expected) in [
        (
            "--temperature 0",
            "--temperature: expected a finite number above 0, found 0",
        ),
        (
            "--temperature -1",
            "--temperature: expected a finite number above 0, found -1",
        ),
        (
            "--temperature nan",
            "--temperature: expected a finite number above 0, found NaN",
        ),
        (
            "--entropy-coef nan",
            "--entropy-coef: expected a finite number, found NaN",
        ),
    ] {
        let args: Vec<_> = ["step", LOGITS]
            .into_iter()
            .chain(flags.split(' '))
            .collect();
        let message = fail(&args);
        assert!(
            message.starts_with(&format!("qae: {expected}")),
            "{flags}: {message}"
        );
    }
}
