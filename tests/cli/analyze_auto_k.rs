//! `qae analyze --simulate-auto-k`: what it prints, and what it refuses.

use crate::{command, fail, succeed, text};
use serde_json::{Value, json};
use std::fs;
use tempfile::TempDir;

const WITH_ENTROPY: &str = "tests/data/rollouts/nemo_rl";
const WITHOUT: &str = "tests/data/rollouts/trl-addition.jsonl";

fn replay(args: &[&str]) -> Value {
    let args = [&["analyze", WITH_ENTROPY, "--simulate-auto-k"], args].concat();
    let report = succeed(&[&args[..], &["--format", "json"]].concat());
    let report: Value = serde_json::from_str(&report).unwrap();
    report["auto_k"].clone()
}

fn keys(value: &Value) -> Vec<&str> {
    let keys = value.as_object().unwrap().keys();
    keys.map(String::as_str).collect()
}

/// A dump with so many steps of two responses, whose entropies fall; every third one has none.
fn dump(num_steps: u32) -> (TempDir, String) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("rollouts.jsonl");
    let row = |step: u32, score: u32| {
        let entropy = (!step.is_multiple_of(3)).then(|| 1.0 / f64::from(1 + step));
        let output = format!("{step} {score}");
        json!({"input": "a", "output": output, "score": score, "step": step, "entropy": entropy})
    };
    let rows = (1..=num_steps).flat_map(|step| [0, 1].map(|score| row(step, score)));
    let rows: String = rows.map(|row| format!("{row}\n")).collect();
    fs::write(&path, rows).unwrap();
    let path = text(&path).to_string();
    (folder, path)
}

#[test]
fn the_table_has_the_course_and_both_totals() {
    let args = ["analyze", WITH_ENTROPY, "--k", "0.4", "--simulate-auto-k"];
    let args = [&args[..], &["--gain", "1", "--target-share", "0.7"]].concat();
    let table = succeed(&args);
    for part in [
        "entropy      mean -log p of generation_logprobs (an estimate): 0.5031 to 0.5139 nats at 2 of \
         2 steps",
        "automatic K, replayed from 0.4 on: K ← clamp(K + 1·ln(0.7·H₀/H), 0.1, 0.6)",
        "    step  entropy   target       K    ⌈4·K⌉   active   at 0.4  held",
        "       1   0.5139   0.3597  0.1000       1*   50.0 %   33.3 %  min_k",
        "       2   0.5031   0.3597  0.1000       1    41.7 %   25.0 %  min_k",
        "   0.4   50.00 %   50.00 %   20.83 %   70.83 %    8.33 %",
        "  auto   83.33 %   16.67 %   45.83 %   54.17 %    0.00 %",
        "automatic K  0.1000 to 0.1000, at last 0.1000; 2 steps: 1 with another method than the one",
        "held at min_k, 0 held at max_k, 0 without an entropy",
        "a replay: the policy was trained with another K",
    ] {
        assert!(table.contains(part), "no {part:?} in\n{table}");
    }
    assert!(table.lines().all(|line| line.chars().count() <= 120));
    assert!(!table.contains("auto K step"), "{table}");
    assert!(!succeed(&["analyze", WITH_ENTROPY]).contains("auto "));
}

#[test]
fn every_step_has_its_log_line_where_asked_for() {
    let (_folder, path) = dump(40);
    let args = ["analyze", &path, "--k", "0.4", "--simulate-auto-k"];
    let short = succeed(&args);
    assert!(
        short.contains("24 more steps in --format csv and json"),
        "{short}"
    );
    assert!(short.contains("13 steps without an entropy keep the K before them: 3, 6,"));
    let table = succeed(&[&args[..], &["--by-step"]].concat());
    assert_eq!(table.matches("  auto K step ").count(), 27);
    assert_eq!(table.matches("  no entropy: K stays ").count(), 13);
    let line = "       1  auto K step 1: K 0.4000 -> 0.3777, entropy 0.5000 above target 0.4000 nats, \
                K + 0.1 * ln(0.4000 / 0.5000)\n";
    assert!(table.contains(line), "{table}");
}

#[test]
fn the_json_has_all_of_it() {
    let found = replay(&[]);
    let expected = [
        "automatic",
        "by_step",
        "config",
        "fixed",
        "flips_from_fixed",
        "held_at_max",
        "held_at_min",
        "largest_k",
        "last_k",
        "method_changes",
        "smallest_k",
        "steps_without_entropy",
    ];
    assert_eq!(keys(&found), expected);
    let step = &found["by_step"][0];
    let expected = [
        "automatic",
        "controller",
        "fixed",
        "flips_from_fixed",
        "groups",
        "k",
        "method_changed",
        "responses",
        "step",
    ];
    assert_eq!(keys(step), expected);
    let expected = [
        "entropy",
        "gain",
        "held_at",
        "k",
        "previous_k",
        "step",
        "target_entropy",
    ];
    assert_eq!(keys(&step["controller"]), expected);
    assert_eq!((&step["step"], &step["groups"]), (&1.into(), &3.into()));
    assert_eq!(step["fixed"]["hard_groups"], 2);
    assert_eq!(step["fixed"]["zero_share"], 8.0 / 12.0);
    assert_eq!(step["k"], step["controller"]["k"]);
}

