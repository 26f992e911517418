//! The results as text.

use crate::method::Method;
use crate::study::{Spread, Study};
use crate::training::Run;
use std::fmt::Write;

/// A success rate that every method passes in the null control, whatever its speed.
const COMPARED_SUCCESS: f64 = 0.46;

const COLUMNS: [&str; 6] = [
    "entropy, nats",
    "success",
    "mean success",
    "zero advantage",
    "last K",
    "entropy @ 0.46",
];

/// A table for each setting: mean ± standard deviation over the seeds. The last column is the
/// entropy where the success rate first passes 0.46, if it does in every run.
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
        for (method, Method { name, .. }) in study.methods.iter().enumerate() {
            let _ = write!(text, "{name:22}");
            for cell in cells(study.runs(index, method)) {
                let _ = write!(text, "{cell:>16}");
            }
            let _ = writeln!(text);
        }
        for (method, Method { name, .. }) in study.methods.iter().enumerate() {
            text.extend(swing(name, study.runs(index, method)));
        }
        let _ = writeln!(text);
    }
    text
}

/// How far K and the entropy move once the controller has had half of the rollouts; `None` where K
/// is fixed.
pub fn swing(name: &str, runs: &[Run]) -> Option<String> {
    let half = |values: fn(&Run) -> &[f64]| {
        let halves = runs.iter().flat_map(move |run| {
            let values = values(run);
            &values[values.len() / 2..]
        });
        halves.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &value| {
            (value.min(low), value.max(high))
        })
    };
    let target = runs.first()?.target_entropy?;
    let (k, entropy) = (half(|run| &run.k), half(|run| &run.entropy));
    Some(format!(
        "{name}, second half: K {:.2} to {:.2}, entropy {:.2} to {:.2} about {target:.2} nats\n",
        k.0, k.1, entropy.0, entropy.1,
    ))
}

fn cells(runs: &[Run]) -> [String; 6] {
    let cell = |value: fn(&Run) -> Option<f64>| {
        if runs.iter().any(|run| value(run).is_none()) {
            return "-".to_owned();
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
        cell(|run| entropy_at(run, COMPARED_SUCCESS)),
    ]
}

/// Entropy where the success rate first passes `success`, between rollouts on a straight line.
fn entropy_at(run: &Run, success: f64) -> Option<f64> {
    let after = run.success.iter().position(|&rate| rate >= success)?;
    let before = after.checked_sub(1)?;
    let share = (success - run.success[before]) / (run.success[after] - run.success[before]);
    Some(run.entropy[before] + share * (run.entropy[after] - run.entropy[before]))
}
