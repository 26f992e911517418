//! The samples of each trainer, and what is found in them.

use crate::{Files, report, report_of, report_of_lines, report_of_lines_with, sample};
use qae::analyze::{Columns, Options, Report, RewardTerm};
use serde_json::Value;
use std::fs;

fn sizes(report: &Report) -> Vec<(u64, u64)> {
    let sizes = report.group_sizes.iter();
    sizes.map(|size| (size.size, size.groups)).collect()
}

fn steps(report: &Report) -> Vec<Option<i64>> {
    report.by_step.iter().map(|step| step.step).collect()
}

#[test]
fn verl_without_uid() {
    let report = report("verl");
    assert_eq!(report.format, "verl rollout dump (JSONL)");
    assert_eq!(report.columns.grouped_by, "input within a step");
    assert_eq!((report.files, report.responses), (2, 24));
    assert_eq!(sizes(&report), [(4, 6)]);
    assert_eq!(steps(&report), [Some(9), Some(10)]);
    // Of each prompt (i + step) % 5 of four draws are right.
    let successes: f64 = (report.by_step.iter())
        .map(|step| step.success_share.unwrap() * step.responses as f64)
        .sum();
    assert_eq!(successes, 4.0 + 0.0 + 1.0 + 0.0 + 1.0 + 2.0);
    assert_eq!(report.columns.length.as_deref(), Some("output"));
}

/// The sessions' last output decides, and the others have its reward and advantage.
#[test]
fn verl_with_sessions_of_several_outputs() {
    let report = report("verl-sessions");
    assert_eq!(report.columns.grouped_by, "uid without session and output");
    assert_eq!((report.responses, sizes(&report)), (12, vec![(4, 3)]));
    let rows = fs::read_to_string(sample("verl-sessions/3.jsonl")).unwrap();
    assert_eq!(rows.lines().count(), 15);
    let bytes = |line: &str| {
        let row: Value = serde_json::from_str(line).unwrap();
        row["output"].as_str().unwrap().len() as u64
    };
    let bytes = rows.lines().map(bytes).sum::<u64>();
    assert_eq!(report.total_length, bytes);
    assert_eq!(report.rewards.success_share, Some(0.5));
}

#[test]
fn the_reward_of_a_session_is_that_of_its_last_output() {
    let row = |uid: &str, score: f64| {
        format!(
            "{{\"input\":\"p\",\"output\":\"x\",\"score\":{score},\"step\":1,\"uid\":\"{uid}\"}}\n"
        )
    };
    let rows = [
        row("a_b_0_1", 1.0),
        row("a_b_0_0", 0.0),
        row("a_b_1_0", 0.0),
        row("a_b_2_0", 0.0),
    ];
    let report = crate::report_of_lines(rows.concat()).unwrap();
    assert_eq!(
        (
            report.responses,
            report.groups,
            report.by_k[3].signs.positive
        ),
        (3, 1, 1)
    );
    // A uid that has no such ending stays whole.
    let rows = [
        row("a_0", 1.0),
        row("a_1", 0.0),
        row("b_x_1", 0.0),
        row("b_y_1", 0.0),
    ];
    let report = crate::report_of_lines(rows.concat()).unwrap();
    assert_eq!(report.groups, 4);
}

/// verl's uids have no underscore, those that somebody took from a data set may have some.
#[test]
fn numbers_at_the_end_of_a_uid_need_not_be_a_session() {
    let row = |uid: &str, output: &str, score: usize| {
        format!(
            "{{\"input\":\"p\",\"output\":\"{output}\",\"score\":{score},\"step\":1,\"uid\":\"{uid}\"}}\n"
        )
    };
    let sixteen = |output: fn(usize) -> String, score: fn(usize) -> usize| {
        let rows = (0..16).map(|i| row("gsm8k_5_12", &output(i), score(i)));
        rows.collect::<String>()
    };
    let by_uid = Options {
        columns: Columns {
            group: Some("uid".to_string()),
            ..Columns::default()
        },
        ..Options::default()
    };
    for rows in [
        sixteen(|_| "x".to_string(), |i| i % 2),
        sixteen(|i| "x".repeat(i), |_| 1),
        sixteen(|i| format!("{i:02}"), |_| 1),
    ] {
        let error = report_of_lines(&rows).unwrap_err();
        assert_eq!(
            error,
            "uid: expected each session and output of a group once, found …_5_12 again with \
             another reward, length or text (--group uid takes the whole uid)"
        );
        let report = report_of_lines_with(&rows, &by_uid).unwrap();
        assert_eq!(report.columns.grouped_by, "uid within a step");
        assert_eq!(sizes(&report), [(16, 1)]);
    }
    let rows = (0..32).map(|i| row(&format!("train_{}_5", i / 8), &format!("{i}"), i % 3));
    let rows = rows.collect::<String>();
    let error = report_of_lines(&rows).unwrap_err();
    assert!(error.contains("…_0_5 again"), "{error}");
    let report = report_of_lines_with(&rows, &by_uid).unwrap();
    assert_eq!(sizes(&report), [(8, 4)]);
    // Equal rows are one row that is there twice.
    let same = report_of_lines(sixteen(|_| "x".to_string(), |_| 1)).unwrap();
    assert_eq!(sizes(&same), [(1, 1)]);
    assert!(crate::kinds(&same).contains(&"duplicated_rows"));
}

