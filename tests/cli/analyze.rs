//! `qae analyze`: what it prints and writes.

use crate::{command, fail, succeed, text};
use serde_json::Value;
use std::fs;
use tempfile::TempDir;

const ROLLOUTS: &str = "tests/data/rollouts/trl-addition.jsonl";

fn json(args: &[&str]) -> Value {
    let args = [&["analyze"], args, &["--format", "json"]].concat();
    serde_json::from_str(&succeed(&args)).unwrap()
}

fn keys(value: &Value) -> Vec<&str> {
    value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

#[test]
fn the_table_answers_which_k() {
    let table = succeed(&["analyze", ROLLOUTS, "--k", "0.4,0.2"]);
    assert!(
        table.lines().all(|line| line.chars().count() <= 120),
        "{table}"
    );
    for part in [
        "verl rollout dump (JSONL), 1 file, 360.2 kB; 8 steps, 0 to 14",
        "128 of 16, by uid without session and output; 2048 responses; 23 groups (17.97 %) with",
        "score: 0 or 1, mean 0.6206; 62.06 % succeed (above 0.5)",
        "response_length: 63332 in all, 30.9 a response",
        "of 16: groups  0: 11 · 1: 5 · 2: 2",
        "  mean         -         -   52.69 %   17.97 %   29.35 %",
        "   0.2   55.47 %   44.53 %   21.29 %   74.95 %    3.76 %   73.53 %",
        "   0.4   39.06 %   60.94 %    9.67 %   81.79 %    8.54 %   80.50 %",
        "      14       256      16    0.8125   81.2 %",
        "recommended  automatic K",
        "rests on     the files have no entropy",
    ] {
        assert!(table.contains(part), "no {part:?} in\n{table}");
    }
    assert!(!table.contains("two-regime"), "{table}");
}

#[test]
fn the_table_shows_every_step_where_asked_for() {
    let table = succeed(&["analyze", ROLLOUTS, "--k", "0.4", "--by-step"]);
    let (_, last) = table.split_once("\nstep 14\n").unwrap();
    for part in [
        "groups       16 of 16; 256 responses",
        "of 16: groups  7: 2",
        "   0.4   12.50 %   87.50 %",
    ] {
        assert!(last.contains(part), "no {part:?} in\n{last}");
    }
    assert_eq!(table.matches("\nstep ").count(), 8);
}

#[test]
fn the_json_has_the_keys_that_programs_ask_for() {
    let report = json(&[ROLLOUTS]);
    assert_eq!(
        (&report["responses"], &report["groups"]),
        (&2048.into(), &128.into())
    );
    let by_k = report["by_k"].as_array().unwrap();
    assert_eq!(by_k.len(), 9);
    let entry = &by_k[3];
    for (key, value) in [
        ("k", Value::from(0.4)),
        ("interpolation", "inverted_cdf".into()),
        ("hard_groups", 50.into()),
        ("easy_groups", 78.into()),
        ("positive_share", (198.0 / 2048.0).into()),
        ("zero_share", 0.81787109375.into()),
        ("negative_share", (175.0 / 2048.0).into()),
        ("flips_from_previous", 10.into()),
        ("same_method_as", Vec::<f64>::new().into()),
    ] {
        assert_eq!(entry[key], value, "{key}");
    }
    let tokens = entry["tokens_saved_share"].as_f64().unwrap();
    assert!((0.80..0.81).contains(&tokens));
    assert_eq!(entry["two_regime"]["zero_share"], entry["zero_share"]);
    assert_eq!(
        keys(&report),
        [
            "format",
            "columns",
            "files",
            "bytes",
            "responses",
            "groups",
            "group_sizes",
            "steps",
            "broken_lines",
            "untrained_responses",
            "rewards",
            "total_length",
            "zero_variance_groups",
            "success_histogram",
            "success_threshold",
            "mean_baseline",
            "by_k",
            "by_step",
            "steps_left_out",
            "warnings",
            "recommendation",
        ]
        .iter()
        .copied()
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect::<Vec<_>>()
    );
    let step = &report["by_step"][7];
    assert_eq!(
        (&step["step"], &step["responses"]),
        (&14.into(), &256.into())
    );
    assert_eq!(step["by_k"].as_array().unwrap().len(), 9);
    assert_eq!(
        keys(&report["recommendation"]),
        ["automatic", "k", "rests_on", "text"]
    );
    let linear = json(&[ROLLOUTS, "--interpolation", "linear", "--k", "0.5"]);
    assert_eq!(linear["by_k"][0]["interpolation"], "linear");
    assert_eq!(linear["by_k"][0]["zero_share"], 0.80615234375);
    assert_eq!(linear["by_k"][0]["both_signs_groups"], 4);
}

/// As data/README.md has it.
#[test]
fn the_runs_of_the_example_are_read_with_their_entropies() {
    for method in ["mean", "qae"] {
        let file = format!("data/arithmetic-{method}.parquet");
        let columns = [
            ["--group", "uid"],
            ["--reward", "score"],
            ["--length", "response_length"],
        ];
        let report = json(&[&[file.as_str()], columns.as_flattened()].concat());
        for (key, value) in [("responses", 25_600), ("groups", 1600), ("steps", 100)] {
            assert_eq!(report[key], value, "{file}: {key}");
        }
        assert_eq!(report["group_sizes"][0]["size"], 16);
        let steps = report["by_step"].as_array().unwrap();
        let entropies: Vec<f64> = steps
            .iter()
            .map(|step| step["entropy"].as_f64().unwrap())
            .collect();
        // Both start from the same weights, on the same questions.
        assert!((entropies[0] - 0.4213).abs() < 1e-4, "{file}");
        assert!(entropies[99] < 0.1, "{file}");
    }
}

#[test]
fn every_group_is_listed_where_asked_for() {
    let report = json(&[ROLLOUTS, "--by-group", "--k", "0.4"]);
    let groups = report["by_group"].as_array().unwrap();
    assert_eq!(groups.len(), 128);
    let expected = [
        "baselines",
        "group",
        "mean",
        "n",
        "std_unbiased",
        "step",
        "successes",
    ];
    assert_eq!(keys(&groups[0]), expected);
    assert_eq!(groups[0]["group"], "cd613e30-d8f1-4adf-91b7-584a2265b1f5");
    assert_eq!(groups[0]["baselines"][0]["baseline"], 1.0);
}

#[test]
fn the_csv_has_a_row_for_each_k_over_all_and_at_each_step() {
    let table = succeed(&["analyze", ROLLOUTS, "--k", "0.2,0.4", "--format", "csv"]);
    let mut reader = csv::Reader::from_reader(table.as_bytes());
    let header = reader.headers().unwrap().clone();
    let rows: Vec<_> = reader.records().map(Result::unwrap).collect();
    // The mean, each K without and with the gate, and each K at each of eight steps.
    assert_eq!(rows.len(), 1 + 2 * 2 + 8 * 2);
    let at = |row: usize, name: &str| {
        let column = header.iter().position(|column| column == name).unwrap();
        rows[row][column].to_string()
    };
    assert_eq!(
        (at(0, "step"), at(0, "interpolation")),
        ("all".into(), "mean".into())
    );
    assert_eq!((at(3, "k"), at(3, "gate")), ("0.4".into(), "none".into()));
    assert_eq!(at(3, "zero_share"), "0.81787109375");
    assert_eq!(
        (at(4, "gate"), at(4, "zero_share")),
        ("two_regime".into(), "0.81787109375".into())
    );
    assert_eq!((at(20, "step"), at(20, "k")), ("14".into(), "0.4".into()));
    assert_eq!(at(20, "responses"), "256");
}

#[test]
fn rewards_that_are_not_binary_have_a_table_with_the_gate() {
    let table = succeed(&["analyze", "tests/data/rollouts/trl", "--k", "0.4"]);
    assert!(table.contains("with the two-regime gate"), "{table}");
    assert!(
        table.contains("TRL completions (parquet), 2 files"),
        "{table}"
    );
    let weighted = json(&["tests/data/rollouts/trl", "--reward", "even=2,brevity=-0.5"]);
    assert_eq!(weighted["columns"]["reward"], "2 even + -0.5 brevity");
}

#[test]
fn broken_lines_are_skipped_only_where_asked_for() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("1.jsonl");
    let rollouts = fs::read_to_string(ROLLOUTS).unwrap();
    fs::write(&path, &rollouts[..300_000]).unwrap();
    let last = rollouts[..300_000].lines().count();
    let error = fail(&["analyze", text(&path)]);
    assert!(
        error.contains(&format!("1.jsonl:{last}: expected")),
        "{error}"
    );
    let table = succeed(&["analyze", text(&path), "--skip-bad"]);
    assert!(
        table.contains("warning      1 broken line left out: "),
        "{table}"
    );
    let report = json(&[text(&path), "--skip-bad"]);
    assert_eq!(report["broken_lines"], 1);
    assert_eq!(report["responses"], (last - 1) as u64);
}

