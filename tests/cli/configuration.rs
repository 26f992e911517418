//! Where the configuration comes from, and who is blamed for it.

use crate::{CASE, Draft, command, fail, json, succeed, text};
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

const CAPTURE: &str = "data/trl-addition.safetensors";

fn config(directory: &TempDir, json: &str) -> PathBuf {
    let path = directory.path().join("config.json");
    fs::write(&path, json).unwrap();
    path
}

#[test]
fn a_bad_flag_is_blamed_by_its_own_name() {
    for (flags, expected) in [
        ("--k 1.5", "--k: expected a number in (0, 1), found 1.5"),
        ("--k NaN", "--k: expected a number in (0, 1), found NaN"),
        ("--k 1e308", "--k: expected a number in (0, 1), found 1e308"),
        (
            "--clip-low -1",
            "--clip-low: expected a number in [0, 1], found -1",
        ),
        (
            "--scale mad",
            "--scale: expected one of std_unbiased, std_population, none, found",
        ),
        (
            "--loss clip_cov",
            "--loss: clip_cov is not supported (supported: ppo_clip,",
        ),
        (
            "--loss sapo --tau-pos 0",
            "--tau-pos: expected a finite number above 0, found 0",
        ),
        (
            "--baseline mean --k 0.4",
            "--k: expected nothing with baseline mean, found 0.4",
        ),
        ("--kl-coef 2", "--kl: expected k1, k2 or k3 with kl.coef 2"),
        (
            "--kl-coef 1e308",
            "--kl: expected k1, k2 or k3 with kl.coef 1e308, found none",
        ),
        ("--entropy-coef 0.1", "--entropy-coef: expected 0"),
        (
            "--entropy-coef inf",
            "--entropy-coef: expected a finite number, found inf",
        ),
        (
            "--gradient compact",
            "--gradient: expected zero fill or untouched",
        ),
        (
            "--gradient sparse",
            "--gradient: expected one of zero_fill, untouched, compact",
        ),
        (
            "--temperature 0.7",
            "--temperature: expected no such flag with log-probs, which contain the temperature \
             already, found 0.7",
        ),
    ] {
        let args: Vec<_> = ["step", CASE].into_iter().chain(flags.split(' ')).collect();
        let message = fail(&args);
        assert!(
            message.starts_with(&format!("qae: {expected}")),
            "{flags}: {message}"
        );
    }
}

#[test]
fn numbers_that_this_configuration_does_not_use_are_checked_too() {
    for (flags, expected) in [
        (
            "--loss-scale-factor nan",
            "--loss-scale-factor: expected a finite number above 0",
        ),
        (
            "--normalizer-sequences -3",
            "--normalizer-sequences: expected a finite number above 0",
        ),
        (
            "--aggregation seq-mean-token-sum --normalizer-tokens 0",
            "--normalizer-tokens: expected",
        ),
        (
            "--scale none --epsilon inf",
            "--epsilon: expected a finite number, at least 0",
        ),
    ] {
        let args: Vec<_> = ["step", CASE].into_iter().chain(flags.split(' ')).collect();
        let message = fail(&args);
        assert!(
            message.starts_with(&format!("qae: {expected}")),
            "{flags}: {message}"
        );
    }
}

