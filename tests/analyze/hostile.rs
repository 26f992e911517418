//! Files that nobody should have written: each is refused with its place, or read as what it is.

use crate::{Files, group, lines, report_of_lines, report_of_lines_with, sample};
use qae::analyze::{Options, Report};
use std::fs;

fn skipping() -> Options {
    Options {
        skip_bad: true,
        ..Options::default()
    }
}

fn good() -> String {
    lines(&group("a", &[1.0, 0.0, 0.0, 0.0]))
}

/// What is written on the third line, and what the message says of it.
const BROKEN: &[(&[u8], &str)] = &[
    (b"{\"input\": \"a\"", "cut off"),
    (b"{\"input\": \"a\", \"output\": \"b", "cut off"),
    (
        b"not JSON",
        "expected an object at column 1, found `not JSON`",
    ),
    (b"[1, 2]", "expected an object"),
    (b"{}", "found no such column"),
    (
        b"{\"input\":\"a\",\"output\":\"b\",\"step\":1}",
        "column `score`: expected a number, found no such column",
    ),
    (
        b"{\"input\":\"a\",\"output\":\"b\",\"step\":1,\"score\":\"high\"}",
        "found `high`",
    ),
    (
        b"{\"input\":\"a\",\"output\":\"b\",\"step\":1,\"score\":[1]}",
        "found a list",
    ),
    (
        b"{\"input\":\"a\",\"output\":\"b\",\"step\":1,\"score\":{\"x\":1}}",
        "found an object",
    ),
    (
        b"{\"output\":\"b\",\"step\":1,\"score\":1}",
        "column `input`",
    ),
    (
        b"{\"input\":null,\"output\":\"b\",\"step\":1,\"score\":1}",
        "expected the name of a group, found null",
    ),
    (
        b"{\"input\":\"a\",\"output\":\"b\",\"score\":1}",
        "column `step`",
    ),
    (
        b"{\"input\":\"\xff\",\"output\":\"b\",\"step\":1,\"score\":1}",
        "expected UTF-8",
    ),
    (
        b"{\"input\":\"a\",\"output\":\"b\",\"step\":1,\"score\":1}}",
        "expected the end of the line",
    ),
    (
        b"{\"input\":\"a\",\"output\":\"b\",\"step\":1,\"score\":1}{",
        "expected the end of the line",
    ),
    (
        b"{\"input\":\"a\",\"output\":\"b\",\"step\":1,\"score\":1e}",
        "expected a value",
    ),
    (b"\x00\x00\x00", "expected an object"),
];

#[test]
fn a_broken_line_is_an_error_with_file_and_line() {
    for (line, part) in BROKEN {
        let good = good();
        let (start, end) = good.split_at(good.match_indices('\n').nth(1).unwrap().0 + 1);
        let content = [start.as_bytes(), line, b"\n", end.as_bytes()].concat();
        let error = report_of_lines(&content).unwrap_err();
        let shown = String::from_utf8_lossy(line);
        assert!(
            error.contains("1.jsonl:3: ") && error.contains(part),
            "{shown}: {error}"
        );
        let report = report_of_lines_with(&content, &skipping()).unwrap();
        assert_eq!((report.broken_lines, report.responses), (1, 4), "{shown}");
        let warning = &report.warnings[0];
        assert_eq!((warning.kind, warning.count), ("broken_lines", 1));
        assert!(
            warning.message.contains("1.jsonl:3: "),
            "{}",
            warning.message
        );
    }
}

#[test]
fn every_broken_line_is_counted_and_some_are_shown() {
    let content = good() + &"oops\n".repeat(20_000) + &good().replace("\"step\":1", "\"step\":2");
    let report = report_of_lines_with(content, &skipping()).unwrap();
    assert_eq!((report.broken_lines, report.responses), (20_000, 8));
    let message = &report.warnings[0].message;
    assert!(
        message.contains("1.jsonl:5: ") && message.ends_with("…"),
        "{message}"
    );
    assert!(message.len() < 1000, "{message}");
}

/// Threads read ahead, but the first error is the first in the files.
#[test]
fn the_first_broken_line_is_the_one_that_is_reported() {
    let filler = lines(&group(&"x".repeat(2000), &[1.0; 8])).repeat(400);
    let late = filler.clone() + "late\n" + &filler;
    let early = good() + "early\n" + &filler + "more\n";
    let files = Files::new(&[("1.jsonl", late.as_bytes()), ("2.jsonl", early.as_bytes())]);
    for _ in 0..3 {
        let error = files.report(&Options::default()).unwrap_err();
        assert!(
            error.contains("1.jsonl:3201: ") && error.contains("late"),
            "{error}"
        );
    }
    let report = files.report(&skipping()).unwrap();
    assert_eq!(report.broken_lines, 3);
    for place in ["1.jsonl:3201", "2.jsonl:5", "2.jsonl:3206"] {
        assert!(
            report.warnings[0].message.contains(place),
            "{:?}",
            report.warnings[0]
        );
    }
}

