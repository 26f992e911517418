//! The replay of automatic K as text.

use super::{HEADER, header, paragraph, percent, shown_steps, signs};
use crate::analyze::{AutoKReplay, AutoKReplayStep, Regimes, Report, plural, usual_size};
use crate::auto_k::{EntropyTarget, KBound};
use crate::cli::printable::{exact, fixed};
use crate::reference::rank;

pub(super) fn auto_k(report: &Report, replay: &AutoKReplay, with_each_step: bool) -> String {
    let mut text = format!("\n{}", title(replay));
    if !replay.by_step.is_empty() {
        text += &steps(report, replay);
    }
    text += &totals(report, replay);
    text += &paragraph("automatic K", &summary(report, replay));
    text += &paragraph(
        "",
        "a replay: the policy was trained with another K, so that its entropy does not answer. \
         This is which K the controller would have set, not where the entropy would have gone",
    );
    if with_each_step {
        text += "\nlog of automatic K, by step\n";
        replay.by_step.iter().for_each(|step| text += &log(step));
    }
    text
}

fn title(replay: &AutoKReplay) -> String {
    let config = &replay.config;
    let target = match config.target {
        EntropyTarget::InitialShare(share) => format!("{}·H₀", exact(share)),
        EntropyTarget::Nats(nats) => exact(nats),
    };
    format!(
        "automatic K, replayed from {} on: K ← clamp(K + {}·ln({target}/H), {}, {})\n",
        exact(config.initial_k),
        exact(config.gain),
        exact(config.min_k),
        exact(config.max_k),
    )
}

fn steps(report: &Report, replay: &AutoKReplay) -> String {
    let ranked = ranked_size(report);
    let mut text = format!(
        "{:>8} {:>8} {:>8} {:>7} {:>8} {:>8} {:>8}  held\n",
        "step",
        "entropy",
        "target",
        "K",
        ranked.map_or("method".to_string(), |size| format!("⌈{size}·K⌉")),
        "active",
        format!("at {}", exact(replay.config.initial_k)),
    );
    let shown = shown_steps(replay.by_step.len());
    for &i in &shown {
        text += &row(&replay.by_step[i], ranked);
    }
    let num_left_out = replay.by_step.len() - shown.len();
    if num_left_out > 0 {
        text += &format!("{num_left_out} more steps in --format csv and json\n");
    }
    text + "active: responses with an advantage; *: another method than at the step before\n"
}

/// The size whose ranks are shown: the usual one, where ranks are what matters.
fn ranked_size(report: &Report) -> Option<u64> {
    let interpolation = report.by_k.first().map(|by_k| by_k.interpolation);
    let size = usual_size(&report.group_sizes)?.size;
    (interpolation == Some("inverted_cdf") && size > 1).then_some(size)
}

fn row(step: &AutoKReplayStep, ranked: Option<u64>) -> String {
    let nats = |value: Option<f64>| value.map_or("-".to_string(), |nats| fixed(nats, 4));
    let controller = step.controller;
    let rank = ranked.map_or(String::new(), |size| {
        rank(step.k, size as usize).to_string()
    });
    let changed = if step.method_changed { "*" } else { " " };
    let active = |regimes: &Regimes| 100.0 * (1.0 - regimes.signs.zero_share);
    let held = match controller.map(|step| step.held_at) {
        None => "no entropy",
        Some(None) => "",
        Some(Some(KBound::Min)) => "min_k",
        Some(Some(KBound::Max)) => "max_k",
    };
    let line = format!(
        "{:>8} {:>8} {:>8} {:>7.4} {rank:>7}{changed} {:>6.1} % {:>6.1} %  {held}",
        step.step,
        nats(controller.map(|step| step.entropy)),
        nats(controller.map(|step| step.target_entropy)),
        step.k,
        active(&step.automatic),
        active(&step.fixed),
    );
    format!("{}\n", line.trim_end())
}

/// Over all steps, below the fixed K.
fn totals(report: &Report, replay: &AutoKReplay) -> String {
    let line = |name: &str, regimes: &Regimes, flips: &str| {
        let share = |groups: u64| percent(groups as f64 / report.groups.max(1) as f64);
        format!(
            "{name:>6} {} {} {} {flips:>7}\n",
            share(regimes.hard_groups),
            share(regimes.easy_groups),
            signs(&regimes.signs),
        )
    };
    let flips = replay.flips_from_fixed.to_string();
    header(&HEADER[..10])
        + &line(&exact(replay.config.initial_k), &replay.fixed, "-")
        + &line("auto", &replay.automatic, &flips)
}

fn summary(report: &Report, replay: &AutoKReplay) -> String {
    format!(
        "{:.4} to {:.4}, at last {:.4}; {}: {} with another method than the one before, {} held at \
         min_k, {} held at max_k, {} without an entropy",
        replay.smallest_k,
        replay.largest_k,
        replay.last_k,
        plural(report.steps as u64, "step"),
        replay.method_changes,
        replay.held_at_min,
        replay.held_at_max,
        replay.steps_without_entropy,
    )
}

fn log(step: &AutoKReplayStep) -> String {
    let number = step.step;
    match step.controller {
        Some(controller) => format!("{number:>8}  {controller}\n"),
        None => format!("{number:>8}  no entropy: K stays {:.4}\n", step.k),
    }
}
