//! The figures of the report against those of the library's advantages, response by response.

use crate::{report_of_lines_with, row};
use qae::analyze::{ByStep, Options, Report, Signs};
use qae::{AdvantageConfig, Baseline, Gate, Groups, Interpolation, reference};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A generator of the same numbers on every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        self.0 >> 33
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

struct Rollouts {
    rows: Vec<Value>,
    rewards: Vec<f32>,
    lengths: Vec<f64>,
    prompts: Vec<f64>,
    ids: Vec<i64>,
}

/// Groups of up to 20 over five steps, in no order.
fn rollouts(seed: u64, smallest: u64, reward: fn(&mut Random) -> f64) -> Rollouts {
    let mut random = Random(seed);
    let mut responses = vec![];
    for group in 0..300_i64 {
        for _ in 0..smallest + random.below(20 - smallest + 1) {
            responses.push((
                group,
                reward(&mut random),
                random.below(900),
                5 + group % 40,
            ));
        }
    }
    for i in (1..responses.len()).rev() {
        responses.swap(i, random.below(i as u64 + 1) as usize);
    }
    let row = |(i, &(group, reward, length, prompt)): (usize, &(i64, f64, u64, i64))| {
        let mut row = row(
            group % 5,
            &format!("p{group}"),
            &i.to_string(),
            json!(reward),
        );
        row["response_length"] = length.into();
        row["prompt_length"] = prompt.into();
        row
    };
    Rollouts {
        rows: responses.iter().enumerate().map(row).collect(),
        rewards: responses.iter().map(|response| response.1 as f32).collect(),
        lengths: responses.iter().map(|response| response.2 as f64).collect(),
        prompts: responses.iter().map(|response| response.3 as f64).collect(),
        ids: responses.iter().map(|response| response.0).collect(),
    }
}

fn check(found: &Signs, data: &Rollouts, config: &AdvantageConfig, what: &str) {
    let groups = Groups::from_ids(&data.ids).unwrap();
    let output = reference::advantages(&data.rewards, &groups, config).unwrap();
    let metrics = output.metrics;
    let counts = (found.positive, found.zero, found.negative);
    assert_eq!(
        counts,
        (metrics.positive, metrics.zero, metrics.negative),
        "{what}"
    );
    let zeros = |lengths: &dyn Fn(usize) -> f64| {
        let all: f64 = (0..data.rewards.len()).map(lengths).sum();
        let zero = (0..data.rewards.len()).filter(|&i| output.advantage[i] == 0.0);
        zero.map(lengths).sum::<f64>() / all
    };
    let close = |found: f64, expected: f64| {
        assert!(
            (found - expected).abs() < 1e-12,
            "{what}: {found} instead of {expected}"
        );
    };
    close(found.tokens_saved_share, zeros(&|i| data.lengths[i]));
    close(
        found.update_saved_share,
        zeros(&|i| data.lengths[i] + data.prompts[i]),
    );
    let abs: f64 = output
        .advantage
        .iter()
        .map(|advantage| advantage.abs())
        .sum();
    close(found.mean_abs_advantage, abs / data.rewards.len() as f64);
    let active = (counts.0 + counts.2) as f64;
    close(found.mean_abs_advantage_active.unwrap(), abs / active);
    close(
        found.zero_share,
        counts.1 as f64 / data.rewards.len() as f64,
    );
}

fn compare(data: &Rollouts, interpolation: Interpolation) -> Report {
    let options = Options {
        k: vec![0.9, 0.28, 0.4, 0.8, 0.05],
        interpolation,
        ..Options::default()
    };
    let report = report_of_lines_with(crate::lines(&data.rows), &options).unwrap();
    assert_eq!(report.groups, 300);
    let groups = Groups::from_ids(&data.ids).unwrap();
    let config = |baseline, gate| AdvantageConfig {
        baseline,
        gate,
        ..AdvantageConfig::default()
    };
    check(
        &report.mean_baseline,
        data,
        &config(Baseline::Mean, Gate::Off),
        "mean",
    );
    let k: Vec<_> = report.by_k.iter().map(|by_k| by_k.k).collect();
    assert_eq!(k, [0.05, 0.28, 0.4, 0.8, 0.9]);
    for by_k in &report.by_k {
        let k = by_k.k;
        let quantile = Baseline::Quantile { k, interpolation };
        check(
            &by_k.signs,
            data,
            &config(quantile, Gate::Off),
            &format!("{k}"),
        );
        let gated = config(quantile, Gate::TwoRegime);
        check(&by_k.two_regime, data, &gated, &format!("{k} gated"));
        let output = reference::advantages(&data.rewards, &groups, &gated).unwrap();
        let regimes = (output.metrics.hard_groups, output.metrics.easy_groups);
        assert_eq!((by_k.hard_groups, by_k.easy_groups), regimes, "{k}");
    }
    report
}

#[test]
fn binary_rewards() {
    let data = rollouts(1, 2, |random| random.below(2) as f64);
    for interpolation in [Interpolation::InvertedCdf, Interpolation::Linear] {
        let report = compare(&data, interpolation);
        assert!(report.rewards.binary);
        for by_k in &report.by_k {
            let changes = interpolation == Interpolation::Linear;
            assert_eq!(by_k.both_signs_groups > 0, changes);
            assert!(by_k.linear_both_signs_groups > 0);
            assert_eq!(by_k.signs == by_k.two_regime, !changes);
        }
    }
}

#[test]
fn continuous_rewards_and_those_of_few_values() {
    let continuous = rollouts(2, 1, |random| random.below(1 << 20) as f64 / 1e6 - 0.3);
    let few = rollouts(3, 1, |random| random.below(5) as f64 / 4.0);
    for data in [continuous, few] {
        for interpolation in [Interpolation::InvertedCdf, Interpolation::Linear] {
            let report = compare(&data, interpolation);
            assert!(!report.rewards.binary);
            assert!(report.by_k[2].two_regime.zero > report.by_k[2].signs.zero);
        }
    }
}