/// The report but for the size of the file.
fn figures(report: Result<Report, String>) -> String {
    let mut report = report.unwrap();
    report.bytes = 0;
    serde_json::to_string(&report).unwrap()
}

#[test]
fn line_ends_marks_and_blanks_change_nothing() {
    let good = good();
    let expected = figures(report_of_lines(&good));
    for content in [
        good.replace('\n', "\r\n"),
        format!("\u{feff}{good}"),
        format!("\n\n  \n{good}\n\t\r\n"),
        good.trim_end().to_string(),
        good.replace(':', " :\t").replace(",\"", " , \""),
    ] {
        assert_eq!(figures(report_of_lines(&content)), expected, "{content}");
    }
}

#[test]
fn escapes_and_repeated_keys_are_those_of_json() {
    let row =
        r#"{"\u0069nput":"a","output":"\\\"}{[","score":0,"step":1,"score":1,"in":{"score":5}}"#;
    let report = report_of_lines(row).unwrap();
    assert_eq!(report.rewards.mean, Some(1.0));
    assert_eq!(report.format, "verl rollout dump (JSONL)");
}

#[test]
fn files_without_responses_are_refused() {
    for content in ["", "\n", " \r\n\n", "\u{feff}"] {
        let error = report_of_lines(content).unwrap_err();
        assert!(
            error.ends_with("1.jsonl: expected responses, found an empty file"),
            "{content:?}: {error}"
        );
    }
    let files = Files::new(&[("1.jsonl", b""), ("2.jsonl", b"\n")]);
    let error = files.report(&Options::default()).unwrap_err();
    assert!(
        error.contains("1.jsonl") && error.ends_with("(one of 2)"),
        "{error}"
    );
    let error = report_of_lines_with("oops\n", &skipping()).unwrap_err();
    assert!(error.contains("expected a JSON object"), "{error}");
    let validation = sample("nemo_rl/val_data_step2.jsonl");
    let error = crate::report_of(&[validation], &Options::default()).unwrap_err();
    assert!(
        error.contains("val_data_step2.jsonl:1: column `content`"),
        "{error}"
    );
    let error = crate::report_of(&["/no/such/file".into()], &Options::default()).unwrap_err();
    assert!(
        error.starts_with("/no/such/file: expected a file"),
        "{error}"
    );
}

#[test]
fn other_kinds_of_files_are_named() {
    for (name, content, part) in [
        ("a.jsonl", b"[{\"input\": 1}]" as &[u8], "found a list"),
        ("a.jsonl", b"\x1f\x8b\x08\x00", "zcat FILE"),
        ("a.jsonl", b"\x28\xb5\x2f\xfd\x00", "zstdcat FILE"),
        ("a.jsonl", b"BZh91", "bzcat"),
        ("a.jsonl", b"\xfd7zXZ\x00", "xzcat"),
        ("a.jsonl", b"\xff\xfe{\x00", "UTF-16"),
        ("a.parquet", b"ARROW1\x00\x00", "found an Arrow IPC"),
        (
            "a.jsonl",
            b"step,score\n1,2\n",
            "a.jsonl:1: expected an object at column 1",
        ),
        ("a.csv", b"just words\nand more\n", "with one column"),
        ("a.csv", b"\xff\xff,\xff\n1,2\n", "UTF-8"),
        ("a.parquet", b"PAR1", "expected a whole parquet file"),
        (
            "a.parquet",
            b"PAR1\x00\x00\x00\x00PAR1",
            "expected a whole parquet file",
        ),
    ] {
        let error = Files::new(&[(name, content)])
            .report(&Options::default())
            .unwrap_err();
        assert!(error.contains(part), "{name}: {error}");
        assert!(error.contains(name), "{error}");
    }
}

#[test]
fn a_line_of_ten_megabytes_is_a_line() {
    let mut rows = group("a", &[1.0, 0.0, 0.0, 0.0]);
    rows[1]["output"] = "word \\\" \n".repeat(1_500_000).into();
    let content = lines(&rows) + &good();
    assert!(content.len() > 10_000_000);
    let report = report_of_lines(&content).unwrap();
    assert_eq!(report.responses, 8);
    let cut = &content[..9_000_000];
    let error = report_of_lines(cut).unwrap_err();
    assert!(
        error.contains("1.jsonl:2: ") && error.contains("cut off"),
        "{error}"
    );
}

#[test]
fn a_line_without_end_is_counted_as_broken() {
    let content = good() + "{\"x\": \"" + &"x".repeat(70_000_000) + "\n" + &good();
    let error = report_of_lines(&content).unwrap_err();
    assert!(
        error.contains("1.jsonl:5: expected a line of at most 64 MiB"),
        "{error}"
    );
    let report = report_of_lines_with(&content, &skipping()).unwrap();
    assert_eq!((report.responses, report.broken_lines), (8, 1));
}

