//! Which column means what, and what is said where one is missing.

use crate::{Files, report_of_lines, report_of_lines_with};
use qae::analyze::{Columns, Options};

fn named(group: &str, reward: &str) -> Options {
    Options {
        columns: Columns {
            group: Some(group.to_string()),
            rewards: vec![reward.parse().unwrap()],
            ..Columns::default()
        },
        ..Options::default()
    }
}

const ROWS: &str = concat!(
    r#"{"id": 9007199254740993, "r": 1, "ids": [1, 2, 3], "n": 5, "text": "ab", "h": 0.5}"#,
    "\n",
    r#"{"id": 9007199254740992, "r": 0, "ids": [], "n": 7, "text": "\"", "h": 1.5}"#,
    "\n",
);

#[test]
fn groups_may_have_any_name() {
    assert_eq!(
        report_of_lines_with(ROWS, &named("id", "r"))
            .unwrap()
            .groups,
        2
    );
    assert_eq!(
        report_of_lines_with(ROWS, &named("ids", "r"))
            .unwrap()
            .groups,
        2
    );
    let rows =
        "{\"id\": true, \"r\": 1}\n{\"id\": {\"a\": 1}, \"r\": 1}\n{\"id\": \"true\", \"r\": 1}\n";
    // As text and as a value it is the same name.
    assert_eq!(
        report_of_lines_with(rows, &named("id", "r"))
            .unwrap()
            .groups,
        2
    );
}

#[test]
fn lengths_are_numbers_or_sizes() {
    let total = |length: &str| {
        let mut options = named("id", "r");
        options.columns.length = Some(length.to_string());
        report_of_lines_with(ROWS, &options).map(|report| report.total_length)
    };
    assert_eq!(total("n"), Ok(12));
    assert_eq!(total("ids"), Ok(3));
    assert_eq!(total("text"), Ok(3));
    assert!(total("h").is_ok());
    // Without any, responses count the same.
    let report = report_of_lines_with(ROWS, &named("id", "r")).unwrap();
    assert_eq!((report.total_length, report.columns.length), (2, None));
    for bad in ["-1", "1e99", "NaN", "true"] {
        let row = format!("{{\"id\": 1, \"r\": 1, \"n\": {bad}}}\n");
        let mut options = named("id", "r");
        options.columns.length = Some("n".to_string());
        let error = report_of_lines_with(row, &options).unwrap_err();
        assert!(
            error.contains("1.jsonl:1: column `n`: expected a length"),
            "{error}"
        );
    }
}

/// Whatever the file, and however it writes its letters.
#[test]
fn the_length_of_a_text_is_that_of_its_utf8() {
    let total = |name: &str, content: &str| {
        let mut options = named("g", "r");
        options.columns.length = Some("response".to_string());
        let files = Files::new(&[(name, content.as_bytes())]);
        files.report(&options).map(|report| report.total_length)
    };
    for (escaped, text, length) in [
        (r"a\n", "a\n", 2),
        (r"\u6570", "数", 3),
        (r"\ud83d\ude00", "😀", 4),
        ("数", "数", 3),
    ] {
        let json = format!(
            "{{\"g\":1,\"r\":1,\"response\":\"{}\"}}\n",
            escaped.repeat(100)
        );
        assert_eq!(total("a.jsonl", &json), Ok(100 * length), "{escaped}");
        let csv = format!("g,r,response\n1,1,\"{}\"\n", text.repeat(100));
        assert_eq!(total("a.csv", &csv), Ok(100 * length), "{escaped}");
    }
}

/// The first row says how all are read.
#[test]
fn a_column_that_comes_later_is_a_broken_line() {
    let row = |more: &str| {
        format!("{{\"input\":\"p\",\"output\":\"x\",\"score\":1,\"response\":\"y\"{more}}}\n")
    };
    let skipping = Options {
        skip_bad: true,
        ..Options::default()
    };
    for (options, skipping) in [
        (Options::default(), skipping.clone()),
        (
            named("input", "score"),
            Options {
                skip_bad: true,
                ..named("input", "score")
            },
        ),
    ] {
        for column in ["step", "global_step", "response_length", "entropy", "uid"] {
            if column == "uid" && options.columns.group.is_some() {
                continue;
            }
            let later = [row(""), row(&format!(",\"{column}\":7")), row("")].concat();
            let error = report_of_lines_with(&later, &options).unwrap_err();
            let expected = format!(
                "1.jsonl:2: column `{column}`: expected in every row or in none, found here but \
                 not in the first row"
            );
            assert!(error.contains(&expected), "{error}");
            let report = report_of_lines_with(&later, &skipping).unwrap();
            assert_eq!((report.responses, report.broken_lines), (2, 1));
            let first = [row(&format!(",\"{column}\":7")), row("")].concat();
            let error = report_of_lines_with(first, &options).unwrap_err();
            assert!(
                error.contains(&format!("1.jsonl:2: column `{column}`: expected")),
                "{error}"
            );
        }
    }
    // However its name is written; what is not asked for may come and go.
    let later = [row(""), row(",\"st\\u0065p\":7")].concat();
    assert!(
        report_of_lines(later)
            .unwrap_err()
            .contains("column `step`")
    );
    let later = [row(""), row(",\"acc\":7")].concat();
    assert!(report_of_lines(later).is_ok());
    // A uid of nothing is none.
    let later = [row(",\"uid\":\"a\""), row(",\"uid\":null")].concat();
    let error = report_of_lines(later).unwrap_err();
    assert!(
        error.contains("1.jsonl:2: column `uid`: expected the name of a group, found null"),
        "{error}"
    );
}

