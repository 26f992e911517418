//! The report as CSV: a row for each K, over all steps and at each; where automatic K is replayed,
//! rows for it and the fixed K as well.

mod auto_k;

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
    let mut rows = Rows::new(report.auto_k.is_some())?;
    let all = [
        "all".to_string(),
        report.responses.to_string(),
        report.groups.to_string(),
        number(report.rewards.mean),
        number(report.rewards.success_share),
        String::new(),
    ];
    rows.add(&all, &of_mean(&report.mean_baseline))?;
    for by_k in &report.by_k {
        for gate in [false, true] {
            rows.add(&all, &of_k(by_k, gate))?;
        }
    }
    for step in &report.by_step {
        let start = of_step(step);
        for by_k in &step.by_k {
            rows.add(&start, &of_step_k(by_k, report))?;
        }
    }
    if let Some(replay) = &report.auto_k {
        auto_k::add(&mut rows, &all, report, replay)?;
    }
    rows.finish()
}

/// The start says which step a row is of, the rest what happens there.
struct Rows {
    writer: csv::Writer<Vec<u8>>,
    has_auto_k: bool,
}

impl Rows {
    fn new(has_auto_k: bool) -> Result<Self> {
        let mut writer = csv::Writer::from_writer(vec![]);
        let more = auto_k::HEADER.iter().filter(|_| has_auto_k);
        let header = HEADER.iter().chain(more);
        writer.write_record(header).map_err(refuse)?;
        Ok(Self { writer, has_auto_k })
    }

    fn add(&mut self, start: &[String; 6], rest: &[String]) -> Result<()> {
        self.add_replayed(start, rest, &Default::default())
    }

    fn add_replayed(&mut self, start: &[String; 6], rest: &[String], more: &More) -> Result<()> {
        let more = more.iter().filter(|_| self.has_auto_k);
        let row = start.iter().chain(rest).chain(more);
        self.writer.write_record(row).map_err(refuse)
    }

    fn finish(self) -> Result<String> {
        let bytes = self.writer.into_inner().map_err(refuse)?;
        String::from_utf8(bytes).map_err(|error| Error::invalid("--format csv", "UTF-8", error))
    }
}

/// The columns of a replay; empty in other rows.
type More = [String; auto_k::HEADER.len()];

fn refuse(error: impl std::fmt::Display) -> Error {
    Error::invalid("--format csv", "a report", error)
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
