//! Cases that start from logits.

use crate::{Draft, json, succeed, text};
use qae::io::TensorFile;
use safetensors::Dtype;
use serde_json::Value;
use std::path::Path;
use tempfile::TempDir;

/// 16 responses, 96 tokens, a vocabulary of 64, bf16, temperature 0.7, some tokens masked.
pub const LOGITS: &str = "tests/data/logits/l002-v64-bf16-t0.7.safetensors";
const LARGE: &str = "tests/data/logits/l007-v151936-bf16-t0.7.safetensors";
const CAPTURE: &str = "data/trl-addition.safetensors";

/// The report and the output file of a run.
fn run(args: &[&str]) -> (Value, TensorFile) {
    let directory = TempDir::new().unwrap();
    let out = directory.path().join("out.safetensors");
    let report = json(&[args, &["--out", text(&out)]].concat());
    (report, TensorFile::read(&out).unwrap())
}

#[test]
fn out_holds_what_the_golden_files_expect_under_the_same_names() {
    for case in [LOGITS, LARGE] {
        let (_, out) = run(&[case]);
        let case = TensorFile::read(Path::new(case)).unwrap();
        for name in case.names() {
            let Some(written) = name.strip_prefix("expected.") else {
                continue;
            };
            let (found, expected) = (out.f64s(written).unwrap(), case.f64s(&name).unwrap());
            assert_eq!(found.len(), expected.len(), "{name}");
            let errors = found.iter().zip(&expected).map(|(f, e)| (f - e).abs());
            assert!(errors.fold(0.0, f64::max) < 1e-6, "{name}");
        }
        for name in ["entropy_loss", "dlogits", "metrics.entropy_negative"] {
            assert!(out.has(name), "{name}");
        }
        assert!(!out.has("active_slots"));
    }
}

#[test]
fn the_report_tells_entropy_overall_and_by_sign() {
    let report = succeed(&["step", LOGITS, "--entropy-coef", "0.01"]);
    for part in [
        "16 responses, packed, BF16 logits over 64 tokens",
        "entropy     mean ",
        " with positive, ",
        " with negative advantage",
        ", entropy ",
        " x -0.01)",
        "0.00 % of the work skipped",
        " at temperature 0.7",
        " of logits, ",
    ] {
        assert!(report.contains(part), "no {part:?} in\n{report}");
    }
    assert!(report.lines().count() <= 30, "{report}");
    let report = json(&[LOGITS]);
    let entropy = &report["entropy"];
    let number = |name: &str| entropy[name].as_f64().unwrap();
    let signs = ["positive", "zero", "negative"].map(number);
    let (low, high) = (
        signs.into_iter().fold(9.0, f64::min),
        signs.into_iter().fold(0.0, f64::max),
    );
    assert!((low..=high).contains(&number("mean")), "{entropy}");
    assert_eq!(entropy["tokens"], report["tokens"]["valid"]);
    assert_eq!(report["level"], "logits");
    assert_eq!(report["vocab_size"], 64);
    assert_eq!(report["config"]["temperature"], 0.7);
    assert!(report["logits_gradient_norm"].as_f64().unwrap() > 0.0);
}

#[test]
fn the_temperature_and_the_entropy_bonus_can_be_overridden() {
    let (plain, _) = run(&[LOGITS]);
    let (warm, _) = run(&[LOGITS, "--temperature", "2"]);
    assert_eq!(warm["config"]["temperature"], 2.0);
    let entropy = |report: &Value| report["entropy"]["mean"].as_f64().unwrap();
    assert!(entropy(&warm) > entropy(&plain));
    let (bonus, out) = run(&[LOGITS, "--entropy-coeff", "0.25"]);
    let loss = |report: &Value| report["loss"].as_f64().unwrap();
    let entropy_loss = out.f64s("entropy_loss").unwrap()[0];
    let difference = loss(&plain) - loss(&bonus) - 0.25 * entropy_loss;
    assert!(
        difference.abs() < 1e-12 && entropy_loss > 0.0,
        "{difference}"
    );
    assert_eq!(bonus["config"]["entropy_coef"], 0.25);
}

