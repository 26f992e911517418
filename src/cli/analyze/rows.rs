//! The report as CSV: a row for each K, over all steps and at each.

use crate::analyze::{ByK, ByStep, Report, Signs, StepByK};
use crate::error::{Error, Result};

const HEADER: [&str; 20] = [
    "step",
    "responses",
    "groups",
    "mean_reward",
    "success_share",
    "entropy",
    "k",
    "interpolation",
    "gate",
    "hard_groups",
    "easy_groups",
    "positive_share",
    "zero_share",
    "negative_share",
    "tokens_saved_share",
    "update_saved_share",
    "mean_abs_advantage",
    "flips_from_previous",
    "same_method_as",
    "both_signs_groups",
];

pub(super) fn csv(report: &Report) -> Result<String> {
    let mut writer = csv::Writer::from_writer(vec![]);
    let refuse = |error: csv::Error| Error::invalid("--format csv", "a report", error);
    writer.write_record(HEADER).map_err(refuse)?;
    let all = [
        "all".to_string(),
        report.responses.to_string(),
        report.groups.to_string(),
        number(report.rewards.mean),
        number(report.rewards.success_share),
        String::new(),
    ];
    let mean = of_mean(&report.mean_baseline);
    writer
        .write_record(all.iter().chain(&mean))
        .map_err(refuse)?;
    for by_k in &report.by_k {
        for gate in [false, true] {
            let rest = of_k(by_k, gate);
            writer
                .write_record(all.iter().chain(&rest))
                .map_err(refuse)?;
        }
    }
    for step in &report.by_step {
        let start = of_step(step);
        for by_k in &step.by_k {
            let rest = of_step_k(by_k, report);
            writer
                .write_record(start.iter().chain(&rest))
                .map_err(refuse)?;
        }
    }
    let bytes = writer.into_inner();
    let bytes = bytes.map_err(|error| Error::invalid("--format csv", "a report", error))?;
    String::from_utf8(bytes).map_err(|error| Error::invalid("--format csv", "UTF-8", error))
}

fn of_mean(signs: &Signs) -> Vec<String> {
    let [positive, zero, negative, tokens, update, advantage] = shares(signs);
    let none = String::new;
    vec![
        none(),
        "mean".to_string(),
        "none".to_string(),
        none(),
        none(),
        positive,
        zero,
        negative,
        tokens,
        update,
        advantage,
        none(),
        none(),
        none(),
    ]
}

fn of_k(by_k: &ByK, is_gated: bool) -> Vec<String> {
    let (gate, signs) = if is_gated {
        ("two_regime", &by_k.two_regime)
    } else {
        ("none", &by_k.signs)
    };
    let [positive, zero, negative, tokens, update, advantage] = shares(signs);
    let same: Vec<_> = by_k.same_method_as.iter().map(f64::to_string).collect();
    vec![
        by_k.k.to_string(),
        by_k.interpolation.to_string(),
        gate.to_string(),
        by_k.hard_groups.to_string(),
        by_k.easy_groups.to_string(),
        positive,
        zero,
        negative,
        tokens,
        update,
        advantage,
        number(by_k.flips_from_previous.map(|flips| flips as f64)),
        same.join(" "),
        if is_gated {
            "0".to_string()
        } else {
            by_k.both_signs_groups.to_string()
        },
    ]
}

fn of_step(step: &ByStep) -> [String; 6] {
    [
        step.step.map_or(String::new(), |step| step.to_string()),
        step.responses.to_string(),
        step.groups.to_string(),
        number(step.mean_reward),
        number(step.success_share),
        number(step.entropy),
    ]
}

fn of_step_k(by_k: &StepByK, report: &Report) -> Vec<String> {
    let interpolation = report.by_k.first().map_or("", |by_k| by_k.interpolation);
    let [positive, zero, negative, tokens, update, advantage] = shares(&by_k.signs);
    vec![
        by_k.k.to_string(),
        interpolation.to_string(),
        "none".to_string(),
        by_k.hard_groups.to_string(),
        by_k.easy_groups.to_string(),
        positive,
        zero,
        negative,
        tokens,
        update,
        advantage,
        number(by_k.flips_from_previous.map(|flips| flips as f64)),
        String::new(),
        String::new(),
    ]
}

fn shares(signs: &Signs) -> [String; 6] {
    [
        signs.positive_share,
        signs.zero_share,
        signs.negative_share,
        signs.tokens_saved_share,
        signs.update_saved_share,
        signs.mean_abs_advantage,
    ]
    .map(|value| value.to_string())
}

fn number(value: Option<f64>) -> String {
    value.map_or(String::new(), |value| value.to_string())
}