#[test]
fn a_plot_is_written_beside_the_report() {
    let folder = TempDir::new().unwrap();
    let plot = folder.path().join("plot.svg");
    let table = succeed(&[
        "analyze",
        ROLLOUTS,
        "--plot",
        text(&plot),
        "--plot-theme",
        "dark",
    ]);
    assert!(
        table.ends_with(&format!("plot: {}\n", plot.display())),
        "{table}"
    );
    assert!(
        fs::read_to_string(&plot)
            .unwrap()
            .contains("Regimes and sparsity against K")
    );
    // Standard output stays what a program can read.
    json(&[ROLLOUTS, "--plot", text(&plot)]);
    let error = fail(&["analyze", ROLLOUTS, "--plot", "plot.jpg"]);
    assert!(
        error.contains("--plot: expected a name that ends in .svg or .png"),
        "{error}"
    );
    let copy = folder.path().join("copy.png");
    fs::copy(ROLLOUTS, &copy).unwrap();
    let error = fail(&["analyze", text(&copy), "--plot", text(&copy)]);
    assert!(
        error.contains("--plot: expected another file than the input"),
        "{error}"
    );
    assert_eq!(fs::read(&copy).unwrap(), fs::read(ROLLOUTS).unwrap());
}

/// Each block of output in docs/choosing-k.md follows the command that prints it.
#[test]
fn the_page_on_k_quotes_what_is_printed() {
    let page = fs::read_to_string("docs/choosing-k.md").unwrap();
    let mut num_quotes = 0;
    for block in page.split("```sh\ncargo run --release -- ").skip(1) {
        let (command, rest) = block.split_once("\n```\n").unwrap();
        let Some((quote, _)) = rest
            .trim_start()
            .strip_prefix("```text\n")
            .and_then(|text| text.split_once("```"))
        else {
            continue;
        };
        let printed = succeed(&command.split(' ').collect::<Vec<_>>());
        for line in quote.lines().filter(|&line| line != "...") {
            assert!(
                printed.lines().any(|printed| printed == line),
                "{command}: {line}"
            );
        }
        num_quotes += 1;
    }
    assert_eq!(num_quotes, 5);
}