#[test]
fn a_compact_gradient_is_written_with_its_slots() {
    let (_, whole) = run(&[LOGITS]);
    let (report, compact) = run(&[LOGITS, "--gradient", "compact"]);
    assert_eq!(report["config"]["inactive_gradient"], "compact");
    let active = report["tokens"]["active"].as_u64().unwrap() as usize;
    let (whole_rows, rows) = (
        whole.f64s("dlogits").unwrap(),
        compact.f64s("dlogits").unwrap(),
    );
    assert_eq!(rows.len(), active * 64);
    let slots = slots(&compact, active);
    for (row, slot) in rows.chunks(64).zip(slots) {
        assert_eq!(row, &whole_rows[slot * 64..][..64]);
    }
    for name in [
        "dlogits_row_l1",
        "dlogits_row_l2",
        "dlogits_row_sum",
        "dlogp",
        "logp",
    ] {
        assert_eq!(
            compact.f64s(name).unwrap(),
            whole.f64s(name).unwrap(),
            "{name}"
        );
    }
    let (_, whole) = run(&[LARGE]);
    let (_, compact) = run(&[LARGE, "--gradient", "compact"]);
    let columns = |file: &TensorFile| file.f64s("dlogits_columns").unwrap();
    assert_eq!(columns(&compact), columns(&whole));
}

/// `active_slots`, which is I64.
fn slots(file: &TensorFile, expected: usize) -> Vec<usize> {
    let slots = file.i64s("active_slots").unwrap();
    assert_eq!(slots.len(), expected);
    assert!(slots.is_sorted());
    slots.into_iter().map(|slot| slot as usize).collect()
}

#[test]
fn a_capture_starts_from_its_logits_when_told() {
    let (from_log_probs, _) = run(&[CAPTURE]);
    let (from_logits, out) = run(&[CAPTURE, "--from", "logits"]);
    let loss = |report: &Value| report["loss"].as_f64().unwrap();
    let difference = loss(&from_log_probs) - loss(&from_logits);
    assert!(difference.abs() < 1e-6 && difference != 0.0, "{difference}");
    assert_eq!(from_log_probs["level"], "log-probs");
    assert_eq!(from_log_probs["entropy"], Value::Null);
    assert_eq!(from_logits["config"]["temperature"], 0.9);
    assert_eq!(out.f64s("dlogits").unwrap().len(), 256 * 54 * 36);
}

/// The capture's logits as a golden case, so that layouts can be changed.
fn as_golden() -> Draft {
    let mut draft = Draft::of(LOGITS);
    draft
        .tensors
        .retain(|name, _| !name.starts_with("expected."));
    draft
}

#[test]
fn every_layout_gives_the_same_loss() {
    let directory = TempDir::new().unwrap();
    let loss = |draft: &Draft| {
        let path = draft.write(&directory);
        json(&[text(&path)])["loss"].as_f64().unwrap()
    };
    let packed = as_golden();
    let expected = loss(&packed);

    let offsets: Vec<i32> = packed.ints("cu_seqlens");
    let rows = offsets.windows(2).enumerate();
    let response: Vec<i32> = rows
        .flat_map(|(row, pair)| vec![row as i32; (pair[1] - pair[0]) as usize])
        .collect();
    let mut indexed = as_golden();
    indexed.tensors.remove("cu_seqlens");
    indexed.i32s("slot_response", &[96], &response);
    assert!((loss(&indexed) - expected).abs() < 1e-15);

    // Slots without a response are no tokens, whatever their mask.
    let mask = &packed.tensors["mask"].2;
    let unmasked = response.iter().zip(mask);
    let unmasked: Vec<i32> = unmasked
        .map(|(&r, &m)| if m == 0 { -1 } else { r })
        .collect();
    indexed.i32s("slot_response", &[96], &unmasked);
    indexed.tensors.remove("mask");
    assert!((loss(&indexed) - expected).abs() < 1e-15);

    let mut padded = as_golden();
    padded.tensors.remove("cu_seqlens");
    padded.pad(&offsets);
    assert!((loss(&padded) - expected).abs() < 1e-15);

    let lengths: Vec<i32> = offsets.windows(2).map(|pair| pair[1] - pair[0]).collect();
    padded.i32s("lengths", &[16], &lengths);
    assert!((loss(&padded) - expected).abs() < 1e-15);
}

