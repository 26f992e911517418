//! Each warning, and a sample that calls for it.

use crate::{Files, group, kinds, lines, report_of_lines, report_of_lines_with, row};
use qae::Interpolation;
use qae::analyze::{EntropyLevel, Options, Report, RunFacts};
use serde_json::{Value, json};

fn of(rows: &[Value]) -> Report {
    report_of_lines(lines(rows)).unwrap()
}

fn count(report: &Report, kind: &str) -> u64 {
    let mut found = report
        .warnings
        .iter()
        .filter(|warning| warning.kind == kind);
    found.next().map_or(0, |warning| warning.count)
}

fn message<'a>(report: &'a Report, kind: &str) -> &'a str {
    let mut found = report
        .warnings
        .iter()
        .filter(|warning| warning.kind == kind);
    &found
        .next()
        .unwrap_or_else(|| panic!("no {kind} in {:?}", kinds(report)))
        .message
}

/// Two groups of four with both outcomes, and lengths: nothing to say about them but that.
fn quiet() -> Vec<Value> {
    let mut rows = [
        group("a", &[1.0, 0.0, 0.0, 0.0]),
        group("b", &[1.0, 0.0, 0.0, 0.0]),
    ]
    .concat();
    for row in &mut rows {
        row["response_length"] = 7.into();
    }
    rows
}

#[test]
fn good_rows_call_for_no_warning() {
    let options = Options {
        k: vec![1.0 / 3.0],
        ..Options::default()
    };
    let report = report_of_lines_with(lines(&quiet()), &options).unwrap();
    assert_eq!(kinds(&report), [""; 0]);
}

#[test]
fn groups_of_one() {
    let mut rows = quiet();
    for prompt in ["c", "d"] {
        rows.extend(group(prompt, &[1.0]));
        rows.last_mut().unwrap()["response_length"] = 7.into();
    }
    let report = of(&rows);
    assert_eq!(count(&report, "singleton_groups"), 2);
    assert!(message(&report, "singleton_groups").contains("2 groups of one response"));
}

#[test]
fn groups_over_files_and_steps() {
    let uid = |step, uid: &str, score: f64| {
        let mut row = row(step, "p", &format!("{uid}{score}"), json!(score));
        row["uid"] = uid.into();
        row
    };
    let first = lines(&[uid(1, "a", 0.0), uid(1, "b", 1.0), uid(1, "b", 0.0)]);
    let second = lines(&[uid(2, "a", 1.0), uid(2, "c", 1.0), uid(2, "c", 0.0)]);
    let files = Files::new(&[
        ("1.jsonl", first.as_bytes()),
        ("2.jsonl", second.as_bytes()),
    ]);
    let report = files.report(&Options::default()).unwrap();
    assert_eq!(count(&report, "split_groups"), 1);
    assert_eq!(count(&report, "groups_over_steps"), 1);
    assert_eq!((report.groups, report.by_step[0].groups), (3, 2));
}

#[test]
fn rows_that_are_written_twice() {
    let mut rows = quiet();
    assert_eq!(count(&of(&rows), "duplicated_rows"), 0);
    rows.push(rows[1].clone());
    let report = of(&rows);
    assert_eq!(count(&report, "duplicated_rows"), 1);
    assert!(message(&report, "duplicated_rows").contains("1 row (11.1 %)"));
    // Another reward or length makes another response.
    rows[8]["response_length"] = 8.into();
    assert_eq!(count(&of(&rows), "duplicated_rows"), 0);
    // Names of sessions are certain.
    let named = |uid: &str| {
        let mut row = row(1, "p", "same", json!(1));
        row["uid"] = uid.into();
        row
    };
    let report = of(&[named("u_0_0"), named("u_1_0"), named("u_1_0")]);
    assert_eq!(
        (count(&report, "duplicated_rows"), report.responses),
        (1, 2)
    );
    assert!(message(&report, "duplicated_rows").contains("written twice"));
}

/// As TRL does where it logs more often than it generates.
#[test]
fn generations_that_are_written_twice() {
    let mut rows = quiet();
    let again: Vec<_> = (rows.iter())
        .map(|row| {
            let mut row = row.clone();
            row["step"] = 2.into();
            row
        })
        .collect();
    rows.extend(again);
    let report = of(&rows);
    assert_eq!((report.groups, count(&report, "repeated_groups")), (4, 2));
    assert_eq!(count(&report, "duplicated_rows"), 0);
}