#[test]
fn a_bad_field_is_blamed_on_the_file_that_set_it() {
    let directory = TempDir::new().unwrap();
    for (json, expected) in [
        (
            r#"{"baseline": {"k": 2}}"#,
            "baseline.k: expected a number in (0, 1), found 2",
        ),
        (
            r#"{"clip_high": 1e308, "clip_low": 1e308}"#,
            "clip_low: expected a number in [0, 1], found 1e308",
        ),
        (r#"{"loss": "kl_cov"}"#, "loss: kl_cov is not supported"),
        ("[]", "config: expected a JSON object, found an array"),
        ("null", "config: expected a JSON object, found null"),
        (
            r#"{"baseline": []}"#,
            "baseline: expected an object, found an array",
        ),
        (
            r#"{"scale": null}"#,
            "scale: expected a value, or no such field, found null",
        ),
        (
            r#"{"k": 0.4, "k": 0.2}"#,
            "config: expected a JSON object, found a second `k`",
        ),
        (
            r#"{"epsilon": "#,
            "config: expected a JSON object, found EOF",
        ),
        (
            r#"{"epsilon": 1e999}"#,
            "config: expected a JSON object, found number out of range",
        ),
    ] {
        let path = config(&directory, json);
        let message = fail(&["step", CASE, "--config", text(&path)]);
        let expected = format!("qae: {}: {expected}", text(&path));
        assert!(message.starts_with(&expected), "{json}: {message}");
    }
    let message = fail(&["step", CASE, "--config", "no.json"]);
    assert!(
        message.starts_with("qae: no.json: expected a JSON file that can be read, found No such")
    );
}

#[test]
fn what_no_layer_above_set_is_blamed_on_the_case() {
    let directory = TempDir::new().unwrap();
    let mut draft = Draft::of(CASE);
    draft.set_config("clip_low", 7.into());
    let case = draft.write(&directory);
    let expected = format!(
        "qae: {}: clip_low: expected a number in [0, 1], found 7\n",
        text(&case)
    );
    assert_eq!(fail(&["step", text(&case), "--k", "0.2"]), expected);
    draft.set_config("clip_low", 1e308.into());
    draft.write(&directory);
    assert!(fail(&["step", text(&case)]).ends_with("[0, 1], found 1e308\n"));
    // The flag is read first, and mends the case.
    succeed(&["step", text(&case), "--clip-low", "0.2"]);
}

#[test]
fn what_is_not_read_is_reported() {
    let report = succeed(&["step", CAPTURE]);
    let line = "not read    logits (--from logits starts from them); \
                temperature (log-probs contain it)";
    assert!(report.contains(line), "{report}");
    let of = |args| json(args)["not_read"].clone();
    assert_eq!(of(&[CAPTURE]), serde_json::json!(["logits", "temperature"]));
    assert_eq!(
        of(&[CAPTURE, "--from", "logits"]),
        serde_json::json!(["per_token_logps"])
    );
    assert_eq!(of(&[CASE]), serde_json::json!([]));
}

#[test]
fn a_name_cannot_move_the_cursor() {
    let directory = TempDir::new().unwrap();
    let mut draft = Draft::of(CASE);
    let name = r#"{"name": "a\nb\u001b[2J\u202ec\r\u009b"}"#;
    draft.metadata.insert("case".to_string(), name.to_string());
    let case = draft.write(&directory);
    let report = succeed(&["step", text(&case)]);
    let odd = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
    assert!(!report.contains(odd), "{report:?}");
    assert!(
        report.starts_with(r"batch       a\nb\u{1b}[2J\u{202e}c\r\u{9b}: 40 responses"),
        "{report}"
    );
    let message = fail(&["step", "no\u{1b}[2J\nfile"]);
    assert!(!message.trim_end().contains(odd), "{message:?}");
}

#[test]
fn no_number_fills_the_screen() {
    for flags in [
        "--clip-high 1e308 --dp-size 1e308 --epsilon 1e308",
        "--clip-high 1e308 --k 1e-300 --dual-clip 1e300 --grad-scale 1e300",
        "--normalizer-tokens 1e-300 --scale none",
        "--normalizer-tokens 1e300 --ratio-cap 1e-300",
    ] {
        let args: Vec<_> = ["step", CASE].into_iter().chain(flags.split(' ')).collect();
        let report = succeed(&args);
        assert!(
            report.lines().all(|line| line.len() < 200),
            "{flags}: {report}"
        );
    }
}

#[test]
fn a_wild_number_of_threads_is_bounded() {
    let cores = std::thread::available_parallelism().unwrap().get();
    for (requested, most) in [
        ("1", 1),
        ("1000000", 4 * cores),
        ("18446744073709551615", 4 * cores),
        ("many", cores),
    ] {
        let mut command = command(&["step", CASE, "--backend", "cpu"]);
        let output = command
            .env("RAYON_NUM_THREADS", requested)
            .output()
            .unwrap();
        assert!(output.status.success(), "{requested}: {output:?}");
        let report = String::from_utf8(output.stdout).unwrap();
        let expected = format!("cpu (f64, {most} thread");
        assert!(report.contains(&expected), "{requested}: {report}");
    }
}