#[test]
fn masked_slots_may_hold_any_token_id() {
    let directory = TempDir::new().unwrap();
    let mut draft = as_golden();
    let mask = draft.tensors["mask"].2.clone();
    let masked: Vec<usize> = (0..96).filter(|&slot| mask[slot] == 0).collect();
    assert!(!masked.is_empty());
    let mut ids: Vec<i32> = draft.ints("token_id");
    for &slot in &masked {
        ids[slot] = -100;
    }
    draft.i32s("token_id", &[96], &ids);
    let path = draft.write(&directory);
    let (report, out) = run(&[text(&path)]);
    assert_eq!(report["loss"], json(&[LOGITS])["loss"]);
    let log_probs = out.f64s("logp").unwrap();
    let (_, whole) = run(&[LOGITS]);
    assert_eq!(out.f64s("entropy").unwrap(), whole.f64s("entropy").unwrap());
    for (slot, log_prob) in log_probs.into_iter().enumerate() {
        assert_eq!(log_prob.is_nan(), masked.contains(&slot), "slot {slot}");
    }
}

#[test]
fn what_is_not_finite_leaves_no_trace_where_it_does_not_count() {
    let directory = TempDir::new().unwrap();
    let mut draft = as_golden();
    let mask = draft.tensors["mask"].2.clone();
    let nan = half::bf16::NAN.to_le_bytes().repeat(64);
    let spoil = |draft: &mut Draft, slot: usize| {
        let bytes = &mut draft.tensors.get_mut("logits").unwrap().2;
        bytes[slot * nan.len()..][..nan.len()].copy_from_slice(&nan);
    };
    for slot in (0..96).filter(|&slot| mask[slot] == 0) {
        spoil(&mut draft, slot);
    }
    let mut report = json(&[text(&draft.write(&directory))]);
    let mut expected = json(&[LOGITS]);
    for report in [&mut report, &mut expected] {
        report["backend"] = Value::Null; // its time differs
        report["file"] = Value::Null;
    }
    assert_eq!(report, expected);

    let gradient = run(&[LOGITS]).1.f64s("dlogp").unwrap();
    let acting = gradient.iter().position(|&gradient| gradient != 0.0);
    spoil(&mut draft, acting.unwrap());
    let path = draft.write(&directory);
    assert_eq!(json(&[text(&path)])["left_out"]["tokens"], 1);
    let report = succeed(&["step", text(&path)]);
    assert!(
        report.contains("left out    1 tokens with a log-prob"),
        "{report}"
    );
}

#[test]
fn half_precision_logits_are_read() {
    let directory = TempDir::new().unwrap();
    let mut draft = as_golden();
    let (_, shape, bytes) = draft.tensors["logits"].clone();
    let (chunks, _) = bytes.as_chunks::<2>();
    let values = chunks
        .iter()
        .map(|&bytes| half::bf16::from_le_bytes(bytes).to_f32());
    let halves = values.flat_map(|value| half::f16::from_f32(value).to_le_bytes());
    let tensor = (Dtype::F16, shape, halves.collect());
    draft.tensors.insert("logits".to_string(), tensor);
    let report = json(&[text(&draft.write(&directory))]);
    assert_eq!(report["dtype"], "F16");
    let expected = json(&[LOGITS])["loss"].as_f64().unwrap();
    assert!((report["loss"].as_f64().unwrap() - expected).abs() < 1e-4);
}