#[test]
fn prompts_that_are_drawn_twice() {
    let mut rows = quiet();
    let twice = group("c", &[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]);
    rows.extend(twice);
    rows[8..]
        .iter_mut()
        .for_each(|row| row["response_length"] = 7.into());
    let report = of(&rows);
    assert_eq!(count(&report, "merged_groups"), 1);
    assert!(message(&report, "merged_groups").contains("multiple of 4"));
}

#[test]
fn groups_without_variance() {
    let mut rows = quiet();
    rows.extend(group("c", &[1.0; 4]));
    rows[8..]
        .iter_mut()
        .for_each(|row| row["response_length"] = 7.into());
    let report = of(&rows);
    assert_eq!(
        (
            report.zero_variance_groups,
            count(&report, "zero_variance_groups")
        ),
        (1, 1)
    );
    assert!(message(&report, "zero_variance_groups").contains("33.3 %"));
}

#[test]
fn rewards_that_are_not_finite() {
    let rows = lines(&quiet());
    let bad = ["NaN", "null", "Infinity", "-Infinity", "1e39", "1e400"];
    let rows: String = rows + &bad.map(|score| {
        format!("{{\"input\":\"a\",\"output\":\"{score}\",\"score\":{score},\"step\":1,\"response_length\":1}}\n")
    }).concat();
    let report = report_of_lines(rows).unwrap();
    assert_eq!(
        (
            report.rewards.nonfinite,
            count(&report, "nonfinite_rewards")
        ),
        (6, 6)
    );
    // They are left out of their group, whose other rewards decide as before.
    assert_eq!(
        (report.by_k[3].signs.positive, report.by_k[3].signs.zero),
        (2, 12)
    );
    assert_eq!(report.rewards.mean, Some(0.25));
}

#[test]
fn linear_interpolation_between_failures_and_successes() {
    // At K = 0.4 position 2.8 of 8 is between the third, a failure, and the fourth, a success.
    let mut rows = group("a", &[1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]);
    rows.iter_mut()
        .for_each(|row| row["response_length"] = 7.into());
    let with = |interpolation| {
        let options = Options {
            k: vec![0.4],
            interpolation,
            ..Options::default()
        };
        report_of_lines_with(lines(&rows), &options).unwrap()
    };
    let report = with(Interpolation::InvertedCdf);
    assert_eq!(report.by_k[0].both_signs_groups, 0);
    assert!(message(&report, "linear_interpolation").contains("not used here) would have"));
    let report = with(Interpolation::Linear);
    assert_eq!(report.by_k[0].both_signs_groups, 1);
    assert!(message(&report, "linear_interpolation").contains("has both signs"));
    assert!(message(&report, "linear_interpolation").ends_with("1 at K = 0.4"));
}

#[test]
fn lengths_and_rewards_of_other_kinds() {
    let report = of(&group("a", &[0.25, 0.5, 0.75, 1.0]));
    assert_eq!(count(&report, "length_in_bytes"), 1);
    assert_eq!(count(&report, "continuous_rewards"), 1);
    let notes = report
        .warnings
        .iter()
        .filter(|warning| warning.level == "note");
    assert_eq!(notes.count(), 2);
}

#[test]
fn files_that_are_empty_or_named_twice() {
    let files = Files::new(&[
        ("1.jsonl", lines(&quiet()).as_bytes()),
        ("2.jsonl", b"\n \n"),
    ]);
    let report = files.report(&Options::default()).unwrap();
    assert_eq!((report.files, count(&report, "empty_files")), (1, 1));
    let folder = files.0.path().to_path_buf();
    let report = crate::report_of(
        &[folder.clone(), folder.join("1.jsonl")],
        &Options::default(),
    );
    assert_eq!(count(&report.unwrap(), "named_twice"), 1);
}

#[test]
fn more_steps_than_anyone_reads() {
    let rows = (0..50_001).map(|step| {
        format!("{{\"input\":\"a\",\"output\":\"{step}\",\"score\":1,\"step\":{step}}}\n")
    });
    let report = report_of_lines(rows.collect::<String>()).unwrap();
    assert_eq!((report.steps, report.by_step.len()), (50_001, 0));
    assert_eq!(count(&report, "steps_left_out"), 50_001);
    // Fewer where each has figures for many K.
    let options = Options {
        k: (1..=100).map(|i| f64::from(i) / 101.0).collect(),
        ..Options::default()
    };
    let rows = |num_steps: i64| {
        lines(
            &(0..num_steps)
                .map(|step| row(step, "a", "b", json!(1)))
                .collect::<Vec<_>>(),
        )
    };
    let report = report_of_lines_with(rows(10_000), &options).unwrap();
    assert_eq!((report.by_step.len(), report.steps_left_out), (10_000, 0));
    let report = report_of_lines_with(rows(10_001), &options).unwrap();
    assert_eq!((report.by_step.len(), report.steps_left_out), (0, 10_001));
    assert!(message(&report, "steps_left_out").contains("too many for 100 K"));
}