#[test]
fn steps_add_up_to_the_whole() {
    let data = rollouts(4, 1, |random| random.below(2) as f64);
    let report = compare(&data, Interpolation::InvertedCdf);
    assert_eq!(report.by_step.len(), 5);
    let steps = &report.by_step;
    assert_eq!(
        steps.iter().map(|step| step.responses).sum::<u64>(),
        report.responses
    );
    let groups = |step: &ByStep| step.group_sizes.iter().map(|size| size.groups).sum::<u64>();
    assert_eq!(steps.iter().map(groups).sum::<u64>(), 300);
    let groups = |step: &ByStep| {
        step.success_histogram
            .iter()
            .map(|entry| entry.groups)
            .sum::<u64>()
    };
    assert_eq!(steps.iter().map(groups).sum::<u64>(), 300);
    for (i, by_k) in report.by_k.iter().enumerate() {
        let hard: u64 = steps.iter().map(|step| step.by_k[i].hard_groups).sum();
        assert_eq!(hard, by_k.hard_groups);
        let flips = steps.iter().map(|step| step.by_k[i].flips_from_previous);
        assert_eq!(flips.sum::<Option<u64>>(), by_k.flips_from_previous);
        let zero = steps
            .iter()
            .map(|step| step.by_k[i].signs.zero_share * step.responses as f64);
        let zero: f64 = zero.sum();
        assert!((zero - by_k.signs.zero as f64).abs() < 1e-6);
    }
}

#[test]
fn flips_are_groups_that_change_their_regime() {
    let data = rollouts(5, 1, |random| random.below(2) as f64);
    let report = compare(&data, Interpolation::InvertedCdf);
    let groups = Groups::from_ids(&data.ids).unwrap();
    let is_hard = |k: f64| -> Vec<bool> {
        let members = (0..groups.num_groups()).map(|group| groups.members(group));
        members
            .map(|members| {
                let failures = members.clone().filter(|&i| data.rewards[i] == 0.0).count();
                failures >= reference::rank(k, members.len())
            })
            .collect()
    };
    assert_eq!(report.by_k[0].flips_from_previous, None);
    for pair in report.by_k.windows(2) {
        let (before, after) = (is_hard(pair[0].k), is_hard(pair[1].k));
        let flips = before.iter().zip(&after).filter(|(a, b)| a != b).count() as u64;
        assert_eq!(pair[1].flips_from_previous, Some(flips));
        assert!(flips > 0);
    }
}

#[test]
fn only_the_rank_tells_methods_apart() {
    let rows = [crate::group("a", &[1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0])].concat();
    let options = Options {
        k: vec![0.3, 0.4, 0.45, 0.5, 0.51],
        ..Options::default()
    };
    let same = |options: &Options| -> BTreeMap<String, Vec<f64>> {
        let report = report_of_lines_with(crate::lines(&rows), options).unwrap();
        let by_k = report.by_k.into_iter();
        by_k.map(|by_k| (by_k.k.to_string(), by_k.same_method_as))
            .collect()
    };
    let found = same(&options);
    assert!(found["0.3"].is_empty());
    assert_eq!(found["0.4"], [0.45, 0.5]);
    assert_eq!(found["0.5"], [0.4, 0.45]);
    assert!(found["0.51"].is_empty());
    let linear = Options {
        interpolation: Interpolation::Linear,
        ..options
    };
    assert!(same(&linear).values().all(Vec::is_empty));
}

#[test]
fn neither_the_order_of_lines_nor_the_number_of_threads_shows() {
    let mut data = rollouts(6, 1, |random| random.below(1000) as f64 / 7.0);
    let as_json = |rows: &[Value], num_threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads);
        let pool = pool.build().unwrap();
        let report = pool.install(|| report_of_lines_with(crate::lines(rows), &Options::default()));
        let mut report = serde_json::to_value(report.unwrap()).unwrap();
        // Rounding of sums over groups, which are numbered as they appear.
        let rounded = |value: &Value| (value.as_f64().unwrap() * 1e9).round();
        let mean = rounded(&report["rewards"]["mean"]);
        report["rewards"]["mean"] = json!(mean);
        let advantage = rounded(&report["mean_baseline"]["mean_abs_advantage"]);
        report["mean_baseline"] = json!(advantage);
        for by_k in report["by_k"].as_array_mut().unwrap() {
            by_k["mean_abs_advantage"] = json!(rounded(&by_k["mean_abs_advantage"]));
            by_k["mean_abs_advantage_active"] = json!(null);
            by_k["two_regime"] = json!(by_k["two_regime"]["zero"]);
        }
        report["by_step"] = json!(report["by_step"].as_array().unwrap().len());
        report
    };
    let first = as_json(&data.rows, 1);
    assert_eq!(first, as_json(&data.rows, 5));
    data.rows.reverse();
    assert_eq!(first, as_json(&data.rows, 3));
}

#[test]
fn success_is_what_the_threshold_says() {
    let rows = crate::group("a", &[-1.0, -1.0, 1.0, 1.0]);
    let at = |success_threshold| {
        let options = Options {
            success_threshold,
            ..Options::default()
        };
        report_of_lines_with(crate::lines(&rows), &options).unwrap()
    };
    let report = at(0.0);
    assert_eq!(
        (report.rewards.binary, report.by_k[3].hard_groups),
        (true, 1)
    );
    let report = at(1.0);
    assert_eq!(
        (report.rewards.binary, report.rewards.success_share),
        (false, Some(0.0))
    );
    assert_eq!(report.by_k[8].hard_groups, 1);
}
