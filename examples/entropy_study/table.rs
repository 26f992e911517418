//! The results as text.

use crate::study::{Spread, Study};
use crate::training::Run;
use std::fmt::Write;

const COLUMNS: [&str; 5] = [
    "entropy, nats",
    "success",
    "mean success",
    "zero advantage",
    "last K",
];

/// A table for each setting: mean ± standard deviation over the seeds.
pub fn of(study: &Study) -> String {
    let mut text = String::new();
    for (index, setting) in study.settings.iter().enumerate() {
        let initial = &study.runs(index, 0)[0];
        let _ = writeln!(
            text,
            "{}: {}\nafter {} rollouts, mean ± deviation over {} seeds",
            setting.name, setting.description, study.rollouts, study.seeds,
        );
        let _ = write!(text, "{:22}", "");
        for column in COLUMNS {
            let _ = write!(text, "{column:>16}");
        }
        let _ = writeln!(
            text,
            "\n{:22}{:>16.3}{:>16.3}",
            "before training", initial.entropy[0], initial.success[0],
        );
        for (method, name) in study.methods.iter().map(|method| method.name).enumerate() {
            let _ = write!(text, "{name:22}");
            for cell in cells(study.runs(index, method)) {
                let _ = write!(text, "{cell:>16}");
            }
            let _ = writeln!(text);
        }
        let _ = writeln!(text);
    }
    text
}

fn cells(runs: &[Run]) -> [String; 5] {
    let cell = |value: fn(&Run) -> Option<f64>| {
        if runs.iter().any(|run| value(run).is_none()) {
            return String::new();
        }
        let spread = Spread::of(runs.iter().filter_map(value));
        if spread.deviation.is_nan() {
            format!("{:.3}", spread.mean)
        } else {
            format!("{:.3} ± {:.3}", spread.mean, spread.deviation)
        }
    };
    [
        cell(|run| run.entropy.last().copied()),
        cell(|run| run.success.last().copied()),
        cell(|run| Some(run.success.iter().sum::<f64>() / run.success.len() as f64)),
        cell(|run| run.zero_share),
        cell(|run| run.k.last().copied()),
    ]
}