#[test]
fn flags_have_the_defaults_of_the_library() {
    let default = serde_json::to_value(qae::AutoKConfig::default()).unwrap();
    assert_eq!(replay(&[])["config"], default);
    let help = succeed(&["analyze", "--help"]);
    let (_, help) = help.split_once("Automatic K:").unwrap();
    let shown = ["initial_k", "gain", "min_k", "max_k"].map(|field| &default[field]);
    let shown = [&shown[..], &[&default["target"]["initial_share"]]].concat();
    for default in shown {
        assert!(
            help.contains(&format!("[default: {default}]")),
            "{default} in {help}"
        );
    }
    let flags = "--initial-k 0.3 --gain 0.2 --min-k 0.2 --max-k 0.5 --target-entropy 0.7";
    let flags: Vec<_> = flags.split(' ').collect();
    let expected = json!({
        "initial_k": 0.3, "gain": 0.2, "min_k": 0.2, "max_k": 0.5, "target": {"nats": 0.7}
    });
    assert_eq!(replay(&flags)["config"], expected);
    let share = replay(&["--target-share", "0.9"])["config"]["target"].clone();
    assert_eq!(share, json!({"initial_share": 0.9}));
}

#[test]
fn the_csv_has_rows_and_columns_of_their_own() {
    let (_folder, path) = dump(4);
    let args = ["analyze", &path, "--k", "0.2,0.4", "--format", "csv"];
    let without = succeed(&args);
    let with = succeed(&[&args[..], &["--simulate-auto-k", "--gain", "3"]].concat());
    // What was there before is there unchanged, with empty columns.
    let num_rows = without.lines().count();
    for (before, now) in without.lines().zip(with.lines()).skip(1) {
        assert_eq!(now, format!("{before},,,,,"));
    }
    let mut reader = csv::Reader::from_reader(with.as_bytes());
    let header = reader.headers().unwrap().clone();
    let rows: Vec<_> = reader.records().map(Result::unwrap).collect();
    let rows = &rows[num_rows - 1..];
    assert_eq!(rows.len(), 2 + 2 * 4);
    let of = |row: usize| {
        [
            "step",
            "entropy",
            "k",
            "auto_k",
            "held_at",
            "method_changed",
        ]
        .map(|name| {
            let column = header.iter().position(|column| column == name).unwrap();
            &rows[row][column]
        })
    };
    assert_eq!(of(0), ["all", "", "", "automatic", "", ""]);
    assert_eq!(of(1), ["all", "", "0.4", "fixed", "", ""]);
    assert_eq!(of(2), ["1", "0.5", "0.1", "automatic", "min", "false"]);
    assert_eq!(of(3), ["1", "0.5", "0.4", "fixed", "", ""]);
    assert_eq!(
        of(4),
        ["2", "0.3333333333333333", "0.6", "automatic", "max", "true"]
    );
    assert_eq!(of(6), ["3", "", "0.6", "automatic", "", "false"]);
}

#[test]
fn what_cannot_be_replayed_is_named_by_its_flag() {
    for (path, flags, part) in [
        (
            WITHOUT,
            "",
            "--simulate-auto-k: expected an entropy at each step, found none in the files (--entropy \
             COLUMN names the column)",
        ),
        (WITHOUT, "--entropy sure", "expected a column `sure`"),
        (
            WITH_ENTROPY,
            "--initial-k 0.7",
            "--initial-k: expected a number in [0.1, 0.6], found 0.7",
        ),
        (
            WITH_ENTROPY,
            "--min-k 0.7",
            "--min-k: expected at most --max-k, 0.6, found 0.7",
        ),
        (
            WITH_ENTROPY,
            "--max-k 1",
            "--max-k: expected a number in (0, 1), found 1",
        ),
        (WITH_ENTROPY, "--gain -1", "--gain: expected"),
        (
            WITH_ENTROPY,
            "--target-share nan",
            "--target-share: expected",
        ),
        (
            WITH_ENTROPY,
            "--target-entropy 0",
            "--target-entropy: expected",
        ),
    ] {
        let flags = flags.split(' ').filter(|flag| !flag.is_empty());
        let args = ["analyze", path, "--simulate-auto-k"].into_iter();
        let args: Vec<_> = args.chain(flags).collect();
        let error = fail(&args);
        assert!(error.contains(part), "{args:?}: {error}");
    }
    // They mean nothing alone or together.
    for flags in [
        "--initial-k 0.4",
        "--gain 0.1",
        "--min-k 0.1",
        "--max-k 0.6",
        "--target-share 0.8",
        "--target-entropy 0.3",
        "--simulate-auto-k --target-share 0.8 --target-entropy 0.3",
        "--simulate-auto-k --gain x",
    ] {
        let args: Vec<_> = ["analyze", WITH_ENTROPY]
            .into_iter()
            .chain(flags.split(' '))
            .collect();
        let status = command(&args).output().unwrap().status;
        assert_eq!(status.code(), Some(2), "{flags}");
    }
}
