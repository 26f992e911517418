//! Real rollouts, against what torch, numpy and verl computed from them
//! (`trl-addition.expected.json`).

use crate::{report_of, sample};
use qae::analyze::{Options, Report};
use qae::{Interpolation, Singleton};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;

fn expected() -> Value {
    let text = fs::read_to_string(sample("trl-addition.expected.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn found(interpolation: Interpolation) -> Report {
    let options = Options {
        k: vec![0.2, 0.4, 0.5, 0.6, 0.8],
        interpolation,
        singleton: Singleton::Reward,
        by_group: true,
        ..Options::default()
    };
    report_of(&[sample("trl-addition.jsonl")], &options).unwrap()
}

fn close(found: f64, expected: &Value, what: &str) {
    let expected = expected.as_f64().unwrap();
    assert!(
        (found - expected).abs() <= 1e-12,
        "{what}: {found} instead of {expected}"
    );
}

#[test]
fn every_group_has_its_statistics_and_baselines() {
    let expected = expected();
    for (interpolation, name) in [
        (Interpolation::Linear, "baseline_linear"),
        (Interpolation::InvertedCdf, "baseline_inverted_cdf"),
    ] {
        let report = found(interpolation);
        assert_eq!(Value::from(report.responses), expected["rows"]);
        assert_eq!(Value::from(report.groups), expected["groups"]);
        let groups: BTreeMap<_, _> = (report.by_group.iter().flatten())
            .map(|group| (group.group.as_str(), group))
            .collect();
        let by_group = expected["by_group"].as_array().unwrap();
        assert_eq!(groups.len(), by_group.len());
        for expected in by_group {
            let uid = expected["uid"].as_str().unwrap();
            let group = groups[uid];
            assert_eq!(Value::from(group.step), expected["step"], "{uid}");
            assert_eq!(Value::from(group.n), expected["n"], "{uid}");
            assert_eq!(Value::from(group.successes), expected["successes"], "{uid}");
            close(group.mean.unwrap(), &expected["mean"], uid);
            // To the last bit of numpy's.
            assert_eq!(
                Value::from(group.std_unbiased),
                expected["std_unbiased"],
                "{uid}"
            );
            let baselines = expected[name].as_object().unwrap();
            assert_eq!(group.baselines.len(), baselines.len());
            for entry in &group.baselines {
                close(entry.baseline, &baselines[&entry.k.to_string()], uid);
            }
        }
    }
}

#[test]
fn every_share_of_zero_advantages_is_that_of_verl() {
    let expected = &expected()["zero_advantage_share"];
    let mut num_compared = 0;
    for (interpolation, name) in [
        (Interpolation::Linear, "linear"),
        (Interpolation::InvertedCdf, "inverted_cdf"),
    ] {
        let report = found(interpolation);
        close(report.mean_baseline.zero_share, &expected["mean"], "mean");
        for by_k in &report.by_k {
            let name = format!("{name} {}", by_k.k);
            close(by_k.signs.zero_share, &expected[&name], &name);
            num_compared += 1;
        }
    }
    assert_eq!(num_compared + 1, expected.as_object().unwrap().len());
}

/// The rows have uids and one row a group and step; the key for dumps without uid is (step, input).
#[test]
fn without_uid_the_prompts_of_a_step_are_the_groups() {
    let text = fs::read_to_string(sample("trl-addition.jsonl")).unwrap();
    let rows = text.lines().map(|line| {
        let mut row: Value = serde_json::from_str(line).unwrap();
        row.as_object_mut().unwrap().remove("uid");
        row
    });
    let rows: Vec<_> = rows.collect();
    let report = crate::report_of_lines(crate::lines(&rows)).unwrap();
    let with_uid = crate::report("trl-addition.jsonl");
    assert_eq!(report.columns.grouped_by, "input within a step");
    assert_eq!(report.by_k, with_uid.by_k);
    assert_eq!(report.by_step, with_uid.by_step);
}