#[test]
fn a_dash_is_standard_input() {
    let run = |path: &str, args: &[&str]| {
        let args = [&["analyze", "-", "--format", "json"], args].concat();
        let input = fs::File::open(path).unwrap();
        command(&args).stdin(input).output().unwrap()
    };
    let report: Value = serde_json::from_slice(&run(ROLLOUTS, &[]).stdout).unwrap();
    assert_eq!(report, json(&[ROLLOUTS]));
    // Twice the same, by whatever name, is read once.
    let report: Value = serde_json::from_slice(&run(ROLLOUTS, &[ROLLOUTS, "-"]).stdout).unwrap();
    assert_eq!(report["responses"], 2048);
    let error = run("tests/data/rollouts/parquet/zstd.parquet", &[]).stderr;
    let error = String::from_utf8(error).unwrap();
    assert!(
        error.starts_with("qae: standard input: expected a file, which parquet needs"),
        "{error}"
    );
}

/// Also where a folder has it, under another name.
#[test]
#[cfg(unix)]
fn a_plot_never_replaces_an_input() {
    let folder = TempDir::new().unwrap();
    let input = folder.path().join("1.jsonl");
    fs::copy(ROLLOUTS, &input).unwrap();
    let (link, hard_link) = (folder.path().join("a.svg"), folder.path().join("b.svg"));
    std::os::unix::fs::symlink("1.jsonl", &link).unwrap();
    fs::hard_link(&input, &hard_link).unwrap();
    for plot in [&link, &hard_link] {
        let error = fail(&["analyze", text(folder.path()), "--plot", text(plot)]);
        assert!(
            error.contains("--plot: expected another file than the input")
                && error.contains("1.jsonl"),
            "{error}"
        );
    }
    assert_eq!(fs::read(&input).unwrap(), fs::read(ROLLOUTS).unwrap());
}