/// The limit is the line's, not that of what tells the format.
#[test]
fn a_first_line_without_end_is_named_as_any_other() {
    let long = "{\"x\": \"".to_string() + &"x".repeat(70_000_000) + "\n";
    for content in [long.clone() + &good(), long.clone()] {
        let error = report_of_lines(&content).unwrap_err();
        assert!(
            error.contains("1.jsonl:1: expected a line of at most 64 MiB"),
            "{error}"
        );
    }
    let report = report_of_lines_with(long + &good(), &skipping()).unwrap();
    assert_eq!((report.responses, report.broken_lines), (4, 1));
    let error = Files::new(&[("a.csv", "x,".repeat(35_000_000).as_bytes())])
        .report(&Options::default())
        .unwrap_err();
    assert!(
        error.contains("a.csv: expected a line of at most 64 MiB"),
        "{error}"
    );
}

#[test]
fn the_first_good_line_tells_the_format_where_others_are_left_out() {
    let filler = "x".repeat(200_000);
    for first in ["oops", "[1, 2]", "{\"input\": 1", &filler, "\u{feff}x"] {
        let content = format!("{first}\n{}", good());
        for name in ["1.jsonl", "rollouts"] {
            let files = Files::new(&[(name, content.as_bytes())]);
            let path = files.0.path().join(name);
            let report = crate::report_of(&[path], &skipping()).unwrap();
            assert_eq!((report.responses, report.broken_lines), (4, 1), "{first}");
        }
    }
    let content = "{\"run\": 5}\n".to_string() + &good();
    let error = report_of_lines_with(content, &skipping()).unwrap_err();
    assert!(error.contains("1.jsonl:1: expected the column"), "{error}");
    let error = report_of_lines_with("[\n{\"input\": 1},\n]", &skipping()).unwrap_err();
    assert!(error.contains("found a list"), "{error}");
}

#[test]
fn deep_nesting_is_refused_without_recursion() {
    let deep = format!("{}{}", "[".repeat(1_000_000), "]".repeat(1_000_000));
    let row = format!("{{\"input\":\"a\",\"output\":\"b\",\"step\":1,\"score\":1,\"x\":{deep}}}");
    let error = report_of_lines(good() + &row).unwrap_err();
    assert!(
        error.contains("1.jsonl:5: ") && error.contains("nesting"),
        "{error}"
    );
}

#[test]
fn huge_numbers_are_not_finite_and_huge_steps_are_steps() {
    let rows = concat!(
        "{\"input\":\"a\",\"output\":\"b\",\"step\":9223372036854775807,\"score\":1}\n",
        "{\"input\":\"a\",\"output\":\"c\",\"step\":-9223372036854775808,\"score\":-1e308}\n",
    );
    let report = report_of_lines(rows).unwrap();
    let steps: Vec<_> = report.by_step.iter().map(|step| step.step).collect();
    assert_eq!(steps, [Some(i64::MIN), Some(i64::MAX)]);
    assert_eq!(report.rewards.nonfinite, 1);
    let digits = "9".repeat(100_000);
    let row = format!("{{\"input\":\"a\",\"output\":\"b\",\"step\":1,\"score\":{digits}}}");
    assert_eq!(report_of_lines(row).unwrap().rewards.nonfinite, 1);
}

/// Every cut and many changed bytes of a real file: refused or read, never a panic.
#[test]
fn parquet_files_that_are_damaged() {
    let whole = fs::read(sample("trl-messages/completions/completions_00001.parquet")).unwrap();
    for length in (0..whole.len()).step_by(97) {
        let report = Files::new(&[("a.parquet", &whole[..length])]).report(&Options::default());
        assert!(report.is_err(), "{length} bytes");
    }
    for at in (4..whole.len()).step_by(13) {
        for change in [0x01, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] ^= change;
            let _ = Files::new(&[("a.parquet", &bytes)]).report(&Options::default());
        }
    }
}

/// The same for the JSON formats with parts within parts.
#[test]
fn json_formats_that_are_damaged() {
    for (name, file) in [
        ("nemo_rl/train_data_step1.jsonl", "train_data_step1.jsonl"),
        (
            "prime_rl/rollouts/step_1/train/all/traces.jsonl",
            "traces.jsonl",
        ),
        (
            "prime_rl-traces/rollouts/step_4/train/all/traces.jsonl",
            "traces.jsonl",
        ),
        (
            "verifiers/step_7/train_rollouts.jsonl",
            "train_rollouts.jsonl",
        ),
        ("verl-sessions/3.jsonl", "3.jsonl"),
    ] {
        let whole = fs::read(sample(name)).unwrap();
        let first = whole.iter().position(|&byte| byte == b'\n').unwrap() + 1;
        let second = &whole[first..];
        let second = &second[..second.iter().position(|&byte| byte == b'\n').unwrap()];
        for length in (1..second.len()).step_by(61) {
            let content = &whole[..first + length];
            let report = Files::new(&[(file, content)]).report(&Options::default());
            assert!(
                report.is_err_and(|error| error.contains(":2: ")),
                "{name}: {length}"
            );
        }
        for at in (0..second.len()).step_by(7) {
            for byte in *b"\"{[0,x" {
                let mut content = whole[..first + second.len()].to_vec();
                content[first + at] = byte;
                let _ = Files::new(&[(file, &content)]).report(&Options::default());
            }
        }
    }
}