/// A file of TRL does not say how its columns weigh, nor which were only logged.
#[test]
fn rewards_that_are_added_up_unasked() {
    let file = [crate::sample("trl")];
    let report = crate::report_of(&file, &Options::default()).unwrap();
    assert_eq!(count(&report, "summed_rewards"), 2);
    let message = message(&report, "summed_rewards");
    assert!(
        message.starts_with("2 columns of rewards added up, each with weight 1: even, brevity."),
        "{message}"
    );
    assert!(message.contains("--reward even,brevity=0.5"), "{message}");
    let mut options = Options::default();
    options.columns.rewards = vec!["even".parse().unwrap(), "brevity".parse().unwrap()];
    let report = crate::report_of(&file, &options).unwrap();
    assert_eq!(count(&report, "summed_rewards"), 0);
    let report = crate::report_of(&[crate::sample("trl-messages")], &Options::default());
    assert_eq!(count(&report.unwrap(), "summed_rewards"), 0);
}

fn with_entropies(entropies: &[f64], run: RunFacts) -> Report {
    let rows = entropies.iter().enumerate().flat_map(|(step, &entropy)| {
        [1.0, 0.0].map(|score| {
            let mut row = row(step as i64, "a", &format!("{step}{score}"), json!(score));
            row["entropy"] = entropy.into();
            row
        })
    });
    let options = Options {
        run,
        ..Options::default()
    };
    report_of_lines_with(lines(&rows.collect::<Vec<_>>()), &options).unwrap()
}

#[test]
fn the_recommendation_is_the_papers_rule_and_says_what_it_rests_on() {
    let unknown = RunFacts::default();
    let low = RunFacts {
        entropy: Some(EntropyLevel::Low),
        clip_higher: Some(true),
    };
    let high = RunFacts {
        entropy: Some(EntropyLevel::High),
        ..unknown
    };
    let clip = |clip_higher| RunFacts {
        clip_higher: Some(clip_higher),
        ..unknown
    };
    for (entropies, run, k, rests_on) in [
        (
            &[1.0, 1.5] as &[f64],
            unknown,
            Some(0.4),
            "entropy rises: 1.000 to 1.500 nats",
        ),
        (&[1.0, 0.3], unknown, Some(0.6), "entropy falls"),
        (&[1.0, 0.8], unknown, None, "neither rises nor falls"),
        (
            &[1.0, 0.3],
            clip(true),
            Some(0.4),
            "Clip-Higher is on, as you say",
        ),
        (
            &[1.0, 0.3],
            clip(true),
            Some(0.4),
            "; the files say that entropy falls: 1.000 to 0.300 nats",
        ),
        (
            &[1.0, 1.5],
            low,
            Some(0.6),
            "; the files say that entropy rises: 1.000 to 1.500 nats",
        ),
        (&[1.0, 0.3], clip(false), Some(0.6), "entropy falls"),
        (&[1.0, 1.5], low, Some(0.6), "entropy is low, as you say"),
        (&[], high, Some(0.4), "entropy is high, as you say"),
        (&[1.0], clip(false), None, "Clip-Higher is off"),
        (&[1.0], unknown, None, "the entropy of one step only"),
        (
            &[0.0, 1.0],
            unknown,
            None,
            "the first entropy of the files is not above 0",
        ),
    ] {
        let entropies = if entropies.is_empty() {
            &[1.0]
        } else {
            entropies
        };
        let recommendation = with_entropies(entropies, run).recommendation;
        assert_eq!(
            (recommendation.k, recommendation.automatic),
            (k, k.is_none())
        );
        assert!(
            recommendation.rests_on.contains(rests_on),
            "{}",
            recommendation.rests_on
        );
    }
    let recommendation = of(&quiet()).recommendation;
    assert_eq!(recommendation.k, None);
    assert!(
        recommendation.text.starts_with("automatic K"),
        "{}",
        recommendation.text
    );
    assert!(
        recommendation.text.ends_with("any K in (0.25, 0.5]"),
        "{}",
        recommendation.text
    );
    assert!(
        recommendation.rests_on.contains("no entropy"),
        "{}",
        recommendation.rests_on
    );
}