/// The file that cannot be read is never opened.
#[test]
fn the_place_of_a_plot_is_checked_before_anything_is_read() {
    let folder = TempDir::new().unwrap();
    let input = folder.path().join("1.jsonl");
    fs::write(&input, "oops").unwrap();
    for (plot, part) in [
        ("plot.jpg", "expected a name that ends in .svg or .png"),
        ("no/such/plot.svg", "expected a directory"),
    ] {
        let plot = folder.path().join(plot);
        let error = fail(&["analyze", text(&input), "--plot", text(&plot)]);
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn flags_that_make_no_sense_are_named() {
    for (flags, part) in [
        ("--k 1", "--k: expected numbers in (0, 1), found 1"),
        ("--k 0.4,nan", "--k: expected numbers in (0, 1), found NaN"),
        (
            "--success-threshold inf",
            "--success-threshold: expected a finite number",
        ),
        ("--group-size 0", "--group-size: expected at least 1"),
        (
            "--reward score=inf",
            "weight of score: expected a finite number",
        ),
        (
            "--group prompt",
            "expected a column `prompt`, found input, output, gts, score",
        ),
        ("--step input", ":1: column `step`: expected an integer"),
    ] {
        let flags = flags.split(' ');
        let args: Vec<_> = ["analyze", ROLLOUTS].into_iter().chain(flags).collect();
        let error = fail(&args);
        let part = part.replace("column `step`: expected", "column `input`: expected");
        assert!(error.contains(&part), "{args:?}: {error}");
    }
    for flags in [
        "--k x",
        "--interpolation cubic",
        "--format xml",
        "--reward =",
        "--policy-entropy 3",
    ] {
        let args: Vec<_> = ["analyze", ROLLOUTS]
            .into_iter()
            .chain(flags.split(' '))
            .collect();
        assert_eq!(
            command(&args).output().unwrap().status.code(),
            Some(2),
            "{flags}"
        );
    }
    let args = ["analyze", ROLLOUTS, "--group-size", "4", "--skip-bad"];
    assert_eq!(command(&args).output().unwrap().status.code(), Some(2));
}

#[test]
fn what_the_user_knows_decides_the_recommendation() {
    let recommended = |flags: &[&str]| {
        let report = json(&[&[ROLLOUTS], flags].concat());
        report["recommendation"]["k"].clone()
    };
    assert_eq!(recommended(&["--clip-higher"]), 0.4);
    assert_eq!(recommended(&["--clip-higher=true"]), 0.4);
    assert_eq!(recommended(&["--clip-higher=false"]), Value::Null);
    assert_eq!(recommended(&["--policy-entropy", "low"]), 0.6);
    assert_eq!(
        recommended(&["--policy-entropy", "high", "--clip-higher=false"]),
        0.4
    );
}

/// What a file or a user chose cannot move the cursor.
#[test]
fn text_from_files_is_escaped() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.csv");
    fs::write(&path, "\u{1b}[2Jg,r\na,1\na,0\n").unwrap();
    let args = [
        "analyze",
        text(&path),
        "--group",
        "\u{1b}[2Jg",
        "--reward",
        "r",
    ];
    let table = succeed(&args);
    assert!(
        !table.contains('\u{1b}') && table.contains("\\u{1b}[2Jg"),
        "{table}"
    );
    fs::write(&path, "\u{1b}[2Jg,r\na,1\na\n").unwrap();
    assert!(!fail(&args).contains('\u{1b}'));
}

#[test]
fn one_thread_gives_the_same_report() {
    let run = |threads: &str| {
        let mut command = command(&["analyze", ROLLOUTS, "--format", "json"]);
        command
            .env("RAYON_NUM_THREADS", threads)
            .output()
            .unwrap()
            .stdout
    };
    assert_eq!(run("1"), run("4"));
}

#[test]
fn a_flag_of_another_format_is_refused() {
    for (arguments, expected) in [
        (
            vec!["--by-group"],
            "--by-group: expected --format json, which it is for, found --format table",
        ),
        (
            vec!["--by-step", "--format", "csv"],
            "--by-step: expected --format table, which it is for, found --format csv",
        ),
    ] {
        let line = fail(&[&["analyze", ROLLOUTS], &arguments[..]].concat());
        assert_eq!(line.trim_end(), format!("qae: {expected}"));
    }
}
