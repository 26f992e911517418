//! What a run that fails says, and that it leaves nothing behind.

use crate::{CASE, Draft, fail, qae, succeed, text};
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
];

#[test]
fn wrong_files_are_named_with_tensor_expectation_and_finding() {
    for (change, expected) in CHANGES {
        let directory = TempDir::new().unwrap();
        let mut draft = Draft::of(CASE);
        change(&mut draft);
        let path = draft.write(&directory);
        let message = fail(&["step", text(&path), "--out", "never-written.safetensors"]);
        assert!(message.contains(text(&path)), "{message}");
        assert!(
            message.contains(expected),
            "expected {expected:?} in {message}"
        );
    }
    assert!(!Path::new("never-written.safetensors").exists());
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
    assert!(fail(&["step", "src"]).starts_with("qae: src: "));
    assert!(fail(&["step", "no-such-file"]).contains("no-such-file: No such file"));
}

#[test]
fn wrong_values_fail_and_wrong_usage_exits_with_2() {
    assert!(
        fail(&["step", CASE, "--k", "1.5"]).contains("baseline.k: expected a number in (0, 1)")
    );
    assert!(fail(&["step", CASE, "--k", "NaN"]).contains("baseline.k"));
    assert!(fail(&["step", CASE, "--loss", "clip_cov"]).contains("clip_cov is not supported"));
    assert!(
        fail(&["step", CASE, "--scale", "mad"]).contains("scale: expected one of std_unbiased")
    );
    assert!(fail(&["step", CASE, "--clip-low", "-1"]).contains("clip_low: expected"));
    assert!(fail(&["step", CASE, "--config", "no.json"]).contains("no.json: No such file"));
    assert!(
        fail(&["step", CASE, "--config", "Cargo.toml"]).contains("Cargo.toml: config: expected")
    );
    for args in [
        &["step"][..],
        &["step", CASE, "--k", "much"],
        &["step", CASE, "--clip-low", "little"],
        &["step", CASE, "--backend", "tpu"],
        &["step", CASE, "--unknown"],
        &["unknown"],
        &[],
    ] {
        assert_eq!(qae(args).status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn a_failure_leaves_no_file_and_touches_none() {
    let directory = TempDir::new().unwrap();
    let out = directory.path().join("out.safetensors");
    fs::write(&out, "precious").unwrap();
    fail(&["step", CASE, "--k", "2", "--out", text(&out)]);
    assert_eq!(fs::read_to_string(&out).unwrap(), "precious");
    succeed(&["step", CASE, "--out", text(&out)]);
    assert!(fs::metadata(&out).unwrap().len() > 1000);

    let missing = directory.path().join("missing/out.safetensors");
    assert!(fail(&["step", CASE, "--out", text(&missing)]).contains("missing"));
    let taken = directory.path().join("taken");
    fs::create_dir(&taken).unwrap();
    fail(&["step", CASE, "--out", text(&taken)]);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
}

#[test]
fn an_output_never_replaces_an_input() {
    let directory = TempDir::new().unwrap();
    let case = directory.path().join("case.safetensors");
    fs::copy(CASE, &case).unwrap();
    let indirect = directory
        .path()
        .join("../")
        .join(directory.path().file_name().unwrap());
    for out in [case.clone(), indirect.join("case.safetensors")] {
        let message = fail(&["step", text(&case), "--out", text(&out)]);
        assert!(message.contains("--out"), "{message}");
    }
    assert_eq!(fs::read(&case).unwrap(), fs::read(CASE).unwrap());
}

#[cfg(unix)]
#[test]
fn an_output_replaces_ordinary_files_only() {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
    let directory = TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name);
    let pipe = path("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    fail(&["step", CASE, "--out", text(&pipe)]);
    assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());

    let locked = path("locked");
    fs::write(&locked, "precious").unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o444)).unwrap();
    fail(&["step", CASE, "--out", text(&locked)]);
    assert_eq!(fs::read_to_string(&locked).unwrap(), "precious");

    let (link, target) = (path("link"), path("target"));
    symlink(&target, &link).unwrap();
    fail(&["step", CASE, "--out", text(&link)]);
    fs::write(&target, "").unwrap();
    fs::set_permissions(&target, fs::Permissions::from_mode(0o640)).unwrap();
    succeed(&["step", CASE, "--out", text(&link)]);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    let written = fs::metadata(&target).unwrap();
    assert!(written.len() > 1000);
    assert_eq!(written.permissions().mode() & 0o777, 0o640);
}

#[cfg(unix)]
#[test]
fn a_read_only_directory_is_an_error() {
    use std::os::unix::fs::PermissionsExt;
    let directory = TempDir::new().unwrap();
    let locked = directory.path().join("locked");
    fs::create_dir(&locked).unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o555)).unwrap();
    let probe = locked.join("probe");
    let out = locked.join("out.safetensors");
    if fs::write(&probe, "").is_ok() {
        fs::remove_file(&probe).unwrap(); // root writes anywhere but to the kernel's own files
        assert!(fail(&["step", CASE, "--out", "/proc/out.safetensors"]).contains("/proc"));
    } else {
        assert!(fail(&["step", CASE, "--out", text(&out)]).contains(text(&out)));
        assert_eq!(fs::read_dir(&locked).unwrap().count(), 0);
    }
}

#[cfg(not(feature = "cuda"))]
#[test]
fn without_the_feature_cuda_is_refused_with_the_reason() {
    assert!(
        fail(&["step", CASE, "--backend", "cuda"]).contains("built without the `cuda` feature")
    );
    assert!(succeed(&["info"]).contains("built without the `cuda` feature"));
    let reason = &crate::json(&[CASE])["backend"]["reason"];
    assert!(
        reason
            .as_str()
            .unwrap()
            .contains("built without the `cuda` feature")
    );
}