#[test]
fn trl_with_two_rewards() {
    let all = report("trl/completions");
    assert_eq!(all.format, "TRL completions (parquet)");
    assert_eq!(all.columns.grouped_by, "prompt within a step");
    assert_eq!(all.columns.reward, "even + brevity");
    assert_eq!(
        (all.files, all.responses, all.rewards.nonfinite),
        (2, 24, 0)
    );
    assert_eq!(steps(&all), [Some(1), Some(2)]);
    let of = |rewards: &[(&str, f64)]| {
        let mut options = Options::default();
        options.columns.rewards = (rewards.iter())
            .map(|&(name, weight)| RewardTerm {
                name: name.to_string(),
                weight,
            })
            .collect();
        report_of(&[sample("trl")], &options).unwrap()
    };
    // Some completions have no first reward.
    let even = of(&[("even", 1.0)]);
    assert_eq!(even.columns.reward, "even");
    assert!(even.rewards.nonfinite > 0 && even.rewards.binary);
    let weighted = of(&[("even", 2.0), ("brevity", -0.5)]);
    assert_eq!(weighted.columns.reward, "2 even + -0.5 brevity");
    let mean = |report: &Report| report.rewards.mean.unwrap();
    let brevity = of(&[("brevity", 1.0)]);
    let sum_of_even = mean(&even) * (24 - even.rewards.nonfinite) as f64;
    let expected = (2.0 * sum_of_even - 0.5 * mean(&brevity) * 24.0) / 24.0;
    assert!((mean(&weighted) - expected).abs() < 1e-6);
}

#[test]
fn trl_with_messages() {
    let report = report("trl-messages");
    assert_eq!(report.format, "TRL completions (parquet)");
    assert_eq!(
        (report.responses, report.columns.reward.as_str()),
        (24, "even")
    );
    assert!(report.total_length > 24 * "assistant".len() as u64);
    // A prompt that is drawn twice in a step is one group, and the report says so.
    assert_eq!(sizes(&report), [(4, 2), (8, 2)]);
    assert!(crate::kinds(&report).contains(&"merged_groups"));
    let options = Options {
        group_size: Some(4),
        ..Options::default()
    };
    let report = report_of(&[sample("trl-messages")], &options).unwrap();
    assert_eq!(sizes(&report), [(4, 6)]);
    assert_eq!(report.columns.grouped_by, "4 neighboring responses");
}

#[test]
fn nemo_rl() {
    let report = report("nemo_rl");
    assert_eq!(report.format, "NeMo-RL training data (JSONL)");
    assert_eq!((report.files, sizes(&report)), (2, vec![(4, 6)]));
    assert_eq!(steps(&report), [Some(1), Some(2)]);
    assert_eq!(report.columns.length.as_deref(), Some("token_loss_mask"));
    // (1 + 2 + 3) + (2 + 3 + 4) of 24 are right.
    assert_eq!(report.rewards.success_share, Some(15.0 / 24.0));
    // The first response of each step is masked out: 23 letters and two of the answer.
    let all: u64 = (fs::read_to_string(sample("nemo_rl/train_data_step1.jsonl")).unwrap())
        .lines()
        .skip(1)
        .map(|line| line.split("token_loss_mask").nth(1).unwrap())
        .map(|rest| rest.split(']').next().unwrap().matches('1').count() as u64)
        .sum();
    let first = report.by_step[0].by_k[0].signs.tokens_saved_share;
    assert!(first > 0.0 && all < report.total_length);
    // −log p is between 0 and 1 there.
    let entropy = report.by_step[0].entropy.unwrap();
    assert!((0.4..0.6).contains(&entropy), "{entropy}");
    assert!(crate::kinds(&report).contains(&"files_not_read"));
}