#[test]
fn entropy_is_weighted_by_length() {
    let mut options = named("id", "r");
    options.columns.length = Some("n".to_string());
    options.columns.entropy = Some("h".to_string());
    let report = report_of_lines_with(ROWS, &options).unwrap();
    assert_eq!(
        report.by_step[0].entropy,
        Some((0.5 * 5.0 + 1.5 * 7.0) / 12.0)
    );
}

#[test]
fn verl_may_have_another_reward_and_group() {
    let rows = concat!(
        r#"{"input": "a", "output": "x", "score": 0.3, "step": 1, "acc": true, "topic": "t"}"#,
        "\n",
        r#"{"input": "b", "output": "y", "score": 0.1, "step": 1, "acc": false, "topic": "t"}"#,
        "\n",
    );
    let mut options = Options::default();
    options.columns.rewards = vec!["acc".parse().unwrap()];
    let report = report_of_lines_with(rows, &options).unwrap();
    assert_eq!(report.format, "verl rollout dump (JSONL)");
    assert_eq!(
        (report.groups, report.rewards.success_share),
        (2, Some(0.5))
    );
    let report = report_of_lines_with(rows, &named("topic", "score")).unwrap();
    assert_eq!(
        (report.groups, report.rewards.mean),
        (1, Some((f64::from(0.3_f32) + f64::from(0.1_f32)) / 2.0))
    );
}

/// verl writes what is no plain number with `str`.
#[test]
fn rewards_may_be_numbers_in_quotes() {
    let row = |acc: &str| {
        format!(
            "{{\"input\":\"a\",\"output\":\"{acc}\",\"score\":0,\"step\":1,\"acc\":\"{acc}\"}}\n"
        )
    };
    let mut options = Options::default();
    options.columns.rewards = vec!["acc".parse().unwrap()];
    let rows = ["True", "False", "0.5", "nan", "high"].map(row);
    let report = report_of_lines_with(rows[..4].concat(), &options).unwrap();
    assert_eq!(
        (report.rewards.mean, report.rewards.nonfinite),
        (Some(0.5), 1)
    );
    let error = report_of_lines_with(rows.concat(), &options).unwrap_err();
    assert!(
        error.contains("1.jsonl:5: column `acc`: expected a number, found `high`"),
        "{error}"
    );
}

#[test]
fn what_is_missing_is_named_with_what_there_is() {
    let error = report_of_lines(ROWS).unwrap_err();
    assert!(
        error.contains("--group") && error.contains("found columns id, r, ids"),
        "{error}"
    );
    let error = report_of_lines_with(ROWS, &named("id", "score")).unwrap_err();
    assert!(
        error.contains("expected a column `score`, found id, r, ids"),
        "{error}"
    );
    let error = report_of_lines_with(ROWS, &named("uid", "r")).unwrap_err();
    assert!(error.contains("expected a column `uid`"), "{error}");
    let mut options = named("id", "r");
    options.columns.rewards.clear();
    let error = report_of_lines_with(ROWS, &options).unwrap_err();
    assert!(error.contains("--reward"), "{error}");
    let error = Files::new(&[("a.csv", b"x,y\n1,2\n")])
        .report(&named("x", "z"))
        .unwrap_err();
    assert!(
        error.contains("a.csv: expected a column `z`, found x, y"),
        "{error}"
    );
}

#[test]
fn columns_that_a_format_has_none_of_are_refused() {
    for (name, format) in [
        ("nemo_rl", "NeMo-RL"),
        ("prime_rl", "prime-rl"),
        ("verifiers", "verifiers"),
    ] {
        let error = crate::report_of(&[crate::sample(name)], &named("id", "rewards")).unwrap_err();
        assert!(
            error.contains("expected no --group with") && error.contains(format),
            "{error}"
        );
    }
}

#[test]
fn steps_are_whole_numbers() {
    for step in ["1.5", "\"one\"", "null", "1e300"] {
        let row = format!("{{\"input\":\"a\",\"output\":\"b\",\"score\":1,\"step\":{step}}}");
        let error = report_of_lines(row).unwrap_err();
        assert!(
            error.contains("1.jsonl:1: column `step`: expected an integer"),
            "{error}"
        );
    }
}

#[test]
fn neighbors_are_groups_where_asked_for() {
    let rows: String = (0..10).map(|i| format!("{{\"r\": {}}}\n", i % 2)).collect();
    let mut options = Options {
        group_size: Some(4),
        ..Options::default()
    };
    options.columns.rewards = vec!["r".parse().unwrap()];
    let report = report_of_lines_with(&rows, &options).unwrap();
    let sizes: Vec<_> = report
        .group_sizes
        .iter()
        .map(|size| (size.size, size.groups))
        .collect();
    assert_eq!(sizes, [(2, 1), (4, 2)]);
}

#[test]
fn groups_have_names_where_asked_for() {
    let options = Options {
        by_group: true,
        ..named("text", "r")
    };
    let report = report_of_lines_with(ROWS, &options).unwrap();
    let names: Vec<_> = report
        .by_group
        .unwrap()
        .into_iter()
        .map(|group| group.group)
        .collect();
    assert_eq!(names, ["ab", "\\\""]);
}
