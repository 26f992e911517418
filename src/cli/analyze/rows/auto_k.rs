//! Of a replay two rows for each step, and two over all: with the K of the step, and with the fixed
//! one.

use super::{More, Rows, number, of_step, shares};
use crate::analyze::{AutoKReplay, AutoKReplayStep, Regimes, Report};
use crate::auto_k::KBound;
use crate::error::Result;

/// Beside the columns of every row.
pub(super) const HEADER: [&str; 5] = [
    "auto_k",
    "target_entropy",
    "held_at",
    "method_changed",
    "flips_from_fixed",
];

const AUTOMATIC: &str = "automatic";
const FIXED: &str = "fixed";

pub(super) fn add(
    rows: &mut Rows,
    all: &[String; 6],
    report: &Report,
    replay: &AutoKReplay,
) -> Result<()> {
    let interpolation = report.by_k.first().map_or("", |by_k| by_k.interpolation);
    let figures = |k, regimes| figures(k, interpolation, regimes);
    let fixed_k = Some(replay.config.initial_k);
    let mut automatic = named(AUTOMATIC);
    automatic[4] = replay.flips_from_fixed.to_string();
    // Over all steps there is no one K.
    rows.add_replayed(all, &figures(None, &replay.automatic), &automatic)?;
    rows.add_replayed(all, &figures(fixed_k, &replay.fixed), &named(FIXED))?;
    for step in &replay.by_step {
        let start = start(step, report);
        let automatic = figures(Some(step.k), &step.automatic);
        rows.add_replayed(&start, &automatic, &controller(step))?;
        rows.add_replayed(&start, &figures(fixed_k, &step.fixed), &named(FIXED))?;
    }
    Ok(())
}

fn start(step: &AutoKReplayStep, report: &Report) -> [String; 6] {
    let known = &report.by_step;
    if let Ok(at) = known.binary_search_by_key(&Some(step.step), |known| known.step) {
        return of_step(&known[at]);
    }
    // All groups of the step began at another one.
    [
        step.step.to_string(),
        step.responses.to_string(),
        step.groups.to_string(),
        String::new(),
        String::new(),
        number(step.controller.map(|controller| controller.entropy)),
    ]
}

fn controller(step: &AutoKReplayStep) -> More {
    let controller = step.controller;
    let held_at = match controller.and_then(|controller| controller.held_at) {
        None => "",
        Some(KBound::Min) => "min",
        Some(KBound::Max) => "max",
    };
    [
        AUTOMATIC.to_string(),
        number(controller.map(|controller| controller.target_entropy)),
        held_at.to_string(),
        step.method_changed.to_string(),
        step.flips_from_fixed.to_string(),
    ]
}

fn named(name: &str) -> More {
    let mut more = More::default();
    more[0] = name.to_string();
    more
}

fn figures(k: Option<f64>, interpolation: &str, regimes: &Regimes) -> Vec<String> {
    let mut figures = vec![
        number(k),
        interpolation.to_string(),
        "none".to_string(),
        regimes.hard_groups.to_string(),
        regimes.easy_groups.to_string(),
    ];
    figures.extend(shares(&regimes.signs));
    // Flips from the next smaller K, the same methods, both signs.
    figures.extend([const { String::new() }; 3]);
    figures
}