#[test]
fn prime_rl_episodes() {
    let report = report("prime_rl/rollouts");
    assert_eq!(report.format, "prime-rl episodes (JSONL)");
    assert_eq!(report.columns.grouped_by, "group.id");
    // Of 24 episodes two failed; each has the trace of a judge that is not trained.
    assert_eq!((report.responses, report.untrained_responses), (22, 26));
    assert_eq!(steps(&report), [Some(1), Some(2)]);
    assert!(report.rewards.binary);
    assert_eq!(report.by_step[0].entropy, Some(0.25));
    let mut options = Options::default();
    options.columns.rewards = vec!["format".parse().unwrap()];
    let format = report_of(&[sample("prime_rl")], &options).unwrap();
    assert_eq!(format.rewards.mean, Some(1.0));
}

#[test]
fn prime_rl_traces() {
    let report = report("prime_rl-traces");
    assert_eq!(report.format, "prime-rl traces (JSONL)");
    assert_eq!((report.responses, report.untrained_responses), (11, 1));
    assert_eq!(steps(&report), [Some(4)]);
    assert_eq!(
        (report.rewards.min, report.rewards.max),
        (Some(0.25), Some(1.25))
    );
}

#[test]
fn rollouts_of_verifiers() {
    let report = report("verifiers");
    assert_eq!(report.format, "verifiers rollouts (JSONL)");
    assert_eq!((report.responses, report.untrained_responses), (11, 1));
    assert_eq!((report.groups, steps(&report)), (3, vec![Some(7)]));
    assert_eq!(
        report.columns.length.as_deref(),
        Some("token_usage.output_tokens")
    );
}

/// A response that the trainer left out leaves its place in the group.
#[test]
fn neighbors_stay_neighbors_where_one_of_them_failed() {
    let row = |i: usize| {
        let error = if i == 1 { "\"timeout\"" } else { "null" };
        format!(
            "{{\"example_id\":{},\"reward\":{},\"completion\":\"{i}\",\"error\":{error}}}\n",
            i / 4,
            i / 4,
        )
    };
    let rows = (0..12).map(row).collect::<String>();
    let neighbors = |group_size| Options {
        group_size: Some(group_size),
        ..Options::default()
    };
    let report = report_of_lines_with(&rows, &neighbors(4)).unwrap();
    assert_eq!(sizes(&report), [(3, 1), (4, 2)]);
    assert_eq!(
        (report.zero_variance_groups, report.untrained_responses),
        (3, 1)
    );
    // The last one of all failed: the groups of the next file begin where they did.
    let rows = (0..8).map(|i| row((i + 2) % 8)).collect::<String>();
    let files = Files::new(&[("1.jsonl", rows.as_bytes()), ("2.jsonl", rows.as_bytes())]);
    assert_eq!(sizes(&files.report(&neighbors(8)).unwrap()), [(7, 2)]);
    // The trace of a judge stands between those of the policy, and is none of them.
    for (name, key) in [
        (
            "prime_rl/rollouts/step_1/train/all/traces.jsonl",
            "/group/id",
        ),
        (
            "prime_rl-traces/rollouts/step_4/train/all/traces.jsonl",
            "/group_id",
        ),
        ("verifiers/step_7/train_rollouts.jsonl", "/example_id"),
    ] {
        let text = fs::read_to_string(sample(name)).unwrap();
        let mut rows: Vec<_> = text.lines().map(|line| format!("{line}\n")).collect();
        rows.sort_by_key(|line| {
            let row: Value = serde_json::from_str(line).unwrap();
            row.pointer(key).unwrap().to_string()
        });
        let by_name = report_of_lines(rows.concat()).unwrap();
        let by_place = report_of_lines_with(rows.concat(), &neighbors(4)).unwrap();
        assert_eq!(sizes(&by_name)[0].0, 3, "{name}");
        assert_eq!(sizes(&by_place), sizes(&by_name), "{name}");
        assert_eq!(by_place.by_k, by_name.by_k, "{name}");
    }
}

#[test]
fn csv_tabs_and_json_lines_with_named_columns() {
    let csv = "step,problem,reward,text\n1,a,1,\"one, \"\"two\"\"\nand more\"\n1,a,0,x\n1,b,0.0,y\n2,a,True,z\n";
    let tabs = csv.replace(',', "\t").replace("one\t", "one,");
    let json = concat!(
        r#"{"step": 1, "problem": "a", "reward": 1, "text": ""}"#,
        "\n",
        r#"{"step": 1, "problem": "a", "reward": 0}"#,
        "\n",
        r#"{"problem": "b", "reward": 0, "step": 1.0}"#,
        "\n",
        r#"{"step": 2, "problem": "a", "reward": true, "more": [{"x": "}"}]}"#,
        "\n",
    );
    let mut options = Options::default();
    options.columns.group = Some("problem".to_string());
    options.columns.rewards = vec!["reward".parse().unwrap()];
    for (name, content, format) in [
        ("a.csv", csv, "CSV"),
        ("a.tsv", tabs.as_str(), "CSV"),
        ("a.jsonl", json, "JSONL"),
    ] {
        let report = Files::new(&[(name, content.as_bytes())])
            .report(&options)
            .unwrap();
        assert_eq!(report.format, format, "{name}");
        assert_eq!((report.responses, report.groups), (4, 3), "{name}");
        assert_eq!(steps(&report), [Some(1), Some(2)], "{name}");
        assert_eq!(report.columns.grouped_by, "problem within a step");
        assert_eq!(report.rewards.success_share, Some(0.5), "{name}");
    }
}

#[test]
fn parquet_with_named_columns() {
    let file = sample("trl/completions/completions_00001.parquet");
    let mut options = Options::default();
    options.columns.group = Some("prompt".to_string());
    options.columns.rewards = vec!["advantage".parse().unwrap()];
    options.columns.length = Some("completion".to_string());
    let report = report_of(&[file], &options).unwrap();
    assert_eq!(
        (report.responses, report.columns.reward.as_str()),
        (12, "advantage")
    );
    // TRL's advantages of a group have mean 0.
    assert!(report.rewards.mean.unwrap().abs() < 1e-6);
}

#[test]
fn parquet_in_every_compression() {
    let mut options = Options::default();
    options.columns.group = Some("problem".to_string());
    options.columns.rewards = vec!["reward".parse().unwrap()];
    options.columns.length = Some("response_ids".to_string());
    let read = |name: &str| report_of(&[sample(&format!("parquet/{name}.parquet"))], &options);
    let plain = read("uncompressed").unwrap();
    assert_eq!((plain.responses, plain.rewards.nonfinite), (12, 1));
    assert_eq!(steps(&plain), [Some(0), Some(1)]);
    // 20 characters and the answer, of which the prompt is the greater part.
    assert!(
        (200..400).contains(&plain.total_length),
        "{}",
        plain.total_length
    );
    for name in ["zstd", "gzip", "lz4"] {
        let report = read(name).unwrap();
        assert_eq!(report.by_k, plain.by_k, "{name}");
        assert_eq!(report.total_length, plain.total_length, "{name}");
    }
    let files = ["zstd", "gzip"].map(|name| sample(&format!("parquet/{name}.parquet")));
    // Read side by side; the groups are the same ones, and each row is there twice.
    let both = report_of(&files, &options).unwrap();
    assert_eq!((both.responses, both.groups), (24, plain.groups));
    assert!(crate::kinds(&both).contains(&"split_groups"));
}

#[test]
fn files_that_cannot_be_compared_are_refused() {
    let error = report_of(&[sample("verl"), sample("nemo_rl")], &Options::default()).unwrap_err();
    assert!(
        error.contains("train_data_step1.jsonl: expected verl rollout dump"),
        "{error}"
    );
    assert!(error.contains("found NeMo-RL"), "{error}");
    let error = report_of(
        &[sample("verl"), sample("trl-addition.jsonl")],
        &Options::default(),
    );
    let error = error.unwrap_err();
    assert!(error.contains("input within a step"), "{error}");
    assert!(error.contains("uid without session"), "{error}");
}

#[test]
fn a_pipe_is_read_to_its_end() {
    let path = std::path::PathBuf::from("/dev/stdin");
    if !path.exists() {
        return;
    }
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_qae"));
    command.args(["analyze", "/dev/stdin", "--format", "json"]);
    let content = fs::read(sample("trl-addition.jsonl")).unwrap();
    let mut child = command
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || std::io::Write::write_all(&mut stdin, &content));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["responses"], 2048);
}
